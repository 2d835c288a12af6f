"""Two evaluations of the same tasks as pages that open offline: table, figures, and both episodes of each task that one
side alone solved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from openhorizon.agent.trajectory import Trajectory
from openhorizon.bench.paired import Line as Row
from openhorizon.bench.paired import Pair, Paired
from openhorizon.report.figures import Line, Panel, draw
from openhorizon.report.results import p_value, span


@dataclass(frozen=True)
class Side:
    """``name`` is what the page calls it, ``reference`` where it came from."""

    name: str
    reference: str


def index_page(found: Paired, sides: tuple[Side, Side], links: Mapping[str, str]) -> str:
    """Table, figure, and the tasks won and lost."""
    return _render(
        "comparison.html.j2",
        found=found,
        a=sides[0],
        b=sides[1],
        figures=[draw(panel, f"compare-{i}") for i, panel in enumerate(panels(found, sides))],
        lists=[(sides[0], sides[1], found.won), (sides[1], sides[0], found.lost)],
        links=links,
        means=[_means([pair.a for pair in found.pairs]), _means([pair.b for pair in found.pairs])],
    )


def episode_page(pair: Pair, sides: tuple[Side, Side], played: Sequence[Trajectory | None]) -> str:
    """Both episodes of one task, side by side."""
    known = next(it for it in played if it is not None)
    return _render(
        "episodes.html.j2", task=known.task, shown=list(zip(sides, (pair.a, pair.b), played, strict=True))
    )  # fmt: skip


def panels(found: Paired, sides: tuple[Side, Side]) -> list[Panel]:
    """Both rates and their difference, by domain and by horizon."""
    made = []
    for rows, label in (
        ([row for row in found.lines if row.horizon == "all"], ""),
        ([row for row in found.lines if row.horizon != "all"], "horizon (steps)"),
    ):
        if rows:
            names = [] if label else [row.domain.replace("_", " ") for row in rows]
            x = [float(row.horizon) if row.horizon != "all" else float(i) for i, row in enumerate(rows, 1)]
            made.append(_difference(f"{sides[0].name} − {sides[1].name}", label, x, rows, names))
    return made


def _difference(title: str, label: str, x: list[float], rows: Sequence[Row], names: Sequence[str]) -> Panel:
    low, high = [row.ci95[0] for row in rows], [row.ci95[1] for row in rows]
    line = Line("difference in success", "blue", x, [row.difference for row in rows], low, high)
    zero = Line("no difference", "grey", x, [0.0] * len(x), [0.0] * len(x), [0.0] * len(x))
    return Panel(title, label, (zero, line), "points", ticks=names)


def _means(records: Sequence[Any]) -> dict[str, float]:
    return {"calls": fmean(it.tool_calls for it in records), "tokens": fmean(it.tokens for it in records)}


def _render(template: str, **values: Any) -> str:
    environment = Environment(
        loader=PackageLoader("openhorizon.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"span": span, "p_value": p_value}
    return environment.get_template(template).render(**values)
