"""τ²'s test tasks with a scripted user: references, what must not pass, and the package's own scorers beside ours."""

from __future__ import annotations

import functools
import importlib.util
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openhorizon.agent.player import TOO_LONG, Script
from openhorizon.agent.trajectory import Status, Trajectory, Turn
from openhorizon.bench.public import BENCHMARKS
from openhorizon.bench.public.base import Result
from openhorizon.bench.public.journal import Journal
from openhorizon.bench.public.reported import reported, table
from openhorizon.bench.public.run import Sampling, reference, run
from openhorizon.bench.public.summary import failures
from openhorizon.bench.public.tau2 import TAU2_SCRIPTED, communicated, taken
from openhorizon.bench.public.tau2_official import HELDOUT as TAU2_HELDOUT
from openhorizon.domains.base import Action, Answer, Call, Task, Verdict, replay
from openhorizon.domains.tool_calling import tau2
from openhorizon.domains.tool_calling.borrowed import Library
from openhorizon.domains.tool_calling.tau2 import Tau2Environment, entries
from openhorizon.domains.tool_calling.tau2_session import ToolError, folder, read_data

if importlib.util.find_spec("inspect_evals") is None:
    pytest.skip("inspect-evals is not installed", allow_module_level=True)
SAMPLING = Sampling(0.0, 0)


def some(service: str, count: int) -> list[Task]:
    return [task for task in TAU2_SCRIPTED.tasks() if TAU2_SCRIPTED.group(task) == service][:count]


FEW = [*some("airline", 3), *some("retail", 5), *some("telecom", 8)]


def play(tasks: Sequence[Task], script: Script, path: Path) -> list[Result]:
    return run(TAU2_SCRIPTED, script, tasks, SAMPLING, Journal(path / script.name, {}))


def gold(task: Task) -> tuple[Action, ...]:
    assert TAU2_SCRIPTED.gold is not None
    return tuple(TAU2_SCRIPTED.gold(task))


def test_it_has_the_tasks_of_the_test_splits_and_no_training_task() -> None:
    tasks = TAU2_SCRIPTED.tasks()
    assert Counter(map(TAU2_SCRIPTED.group, tasks)) == {"airline": 20, "retail": 40, "telecom": 40}
    assert Counter(map(TAU2_SCRIPTED.group, tasks[:25])).keys() == {"airline", "retail", "telecom"}
    mine = {task.state["id"] for task in tasks}
    for service in tau2.SERVICES:
        test = read_data(folder() / "data" / "domains" / service / "split_tasks.json")["test"]
        assert {key for key in mine if key.startswith(service)} == {f"{service}/{key}" for key in test}
    used = {key for split in ("train", "heldout") for keys in tau2._by_horizon(split).values() for key in keys}  # type: ignore[arg-type]
    assert len(used) > 1000 and not used & mine
    texts = {text for task in tasks for text in TAU2_SCRIPTED.texts(task)}
    assert texts == set(tau2.heldout_texts())


def test_nobody_can_take_it_for_tau2() -> None:
    assert BENCHMARKS["tau2-scripted"] is TAU2_SCRIPTED and TAU2_SCRIPTED not in (BENCHMARKS["tau2"], TAU2_HELDOUT)
    assert "scripted user" in TAU2_SCRIPTED.title and "not τ²" in TAU2_SCRIPTED.title
    assert TAU2_SCRIPTED.protocol.startswith("scripted user, not τ²'s official protocol")
    assert reported(TAU2_SCRIPTED.name) is None  # the authors' figures are of another protocol
    assert [row["ours"] for row in table()["benchmarks"] if "τ²" in row["title"]] == ["tau2"]


def test_the_authors_actions_reach_the_maximum(tmp_path: Path) -> None:
    results = play(FEW, reference(TAU2_SCRIPTED, "gold"), tmp_path)
    assert failures(TAU2_SCRIPTED, results) == []
    assert [result.tool_calls for result in results] == [task.horizon for task in FEW]


NOTHING_TO_DO = {f"airline/{number}" for number in (6, 13, 26, 31, 45, 48)} | {"retail/12", "retail/65"}
REFUSED = "return_delivered_order_items"  # the authors' call in retail/12, which their own service refuses


@pytest.mark.long
def test_the_references_on_all_100(tmp_path: Path) -> None:
    tasks = TAU2_SCRIPTED.tasks()
    results = play(tasks, reference(TAU2_SCRIPTED, "gold"), tmp_path)
    assert failures(TAU2_SCRIPTED, results) == [] and len(results) == 100
    floor = play(tasks, reference(TAU2_SCRIPTED, "floor"), tmp_path)
    assert {task.state["id"] for task, it in zip(tasks, floor, strict=True) if it.success} == NOTHING_TO_DO


