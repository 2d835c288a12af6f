"""The service desk's tool-dependency graph, its kinds of tickets, and the search for the shortest chain of calls."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Link:
    """A tool in the dependency graph. ``needs`` and ``gives`` are types of values, ``after`` and ``adds`` facts about
    the ticket's order: preconditions and effect."""

    needs: tuple[str, ...]
    gives: tuple[str, ...]
    after: tuple[str, ...] = ()
    adds: str = ""


_TICKET = ("ticket", "name", "order", "receipt")  # what the text of a ticket may give, by its kind
GRAPH: dict[str, Link] = {  # a second word is the value of ``about``
    "next_ticket": Link((), _TICKET),
    "find_customer": Link(("name",), ("customer",)),
    "list_orders": Link(("customer",), ("order",)),
    "ask_user city": Link((), ("city",)),
    "ask_user reason": Link((), ("reason",)),
    "ask_user code": Link(("lock",), ("code",)),
    "unlock": Link(("lock", "code"), (), adds="unlocked"),
    "charge": Link(("bill",), (), adds="paid"),
    "cancel": Link(("order",), ("receipt",), ("unlocked",), "cancelled"),
    "ship": Link(("order", "city"), ("receipt",), ("unlocked", "paid"), "shipped"),
    "refund": Link(("order", "reason"), ("receipt",), ("unlocked", "paid"), "refunded"),
    "close_ticket": Link(("ticket", "receipt"), _TICKET, adds="closed"),
}
REFUSALS = {"unlocked": ("locked", "lock"), "paid": ("not paid", "bill")}  # missing fact → error text, id it names
GIVEN = {"name": ("ticket", "name"), "order": ("ticket", "order"), "receipt": ("ticket", "receipt")}
ACTIONS = ("cancel", "ship", "refund")
ASKED = {"ship": "city", "refund": "reason"}  # what only the user knows

PREFIX = {"ticket": "t", "customer": "c", "order": "o", "receipt": "r", "lock": "k", "bill": "b"}
_TEXT = {"type": "string", "minLength": 1, "maxLength": 40}
TYPES: dict[str, dict[str, Any]] = {
    **{name: {"type": "string", "pattern": f"^{letter}[0-9]{{2}}$"} for name, letter in PREFIX.items()},
    **dict.fromkeys(("name", "city", "reason", "code"), _TEXT),
    "about": {"type": "string", "enum": ["city", "reason", "code"]},
}


@dataclass(frozen=True)
class Spec:
    """A kind of ticket: its goal, what its text gives, and what stands in the way (``busy`` names a tool or none)."""

    goal: str
    given: str
    locked: bool
    unpaid: bool
    busy: str


@dataclass(frozen=True)
class Ticket:
    """A ticket with everything the service and its user know of it; what a kind does not have is empty."""

    id: str
    spec: Spec
    name: str = ""
    customer: str = ""
    orders: tuple[tuple[str, str], ...] = ()  # (id, item), the customer's
    order: str = ""
    city: str = ""
    reason: str = ""
    lock: str = ""
    code: str = ""
    bill: str = ""
    receipt: str = ""  # of a ticket that is only to be filed

    @property
    def text(self) -> str:
        if self.spec.given == "receipt":
            return f"ticket {self.id}: file receipt {self.receipt}"
        if self.spec.given == "order":
            return f"ticket {self.id}: {self.spec.goal} order {self.order}"
        return f"ticket {self.id}: {self.spec.goal} {dict(self.orders)[self.order]} for {self.name}"


def edges() -> list[tuple[str, str, str]]:
    """The dependency graph as (tool, value type or fact, tool): what one gives or adds and another needs."""
    found = []
    for source, link in GRAPH.items():
        out = {*link.gives, *(REFUSALS[fact][1] for fact in link.after), *([link.adds] if link.adds else [])}
        found += [
            (source, kind, t) for t, other in GRAPH.items() for kind in (*other.needs, *other.after) if kind in out
        ]
    return found


State = tuple[frozenset[str], frozenset[str]]  # values known, facts


@functools.cache
def plan(spec: Spec) -> tuple[str, ...]:
    """The shortest chain of calls, refused ones included, that closes such a ticket once it is open; of several, the
    first in the order of ``GRAPH``. Breadth-first over (values known, facts)."""
    facts = frozenset(fact for fact, free in (("unlocked", not spec.locked), ("paid", not spec.unpaid)) if free)
    begin = (frozenset(GIVEN[spec.given]), facts)
    chains = {begin: tuple[str, ...]()}
    waiting = deque([begin])
    while waiting:
        state = waiting.popleft()
        for step in GRAPH:
            after = _after(spec, state, step)
            if after is None or after in chains:
                continue
            chains[after] = (*chains[state], step)
            if "closed" in after[1] and (spec.goal == "file" or GRAPH[spec.goal].adds in after[1]):
                return chains[after]
            waiting.append(after)
    raise ValueError(f"no chain of calls closes a ticket like {spec}")


def _after(spec: Spec, state: State, step: str) -> State | None:
    """What a call leads to; None where it cannot be made, or serves another goal."""
    known, facts = state
    link = GRAPH[step]
    others = [action for action in ACTIONS if action != spec.goal]
    astray = step in others or step in [f"ask_user {ASKED[action]}" for action in others if action in ASKED]
    over = "closed" in facts or link.adds in facts
    if step == "next_ticket" or astray or over or not known.issuperset(link.needs):
        return None
    if step.split()[0] == spec.busy and "calm" not in facts:
        return known, facts | {"calm"}
    for fact in link.after:
        if fact not in facts:
            return known | {REFUSALS[fact][1]}, facts
    return known.union(link.gives), facts | ({link.adds} if link.adds else set())


@functools.cache
def menu() -> dict[int, list[list[Spec]]]:
    """Number of calls → kinds of tickets that need so many; kinds that differ only in the busy tool form one list."""
    plain = [Spec("file", "receipt", False, False, "")]
    for goal in ACTIONS:
        owed = (False, True) if "paid" in GRAPH[goal].after else (False,)
        plain += [Spec(goal, g, lock, bill, "") for g in ("name", "order") for lock in (False, True) for bill in owed]
    menu: dict[int, list[list[Spec]]] = {}
    for spec in plain:
        tools = dict.fromkeys(step.split()[0] for step in plan(spec))
        for kinds in ([spec], [replace(spec, busy=tool) for tool in tools]):
            menu.setdefault(len(plan(kinds[0])), []).append(kinds)
    assert sorted(menu) == list(range(1, len(menu) + 1)), "every horizon must be a sum of ticket costs"
    return menu


def to_json(ticket: Ticket) -> dict[str, Any]:
    return asdict(ticket) | {"orders": [list(order) for order in ticket.orders]}


def from_json(value: Mapping[str, Any]) -> Ticket:
    orders = tuple((order, item) for order, item in value["orders"])
    return Ticket(**{**value, "spec": Spec(**value["spec"]), "orders": orders})
