"""A loss over a vocabulary without ever holding (positions × vocabulary).

Logits of some positions at a time are made from the hidden states, used, and made again in the backward pass: memory is
that of one chunk, for a third more arithmetic in the output layer. At 16K positions and 150K tokens the logits alone
are 9.8 GB in fp32, and a log-softmax with its gradient three times that.

N positions, C of a chunk, H hidden width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.checkpoint import checkpoint

CHUNK_LOGITS = 2**25  # logits of a chunk: 134 MB in fp32

Loss = Callable[..., tuple[torch.Tensor, ...]]


def by_chunks(
    head: Callable[[torch.Tensor], torch.Tensor],
    hidden_NH: torch.Tensor,
    vocabulary: int,
    loss: Loss,
    *rows: torch.Tensor,
    chunk_logits: int = CHUNK_LOGITS,
) -> tuple[torch.Tensor, ...]:
    """``loss(logits_CV, *rows_C)`` over chunks of positions, its results joined along the first dimension.

    ``head`` makes logits of hidden states; every tensor of ``rows`` has N as its first dimension. A result depends on
    its own position alone, so that chunks change nothing but memory. What fits into one chunk is computed at once.
    """
    size = max(chunk_logits // vocabulary, 1)

    def some(hidden_CH: torch.Tensor, *rows_C: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return loss(head(hidden_CH), *rows_C)

    if len(hidden_NH) <= size:
        return some(hidden_NH, *rows)
    parts = []
    for start in range(0, len(hidden_NH), size):
        span = slice(start, start + size)
        parts.append(checkpoint(some, hidden_NH[span], *(row[span] for row in rows), use_reentrant=False))
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))
