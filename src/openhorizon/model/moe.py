"""How the experts of a mixture-of-experts layer are computed: the only import of MegaBlocks.

Parameters, router and load-balancing stay in the Hugging Face layout (``gate_up_proj`` (E, 2I, H), ``down_proj``
(E, H, I)); an experts implementation is a function of hidden states and routing, chosen at run time and never
written to a config, so that every checkpoint is an ordinary one.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS


def megablocks_problem() -> str | None:
    """Why MegaBlocks cannot run here, in words; None where it can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    for package in ("megablocks", "megablocks_ops", "stk"):
        if importlib.util.find_spec(package) is None:
            return f"package {package} is not installed (MegaBlocks 0.10 is installed with --no-deps; see docs/gpu.md)"
    return None


def megablocks_experts(
    self: Any, hidden_TH: torch.Tensor, index_TK: torch.Tensor, weights_TK: torch.Tensor
) -> torch.Tensor:
    """Dropless expert computation (MegaBlocks, Gale et al. 2022): MegaBlocks' sort, histogram, gather and scatter
    around two grouped matrix products. T tokens, K experts a token, E experts, H hidden, I expert width.

    Returns hidden states of shape (T, H), the weighted sum over each token's experts.
    """
    from megablocks import ops  # imported where it is used: it needs CUDA and its compiled extension

    experts, top_k = self.gate_up_proj.shape[0], index_TK.shape[1]
    bits = max(int(experts - 1).bit_length(), 1)
    bins, order = ops.sort(index_TK.flatten().int(), bits)
    offsets = ops.inclusive_cumsum(ops.histogram(index_TK.flatten().int(), experts), 0).int()
    grouped_SH = ops.gather(hidden_TH, order, bins, offsets, top_k)
    gate, up = torch.nn.functional.grouped_mm(grouped_SH, self.gate_up_proj.transpose(1, 2), offs=offsets).chunk(2, -1)
    out_SH = torch.nn.functional.grouped_mm(self.act_fn(gate) * up, self.down_proj.transpose(1, 2), offs=offsets)
    mixed: torch.Tensor = ops.scatter(out_SH, order, bins, weights_TK.flatten().to(out_SH.dtype), offsets, top_k)
    return mixed.view_as(hidden_TH)


ALL_EXPERTS_FUNCTIONS.register("megablocks", megablocks_experts)


def choose_experts(model: PreTrainedModel, wanted: str) -> str:
    """Set the experts implementation of ``model`` and return its name. ``auto``: MegaBlocks where it can run, else
    transformers' ``grouped_mm``. A dense model is left alone.

    Raises:
        ValueError: MegaBlocks was asked for by name and cannot run here.
    """
    if not any(hasattr(module, "gate_up_proj") and module.gate_up_proj.ndim == 3 for module in model.modules()):
        return "dense"
    problem = megablocks_problem()
    if wanted == "megablocks" and problem:
        raise ValueError(f"machines.*.experts=megablocks: {problem}")
    chosen = ("grouped_mm" if problem else "megablocks") if wanted == "auto" else wanted
    model.set_experts_implementation(chosen)
    return chosen
