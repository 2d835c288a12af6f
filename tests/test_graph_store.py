"""The knowledge-action graph: of one trajectory, on disk, merged, counted and looked up."""

from __future__ import annotations

import json
import random
import re
import time
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openhorizon import cli
from openhorizon.agent.render import write_action
from openhorizon.agent.trajectory import Status, Trajectory, Turn
from openhorizon.domains.base import Answer, Call, Task, Verdict
from openhorizon.kag import store
from openhorizon.kag.graph import ABILITIES, EDGE_KINDS, NODE_KINDS, Edge, of_trajectory
from openhorizon.kag.phrases import Phrases, holds, normal
from openhorizon.kag.store import GraphWriter, Tables, merge, open_graph

ROOT = Path(__file__).parents[1]
Steps = list[tuple[dict[str, Any], str, tuple[str, ...], bool]]  # arguments, observation, evidence, refused


def episode(
    steps: Steps,
    answer: str | None = "word7",
    passed: bool = True,
    prompt: str = "Start at n1.",
    evidence: tuple[str, ...] = (),
    thought: str = "",
    source: str = "",
    name: str = "t",
    seed: int = 5,
) -> Trajectory:
    """A trajectory as self-play stores it."""
    task = Task(
        "notes", name, "train", prompt, max(len(steps), 1), 1, {}, evidence, ("answer", "path"), "word7",
        (("n1", "word7"),), source,
    )  # fmt: skip
    turns = [Turn("prompt", prompt)]
    for arguments, text, shown, error in steps:
        turns.append(Turn("assistant", write_action(Call("read", arguments))))
        turns.append(Turn("tool", text, evidence=shown, error=error))
    if answer is not None:
        turns.append(Turn("assistant", write_action(Answer(answer, thought))))
    status = Status.TRUNCATED if answer is None else Status.SOLVED if passed else Status.FAILED
    verdict = Verdict(passed and answer is not None, float(passed), "right" if passed else "wrong word")
    return Trajectory(task, tuple(turns), answer, status, verdict, "expert", seed)


def chain(name: str = "t", seed: int = 5, passed: bool = True, source: str = "", rounds: int = 1) -> Trajectory:
    """n1 leads to n2, n2 to n3, and that holds the word."""
    steps: Steps = [
        ({"note": "n1"}, "next: n2", ("n1",), False),
        ({"note": "n2"}, "next: n3", ("n2",), False),
        ({"note": "n3"}, "word: word7", ("n3",), False),
    ]
    return episode(steps * rounds, passed=passed, source=source, name=name, seed=seed)


def wandering(seed: int) -> Trajectory:
    """Steps drawn by the seed, some refused, some repeated; two worlds; sometimes cut off."""
    draw = random.Random(seed)
    steps: Steps = []
    for _ in range(draw.randrange(0, 7)):
        note, error = f"n{draw.randrange(5)}", draw.random() < 0.3
        text = "error: none" if error else f"next: n{draw.randrange(5)} of n{draw.randrange(5)}"
        steps.append(({"note": note, "deep": [draw.randrange(9), True]}, text, () if error else (note,), error))
    answer = None if steps and draw.random() < 0.2 else f"word{draw.randrange(9)}"
    source = draw.choice(["", "deep"])
    return episode(
        steps, answer, draw.random() < 0.6, f"Start at n{seed % 5}.", source=source, seed=seed, thought="a. b"
    )


def write(folder: Path, trajectories: list[Trajectory]) -> Tables:
    with GraphWriter(folder) as graph:
        for trajectory in trajectories:
            graph.add(trajectory)
    return open_graph(folder)


# Of one trajectory.


