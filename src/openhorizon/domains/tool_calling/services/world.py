"""Tool calling over several services with databases, in natural text: ``tool_calling/services``.

A session at a service desk: customers come one after another, each with some requests to travel, retail, telecom and
office services, some of them to two services at once. A request is known only when the one before it is done.

    reply_to_user "Good day, ..."       Customer: Hello, this is Amara Keller, my account is under amara.k...example.
                                        I need to cancel my trip to Lisbon. When that is done, mail its code to ...
    account_find, ask_user pin,         account with addresses and payment methods / "It is 482913." / verified
      account_verify
    travel_list_reservations, ...       five reservations / one in full: fare class Light / the policy of the day:
      get_reservation, get_policy       Clause TR-40512 (Cancelling a reservation, Light): allowed. ...
    ask_user agreement, reason          Yes, please go ahead. / It is because of illness.
    travel_cancel_reservation           {"reservation_id": ..., "status": "cancelled", "confirmation": "CNF-55120"}
    office_list_contacts, ...           mailed
    reply_to_user "... CNF-55120"       Customer: Next, ...

A task is a sequence of requests whose shortest chains, found by search over the tool-dependency graph (``requests``),
add up to the horizon; it is screened for argument availability and reachability (there), and here for executability
(the expert without noise is replayed) and verifier coverage (an end state that lacks any one effect must be refused).
The expert with noise takes other paths to the same goals: detours, repeated looks, refused calls.

The verifier's rubric: an item a request (databases as on a replay of the reference writes, and the customer was told),
"nothing else" (all other rows as they were), "procedure" (before a change the policy and the record were read and the
customer agreed; what was told was looked up), "grounding" (no identifier, PIN or date was used before it was shown),
"format" (at most one call in four was malformed) and "answer". Where no request was settled, none of these is met but
perhaps the answer.

What differs from the paper: the simulated users are scripted (a profile and topics they answer when asked), and speak
through the observations of ``reply_to_user`` and ``ask_user``, because the contract has no other channel. The services,
their policies and people are ours; cities are GeoNames'.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from openhorizon.domains.base import (
    Answer,
    Call,
    Domain,
    Environment,
    Expert,
    Observation,
    Split,
    Task,
    Tool,
    Verdict,
    solve,
    split_of,
)
from openhorizon.domains.tool_calling.services import expert as scripted
from openhorizon.domains.tool_calling.services import kinds as k
from openhorizon.domains.tool_calling.services.policy import ACTIONS
from openhorizon.domains.tool_calling.services.records import Refused, ServiceTool, Tables
from openhorizon.domains.tool_calling.services.requests import (
    LAST,
    SERVICES,
    TOPICS,
    Request,
)
from openhorizon.domains.tool_calling.services.tables import open_records
from openhorizon.domains.tool_calling.services.writer import Writer
from openhorizon.domains.tool_calling.tool_graph import not_executable, uncovered

PATIENCE = 2  # complaints before a customer gives a request up
MALFORMED = 0.25  # share of calls, at most
_CALLS = {tool.name: tool for tools in SERVICES.values() for tool in tools}
_SAID = re.compile(rf"{k.IDENTIFIER}|\b2027-\d\d-\d\d\b|\b\d{{6}}\b|\S+@[\w.]+\w")

TALK = (
    Tool(
        "reply_to_user",
        "Say something to the customer on the line: the result of a request with its confirmation code, or what was "
        "asked. A customer whose request is settled comes out with the next one, or the next customer is put through.",
        k.takes(message=k.MESSAGE),
    ),
    Tool(
        "ask_user",
        "Ask the customer on the line for one thing: the account's PIN, the reason of a request, the date wanted, or "
        "agreement to what you are about to do.",
        k.takes(topic={"type": "string", "enum": list(TOPICS)}, message=k.MESSAGE),
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What a session left behind."""

    tables: Tables
    said: Mapping[int, tuple[str, ...]]  # request → replies while it was open
    codes: tuple[str, ...]


