"""results → one HTML page that opens offline: figures, tables and their data are inside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from openhorizon.bench.heldout import MACRO, Row, breaking, episodes
from openhorizon.report.benchmarks import benchmarks
from openhorizon.report.claims import Claim
from openhorizon.report.data import SIZES, data
from openhorizon.report.figures import ORDER, Figure, Line, Panel, draw
from openhorizon.report.results import Run, comparisons, models, p_value, samples, span, stages, table, verdicts

MODEL_COLOURS = {"base": "grey", "sft": "vermillion", "teacher": "green", "student": "blue", "baseline": "purple"}
GRPO = ("reward", "dead_groups", "kl", "entropy", "clip_fraction", "truncated", "length", "invalid_calls")


@dataclass(frozen=True)
class Cell:
    """Success of one model in one column."""

    row: Row | None
    best: bool = False


def page(run: Run) -> str:
    """The whole page. Equal runs give equal bytes."""
    rows, compared = table(run), comparisons(run)
    domains = run.config.domains
    environment = Environment(
        loader=PackageLoader("openhorizon.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"span": span, "p_value": p_value, "label": label, "number": number, "short": short}
    environment.globals |= {"draw": _drawn, "csv": _csv}
    return environment.get_template("page.html.j2").render(
        run=run,
        config=run.config,
        domains=domains,
        columns=[MACRO, *domains] if len(domains) > 1 else list(domains),
        verdicts=verdicts(rows, compared, domains, run.config.baselines.run),
        headline=headline(rows, domains),
        table=headline_table(rows, run.config.domains),
        comparisons=compared,
        endings=_endings(run),
        horizon=horizon_figure(run, rows),
        losses=loss_figure(run),
        learning=rollout_figure(run),
        rho=rho_figure(run),
        rho_turns=turn_figure(run),
        grpo=grpo_figure(run),
        data=data(run),
        data_sizes=SIZES,
        costs=[(name, run.timings.get(name)) for name in stages(run.config)],
        total_seconds=sum(float(t.get("seconds") or 0) for t in run.timings.values()),
        benchmarks=benchmarks(run.benchmarks),
        studies=_studies(run),
        samples={name: samples(run, name) for name in domains},
    )


@dataclass(frozen=True)
class Group:
    """The claims that share a figure."""

    study: str
    name: str
    figure: Figure | None
    claims: list[Claim]


def _studies(run: Run) -> list[Group]:
    """Claims by figure, in their order."""
    names = dict.fromkeys(claim.figure for claim in run.claims)
    groups = ((name, [claim for claim in run.claims if claim.figure == name]) for name in names)
    return [Group(claims[0].study, name, run.claim_figures.get(name), claims) for name, claims in groups]


def headline(rows: Sequence[Row], domains: Sequence[str]) -> list[Row]:
    """base, sft and student in the overall column."""
    overall = MACRO if len(domains) > 1 else domains[0]
    at = {row.model: row for row in rows if row.domain == overall and row.horizon == "all"}
    return [at[name] for name in ("base", "sft", "student") if name in at]


def headline_table(rows: Sequence[Row], domains: Sequence[str]) -> list[tuple[str, list[Cell]]]:
    """Models by columns (macro, then domains). The best of each column is marked."""
    columns = [MACRO, *domains] if len(domains) > 1 else list(domains)
    at = {(row.model, row.domain): row for row in rows if row.horizon == "all"}
    best = {c: max((row.success for (_, domain), row in at.items() if domain == c), default=None) for c in columns}
    result = []
    for name in dict.fromkeys(row.model for row in rows):
        found = [at.get((name, column)) for column in columns]
        cells = [Cell(row, row.success == best[row.domain]) if row else Cell(None) for row in found]
        result.append((name, cells))
    return result


def horizon_figure(run: Run, rows: Sequence[Row]) -> Figure:
    """Success against horizon, a panel a domain; shaded where no demonstration was that long. Baselines, of which there
    may be many, are in the tables."""
    panels = []
    for domain in run.config.domains:
        lines = []
        for model in (name for name in models(run.config) if not name.startswith("baseline@")):
            mine = [row for row in rows if row.model == model and row.domain == domain]
            judged = [(row.horizon, row.success, *row.ci95) for row in mine if isinstance(row.horizon, int)]
            if judged:
                kind = model.partition("@")[0]
                x, y, low, high = (list(column) for column in zip(*judged, strict=True))
                lines.append(Line(kind, MODEL_COLOURS[kind], x, y, low, high))
        if lines:
            taught = run.generate[domain].get("by_horizon", {}).get("demonstrations", {})
            longest = max(map(float, taught), default=None)
            panels.append(Panel(label(domain), "horizon (steps)", tuple(lines), "points", True, longest))
    return Figure("horizon", "Success on held-out tasks against horizon, with Wilson 95% intervals.", tuple(panels))


def loss_figure(run: Run) -> Figure:
    """Every loss curve there is."""
    panels = []
    for model in models(run.config):
        kind = model.partition("@")[0]
        name = {"teacher": "sft_loss"}.get(kind, "loss")
        points = [point for point in run.curves.get(model, ()) if name in point]
        line = _line(points, name, "loss", MODEL_COLOURS[kind])
        title = {"student": f"distill: {run.config.distill.support_loss} loss", "baseline": label(model)}.get(
            kind, f"{label(model)}: supervised"
        )
        with_rollouts = kind == "student" or any("reward" in point for point in points)
        panels += [Panel(title, "iteration" if with_rollouts else "update", (line,))] if line else []
    return Figure("losses", "Training losses; where a curve is long its running mean is drawn over it.", tuple(panels))


def rollout_figure(run: Run) -> Figure:
    """How the student's own rollouts went during distillation."""
    return _by_domain(
        run,
        "rollouts",
        "The student's rollouts while it was distilled, on training prompts, by domain.",
        {
            "success": "success",
            "loss": "loss",
            "teacher_mass": "teacher mass on its top k",
            "gradient_share": "share of the gradient",
            "entropy": "entropy (nats)",
            "truncated": "share truncated",
            "aborted": "share aborted",
            "length": "tokens generated",
        },
    )