def test_graph_of_a_trajectory() -> None:
    built = of_trajectory("t", chain())
    assert [node.id for node in built.nodes if node.kind == "action"] == [f"action:t/{i}" for i in range(4)]
    assert {node.id for node in built.nodes if node.kind == "corpus"} == {"corpus:n1", "corpus:n2", "corpus:n3"}
    edges = {(edge.kind, edge.source, edge.target, edge.label) for edge in built.edges}
    assert ("dependency", "observation:t/prompt", "action:t/0", "") in edges, "n1 stands in the question"
    assert ("dependency", "observation:t/0", "action:t/1", "") in edges, "n2 stands in the first observation"
    assert ("dependency", "observation:t/2", "action:t/3", "") in edges, "the answer stands in the last observation"
    assert ("production", "action:t/1", "observation:t/1", "") in edges
    assert ("support", "corpus:n2", "observation:t/1", "") in edges
    assert ("action-transition", "action:t/2", "action:t/3", "") in edges
    assert ("verification", "verifier:answer", "action:t/3", "passed") in edges
    assert [record.verdict for record in built.records] == [None, None, None, True]
    assert built.records[1].state == ("observation:t/0", "corpus:n1")
    failed = of_trajectory("t", chain(passed=False))
    assert {edge.label for edge in failed.edges if edge.kind == "verification"} == {"failed"}
    assert failed.records[-1].verdict is False


def test_states_hold_only_what_was_seen_before_and_edges_end_at_nodes() -> None:
    for seed in range(60):
        built = of_trajectory("t", wandering(seed))
        known = [node.id for node in built.nodes]
        assert len(set(known)) == len(known)
        assert all(edge.source in known and edge.target in known for edge in built.edges)
        produced = {
            edge.target: int(edge.source.rpartition("/")[2]) for edge in built.edges if edge.kind == "production"
        }
        for record in built.records:
            assert all(produced.get(item, -1) < record.step for item in record.state)
            assert record.abilities


def test_abilities_of_records_actions_and_edges() -> None:
    steps: Steps = [
        ({"note": "n1"}, "next: n2", ("n1",), False),
        ({"note": "zz"}, "error", (), True),
        ({"note": "n1"}, "next: n2", ("n1",), False),
        ({"note": "n2"}, "next: n3", ("n2",), False),
        ({"note": "n1"}, "next: n2", ("n1",), False),
    ]
    built = of_trajectory("t", episode(steps, "word1", passed=False))
    found = [record.abilities for record in built.records]
    assert found[0] == ("information acquisition", "tool calling")
    assert found[1] == ("tool calling",)
    assert built.records[1].verdict is False
    assert "executable iteration" in found[2]
    assert "evidence verification" in found[2]
    assert "information acquisition" not in found[2]
    assert "constraint tracking" in found[4], "n1 was last said in the question"
    assert found[5] == ("evidence verification",)
    assert built.records[5].verdict is False
    assert [node.abilities for node in built.nodes if node.kind == "action"] == found
    by_kind = {kind: {(e.source, e.target): e.abilities for e in built.edges if e.kind == kind} for kind in EDGE_KINDS}
    assert by_kind["production"] == {(f"action:t/{i}", f"observation:t/{i}"): found[i] for i in range(5)}
    assert by_kind["action-transition"] == {(f"action:t/{i}", f"action:t/{i + 1}"): found[i + 1] for i in range(5)}
    assert by_kind["support"]["corpus:n1", "observation:t/0"] == ("information acquisition",)
    assert by_kind["support"]["corpus:n1", "observation:t/2"] == ("evidence verification",)
    assert by_kind["dependency"]["observation:t/prompt", "action:t/0"] == (), "the latest one is no reach back"
    assert by_kind["dependency"]["observation:t/prompt", "action:t/4"] == ("constraint tracking",)
    assert set(by_kind["verification"].values()) == {("evidence verification",)}


def test_without_tools_an_action_is_a_reasoning_step() -> None:
    told = episode(
        [], "blue", prompt="Facts: n1 is red. n2 is blue.", evidence=("n1",), thought="n1 is red\nn2 is blue"
    )
    built = of_trajectory("t", told)
    assert [node.text for node in built.nodes if node.kind == "action"] == ["n1 is red", "n2 is blue", "blue"]
    assert [record.abilities for record in built.records] == [("constraint tracking",)] * 2 + [
        ("evidence verification",)
    ]
    acquired: Any = ("information acquisition",)
    assert Edge("support", "corpus:n1", "observation:t/prompt", abilities=acquired) in built.edges


def slow_sources(text: str, shown: list[str]) -> int | None:
    """By reading everything: the latest of ``shown`` that has the words of ``text`` in a row."""
    wanted = re.findall(r"\w+", text.casefold())
    for i in reversed(range(len(shown))):
        words = re.findall(r"\w+", shown[i].casefold())
        if wanted and any(words[k : k + len(wanted)] == wanted for k in range(len(words))):
            return i
    return None


