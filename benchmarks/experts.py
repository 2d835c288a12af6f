"""Experts of an MoE layer, forward and backward, by every implementation that is installed: speed, memory, agreement.

    python benchmarks/experts.py --agreement                 quick: how far from fp32 each is; exit code 1 past a bound
    python benchmarks/experts.py [--out docs/results/experts.json] [--tokens 4096 16384 65536] [--repeats 15]

Layers: SmolLM2-135M upcycled to 8 experts top-2, and Qwen3-30B-A3B's (128 experts top-8). On a GPU in bf16, on a CPU
(the laptop student's layer) in fp32. Implementations take turns within a repeat, which is several passes without a
wait in between, as in training; a time is a pass's median, a ratio that of medians. FLOPs of forward and backward:
3 · 2 · T·K · 3·H·I; utilisation is of the peak that --peak names. Agreement is in norms, against transformers' loop in
fp32 with the same weights and routing: |a - b| / |b|.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.utils import logging

from openhorizon.artifacts import write_json
from openhorizon.model.moe import ALL_EXPERTS_FUNCTIONS, MEGABLOCKS, megablocks_problem

BOUND = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # of a relative norm
PEAK = {"NVIDIA H100": 989e12, "NVIDIA H200": 989e12}  # dense bf16, as its maker gives it
PASSES = 8  # of a repeat
Gradients = list[torch.Tensor]


@dataclass(frozen=True)
class Layer:
    name: str
    experts: int
    top_k: int
    hidden: int
    width: int


LAYERS = {
    "cuda": (Layer("SmolLM2-135M × 8, top-2", 8, 2, 576, 1536), Layer("Qwen3-30B-A3B, 128 top-8", 128, 8, 2048, 768)),
    "cpu": (Layer("laptop student, 8 top-2", 8, 2, 64, 64),),
}


def main() -> int:
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--agreement", action="store_true")
    parser.add_argument("--tokens", nargs="+", type=int)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--peak", type=float, help="FLOP/s; default by the GPU's name")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    machine = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    print(f"{machine}; torch {torch.__version__}; MegaBlocks: {megablocks_problem() or 'can run'}", flush=True)
    torch.manual_seed(0)
    agreed = agreement(device)
    result: dict[str, Any] = {"machine": machine, "torch": torch.__version__, "agreement": agreed}
    if not options.agreement:
        named = next((flops for name, flops in PEAK.items() if machine.startswith(name)), None)
        tokens = options.tokens or ([4096, 16384, 65536] if device == "cuda" else [4096])
        result["speed"] = [
            row
            for layer in LAYERS[device]
            for row in speed(layer, tokens, options.repeats, device, options.peak or named)
        ]
    if options.out:
        write_json(options.out, result)
    return 0 if all(row["worst"] <= row["bound"] for row in agreed) else 1


def implementations(device: str, tokens: int) -> list[str]:
    """Those that can run. ``eager`` is transformers' loop; ``batched_mm`` copies weights a token: only few tokens."""
    found = ["eager", "grouped_mm", *(["batched_mm"] if tokens <= 256 else [])]
    return found + (list(MEGABLOCKS) if megablocks_problem() is None else [])


def experts(layer: Layer, device: str, dtype: torch.dtype) -> Any:
    config = MixtralConfig(
        hidden_size=layer.hidden, intermediate_size=layer.width, num_local_experts=layer.experts, hidden_act="silu"
    )
    made = MixtralExperts(config).to(device, dtype)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return made


