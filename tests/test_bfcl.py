"""BFCL's multi-turn tasks: every demonstration accepted by the package's own checks, nothing evaluated, no leak."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import random
import sys
from pathlib import Path

import pytest

from openhorizon.agent.trajectory import read_tasks, write_tasks
from openhorizon.domains.base import Action, Answer, Call, Split, Task, replay, split_of
from openhorizon.domains.tool_calling import bfcl, borrowed
from openhorizon.domains.tool_calling.bfcl import NEXT, BfclDomain, BfclEnvironment, entries

if importlib.util.find_spec("bfcl_eval") is None:
    pytest.skip("bfcl-eval is not installed", allow_module_level=True)
DOMAIN = BfclDomain()


class Only(random.Random):
    """Draws one given task."""

    def __init__(self, key: str) -> None:
        super().__init__(0)
        self.key = key

    def choice(self, seq):  # type: ignore[no-untyped-def]
        assert self.key in seq
        return self.key


def tasks(split: Split = "train") -> list[Task]:
    found = []
    for horizon, keys in sorted(bfcl._by_horizon(split).items()):
        found += [DOMAIN.propose(Only(key), split, horizon, 0) for key in keys]
    return [task for task in found if task is not None]


TASKS = tasks()


def shown(task: Task) -> tuple[Action, ...]:
    actions = DOMAIN.demonstration(task)
    assert actions is not None
    return actions


def judge(task: Task, actions: tuple[Action, ...]) -> tuple[BfclEnvironment, object]:
    environment, answer = replay(DOMAIN, task, actions)
    assert isinstance(environment, BfclEnvironment)
    return environment, DOMAIN.verify(task, environment, answer)


def test_every_demonstration_is_accepted_in_exactly_horizon_calls() -> None:
    assert len(TASKS) > 400
    for task in TASKS:
        environment, answer = replay(DOMAIN, task, shown(task))
        verdict = DOMAIN.verify(task, environment, answer)
        assert verdict.passed and set(verdict.rubric.values()) == {True}, (task.id, verdict)
        assert len(environment.steps) == task.horizon
        assert set(task.evidence) <= environment.consulted()
        assert not any(step.observation.text.startswith("error: ") for step in environment.steps), task.id


def test_corrupted_demonstrations_are_refused() -> None:
    refused, unseen = corrupt(TASKS[::6])
    assert refused > 200 and unseen < 10


@pytest.mark.long
def test_a_thousand_corrupted_demonstrations_are_refused() -> None:
    refused, unseen = corrupt(TASKS)
    assert refused > 1500 and unseen < 0.03 * refused


def corrupt(some: list[Task]) -> tuple[int, int]:
    """A call left out or made to a tool that does not exist, a turn left out, a wrong code; how many were refused, and
    how many not although a call was missing, because the benchmark's own checkers cannot tell."""
    refused = unseen = 0
    for i, task in enumerate(some):
        actions = shown(task)
        rng = random.Random(i)
        turns = [n for n, action in enumerate(actions) if isinstance(action, Call) and action.name == NEXT.name]
        calls = [n for n, action in enumerate(actions) if isinstance(action, Call) and action.name != NEXT.name]
        missing = next(n for n in reversed(calls))
        changed = list(actions)
        victim = actions[missing]
        assert isinstance(victim, Call)
        changed[missing] = Call("no_such_tool", victim.arguments)
        without_turn = rng.choice(turns)
        for wrong in (
            (*actions[:missing], *actions[missing + 1 :]),
            tuple(changed),
            (*actions[:without_turn], *actions[without_turn + 1 :]),
            (*actions[:-1], Answer("Answer: 00000")),
        ):
            verdict = DOMAIN.verify(task, *replay(DOMAIN, task, wrong))
            refused += not verdict.passed
            if verdict.passed:
                unseen += 1
                assert len(turns_of(wrong)) == len(turns) and wrong[-1] == actions[-1], task.id
                assert equal_without(task, missing), task.id
    return refused, unseen


def turns_of(actions: tuple[Action, ...]) -> list[Action]:
    return [action for action in actions if isinstance(action, Call) and action.name == NEXT.name]


def equal_without(task: Task, missing: int) -> bool:
    """The benchmark itself cannot tell: the call's result came from an earlier call, too, and it changed nothing."""
    actions = shown(task)
    full, _ = replay(DOMAIN, task, actions)
    result = full.steps[missing].observation.text
    less, _ = replay(DOMAIN, task, (*actions[:missing], *actions[missing + 1 :]))
    assert isinstance(full, BfclEnvironment) and isinstance(less, BfclEnvironment)
    again = [step.observation.text for n, step in enumerate(full.steps) if n != missing]
    state = bfcl.bfcl_library().module(bfcl.CHECKER).state_checker(less.simulators.instances, full.simulators.instances)
    return result in again and bool(state["valid"])


def test_a_harmful_extra_call_is_refused() -> None:
    found = 0
    for task in TASKS:
        entry = entries()[task.state["id"]]
        if "GorillaFileSystem" in entry["involved_classes"] and "mkdir" in {t.name for t in DOMAIN.tools_for(task)}:
            actions = shown(task)
            harmed = (Call("mkdir", {"dir_name": "harm"}), *actions)
            verdict = DOMAIN.verify(task, *replay(DOMAIN, task, harmed))
            assert not verdict.passed and "does not match the state" in verdict.reason
            found += 1
    assert found > 50


