"""Small multiples as inline SVG: one file a panel, so that panels stack on a phone and stand side by side on a desk.

Text stays text, colours become CSS variables of the page (light, dark, print), and nothing in the file depends on the
time or on the order of drawing: the same data gives the same bytes. The palette is Okabe and Ito's, which colour-blind
readers can tell apart; line and marker styles repeat the difference.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

INK, MUTED, RULE, SHADE = "#0a0b0c", "#0a0b0d", "#0a0b0e", "#0a0b0f"  # stand-ins for the page's own colours
PALETTE = {
    "blue": "#0072b2",
    "vermillion": "#d55e00",
    "green": "#009e73",
    "purple": "#cc79a7",
    "orange": "#e69f00",
    "sky": "#56b4e9",
    "grey": "#6b6b6b",
}
ORDER = tuple(PALETTE)
_VARIABLES = {value: f"var(--{name})" for name, value in PALETTE.items()} | {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    SHADE: "var(--shade)",
}
_STYLES = {"blue": ("-", "o"), "vermillion": ("--", "s"), "green": ("-.", "^"), "grey": (":", "D")}
_SMOOTH_FROM = 60  # points: from here on a noisy curve is drawn with its running mean


@dataclass(frozen=True)
class Line:
    """One series. ``low`` and ``high`` are intervals, or both empty."""

    label: str
    colour: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()


@dataclass(frozen=True)
class Panel:
    title: str
    x_label: str
    lines: tuple[Line, ...]
    kind: Literal["curve", "points", "bars", "steps"] = "curve"
    unit_y: bool = False  # y runs from 0 to 1
    shade_from: float | None = None  # x from which the background is shaded
    ticks: Sequence[str] = ()  # of points: names of the places on the x axis, where x are no quantities


@dataclass(frozen=True)
class Figure:
    """Panels that share a legend, a caption and a table of their data."""

    id: str
    caption: str
    panels: tuple[Panel, ...]

    @property
    def legend(self) -> list[tuple[str, str]]:
        """(label, colour) of every series, in the order of appearance; histograms name theirs themselves, since their
        panels have different ones."""
        lines = [line for panel in self.panels if panel.kind != "steps" for line in panel.lines]
        return list({line.label: (line.label, line.colour) for line in lines}.values())

    @property
    def table(self) -> str:
        """All that is drawn, as CSV."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["panel", "series", "x", "y", "low", "high"])
        for panel in self.panels:
            for line in panel.lines:
                for i, (x, y) in enumerate(zip(line.x, line.y, strict=True)):
                    interval = (line.low[i], line.high[i]) if line.low else ("", "")
                    writer.writerow([panel.title, line.label, x, y, *interval])
        return text.getvalue()


def draw(panel: Panel, salt: str, legend: bool = False) -> str:
    """One panel as an ``<svg>`` element. ``salt`` keeps the ids of several elements on one page apart. The page has a
    ``legend`` of its own; a file that stands alone needs one."""
    settings: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "path.simplify": True,
        "font.family": "sans-serif",
        "font.size": 9.0,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "xtick.color": MUTED,
        "ytick.color": MUTED,
        "axes.edgecolor": RULE,
        "axes.unicode_minus": True,
    }
    with matplotlib.rc_context(settings):
        canvas = Canvas(figsize=(3.5, 2.45), layout="constrained")
        FigureCanvasSVG(canvas)
        axes = canvas.add_subplot()
        if panel.kind == "bars":
            _bars(axes, panel)
        elif panel.kind == "points":
            _points(axes, panel)
        elif panel.kind == "steps":
            _steps(axes, panel)
        else:
            _curves(axes, panel)
        _dress(axes, panel)
        if legend and len(panel.lines) > 1 and not panel.ticks:
            for line in panel.lines:
                axes.plot([], [], _STYLES.get(line.colour, ("-", "o"))[0], color=PALETTE[line.colour], label=line.label)
            axes.legend(frameon=False, fontsize=7)
        text = io.StringIO()
        canvas.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    series = ", ".join(line.label for line in panel.lines)
    by = f" by {panel.x_label}" if panel.x_label else ""
    return _inline(text.getvalue(), f"{panel.title}: {series}{by}")


def standalone(svg: str) -> str:
    """A drawn panel as a file of its own: the page's variables as colours, on white."""
    shown = {
        "ink": "#1a1a1a",
        "muted": "#555555",
        "rule": "#dddddd",
        "shade": "#f2f2f2",
        "sans": "sans-serif",
        **PALETTE,
    }
    text = re.sub(r"var\(--(\w+)\)", lambda match: shown[match.group(1)], svg)
    return text.replace("<svg ", '<svg style="background: #ffffff; font-family: sans-serif" ', 1) + "\n"


