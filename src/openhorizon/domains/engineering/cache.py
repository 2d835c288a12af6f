"""What was once measured by running code, kept on disk under the hash of everything that went in.

The folder is ``$XDG_CACHE_HOME/openhorizon/engineering``, below ``~/.cache`` where that is not set. It may be deleted
at any time: what is missing or damaged is measured again.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from openhorizon.artifacts import write_text


def remembered(parts: Sequence[str], compute: Callable[[], Any]) -> Any:
    """``compute()``, a JSON value, or what it gave for the same ``parts`` and the same versions of the libraries."""
    name = hashlib.sha256(repr((*parts, *_versions())).encode()).hexdigest()
    path = folder() / f"{name}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        value = compute()
        write_text(path, json.dumps(value, allow_nan=False))
        return value


def folder() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "openhorizon" / "engineering"


@functools.cache
def _versions() -> tuple[str, ...]:
    """Of what runs in the sandbox."""
    return (sys.version, *(importlib.metadata.version(name) for name in ("numpy", "pandas", "scikit-learn", "scipy")))
