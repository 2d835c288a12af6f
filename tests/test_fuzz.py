"""Arbitrary input: refused in words, or taken as data; never a traceback, never accepted for what it is not.

A hundred cases of each here, thousands with `make test-long`. Cases are derived from the test, so that a run repeats.
"""

from __future__ import annotations

import functools
import json
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as cases
from hypothesis import strategies as st
from settings import laptop_text

from openhorizon import config, play, profiles
from openhorizon.agent.render import read_action, write_action
from openhorizon.agent.reply import Nonsense, read_reply
from openhorizon.agent.trajectory import read_trajectories
from openhorizon.bench.public.files import read_lines
from openhorizon.bench.public.folder import read_settings
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Answer, Call, Observation, Task, Verdict, open_environment

ROOT = Path(__file__).parents[1]
SHORT_WORLDS = ("search", "science", "instruction", "tool_calling", "scientific_agent")  # none needs a sandbox
LONG = 1500  # cases of each; there are eight properties, five of which are of several worlds or kinds of file
HOW_MANY = [pytest.param(100, id="some"), pytest.param(LONG, id="many", marks=pytest.mark.long)]

DEEP = "deeper than a parser goes"
TEXT = st.text(max_size=40)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
PIECES = st.sampled_from(
    ["<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "read_page", "arguments": {', "}}", '"', "[" * 50]
)
MODEL_TEXT = st.lists(PIECES | TEXT, max_size=8).map("".join)


def refused(act: Callable[[], Any], words: str) -> bool:
    """Whether ``act`` refused in words that name what they are about; anything but a refusal goes through."""
    try:
        act()
    except ValueError as error:
        said = str(error)
    else:
        return False
    assert words in said, said
    return True


def tried(count: int, prove: Callable[..., None], **given_: Any) -> None:
    """Run a property on so many cases."""
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    cases(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=quiet)(
        given(**given_)(prove)
    )()


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


@functools.cache
def a_task(world: str) -> Task:
    rng = random.Random(5)
    found = (DOMAINS[world].propose(rng, "heldout", 2, seed) for seed in range(200))
    return next(task for task in found if task)


@functools.cache
def paths(text: str) -> tuple[tuple[str | int, ...], ...]:
    """Every place in a YAML file."""

    def below(value: Any, at: tuple[str | int, ...]) -> list[tuple[str | int, ...]]:
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        return [at, *(path for key, item in inner for path in below(item, (*at, key)))]

    return tuple(below(yaml.safe_load(text), ())[1:])


def changed(text: str, path: tuple[str | int, ...], how: str, value: Any, name: str) -> str:
    """The YAML with one place replaced, deleted, or given a neighbour."""
    whole = yaml.safe_load(text)
    at = whole
    for key in path[:-1]:
        at = at[key]
    if how == "delete":
        del at[path[-1]]
    elif how == "add" and isinstance(at, dict):
        at[name] = value
    else:
        at[path[-1]] = value
    return yaml.safe_dump(whole)


@pytest.mark.parametrize("count", HOW_MANY)
def test_params_are_read_or_refused_with_the_files_name(count: int, tmp_path: Path) -> None:
    text, file = laptop_text(), tmp_path / "params.yaml"

    def prove(path: tuple[str | int, ...], how: str, value: Any, name: str) -> None:
        file.write_text(changed(text, path, how, value, name))
        refused(lambda: config.load(file), "params.yaml")

    hows = st.sampled_from(["replace", "delete", "add"])
    tried(count, prove, path=st.sampled_from(paths(text)), how=hows, value=JSON, name=TEXT)


@pytest.mark.parametrize("count", HOW_MANY)
def test_a_params_file_of_anything_is_refused(count: int, tmp_path: Path) -> None:
    file = tmp_path / "params.yaml"

    def prove(body: bytes) -> None:
        file.write_bytes(body)
        with pytest.raises(ValueError, match=r"params\.yaml"):
            config.load(file)

    tried(
        count, prove, body=st.binary(max_size=200) | TEXT.map(str.encode) | JSON.map(lambda it: json.dumps(it).encode())
    )


@pytest.mark.parametrize("count", HOW_MANY)
def test_a_profile_is_merged_or_refused(count: int, tmp_path: Path) -> None:
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "base.yaml").write_text((ROOT / "profiles/base.yaml").read_text())
    smoke = (ROOT / "profiles/smoke.yaml").read_text()

    def prove(path: tuple[str | int, ...], how: str, value: Any, name: str) -> None:
        (folder / "odd.yaml").write_text(changed(smoke, path, how, value, name))
        refused(lambda: profiles.compose("odd", tmp_path, []), "profiles/odd.yaml")

    hows = st.sampled_from(["replace", "delete", "add"])
    tried(count // 10, prove, path=st.sampled_from(paths(smoke)), how=hows, value=JSON, name=TEXT)


@pytest.mark.parametrize("count", HOW_MANY)
def test_what_a_model_writes_is_an_action(count: int) -> None:
    def prove(text: str) -> None:
        action = read_action(text)
        if isinstance(action, Call):
            assert isinstance(action.name, str) and isinstance(action.arguments, dict)
        else:
            assert "<tool_call>" not in action.text

    tried(count, prove, text=MODEL_TEXT)


@pytest.mark.parametrize("count", HOW_MANY)
def test_an_action_is_read_as_it_was_written(count: int) -> None:
    plain = TEXT.filter(lambda text: "<" not in text).map(str.strip)
    finite = st.recursive(
        st.none() | st.booleans() | st.integers(-(10**9), 10**9) | plain,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3),
        max_leaves=6,
    )

    def prove(name: str, arguments: dict[str, Any], thought: str, answer: str) -> None:
        for action in (Call(name, arguments, thought), Answer(answer, thought)):
            assert read_action(write_action(action)) == action

    tried(count, prove, name=plain, arguments=st.dictionaries(plain, finite, max_size=3), thought=plain, answer=plain)