def rho_figure(run: Run) -> Figure:
    return _by_domain(
        run, "rho", "ρ: how much of the student's own probability lies on the teacher's top k.", {"rho": "ρ by domain"}
    )


def turn_figure(run: Run) -> Figure:
    """ρ by turn, a panel a domain; the last turn logged stands for all later ones."""
    curves, panels = run.curves.get("student", ()), []
    for domain in run.config.domains:
        stem = f"rho@{domain}/turn"
        turns = sorted({int(name[len(stem) :]) for point in curves for name in point if name.startswith(stem)})
        names = {turn: f"turn {turn}" + (" and later" if turn == turns[-1] > 1 else "") for turn in turns}
        lines = [_line(curves, f"{stem}{turn}", names[turn], ORDER[i % len(ORDER)]) for i, turn in enumerate(turns)]
        panels += [Panel(label(domain), "iteration", tuple(line for line in lines if line))] if turns else []
    return Figure("rho-turns", "ρ by the turn of the episode, a panel a domain.", tuple(panels))


def grpo_figure(run: Run) -> Figure:
    """Health of the teachers' reinforcement learning: a panel a quantity, a line a domain."""
    panels = []
    for name in GRPO:
        lines = [
            _line(run.curves.get(f"teacher@{domain}", ()), name, label(domain), ORDER[i % len(ORDER)])
            for i, domain in enumerate(run.config.domains)
        ]
        if any(lines):
            panels.append(Panel(name.replace("_", " "), "iteration", tuple(line for line in lines if line)))
    return Figure("grpo", "GRPO, a line a teacher.", tuple(panels))


def label(name: str) -> str:
    """A name as readers see it: tool_calling → tool calling."""
    return name.replace("_", " ")


def short(model: str) -> str:
    """A model where its domain stands beside it: teacher@search → teacher; baselines keep their names."""
    return "teacher" if model.startswith("teacher@") else model


def number(value: float | None, digits: int = 0) -> str:
    """12,345 or 0.123; an em dash where there is nothing."""
    return "—" if value is None else f"{value:,.{digits}f}"


def _by_domain(run: Run, key: str, caption: str, names: Mapping[str, str]) -> Figure:
    curves, panels = run.curves.get("student", ()), []
    for name, title in names.items():
        lines = [
            _line(curves, f"{name}@{domain}", label(domain), ORDER[i % len(ORDER)])
            for i, domain in enumerate(run.config.domains)
        ]
        panels += [Panel(title, "iteration", tuple(line for line in lines if line))] if any(lines) else []
    return Figure(key, caption, tuple(panels))


def _line(curves: Sequence[Mapping[str, float]], name: str, shown: str, colour: str) -> Line | None:
    points = [(point["step"], point[name]) for point in curves if name in point and math.isfinite(point[name])]
    return Line(shown, colour, [x for x, _ in points], [y for _, y in points]) if points else None


def _endings(run: Run) -> list[dict[str, Any]]:
    """How episodes ended and where unsolved ones broke, by model and domain."""
    result = []
    for model in models(run.config):
        ended = episodes(run.records[model])
        for domain in (name for name in run.config.domains if name in ended):
            counts, mine = ended[domain], [record for record in run.records[model] if record.domain == domain]
            result.append(
                {
                    "model": model,
                    "domain": domain,
                    **counts,
                    "breaking": breaking(mine),
                    "calls": fmean(record.tool_calls for record in mine),
                    "tokens": fmean(record.tokens for record in mine),
                }
            )
    return result


def _drawn(figure: Figure) -> list[str]:
    return [draw(panel, f"{figure.id}-{i}") for i, panel in enumerate(figure.panels)]


def _csv(figure: Figure) -> str:
    return "data:text/csv;charset=utf-8," + quote(figure.table)
