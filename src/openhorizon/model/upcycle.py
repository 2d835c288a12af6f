"""A dense checkpoint becomes a mixture of experts of a stock family, which first computes exactly what it computed.

Two routes (Komatsuzaki et al. 2022, arXiv 2212.05055, and what came of it):

- ``identical``: every expert is the dense MLP; their weights are normalised, so that any mixture of them is the MLP.
- ``shared``: a shared expert is the dense MLP, and routed experts start with their neurons but write nothing
  (``down_proj`` is 0), so that they only add to it.

Experts that are equal get equal gradients, and their router none (4e-9 was measured): ``break_symmetry`` follows,
after it has been checked that the outputs agree. On the route ``shared`` it changes what experts read and not what
they write, so that the outputs agree behind it, too.

The families must match in all but the MLP (q/k norm, biases), which decides what can become what.

E experts, H hidden, I expert width; ``gate_up_proj`` (E, 2I, H) = [gate; up], ``down_proj`` (E, H, I).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from openhorizon.config import UpcycleConfig
from openhorizon.model.attention import SEGMENTS
from openhorizon.model.load import require_room

FAMILIES = {  # (dense family, route) → the family of the MoE
    ("llama", "identical"): "mixtral",
    ("llama", "shared"): "qwen2_moe",
    ("qwen3", "identical"): "qwen3_moe",
    ("qwen3", "shared"): "glm4_moe",
}
_KEPT = (  # of the dense config
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "hidden_act",
    "max_position_embeddings", "initializer_range", "rms_norm_eps", "tie_word_embeddings", "attention_dropout",
    "pad_token_id", "bos_token_id", "eos_token_id",
)  # fmt: skip


@torch.no_grad()
def upcycle(dense: PreTrainedModel, config: UpcycleConfig, seed: int) -> PreTrainedModel:
    """An MoE whose outputs are those of ``dense``, on the same device, in fp32. ``seed`` decides the router's weights
    and, where routed experts are narrower than the dense MLP, which of its neurons each of them gets.

    Raises:
        ValueError: ``dense`` is of a family that no route knows, or has what the MoE's family lacks, or the MoE does
            not fit into the memory.
    """
    random = torch.Generator().manual_seed(seed)
    hf = AutoConfig.for_model(check_family(dense.config.model_type, config), **_settings(dense, config))
    with torch.device("meta"):
        size = sum(it.numel() for it in AutoModelForCausalLM.from_config(hf).parameters())
    require_room(f"a {hf.model_type} of {config.experts} experts", size, str(dense.device))
    moe: PreTrainedModel = AutoModelForCausalLM.from_config(hf, attn_implementation=SEGMENTS, dtype=torch.float32)
    target = moe.state_dict()
    for name, tensor in dense.state_dict().items():
        if ".mlp." not in name:
            target[name].copy_(tensor)
    blocks = zip(dense.get_decoder().layers, moe.get_decoder().layers, strict=True)
    for mlp, block in ((before.mlp, after.mlp) for before, after in blocks):
        torch.nn.init.normal_(block.gate.weight, std=config.router_std, generator=random)
        gate, up, down = (it.weight.float().cpu() for it in (mlp.gate_proj, mlp.up_proj, mlp.down_proj))
        width = block.experts.down_proj.shape[2]
        for e in range(config.experts):
            whole = width == gate.shape[0]
            neurons = torch.arange(width) if whole else torch.randperm(gate.shape[0], generator=random)[:width]
            block.experts.gate_up_proj[e] = torch.cat([gate[neurons], up[neurons]])
            block.experts.down_proj[e] = down[:, neurons]
        if config.route == "shared":
            block.experts.down_proj.zero_()
            gated = hf.model_type == "qwen2_moe"  # its gate, where it is 0, lets a half through
            shared = block.shared_expert if gated else block.shared_experts
            shared.gate_proj.weight.copy_(gate)
            shared.up_proj.weight.copy_(up)
            shared.down_proj.weight.copy_(2 * down if gated else down)
            if gated:
                block.shared_expert_gate.weight.zero_()
    moe.generation_config = dense.generation_config
    torch.nn.Module.to(moe, dense.device).train(dense.training)
    return moe


@torch.no_grad()
def break_symmetry(moe: PreTrainedModel, config: UpcycleConfig, seed: int) -> None:
    """Make the experts of ``moe`` differ, in place; ``strength`` s says by how much.

    - ``noise``: each matrix W gets s·std(W)·N(0, 1) added.
    - ``drop``: a share s of each expert's neurons, other ones in each, starts again from N(mean, std) of the weights
      that it had (Nakamura et al. 2025, Drop-Upcycling, arXiv 2502.19261).
    """
    random = torch.Generator().manual_seed(seed)
    for experts in expert_layers(moe):
        width = experts.down_proj.shape[2]
        for e in range(config.experts):
            gate, up = experts.gate_up_proj[e].split(width)
            down = experts.down_proj[e].T  # all three are views with a row a neuron
            matrices = [gate, up] if config.route == "shared" else [gate, up, down]
            if config.symmetry == "noise":
                for matrix in matrices:
                    noise = torch.randn(matrix.shape, generator=random).to(matrix.device)
                    matrix += config.strength * matrix.std() * noise
                continue
            neurons = torch.randperm(width, generator=random)[: round(config.strength * width)]
            for matrix in matrices:
                old = matrix[neurons]
                fresh = torch.randn(old.shape, generator=random).to(old.device)
                matrix[neurons] = old.mean() + old.std() * fresh


def expert_layers(model: PreTrainedModel) -> Iterator[Any]:
    """The modules that hold routed experts, in order."""
    for module in model.modules():
        if getattr(module, "gate_up_proj", None) is not None and getattr(module.gate_up_proj, "ndim", 0) == 3:
            yield module


def parameter_table(model: PreTrainedModel) -> dict[str, dict[str, int]]:
    """Parameters by part, and ``all``: how many there are (``total``) and how many compute one token (``active``).
    Embeddings count as active; a tied output layer is counted once, with them."""
    top_k = int(getattr(model.config, "num_experts_per_tok", 0) or 0)
    table: dict[str, dict[str, int]] = {}
    for name, parameter in model.named_parameters():
        active = parameter.numel()
        if ".experts." in name:
            active = active * top_k // parameter.shape[0]
        for part in (_part(name), "all"):
            row = table.setdefault(part, {"total": 0, "active": 0})
            row["total"] += parameter.numel()
            row["active"] += active
    return {part: table[part] for part in sorted(table, key=lambda part: (part == "all", -table[part]["total"]))}


def show_parameters(table: dict[str, dict[str, int]]) -> str:
    """The table as text."""
    lines = [f"{'parameters':16}{'total':>16}{'active':>16}"]
    return "\n".join([*lines, *(f"{part:16}{row['total']:>16,}{row['active']:>16,}" for part, row in table.items())])


def _part(name: str) -> str:
    parts = name.split(".")
    if "embed_tokens" in parts:
        return "embeddings"
    if "lm_head" in parts:
        return "output"
    if "experts" in parts:
        return "routed experts"
    if any(part.startswith("shared_expert") for part in parts):
        return "shared expert"
    if (parts[-1].endswith("bias") and "expert" in parts[-1]) or parts[-2:] == ["gate", "weight"]:
        return "routers"
    if any(part.endswith("norm") for part in parts):
        return "norms"
    if "self_attn" in parts:
        return "attention"
    if "linear_attn" in parts:
        return "linear attention"
    return "convolutions" if "conv" in parts else "dense MLP"


def check_family(dense: str, config: UpcycleConfig) -> str:
    """The family of the MoE. Raises ``ValueError`` where the family ``dense`` has none by this route."""
    known = sorted({family for family, route in FAMILIES if route == config.route})
    if (dense, config.route) not in FAMILIES:
        raise ValueError(f"model.upcycle: {dense!r} cannot be upcycled; by route {config.route} can {', '.join(known)}")
    return FAMILIES[dense, config.route]


def _settings(dense: PreTrainedModel, config: UpcycleConfig) -> dict[str, Any]:
    """The MoE's config. Raises ``ValueError`` for what its family cannot express."""
    old = dense.config
    family = check_family(old.model_type, config)
    head = getattr(old, "head_dim", None) or old.hidden_size // old.num_attention_heads
    if getattr(old, "attention_bias", False) or getattr(old, "mlp_bias", False):
        raise ValueError(f"model.upcycle: a {old.model_type} with biases has no {family} that computes the same")
    if getattr(old, "use_sliding_window", False):
        raise ValueError(f"model.upcycle: a {old.model_type} with a sliding window is not supported")
    if family == "qwen2_moe" and head * old.num_attention_heads != old.hidden_size:
        raise ValueError(f"model.upcycle: {family} has heads of hidden / heads; this {old.model_type} has {head}")
    width, dense_width = config.expert_width or old.intermediate_size, old.intermediate_size
    if width > dense_width or (family == "glm4_moe" and dense_width % width):
        raise ValueError(f"model.upcycle.expert_width={width}: does not divide the dense MLP's {dense_width}")
    kept = {name: getattr(old, name) for name in _KEPT}
    common = kept | {"rope_parameters": dict(old.rope_parameters), "num_experts_per_tok": config.top_k}
    if family != "qwen2_moe":
        common["head_dim"] = head
    if family == "mixtral":
        return common | {"num_local_experts": config.experts, "intermediate_size": width}
    common |= {"norm_topk_prob": True, "moe_intermediate_size": width, "intermediate_size": dense_width}
    if family == "qwen3_moe":
        return common | {"num_experts": config.experts}
    if family == "qwen2_moe":
        return common | {
            "num_experts": config.experts,
            "shared_expert_intermediate_size": dense_width,
            "qkv_bias": False,
        }
    return common | {  # glm4_moe
        "n_routed_experts": config.experts,
        "n_shared_experts": dense_width // width,
        "first_k_dense_replace": 0,
        "num_mtp_layers": 0,
        "use_qk_norm": True,
        "rope_parameters": {**old.rope_parameters, "partial_rotary_factor": 1.0},
    }
