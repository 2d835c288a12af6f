"""How the experts of a mixture-of-experts layer are computed: the only import of MegaBlocks.

Parameters, router and load-balancing stay in the Hugging Face layout (``gate_up_proj`` (E, 2I, H), ``down_proj``
(E, H, I)); an experts implementation is a function of hidden states and routing, chosen at run time and never
written to a config, so that every checkpoint is an ordinary one. T tokens, K experts a token, S = T·K, E experts,
H hidden, I expert width.

Two implementations of MegaBlocks (Gale et al. 2022) are registered with transformers: ``megablocks``, its sort,
histogram, gather and scatter around two grouped matrix products of torch, and ``megablocks_dmoe``, its own dropless
layer with all that is in it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from types import SimpleNamespace
from typing import Any

import torch
from torch.nn.functional import grouped_mm
from transformers import PreTrainedModel
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

MEGABLOCKS = ("megablocks", "megablocks_dmoe")


def megablocks_problem() -> str | None:
    """Why MegaBlocks cannot run here, in words; None where it can."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    for package in ("megablocks", "megablocks_ops", "stk", "triton"):
        if importlib.util.find_spec(package) is None:
            return f"package {package} is not installed (`make gpu`; see docs/gpu.md)"
    return None


def megablocks_experts(
    self: Any, hidden_TH: torch.Tensor, index_TK: torch.Tensor, weights_TK: torch.Tensor
) -> torch.Tensor:
    """Dropless expert computation around grouped matrix products, without a wait for the GPU: MegaBlocks' bins are the
    offsets that they take. Under autocast in its dtype, which neither of the two would choose by itself.

    Returns hidden states of shape (T, H), the weighted sum over each token's experts.

    Raises:
        ValueError: experts of another layout (biases, interleaved or transposed weights), or split over processes.
    """
    ops = _megablocks("ops")
    _require_plain(self)
    experts, top_k = self.gate_up_proj.shape[0], index_TK.shape[1]
    kind, dtype = _compute_dtype(hidden_TH)
    with torch.autocast(kind, enabled=False):
        with torch.no_grad():
            index_S = index_TK.flatten().int()
            bins_S, order_S = ops.sort(index_S, max((experts - 1).bit_length(), 1))
            offsets_E = ops.inclusive_cumsum(ops.histogram(index_S, experts), 0).view(experts)
        grouped_SH = ops.gather(hidden_TH.to(dtype), order_S, bins_S, offsets_E, top_k)
        gated_SI = self._apply_gate(grouped_mm(grouped_SH, self.gate_up_proj.to(dtype).mT, offs=offsets_E))
        out_SH = grouped_mm(gated_SI, self.down_proj.to(dtype).mT, offs=offsets_E)
        mixed: torch.Tensor = ops.scatter(out_SH, order_S, bins_S, weights_TK.flatten(), offsets_E, top_k)
    return mixed.to(hidden_TH.dtype).view_as(hidden_TH)


