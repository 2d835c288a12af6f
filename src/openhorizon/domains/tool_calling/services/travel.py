"""Travel: reservations on invented flights between real cities."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

from openhorizon.domains.tool_calling.services import kinds as k
from openhorizon.domains.tool_calling.services.policy import text
from openhorizon.domains.tool_calling.services.records import Records, Refused, Row, ServiceTool

SERVICE = "travel"
OPTIONS = 10  # flights a day and route
_CARRIERS = ("Northwind Air", "Blue Meridian", "Cassia Airways", "Polar Link", "Terra Jet")
_AIRCRAFT = ("Airbus A320neo", "Airbus A220-300", "Boeing 737-800", "Embraer E195-E2")


def flights(seed: int, origin: str, destination: str, date: str) -> list[Row]:
    """The day's flights on a route: the same for the same session, wherever they are asked for."""
    digest = hashlib.sha256(f"{seed}|{origin}|{destination}|{date}".encode()).digest()
    rng = random.Random(digest)
    fares = rng.sample(range(79, 640), OPTIONS)
    hours = sorted(rng.sample(range(5, 22), OPTIONS))
    numbers = rng.sample(range(10_000, 99_999), OPTIONS)
    found = []
    for fare, hour, number in zip(fares, hours, numbers, strict=True):
        duration = rng.randint(65, 560)
        minute = rng.choice((0, 10, 20, 35, 45, 55))
        found.append(
            {
                "flight_id": f"FLT-{number}",
                "carrier": rng.choice(_CARRIERS),
                "origin": origin,
                "destination": destination,
                "date": date,
                "departure": f"{hour:02d}:{minute:02d}",
                "duration_minutes": duration,
                "stops": rng.choice((0, 0, 1)),
                "aircraft": rng.choice(_AIRCRAFT),
                "terminal": rng.randint(1, 4),
                "on_time_percent": rng.randint(61, 98),
                "seats_left": rng.randint(3, 60),
                "fare": fare,
                "baggage_included": rng.choice((0, 1, 1, 2)),
            }
        )
    return found


def _policy(records: Records, _: Mapping[str, Any]) -> Row:
    records.read.add(SERVICE)
    return {"service": SERVICE, "policy": text(SERVICE, records.rules[SERVICE], records.seed)}


def _list(records: Records, values: Mapping[str, Any]) -> Row:
    found = records.owned("reservations", values["customer_id"])
    shown = ("reservation_id", "status", "destination", "country", "flight", "booked_on", "travellers", "paid")
    return {
        "customer_id": values["customer_id"],
        "count": len(found),
        "reservations": [{name: row[name] for name in shown} for row in found],
    }


def _get(records: Records, values: Mapping[str, Any]) -> Row:
    row = records.row("reservations", values["reservation_id"])
    records.viewed.add(values["reservation_id"])
    return row


def _search(records: Records, values: Mapping[str, Any]) -> Row:
    row = records.row("reservations", values["reservation_id"])
    origin, destination = row["flight"]["origin"], row["flight"]["destination"]
    found = flights(records.seed, origin, destination, values["date"])
    return {"origin": origin, "destination": destination, "date": values["date"], "options": found}


def _option(records: Records, row: Row, flight: str, date: str) -> Row:
    found = flights(records.seed, row["flight"]["origin"], row["flight"]["destination"], date)
    option = next((option for option in found if option["flight_id"] == flight), None)
    if option is None:
        raise Refused(f"{flight} does not fly this route on {date}")
    return option


def _quote(records: Records, values: Mapping[str, Any]) -> Row:
    row = records.row("reservations", values["reservation_id"])
    option = _option(records, row, values["flight_id"], values["date"])
    difference = round(option["fare"] * len(row["travellers"]) - row["paid"], 2)
    return {
        "quote_id": records.stamp("quote-id", values["reservation_id"], values["flight_id"], values["date"]),
        "reservation_id": values["reservation_id"],
        "fare_difference": difference,
        "amount_due": max(difference, 0),
        "refund_due": max(-difference, 0),
        "valid_for_minutes": 30,
        "new_flight": option,
    }


