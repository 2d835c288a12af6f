"""What a flow run shows on its page in Prefect's UI: how far it is, a row a stage, the report's table and its address.

A server that is gone takes nothing from the run but this page, and a minute twice: Prefect's client tries as long.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from httpx import HTTPError
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import PrefectException

from flows.stage import Runner
from openhorizon import tracking
from openhorizon.artifacts import REPORTS
from openhorizon.progress import duration, say

T = TypeVar("T")


class Shown:
    """The artifacts of one flow run; made within it. Keys begin with the flow's name: the UI has a history of each."""

    def __init__(self, name: str, stages: int) -> None:
        self.name, self.stages = name, stages
        self._gone = False
        made = self._tried(
            lambda: create_progress_artifact(0.0, key=f"{name}-progress", description=f"{stages} stages")
        )
        self._progress = made if isinstance(made, UUID) else None

    def settled(self, count: int) -> None:
        """So many stages have an outcome."""
        progress = self._progress
        if progress is not None:
            share = 100 * min(count / self.stages, 1.0)
            self._tried(lambda: update_progress_artifact(progress, share))

    def end(self, runner: Runner, root: Path) -> None:
        """A row a stage; where there is a report, its table and its address."""
        self._gone = False  # it may be back
        rows = [
            {"stage": stage, "time": duration(seconds), "result": outcome}
            for stage in runner.asked
            for outcome, seconds in [runner.outcomes.get(stage, ("not run", 0.0))]
        ]
        self._tried(
            lambda: create_table_artifact(rows, key=f"{self.name}-stages", description="what became of each stage")
        )
        page, figures = root / REPORTS / "index.html", root / REPORTS / "results.json"
        if page.is_file() and figures.is_file():
            results = json.loads(figures.read_text(encoding="utf-8"))
            table = markdown_table(results)
            self._tried(
                lambda: create_markdown_artifact(table, key=f"{self.name}-results", description="held-out success")
            )
            self._tried(lambda: create_link_artifact(page.resolve().as_uri(), "report", key=f"{self.name}-report"))

    def _tried(self, make: Callable[[], T]) -> T | None:
        """Nothing where the server was gone before: each try would keep what waits for a stage waiting for a minute."""
        if self._gone:
            return None
        try:
            return make()
        except (PrefectException, HTTPError, OSError) as error:
            self._gone = True
            say(f"Prefect shows less of this run: {' '.join(str(error).split())[:200]}")
            return None


def markdown_table(results: dict[str, Any]) -> str:
    """Success by model and domain over all horizons, as ``openhorizon report`` prints it."""
    figures = tracking.success(results["rows"])
    models = list(dict.fromkeys(row["model"] for row in results["rows"]))
    domains = list(dict.fromkeys(row["domain"] for row in results["rows"] if (row["model"], row["domain"]) in figures))
    lines = [["model", *domains], ["---"] + ["---:"] * len(domains)]
    lines += [[m, *(f"{figures[m, d]:.3f}" if (m, d) in figures else "–" for d in domains)] for m in models]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
