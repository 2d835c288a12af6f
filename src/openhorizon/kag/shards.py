"""One shard of a domain's data while it is made, and several of them as one artifact.

Everything is written as it comes, so that memory does not grow with the data. A shard's folder holds

    demonstrations, rejected, prompts .parquet; graph/     as in the artifact
    demonstrations.marks, prompts.marks .parquet           a fingerprint a row, by which the merge knows duplicates
    tally.json, shard.json                                 what was counted
"""

from __future__ import annotations

import shutil
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from openhorizon.agent.trajectory import (
    TaskWriter,
    TrajectoryWriter,
    task_rows,
    trajectory_of,
    trajectory_rows,
    world_of,
)
from openhorizon.artifacts import read_json, write_json
from openhorizon.domains.base import Domain, Task
from openhorizon.kag import store
from openhorizon.kag.decontaminate import merge_reports
from openhorizon.kag.describe import Description
from openhorizon.kag.fingerprints import Fingerprints, digest
from openhorizon.kag.selfplay import (
    TRIED,
    Memory,
    Outcome,
    PartName,
    fingerprint,
    is_stored,
    to_trajectory,
)
from openhorizon.kag.solve import DIED
from openhorizon.kag.store import GraphWriter
from openhorizon.kag.tally import PARTS, Tally

FILES = ("demonstrations", "rejected", "prompts", "validation", "heldout")


class ShardWriter:
    """Takes a shard's outcomes. A context manager; ``finish`` comes after it."""

    def __init__(
        self, folder: Path, worlds: Mapping[str, Domain], heldout: Sequence[Task], validation: Sequence[Task] = ()
    ) -> None:
        self._folder, self._worlds, self._stack = folder, worlds, ExitStack()
        self._tally, self._described, self._disjoint = Tally(), Description(), Disjoint(heldout, validation)
        self._marks = {name: array("Q") for name in ("demonstrations", "prompts")}

    def __enter__(self) -> Self:
        self._accepted = self._stack.enter_context(TrajectoryWriter(self._folder / "demonstrations.parquet"))
        self._rejected = self._stack.enter_context(TrajectoryWriter(self._folder / "rejected.parquet"))
        self._prompts = self._stack.enter_context(TaskWriter(self._folder / "prompts.parquet"))
        self._graph = self._stack.enter_context(GraphWriter(self._folder / "graph"))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def add(self, part: PartName, outcome: Outcome) -> None:
        """Write an outcome back: a demonstration or a rejection with its reason, a prompt, or a count.

        Raises:
            ValueError: an accepted task shares something with one that is kept out.
        """
        self._tally.add(part, outcome, bool(self._worlds[outcome.world].tools))
        if not outcome.rule and outcome.episode is not None:
            task = outcome.episode.task
            self._disjoint.add(task)
            self._marks[part].append(fingerprint(task))
            if part == "prompts":
                self._prompts.add(task)
                return
        if is_stored(outcome):
            trajectory = to_trajectory(outcome)
            (self._rejected if outcome.rule else self._accepted).add(trajectory)
            self._described.add(trajectory, not outcome.rule, outcome.rule, self._graph.add(trajectory))
        elif outcome.rule != TRIED:
            self._described.refuse(outcome.world, outcome.rule)

    def finish(self, memory: Memory, contamination: Mapping[str, Any]) -> None:
        """Write what was counted."""
        for name, values in self._marks.items():
            table = pa.table({"fingerprint": pa.array(np.asarray(values, np.uint64))})
            pq.write_table(table, self._folder / f"{name}.marks.parquet")
        self._tally.write(self._folder / "tally.json")
        written = {
            "proposals": memory.proposals["train"],
            "closed": memory.closed,
            "deaths": memory.deaths,
            "described": self._described.to_json(),
            "contamination": dict(contamination),
            "disjoint": self._disjoint.report(),
        }
        write_json(self._folder / "shard.json", written)


def merge(heldout: Path, shards: Sequence[Path], folder: Path) -> dict[str, Any]:
    """The tasks that are kept out and the shards as one artifact in ``folder``; returns what metrics.json says of them.

    A task that an earlier shard made already is dropped: its demonstration goes to the rejected ones, as a duplicate.
    """
    parts = [read_json(shard / "shard.json") for shard in shards]
    held = read_json(heldout / "shard.json")
    tally, described = Tally.read(heldout / "tally.json"), Description()
    for shard, part in zip(shards, parts, strict=True):
        tally.merge(Tally.read(shard / "tally.json"))
        described.merge(Description.from_json(part["described"]))
    for name in ("heldout", "validation"):
        shutil.copyfile(heldout / f"{name}.parquet", folder / f"{name}.parquet")
    if len(shards) == 1:
        for name in ("demonstrations", "rejected", "prompts"):
            shutil.copyfile(shards[0] / f"{name}.parquet", folder / f"{name}.parquet")
        shutil.copytree(shards[0] / "graph", folder / "graph")
    else:
        described = _without(described, _merge_tables(shards, folder, tally))
        store.merge([shard / "graph" for shard in shards], folder / "graph")
    figures, data = tally.figures(), described.figures()
    return {
        "shards": len(shards),
        "proposals": {**held["proposals"], "train": sum(part["proposals"] for part in parts)},
        "counts": {name: _rows(folder / f"{name}.parquet") for name in FILES},
        **figures,
        "environment_deaths": {
            "all": sum(part["deaths"] for part in (held, *parts)),
            "given_up": sum(figures["acceptance"][part][DIED] for part in PARTS),
        },
        "closed_regions": [*held["closed"], *(line for part in parts for line in part["closed"])],
        "decontamination": {
            **_disjoint([part["disjoint"] for part in parts]),
            "pairs_dropped": _dropped(figures, "shared pair"),
            "prompts_dropped": _dropped(figures, "shared prompt"),
            "contaminated_dropped": _dropped(figures, "contaminated"),
        },
        "contamination": merge_reports([part["contamination"] for part in parts]),
        "tool_calls": data["all"]["tool_calls"],
        "words": data["all"]["words"],
        "description": data,
        "graph": _describe(folder / "graph") | {"abilities": data["all"]["abilities"]},
    }


