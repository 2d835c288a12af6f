"""What an iteration is made on: prompts and demonstrations in turn, how long episodes may be, minibatches."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TypeVar

from openhorizon.agent.trajectory import Trajectory
from openhorizon.config import DistillConfig
from openhorizon.domains.base import Task
from openhorizon.seeds import rng

Item = TypeVar("Item")


def prompt_stream(tasks: Sequence[Task], seed: int) -> Iterator[Task]:
    """Endless tasks, each once an epoch, reshuffled; duplicates of a prompt are dropped."""
    unique = list({task.prompt: task for task in tasks}.values())
    if not unique:
        raise ValueError("no prompts to roll out; raise max_horizon or generate more prompts")
    return endless(unique, seed)


def in_turn(prompts: Sequence[Task], names: Sequence[str], seed: int) -> Iterator[Task]:
    """Endless tasks, one of each domain in turn; of a domain as ``prompt_stream`` has them."""
    streams = [prompt_stream([task for task in prompts if task.domain == name], seed) for name in names]
    while True:
        for stream in streams:
            yield next(stream)


def endless(items: Sequence[Item], seed: int) -> Iterator[Item]:
    """Endless items, each once an epoch, reshuffled.

    Raises:
        ValueError: there are none.
    """
    if not items:
        raise ValueError("distill.on_policy: no demonstrations; raise distill.max_horizon or sft.demonstrations")
    epoch = 0
    while True:
        order = list(items)
        rng(seed, epoch).shuffle(order)
        yield from order
        epoch += 1


def prompts_of(config: DistillConfig, share: float) -> int:
    """How many prompts a domain gives to an iteration, of which it has this share of ``distill.prompts``."""
    return max(round(config.prompts * share), 1)


def off_policy(config: DistillConfig, iteration: int, prompts: int) -> int:
    """How many of an iteration's ``prompts`` of a domain are demonstrations: over iterations, exactly the share."""
    share = Fraction(prompts) * (1 - Fraction(str(config.on_policy)))
    return math.floor(share * (iteration + 1)) - math.floor(share * iteration)


def turn_limit(config: DistillConfig, iteration: int) -> int | None:
    """The most turns of an episode in this iteration; None: its budget's."""
    curriculum = config.turn_curriculum
    return curriculum.turns + iteration // curriculum.every if curriculum else None


def first_turns(contexts: Sequence[Trajectory], limit: int | None) -> Iterator[Trajectory]:
    """An episode's contexts up to its ``limit``-th turn of the assistant."""
    left = math.inf if limit is None else limit
    for context in contexts:
        ends = [i + 1 for i, turn in enumerate(context.turns) if turn.role == "assistant"]
        if left > 0:
            yield context if len(ends) <= left else replace(context, turns=context.turns[: ends[int(left) - 1]])
        left -= len(ends)


def minibatches(trajectories: Sequence[Trajectory], count: int, seed: int) -> list[list[int]]:
    """Indices dealt into ``count`` minibatches, each with its share of every domain."""
    by_domain: dict[str, list[int]] = {}
    order = list(range(len(trajectories)))
    rng(seed).shuffle(order)
    for i in order:
        by_domain.setdefault(trajectories[i].task.domain, []).append(i)
    dealt: list[list[int]] = [[] for _ in range(count)]
    for indices in by_domain.values():
        for position, i in enumerate(indices):
            dealt[position % count].append(i)
    return [batch for batch in dealt if batch]
