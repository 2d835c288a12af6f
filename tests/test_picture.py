"""What is drawn of a graph: the right nodes and edges, in the order of time, without boxes on top of each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from openhorizon.agent.render import write_action
from openhorizon.agent.trajectory import Status, Trajectory, Turn
from openhorizon.domains.base import Answer, Call, Task, Verdict
from openhorizon.kag import picture
from openhorizon.kag.graph import EDGE_KINDS, NODE_KINDS
from openhorizon.kag.picture import LINES, STACK, WIDTH, Scene, choose, draw
from openhorizon.kag.store import GraphWriter, Tables, open_graph


def told(
    calls: int, seed: int, passed: bool = True, shown: int = 1, answered: bool = True, text: str = "next"
) -> Trajectory:
    """A trajectory that reads note after note, and repeats the first at the end."""
    task = Task("notes", "t", "train", "Start at n0 now", calls, 1, {}, (), ("answer", "path"), "x", ())
    turns = [Turn("prompt", task.prompt)]
    for i in range(calls):
        note = 0 if i == calls - 1 else i
        turns.append(Turn("assistant", write_action(Call("read", {"note": f"n{note}"}, f"go to n{note}"))))
        turns.append(Turn("tool", f"{text} n{i + 1}", evidence=tuple(f"e{note}-{k}" for k in range(shown))))
    if answered:
        turns.append(Turn("assistant", write_action(Answer(f"n{calls}"))))
    status = Status.SOLVED if passed else Status.FAILED
    return Trajectory(task, tuple(turns), "x", status, Verdict(passed, 1.0, ""), "expert", seed)


def graph(folder: Path, *trajectories: Trajectory) -> Tables:
    with GraphWriter(folder) as writer:
        for trajectory in trajectories:
            writer.add(trajectory)
    return open_graph(folder)


def texts(scene: Scene, kind: str) -> list[str]:
    """Of the boxes of a kind, from left to right."""
    return [box.text for box in sorted(scene.boxes.values(), key=lambda box: box.x) if box.kind == kind]


def check(scene: Scene) -> None:
    """No box on another, time from left to right, every edge between boxes."""
    boxes = list(scene.boxes.values())
    for i, a in enumerate(boxes):
        for b in boxes[i + 1 :]:
            assert abs(a.x - b.x) >= WIDTH or a.bottom >= b.top or b.bottom >= a.top, (a, b)
    for edge in scene.edges:
        source, target = scene.boxes[edge["source"]], scene.boxes[edge["target"]]
        if edge["kind"] in ("dependency", "production", "action-transition"):
            assert source.x < target.x, edge


def test_the_end_of_a_trajectory_is_drawn_with_all_that_hangs_on_it(tmp_path: Path) -> None:
    scene = choose(graph(tmp_path, told(6, 0)), 0, 4)
    check(scene)
    assert scene.title == "notes: steps 4 to 7 of a trajectory of horizon 6, SOLVED"
    assert texts(scene, "action") == [
        "go to n3 → read(note=n3)", "go to n4 → read(note=n4)", "go to n0 → read(note=n0)", "n6",
    ]  # fmt: skip
    assert texts(scene, "verifier") == ["answer", "path"]
    assert texts(scene, "observation") == ["Start at n0 now", "next n3", "next n4", "next n5", "next n6"]
    assert {edge["kind"] for edge in scene.edges} == set(EDGE_KINDS)
    assert {box.kind for box in scene.boxes.values()} == set(NODE_KINDS)
    assert [box.text for box in scene.boxes.values() if box.strong] == ["go to n0 → read(note=n0)"]
    reached_back = next(box for box in scene.boxes.values() if box.text.startswith("go to n0"))
    assert "tracks constraints" in reached_back.note
    assert next(box for box in scene.boxes.values() if box.text == "n6").note.startswith("✓")


def test_many_corpus_items_are_counted_not_drawn(tmp_path: Path) -> None:
    scene = choose(graph(tmp_path, told(3, 0, passed=False, shown=9)), 0, 4)
    check(scene)
    supports: dict[int, int] = {}
    for edge in scene.edges:
        if edge["kind"] == "support":
            supports[edge["target"]] = supports.get(edge["target"], 0) + 1
    assert set(supports.values()) == {STACK}
    noted = [box.note for box in scene.boxes.values() if box.kind == "observation" and box.note != "the question"]
    assert all(note.endswith(f"{9 - STACK} more behind it") for note in noted)
    assert next(box for box in scene.boxes.values() if box.kind == "action" and box.text == "n3").note.startswith("✗")


def test_short_and_odd_trajectories_are_drawn(tmp_path: Path) -> None:
    odd = [told(0, 0), told(1, 1, answered=False), told(0, 2, answered=False), told(9, 3, text="long $x_1 " * 99)]
    tables = graph(tmp_path, *odd)
    seen = set()
    for seed in range(30):
        scene = draw(tables, tmp_path / "new" / "x.png", seed, 5) if seed < 2 else choose(tables, seed, 5)
        check(scene)
        seen.add(scene.title.partition(":")[2].partition("of a")[0].strip() + scene.title.rpartition("horizon ")[2])
        assert all(len(box.lines) <= LINES for box in scene.boxes.values())
    assert len(seen) == 3, "the trajectory without an action is never drawn, each of the others is"
    assert (tmp_path / "new" / "x.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_seed_draws_the_same_bytes(tmp_path: Path) -> None:
    tables = graph(tmp_path / "g", *(told(4, seed) for seed in range(5)))
    for name in ("a", "b"):
        draw(tables, tmp_path / f"{name}.png", 1, 3)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no records"):
        choose(graph(tmp_path / "none", told(0, 2, answered=False)), 0, 4)
    with pytest.raises(ValueError, match="steps=1"):
        choose(graph(tmp_path / "one", told(2, 0)), 0, 1)


def test_every_kind_has_a_style() -> None:
    assert set(picture.STYLE) == set(EDGE_KINDS)
    assert set(picture.FILL) == set(picture.EDGE) == set(picture.LANES) == set(NODE_KINDS)
