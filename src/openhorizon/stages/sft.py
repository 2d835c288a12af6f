"""Stage ``sft``: full-domain supervised fine-tuning of the student (section 4.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openhorizon.agent.compaction import render_contexts
from openhorizon.agent.trajectory import Trajectory, read_trajectories
from openhorizon.artifacts import checkpoint_dir, replace_dir, stage_dir, write_json
from openhorizon.config import Config
from openhorizon.domains import DOMAINS
from openhorizon.lineage import unfinished
from openhorizon.model.load import load_checkpoint, save_checkpoint
from openhorizon.seeds import derive
from openhorizon.train.padding import padded
from openhorizon.train.resume import Resume, Weights
from openhorizon.train.supervised import fit, sizes

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog


def run(config: Config, target: str | None, log: StageLog) -> None:
    """Write ``artifacts/sft``, trained from ``artifacts/base`` on every domain's demonstrations.

    Raises:
        ValueError: ``sft.max_horizon`` leaves a domain none.
    """
    start = load_checkpoint(checkpoint_dir("base"), config.machine)
    demonstrations = [trajectory for name in config.domains for trajectory in chosen(config, name)]
    limit, seed = config.model.max_tokens, derive(config.seed, "sft")
    samples = [s for t in demonstrations for s in render_contexts(start.renderer, DOMAINS, t, limit)]
    tokens = config.sft.tokens
    if config.sft.domains is not None:
        whole, domains = sum(len(sample.ids) for sample in samples), set(config.sft.domains)
        demonstrations = [trajectory for trajectory in demonstrations if trajectory.task.domain in domains]
        samples = [sample for sample in samples if sample.task.domain in domains]
        tokens = round(tokens * sum(len(sample.ids) for sample in samples) / whole)
    if config.sft.padding:
        samples = [padded(start.renderer, sample, config.sft.padding, limit, seed) for sample in samples]
    saved = Resume(unfinished(config, "sft"), config.machine, log, model=Weights(start.model))
    figures = fit(
        start.model,
        samples,
        tokens,
        config.sft.optim,
        seed,
        config.machine,
        log,
        router=config.router,
        saved=saved,
    )
    with replace_dir(stage_dir("sft")) as folder:
        save_checkpoint(start.model, start.tokenizer, folder)
        log.save_curves(folder)
        write_json(folder / "metrics.json", figures | sizes(demonstrations, samples))
    saved.remove()


def chosen(config: Config, name: str) -> list[Trajectory]:
    """A domain's demonstrations: the first that are short enough: a limit on the horizon leaves their number."""
    longest = config.sft.max_horizon
    found = read_trajectories(stage_dir("generate", name) / "demonstrations.parquet")
    short = [trajectory for trajectory in found if longest is None or trajectory.task.horizon <= longest]
    if not short:
        raise ValueError(f"sft.max_horizon={longest}: no demonstration of {name} is that short")
    return short[: config.sft.demonstrations]