class Disjoint:
    """Holds training tasks against held-out ones and those of validation: no pair, seed or prompt may be in both."""

    def __init__(self, heldout: Sequence[Task], validation: Sequence[Task] = ()) -> None:
        self._held: dict[str, set[Any]] = {"pairs": set(), "seeds": set(), "prompts": set()}
        for task in (*heldout, *validation):
            self._held["pairs"].update(task.entity_pairs)
            self._held["seeds"].add(task.seed)
            self._held["prompts"].add(task.prompt)
        self._train_pairs = Fingerprints()
        self._counted = {"heldout_pairs": heldout, "validation_pairs": validation}

    def add(self, task: Task) -> None:
        """Raises ``ValueError`` where the task shares something with one that is kept out."""
        mine: dict[str, set[Any]] = {"pairs": set(task.entity_pairs), "seeds": {task.seed}, "prompts": {task.prompt}}
        shared = {name: self._held[name] & items for name, items in mine.items()}
        found = [f"shared {name} (such as {min(items)!r})" for name, items in shared.items() if items]
        if found:
            raise ValueError(f"training and kept-out tasks overlap: task {task.id}: {', '.join(found)}")
        for pair in task.entity_pairs:
            self._train_pairs.add(digest("\x1f".join(pair)))

    def report(self) -> dict[str, int]:
        """How much the splits share, by kind: nothing, or ``add`` would have raised."""
        return {f"shared_{name}": 0 for name in self._held} | {
            **{name: len({pair for it in tasks for pair in it.entity_pairs}) for name, tasks in self._counted.items()},
            "train_pairs": len(self._train_pairs),
        }


def _merge_tables(shards: Sequence[Path], folder: Path, tally: Tally) -> Description:
    """Demonstrations, rejections and prompts of all shards, without what an earlier one made already; returns what the
    dropped demonstrations were counted as."""
    seen, dropped = Fingerprints(), Description()
    with ExitStack() as stack:
        accepted = stack.enter_context(TrajectoryWriter(folder / "demonstrations.parquet"))
        rejected = stack.enter_context(TrajectoryWriter(folder / "rejected.parquet"))
        prompts = stack.enter_context(TaskWriter(folder / "prompts.parquet"))

        def kept(shard: Path, name: str, rows: Iterable[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], bool]]:
            marks = pq.read_table(shard / f"{name}.marks.parquet").column("fingerprint").to_numpy()
            for row, mark in zip(rows, marks, strict=True):
                new = seen.add(int(mark))
                if not new:
                    tally.dropped(name, world_of(row), row["horizon"])
                yield row, new

        for shard in shards:
            for row, new in kept(shard, "demonstrations", trajectory_rows(shard / "demonstrations.parquet")):
                if not new:
                    dropped.add(trajectory_of(row), accepted=True)
                    row = row | {"reason": "duplicate: an earlier shard made the same task"}
                (accepted if new else rejected).add_row(row)
            for row in trajectory_rows(shard / "rejected.parquet"):
                rejected.add_row(row)
        for shard in shards:
            for row, new in kept(shard, "prompts", task_rows(shard / "prompts.parquet")):
                if new:
                    prompts.add_row(row)
    return dropped


def _without(described: Description, dropped: Description) -> Description:
    """The counts of ``described`` with those of accepted trajectories that turned out to be duplicates."""
    counts, less = described.to_json(), dropped.to_json()
    for world, names in less.items():
        for name, values in names.items():
            mine = counts[world][name]
            for value, n in values.items():
                mine[value] -= n
            counts[world][name] = {value: n for value, n in mine.items() if n}
        counts[world]["tried"] = described.to_json()[world]["tried"]
        rules = counts[world]["rules"]
        rules["duplicate"] = rules.get("duplicate", 0) + names["rules"].get("accepted", 0)
    return Description.from_json(counts)


def _disjoint(reports: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Pairs of several shards are counted once a shard."""
    found = dict(reports[0])
    found["train_pairs"] = sum(report["train_pairs"] for report in reports)
    return found


def _dropped(figures: Mapping[str, Any], rule: str) -> int:
    return sum(figures["acceptance"][part][rule] for part in ("demonstrations", "prompts"))


def _describe(graph: Path) -> dict[str, Any]:
    """The size of a graph on disk, nodes and edges by kind, read a batch at a time."""

    def by_kind(name: str) -> dict[str, int]:
        counts: Counter[str] = Counter()
        with pq.ParquetFile(graph / f"{name}.parquet") as file:
            for batch in file.iter_batches(columns=["kind"]):
                for kind in pc.value_counts(batch.column("kind")).to_pylist():
                    counts[kind["values"]] += kind["counts"]
        return dict(sorted(counts.items()))

    return {"nodes": by_kind("nodes"), "edges": by_kind("edges"), "records": _rows(graph / "records.parquet")}


def _rows(path: Path) -> int:
    return int(pq.read_metadata(path).num_rows)
