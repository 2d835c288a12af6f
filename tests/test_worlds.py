"""What every world of the registry owes its users: the contract of domains/base.py, on a few tasks each. What is
special to one of them is tested in its own file."""

from __future__ import annotations

import functools
import json
import os
import random
from collections.abc import Iterator
from itertools import combinations
from typing import get_args

import jsonschema
import pytest

from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Answer, Call, Domain, Environment, Split, Task, replay, solve

WANTED = (1, 2, 3, 4, 6, 8, 12, 16, 32)
TASKS = 6  # of each split
SHORT = [key for key in DOMAINS if "/" not in key]
FIXED_SPLIT = {"scientific_agent/scienceworld"}  # the package's own train and dev variations, not our hash


def needs(world: str) -> None:
    """Skip where what a world is made of is not installed; in CI that is a failure."""
    try:
        DOMAINS[world].offers(WANTED)
        next(_tasks(DOMAINS[world], "train"))
    except (ValueError, ModuleNotFoundError) as error:
        if "install" not in str(error) or os.environ.get("OPENHORIZON_CI"):
            raise
        pytest.skip(str(error))


def _tasks(domain: Domain, split: Split) -> Iterator[Task]:
    horizons = domain.offers(WANTED)
    assert horizons, f"{domain.world} has none of the horizons {WANTED}"
    for i in range(40):
        horizon = horizons[i % min(len(horizons), 5)]
        task = domain.propose(random.Random(i), split, horizon, 1000 + i)
        if task is not None:
            assert task.horizon == horizon, task.id
            yield task


@functools.cache
def some(world: str, split: Split) -> list[Task]:
    needs(world)
    found = [task for task, _ in zip(_tasks(DOMAINS[world], split), range(TASKS), strict=False)]
    assert len(found) >= min(TASKS, 3), f"{world}: {len(found)} {split} tasks in 40 draws"
    return found


def reference(domain: Domain, task: Task) -> tuple[Environment, Answer | None]:
    given = domain.demonstration(task)
    if given is not None:
        return replay(domain, task, given)
    return solve(domain, task, random.Random(0), 0.0, max(task.horizon, 1) if domain.tools else 0)


@pytest.mark.parametrize("world", DOMAINS)
def test_a_world_stands_under_its_own_name(world: str) -> None:
    domain = DOMAINS[world]
    assert domain.world == world and domain.system
    names = [tool.name for tool in domain.tools]
    assert len(set(names)) == len(names)
    for tool in domain.tools:
        jsonschema.Draft202012Validator.check_schema(dict(tool.parameters))
        assert tool.description and tool.parameters.get("type") == "object"


@pytest.mark.parametrize("world", DOMAINS)
def test_references_take_their_horizon_and_consult_their_evidence(world: str) -> None:
    domain = DOMAINS[world]
    for task in some(world, "train"):
        assert (task.world, task.domain, task.split) == (world, domain.name, "train")
        assert json.loads(json.dumps(task.state)) == task.state, task.id
        assert task.verifiers and task.entity_pairs and (task.evidence or not domain.scripted or task.horizon == 1)
        offered = {tool.name for tool in domain.tools_for(task)}
        environment, answer = reference(domain, task)
        verdict = domain.verify(task, environment, answer)
        assert verdict.passed and verdict.score == pytest.approx(1.0), (task.id, verdict)
        if domain.tools:
            assert len(environment.steps) == task.horizon, task.id
            assert not set(task.evidence) - environment.consulted(), task.id
            assert {step.call.name for step in environment.steps} <= offered, task.id
        environment.close()
        environment.close()


@pytest.mark.parametrize("world", DOMAINS)
def test_no_work_no_pass(world: str) -> None:
    """Silence, an empty answer, the prompt given back and the world's own guesses, without a single call."""
    domain = DOMAINS[world]
    for task in some(world, "train"):
        if task.horizon < 2:
            continue
        environment = domain.start(task)
        assert not domain.verify(task, environment, None).passed
        for text in ("", task.prompt, "Answer: yes", *domain.guesses(task)):
            assert not domain.verify(task, environment, Answer(text)).passed, (task.id, text)
        environment.close()


@pytest.mark.parametrize("world", DOMAINS)
def test_what_a_policy_may_write_is_an_observation_never_a_crash(world: str) -> None:
    domain = DOMAINS[world]
    task = some(world, "train")[0]
    environment = domain.start(task)
    wrong = [Call("", {}), Call("no_such_tool", {"a": 1})]
    wrong += [Call(tool.name, {"": [None, {}], "x" * 999: "\u0000"}) for tool in domain.tools]
    for call in wrong:
        assert environment.call(call).error, call
    environment.close()


@pytest.mark.parametrize("world", DOMAINS)
def test_splits_share_no_pair_no_prompt_and_no_seed(world: str) -> None:
    train, heldout = some(world, "train"), some(world, "heldout")
    assert {p for t in train for p in t.entity_pairs}.isdisjoint(p for t in heldout for p in t.entity_pairs)
    assert {t.prompt for t in train}.isdisjoint(t.prompt for t in heldout)


@pytest.mark.parametrize("world", [key for key in DOMAINS if DOMAINS[key].apart])
def test_what_is_set_apart_for_validation_is_in_no_other_split(world: str) -> None:
    pairs = {split: {p for t in some(world, split) for p in t.entity_pairs} for split in get_args(Split)}
    assert len(pairs) == 3
    for one, other in combinations(pairs.values(), 2):
        assert one and one.isdisjoint(other)
    assert {task.split for task in some(world, "validation")} == {"validation"}


@pytest.mark.parametrize("world", SHORT)
def test_short_text_worlds_are_short(world: str) -> None:
    """What a model of half a million parameters can hold: docs/results/README.md says why."""
    domain = DOMAINS[world]
    assert len(domain.system.split()) <= 40
    for task in some(world, "train"):
        environment, answer = reference(domain, task)
        assert answer is not None
        if domain.tools:
            assert len(task.prompt.split()) <= 60, task.prompt
            for step in environment.steps:
                assert len(step.observation.text.split()) <= 150, step.observation.text
                assert len(f"{step.call.thought} {json.dumps(dict(step.call.arguments))}".split()) <= 60, step.call
        environment.close()
