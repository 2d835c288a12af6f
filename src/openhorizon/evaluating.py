"""``openhorizon evaluate``: whoever can play on our held-out tasks, such as a model behind an endpoint.

The tasks, their order and the episodes' seeds are those of the stage ``evaluate``, so that the result compares in pairs
with the models of this checkout; a checkpoint in this process gives what its stage gives. It is no artifact: nothing
here goes into the graph or the report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from openhorizon.agent.player import Player
from openhorizon.bench.evaluation import WAVE, heldout_tasks, write_evaluation
from openhorizon.bench.heldout import Row
from openhorizon.config import Config
from openhorizon.domains import DOMAINS
from openhorizon.seeds import derive


@dataclass(frozen=True)
class Wanted:
    """``model`` is the name that the records have, ``tasks`` a domain."""

    model: str
    domains: Sequence[str]
    tasks: int
    temperature: float


def evaluate(
    config: Config,
    player: Player,
    wanted: Wanted,
    out: Path,
    said: Callable[[int, int], None] = lambda done, total: None,
) -> list[Row]:
    """Play, write ``out`` and return its table.

    Raises:
        ValueError: an unknown domain, fewer held-out tasks than asked for, or what the player refuses.
    """
    for name in wanted.domains:
        if name not in config.domains:
            raise ValueError(f"evaluate: unknown domain {name!r}; known are {', '.join(config.domains)}")
    tasks, seed = heldout_tasks(wanted.domains, wanted.tasks), derive(config.seed, "evaluate")
    finished = []
    size = WAVE * config.machine.rollout_batch
    for start in range(0, len(tasks), size):
        said(start, len(tasks))
        batch = tasks[start : start + size]
        finished += player.rollout(DOMAINS, batch, [seed] * len(batch), config.budget, wanted.temperature)
    said(len(tasks), len(tasks))
    asked = {"temperature": wanted.temperature}
    return write_evaluation(out, wanted.model, player.name, finished, wanted.domains, config.seed, **asked)
