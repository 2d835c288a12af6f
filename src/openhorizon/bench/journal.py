"""Finished tasks on disk, one line each: a killed evaluation goes on where it was.

Every line is written and synced once its task is finished and measured. What a kill leaves half-written is the last
line alone, and it is cut off when the journal is opened again. A journal belongs to one identity (benchmark, version,
player, sampling, code): its name has the identity's hash, so that another one starts a journal of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from openhorizon.agent.trajectory import Status, Trajectory, trajectory_of, trajectory_row

FOLDER = Path(".openhorizon") / "bench"
SOURCE = Path(__file__).resolve().parents[1]
CODE = ("agent", "bench", "domains", "model", "sandbox")  # what decides how an episode goes and what it is worth


class Lines:
    """A file of JSON objects, the first of which says whose it is."""

    def __init__(self, path: Path, identity: Mapping[str, Any], take: Callable[[dict[str, Any]], None]) -> None:
        """What is there already goes to ``take``, line by line.

        Raises:
            ValueError: the file is damaged elsewhere than in its last line.
        """
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            self._read(take)
        else:
            self.append([{"identity": dict(identity)}])

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Durable when it returns."""
        with self.path.open("ab") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self, take: Callable[[dict[str, Any]], None]) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with self.path.open("r+b") as file:
                file.truncate(whole)
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                row = json.loads(line)
                if "identity" not in row:
                    take(row)
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
                raise ValueError(
                    f"{self.path}, line {number}: damaged ({error}); delete the file, and its tasks are played again"
                ) from error


class Episodes:
    """Finished episodes by task, whole, as an evaluation on held-out tasks keeps them until it is written."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Raises ``ValueError`` as ``Lines`` does."""
        self.found: dict[str, Trajectory] = {}
        self._lines = Lines(path, identity, lambda row: self._keep(trajectory_of(row["trajectory"])))

    def has(self, task: str) -> bool:
        """Whether the task needs not be played: ABORTED says nothing of the player."""
        return task in self.found and self.found[task].status is not Status.ABORTED

    def add(self, finished: Iterable[Trajectory]) -> None:
        """Durable when it returns."""
        rows = list(finished)
        self._lines.append({"trajectory": trajectory_row(it)} for it in rows)
        for it in rows:
            self._keep(it)

    def remove(self) -> None:
        self._lines.path.unlink()

    def _keep(self, trajectory: Trajectory) -> None:
        self.found[trajectory.task.id] = trajectory


def journal_path(identity: Mapping[str, Any], root: Path = FOLDER) -> Path:
    """Where the journal of this identity lies."""
    text = json.dumps(identity, sort_keys=True)
    return root / str(identity["benchmark"]) / f"{hashlib.sha256(text.encode()).hexdigest()[:16]}.jsonl"


def code_hash() -> str:
    """Of the source that plays and scores: a result of other code is not taken up."""
    found = hashlib.sha256()
    for folder in CODE:
        for path in sorted((SOURCE / folder).rglob("*.py")):
            found.update(path.relative_to(SOURCE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]
