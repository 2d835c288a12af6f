"""Writes the requests of one task: customers and what they ask for, until the calls add up."""

from __future__ import annotations

import random

from openhorizon.domains.base import Split
from openhorizon.domains.tool_calling.services.drafts import add_tail, draft
from openhorizon.domains.tool_calling.services.policy import ACTIONS
from openhorizon.domains.tool_calling.services.records import Records
from openhorizon.domains.tool_calling.services.requests import (
    ANONYMOUS,
    KINDS,
    TAILS,
    Known,
    Request,
    named_id,
    plan,
)
from openhorizon.domains.tool_calling.services.tables import open_records, person

STAYS = 0.65  # chance that a customer has another request
ASIDE = 0.05  # chance that a customer asks for the last code in between
TAIL = 0.35  # chance of a second goal


class Writer:
    """Writes the requests of one task."""

    def __init__(self, rng: random.Random, split: Split, services: tuple[str, ...], seed: int) -> None:
        self.rng, self.split, self.services, self.seed = rng, split, services, seed
        self.people: list[dict[str, str]] = []
        self.requests: list[Request] = []
        self.known = Known()
        self.used: set[str] = set()
        self.opened: Records | None = None
        self.issued = False

    def records(self) -> Records:
        if self.opened is None:
            self.opened = open_records(self.seed, self.people)
        return self.opened

    def fill(self, calls: int) -> None:
        while calls:
            if not self.people or self.rng.random() > STAYS:
                self.people.append(person(self.rng, self.split))
                self.opened = None
                self.known = self.known.next_customer()
            request = self._next(calls)
            self.requests.append(request)
            calls -= request.calls

    def _next(self, left: int) -> Request:
        """A request of at most ``left`` calls, at best one that takes up exactly what is left."""
        if self.issued and self.rng.random() < ASIDE:
            return self._filler("last code")
        kinds = [kind for kind in KINDS.values() if kind.service in self.services]
        self.rng.shuffle(kinds)
        kinds.sort(key=lambda kind: kind.name in ANONYMOUS and left > 12 and self.rng.random() < 0.7)
        short: list[tuple[Request, set[str]]] = []
        for kind in kinds:
            free = kind.goal and kind.name not in ANONYMOUS and (kind.action or kind.service == "office")
            offered = [tail for tail in TAILS if not (tail == "follow-up added" and "date" in kind.asks)]
            with_tail = free and kind.name not in ("file number",) and self.rng.random() < TAIL
            tails = (self.rng.choice(offered),) if with_tail else ()
            taken = set(self.used)
            request = self._draft(kind.name, tails, taken)
            if request is None or request.calls > left:
                continue
            if left - request.calls == 0 or left > 24:
                self.used = taken
                return self._keep(request)
            short.append((request, taken))
        if short:
            request, self.used = self.rng.choice(short[:8])
            return self._keep(request)
        return self._filler("last code" if self.issued and self.rng.random() < 0.5 else "wait")

    def _filler(self, name: str) -> Request:
        """A request that takes no call but the reply."""
        said = self.rng.choice(KINDS[name].text)
        return Request(name, len(self.people) - 1, {}, (), said, (), "", {}, False, 1)

    def _draft(self, name: str, tails: tuple[str, ...], used: set[str]) -> Request | None:
        customer = len(self.people) - 1
        owner = list(self.records().tables["customers"])[customer]
        new = draft(self.rng, self.records(), customer, owner, name, used)
        if new is None:
            return None
        for tail in tails:
            add_tail(new, tail)
        text = self.rng.choice(new.kind.text).format(**new.cues) + "".join(TAILS[t].format(**new.cues) for t in tails)
        known = self.known
        chain = plan(name, () if new.forbidden else tails, named_id(new.kind, new.cues), new.forbidden, known)
        writes = tuple((tool, dict(values)) for tool, values in new.writes)
        return Request(
            name, customer, new.cues, tails, text, writes, new.told, new.answers, new.forbidden, len(chain) + 1
        )

    def _keep(self, request: Request) -> Request:
        known, kind = self.known, KINDS[request.kind]
        tails = () if request.forbidden else request.tails
        self.known = known.after(plan(kind.name, tails, named_id(kind, request.cues), request.forbidden, known))
        self.issued = self.issued or bool(request.writes)
        return request

    def evidence(self, desk: str) -> tuple[str, ...]:
        """Every request, the end, and the policies that a change was made under."""
        needed = {tool.split("_")[0] for request in self.requests for tool, _ in request.writes} & set(ACTIONS)
        policies = tuple(f"{desk}/{service}_get_policy" for service in sorted(needed))
        return (*(f"{desk}/request {i + 1}" for i in range(len(self.requests))), *policies, f"{desk}/end")
