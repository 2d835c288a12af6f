"""Group-relative policy optimisation against the verifiers of one domain, as its teacher is trained, or of several
(section 4.2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.config import BudgetConfig, GrpoConfig, MachineConfig, RouterConfig
from openhorizon.domains.base import Domain, Task
from openhorizon.losses.chunked import by_chunks
from openhorizon.losses.grpo import grpo
from openhorizon.model.sampler import LocalPolicy
from openhorizon.seeds import derive
from openhorizon.train.compute import Meter, tokens_of
from openhorizon.train.episodes import rollout
from openhorizon.train.experts import UNTOUCHED, Experts
from openhorizon.train.optim import Optimizer
from openhorizon.train.packing import (
    counted,
    output_layer,
    pack_trajectories,
    packed_hidden,
    passes,
    recurrent,
    trained_tokens,
)
from openhorizon.train.resume import Resume, Weights
from openhorizon.train.samples import in_turn, minibatches
from openhorizon.train.teachers.phases import Advantage, Select, count_turns, outcome, turn_advantages
from openhorizon.train.watch import rollout_figures, turn_of_tokens
from openhorizon.world import World

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog


def chosen_prompts(
    policy: LocalPolicy,
    domains: Mapping[str, Domain],
    prompts: Sequence[Task],
    budgets: Mapping[str, BudgetConfig],
    config: GrpoConfig,
    select: Select,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
    meter: Meter | None = None,
) -> list[Task]:
    """Prompts to train on, chosen by what comes of ``tries`` at each of the first ``tried_prompts`` (section 4.2); with
    0 tries all of them. May be none, where a policy always succeeds or never. ``meter`` is told what the tries cost."""
    if not config.tries:
        return list(prompts)
    tasks = list({task.prompt: task for task in prompts}.values())[: config.tried_prompts]
    rolled = rollout(
        domains,
        [task for task in tasks for _ in range(config.tries)],
        policy,
        budgets,
        config.temperature,
        derive(seed, "tries"),
        progress,
    )
    (meter or Meter()).forward("tries", policy.checkpoint.model, tokens_of(rolled))
    groups = [rolled[i : i + config.tries] for i in range(0, len(rolled), config.tries)]
    alive = [[t for t in group if t.status is not Status.ABORTED] for group in groups]
    return select([group for group in alive if group], config.kept_prompts)


def reinforce(
    policy: LocalPolicy,
    reference: PreTrainedModel,
    domains: Mapping[str, Domain],
    prompts: Sequence[Task],
    budgets: Mapping[str, BudgetConfig],
    config: GrpoConfig,
    advantage: Advantage,
    seed: int,
    machine: MachineConfig,
    log: StageLog,
    router: RouterConfig = UNTOUCHED,
    collapsed: Callable[[int], bool] = lambda iteration: False,
    first_step: int = 0,
    meter: Meter | None = None,
    flops: float = math.inf,
    saved: Resume | None = None,
) -> dict[str, float]:
    """Train the policy's model in place on prompts, in turn of each of their domains; ``domains`` is by world,
    ``budgets`` by domain, ``reference`` is the frozen model of the KL term. Every ``validate_every`` iterations
    ``collapsed`` is asked whether to stop. Curves begin at ``first_step``; where there are several domains, they have
    figures of each (NAME@DOMAIN) beside those of all.

    ``meter`` is told what is spent on rollout, reference and update; with the iteration in which it reaches ``flops``
    training ends. A run that was ``saved`` goes on behind the last iteration that is in it.

    Dynamic sampling: a group whose advantages are all zero teaches nothing and is left out of the update. ABORTED
    samples take no part, TRUNCATED ones count as failures. After ``dead_stop`` iterations in a row in which no group
    taught anything it ends, and ``stopped`` says so.

    Raises:
        ValueError: a reward is not finite.
    """
    model, meter, saved = policy.checkpoint.model, meter or Meter(), saved or Resume()
    optimizer = Optimizer(model, config.optim, config.iterations * config.updates)
    experts = Experts(model, router)
    at = saved.enter(optimizer=optimizer, experts=experts, meter=meter, reference=Weights(reference, frozen=True))
    policy.records_experts = router.replay
    names = list(dict.fromkeys(task.domain for task in prompts))
    stream = in_turn(prompts, names, derive(seed, "prompts"))
    figures: dict[str, float] = at.get("figures", {})
    barren: int = at.get("barren", 0)
    for iteration in range(config.iterations):
        model.eval()
        tasks = [next(stream) for _ in range(config.prompts)]
        if iteration < at.get("step", 0):
            continue
        rolled = rollout(
            domains,
            [task for task in tasks for _ in range(config.group)],
            policy,
            budgets,
            config.temperature,
            derive(seed, "rollout", iteration),
        )
        meter.forward("rollout", model, tokens_of(rolled))
        figures = {key.split("@")[0]: value for key, value in rollout_figures("", rolled).items()}
        for name in names if len(names) > 1 else ():
            mine = [t for t in rolled if t.task.domain == name]
            if mine:
                figures |= rollout_figures(name, mine) | {f"reward@{name}": sum(map(outcome, mine)) / len(mine)}
        trained: list[Trajectory] = []
        advantages: list[torch.Tensor] = []
        dead = 0
        for start in range(0, len(rolled), config.group):
            group = [t for t in rolled[start : start + config.group] if t.status is not Status.ABORTED]
            values = advantage(group) if group else torch.zeros(0)
            if not torch.isfinite(values).all():
                task = group[0].task
                raise ValueError(f"grpo: a reward of task {task.id} of {task.domain} is not finite: {values.tolist()}")
            by_turn = [value.expand(count_turns(t)) for value, t in zip(values, group, strict=True)]
            if config.turn_weight:
                own = turn_advantages(group)
                by_turn = [value + config.turn_weight * mine for value, mine in zip(by_turn, own, strict=True)]
            if not any(value.any() for value in by_turn):
                dead += 1
                if config.dynamic_sampling:
                    continue
            for trajectory, of_turns in zip(group, by_turn, strict=True):
                contexts = trajectory.contexts
                trained += contexts
                advantages += of_turns.split([count_turns(context) for context in contexts])
        figures["dead_groups"] = dead / config.prompts
        figures["reward"] = sum(map(outcome, rolled)) / len(rolled)
        figures["invalid_calls"] = sum(turn.error for t in rolled for turn in t.turns) / max(
            sum(t.tool_calls for t in rolled), 1
        )
        if trained:
            order = derive(seed, "order", iteration)
            figures |= _update(
                optimizer, model, experts, reference, policy.never, trained, advantages, config, order, machine
            )
            meter.forward("reference", reference, tokens_of(trained))
            meter.trained("update", model, tokens_of(trained))
        curves, worst = experts.health()
        figures |= worst
        log.tokens(sum(len(t.ids) for t in rolled))
        log.metrics(first_step + iteration, **figures, **curves)
        done, total = iteration + 1, config.iterations
        if flops < math.inf:
            done, total = round(min(meter.flops, flops) / flops * 100), 100
        log.progress(done, total, f"grpo reward {figures['reward']:.2f}, dead {dead}/{config.prompts}")
        barren = barren + 1 if dead == config.prompts else 0
        if barren == config.dead_stop:
            why = f"ended: {barren} iterations in a row without a group of unlike rewards (grpo.dead_stop)"
            log.progress(done, total, why)
            break
        if meter.flops >= flops:
            break
        model.eval()
        last = iteration + 1 == config.iterations
        if not last and (iteration + 1) % config.validate_every == 0 and collapsed(iteration + 1):
            break
        saved.after(iteration + 1, figures=figures, barren=barren)
    figures["steps"] = iteration + 1.0
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
    advantages: Sequence[torch.Tensor],
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
    seen: list[tuple[int, list[float]]] = []  # of each pass: tokens, means over them

    def losses(batch: Sequence[int]) -> Iterator[torch.Tensor]:
        """Of one micro-batch at a time: a graph is freed before the next is built."""
        chosen = [trajectories[i] for i in batch]
        weights = token_weights([trained_tokens(t) for t in chosen], config.normalise)
        update_tokens = sum(len(t.ids) for t in chosen)
        for turn in passes(chosen, micro_tokens, recurrent(model)):
            part = turn.samples
            packed = pack_trajectories(model, [chosen[i] for i in part], machine)
            targets_N = packed.ids_RT[packed.train_RT].to(model.device)
            sample_N = packed.sample_RT[packed.train_RT]
            order = torch.unique_consecutive(sample_N).tolist()
            old_N = torch.cat([_trained_logprobs(chosen[part[i]]) for i in order]).to(model.device)
            mine = [advantages[batch[part[i]]][turn_of_tokens(chosen[part[i]]) - 1] for i in order]
            with torch.no_grad():
                hidden_NH = packed_hidden(reference, packed, machine)
                (reference_N,) = by_chunks(output_layer(reference, machine), hidden_NH, vocabulary, said, targets_N)
            rows = (targets_N, old_N, reference_N, torch.cat(mine).to(model.device))
            with experts.replayed(packed, [chosen[i] for i in part]):
                hidden_NH, auxiliary = experts.hidden(packed, machine, update_tokens, turn.counts)
                loss_N, *health = by_chunks(output_layer(model, machine), hidden_NH, vocabulary, clipped, *rows)
                seen.append((turn.counts * len(loss_N), [values.mean().item() for values in health]))
                weight_S = torch.tensor([weights[i] for i in part], device=model.device)
                yield counted((loss_N * weight_S[sample_N.to(model.device)]).sum() + auxiliary, turn)

    for batch in minibatches(trajectories, config.updates, seed):
        update = optimizer.step(losses(batch))
        whole = [one for share in World.here().gather(seen) for one in share]
        for i, name in enumerate(("clip_fraction", "kl", "entropy")):
            totals.setdefault(name, []).append(mean([(means[i], tokens) for tokens, means in whole]))
        seen.clear()
        for name, value in update.items():
            totals.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in totals.items()}


def mean(weighted: Sequence[tuple[float, int]]) -> float:
    """Of (value, weight) with a weight."""
    total = sum(weight for _, weight in weighted)
    return sum(value * weight for value, weight in weighted if weight) / total if total else math.nan


def token_weights(lengths: Sequence[int], normalise: str) -> list[float]:
    """What each token of a sample of so many trained tokens weighs in an update: ``token``, all alike (DAPO 2025);
    ``sequence``, each sample alike, however long (Shao et al. 2024). They add up to 1."""
    if normalise == "sequence":
        return [1 / (len(lengths) * max(length, 1)) for length in lengths]
    return [1 / sum(lengths)] * len(lengths)


def _trained_logprobs(trajectory: Trajectory) -> torch.Tensor:
    pairs = zip(trajectory.logprobs, trajectory.loss_mask, strict=True)
    return torch.tensor([logprob for logprob, trained in pairs if trained])
