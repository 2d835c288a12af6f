"""BFCL as a benchmark: the package's own checker, its gold calls, and what must not pass."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from openhorizon.agent.player import Script
from openhorizon.bench.public import BENCHMARKS
from openhorizon.bench.public.bfcl import BFCL, SPARE, check, gold
from openhorizon.bench.public.journal import Journal
from openhorizon.bench.public.run import Sampling, reference, run
from openhorizon.domains.base import Action, Answer, Call, Task
from openhorizon.domains.tool_calling import bfcl as world
from openhorizon.domains.tool_calling.bfcl import NEXT, entries, reserved

if importlib.util.find_spec("bfcl_eval") is None:
    pytest.skip("bfcl-eval is not installed", allow_module_level=True)
SAMPLING = Sampling(0.0, 0)


def play(tasks: list[Task], script: Script, path: Path) -> list[bool | None]:
    return [result.success for result in run(BFCL, script, tasks, SAMPLING, Journal(path, {}))]


def test_gold_calls_solve_all_800_and_nobody_solves_by_doing_nothing(tmp_path: Path) -> None:
    tasks = list(BFCL.tasks())
    assert len(tasks) == 800 and len({task.id for task in tasks}) == 800
    assert play(tasks, reference(BFCL, "gold"), tmp_path / "gold") == [True] * 800
    assert play(tasks, reference(BFCL, "floor"), tmp_path / "floor") == [False] * 800


def test_a_limit_takes_all_four_categories_and_the_held_out_part_is_nobodys_training_task() -> None:
    assert {BFCL.group(task) for task in BFCL.tasks()[:4]} == set(world.VARIANTS)
    held = BENCHMARKS["bfcl-heldout"].tasks()
    assert len(held) == 184 and all(reserved(task.id) for task in held)
    trained = {key for split in ("train", "heldout") for keys in world._by_horizon(split).values() for key in keys}  # type: ignore[arg-type]
    assert not trained & {task.id for task in held}


def without_last_turn(task: Task) -> tuple[Action, ...]:
    """Ends the conversation one user's turn too early."""
    actions = gold(task)
    at = [i for i, action in enumerate(actions) if isinstance(action, Call) and action.name == NEXT.name]
    return (*actions[: at[-2] if len(at) > 1 else 0], Answer("Done."))


def test_incomplete_and_harmful_conversations_fail(tmp_path: Path) -> None:
    tasks = [task for task in BFCL.tasks()[::20] if len(entries()[task.id]["gold"]) > 1]
    assert not any(play(tasks, Script("short", without_last_turn), tmp_path / "short"))
    files = [task for task in tasks if "GorillaFileSystem" in entries()[task.id]["involved_classes"]]
    assert len(files) > 5
    harm = Script("harm", lambda task: (Call("mkdir", {"dir_name": "harm"}), *gold(task)))
    assert not any(play(files, harm, tmp_path / "harm"))


def test_the_last_turn_may_end_with_an_answer(tmp_path: Path) -> None:
    def actions(task: Task) -> tuple[Action, ...]:
        found = list(gold(task))
        del found[-2]  # the last next_user_turn
        return tuple(found)

    tasks = list(BFCL.tasks()[:40])
    assert all(play(tasks, Script("answers", actions), tmp_path / "j"))


def test_a_turn_without_calls_fails_where_the_gold_run_has_some() -> None:
    """The package's own rule, which state and results alone would not show."""
    entry = next(e for e in entries().values() if len(e["gold"]) > 1 and e["gold"][0] and e["gold"][1])
    task = next(task for task in BFCL.tasks() if task.id == entry["id"])
    turns: list[list[Call]] = [[]]
    for action in gold(task)[:-1]:
        assert isinstance(action, Call)
        if action.name == NEXT.name:
            turns.append([])
        else:
            turns[-1].append(action)
    turns.pop()
    assert check(entry, turns) == ""
    assert "empty_turn_model_response" in check(entry, [[*turns[0], *turns[1]], [], *turns[2:]])


def test_calls_without_end_end_the_conversation(tmp_path: Path) -> None:
    task = next(task for task in BFCL.tasks() if "GorillaFileSystem" in entries()[task.id]["involved_classes"])
    allowed = len(entries()[task.id]["gold"][0]) + SPARE
    script = Script("loop", lambda task: (*[Call("ls", {})] * (allowed + 3), *gold(task)))
    (result,) = run(BFCL, script, [task], SAMPLING, Journal(tmp_path / "j", {}))
    assert not result.success and result.reason == f"more than {allowed} calls in turn 1"


def test_nothing_that_a_model_writes_is_evaluated() -> None:
    """Arguments are values: what looks like code stays a text in the simulators."""
    environment = BFCL.domain.start(BFCL.tasks()[0])
    environment.call(Call("__import__('os').system", {"command": "touch /tmp/x"}))
    seen = environment.call(Call("mkdir", {"dir_name": "__import__('os').getcwd()"}))
    assert "getcwd" in str(environment.simulators.instances) or not seen.error  # type: ignore[attr-defined]
    source = Path(world.__file__).read_text() + (Path(world.__file__).parents[2] / "bench/public/bfcl.py").read_text()
    assert "eval(" not in source.replace("literal_eval(", "") and "exec(" not in source


def test_a_simulator_keeps_no_argument_of_a_call() -> None:
    """It would change the call afterwards, and the checker, which runs it again, would see another one."""
    task = next(task for task in BFCL.tasks() if task.id == "multi_turn_base_90")
    before = repr(gold(task))
    actions = gold(task)
    environment = BFCL.domain.start(task)
    for action in actions[:-1]:
        assert isinstance(action, Call)
        environment.call(action)
    assert repr(actions) == before
