"""A few steps of one trajectory, drawn as the graph holds them: time from left to right, a lane for each kind of node.

The action before a trajectory's last is the centre: within two steps of it stand the actions before and after, what
they depend on, what they brought about, the corpus items behind that, and the verifiers of the end. Which trajectory is
drawn is the seed's choice, failed ones included.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch

from openhorizon.agent.render import read_action
from openhorizon.domains.base import Call
from openhorizon.kag.graph import EDGE_KINDS, NODE_KINDS
from openhorizon.kag.store import Tables
from openhorizon.seeds import rng

FILL = {"corpus": "#fde9c4", "observation": "#d6eaf6", "action": "#d5efe4", "verifier": "#f3dbe9"}
EDGE = {"corpus": "#b57a00", "observation": "#0072b2", "action": "#00795a", "verifier": "#a8527f"}
STYLE: dict[str, dict[str, Any]] = {
    "support": {"color": "#b57a00", "linestyle": (0, (1, 1.6)), "linewidth": 1.3},
    "dependency": {"color": "#0072b2", "linestyle": (0, (5, 2)), "linewidth": 1.2},
    "production": {"color": "#00795a", "linestyle": "-", "linewidth": 1.2},
    "verification": {"color": "#a8527f", "linestyle": (0, (6, 2, 1, 2)), "linewidth": 1.3},
    "action-transition": {"color": "#333333", "linestyle": "-", "linewidth": 2.2},
}
INK = "#1c1b19"
SHORT = {
    "information acquisition": "acquires information",
    "tool calling": "calls a tool",
    "executable iteration": "repairs",
    "evidence verification": "verifies evidence",
    "constraint tracking": "tracks constraints",
}
LETTERS, NOTE_LETTERS, LINES = 29, 36, 5  # of a box
STACK = 3  # corpus items over one observation; the rest are counted
STEP, WIDTH, SPACE, LINE, PAD = 1.5, 2.05, 0.4, 0.155, 0.14  # inches
LANES = ("corpus", "observation", "action", "verifier")  # from the top
GAP = 0.62  # between lanes
TOUCH = 0.03  # between boxes of a stack


@dataclass
class Box:
    """A node on the page; ``column`` is half a step of time."""

    id: int
    kind: str
    text: str
    column: float
    note: str = ""
    strong: bool = False
    placed: bool = False
    notes: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    x: float = 0.0
    top: float = 0.0
    bottom: float = 0.0
    stack_bottom: float = 0.0  # of the last box below this one that it touches


@dataclass(frozen=True)
class Scene:
    """What is drawn."""

    title: str
    boxes: dict[int, Box]
    edges: list[dict[str, Any]]


def draw(tables: Tables, path: Path, seed: int, steps: int) -> Scene:
    """Write a PNG of ``steps`` consecutive actions and what hangs on them; returns what it shows.

    Raises:
        ValueError: the graph has no records, or fewer than 2 steps are asked for.
    """
    scene = choose(tables, seed, steps)
    path.parent.mkdir(parents=True, exist_ok=True)
    _page(scene).savefig(path, dpi=150, metadata={"Software": None})
    return scene


def choose(tables: Tables, seed: int, steps: int) -> Scene:
    """The neighbourhood that the seed draws."""
    if steps < 2:
        raise ValueError(f"steps={steps}: a neighbourhood has at least 2 actions")
    if tables.records.num_rows == 0:
        raise ValueError(f"{tables.folder}: the graph has no records to draw")
    at = rng(seed, "picture").randrange(tables.trajectories.num_rows)
    owners = tables.records.column("trajectory").to_numpy()
    first, end = (int(owners.searchsorted(at, side)) for side in ("left", "right"))
    if first == end:  # a trajectory that ended before its first action: the nearest one that has some
        at = int(owners[min(first, len(owners) - 1)])
        first, end = (int(owners.searchsorted(at, side)) for side in ("left", "right"))
    rows = tables.records.slice(max(end - steps, first), min(steps, end - first)).to_pylist()
    trajectory = tables.trajectories.slice(at, 1).to_pylist()[0]
    edges = _edges(tables, rows)
    shown = {int(edge[side]) for edge in edges for side in ("source", "target")} | {row["action"] for row in rows}
    nodes = {i: tables.nodes.slice(i, 1).to_pylist()[0] for i in sorted(shown)}
    texts = tables.texts(nodes)
    boxes = {
        i: Box(i, node["kind"], _readable(texts[i]), 2.0 * node["step"] + (node["kind"] == "observation"))
        for i, node in nodes.items()
    }
    for row in rows:
        box, mark = boxes[row["action"]], {True: "✓ ", False: "✗ ", None: ""}[row["verdict"]]
        box.strong = row is rows[max(len(rows) - 2, 0)]
        box.note = mark + ", ".join(SHORT[name] for name in row["abilities"].split(", "))
    for i, node in nodes.items():
        if node["kind"] == "observation":
            boxes[i].note = "the question" if node["step"] < 0 else f"after step {node['step'] + 1}"
    _limit(boxes, edges)
    _arrange(boxes, edges)
    title = (
        f"{trajectory['world']}: steps {rows[0]['step'] + 1} to {rows[-1]['step'] + 1} of a trajectory of horizon "
        f"{trajectory['horizon']}, {trajectory['status']}"
    )
    return Scene(title, boxes, edges)


def _edges(tables: Tables, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Edges at these records' actions, and the supports of the observations that these reach."""
    actions = {row["action"] for row in rows}
    found = [
        edge
        for edge in tables.touching(sorted(actions)).to_pylist()
        if edge["kind"] != "action-transition" or {edge["source"], edge["target"]} <= actions
    ]
    observations = {edge["source"] for edge in found if edge["kind"] == "dependency"}
    observations |= {edge["target"] for edge in found if edge["kind"] == "production"}
    return found + [edge for edge in tables.touching(sorted(observations)).to_pylist() if edge["kind"] == "support"]