def test_closing_at_once_passes_where_nothing_is_to_be_changed_or_told_and_silence_nowhere(tmp_path: Path) -> None:
    tasks = [task for task in TAU2_SCRIPTED.tasks() if task.state["id"] in NOTHING_TO_DO or task in FEW]
    floor = play(tasks, reference(TAU2_SCRIPTED, "floor"), tmp_path)
    passed = {task.state["id"] for task, result in zip(tasks, floor, strict=True) if result.success}
    assert passed == NOTHING_TO_DO and len(tasks) > 20
    for key in passed:
        wanted = entries()[key]["evaluation_criteria"]
        changed = [row["name"] for row in wanted["actions"] if tau2._writes(row["name"])]
        assert not wanted["communicate_info"] and changed == ([] if key != "retail/12" else [REFUSED])
    silent = play(tasks, Script("silent", lambda task: (Answer(""),)), tmp_path)
    assert {result.reason for result in silent} == {"the session was not closed"}


def without(task: Task, name: str) -> tuple[Action, ...]:
    return tuple(action for action in gold(task) if not isinstance(action, Call) or action.name != name)


def silently(task: Task) -> tuple[Action, ...]:
    closing = Call("close_session", {"message": "Goodbye."})
    return (*without(task, "close_session")[:-1], closing, Answer(""))


def idly(task: Task) -> tuple[Action, ...]:
    talk = [a for a in gold(task) if isinstance(a, Call) and a.name in ("message_user", "close_session")]
    return (*talk, Answer(task.reference))


def test_what_is_not_finished_told_done_or_undone_fails(tmp_path: Path) -> None:
    unclosed = play(FEW[:6], Script("unclosed", lambda task: without(task, "close_session")), tmp_path)
    assert {result.reason for result in unclosed} == {"the session was not closed"}
    told = [
        task for task in TAU2_SCRIPTED.tasks() if entries()[task.state["id"]]["evaluation_criteria"]["communicate_info"]
    ]
    assert len(told) == 13
    untold = play(told[:4], Script("untold", silently), tmp_path)
    assert {result.reason for result in untold} == {"the customer was not told what he has to know"}
    idle = play(some("telecom", 40), Script("idle", idly), tmp_path)
    assert not any(result.success for result in idle)
    assert {result.reason for result in idle} == {
        "the device or the line is not as it should be",
        "a required action was not taken",
    }


def test_the_closing_code_is_no_criterion_and_an_extra_change_fails(tmp_path: Path) -> None:
    (task,) = some("airline", 1)
    other = Script("other", lambda task: (*gold(task)[:-1], Answer("Bye.")))
    (result,) = play([task], other, tmp_path)
    assert result.success
    gift = Call("send_certificate", {"user_id": "anya_garcia_5901", "amount": 100})
    (result,) = play([task], Script("gift", lambda task: (gift, *gold(task))), tmp_path)
    assert result.reason == "the database is not as after the authors' actions"


def test_an_episode_that_never_began_counts_as_nothing_met() -> None:
    (task,) = some("telecom", 1)
    made = Trajectory(
        task, (Turn("prompt", task.prompt),), None, Status.TRUNCATED, Verdict(False, 0.0, TOO_LONG), "x", 0
    )
    found = TAU2_SCRIPTED.measure(made)
    assert {"reward", "closed", "assertions"} <= set(found) and not any(value.value for value in found.values())


def test_numbers_are_told_with_or_without_commas_and_actions_compared_in_what_the_task_names() -> None:
    assert communicated(["It is $1,628.", "In CHICAGO"], ["1628", "Chicago"]) and not communicated(["162 8"], ["1628"])
    action: dict[str, Any] = {"name": "f", "arguments": {"a": 1, "b": "x"}}
    one, two = Call("f", {"a": 1, "b": "x"}), Call("f", {"a": 1, "b": "y"})
    assert taken(action, [two, one]) and not taken(action, [two]) and not taken(action, [])
    assert taken(action | {"compare_args": ["a"]}, [two]) and not taken(action | {"compare_args": ["b"]}, [two])
    assert taken(action | {"compare_args": []}, [two]) and not taken(action | {"compare_args": []}, [Call("g", {})])