class ServicesDomain(Domain):
    name = "tool_calling"
    source = "services"
    system = (
        "You are an agent at a service desk and work with tools. Customers are put through one after another; greet "
        "with reply_to_user and settle each request before you reply to it. Verify a customer before you look into an "
        "account. Read the policy of a service before you change anything there, follow it, name the clause, and ask "
        "the customer for agreement (ask_user) before a change; where the policy forbids a request, log the refusal "
        "instead. Tell the customer the confirmation code. Change nothing that was not asked for. When no more "
        "customers are waiting, end with Answer: and the last confirmation code."
    )

    def __init__(self) -> None:
        self.tools = (*TALK, *(_tool(tool) for tools in SERVICES.values() for tool in tools))

    def tools_for(self, task: Task) -> tuple[Tool, ...]:
        offered = {tool.name for service in ("account", *task.state["services"]) for tool in SERVICES[service]}
        return tuple(tool for tool in self.tools if tool in TALK or tool.name in offered)

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        """Requests whose shortest chains have ``horizon`` - 1 calls in all, behind the greeting."""
        if horizon < 1:
            raise ValueError(f"tool_calling/services: horizon {horizon} is less than 1")
        while split_of(pair := ("services desk", str(rng.randint(10_000, 99_999)))) != split:
            pass
        services = [name for name in ACTIONS if rng.random() < 0.6] or [rng.choice(list(ACTIONS))]
        writer = Writer(rng, split, (*services, "office"), seed)
        writer.fill(horizon - 1)
        records, requests = writer.records(), writer.requests
        closing = records.stamp("confirmation", "closing")
        task = Task(
            domain=self.name,
            id=f"tool_calling/services-{split}-{horizon}-{seed}",
            split=split,
            prompt=f"Service desk {pair[1]}, {' and '.join(services)} services. A shift begins: greet the first "
            "customer, and work until nobody is waiting.",
            horizon=horizon,
            seed=seed,
            state={
                "desk": pair[1],
                "services": [*services, "office"],
                "people": writer.people,
                "requests": [_to_json(request) for request in requests],
                "closing": closing,
            },
            evidence=writer.evidence(pair[1]),
            verifiers=("requests", "state", "procedure", "grounding", "format", "answer"),
            reference="",
            entity_pairs=(pair, *((one["name"], one["city"]) for one in writer.people)),
            source=self.source,
        )
        codes = _reference(task).outcome.codes
        task = replace(task, reference=codes[-1] if codes else closing)
        return None if self.screened(task) else task

    def screened(self, task: Task) -> str:
        """Screens 3 and 4: "" or why the task is refused."""
        environment, answer = solve(self, task, random.Random(task.seed), 0.0, 2 * task.horizon)
        errors = [step.observation.text for step in environment.steps if step.observation.error]
        why = not_executable(errors, len(environment.steps), task.horizon)
        if why or answer is None:
            return why or "the reference gives no answer"
        effects = [f"request {i + 1}" for i, row in enumerate(task.state["requests"]) if row["writes"] or row["told"]]
        reference, before = _reference(task), open_records(task.seed, task.state["people"]).tables

        def refused_without(effect: str) -> bool:
            return not _compare(reference, _without(reference, before, int(effect.split()[1]) - 1))[effect]

        return uncovered(effects, refused_without) if effects else ""

    def start(self, task: Task) -> ServicesEnvironment:
        return ServicesEnvironment(task, self.tools_for(task))

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        return scripted.run(rng, noise)

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        assert isinstance(environment, ServicesEnvironment)
        records = environment.records
        rubric = _compare(_reference(task), environment.outcome())
        malformed = sum(step.observation.text.startswith("error: ") for step in environment.steps)
        invented = _invented(task, environment)
        named = answer.text.rsplit("Answer:", 1)[-1].strip().rstrip(".") if answer else ""
        idle = bool(environment.requests) and not any(
            rubric[f"request {i + 1}"] for i in range(len(environment.requests))
        )
        rubric["nothing else"] = (
            rubric["nothing else"] and not idle
        )  # who settles nothing earns nothing by doing no harm
        rubric |= {
            "procedure": not records.breaches and not idle,
            "grounding": not invented and not idle,
            "format": malformed <= 1 + MALFORMED * len(environment.steps) and not idle,
            "answer": named == task.reference,
        }
        reasons = {
            "procedure": f"procedure: {next(iter(records.breaches), '')}",
            "grounding": f"grounding: {invented} was used before it was shown",
            "format": f"format: {malformed} of {len(environment.steps)} calls were malformed",
            "answer": "no answer was given" if answer is None else "the answer is not the last confirmation code",
            "nothing else": "something was changed that nobody asked for",
        }
        wrong = next((item for item, met in rubric.items() if not met), "")
        if answer is None:
            wrong = "answer"
        right = "every request was settled as it should be"
        reason = reasons.get(wrong, f"{wrong} was not settled as it should be") if wrong else right
        return Verdict(not wrong, sum(rubric.values()) / len(rubric), reason, rubric)


