"""``openhorizon compare A B``: two evaluations of the same tasks, as a table, a page and a file of numbers.

A side is

* a model of this checkout that was evaluated: ``student``, ``teacher@search``, ``baseline@seqkd``;
* a folder with ``records.parquet``: ``artifacts/evaluate/MODEL`` of any checkout, ``reports/evaluate/NAME``,
  ``reports/bench/NAME/MODEL``; or the records' file itself;
* ``RUN#MODEL``: the records that the MLflow run of a reproduction keeps (``tracking/``).

Episodes are shown where ``trajectories.parquet`` lies beside the records.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openhorizon.agent.trajectory import Trajectory, iter_trajectories
from openhorizon.artifacts import replace_dir, require, stage_dir, write_json, write_text
from openhorizon.bench.base import Record, read_records
from openhorizon.bench.evaluation import RECORDS, TRAJECTORIES
from openhorizon.bench.paired import Pair, Paired, paired
from openhorizon.report.comparison import Side, episode_page, index_page
from openhorizon.report.results import p_value, span

_RUN = re.compile(r"(?P<run>[0-9a-f]{32})#(?P<model>.+)")
PAGES = 200  # tasks won, and lost, whose episodes have a page each


@dataclass(frozen=True)
class Evaluated:
    """One side: its records, and where its episodes lie, if they do."""

    reference: str
    records: list[Record]
    trajectories: Path | None

    @property
    def model(self) -> str:
        return self.records[0].model


def read_side(reference: str, domain: str | None = None) -> Evaluated:
    """The evaluation that ``reference`` names, of ``domain`` alone where one is given.

    Raises:
        FileNotFoundError, ValueError: nothing of this name, damaged records, or records of several models or seeds.
    """
    found = _RUN.fullmatch(reference)
    if found:
        from openhorizon.tracking import Store

        with tempfile.TemporaryDirectory() as folder:
            path = Store(Path()).records(found["run"], found["model"], Path(folder))
            return _side(reference, path, None, domain)
    named = Path(reference)
    folder_of = named if named.exists() else stage_dir("evaluate", reference)
    path = folder_of / RECORDS if folder_of.is_dir() else folder_of
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: missing; A and B are evaluated models of this checkout (`openhorizon evaluate`, "
            "`make reproduce`), folders with records.parquet, or RUN#MODEL of an MLflow run"
        )
    beside = path.parent / TRAJECTORIES
    return _side(reference, path, beside if beside.is_file() else None, domain)


def compare(a: Evaluated, b: Evaluated, seed: int, out: Path) -> Paired:
    """Write ``out`` (index.html, compare.json, tasks/) and return the comparison. Raises what ``paired`` does."""
    found = paired(a.records, b.records, seed)
    sides = _named(a, b)
    shown = [*found.won[:PAGES], *found.lost[:PAGES]]
    episodes = [_episodes(side.trajectories, {pair.a.task for pair in shown}) for side in (a, b)]
    with replace_dir(out) as folder:
        (folder / "tasks").mkdir()
        links = dict[str, str]()
        for i, pair in enumerate(shown):
            played = [it.get(pair.a.task) for it in episodes]
            if any(played):
                links[pair.a.task] = f"tasks/{i:04d}.html"
                write_text(folder / links[pair.a.task], episode_page(pair, sides, played))
        write_text(folder / "index.html", index_page(found, sides, links))
        write_json(folder / "compare.json", _numbers(found, a, b, links))
    return found


def table(found: Paired, a: Evaluated, b: Evaluated) -> Any:
    """For a terminal."""
    from rich.table import Table

    sides, shown = _named(a, b), Table(title="success on the same tasks", title_justify="left")
    shown.add_column("tasks")
    for column in ("n", sides[0].name, sides[1].name, "difference", "95%", "McNemar", "Holm"):
        shown.add_column(column, justify="right")
    for line in found.lines:
        where = line.domain if line.horizon == "all" else f"horizon {line.horizon}"
        rates = (f"{line.a:.3f}", f"{line.b:.3f}", f"{line.difference:+.3f}", span(line.ci95, True))
        adjusted = "–" if line.adjusted is None else p_value(line.adjusted)
        shown.add_row(where, str(line.n), *rates, p_value(line.p), adjusted)
    return shown


def _side(reference: str, path: Path, trajectories: Path | None, domain: str | None) -> Evaluated:
    records = [record for record in read_records(require(path)) if domain in (None, record.domain)]
    if not records:
        raise ValueError(f"{reference}: no records{f' of domain {domain!r}' if domain else ''}")
    owners = {(record.model, record.seed) for record in records}
    if len(owners) > 1:
        raise ValueError(f"{reference}: records of more than one model or seed: {sorted(owners)}")
    return Evaluated(reference, records, trajectories)


def _named(a: Evaluated, b: Evaluated) -> tuple[Side, Side]:
    """Names to tell them apart by: the models', or what the user wrote where these are the same."""
    same = a.model == b.model
    return tuple(Side(it.reference if same else it.model, it.reference) for it in (a, b))  # type: ignore[return-value]


def _episodes(path: Path | None, wanted: set[str]) -> Mapping[str, Trajectory]:
    """Those of ``wanted`` by task, read one by one: a file may be larger than memory."""
    return {it.task.id: it for it in iter_trajectories(path) if it.task.id in wanted} if path else {}


def _numbers(found: Paired, a: Evaluated, b: Evaluated, links: Mapping[str, str]) -> dict[str, Any]:
    def told(pair: Pair) -> dict[str, Any]:
        return {
            "domain": pair.a.domain,
            "task": pair.a.task,
            "horizon": pair.a.horizon,
            "a": {"status": pair.a.status.value, "reason": pair.a.reason, "answer": pair.a.answer},
            "b": {"status": pair.b.status.value, "reason": pair.b.reason, "answer": pair.b.answer},
            "page": links.get(pair.a.task),
        }

    unjudged = found.unjudged
    return {
        "a": {"reference": a.reference, "model": a.model, "unjudged": unjudged[0]},
        "b": {"reference": b.reference, "model": b.model, "unjudged": unjudged[1]},
        "lines": [asdict(line) for line in found.lines],
        "won": [told(pair) for pair in found.won],
        "lost": [told(pair) for pair in found.lost],
    }
