"""Domain-routed on-policy distillation (sections 2.3 and 4.3).

An iteration: a frozen copy of the student rolls out prompts of every domain in their environments; the teacher of
each sample's own domain scores the tokens that the student wrote; the student takes a few updates on the reverse KL
over the teacher's salient vocabulary, averaged by sample, then domain, then over domains.

TRUNCATED episodes are kept as valid prefixes; ABORTED ones were retried by the rollout and are never trained on. All of
this is as the block ``distill`` says, whose defaults are the paper's (docs/distillation.md). The frozen copy is the
student itself between two phases of updates, which is the same thing and costs no memory; with ``staleness`` it is one
of older weights, which writes the rollouts of later iterations meanwhile (``ahead.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.config import BudgetConfig, DistillConfig, MachineConfig, RouterConfig
from openhorizon.domains.base import Domain, Task
from openhorizon.losses.reduce import Ratios
from openhorizon.model.sampler import LocalPolicy
from openhorizon.seeds import derive
from openhorizon.train.ahead import Ahead, Progress, staleness
from openhorizon.train.compute import Meter, tokens_of
from openhorizon.train.episodes import rollout
from openhorizon.train.experts import UNTOUCHED, Experts
from openhorizon.train.objectives import AGGREGATIONS, token_losses, wanted
from openhorizon.train.optim import Optimizer
from openhorizon.train.packing import (
    counted,
    output_layer,
    pack_trajectories,
    passes,
    recurrent,
    trained_tokens,
)
from openhorizon.train.resume import Resume, Tensors
from openhorizon.train.router import Router
from openhorizon.train.samples import (
    endless,
    first_turns,
    minibatches,
    off_policy,
    prompt_stream,
    prompts_of,
    turn_limit,
)
from openhorizon.train.scores import TeacherScores, Wanted, score
from openhorizon.train.watch import (
    DEPTHS,
    LOGGED_TURNS,
    Clock,
    Watch,
    alarms,
    depth_of_tokens,
    rollout_figures,
    turn_of_tokens,
)

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog


@dataclass(frozen=True)
class Asked:
    """What an iteration is made on: tasks to roll out, demonstrations, and the most turns of either."""

    tasks: Sequence[Task]
    examples: Sequence[Sequence[Trajectory]]
    limit: int | None


def asked(
    config: DistillConfig,
    seed: int,
    prompts: Mapping[str, Sequence[Task]],
    demonstrations: Mapping[str, Sequence[Sequence[Trajectory]]],
) -> list[Asked]:
    """Of every iteration, in order."""
    streams = {name: prompt_stream(prompts[name], derive(seed, "prompts", name)) for name in prompts}
    shown = {name: endless(given, derive(seed, "shown", name)) for name, given in demonstrations.items()}
    if config.on_policy < 1 and shown.keys() != prompts.keys():
        raise ValueError(f"distill.on_policy: {config.on_policy} needs demonstrations of {', '.join(prompts)}")
    shares, found = config.shares or {}, []
    of_domain = {name: prompts_of(config, shares.get(name, 1.0)) for name in prompts}
    for iteration in range(config.iterations):
        given = {name: off_policy(config, iteration, of_domain[name]) for name in prompts}
        tasks = [next(streams[name]) for name in prompts for _ in range(of_domain[name] - given[name])]
        examples = [next(shown[name]) for name in prompts for _ in range(given[name])]
        found.append(Asked(tasks, examples, turn_limit(config, iteration)))
    return found


def distil(
    policy: LocalPolicy,
    router: Router,
    domains: Mapping[str, Domain],
    prompts: Mapping[str, Sequence[Task]],
    budgets: Mapping[str, BudgetConfig],
    config: DistillConfig,
    seed: int,
    machine: MachineConfig,
    log: StageLog,
    routers: RouterConfig = UNTOUCHED,
    demonstrations: Mapping[str, Sequence[Sequence[Trajectory]]] | None = None,
    meter: Meter | None = None,
    saved: Resume | None = None,
) -> dict[str, float]:
    """Train the policy's model in place, on ``prompts`` by domain in the worlds ``domains`` and, for the share that is
    not on-policy, on ``demonstrations`` by domain (each its contexts, with token ids). ``meter`` is told what is spent
    on rollout, scoring and update. A run that was ``saved`` goes on behind the last iteration that is in it. Returns
    the last iteration's figures."""
    model, meter, saved = policy.checkpoint.model, meter or Meter(), saved or Resume()
    optimizer = Optimizer(model, config.optim, config.iterations * config.updates)
    experts = Experts(model, routers)
    policy.records_experts = routers.replay
    every = asked(config, seed, prompts, demonstrations or {})

    def write(writer: LocalPolicy, iteration: int, progress: Progress) -> list[Trajectory]:
        wish, own = every[iteration], derive(seed, "rollout", iteration)
        return rollout(domains, wish.tasks, writer, budgets, config.temperature, own, progress, wish.limit)

    aggregation, first = AGGREGATIONS[config.aggregation], dict[str, torch.Tensor]()
    with Ahead(policy, config.staleness, config.iterations, write) as ahead:
        at = saved.enter(optimizer=optimizer, experts=experts, meter=meter, first=Tensors(first), **ahead.parts())
        done: int = at.get("step", 0)
        ahead.begin(done)
        scales: dict[str, float] = at.get("scales", {})
        begin: dict[str, float] = at.get("begin", {})
        figures: dict[str, float] = at.get("figures", {})
        for iteration in range(done, config.iterations):
            model.eval()
            clock = Clock(model.device)
            rolled, took = ahead.take(iteration)
            meter.forward("rollout", model, tokens_of(rolled))
            clock.lap("rollout")
            figures = {}
            for name in prompts if rolled else ():
                figures |= rollout_figures(name, [t for t in rolled if t.task.domain == name])
            unused = {Status.ABORTED} | ({Status.TRUNCATED} if config.truncated == "drop" else set())
            trajectories = [context for t in rolled if t.status not in unused for context in t.contexts]
            trajectories += [
                context for one in every[iteration].examples for context in first_turns(one, every[iteration].limit)
            ]
            scores = router.score(trajectories, wanted(config), policy.never, machine)
            read = router.read(trajectories)
            for teacher, count in read:
                meter.forward("scoring", teacher, count)
            tokens = tokens_of(trajectories)
            if aggregation.measured and trajectories:
                meter.forward("scoring", model, tokens)
                ratios = log_ratios(model, trajectories, scores, wanted(config), policy.never, machine)
                if not first:
                    first.update(ratios)
                scales = aggregation.scales(ratios, first, (config.scale_bounds[0], config.scale_bounds[1]))
                figures |= {f"scale@{name}": scale for name, scale in scales.items()}
            clock.lap("scoring")
            model.train()
            totals: dict[str, list[float]] = {}
            for batch in minibatches(trajectories, config.updates, derive(seed, "minibatches", iteration)):
                watch = Watch()
                chosen, said = [trajectories[i] for i in batch], [scores[i] for i in batch]
                step = optimizer.step(losses(model, chosen, said, config, machine, watch, experts, scales))
                watch.share()
                for key, value in (step | watch.figures()).items():
                    totals.setdefault(key, []).append(value)
            clock.lap("update")
            figures |= {key: sum(values) / len(values) for key, values in totals.items()}
            curves, worst = experts.health()
            begin = begin or (figures if trajectories else {})
            wrong = alarms(figures, begin, config.alarm)
            figures |= worst | {"alarms": len(wrong)}
            meter.trained("update", model, tokens)
            curves |= {"tokens_rollout": sum(sum(t.loss_mask) for t in rolled), "tokens_update": tokens}
            curves |= {"staleness": staleness(iteration, config.staleness)} if config.staleness else {}
            curves["tokens_scoring"] = sum(count for _, count in read)
            log.tokens(tokens)
            log.metrics(iteration, **figures, **curves)
            log.timing(iteration, **({f"seconds_{name}": s for name, s in clock.seconds.items()} | took))
            for words in wrong:
                print(f"distill: iteration {iteration + 1}: {words}", flush=True)
            if wrong and config.alarm.stop:
                raise ValueError(f"distill.alarm: stopped at iteration {iteration + 1}: {'; '.join(wrong)}")
            log.progress(iteration + 1, config.iterations, _progress(figures, prompts))
            saved.after(iteration + 1, scales=scales, begin=begin, figures=figures)
    if not begin:
        raise ValueError(
            f"distill: no sample to train on in {config.iterations} iterations; truncated: {config.truncated}"
        )
    model.eval()
    policy.records_experts = False
    return figures


