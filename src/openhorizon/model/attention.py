"""Attention inside the samples of a packed row, without a (T×T) mask.

Registered with transformers as ``segments``; every checkpoint is loaded with it. Given the bounds of a row's samples
(``bounds``) it runs one causal attention a sample, for which PyTorch has kernels whose memory is linear in T; given the
chunks that several conversations read into a cache (``reads``), one attention a chunk to what its own conversation has
read; given anything else (a mask, a cache while decoding) it is transformers' ``sdpa``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

SEGMENTS = "segments"


def bounds(segments: Sequence[tuple[int, int, int]]) -> torch.Tensor:
    """(row, start, end) of each sample, in order, as what takes the place of an attention mask: integers of shape
    (1, 1, S, 3) on the CPU. Models hand a mask of four dimensions to the attention as it is, and on the CPU it can be
    read in every layer without waiting for the GPU."""
    return torch.tensor(segments, dtype=torch.int32).view(1, 1, -1, 3)


def reads(segments: Sequence[tuple[int, int, int, int]]) -> torch.Tensor:
    """(slot, start, end, past) of each chunk, in order, in the same guise, of shape (1, 1, S, 4): the T positions from
    ``start`` to ``end`` are read behind the ``past`` tokens that the cache's ``slot`` holds."""
    return torch.tensor(segments, dtype=torch.int32).view(1, 1, -1, 4)


def segment_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    row_groups: Sequence[tuple[int, int, torch.Tensor]] | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attention of queries (R, heads, T, D) to keys and values (R, kv heads, T, D); returns (R, T, heads, D). Positions
    outside every segment (padding) give 0. ``row_groups``, of a decoding step: (start, end, mask) of neighbouring rows
    that see as many keys as their mask has."""
    if row_groups is not None:
        return step_attention(query, key, value, row_groups, scaling), None
    if attention_mask is None or attention_mask.dtype != torch.int32:
        mixed, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
        return mixed, None
    if attention_mask.shape[3] == 4:
        return _read_attention(query, key, value, attention_mask, scaling), None
    shared = query.shape[1] != key.shape[1]
    pieces: list[list[torch.Tensor]] = [[] for _ in range(query.shape[0])]
    filled = [0] * query.shape[0]

    def pad(row: int, end: int) -> None:
        if end > filled[row]:
            pieces[row].append(query.new_zeros(1, query.shape[1], end - filled[row], value.shape[3], dtype=value.dtype))

    for row, start, end in attention_mask.view(-1, 3).tolist():
        pad(row, start)
        part = (slice(row, row + 1), slice(None), slice(start, end))
        attended = scaled_dot_product_attention(
            query[part], key[part], value[part], is_causal=True, scale=scaling, enable_gqa=shared
        )
        pieces[row].append(attended.to(value.dtype))
        filled[row] = end
    for row in range(query.shape[0]):
        pad(row, query.shape[2])
    return torch.cat([torch.cat(row, dim=2) for row in pieces]).transpose(1, 2).contiguous(), None


def _read_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: torch.Tensor, scaling: float | None
) -> torch.Tensor:
    """Attention of queries (1, heads, T, D) to the keys and values of their slots (slots, kv heads, capacity, D), into
    which their own are written already; returns (1, T, heads, D), 0 between chunks."""
    shared = query.shape[1] != key.shape[1]
    query = query.to(key.dtype)  # what the lower right's kernels get past autocast
    pieces, filled = list[torch.Tensor](), 0
    for slot, start, end, past in segments.view(-1, 4).tolist():
        if start > filled:
            pieces.append(query.new_zeros(1, query.shape[1], start - filled, value.shape[3]))
        seen = (slice(slot, slot + 1), slice(None), slice(past + end - start))
        attended = scaled_dot_product_attention(
            query[:, :, start:end],
            key[seen],
            value[seen],
            attn_mask=causal_lower_right(end - start, past + end - start),
            scale=scaling,
            enable_gqa=shared,
        )
        pieces.append(attended)
        filled = end
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous()


def step_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    row_groups: Sequence[tuple[int, int, torch.Tensor]],
    scaling: float | None,
) -> torch.Tensor:
    """Attention of one query a row (B, heads, 1, D) to keys and values (B, kv heads, keys, D), ``row_groups`` as above;
    returns (B, 1, heads, D). Heads that share keys go as queries of one head. On a CPU as two batched products: SDPA's
    kernel is made for many queries a row."""
    batch, heads, _, width = query.shape
    packed = query.reshape(batch, key.shape[1], heads // key.shape[1], width).to(key.dtype)
    attend = _products if query.device.type == "cpu" else scaled_dot_product_attention
    mixed = [
        attend(
            packed[start:end],
            key[start:end, :, : mask.shape[-1]],
            value[start:end, :, : mask.shape[-1]],
            attn_mask=mask,
            scale=scaling,
        )
        for start, end, mask in row_groups
    ]
    return torch.cat(mixed).reshape(batch, 1, heads, width)


def _products(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attn_mask: torch.Tensor, scale: float | None
) -> torch.Tensor:
    """``scaled_dot_product_attention`` of all that the mask leaves in."""
    scores = torch.matmul(query * (scale or query.shape[-1] ** -0.5), key.mT)
    scores = scores.masked_fill_(~attn_mask, -torch.inf).softmax(dim=-1, dtype=torch.float32)
    return torch.matmul(scores.to(value.dtype), value)


ALL_ATTENTION_FUNCTIONS.register(SEGMENTS, segment_attention)
ALL_MASK_ATTENTION_FUNCTIONS.register(SEGMENTS, sdpa_mask)
