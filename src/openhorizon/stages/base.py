"""Stage ``base``: a model, with its tokenizer, that knows the chat format and short horizons.

The paper starts from Qwen3.5-35B-A3B. The small profiles start from random weights of a stock family and a tokenizer
of their own, others from a pretrained checkpoint, upcycled to a mixture of experts where it is dense. Either is trained
on demonstrations up to ``base.max_horizon`` only, so that every later gain in horizon is the recipe's own; with
``base.tokens`` 0 the start is taken as it is.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from openhorizon.agent.compaction import render_contexts
from openhorizon.agent.render import Renderer
from openhorizon.agent.trajectory import Trajectory, read_trajectories
from openhorizon.artifacts import replace_dir, stage_dir, write_json
from openhorizon.config import Config
from openhorizon.domains import DOMAINS
from openhorizon.lineage import unfinished
from openhorizon.model.load import new_model, place, save_checkpoint
from openhorizon.model.start import Origin, start_from_checkpoint
from openhorizon.model.tokenizer import train_tokenizer
from openhorizon.model.upcycle import parameter_table, show_parameters
from openhorizon.seeds import derive
from openhorizon.train.resume import Resume, Weights
from openhorizon.train.supervised import fit, sizes

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog


def run(config: Config, target: str | None, log: StageLog) -> None:
    """Write ``artifacts/base``. Raises ``ValueError`` where a domain has no demonstration short enough, or the
    checkpoint to start from is refused."""
    demonstrations = {
        name: read_trajectories(stage_dir("generate", name) / "demonstrations.parquet") for name in config.domains
    }
    model, tokenizer, origin, figures = start(config, demonstrations, log)
    renderer = Renderer(tokenizer)
    short = {
        name: [t for t in trajectories if t.task.horizon <= config.base.max_horizon][: config.base.demonstrations]
        for name, trajectories in demonstrations.items()
    }
    for name, trajectories in short.items():
        if not trajectories:
            raise ValueError(f"base.max_horizon={config.base.max_horizon}: no demonstration of {name} is that short")
    table = parameter_table(model)
    print(show_parameters(table), flush=True)
    place(model, config.machine)
    saved = Resume(unfinished(config, "base"), config.machine, log, model=Weights(model))
    if config.base.tokens:
        chosen = [t for trajectories in short.values() for t in trajectories]
        samples = [s for t in chosen for s in render_contexts(renderer, DOMAINS, t, config.model.max_tokens)]
        seed = derive(config.seed, "base")
        figures |= fit(
            model, samples, config.base.tokens, config.base.optim, seed, config.machine, log, router=config.router,
            saved=saved,
        ) | sizes(chosen, samples)  # fmt: skip
    with replace_dir(stage_dir("base")) as folder:
        save_checkpoint(model, tokenizer, folder)
        if origin and origin.licence_file:
            shutil.copyfile(origin.licence_file, folder / "LICENSE")
        log.save_curves(folder)
        write_json(
            folder / "metrics.json",
            figures
            | {
                "parameters": table["all"]["total"],
                "parameters_active": table["all"]["active"],
                "parameters_by_part": table,
                "vocabulary": len(tokenizer),
            },
        )
    saved.remove()


def start(
    config: Config, demonstrations: dict[str, list[Trajectory]], log: StageLog
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast, Origin | None, dict[str, Any]]:
    """The untrained start: model, tokenizer, where they come from (None: from scratch), and figures on it."""
    if config.model.source != "scratch":
        log.at(f"reading {config.model.source}")
        found = start_from_checkpoint(config.model, derive(config.seed, "base", "weights"), config.machine.device)
        figures: dict[str, Any] = {
            "source": {"name": found.origin.name, "licence": found.origin.licence, "hash": found.origin.hash}
        }
        if found.difference is not None:
            figures["upcycled_logits_differ_by"] = found.difference
        return found.model, found.tokenizer, found.origin, figures
    texts = [
        text
        for name in config.domains
        for trajectory in demonstrations[name][: config.base.tokenizer_trajectories]
        for text in (DOMAINS[trajectory.task.world].system, *(turn.text for turn in trajectory.turns))
    ]
    tokenizer = train_tokenizer(texts, config.model.scratch.vocab_size, config.model.max_tokens)
    model = new_model(config.model, tokenizer, derive(config.seed, "base", "weights") % 2**32)
    return model, tokenizer, None, {}
