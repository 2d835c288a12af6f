"""Inspect and us: our held-out tasks over the bridge, and its logs as our records. Inspect itself: marker long."""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from servers import Reply, called, said
from settings import laptop, laptop_text

from openhorizon import inspecting
from openhorizon.agent.trajectory import Status, write_tasks
from openhorizon.artifacts import stage_dir
from openhorizon.bench.base import read_records
from openhorizon.bridge import Bridge, replies
from openhorizon.comparing import read_side
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Answer, Call, Observation, Task
from openhorizon.seeds import rng

ROOT = Path(__file__).parents[1]
COUNT = 4


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with held-out tasks of search."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MACHINE", "cpu")
    (tmp_path / "params.yaml").write_text(laptop_text(), encoding="utf-8")
    stage_dir("generate", "search").mkdir(parents=True)
    write_tasks(stage_dir("generate", "search") / "heldout.parquet", tasks())
    return tmp_path


def tasks() -> list[Task]:
    draw, found = random.Random(0), list[Task]()
    while len(found) < COUNT:
        task = DOMAINS["search"].propose(draw, "heldout", 1 + len(found), len(found))
        found += [task] if task else []
    return found


def expert(asked: dict[str, Any]) -> Reply:
    """The scripted expert, behind an endpoint."""
    messages = asked["messages"]
    prompt = next(it["content"] for it in messages if it["role"] == "user")
    acting = DOMAINS["search"].expert(prompt, rng(0, "expert"), 0.0)
    action = next(acting)
    for message in messages:
        if message["role"] == "tool":
            action = acting.send(Observation(message["content"]))
    if isinstance(action, Answer):
        return said(content=action.text)
    return called(action.name, json.dumps(dict(action.arguments)))


def test_the_bridge_plays_as_we_do(place: Path) -> None:
    bridge, domain = Bridge(laptop()), DOMAINS["search"]

    def ask(**request: Any) -> Any:
        return bridge.answer(json.dumps(request))

    found = ask(do="tasks", domain="search", count=COUNT)["tasks"]
    assert [it["id"] for it in found] == [task.id for task in tasks()]
    hidden = {task.reference for task in tasks()}
    assert not any(key in it for it in found for key in ("reference", "state", "evidence"))
    for i, shown in enumerate(found):
        assert ask(do="start", episode=i, task=shown["id"]) == {}
        acting = domain.expert(shown["prompt"], rng(0, "expert"), 0.0)
        action = next(acting)
        while isinstance(action, Call):
            seen = ask(do="call", episode=i, name=action.name, arguments=dict(action.arguments))
            assert not seen["error"]
            action = acting.send(Observation(seen["text"]))
        assert ask(do="end", episode=i, answer=action.text)["passed"], hidden
    assert ask(do="start", episode=9, task=found[0]["id"]) == {}
    assert ask(do="call", episode=9, name="fly", arguments={})["error"]
    assert not ask(do="end", episode=9, answer=None)["passed"]
    assert bridge.episodes == {}


def test_what_the_bridge_cannot_do_it_says(place: Path) -> None:
    asked = ["{", '{"do": "fly"}', '{"do": "tasks", "domain": "chess", "count": 1}', '{"do": "start", "task": "x"}']
    asked += ['{"do": "tasks", "domain": "search", "count": 99}', '{"do": "end", "episode": 7, "answer": null}']
    said = [json.loads(reply)["failed"] for reply in replies(laptop(), io.StringIO("\n".join(asked)))]
    assert "Expecting property name" in said[0] and "KeyError: 'fly'" in said[1]
    assert "unknown domain 'chess'" in said[2] and "KeyError: 'x'" in said[3]
    assert "4 held-out tasks" in said[4] and "KeyError: 7" in said[5]


