"""A knowledge-action graph on disk: four Parquet tables, written trajectory by trajectory and read by the column.

trajectories.parquet  id, name, world, horizon, status, passed, reason, policy
nodes.parquet         id, kind, world, trajectory (null: shared by several), step, abilities, text
edges.parquet         kind, source, target (node ids), label, abilities
records.parquet       trajectory, step, state (list of node ids), action, observation (node ids), verdict, abilities

Ids are row numbers. Names that repeat are dictionary-encoded, ids delta-encoded, and abilities one string of names
(", " between them) of which there are at most 31. docs/kag.md has every column and a worked example.

Memory: a writer holds a few thousand rows of each table, the names of corpus items and verifiers, and eight bytes of
every trajectory's name; the rest of a row group waits on disk beside the table until it is whole, when it is mapped and
written. Merging holds in addition the new ids of one part's nodes. Reading leaves texts on disk until they are asked
for.
"""

from __future__ import annotations

import mmap
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from openhorizon.agent.trajectory import Trajectory
from openhorizon.kag.fingerprints import Fingerprints, digest
from openhorizon.kag.graph import ABILITIES, EDGE_KINDS, NODE_KINDS, Record, of_trajectory

ROWS, CHARACTERS = 1 << 17, 1 << 25  # of one row group: whichever is reached first
LOOSE = 1 << 12  # rows that are kept as Python objects, many times as large as Arrow's columns
# Arrow encodes a flat column so many values at a time and ends a page only between two of them: where every chunk is a
# multiple of it, a table in chunks is written as the same bytes as one in a piece.
STEP = 1 << 10
_NAME = pa.dictionary(pa.int32(), pa.string())
_SCHEMAS = {
    "trajectories": pa.schema(
        [
            ("id", pa.int64()),
            ("name", pa.string()),
            ("world", _NAME),
            ("horizon", pa.int32()),
            ("status", _NAME),
            ("passed", pa.bool_()),
            ("reason", pa.string()),
            ("policy", _NAME),
        ]
    ),
    "nodes": pa.schema(
        [
            ("id", pa.int64()),
            ("kind", _NAME),
            ("world", _NAME),
            ("trajectory", pa.int64()),
            ("step", pa.int32()),
            ("abilities", _NAME),
            ("text", pa.string()),
        ]
    ),
    "edges": pa.schema(
        [("kind", _NAME), ("source", pa.int64()), ("target", pa.int64()), ("label", _NAME), ("abilities", _NAME)]
    ),
    "records": pa.schema(
        [
            ("trajectory", pa.int64()),
            ("step", pa.int32()),
            ("state", pa.list_(pa.int64())),
            ("action", pa.int64()),
            ("observation", pa.int64()),
            ("verdict", pa.bool_()),
            ("abilities", _NAME),
        ]
    ),
}
_SHARED = ("corpus", "verifier")  # kinds of nodes that belong to no one trajectory
_LOADED = {"nodes": [name for name in _SCHEMAS["nodes"].names if name != "text"]}
Count = dict[str, int]


