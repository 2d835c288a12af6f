"""Supervised fine-tuning on trajectories (section 4.1): packed, loss on assistant tokens only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.config import MachineConfig, OptimConfig, RouterConfig
from openhorizon.losses.chunked import by_chunks
from openhorizon.losses.nll import nll
from openhorizon.seeds import rng
from openhorizon.train.compute import Meter, tokens_of
from openhorizon.train.experts import UNTOUCHED, Experts
from openhorizon.train.optim import Optimizer
from openhorizon.train.packing import (
    counted,
    output_layer,
    pack_trajectories,
    passes,
    recurrent,
    trained_tokens,
)
from openhorizon.train.resume import Resume

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog


def fit(
    model: PreTrainedModel,
    trajectories: Sequence[Trajectory],
    tokens: int,
    optim: OptimConfig,
    seed: int,
    machine: MachineConfig,
    log: StageLog,
    prefix: str = "",
    router: RouterConfig = UNTOUCHED,
    first_step: int = 0,
    meter: Meter | None = None,
    saved: Resume | None = None,
) -> dict[str, float]:
    """Train ``model`` in place for ``tokens`` tokens (epochs as needed, each reshuffled). Returns the run's figures;
    their names and those of curves, which begin at ``first_step``, have ``prefix``. ``meter`` is told what the updates
    cost. A run that was ``saved`` goes on from there.

    Raises:
        ValueError: there is nothing to train on, or the loss is not finite.
    """
    if not trajectories:
        raise ValueError("no trajectories to train on; lower max_horizon or generate more")
    steps = max(round(tokens / optim.batch_tokens), 1)
    optimizer = Optimizer(model, optim, steps)
    experts = Experts(model, router)
    stream, meter, saved = batches(trajectories, optim.batch_tokens, seed), meter or Meter(), saved or Resume()
    at = saved.enter(optimizer=optimizer, experts=experts, meter=meter)
    model.train()
    seen, recent, worst = at.get("seen", 0), at.get("recent", 0.0), at.get("worst", dict[str, float]())
    for step in range(steps):
        batch = next(stream)
        if step < at.get("step", 0):
            continue
        result = optimizer.step(losses(model, batch, machine, experts))
        if experts.due(step, steps):
            curves, worst = experts.health()
            result |= curves
        tokens_now = tokens_of(batch)
        meter.trained("update", model, tokens_now)
        seen += tokens_now
        recent = result["loss"] if step == 0 else 0.9 * recent + 0.1 * result["loss"]
        log.tokens(tokens_now)
        log.metrics(first_step + step, **{f"{prefix}{name}": value for name, value in result.items()})
        log.progress(step + 1, steps, f"{prefix}loss {recent:.3f}, {seen / 1e6:.2f}M tokens")
        saved.after(step + 1, seen=seen, recent=recent, worst=worst)
    model.eval()
    figures = {"final_loss": recent, "steps": steps, "epochs": seen / tokens_of(trajectories)} | worst
    return {f"{prefix}{name}": value for name, value in figures.items()}


def losses(
    model: PreTrainedModel, batch: Sequence[Trajectory], machine: MachineConfig, experts: Experts | None = None
) -> Iterator[torch.Tensor]:
    """The mean NLL over the batch's trainable tokens (and the routers' auxiliary losses), in parts that add up to it:
    one micro-batch's graph at a time. Each of several processes makes its own."""
    head, experts = output_layer(model, machine), experts or Experts(model, UNTOUCHED)
    update_tokens = tokens_of(batch)
    trainable = sum(trained_tokens(trajectory) for trajectory in batch)
    for part in passes(batch, machine.micro_tokens, recurrent(model)):
        packed = pack_trajectories(model, [batch[i] for i in part.samples], machine)
        targets_N = packed.ids_RT[packed.train_RT].to(model.device)
        hidden_NH, auxiliary = experts.hidden(packed, machine, update_tokens, part.counts)
        (loss_N,) = by_chunks(head, hidden_NH, model.config.vocab_size, _nll, targets_N)
        yield counted(loss_N.sum() / trainable + auxiliary, part)


def _nll(logits_CV: torch.Tensor, targets_C: torch.Tensor) -> tuple[torch.Tensor]:
    return (nll(logits_CV, targets_C),)


def sizes(demonstrations: Sequence[Trajectory], samples: Sequence[Trajectory]) -> dict[str, float]:
    """What was trained on: how many demonstrations, the samples that they became (``agent/compaction.py``), how many of
    these lost their end to the context's limit, and a sample's mean length."""
    return {
        "demonstrations": len(demonstrations),
        "samples": len(samples),
        "cut": sum(sample.status is Status.TRUNCATED for sample in samples),
        "mean_tokens": sum(len(sample.ids) for sample in samples) / len(samples),
    }


def batches(trajectories: Sequence[Trajectory], batch_tokens: int, seed: int) -> Iterator[list[Trajectory]]:
    """Endless shuffled batches of about ``batch_tokens`` tokens; every domain and horizon mixed."""
    batch: list[Trajectory] = []
    size, epoch = 0, 0
    while True:
        order = list(trajectories)
        rng(seed, "epoch", epoch).shuffle(order)
        epoch += 1
        for trajectory in order:
            if batch and size + len(trajectory.ids) > batch_tokens:
                yield batch
                batch, size = [], 0
            batch.append(trajectory)
            size += len(trajectory.ids)
