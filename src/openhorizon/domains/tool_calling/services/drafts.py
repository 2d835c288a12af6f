"""Writes single requests: target, cues, answers, and the reference writes, worked out from the databases alone."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from openhorizon.domains.tool_calling.services import kinds as k
from openhorizon.domains.tool_calling.services import retail, travel
from openhorizon.domains.tool_calling.services.policy import ACTIONS, CONDITIONS
from openhorizon.domains.tool_calling.services.records import Records, Row
from openhorizon.domains.tool_calling.services.requests import KINDS, LAST, Kind


@dataclass
class Draft:
    """One request being written: draws its target, cues, answers and reference writes."""

    rng: random.Random
    records: Records
    owner: str  # customer id
    kind: Kind
    used: set[str]  # targets of earlier requests: nothing is asked about twice
    cues: dict[str, str] = field(default_factory=dict)
    answers: dict[str, str] = field(default_factory=dict)
    writes: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    told: str = ""
    forbidden: bool = False

    def rows(self, table: str) -> list[Row]:
        found = self.records.tables[table].values()
        return [row for row in found if row.get("customer_id", self.owner) == self.owner]

    def pick(self, table: str, key: str) -> Row | None:
        free = [row for row in self.rows(table) if row[key] not in self.used]
        if not free:
            return None
        row = self.rng.choice(free)
        self.used.add(row[key])
        return row

    def ruled(self, condition_name: str, row: Row) -> dict[str, Any]:
        """The arguments that a policy asks for; notes whether it forbids the request."""
        clause, allowed = self.records.rule(self.kind.service, self.kind.action, row[condition_name])
        self.forbidden = not allowed
        return {condition_name: row[condition_name], "clause": clause}

    def reason(self) -> str:
        self.answers["reason"] = self.rng.choice(k.REASONS[:2] if self.kind.service == "travel" else k.REASONS[2:])
        return self.answers["reason"]

    def date(self) -> str:
        self.answers["date"] = f"2027-{self.rng.randint(9, 11):02d}-{self.rng.randint(1, 28):02d}"
        return self.answers["date"]


def draft(rng: random.Random, records: Records, customer: int, owner: str, name: str, used: set[str]) -> Draft | None:
    """Cues, answers and writes of one request of this kind; None where nothing is left to ask for."""
    kind = KINDS[name]
    new = Draft(rng, records, owner, kind, used)
    fill = {"travel": _travel, "retail": _retail, "telecom": _telecom, "office": _office}.get(kind.service)
    if name.startswith("ask "):
        action = rng.choice(list(ACTIONS[kind.service]))
        condition = rng.choice(CONDITIONS[kind.service])
        new.cues = {"title": ACTIONS[kind.service][action], "condition": condition}
        new.told = records.rule(kind.service, action, condition)[0]
        return new
    if fill is not None and not fill(new):
        return None
    return new


def _travel(new: Draft) -> bool:
    row = new.pick("reservations", "reservation_id")
    if row is None:
        return False
    key = {"reservation_id": row["reservation_id"]}
    new.cues["trip"] = new.rng.choice((f"my trip to {row['destination']}", f"reservation {row['reservation_id']}"))
    if new.kind.name == "gate":
        new.told = travel._status(_all_verified(new.records), key)["gate"]
        return True
    ruled = new.ruled("fare_class", row)
    if new.kind.name == "cancel trip":
        new.writes.append(("travel_cancel_reservation", {**key, "reason": new.reason(), **ruled}))
    elif new.kind.name == "add bags":
        card, bags = new.rng.choice(new.records.tables["customers"][new.owner]["payments"]), new.rng.randint(2, 4)
        new.cues |= {"bags": str(bags), "card": card["kind"]}
        new.writes.append(("travel_add_baggage", {**key, "bags": bags, "payment_id": card["payment_id"], **ruled}))
    else:
        date, wish = new.date(), new.rng.choice(("cheapest", "earliest"))
        new.cues["wish"] = wish
        options = travel.flights(new.records.seed, row["flight"]["origin"], row["flight"]["destination"], date)
        flight = min(options, key=lambda option: option["fare" if wish == "cheapest" else "departure"])["flight_id"]
        quote = new.records.stamp("quote-id", row["reservation_id"], flight, date)
        new.writes.append(
            ("travel_change_flight", {**key, "flight_id": flight, "date": date, "quote_id": quote, **ruled})
        )
    if new.forbidden:
        new.writes = [("travel_log_refusal", {**key, **ruled})]
    return True


def _retail(new: Draft) -> bool:
    rng, name = new.rng, new.kind.name
    if new.kind.table == "products":
        product = rng.choice(list(new.records.tables["products"].values()))
        variant = rng.choice(product["variants"])
        new.cues = {"product": product["name"], "colour": variant["colour"], "size": variant["size"]}
        new.told = str(product["price"]) if name == "price" else str(variant["in_stock"])
        return True
    row = new.pick("orders", "order_id")
    if row is None:
        return False
    key, item = {"order_id": row["order_id"]}, rng.choice(row["items"])
    named = name in ("cancel order", "move delivery", "track")
    new.cues["order"] = rng.choice((f"the order with the {item['product']}", f"order {row['order_id']}"))
    if not named:
        new.cues = {"product": item["product"]}
    if name == "track":
        parcel = {"parcel_id": row["parcel_id"]}
        new.told = retail._track(_all_verified(new.records), parcel)["expected_on"]
        return True
    ruled = new.ruled("order_stage", row)
    if name == "cancel order":
        new.writes.append(("retail_cancel_order", {**key, "reason": new.reason(), **ruled}))
    elif name == "move delivery":
        address = rng.choice(new.records.tables["customers"][new.owner]["addresses"][1:])
        new.cues["label"] = address["label"]
        new.writes.append(("retail_change_address", {**key, "address_id": address["address_id"], **ruled}))
    elif name == "return item":
        new.writes.append(("retail_return_item", {**key, "item_id": item["item_id"], "reason": new.reason(), **ruled}))
    else:
        product = new.records.tables["products"][item["product_id"]]
        others = [v for v in product["variants"] if (v["colour"], v["size"]) != (item["colour"], item["size"])]
        variant = rng.choice(others)
        new.cues |= {"colour": variant["colour"], "size": variant["size"]}
        wanted = {"item_id": item["item_id"], "product_id": item["product_id"], "new_item_id": variant["new_item_id"]}
        new.writes.append(("retail_exchange_item", {**key, **wanted, **ruled}))
    if new.forbidden:
        new.writes = [("retail_log_refusal", {**key, **ruled})]
    return True


def _telecom(new: Draft) -> bool:
    rng, name = new.rng, new.kind.name
    if name == "plan price":
        plan_row = rng.choice(list(new.records.tables["plans"].values()))
        new.cues, new.told = {"data": str(plan_row["data_gb"])}, str(plan_row["price"])
        return True
    row = new.pick("lines", "line_id")
    if row is None:
        return False
    key = {"line_id": row["line_id"]}
    new.cues["line"] = rng.choice((f"the line used by {row['used_by']}", f"line {row['line_id']}"))
    if name == "data left":
        new.told = str(row["data_left_gb"])
        return True
    ruled = new.ruled("contract", row)
    if name == "repair line":
        guide, family = new.records.tables["guides"][row["fault_code"]], row["device"].split()[0]
        fix = next(fix["fix_id"] for fix in guide["fixes"] if fix["device_family"] == family)
        new.writes.append(("telecom_apply_fix", {**key, "fix_id": fix, **ruled}))
    elif name == "credit charge":
        bill = rng.choice([b for b in new.rows("bills") if b["line_id"] == row["line_id"]])
        charge = rng.choice(bill["charges"])
        new.cues |= {"charge": charge["text"], "month": bill["month"]}
        wanted = {"bill_id": bill["bill_id"], "charge_id": charge["charge_id"]}
        new.writes.append(("telecom_credit_charge", {**wanted, **ruled}))
    else:
        plans = sorted(new.records.tables["plans"].values(), key=lambda p: (p["price"], p["plan_id"]))
        cheapest = {p["data_gb"]: next(q["plan_id"] for q in plans if q["data_gb"] >= p["data_gb"]) for p in plans}
        data = rng.choice([gb for gb, found in cheapest.items() if found != row["plan_id"]])  # it is to be a change
        wanted_plan = cheapest[data]
        new.cues["data"] = str(data)
        new.writes.append(("telecom_change_plan", {**key, "plan_id": wanted_plan, **ruled}))
    if new.forbidden:
        new.writes = [("telecom_log_refusal", {**key, **ruled})]
    return True


def _office(new: Draft) -> bool:
    if new.kind.table == "events":
        row = new.pick("events", "event_id")
        if row is None:
            return False
        new.cues = {"title": row["title"]}
        new.writes.append(("office_move_event", {"event_id": row["event_id"], "date": new.date()}))
        return True
    row = new.pick("files", "file_id")
    if row is None:
        return False
    new.cues = {"paper": row["name"]}
    if new.kind.name == "file number":
        new.told = row["text"].rsplit("File number ", 1)[1].rstrip(".")
    else:
        contact = new.rng.choice(new.rows("contacts"))
        new.cues["role"] = contact["role"]
        new.writes.append(("office_share_file", {"file_id": row["file_id"], "contact_id": contact["contact_id"]}))
    return True


def add_tail(new: Draft, tail: str) -> None:
    """A second goal, for another service, that uses the first one's confirmation code. Dropped where the policy forbids
    the first: the customer said "when that is done"."""
    if tail == "confirmation mailed":
        contact = new.rng.choice(new.rows("contacts"))
        new.cues["recipient"] = contact["role"]
        write: tuple[str, dict[str, Any]] = (
            "office_send_confirmation", {"contact_id": contact["contact_id"], "reference": LAST}
        )  # fmt: skip
    else:
        write = ("office_add_event", {"customer_id": new.owner, "date": new.date(), "reference": LAST})
    if not new.forbidden:
        new.writes.append(write)


def _all_verified(records: Records) -> Records:
    return replace(records, verified=set(records.tables["customers"]))
