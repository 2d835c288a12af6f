"""Runs longer than a context: demonstrations cut into contexts, episodes that go on in a new one."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import BUDGET, CountDomain, RememberingDomain
from test_rollout import ScriptedPolicy
from transformers import PreTrainedTokenizerFast

from openhorizon.agent.compaction import MEMORY, render_contexts
from openhorizon.agent.render import Renderer, render_trajectory, write_action
from openhorizon.agent.rollout import rollout
from openhorizon.agent.trajectory import Status, Trajectory, Turn, read_trajectories, write_trajectories
from openhorizon.domains.base import Call, Domain, Task, Verdict
from openhorizon.kag.solve import from_trajectory, turns_of

LIMIT = 256


def task(horizon: int) -> Task:
    made = RememberingDomain().propose(random.Random(1), "train", horizon, 1)
    assert made is not None
    return made


def decide(prompt: str, seen: list[str]) -> str:
    """Knows what stands in its context, no more."""
    last = seen[-1] if seen else prompt
    at = re.findall(r"\d+", last)[-1]
    return f"Answer: {at}" if "done" in last else write_action(Call("step", {"from": int(at)}))


def run(tokenizer: PreTrainedTokenizerFast, domain: Domain, horizon: int) -> Trajectory:
    budget = replace(BUDGET, context_tokens=LIMIT)
    (found,) = rollout({"count": domain}, [task(horizon)], ScriptedPolicy(tokenizer, decide), {"count": budget}, 1.0, 0)
    return found


def demonstration(tokenizer: PreTrainedTokenizerFast, horizon: int) -> Trajectory:
    policy, budget = ScriptedPolicy(tokenizer, decide), replace(BUDGET, context_tokens=10**6)
    (found,) = rollout({"count": CountDomain()}, [task(horizon)], policy, {"count": budget}, 1.0, 0)
    turns = tuple(Turn(turn.role, turn.text, evidence=turn.evidence) for turn in found.turns)
    return Trajectory(found.task, turns, found.answer, found.status, Verdict(True, 1.0, ""), "expert", 0)


def test_an_episode_goes_on_in_a_new_context(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    found = run(tokenizer, RememberingDomain(), 24)
    assert found.status is Status.SOLVED and found.tool_calls == 24
    contexts = found.contexts
    assert len(contexts) > 2 and all(len(context.ids) <= LIMIT for context in contexts)
    assert [turn for context in contexts for turn in context.turns] == list(found.turns)
    for before, after in pairwise(contexts):
        assert after.turns[0].text == f"{found.task.prompt}\n\n{MEMORY}\n{before.turns[-1].text}"
        assert len(before.ids) + BUDGET.turn_tokens >= LIMIT, "the context was given up too early"
    assert sum(sum(context.loss_mask) for context in contexts) == sum(found.loss_mask)
    write_trajectories(tmp_path / "t.parquet", [found])
    assert read_trajectories(tmp_path / "t.parquet") == [found]
    episode = from_trajectory(found)
    assert len(episode.steps) == 24 and [t.text for t in turns_of(episode)] == [t.text for t in found.turns]


def test_contexts_of_one_episode_draw_different_numbers(tokenizer: PreTrainedTokenizerFast) -> None:
    seeds: list[int] = []

    class Watching(ScriptedPolicy):
        def converse(self, conversations, temperature, progress):  # type: ignore[no-untyped-def]
            seeds.extend(talk.seed for talk in conversations)
            super().converse(conversations, temperature, progress)

    budget = replace(BUDGET, context_tokens=LIMIT)
    policy = Watching(tokenizer, decide)
    (found,) = rollout({"count": RememberingDomain()}, [task(24)], policy, {"count": budget}, 1.0, 0)
    assert len(set(seeds)) == len(seeds) == len(found.contexts) and found.seed == seeds[0]


@pytest.mark.parametrize("memory", [None, "x " * LIMIT])
def test_a_world_without_a_memory_that_fits_has_one_context(
    tokenizer: PreTrainedTokenizerFast, memory: str | None
) -> None:
    class Other(CountDomain):
        def recall(self, steps: object) -> str | None:
            return memory

    assert len(run(tokenizer, Other(), 24).contexts) == 1


def test_a_demonstration_is_rendered_as_an_episode_would_have_lived_it(tokenizer: PreTrainedTokenizerFast) -> None:
    renderer, domains = Renderer(tokenizer), {"count": RememberingDomain()}
    whole = demonstration(tokenizer, 24)
    samples = render_contexts(renderer, domains, whole, LIMIT)
    assert len(samples) > 2 and all(len(sample.ids) <= LIMIT for sample in samples)
    rendered = render_trajectory(renderer, domains, whole)
    trained = [turn.ids for sample in samples for turn in sample.turns if turn.role == "assistant"]
    assert trained == [turn.ids for turn in rendered.turns if turn.role == "assistant"]
    for sample in samples:  # what is trained on in it can be known in it
        text = [turn.text for turn in sample.turns]
        assert text[1] == decide(text[0], [])
    assert render_contexts(renderer, domains, whole, len(rendered.ids)) == [rendered]


def test_a_lived_episode_keeps_its_contexts_as_a_demonstration(tokenizer: PreTrainedTokenizerFast) -> None:
    renderer, domains = Renderer(tokenizer), {"count": RememberingDomain()}
    lived = run(tokenizer, RememberingDomain(), 24)
    bare = replace(lived, turns=tuple(replace(turn, ids=(), logprobs=()) for turn in lived.turns))
    samples = render_contexts(renderer, domains, bare, LIMIT)
    assert [sample.ids for sample in samples] == [context.ids for context in lived.contexts]


def test_without_a_memory_the_end_is_cut_behind_a_whole_turn(tokenizer: PreTrainedTokenizerFast) -> None:
    renderer, domains = Renderer(tokenizer), {"count": CountDomain()}
    whole = demonstration(tokenizer, 24)
    (sample,) = render_contexts(renderer, domains, whole, LIMIT)
    assert sample.status is Status.TRUNCATED and sample.answer is None and sample.turns[-1].role == "assistant"
    rendered = render_trajectory(renderer, domains, whole)
    assert sample.turns == rendered.turns[: len(sample.turns)]
    following = rendered.turns[len(sample.turns) :][:2]
    assert len(sample.ids) <= LIMIT < len(sample.ids) + sum(len(turn.ids) for turn in following)
    with pytest.raises(ValueError, match=r"model\.max_tokens=\d+: not even the first turn of count-1 fits"):
        render_contexts(renderer, domains, whole, len(rendered.turns[0].ids) + 3)