class GraphWriter:
    """Writes a graph into ``folder``, which is made if it is not there; complete when the ``with`` block has ended."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stack = folder, ExitStack()
        self._names = Fingerprints()
        self._shared: dict[str, int] = {}  # id of a corpus item or verifier → its number
        self._next = 0

    def __enter__(self) -> Self:
        self._tables = _open_tables(self._folder, self._stack)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def add(self, trajectory: Trajectory) -> tuple[Record, ...]:
        """Add what one trajectory, failed or successful, contributes; returns its records. A trajectory's name is its
        task's id and its seed.

        Raises:
            ValueError: a trajectory of this name is in the graph already.
        """
        task = trajectory.task
        name, number = f"{task.id}/{trajectory.seed}", len(self._names)
        if not self._names.add(digest(name)):
            raise ValueError(f"trajectory {name}: twice in one graph")
        part = of_trajectory(name, trajectory)
        verdict, status = trajectory.verdict, trajectory.status.value
        self._tables["trajectories"].row(
            (number, name, task.world, task.horizon, status, verdict.passed, verdict.reason, trajectory.policy)
        )
        ids: dict[str, int] = {}
        for node in part.nodes:
            shared = node.kind in _SHARED
            if shared and node.id in self._shared:
                ids[node.id] = self._shared[node.id]
                continue
            ids[node.id] = self._next
            if shared:
                self._shared[node.id] = self._next
            owner = None if shared else number
            row = (self._next, node.kind, task.world, owner, node.step, ", ".join(node.abilities), node.text)
            self._tables["nodes"].row(row, len(node.text))
            self._next += 1
        for edge in part.edges:
            abilities = ", ".join(edge.abilities)
            self._tables["edges"].row((edge.kind, ids[edge.source], ids[edge.target], edge.label, abilities))
        for record in part.records:
            state = [ids[item] for item in record.state]
            observation = None if record.observation is None else ids[record.observation]
            abilities = ", ".join(record.abilities)
            self._tables["records"].row(
                (number, record.step, state, ids[record.action], observation, record.verdict, abilities)
            )
        return part.records


def merge(folders: Sequence[Path], target: Path) -> None:
    """One graph of several, in their order: what writing all their trajectories into one graph would have given.

    Raises:
        ValueError: a table is missing or damaged, or two parts have a trajectory of one name.
    """
    names = Fingerprints()
    shared: dict[tuple[str, str, str], int] = {}
    count = 0
    with ExitStack() as stack:
        tables = _open_tables(target, stack)
        for folder in folders:
            files = {name: _file(folder, name) for name in _SCHEMAS}
            first = len(names)
            for batch in files["trajectories"].iter_batches():
                for name in batch.column("name").to_pylist():
                    if not names.add(digest(name)):
                        raise ValueError(f"{folder}: trajectory {name} is in another part, too")
                tables["trajectories"].table(_replaced(batch, id=_plus(batch, "id", first)))
            number = np.empty(files["nodes"].metadata.num_rows, dtype=np.int64)  # old id → new id
            for batch in files["nodes"].iter_batches():
                old = batch.column("id").to_numpy()
                is_new = np.ones(len(old), dtype=bool)
                for i in np.flatnonzero(pc.is_in(batch.column("kind"), pa.array(_SHARED)).to_numpy(False)):
                    key = tuple(batch.column(name)[int(i)].as_py() for name in ("kind", "world", "text"))
                    if key in shared:
                        is_new[i], number[old[i]] = False, shared[key]
                    else:
                        shared[key] = count + int(is_new[:i].sum())
                new = count + np.arange(is_new.sum())
                number[old[is_new]] = new
                count += len(new)
                kept = batch.filter(pa.array(is_new))
                tables["nodes"].table(_replaced(kept, id=pa.array(new), trajectory=_plus(kept, "trajectory", first)))
            for batch in files["edges"].iter_batches():
                ends = {name: pa.array(number[batch.column(name).to_numpy()]) for name in ("source", "target")}
                tables["edges"].table(_replaced(batch, **ends))
            for batch in files["records"].iter_batches():
                state = batch.column("state")
                moved = pa.array(number[state.flatten().to_numpy()])
                offsets = pc.subtract(state.offsets, state.offsets[0])
                tables["records"].table(
                    _replaced(
                        batch,
                        trajectory=_plus(batch, "trajectory", first),
                        state=pa.ListArray.from_arrays(offsets, moved),
                        action=pa.array(number[batch.column("action").to_numpy()]),
                        observation=pc.take(pa.array(number), batch.column("observation")),
                    )
                )


@dataclass(frozen=True)
class Tables:
    """A graph in memory, by the column and without the nodes' texts."""

    folder: Path
    trajectories: pa.Table
    nodes: pa.Table
    edges: pa.Table
    records: pa.Table

    def counts(self) -> dict[str, dict[str, Count]]:
        """How many there are: by world and, under "all", in sum; nodes and edges by kind, records by verdict and by
        ability, trajectories by status. Every kind, verdict and ability is listed, also where there is none."""
        of_trajectory = _codes(self.trajectories, "world")
        of_node = _codes(self.nodes, "world")
        targets, owners = self.edges.column("target").to_numpy(), self.records.column("trajectory").to_numpy()
        verdict = pc.if_else(self.records.column("verdict"), "passed", "failed").fill_null("none fired")
        records = self.records.append_column("judged", verdict.dictionary_encode())
        places = ("all", *sorted(set(of_trajectory.names)))
        found: dict[str, dict[str, Count]] = {place: {} for place in places}
        for name, table, column, worlds, every in (
            ("trajectories", self.trajectories, "status", of_trajectory, ()),
            ("nodes", self.nodes, "kind", of_node, NODE_KINDS),
            ("edges", self.edges, "kind", of_node.taken(targets), EDGE_KINDS),
            ("records", records, "judged", of_trajectory.taken(owners), ("passed", "failed", "none fired")),
            ("abilities", records, "abilities", of_trajectory.taken(owners), ABILITIES),
        ):
            for place in places:
                found[place][name] = dict.fromkeys(every, 0)
            for (world, value), n in _tally(worlds, _codes(table, column)).items():
                for place in ("all", world):
                    counts = found[place][name]
                    for part in value.split(", ") if name == "abilities" else [value]:
                        counts[part] = counts.get(part, 0) + n
        return found

    def neighbourhood(self, node: int, hops: int) -> pa.Table:
        """The edges within ``hops`` of a node, against their direction or along it; corpus items and verifiers are
        reached but not passed through, since nearly everything hangs together by them."""
        kinds = _codes(self.nodes, "kind")
        is_shared = np.isin(kinds.names, _SHARED)[kinds.values]
        reached, found = {node}, self.touching([node])
        for _ in range(hops - 1):
            for end in ("source", "target"):
                reached.update(found.column(end).to_pylist())
            found = self.touching(i for i in reached if i == node or not is_shared[i])
        return found

    def touching(self, nodes: Iterable[int]) -> pa.Table:
        """The edges that begin or end at one of these nodes, in the order of the table."""
        wanted = np.fromiter(nodes, dtype=np.int64)
        source, target = (self.edges.column(name).to_numpy() for name in ("source", "target"))
        return self.edges.filter(pa.array(np.isin(source, wanted) | np.isin(target, wanted)))

    def texts(self, ids: Iterable[int]) -> dict[int, str]:
        """The texts of these nodes, read from disk: only the row groups that they stand in."""
        wanted, found, first = sorted(set(ids)), dict[int, str](), 0
        file = _file(self.folder, "nodes")
        for group in range(file.num_row_groups):
            rows = file.metadata.row_group(group).num_rows
            here = [i for i in wanted if first <= i < first + rows]
            if here:
                column = file.read_row_group(group, columns=["text"]).column("text")
                found |= {i: column[i - first].as_py() for i in here}
            first += rows
        return found


