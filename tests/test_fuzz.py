"""Arbitrary input: refused in words, or taken as data; never a traceback, never accepted for what it is not.

A hundred cases of each here, 20,000 in all with `make test-long`. Cases are derived from the test, so a run repeats.
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import math
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
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
from openhorizon.agent.trajectory import (
    Status,
    Trajectory,
    Turn,
    iter_tasks,
    read_trajectories,
    trajectory_of,
    trajectory_row,
    write_trajectories,
)
from openhorizon.bench.public import ifeval
from openhorizon.bench.public.files import read_lines
from openhorizon.bench.public.folder import open_folder, read_settings
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Answer, Call, Observation, Task, Verdict, open_environment

ROOT = Path(__file__).parents[1]
SHORT_WORLDS = ("search", "science", "instruction", "tool_calling", "scientific_agent")  # none needs a sandbox
LONG = 1500  # cases of each property; a fifth as many of each world and of what takes long
HOW_MANY = [pytest.param(100, id="some"), pytest.param(LONG, id="many", marks=pytest.mark.long)]

DEEP = "deeper than a parser goes"
TEXT = st.text(max_size=40)  # no surrogates; HALF has one
HALF = st.just("half a pair \ud800")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**18), 10**18) | st.just(10**400) | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
PIECES = st.sampled_from(
    ["<think>", "</think>", "<tool_call>", "</tool_call>", '{"name": "read_page", "arguments": {', "}}", '"', "[" * 50]
)
PATTERNS = st.sampled_from(["(", "a{1,99999999999}", "(a)(b)", "[[:x", "(?P<n>x)"])
IFEVAL = all(importlib.util.find_spec(name) for name in ("if_verifiable", "llama_index"))
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

    return tuple(below(parsed(text), ())[1:])


@functools.cache
def parsed(text: str) -> Any:
    """What YAML holds; nobody changes it."""
    return yaml.safe_load(text)


def changed(text: str, path: tuple[str | int, ...], how: str, value: Any, name: str) -> str:
    """The YAML with one place replaced, deleted, or given a neighbour."""
    whole = copy.deepcopy(parsed(text))
    at = whole
    for key in path[:-1]:
        at = at[key]
    if how == "delete":
        del at[path[-1]]
    elif how == "add" and isinstance(at, dict):
        at[name] = value
    else:
        at[path[-1]] = value
    return str(yaml.dump(whole, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper)))


@pytest.mark.parametrize("count", HOW_MANY)
def test_params_are_read_or_refused_with_the_files_name(count: int, tmp_path: Path) -> None:
    text, file = laptop_text(), tmp_path / "params.yaml"

    def prove(path: tuple[str | int, ...], how: str, value: Any, name: str) -> None:
        file.write_text(changed(text, path, how, value, name))
        if not refused(lambda: config.load(file), "params.yaml"):
            assert all(math.isfinite(it) for it in numbers(asdict(config.load(file))))

    hows = st.sampled_from(["replace", "delete", "add"])
    tried(count, prove, path=st.sampled_from(paths(text)), how=hows, value=JSON, name=TEXT)


def numbers(value: Any) -> Iterator[float]:
    """Every float below."""
    if isinstance(value, float):
        yield value
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, tuple) else ()
    for it in inner:
        yield from numbers(it)


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
    tried(max(count // 5, 20), prove, path=st.sampled_from(paths(smoke)), how=hows, value=JSON, name=TEXT)


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

    row = st.fixed_dictionaries({"question": JSON | HALF, "answer": JSON}, optional={"more": JSON})
    tried(count, prove, lines=st.lists(row | JSON | TEXT | st.just(DEEP), max_size=3))


@pytest.mark.parametrize("count", HOW_MANY)
def test_a_benchmarks_folder_is_opened_or_refused_with_the_file(count: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"name": "odd", "licence": "CC0", "group": "level", "turns": 3, "time_s": 9.0}
    judge = {"url": "http://127.0.0.1:9", "model": "m", "verdict": "(yes|no)", "timeout_s": 2.0}
    good = {"question": "Capital of Peru?", "answer": "Lima", "level": 1}

    def prove(lines: list[Any], key: str, value: Any, judged: bool, at: str, other: Any, prompt: bytes) -> None:
        whole = {**settings, key: value} | ({"judge": {**judge, at: other}} if judged else {})
        (tmp_path / "benchmark.yaml").write_text(yaml.safe_dump(whole), encoding="utf-8")
        (tmp_path / "judge.txt").write_bytes(prompt)
        text = "\n".join(it if isinstance(it, str) else json.dumps(it) for it in [good, *lines])
        (tmp_path / "questions.jsonl").write_text(text.replace(DEEP, "[" * 100_000), encoding="utf-8")
        if not refused(lambda: open_folder(tmp_path), str(tmp_path)):
            found = open_folder(tmp_path)
            tasks = found.tasks()
            assert all(task.prompt.strip() and task.reference.strip() and found.group(task) for task in tasks)
            assert found.budget.turn_tokens > 0 and "/" not in found.name

    row = st.fixed_dictionaries({"question": TEXT | HALF | JSON, "answer": TEXT | JSON}, optional={"level": JSON})
    keys = st.sampled_from([*settings, "judge", "questions", "discard", "context_tokens"]) | TEXT
    tried(
        count, prove, lines=st.lists(row | JSON | TEXT | st.just(DEEP), max_size=2), key=keys, value=JSON,
        judged=st.booleans(), at=st.sampled_from([*judge, "accepts", "parallel", "prompt"]), other=JSON | PATTERNS,
        prompt=st.just(b"{question} {answer} {response}") | st.binary(max_size=20),
    )  # fmt: skip


@pytest.mark.skipif(not IFEVAL, reason="if-verifiable or nltk's data are not installed")
@pytest.mark.parametrize("count", HOW_MANY)
def test_a_file_of_ifeval_is_judged_by_or_refused_with_the_record(count: int, tmp_path: Path) -> None:
    file = tmp_path / "input_data.jsonl"
    rules = ["keywords:existence", "length_constraints:number_words", "punctuation:no_comma", "startend:end_checker"]

    def prove(named: list[Any], kwargs: list[Any], key: Any, said: str) -> None:
        row = {"key": key, "prompt": "Write.", "instruction_id_list": named, "kwargs": kwargs}
        file.write_text(json.dumps(row), encoding="utf-8")
        if not refused(lambda: ifeval.read(file), str(file)):
            (read,) = ifeval.read(file).values()
            strict, loose = ifeval.judge(read, said)
            assert len(strict) == len(loose) == len(named)

    known = st.sampled_from(["keywords", "num_words", "relation", "end_phrase"])
    values = JSON | st.lists(TEXT, min_size=1, max_size=2) | st.sampled_from(["at least", "less than"])
    tried(
        max(count // 5, 20), prove, named=st.lists(st.sampled_from(rules) | JSON, max_size=2),
        kwargs=st.lists(st.dictionaries(known | TEXT, values, max_size=2) | JSON, max_size=2),
        key=st.integers(0, 9) | JSON, said=TEXT,
    )  # fmt: skip


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


@functools.cache
def a_trajectory() -> dict[str, Any]:
    """A row of one, with a turn of each kind."""
    turns = (
        Turn("prompt", "q", (1, 2)),
        Turn("assistant", "call", (3, 4), (-0.5, -1.0)),
        Turn("tool", "seen", (5,), (), ("page",), True),
        Turn("assistant", "<answer>", written=3),
    )
    verdict = Verdict(True, 1.0, "right", {"answer": True})
    return trajectory_row(Trajectory(a_task("search"), turns, "a", Status.SOLVED, verdict, "expert", 7))


@pytest.mark.parametrize("count", HOW_MANY)
def test_a_table_of_trajectories_is_read_or_refused_with_the_row(count: int, tmp_path: Path) -> None:
    """One value of its columns, its task, its turns or its rubric is replaced, deleted, or given a neighbour."""
    file, row = tmp_path / "some.parquet", a_trajectory()
    whole = {key: json.loads(row[key]) if key in ("task", "turns", "rubric") else row[key] for key in row}
    text = yaml.safe_dump(whole)

    def prove(path: tuple[str | int, ...], how: str, value: Any, name: str) -> None:
        found = yaml.safe_load(changed(text, path, how, value, name))
        odd = {key: json.dumps(it) if key in ("task", "turns", "rubric") else it for key, it in found.items()}
        try:
            write_row(file, odd)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):  # of no such column: not a file that can be
            return
        if refused(lambda: read_trajectories(file), str(file)):
            return
        (read,) = read_trajectories(file)
        assert len(read.ids) == len(read.loss_mask) == len(read.logprobs) and 0 <= read.verdict.score <= 1
        assert all(type(it) is int and it >= 0 for it in read.ids)
        assert repr([read.task]) == repr(list(iter_tasks(file)))  # repr: nan is not nan
        assert repr(trajectory_of(trajectory_row(read))) == repr(read)

    hows = st.sampled_from(["replace", "delete", "add"])
    tried(count, prove, path=st.sampled_from(paths(text)), how=hows, value=JSON, name=TEXT)


def write_row(path: Path, row: dict[str, Any]) -> None:
    """A table of one row in the columns that a trajectory has, and those that it has besides."""
    write_trajectories(path, [])
    schema = pq.read_schema(path).remove_metadata()
    known = [it for it in schema if it.name in row]
    more = pa.Table.from_pylist([{key: it for key, it in row.items() if key not in schema.names}])
    table = pa.Table.from_pylist([row], schema=pa.schema(known))
    for name in more.column_names:
        table = table.append_column(name, more[name])
    pq.write_table(table, path)


@pytest.mark.parametrize("count", HOW_MANY)
def test_a_damaged_table_is_read_or_refused(count: int, tmp_path: Path) -> None:
    """Bytes of a good one are others."""
    file, good = tmp_path / "some.parquet", tmp_path / "good.parquet"
    write_trajectories(good, [trajectory_of(a_trajectory())] * 3)
    body = good.read_bytes()

    def prove(changes: dict[int, int]) -> None:
        odd = bytearray(body)
        for at, value in changes.items():
            odd[at] = value
        file.write_bytes(odd)
        if not refused(lambda: read_trajectories(file), str(file)):
            assert all(isinstance(it, Trajectory) for it in read_trajectories(file))

    tried(count, prove, changes=st.dictionaries(st.integers(0, len(body) - 1), st.integers(0, 255), max_size=3))


@pytest.mark.parametrize("count", HOW_MANY)
def test_what_a_person_types_is_an_action_or_refused(count: int) -> None:
    def prove(line: str) -> None:
        if not refused(lambda: play.typed(line), ""):
            assert isinstance(play.typed(line), Call | Answer)

    tried(count, prove, line=TEXT | st.tuples(TEXT, JSON).map(lambda it: f"tool {it[0]}={json.dumps(it[1])}"))
