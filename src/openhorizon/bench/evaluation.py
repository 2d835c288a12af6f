"""Held-out tasks, and what an evaluation on them leaves behind: a folder of the same three files, whoever played.

records.parquet       one record a task (bench/base.py)
trajectories.parquet  the episodes
metrics.json          rates with intervals, how episodes ended, what they took
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openhorizon.agent.trajectory import Trajectory, read_tasks, write_trajectories
from openhorizon.artifacts import replace_dir, stage_dir, write_json
from openhorizon.bench.base import record_of, write_records
from openhorizon.bench.heldout import Row, episodes, rows
from openhorizon.domains.base import Task

WAVE = 2  # times the machine's rollout_batch: places of ended episodes are taken by others for half of a wave
RECORDS, TRAJECTORIES = "records.parquet", "trajectories.parquet"


def heldout_tasks(domains: Sequence[str], count: int) -> list[Task]:
    """The first ``count`` held-out tasks of each domain. Raises ``ValueError`` where there are fewer."""
    found = list[Task]()
    for domain in domains:
        path = stage_dir("generate", domain) / "heldout.parquet"
        tasks = read_tasks(path)
        if len(tasks) < count or not count:
            wanted = f"evaluate.tasks={count}; raise generate.{domain}.heldout"
            raise ValueError(f"{path}: {len(tasks)} held-out tasks for {wanted}")
        found += tasks[:count]
    return found


def write_evaluation(
    folder: Path,
    model: str,
    weights: str,
    finished: Sequence[Trajectory],
    domains: Sequence[str],
    seed: int,
    **more: Any,
) -> list[Row]:
    """Write ``folder``, with ``more`` in its metrics, and return its table."""
    records = [record_of(trajectory, model, seed) for trajectory in finished]
    table = rows(records, domains)
    with replace_dir(folder) as building:
        write_records(building / RECORDS, records)
        write_trajectories(building / TRAJECTORIES, finished)
        write_json(
            building / "metrics.json",
            {
                "model": model,
                "checkpoint": weights,
                "episodes": episodes(records),
                "rows": [asdict(row) for row in table],
                "mean_tokens": sum(record.tokens for record in records) / len(records),
                "mean_tool_calls": sum(record.tool_calls for record in records) / len(records),
                **more,
            },
        )
    return table
