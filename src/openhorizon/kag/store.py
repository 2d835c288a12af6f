"""A knowledge-action graph on disk: three Parquet tables, read back equal.

nodes.parquet    id, kind, text
edges.parquet    kind, source, target (node ids), label
records.parquet  trajectory, step, state (list of node ids), action (node id), observation (node id or null),
                 verdict (true, false or null: no verifier fired), abilities (list of names)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openhorizon.kag.graph import Edge, Graph, Node, Record

_LIST = pa.list_(pa.string())
_SCHEMAS = {
    "nodes": pa.schema([("id", pa.string()), ("kind", pa.string()), ("text", pa.string())]),
    "edges": pa.schema([(name, pa.string()) for name in ("kind", "source", "target", "label")]),
    "records": pa.schema(
        [
            ("trajectory", pa.string()),
            ("step", pa.int32()),
            ("state", _LIST),
            ("action", pa.string()),
            ("observation", pa.string()),
            ("verdict", pa.bool_()),
            ("abilities", _LIST),
        ]
    ),
}


def write_graph(folder: Path, graph: Graph) -> None:
    """Write the three tables into ``folder``, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder, "nodes", graph.nodes)
    _write(folder, "edges", graph.edges)
    _write(folder, "records", graph.records)


def read_graph(folder: Path) -> Graph:
    """Raises ``ValueError`` with the path where a table is missing, truncated or of another schema."""
    nodes = tuple(Node(**row) for row in _read(folder, "nodes"))
    edges = tuple(Edge(**row) for row in _read(folder, "edges"))
    records = tuple(
        Record(**{**row, "state": tuple(row["state"]), "abilities": tuple(row["abilities"])})
        for row in _read(folder, "records")
    )
    return Graph(nodes, edges, records)


def _write(folder: Path, name: str, rows: Iterable[Node] | Iterable[Edge] | Iterable[Record]) -> None:
    items, schema = list(rows), _SCHEMAS[name]
    columns = [pa.array([getattr(item, field.name) for item in items], type=field.type) for field in schema]
    pq.write_table(pa.Table.from_arrays(columns, schema=schema), folder / f"{name}.parquet", compression="zstd")


def _read(folder: Path, name: str) -> list[dict[str, Any]]:
    path = folder / f"{name}.parquet"
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValueError(f"{path}: missing or damaged ({str(error).splitlines()[0]}); run its stage again") from error
    if not table.schema.equals(_SCHEMAS[name]):
        raise ValueError(f"{path}: columns {table.schema.names}, expected {_SCHEMAS[name].names}; run its stage again")
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
