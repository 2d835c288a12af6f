"""A training step of the profile's student beside transformers' own, on the same data in the same run.

    python benchmarks/train_step.py [--repeats 7] [--threads 1]

Ours is the stages' step: packed rows, attention inside samples, logits of trained positions alone, the loss in chunks,
``machines.cpu.experts``. The peer is the stock model with sdpa and its own loss over ``labels``, for every experts
implementation of transformers, on rows padded to the longest of a batch and on rows packed as ours with a (T×T) mask.
Both end with the same clipping and AdamW. A round times all of them one after the other, those that took more than
three times as long in the first round once; rates are of real tokens, the ratio is ours by the fastest peer's, a round
at a time. Losses are compared first. Writes docs/results/train_step.json.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from student import demonstrations, untrained
from transformers import AutoModelForCausalLM, PreTrainedModel

from openhorizon.agent.render import render_trajectory
from openhorizon.agent.trajectory import Trajectory
from openhorizon.artifacts import write_json
from openhorizon.config import Config, load
from openhorizon.domains import DOMAINS
from openhorizon.seeds import rng
from openhorizon.train.optim import Optimizer
from openhorizon.train.packing import convolution_gap, pack_trajectories
from openhorizon.train.supervised import losses

OUT = Path("docs/results/train_step.json")
EXPERTS = ("eager", "grouped_mm", "batched_mm")
Step = Callable[[Sequence[Trajectory]], float]


def ours(model: PreTrainedModel, config: Config) -> Step:
    optimizer = Optimizer(model, config.sft.optim, 1_000)
    return lambda batch: optimizer.step(losses(model, batch, config.machine))["loss"]


def theirs(model: PreTrainedModel, config: Config, experts: str, packed: bool) -> Step:
    peer: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(model.config), attn_implementation="sdpa")
    peer.load_state_dict(model.state_dict())
    peer.set_experts_implementation(experts)
    peer.train()
    optimizer = Optimizer(peer, config.sft.optim, 1_000)
    inputs = in_packed_rows if packed else in_padded_rows

    def parts(batch: Sequence[Trajectory]) -> Iterator[torch.Tensor]:
        yield peer(**inputs(peer, batch, config), use_cache=False).loss

    return lambda batch: optimizer.step(parts(batch))["loss"]


def in_padded_rows(model: PreTrainedModel, batch: Sequence[Trajectory], config: Config) -> dict[str, Any]:
    """A row a sample."""
    width = max(len(t.ids) for t in batch)
    ids = torch.tensor([t.ids + [int(model.config.pad_token_id)] * (width - len(t.ids)) for t in batch])
    mask = torch.tensor([[1] * len(t.ids) + [0] * (width - len(t.ids)) for t in batch])
    trained = torch.tensor([t.loss_mask + [False] * (width - len(t.ids)) for t in batch])
    return {"input_ids": ids, "attention_mask": mask, "labels": ids.masked_fill(~trained, -100)}


def in_packed_rows(model: PreTrainedModel, batch: Sequence[Trajectory], config: Config) -> dict[str, Any]:
    """Rows as ours, samples kept apart by a mask."""
    pack = pack_trajectories(model, batch, config.machine)
    length = pack.ids_RT.shape[1]
    same = pack.sample_RT[:, :, None] == pack.sample_RT[:, None, :]
    mask = (same & torch.ones(length, length, dtype=torch.bool).tril())[:, None]
    return {
        "input_ids": pack.ids_RT,
        "position_ids": pack.position_RT,
        "attention_mask": {"full_attention": mask, "conv": pack.sample_RT >= 0} if convolution_gap(model) else mask,
        "labels": pack.ids_RT.masked_fill(~pack.train_RT, -100),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--batches", type=int, default=4, help="a round")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = load()
    found = demonstrations(config.domains, (1, 2, 3, 4, 6, 8), 12, config.seed)
    student = untrained(config, found, config.seed)
    samples = [render_trajectory(student.renderer, DOMAINS, t) for t in found]
    rng(config.seed, "train_step").shuffle(samples)
    batches = cut(samples, config.sft.optim.batch_tokens)[: options.batches]
    model = student.model.train()
    steps: dict[str, Step] = {
        f"transformers, {experts}, {'packed' if packed else 'padded'}": theirs(model, config, experts, packed)
        for experts in EXPERTS
        for packed in (False, True)
    }
    steps = {"ours": ours(model, config)} | steps
    first = {name: step(batches[0]) for name, step in steps.items()}  # warms up, too
    apart = max(abs(loss - first["ours"]) for loss in first.values())
    tokens = sum(len(t.ids) for batch in batches for t in batch)
    print(f"{len(batches)} batches, {tokens:,} tokens; first losses at most {apart:.1e} apart", flush=True)
    rates: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.repeats):
        for name, step in steps.items():
            if rates[name] and rates[name][0] < rates["ours"][0] / 3:
                continue
            began = time.perf_counter()
            for batch in batches:
                step(batch)
            rates[name].append(tokens / (time.perf_counter() - began))
    rows = [
        {
            "step": name,
            "tokens_per_s": statistics.median(values),
            "min": min(values),
            "max": max(values),
            "n": len(values),
        }
        for name, values in rates.items()
    ]
    best = max((row for row in rows if row["step"] != "ours"), key=lambda row: row["tokens_per_s"])["step"]
    ratios = [a / b for a, b in zip(rates["ours"], rates[best], strict=True)]
    for row in rows:
        print(f"{row['step']:36}{row['tokens_per_s']:>10,.0f} tokens/s  [{row['min']:,.0f}, {row['max']:,.0f}]")
    print(f"ours / {best}: {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}] n={len(ratios)}")
    result = {
        "rows": rows,
        "best_peer": best,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "repeats": options.repeats,
        "first_losses_apart": apart,
        "parameters": sum(p.numel() for p in model.parameters()),
        "samples": sum(map(len, batches)),
        "tokens": tokens,
        "threads": options.threads,
    }
    write_json(OUT, result)


def cut(samples: Sequence[Trajectory], tokens: int) -> list[list[Trajectory]]:
    """Batches of about so many tokens, as the stages make them."""
    batches: list[list[Trajectory]] = [[]]
    for sample in samples:
        if batches[-1] and sum(len(t.ids) for t in batches[-1]) + len(sample.ids) > tokens:
            batches.append([])
        batches[-1].append(sample)
    return batches


if __name__ == "__main__":
    main()