def routed(layer: Layer, tokens: int, device: str, skew: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Experts and weights of a softmax router with random logits, as a trained one's: some are wanted more."""
    logits = torch.randn(tokens, layer.experts, device=device) + skew * torch.randn(layer.experts, device=device)
    weights, index = logits.softmax(-1).topk(layer.top_k, dim=-1)
    return index, weights / weights.sum(-1, keepdim=True)


def run(made: Any, name: str, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    made.config._experts_implementation = name
    function = ALL_EXPERTS_FUNCTIONS.get_interface(name, type(made).forward.__wrapped__)
    mixed: torch.Tensor = function(made, hidden, index, weights)
    return mixed


def gradients(made: Any, name: str, inputs: torch.Tensor, routing: Any, towards: torch.Tensor) -> Gradients:
    """Output and gradients of hidden states, routing weights and both matrices."""
    hidden, weights = inputs.clone().requires_grad_(), routing[1].clone().requires_grad_()
    made.zero_grad(set_to_none=True)
    mixed = run(made, name, hidden, routing[0], weights)
    mixed.backward(towards)
    return [mixed.detach(), hidden.grad, weights.grad, *(p.grad for p in made.parameters())]  # type: ignore[list-item]


def agreement(device: str) -> list[dict[str, Any]]:
    """Relative norms against the fp32 loop, worst of output and gradients, by implementation, precision and case."""
    cases = {  # tokens, and the layer
        "as trained": (512, Layer("", 8, 2, 576, 1536)),
        "one token": (1, Layer("", 8, 2, 64, 64)),
        "odd sizes": (77, Layer("", 5, 3, 72, 40)),
        "one expert for all": (64, Layer("", 8, 1, 64, 64)),
        "empty experts": (3, Layer("", 64, 2, 64, 64)),
    }
    rows = []
    print(f"{'agreement with fp32':18}{'implementation':18}{'precision':>10}{'output':>10}{'gradients':>11}")
    for case, (tokens, layer) in cases.items():
        exact = experts(layer, device, torch.float32)
        inputs = torch.randn(tokens, layer.hidden, device=device)
        towards = torch.randn_like(inputs)
        index, weights = routed(layer, tokens, device)
        if case == "one expert for all":
            index = torch.full_like(index, 3)
        theirs = gradients(exact, "eager", inputs, (index, weights), towards)
        for dtype in BOUND:
            made = experts(layer, device, dtype)
            made.load_state_dict(exact.state_dict())
            for name in implementations(device, tokens):
                ours = gradients(made, name, inputs.to(dtype), (index, weights.to(dtype)), towards.to(dtype))
                gaps = [
                    float((a.float() - b).norm() / b.norm().clamp_min(1e-9)) for a, b in zip(ours, theirs, strict=True)
                ]
                precision = str(dtype).removeprefix("torch.")
                row = {"case": case, "implementation": name, "precision": precision, "output": gaps[0]}
                rows.append(row | {"gradients": max(gaps[1:]), "worst": max(gaps), "bound": BOUND[dtype]})
                print(f"{case:18}  {name:18}{precision:>10}{gaps[0]:>10.1e}{max(gaps[1:]):>10.1e}", flush=True)
    return rows


def speed(layer: Layer, tokens: list[int], repeats: int, device: str, peak: float | None) -> list[dict[str, Any]]:
    """Seconds and peak memory of one forward and backward pass."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    rows = []
    print(f"\n{layer.name}; {'bf16' if device == 'cuda' else 'fp32'}, forward and backward")
    print(f"{'tokens':>8}  {'implementation':18}{'ms':>9}{'GiB':>7}{'of peak':>9}{'of fastest other':>18}")
    for count in tokens:
        made = experts(layer, device, dtype)
        inputs = torch.randn(count, layer.hidden, device=device, dtype=dtype)
        routing, towards = routed(layer, count, device), torch.randn_like(inputs)
        routing = (routing[0], routing[1].to(dtype))
        names = implementations(device, count)
        times: dict[str, list[float]] = {name: [] for name in names}
        memory = dict.fromkeys(names, 0.0)
        for repeat in range(repeats + 3):  # three to warm up: Triton compiles and tunes
            for name in names:
                if device == "cuda":
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                    before = torch.cuda.memory_allocated()
                began = time.perf_counter()
                for _ in range(PASSES):
                    gradients(made, name, inputs, routing, towards)
                if device == "cuda":
                    torch.cuda.synchronize()
                    memory[name] = (torch.cuda.max_memory_allocated() - before) / 2**30
                if repeat >= 3:
                    times[name].append((time.perf_counter() - began) / PASSES)
        median = {name: statistics.median(values) for name, values in times.items()}
        flops = 3 * 2 * count * layer.top_k * 3 * layer.hidden * layer.width
        for name in names:
            fastest = min(value for other, value in median.items() if other not in MEGABLOCKS)
            row = {
                "layer": layer.name, "tokens": count, "implementation": name, "seconds": median[name],
                "spread": [min(times[name]), max(times[name])], "gib": memory[name],
                "utilisation": flops / median[name] / peak if peak else None,
                "of_fastest_other": fastest / median[name],
            }  # fmt: skip
            rows.append(row)
            of_peak = f"{row['utilisation']:.1%}" if peak else ""
            print(
                f"{count:>8}  {name:18}{1e3 * median[name]:>9.3f}{memory[name]:>7.2f}{of_peak:>9}"
                f"{row['of_fastest_other']:>18.2f}",
                flush=True,
            )
    return rows


if __name__ == "__main__":
    sys.exit(main())
