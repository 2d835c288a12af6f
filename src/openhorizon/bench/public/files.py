"""Data that no package holds: files in a user's folder, and lines of JSON that say where they are wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VARIABLE = "OPENHORIZON_DATA"
FOLDER = "data"


def user_file(name: str, what: str) -> Path:
    """A file below the user's folder; ``what`` says whose it is and how one gets it.

    Raises:
        ValueError: it is not there.
    """
    path = Path(os.environ.get(VARIABLE) or FOLDER) / name
    if not path.is_file():
        raise ValueError(f"{path}: not there; {what}. Put it there, or name another folder than {FOLDER} in {VARIABLE}")
    return path


def read_lines(path: Path, fields: Mapping[str, type | tuple[type, ...]]) -> list[dict[str, Any]]:
    """The objects of a JSON lines file, each with these fields at least; empty lines are left out.

    Raises:
        ValueError: a line is no such object; the message has its number.
    """
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}: not JSON ({str(error)[:80]})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: a {type(row).__name__}, expected an object")
        for field, kind in fields.items():
            if not isinstance(row.get(field), kind):
                raise ValueError(f"{path}, line {number}: {field} is {row.get(field)!r:.60}, expected {_name(kind)}")
        found.append(row)
    if not found:
        raise ValueError(f"{path}: no line of data")
    return found


def _name(kind: type | tuple[type, ...]) -> str:
    return " or ".join(it.__name__ for it in (kind if isinstance(kind, tuple) else (kind,)))