def _active(records: Records, reservation: str) -> Row:
    row = records.row("reservations", reservation)
    if row["status"] == "cancelled":
        raise Refused(f"{reservation} is cancelled")
    return row


def _change(records: Records, values: Mapping[str, Any]) -> Row:
    key = values["reservation_id"]
    row = _active(records, key)
    if values["quote_id"] != records.stamp("quote-id", key, values["flight_id"], values["date"]):
        raise Refused(f"{values['quote_id']} is not a quote for this change")
    option = _option(records, row, values["flight_id"], values["date"])
    changes = {"flight": option, "status": "changed", "fare_class": values["fare_class"], "clause": values["clause"]}
    return records.write("reservations", key, changes, SERVICE)


def _cancel(records: Records, values: Mapping[str, Any]) -> Row:
    _active(records, values["reservation_id"])
    changes = {"status": "cancelled"} | {name: values[name] for name in ("reason", "fare_class", "clause")}
    return records.write("reservations", values["reservation_id"], changes, SERVICE)


def _baggage(records: Records, values: Mapping[str, Any]) -> Row:
    row = _active(records, values["reservation_id"])
    changes = {"bags": row["bags"] + values["bags"], "bags_paid_with": values["payment_id"]}
    changes |= {"fare_class": values["fare_class"], "clause": values["clause"]}
    return records.write("reservations", values["reservation_id"], changes, SERVICE)


def _status(records: Records, values: Mapping[str, Any]) -> Row:
    row = records.row("reservations", values["reservation_id"])
    rng = random.Random(f"{records.seed}{row['flight']['flight_id']}")
    delay = rng.choice((0, 0, 15, 25, 40, 55, 80))
    return {
        "flight": row["flight"],
        "terminal": rng.randint(1, 4),
        "gate": f"{rng.choice('ABCDE')}{rng.randint(1, 48)}",
        "delay_minutes": delay,
        "boarding_groups": rng.randint(3, 7),
        "inbound_aircraft": "on the ground" if delay == 0 else "late from its previous leg",
        "remarks": "Gates may change; passengers are asked to watch the screens from two hours before departure.",
    }


def _refusal(records: Records, values: Mapping[str, Any]) -> Row:
    row = records.row("reservations", values["reservation_id"])
    notes = [*row["refused"], {"clause": values["clause"], "fare_class": values["fare_class"]}]
    return records.write("reservations", values["reservation_id"], {"refused": notes}, SERVICE, agreement=False)


_RESERVATION = k.identifier("reservation-id")
_CLAUSE = k.identifier("travel-clause")
_FARE = k.one_of(k.FARES)
_FLIGHT = {
    "flight_id": k.identifier("flight-id"),
    "carrier": k.TEXT,
    "origin": k.CITY,
    "destination": k.CITY,
    "departure": k.TEXT,
    "fare": k.NUMBER,
    "stops": k.INTEGER,
}
_DONE = k.returns(confirmation=k.identifier("confirmation"), status=k.TEXT)
_OWN = ("verified",)

