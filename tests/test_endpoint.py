"""An OpenAI-compatible endpoint as solver, against a real server on loopback: good answers, garbage, silence."""

from __future__ import annotations

import json
import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import BUDGET, CountDomain, CountEnvironment, RememberingDomain
from servers import Reply, Server, called, said

from openhorizon.agent import endpoint
from openhorizon.agent.compaction import MEMORY
from openhorizon.agent.endpoint import KEY_VARIABLE, Endpoint
from openhorizon.agent.reply import read_reply
from openhorizon.agent.trajectory import Status, Trajectory, read_trajectories, write_trajectories
from openhorizon.domains.base import Answer, Call, Environment, Task
from openhorizon.kag import rules
from openhorizon.kag.selfplay import Bounds, Outcome, Part, SelfPlay, is_stored
from openhorizon.kag.solve import UNREACHED, EndpointSolver, from_trajectory
from openhorizon.kag.steer import Region


def count_up(asked: dict[str, Any]) -> Reply:
    """What a good model does."""
    last = asked["messages"][-1]["content"]
    if last.endswith("done"):
        return said(content=f"<think>It says done.</think>Answer: {last.split()[1]}")
    return called("step", json.dumps({"from": int(last.split()[-1])}), content="One further.")


def tasks(count: int = 1, horizon: int = 3) -> list[Task]:
    domain = CountDomain()
    made = [domain.propose(random.Random(i), "train", horizon, i) for i in range(count)]
    return [task for task in made if task is not None]


def roll(server: Server, count: int = 1, domain: CountDomain | None = None, **options: Any) -> list[Trajectory]:
    wanted = {"timeout_s": 5.0, "retries": 0, **options}
    client = Endpoint(server.url, "strong", **wanted)
    return client.rollout({"count": domain or CountDomain()}, tasks(count), range(count), {"count": BUDGET}, 0.7)


def test_a_good_model_solves_and_its_text_is_kept(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, "secret")
    server = serve(count_up)
    (found,) = roll(server)
    assert (found.status, found.policy, found.ids) == (Status.SOLVED, "strong", [])
    assert [turn.role for turn in found.turns] == ["prompt"] + ["assistant", "tool"] * 3 + ["assistant"]
    assert found.turns[1].text.startswith("<think>One further.</think><tool_call>")
    assert found.turns[-1].text.startswith("<think>It says done.</think>Answer: ")
    assert found.turns[2].evidence
    episode = from_trajectory(found)
    assert rules.valid(episode) == rules.process_informative(episode) == ""
    assert server.keys == {"Bearer secret"}
    first, last = server.seen[0], server.seen[-1]
    assert first["model"] == "strong" and first["temperature"] == 0.7 and first["max_tokens"] == BUDGET.turn_tokens
    assert first["tools"][0]["function"]["name"] == "step"
    assert [message["role"] for message in first["messages"]] == ["system", "user"]
    assert [message["role"] for message in last["messages"][2:]] == ["assistant", "tool"] * 3
    assert last["messages"][2]["tool_calls"][0]["id"] == last["messages"][3]["tool_call_id"]


def test_a_full_context_is_followed_by_one_with_the_memory(serve: Any) -> None:
    def counted(asked: dict[str, Any]) -> Reply:
        status, body = count_up(asked)
        tokens = 60 * len(asked["messages"])
        return status, json.dumps(json.loads(body) | {"usage": {"total_tokens": tokens}}).encode()

    server = serve(counted)
    (found,) = roll(server, domain=RememberingDomain())
    assert found.status is Status.SOLVED
    assert [turn.role for turn in found.turns].count("prompt") > 1
    assert max(len(asked["messages"]) for asked in server.seen) < 2 + 2 * 3
    renewed = next(asked for asked in server.seen[1:] if len(asked["messages"]) == 2)
    assert MEMORY in renewed["messages"][1]["content"]
    assert from_trajectory(found).verdict.passed
    (whole,) = roll(serve(counted))
    assert [turn.role for turn in whole.turns].count("prompt") == 1


def test_requests_run_side_by_side_and_come_back_in_order(serve: Any) -> None:
    def slowly(asked: dict[str, Any]) -> Reply:
        time.sleep(0.03)
        return count_up(asked)

    server = serve(slowly)
    found = roll(server, 8, parallel=4)
    assert [t.task.id for t in found] == [task.id for task in tasks(8)]
    assert {t.status for t in found} == {Status.SOLVED}
    assert 2 <= server.most_at_once <= 4


