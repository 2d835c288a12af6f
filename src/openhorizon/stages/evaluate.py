"""Stage ``evaluate``: pass@1 of one model on held-out tasks (section 5).

Every model meets the same tasks, in the same order, with the same episode seeds, so that models compare in pairs. A
teacher is tried on its own domain only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from openhorizon.agent.rollout import rollout
from openhorizon.artifacts import checkpoint_dir, stage_dir
from openhorizon.bench.evaluation import heldout_tasks, write_evaluation
from openhorizon.config import Config
from openhorizon.domains import DOMAINS
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
    wanted = heldout_tasks((own,) if own else config.domains, config.evaluate.tasks)
    policy = load_policy(checkpoint, config.machine)

    def progress(done: int, total: int) -> None:
        again = len(wanted) - total  # a retry of aborted episodes has the others behind it
        log.progress(again + done, len(wanted))

    temperature, seed = config.evaluate.temperature, derive(config.seed, "evaluate")
    finished = rollout(DOMAINS, wanted, policy, config.budget, temperature, seed, progress)
    log.tokens(sum(len(trajectory.ids) for trajectory in finished))
    table = write_evaluation(stage_dir("evaluate", model), model, policy.name, finished, config.domains, config.seed)
    log.metrics(0, **{f"success@{row.domain}": row.success for row in table if row.horizon == "all"})