def _limit(boxes: dict[int, Box], edges: list[dict[str, Any]]) -> None:
    """At most STACK corpus items over one observation; a box says how many more there are."""
    over: dict[int, list[int]] = {}
    for edge in edges:
        if edge["kind"] == "support":
            over.setdefault(edge["target"], []).append(edge["source"])
    kept: set[int] = set()
    for observation, items in over.items():
        kept.update(items[:STACK])
        more = len([item for item in items if item not in kept])
        if more:
            boxes[observation].note += f", {more} more behind it"
    for edge in [edge for edge in edges if edge["kind"] == "support" and edge["source"] not in kept]:
        edges.remove(edge)
    for i in [i for i, box in boxes.items() if box.kind == "corpus" and i not in kept]:
        del boxes[i]


def _arrange(boxes: dict[int, Box], edges: Sequence[dict[str, Any]]) -> None:
    """Columns in the order of time, boxes of one lane and column in a stack; places in inches."""
    for edge in edges:  # what has no time of its own stands over or under the first that it touches
        source, target = boxes[edge["source"]], boxes[edge["target"]]
        if source.kind in ("corpus", "verifier"):
            source.column = min(source.column, target.column) if source.placed else target.column
            source.placed = True
    stacks: dict[tuple[str, float], list[Box]] = {}
    for box in boxes.values():
        box.lines = _wrapped(box.text, LETTERS)
        box.notes = textwrap.wrap(box.note, NOTE_LETTERS)
        stacks.setdefault((box.kind, box.column), []).append(box)
    x, ends = -STEP, dict.fromkeys(LANES, -WIDTH)
    for column in sorted({box.column for box in boxes.values()}):
        lanes = [kind for kind in LANES if (kind, column) in stacks]
        x = max(x + STEP, *(ends[kind] + WIDTH + SPACE for kind in lanes))
        for kind in lanes:
            ends[kind] = x
            for box in stacks[kind, column]:
                box.x = x
    y = 0.0
    for kind in LANES:
        mine = [stack for (lane, _), stack in stacks.items() if lane == kind]
        depth = max((sum(_height(box) + TOUCH for box in stack) for stack in mine), default=0.0)
        for stack in mine:
            top = y
            if kind == "corpus":  # right above what it supports
                top -= depth - sum(_height(box) + TOUCH for box in stack)
            for box in stack:
                box.top, box.bottom = top, top - _height(box)
                top = box.bottom - TOUCH
            for box in stack:
                box.stack_bottom = stack[-1].bottom
        y -= depth + GAP if depth else 0.0


def _height(box: Box) -> float:
    return LINE * (len(box.lines) + len(box.notes)) + PAD


def _readable(text: str) -> str:
    """A call as code, its thought before it; any other text as it is."""
    action = read_action(text)
    if not isinstance(action, Call):
        return text
    arguments = ", ".join(f"{name}={value}" for name, value in action.arguments.items())
    return f"{action.thought} → {action.name}({arguments})" if action.thought else f"{action.name}({arguments})"


