"""Domain-routed on-policy distillation (sections 2.3 and 4.3).

An iteration: a frozen copy of the student rolls out prompts of every domain in their environments; the teacher of
each sample's own domain scores the tokens that the student wrote; the student takes a few updates on the reverse KL
over the teacher's salient vocabulary, averaged by sample, then domain, then over domains.

TRUNCATED episodes are kept as valid prefixes; ABORTED ones were retried by the rollout and are never trained on. The
frozen copy is the student itself between two phases of updates, which is the same thing and costs no memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from openhorizon.agent.rollout import rollout
from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.config import BudgetConfig, DistillConfig
from openhorizon.domains.base import Domain, Task
from openhorizon.losses.reduce import domain_mean
from openhorizon.losses.sva import sva
from openhorizon.model.sampler import LocalPolicy
from openhorizon.seeds import derive, rng
from openhorizon.train.optim import Optimizer
from openhorizon.train.packing import convolution_gap, pack, packed_logits
from openhorizon.train.router import Router
from openhorizon.train.scores import TeacherScores

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog

ROW_TOKENS = 512
LOGGED_TURNS = 4  # ρ is logged for turns 1..3 and 4+


def distil(
    policy: LocalPolicy,
    router: Router,
    domains: Mapping[str, Domain],
    prompts: Mapping[str, Sequence[Task]],
    budgets: Mapping[str, BudgetConfig],
    config: DistillConfig,
    seed: int,
    log: StageLog,
) -> dict[str, float]:
    """Train the policy's model in place, on ``prompts`` by domain in the worlds ``domains``. Returns the last
    iteration's figures."""
    model = policy.checkpoint.model
    optimizer = Optimizer(model, config.optim, config.iterations * config.updates)
    streams = {name: prompt_stream(prompts[name], derive(seed, "prompts", name)) for name in prompts}
    figures: dict[str, float] = {}
    for iteration in range(config.iterations):
        model.eval()
        tasks = [next(streams[name]) for name in prompts for _ in range(config.prompts)]
        rolled = rollout(domains, tasks, policy, budgets, config.temperature, derive(seed, "rollout", iteration))
        figures = {}
        for name in prompts:
            figures |= rollout_figures(name, [t for t in rolled if t.task.domain == name])
        trajectories = [context for t in rolled if t.status is not Status.ABORTED for context in t.contexts]
        scores = router.score(trajectories, config.top_k, policy.never)
        model.train()
        totals: dict[str, list[float]] = {}
        for batch in minibatches(trajectories, config.updates, derive(seed, "minibatches", iteration)):
            losses, observed = _loss(model, [trajectories[i] for i in batch], [scores[i] for i in batch])
            step = optimizer.step([losses])
            for key, value in (step | observed).items():
                totals.setdefault(key, []).append(value)
        figures |= {key: sum(values) / len(values) for key, values in totals.items()}
        tokens = sum(len(t.ids) for t in trajectories)
        log.tokens(tokens)
        log.metrics(iteration, **figures)
        success = sum(figures[f"success@{name}"] for name in prompts) / len(prompts)
        log.progress(iteration + 1, config.iterations, f"loss {figures['loss']:.4f}, rollout success {success:.2f}")
    model.eval()
    return figures


def prompt_stream(tasks: Sequence[Task], seed: int) -> Iterator[Task]:
    """Endless tasks, each once an epoch, reshuffled; duplicates of a prompt are dropped."""
    unique = list({task.prompt: task for task in tasks}.values())
    if not unique:
        raise ValueError("no prompts to roll out; raise max_horizon or generate more prompts")
    epoch = 0
    while True:
        order = list(unique)
        rng(seed, epoch).shuffle(order)
        yield from order
        epoch += 1


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


def rollout_figures(name: str, trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Success, length and how episodes ended, for one domain."""
    n = len(trajectories)
    return {
        f"success@{name}": sum(t.status is Status.SOLVED for t in trajectories) / n,
        f"truncated@{name}": sum(t.status is Status.TRUNCATED for t in trajectories) / n,
        f"aborted@{name}": sum(t.status is Status.ABORTED for t in trajectories) / n,
        f"length@{name}": sum(sum(t.loss_mask) for t in trajectories) / n,
    }


def _loss(
    model: torch.nn.Module, trajectories: Sequence[Trajectory], scores: Sequence[TeacherScores]
) -> tuple[torch.Tensor, dict[str, float]]:
    packed = pack(
        [(t.ids, t.loss_mask) for t in trajectories],
        ROW_TOKENS,
        convolution_gap(model),  # type: ignore[arg-type]
        int(model.config.pad_token_id or 0),  # type: ignore[union-attr,arg-type]
    )
    logits_NV = packed_logits(model, packed)  # type: ignore[arg-type]
    sample_N = packed.sample_RT[packed.train_RT]
    order = torch.unique_consecutive(sample_N).tolist()  # samples are contiguous in a row
    support_NK = torch.cat([scores[i].support_NK for i in order])
    teacher_NK = torch.cat([scores[i].logprobs_NK for i in order])
    tail_N = torch.cat([scores[i].tail_mass_N for i in order])
    loss_N, rho_N = sva(logits_NV, support_NK, teacher_NK)
    names = sorted({t.task.domain for t in trajectories})
    domain_S = torch.tensor([names.index(t.task.domain) for t in trajectories])
    loss = domain_mean(loss_N, sample_N.to(loss_N.device), domain_S.to(loss_N.device))
    turn_N = torch.cat([_turn_of_tokens(trajectories[i]) for i in order])
    observed: dict[str, float] = {}
    for d, name in enumerate(names):
        mine_N = domain_S[sample_N] == d
        observed[f"loss@{name}"] = loss_N[mine_N].mean().item()
        observed[f"rho@{name}"] = rho_N[mine_N].mean().item()
        observed[f"teacher_mass@{name}"] = 1 - tail_N[mine_N].mean().item()
        for turn in range(1, LOGGED_TURNS + 1):
            here_N = mine_N & (turn_N.clamp(max=LOGGED_TURNS) == turn)
            if here_N.any():
                observed[f"rho@{name}/turn{turn}"] = rho_N[here_N].mean().item()
    return loss, observed


def _turn_of_tokens(trajectory: Trajectory) -> torch.Tensor:
    """1 for tokens of the first assistant turn, 2 for the second, …: aligned with the trainable tokens."""
    turns = [turn for turn in trajectory.turns if turn.role == "assistant"]
    return torch.cat([torch.full((len(turn.ids),), i + 1) for i, turn in enumerate(turns)])