TOOLS = (
    ServiceTool(
        "travel_get_policy",
        "Read the travel desk's policy in force today: which changes, cancellations and baggage requests each fare "
        "class allows, and under which clause. The clauses are renumbered often, so read it once in every session.",
        k.takes(),
        k.returns(policy=_CLAUSE),
        _policy,
        adds=("travel policy read",),
        reads=("policies",),
    ),
    ServiceTool(
        "travel_list_reservations",
        "List all reservations of a verified customer with destination, status and date of booking. Fare class and "
        "passenger details are only in travel_get_reservation.",
        k.takes(customer_id=k.identifier("customer-id")),
        k.returns(reservations=k.rows(reservation_id=_RESERVATION, destination=k.CITY, status=k.TEXT)),
        _list,
        needs=_OWN,
        reads=("reservations",),
    ),
    ServiceTool(
        "travel_get_reservation",
        "Show one reservation in full: flight, fare class, travellers, baggage, payments and earlier notes.",
        k.takes(reservation_id=_RESERVATION),
        k.returns(fare_class=_FARE, flight={"type": "object", "properties": {"carrier": k.TEXT, "date": k.DATE}}),
        _get,
        needs=_OWN,
        reads=("reservations",),
    ),
    ServiceTool(
        "travel_search_flights",
        "List the flights on another date over the same route as a reservation, with fares and free seats.",
        k.takes(reservation_id=_RESERVATION, date=k.NEW_DATE),
        k.returns(options=k.rows(**_FLIGHT)),
        _search,
        needs=_OWN,
        reads=("reservations", "flights"),
    ),
    ServiceTool(
        "travel_quote_change",
        "Price a change of a reservation to another flight. The quote is needed to make the change.",
        k.takes(reservation_id=_RESERVATION, flight_id=k.identifier("flight-id"), date=k.NEW_DATE),
        k.returns(quote_id=k.identifier("quote-id"), fare_difference=k.NUMBER),
        _quote,
        needs=_OWN,
        reads=("reservations", "flights"),
    ),
    ServiceTool(
        "travel_change_flight",
        "Move a reservation to another flight under a quote. Name the fare class of the reservation and the clause "
        "that allows it. Requires the customer's agreement.",
        k.takes(
            reservation_id=_RESERVATION,
            flight_id=k.identifier("flight-id"),
            date=k.NEW_DATE,
            quote_id=k.identifier("quote-id"),
            fare_class=_FARE,
            clause=_CLAUSE,
        ),
        _DONE,
        _change,
        needs=("verified", "agreed travel"),
        adds=("flight changed",),
        reads=("flights",),
        writes=("reservations",),
    ),
    ServiceTool(
        "travel_cancel_reservation",
        "Cancel a reservation for the customer's reason. Name the fare class of the reservation and the clause that "
        "allows it. Requires the customer's agreement. Cannot be undone.",
        k.takes(reservation_id=_RESERVATION, reason=k.one_of(k.REASONS), fare_class=_FARE, clause=_CLAUSE),
        _DONE,
        _cancel,
        needs=("verified", "agreed travel"),
        adds=("reservation cancelled",),
        writes=("reservations",),
    ),
    ServiceTool(
        "travel_add_baggage",
        "Add checked bags to a reservation and charge them to one of the customer's payment methods. Name the fare "
        "class and the clause that allows it. Requires the customer's agreement.",
        k.takes(
            reservation_id=_RESERVATION,
            bags=k.BAGS,
            payment_id=k.identifier("payment-id"),
            fare_class=_FARE,
            clause=_CLAUSE,
        ),
        _DONE,
        _baggage,
        needs=("verified", "agreed travel"),
        adds=("baggage added",),
        reads=("customers",),
        writes=("reservations",),
    ),
    ServiceTool(
        "travel_get_flight_status",
        "Live status of a reservation's flight: terminal, gate and delay in minutes.",
        k.takes(reservation_id=_RESERVATION),
        k.returns(gate={**k.TEXT, "format": "gate"}, delay_minutes=k.INTEGER),
        _status,
        needs=_OWN,
        adds=("gate known",),
        reads=("reservations", "flights"),
    ),
    ServiceTool(
        "travel_log_refusal",
        "Note on a reservation that a request was declined, with its fare class and the clause that forbids it.",
        k.takes(reservation_id=_RESERVATION, fare_class=_FARE, clause=_CLAUSE),
        _DONE,
        _refusal,
        needs=_OWN,
        adds=("travel refusal logged",),
        writes=("reservations",),
    ),
)
