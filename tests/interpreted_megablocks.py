"""Run by tests/test_megablocks.py in a process of its own: the real MegaBlocks and stk on a CPU, their Triton kernels
under Triton's interpreter, against transformers' plain loop over experts. Prints one JSON object, case → figure.

The compiled extension is the only part that is stood in for, and stk's check of Triton's version and the int16 of
its block indices, which overflow there, are lifted for the sparse case.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

import json
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import torch
import triton
from transformers import Lfm2MoeConfig, MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig
from transformers.models.lfm2_moe.modeling_lfm2_moe import Lfm2MoeExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from openhorizon.model import moe


def extension() -> types.ModuleType:
    """What csrc/*.cu of MegaBlocks computes, in torch."""
    module = types.ModuleType("megablocks_ops")

    def sort(x: torch.Tensor, end_bit: int, x_out: torch.Tensor, order_out: torch.Tensor) -> None:
        assert x.dtype == torch.int32 and int(x.max()) < 2**end_bit
        values, order = x.sort(stable=True)
        x_out.copy_(values)
        order_out.copy_(order)

    def histogram(x: torch.Tensor, bins: int) -> torch.Tensor:
        return torch.bincount(x, minlength=bins).int()

    def inclusive_cumsum(x: torch.Tensor, dim: int, out: torch.Tensor) -> None:
        out.copy_(x.cumsum(dim))

    def indices(ends: torch.Tensor, block: int, rows: int, columns: int, out: torch.Tensor) -> None:
        start = 0
        for expert, end in enumerate((ends // block).tolist()):
            for row in range(start, end):
                out[row * columns : (row + 1) * columns] = torch.arange(columns) + expert * columns
            start = end

    for function in (sort, histogram, inclusive_cumsum, indices):
        setattr(module, function.__name__, function)
    return module


def install() -> None:
    sys.modules["megablocks_ops"] = extension()
    tune = triton.autotune
    triton.autotune = lambda configs, key, **others: tune(configs[:1], key, **others)  # nothing to measure here
    warnings.simplefilter("ignore")


FAMILIES: dict[str, tuple[Any, Any, str]] = {
    "lfm2_moe": (Lfm2MoeExperts, Lfm2MoeConfig, "num_experts"),
    "qwen3_moe": (Qwen3MoeExperts, Qwen3MoeConfig, "num_experts"),
    "mixtral": (MixtralExperts, MixtralConfig, "num_local_experts"),
}


def experts(family: str, count: int, hidden: int, width: int) -> Any:
    kind, config, key = FAMILIES[family]
    name = "intermediate_size" if family == "mixtral" else "moe_intermediate_size"
    layer = kind(config(**{key: count, "hidden_size": hidden, name: width}, hidden_act="silu"))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    layer.config._experts_implementation = "eager"
    return layer


def compare(layer: Any, theirs: Callable[..., torch.Tensor], tokens: int, top_k: int, choices: list[int]) -> float:
    """The largest difference of outputs and gradients to transformers' loop, in units of each one's largest value."""
    hidden = torch.randn(tokens, layer.gate_up_proj.shape[2])
    drawn = [torch.tensor(choices)[torch.randperm(len(choices))[:top_k]] for _ in range(tokens)]
    index, given = torch.stack(drawn), torch.rand(tokens, top_k) + 0.1
    towards = torch.randn_like(hidden)
    found = []
    for function in (type(layer).forward, theirs):
        inputs = [hidden.clone().requires_grad_(), given.clone().requires_grad_()]
        layer.zero_grad()
        mixed = function(layer, inputs[0], index, inputs[1])
        assert mixed.dtype == hidden.dtype
        (mixed * towards).sum().backward()
        found.append([mixed.detach(), *(tensor.grad for tensor in (*inputs, *layer.parameters()))])
    gaps = [float((a - b).abs().max() / a.abs().max().clamp_min(1e-6)) for a, b in zip(*found, strict=True)]
    return max(gaps)


def sparse(layer: Any, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """MegaBlocks' block-sparse layer of stk, given the same weights."""
    from megablocks.layers import dmoe
    from megablocks.layers.arguments import Arguments

    version, triton.__version__ = triton.__version__, "3.1.0"
    plain = dmoe.ops.topology
    count, double, size = layer.gate_up_proj.shape
    try:
        arguments = Arguments(
            hidden_size=size, ffn_hidden_size=double // 2, moe_num_experts=count, moe_top_k=index.shape[1],
            activation_fn=layer.act_fn, mlp_type="glu", mlp_impl="sparse", bias=False, return_bias=False, fp16=False,
            moe_loss_weight=0.0, device=torch.device("cpu"),
        )  # fmt: skip
        dmoe.ops.topology = lambda *given: plain(*given).int()
        gate, up = layer.gate_up_proj.chunk(2, dim=1)
        theirs = {"mlp.w1": gate, "mlp.v1": up, "mlp.w2": layer.down_proj.mT}
        block = dmoe.ParallelDroplessMLP(arguments)
        given = (hidden, None, weights, index)
        return torch.func.functional_call(block, {k: v.reshape(-1, size) for k, v in theirs.items()}, given)
    finally:
        triton.__version__, dmoe.ops.topology = version, plain


def model_gap(route: str) -> float:
    """A whole model in training, activations computed again in the backward pass: the largest difference of logits and
    gradients to transformers' loop, in units of each one's largest value."""
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, sliding_window=None,
    )  # fmt: skip
    model = MixtralForCausalLM(config).train()
    model.activation_checkpointing_enable()
    ids = torch.randint(64, (2, 9))
    found = []
    for implementation in ("eager", route):
        model.set_experts_implementation(implementation)
        model.zero_grad()
        output = model(input_ids=ids, labels=ids)
        output.loss.backward()
        found.append([output.logits.detach(), *(p.grad.clone() for p in model.parameters())])
    return max(float((a - b).abs().max() / a.abs().max().clamp_min(1e-6)) for a, b in zip(*found, strict=True))


def refusal(layer: Any) -> str:
    try:
        moe.megablocks_experts(layer, torch.zeros(1, 8), torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1))
    except ValueError as error:
        return str(error)
    return "not refused"


def main() -> None:
    install()
    torch.manual_seed(0)
    figures: dict[str, Any] = {}
    cases = {  # family, experts, hidden, width, tokens, top-k, experts to choose among
        "lfm2_moe, top-2": ("lfm2_moe", 4, 32, 48, 12, 2, range(4)),
        "qwen3_moe, top-3 of 8": ("qwen3_moe", 8, 32, 16, 9, 3, range(8)),
        "mixtral, top-2": ("mixtral", 4, 64, 32, 12, 2, range(4)),
        "one token": ("mixtral", 4, 32, 32, 1, 2, range(4)),
        "top-1": ("qwen3_moe", 4, 32, 32, 7, 1, range(4)),
        "empty experts": ("lfm2_moe", 8, 32, 16, 6, 2, (1, 6)),
        "all tokens on one expert": ("qwen3_moe", 4, 32, 32, 9, 1, (2,)),
        "a single expert": ("mixtral", 1, 32, 128, 5, 1, (0,)),
        "odd sizes": ("lfm2_moe", 5, 36, 28, 13, 2, range(5)),
    }
    for name, (family, count, hidden, width, tokens, top_k, choices) in cases.items():
        layer = experts(family, count, hidden, width)
        for route in moe.MEGABLOCKS:
            function = moe.ALL_EXPERTS_FUNCTIONS[route]
            figures[f"{route}: {name}"] = compare(layer, function, tokens, top_k, list(choices))
    for route in moe.MEGABLOCKS:
        figures[f"{route}: whole model"] = model_gap(route)
    figures["sparse: top-2"] = compare(experts("mixtral", 2, 128, 128), sparse, 5, 2, [0, 1])
    with torch.autocast("cpu", torch.float16):
        layer = experts("mixtral", 4, 32, 32)
        for route in moe.MEGABLOCKS:
            figures[f"{route}: autocast"] = compare(layer, moe.ALL_EXPERTS_FUNCTIONS[route], 8, 2, list(range(4)))
    parallel, biased = experts("mixtral", 2, 8, 8), experts("mixtral", 2, 8, 8)
    parallel._is_expert_parallel, biased.has_bias = True, True
    figures["refused: expert parallel"], figures["refused: biases"] = refusal(parallel), refusal(biased)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
