"""Peak memory of the losses in chunks beside a log-softmax over (tokens × vocabulary), and their results.

    python benchmarks/losses.py [--tokens 16384] [--vocabulary 150000] [--naive 1024 2048]

Each measurement is a fresh process: forward and backward through an output layer, its peak memory (ru_maxrss) less what
it held before the loss. The plain way at the full size needs the logits, their log-softmax and a gradient of the same
size, more than a small machine has: it is measured at ``--naive`` tokens, checked for being linear in them, and scaled.
Losses and gradients of the hidden states are compared on the tokens that both had. Writes docs/results/losses.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from openhorizon.artifacts import write_json
from openhorizon.losses.chunked import by_chunks
from openhorizon.losses.nll import nll
from openhorizon.losses.sva import sva

OUT = Path("docs/results/losses.json")
HIDDEN, TOP_K = 64, 64


def inputs(tokens: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, output weights, targets, support and the teacher's log-probabilities: token n is the same however
    many there are."""
    draw = torch.Generator().manual_seed(0)
    weight_VH = torch.randn(vocabulary, HIDDEN, generator=draw) / 8
    hidden, targets, support, teacher = [], [], [], []
    for _ in range(0, tokens, 256):
        hidden.append(torch.randn(256, HIDDEN, generator=draw))
        targets.append(torch.randint(vocabulary, (256,), generator=draw))
        start = torch.randint(vocabulary, (256, 1), generator=draw)
        support.append((start + 2_003 * torch.arange(TOP_K)) % vocabulary)
        teacher.append(torch.randn(256, TOP_K, generator=draw))
    return torch.cat(hidden)[:tokens], weight_VH, *(torch.cat(x)[:tokens] for x in (targets, support, teacher))


def plain(loss: str, logits: torch.Tensor, targets: torch.Tensor, support: torch.Tensor, teacher: torch.Tensor) -> Any:
    """The losses as their formulas stand, on a log-softmax of everything."""
    logprobs_NV = torch.log_softmax(logits, dim=1)
    if loss == "nll":
        return -logprobs_NV.gather(1, targets[:, None])[:, 0]
    chosen_NK = logprobs_NV.gather(1, support)
    student_NK = chosen_NK - chosen_NK.logsumexp(1, keepdim=True)
    teacher_NK = teacher - teacher.logsumexp(1, keepdim=True)
    return (student_NK.exp() * (student_NK - teacher_NK)).sum(1)


def measure(loss: str, way: str, tokens: int, vocabulary: int, out: Path) -> dict[str, Any]:
    """One of both, in this process."""
    hidden, weight, targets, support, teacher = inputs(tokens, vocabulary)
    hidden.requires_grad_(True)
    weight.requires_grad_(True)
    weight.grad, hidden.grad = torch.zeros_like(weight), torch.zeros_like(hidden)  # not the loss's memory

    def head(hidden_CH: torch.Tensor) -> torch.Tensor:
        return hidden_CH @ weight.T

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    if way == "plain":
        value = plain(loss, head(hidden), targets, support, teacher)
    elif loss == "nll":
        (value,) = by_chunks(head, hidden, vocabulary, lambda logits, target: (nll(logits, target),), targets)
    else:
        value, _ = by_chunks(head, hidden, vocabulary, sva, support, teacher)
    value.sum().backward()
    seconds = time.perf_counter() - began
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    assert hidden.grad is not None
    save_file({"loss": value.detach(), "grad": hidden.grad}, out)
    return {"loss": loss, "way": way, "tokens": tokens, "extra_gib": extra, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16_384)
    parser.add_argument("--vocabulary", type=int, default=150_000)
    parser.add_argument("--naive", type=int, nargs=2, default=[1024, 2048])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.one:
        loss, way, tokens, out = options.one
        print(json.dumps(measure(loss, way, int(tokens), options.vocabulary, Path(out))))
        return
    rows, measured = [], []
    with tempfile.TemporaryDirectory() as folder:

        def run(loss: str, way: str, tokens: int) -> dict[str, Any]:
            command = [sys.executable, __file__, "--vocabulary", str(options.vocabulary)]
            command += ["--threads", str(options.threads), "--one", loss, way, str(tokens), f"{folder}/{loss}-{way}"]
            done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
            measured.append(json.loads(done.stdout))
            return measured[-1]

        for loss in ("nll", "sva"):
            chunked = run(loss, "chunks", options.tokens)
            half, full = (run(loss, "plain", tokens) for tokens in options.naive)
            scaled = full["extra_gib"] * options.tokens / full["tokens"]
            mine, theirs = load_file(f"{folder}/{loss}-chunks"), load_file(f"{folder}/{loss}-plain")
            many = full["tokens"]
            row = {
                "loss": loss,
                "chunks_gib": chunked["extra_gib"],
                "plain_gib_scaled": scaled,
                "share": chunked["extra_gib"] / scaled,
                "plain_growth": full["extra_gib"] / half["extra_gib"],
                "loss_apart": (mine["loss"][:many] - theirs["loss"]).abs().max().item(),
                "grad_apart": (mine["grad"][:many] - theirs["grad"]).abs().max().item(),
                "chunks_tokens_per_s": options.tokens / chunked["seconds"],
                "plain_tokens_per_s": full["tokens"] / full["seconds"],
            }
            rows.append(row)
            print(
                f"{loss}: {options.tokens:,} × {options.vocabulary:,}: chunks {row['chunks_gib']:.2f} GiB, plain "
                f"{scaled:.1f} (scaled from {many:,} tokens; twice the tokens took {row['plain_growth']:.2f} times), "
                f"share {row['share']:.4f}; losses {row['loss_apart']:.1e} and gradients {row['grad_apart']:.1e} apart, "
                f"{row['chunks_tokens_per_s']:,.0f} and {row['plain_tokens_per_s']:,.0f} tokens/s",
                flush=True,
            )
    sizes = {"tokens": options.tokens, "vocabulary": options.vocabulary, "hidden": HIDDEN, "top_k": TOP_K}
    write_json(OUT, {"rows": rows, "measured": measured, **sizes})


if __name__ == "__main__":
    main()
