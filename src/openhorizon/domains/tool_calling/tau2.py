"""Tool calling on τ²-bench's tasks with a scripted user: ``tool_calling/tau2``. **Not the official protocol.**

τ² (package inspect-evals, MIT) has airline, retail and telecom tasks: a policy, databases, tools in Python, a user's
instructions and the actions that its authors hold right. Officially a language model plays the user. Here the user is
scripted: he hands over his instructions as they are written, so results are never to be reported as τ² scores. Telecom
runs as its "solo" mode does: the agent has the ticket and the user's device tools.

    prompt                              the policy; "A customer is on the line."
    message_user "Good day ..."         Customer's note: You want to figure out the total number of suitcases ...
    message_user "Who are you ..."      Customer's note: You are Anya Garcia. Your user id is: anya_garcia_5901. ...
    get_reservation_details, ...        {"reservation_id": "JMO1MG", ...}
    close_session "4"                   Session closed. Closing code: 30714

The authors' actions are this world's demonstrations (talk and closing are ours). Verdict: the databases equal those
after these actions, what has to be communicated was, telecom's own assertions hold, and where a telecom task says so,
every required action was taken. The package's tool modules are loaded by path with stand-ins for the few names of its
framework, inspect_ai, which need not be installed.

Tasks of τ²'s test split are the benchmark's: no task is made of them, nor of telecom tasks with the same faults;
``heldout_texts`` is for decontamination. Left out, too, are tasks that a session in which nothing is done would pass.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from typing import Any

from openhorizon.domains.base import (
    Action,
    Answer,
    Call,
    Environment,
    Observation,
    Split,
    Task,
    Tool,
    Verdict,
    split_of,
)
from openhorizon.domains.published import Published, closing_code, is_code
from openhorizon.domains.tool_calling.tau2_session import Session, folder, read_data, service_tools

SERVICES = ("airline", "retail", "telecom")
_TALK = {
    "type": "object",
    "properties": {"message": {"type": "string", "minLength": 1, "maxLength": 1200}},
    "required": ["message"],
    "additionalProperties": False,
}
TALK = (
    Tool("message_user", "Say something to the customer and read the answer.", _TALK),
    Tool("close_session", "Tell the customer the result and end the session; returns the closing code.", _TALK),
)


@functools.cache
def entries() -> dict[str, dict[str, Any]]:
    """All tasks by service and id, with whether they are the benchmark's."""
    found: dict[str, dict[str, Any]] = {}
    for service in SERVICES:
        place = folder() / "data" / "domains" / service
        rows = read_data(place / ("tasks.json.gz" if service == "telecom" else "tasks.json"))
        test = set(read_data(place / "split_tasks.json")["test"])
        faults = {_faults(key) for key in test}
        for row in rows:
            reserved = row["id"] in test or (service == "telecom" and _faults(row["id"]) in faults)
            found[f"{service}/{row['id']}"] = row | {"service": service, "reserved": reserved}
    return found


def _faults(key: str) -> str:
    """A telecom task without its persona."""
    return key.partition("[PERSONA")[0]


def heldout_texts() -> tuple[str, ...]:
    """The instructions of the benchmark's tasks: training data must not contain them."""
    return tuple(instructions(key) for key, entry in entries().items() if entry["reserved"])


def instructions(key: str) -> str:
    """All that the scripted user hands over."""
    return " ".join(_notes(entries()[key]))


def _notes(entry: Mapping[str, Any]) -> tuple[str, ...]:
    """What the scripted user hands over, message by message."""
    if entry["service"] == "telecom":
        return (entry["ticket"],)
    said = entry["user_scenario"]["instructions"]
    more = (said["known_info"], said.get("unknown_info"), said.get("task_instructions"))
    return (said["reason_for_call"], " ".join(part.strip() for part in more if part))


def _actions(entry: Mapping[str, Any]) -> tuple[Call, ...]:
    return tuple(Call(row["name"], row["arguments"]) for row in entry["evaluation_criteria"]["actions"] or ())


