"""The service desk's scripted solver: works off ticket by ticket, doing what each observation asks for."""

from __future__ import annotations

import random
import re
from collections.abc import Generator

from openhorizon.domains.base import Answer, Call, Expert, Observation
from openhorizon.domains.tool_calling.desk_tickets import ASKED, PREFIX

RUIN = 0.1  # share of strays at an action that do harm: those episodes fail

_NAMED = re.compile(r"ticket (?P<ticket>t\d\d): (?P<goal>\w+) (?P<item>\w+) for (?P<name>.+)")
_DIRECT = re.compile(r"ticket (?P<ticket>t\d\d): (?P<goal>\w+) (?:order|receipt) (?P<id>\w\d\d)")
_LISTED = re.compile(r"(o\d\d) (\w+)")


def work(prompt: str, rng: random.Random, noise: float) -> Expert:
    """Works off ticket by ticket, doing what each observation asks for."""
    clerk = _Clerk(prompt, rng, noise)
    text = yield from clerk.do("next_ticket")
    receipt = text.split()[-1]
    while "no more tickets" not in text:
        named, direct = _NAMED.search(text), _DIRECT.search(text)
        others: list[str] = []
        if named:
            ticket, goal = named["ticket"], named["goal"]
            customer = (yield from clerk.do("find_customer", name=named["name"])).split()[-1]
            listed = yield from clerk.do("list_orders", customer=customer)
            orders = {item: order for order, item in _LISTED.findall(listed)}
            order = orders.pop(named["item"])
            others = list(orders.values())
        else:
            assert direct, f"not a ticket: {text}"
            ticket, goal, order = direct["ticket"], direct["goal"], direct["id"]
        receipt = order if goal == "file" else (yield from clerk.act(goal, order, others))
        text = yield from clerk.do("close_ticket", ticket=ticket, receipt=receipt)
        clerk.file()
    yield Answer(f"Answer: {receipt}")


Saying = Generator[Call, Observation, str]


class _Clerk:
    """Makes calls for the expert. A call goes astray with chance ``noise``, again and again with the same chance; most
    strays are refused or change nothing, a few do harm."""

    def __init__(self, prompt: str, rng: random.Random, noise: float) -> None:
        desk = re.search(r"Desk (\d+)", prompt)
        assert desk, f"not a tool_calling prompt: {prompt}"
        self.desk, self.rng, self.noise = desk[1], rng, noise
        self.looked = Call("next_ticket", {})  # the latest call that changed nothing
        self.old: dict[str, list[str]] = {}  # ids of earlier tickets by kind: using them again is refused
        self.new: dict[str, list[str]] = {}  # ids of this ticket

    def do(self, name: str, /, **values: str) -> Saying:
        """The call, repeated while the tool is busy; returns what came back in the end."""
        call = Call(name, values)
        while self.rng.random() < self.noise:
            yield self._slip(call)
        observation = yield call
        while observation.text == "error: busy":
            observation = yield call
        if name in ("next_ticket", "find_customer", "list_orders"):
            self.looked = call
        if not observation.error:
            for kind, value in values.items():
                if kind in PREFIX:
                    self.new.setdefault(kind, []).append(value)
        return observation.text

    def ask(self, about: str) -> Saying:
        return (yield from self.do("ask_user", about=about)).removeprefix("user: ")

    def act(self, action: str, order: str, others: list[str]) -> Saying:
        """Cancel, ship or refund, whatever stands in the way; returns the receipt."""
        if self.rng.random() < self.noise * RUIN:
            order, action = (self.rng.choice(others), action) if others else (order, "cancel")
        values = {"order": order}
        if action in ASKED:
            if self.rng.random() < self.noise:  # forgets to ask
                yield Call(action, dict(values))
            values[ASKED[action]] = yield from self.ask(ASKED[action])
        while (text := (yield from self.do(action, **values))).startswith("error: "):
            key = text.split()[-1]
            if text.startswith("error: locked"):
                code = yield from self.ask("code")
                yield from self.do("unlock", lock=key, code=code)
            else:
                assert text.startswith("error: not paid"), text
                yield from self.do("charge", bill=key)
        return text.split()[-1]

    def file(self) -> None:
        """The ticket is closed: its ids are old."""
        for kind, values in self.new.items():
            self.old.setdefault(kind, []).extend(values)
        self.new = {}

    def _slip(self, call: Call) -> Call:
        """A needless look, an id of an earlier ticket, or arguments that are not what the tool takes."""
        old = [kind for kind in call.arguments if kind in self.old]
        roll = self.rng.random()
        if roll < 0.3:
            return self.looked
        if roll < 0.4:
            return Call("ask_user", {"about": self.rng.choice(["city", "reason", "code"])})
        if roll < 0.7 and old:
            kind = self.rng.choice(old)
            return Call(call.name, {**call.arguments, kind: self.rng.choice(self.old[kind])})
        if not call.arguments:
            return Call(call.name, {"desk": self.desk})
        kind = self.rng.choice(list(call.arguments))
        rest = {other: value for other, value in call.arguments.items() if other != kind}
        return Call(call.name, rest if roll < 0.85 or kind not in PREFIX else {**rest, kind: call.arguments[kind][:-1]})
