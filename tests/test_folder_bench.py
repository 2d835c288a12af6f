"""Benchmarks out of a user's folder: what a file may hold, who judges, and what happens when nobody does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from servers import Reply, Server, called, said
from settings import laptop

from openhorizon import benchmarking
from openhorizon.agent.endpoint import Endpoint
from openhorizon.agent.trajectory import Status, Trajectory, read_trajectories
from openhorizon.bench.base import read_records
from openhorizon.bench.public import folder as folders
from openhorizon.bench.public.folder import open_folder
from openhorizon.bench.public.judge import given, plain
from openhorizon.bench.public.reported import reported
from openhorizon.domains.base import Verdict

CAPITALS = {"France": "Paris", "Spain": "Madrid", "Peru": "Lima", "Japan": "Tokyo"}
PROMPT = "Q: {question}\nRight: {answer}\nSaid: {response}\nIs it right? correct: yes or no"
TOOLS = """
from openhorizon.domains.base import Tool
WORD = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
TOOLS = [Tool("look", "look a word up", WORD)]
def call(name, arguments):
    if arguments["word"] == "fire":
        raise OSError("it burns")
    return "seen " + arguments["word"] * 20
"""


def make(at: Path, tools: str = "", prompt: str = "", **settings: Any) -> Path:
    at.mkdir(exist_ok=True)
    lines = [
        json.dumps({"question": f"Capital of {key}?", "answer": value, "level": 1}) for key, value in CAPITALS.items()
    ]
    (at / "questions.jsonl").write_text("\n".join(lines) + "\n\n", encoding="utf-8")
    values = {"name": "capitals", "licence": "CC0", "turn_tokens": 64, **settings}
    (at / "benchmark.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    if tools:
        (at / "tools.py").write_text(tools, encoding="utf-8")
    if prompt:
        (at / "judge.txt").write_text(prompt, encoding="utf-8")
    return at


def knows(asked: dict[str, Any]) -> Reply:
    """Knows all capitals but Peru's."""
    country = asked["messages"][1]["content"].removeprefix("Capital of ").rstrip("?")
    return said(content=f"I think <answer> {'Cusco' if country == 'Peru' else CAPITALS[country].upper()} </answer>")


def bench(at: Path, server: Server, out: Path) -> dict[str, Any]:
    wanted = benchmarking.Wanted(str(at), f"{server.url}#m", None, 0.7)
    return benchmarking.bench(laptop(), wanted, out, out / "timing.json")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_exact_match_from_a_folder_to_results(place: Path, serve: Any) -> None:
    server = serve(knows)
    found = bench(make(place / "f", group="level"), server, place / "out")
    accuracy = next(rate for rate in found["rates"] if rate["metric"] == "accuracy" and rate["group"] == "all")
    assert (accuracy["n"], accuracy["value"]) == (4, 0.75) and found["broken"] is None
    ends = {name: rows[0]["value"] for name, rows in found["references"].items()}
    assert ends == {"gold": 1.0, "floor": 0.0}
    assert found["benchmark"]["licence"] == "CC0" and "exact match" in found["benchmark"]["protocol"]
    assert found["player"] == f"{server.url}#m" and not found["contamination"]["checked"]
    records = read_records(place / "out" / "records.parquet")
    assert {record.reason for record in records} == {"as the reference", "not the reference"}
    assert {it.status for it in read_trajectories(place / "out" / "trajectories.parquet")} == {
        Status.SOLVED, Status.FAILED,
    }  # fmt: skip
    assert len(server.seen) == 4
    bench(place / "f", server, place / "out")
    assert len(server.seen) == 4, "resumed"


