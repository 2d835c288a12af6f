"""Retail: orders of many items, their parcels and a catalogue."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from openhorizon.domains.tool_calling.services import kinds as k
from openhorizon.domains.tool_calling.services.policy import text
from openhorizon.domains.tool_calling.services.records import Records, Refused, Row, ServiceTool

SERVICE = "retail"
_DEPOTS = ("sorting centre north", "sorting centre south", "customs office", "regional depot", "delivery van")
_EVENTS = ("accepted", "sorted", "loaded", "unloaded", "held for a label check", "handed on")


def _policy(records: Records, _: Mapping[str, Any]) -> Row:
    records.read.add(SERVICE)
    return {"service": SERVICE, "policy": text(SERVICE, records.rules[SERVICE], records.seed)}


def _list(records: Records, values: Mapping[str, Any]) -> Row:
    found = records.owned("orders", values["customer_id"])
    return {
        "customer_id": values["customer_id"],
        "count": len(found),
        "orders": [
            {
                "order_id": row["order_id"],
                "placed_on": row["placed_on"],
                "total": row["total"],
                "currency": row["currency"],
                "contains": [item["product"] for item in row["items"]],
                "delivered_to": row["deliver_to"],
                "paid": row["paid"],
            }
            for row in found
        ],
    }


def _get(records: Records, values: Mapping[str, Any]) -> Row:
    row = records.row("orders", values["order_id"])
    records.viewed.add(values["order_id"])
    return row


def _item(row: Row, item: str) -> Row:
    found: Row | None = next((held for held in row["items"] if held["item_id"] == item), None)
    if found is None:
        raise Refused(f"{item} is not in {row['order_id']}")
    return found


def _product(records: Records, values: Mapping[str, Any]) -> Row:
    return records.row("products", values["product_id"])


def _search(records: Records, values: Mapping[str, Any]) -> Row:
    words = values["words"].lower().split()
    found = [row for row in records.tables["products"].values() if any(word in row["name"].lower() for word in words)]
    shown = ("product_id", "name", "made_in", "price", "rating")
    return {"words": values["words"], "products": [{name: row[name] for name in shown} for row in found[:10]]}


def _track(records: Records, values: Mapping[str, Any]) -> Row:
    row = next((row for row in records.tables["orders"].values() if row["parcel_id"] == values["parcel_id"]), None)
    if row is None:
        raise Refused(f"{values['parcel_id']} was not found")
    records.check(row["customer_id"])
    rng = random.Random(f"{records.seed}{values['parcel_id']}")
    scans = [
        {
            "time": f"2027-05-{day:02d} {rng.randint(4, 21):02d}:{rng.randint(0, 59):02d}",
            "place": rng.choice(_DEPOTS),
            "event": rng.choice(_EVENTS),
            "scanner": f"S{rng.randint(100, 999)}",
        }
        for day in range(1, rng.randint(14, 22))
    ]
    return {
        "parcel_id": values["parcel_id"],
        "scans": scans,
        "weight_kg": rng.randint(3, 140) / 10,
        "expected_on": f"2027-06-{rng.randint(1, 28):02d}",
    }


def _cancel(records: Records, values: Mapping[str, Any]) -> Row:
    row = records.row("orders", values["order_id"])
    if row["status"] == "cancelled":
        raise Refused(f"{values['order_id']} is cancelled")
    changes = {"status": "cancelled"} | {name: values[name] for name in ("reason", "order_stage", "clause")}
    return records.write("orders", values["order_id"], changes, SERVICE)


def _return(records: Records, values: Mapping[str, Any]) -> Row:
    return _touch(records, values, {"state": "return requested", "reason": values["reason"]})


def _exchange(records: Records, values: Mapping[str, Any]) -> Row:
    product = records.row("products", values["product_id"])
    if all(values["new_item_id"] != variant["new_item_id"] for variant in product["variants"]):
        raise Refused(f"{values['new_item_id']} is not sold as {product['name']}")
    return _touch(records, values, {"state": "exchange requested", "exchanged_for": values["new_item_id"]})


def _touch(records: Records, values: Mapping[str, Any], change: Row) -> Row:
    row = records.row("orders", values["order_id"])
    item = _item(row, values["item_id"])
    if item["state"] != "ordered":
        raise Refused(f"{values['item_id']}: {item['state']} already")
    items = [held | change if held is item else held for held in row["items"]]
    changes = {"items": items, "order_stage": values["order_stage"], "clause": values["clause"]}
    return records.write("orders", values["order_id"], changes, SERVICE)


def _address(records: Records, values: Mapping[str, Any]) -> Row:
    row = records.row("orders", values["order_id"])
    customer = records.check(row["customer_id"])
    address = next((held for held in customer["addresses"] if held["address_id"] == values["address_id"]), None)
    if address is None:
        raise Refused(f"{values['address_id']} is not an address of the customer")
    changes = {"deliver_to": address, "order_stage": values["order_stage"], "clause": values["clause"]}
    return records.write("orders", values["order_id"], changes, SERVICE)


def _refusal(records: Records, values: Mapping[str, Any]) -> Row:
    row = records.row("orders", values["order_id"])
    notes = [*row["refused"], {"clause": values["clause"], "order_stage": values["order_stage"]}]
    return records.write("orders", values["order_id"], {"refused": notes}, SERVICE, agreement=False)


_ORDER, _ITEM = k.identifier("order-id"), k.identifier("item-id")
_NEW = {**_ITEM, "format": "new-item-id"}
_PRODUCT = k.identifier("product-id")
_CLAUSE = k.identifier("retail-clause")
_STAGE = k.one_of(k.STAGES)
_DONE = k.returns(confirmation=k.identifier("confirmation"), status=k.TEXT)
_OWN = ("verified",)

TOOLS = (
    ServiceTool(
        "retail_get_policy",
        "Read the retail desk's policy in force today: what may be done with an order at which stage, and under which "
        "clause. The clauses are renumbered often, so read it once in every session.",
        k.takes(),
        k.returns(policy=_CLAUSE),
        _policy,
        adds=("retail policy read",),
        reads=("policies",),
    ),
    ServiceTool(
        "retail_list_orders",
        "List all orders of a verified customer with date, total and the names of what they contain. Item ids and the "
        "stage are only in retail_get_order.",
        k.takes(customer_id=k.identifier("customer-id")),
        k.returns(orders=k.rows(order_id=_ORDER, total=k.NUMBER)),
        _list,
        needs=_OWN,
        reads=("orders",),
    ),
    ServiceTool(
        "retail_get_order",
        "Show one order in full: stage, items with their ids and product ids, parcel, delivery address and payments.",
        k.takes(order_id=_ORDER),
        k.returns(
            order_stage=_STAGE,
            parcel_id=k.identifier("parcel-id"),
            items=k.rows(item_id=_ITEM, product_id=_PRODUCT, price=k.NUMBER),
        ),
        _get,
        needs=_OWN,
        reads=("orders",),
    ),
    ServiceTool(
        "retail_get_product",
        "Show a product with all its variants (colour, size), their item ids, prices and stock.",
        k.takes(product_id=_PRODUCT),
        k.returns(variants=k.rows(new_item_id=_NEW, colour=k.TEXT, size=k.TEXT)),
        _product,
        adds=("stock known",),
        reads=("products",),
    ),
    ServiceTool(
        "retail_search_products",
        "Search the catalogue by words of the product's name; ten products at most.",
        k.takes(words={**k.TEXT, "format": "search words", "minLength": 2}),
        k.returns(products=k.rows(product_id=_PRODUCT, price={**k.NUMBER, "format": "price"})),
        _search,
        adds=("catalogue searched",),
        reads=("products",),
    ),
    ServiceTool(
        "retail_track_parcel",
        "Show where a parcel was scanned and when it is expected.",
        k.takes(parcel_id=k.identifier("parcel-id")),
        k.returns(expected_on={**k.DATE, "format": "delivery date"}),
        _track,
        needs=_OWN,
        adds=("parcel tracked",),
        reads=("orders",),
    ),
    ServiceTool(
        "retail_cancel_order",
        "Cancel a whole order for the customer's reason. Name the order's stage and the clause that allows it. "
        "Requires the customer's agreement. Cannot be undone.",
        k.takes(order_id=_ORDER, reason=k.one_of(k.REASONS), order_stage=_STAGE, clause=_CLAUSE),
        _DONE,
        _cancel,
        needs=("verified", "agreed retail"),
        adds=("order cancelled",),
        writes=("orders",),
    ),
    ServiceTool(
        "retail_return_item",
        "Open a return of one item for the customer's reason. Name the order's stage and the clause that allows it. "
        "Requires the customer's agreement.",
        k.takes(order_id=_ORDER, item_id=_ITEM, reason=k.one_of(k.REASONS), order_stage=_STAGE, clause=_CLAUSE),
        _DONE,
        _return,
        needs=("verified", "agreed retail"),
        adds=("item returned",),
        writes=("orders",),
    ),
    ServiceTool(
        "retail_exchange_item",
        "Exchange one item for another variant of the same product. Name the order's stage and the clause that allows "
        "it. Requires the customer's agreement.",
        k.takes(
            order_id=_ORDER, item_id=_ITEM, product_id=_PRODUCT, new_item_id=_NEW, order_stage=_STAGE, clause=_CLAUSE
        ),
        _DONE,
        _exchange,
        needs=("verified", "agreed retail"),
        adds=("item exchanged",),
        reads=("products",),
        writes=("orders",),
    ),
    ServiceTool(
        "retail_change_address",
        "Send an order to another of the customer's addresses. Name the order's stage and the clause that allows it. "
        "Requires the customer's agreement.",
        k.takes(order_id=_ORDER, address_id=k.identifier("address-id"), order_stage=_STAGE, clause=_CLAUSE),
        _DONE,
        _address,
        needs=("verified", "agreed retail"),
        adds=("address changed",),
        reads=("customers",),
        writes=("orders",),
    ),
    ServiceTool(
        "retail_log_refusal",
        "Note on an order that a request was declined, with its stage and the clause that forbids it.",
        k.takes(order_id=_ORDER, order_stage=_STAGE, clause=_CLAUSE),
        _DONE,
        _refusal,
        needs=_OWN,
        adds=("retail refusal logged",),
        writes=("orders",),
    ),
)
