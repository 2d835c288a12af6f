"""BFCL v4 multi-turn: 800 tasks over eight simulated services, in four categories.

The Berkeley Function-Calling Leaderboard (package bfcl-eval) with its own data, simulators and ``multi_turn_checker``:
after every turn the simulators must equal those of the gold run, every gold result must have been seen, and a turn that
has gold calls must have calls. The checker runs the calls itself, through a function that evaluates text; in its place
stands one that dispatches parsed calls to the same simulators by name. Where the leaderboard lets a function be called
that a task does not offer, it can be called here, too.

What differs: the user's next turn comes through the tool ``next_user_turn`` (our episodes end with the first turn that
has no call), and an answer ends the last turn alone. A model's turn has one call, where the leaderboard takes several;
so a conversation is ended when a user's turn took 20 calls more than the gold run, where the leaderboard ends it after
20 of the model's turns.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from openhorizon.agent.trajectory import Trajectory
from openhorizon.bench.public.base import Benchmark, Metrics, Value
from openhorizon.config import BudgetConfig
from openhorizon.domains.base import Action, Answer, Call, Environment, Observation, Step, Task, Tool, Verdict
from openhorizon.domains.tool_calling.bfcl import (
    CHECKER,
    NEXT,
    VARIANTS,
    BfclDomain,
    Simulators,
    announced,
    bfcl_library,
    entries,
    reserved,
    said,
    scenario,
)
from openhorizon.domains.tool_calling.borrowed import Library

SPARE = 20  # calls in a user's turn, beyond those of the gold run
MOST_CALLS = 256  # in a conversation; what SPARE allows is less
OVER = "The conversation is over. Give your answer."
_UTILS = "bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils"
_running: dict[str, Simulators] = {}  # of the judgement that is being made, by the name that it gave a side
_numbers = itertools.count()


class BfclWorld(BfclDomain):
    """The conversation with its user, judged when it is over."""

    def start(self, task: Task) -> Conversation:
        return Conversation(task, self.tools_for(task))

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        assert isinstance(environment, Conversation)
        gold = environment.entry["gold"]
        turns = [*environment.turns]
        if len(turns) == len(gold) and not environment.over and answer is None:
            turns.pop()  # the last one was not finished
        if environment.forced or len(turns) < len(gold):
            return Verdict(False, 0.0, environment.forced or f"turn {len(turns) + (answer is None)} was not finished")
        wrong = check(environment.entry, turns)
        return Verdict(not wrong, float(not wrong), wrong or "every turn ends as the gold run does")


class Conversation(Environment):
    """The simulators, and the calls of each turn so far."""

    def __init__(self, task: Task, tools: Sequence[Tool]) -> None:
        super().__init__(task, tools)
        self.entry = entries()[task.state["id"]]
        self.simulators = Simulators(self.entry)
        self.turns: list[list[Call]] = [[]]
        self.over, self.forced = False, ""

    def execute(self, call: Call) -> Observation:
        if self.over or self.forced:
            return Observation(OVER, error=True)
        if call.name == NEXT.name:
            return self._next()
        self.turns[-1].append(call)
        allowed = len(self.entry["gold"][len(self.turns) - 1]) + SPARE
        if len(self.turns[-1]) > allowed:
            self.forced = f"more than {allowed} calls in turn {len(self.turns)}"
            return Observation(OVER, error=True)
        result = self.simulators.call(call.name, call.arguments)
        return Observation(result, error=result.startswith(("Error", '{"error"')))

    def call(self, call: Call) -> Observation:
        """The simulators judge arguments themselves, and know functions that were not offered."""
        if call.name not in self.simulators.methods:
            return super().call(call)
        observation = self.execute(call)
        self.steps.append(Step(call, observation))
        return observation

    def _next(self) -> Observation:
        if len(self.turns) == len(self.entry["gold"]):
            self.over = True
            return Observation(OVER)
        self.turns.append([])
        turn = len(self.turns) - 1
        new = announced(self.entry, turn)
        self.tools |= {tool.name: tool for tool in new}
        return Observation("\n".join([f"User: {said(self.entry, turn)}", *map(_shown, new)]))


def check(entry: Mapping[str, Any], turns: Sequence[Sequence[Call]]) -> str:
    """What the package's checker says against the calls of each turn; empty: nothing."""
    name = f"player {next(_numbers)}"
    try:
        found = _checker()([[[call] for call in turn] for turn in turns], entry["gold"], entry, "", name)
    finally:
        for side in [side for side in _running if side.startswith(name)]:
            del _running[side]
    return "" if found["valid"] else f"{found['error_type']}: {found['error_message']}"


