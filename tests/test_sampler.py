"""Lock-step decoding against one conversation at a time, read whole, by the plain forward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from openhorizon.model.load import Checkpoint
from openhorizon.model.sampler import LocalPolicy


class Scripted:
    """A conversation that answers turn n with the n-th observation and ends behind the last."""

    def __init__(
        self, seed: int, prompt: list[int], observations: list[list[int]], turn_tokens: int, context_tokens: int
    ) -> None:
        self.seed, self.prompt_ids, self.observations = seed, prompt, list(observations)
        self.turn_tokens, self.context_tokens = turn_tokens, context_tokens
        self.ids = list(prompt)
        self.sampled: list[tuple[int, float]] = []  # (index in ids, logprob)
        self.complete: list[bool] = []

    def reply(self, ids: Sequence[int], logprobs: Sequence[float], complete: bool) -> list[int] | None:
        self.sampled += [(len(self.ids) + i, logprob) for i, logprob in enumerate(logprobs)]
        self.ids += ids
        self.complete.append(complete)
        if not self.observations:
            return None
        fed = self.observations.pop(0)
        self.ids += fed
        return fed


def conversations(turn_tokens: int = 9, context_tokens: int = 200) -> list[Scripted]:
    made = []
    for n in range(7):
        prompt = [20 + (7 * n + i) % 200 for i in range(3 + 2 * n)]
        observations = [[30 + n + i for i in range(2 + (n + t) % 5)] for t in range(n % 4)]
        made.append(Scripted(1000 + n, prompt, observations, turn_tokens, context_tokens))
    return made


@pytest.mark.parametrize("family", ["lfm2_moe", "qwen3_moe"])
def test_logprobs_equal_those_of_the_whole_sequence(tiny: Callable[..., Checkpoint], family: str) -> None:
    checkpoint = tiny(family)
    policy = LocalPolicy(checkpoint, batch=4)
    talks = conversations()
    policy.converse(talks, 1.0, lambda done, total: None)
    for talk in talks:
        with torch.no_grad():
            logits = checkpoint.model(input_ids=torch.tensor([talk.ids]), use_cache=False).logits[0]
        logprobs = torch.log_softmax(logits.masked_fill(policy.never, -torch.inf), dim=-1)
        assert talk.sampled
        for index, logprob in talk.sampled:
            assert logprobs[index - 1, talk.ids[index]].item() == pytest.approx(logprob, abs=1e-4)


def test_a_conversation_does_not_depend_on_its_batch(tiny: Callable[..., Checkpoint]) -> None:
    together, alone = conversations(), conversations()
    LocalPolicy(tiny(), batch=7).converse(together, 0.8, lambda done, total: None)
    LocalPolicy(tiny(), batch=1).converse(alone, 0.8, lambda done, total: None)
    assert [talk.ids for talk in together] == [talk.ids for talk in alone]


def test_greedy_equals_argmax_of_the_plain_forward(tiny: Callable[..., Checkpoint]) -> None:
    checkpoint = tiny()
    policy = LocalPolicy(checkpoint, batch=3)
    talk = Scripted(1, [20, 21, 22], [], 12, 100)
    policy.converse([talk], 0.0, lambda done, total: None)
    ids = [20, 21, 22]
    while len(ids) < len(talk.ids):
        with torch.no_grad():
            logits = checkpoint.model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        ids.append(int(logits.masked_fill(policy.never, -torch.inf).argmax()))
    assert talk.ids == ids


def test_budgets_end_turns_and_contexts(tiny: Callable[..., Checkpoint]) -> None:
    policy = LocalPolicy(tiny(), batch=8)
    talks = conversations(5, 24)
    policy.converse(talks, 1.0, lambda done, total: None)
    for talk in talks:
        fitting = sum(1 for index, _ in talk.sampled if index >= 24)
        assert fitting == 0, "generated past the context budget"
        assert not (policy.never[[talk.ids[index] for index, _ in talk.sampled]]).any()


def test_sampling_follows_the_distribution(tiny: Callable[..., Checkpoint]) -> None:
    checkpoint = tiny()
    policy = LocalPolicy(checkpoint, batch=500)
    talks = [Scripted(n, [25, 26], [], 1, 50) for n in range(2000)]
    policy.converse(talks, 1.0, lambda done, total: None)
    with torch.no_grad():
        logits = checkpoint.model(input_ids=torch.tensor([[25, 26]]), use_cache=False).logits[0, -1]
    probabilities = torch.softmax(logits.masked_fill(policy.never, -torch.inf), dim=-1)
    top = int(probabilities.argmax())
    expected = probabilities[top].item()
    seen = sum(talk.ids[2] == top for talk in talks) / 2000
    assert abs(seen - expected) < 4 * (expected * (1 - expected) / 2000) ** 0.5
