"""Group-relative policy optimisation of one domain's teacher against its verifier (section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from openhorizon.agent.rollout import rollout
from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.config import BudgetConfig, GrpoConfig
from openhorizon.domains.base import Domain, Task
from openhorizon.losses.grpo import group_advantages, grpo, papo_advantages
from openhorizon.losses.reduce import token_mean
from openhorizon.model.sampler import LocalPolicy
from openhorizon.seeds import derive
from openhorizon.train.distillation import minibatches, prompt_stream, rollout_figures
from openhorizon.train.optim import Optimizer
from openhorizon.train.packing import Pack, convolution_gap, pack, packed_logits
from openhorizon.train.scores import chunks

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog

ROW_TOKENS = 512

Advantage = Callable[[Sequence[Trajectory]], torch.Tensor]


def group_advantage(process_weight: float) -> Advantage:
    """Outcome plus a share of the process score, normalised over the group. A denser reward than the outcome alone: a
    group in which nobody succeeds still says who came further."""

    def advantage(group: Sequence[Trajectory]) -> torch.Tensor:
        return group_advantages(torch.tensor([reward(t) + process_weight * t.verdict.score for t in group]))

    return advantage


def papo_advantage(negative_weight: float) -> Advantage:
    """The asymmetric advantage of the tool-calling teacher: the process score ranks failures only."""

    def advantage(group: Sequence[Trajectory]) -> torch.Tensor:
        outcome = torch.tensor([reward(t) for t in group])
        return papo_advantages(outcome, torch.tensor([t.verdict.score for t in group]), negative_weight)

    return advantage


def reward(trajectory: Trajectory) -> float:
    """1 for an accepted answer, else 0. A TRUNCATED episode gave none."""
    return float(trajectory.status is Status.SOLVED)


def reinforce(
    policy: LocalPolicy,
    reference: PreTrainedModel,
    domains: Mapping[str, Domain],
    prompts: Sequence[Task],
    budget: BudgetConfig,
    config: GrpoConfig,
    advantage: Advantage,
    seed: int,
    log: StageLog,
) -> dict[str, float]:
    """Train the policy's model in place on one domain's prompts; ``domains`` is by world, ``reference`` is the frozen
    model of the KL term.

    Dynamic sampling: a group whose advantages are all zero teaches nothing and is left out of the update.
    """
    model = policy.checkpoint.model
    optimizer = Optimizer(model, config.optim, config.iterations * config.updates)
    name = prompts[0].domain
    stream = prompt_stream(prompts, derive(seed, "prompts"))
    figures: dict[str, float] = {}
    for iteration in range(config.iterations):
        model.eval()
        tasks = [next(stream) for _ in range(config.prompts)]
        rolled = rollout(
            domains,
            [task for task in tasks for _ in range(config.group)],
            policy,
            {name: budget},
            config.temperature,
            derive(seed, "rollout", iteration),
        )
        figures = {key.split("@")[0]: value for key, value in rollout_figures(name, rolled).items()}
        trained: list[Trajectory] = []
        advantages: list[float] = []
        dead = 0
        for start in range(0, len(rolled), config.group):
            group = [t for t in rolled[start : start + config.group] if t.status is not Status.ABORTED]
            values = advantage(group) if group else torch.zeros(0)
            if not values.any():
                dead += 1
                if config.dynamic_sampling:
                    continue
            for trajectory, value in zip(group, values.tolist(), strict=True):
                trained += trajectory.contexts
                advantages += [value] * len(trajectory.contexts)
        figures["dead_groups"] = dead / config.prompts
        figures["reward"] = sum(reward(t) for t in rolled) / len(rolled)
        figures["invalid_calls"] = sum(turn.error for t in rolled for turn in t.turns) / max(
            sum(t.tool_calls for t in rolled), 1
        )
        if trained:
            order = derive(seed, "order", iteration)
            figures |= _update(optimizer, model, reference, policy.never, trained, advantages, config, order)
        log.tokens(sum(len(t.ids) for t in rolled))
        log.metrics(iteration, **figures)
        log.progress(
            iteration + 1, config.iterations, f"grpo reward {figures['reward']:.2f}, dead {dead}/{config.prompts}"
        )
    model.eval()
    return figures


def _update(
    optimizer: Optimizer,
    model: PreTrainedModel,
    reference: PreTrainedModel,
    never_V: torch.Tensor,
    trajectories: Sequence[Trajectory],
    advantages: Sequence[float],
    config: GrpoConfig,
    seed: int,
) -> dict[str, float]:
    gap, pad = convolution_gap(model), int(model.config.pad_token_id or 0)
    never_V = never_V.to(model.device)

    def as_sampled(trained: PreTrainedModel, packed: Pack) -> torch.Tensor:
        """Logits of the distribution that the rollout drew from: at its temperature, over the ids it may hold."""
        return packed_logits(trained, packed).float().masked_fill(never_V, -torch.inf) / config.temperature

    model.train()
    totals: dict[str, list[float]] = {}

    def losses(batch: Sequence[int]) -> Iterator[torch.Tensor]:
        """Of one micro-batch at a time: a graph is freed before the next is built."""
        parts = chunks([trajectories[i] for i in batch], config.optim.batch_tokens)
        trainable = sum(sum(trajectories[i].loss_mask) for i in batch)
        start = 0
        for part in parts:
            indices = batch[start : start + len(part)]
            start += len(part)
            packed = pack([(t.ids, t.loss_mask) for t in part], ROW_TOKENS, gap, pad)
            targets_N = packed.ids_RT[packed.train_RT].to(model.device)
            sample_N = packed.sample_RT[packed.train_RT]
            order = torch.unique_consecutive(sample_N).tolist()
            old_N = torch.cat([_trained_logprobs(part[i]) for i in order]).to(model.device)
            advantage_S = torch.tensor([advantages[i] for i in indices])
            with torch.no_grad():
                reference_NV = torch.log_softmax(as_sampled(reference, packed), dim=1)
                reference_N = reference_NV.gather(1, targets_N[:, None])[:, 0]
            loss_N, health = grpo(
                as_sampled(model, packed),
                targets_N,
                old_N,
                reference_N,
                advantage_S[sample_N].to(model.device),
                config.clip_low,
                config.clip_high,
                config.kl,
                config.entropy,
            )
            for name, values in health.items():
                totals.setdefault(name, []).append(values.mean().item())
            yield token_mean(loss_N) * (len(loss_N) / trainable)

    for batch in minibatches(trajectories, config.updates, seed):
        for name, value in optimizer.step(losses(batch)).items():
            totals.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in totals.items()}


def _trained_logprobs(trajectory: Trajectory) -> torch.Tensor:
    pairs = zip(trajectory.logprobs, trajectory.loss_mask, strict=True)
    return torch.tensor([logprob for logprob, trained in pairs if trained])
