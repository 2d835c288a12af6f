"""Decoding where every row stands at a position of its own: for models of attention alone.

Keys and values lie in static buffers of (slots, heads, capacity, D), one slot a conversation, each with its own length.
A step is one token for every live row, behind a mask of its own length. What has to be read (prompts, observations of
hundreds or thousands of tokens) is read in passes of up to ``READ_TOKENS`` tokens: the chunks of several rows side by
side in one packed row, where each attends to its own slot (``model/attention.py``). A conversation that is over leaves
its slot to the next one that waits.

Memory: slots × capacity is kept within ``cache_bytes``. Where the longest row needs a larger capacity, the buffers are
made anew with fewer slots, and the shortest rows leave and wait; they read again what they had read, in chunks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from openhorizon.model.attention import reads
from openhorizon.model.rows import Row, draw

READ_TOKENS = 4096  # of a pass: enough to keep a GPU busy, little enough for its activations
READ_SHARE = 1 / 8  # rows that have something to read wait until they are so many; a step carries them idle
LADDER = (256, 1.5)  # capacities: the first, and each by the one before


class SlotCache(Cache):
    """A layer's buffers are made where it first sees keys, as these are: in their heads and width, in ``dtype``."""

    def __init__(self, layers: int, dtype: torch.dtype | None) -> None:
        self.mine = [SlotLayer(self) for _ in range(layers)]
        super().__init__(layers=list(self.mine))
        self.dtype, self.slots, self.capacity = dtype, 0, 0
        self.slot_T = self.position_T = torch.empty(0)
        self.keys_used: int | None = None

    def resize(self, slots: int, capacity: int, live: int) -> None:
        """Buffers of another shape, with what the first ``live`` slots hold."""
        self.slots, self.capacity = slots, capacity
        for layer in self.mine:
            layer.resize(live)

    def move(self, source: int, slot: int, length: int) -> None:
        """What one slot holds into another."""
        for layer in self.mine:
            for buffer in layer.buffers:
                buffer[slot, :, :length] = buffer[source, :, :length]

    def expect(self, slot_T: torch.Tensor, position_T: torch.Tensor, keys_used: int | None) -> None:
        """Where the next pass's T tokens belong. ``keys_used``: they are one a slot, in order, and attend to so many
        keys; None: they are chunks, and the attention finds its way through all of the buffers."""
        self.slot_T, self.position_T, self.keys_used = slot_T, position_T, keys_used


class SlotLayer(DynamicLayer):
    """Keys and values of one layer."""

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache, self.buffers = cache, list[torch.Tensor]()

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        cache, new = self.cache, (key_states, value_states)
        if not self.buffers:  # zeros: what a mask leaves out must still be finite
            for states in new:
                shape = (cache.slots, states.shape[1], cache.capacity, states.shape[3])
                self.buffers.append(states.new_zeros(shape, dtype=cache.dtype or states.dtype))
        for buffer, states in zip(self.buffers, new, strict=True):
            tokens_TKD = states[:, :, 0] if cache.keys_used is not None else states[0].transpose(0, 1)
            buffer[cache.slot_T, :, cache.position_T] = tokens_TKD.to(buffer.dtype)
        if cache.keys_used is None:
            return self.buffers
        return [buffer[: len(key_states), :, : cache.keys_used] for buffer in self.buffers]

    def resize(self, live: int) -> None:
        for i, old in enumerate(self.buffers):
            length = min(old.shape[2], self.cache.capacity)
            new = old.new_zeros(self.cache.slots, old.shape[1], self.cache.capacity, old.shape[3])
            kept = min(live, len(old))  # the others have just come and hold nothing
            new[:kept, :, :length] = old[:kept, :, :length]
            self.buffers[i] = new


