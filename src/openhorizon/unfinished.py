"""What a stage has done so far, on disk: one that was killed goes on from there instead of beginning again.

    .openhorizon/resume/STAGE/state.json    identity, values, and which file each name stands for, with its SHA-256
                              NAME.N        those files

A save writes its new files and has them on disk before ``state.json`` takes the place of the last one by rename; files
that are no longer listed go after that. So at every moment one save is whole. Nothing is trusted for being there: what
differs in a bit from what was written, or was saved by a stage whose result something else decides, is discarded.

None of this is an artifact: DVC does not know it, and it is removed when the stage's artifact is in place.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from openhorizon.artifacts import sync_folder, write_text
from openhorizon.pipeline import STATE_FOLDER

FOLDER = STATE_FOLDER / "resume"
STATE = "state.json"
Write = Callable[[Path], None]


class Unfinished:
    """The saved work of ``stage`` (as STAGE or STAGE@TARGET). ``identity`` stands for all that decides its result."""

    def __init__(self, stage: str, identity: str, root: Path = Path()) -> None:
        self.stage, self.identity, self.folder = stage, identity, root / FOLDER / stage
        self.values: dict[str, Any] = {}
        self._files: dict[str, tuple[str, str]] = {}  # name → file, SHA-256
        self._number = 0
        problem = self._read()
        if problem:
            print(f"{stage}: saved work is discarded, it begins anew: {problem}", flush=True)
            self.remove()

    def path(self, name: str) -> Path:
        """The file saved under ``name``, which must be one of ``names``."""
        return self.folder / self._files[name][0]

    @property
    def names(self) -> Collection[str]:
        """Of the files that were saved."""
        return self._files.keys()

    def save(self, values: Mapping[str, Any], fresh: Mapping[str, Write], same: Collection[str] = ()) -> bool:
        """Save ``values`` (JSON), what the functions of ``fresh`` write, and the files of the last save that ``same``
        names. False where the disk is full: the last save stays, and the stage may go on."""
        self._number += 1
        files = {name: self._files[name] for name in same}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name, write in fresh.items():
                file = f"{name}.{self._number}"
                write(self.folder / file)
                files[name] = file, _synced_hash(self.folder / file)
            sync_folder(self.folder)
            body = {"identity": self.identity, "number": self._number, "files": files, "values": values}
            text = json.dumps(body)
            write_text(self.folder / STATE, json.dumps({"sha256": _sha256(text), "body": text}))
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            print(f"{self.stage}: no space left on the disk to save its work; it goes on without", flush=True)
            self._remove_unlisted()
            return False
        self._files = files
        self._remove_unlisted()
        return True

    def remove(self) -> None:
        """Nothing is left of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.values, self._files = {}, {}

    def _read(self) -> str:
        """Take up what lies there; or why it must not be."""
        state = self.folder / STATE
        if not state.is_file():
            return ""
        try:
            outer = json.loads(state.read_text(encoding="utf-8"))
            text = outer["body"]
            if _sha256(text) != outer["sha256"]:
                return f"{state} is damaged"
            body = json.loads(text)
        except (ValueError, KeyError, TypeError):
            return f"{state} is damaged"
        if body["identity"] != self.identity:
            return "what decides its result has changed since"
        for file, wanted in body["files"].values():
            path = self.folder / file
            if not path.is_file() or _file_sha256(path) != wanted:
                return f"{path} is {'damaged' if path.exists() else 'missing'}"
        self.values, self._number = body["values"], body["number"]
        self._files = {name: (file, wanted) for name, (file, wanted) in body["files"].items()}
        self._remove_unlisted()
        return ""

    def _remove_unlisted(self) -> None:
        listed = {STATE, *(file for file, _ in self._files.values())}
        for path in self.folder.iterdir():
            if path.name not in listed:
                path.unlink()


def _synced_hash(path: Path) -> str:
    """The hash of a file that was just written, and now is on disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