class ServicesEnvironment(Environment):
    """The services and the customers of one session."""

    def __init__(self, task: Task, tools: Sequence[Tool]) -> None:
        super().__init__(task, tools)
        self.records = open_records(task.seed, task.state["people"])
        self.customers = list(self.records.tables["customers"].values())
        self.requests = [_from_json(row) for row in task.state["requests"]]
        self.said: dict[int, list[str]] = {}
        self.complaints = 0

    @property
    def at(self) -> int:
        """The request that is open: -1 before the greeting."""
        return self.records.request

    def execute(self, call: Call) -> Observation:
        if call.name == "reply_to_user":
            return self._heard(call.arguments["message"])
        if call.name == "ask_user":
            return Observation(f"Customer: {self._asked(call.arguments['topic'])}")
        tool = _CALLS[call.name]
        try:
            shown = tool.run(self.records, call.arguments)
        except Refused as why:
            return Observation(json.dumps({"error": str(why)}), error=True)
        proof = "/".join([self.task.state["desk"], call.name, *(str(v) for v in list(call.arguments.values())[:1])])
        return Observation(json.dumps(shown, ensure_ascii=False), () if tool.writes else (proof,))

    def _heard(self, message: str) -> Observation:
        if 0 <= self.at < len(self.requests):
            request = self.requests[self.at]
            self.said.setdefault(self.at, []).append(message)
            if request.told and _holds(message, request.told) and not self._showed(request.told):
                self.records.breaches.append(f"{request.told} was told but never looked up")
            unsettled = request.writes and not any(code in message for code in self.records.code_of.get(self.at, ()))
            if unsettled and self.complaints < PATIENCE:
                self.complaints += 1
                return Observation(scripted.COMPLAINT)
        self.complaints = 0
        self.records.request = min(self.at + 1, len(self.requests))
        if self.at == len(self.requests):
            closing = f"If no confirmation code was issued, close with {self.task.state['closing']}."
            return Observation(f"{scripted.NO_MORE} {closing}", (f"{self.task.state['desk']}/end",))
        return Observation(f"Customer: {self._said()}", (f"{self.task.state['desk']}/request {self.at + 1}",))

    def _showed(self, told: str) -> bool:
        return any(_holds(step.observation.text, told) for step in self.steps)

    def _said(self) -> str:
        request = self.requests[self.at]
        if self.at and self.requests[self.at - 1].customer == request.customer:
            return request.text
        customer = self.customers[request.customer]
        return f"Hello, this is {customer['name']}, my account is under {customer['email']}. {request.text}"

    def _asked(self, topic: str) -> str:
        if not 0 <= self.at < len(self.requests):
            return "(nobody is on the line)"
        request = self.requests[self.at]
        if topic == "pin":
            return f"It is {self.customers[request.customer]['pin']}."
        if topic == "agreement":
            self.records.agreed.add(self.at)
            return "Yes, please go ahead."
        if topic not in request.answers:
            return "I have nothing to say to that, please do as I asked."
        said = request.answers[topic]
        return f"It is because of {said}." if topic == "reason" else f"Make it {said}, please."

    def outcome(self) -> Outcome:
        said = {i: tuple(messages) for i, messages in self.said.items()}
        return Outcome(self.records.tables, said, tuple(self.records.codes))