class RaggedBatch:
    """At most ``batch`` conversations at once in at most ``cache_bytes``, until all of ``rows`` are over."""

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[Row],
        never: torch.Tensor,
        end_id: int,
        batch: int,
        cache_bytes: int,
        token_bytes: int,
        dtype: torch.dtype | None,
    ) -> None:
        self.model, self.never, self.end_id = model, never, end_id
        self.batch, self.tokens = batch, cache_bytes // token_bytes
        self.waiting, self.live = deque(rows), list[Row]()
        longest = max(max(row.conversation.context_tokens, len(row.pending) + 1) for row in rows)
        self.limit = _round_up(longest)
        self.cache = SlotCache(model.config.num_hidden_layers, dtype)

    def run(self, temperature: float, progress: Callable[[int], None]) -> None:
        over = 0
        while self.waiting or self.live:
            self._admit()
            reading = [slot for slot, row in enumerate(self.live) if len(row.pending) > 1]
            chunks = sum(len(self.live[slot].pending) - 1 for slot in reading)
            if reading and (len(reading) >= READ_SHARE * len(self.live) or chunks >= READ_TOKENS):
                self._read(reading)
            self._step(temperature)
            for slot in reversed(range(len(self.live))):
                if self.live[slot].over:
                    self._leave(slot)
                    over += 1
                    progress(over)

    def _admit(self) -> None:
        """Those that wait, in order, while there is room; those out of it that the longest rows need the room of."""
        need = max(map(_need, self.live), default=0)
        while len(self.live) > max(self._fitting(need), 1):
            shortest = min(range(len(self.live)), key=lambda slot: len(self.live[slot].read))
            row = self._leave(shortest)
            row.read, row.pending = [], row.read + row.pending
            self.waiting.appendleft(row)
        while self.waiting:
            wider = max(need, _need(self.waiting[0]))
            if self.live and len(self.live) >= self._fitting(wider):
                break
            self.live.append(self.waiting.popleft())
            need = wider
        if need > self.cache.capacity or len(self.live) > self.cache.slots:
            slots = min(max(self._fitting(need), 1), len(self.live) + len(self.waiting))
            self.cache.resize(slots, self._capacity(need), len(self.live))

    def _capacity(self, need: int) -> int:
        """The ladder's step for rows of ``need`` tokens."""
        capacity, factor = LADDER
        while capacity < need:
            capacity = _round_up(int(capacity * factor))
        return min(capacity, self.limit)

    def _fitting(self, need: int) -> int:
        """How many such rows fit."""
        return min(self.batch, self.tokens // self._capacity(need))

    def _leave(self, slot: int) -> Row:
        row, last = self.live[slot], self.live.pop()
        if row is not last:
            self.cache.move(len(self.live), slot, len(last.read))
            self.live[slot] = last
        return row

    def _read(self, slots: list[int]) -> None:
        """All but the last token of what these rows have to read."""
        device, todo = self.never.device, deque(slots)
        while todo:
            ids, at, segments = list[int](), list[tuple[int, int]](), list[tuple[int, int, int, int]]()
            while todo and len(ids) < READ_TOKENS:
                slot, row = todo[0], self.live[todo[0]]
                past, chunk = len(row.read), row.pending[:-1][: READ_TOKENS - len(ids)]
                segments.append((slot, len(ids), len(ids) + len(chunk), past))
                at += [(slot, past + i) for i in range(len(chunk))]
                ids += chunk
                row.read += chunk
                del row.pending[: len(chunk)]
                if len(row.pending) == 1:
                    todo.popleft()
            slot_T, position_T = torch.tensor(at, device=device).T
            self.cache.expect(slot_T, position_T, None)
            self.model.get_decoder()(
                input_ids=torch.tensor([ids], device=device),
                position_ids=position_T[None],
                attention_mask=reads(segments),
                past_key_values=self.cache,
                use_cache=True,
            )

    def _step(self, temperature: float) -> None:
        """A token for every row; rows that have more to read feed one that the read will overwrite."""
        device = self.never.device
        writing = [slot for slot, row in enumerate(self.live) if len(row.pending) == 1]
        fed = [(row.pending[0] if len(row.pending) == 1 else 0, len(row.read)) for row in self.live]
        token_B, position_B = torch.tensor(fed, device=device).T
        longest = max(position for _, position in fed) + 1
        keys = min(_round_up(longest), self.cache.capacity)
        self.cache.expect(torch.arange(len(fed), device=device), position_B, keys)
        logits_BV = self.model(
            input_ids=token_B[:, None],
            position_ids=position_B[:, None],
            attention_mask=(torch.arange(keys, device=device) <= position_B[:, None])[:, None, None],
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]
        if len(writing) < len(fed):
            logits_BV = logits_BV[writing]
        uniform = [self.live[slot].uniform(len(self.live[slot].read)) for slot in writing]
        uniform_B = torch.tensor(uniform, device=device, dtype=torch.double)
        drawn = draw(logits_BV.masked_fill(self.never, -torch.inf), temperature, uniform_B)
        for slot, token, logprob in zip(writing, *drawn, strict=True):
            row = self.live[slot]
            row.read.append(row.pending.pop())
            row.take(token, logprob, len(row.read), self.end_id)


def _round_up(tokens: int) -> int:
    """To a multiple of 64, as attention kernels want masks."""
    return -(-tokens // 64) * 64


def _need(row: Row) -> int:
    """Places that a row takes until its next turn begins."""
    return len(row.read) + len(row.pending)
