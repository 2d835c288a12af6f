"""The scripted agent of the services: it reads what customers say, plans over the tools' graph and obeys the policy.

It knows how the kinds of requests are worded and how the tools' schemas depend on one another, which the prompt's tools
tell everybody; of this session it knows what it was shown. A request under a policy is looked into first, up to the
rule that applies; only then it asks for agreement and acts, or logs the refusal.
"""

from __future__ import annotations

import functools
import json
import random
import re
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from openhorizon.domains.base import Answer, Call, Expert, Observation
from openhorizon.domains.tool_calling.services import kinds as k
from openhorizon.domains.tool_calling.services.policy import ACTIONS
from openhorizon.domains.tool_calling.services.requests import (
    KINDS,
    LISTED,
    OF_SESSION,
    SERVICES,
    TAILS,
    Kind,
    Known,
    named_id,
    tool_graph,
)
from openhorizon.domains.tool_calling.tool_graph import Leaf, search

NO_MORE = "No more customers are waiting."
COMPLAINT = "Customer: I have not got a confirmation code for this yet. Could you please finish it?"
RUIN = 0.06  # share of strays that do harm
_RULE = re.compile(
    r"Clause (?P<clause>[A-Z]{2}-\d{5}) \((?P<title>[^,()]+), (?P<condition>[^()]+)\): (?P<not>not )?allowed\."
)
_HELLO = re.compile(r"this is (?P<name>[^,]+), my account is under (?P<email>\S+@[\w.]+)\. ")
_CONDITION = {"travel": "fare_class", "retail": "order_stage", "telecom": "contract"}
_DETAIL = {"travel": "travel_get_reservation", "retail": "retail_get_order", "telecom": "telecom_get_line"}
_PARAMETERS = {tool.name: tool.parameters for tools in SERVICES.values() for tool in tools}
_WRITES = {tool.name for tools in SERVICES.values() for tool in tools if tool.writes}

Saying = Generator[Call, Observation, dict[str, Any]]