def open_graph(folder: Path) -> Tables:
    """Raises ``ValueError`` with the path where a table is missing, truncated or of another schema."""
    return Tables(folder, **{name: _load(folder, name) for name in _SCHEMAS})


@dataclass(frozen=True)
class _Codes:
    """A column of names as numbers into a list of names."""

    names: list[str]
    values: np.ndarray[Any, np.dtype[np.int64]]

    def taken(self, rows: np.ndarray[Any, np.dtype[np.int64]]) -> _Codes:
        return _Codes(self.names, self.values[rows])


def _codes(table: pa.Table, column: str) -> _Codes:
    whole = table.column(column).combine_chunks()
    if isinstance(whole, pa.ChunkedArray):  # no rows at all, or more than one chunk is needed
        whole = pa.concat_arrays(whole.chunks) if whole.num_chunks else pa.array([], _NAME)
    return _Codes(whole.dictionary.to_pylist(), whole.indices.to_numpy().astype(np.int64))


def _tally(first: _Codes, second: _Codes) -> dict[tuple[str, str], int]:
    """How often each pair of names occurs; pairs that do are listed in the order of the names."""
    size = max(len(second.names), 1)
    counts = np.bincount(first.values * size + second.values, minlength=len(first.names) * size)
    pairs = Counter(
        {(a, b): int(counts[i * size + j]) for i, a in enumerate(first.names) for j, b in enumerate(second.names)}
    )
    return {pair: n for pair, n in sorted(pairs.items()) if n}


