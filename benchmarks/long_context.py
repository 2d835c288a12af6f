"""One training step on one long sample: peak memory, tokens a second, model FLOP utilisation, by the sample's length.

    python benchmarks/long_context.py [--tokens 8192 16384 32768 65536] [--out docs/results/long_context.json]

The student of profile h200 (SmolLM2-135M's sizes, 8 experts top-2) with random weights, through ``train.supervised`` as
every stage does it: segments instead of a (T×T) mask, activations computed again, logits in chunks, bf16 products over
fp32 weights on a GPU. On a CPU a student of an eighth of the width, in fp32, each length in a process of its own.

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
from dataclasses import replace
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
    parser.add_argument("--tokens", nargs="+", type=int, default=[8192, 16384, 32768, 65536])
    parser.add_argument("--experts", default="auto")
    parser.add_argument("--one", type=int, help="measure this length alone and print it as JSON")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options.one, options.experts)))
        return
    cuda = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine()
    peak = next((flops for name, flops in PEAK.items() if machine.startswith(name)), None)
    print(f"{machine}; torch {torch.__version__}; experts {experts_here(options.experts)}")
    print(f"{'tokens':>8}{'peak GiB':>10}{'a token KiB':>13}{'tokens/s':>10}{'of peak FLOPs':>15}", flush=True)
    rows = []
    for tokens in options.tokens:
        command = [sys.executable, __file__, "--one", str(tokens), "--experts", options.experts]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        row = json.loads(said.splitlines()[-1])
        row["utilisation"] = row["flops"] * row["tokens_per_s"] / tokens / peak if peak else None
        rows.append(row)
        base = rows[0]
        a_token = (row["gib"] - base["gib"]) / (tokens - base["tokens"]) * 2**20 if tokens != base["tokens"] else None
        of_peak = f"{row['utilisation']:.1%}" if peak else ""
        grown = f"{a_token:.1f}" if a_token else ""
        print(f"{tokens:>8}{row['gib']:>10.2f}{grown:>13}{row['tokens_per_s']:>10,.0f}{of_peak:>15}", flush=True)
    if options.out:
        facts = {"machine": machine, "torch": torch.__version__, "experts": experts_here(options.experts)}
        write_json(options.out, facts | {"parameters": rows[0]["parameters"], "rows": rows})


def measured(tokens: int, wanted: str) -> dict[str, Any]:
    cuda = torch.cuda.is_available()
    shrink = 1 if cuda else 8
    hidden, layers, top_k = 576 // shrink, 30 if cuda else 4, 2
    heads = 9 if cuda else 3
    config = MixtralConfig(
        vocab_size=49_152, hidden_size=hidden, intermediate_size=1536 // shrink, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=3 if cuda else 1, num_local_experts=8,
        num_experts_per_tok=top_k, max_position_embeddings=131_072, sliding_window=None, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = MixtralForCausalLM._from_config(config, attn_implementation=SEGMENTS)
    machine = MachineConfig(
        device="cuda" if cuda else "cpu", threads=1, stages=1, rollout_batch=1, experts=wanted,  # type: ignore[arg-type]
        precision="bf16" if cuda else "fp32", row_tokens=8192, micro_tokens=65_536, checkpointing=True,
    )  # fmt: skip
    place(model, machine)
    model.train()
    experts = sum(p.numel() for n, p in model.named_parameters() if ".experts." in n)
    total = sum(p.numel() for p in model.parameters())
    active = total - experts * (1 - top_k / config.num_local_experts)  # tied: the embedding is the output layer
    sample = trajectory(tokens, config.vocab_size)
    optimizer = Optimizer(model, OPTIM, STEPS)
    times = []
    for _ in range(STEPS):
        began = time.perf_counter()
        optimizer.step(losses(model, [sample], replace(machine, row_tokens=tokens)))  # reads the loss: waits
        if cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    peak = torch.cuda.max_memory_allocated() if cuda else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    flops = tokens * (6 * active + 6 * layers * hidden * tokens)
    return {
        "tokens": tokens, "gib": peak / 2**30, "tokens_per_s": tokens / min(times[1:]), "seconds": times,
        "flops": flops, "parameters": {"total": total, "active": int(active)},
    }  # fmt: skip


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
