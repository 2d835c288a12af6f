"""Group-relative policy optimisation of one domain's teacher against its verifier (section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from openhorizon.agent.rollout import rollout
from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.config import BudgetConfig, GrpoConfig, MachineConfig, RouterConfig
from openhorizon.domains.base import Domain, Task
from openhorizon.losses.chunked import by_chunks
from openhorizon.losses.grpo import group_advantages, grpo, papo_advantages
from openhorizon.model.sampler import LocalPolicy
from openhorizon.seeds import derive
from openhorizon.train.experts import UNTOUCHED, Experts
from openhorizon.train.optim import Optimizer
from openhorizon.train.packing import (
    micro_batches,
    output_layer,
    pack_trajectories,
    packed_hidden,
    trained_tokens,
)
from openhorizon.train.samples import minibatches, prompt_stream
from openhorizon.train.watch import rollout_figures

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog

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
    machine: MachineConfig,
    log: StageLog,
    router: RouterConfig = UNTOUCHED,
) -> dict[str, float]:
    """Train the policy's model in place on one domain's prompts; ``domains`` is by world, ``reference`` is the frozen
    model of the KL term.

    Dynamic sampling: a group whose advantages are all zero teaches nothing and is left out of the update.
    """
    model = policy.checkpoint.model
    optimizer = Optimizer(model, config.optim, config.iterations * config.updates)
    experts = Experts(model, router)
    policy.records_experts = router.replay
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
            figures |= _update(
                optimizer, model, experts, reference, policy.never, trained, advantages, config, order, machine
            )
        curves, worst = experts.health()
        figures |= worst
        log.tokens(sum(len(t.ids) for t in rolled))
        log.metrics(iteration, **figures, **curves)
        log.progress(
            iteration + 1, config.iterations, f"grpo reward {figures['reward']:.2f}, dead {dead}/{config.prompts}"
        )
    model.eval()
    policy.records_experts = False
    return figures


def _update(
    optimizer: Optimizer,
    model: PreTrainedModel,
    experts: Experts,
    reference: PreTrainedModel,
    never_V: torch.Tensor,
    trajectories: Sequence[Trajectory],
    advantages: Sequence[float],
    config: GrpoConfig,
    seed: int,
    machine: MachineConfig,
) -> dict[str, float]:
    never_V, vocabulary = never_V.to(model.device), model.config.vocab_size
    micro_tokens = min(config.optim.batch_tokens, machine.micro_tokens)

    def as_sampled(logits_CV: torch.Tensor) -> torch.Tensor:
        """Logits of the distribution that the rollout drew from: at its temperature, over the ids it may hold."""
        return logits_CV.masked_fill(never_V, -torch.inf) / config.temperature

    def said(logits_CV: torch.Tensor, targets_C: torch.Tensor) -> tuple[torch.Tensor]:
        return (torch.log_softmax(as_sampled(logits_CV), dim=1).gather(1, targets_C[:, None])[:, 0],)

    def clipped(
        logits_CV: torch.Tensor,
        targets_C: torch.Tensor,
        old_C: torch.Tensor,
        reference_C: torch.Tensor,
        advantages_C: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:
        bounds = config.clip_low, config.clip_high, config.kl, config.entropy
        loss_C, health = grpo(as_sampled(logits_CV), targets_C, old_C, reference_C, advantages_C, *bounds)
        return loss_C, health["clip_fraction"], health["kl"], health["entropy"]

    model.train()
    totals: dict[str, list[float]] = {}

    def losses(batch: Sequence[int]) -> Iterator[torch.Tensor]:
        """Of one micro-batch at a time: a graph is freed before the next is built."""
        chosen = [trajectories[i] for i in batch]
        trainable = sum(trained_tokens(t) for t in chosen)
        update_tokens = sum(len(t.ids) for t in chosen)
        for part in micro_batches(chosen, micro_tokens):
            packed = pack_trajectories(model, [chosen[i] for i in part], machine)
            targets_N = packed.ids_RT[packed.train_RT].to(model.device)
            sample_N = packed.sample_RT[packed.train_RT]
            order = torch.unique_consecutive(sample_N).tolist()
            old_N = torch.cat([_trained_logprobs(chosen[part[i]]) for i in order]).to(model.device)
            advantage_S = torch.tensor([advantages[batch[i]] for i in part])
            with torch.no_grad():
                hidden_NH = packed_hidden(reference, packed, machine)
                (reference_N,) = by_chunks(output_layer(reference, machine), hidden_NH, vocabulary, said, targets_N)
            rows = (targets_N, old_N, reference_N, advantage_S[sample_N].to(model.device))
            with experts.replayed(packed, [chosen[i] for i in part]):
                hidden_NH, auxiliary = experts.hidden(packed, machine, update_tokens)
                loss_N, *health = by_chunks(output_layer(model, machine), hidden_NH, vocabulary, clipped, *rows)
                for name, values in zip(("clip_fraction", "kl", "entropy"), health, strict=True):
                    totals.setdefault(name, []).append(values.mean().item())
                yield loss_N.sum() / trainable + auxiliary

    for batch in minibatches(trajectories, config.updates, seed):
        for name, value in optimizer.step(losses(batch)).items():
            totals.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in totals.items()}


def _trained_logprobs(trajectory: Trajectory) -> torch.Tensor:
    pairs = zip(trajectory.logprobs, trajectory.loss_mask, strict=True)
    return torch.tensor([logprob for logprob, trained in pairs if trained])
