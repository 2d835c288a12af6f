"""The services' policies: rules drawn for a session, and the text that states them.

A rule says whether an action is allowed under a condition (a fare class, an order's stage, a contract) and has a clause
number of its own; both are new in every session, so that a policy has to be read. Every action has at least one
condition that allows it. The texts are ours.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from openhorizon.domains.tool_calling.services.kinds import CONTRACTS, FARES, STAGES, prefix

ACTIONS: dict[str, dict[str, str]] = {  # service → action → what it is called in the policy
    "travel": {"change": "Changing a flight", "cancel": "Cancelling a reservation", "baggage": "Adding checked bags"},
    "retail": {
        "cancel": "Cancelling an order",
        "return": "Returning an item",
        "exchange": "Exchanging an item",
        "address": "Changing the delivery address",
    },
    "telecom": {"credit": "Crediting a disputed charge", "plan": "Changing the plan", "fix": "Remote repair of a line"},
}
CONDITIONS = {"travel": FARES, "retail": STAGES, "telecom": CONTRACTS}
NAMED = {"travel": "fare class", "retail": "order stage", "telecom": "contract"}
ALLOWED = 0.7  # share of rules

_CASES = (  # general paragraphs; none of them decides a request
    "Errors. Where the system shows something that cannot be right, for example two prices for one thing or a past "
    "date, do not repair it: finish the request with what the record says, and leave the rest to the back "
    "office, which compares all records with their sources every night and writes to the customer by itself.",
    "Privacy. Names, addresses and numbers of other people on an account are not read out. A customer who wants to "
    "know them is told where to find them after signing in. Notes of earlier sessions may be read but are not quoted.",
    "Tone. Answer what was asked, in two or three sentences. Apologise once where something went wrong and not again. "
    "Do not promise what another department would have to keep, and do not advise on law, taxes or medicine.",
    "Lost connections. If a customer does not answer, wait; the line is closed by the system and not by you. What was "
    "agreed before the connection was lost holds for the request it was given for, and for no other.",
    "Payments. Card numbers are never taken down. A payment method is named by its identifier from the account, and a "
    "method that is not on the account cannot be used at the desk. Refunds go back the way the payment came.",
    "Records. Every change is kept with the clause, the condition and the code that was told to the customer. Auditors "
    "read a sample of them each week and listen to the recording; a change without a clause counts as a fault.",
)

Rules = dict[tuple[str, str], tuple[str, bool]]

_HEAD = {
    "travel": "Reservations belong to the customer who made them, whoever travels. The fare class decides what may be "
    "done with a reservation; it is shown in the reservation's details and in no list. Travellers on one reservation "
    "are treated alike: a change, a cancellation or a bag is never for one of them alone.",
    "retail": "An order belongs to the customer who placed it, also where it is a present for somebody else. The stage "
    "of the order decides what may be done with it; it is shown in the order's details. Items of one order may be "
    "returned or exchanged one by one, and the rest of the order stays as it is.",
    "telecom": "A line belongs to the customer who signed for it, whoever uses it. The contract of the line decides "
    "what may be done; it is shown in the line's details. Bills cover all charges of one line in one month; a charge "
    "is disputed by itself, never the whole bill.",
}
_DUTIES = (
    "Identify the customer first: find the account by the e-mail address that the customer gives and verify it with "
    "the six-digit PIN that the customer tells you. Nothing about an account may be looked up before.",
    "Read this policy before you change anything, even where you remember an earlier edition: clause numbers and rules "
    "are revised, and a change made under an old clause is reversed by the audit.",
    "Before a change, say what you are about to do and ask the customer to agree; a customer who asked for a change "
    "has not thereby agreed to its conditions. One agreement covers one request.",
    "Every change names the {named} and the clause that allows it. Where the clause forbids the request, do not look "
    "for a way round it: log the refusal with the clause that forbids it and tell the customer.",
    "Do what was asked and nothing else. Other reservations, orders, lines or appointments of the same customer are "
    "not to be touched, however useful it may seem.",
    "Tell the customer the confirmation code of what was done, or of the refusal. Amounts, dates and codes are given "
    "as the system shows them, never from memory.",
)
_ASIDES = (
    "Goodwill above these rules is for supervisors and cannot be promised at the desk.",
    "The rule applies on the day of the request, whatever was in force when the contract was made.",
    "Taxes and public charges follow the law of the country of departure or delivery and are not refunded at the desk.",
    "Where several rules seem to apply, the rule for the exact {named} goes before the general paragraphs.",
    "Requests by third persons are declined unless they can give the account's PIN.",
    "Statistics on refusals are read every month by the quality team; a refusal under the right clause is good work.",
)


def draw_rules(rng: random.Random) -> dict[str, Rules]:
    """The rules of one session, by service."""
    found: dict[str, Rules] = {}
    for service, actions in ACTIONS.items():
        numbers = iter(rng.sample(range(10_000, 99_999), len(actions) * len(CONDITIONS[service])))
        rules: Rules = {}
        for action in actions:
            allowed = [rng.random() < ALLOWED for _ in CONDITIONS[service]]
            if not any(allowed):
                allowed[rng.randrange(len(allowed))] = True
            for condition, may in zip(CONDITIONS[service], allowed, strict=True):
                rules[action, condition] = (f"{prefix(f'{service}-clause')}-{next(numbers)}", may)
        found[service] = rules
    return found


def text(service: str, rules: Mapping[tuple[str, str], tuple[str, bool]], seed: int) -> str:
    """The policy in words. A rule reads "Clause TR-40512 (Cancelling a reservation, Light): not allowed."."""
    named, rng = NAMED[service], random.Random(f"{service}{seed}")
    parts = [f"POLICY OF THE {service.upper()} DESK, edition {rng.randint(40, 99)}.", "1. Scope. " + _HEAD[service]]
    duties = " ".join(duty.format(named=named) for duty in _DUTIES)
    parts.append(f"2. Duties of the agent. {duties}")
    for number, (action, title) in enumerate(ACTIONS[service].items(), start=3):
        lines = [
            f"Clause {clause} ({title}, {condition}): {'allowed' if may else 'not allowed'}."
            for (of, condition), (clause, may) in rules.items()
            if of == action
        ]
        rng.shuffle(lines)
        parts.append(f"{number}. {title}. " + " ".join([*lines, rng.choice(_ASIDES).format(named=named)]))
    parts.append(f"{len(parts)}. Notes. " + " ".join(note.format(named=named) for note in rng.sample(_ASIDES, 3)))
    parts += [f"{len(parts) + n}. {case}" for n, case in enumerate(rng.sample(_CASES, len(_CASES)))]
    return "\n".join(parts)
