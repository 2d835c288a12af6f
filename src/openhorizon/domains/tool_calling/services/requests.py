"""What customers ask for: kinds of requests, how they are said, and what carrying one out means.

A kind names the effect it asks for; the chain of calls is found by search over the tools' dependency graph, given what
was said and what is known already, and its length is the request's share of the horizon. Requests of one customer and
of several follow one another; what was listed for a customer, and a policy once read, need not be looked up again.

A request's writes are worked out (``drafts``) from the databases alone, without looking at the expert: carried out on
fresh databases they are the reference that the verifier compares with.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from openhorizon.domains.tool_calling.services import kinds as k
from openhorizon.domains.tool_calling.services import office, retail, telecom, travel
from openhorizon.domains.tool_calling.services.policy import ACTIONS, CONDITIONS
from openhorizon.domains.tool_calling.services.records import ServiceTool
from openhorizon.domains.tool_calling.tool_graph import (
    Found,
    Graph,
    Leaf,
    Node,
    derive,
    leaves,
    search,
    unavailable,
    unreachable,
)

SERVICES: dict[str, tuple[ServiceTool, ...]] = {
    "account": office.ACCOUNTS,
    "travel": travel.TOOLS,
    "retail": retail.TOOLS,
    "telecom": telecom.TOOLS,
    "office": office.TOOLS,
}
TOPICS = ("pin", "reason", "date", "agreement")
MAX_CHAIN = 16
LAST = "$last"  # in a write: the code of the write before it


@dataclass(frozen=True)
class Kind:
    """``text`` is how a customer says it, with cues in braces; ``table`` and ``by`` say what it is about and by which
    cue, where an identifier may be said instead. ``action`` is what the policy calls it; ``goal`` is a fact."""

    name: str
    service: str
    goal: str
    text: tuple[str, ...]
    table: str = ""
    action: str = ""
    asks: tuple[str, ...] = ()  # topics
    also: str = ""  # a second fact, where the first alone could be come by in a way that does not answer


TRIP, ORDER, LINE = "{trip}", "{order}", "{line}"

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("cancel trip", "travel", "reservation cancelled",
             ("I need to cancel {trip}.", "Something came up, so please call off {trip} for me."),
             "reservations", "cancel", ("reason",)),
        Kind("change flight", "travel", "flight changed",
             ("Please move {trip} to another day and take the {wish} flight of that day.",
              "I have to fly on another day: please rebook {trip} on the {wish} flight then."),
             "reservations", "change", ("date",)),
        Kind("add bags", "travel", "baggage added",
             ("Please add {bags} checked bags to {trip} and charge them to my {card}.",
              "I would like {bags} more bags on {trip}, paid with my {card}."),
             "reservations", "baggage"),
        Kind("gate", "travel", "gate known",
             ("Which gate does {trip} leave from?", "Could you tell me the gate for {trip}?"), "reservations"),
        Kind("cancel order", "retail", "order cancelled",
             ("Please cancel {order} completely.", "I want to call off {order}, all of it."),
             "orders", "cancel", ("reason",)),
        Kind("return item", "retail", "item returned",
             ("I want to send back the {product} that I ordered.", "The {product} that I ordered has to go back."),
             "orders", "return", ("reason",)),
        Kind("exchange item", "retail", "item exchanged",
             ("Can the {product} that I ordered be exchanged for the {colour} one in {size}?",
              "I picked the wrong {product}; I need it in {colour}, size {size}."),
             "orders", "exchange"),
        Kind("move delivery", "retail", "address changed",
             ("Please have {order} delivered to my {label} address.",
              "Could {order} go to my {label} address instead?"),
             "orders", "address"),
        Kind("track", "retail", "parcel tracked",
             ("On which day is {order} expected to arrive?", "When can I expect {order}?"), "orders"),
        Kind("repair line", "telecom", "line repaired",
             ("There is a fault on {line}; please repair it.", "Something is wrong with {line}, can you fix it?"),
             "lines", "fix"),
        Kind("credit charge", "telecom", "charge credited",
             ("There is a {charge} on the {month} bill of {line} that I never ordered; I want it credited.",
              "I dispute the {charge} on the {month} bill of {line}. Please credit it."),
             "lines", "credit"),
        Kind("change plan", "telecom", "plan changed",
             ("Please put {line} on the cheapest plan with at least {data} GB.",
              "I want the cheapest plan that has {data} GB or more for {line}."),
             "lines", "plan"),
        Kind("data left", "telecom", "usage known",
             ("How much data is left on {line}?", "What data volume does {line} still have this month?"), "lines"),
        Kind("move event", "office", "event moved",
             ("Please move my {title} appointment to another day.", "My {title} appointment has to be on another day."),
             "events", "", ("date",)),
        Kind("share file", "office", "file shared",
             ("Share the {paper} in my files with my {role}.",
              "My {role} should get access to the {paper} in my files."),
             "files"),
        Kind("file number", "office", "file read",
             ("Which file number does the {paper} in my files have?",
              "What is the file number of the {paper} I stored?"),
             "files"),
        Kind("price", "retail", "catalogue searched",
             ("What does the {product} cost in your shop?",
              "I am thinking of buying the {product}: for how much is it?"),
             "products"),
        Kind("stock", "retail", "stock known",
             ("How many of the {product} in {colour}, size {size}, do you have in stock?",
              "Do you have the {product} in {colour} and {size}, and how many?"),
             "products", also="catalogue searched"),
        Kind("plan price", "telecom", "plans known",
             ("What is the price of the plan with {data} GB?", "How much is your plan that has {data} GB?"), "plans"),
        *(
            Kind(f"ask {service} policy", service, f"{service} policy read",
                 (f"In general, under which clause does the {service} desk rule on this: {{title}}, {{condition}}?",
                  f"Just for my information: what is the {service} clause about {{title}}, {{condition}}?"))
            for service in ACTIONS
        ),
        Kind("wait", "", "",
             ("One moment please, somebody is at the door.", "Sorry, I have to look for my papers, stay on the line.")),
        Kind("last code", "", "", ("What was the last confirmation code that you gave out, please?",)),
    )
}  # fmt: skip
TAILS = {  # a goal beside the main one → how it is said
    "confirmation mailed": " When that is done, mail its confirmation code to my {recipient}.",
    "follow-up added": " When that is done, put a follow-up with its confirmation code into my calendar; ask me for "
    "the day.",
}
_POLICY_FREE = ("price", "stock", "plan price", "wait", "last code", *(f"ask {s} policy" for s in ACTIONS))
ANONYMOUS = frozenset(_POLICY_FREE)  # nothing to be verified for
LISTED = {  # list tool → the identifier that is known for the customer from then on
    "account_find": ("customer-id", "address-id", "payment-id"),
    "travel_list_reservations": ("reservation-id",),
    "retail_list_orders": ("order-id",),
    "telecom_list_lines": ("line-id",),
    "telecom_list_plans": ("plan-id",),
    "office_list_events": ("event-id",),
    "office_list_contacts": ("contact-id",),
    "office_list_files": ("file-id",),
    "travel_get_policy": ("travel-clause",),
    "retail_get_policy": ("retail-clause",),
    "telecom_get_policy": ("telecom-clause",),
}
OF_SESSION = frozenset(("travel-clause", "retail-clause", "telecom-clause", "plan-id"))
SESSION_FACTS = frozenset(("plans known", *(f"{service} policy read" for service in ACTIONS)))
_ID_OF = {"reservations": "reservation-id", "orders": "order-id", "lines": "line-id"}
_NAMED_IDS = {"reservation-id": "reservation_id", "order-id": "order_id", "line-id": "line_id"}


@dataclass(frozen=True)
class Request:
    """A request with everything its user and the verifier know of it."""

    kind: str
    customer: int
    cues: Mapping[str, str]
    tails: tuple[str, ...]
    text: str
    writes: tuple[tuple[str, Mapping[str, Any]], ...]  # reference: tool, arguments
    told: str  # what the reply has to contain; "" where it is the code of the first write, or nothing
    answers: Mapping[str, str]  # topic → what the user says
    forbidden: bool
    calls: int  # of the shortest chain, the reply included


@dataclass(frozen=True)
class Known:
    """What a session has found out: leaves and facts of the session, and of the customer on the line."""

    session: frozenset[Leaf] = frozenset()
    customer: frozenset[Leaf] = frozenset()
    facts: frozenset[str] = frozenset()  # of the session
    own: frozenset[str] = frozenset()  # of the customer

    def after(self, chain: Sequence[str]) -> Known:
        graph = tool_graph()
        kept = {leaf for tool in chain if tool in LISTED for leaf in graph.outputs[tool] if leaf.format in LISTED[tool]}
        facts = {fact for tool in chain for fact in graph.nodes[tool].adds}
        return Known(
            self.session | {leaf for leaf in kept if leaf.format in OF_SESSION},
            self.customer | {leaf for leaf in kept if leaf.format not in OF_SESSION},
            self.facts | (facts & SESSION_FACTS),
            self.own | (facts & {"verified"}),
        )

    def next_customer(self) -> Known:
        return replace(self, customer=frozenset(), own=frozenset())


@functools.cache
def tool_graph() -> Graph:
    """The graph of all tools, derived from their schemas. ``ask_user`` has a node a topic, and one a service to agree
    in, which is asked once the clause and the condition are known."""
    nodes = [
        Node(tool.name, tool.parameters, tool.returns, tool.needs, tool.adds, tool.reads, tool.writes)
        for tools in SERVICES.values()
        for tool in tools
    ]
    message = k.takes(message=k.MESSAGE)
    nodes += [
        Node("ask_user pin", message, k.returns(pin=k.PIN)),
        Node("ask_user reason", message, k.returns(reason=k.one_of(k.REASONS))),
        Node("ask_user date", message, k.returns(date=k.NEW_DATE)),
    ]
    for service, conditions in CONDITIONS.items():
        needed = k.takes(clause=k.identifier(f"{service}-clause"), condition=k.one_of(conditions), message=k.MESSAGE)
        nodes.append(Node(f"ask_user agreement {service}", needed, adds=(f"agreed {service}",)))
    return derive(
        nodes,
        _leaves(message=k.MESSAGE, words={**k.TEXT, "format": "search words"}, email=k.EMAIL, bags=k.BAGS),
    )


def _leaves(**fields: dict[str, Any]) -> tuple[Leaf, ...]:
    return leaves(k.returns(**fields))


def plan(request_kind: str, tails: tuple[str, ...], named: str, forbidden: bool, known: Known) -> tuple[str, ...]:
    """The shortest chain for such a request, without the reply. ``named`` is the kind of identifier that the text gives
    ("" where it gives a cue).

    Raises:
        ValueError: there is none; or the chain does not pass the screens.
    """
    kind = KINDS[request_kind]
    goals = {f"{kind.service} refusal logged"} if forbidden else {kind.goal, kind.also, *tails} - {""}
    given = {*known.session, *known.customer}
    if named:
        given |= set(_leaves(**{_NAMED_IDS[named]: k.identifier(named)}))
    return _plan(frozenset(goals), frozenset(given), known.facts | known.own)


@functools.lru_cache(maxsize=20_000)
def _plan(goals: frozenset[str], given: frozenset[Leaf], facts: frozenset[str]) -> tuple[str, ...]:
    graph = tool_graph()
    found: Found = search(graph, sorted(goals), given, facts, MAX_CHAIN)
    if found.chain is None:
        raise ValueError(f"services: no chain for {', '.join(sorted(goals))}: {found.reason}")
    why = unavailable(graph, found.chain, given) or unreachable(graph, found.chain, sorted(goals), facts)
    if why:
        raise ValueError(f"services: the chain for {', '.join(sorted(goals))} is screened out: {why}")
    return found.chain


def named_id(kind: Kind, cues: Mapping[str, str]) -> str:
    """The kind of identifier that the cues give, or ""."""
    cue = cues.get({"reservations": "trip", "orders": "order", "lines": "line"}.get(kind.table, ""), "")
    return _ID_OF[kind.table] if cue and cue.split()[-1].startswith(k.prefix(_ID_OF[kind.table])) else ""
