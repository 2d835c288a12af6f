"""Stage ``sft``: full-domain supervised fine-tuning of the student (section 4.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from openhorizon.agent.compaction import render_contexts
from openhorizon.agent.trajectory import read_trajectories
from openhorizon.artifacts import checkpoint_dir, replace_dir, stage_dir, write_json
from openhorizon.config import Config
from openhorizon.domains import DOMAINS
from openhorizon.model.load import load_checkpoint, save_checkpoint
from openhorizon.seeds import derive
from openhorizon.train.supervised import fit, sizes

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog


def run(config: Config, target: str | None, log: StageLog) -> None:
    """Write ``artifacts/sft``, trained from ``artifacts/base`` on every domain's demonstrations."""
    start = load_checkpoint(checkpoint_dir("base"), config.machine)
    demonstrations = [
        trajectory
        for name in config.domains
        for trajectory in read_trajectories(stage_dir("generate", name) / "demonstrations.parquet")[
            : config.sft.demonstrations
        ]
    ]
    limit = config.model.max_tokens
    samples = [s for t in demonstrations for s in render_contexts(start.renderer, DOMAINS, t, limit)]
    figures = fit(
        start.model,
        samples,
        config.sft.tokens,
        config.sft.optim,
        derive(config.seed, "sft"),
        config.machine,
        log,
        router=config.router,
    )
    with replace_dir(stage_dir("sft")) as folder:
        save_checkpoint(start.model, start.tokenizer, folder)
        log.save_curves(folder)
        write_json(folder / "metrics.json", figures | sizes(demonstrations, samples))
