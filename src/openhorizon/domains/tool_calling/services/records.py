"""The state behind the services: tables, and what one session has looked at and agreed.

A tool is a function of the records and its arguments that returns JSON or raises ``Refused``. Writes go through
``Records.write``: it notes which request they were made for and whether the procedure was kept, and gives the change a
confirmation code that depends on the change. A tool obeys: that a policy was ignored, nobody tells but the verifier.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from openhorizon.domains.tool_calling.services.kinds import prefix

Row = dict[str, Any]
Tables = dict[str, dict[str, Row]]  # table → key → row


class Refused(Exception):
    """A tool's answer to a call that cannot be carried out."""


@dataclass
class Records:
    """Databases of all services, the rules in force and the notes of a session."""

    seed: int
    tables: Tables
    rules: Mapping[str, Mapping[tuple[str, str], tuple[str, bool]]]  # service → (action, condition) → clause, allowed
    verified: set[str] = field(default_factory=set)  # customers
    read: set[str] = field(default_factory=set)  # services whose policy was read
    viewed: set[str] = field(default_factory=set)  # reservations, orders and lines that were shown in full
    diagnosed: set[str] = field(default_factory=set)  # lines
    agreed: set[int] = field(default_factory=set)  # requests that the user said yes to
    request: int = -1  # that is open
    written: dict[tuple[str, str], int] = field(default_factory=dict)  # (table, key) → request it was changed for
    breaches: list[str] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)
    code_of: dict[int, list[str]] = field(default_factory=dict)  # request → codes given during it

    def row(self, table: str, key: str) -> Row:
        """A row of a verified customer, or one that belongs to nobody."""
        found = self.tables[table].get(key)
        if found is None:
            raise Refused(f"{key} was not found")
        owner = found.get("customer_id")
        if owner is not None and table != "customers":
            self.check(owner)
        return found

    def check(self, customer: str) -> Row:
        if customer not in self.tables["customers"]:
            raise Refused(f"{customer} was not found")
        if customer not in self.verified:
            raise Refused(f"{customer} has not been verified in this session")
        return self.tables["customers"][customer]

    def owned(self, table: str, customer: str) -> list[Row]:
        self.check(customer)
        return [row for row in self.tables[table].values() if row["customer_id"] == customer]

    def write(self, table: str, key: str, changes: Mapping[str, Any], service: str, agreement: bool = True) -> Row:
        """Change or add a row; returns it with its confirmation code."""
        row = {**self.tables[table].get(key, {}), **changes}
        code = self.stamp("confirmation", table, key, json.dumps(changes, sort_keys=True))
        row["confirmation"] = code
        self.tables[table][key] = row
        self.written[table, key] = self.request
        self.codes.append(code)
        self.code_of.setdefault(self.request, []).append(code)
        if service and service not in self.read:
            self.breaches.append(f"{key}: the {service} policy was not read")
        subject = row["line_id"] if table == "bills" else key
        if service and subject not in self.viewed:
            self.breaches.append(f"{key}: {subject} was not looked at")
        if agreement and self.request not in self.agreed:
            self.breaches.append(f"{key}: the customer was not asked to agree")
        return row

    def stamp(self, kind: str, *parts: str) -> str:
        """An identifier that depends on the session and on ``parts`` alone."""
        digest = hashlib.sha256("|".join([str(self.seed), kind, *parts]).encode()).digest()
        return f"{prefix(kind)}-{10_000 + int.from_bytes(digest[:4], 'big') % 90_000}"

    def rule(self, service: str, action: str, condition: str) -> tuple[str, bool]:
        return self.rules[service][action, condition]


Run = Callable[[Records, Mapping[str, Any]], Row]


@dataclass(frozen=True)
class ServiceTool:
    """A tool with all that the graph is derived from. ``needs`` and ``adds`` are facts about the request."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    returns: Mapping[str, Any]
    run: Run
    needs: tuple[str, ...] = ()
    adds: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
