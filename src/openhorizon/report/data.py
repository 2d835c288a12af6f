"""The report's section on the data: what self-play accepted and refused, how long it is, what was kept out of it.

All of it comes from the ``generate`` stages' metrics.json, by world; only token counts are made for the report, with
the base model's tokenizer on a sample. Where there is no tokenizer, words stand for length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openhorizon.report.figures import ORDER, Figure, Line, Panel
from openhorizon.report.results import Run

PARTS = {"demonstrations": "blue", "prompts": "orange", "heldout": "green"}
TRAINING = ("demonstrations", "prompts")
RULES = ("verifiable", "valid", "process-informative", "evidence-covering", "no shortcut")  # listed always, in order


@dataclass(frozen=True)
class Length:
    """One world's accepted demonstrations: tool calls, and text in ``unit``."""

    world: str
    accepted: int
    calls: Mapping[str, Any]
    unit: str
    text: Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """What training tasks were held against: ``texts`` a count or why not, ``dropped`` a column a domain."""

    name: str
    texts: str
    dropped: list[str]


@dataclass(frozen=True)
class Data:
    """What the section shows."""

    horizons: Figure
    lengths: Figure
    sizes: list[tuple[str, list[int]]]  # a row a domain
    rules: list[str]
    acceptance: list[tuple[str, list[int], float | None]]  # world, draws by rule, accepted share
    length_rows: list[Length]
    abilities: list[str]
    coverage: list[tuple[str, list[tuple[float, int] | None]]]  # world, share of trajectories and records by ability
    ngram: str
    checked: dict[str, int]
    sources: list[Source]
    examples: list[tuple[str, Mapping[str, str]]]  # domain, {source, kind, what}
    shared: list[tuple[str, list[int]]]


SIZES = ("demonstrations", "rejected", "prompts", "held-out", "duplicates removed", "nodes", "edges", "records")


def data(run: Run) -> Data:
    """The section's content; a domain's worlds in the order of their names."""
    found = {name: run.generate[name] for name in run.config.domains}
    described = {name: metrics["description"]["worlds"] for name, metrics in found.items()}
    rules, acceptance = _acceptance(found)
    abilities = list(dict.fromkeys(a for worlds in described.values() for w in worlds.values() for a in w["abilities"]))
    rows = [length for name, worlds in described.items() for length in _lengths(worlds, run.tokens.get(name, {}))]
    reports = {name: metrics["contamination"] for name, metrics in found.items()}
    shared = list(dict.fromkeys(key for metrics in found.values() for key in metrics["decontamination"]))
    shared.sort(key=lambda key: (not key.startswith("shared"), key))
    return Data(
        horizons=_horizons(found),
        lengths=_length_figure(rows),
        sizes=[(name, _sizes(metrics)) for name, metrics in found.items()],
        rules=rules,
        acceptance=acceptance,
        length_rows=rows,
        abilities=abilities,
        coverage=[
            (world, [_share(figures, ability) for ability in abilities])
            for worlds in described.values()
            for world, figures in worlds.items()
        ],
        ngram=", ".join(str(n) for n in sorted({report["ngram"] for report in reports.values()})),
        checked={name: report["checked"] for name, report in reports.items()},
        sources=_sources(reports),
        examples=[(name, example) for name, report in reports.items() for example in report["examples"]],
        shared=[(key, [metrics["decontamination"].get(key, 0) for metrics in found.values()]) for key in shared],
    )


def _sizes(metrics: Mapping[str, Any]) -> list[int]:
    counts, graph = metrics["counts"], metrics["graph"]
    made = [counts[name] for name in ("demonstrations", "rejected", "prompts", "heldout")]
    return [
        *made,
        metrics["duplicates_removed"],
        sum(graph["nodes"].values()),
        sum(graph["edges"].values()),
        graph["records"],
    ]