def _tool(tool: ServiceTool) -> Tool:
    return Tool(tool.name, tool.description, tool.parameters)


@dataclass(frozen=True)
class Reference:
    """What the reference writes leave behind on fresh databases, the rows that each request's writes change, and what
    each customer has to be told."""

    outcome: Outcome
    written: Mapping[int, tuple[tuple[str, str], ...]]
    told: tuple[str, ...]


def _reference(task: Task) -> Reference:
    records = open_records(task.seed, task.state["people"])
    records.verified = set(records.tables["customers"])
    told: list[str] = []
    for i, row in enumerate(task.state["requests"]):
        request = _from_json(row)
        records.request = i
        for tool, values in request.writes:
            _CALLS[tool].run(records, {n: records.codes[-1] if v == LAST else v for n, v in values.items()})
        last = request.kind == "last code"
        told.append(records.code_of[i][0] if request.writes else records.codes[-1] if last else request.told)
    written: dict[int, tuple[tuple[str, str], ...]] = {}
    for place, i in records.written.items():
        written[i] = (*written.get(i, ()), place)
    said = {i: (message,) for i, message in enumerate(told)}
    return Reference(Outcome(records.tables, said, tuple(records.codes)), written, tuple(told))


def _compare(reference: Reference, found: Outcome) -> dict[str, bool]:
    """The rubric's items on state: one a request, and "nothing else"."""
    wanted, rubric = reference.outcome.tables, {}
    for i, told in enumerate(reference.told):
        places = reference.written.get(i, ())
        rows = all(found.tables[table].get(key) == wanted[table].get(key) for table, key in places)
        said = found.said.get(i, ())
        rubric[f"request {i + 1}"] = rows and bool(said) and (not told or any(_holds(m, told) for m in said))
    mine = {place for places in reference.written.values() for place in places}
    rubric["nothing else"] = all(
        found.tables[table].get(key) == rows.get(key)
        for table, rows in wanted.items()
        for key in rows.keys() | found.tables[table].keys()
        if (table, key) not in mine
    )
    return rubric


def _without(reference: Reference, before: Tables, request: int) -> Outcome:
    """The reference's end state, but for what one request brought about."""
    final, places = reference.outcome, reference.written.get(request, ())
    tables = {name: dict(rows) for name, rows in final.tables.items()}
    for table, key in places:
        tables[table].pop(key)
        if key in before[table]:
            tables[table][key] = before[table][key]
    said = final.said if places else {i: told for i, told in final.said.items() if i != request}
    return replace(final, tables=tables, said=said)


def _holds(message: str, told: str) -> bool:
    """A value stands in a message as a whole, not inside a longer number or word."""
    return re.search(rf"(?<![\w.-]){re.escape(told)}(?![\w-]|\.\d)", message) is not None


def _invented(task: Task, environment: ServicesEnvironment) -> str:
    """The first identifier, date, PIN or address that a call used before it was shown; "" where there is none."""
    shown = set(_SAID.findall(task.prompt))
    for step in environment.steps:
        used = _SAID.findall(json.dumps(dict(step.call.arguments), ensure_ascii=False))
        unknown: list[str] = sorted({value.strip('"') for value in used} - shown)
        if unknown:
            return unknown[0]
        shown |= {value.strip('"') for value in _SAID.findall(step.observation.text)}
    return ""


def _to_json(request: Request) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps(asdict(request)))
    return value


def _from_json(value: Mapping[str, Any]) -> Request:
    writes = tuple((tool, values) for tool, values in value["writes"])
    return Request(**{**value, "tails": tuple(value["tails"]), "writes": writes})