def _wrapped(text: str, letters: int) -> list[str]:
    lines = textwrap.wrap(" ".join(text.split()), letters) or ["(empty)"]
    if len(lines) > LINES:
        lines = lines[:LINES]
        lines[-1] = lines[-1][: letters - 1].rstrip(" .,:;") + "…"
    return lines


def _page(scene: Scene) -> Figure:
    boxes = scene.boxes.values()
    left, right = min(box.x for box in boxes) - WIDTH / 2, max(box.x for box in boxes) + WIDTH / 2
    top, bottom = max(box.top for box in boxes), min(box.bottom for box in boxes)
    right = max(right, left + 9.0)  # room for the legend
    margin, head, foot, side = 0.2, 0.5, 0.6, 1.0
    figure = Figure(figsize=(right - left + 2 * margin + side, top - bottom + head + foot))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(left - margin - side, right + margin)
    axes.set_ylim(bottom - foot, top + head)
    axes.set_axis_off()
    axes.text(left - side, top + 0.26, scene.title, fontsize=10, fontweight="bold", va="center", parse_math=False)
    for kind in LANES:
        mine = [box for box in boxes if box.kind == kind]
        if mine:
            middle = (max(box.top for box in mine) + min(box.bottom for box in mine)) / 2
            axes.text(left - side, middle, kind, fontsize=9, color=EDGE[kind], fontweight="bold", va="center")
    for box in boxes:
        _box(axes, box)
    drawn = set()  # one arrow from a stack to what all of it supports or verifies
    for edge in scene.edges:
        source, target = scene.boxes[edge["source"]], scene.boxes[edge["target"]]
        key = (edge["kind"], source.kind, source.column, target.id)
        if key not in drawn or source.kind in ("action", "observation"):
            axes.add_patch(_arrow(source, target, edge["kind"], scene))
        drawn.add(key)
    handles: list[Any] = [Patch(facecolor=FILL[kind], edgecolor=EDGE[kind], label=kind) for kind in NODE_KINDS]
    handles += [Line2D([], [], label=kind, **STYLE[kind]) for kind in EDGE_KINDS]
    axes.legend(
        handles=handles, loc="lower center", ncols=len(handles), fontsize=7, frameon=False, handlelength=2.4,
        columnspacing=1.2,
    )  # fmt: skip
    return figure


def _box(axes: Axes, box: Box) -> None:
    axes.add_patch(
        FancyBboxPatch(
            (box.x - WIDTH / 2, box.bottom),
            WIDTH,
            box.top - box.bottom,
            boxstyle="round,pad=0,rounding_size=0.06",
            facecolor=FILL[box.kind],
            edgecolor=EDGE[box.kind],
            linewidth=2.6 if box.strong else 1.0,
            zorder=3,
        )
    )
    for i, line in enumerate([*box.notes, *box.lines]):
        is_note = i < len(box.notes)
        axes.text(
            box.x - WIDTH / 2 + 0.07,
            box.top - PAD / 2 - LINE * (i + 0.5),
            line,
            fontsize=6.2 if is_note else 7,
            color=EDGE[box.kind] if is_note else INK,
            style="italic" if is_note else "normal",
            va="center",
            zorder=4,
            parse_math=False,
        )


def _arrow(source: Box, target: Box, kind: str, scene: Scene) -> FancyArrowPatch:
    """From border to border: sideways within a lane, else from one lane to the next. What an action depends on arrives
    at the left of its upper border, what it produces leaves at the right."""
    if source.kind == target.kind:
        y = source.top - 0.24
        begin, end = (source.x + WIDTH / 2, y), (target.x - WIDTH / 2, y)
    elif kind == "production":
        begin, end = (source.x + 0.55, source.top), (target.x - 0.55, target.bottom)
    elif kind == "dependency":
        begin, end = (source.x + 0.55, source.bottom), (target.x - 0.55, target.top)
    elif kind == "support":
        begin, end = (source.x, source.stack_bottom), (target.x, target.top)
    else:
        top = max(box.top for box in scene.boxes.values() if box.kind == source.kind and box.column == source.column)
        begin, end = (source.x, top), (target.x, target.bottom)
    return FancyArrowPatch(
        begin, end, arrowstyle="-|>", mutation_scale=9, shrinkA=0, shrinkB=1, zorder=2, **STYLE[kind]
    )