@pytest.mark.parametrize("count", HOW_MANY)
def test_a_servers_reply_is_read_or_nonsense(count: int) -> None:
    message = st.fixed_dictionaries({}, optional={"content": JSON, "tool_calls": JSON, "reasoning_content": JSON})
    choice = st.fixed_dictionaries({}, optional={"message": message | JSON, "finish_reason": JSON, "logprobs": JSON})
    body = st.fixed_dictionaries({}, optional={"choices": st.lists(choice, max_size=2) | JSON, "usage": JSON})

    def prove(value: Any) -> None:
        try:
            reply = read_reply(value if isinstance(value, str) else json.dumps(value))
        except Nonsense:
            return
        assert isinstance(reply.action, Answer | Call) and len(reply.logprobs) in (0, len(reply.ids))

    tried(count, prove, value=body | JSON | TEXT)


@pytest.mark.parametrize("count", HOW_MANY)
@pytest.mark.parametrize("world", SHORT_WORLDS)
def test_any_call_is_answered_and_no_answer_but_the_right_one_is_accepted(world: str, count: int) -> None:
    """Names, argument names and values of every kind, in any order, then any answer."""
    domain, task = DOMAINS[world], a_task(world)
    names = st.sampled_from([tool.name for tool in domain.tools] or ["none"]) | TEXT
    known = sorted({key for tool in domain.tools for key in tool.parameters.get("properties", {})}) or ["none"]
    arguments = st.dictionaries(st.sampled_from(known) | TEXT, JSON, max_size=3)

    def prove(calls: list[tuple[str, dict[str, Any]]], said: str) -> None:
        environment = open_environment(domain, task)
        try:
            for name, given_ in calls:
                assert isinstance(environment.call(Call(name, given_)), Observation)
            verdict = domain.verify(task, environment, Answer(said))
        finally:
            environment.close()
        assert isinstance(verdict, Verdict) and 0 <= verdict.score <= 1
        assert not verdict.passed or task.reference in said

    tried(max(count // 5, 20), prove, calls=st.lists(st.tuples(names, arguments), max_size=4), said=TEXT)


@pytest.mark.parametrize("count", HOW_MANY)
def test_files_of_lines_are_read_or_refused_with_the_line(count: int, tmp_path: Path) -> None:
    file = tmp_path / "questions.jsonl"

    def prove(lines: list[Any]) -> None:
        text = "\n".join(it if isinstance(it, str) else json.dumps(it) for it in lines)
        file.write_text(text.replace(DEEP, "[" * 100_000), encoding="utf-8")
        wanted = {"question": str, "answer": str}
        if not refused(lambda: read_lines(file, wanted), str(file)):
            assert all(isinstance(row[key], str) for row in read_lines(file, wanted) for key in wanted)

    row = st.fixed_dictionaries({"question": JSON, "answer": JSON}, optional={"more": JSON})
    tried(count, prove, lines=st.lists(row | JSON | TEXT | st.just(DEEP), max_size=3))


@pytest.mark.parametrize("count", HOW_MANY)
def test_a_folders_settings_are_read_or_refused(count: int, tmp_path: Path) -> None:
    file = tmp_path / "benchmark.yaml"

    def prove(value: Any) -> None:
        file.write_text(yaml.safe_dump(value), encoding="utf-8")
        refused(lambda: read_settings(file), "benchmark.yaml")

    keys = st.sampled_from(["name", "licence", "turns", "time_s", "judge", "discard"]) | TEXT
    tried(count, prove, value=st.dictionaries(keys, JSON, max_size=5) | JSON)


@pytest.mark.parametrize("count", HOW_MANY)
def test_a_file_that_is_no_table_of_trajectories_is_refused(count: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "some.parquet"
        pq.write_table(pa.table({"turns": ["x"]}), file)
        whole = file.read_bytes()

        def prove(body: bytes, cut: int) -> None:
            file.write_bytes(body or whole[:cut])
            with pytest.raises(ValueError, match=r"some\.parquet"):
                read_trajectories(file)

        tried(count, prove, body=st.binary(max_size=100), cut=st.integers(0, len(whole)))


@pytest.mark.parametrize("count", HOW_MANY)
def test_what_a_person_types_is_an_action_or_refused(count: int) -> None:
    def prove(line: str) -> None:
        if not refused(lambda: play.typed(line), ""):
            assert isinstance(play.typed(line), Call | Answer)

    tried(count, prove, line=TEXT | st.tuples(TEXT, JSON).map(lambda it: f"tool {it[0]}={json.dumps(it[1])}"))