@dataclass
class Said:
    """A message as the package's scorers read it."""

    content: str
    tool_calls: list[Any] | None = None


class Agents(Said):
    pass


class Users(Said):
    pass


@functools.cache
def theirs() -> Any:
    """The package's module of scorers, with stand-ins for the framework alone; its tools keep a store of their own."""
    import pydantic

    class StoreModel(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
        instance: str | None = None

    made: dict[Any, Any] = {}

    def store_as(kind: Any, instance: str | None = None) -> Any:
        return made.setdefault((kind.__name__, instance), kind())

    framework: dict[str, dict[str, Any]] = {
        "inspect_ai.model": dict.fromkeys(("Content", "ContentText"))
        | {"ChatMessageAssistant": Agents, "ChatMessageUser": Users},
        "inspect_ai.scorer": dict.fromkeys(("Scorer", "Target"))
        | {"CORRECT": True, "INCORRECT": False, "Score": SimpleNamespace}
        | {"accuracy": str, "stderr": str, "scorer": lambda metrics: lambda maker: maker},
        "inspect_ai.solver": {"TaskState": object},
        "inspect_ai.tool": {"ToolError": ToolError, "Tool": object, "tool": lambda maker: maker},
        "inspect_ai.util": {"StoreModel": StoreModel, "store_as": store_as},
        "inspect_evals.tau2.common.agents": {"StoredAgentState": object},
        "inspect_evals.tau2.common.metadata": {"Tau2MetaData": SimpleNamespace(model_validate=lambda given: given)},
        "toml": {},
    }
    tools = Library("inspect_evals", folder().parent, framework).module("inspect_evals.tau2.utils")
    named = ("deep_equal_unordered", "get_text_content", "get_pydantic_hash", "TAU2_DATA_DIR", "dump_file")
    utils = {name: getattr(tools, name) for name in named} | {"load_file": functools.cache(read_data)}
    return Library("inspect_evals", folder().parent, framework | {"inspect_evals.tau2.utils": utils}).module(
        "inspect_evals.tau2.common.scorer"
    )


def their_verdict(environment: Tau2Environment) -> dict[str, bool]:
    """What the package's scorers say of the same calls, carried out once more by its own tools."""
    scorer, entry = theirs(), environment.entry
    wanted = entry["evaluation_criteria"]
    actions = [SimpleNamespace(**{"compare_args": None} | row) for row in wanted["actions"]]
    basis = wanted.get("reward_basis") or ()
    said = SimpleNamespace(actions=actions, communicate_info=wanted["communicate_info"], reward_basis=basis)
    calls = [SimpleNamespace(function=it.call.name, arguments=dict(it.call.arguments)) for it in environment.steps]
    state = SimpleNamespace(
        metadata=SimpleNamespace(task=SimpleNamespace(evaluation_criteria=said), instance=""),
        messages=[Users(text) for text in environment.said],
    )
    if entry["service"] == "telecom":
        agent = SimpleNamespace(messages=[Agents("", calls)])
        return {"actions": scored(scorer.evaluate_required_actions(True, lambda instance: agent), state)}
    done = [SimpleNamespace(name=it.call.name, arguments=it.call.arguments) for it in environment.steps]
    tools = scorer.get_expected_db(entry["service"], [it for it in done if it.name not in TALK])
    return {
        "database": scored(scorer.db_match(entry["service"], tools), state),
        "communicated": scored(scorer.score_communicated_info(), state),
    }


TALK = ("message_user", "close_session")


def scored(score: Any, state: Any) -> bool:
    try:
        score(state, None).send(None)
    except StopIteration as done:
        return bool(done.value.value)
    raise AssertionError("it waits for something")


@pytest.mark.parametrize("actions", [gold, silently, idly])
def test_the_packages_own_scorers_say_the_same(actions: Any) -> None:
    seen = set[tuple[str, bool]]()
    for task in [*some("airline", 2), *some("retail", 3), *some("telecom", 40)[:: 1 if actions is idly else 10]]:
        environment, answer = replay(TAU2_SCRIPTED.domain, task, actions(task))
        assert isinstance(environment, Tau2Environment)
        rubric = TAU2_SCRIPTED.domain.verify(task, environment, answer).rubric
        for item, met in their_verdict(environment).items():
            assert rubric.get(item, True) == met, (task.id, item)
            seen.add((item, met))
    wrong = {gold: set(), silently: {"communicated"}, idly: {"database", "actions"}}
    assert wrong[actions] <= {item for item, met in seen if not met} and (actions is idly or ("database", True) in seen)