def test_a_judge_that_refuses_is_counted_and_asked_again(place: Path, serve: Any) -> None:
    asked_of_judge: list[str] = []
    refuses = [True]

    def judge(asked: dict[str, Any]) -> Reply:
        text = asked["messages"][0]["content"]
        if text.startswith("Q: Capital of Spain?") and "MADRID" in text and refuses:
            return said(content="I cannot judge this.")
        asked_of_judge.append(text)
        right, response = (line.partition(": ")[2] for line in text.splitlines()[1:3])
        return said(
            content=f"They say {response}.\n**correct: {'Yes' if right.lower() == response.lower() else 'no'}**"
        )

    judging, server = serve(judge), serve(knows)
    settings = {"url": judging.url, "model": "strong"}
    at = make(place / "f", prompt=PROMPT, judge=settings)
    found = bench(at, server, place / "out")
    accuracy = next(rate for rate in found["rates"] if rate["metric"] == "accuracy")
    assert (accuracy["n"], round(accuracy["value"], 3)) == (3, 0.667)
    assert found["counts"]["not_judged"] == {"the judge gave no verdict": 1} and found["counts"]["judged"] == 3
    rows = [json.loads(line) for line in (place / "out" / "results.jsonl").read_text().splitlines()]
    assert [row["reason"] for row in rows if row["success"] is None] == [
        "the judge gave no verdict (I cannot judge this.)"
    ]
    assert {request["temperature"] for request in judging.seen} == {0.0}
    refuses.clear()
    played, judged = len(server.seen), len(asked_of_judge)
    again = bench(at, server, place / "out")
    assert (len(server.seen), len(asked_of_judge)) == (played, judged + 1), "judged, not played, again"
    accuracy = next(rate for rate in again["rates"] if rate["metric"] == "accuracy")
    assert (accuracy["n"], accuracy["value"], again["counts"]["not_judged"]) == (4, 0.75, {})
    assert again["timing"]["seconds"] > 0


def test_a_judge_that_is_not_there_judges_nothing(place: Path, serve: Any) -> None:
    judging = serve(knows)
    judging.shutdown()
    judging.server_close()
    at = make(place / "f", prompt=PROMPT, judge={"url": judging.url, "model": "gone", "timeout_s": 1.0})
    benchmark = open_folder(at)
    assert benchmark.judge is not None
    task = benchmark.tasks()[0]
    played = Trajectory(task, (), "<answer>x</answer>", Status.FAILED, Verdict(False, 0.0, ""), "m", 0)
    (found,) = benchmark.judge([played])
    assert found.verdict.reason.startswith("the judge could not be asked (") and benchmark.measure(found) == {}
    found = bench(at, serve(knows), place / "out")  # type: ignore[assignment]
    assert found["counts"]["judged"] == 0 and found["counts"]["not_judged"] == {"the judge could not be asked": 4}  # type: ignore[index]
    assert found["broken"] is not None and found["rates"] == [], "its own solution was not judged right"  # type: ignore[index]


def play(at: Path, server: Server, clock: Any = None, **budget: Any) -> list[Trajectory]:
    benchmark = open_folder(at)
    assert isinstance(benchmark.domain, folders.FolderDomain) and benchmark.judge is not None
    domain = replace(benchmark.domain, clock=clock) if clock else benchmark.domain
    tasks = benchmark.tasks()[:1]
    client = Endpoint(server.url, "m", retries=0)
    played = client.rollout({"folder": domain}, tasks, [0], {"folder": replace(benchmark.budget, **budget)}, 0.0)
    return benchmark.judge(played)


def test_tools_of_the_user_and_their_failures(place: Path, serve: Any) -> None:
    at, words = make(place / "f", tools=TOOLS, turns=3), iter(["fire", "water"])

    def looks(asked: dict[str, Any]) -> Reply:
        word = next(words, None)
        return called("look", json.dumps({"word": word})) if word else knows(asked)

    (found,) = play(at, serve(looks))
    assert found.turns[2].text == "error: OSError: it burns" and found.turns[2].error
    assert found.turns[4].text.startswith("seen waterwater") and not found.turns[4].error
    (found,) = play(at, serve(lambda asked: called("look", '{"word": "on"}')))
    assert (found.status, found.tool_calls, found.verdict.reason) == (Status.TRUNCATED, 3, "no answer")


def test_past_its_time_a_task_can_only_be_answered(place: Path, serve: Any) -> None:
    at, ticks = make(place / "f", tools=TOOLS, time_s=10), iter([0.0, 5.0, 11.0])
    calls = iter([1, 2])

    def looks(asked: dict[str, Any]) -> Reply:
        return called("look", '{"word": "on"}') if next(calls, None) else knows(asked)

    (found,) = play(at, serve(looks), lambda: next(ticks))
    assert [turn.text for turn in found.turns if turn.error] == [folders.TIME_OVER]
    assert folders.measure(found)["out of time"].value == 1.0 and found.answer is not None