class _Table:
    """One Parquet file that grows by rows or by tables and is written a row group at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path, self._schema = path, schema
        names = [field.name for field in schema if field.type == _NAME]
        delta = [field.name for field in schema if field.type in (pa.int64(), pa.int32())]
        self._lists = [field.name for field in schema if pa.types.is_list(field.type)]
        lists = [f"{name}.list.element" for name in self._lists]
        self._writer = pq.ParquetWriter(
            path,
            schema,
            compression="zstd",
            use_dictionary=names,
            column_encoding=dict.fromkeys([*delta, *lists], "DELTA_BINARY_PACKED"),
        )
        self._begin()

    def _begin(self) -> None:
        """An empty row group."""
        self._rows: list[tuple[Any, ...]] = []
        self._rest = self._schema.empty_table()  # fewer than STEP rows
        self._size = self._characters = 0
        self._file = tempfile.TemporaryFile(dir=self._path.parent)  # noqa: SIM115 (``_flush`` closes it)
        self._waiting = pa.ipc.new_stream(self._file, self._schema)

    def row(self, values: tuple[Any, ...], characters: int = 0) -> None:
        self._rows.append(values)
        if len(self._rows) >= LOOSE:
            self._pack()
        self._grown(1, characters)

    def table(self, batch: pa.RecordBatch) -> None:
        self._put_by(pa.Table.from_batches([batch]))
        self._grown(batch.num_rows, batch.nbytes)

    def _grown(self, rows: int, characters: int) -> None:
        self._size, self._characters = self._size + rows, self._characters + characters
        if self._size >= ROWS or self._characters >= CHARACTERS:
            self._flush()
            self._begin()

    def _pack(self) -> None:
        """Turn the loose rows into columns."""
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(column, type=field.type) for column, field in zip(columns, self._schema, strict=True)]
            self._put_by(pa.Table.from_arrays(arrays, schema=self._schema))
            self._rows = []

    def _put_by(self, table: pa.Table) -> None:
        """To disk until the row group is whole; what is over a multiple of STEP rows waits for the next."""
        whole = _in_one(pa.concat_tables([self._rest, table]))
        cut = whole.num_rows // STEP * STEP
        if cut:
            self._waiting.write_table(whole[:cut])
        self._rest = whole.take(pa.array(range(cut, whole.num_rows), pa.int64()))  # a slice would keep all of it

    def _flush(self) -> None:
        """Write the row group."""
        self._pack()
        if self._rest.num_rows:
            self._waiting.write_table(self._rest)
        self._waiting.close()
        self._file.flush()
        if self._size:
            waiting = pa.py_buffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))
            group = pa.ipc.open_stream(waiting).read_all().unify_dictionaries()
            for name in self._lists:  # values of lists are no multiple of STEP
                at = group.column_names.index(name)
                group = group.set_column(at, group.schema.field(at), group.column(at).combine_chunks())
            self._writer.write_table(group, row_group_size=self._size)
        self._file.close()

    def close(self) -> None:
        self._flush()
        self._writer.close()


def _in_one(table: pa.Table) -> pa.Table:
    return table.unify_dictionaries().combine_chunks()


def _open_tables(folder: Path, stack: ExitStack) -> dict[str, _Table]:
    folder.mkdir(parents=True, exist_ok=True)
    tables = {name: _Table(folder / f"{name}.parquet", schema) for name, schema in _SCHEMAS.items()}
    for table in tables.values():
        stack.callback(table.close)
    return tables


def _plus(batch: pa.RecordBatch, column: str, offset: int) -> pa.Array:
    return pc.add(batch.column(column), pa.scalar(offset, pa.int64()))


def _replaced(batch: pa.RecordBatch, **columns: pa.Array) -> pa.RecordBatch:
    """The same batch with some columns' values replaced."""
    arrays = [columns.get(name, batch.column(name)) for name in batch.schema.names]
    return pa.RecordBatch.from_arrays(arrays, schema=batch.schema)


def _load(folder: Path, name: str) -> pa.Table:
    file = _file(folder, name)
    try:
        return _in_one(file.read(columns=_LOADED.get(name)))
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(folder, name, error) from error


def _file(folder: Path, name: str) -> pq.ParquetFile:
    schema = _SCHEMAS[name]
    try:
        file = pq.ParquetFile(folder / f"{name}.parquet", memory_map=True)
    except (OSError, pa.ArrowInvalid) as error:
        raise _damaged(folder, name, error) from error
    if not file.schema_arrow.equals(schema):
        found = f"columns {file.schema_arrow.names}, expected {schema.names}"
        raise ValueError(f"{folder / name}.parquet: {found}; run its stage again")
    return file


def _damaged(folder: Path, name: str, error: Exception) -> ValueError:
    said = str(error).splitlines()[0]
    return ValueError(f"{folder / name}.parquet: missing or damaged ({said}); run its stage again")
