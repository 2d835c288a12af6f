"""Telecom: lines with faults that guides explain, bills with charges, plans."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from openhorizon.domains.tool_calling.services import kinds as k
from openhorizon.domains.tool_calling.services.policy import text
from openhorizon.domains.tool_calling.services.records import Records, Refused, Row, ServiceTool

SERVICE = "telecom"
_PROBES = ("registration", "signal strength", "data session", "name resolution", "roaming profile", "voice channel")


def _policy(records: Records, _: Mapping[str, Any]) -> Row:
    records.read.add(SERVICE)
    return {"service": SERVICE, "policy": text(SERVICE, records.rules[SERVICE], records.seed)}


def _list(records: Records, values: Mapping[str, Any]) -> Row:
    found = records.owned("lines", values["customer_id"])
    shown = ("line_id", "number", "used_by", "device", "since", "status")
    return {
        "customer_id": values["customer_id"],
        "count": len(found),
        "lines": [{name: row[name] for name in shown} | {"usage": row["usage"][-4:]} for row in found],
    }


def _get(records: Records, values: Mapping[str, Any]) -> Row:
    row = records.row("lines", values["line_id"])
    records.viewed.add(values["line_id"])
    return {name: value for name, value in row.items() if name != "fault_code"}  # that is for the diagnostics to find


def _diagnose(records: Records, values: Mapping[str, Any]) -> Row:
    """The probe that fails is the one before the fault code; the others are noise, as in real logs."""
    row = records.row("lines", values["line_id"])
    records.diagnosed.add(row["line_id"])
    rng = random.Random(f"{records.seed}{row['line_id']}")
    log, failing = [], rng.randrange(len(_PROBES))
    for i, probe in enumerate(_PROBES):
        for attempt in range(1, 5):
            fails = i == failing and row["status"] != "repaired"
            log.append(
                {
                    "time": f"2027-06-01 {9 + i:02d}:{rng.randint(0, 59):02d}",
                    "probe": probe,
                    "attempt": attempt,
                    "milliseconds": rng.randint(12, 900),
                    "signal_dbm": -rng.randint(60, 115),
                    "result": "failed" if fails else "passed",
                }
            )
    return {
        "line_id": row["line_id"],
        "log": log,
        "fault_code": row["fault_code"] if row["status"] != "repaired" else "none",
        "advice": "Look the fault code up in the repair guides; do not apply a fix by trial.",
    }


def _guide(records: Records, values: Mapping[str, Any]) -> Row:
    found = records.tables["guides"].get(values["fault_code"])
    if found is None:
        raise Refused(f"there is no guide to {values['fault_code']}")
    return found


def _fix(records: Records, values: Mapping[str, Any]) -> Row:
    row = records.row("lines", values["line_id"])
    if row["status"] == "repaired":
        raise Refused(f"{values['line_id']} is repaired already")
    known = any(values["fix_id"] == step["fix_id"] for g in records.tables["guides"].values() for step in g["fixes"])
    if not known:
        raise Refused(f"{values['fix_id']} was not found")
    if values["line_id"] not in records.diagnosed:
        records.breaches.append(f"{values['line_id']}: repaired without a diagnosis")
    changes = {"status": "repaired", "fix_id": values["fix_id"], "contract": values["contract"]}
    return records.write("lines", values["line_id"], changes | {"clause": values["clause"]}, SERVICE)


def _bills(records: Records, values: Mapping[str, Any]) -> Row:
    records.row("lines", values["line_id"])
    found = [row for row in records.tables["bills"].values() if row["line_id"] == values["line_id"]]
    return {
        "line_id": values["line_id"],
        "bills": [{name: row[name] for name in ("bill_id", "month", "total", "paid")} for row in found],
    }


def _bill(records: Records, values: Mapping[str, Any]) -> Row:
    return records.row("bills", values["bill_id"])


def _credit(records: Records, values: Mapping[str, Any]) -> Row:
    bill = records.row("bills", values["bill_id"])
    charge = next((held for held in bill["charges"] if held["charge_id"] == values["charge_id"]), None)
    if charge is None:
        raise Refused(f"{values['charge_id']} is not on {values['bill_id']}")
    if charge["credited"]:
        raise Refused(f"{values['charge_id']} was credited already")
    charges = [held | {"credited": True} if held is charge else held for held in bill["charges"]]
    changes = {"charges": charges, "contract": values["contract"], "clause": values["clause"]}
    return records.write("bills", values["bill_id"], changes, SERVICE)


def _plans(records: Records, _: Mapping[str, Any]) -> Row:
    return {"plans": list(records.tables["plans"].values())}


def _plan(records: Records, values: Mapping[str, Any]) -> Row:
    if values["plan_id"] not in records.tables["plans"]:
        raise Refused(f"{values['plan_id']} was not found")
    records.row("lines", values["line_id"])
    changes = {name: values[name] for name in ("plan_id", "contract", "clause")}
    return records.write("lines", values["line_id"], changes, SERVICE)


def _refusal(records: Records, values: Mapping[str, Any]) -> Row:
    row = records.row("lines", values["line_id"])
    notes = [*row["refused"], {"clause": values["clause"], "contract": values["contract"]}]
    return records.write("lines", values["line_id"], {"refused": notes}, SERVICE, agreement=False)


_LINE, _BILL = k.identifier("line-id"), k.identifier("bill-id")
_CLAUSE = k.identifier("telecom-clause")
_CONTRACT = k.one_of(k.CONTRACTS)
_DONE = k.returns(confirmation=k.identifier("confirmation"), status=k.TEXT)
_OWN = ("verified",)

TOOLS = (
    ServiceTool(
        "telecom_get_policy",
        "Read the telecom desk's policy in force today: which credits, plan changes and repairs each contract allows, "
        "and under which clause. The clauses are renumbered often, so read it once in every session.",
        k.takes(),
        k.returns(policy=_CLAUSE),
        _policy,
        adds=("telecom policy read",),
        reads=("policies",),
    ),
    ServiceTool(
        "telecom_list_lines",
        "List all lines of a verified customer with number, user and device. The contract is only in telecom_get_line.",
        k.takes(customer_id=k.identifier("customer-id")),
        k.returns(lines=k.rows(line_id=_LINE, device=k.TEXT)),
        _list,
        needs=_OWN,
        reads=("lines",),
    ),
    ServiceTool(
        "telecom_get_line",
        "Show one line in full: contract, plan, usage of the last months, device settings and earlier notes.",
        k.takes(line_id=_LINE),
        k.returns(contract=_CONTRACT, data_left_gb={**k.NUMBER, "format": "data left"}),
        _get,
        needs=_OWN,
        adds=("usage known",),
        reads=("lines",),
    ),
    ServiceTool(
        "telecom_run_diagnostics",
        "Probe a line and show the log with the fault code, if there is a fault.",
        k.takes(line_id=_LINE),
        k.returns(fault_code=k.identifier("fault-code")),
        _diagnose,
        needs=_OWN,
        reads=("lines",),
    ),
    ServiceTool(
        "telecom_find_guide",
        "Show the repair guide to a fault code: which fix is right for which device family.",
        k.takes(fault_code=k.identifier("fault-code")),
        k.returns(fixes=k.rows(fix_id=k.identifier("fix-id"), device_family=k.TEXT)),
        _guide,
        reads=("guides",),
    ),
    ServiceTool(
        "telecom_apply_fix",
        "Apply a fix to a line by remote control. Name the line's contract and the clause that allows it. Requires the "
        "customer's agreement; the line is down for two minutes.",
        k.takes(line_id=_LINE, fix_id=k.identifier("fix-id"), contract=_CONTRACT, clause=_CLAUSE),
        _DONE,
        _fix,
        needs=("verified", "agreed telecom"),
        adds=("line repaired",),
        reads=("guides",),
        writes=("lines",),
    ),
    ServiceTool(
        "telecom_list_bills",
        "List the bills of a line by month.",
        k.takes(line_id=_LINE),
        k.returns(bills=k.rows(bill_id=_BILL, month=k.TEXT, total=k.NUMBER)),
        _bills,
        needs=_OWN,
        reads=("bills", "lines"),
    ),
    ServiceTool(
        "telecom_get_bill",
        "Show one bill with all its charges.",
        k.takes(bill_id=_BILL),
        k.returns(charges=k.rows(charge_id=k.identifier("charge-id"), amount=k.NUMBER)),
        _bill,
        needs=_OWN,
        reads=("bills",),
    ),
    ServiceTool(
        "telecom_credit_charge",
        "Credit one disputed charge of a bill. Name the line's contract and the clause that allows it. Requires the "
        "customer's agreement.",
        k.takes(bill_id=_BILL, charge_id=k.identifier("charge-id"), contract=_CONTRACT, clause=_CLAUSE),
        _DONE,
        _credit,
        needs=("verified", "agreed telecom"),
        adds=("charge credited",),
        writes=("bills",),
    ),
    ServiceTool(
        "telecom_list_plans",
        "List the plans on sale with data, price and validity.",
        k.takes(),
        k.returns(plans=k.rows(plan_id=k.identifier("plan-id"), price=k.NUMBER, data_gb=k.NUMBER)),
        _plans,
        adds=("plans known",),
        reads=("plans",),
    ),
    ServiceTool(
        "telecom_change_plan",
        "Move a line to another plan from the next month on. Name the line's contract and the clause that allows it. "
        "Requires the customer's agreement.",
        k.takes(line_id=_LINE, plan_id=k.identifier("plan-id"), contract=_CONTRACT, clause=_CLAUSE),
        _DONE,
        _plan,
        needs=("verified", "agreed telecom"),
        adds=("plan changed",),
        reads=("plans",),
        writes=("lines",),
    ),
    ServiceTool(
        "telecom_log_refusal",
        "Note on a line that a request was declined, with its contract and the clause that forbids it.",
        k.takes(line_id=_LINE, contract=_CONTRACT, clause=_CLAUSE),
        _DONE,
        _refusal,
        needs=_OWN,
        adds=("telecom refusal logged",),
        writes=("lines",),
    ),
)
