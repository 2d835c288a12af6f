"""The report's section on public benchmarks: a table each, models beside what is known beforehand and what others say.

All of it comes from the metrics.json of ``benchmarking.py``. Nothing is averaged over benchmarks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ALL = "all"
REFERENCES = {"gold": "its own solution", "sample": "answers that it ships", "floor": "an empty policy"}


@dataclass(frozen=True)
class Shown:
    """One row: a player and its cells, in the order of the table's columns; None where there is no such figure."""

    name: str
    kind: str  # of the model, for its colour; empty for what is no model of this run
    note: str
    cells: list[Mapping[str, Any] | None]


@dataclass(frozen=True)
class Table:
    """One benchmark."""

    about: Mapping[str, Any]
    columns: list[str]  # metrics, the primary first
    groups: list[str]  # of the primary metric, where there are several
    rows: list[Shown]
    reported: Mapping[str, Any] | None
    notes: list[str]


def benchmarks(found: Sequence[Mapping[str, Any]]) -> list[Table]:
    """A table a benchmark, in the order in which they were run."""
    names = dict.fromkeys(metrics["benchmark"]["name"] for metrics in found)
    return [_table([metrics for metrics in found if metrics["benchmark"]["name"] == name]) for name in names]


def _table(mine: Sequence[Mapping[str, Any]]) -> Table:
    about = mine[0]["benchmark"]
    columns = list(dict.fromkeys(rate["metric"] for metrics in mine for rate in metrics["rates"])) or [about["primary"]]
    of_primary = (rate for metrics in mine for rate in metrics["rates"] if rate["metric"] == about["primary"])
    groups = [name for name in dict.fromkeys(rate["group"] for rate in of_primary) if name != ALL]
    wanted = [(name, ALL) for name in columns] + [(about["primary"], group) for group in groups]
    rows = [_row(m["model"], m["model"].partition("@")[0], _note(m), m["rates"], wanted) for m in mine]
    for name, rates in mine[0]["references"].items():
        rows.append(_row(name, "", REFERENCES[name], rates, wanted))
    return Table(about, columns, groups, rows, mine[0]["reported"], [word for m in mine for word in _words(m)])


def _row(
    name: str, kind: str, note: str, rates: Sequence[Mapping[str, Any]], wanted: Sequence[tuple[str, str]]
) -> Shown:
    at = {(rate["metric"], rate["group"]): rate for rate in rates}
    return Shown(name, kind, note, [at.get(key) for key in wanted])


def _note(metrics: Mapping[str, Any]) -> str:
    return f"n = {metrics['counts']['judged']}"


def _words(metrics: Mapping[str, Any]) -> list[str]:
    """What is no rate, a sentence each."""
    model, counts, seen, said = metrics["model"], metrics["counts"], metrics["contamination"], list[str]()
    if metrics["broken"]:
        wrong = metrics["broken"]
        said.append(
            f"Broken, no score: its own solution fails on {wrong['failures']} tasks, first {wrong['tasks'][0]}."
        )
    said += [f"{model}: {n} tasks were not judged: {why}." for why, n in counts["not_judged"].items()]
    if counts["ended"]["ABORTED"]:
        said.append(f"{model}: {counts['ended']['ABORTED']} episodes were aborted (the system failed): in no rate.")
    if counts["too_long"]:
        said.append(f"{model}: {counts['too_long']} prompts were longer than its context, counted as failed.")
    if counts["nonsense"]:
        said.append(f"{model}: {counts['nonsense']} replies of its endpoint were none, counted as failed.")
    if counts["refused"]:
        said.append(f"{model}: {counts['refused']} requests were refused by its endpoint, counted as failed.")
    if metrics["tools_shown"] is False:
        said.append(f"{model}: its chat template shows no tools; it knew of them by the system prompt alone.")
    if counts["unreadable_calls"]:
        said.append(f"{model}: {counts['unreadable_calls']} calls were no JSON with a name and arguments.")
    if seen["checked"]:
        touched, training = len(seen["tasks"]), seen["training_tasks"]
        said.append(f"{model}: {touched} of the tasks are touched by its {training:,} training tasks.")
    else:
        said.append(f"{model}: contamination was not checked: {seen['why']}.")
    cost, timing = metrics["cost"], metrics["timing"]
    tokens = "" if cost["generated_tokens"] is None else f"{cost['generated_tokens']:,} tokens generated"
    seconds = f"{timing['seconds']:,.1f} s of play" if timing else ""
    if tokens or seconds:
        said.append(f"{model}: {', '.join(filter(None, (tokens, seconds)))}.")
    return said