def megablocks_dmoe_experts(
    self: Any, hidden_TH: torch.Tensor, index_TK: torch.Tensor, weights_TK: torch.Tensor
) -> torch.Tensor:
    """The same by the experts of MegaBlocks' own ``dMoE`` (``ParallelDroplessMLP``, grouped), given the Hugging Face
    weights in its layout (copies, through which gradients flow). Returns and raises as ``megablocks_experts``; its
    grouped products wait for the GPU once a layer, to read how many tokens each expert has."""
    _require_plain(self)
    experts, double, hidden = self.gate_up_proj.shape
    if experts * double // 2 < 128:
        raise ValueError(f"{experts} experts of width {double // 2}: MegaBlocks' dMoE needs a product of at least 128")
    kind, dtype = _compute_dtype(hidden_TH)
    layer = _dropless_layer(hidden, double // 2, experts, index_TK.shape[1], self.act_fn)
    w1_EIH, v1_EIH = self.gate_up_proj.to(dtype).chunk(2, dim=1)
    weights = {
        "mlp.w1": w1_EIH.reshape(-1, hidden),
        "mlp.v1": v1_EIH.reshape(-1, hidden),
        "mlp.w2": self.down_proj.to(dtype).mT.reshape(-1, hidden),
    }
    with torch.autocast(kind, enabled=False):
        # Scores are for MegaBlocks' own balancing loss, which is off: the Hugging Face router has one.
        arguments = (hidden_TH.to(dtype).contiguous(), None, weights_TK.to(dtype).contiguous(), index_TK.contiguous())
        mixed: torch.Tensor = torch.func.functional_call(layer, weights, arguments)
    return mixed.to(hidden_TH.dtype).view_as(hidden_TH)


@functools.lru_cache(maxsize=8)
def _dropless_layer(hidden: int, width: int, experts: int, top_k: int, act_fn: Any) -> Any:
    """MegaBlocks' layer on the meta device: its own weights are never used."""
    grouped_gemm_util = _megablocks("grouped_gemm_util")
    if not grouped_gemm_util.grouped_gemm_is_available():
        grouped_gemm_util._grouped_gemm_is_available = True
        grouped_gemm_util.ops = SimpleNamespace(gmm=_gmm)
    arguments = _megablocks("layers.arguments").Arguments(
        hidden_size=hidden, ffn_hidden_size=width, moe_num_experts=experts, moe_top_k=top_k, activation_fn=act_fn,
        mlp_type="glu", mlp_impl="grouped", bias=False, return_bias=False, fp16=False, bf16=False, moe_loss_weight=0.0,
        device=torch.device("meta"), init_method=lambda weight: weight,
    )  # fmt: skip
    return _megablocks("layers.dmoe").ParallelDroplessMLP(arguments).requires_grad_(False)


@functools.cache
def _megablocks(module: str) -> Any:
    """Imported where it is used: it needs CUDA and its compiled extension."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that grouped_gemm is not there
        return importlib.import_module(f"megablocks.{module}")


def _gmm(a_SX: torch.Tensor, b_EXY: torch.Tensor, sizes_E: torch.Tensor, trans_b: bool = False) -> torch.Tensor:
    """``grouped_gemm.ops.gmm`` by torch's grouped product, where grouped_gemm is not installed."""
    offsets_E = sizes_E.cumsum(0).to(a_SX.device, torch.int32)
    return grouped_mm(a_SX, b_EXY.mT if trans_b else b_EXY, offs=offsets_E)


def _compute_dtype(hidden: torch.Tensor) -> tuple[str, torch.dtype]:
    kind = hidden.device.type
    return kind, torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype


def _require_plain(layer: Any) -> None:
    name = type(layer).__name__
    if layer._is_expert_parallel:
        raise ValueError(f"{name}: split over processes; MegaBlocks' sort has no place for another process's experts")
    if layer.has_bias or layer.is_transposed or not (layer.has_gate and layer.is_concatenated):
        raise ValueError(f"{name}: experts with biases, without a gate or in a layout of their own are not supported")


ALL_EXPERTS_FUNCTIONS.register("megablocks", megablocks_experts)
ALL_EXPERTS_FUNCTIONS.register("megablocks_dmoe", megablocks_dmoe_experts)


def experts_here(wanted: str) -> str:
    """The implementation that ``wanted`` means on this machine; ``auto``: MegaBlocks where it can run, else
    transformers' ``grouped_mm``.

    Raises:
        ValueError: MegaBlocks was asked for by name and cannot run here.
    """
    problem = megablocks_problem()
    if wanted in MEGABLOCKS and problem:
        raise ValueError(f"machines.*.experts={wanted}: {problem}")
    return ("grouped_mm" if problem else "megablocks") if wanted == "auto" else wanted


def choose_experts(model: PreTrainedModel, wanted: str) -> str:
    """Set the experts implementation of ``model`` and return its name; ``dense`` for a model without experts, which is
    left alone. Raises as ``experts_here``."""
    if not any(hasattr(module, "gate_up_proj") and module.gate_up_proj.ndim == 3 for module in model.modules()):
        return "dense"
    chosen = experts_here(wanted)
    model.set_experts_implementation(chosen)
    return chosen
