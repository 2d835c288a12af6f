"""Data that no package holds: files in a user's folder, and lines of JSON that say where they are wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
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
    for where, row in read_objects(path):
        for field, kind in fields.items():
            if not isinstance(row.get(field), kind):
                raise ValueError(f"{where}: {field} is {row.get(field)!r:.60}, expected {_name(kind)}")
        found.append(row)
    if not found:
        raise ValueError(f"{path}: no line of data")
    return found


def read_objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Where each object of a JSON lines file stands, and the object; empty lines are left out.

    Raises:
        ValueError: a line is no object, or has a text that UTF-8 cannot say; the message has its number.
    """
    # Only a newline parts lines: JSON's texts may hold what Unicode breaks lines at.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line, parse_constant=_no_number)
            if "\\ud" in line.lower():  # half of a pair of code units, maybe
                json.dumps(row, ensure_ascii=False).encode()
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where}: not JSON ({str(error)[:80]})") from error
        if not isinstance(row, dict):
            raise ValueError(f"{where}: a {type(row).__name__}, expected an object")
        yield where, row


def read_text(path: Path) -> str:
    """Raises ``ValueError`` with the path where the file is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error})") from error


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number of JSON")


def _name(kind: type | tuple[type, ...]) -> str:
    return " or ".join(it.__name__ for it in (kind if isinstance(kind, tuple) else (kind,)))
