"""Decoding where every row stands at a position of its own, in a slot of a static cache (``model/slots.py``).

A step is one token for every live row, behind a mask of its own length. What has to be read (prompts, observations of
hundreds or thousands of tokens) is read in passes of up to ``READ_TOKENS`` tokens: the chunks of several rows side by
side in one packed row, where each attends to its own slot (``model/attention.py``) and a short convolution finds what
it saw before in the gap left in front of the chunk. A conversation that is over leaves its slot to the next one that
waits.

Memory: slots × capacity is kept within ``cache_bytes``. Where the longest row needs a larger capacity, the buffers are
made anew with fewer slots, and the shortest rows leave and wait; they read again what they had read, in chunks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from openhorizon.model import lean
from openhorizon.model.attention import reads
from openhorizon.model.routing import Recorder
from openhorizon.model.rows import Row, draw
from openhorizon.model.slots import SlotCache, convolution_gap

READ_TOKENS = 4096  # of a pass: enough to keep a GPU busy, little enough for its activations
READ_SHARE = 1 / 8  # rows that have something to read wait until they are so many; a step carries them idle
GROUPS, GROUP_ROWS = 4, 16  # rows attend in at most so many groups of at least so many
SPARED = 0.8  # share of the keys that groups may read at most, to be worth their calls
LEAST = {"cpu": 2**11, "cuda": 2**17}  # and so many keys they must spare: a call costs a GPU as much as many keys
SORT_EVERY = 16  # steps, at least, between two times that rows are put in the order of their lengths
LADDER = (256, 1.5)  # capacities: the first, and each by the one before


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
        dtype: torch.dtype,
        seen: Recorder | None = None,
    ) -> None:
        self.model, self.never, self.end_id, self.seen = model, never, end_id, seen
        self.batch, self.tokens = batch, cache_bytes // token_bytes
        self.waiting, self.live = deque(rows), list[Row]()
        longest = max(max(row.conversation.context_tokens, len(row.pending) + 1) for row in rows)
        self.limit = _round_up(longest)
        self.cache = SlotCache(model.config, never.device, dtype)
        self.gap = convolution_gap(model.config)
        self.step = lean.LeanStep(model, self.cache) if lean.fits(model, never.device, dtype) else self._forward

    def run(self, temperature: float, progress: Callable[[int], None]) -> None:
        over = steps = 0
        while self.waiting or self.live:
            self._admit()
            if steps % SORT_EVERY == 0:
                self._sort()
            steps += 1
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
            row.forget()
            self.waiting.appendleft(row)
        came = list[int]()
        while self.waiting:
            wider = max(need, _need(self.waiting[0]))
            if self.live and len(self.live) >= self._fitting(wider):
                break
            self.live.append(self.waiting.popleft())
            came.append(len(self.live) - 1)
            need = wider
        if need > self.cache.capacity or len(self.live) > self.cache.slots:
            slots = min(max(self._fitting(need), 1), len(self.live) + len(self.waiting))
            self.cache.resize(slots, self._capacity(need), len(self.live))
        for slot in came:
            self.cache.clear(slot)

    def _sort(self) -> None:
        """Long rows first, where groups then read clearly fewer keys."""
        lengths = [len(row.read) + 1 for row in self.live]
        order = sorted(range(len(lengths)), key=lambda slot: -lengths[slot])
        now, then = (_keys(self._groups(which)) for which in (lengths, [lengths[i] for i in order]))
        if then < SPARED * now:
            self.cache.reorder(order)
            self.live = [self.live[slot] for slot in order]

    def _groups(self, lengths: Sequence[int]) -> list[tuple[int, int, int]]:
        return attention_groups(lengths, self.cache.capacity, LEAST[self.never.device.type])

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
            ids, positions, segments = list[int](), list[int](), list[tuple[int, int, int, int]]()
            while todo and len(ids) < READ_TOKENS:
                slot, row = todo[0], self.live[todo[0]]
                past, start = len(row.read), len(ids) + self.gap
                chunk = row.pending[:-1][: max(READ_TOKENS - start, 1)]
                segments.append((slot, start, start + len(chunk), past))
                ids += [0] * self.gap + chunk
                positions += [0] * self.gap + list(range(past, past + len(chunk)))
                row.read += chunk
                del row.pending[: len(chunk)]
                if len(row.pending) == 1:
                    todo.popleft()
            self.cache.expect_read(segments, self.gap, device)
            ids_T, position_T = torch.tensor([ids, positions], device=device)
            self.model.get_decoder()(
                input_ids=ids_T[None],
                position_ids=position_T[None],
                attention_mask=self._masks(reads(segments)),
                past_key_values=self.cache,
                use_cache=True,
            )
            if self.seen:
                chosen_NLK = self.seen.chosen_NLK().numpy()
                for slot, start, end, _ in segments:
                    self.live[slot].experts.append(chosen_NLK[start:end])

    def _masks(self, mask: torch.Tensor) -> Any:
        """As the model takes them: with convolutions, one of each kind; theirs leaves nothing out."""
        return {"full_attention": mask, "conv": None} if self.gap else mask

    def _step(self, temperature: float) -> None:
        """A token for every row; rows that have more to read feed one that the read will overwrite."""
        device = self.never.device
        writing = [slot for slot, row in enumerate(self.live) if len(row.pending) == 1]
        idle = [slot for slot, row in enumerate(self.live) if len(row.pending) > 1]
        lengths = [len(row.read) for row in self.live]
        fed = np.array([[row.pending[0] if len(row.pending) == 1 else 0 for row in self.live], lengths])
        token_B, position_B = torch.from_numpy(fed).to(device)
        groups = self._groups([length + 1 for length in lengths])
        masks = [
            (torch.arange(keys, device=device) <= position_B[start:end, None])[:, None, None]
            for start, end, keys in groups
        ]
        self.cache.expect_step(position_B, max(keys for _, _, keys in groups))
        saw = self.cache.inputs_of(idle) if idle else []
        row_groups = [(start, end, mask) for (start, end, _), mask in zip(groups, masks, strict=True)]
        logits_BV = self.step(token_B, position_B, row_groups)
        if idle:
            self.cache.put_back(idle, saw)
            logits_BV = logits_BV[writing]
        uniform = [self.live[slot].uniform(len(self.live[slot].read)) for slot in writing]
        uniform_B = torch.tensor(uniform, device=device, dtype=torch.double)
        drawn = draw(logits_BV.masked_fill_(self.never, -torch.inf), temperature, uniform_B)
        chosen_NLK = self.seen.chosen_NLK().numpy() if self.seen else None
        for slot, token, logprob in zip(writing, *drawn, strict=True):
            row = self.live[slot]
            if chosen_NLK is not None:
                row.experts.append(chosen_NLK[slot : slot + 1])
            row.read.append(row.pending.pop())
            row.take(token, logprob, len(row.read), self.end_id)

    def _forward(
        self, token_B: torch.Tensor, position_B: torch.Tensor, row_groups: Sequence[tuple[int, int, torch.Tensor]]
    ) -> torch.Tensor:
        """A step by the model's own forward pass."""
        logits_BTV: torch.Tensor = self.model(
            input_ids=token_B[:, None],
            position_ids=position_B[:, None],
            attention_mask=self._masks(row_groups[0][2]),
            row_groups=row_groups,
            past_key_values=self.cache,
            use_cache=True,
        ).logits
        return logits_BTV[:, -1]


def attention_groups(lengths: Sequence[int], capacity: int, least: int) -> list[tuple[int, int, int]]:
    """(start, end, keys) of neighbouring rows that attend together, each to as many keys as its longest row needs: all
    rows as one, or a few groups where that spares a good part of the keys, and at least ``least`` of them."""
    whole = [(0, len(lengths), min(_round_up(max(lengths)), capacity))]
    size = max(-(-len(lengths) // GROUPS), GROUP_ROWS)
    parts = [
        (start, min(start + size, len(lengths)), min(_round_up(max(lengths[start : start + size])), capacity))
        for start in range(0, len(lengths), size)
    ]
    return parts if _keys(parts) < min(SPARED * _keys(whole), _keys(whole) - least) else whole


def _keys(groups: Sequence[tuple[int, int, int]]) -> int:
    """How many keys are read."""
    return sum((end - start) * keys for start, end, keys in groups)


def _round_up(tokens: int) -> int:
    """To a multiple of 64, as attention kernels want masks."""
    return -(-tokens // 64) * 64


def _need(row: Row) -> int:
    """Places that a row takes until its next turn begins."""
    return len(row.read) + len(row.pending)