def _progress(figures: Mapping[str, float], prompts: Mapping[str, Sequence[Task]]) -> str:
    said = [f"loss {figures['loss']:.4f}" if "loss" in figures else "nothing to train on"]
    solved = [figures[f"success@{name}"] for name in prompts if f"success@{name}" in figures]
    return ", ".join([*said, f"rollout success {sum(solved) / len(solved):.2f}"] if solved else said)


def log_ratios(
    model: PreTrainedModel,
    trajectories: Sequence[Trajectory],
    scores: Sequence[TeacherScores],
    wanted: Wanted,
    never_V: torch.Tensor,
    machine: MachineConfig,
) -> Ratios:
    """By domain, the teacher's less the student's log-probability of each written token. The student's come from a pass
    of their own, at the loss's temperature, and not from the sampler, whose temperature and valid ids are others."""
    own = score([model], "", trajectories, replace(wanted, whole=False), never_V, machine)
    found: dict[str, list[torch.Tensor]] = {}
    for trajectory, said, mine in zip(trajectories, scores, own, strict=True):
        found.setdefault(trajectory.task.domain, []).append(said.written_logprobs_N - mine.written_logprobs_N)
    return {name: torch.cat(parts) for name, parts in found.items()}


def losses(
    model: PreTrainedModel,
    trajectories: Sequence[Trajectory],
    scores: Sequence[TeacherScores],
    config: DistillConfig,
    machine: MachineConfig,
    watch: Watch,
    experts: Experts | None = None,
    scales: Mapping[str, float] | None = None,
) -> Iterator[torch.Tensor]:
    """The objective as the aggregation weighs its tokens, times their domain's scale (and the routers' auxiliary
    losses), in parts that add up to it: one micro-batch's graph at a time. Each of several processes makes its own."""
    head, device = output_layer(model, machine), model.device
    experts = experts or Experts(model, UNTOUCHED)
    update_tokens = sum(len(trajectory.ids) for trajectory in trajectories)
    names = sorted({t.task.domain for t in trajectories})
    domain_S = torch.tensor([names.index(t.task.domain) for t in trajectories])
    tokens_S = torch.tensor([trained_tokens(t) for t in trajectories])
    weight_S = AGGREGATIONS[config.aggregation].weights(domain_S, tokens_S).to(device)
    if scales:
        weight_S = weight_S * torch.tensor([scales[t.task.domain] for t in trajectories], device=device)
    for turn in passes(trajectories, machine.micro_tokens, recurrent(model)):
        part = turn.samples
        packed = pack_trajectories(model, [trajectories[i] for i in part], machine)
        sample_N = torch.tensor(part)[packed.sample_RT[packed.train_RT]]
        order = torch.unique_consecutive(sample_N).tolist()  # samples are contiguous in a row
        written_N = packed.ids_RT[packed.train_RT].to(device)
        said = [scores[i] for i in order]
        domain_N = domain_S[sample_N].to(device)
        with experts.replayed(packed, [trajectories[i] for i in part]):
            hidden_NH, auxiliary = experts.hidden(packed, machine, update_tokens, turn.counts)
            if hidden_NH.requires_grad and turn.counts:
                hidden_NH.register_hook(partial(watch.gradient, index_N=domain_N, labels=names))
            loss_N, rho_N, entropy_N = token_losses(head, hidden_NH, model.config.vocab_size, written_N, said, config)
            yield counted((loss_N * weight_S[sample_N.to(device)]).sum() + auxiliary, turn)
        if not turn.counts:
            continue
        mass_N = 1 - torch.cat([scores[i].tail_mass_N for i in order]).to(device)
        watched = {"loss": loss_N.detach(), "rho": rho_N, "teacher_mass": mass_N}
        watch.add(watched | {"entropy": entropy_N}, domain_N, names)
        turn_N = torch.cat([turn_of_tokens(trajectories[i]) for i in order]).clamp(max=LOGGED_TURNS).to(device)
        depth_N = torch.cat([depth_of_tokens(trajectories[i]) for i in order]).to(device)
        for kind, count, place_N in (("turn", LOGGED_TURNS, turn_N), ("depth", DEPTHS, depth_N)):
            labels = [f"{name}/{kind}{place}" for name in names for place in range(1, count + 1)]
            watch.add(watched, domain_N * count + place_N - 1, labels)
