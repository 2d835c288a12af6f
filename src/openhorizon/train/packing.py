"""Samples of different lengths packed into rows, with nothing seen across samples.

Attention is kept inside a sample by a block-diagonal causal mask and positions that start at 0 again. A short
convolution sees its last few inputs whatever the mask, so that samples are separated by ``gap`` padding positions
whose inputs the model zeroes: with gap ≥ kernel - 1 a packed sample gives the same numbers as an unpacked one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Pack:
    """R rows of T positions holding S samples. ``sample_RT`` is the sample's index, -1 on padding; ``train_RT`` marks
    positions whose token carries loss (it is predicted from the position before)."""

    ids_RT: torch.Tensor
    position_RT: torch.Tensor
    sample_RT: torch.Tensor
    train_RT: torch.Tensor

    @property
    def tokens(self) -> int:
        """Real tokens, padding not counted."""
        return int((self.sample_RT >= 0).sum())


def pack(samples: Sequence[tuple[Sequence[int], Sequence[bool]]], row_tokens: int, gap: int, pad_id: int) -> Pack:
    """First-fit decreasing. Each sample is (ids, loss mask); its first token never carries loss. Rows are as long as
    the longest sample or ``row_tokens``, whichever is more, cut to what is used."""
    order = sorted(range(len(samples)), key=lambda i: (-len(samples[i][0]), i))
    capacity = max(row_tokens, len(samples[order[0]][0]))
    rows: list[list[tuple[int, int]]] = []  # (sample, start)
    used: list[int] = []
    for i in order:
        length = len(samples[i][0])
        row = next((r for r, end in enumerate(used) if end + gap + length <= capacity), None)
        if row is None:
            rows.append([(i, 0)])
            used.append(length)
        else:
            rows[row].append((i, used[row] + gap))
            used[row] += gap + length
    shape = (len(rows), max(used))
    ids, position, sample, train = (
        torch.full(shape, pad_id),
        torch.zeros(shape, dtype=torch.long),
        torch.full(shape, -1),
        torch.zeros(shape, dtype=torch.bool),
    )
    for r, placed in enumerate(rows):
        for i, start in placed:
            sample_ids, mask = samples[i]
            span = slice(start, start + len(sample_ids))
            ids[r, span] = torch.tensor(sample_ids)
            position[r, span] = torch.arange(len(sample_ids))
            sample[r, span] = i
            train[r, span] = torch.tensor(mask, dtype=torch.bool)
            train[r, start] = False
    return Pack(ids, position, sample, train)


def convolution_gap(model: PreTrainedModel) -> int:
    """Padding positions between packed samples that this model's convolutions need."""
    return int(getattr(model.config, "conv_L_cache", 1)) - 1


def packed_logits(model: PreTrainedModel, packed: Pack) -> torch.Tensor:
    """Logits (N, V) that predict the N trainable tokens, in row-major order (the order of ``packed.train_RT``)."""
    device = next(model.parameters()).device
    sample_RT = packed.sample_RT.to(device)
    length = sample_RT.shape[1]
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    same_RTT = sample_RT[:, :, None] == sample_RT[:, None, :]  # padding sees padding: no empty rows, no NaN
    mask = (same_RTT & causal_TT)[:, None]
    masks = {"full_attention": mask, "conv": sample_RT >= 0} if convolution_gap(model) else mask
    hidden = model.get_decoder()(
        input_ids=packed.ids_RT.to(device),
        position_ids=packed.position_RT.to(device),
        attention_mask=masks,
        use_cache=False,
    ).last_hidden_state
    before_RT = packed.train_RT.to(device).roll(-1, dims=1)
    before_RT[:, -1] = False
    logits_NV: torch.Tensor = model.get_output_embeddings()(hidden[before_RT])
    return logits_NV
