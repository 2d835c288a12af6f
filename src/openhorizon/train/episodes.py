"""Rollouts of several processes that train one model together: each plays its share of the episodes.

An episode depends on its own seed alone, so that who plays it changes nothing, and every process is given all of them,
in the order of their tasks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from openhorizon.agent import rollout as episodes
from openhorizon.agent.trajectory import Trajectory
from openhorizon.config import BudgetConfig
from openhorizon.domains.base import Domain, Task
from openhorizon.model.sampler import LocalPolicy
from openhorizon.model.sharding import whole
from openhorizon.world import World


def rollout(
    domains: Mapping[str, Domain],
    tasks: Sequence[Task],
    policy: LocalPolicy,
    budgets: Mapping[str, BudgetConfig],
    temperature: float,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    max_turns: int | None = None,
) -> list[Trajectory]:
    """``agent.rollout.rollout``, shared. ``progress`` is told of this process's share."""
    world = World.here()
    if world.size == 1:
        return episodes.rollout(domains, tasks, policy, budgets, temperature, seed, progress, max_turns)
    longest_first = sorted(range(len(tasks)), key=lambda i: (-tasks[i].horizon, i))
    mine = sorted(world.deal(longest_first))
    with whole(policy.checkpoint.model):
        made = episodes.rollout(domains, tasks, policy, budgets, temperature, seed, progress, max_turns, mine)
    found = {i: t for share in world.gather(dict(zip(mine, made, strict=True))) for i, t in share.items()}
    return [found[i] for i in range(len(tasks))]
