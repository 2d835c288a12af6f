"""Office: a customer's calendar, contacts, files and outgoing mail; and the desk's own tools on accounts.

Nothing here is under a policy: what the customer asks for in words is his agreement.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openhorizon.domains.tool_calling.services import kinds as k
from openhorizon.domains.tool_calling.services.records import Records, Refused, Row, ServiceTool


def _find(records: Records, values: Mapping[str, Any]) -> Row:
    for row in records.tables["customers"].values():
        if row["email"] == values["email"]:
            return {name: value for name, value in row.items() if name != "pin"}
    raise Refused(f"no account has the address {values['email']}")


def _verify(records: Records, values: Mapping[str, Any]) -> Row:
    customer = records.tables["customers"].get(values["customer_id"])
    if customer is None or customer["pin"] != values["pin"]:
        raise Refused("the PIN does not fit the account")
    records.verified.add(values["customer_id"])
    return {"customer_id": values["customer_id"], "verified": True, "valid": "for the rest of the session"}


def _events(records: Records, values: Mapping[str, Any]) -> Row:
    return {"events": records.owned("events", values["customer_id"])}


def _move(records: Records, values: Mapping[str, Any]) -> Row:
    records.row("events", values["event_id"])
    return records.write("events", values["event_id"], {"date": values["date"]}, "", agreement=False)


def _add(records: Records, values: Mapping[str, Any]) -> Row:
    records.check(values["customer_id"])
    if values["reference"] not in records.codes:
        raise Refused(f"{values['reference']} was not issued")
    key = records.stamp("event-id", values["customer_id"], values["reference"])
    new = {"event_id": key, "title": f"Follow-up {values['reference']}"} | dict(values)
    return records.write("events", key, new, "", agreement=False)


def _contacts(records: Records, values: Mapping[str, Any]) -> Row:
    return {"contacts": records.owned("contacts", values["customer_id"])}


def _send(records: Records, values: Mapping[str, Any]) -> Row:
    contact = records.row("contacts", values["contact_id"])
    if values["reference"] not in records.codes:
        raise Refused(f"{values['reference']} was not issued")
    key = f"{values['contact_id']}/{values['reference']}"
    new = {"customer_id": contact["customer_id"], "to": contact["email"], "reference": values["reference"]}
    return records.write("mails", key, new, "", agreement=False)


def _files(records: Records, values: Mapping[str, Any]) -> Row:
    shown = ("file_id", "name", "folder", "kilobytes", "changed_on")
    found = records.owned("files", values["customer_id"])
    return {"files": [{name: row[name] for name in shown} for row in found]}


def _read(records: Records, values: Mapping[str, Any]) -> Row:
    return records.row("files", values["file_id"])


def _share(records: Records, values: Mapping[str, Any]) -> Row:
    row = records.row("files", values["file_id"])
    contact = records.row("contacts", values["contact_id"])
    if contact["contact_id"] in row["shared_with"]:
        raise Refused(f"{values['file_id']} is shared with {values['contact_id']} already")
    shared = sorted([*row["shared_with"], contact["contact_id"]])
    return records.write("files", values["file_id"], {"shared_with": shared}, "", agreement=False)


_CUSTOMER = k.identifier("customer-id")
_EVENT, _CONTACT, _FILE = k.identifier("event-id"), k.identifier("contact-id"), k.identifier("file-id")
_REFERENCE = k.identifier("confirmation")
_DONE = k.returns(confirmation=_REFERENCE)
_OWN = ("verified",)

ACCOUNTS = (
    ServiceTool(
        "account_find",
        "Find a customer's account by the e-mail address that the customer gives: name, addresses with their ids, "
        "payment methods with their ids, and settings.",
        k.takes(email=k.EMAIL),
        k.returns(
            customer_id=_CUSTOMER,
            addresses=k.rows(address_id=k.identifier("address-id"), city=k.CITY),
            payments=k.rows(payment_id=k.identifier("payment-id"), kind=k.TEXT),
        ),
        _find,
        reads=("customers",),
    ),
    ServiceTool(
        "account_verify",
        "Verify a customer with the six-digit PIN that the customer tells. Needed once a session for each customer.",
        k.takes(customer_id=_CUSTOMER, pin=k.PIN),
        k.returns(customer_id=_CUSTOMER),
        _verify,
        adds=("verified",),
        reads=("customers",),
    ),
)

TOOLS = (
    ServiceTool(
        "office_list_events",
        "List the appointments in a verified customer's calendar.",
        k.takes(customer_id=_CUSTOMER),
        k.returns(events=k.rows(event_id=_EVENT, title=k.TEXT, date=k.DATE)),
        _events,
        needs=_OWN,
        reads=("events",),
    ),
    ServiceTool(
        "office_move_event",
        "Move an appointment to another date.",
        k.takes(event_id=_EVENT, date=k.NEW_DATE),
        _DONE,
        _move,
        needs=_OWN,
        adds=("event moved",),
        writes=("events",),
    ),
    ServiceTool(
        "office_add_event",
        "Put a follow-up with a confirmation code into a customer's calendar.",
        k.takes(customer_id=_CUSTOMER, date=k.NEW_DATE, reference=_REFERENCE),
        _DONE,
        _add,
        needs=_OWN,
        adds=("follow-up added",),
        writes=("events",),
    ),
    ServiceTool(
        "office_list_contacts",
        "List a verified customer's contacts.",
        k.takes(customer_id=_CUSTOMER),
        k.returns(contacts=k.rows(contact_id=_CONTACT, name=k.TEXT)),
        _contacts,
        needs=_OWN,
        reads=("contacts",),
    ),
    ServiceTool(
        "office_send_confirmation",
        "Mail a confirmation code to one of the customer's contacts.",
        k.takes(contact_id=_CONTACT, reference=_REFERENCE),
        _DONE,
        _send,
        needs=_OWN,
        adds=("confirmation mailed",),
        reads=("contacts",),
        writes=("mails",),
    ),
    ServiceTool(
        "office_list_files",
        "List a verified customer's files by name and folder.",
        k.takes(customer_id=_CUSTOMER),
        k.returns(files=k.rows(file_id=_FILE, folder=k.TEXT)),
        _files,
        needs=_OWN,
        reads=("files",),
    ),
    ServiceTool(
        "office_read_file",
        "Show a file's text.",
        k.takes(file_id=_FILE),
        k.returns(text={**k.TEXT, "format": "file text"}),
        _read,
        needs=_OWN,
        adds=("file read",),
        reads=("files",),
    ),
    ServiceTool(
        "office_share_file",
        "Share a file with one of the customer's contacts.",
        k.takes(file_id=_FILE, contact_id=_CONTACT),
        _DONE,
        _share,
        needs=_OWN,
        adds=("file shared",),
        reads=("contacts",),
        writes=("files",),
    ),
)