@functools.cache
def _checker() -> Callable[..., dict[str, Any]]:
    theirs = bfcl_library()
    empty = theirs.module(_UTILS).is_empty_execute_response
    instead = {_UTILS: {"execute_multi_turn_func_call": _execute, "is_empty_execute_response": empty}}
    checker: Callable[..., dict[str, Any]] = (
        Library("bfcl_eval", theirs.folder, instead).module(CHECKER).multi_turn_checker
    )
    return checker


def _execute(
    func_call_list: Sequence[Call | str], model_name: str, test_entry_id: str, **_: Any
) -> tuple[list[str], dict[str, Any]]:
    """In the place of the package's function of this signature, which evaluates text."""
    if model_name not in _running:
        _running[model_name] = Simulators(entries()[test_entry_id])
    simulators = _running[model_name]
    calls = [simulators.read(call) if isinstance(call, str) else call for call in func_call_list]
    return [simulators.call(call.name, call.arguments) for call in calls], simulators.instances


def tasks(chosen: Callable[[str], bool]) -> list[Task]:
    """Those of the chosen ids; the four categories take turns, scenarios in the order of their numbers."""
    found = entries()
    keys = sorted((key for key in found if chosen(key)), key=lambda k: (int(scenario(k)), VARIANTS.index(_variant(k))))
    return [_task(key, found[key]) for key in keys]


def gold(task: Task) -> tuple[Action, ...]:
    entry = entries()[task.state["id"]]
    simulators, actions = Simulators(entry), list[Action]()
    for calls in entry["gold"]:
        actions += [simulators.read(text) for text in calls]
        actions.append(Call(NEXT.name, {"message": "Done."}))
    return (*actions, Answer("Done."))


def measure(trajectory: Trajectory) -> Metrics:
    return {"accuracy": Value(float(trajectory.verdict.passed))}


def texts(task: Task) -> tuple[str, ...]:
    entry = entries()[task.state["id"]]
    return tuple(text for turn in range(len(entry["question"])) if (text := said(entry, turn)))


def _task(key: str, entry: Mapping[str, Any]) -> Task:
    return Task(
        domain="tool_calling",
        id=key,
        split="heldout",
        prompt=said(entry, 0),
        horizon=sum(len(calls) + 1 for calls in entry["gold"]),
        seed=0,
        state={"id": key},
        evidence=(),
        verifiers=("multi_turn_checker",),
        reference="",
        entity_pairs=(("bfcl", scenario(key)),),
        source="bfcl",
    )


def _variant(key: str) -> str:
    return str(entries()[key]["variant"])


def _shown(tool: Tool) -> str:
    return json.dumps(tool.schema()["function"])


BFCL = Benchmark(
    name="bfcl",
    title="BFCL v4 multi-turn",
    package="bfcl-eval",
    licence="Apache-2.0",
    split="all 800 tasks",
    protocol="parsed JSON calls, one a turn; the user speaks through the tool next_user_turn; up to 20 "
    "calls more than the gold run in a user's turn",
    domain=BfclWorld(),
    budget=BudgetConfig(slack=0.0, extra=MOST_CALLS, turn_tokens=1024, context_tokens=131_072),
    primary="accuracy",
    tasks=functools.cache(lambda: tasks(lambda key: True)),
    group=lambda task: _variant(task.state["id"]),
    measure=measure,
    texts=texts,
    gold=gold,
)
HELDOUT = replace(
    BFCL,
    name="bfcl-heldout",
    title="BFCL v4 multi-turn, scenarios that no training task is made of",
    split="184 tasks of 46 scenarios, by the hash of the scenario",
    tasks=functools.cache(lambda: tasks(reserved)),
)