@pytest.mark.parametrize(
    ("reply", "status", "reason"),
    [
        ((200, b""), Status.FAILED, "not JSON"),
        ((200, b"<html>busy</html>"), Status.FAILED, "not JSON"),
        ((200, b"\xff\xfe"), Status.FAILED, "not JSON"),
        ((200, b"[1, 2]"), Status.FAILED, "no choices"),
        ((200, b'{"choices": []}'), Status.FAILED, "no choices"),
        ((200, b'{"choices": null}'), Status.FAILED, "no choices"),
        ((200, b'{"choices": [7]}'), Status.FAILED, "no message"),
        ((200, b'{"choices": [{"message": "hi"}]}'), Status.FAILED, "no message"),
        (said(content=7), Status.FAILED, "content is a int"),
        (said(content="x", tool_calls={"a": 1}), Status.FAILED, "tool_calls is a dict"),
        (said(content=""), Status.FAILED, "wrong"),
        (said(content=None), Status.FAILED, "wrong"),
        (said(content="Answer: 3"), Status.FAILED, "wrong"),
        (said("length", content="Answer: 3"), Status.TRUNCATED, "wrong"),
        ((400, b'{"error": {"message": "context too long"}}'), Status.TRUNCATED, "context too long"),
    ],
)
def test_nonsense_is_a_failed_episode_with_a_reason(serve: Any, reply: Reply, status: Status, reason: str) -> None:
    (found,) = roll(serve(lambda asked: reply))
    assert found.status is status
    assert reason in found.verdict.reason


@pytest.mark.parametrize(
    "reply",
    [
        called("fly", "{}"),
        called("step", "{not json"),
        called("step", '["from"]'),
        called("step", '{"from": "two"}'),
        called(7, "{}"),
        called("step", 12),
        said(tool_calls=["step"]),
        said(tool_calls=[{"function": None}]),
        called("step", "[" * 99_999),
        said(content="<tool_call>{not json}</tool_call>"),
    ],
)
def test_a_call_that_cannot_be_read_is_an_observation(serve: Any, reply: Reply) -> None:
    (found,) = roll(serve(lambda asked: count_up(asked) if len(asked["messages"]) > 4 else reply))
    assert found.turns[2].error
    assert found.turns[2].text.startswith("error: ")


def test_a_model_that_recovers_from_a_refusal_may_still_solve(serve: Any) -> None:
    def stumbling(asked: dict[str, Any]) -> Reply:
        last = asked["messages"][-1]
        if last["role"] == "user" and len(asked["messages"]) == 2:
            return called("step", "{not json")
        if last["content"].startswith("error"):
            return called("step", json.dumps({"from": int(asked["messages"][1]["content"].split()[-1])}))
        return count_up(asked)

    assert [t.status for t in roll(serve(stumbling), 3)] == [Status.SOLVED] * 3


def test_a_model_that_never_answers_is_truncated_by_the_budget(serve: Any) -> None:
    (found,) = roll(serve(lambda asked: called("step", '{"from": 1}')))
    assert found.status is Status.TRUNCATED
    assert found.tool_calls == 7  # ceil(1.5 * 3) + 2


@pytest.mark.parametrize("code", [500, 503, 429])
def test_errors_of_the_server_are_tried_again_within_a_bound(serve: Any, code: int) -> None:
    server = serve(lambda asked: (code, b'{"error": {"message": "overloaded"}}'))
    (found,) = roll(server, retries=1)
    assert len(server.seen) == 2
    assert found.status is Status.ABORTED
    assert found.verdict.reason.startswith(f"endpoint failed: {code}")


def test_an_error_that_passes_leaves_no_trace(serve: Any) -> None:
    fails = iter([True])
    (found,) = roll(serve(lambda asked: (500, b"{}") if next(fails, False) else count_up(asked)), retries=1)
    assert found.status is Status.SOLVED


def test_silence_times_out_and_is_aborted(serve: Any) -> None:
    release = threading.Event()

    def silent(asked: dict[str, Any]) -> Reply:
        release.wait(5)
        return count_up(asked)

    server = serve(silent)
    began = time.monotonic()
    (found,) = roll(server, timeout_s=0.2, retries=1)
    release.set()
    assert time.monotonic() - began < 4
    assert (found.status, len(server.seen)) == (Status.ABORTED, 2)
    assert "APITimeoutError" in found.verdict.reason


