"""Stage ``base``: a tokenizer and a small MoE that knows the chat format and short horizons.

The paper starts from Qwen3.5-35B-A3B; the small profiles start from random weights of a stock family, trained on
demonstrations up to ``base.max_horizon`` only, so that every later gain in horizon is the recipe's own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from openhorizon.agent.compaction import render_contexts
from openhorizon.agent.render import Renderer
from openhorizon.agent.trajectory import read_trajectories
from openhorizon.artifacts import replace_dir, stage_dir, write_json
from openhorizon.config import Config
from openhorizon.domains import DOMAINS
from openhorizon.model.load import new_model, place, save_checkpoint
from openhorizon.model.tokenizer import train_tokenizer
from openhorizon.seeds import derive
from openhorizon.train.supervised import fit, sizes

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog


def run(config: Config, target: str | None, log: StageLog) -> None:
    """Write ``artifacts/base``. Raises ``ValueError`` where a domain has no demonstration short enough."""
    demonstrations = {
        name: read_trajectories(stage_dir("generate", name) / "demonstrations.parquet") for name in config.domains
    }
    texts = [
        text
        for name in config.domains
        for trajectory in demonstrations[name][: config.base.tokenizer_trajectories]
        for text in (DOMAINS[trajectory.task.world].system, *(turn.text for turn in trajectory.turns))
    ]
    tokenizer = train_tokenizer(texts, config.model.vocab_size, config.model.max_tokens)
    renderer = Renderer(tokenizer)
    short = {
        name: [t for t in trajectories if t.task.horizon <= config.base.max_horizon][: config.base.demonstrations]
        for name, trajectories in demonstrations.items()
    }
    for name, trajectories in short.items():
        if not trajectories:
            raise ValueError(f"base.max_horizon={config.base.max_horizon}: no demonstration of {name} is that short")
    chosen = [t for trajectories in short.values() for t in trajectories]
    samples = [s for t in chosen for s in render_contexts(renderer, DOMAINS, t, config.model.max_tokens)]
    model = new_model(config.model, tokenizer, derive(config.seed, "base", "weights") % 2**32)
    place(model, config.machine)
    figures = fit(
        model,
        samples,
        config.base.tokens,
        config.base.optim,
        derive(config.seed, "base"),
        config.machine,
        log,
        router=config.router,
    )
    with replace_dir(stage_dir("base")) as folder:
        save_checkpoint(model, tokenizer, folder)
        log.save_curves(folder)
        write_json(
            folder / "metrics.json",
            figures
            | {
                "parameters": sum(p.numel() for p in model.parameters()),
                "vocabulary": len(tokenizer),
            }
            | sizes(chosen, samples),
        )
