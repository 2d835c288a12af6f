"""Tasks as a world proposes them, for tests that look at many of one horizon."""

from __future__ import annotations

import random

from openhorizon.domains.base import Domain, Split, Task

DRAWS = 200  # a task, at most


def make_tasks(domain: Domain, horizon: int, count: int, split: Split = "train") -> list[Task]:
    """Always the same ones."""
    rng, tasks = random.Random(f"{horizon} {split}"), list[Task]()
    for seed in range(DRAWS * count):
        task = domain.propose(rng, split, horizon, seed)
        if task is not None:
            tasks.append(task)
        if len(tasks) == count:
            return tasks
    raise AssertionError(f"horizon {horizon}: {len(tasks)} tasks after {DRAWS * count} draws")
