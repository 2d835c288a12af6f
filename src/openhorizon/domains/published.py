"""Worlds of tasks that others published together with their solutions: benchmarks' training parts, a simulator's tasks.

There is no scripted expert, since none could read the free text of the requests; the solutions are demonstrations, of
training tasks only.
"""

from __future__ import annotations

import hashlib
import random
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from openhorizon.domains.base import Answer, Domain, Expert, Split


class Published(Domain):
    """What such worlds have in common."""

    scripted = False

    @abstractmethod
    def by_horizon(self, split: Split) -> Mapping[int, Sequence[Any]]:
        """Calls of a task's solution → the split's tasks that have so many."""

    def offers(self, horizons: Sequence[int]) -> tuple[int, ...]:
        """Those that both splits have tasks of."""
        splits = [self.by_horizon(split) for split in ("train", "heldout")]
        return tuple(horizon for horizon in horizons if all(found.get(horizon) for found in splits))

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        raise ValueError(f"{self.world} has no scripted expert: its solutions are demonstrations")


def closing_code(what: str) -> str:
    """Five digits that a conversation's end shows: its answer, so that a task has one and nobody can guess it."""
    return str(10_000 + int.from_bytes(hashlib.sha256(what.encode()).digest()[:4], "big") % 90_000)


def is_code(answer: Answer | None, code: str) -> bool:
    """Whether the answer names this code."""
    return answer is not None and answer.text.rsplit("Answer:", 1)[-1].strip().rstrip(".") == code
