"""Both ways of decoding against one conversation at a time, read whole, by the plain forward pass, and each other."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import HYBRID
from transformers import AutoConfig, AutoModelForCausalLM

from openhorizon.model import ragged, slots
from openhorizon.model.attention import SEGMENTS
from openhorizon.model.load import Checkpoint
from openhorizon.model.rows import DRAWN_AT_ONCE, Row
from openhorizon.model.sampler import LocalPolicy, cache_token_bytes


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


@pytest.mark.parametrize("family", ["lfm2_moe", "qwen3_moe", HYBRID])
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


def long_conversations(context_tokens: int = 500) -> list[Scripted]:
    """Observations of 1 to 160 tokens, so that some are read in one pass and others in several, past what is written
    between them."""
    made = []
    for n in range(9):
        prompt = [20 + (11 * n + i) % 200 for i in range(2 + 31 * n)]
        observations = [[30 + (n + 3 * i + t) % 180 for i in range(1 + 53 * ((n + t) % 4))] for t in range(n % 5)]
        made.append(Scripted(500 + n, prompt, observations, 7, context_tokens))
    return made


def talked(policy: LocalPolicy, temperature: float, in_chunks: bool) -> list[Scripted]:
    policy.ragged = in_chunks
    talks = long_conversations()
    policy.converse(talks, temperature, lambda done, total: None)
    return talks


def test_the_cache_layers_choose_the_way(tiny: Callable[..., Checkpoint]) -> None:
    assert LocalPolicy(tiny("qwen3_moe"), 4).ragged
    assert LocalPolicy(tiny("lfm2_moe"), 4).ragged
    assert not LocalPolicy(tiny(HYBRID), 4).ragged
    linear = AutoConfig.for_model("qwen3_next", num_hidden_layers=4)
    sliding = AutoConfig.for_model("mistral", num_hidden_layers=2, sliding_window=64)
    assert not slots.fits(linear) and not slots.fits(sliding)


def stock(checkpoint: Checkpoint, family: str) -> Checkpoint:
    """A random model of a family that the stages load and do not build."""
    config = AutoConfig.for_model(
        family, vocab_size=checkpoint.model.config.vocab_size, hidden_size=32, intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    return replace(checkpoint, model=AutoModelForCausalLM.from_config(config, attn_implementation=SEGMENTS).eval())


@pytest.mark.parametrize("family", ["lfm2_moe", "qwen3_moe", "mixtral", "llama"])
@pytest.mark.parametrize(("temperature", "read_tokens"), [(0.0, 4096), (0.8, 24)])
def test_reading_in_chunks_equals_lock_step_and_the_plain_forward(
    tiny: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch, temperature: float, read_tokens: int, family: str
) -> None:
    monkeypatch.setattr(ragged, "READ_TOKENS", read_tokens)
    checkpoint = stock(tiny(), family) if family in ("mixtral", "llama") else tiny(family)
    chunks = talked(LocalPolicy(checkpoint, 4), temperature, True)
    steps = talked(LocalPolicy(checkpoint, 4), temperature, False)
    never = LocalPolicy(checkpoint, 4).never
    for one, other in zip(chunks, steps, strict=True):
        assert one.ids == other.ids and one.complete == other.complete
        with torch.no_grad():
            logits = checkpoint.model(input_ids=torch.tensor([one.ids]), use_cache=False).logits[0]
        logprobs = torch.log_softmax(logits.masked_fill(never, -torch.inf) / (temperature or 1.0), dim=-1)
        assert one.sampled
        for (index, mine), (same, theirs) in zip(one.sampled, other.sampled, strict=True):
            assert index == same
            assert mine == pytest.approx(theirs, abs=1e-5)
            assert mine == pytest.approx(logprobs[index - 1, one.ids[index]].item(), abs=1e-5)


@pytest.mark.parametrize("family", ["lfm2_moe", "qwen3_moe"])
def test_little_memory_changes_nothing_but_speed(tiny: Callable[..., Checkpoint], family: str) -> None:
    """Room for two rows of a whole context: rows leave when the longest need their place, and read again."""
    checkpoint = tiny(family)
    room = 2 * 512 * cache_token_bytes(checkpoint.model.config, 4)
    plenty, little = long_conversations(), long_conversations()
    LocalPolicy(checkpoint, 9).converse(plenty, 0.8, lambda done, total: None)
    left, largest = [], []
    policy = LocalPolicy(checkpoint, 9, room)
    leave, resize = ragged.RaggedBatch._leave, slots.SlotCache.resize

    def noted(batch: ragged.RaggedBatch, slot: int) -> Row:
        left.append(batch.live[slot].over)
        return leave(batch, slot)

    def measured(cache: slots.SlotCache, rows: int, capacity: int, live: int) -> None:
        largest.append(rows * capacity)
        resize(cache, rows, capacity, live)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged.RaggedBatch, "_leave", noted)
        patch.setattr(slots.SlotCache, "resize", measured)
        policy.converse(little, 0.8, lambda done, total: None)
    assert [talk.ids for talk in plenty] == [talk.ids for talk in little]
    assert left.count(False) > 0, "no row had to leave: the test tests nothing"
    assert max(largest) <= 2 * 512


@pytest.mark.parametrize("family", ["lfm2_moe", "qwen3_moe"])
def test_memory_without_room_for_one_conversation_is_refused(tiny: Callable[..., Checkpoint], family: str) -> None:
    policy = LocalPolicy(tiny(family), 4, cache_bytes=1000)
    with pytest.raises(ValueError, match=r"500 tokens needs .* GiB of keys and values"):
        policy.converse(long_conversations(), 1.0, lambda done, total: None)


def test_progress_counts_every_conversation(tiny: Callable[..., Checkpoint]) -> None:
    for family in ("lfm2_moe", "qwen3_moe"):
        told: list[tuple[int, int]] = []
        LocalPolicy(tiny(family), 4).converse(conversations(), 1.0, lambda done, total: told.append((done, total)))  # noqa: B023
        assert told == [(n, 7) for n in range(1, 8)]


def test_bf16_stays_close_to_fp32(tiny: Callable[..., Checkpoint]) -> None:
    """Same tokens are not to be had from half the digits: the log-probabilities of what was written are compared with
    the plain forward pass under the same autocast."""
    checkpoint = tiny("qwen3_moe")
    policy = LocalPolicy(checkpoint, 4, precision="bf16")
    talks = long_conversations()
    policy.converse(talks, 1.0, lambda done, total: None)
    errors = []
    for talk in talks:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            logits = checkpoint.model(input_ids=torch.tensor([talk.ids]), use_cache=False).logits[0].float()
        logprobs = torch.log_softmax(logits.masked_fill(policy.never, -torch.inf), dim=-1)
        errors += [abs(logprobs[index - 1, talk.ids[index]].item() - logprob) for index, logprob in talk.sampled]
    assert np.median(errors) < 0.05


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_reading_in_chunks_on_a_gpu(tiny: Callable[..., Checkpoint]) -> None:
    checkpoint = tiny("qwen3_moe", 3)
    here = talked(LocalPolicy(checkpoint, 4), 0.0, True)
    checkpoint.model.cuda()
    try:
        there = talked(LocalPolicy(checkpoint, 4), 0.0, True)
        low = LocalPolicy(checkpoint, 4, precision="bf16")
        low.converse(long_conversations(), 0.8, lambda done, total: None)
    finally:
        checkpoint.model.cpu()
    same = sum(one.ids == other.ids for one, other in zip(here, there, strict=True))
    assert same >= len(here) - 1, "more than a tie apart"


def test_the_stream_of_numbers_does_not_depend_on_how_it_is_drawn() -> None:
    row = Row(Scripted(42, [1], [], 1, 10_000))
    whole = np.random.Generator(np.random.Philox(42)).random(3 * DRAWN_AT_ONCE)
    for position in (0, 5, DRAWN_AT_ONCE, 2 * DRAWN_AT_ONCE + 7, 3):
        assert row.uniform(position) == whole[position]


def test_groups_of_rows_read_no_more_keys_than_they_need() -> None:
    lengths = [900] * 16 + [100] * 48
    groups = ragged.attention_groups(lengths, 1024, 0)
    assert groups[0][0] == 0 and groups[-1][1] == 64
    assert all(end == start for (_, end, _), (start, _, _) in itertools.pairwise(groups))
    assert all(keys >= max(lengths[start:end]) for start, end, keys in groups)
    assert sum((end - start) * keys for start, end, keys in groups) < 0.5 * 64 * 960
    assert ragged.attention_groups([100] * 64, 128, 0) == [(0, 64, 128)]
    assert ragged.attention_groups(lengths, 1024, 10**6) == [(0, 64, 960)]


def test_many_rows_of_unlike_lengths_are_put_in_order(tiny: Callable[..., Checkpoint]) -> None:
    """Enough rows for several groups, sorted on the way: nothing changes."""
    checkpoint = tiny("lfm2_moe")
    many = [talk for _ in range(6) for talk in long_conversations()]
    alone = long_conversations()
    with pytest.MonkeyPatch.context() as patch:
        moves: list[int] = []
        reorder = slots.SlotCache.reorder
        patch.setattr(ragged, "SORT_EVERY", 2)
        patch.setattr(ragged, "GROUP_ROWS", 4)
        patch.setattr(ragged, "LEAST", {"cpu": 0})
        patch.setattr(
            slots.SlotCache, "reorder", lambda cache, order: (moves.append(len(order)), reorder(cache, order))[1]
        )
        LocalPolicy(checkpoint, 54).converse(many, 0.8, lambda done, total: None)
    LocalPolicy(checkpoint, 1).converse(alone, 0.8, lambda done, total: None)
    assert moves, "no row changed its place: the test tests nothing"
    assert [talk.ids for talk in many] == [talk.ids for talk in alone] * 6
