"""What the services' tools exchange: identifiers and closed sets, each with one JSON Schema wherever it occurs.

The dependency graph is derived from these: an identifier has a ``format`` of its own, a closed set its ``enum``.
"""

from __future__ import annotations

from typing import Any

_PREFIX = {  # kind of identifier → how it starts
    "customer-id": "CUS",
    "reservation-id": "RSV",
    "flight-id": "FLT",
    "quote-id": "QUO",
    "order-id": "ORD",
    "item-id": "ITM",
    "product-id": "PRD",
    "parcel-id": "PCL",
    "address-id": "ADR",
    "payment-id": "PAY",
    "line-id": "LIN",
    "fault-code": "ERR",
    "fix-id": "FIX",
    "bill-id": "BIL",
    "charge-id": "CHG",
    "plan-id": "PLN",
    "event-id": "EVT",
    "contact-id": "CON",
    "file-id": "FIL",
    "confirmation": "CNF",
    "travel-clause": "TR",
    "retail-clause": "RT",
    "telecom-clause": "TC",
}
FARES = ("Light", "Standard", "Flexible")
STAGES = ("Processing", "Shipped", "Delivered")
CONTRACTS = ("Prepaid", "Monthly", "Two-year")
REASONS = ("illness", "schedule change", "wrong size", "damaged on arrival", "no longer needed", "late delivery")

IDENTIFIER = r"\b(?:" + "|".join(sorted(set(_PREFIX.values()))) + r")-[0-9]{5}\b"  # as written in texts


def prefix(kind: str) -> str:
    return _PREFIX[kind]


def identifier(kind: str) -> dict[str, Any]:
    return {"type": "string", "format": kind, "pattern": f"^{_PREFIX[kind]}-[0-9]{{5}}$"}


def one_of(values: tuple[str, ...]) -> dict[str, Any]:
    return {"type": "string", "enum": list(values)}


EMAIL = {"type": "string", "format": "email"}
PIN = {"type": "string", "format": "pin", "pattern": "^[0-9]{6}$"}
DATE = {"type": "string", "format": "date", "pattern": "^2027-[0-9]{2}-[0-9]{2}$"}
NEW_DATE = {**DATE, "format": "new-date"}  # what the user wants, against dates that a record shows
CITY = {"type": "string", "format": "city"}
TEXT = {"type": "string"}
NUMBER = {"type": "number"}
INTEGER = {"type": "integer"}
BAGS = {**INTEGER, "format": "bags", "minimum": 1, "maximum": 5}
MESSAGE = {"type": "string", "format": "message", "minLength": 1, "maxLength": 600}
"""What a caller writes himself: given to every chain."""


def returns(**fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields}


def takes(**fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def rows(**fields: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": {"type": "object", "properties": fields}}
