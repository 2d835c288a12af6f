"""Stage ``baseline``: what distillation is held against, from the same SFT model at the FLOPs that it spent.

``train/baselines`` has one file for each; ``baselines.run`` says which are run. The prompts are those of distillation,
and models are chosen on validation tasks of the teachers: held-out tasks choose nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from openhorizon.agent.compaction import render_contexts
from openhorizon.agent.rollout import must_fit
from openhorizon.agent.trajectory import Trajectory, read_tasks, read_trajectories
from openhorizon.artifacts import checkpoint_dir, read_json, replace_dir, stage_dir, write_json
from openhorizon.config import Config
from openhorizon.domains import DOMAINS
from openhorizon.lineage import unfinished
from openhorizon.model.load import Checkpoint, load_checkpoint, load_teacher, save_checkpoint
from openhorizon.seeds import derive
from openhorizon.train.baselines import BASELINES
from openhorizon.train.baselines.given import Given
from openhorizon.train.compute import Meter
from openhorizon.train.resume import Resume
from openhorizon.train.router import by_domain

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog


def run(config: Config, target: str | None, log: StageLog) -> None:
    """Write ``artifacts/baseline/TARGET``.

    Raises:
        ValueError: an unknown target, too few validation tasks, teachers that do not fit, or what the target refuses.
    """
    if target not in BASELINES:
        raise ValueError(f"baseline: unknown target {target!r}; known are {', '.join(BASELINES)}")
    given = collect(config, target, log)
    made, figures = BASELINES[target](given)
    with replace_dir(stage_dir("baseline", target)) as folder:
        save_checkpoint(made.model, made.tokenizer, folder)
        log.save_curves(folder)
        write_json(folder / "metrics.json", figures | given.meter.figures() | {"distill_flops": given.flops})
    given.saved.remove()


def collect(config: Config, target: str, log: StageLog) -> Given:
    """What the recipe's stages left for a baseline. Demonstrations and teachers are read where one asks for them."""
    start = load_checkpoint(checkpoint_dir("sft"), config.machine)
    spent = stage_dir("distill") / "metrics.json"
    flops = read_json(spent).get("spent_flops")
    if flops is None:
        raise ValueError(f"{spent}: does not say what distillation spent; run its stage again")
    longest, count = config.distill.max_horizon, config.baselines.validation
    prompts, validation = (
        {name: read_tasks(stage_dir("generate", name) / f"{part}.parquet") for name in config.domains}
        for part in ("prompts", "validation")
    )
    for name in config.domains:
        least = min(len(validation[name]), config.teach[name].validation)
        if count > least:
            raise ValueError(f"baselines.validation={count}: teach.{name}.validation has {least} tasks")
    prompts = {name: [task for task in mine if task.horizon <= longest] for name, mine in prompts.items()}
    validation = {name: mine[:count] for name, mine in validation.items()}
    must_fit(DOMAINS, chain(*validation.values(), *prompts.values()), start.renderer, config.budget)

    def teachers() -> Mapping[str, Checkpoint]:
        found = [load_teacher(checkpoint_dir(f"teacher@{name}"), name, config.machine) for name in config.domains]
        return by_domain(start, found, config.domains)

    def demonstrations(count: int) -> Sequence[Trajectory]:
        limit = config.model.max_tokens
        return [
            context
            for name in config.domains
            for trajectory in read_trajectories(stage_dir("generate", name) / "demonstrations.parquet")[:count]
            for context in render_contexts(start.renderer, DOMAINS, trajectory, limit)
        ]

    meter = Meter()
    return Given(
        start=start,
        teachers=teachers,
        demonstrations=demonstrations,
        prompts=prompts,
        validation=validation,
        worlds=DOMAINS,
        budgets=config.budget,
        config=config.baselines,
        temperature=config.evaluate.temperature,
        routers=config.router,
        seed=derive(config.seed, "baseline", target),
        machine=config.machine,
        log=log,
        flops=flops,
        meter=meter,
        saved=Resume(unfinished(config, "baseline", target), config.machine, log, meter=meter),
    )