def _acceptance(
    found: Mapping[str, Mapping[str, Any]],
) -> tuple[list[str], list[tuple[str, list[int], float | None]]]:
    """Training draws of each world by what decided them; rules that the paper does not name only where they did."""
    counted: dict[str, dict[str, int]] = {}
    for metrics in found.values():
        for world, figures in metrics["by_world"].items():
            counts = counted.setdefault(world, {})
            for part in TRAINING:
                for rule, n in figures["acceptance"][part].items():
                    counts[rule] = counts.get(rule, 0) + n
    named = dict.fromkeys(rule for counts in counted.values() for rule in counts)
    others = [rule for rule in named if rule not in ("accepted", *RULES) and any(c.get(rule) for c in counted.values())]
    rules = ["accepted", *others, *RULES]
    return rules, [
        (world, [counts.get(rule, 0) for rule in rules], _accepted_share(counts)) for world, counts in counted.items()
    ]


def _accepted_share(counts: Mapping[str, int]) -> float | None:
    """Of the draws that gave a task."""
    judged = sum(counts.values()) - counts.get("no proposal", 0)
    return counts["accepted"] / judged if judged else None


def _lengths(worlds: Mapping[str, Mapping[str, Any]], tokens: Mapping[str, Mapping[str, Any]]) -> list[Length]:
    return [
        Length(
            world,
            figures["accepted"],
            figures["tool_calls"],
            "tokens" if world in tokens else "words",
            tokens.get(world, figures["words"]),
        )
        for world, figures in worlds.items()
    ]


def _horizons(found: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Tasks by horizon, a panel a domain and a bar a part."""
    panels = []
    for domain, metrics in found.items():
        lines = []
        for part, colour in PARTS.items():
            at = sorted((int(horizon), float(n)) for horizon, n in metrics["by_horizon"][part].items())
            if at:
                lines.append(Line(part.replace("heldout", "held-out"), colour, [h for h, _ in at], [n for _, n in at]))
        if lines:
            panels.append(Panel(domain.replace("_", " "), "horizon (steps)", tuple(lines), "bars"))
    return Figure("data", "Tasks by horizon, a panel a domain.", tuple(panels))


def _length_figure(rows: Sequence[Length]) -> Figure:
    """How long the accepted demonstrations are, a panel a domain and a line a world."""
    by_domain: dict[str, list[Length]] = {}
    for row in rows:
        if row.text:
            by_domain.setdefault(row.world.partition("/")[0], []).append(row)
    panels = []
    for domain, mine in by_domain.items():
        lines = []
        for i, row in enumerate(mine):
            bins, total = row.text["bins"], sum(n for _, _, n in row.text["bins"])
            edges = [bins[0][0], *(high + 1 for _, high, _ in bins)]
            shares = [n / total for _, _, n in bins]
            name = row.world.partition("/")[2] or "short text"
            lines.append(Line(name, ORDER[i % len(ORDER)], edges, [*shares, 0.0]))
        unit = " or ".join(dict.fromkeys(row.unit for row in mine))
        panels.append(Panel(domain.replace("_", " "), f"{unit} in a trajectory", tuple(lines), "steps"))
    return Figure(
        "lengths", "Share of accepted demonstrations by length, each world in bins of its own.", tuple(panels)
    )


def _share(figures: Mapping[str, Any], ability: str) -> tuple[float, int] | None:
    if not figures["accepted"]:
        return None
    return figures["covered"].get(ability, 0) / figures["accepted"], figures["abilities"].get(ability, 0)


def _sources(reports: Mapping[str, Mapping[str, Any]]) -> list[Source]:
    """A benchmark is the same for all domains; how many held-out tasks there are differs."""
    rows = []
    for name in dict.fromkeys(source for report in reports.values() for source in report["sources"]):
        texts = list(dict.fromkeys(report["sources"][name] for report in reports.values() if name in report["sources"]))
        shown = " / ".join(f"{n:,}" if isinstance(n, int) else n for n in texts)
        dropped = []
        for report in reports.values():
            kinds = report["dropped"].get(name)
            said = ", ".join(f"{n:,} {kind}" for kind, n in kinds.items()) if kinds else "0"
            dropped.append(said if kinds is not None and isinstance(report["sources"][name], int) else "—")
        rows.append(Source(name, shown, dropped))
    return rows