@functools.cache
def usable(key: str) -> bool:
    """Not the benchmark's, solved by its own actions, and not by doing nothing."""
    entry = entries()[key]
    offered = {tool.name for tool in service_tools(entry["service"])}
    calls = _actions(entry)
    if entry["reserved"] or not calls or any(call.name not in offered for call in calls):
        return False
    told = bool(entry["evaluation_criteria"]["communicate_info"])
    if entry["service"] == "telecom":
        asserted = entry["evaluation_criteria"]["env_assertions"] or ()
        idle = Session("telecom", entry)
        return told or not all(idle.holds(assertion) for assertion in asserted)
    return told or any(_writes(call.name) for call in calls)


@functools.cache
def gold_database(key: str) -> str:
    """The database after the authors' actions; those that the service refuses change nothing, as with them."""
    entry = entries()[key]
    session = Session(entry["service"], entry)
    for call in _actions(entry):
        session.call(call.name, call.arguments)
    return session.database()


def solution(key: str) -> tuple[Action, ...]:
    """The authors' actions between talk and a closing that are ours."""
    entry = entries()[key]
    told = ", ".join(entry["evaluation_criteria"]["communicate_info"] or ())
    said = f"Here is what you asked for: {told}." if told else "Everything is done as you asked."
    openings = ("Good day, what can I do for you?", "Thank you. Please tell me who you are, and all that matters.")
    talk = [Call("message_user", {"message": text}) for text in openings[: len(_notes(entry))]]
    return (*talk, *_actions(entry), Call("close_session", {"message": said}), Answer(f"Answer: {_code(key)}"))


def session_task(key: str, name: str, split: Split, seed: int) -> Task:
    """The session of one of the package's tasks, under an id of its own."""
    entry = entries()[key]
    notes = len(_notes(entry))
    return Task(
        domain="tool_calling",
        id=name,
        split=split,
        prompt=f"{policy(entry['service'])}\n\nA customer is on the line, session {_code(f'open {key}')}.",
        horizon=notes + len(_actions(entry)) + 1,
        seed=seed,
        state={"id": key},
        evidence=(*(f"{key}/note {i + 1}" for i in range(notes)), f"{key}/end"),
        verifiers=("database", "communicated", "assertions", "actions", "answer"),
        reference=_code(key),
        entity_pairs=(_pair(key),),
        source="tau2",
    )


def _writes(name: str) -> bool:
    return name.split("_")[0] in ("book", "cancel", "exchange", "modify", "return", "send", "update")


