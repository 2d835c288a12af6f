"""A start from which copying out of the context is known, for small models from scratch.

Tool use lives on copying: an id or a title that an observation showed goes into the next call. The circuit behind it
(an induction head: attend to what followed the last time this token was seen) is in every pretrained model, and takes
a model from scratch millions of tokens to form: more than a laptop's whole budget. In the spirit of mimetic
initialization (Trockman and Kolter 2023, arXiv 2305.09828) the first convolution and the first attention layer of an
LFM2-MoE start as that circuit. Only the numbers that training starts from differ: the architecture is the stock one.

H hidden width, half of it for "what this token is" and half for "what the token before was", D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel

WEIGHT_STD = 0.08  # of all other matrices: about 1/sqrt(H) at H = 64 to 128; 0.02 is made for widths of thousands
WRITE_STD = 0.02  # of what writes into the residual stream: small, so that no layer drowns the circuit at the start
EMBEDDING_STD = 0.15
CONTEXT = 0.6  # weight of the token before, against the token itself, in what a match looks for
COPY_GAIN = 2.5  # of what an induction head writes against the token that stands there
SLOWEST_FAST = 0.004  # radians a position: a pair slower than this still matches a few hundred positions away
SHARPNESS = 1.5  # query and key norm weight: a match then outweighs a few hundred positions


@torch.no_grad()
def start_with_induction(model: PreTrainedModel) -> None:
    """Set the weights of a fresh LFM2-MoE in place; the random generator is torch's global one.

    Raises:
        ValueError: the first two layers are not a convolution and an attention layer, or a head is wider than H / 2.
    """
    layers, width = model.get_decoder().layers, model.config.hidden_size
    kinds = list(model.config.layer_types[:2])
    head = layers[1].self_attn.head_dim if kinds == ["conv", "full_attention"] else 0
    half = width // 2
    if not 0 < head <= half:
        raise ValueError(
            "model.scratch.induction: needs attention_layers to begin with 1 (a convolution before it) and heads of "
            f"at most half the hidden width; got layers {kinds}, {model.config.num_attention_heads} heads, width "
            f"{width}"
        )
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2:
            writes = name.split(".")[-1] == "down_proj" or name.split(".")[-2] in ("w2", "out_proj")
            torch.nn.init.normal_(parameter, std=WRITE_STD if writes else WEIGHT_STD)
    for layer in layers:
        if hasattr(layer, "conv"):
            torch.nn.init.normal_(layer.conv.conv.weight, std=0.4)
    # Tokens: random in the first half, but for one constant that lets a gate stand open; nothing in the second half.
    embedding: Any = model.get_input_embeddings().weight
    torch.nn.init.normal_(embedding, std=EMBEDDING_STD * 2**0.5)
    embedding[:, half:] *= 0.05
    embedding[:, 0] = EMBEDDING_STD * 2**0.5
    # Convolution: both gates open, the input the token itself; one step back is written into the second half as it is,
    # two steps back shuffled and weaker: of several places where a token stood, the one whose context fits then wins.
    conv = layers[0].conv
    gate_b, gate_c, value = conv.in_proj.weight.split(width)
    constant = 2**0.5  # the constant's size behind the norm: H/2 entries of equal size have a root mean square of 1
    for gate in (gate_b, gate_c):
        gate *= 0.1
        gate[:, 0] = 1 / constant
    own = torch.arange(1, half)
    shuffled = own[torch.randperm(half - 1)]
    value.zero_()
    value[own, own] = 1
    value[half + own, own] = 1
    conv.conv.weight *= 0.05
    conv.conv.weight[:half, 0, -2] = 1
    conv.conv.weight[half:, 0, -3] = 1
    conv.out_proj.weight *= 0.1
    conv.out_proj.weight[half + own, own] = EMBEDDING_STD
    conv.out_proj.weight[half + shuffled, half + own] = CONTEXT * EMBEDDING_STD
    # Attention: the first key-value head and its queries match "this token" with "the token before that position was",
    # in the slow rotary pairs alone: the fast ones turn a match at a distance into noise.
    attention = layers[1].self_attn
    groups = attention.num_key_value_groups
    mix = torch.nn.init.orthogonal_(torch.empty(head, half - 1))
    fast = (model.get_decoder().pos_emb.inv_freq > SLOWEST_FAST).nonzero()[:, 0]
    match = mix.clone()
    match[torch.cat([fast, fast + head // 2])] = 0
    attention.k_proj.weight[:head] *= 0.1
    attention.k_proj.weight[:head, half + own] = match
    attention.v_proj.weight[:head] *= 0.1
    attention.v_proj.weight[:head, own] = mix
    for group in range(groups):
        rows = slice(group * head, (group + 1) * head)
        attention.q_proj.weight[rows] *= 0.1
        attention.q_proj.weight[rows, own] = match
        attention.q_proj.weight[rows, half + own] = CONTEXT * match[:, shuffled - 1]
        attention.out_proj.weight[:, rows] *= 0.1
        attention.out_proj.weight[own, rows] = COPY_GAIN * EMBEDDING_STD / groups * mix.T
    attention.q_layernorm.weight.fill_(SHARPNESS)
    attention.k_layernorm.weight.fill_(SHARPNESS)