def test_an_endpoint_that_is_not_there_stops_the_run(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "GIVE_UP", 3)
    server = serve(count_up)
    server.shutdown()
    server.server_close()
    with pytest.raises(ValueError, match=r"endpoint http://127\.0\.0\.1.*3 requests in a row.*APIConnectionError"):
        roll(server, 6)


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_wrong_key_or_model_stops_the_run(serve: Any, code: int) -> None:
    with pytest.raises(ValueError, match=f"model strong: .*{code}"):
        roll(serve(lambda asked: (code, b'{"error": {"message": "who are you"}}')), 2)


def test_a_world_that_breaks_aborts_its_episode_alone(serve: Any) -> None:
    closed: list[str] = []

    class Fragile(CountEnvironment):
        def close(self) -> None:
            closed.append(self.task.id)

    class Domain(CountDomain):
        def start(self, task: Task) -> Environment:
            if task.seed == 2:
                raise OSError("no disk")
            return Fragile(task, self.tools)

    def breaking(asked: dict[str, Any]) -> Reply:
        begins_first = asked["messages"][1]["content"] == tasks(1)[0].prompt
        return called("step", '{"from": 13}') if begins_first else count_up(asked)

    found = roll(serve(breaking), 4, Domain())
    assert [t.status for t in found] == [Status.ABORTED, Status.SOLVED, Status.ABORTED, Status.SOLVED]
    assert "the world broke" in found[0].verdict.reason and "no disk" in found[2].verdict.reason
    assert sorted(closed) == ["count-0", "count-1", "count-3"], "closed once each, what had started"


def test_self_play_with_an_endpoint_counts_what_it_could_not_reach(serve: Any) -> None:
    """Every third request fails: its episodes are aborted and kept nowhere, the rest is judged by the rules."""
    number = iter(range(10**9))
    lock = threading.Lock()

    def unsteady(asked: dict[str, Any]) -> Reply:
        with lock:
            fails = next(number) % 12 == 5
        return (500, b"{}") if fails else count_up(asked)

    domain = CountDomain()
    client = Endpoint(serve(unsteady).url, "strong", retries=0, timeout_s=5.0)
    solver = EndpointSolver({"count": domain}, client, {"count": BUDGET}, 0.7, batch=8)
    bounds = Bounds(max_proposals=400, region_proposals=100, min_yield=0.0)
    play = SelfPlay({"count": domain}, solver, lambda h: 2 * h + 2, bounds, 0)
    outcomes: list[Outcome] = list(play.expand(Part("demonstrations", 12, (Region("count", 2),), tries=2)))
    assert sum(not o.rule for o in outcomes) == 12
    unreached = [o for o in outcomes if o.rule == UNREACHED]
    assert unreached and not any(is_stored(o) for o in unreached)
    rates = play.memory.rates
    assert rates.tries[Region("count", 2)] == sum(o.attempt and o.rule != UNREACHED for o in outcomes)