def test_a_full_context_is_discarded_and_the_question_asked_anew(place: Path, serve: Any) -> None:
    tries = iter(range(99))

    def looks(asked: dict[str, Any]) -> Reply:
        if next(tries) >= 6:
            return knows(asked)
        status, body = called("look", '{"word": "on"}')
        used = 100 * len(asked["messages"])
        return status, json.dumps(json.loads(body) | {"usage": {"total_tokens": used}}).encode()

    server = serve(looks)
    (found,) = play(make(place / "f", tools=TOOLS, discard=True, context_tokens=450), server)
    prompts = [turn.text for turn in found.turns if turn.role == "prompt"]
    assert len(prompts) > 1 and set(prompts) == {found.task.prompt}, "nothing is kept"
    assert found.status in (Status.SOLVED, Status.FAILED) and found.answer
    assert max(len(asked["messages"]) for asked in server.seen) <= 6


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 2: not JSON"),
        ("[1]", "line 2: a list, expected an object"),
        ('{"answer": "x"}', "line 2: no question: 'None'"),
        ('{"question": "q?", "answer": null}', "line 2: no answer: 'None'"),
        ('{"question": "q?", "answer": " "}', "line 2: no answer"),
        ('{"question": "q?", "answer": true}', "line 2: no answer"),
        ('{"question": "q?", "answer": "x"}', "line 2: no 'level'"),
        ('{"question": "first?", "answer": "y", "level": 2}', "line 2: the question of line 1 again"),
    ],
)
def test_a_wrong_line_is_named(place: Path, line: str, reason: str) -> None:
    at = make(place / "f", group="level")
    (at / "questions.jsonl").write_text(f'{{"question": "first?", "answer": "x", "level": 1}}\n{line}\n')
    with pytest.raises(ValueError, match=reason):
        open_folder(at)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"turn": 3}, "unknown key 'turn'; known are name"),
        ({"turns": "many"}, "turns: 'many' is no int"),
        ({"turns": True}, "turns: True is no int"),
        ({"turns": 0}, "turns: 0 is not above 0"),
        ({"name": "a b"}, "name: 'a b'"),
        ({"judge": {"url": "http://x"}}, "judge: missing key 'model'"),
        ({"judge": {"url": "http://x", "model": "m"}}, r"judge\.txt: missing"),
    ],
)
def test_wrong_settings_are_named(place: Path, change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        open_folder(make(place / "f", **change))


def test_what_else_a_folder_may_lack(place: Path) -> None:
    with pytest.raises(ValueError, match=r"benchmark\.yaml: missing"):
        open_folder(place)
    at = make(place / "f", prompt="Is {response} right?", judge={"url": "http://x", "model": "m"})
    with pytest.raises(ValueError, match=r"judge\.txt: lacks \{question\}, \{answer\}"):
        open_folder(at)
    for text, reason in (
        ("import nowhere", "ModuleNotFoundError"),
        ("TOOLS = [1]", "TOOLS is to be a list"),
        (TOOLS.replace("def call", "def other"), "no function call"),
    ):
        with pytest.raises(ValueError, match=reason):
            open_folder(make(place / "g", tools=text))
    (at / "questions.jsonl").write_text("\n")
    (at / "judge.txt").write_text(PROMPT)
    with pytest.raises(ValueError, match="no questions"):
        open_folder(at)


def test_another_file_is_another_edition(place: Path) -> None:
    one = open_folder(make(place / "f")).version
    assert one == open_folder(place / "f").version
    assert one != open_folder(make(place / "f", turns=299)).version
    assert reported("gaia") is not None, "a folder of that name stands beside the authors' figures"


def test_answers_stand_in_tags_and_match_but_for_form() -> None:
    def answered(text: str | None) -> Trajectory:
        return Trajectory(None, (), text, Status.FAILED, Verdict(False, 0.0, ""), "m", 0)  # type: ignore[arg-type]

    assert given(answered("<answer>a</answer> no, <answer>\n b </answer>")) == "b"
    assert given(answered("Paris")) is None and given(answered(None)) is None
    assert plain(" Ｐａｒｉｓ \n  FRANCE") == "paris france"
