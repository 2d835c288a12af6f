"""Stage ``evaluate``: pass@1 of one model on held-out tasks (section 5).

Every model meets the same tasks, in the same order, with the same episode seeds, so that models compare in pairs. A
teacher is tried on its own domain only. Tasks go in waves, each rolled out by itself and then saved: a stage that was
killed goes on with the next one, and as an episode's last bits depend on what is decoded with it, it writes the same
bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from openhorizon.agent.rollout import must_fit, rollout
from openhorizon.agent.trajectory import Trajectory, read_trajectories, write_trajectories
from openhorizon.artifacts import checkpoint_dir, stage_dir
from openhorizon.bench.evaluation import WAVE, heldout_tasks, write_evaluation
from openhorizon.config import Config
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Task
from openhorizon.lineage import unfinished
from openhorizon.model.sampler import LocalPolicy, load_policy
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
    wanted = heldout_tasks((own,) if own else config.domains, config.evaluate.tasks)
    policy = load_policy(checkpoint, config.machine)
    must_fit(DOMAINS, wanted, policy.renderer, config.budget)
    saved, size = unfinished(config, "evaluate", model), WAVE * config.machine.rollout_batch
    finished: list[Trajectory] = []
    if saved and saved.names:
        print(f"{saved.stage}: goes on behind {min(len(saved.names) * size, len(wanted))} tasks", flush=True)
    for start in range(0, len(wanted), size):
        name = f"wave{start}"
        if saved and name in saved.names:
            finished += read_trajectories(saved.path(name))
            continue
        found = _rolled_out(config, wanted[start : start + size], policy, start, len(wanted), log)
        finished += found
        if saved:
            saved.save({}, {name: partial(write_trajectories, trajectories=found)}, saved.names)
    log.tokens(sum(len(trajectory.ids) for trajectory in finished))
    table = write_evaluation(stage_dir("evaluate", model), model, policy.name, finished, config.domains, config.seed)
    if saved:
        saved.remove()
    log.metrics(0, **{f"success@{row.domain}": row.success for row in table if row.horizon == "all"})


def _rolled_out(
    config: Config, tasks: Sequence[Task], policy: LocalPolicy, before: int, of: int, log: StageLog
) -> list[Trajectory]:
    """An episode a task; ``before`` of ``of`` were there already."""

    def progress(done: int, total: int) -> None:
        again = len(tasks) - total  # a retry of aborted episodes has the others behind it
        log.progress(before + again + done, of)

    temperature, seed = config.evaluate.temperature, derive(config.seed, "evaluate")
    return rollout(DOMAINS, tasks, policy, config.budget, temperature, seed, progress)
