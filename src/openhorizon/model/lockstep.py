"""Decoding in lock-step: every row of a batch stands at the same position of its cache.

A row that reads (prompt, observation) is fed its next given token, a row that writes is fed the token just drawn. So
there is no padding and no mask, no conversation is ever read twice, and no row waits for another row's turn to end.
Rows that are over leave the batch. It is what a model with recurrent layers (short convolutions, linear attention) can
do, whose states cannot skip a padded position, and it is the fastest where a step costs much the same for few rows as
for many: small models on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from openhorizon.model.routing import Recorder
from openhorizon.model.rows import Row, draw

COMPACT_AT = 0.75  # share of live rows below which the batch is compacted


class GrowingLayer(DynamicLayer):
    """Keys and values (B, heads, capacity, D) with spare room: a step writes in place instead of copying the past."""

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        new = key_states.shape[2]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.length = 0
            self.buffers = [self._room(key_states, 256), self._room(value_states, 256)]
        if self.length + new > self.buffers[0].shape[2]:
            grown = [self._room(buffer, 2 * (self.length + new)) for buffer in self.buffers]
            for old, room in zip(self.buffers, grown, strict=True):
                room[:, :, : self.length] = old[:, :, : self.length]
            self.buffers = grown
        for buffer, states in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, self.length : self.length + new] = states
        self.length += new
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)
        return self.keys, self.values

    def get_seq_length(self) -> int:
        return self.length if self.is_initialized else 0

    def keep_rows(self, rows: torch.Tensor) -> None:
        self.buffers = [buffer[rows] for buffer in self.buffers]
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)

    @staticmethod
    def _room(like: torch.Tensor, capacity: int) -> torch.Tensor:
        batch, heads, _, width = like.shape
        return like.new_empty(batch, heads, max(capacity, like.shape[2]), width)


def run(
    model: PreTrainedModel,
    rows: list[Row],
    never: torch.Tensor,
    end_id: int,
    temperature: float,
    progress: Callable[[int], None],
    seen: Recorder | None = None,
) -> None:
    """Continue all of ``rows`` as one batch. ``never`` marks ids that no turn may hold; ``progress`` is told how many
    are over; ``seen`` has the experts of every pass, where they are recorded."""
    device = never.device
    cache = DynamicCache(config=model.config)
    cache.layers = [_grow(layer) for layer in cache.layers]
    live, over, position = list(rows), 0, 0
    shared = min(len(row.pending) for row in rows) - 1  # all but the last prompt token, in one pass
    if shared > 0:
        head = torch.tensor([row.pending[:shared] for row in rows], device=device)
        model(input_ids=head, past_key_values=cache, use_cache=True, logits_to_keep=1)
        _note(rows, seen)
        for row in rows:
            del row.pending[:shared]
        position = shared
    tokens = [row.pending.pop(0) for row in live]
    while True:
        inputs = torch.tensor(tokens, device=device)[:, None]
        logits_BV = model(input_ids=inputs, past_key_values=cache, use_cache=True).logits[:, -1]
        _note(live, seen)
        position += 1
        writing = [i for i, row in enumerate(live) if not row.pending and not row.over]
        if writing:
            uniform = torch.tensor([live[i].uniform(position - 1) for i in writing], device=device, dtype=torch.double)
            drawn = draw(logits_BV[writing].masked_fill(never, -torch.inf), temperature, uniform)
            for i, token, logprob in zip(writing, *drawn, strict=True):
                live[i].take(token, logprob, position, end_id)
                if live[i].over:
                    over += 1
                    progress(over)
        if over == len(rows):
            return
        kept = [i for i, row in enumerate(live) if not row.over]
        if len(kept) <= COMPACT_AT * len(live):
            _keep_rows(cache, torch.tensor(kept, device=device))
            live = [live[i] for i in kept]
        tokens = [row.pending.pop(0) if row.pending else 0 for row in live]


def _note(live: list[Row], seen: Recorder | None) -> None:
    """What the pass behind us, of the same number of ids for every row, chose."""
    if seen:
        chosen_NLK = seen.chosen_NLK().numpy()
        for row, chosen in zip(live, chosen_NLK.reshape(len(live), -1, *chosen_NLK.shape[1:]), strict=True):
            if not row.over:
                row.experts.append(chosen)


def _grow(layer: Any) -> Any:
    return GrowingLayer() if type(layer) is DynamicLayer else layer  # type: ignore[no-untyped-call]


def _keep_rows(cache: DynamicCache, rows: torch.Tensor) -> None:
    for layer in cache.layers:
        if isinstance(layer, GrowingLayer):
            layer.keep_rows(rows)
        else:  # a recurrent layer: short convolution or linear attention
            assert isinstance(layer, LinearAttentionCacheLayerMixin)
            for states in (layer.conv_states, layer.recurrent_states):
                for key, state in states.items():
                    if state is not None:
                        states[key] = state[rows]