def natural(turns: int, words: int, seed: int, absent: int = 0) -> Trajectory:
    """Long observations over a common vocabulary; arguments are phrases out of earlier ones, or of none, and as many
    more of none as ``absent`` says."""
    draw = random.Random(seed)
    vocabulary = [f"{a}{b}" for a in ["the", "of", "heat", "ion"] for b in ["", *range(150)]]
    steps: Steps = []
    seen = ["Begin with heat 7, please."]
    for i in range(turns):
        source = draw.choice(seen).split()
        at, length = draw.randrange(len(source)), draw.randrange(1, 5)
        query = " ".join(source[at : at + length]) if draw.random() < 0.8 else f"the {draw.randrange(99)} nowhere"
        text = ". ".join(" ".join(draw.choices(vocabulary, k=10)) for _ in range(words // 10))
        missing = [f"the heat of {i} {k}" for k in range(absent)]
        arguments = {"query": query, "page": f"The{draw.randrange(150)}", "more": missing}
        steps.append((arguments, text, (f"p{i}",), False))
        seen.append(text)
    return episode(steps, "heat7", prompt=seen[0])


def test_dependencies_agree_with_a_search_through_everything() -> None:
    for seed in range(4):
        trajectory = natural(25, 120, seed)
        built = of_trajectory("t", trajectory)
        shown, expected = [trajectory.task.prompt], []
        names = ["observation:t/prompt"]
        calls = [turn for turn in trajectory.turns if turn.role == "assistant"]
        for t, turn in enumerate(calls):
            body = re.search(r"<tool_call>(.*)</tool_call>", turn.text)
            said = json.loads(body.group(1))["arguments"] if body else {"query": turn.text, "page": ""}
            values = [said["query"], said["page"]]
            sources = sorted({i for value in values if (i := slow_sources(value, shown)) is not None})
            expected += [(names[i], f"action:t/{t}") for i in sources]
            state = [names[i] for i in sorted({*sources, len(shown) - 1})]
            state += [f"corpus:p{name.rpartition('/')[2]}" for name in state if not name.endswith("prompt")]
            assert built.records[t].state == tuple(state)
            if t + 1 < len(calls):
                shown.append(trajectory.turns[2 * t + 2].text)
                names.append(f"observation:t/{t}")
        found = [(edge.source, edge.target) for edge in built.edges if edge.kind == "dependency"]
        assert found == expected
        assert len(found) > 25


def test_phrases_agree_with_holds() -> None:
    draw = random.Random(0)
    texts = [normal(" ".join(draw.choices("aA b bb c. answer: é", k=draw.randrange(6)))) for _ in range(60)]
    index = Phrases()
    for text in texts:
        index.add(text)
    for phrase in {normal(" ".join(draw.choices("a b bb c answer", k=draw.randrange(4)))) for _ in range(300)}:
        expected = [i for i in reversed(range(len(texts))) if holds(texts[i], phrase)]
        assert list(index.holding(phrase)) == expected
        assert index.latest(phrase) == (expected[0] if expected else None)


def test_a_long_trajectory_of_natural_text_takes_no_longer_than_its_length() -> None:
    short, long = natural(40, 1_000, 0, 50), natural(160, 1_000, 0, 50)
    taken = []
    for trajectory in (short, long):
        of_trajectory("t", trajectory)
        began = time.process_time()
        of_trajectory("t", trajectory)
        taken.append(time.process_time() - began)
    assert taken[1] < 8 * taken[0], "four times the text, so about four times the time"


# On disk.


def test_tables_hold_what_trajectories_contribute(tmp_path: Path) -> None:
    trajectories = [wandering(seed) for seed in range(40)]
    tables = write(tmp_path, trajectories)
    texts = tables.texts(range(tables.nodes.num_rows))
    nodes, name_of = tables.nodes.to_pylist(), {}
    for i, node in enumerate(nodes):
        assert node["id"] == i
        scope = "deep/" if node["world"] == "notes/deep" else ""
        if node["trajectory"] is None:
            name_of[i] = f"{node['kind']}:{scope}{texts[i]}"
        else:
            name_of[i] = f"{node['kind']}:t/{node['trajectory']}/{node['step'] if node['step'] >= 0 else 'prompt'}"
    assert len(set(name_of.values())) == len(nodes), "what is shared stands there once"
    parts = [of_trajectory(f"t/{t.seed}", t) for t in trajectories]
    assert {(name_of[n["id"]], texts[n["id"]], n["abilities"]) for n in nodes} == {
        (node.id, node.text, ", ".join(node.abilities)) for part in parts for node in part.nodes
    }
    found = [
        (e["kind"], name_of[e["source"]], name_of[e["target"]], e["label"], e["abilities"])
        for e in tables.edges.to_pylist()
    ]
    assert found == [
        (edge.kind, edge.source, edge.target, edge.label, ", ".join(edge.abilities))
        for part in parts
        for edge in part.edges
    ]
    assert [
        (
            f"t/{row['trajectory']}",
            row["step"],
            tuple(name_of[i] for i in row["state"]),
            name_of[row["action"]],
            None if row["observation"] is None else name_of[row["observation"]],
            row["verdict"],
            tuple(row["abilities"].split(", ")),
        )
        for row in tables.records.to_pylist()
    ] == [
        (r.trajectory, r.step, r.state, r.action, r.observation, r.verdict, r.abilities)
        for part in parts
        for r in part.records
    ]
    assert [(row["name"], row["status"], row["passed"], row["horizon"]) for row in tables.trajectories.to_pylist()] == [
        (f"t/{t.seed}", t.status.value, t.verdict.passed, t.task.horizon) for t in trajectories
    ]


def test_row_groups_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trajectories = [wandering(seed) for seed in range(40)]
    whole = write(tmp_path / "whole", trajectories)
    monkeypatch.setattr(store, "ROWS", 50)
    cut = write(tmp_path / "cut", trajectories)
    monkeypatch.setattr(store, "CHARACTERS", 200)
    fine = write(tmp_path / "fine", trajectories)
    groups = [pq.ParquetFile(t.folder / "nodes.parquet").num_row_groups for t in (whole, cut, fine)]
    assert groups[0] == 1
    assert groups[0] < groups[1] < groups[2], "a group ends by rows or by characters, whichever comes first"
    for name in ("trajectories", "nodes", "edges", "records"):
        assert getattr(whole, name).to_pylist() == getattr(cut, name).to_pylist() == getattr(fine, name).to_pylist()
    assert whole.counts() == fine.counts()
    some = range(0, whole.nodes.num_rows, 7)
    assert whole.texts(some) == fine.texts(some)
    assert whole.neighbourhood(30, 2).to_pylist() == fine.neighbourhood(30, 2).to_pylist()


def test_the_same_trajectories_give_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write(tmp_path / folder, [wandering(seed) for seed in range(20)])
    for file in sorted((tmp_path / "a").iterdir()):
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_how_many_rows_are_packed_at_once_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the rows of a group are packed in many parts, with none left at its end."""
    trajectories = [wandering(seed) for seed in range(40)]
    monkeypatch.setattr(store, "ROWS", 64)
    for loose in (10**6, 64, 7, 1):
        monkeypatch.setattr(store, "LOOSE", loose)
        write(tmp_path / f"{loose}", trajectories)
    for file in sorted((tmp_path / "1").iterdir()):
        assert len({(tmp_path / f"{loose}" / file.name).read_bytes() for loose in (10**6, 64, 7, 1)}) == 1, file.name


@pytest.mark.parametrize("name", ["nodes", "edges", "records", "trajectories"])
def test_a_group_that_waits_on_disk_is_written_as_one_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """By rows and by tables of any size, pages of more than one in a group: the same bytes, and nothing left beside."""
    monkeypatch.setattr(store, "ROWS", 20_000)
    schema, draw = store._SCHEMAS[name], random.Random(3)

    def value(kind: pa.DataType, i: int) -> Any:
        if pa.types.is_list(kind):
            return [draw.randrange(10**12) for _ in range(draw.randrange(30))]
        if kind == store._NAME:
            return f"name {draw.randrange(1 + i // 3_000)}"  # new ones come up as it goes on
        if kind == pa.string():
            return f"{draw.random()} " * draw.randrange(20)
        return None if draw.random() < 0.1 else draw.random() < 0.5 if kind == pa.bool_() else draw.randrange(10**6)

    def columns(part: list[tuple[Any, ...]]) -> list[pa.Array]:
        return [pa.array(values, field.type) for values, field in zip(zip(*part, strict=True), schema, strict=True)]

    rows = [tuple(value(field.type, i) for field in schema) for i in range(45_000)]
    by_row, by_table = store._Table(tmp_path / "by_row", schema), store._Table(tmp_path / "by_table", schema)
    encoded = {"state.list.element" if field.name == "state" else field.name: field.type for field in schema}
    reference = pq.ParquetWriter(
        tmp_path / "reference",
        schema,
        compression="zstd",
        use_dictionary=[name for name, kind in encoded.items() if kind == store._NAME],
        column_encoding={
            name: "DELTA_BINARY_PACKED"
            for name, kind in encoded.items()
            if kind in (pa.int64(), pa.int32(), pa.list_(pa.int64()))
        },
    )
    for row in rows:
        by_row.row(row)
    for start in range(0, len(rows), 20_000):
        group = rows[start : start + 20_000]
        for begin, end in pairwise((0, 1, 1_000, 1_777, 4_849, len(group))):
            by_table.table(pa.RecordBatch.from_arrays(columns(group[begin:end]), schema=schema))
        reference.write_table(pa.Table.from_arrays(columns(group), schema=schema), row_group_size=len(group))
    for table in (by_row, by_table, reference):
        table.close()
    expected = (tmp_path / "reference").read_bytes()
    assert (tmp_path / "by_row").read_bytes() == expected
    assert (tmp_path / "by_table").read_bytes() == expected
    assert sorted(file.name for file in tmp_path.iterdir()) == ["by_row", "by_table", "reference"]


def test_what_a_table_holds_in_memory_does_not_grow_with_its_rows(tmp_path: Path) -> None:
    table, text = store._Table(tmp_path / "nodes", store._SCHEMAS["nodes"]), "word " * 40
    before, held = pa.total_allocated_bytes(), []
    for i in range(10 * store.LOOSE):  # less than a row group, 8 MB of text
        table.row((i, "action", "notes", i, 0, "tool calling", text), len(text))
        held.append(pa.total_allocated_bytes() - before)
    table.close()
    assert max(held) < 2 * store.LOOSE * len(text)


def test_shards_merge_into_what_one_writer_gives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trajectories = [wandering(seed) for seed in range(60)]
    whole = write(tmp_path / "whole", trajectories)
    monkeypatch.setattr(store, "ROWS", 64)
    for i, (begin, end) in enumerate([(0, 20), (20, 20), (20, 21), (21, 60)]):
        write(tmp_path / f"{i}", trajectories[begin:end])
    merge([tmp_path / f"{i}" for i in range(4)], tmp_path / "merged")
    merged = open_graph(tmp_path / "merged")
    for name in ("trajectories", "nodes", "edges", "records"):
        assert getattr(merged, name).to_pylist() == getattr(whole, name).to_pylist(), name
    every = range(whole.nodes.num_rows)
    assert merged.texts(every) == whole.texts(every)


def test_a_trajectory_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="t/5: twice"):
        write(tmp_path / "a", [chain(), chain()])
    write(tmp_path / "b", [chain()])
    with pytest.raises(ValueError, match=r"b: trajectory t/5 is in another part"):
        merge([tmp_path / "b", tmp_path / "b"], tmp_path / "c")


def test_an_empty_graph_is_read_back_and_counted(tmp_path: Path) -> None:
    tables = write(tmp_path, [])
    assert tables.records.num_rows == 0
    assert tables.counts()["all"]["nodes"] == dict.fromkeys(NODE_KINDS, 0)
    merge([tmp_path, tmp_path], tmp_path / "merged")
    assert open_graph(tmp_path / "merged").nodes.num_rows == 0


def test_a_damaged_graph_is_refused_with_its_path(tmp_path: Path) -> None:
    write(tmp_path, [chain()])
    (tmp_path / "edges.parquet").write_bytes((tmp_path / "edges.parquet").read_bytes()[:100])
    with pytest.raises(ValueError, match=r"edges\.parquet.*damaged"):
        open_graph(tmp_path)
    (tmp_path / "edges.parquet").write_bytes((tmp_path / "nodes.parquet").read_bytes())
    with pytest.raises(ValueError, match=r"edges\.parquet.*columns"):
        open_graph(tmp_path)
    (tmp_path / "edges.parquet").unlink()
    with pytest.raises(ValueError, match=r"edges\.parquet.*missing"):
        open_graph(tmp_path)


def test_counts_agree_with_counting_one_by_one(tmp_path: Path) -> None:
    trajectories = [wandering(seed) for seed in range(50)]
    counts = write(tmp_path, trajectories).counts()
    assert list(counts) == ["all", "notes", "notes/deep"]
    for place in counts:
        mine = [t for t in trajectories if place in ("all", t.task.world)]
        parts = [of_trajectory(f"{t.seed}", t) for t in mine]
        nodes = {node.id: node.kind for part in parts for node in part.nodes}
        assert counts[place]["nodes"] == {kind: list(nodes.values()).count(kind) for kind in NODE_KINDS}
        edges = Counter(edge.kind for part in parts for edge in part.edges)
        assert counts[place]["edges"] == {kind: edges[kind] for kind in EDGE_KINDS}
        records = [record for part in parts for record in part.records]
        said = Counter({True: "passed", False: "failed", None: "none fired"}[record.verdict] for record in records)
        assert counts[place]["records"] == {name: said[name] for name in ("passed", "failed", "none fired")}
        used = Counter(ability for record in records for ability in record.abilities)
        assert counts[place]["abilities"] == {ability: used[ability] for ability in ABILITIES}
        assert counts[place]["trajectories"] == Counter(t.status.value for t in mine)


def test_a_neighbourhood_agrees_with_a_search_edge_by_edge(tmp_path: Path) -> None:
    tables = write(tmp_path, [wandering(seed) for seed in range(30)])
    edges, kinds = tables.edges.to_pylist(), tables.nodes.column("kind").to_pylist()
    for node in (*range(0, 120, 11), kinds.index("corpus"), kinds.index("verifier")):
        for hops in (1, 2, 3):
            reached, expected = {node}, []
            for _ in range(hops):
                through = {i for i in reached if i == node or kinds[i] in ("action", "observation")}
                expected = [edge for edge in edges if {edge["source"], edge["target"]} & through]
                reached |= {edge[end] for edge in expected for end in ("source", "target")}
            assert tables.neighbourhood(node, hops).to_pylist() == expected


# The command.


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "params.yaml").write_bytes((ROOT / "params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENHORIZON_DEBUG", raising=False)
    monkeypatch.setenv("COLUMNS", "100")
    return tmp_path


def test_show_kag_counts_and_draws(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deep = [replace(t, task=replace(t.task, domain="search")) for t in (wandering(seed) for seed in range(30))]
    write(project / "artifacts/generate/search/graph", deep)
    counts = open_graph(project / "artifacts/generate/search/graph").counts()
    assert cli.main(["show", "kag", "search"]) == 0
    said = capsys.readouterr().out
    for word in ("search", "search/deep", "action-transition", "constraint tracking", "none fired", "corpus"):
        assert word in said
    row = next(line for line in said.splitlines() if "production" in line)
    assert [int(cell) for cell in re.findall(r"\d+", row)] == [
        counts[place]["edges"]["production"] for place in ("all", "search", "search/deep")
    ]
    assert (project / "reports/kag_search.png").read_bytes().startswith(b"\x89PNG")
    assert cli.main(["show", "kag", "search", "--out", "elsewhere/x.png", "--seed", "3", "--steps", "2"]) == 0
    assert (project / "elsewhere/x.png").is_file()


def test_show_kag_refuses_what_is_not_there(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["show", "kag", "cooking"], "unknown domain 'cooking'; known are search"),
        (["show", "kag", "search"], "make reproduce"),
    ):
        assert cli.main(arguments) == cli.USER_ERROR
        assert said in capsys.readouterr().err
    write(project / "artifacts/generate/search/graph", [])
    assert cli.main(["show", "kag", "search"]) == cli.USER_ERROR
    assert "no records" in capsys.readouterr().err
    write(project / "artifacts/generate/search/graph", [chain()])
    assert cli.main(["show", "kag", "search", "--steps", "1"]) == cli.USER_ERROR
    assert "steps=1" in capsys.readouterr().err
