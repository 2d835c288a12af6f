"""Finished tasks on disk, one line each: a killed evaluation goes on where it was.

Every line is written and synced once its task is finished and measured. What a kill leaves half-written is the last
line alone, and it is cut off when the journal is opened again. A journal belongs to one identity (benchmark, version,
player, sampling, code): its name has the identity's hash, so that another one starts a journal of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openhorizon.agent.trajectory import Status, Trajectory, trajectory_of, trajectory_row
from openhorizon.bench.public.base import Result, Value

FOLDER = Path(".openhorizon") / "bench"
SOURCE = Path(__file__).resolve().parents[2]
CODE = ("agent", "bench", "domains", "model", "sandbox")  # what decides how an episode goes and what it is worth


class Journal:
    """Results by task, with the trajectories behind them (text only). Tasks that were not played have none."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Raises ``ValueError`` where the file is damaged elsewhere than in its last line."""
        self.path = path
        self.results: dict[str, Result] = {}
        self.trajectories: dict[str, Trajectory] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            self._read()
        else:
            self._append([{"identity": dict(identity)}])

    def add(self, finished: Iterable[tuple[Result, Trajectory | None]]) -> None:
        """Durable when it returns."""
        rows = list(finished)
        self._append(
            {"result": _plain(result), "trajectory": trajectory_row(it) if it else None} for result, it in rows
        )
        for result, trajectory in rows:
            self._keep(result, trajectory)

    def _keep(self, result: Result, trajectory: Trajectory | None) -> None:
        self.results[result.task] = result
        if trajectory is not None:
            self.trajectories[result.task] = trajectory

    def _append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        with self.path.open("ab") as file:
            for row in rows:
                file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> None:
        data = self.path.read_bytes()
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            with self.path.open("r+b") as file:
                file.truncate(whole)
        for number, line in enumerate(data[:whole].splitlines(), start=1):
            try:
                row = json.loads(line)
                if "result" in row:
                    found = row["trajectory"]
                    self._keep(_result(row["result"]), trajectory_of(found) if found else None)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{self.path}, line {number}: damaged ({error}); delete the file, and its tasks are played again"
                ) from error


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


def _plain(result: Result) -> dict[str, Any]:
    return asdict(result) | {
        "status": result.status.value if result.status else None,
        "metrics": {name: list(value) for name, value in result.metrics.items()},
    }


def _result(row: Mapping[str, Any]) -> Result:
    status = Status(row["status"]) if row["status"] else None
    metrics = {name: Value(*pair) for name, pair in row["metrics"].items()}
    return Result(**{**row, "status": status, "metrics": metrics})