@pytest.mark.parametrize(
    ("message", "action"),
    [
        ({"content": "Answer: 4"}, Answer("Answer: 4")),
        ({"content": "4", "reasoning_content": "2 and 2"}, Answer("4", "2 and 2")),
        ({"content": "<think>hm</think>4", "reasoning_content": "2 and 2"}, Answer("4", "hm")),
        (
            {"content": '<think>a</think><tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>'},
            Call("f", {"x": 1}, "a"),
        ),
        ({"tool_calls": [{"function": {"name": "f", "arguments": ""}}]}, Call("f", {})),
        ({"tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}, {"function": {}}]}, Call("f", {"x": 1})),
        ({"tool_calls": [{"function": {"name": "f", "arguments": "nope"}}], "content": "why"}, Call("", {}, "why")),
    ],
)
def test_replies_are_read_as_servers_write_them(message: dict[str, Any], action: Any) -> None:
    reply = read_reply(json.dumps({"choices": [{"message": message}]}))
    assert (reply.action, reply.cut, reply.used, reply.ids) == (action, False, 0, ())


def with_tokens(asked: dict[str, Any], drift: bool = False) -> Reply:
    """What a server that gives ids says: a character is a token; ``drift``: it reads its own turns otherwise."""
    status, body = count_up(asked)
    value = json.loads(body)
    message = value["choices"][0]["message"]
    written = message["content"] or ""
    for call in message.get("tool_calls", []):
        written += json.dumps(call["function"])
    read = ""
    for i, it in enumerate(asked["messages"]):
        text = (it["content"] or "") + "".join(json.dumps(call["function"]) for call in it.get("tool_calls", []))
        read += (text.upper() if drift and it["role"] == "assistant" and i < 3 else text) + ("" if i < 1 else "|")
    ids = [ord(character) for character in written + "|"]
    value["prompt_token_ids"] = [ord(character) for character in read]
    value["choices"][0] |= {
        "token_ids": ids,
        "logprobs": {"content": [{"token": chr(it), "logprob": -it / 100} for it in ids]},
    }
    total = len(read) + len(ids)
    value["usage"] = {"completion_tokens": len(ids), "total_tokens": min(total, BUDGET.context_tokens)}
    return status, json.dumps(value).encode()


def test_ids_and_logprobs_are_kept_where_the_server_gives_them(serve: Any, tmp_path: Path) -> None:
    server = serve(with_tokens)
    (found,) = roll(server)
    assert server.seen[0]["logprobs"] is True and server.seen[0]["return_token_ids"] is True
    assert found.status is Status.SOLVED
    system = CountDomain.system
    texts = ["".join(map(chr, turn.ids)) for turn in found.turns]
    assert texts[0] == f"{system}{found.task.prompt}|"
    assert texts[2] == f"{found.turns[2].text}|"
    assert texts[-1] == f"{found.turns[-1].text}|"
    assert "".join(texts) == "".join(map(chr, found.ids))
    for turn in found.turns:
        wanted = tuple(-it / 100 for it in turn.ids) if turn.role == "assistant" else ()
        assert turn.logprobs == wanted
    assert found.written == sum(found.loss_mask) > 0
    write_trajectories(tmp_path / "t.parquet", [found])
    assert read_trajectories(tmp_path / "t.parquet") == [found]


def test_ids_of_a_context_that_is_read_otherwise_later_are_not_kept(serve: Any, tmp_path: Path) -> None:
    (found,) = roll(serve(lambda asked: with_tokens(asked, drift=True)))
    assert found.status is Status.SOLVED
    assert found.ids == [] and not any(turn.logprobs for turn in found.turns)
    (exact,) = roll(serve(with_tokens))
    assert found.written == exact.written > 0, "their number is known all the same"
    write_trajectories(tmp_path / "t.parquet", [found])
    assert read_trajectories(tmp_path / "t.parquet")[0].written == found.written


def test_a_server_that_refuses_details_is_asked_without(serve: Any) -> None:
    def strict(asked: dict[str, Any]) -> Reply:
        return (422, b'{"detail": "unexpected fields"}') if "return_token_ids" in asked else count_up(asked)

    server = serve(strict)
    found = roll(server, 3, parallel=1)
    assert {it.status for it in found} == {Status.SOLVED}
    assert sum("return_token_ids" in asked for asked in server.seen) == 1, "remembered"


def test_ids_are_read_from_names_of_tokens_too() -> None:
    content = [{"token": f"token_id:{it}", "logprob": -0.5} for it in (7, 9)]
    body = {"choices": [{"message": {"content": "x"}, "logprobs": {"content": content}}]}
    reply = read_reply(json.dumps(body))
    assert (reply.ids, reply.logprobs) == ((7, 9), (-0.5, -0.5))
    content[1] = {"token": "x", "logprob": -0.5}
    assert read_reply(json.dumps(body)).ids == ()
    content[1] = {"token": "12", "logprob": -0.5}  # the text of a token, not its id
    assert read_reply(json.dumps(body)).ids == ()


def test_history_goes_back_as_the_server_wrote_it(serve: Any) -> None:
    """A server that leaves calls in the text reads its own text again; one that takes them out gets them so."""

    def in_text(asked: dict[str, Any]) -> Reply:
        status, body = count_up(asked)
        message = json.loads(body)["choices"][0]["message"]
        if not message.get("tool_calls"):
            return status, body
        call = message["tool_calls"][0]["function"]
        text = f'<tool_call>{{"name":"step","arguments":{call["arguments"]}}}</tool_call>'
        return said(content=f"<think>go</think>\n{text}")

    server = serve(in_text)
    (found,) = roll(server)
    assert found.status is Status.SOLVED
    last = server.seen[-1]["messages"]
    assert last[2]["content"] == found.turns[1].text
    assert last[2]["content"].startswith('<think>go</think>\n<tool_call>{"name":"step"') and "tool_calls" not in last[2]


def test_a_context_that_the_server_says_is_passed_is_truncated(serve: Any) -> None:
    def long(asked: dict[str, Any]) -> Reply:
        status, body = count_up(asked)
        return status, json.dumps(json.loads(body) | {"usage": {"total_tokens": 130 * len(asked["messages"])}}).encode()

    (found,) = roll(serve(long))
    assert found.status is Status.TRUNCATED and found.tool_calls == 0