def sample(name: str, **changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = {
        "id": name,
        "epoch": 1,
        "messages": [{"role": "user"}, {"role": "assistant"}, {"role": "tool"}],
        "scores": {"match": {"value": "C", "answer": "4", "explanation": "as it should be"}},
        "model_usage": {"m": {"output_tokens": 5}},
    }
    return value | changes


def test_logs_become_records_and_nothing_is_scored_in_silence() -> None:
    samples = [
        sample("right"),
        sample("wrong", scores={"match": {"value": "I", "answer": "5"}}),
        sample("half", scores={"match": {"value": 0.5}}),
        sample("full", scores={"match": {"value": True}}),
        sample("broke", error={"message": "no\nnetwork"}, scores=None),
        sample("none", scores={}),
        sample("noanswer", scores={"match": {"value": "N"}}),
        sample("long", scores={"match": {"value": "I"}}, limit={"type": "token"}),
    ]
    log = {"status": "success", "eval": {"task": "sums"}, "samples": samples}
    found = {record.task: record for record in inspecting.read_log(log, "m")}
    outcomes = {name: (record.success, record.status) for name, record in found.items()}
    assert outcomes == {
        "right": (True, Status.SOLVED),
        "wrong": (False, Status.FAILED),
        "half": (False, Status.FAILED),
        "full": (True, Status.SOLVED),
        "broke": (None, Status.ABORTED),
        "none": (None, Status.ABORTED),
        "noanswer": (None, Status.ABORTED),
        "long": (False, Status.TRUNCATED),
    }
    assert found["half"].score == 0.5 and found["right"].answer == "4" and found["right"].tokens == 5
    assert found["broke"].reason == "the sample broke (no network)" and found["none"].reason == "no score"
    assert found["right"].tool_calls == 1 and "token limit" in found["long"].reason
    told = inspecting.summary(log, list(found.values()), "m")
    assert told["rows"][0]["n"] == 5
    assert told["not_judged"] == {"no score": 1, "scored 'N'": 1, "the sample broke": 1}
    twice = inspecting.read_log({**log, "samples": [sample("a"), sample("a", epoch=2)]}, "m")
    assert [record.task for record in twice] == ["a #1", "a #2"]


def test_without_inspect_it_says_how_to_get_it(place: Path) -> None:
    with pytest.raises(ValueError, match=r"bin/inspect: missing; `scripts/install-inspect"):
        inspecting.run("x.py", "http://127.0.0.1:1/v1#m", None, [], place / "out")
    assert not (place / "out").exists()


def named(decide: Any) -> Any:
    """Replies with what Inspect's client insists on."""

    def answer(asked: dict[str, Any]) -> Reply:
        status, body = decide(asked)
        return status, json.dumps(json.loads(body) | {"model": asked["model"], "created": 0}).encode()

    return answer


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inspect in an environment of its own, or the one that OPENHORIZON_INSPECT names."""
    if ready := os.environ.get("OPENHORIZON_INSPECT"):
        return Path(ready)
    folder = tmp_path_factory.mktemp("inspect") / "environment"
    subprocess.run([ROOT / "scripts" / "install-inspect", folder], check=True)
    return folder


@pytest.mark.long
def test_our_tasks_in_inspect(place: Path, environment: Path, serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENHORIZON_PYTHON", sys.executable)
    task, arguments = str(ROOT / "interop" / "inspect_heldout.py"), ["-T", "domain=search", "-T", f"tasks={COUNT}"]
    server = serve(named(expert))
    found = inspecting.run(task, f"{server.url}#expert", None, arguments, place / "out", environment)
    assert found["inspect"] == {"verifier": {"accuracy": 1.0, "stderr": 0.0}}
    records = read_records(place / "out" / "records.parquet")
    assert [record.task for record in records] == [task.id for task in tasks()]
    assert {record.status for record in records} == {Status.SOLVED}
    assert [record.horizon for record in records] == [task.horizon for task in tasks()]
    assert all(record.tool_calls >= record.horizon for record in records)
    assert read_side(str(place / "out")).records == records, "compare takes it"
    server = serve(named(lambda asked: said(content="Answer: nowhere")))
    lazy = inspecting.run(task, f"{server.url}#lazy", 2, arguments, place / "lazy", environment)
    assert lazy["samples"] == 2 and lazy["rows"][0]["success"] == 0.0


@pytest.mark.long
def test_any_task_of_inspect(place: Path, environment: Path, serve: Any) -> None:
    (place / "sums.py").write_text(
        "from inspect_ai import Task, task\n"
        "from inspect_ai.dataset import Sample\n"
        "from inspect_ai.scorer import match\n"
        "@task\ndef sums():\n"
        "    samples = [Sample(input=f'{n}+{n}=', target=str(2 * n), id=n) for n in range(1, 5)]\n"
        "    return Task(dataset=samples, scorer=match())\n"
    )
    server = serve(named(lambda asked: said(content=str(2 * min(int(asked["messages"][-1]["content"][0]), 3)))))
    found = inspecting.run("sums.py", f"{server.url}#adder", None, [], place / "out", environment)
    assert found["inspect"]["match"]["accuracy"] == 0.75 and found["rows"][0]["success"] == 0.75
    assert [record.success for record in read_records(place / "out" / "records.parquet")] == [True, True, True, False]
    with pytest.raises(ValueError, match=r"inspect eval nowhere\.py: ended with"):
        inspecting.run("nowhere.py", f"{server.url}#adder", None, [], place / "none", environment)