def test_functions_that_are_kept_back_cannot_be_called_before() -> None:
    task = next(t for t in TASKS if "miss_func" in t.state["id"])
    entry = entries()[task.state["id"]]
    (turn, (name, *_)), *_ = entry["missed_function"].items()
    environment = DOMAIN.start(task)
    assert name not in {tool.name for tool in DOMAIN.tools_for(task)}
    assert environment.call(Call(name, {})).text == f"error: no tool {name}"
    for _ in range(int(turn)):
        text = environment.call(Call(NEXT.name, {"message": "I cannot do that."})).text
    assert f'"name": "{name}"' in text
    assert environment.call(Call(name, {})).text != f"error: no tool {name}"


def test_scenarios_are_in_one_part_with_all_variants() -> None:
    parts: dict[str, set[str]] = {}
    for key in entries():
        parts.setdefault(bfcl.scenario(key), set()).add("benchmark" if bfcl.reserved(key) else bfcl.part(key))
    assert len(parts) == 200 and all(len(part) == 1 for part in parts.values())
    counts = [sum(part == {name} for part in parts.values()) for name in ("benchmark", "train", "heldout")]
    assert all(count > 20 for count in counts)
    held = set(bfcl.heldout_texts())
    for split in ("train", "heldout"):
        for task in tasks(split):  # type: ignore[arg-type]
            assert not bfcl.reserved(task.state["id"])
            assert {split_of(pair) for pair in task.entity_pairs} == {split}
            assert task.prompt not in held
    assert all(DOMAIN.demonstration(task) is None for task in tasks("heldout"))


def test_nothing_is_evaluated() -> None:
    """Text where code was meant stays text; only the task's own tools are reached; costs are bounded."""
    task = next(t for t in TASKS if "mkdir" in {tool.name for tool in DOMAIN.tools_for(t)})
    environment = DOMAIN.start(task)
    for name in ("_load_scenario", "__class__", "eval", "__init__"):
        assert environment.call(Call(name, {})).text.startswith("error: no tool")
    environment.call(Call("mkdir", {"dir_name": "__import__('os').getcwd()"}))
    assert "__import__('os').getcwd()" in environment.call(Call("ls", {})).text
    source = inspect.getsource(bfcl) + inspect.getsource(borrowed)
    names = {
        node.func.id
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert not names & {"eval", "exec", "compile"}
    maths = next(t for t in TASKS if "power" in {tool.name for tool in DOMAIN.tools_for(t)})
    huge = DOMAIN.start(maths).call(Call("power", {"base": 9, "exponent": 10**9}))
    assert huge.error and "more than" in huge.text
    with pytest.raises(ValueError, match="not a call"):
        bfcl.Simulators(entries()[task.state["id"]]).read("1 + 1")


def test_schemas_are_json_schemas_and_follow_the_task() -> None:
    import jsonschema

    for tool in DOMAIN.tools:
        jsonschema.Draft202012Validator.check_schema(dict(tool.parameters))
        assert tool.parameters["type"] == "object"
    for task in TASKS[::20]:
        excluded = set(entries()[task.state["id"]].get("excluded_function", ()))
        assert not excluded & {tool.name for tool in DOMAIN.tools_for(task)}
        assert len(DOMAIN.tools_for(task)) < len(DOMAIN.tools)


def test_offers_and_refusals() -> None:
    assert DOMAIN.offers([1, 2, 8, 10, 64]) == (8, 10)
    assert DOMAIN.propose(random.Random(0), "train", 64, 0) is None
    with pytest.raises(ValueError, match="horizon 0"):
        DOMAIN.propose(random.Random(0), "train", 0, 0)
    with pytest.raises(ValueError, match="demonstrations"):
        DOMAIN.expert("", random.Random(0), 0.0)


def test_the_packages_own_dependencies_are_not_imported() -> None:
    """Neither the package itself nor what it asks for was imported by all of the above."""
    assert not {"bfcl_eval", "openai", "anthropic", "mistralai", "faiss", "serpapi"} & set(sys.modules)


def test_tasks_survive_a_file(tmp_path: Path) -> None:
    write_tasks(tmp_path / "tasks.parquet", TASKS[:20])
    assert read_tasks(tmp_path / "tasks.parquet") == TASKS[:20]


def test_a_malformed_or_missing_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "BFCL.json"
    with pytest.raises(ValueError, match=r"no BFCL\.json"):
        bfcl._rows(path)
    path.write_text(json.dumps({"id": 1}) + "\n{broken\n")
    with pytest.raises(ValueError, match=r"BFCL.json, line 2: not JSON"):
        bfcl._rows(path)
    with pytest.raises(ValueError, match="'no_such_package' is not installed; run: pip install --no-deps x==1"):
        borrowed.package_folder("no_such_package", "x==1")
    with pytest.raises(ValueError, match=r"no module bfcl_eval\.nothing"):
        bfcl.bfcl_library().module("bfcl_eval.nothing")
