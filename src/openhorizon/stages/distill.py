"""Stage ``distill``: domain-routed on-policy distillation of the teachers into the SFT student (section 4.3)."""

from __future__ import annotations

from functools import partial
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
from openhorizon.model.sampler import local_policy
from openhorizon.seeds import derive
from openhorizon.train.compute import Meter
from openhorizon.train.distillation import distil
from openhorizon.train.remote import remote_scorer
from openhorizon.train.resume import Resume, Weights
from openhorizon.train.router import Router, by_domain
from openhorizon.train.warm_up import warm_up

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog


def run(config: Config, target: str | None, log: StageLog) -> None:
    """Write ``artifacts/distill``: the student.

    Raises:
        ValueError: a teacher does not fit the student, or has less headroom than ``distill.min_headroom``.
    """
    leads = headrooms(config)
    student = load_checkpoint(checkpoint_dir("sft"), config.machine)
    teachers = [load_teacher(checkpoint_dir(f"teacher@{name}"), name, config.machine) for name in config.domains]
    seed = derive(config.seed, "distill")
    router = Router(student, teachers, config.domains, config.distill.routing, seed, remote_scorer(teachers))
    prompts = {
        name: [
            task
            for task in read_tasks(stage_dir("generate", name) / "prompts.parquet")
            if task.horizon <= config.distill.max_horizon
        ]
        for name in config.domains
    }
    must_fit(DOMAINS, chain.from_iterable(prompts.values()), student.renderer, config.budget)
    policy = local_policy(student, config.machine)
    demonstrations = {name: verified(config, name, student) for name in config.domains if config.distill.on_policy < 1}
    meter = Meter()
    saved = Resume(unfinished(config, "distill"), config.machine, log, model=Weights(student.model), spent=meter)
    warm: dict[str, float] = {}
    if config.distill.warm_up:
        block, own = config.distill.warm_up, by_domain(student, teachers, config.domains)
        warming = partial(
            warm_up, student, own, DOMAINS, prompts, config.budget, block, config.distill.temperature,
            derive(seed, "warm_up"), config.machine, log, config.router, meter, saved,
        )  # fmt: skip
        warm = saved.once("warm_up", warming)
    figures = distil(
        policy,
        router,
        DOMAINS,
        prompts,
        config.budget,
        config.distill,
        seed,
        config.machine,
        log,
        config.router,
        demonstrations,
        meter,
        saved,
    )
    with replace_dir(stage_dir("distill")) as folder:
        save_checkpoint(student.model, student.tokenizer, folder)
        log.save_curves(folder)
        names = {f"teacher@{t.domain}": t.checkpoint.hash for t in teachers}
        write_json(folder / "metrics.json", figures | warm | leads | names | meter.figures())
    saved.remove()


def headrooms(config: Config) -> dict[str, float]:
    """``headroom@DOMAIN``: by how much each teacher beats the SFT model that it started from, in success on the
    validation tasks of its stage. It is the best of its candidates on them, so a little too high. A teacher that
    is not better is said; one that started elsewhere (``teach.DOMAIN.init``) has none.

    Raises:
        ValueError: less than ``distill.min_headroom``, where that is set, or not known.
    """
    least, found = config.distill.min_headroom, dict[str, float]()
    for name in config.domains:
        if config.teach[name].init != "sft":
            if least is not None:
                raise ValueError(f"distill.min_headroom={least}: not known where teach.{name}.init is not sft")
            continue
        figures = read_json(stage_dir("teach", name) / "metrics.json")
        start, kept = figures["validation_start"], figures[f"validation_{figures['kept']}"]
        found[f"headroom@{name}"] = kept - start
        against = (
            f"{kept:.3f} of teach.{name}.validation={config.teach[name].validation} tasks, the SFT model {start:.3f}"
        )
        if least is not None and kept - start < least:
            raise ValueError(f"distill.min_headroom={least}: the teacher of {name} solves {against}")
        if kept <= start:
            print(f"distill: the teacher of {name} is not better than the SFT model: it solves {against}", flush=True)
    return found


def verified(config: Config, name: str, student: Checkpoint) -> list[list[Trajectory]]:
    """The domain's demonstrations that the SFT student saw, too, no longer than the prompts: each its contexts, within
    the budget that a rollout has.

    Raises:
        ValueError: it saw none of this domain.
    """
    if config.sft.domains is not None and name not in config.sft.domains:
        share = config.distill.on_policy
        raise ValueError(f"distill.on_policy={share}: sft.domains leaves no demonstrations of {name}")
    longest, found = config.sft.max_horizon, read_trajectories(stage_dir("generate", name) / "demonstrations.parquet")
    seen = [t for t in found if longest is None or t.task.horizon <= longest][: config.sft.demonstrations]
    short = [trajectory for trajectory in seen if trajectory.task.horizon <= config.distill.max_horizon]
    limit = config.budget[name].context_tokens
    return [render_contexts(student.renderer, DOMAINS, trajectory, limit) for trajectory in short]
