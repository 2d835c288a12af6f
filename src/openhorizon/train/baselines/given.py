"""What a baseline is given, and what several of them do with it: fine-tune within FLOPs, try a model on validation.

A baseline (one file each beside this one) is a function of ``Given`` that returns a checkpoint, mostly ``start``
changed in place, and figures. Whatever it spends it tells ``meter``, and what took it long it gives to ``saved``: the
meter is kept there, the rest is its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.config import BaselinesConfig, BudgetConfig, MachineConfig, OptimConfig, RouterConfig
from openhorizon.domains.base import Domain, Task
from openhorizon.model.load import Checkpoint
from openhorizon.model.sampler import local_policy
from openhorizon.seeds import derive
from openhorizon.train.compute import TRAINED, Meter, active_parameters, tokens_of
from openhorizon.train.episodes import rollout
from openhorizon.train.resume import Resume, Weights
from openhorizon.train.supervised import batches, fit

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog

Figures = dict[str, float | str]
Made = tuple[Checkpoint, Figures]


@dataclass(frozen=True)
class Given:
    """``flops`` is what distillation spent."""

    start: Checkpoint  # the SFT model
    teachers: Callable[[], Mapping[str, Checkpoint]]  # by domain; read where they are needed
    demonstrations: Callable[[int], Sequence[Trajectory]]  # contexts of so many a domain, with token ids
    prompts: Mapping[str, Sequence[Task]]  # of distillation, by domain
    validation: Mapping[str, Sequence[Task]]  # by domain; neither held out nor trained on
    worlds: Mapping[str, Domain]
    budgets: Mapping[str, BudgetConfig]
    config: BaselinesConfig
    temperature: float  # of validation
    routers: RouterConfig
    seed: int
    machine: MachineConfig
    log: StageLog
    flops: float
    meter: Meter
    saved: Resume


def fine_tuned(given: Given, samples: Sequence[Trajectory], optim: OptimConfig) -> Figures:
    """SFT of ``start`` on ``samples`` for the FLOPs that are left, to half an update. A run that was ``saved`` goes on.

    Raises:
        ValueError: nothing is left.
    """
    given.saved.keep(model=Weights(given.start.model))
    tokens = given.saved.once("tokens", partial(affordable, given, samples, optim))
    figures = fit(
        given.start.model, samples, tokens, optim, derive(given.seed, "sft"), given.machine, given.log,
        router=given.routers, meter=given.meter, saved=given.saved,
    )  # fmt: skip
    return {**figures, "samples": len(samples)}


def affordable(given: Given, samples: Sequence[Trajectory], optim: OptimConfig) -> int:
    """Tokens of SFT on ``samples`` that the FLOPs that are left pay for, in whole updates. An update's batch is not
    quite full, so that steps are counted by the mean batch of an epoch.

    Raises:
        ValueError: nothing is left.
    """
    left = (given.flops - given.meter.flops) / (TRAINED * active_parameters(given.start.model))
    if left <= 0:
        raise ValueError(f"baselines: {given.meter.flops:.3g} FLOPs are spent before training, of {given.flops:.3g}")
    stream = batches(samples, optim.batch_tokens, derive(given.seed, "sft"))
    epoch, read, count = tokens_of(samples), 0, 0
    while read < epoch:
        read += tokens_of(next(stream))
        count += 1
    return round(left / (read / count)) * optim.batch_tokens


def success(given: Given, model: Checkpoint, name: str) -> float:
    """Share of the validation tasks that ``model`` solves, the mean over domains. All models meet the same tasks with
    the same episode seeds."""

    def progress(done: int, total: int) -> None:
        given.log.progress(done, total, f"validating {name}")

    tasks = [task for mine in given.validation.values() for task in mine]
    policy, seed = local_policy(model, given.machine), derive(given.seed, "validation")
    tried = rollout(given.worlds, tasks, policy, given.budgets, given.temperature, seed, progress)
    given.meter.forward("validation", model.model, tokens_of(tried))
    solved = dict.fromkeys(given.validation, 0)
    for trajectory in tried:
        solved[trajectory.task.domain] += trajectory.status is Status.SOLVED
    return sum(solved[name] / len(mine) for name, mine in given.validation.items()) / len(solved)
