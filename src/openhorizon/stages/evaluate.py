"""Stage ``evaluate``: pass@1 of one model on held-out tasks (section 5).

Every model meets the same tasks, in the same order, with the same episode seeds, so that models compare in pairs. A
teacher is tried on its own domain only.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from openhorizon.agent.rollout import rollout
from openhorizon.agent.trajectory import read_tasks, write_trajectories
from openhorizon.artifacts import checkpoint_dir, replace_dir, stage_dir, write_json
from openhorizon.bench.base import record_of, write_records
from openhorizon.bench.heldout import episodes, rows
from openhorizon.config import Config
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Task
from openhorizon.model.sampler import load_policy
from openhorizon.seeds import derive

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog


def run(config: Config, target: str | None, log: StageLog) -> None:
    """Write ``artifacts/evaluate/TARGET``. Raises ``ValueError`` for an unknown model or too few held-out tasks."""
    model = target or ""
    checkpoint, (kind, _, of) = checkpoint_dir(model), model.partition("@")
    own = of if kind == "teacher" else ""
    if own and own not in config.domains:
        raise ValueError(f"evaluate: unknown domain {own!r}; known are {', '.join(config.domains)}")
    wanted = [task for name in ((own,) if own else config.domains) for task in _tasks(name, config.evaluate.tasks)]
    policy = load_policy(checkpoint, config.machine)

    def progress(done: int, total: int) -> None:
        again = len(wanted) - total  # a retry of aborted episodes has the others behind it
        log.progress(again + done, len(wanted))

    temperature, seed = config.evaluate.temperature, derive(config.seed, "evaluate")
    finished = rollout(DOMAINS, wanted, policy, config.budget, temperature, seed, progress)
    log.tokens(sum(len(trajectory.ids) for trajectory in finished))
    records = [record_of(trajectory, model, config.seed) for trajectory in finished]
    table = rows(records, config.domains)
    with replace_dir(stage_dir("evaluate", model)) as folder:
        write_records(folder / "records.parquet", records)
        write_trajectories(folder / "trajectories.parquet", finished)
        write_json(
            folder / "metrics.json",
            {
                "model": model,
                "checkpoint": policy.name,
                "episodes": episodes(records),
                "rows": [asdict(row) for row in table],
                "mean_tokens": sum(record.tokens for record in records) / len(records),
                "mean_tool_calls": sum(record.tool_calls for record in records) / len(records),
            },
        )
    log.metrics(0, **{f"success@{row.domain}": row.success for row in table if row.horizon == "all"})


def _tasks(domain: str, count: int) -> list[Task]:
    path = stage_dir("generate", domain) / "heldout.parquet"
    tasks = read_tasks(path)
    if len(tasks) < count or not count:
        wanted = f"evaluate.tasks={count}; raise generate.{domain}.heldout"
        raise ValueError(f"{path}: {len(tasks)} held-out tasks for {wanted}")
    return tasks[:count]