@functools.cache
def _patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Kind → how its texts are read back."""
    found = []
    for kind in KINDS.values():
        for text in kind.text:
            parts = re.split(r"\{(\w+)\}", text)
            found.append((kind.name, "".join(f"(?P<{p}>.+?)" if i % 2 else re.escape(p) for i, p in enumerate(parts))))
    return tuple((name, re.compile(pattern)) for name, pattern in found)


@functools.cache
def _tails() -> dict[str, re.Pattern[str]]:
    return {
        tail: re.compile(re.escape(text).replace(r"\{recipient\}", "(?P<recipient>.+)")) for tail, text in TAILS.items()
    }


def read_request(text: str) -> tuple[Kind, dict[str, str], tuple[str, ...]]:
    """Kind, cues and tails of what a customer says.

    Raises:
        ValueError: it is none of the requests that are known.
    """
    tails, cues = [], dict[str, str]()
    for tail, pattern in _tails().items():
        match = pattern.search(text)
        if match:
            tails.append(tail)
            cues |= match.groupdict()
            text = text[: match.start()]
    for name, pattern in _patterns():
        found = pattern.fullmatch(text)
        if found:
            return KINDS[name], cues | found.groupdict(), tuple(tails)
    raise ValueError(f"not a request that this agent knows: {text!r}")


def run(rng: random.Random, noise: float) -> Expert:
    agent = _Agent(rng, noise)
    heard = yield from agent.reply("Good day, this is the service desk. What can I do for you?")
    while NO_MORE not in heard:
        if heard == COMPLAINT:
            message = "I am sorry, I could not finish that."
        else:
            message = yield from agent.serve(heard.removeprefix("Customer: "))
        heard = yield from agent.reply(message)
    closing = re.findall(k.IDENTIFIER, heard)[-1]
    yield Answer(f"Answer: {agent.codes[-1] if agent.codes else closing}")


class _Agent:
    def __init__(self, rng: random.Random, noise: float) -> None:
        self.rng, self.noise = rng, noise
        self.known = Known()
        self.seen: dict[str, dict[str, Any]] = {}  # tool → what it showed last: of the session, customer or request
        self.rules: dict[tuple[str, str, str], tuple[str, bool]] = {}
        self.codes: list[str] = []
        self.email = ""
        self.kind = KINDS["wait"]
        self.cues: dict[str, str] = {}
        self.told: dict[str, str] = {}  # topic → answer
        self.given: set[Leaf] = set()  # of this request
        self.facts: set[str] = set()
        self.looked: list[Call] = []  # reads of this customer, to stray to

    # -- one request

    def serve(self, text: str) -> Generator[Call, Observation, str]:
        """Carry out what is asked; returns what to tell the customer."""
        hello = _HELLO.search(text)
        if hello:
            self._next_customer(hello["email"])
            text = text[hello.end() :]
        self.kind, self.cues, tails = read_request(text)
        self.told, self.facts = {}, set()
        self.seen = {tool: shown for tool, shown in self.seen.items() if tool in LISTED}
        named = named_id(self.kind, self.cues)
        self.given = set(tool_graph().inputs[_DETAIL[self.kind.service]]) if named else set()
        first = len(self.codes)
        service = self.kind.service
        if self.kind.name == "last code":
            return f"The last confirmation code was {self.codes[-1]}." if self.codes else "There has been none."
        if not service:
            return "Of course, take your time."
        if not self.kind.action:
            yield from self.reach([goal for goal in (self.kind.goal, self.kind.also, *tails) if goal])
            return self.news() if len(self.codes) == first else self.done(first)
        yield from self.reach([f"{service} refusal logged"], leave_out=1)
        clause, allowed = self.rule()
        if not allowed:
            yield from self.reach([f"{service} refusal logged"])
            return f"I am sorry, clause {clause} does not allow that. I noted it under {' '.join(self.codes[first:])}."
        yield from self.reach([self.kind.goal, *tails])
        return self.done(first)

    def _next_customer(self, email: str) -> None:
        self.email, self.known, self.looked = email, self.known.next_customer(), []
        kept = {tool for tool, kinds in LISTED.items() if OF_SESSION.issuperset(kinds)}
        self.seen = {tool: shown for tool, shown in self.seen.items() if tool in kept}

    def reach(self, goals: Sequence[str], leave_out: int = 0) -> Generator[Call, Observation, None]:
        """Carry out the shortest chain to ``goals`` from what is known; ``leave_out`` calls at its end."""
        given = {*self.known.session, *self.known.customer, *self.given}
        facts = {*self.known.facts, *self.known.own, *self.facts}
        chain = search(tool_graph(), sorted(goals), given, facts).chain
        assert chain is not None, f"no chain to {goals}"
        for step in chain[: len(chain) - leave_out]:
            yield from self.step(step)

    def step(self, name: str) -> Generator[Call, Observation, None]:
        node = tool_graph().nodes[name]
        tool, _, topic = name.partition(" ")
        if tool == "ask_user":
            yield from self.ask(topic.split()[0])
        else:
            values = {key: self.argument(tool, key) for key in _PARAMETERS[tool]["required"]}
            gives = [leaf.format or leaf.name for leaf in tool_graph().outputs[name]][:2]
            aim = f"have the {node.adds[0]}" if node.writes else f"learn the {' and the '.join(gives)}"
            shown = yield from self.do(Call(tool, values, f"The request is: {self.kind.name}. I call {tool} to {aim}."))
            self.seen[tool] = shown
            if "policy" in shown:
                service = shown["service"]
                for rule in _RULE.finditer(shown["policy"]):
                    self.rules[service, rule["title"], rule["condition"]] = (rule["clause"], not rule["not"])
            if tool in _WRITES and shown["confirmation"]:
                self.codes.append(shown["confirmation"])
        self.known = self.known.after([name])
        self.given |= set(tool_graph().outputs[name])
        self.facts |= set(node.adds)

    def rule(self) -> tuple[str, bool]:
        """Clause, and whether it allows the request."""
        condition = self.seen[_DETAIL[self.kind.service]][_CONDITION[self.kind.service]]
        return self.rules[self.kind.service, ACTIONS[self.kind.service][self.kind.action], condition]

    # -- talk

    def reply(self, message: str) -> Generator[Call, Observation, str]:
        return (yield Call("reply_to_user", {"message": message}, "I tell the customer.")).text

    def ask(self, topic: str) -> Generator[Call, Observation, None]:
        asked = {
            "pin": "Please tell me the six-digit PIN of your account.",
            "reason": "May I ask for the reason?",
            "date": "Which day would suit you?",
            "agreement": f"I would now go ahead with this: {self.kind.name}. Do you agree?",
        }[topic]
        if topic == "agreement" and self.rng.random() < self.noise * RUIN:  # forgets to ask
            return
        shown = yield Call("ask_user", {"topic": topic, "message": asked}, f"I need the customer's {topic}.")
        self.told[topic] = shown.text

    def news(self) -> str:
        """What was asked for, from what was shown."""
        name, seen = self.kind.name, self.seen
        if name == "gate":
            return f"Your flight leaves from gate {seen['travel_get_flight_status']['gate']}."
        if name == "track":
            return f"The parcel is expected on {seen['retail_track_parcel']['expected_on']}."
        if name == "data left":
            return f"There are {seen['telecom_get_line']['data_left_gb']} GB left."
        if name == "file number":
            return f"The file number is {seen['office_read_file']['text'].rsplit(' ', 1)[1]}"
        if name == "price":
            return f"It costs {self._product()['price']}."
        if name == "stock":
            variant = self._variant()
            return f"We have {variant['in_stock']} of them in stock."
        if name == "plan price":
            plans = seen["telecom_list_plans"]["plans"]
            price = next(plan["price"] for plan in plans if str(plan["data_gb"]) == self.cues["data"])
            return f"That plan costs {price} a month."
        clause, allowed = self.rules[self.kind.service, self.cues["title"], self.cues["condition"]]
        return f"Under clause {clause} that is {'allowed' if allowed else 'not allowed'}."

    def done(self, first: int) -> str:
        codes = self.codes[first:]
        if not codes:
            return "I am sorry, the system did not accept that."
        more = f" The rest has the codes {', '.join(codes[1:])}." if codes[1:] else ""
        return f"That is done. Your confirmation code is {codes[0]}.{more}"

    # -- arguments, from what was shown

    def argument(self, tool: str, name: str) -> Any:
        if name == "contact_id":
            role = self.cues["recipient" if tool == "office_send_confirmation" else "role"]
            return self._row("office_list_contacts", "contacts", "role", role)["contact_id"]
        return _FIND[name](self)

    def _row(self, tool: str, field: str, by: str, value: Any) -> dict[str, Any]:
        rows: list[dict[str, Any]] = self.seen[tool][field]
        if self.rng.random() < self.noise * RUIN:  # takes the wrong line
            return self.rng.choice(rows)
        return next((row for row in rows if row[by] == value), rows[0])

    def _entity(self, cue: str, tool: str, field: str, key: str, matches: Callable[[dict[str, Any], str], bool]) -> str:
        """An identifier that the customer said, or that of the row that he described."""
        said = self.cues.get(cue, "").rsplit(" ", 1)[-1]
        if re.fullmatch(k.IDENTIFIER, said):
            return said
        rows: list[dict[str, Any]] = self.seen[tool][field]
        found: str = next(row[key] for row in rows if matches(row, self.cues.get(cue, "")))
        return found

    def _trip(self) -> str:
        return self._entity(
            "trip", "travel_list_reservations", "reservations", "reservation_id",
            lambda row, said: said == f"my trip to {row['destination']}",
        )  # fmt: skip

    def _order(self) -> str:
        product = self.cues.get("product") or self.cues["order"].removeprefix("the order with the ")
        return self._entity(
            "order", "retail_list_orders", "orders", "order_id", lambda row, said: product in row["contains"]
        )

    def _line(self) -> str:
        return self._entity(
            "line", "telecom_list_lines", "lines", "line_id",
            lambda row, said: said == f"the line used by {row['used_by']}",
        )  # fmt: skip

    def _item(self) -> dict[str, Any]:
        return self._row("retail_get_order", "items", "product", self.cues["product"])

    def _product(self) -> dict[str, Any]:
        return self._row("retail_search_products", "products", "name", self.cues["product"])

    def _variant(self) -> dict[str, Any]:
        wanted = (self.cues["colour"], self.cues["size"])
        variants: list[dict[str, Any]] = self.seen["retail_get_product"]["variants"]
        return next((variant for variant in variants if (variant["colour"], variant["size"]) == wanted), variants[0])

    def _flight(self) -> str:
        options: list[dict[str, Any]] = self.seen["travel_search_flights"]["options"]
        by = "fare" if self.cues["wish"] == "cheapest" else "departure"
        found: str = min(options, key=lambda option: option[by])["flight_id"]
        return found

    def _fix(self) -> str:
        family = self.seen["telecom_get_line"]["device"].split()[0]
        found: str = self._row("telecom_find_guide", "fixes", "device_family", family)["fix_id"]
        return found

    def _plan(self) -> str:
        plans: list[dict[str, Any]] = self.seen["telecom_list_plans"]["plans"]
        enough = [plan for plan in plans if plan["data_gb"] >= int(self.cues["data"])]
        found: str = min(enough, key=lambda plan: (plan["price"], plan["plan_id"]))["plan_id"]
        return found

    # -- going astray

    def do(self, call: Call) -> Saying:
        """The call, after none or several that go astray."""
        while self.rng.random() < self.noise:
            yield self._slip(call)
        observation = yield call
        if observation.error:  # a wrong line was taken before: what is asked for is not there
            return dict.fromkeys(("confirmation", "status"), "")
        if call.name not in _WRITES:
            self.looked.append(call)
        shown: dict[str, Any] = json.loads(observation.text)
        return shown

    def _slip(self, call: Call) -> Call:
        """A second look, a needless question, or arguments that are not what the tool takes."""
        roll = self.rng.random()
        if roll < 0.55 and self.looked:
            again = self.rng.choice(self.looked)
            return Call(again.name, again.arguments, "I look at this once more.")
        if roll < 0.75 or not call.arguments:
            topic = self.rng.choice(("reason", "date"))
            return Call("ask_user", {"topic": topic, "message": f"May I ask for the {topic}?"}, "I ask to be sure.")
        left_out = self.rng.choice(sorted(call.arguments))
        rest = {name: value for name, value in call.arguments.items() if name != left_out}
        return Call(call.name, rest, call.thought)


_FIND: Mapping[str, Callable[[_Agent], Any]] = {
    "email": lambda a: a.email,
    "pin": lambda a: re.findall(r"\d{6}", a.told["pin"])[-1],
    "date": lambda a: re.findall(r"2027-\d\d-\d\d", a.told["date"])[-1],
    "reason": lambda a: next(reason for reason in k.REASONS if reason in a.told["reason"]),
    "customer_id": lambda a: a.seen["account_find"]["customer_id"],
    "payment_id": lambda a: a._row("account_find", "payments", "kind", a.cues["card"])["payment_id"],
    "address_id": lambda a: a._row("account_find", "addresses", "label", a.cues["label"])["address_id"],
    "reservation_id": _Agent._trip,
    "order_id": _Agent._order,
    "line_id": _Agent._line,
    "fare_class": lambda a: a.seen["travel_get_reservation"]["fare_class"],
    "order_stage": lambda a: a.seen["retail_get_order"]["order_stage"],
    "contract": lambda a: a.seen["telecom_get_line"]["contract"],
    "clause": lambda a: a.rule()[0],
    "bags": lambda a: int(a.cues["bags"]),
    "flight_id": _Agent._flight,
    "quote_id": lambda a: a.seen["travel_quote_change"]["quote_id"],
    "item_id": lambda a: a._item()["item_id"],
    "product_id": lambda a: (a._item() if a.kind.table == "orders" else a._product())["product_id"],
    "new_item_id": lambda a: a._variant()["new_item_id"],
    "parcel_id": lambda a: a.seen["retail_get_order"]["parcel_id"],
    "words": lambda a: a.cues["product"],
    "fault_code": lambda a: a.seen["telecom_run_diagnostics"]["fault_code"],
    "fix_id": _Agent._fix,
    "bill_id": lambda a: a._row("telecom_list_bills", "bills", "month", a.cues["month"])["bill_id"],
    "charge_id": lambda a: a._row("telecom_get_bill", "charges", "text", a.cues["charge"])["charge_id"],
    "plan_id": _Agent._plan,
    "event_id": lambda a: a._row("office_list_events", "events", "title", a.cues["title"])["event_id"],
    "file_id": lambda a: a._row("office_list_files", "files", "name", a.cues["paper"])["file_id"],
    "reference": lambda a: a.codes[-1] if a.codes else "",
}  # fmt: skip
