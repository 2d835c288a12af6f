"""``openhorizon evaluate``: whoever can play on our held-out tasks, such as a model behind an endpoint.

The tasks, their order and the episodes' seeds are those of the stage ``evaluate``, so that the result compares in pairs
with the models of this checkout; a checkpoint in this process gives what its stage gives. It is no artifact: nothing
here goes into the graph or the report.

Finished tasks are kept in a journal (bench/journal.py) until the result is in place, so that what was killed goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openhorizon.agent.player import Player, PolicyPlayer
from openhorizon.agent.trajectory import Status
from openhorizon.bench.evaluation import WAVE, heldout_tasks, write_evaluation
from openhorizon.bench.heldout import Row
from openhorizon.bench.journal import Episodes, code_hash, journal_path
from openhorizon.config import Config
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Task
from openhorizon.seeds import derive

AT_ONCE = 32  # tasks of a player elsewhere, and what a kill costs at most; no part of its result


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
    """Play what an earlier run, ended on its way, has not finished; write ``out`` and return its table. Episodes that
    end ABORTED are in it, and the next run plays them again.

    Raises:
        ValueError: an unknown domain, fewer held-out tasks than asked for, or what the player refuses.
    """
    for name in wanted.domains:
        if name not in config.domains:
            raise ValueError(f"evaluate: unknown domain {name!r}; known are {', '.join(config.domains)}")
    tasks, seed = heldout_tasks(wanted.domains, wanted.tasks), derive(config.seed, "evaluate")
    identity = _identity(config, player, wanted, tasks)
    journal = Episodes(journal_path(identity), identity)
    # An episode's last bits depend on what is decoded with it: in this process a wave is played as a whole.
    here = isinstance(player, PolicyPlayer)
    size = WAVE * config.machine.rollout_batch if here else AT_ONCE
    waiting = tasks if here else [task for task in tasks if not journal.has(task.id)]
    for start in range(0, len(waiting), size):
        said(sum(journal.has(task.id) for task in tasks), len(tasks))
        batch = waiting[start : start + size]
        if not all(journal.has(task.id) for task in batch):
            journal.add(player.rollout(DOMAINS, batch, [seed] * len(batch), config.budget, wanted.temperature))
    said(len(tasks), len(tasks))
    finished = [journal.found[task.id] for task in tasks]
    asked = {"temperature": wanted.temperature}
    table = write_evaluation(out, wanted.model, player.name, finished, wanted.domains, config.seed, **asked)
    if all(episode.status is not Status.ABORTED for episode in finished):
        journal.remove()
    return table


def _identity(config: Config, player: Player, wanted: Wanted, tasks: Sequence[Task]) -> dict[str, Any]:
    """All that decides the episodes."""
    texts = json.dumps([asdict(task) for task in tasks], sort_keys=True)
    return {
        "benchmark": "heldout",
        "tasks": hashlib.sha256(texts.encode()).hexdigest(),
        "player": player.name,
        "wave": config.machine.rollout_batch if isinstance(player, PolicyPlayer) else None,
        "temperature": wanted.temperature,
        "seed": config.seed,
        "budget": {name: asdict(config.budget[name]) for name in wanted.domains},
        "code": code_hash(),
    }
