"""One conversation in a batch, and how its next token is drawn: what both ways of decoding share."""

from __future__ import annotations

import numpy as np
import torch

from openhorizon.agent.rollout import Conversation

DRAWN_AT_ONCE = 1024


class Row:
    """What a conversation has read (what its cache holds), has still to read, and has written of its turn."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.read: list[int] = []
        self.pending = list(conversation.prompt_ids)
        self.written: list[int] = []
        self.logprobs: list[float] = []
        self.experts = list[np.ndarray]()  # (tokens, L, K) of what was read, where they are recorded
        self.over = False
        self._stream = np.random.Generator(np.random.Philox(conversation.seed))
        self._uniform = np.empty(0)

    def uniform(self, position: int) -> float:
        """The number in [0, 1) that decides what is written behind ``position``."""
        while position >= len(self._uniform):
            self._uniform = np.concatenate([self._uniform, self._stream.random(DRAWN_AT_ONCE)])
        return float(self._uniform[position])

    def take(self, token: int, logprob: float, position: int, end_id: int) -> None:
        """The token drawn behind ``position`` read ones: to be read next, with what the turn is answered by where it
        ends the turn. ``over`` afterwards says that the conversation is."""
        talk = self.conversation
        self.written.append(token)
        self.logprobs.append(logprob)
        ended = token == end_id
        # One place is kept for the end of turn that the next position would have to hold.
        if not ended and len(self.written) < talk.turn_tokens and position + 1 < talk.context_tokens:
            self.pending = [token]
            return
        fed = talk.reply(self.written, self.logprobs, ended)
        if fed is not None and position + 1 + len(fed) + 1 < talk.context_tokens:
            self.pending = [token, *fed]
            self.written, self.logprobs = [], []
            return
        if fed is not None:
            talk.reply([], [], False)
        self.over, self.pending = True, []
        if self.experts:
            talk.routed(np.concatenate(self.experts))

    def forget(self) -> None:
        """Everything is to be read again: the cache no longer holds it."""
        self.read, self.pending, self.experts = [], self.read + self.pending, []


def draw(logits_BV: torch.Tensor, temperature: float, uniform_B: torch.Tensor) -> tuple[list[int], list[float]]:
    """``sample``, brought from the device in one transfer."""
    ids_B, logprobs_B = sample(logits_BV, temperature, uniform_B)
    ids, logprobs = torch.stack([ids_B.double(), logprobs_B.double()]).tolist()
    return [int(token) for token in ids], logprobs


def sample(logits_BV: torch.Tensor, temperature: float, uniform_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse-CDF sampling, one uniform number a row; log-probabilities are those of the sampled distribution (greedy:
    of temperature 1)."""
    if temperature == 0:
        best_B, ids_B = logits_BV.float().max(dim=-1)  # faster than argmax on a CPU
        return ids_B, best_B - logits_BV.float().logsumexp(dim=-1)
    logprobs_BV = torch.log_softmax(logits_BV.float() / temperature, dim=-1)
    cdf_BV = logprobs_BV.exp().cumsum(dim=-1, dtype=torch.double)
    ids_B = torch.searchsorted(cdf_BV, (uniform_B * cdf_BV[:, -1])[:, None], right=True)[:, 0]
    ids_B = ids_B.clamp(max=cdf_BV.shape[1] - 1)
    return ids_B, logprobs_BV.gather(1, ids_B[:, None])[:, 0]