class Tau2Domain(Published):
    name = "tool_calling"
    source = "tau2"
    system = (
        "You are a customer service agent and follow the policy in the prompt. Hear the customer with message_user "
        "until nothing is added, work with the tools, and end the session with close_session, telling the result. Then "
        "end with Answer: and the closing code."
    )

    @functools.cached_property
    def tools(self) -> tuple[Tool, ...]:  # type: ignore[override]  # read from the package when first asked for
        found = {tool.name: tool for service in SERVICES for tool in service_tools(service)}
        return (*TALK, *found.values())

    def tools_for(self, task: Task) -> tuple[Tool, ...]:
        return (*TALK, *service_tools(entries()[task.state["id"]]["service"]))

    def by_horizon(self, split: Split) -> Mapping[int, Sequence[str]]:
        return _by_horizon(split)

    def heldout_texts(self) -> tuple[str, ...]:
        return heldout_texts()

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        """One of the split's tasks whose demonstration has ``horizon`` calls; None where there is none."""
        if horizon < 1:
            raise ValueError(f"tool_calling/tau2: horizon {horizon} is less than 1")
        keys = _by_horizon(split).get(horizon)
        if not keys:
            return None
        service = rng.choice(sorted({key.split("/")[0] for key in keys}))  # telecom has far more than the others
        key = rng.choice([key for key in keys if key.startswith(f"{service}/")])
        return session_task(key, f"tool_calling/tau2-{key}-{seed}", split, seed) if usable(key) else None

    def start(self, task: Task) -> Tau2Environment:
        return Tau2Environment(task, self.tools_for(task))

    def demonstration(self, task: Task) -> tuple[Action, ...] | None:
        return solution(task.state["id"]) if task.split == "train" else None

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        assert isinstance(environment, Tau2Environment)
        entry = environment.entry
        criteria = entry["evaluation_criteria"]
        said = " ".join(environment.said).lower()
        done = [step.call for step in environment.steps if not step.observation.error]
        taken = [(call.name, dict(call.arguments)) for call in done]
        required = _actions(entry) if "ACTION" in (criteria.get("reward_basis") or ()) else ()
        rubric = {
            "database": environment.session.database() == gold_database(environment.key),
            "communicated": all(info.lower() in said for info in criteria["communicate_info"] or ()),
            "assertions": all(environment.session.holds(one) for one in criteria.get("env_assertions") or ()),
            "actions": all((call.name, dict(call.arguments)) in taken for call in required),
            "answer": is_code(answer, task.reference),
        }
        reasons = {
            "database": "the database is not as after the required actions",
            "communicated": "the customer was not told what he has to know",
            "assertions": "the device or the line is not as it should be",
            "actions": "a required action was not taken",
            "answer": "the answer is not the closing code",
        }
        wrong = next((item for item, met in rubric.items() if not met), "")
        reason = reasons[wrong] if wrong else "everything is as after the required actions"
        return Verdict(not wrong, sum(rubric.values()) / len(rubric), reason, rubric)


class Tau2Environment(Environment):
    """A session with the scripted user."""

    def __init__(self, task: Task, tools: Sequence[Tool]) -> None:
        super().__init__(task, tools)
        self.key: str = task.state["id"]
        self.entry = entries()[self.key]
        self.session = Session(self.entry["service"], self.entry)
        self.notes = _notes(self.entry)
        self.heard = 0
        self.closed = False
        self.said: list[str] = []

    def execute(self, call: Call) -> Observation:
        if self.closed:
            return Observation("Error: the session is closed", error=True)
        if call.name in ("message_user", "close_session"):
            self.said.append(call.arguments["message"])
        if call.name == "close_session":
            self.closed = True
            return Observation(f"Session closed. Closing code: {_code(self.key)}", (f"{self.key}/end",))
        if call.name != "message_user":
            text, refused = self.session.call(call.name, call.arguments)
            return Observation(text, error=refused)
        if self.heard == len(self.notes):
            return Observation("The customer has nothing to add.")
        self.heard += 1
        return Observation(f"Customer's note: {self.notes[self.heard - 1]}", (f"{self.key}/note {self.heard}",))


@functools.cache
def policy(service: str) -> str:
    """A service's policy, telecom's with the workflow for agents who work alone."""
    place = folder() / "data" / "domains" / service
    names = ["main_policy_solo.txt", "tech_support_workflow_solo.txt"] if service == "telecom" else ["policy.txt"]
    return "\n\n".join((place / name).read_text(encoding="utf-8").strip() for name in names)


def _code(key: str) -> str:
    return closing_code(f"tau2 close {key}")


def _pair(key: str) -> tuple[str, str]:
    """What the split is decided by: the telecom tasks that differ in the persona alone go together."""
    return ("tau2", _faults(key))


@functools.cache
def _by_horizon(split: Split) -> dict[int, tuple[str, ...]]:
    """Calls of the demonstration → the split's tasks that are not the benchmark's."""
    found: dict[int, tuple[str, ...]] = {}
    for key, entry in entries().items():
        if not entry["reserved"] and split_of(_pair(key)) == split and _actions(entry):
            horizon = len(_notes(entry)) + len(_actions(entry)) + 1
            found[horizon] = (*found.get(horizon, ()), key)
    return found
