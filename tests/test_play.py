"""A person's and a checkpoint's episode are what an evaluation would have played."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console

from openhorizon import cli, play
from openhorizon.agent.rollout import rollout
from openhorizon.agent.trajectory import Status, Turn, write_tasks, write_trajectories
from openhorizon.domains.base import Answer, Call, Task, solve
from openhorizon.model.load import Checkpoint
from openhorizon.model.sampler import local_policy
from tests.conftest import BUDGET, MACHINE, CountDomain

DOMAIN = CountDomain()


def task(horizon: int = 2) -> Task:
    made = DOMAIN.propose(random.Random(3), "heldout", horizon, 3)
    assert made
    return made


def lines_of(expert_task: Task) -> list[str]:
    """What a person would type to do as the expert does."""
    environment, answer = solve(DOMAIN, expert_task, random.Random(0), 0.0, 20)
    assert answer
    calls = [f"{step.call.name} {json.dumps(dict(step.call.arguments))}" for step in environment.steps]
    return [*calls, f"={answer.text}"]


def taken(lines: list[str], horizon: int = 2) -> tuple[play.Trajectory, list[str], list[Turn]]:
    given: Iterator[str] = iter(lines)
    said, shown = list[str](), list[Turn]()

    def ask(prompt: str) -> str:
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    return play.take(DOMAIN, task(horizon), BUDGET, ask, said.append, shown.append), said, shown


def test_a_person_who_does_what_the_expert_does_solves_the_task() -> None:
    played, said, shown = taken(["?", *lines_of(task())])
    assert played.status is Status.SOLVED
    assert played.tool_calls == task().horizon
    assert [turn.text for turn in played.turns if turn.role == "tool"] == [t.text for t in shown if t.role == "tool"]
    assert sum("step(from: integer)" in line for line in said) == 2  # at the start, and when asked for


def test_a_person_who_is_wrong_fails_and_who_stops_is_truncated() -> None:
    assert taken(["=nonsense"])[0].status is Status.FAILED
    assert taken([])[0].status is Status.TRUNCATED
    assert taken([""])[0].status is Status.TRUNCATED


def test_a_person_has_the_budget_of_a_policy() -> None:
    played, said, _ = taken(["step from=20"] * 50)
    assert played.status is Status.TRUNCATED
    assert played.tool_calls == 5  # ceil(1.5 × 2) + 2
    assert "the budget of 5 calls is spent" in said


@pytest.mark.parametrize(
    ("line", "action"),
    [
        ('step {"from": 3}', Call("step", {"from": 3})),
        ("step from=3", Call("step", {"from": 3})),
        ("look at=here deep=true", Call("look", {"at": "here", "deep": True})),
        ("step", Call("step", {})),
        ("= 42", Answer("42")),
    ],
)
def test_typed(line: str, action: Call | Answer) -> None:
    assert play.typed(line) == action


def test_a_slip_of_the_keyboard_is_told_and_costs_nothing() -> None:
    played, said, _ = taken(['step {"from": }', "step 3", *lines_of(task())])
    assert played.status is Status.SOLVED
    assert [line for line in said if "not JSON" in line] == ["not JSON: Expecting value at column 15"]
    assert any("'3' is no name=value" in line for line in said)


def test_watching_changes_nothing(tiny: Callable[..., Checkpoint]) -> None:
    policy, shown = local_policy(tiny(), MACHINE), list[Turn]()
    watched = play.watch(policy, DOMAIN, task(), BUDGET, 1.0, 5, shown.append)
    (alone,) = rollout({"count": DOMAIN}, [task()], policy, {"count": BUDGET}, 1.0, 0)
    again = play.watch(policy, DOMAIN, task(), BUDGET, 1.0, alone.seed, lambda turn: None)
    assert again == alone
    assert tuple(shown) == watched.turns


def test_show_trajectory_finds_filters_and_speaks_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    solved, failed = taken(lines_of(task()))[0], taken(["=nonsense"])[0]
    write_trajectories(tmp_path / "some.parquet", [failed, solved, failed])
    source = str(tmp_path / "some.parquet")
    assert cli.main(["show", "trajectory", source, "--status", "solved", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["status"], found["answer"]) == ("SOLVED", solved.answer)
    assert cli.main(["show", "trajectory", source, "--status", "failed", "--nth", "1"]) == 0
    out = capsys.readouterr().out
    assert "FAILED" in out
    assert "nonsense" in out
    assert cli.main(["show", "trajectory", source, "--nth", "3"]) == 2
    assert "3 episodes fit, --nth 3 is none of them" in capsys.readouterr().err


def test_what_a_model_wrote_is_never_read_as_markup() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100)
    play.shower(console)(Turn("assistant", "[bold]not markup[/bold] [/nothing]"))
    play.shower(console)(Turn("tool", "[/nothing] [red]"))
    assert "[bold]not markup[/bold] [/nothing]" in out.getvalue()
    assert "[/nothing] [red]" in out.getvalue()


def test_tasks_are_found_by_id_and_horizon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "artifacts" / "generate" / "count" / "heldout.parquet"
    path.parent.mkdir(parents=True)
    write_tasks(path, [task(1), task(2)])
    assert play.heldout_task("count", None, 2, 0) == task(2)
    assert play.heldout_task("count", task(1).id, None, 0) == task(1)
    with pytest.raises(ValueError, match="1 tasks fit, --nth 1 is none of them; horizons: 1, 2"):
        play.heldout_task("count", None, 2, 1)
    with pytest.raises(ValueError, match="no task elsewhere"):
        play.heldout_task("count", "elsewhere", None, 0)
