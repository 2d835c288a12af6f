"""The processes that train one model together (``launch.py`` starts them), and how they share work.

A process that was started alone is a world of size 1: nothing is sent, and no result differs in a bit from what it
would be without this module.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from openhorizon.artifacts import RANK_VARIABLE

# One may have to wait for another's longest episode or for a save; who died is seen by torchrun, not by waiting.
PATIENCE = timedelta(hours=6)

Item = TypeVar("Item")


@dataclass(frozen=True)
class World:
    """This process is the ``rank``-th of ``size``. The first alone writes and speaks."""

    rank: int
    size: int

    @staticmethod
    def alone() -> World:
        return World(0, 1)

    @staticmethod
    def here() -> World:
        """That of the process group that was joined; alone without one."""
        return World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World.alone()

    @property
    def first(self) -> bool:
        return self.rank == 0

    def deal(self, items: Sequence[Item]) -> list[Item]:
        """This process's share of ``items``, in their order; every ``size``-th."""
        return list(items[self.rank :: self.size])

    def gather(self, mine: Item) -> list[Item]:
        """What each process has, by rank."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine)
        return found

    def told(self, value: Item) -> Item:
        """What the first process has."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def add(self, tensor: torch.Tensor) -> None:
        """Put the sum over all processes in its place."""
        if self.size > 1:
            dist.all_reduce(tensor)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process runs the block before the others do."""
        if not self.first:
            self.told(None)
        yield
        if self.first:
            self.told(None)


@contextmanager
def joined(device: str) -> Iterator[World]:
    """The world of the processes that torchrun has started; alone where it has not started this one. On CUDA each
    process has the GPU of its place on its machine."""
    if RANK_VARIABLE not in os.environ:
        yield World.alone()
        return
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    yield World.here()
    dist.destroy_process_group()  # after an error the process ends, and the others are ended by torchrun