def _curves(axes: Axes, panel: Panel) -> None:
    for line in panel.lines:
        style, _ = _STYLES.get(line.colour, ("-", "o"))
        colour, noisy = PALETTE[line.colour], len(line.y) >= _SMOOTH_FROM
        if noisy:
            axes.plot(line.x, line.y, color=colour, linewidth=0.6, alpha=0.3)
        shown = running_mean(line.y, max(len(line.y) // 20, 1)) if noisy else line.y
        axes.plot(line.x, shown, style, color=colour, linewidth=1.6, marker="o" if len(line.x) == 1 else "")


def _points(axes: Axes, panel: Panel) -> None:
    """Means with intervals; lines are dodged sideways so that intervals do not cover each other. Places that have names
    are in no order, so that no line joins them."""
    every = [x for line in panel.lines for x in line.x]
    wide = min(every) > 0 and max(every) / min(every) >= 16
    if wide:
        axes.set_xscale("log", base=2)
    for i, line in enumerate(panel.lines):
        step = i - (len(panel.lines) - 1) / 2
        x = [value * 2 ** (step * 0.06) if wide else value + step * 0.06 for value in line.x]
        style, marker = _STYLES.get(line.colour, ("-", "o"))
        errors = [
            [y - low for y, low in zip(line.y, line.low, strict=True)],
            [high - y for y, high in zip(line.y, line.high, strict=True)],
        ]
        axes.errorbar(
            x, line.y, yerr=errors, linestyle="none" if panel.ticks else style, marker=marker, markersize=4,
            color=PALETTE[line.colour], linewidth=1.4, elinewidth=1.0,
        )  # fmt: skip
    ticks = sorted(set(every))
    if panel.ticks:
        axes.set_xticks(ticks, panel.ticks, rotation=30, ha="right")
        axes.set_xlim(ticks[0] - 0.5, ticks[-1] + 0.5)
    else:
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    if panel.shade_from is not None and ticks[-1] > panel.shade_from:
        left, right = axes.get_xlim()
        last = max(tick for tick in ticks if tick <= panel.shade_from) if ticks[0] <= panel.shade_from else left
        following = min(tick for tick in ticks if tick > panel.shade_from)
        border = (last * following) ** 0.5 if wide else (last + following) / 2
        axes.axvspan(border, right, color=SHADE, linewidth=0, zorder=0)
        axes.set_xlim(left, right)


def _bars(axes: Axes, panel: Panel) -> None:
    names = sorted({x for line in panel.lines for x in line.x})
    width = 0.8 / len(panel.lines)
    for i, line in enumerate(panel.lines):
        at = [names.index(x) + (i - (len(panel.lines) - 1) / 2) * width for x in line.x]
        axes.bar(at, line.y, width * 0.92, color=PALETTE[line.colour])
    axes.set_xticks(range(len(names)), [f"{name:g}" for name in names])


def _steps(axes: Axes, panel: Panel) -> None:
    """Histograms: x are the edges of bins, y their values and a last 0."""
    every = [x for line in panel.lines for x in line.x]
    if min(every) > 0 and max(every) / min(every) >= 16:
        axes.set_xscale("log", base=10)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
    for line in panel.lines:
        style, _ = _STYLES.get(line.colour, ("-", "o"))
        axes.stairs(line.y[:-1], line.x, color=PALETTE[line.colour], alpha=0.15, fill=True)
        axes.stairs(line.y[:-1], line.x, color=PALETTE[line.colour], linewidth=1.4, linestyle=style, label=line.label)
    highest = max(y for line in panel.lines for y in line.y)
    axes.set_ylim(0, highest * (1.05 if len(panel.lines) == 1 else 1.3))  # room for the names
    if len(panel.lines) > 1:
        axes.legend(
            loc="upper left", ncols=3, frameon=False, fontsize=8, handlelength=1.2, columnspacing=1.0, borderpad=0.1,
            handletextpad=0.5,
        )  # fmt: skip


def _dress(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, loc="left", fontsize=10, fontweight="bold")
    axes.set_xlabel(panel.x_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(axis="y", color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    if panel.kind == "curve":
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if panel.unit_y:
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0", "", "0.5", "", "1"])


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """Mean of the last ``window`` values (of fewer at the start)."""
    total, means = 0.0, []
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means


def _inline(svg: str, label: str) -> str:
    """Without prolog, metadata, fixed size and the ids that nothing refers to; colours as the page's variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*|<style.*?</style>\s*", "", svg, flags=re.DOTALL)
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", svg))
    svg = re.sub(r' id="([^"]*)"', lambda match: match.group(0) if match.group(1) in used else "", svg)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda match: _VARIABLES.get(match.group(0), match.group(0)), svg)
    svg = re.sub(r"font-family: [^;\"]*(?:'[^']*'[^;\"]*)*", "font-family: inherit", svg)
    svg = re.sub(r"(font: [^;\"]*?[\d.]+px) [^;\"]*", r"\1 var(--sans)", svg)
    svg = re.sub(r"\s*\n\s*", " ", svg).replace("<g/>", "")
    head, rest = svg.split(">", 1)
    head = re.sub(r' (?:width|height)="[^"]*"', "", head)
    safe = label.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return f'{head} role="img" aria-label="{safe}">{rest.strip()}'
