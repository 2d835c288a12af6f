"""Batched decoding of many multi-turn conversations in lock-step.

Every row of a batch stands at the same position of its cache: a row that reads (prompt, observation) is fed its next
given token, a row that writes is fed the token just sampled. So there is no padding and no mask, no conversation is
ever read twice, and no row waits for another row's turn to end. Rows that are over leave the batch.

Sampling draws one uniform number a position from a stream of the conversation's own seed, so that a conversation does
not depend on what else is in the batch (beyond the last bits of floating point).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin

from openhorizon.agent.rollout import Conversation
from openhorizon.config import MachineConfig
from openhorizon.model.load import Checkpoint, load_checkpoint
from openhorizon.model.routing import Recorder, recording, routers

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


class _Row:
    """One conversation in the batch: what it has still to read, or what it has written of its turn."""

    def __init__(self, conversation: Conversation, uniform: np.ndarray) -> None:
        self.conversation, self.uniform = conversation, uniform
        self.pending = list(conversation.prompt_ids)
        self.written: list[int] = []
        self.logprobs: list[float] = []
        self.experts = list[np.ndarray]()  # of what was read, where they are recorded
        self.over = False

    def ends(self) -> None:
        self.over, self.pending = True, []
        if self.experts:
            self.conversation.routed(np.concatenate(self.experts))


class LocalPolicy:
    """A checkpoint in this process. Satisfies ``agent.rollout.Policy``."""

    def __init__(self, checkpoint: Checkpoint, batch: int) -> None:
        self.checkpoint, self.batch = checkpoint, batch
        self.name, self.renderer = checkpoint.hash, checkpoint.renderer
        self.records_experts = False  # whether conversations are told which experts their ids took
        tokenizer = checkpoint.tokenizer
        self.never = torch.zeros(checkpoint.model.config.vocab_size, dtype=torch.bool)  # ids that no turn may hold
        special = set(tokenizer.all_special_ids) | set(range(len(tokenizer), len(self.never)))
        self.never[sorted(special - {self.renderer.end_id})] = True

    @torch.inference_mode()
    def converse(
        self,
        conversations: Sequence[Conversation],
        temperature: float,
        progress: Callable[[int, int], None],
    ) -> None:
        done = 0
        for start in range(0, len(conversations), self.batch):
            rows = [
                _Row(c, np.random.Generator(np.random.Philox(c.seed)).random(c.context_tokens))
                for c in conversations[start : start + self.batch]
            ]
            report = functools.partial(_report, progress, done, len(conversations))
            model = self.checkpoint.model
            with recording(model) if self.records_experts and routers(model) else nullcontext() as seen:
                self._run(rows, temperature, report, seen)
            done += len(rows)

    def _run(
        self, rows: list[_Row], temperature: float, progress: Callable[[int], None], seen: Recorder | None
    ) -> None:
        model = self.checkpoint.model
        device = next(model.parameters()).device
        never = self.never.to(device)
        cache = DynamicCache(config=model.config)
        cache.layers = [_grow(layer) for layer in cache.layers]
        live, over, position = list(rows), 0, 0
        shared = min(len(row.pending) for row in rows) - 1  # all but the last prompt token, in one pass
        if shared > 0:
            head = torch.tensor([row.pending[:shared] for row in rows], device=device)
            model(input_ids=head, past_key_values=cache, use_cache=True, logits_to_keep=1)
            _note_experts(rows, seen)
            for row in rows:
                del row.pending[:shared]
            position = shared
        tokens = [row.pending.pop(0) for row in live]
        while True:
            inputs = torch.tensor(tokens, device=device)[:, None]
            logits_BV = model(input_ids=inputs, past_key_values=cache, use_cache=True).logits[:, -1]
            _note_experts(live, seen)
            position += 1
            writing = [i for i, row in enumerate(live) if not row.pending and not row.over]
            if writing:
                uniform = torch.tensor([live[i].uniform[position - 1] for i in writing], device=device)
                ids, logprobs = _sample(logits_BV[writing].masked_fill(never, -torch.inf), temperature, uniform)
                for i, token, logprob in zip(writing, ids.tolist(), logprobs.tolist(), strict=True):
                    row, talk = live[i], live[i].conversation
                    row.written.append(token)
                    row.logprobs.append(logprob)
                    ended = token == self.renderer.end_id
                    # One place is kept for the end of turn that the next position would have to hold.
                    if ended or len(row.written) >= talk.turn_tokens or position + 1 >= talk.context_tokens:
                        fed = talk.reply(row.written, row.logprobs, ended)
                        fits = fed is not None and position + 1 + len(fed) + 1 < talk.context_tokens
                        if fed is not None and not fits:
                            talk.reply([], [], False)
                        if not fits:
                            row.ends()
                            over += 1
                            progress(over)
                            continue
                        row.pending = [token, *fed]  # type: ignore[misc]
                        row.written, row.logprobs = [], []
                    else:
                        row.pending = [token]
            if over == len(rows):
                return
            kept = [i for i, row in enumerate(live) if not row.over]
            if len(kept) <= COMPACT_AT * len(live):
                _keep_rows(cache, torch.tensor(kept, device=device))
                live = [live[i] for i in kept]
            tokens = [row.pending.pop(0) if row.pending else 0 for row in live]


def _sample(logits_BV: torch.Tensor, temperature: float, uniform_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse-CDF sampling, one uniform number a row; log-probabilities are those of the sampled distribution (greedy:
    of temperature 1)."""
    logprobs_BV = torch.log_softmax(logits_BV.float() / (temperature or 1.0), dim=-1)
    if temperature == 0:
        ids_B = logprobs_BV.argmax(dim=-1)
    else:
        cdf_BV = logprobs_BV.double().exp().cumsum(dim=-1)
        ids_B = torch.searchsorted(cdf_BV, (uniform_B * cdf_BV[:, -1])[:, None], right=True)[:, 0]
        ids_B = ids_B.clamp(max=cdf_BV.shape[1] - 1)
    return ids_B, logprobs_BV.gather(1, ids_B[:, None])[:, 0]


def _note_experts(live: Sequence[_Row], seen: Recorder | None) -> None:
    """What the pass behind us, of the same number of ids for every row, chose."""
    if seen is not None:
        chosen_NLK = seen.chosen_NLK().numpy()
        for row, chosen in zip(live, chosen_NLK.reshape(len(live), -1, *chosen_NLK.shape[1:]), strict=True):
            if not row.over:
                row.experts.append(chosen)


def _grow(layer: Any) -> Any:
    return GrowingLayer() if type(layer) is DynamicLayer else layer  # type: ignore[no-untyped-call]


def _report(progress: Callable[[int, int], None], before: int, total: int, over: int) -> None:
    progress(before + over, total)


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


def load_policy(path: Path, machine: MachineConfig) -> LocalPolicy:
    """A checkpoint folder as a policy."""
    return LocalPolicy(load_checkpoint(path, machine), machine.rollout_batch)
