"""What it costs to make equal experts differ: loss and the routers' gradient right after upcycling SmolLM2.

    python benchmarks/upcycling.py [--text README.md] [--tokens 1000] [--experts 8] [--top-k 2]

SmolLM2-135M-Instruct out of its package, route ``identical``; for each way of breaking symmetry (model/upcycle.py) the
mean negative log-likelihood of the text's first tokens, and the largest gradient that a router's weight gets of it. No
training. Prints a table, writes docs/results/upcycling.json; fp32 on the CPU, one seed, about half a minute a row.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from openhorizon.artifacts import write_json
from openhorizon.config import UpcycleConfig
from openhorizon.model.load import load_tokenizer, load_weights
from openhorizon.model.smollm2 import smollm2
from openhorizon.model.start import compare
from openhorizon.model.upcycle import break_symmetry, parameter_table, upcycle

OUT = Path("docs/results/upcycling.json")
WAYS = (("noise", 0.02), ("noise", 0.05), ("noise", 0.1), ("drop", 0.02), ("drop", 0.1))
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", type=Path, default=Path("README.md"))
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=2)
    options = parser.parse_args()
    folder = smollm2()
    dense = load_weights(folder, "cpu").eval()
    ids = load_tokenizer(folder, dense)(options.text.read_text(encoding="utf-8"))["input_ids"][: options.tokens]
    input_ids = torch.tensor([ids])
    with torch.no_grad():
        loss = dense(input_ids=input_ids, labels=input_ids).loss.item()
    print(f"{options.text}, {len(ids)} tokens; dense {loss:.3f}")
    print(f"{'symmetry':10}{'strength':>9}{'loss':>8}{'gradient':>10}", flush=True)
    config = UpcycleConfig("identical", options.experts, options.top_k, None, "noise", 0.0, 0.02)
    result: dict[str, Any] = {
        "text": str(options.text), "tokens": len(ids), "dense": loss, "seed": SEED,
        "ids_sha256": hashlib.sha256(str(ids).encode()).hexdigest(), "rows": [],
    }  # fmt: skip
    for symmetry, strength in WAYS:
        moe = upcycle(dense, config, SEED)
        if not result["rows"]:
            difference, largest = compare(dense, moe, SEED)
            result |= {"logits_apart": difference, "largest_logit": largest, "parameters": parameter_table(moe)}
        break_symmetry(moe, replace(config, symmetry=symmetry, strength=strength), SEED)
        row = {"symmetry": symmetry, "strength": strength, **measured(moe, input_ids)}
        result["rows"].append(row)
        print(f"{symmetry:10}{strength:>9}{row['loss']:>8.3f}{row['router_gradient']:>10.3f}", flush=True)
    print(f"before it: logits at most {result['logits_apart']:.1e} apart, the largest {result['largest_logit']:.1f}")
    write_json(OUT, result)


def measured(moe: PreTrainedModel, input_ids: torch.Tensor) -> dict[str, float]:
    gates = [parameter for name, parameter in moe.named_parameters() if name.endswith("mlp.gate.weight")]
    moe.requires_grad_(False)
    for gate in gates:
        gate.requires_grad_(True)
    loss = moe(input_ids=input_ids, labels=input_ids).loss
    loss.backward()
    return {"loss": loss.item(), "router_gradient": max(float(g.grad.abs().max()) for g in gates if g.grad is not None)}


if __name__ == "__main__":
    main()
