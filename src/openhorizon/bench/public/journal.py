"""A benchmark's journal (bench/journal.py): results by task, with the trajectories behind them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openhorizon.agent.trajectory import Status, Trajectory, trajectory_of, trajectory_row
from openhorizon.bench.journal import Lines
from openhorizon.bench.public.base import Result, Value


class Journal:
    """Results by task, with the trajectories behind them (text only). Tasks that were not played have none."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Raises ``ValueError`` where the file is damaged elsewhere than in its last line."""
        self.results: dict[str, Result] = {}
        self.trajectories: dict[str, Trajectory] = {}
        self._lines = Lines(path, identity, self._take)

    def add(self, finished: Iterable[tuple[Result, Trajectory | None]]) -> None:
        """Durable when it returns."""
        rows = list(finished)
        self._lines.append(
            {"result": _plain(result), "trajectory": trajectory_row(it) if it else None} for result, it in rows
        )
        for result, trajectory in rows:
            self._keep(result, trajectory)

    def _take(self, row: dict[str, Any]) -> None:
        found = row["trajectory"]
        self._keep(_result(row["result"]), trajectory_of(found) if found else None)

    def _keep(self, result: Result, trajectory: Trajectory | None) -> None:
        self.results[result.task] = result
        if trajectory is not None:
            self.trajectories[result.task] = trajectory


def _plain(result: Result) -> dict[str, Any]:
    return asdict(result) | {
        "status": result.status.value if result.status else None,
        "metrics": {name: list(value) for name, value in result.metrics.items()},
    }


def _result(row: Mapping[str, Any]) -> Result:
    status = Status(row["status"]) if row["status"] else None
    metrics = {name: Value(*pair) for name, pair in row["metrics"].items()}
    return Result(**{**row, "status": status, "metrics": metrics})
