"""One decoding step of LFM2-MoE on a CPU as plain tensor code.

A small model's step is hundreds of operations of a few microseconds each, so that modules, views and unfused
norms cost more than the arithmetic. This reads the weights where the modules hold them and calls what is left: fused
norms, a short convolution as a product and a sum, attention as batched products (``model/attention.py``), and all
experts for every token where that costs less than sorting tokens by expert. Routers are called as the modules they
are, so that ``model/routing.py`` sees and replays them. Same numbers as the model's own forward, up to the last bits of
floating point; the tests of ``model/sampler.py`` hold both to it.

B rows, one token each; V vocabulary, H hidden, D width of a head, E experts, K experts a token, I expert width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import linear, rms_norm, silu
from transformers import Lfm2MoeForCausalLM, PreTrainedModel
from transformers.models.lfm2_moe.modeling_lfm2_moe import apply_rotary_pos_emb

from openhorizon.model.attention import step_attention
from openhorizon.model.slots import InputLayer, SlotCache

DENSE_FLOP = 2**24  # of all experts for every token, up to which that is faster than grouped products (measured)


def fits(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether ``LeanStep`` computes this model: LFM2-MoE in fp32 on a CPU, as the profiles train it there."""
    return (
        isinstance(model, Lfm2MoeForCausalLM)
        and (device.type, dtype) == ("cpu", torch.float32)
        and not model.config.conv_bias
        and all(weight.dtype == torch.float32 for weight in model.parameters())
    )


class LeanStep:
    """A step into ``cache`` for its first B slots, which ``SlotCache.expect_step`` was told of."""

    def __init__(self, model: PreTrainedModel, cache: SlotCache) -> None:
        self.decoder: Any = model.get_decoder()
        self.head: Any = model.get_output_embeddings()
        self.cache = cache
        self.down = {
            i: layer.feed_forward.experts.down_proj.mT.flatten(0, 1)  # (E·I, H), a copy: small, see DENSE_FLOP
            for i, layer in enumerate(self.decoder.layers)
            if hasattr(layer.feed_forward, "experts") and _dense_flop(layer.feed_forward.experts, 1) <= DENSE_FLOP
        }

    def __call__(
        self, token_B: torch.Tensor, position_B: torch.Tensor, row_groups: Sequence[tuple[int, int, torch.Tensor]]
    ) -> torch.Tensor:
        """Logits (B, V) behind these tokens; ``row_groups`` as in ``segment_attention``."""
        decoder = self.decoder
        hidden_BH = decoder.embed_tokens(token_B)
        rotation = decoder.pos_emb(hidden_BH, position_ids=position_B[:, None])
        for i, layer in enumerate(decoder.layers):
            normed_BH = _norm(hidden_BH, layer.operator_norm)
            if layer.is_attention_layer:
                mixed_BH = self._attend(layer.self_attn, normed_BH, rotation, row_groups)
            else:
                mixed_BH = self._convolve(layer.conv, normed_BH, i)
            hidden_BH = hidden_BH + mixed_BH
            hidden_BH = hidden_BH + self._feed_forward(layer.feed_forward, _norm(hidden_BH, layer.ffn_norm), i)
        return linear(_norm(hidden_BH, decoder.embedding_norm), self.head.weight)

    def _attend(self, module: Any, normed_BH: torch.Tensor, rotation: Any, row_groups: Any) -> torch.Tensor:
        shape = (len(normed_BH), -1, 1, module.head_dim)
        query = _norm(linear(normed_BH, module.q_proj.weight).view(shape), module.q_layernorm)
        key = _norm(linear(normed_BH, module.k_proj.weight).view(shape), module.k_layernorm)
        value = linear(normed_BH, module.v_proj.weight).view(shape)
        query, key = apply_rotary_pos_emb(query, key, *rotation)
        keys, values = self.cache.layers[module.layer_idx].update(key, value)
        mixed = step_attention(query, keys, values, row_groups, module.scaling)
        return linear(mixed.flatten(1), module.out_proj.weight)

    def _convolve(self, module: Any, normed_BH: torch.Tensor, layer: int) -> torch.Tensor:
        before, after, inner = linear(normed_BH, module.in_proj.weight).chunk(3, dim=-1)
        inputs = self.cache.layers[layer]
        assert isinstance(inputs, InputLayer)
        state_BHK = inputs.state[: len(normed_BH)]
        state_BHK.copy_(torch.cat([state_BHK[:, :, 1:], (before * inner)[:, :, None]], dim=-1))
        convolved_BH = (state_BHK * module.conv.weight[:, 0]).sum(dim=-1)
        return linear(after * convolved_BH, module.out_proj.weight)

    def _feed_forward(self, module: Any, normed_BH: torch.Tensor, layer: int) -> torch.Tensor:
        if not hasattr(module, "experts"):
            gated = silu(linear(normed_BH, module.w1.weight), inplace=True).mul_(linear(normed_BH, module.w3.weight))
            return linear(gated, module.w2.weight)
        _, weights_BK, index_BK = module.gate(normed_BH, module.expert_bias if module.use_expert_bias else None)
        experts = module.experts
        if layer not in self.down or _dense_flop(experts, len(normed_BH)) > DENSE_FLOP:
            mixed_BH: torch.Tensor = experts(normed_BH, index_BK, weights_BK)
            return mixed_BH
        count, double, _ = experts.gate_up_proj.shape
        raised = linear(normed_BH, experts.gate_up_proj.flatten(0, 1)).view(-1, count, 2, double // 2)
        weights_BE = normed_BH.new_zeros(len(normed_BH), count).scatter_(1, index_BK, weights_BK)
        gated_BEI = silu(raised[:, :, 0]).mul_(raised[:, :, 1]).mul_(weights_BE[:, :, None])
        return torch.mm(gated_BEI.flatten(1), self.down[layer])


def _norm(hidden: torch.Tensor, module: Any) -> torch.Tensor:
    return rms_norm(hidden, module.weight.shape, module.weight, module.variance_epsilon)


def _dense_flop(experts: Any, tokens: int) -> int:
    """Of so many tokens through all experts."""
    count, double, hidden = experts.gate_up_proj.shape
    return int(3 * count * double * hidden * tokens)  # 2 a product and sum, 1.5 for the product back down
