"""τ²'s test tasks with a scripted user: ``tau2-scripted``. **Not τ²**, whose user is a language model.

The 100 tasks of the test splits of airline (20), retail (40) and telecom (40) in package inspect-evals, which no
training task is made of, in the world of domains/tool_calling/tau2.py: its user hands over his instructions as they
were written for whoever plays him, in two messages, and adds nothing; in telecom he hands over the ticket, and his
device is among the agent's own tools. So nobody has to draw anything out of anybody, and figures are comparable among
themselves alone, never with τ²'s.

Judged is as the package's scorers do, all or nothing: in airline and retail the database must equal that after the
authors' actions, and what has to be communicated must stand in what the customer was told; in telecom the assertions
about line and device must hold, and where the task says so, the required actions were called. A session that was never
closed is not finished, as a conversation of τ² that runs out of turns. What τ² asserts in words, of 22 tasks, is judged
neither there nor here.

The empty policy closes the session at once: where nothing has to be changed or told, as in 8 tasks, that is right.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from openhorizon.agent.trajectory import Trajectory
from openhorizon.bench.public.base import Benchmark, Metrics, Value, shuffled
from openhorizon.config import BudgetConfig
from openhorizon.domains.base import Action, Answer, Call, Environment, Task, Verdict
from openhorizon.domains.tool_calling.tau2 import (
    Tau2Domain,
    Tau2Environment,
    entries,
    gold_database,
    instructions,
    session_task,
    solution,
)

CALLS = 100  # of an episode, as the package bounds its messages; the longest solution has 23
REASONS = {
    "closed": "the session was not closed",
    "database": "the database is not as after the authors' actions",
    "communicated": "the customer was not told what he has to know",
    "assertions": "the device or the line is not as it should be",
    "actions": "a required action was not taken",
}


class Tau2World(Tau2Domain):
    """The same sessions, judged by what τ² judges: the closing code is no criterion."""

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        assert isinstance(environment, Tau2Environment)
        rubric = {item: met(item, environment) for item in criteria(environment.entry)}
        wrong = next((item for item, right in rubric.items() if not right), "")
        return Verdict(not wrong, float(not wrong), REASONS[wrong] if wrong else "all criteria are met", rubric)


def criteria(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """Those that a task is judged by."""
    wanted = entry["evaluation_criteria"]
    if entry["service"] == "telecom":
        return ("closed", "assertions", *(["actions"] if "ACTION" in wanted["reward_basis"] else []))
    return ("closed", "database", *(["communicated"] if wanted["communicate_info"] else []))


def met(criterion: str, environment: Tau2Environment) -> bool:
    wanted, session = environment.entry["evaluation_criteria"], environment.session
    match criterion:
        case "database":
            return session.database() == gold_database(environment.key)
        case "communicated":
            return communicated(environment.said, wanted["communicate_info"])
        case "assertions":
            return all(session.holds(one) for one in wanted["env_assertions"])
        case "actions":
            calls = [step.call for step in environment.steps]
            return all(taken(action, calls) for action in wanted["actions"])
        case "closed":
            return environment.closed
    raise AssertionError(f"no criterion {criterion}")


def communicated(said: Sequence[str], wanted: Sequence[str]) -> bool:
    """Each somewhere in what the customer was told, in any case and with or without commas in numbers."""
    told = "\n".join(said).lower().replace(",", "")
    return all(info.lower() in told for info in wanted)


def taken(action: Mapping[str, Any], calls: Sequence[Call]) -> bool:
    """Whether one of the calls is the action, in the arguments that the task compares: all, unless it names some."""
    compared = action.get("compare_args")
    expected = action["arguments"]
    return any(
        call.name == action["name"]
        and (
            dict(call.arguments) == expected
            if compared is None
            else all(call.arguments.get(name) == expected.get(name) for name in compared)
        )
        for call in calls
    )


@functools.cache
def tasks() -> list[Task]:
    reserved = [key for key, entry in entries().items() if entry["reserved"]]
    return shuffled(session_task(key, f"tau2-scripted/{key}", "heldout", 0) for key in reserved)


def measure(trajectory: Trajectory) -> Metrics:
    """Of an episode that never began, such as one whose prompt was too long, nothing is met."""
    verdict, entry = trajectory.verdict, entries()[trajectory.task.state["id"]]
    found = {item: Value(float(verdict.rubric.get(item, False))) for item in criteria(entry)}
    return {"reward": Value(float(verdict.passed)), **found}


def closes_at_once(task: Task) -> tuple[Action, ...]:
    return (Call("close_session", {"message": "Goodbye."}), Answer(""))


TAU2_SCRIPTED = Benchmark(
    name="tau2-scripted",
    title="τ²'s test tasks with a scripted user (not τ²)",
    package="inspect-evals",
    licence="MIT",
    split="100 tasks of the test splits: airline 20, retail 40, telecom 40",
    protocol="scripted user, not τ²'s official protocol: he hands over his instructions as they are written "
    f"(telecom: the ticket, his device among the agent's tools); at most {CALLS} calls; no τ² score compares with this",
    domain=Tau2World(),
    budget=BudgetConfig(slack=0.0, extra=CALLS, turn_tokens=1024, context_tokens=131_072),
    primary="reward",
    tasks=tasks,
    group=lambda task: str(entries()[task.state["id"]]["service"]),
    measure=measure,
    texts=lambda task: (instructions(task.state["id"]),),
    gold=lambda task: solution(task.state["id"]),
    floor=closes_at_once,
)
