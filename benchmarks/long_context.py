"""One training step on one long sample: peak memory, tokens a second, model FLOP utilisation, by the sample's length.

    python benchmarks/long_context.py [--tokens 8192 16384 32768 45056 65536] [--out docs/results/long_context.json]

The student of profile h200 (SmolLM2-135M's sizes, 8 experts top-2) with random weights, through ``train.supervised`` as
every stage does it: segments instead of a (T×T) mask, activations computed again, logits in chunks, bf16 products over
fp32 weights on a GPU. ``passes`` is what forward and backward need beyond weights, gradients and Adam's moments. On a
CPU a student of an eighth of the width, in fp32.

FLOPs of a step, counted without what is computed again: a token takes 6 · (parameters it passes through), and attention
6 · layers · hidden · T on top (twice a product of hidden · T/2 multiply-adds, causal, three times for both passes).
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from openhorizon.agent.trajectory import Status, Trajectory, Turn
from openhorizon.artifacts import write_json
from openhorizon.config import MachineConfig, OptimConfig
from openhorizon.domains.base import Task, Verdict
from openhorizon.model.attention import SEGMENTS
from openhorizon.model.load import place
from openhorizon.model.moe import experts_here
from openhorizon.train.optim import Optimizer
from openhorizon.train.supervised import losses

PEAK = {"NVIDIA H100": 989e12, "NVIDIA H200": 989e12}  # dense bf16, as its maker gives it
OPTIM = OptimConfig(lr=1e-5, schedule="constant", warmup=0.0, weight_decay=0.1, grad_clip=1.0, batch_tokens=1)
STEPS = 3  # the first is not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", nargs="+", type=int, default=[8192, 16384, 32768, 45056, 65536])
    parser.add_argument("--experts", default="auto")
    parser.add_argument("--one", type=int, help="measure this length alone and print it as JSON")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(step(*student(options.experts), options.one)))
        return
    cuda = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    peak = next((flops for name, flops in PEAK.items() if machine.startswith(name)), None)
    print(f"{machine}; torch {torch.__version__}; experts {experts_here(options.experts)}")
    print(f"{'tokens':>8}{'peak GiB':>10}{'passes GiB':>12}{'tokens/s':>10}{'of peak FLOPs':>15}", flush=True)
    rows = []
    trained = student(options.experts) if cuda else None
    for tokens in options.tokens:
        row = step(*trained, tokens) if trained else apart(tokens, options.experts)
        row["utilisation"] = row["flops"] * row["tokens_per_s"] / tokens / peak if peak else None
        rows.append(row)
        passes = f"{row['passes_gib']:.2f}" if cuda else ""
        of_peak = f"{row['utilisation']:.1%}" if peak else ""
        print(f"{tokens:>8}{row['gib']:>10.2f}{passes:>12}{row['tokens_per_s']:>10,.0f}{of_peak:>15}", flush=True)
    if options.out:
        facts = {"machine": machine, "torch": torch.__version__, "experts": experts_here(options.experts)}
        write_json(options.out, facts | {"parameters": rows[0]["parameters"], "rows": rows})


def apart(tokens: int, wanted: str) -> dict[str, Any]:
    """A process of its own, since the peak of a process's memory cannot be set back."""
    command = [sys.executable, __file__, "--one", str(tokens), "--experts", wanted]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    row: dict[str, Any] = json.loads(said.splitlines()[-1])
    return row


def student(wanted: str) -> tuple[Any, MachineConfig, Optimizer]:
    cuda = torch.cuda.is_available()
    shrink = 1 if cuda else 8
    config = MixtralConfig(
        vocab_size=49_152, hidden_size=576 // shrink, intermediate_size=1536 // shrink,
        num_hidden_layers=30 if cuda else 4, num_attention_heads=9 if cuda else 3, num_key_value_heads=3 if cuda else 1,
        num_local_experts=8, num_experts_per_tok=2, max_position_embeddings=131_072, sliding_window=None,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda" if cuda else "cpu"):
        model: Any = MixtralForCausalLM._from_config(config, attn_implementation=SEGMENTS)
    machine = MachineConfig(
        device="cuda" if cuda else "cpu", threads=1, stages=1, rollout_batch=1, cache_gib=4.0, experts=wanted,  # type: ignore[arg-type]
        precision="bf16" if cuda else "fp32", row_tokens=8192, masked_row=1024,
        micro_tokens=65_536, checkpointing=True,
    )  # fmt: skip
    place(model, machine)
    model.train()
    return model, machine, Optimizer(model, OPTIM, STEPS)


def step(model: Any, machine: MachineConfig, optimizer: Optimizer, tokens: int) -> dict[str, Any]:
    config, cuda = model.config, machine.device == "cuda"
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    total = sum(p.numel() for p in model.parameters())
    # Tied: the embedding, which costs nothing, is the output layer, which does.
    active = total - experts * (1 - config.num_experts_per_tok / config.num_local_experts)
    sample = trajectory(tokens, config.vocab_size)
    times, passes = [], list[int]()
    for _ in range(STEPS):
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        optimizer.step(watched(losses(model, [sample], machine), passes))
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    held = sum(p.numel() * p.element_size() for p in model.parameters()) * 4  # weights, gradients, Adam's two moments
    flops = tokens * (6 * active + 6 * config.num_hidden_layers * config.hidden_size * tokens)
    return {
        "tokens": tokens, "gib": peak / 2**30, "passes_gib": (max(passes) - held) / 2**30 if cuda else None,
        "tokens_per_s": tokens / min(times[1:]), "seconds": times,
        "flops": flops, "parameters": {"total": total, "active": int(active)},
    }  # fmt: skip


def watched(parts: Iterator[torch.Tensor], peaks: list[int]) -> Iterator[torch.Tensor]:
    """The losses of a step; behind the last one's backward pass, before the optimizer takes memory of its own, the peak
    so far."""
    yield from parts
    if torch.cuda.is_available():
        peaks.append(torch.cuda.max_memory_allocated())


def trajectory(tokens: int, vocabulary: int) -> Trajectory:
    """A prompt and alternating turns of random ids: half of the tokens are the policy's."""
    ids = torch.randint(vocabulary, (tokens,)).tolist()
    turns = [Turn("prompt", "", tuple(ids[:512]))]
    for start in range(512, tokens, 256):
        turns.append(Turn("assistant" if len(turns) % 2 else "tool", "", tuple(ids[start : start + 256])))
    task = Task("bench", "bench", "train", "", 1, 0, {}, (), (), "", ())
    return Trajectory(task, tuple(turns), "", Status.SOLVED, Verdict(True, 1.0, ""), "random", 0)


if __name__ == "__main__":
    main()
