"""Stage ``teach``: one domain's teacher, by the phases of its recipe (section 4.2; ``train/teachers``).

What differs from the paper: a teacher sees more demonstrations of its domain than the student ever does (as a team
with private data would have), and of its candidates (the start, the model after each phase and at intervals within
GRPO) the one is kept that solves most validation tasks, which share no entity pair with what is trained on. GRPO goes
on from the best so far, and ends early where that success collapses. Held-out tasks choose nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from openhorizon.agent.compaction import render_contexts
from openhorizon.agent.rollout import must_fit
from openhorizon.agent.trajectory import Status, Trajectory, read_tasks, read_trajectories
from openhorizon.artifacts import checkpoint_dir, replace_dir, stage_dir, write_json
from openhorizon.config import Config
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Task
from openhorizon.lineage import unfinished
from openhorizon.model.load import load_checkpoint, save_checkpoint
from openhorizon.model.sampler import LocalPolicy, local_policy
from openhorizon.model.sharding import duplicate
from openhorizon.seeds import derive
from openhorizon.train.episodes import rollout
from openhorizon.train.kept import Kept
from openhorizon.train.reinforcement import chosen_prompts, reinforce
from openhorizon.train.resume import Resume, Weights
from openhorizon.train.supervised import fit, sizes
from openhorizon.train.teachers import RECIPES
from openhorizon.train.teachers.phases import Grpo, Sft, dealt, expected_reuse

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog

Of = TypeVar("Of", Task, Trajectory)


def run(config: Config, target: str | None, log: StageLog) -> None:
    """Write ``artifacts/teach/TARGET``. Raises ``ValueError`` for an unknown domain, too few prompts, or a phase whose
    worlds gave no data."""
    if target not in config.domains:
        raise ValueError(f"teach: unknown domain {target!r}; known are {', '.join(config.domains)}")
    recipe, seed = config.teach[target], derive(config.seed, "teach", target)
    start = load_checkpoint(checkpoint_dir(recipe.init), config.machine)
    policy = local_policy(start, config.machine)
    data = stage_dir("generate", target)
    training, validation = (read_tasks(data / f"{name}.parquet") for name in ("prompts", "validation"))
    validation = validation[: recipe.validation]
    if not training or not validation:
        wanted = f"generate.{target}.prompts={len(training)}, teach.{target}.validation={len(validation)}"
        raise ValueError(f"{wanted}: none for GRPO, or none to choose by")
    played = [task for task in training if task.horizon <= recipe.grpo.max_horizon]
    must_fit(DOMAINS, [*validation, *played], policy.renderer, config.budget)

    def validate(name: str) -> float:
        def progress(done: int, total: int) -> None:
            log.progress(done, total, f"validating {name}")

        temperature = config.evaluate.temperature
        tried = rollout(DOMAINS, validation, policy, config.budget, temperature, derive(seed, "validation"), progress)
        return sum(t.status is Status.SOLVED for t in tried) / len(tried)

    kept = Kept(start.model, validate, recipe.grpo.stop_drop)
    saved = Resume(
        unfinished(config, "teach", target), config.machine, log, model=Weights(start.model), kept=kept
    )  # fmt: skip
    kept.offer("start")
    saved.tick()
    phases = RECIPES[recipe.recipe](recipe)
    shares = dealt(recipe.tokens, phases, Sft) | dealt(recipe.grpo.iterations, phases, Grpo)
    figures: dict[str, float | str] = {}
    steps = {Sft: 0, Grpo: 0}  # of the curves
    for phase in phases:
        share, first_step = shares[phase.name], steps[type(phase)]
        if not share:
            continue
        if isinstance(phase, Sft):
            tune = partial(_fine_tuned, config, target, policy, phase, share, data, log, first_step, saved)
            mine = saved.once(phase.name, tune)
            kept.offer(phase.name)
            saved.tick()
        else:
            kept.restore()
            train = partial(_reinforced, config, target, policy, phase, share, training, kept, log, first_step, saved)
            mine = saved.once(phase.name, train)
        steps[type(phase)] += int(mine.get("steps", 0))
        figures |= {f"{phase.name}_{name}": value for name, value in mine.items()}
    kept.restore()
    with replace_dir(stage_dir("teach", target)) as folder:
        save_checkpoint(start.model, start.tokenizer, folder)
        log.save_curves(folder)
        found = {f"validation_{name}": success for name, success in kept.found.items()}
        write_json(folder / "metrics.json", figures | found | {"kept": kept.name})
    saved.remove()


def _fine_tuned(
    config: Config,
    target: str,
    policy: LocalPolicy,
    phase: Sft,
    tokens: int,
    data: Path,
    log: StageLog,
    first_step: int,
    saved: Resume,
) -> dict[str, float]:
    recipe, seed = config.teach[target], derive(config.seed, "teach", target)
    demonstrations = _of(read_trajectories(data / "demonstrations.parquet"), phase.worlds)[: recipe.demonstrations]
    if not demonstrations:
        raise ValueError(f"teach.{target}: no demonstrations of {', '.join(phase.worlds)} for phase {phase.name}")
    limit, model = config.model.max_tokens, policy.checkpoint.model
    samples = [s for t in demonstrations for s in render_contexts(policy.renderer, DOMAINS, t, limit)]
    optim, seed = recipe.sft_optim, derive(seed, phase.name)
    figures = fit(
        model, samples, tokens, optim, seed, config.machine, log, "sft_", config.router, first_step, saved=saved
    )
    return {name.removeprefix("sft_"): value for name, value in figures.items()} | sizes(demonstrations, samples)


def _reinforced(
    config: Config,
    target: str,
    policy: LocalPolicy,
    phase: Grpo,
    iterations: int,
    prompts: Sequence[Task],
    kept: Kept,
    log: StageLog,
    first_step: int,
    saved: Resume,
) -> dict[str, float]:
    recipe = config.teach[target]
    seed = derive(config.seed, "teach", target, phase.name)
    grpo = dataclasses.replace(recipe.grpo, iterations=iterations)
    training = [task for task in _of(prompts, phase.worlds) if task.horizon <= grpo.max_horizon]
    if not training:
        raise ValueError(f"teach.{target}.grpo.max_horizon={grpo.max_horizon}: no prompts for phase {phase.name}")

    def progress(done: int, total: int) -> None:
        log.progress(done, total, f"{phase.name}: tries")

    def choose() -> list[str]:
        found = chosen_prompts(policy, DOMAINS, training, config.budget, grpo, phase.select, seed, progress)
        return [task.id for task in found]

    known = {task.id: task for task in training}
    chosen = [known[name] for name in saved.once("tries", choose)]
    figures: dict[str, float] = {"prompts": len(chosen)}
    if chosen:
        figures["expected_reuse"] = expected_reuse(iterations, grpo.prompts, grpo.group, len(chosen))
        reference = duplicate(policy.checkpoint.model).requires_grad_(False)
        figures |= reinforce(
            policy, reference, DOMAINS, chosen, config.budget, grpo, phase.advantage, seed, config.machine, log,
            config.router, lambda iteration: kept.offer(f"{phase.name}_{iteration}"), first_step, saved=saved,
        )  # fmt: skip
        kept.offer(phase.name)
    else:
        log.progress(iterations, iterations, f"{phase.name} skipped: no prompt of {len(training)} had a use")
    return figures


def _of(found: Sequence[Of], worlds: Sequence[str]) -> list[Of]:
    """Tasks, or trajectories, of these worlds; of all where none is named."""
    tasks = [item if isinstance(item, Task) else item.task for item in found]
    return [item for item, task in zip(found, tasks, strict=True) if not worlds or task.world in worlds]
