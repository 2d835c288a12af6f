"""Competitions made of real tables: a target, a metric, a re-split into public and private rows.

A candidate is a table with one column to predict. Its rows are drawn and split by their own seed, so that nobody can
take the original order for the split: ``train.csv`` with the target, ``test.csv`` without it, and the answers for
test.csv, which only the grader has; they are in no file of a workspace. Ids are numbers dealt after shuffling and say
nothing. Columns that only count rows, that are constant, or that are names (text with many values) are left out.

Which candidates make a sound competition is measured: see ``leaderboard.py``. A table's family (``corpora/tables.py``)
decides its split, so that competitions of training, validation and held-out tasks share no table.
"""

from __future__ import annotations

import functools
import itertools
import math
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from openhorizon.domains.base import Split, part_of
from openhorizon.domains.corpora.tables import (
    MIN_ROWS,
    Table,
    families,
    is_missing,
    is_numeric,
    load_table,
    number,
    table_names,
)
from openhorizon.domains.engineering.grading import METRICS, PROBABILITIES, check_format, grade
from openhorizon.domains.engineering.runner import Bundle, bundle

Kind = Literal["binary", "classes", "number"]

MAX_ROWS = 600  # of a competition, drawn from the table: a run of code then takes tenths of a second
TEST_SHARE = 1 / 3
MAX_CLASSES = 10
CLASS_SHARE = 0.06  # of rows, at least, for the rarest class
DISTINCT = 25  # values of a numeric target, at least
NAMES = 30  # values of a text column, at most: more are names
VALIDATION_PERCENT = 10  # of the tables that are not held out
TARGETS = 3  # columns of one table that are predicted, at most
EDITIONS = 2  # re-splits of one target
_BOOLEAN = {"TRUE": "yes", "True": "yes", "FALSE": "no", "False": "no"}  # what pandas would not read as text


@dataclass(frozen=True)
class Key:
    """Names a competition; everything about it follows from this."""

    table: str
    target: str
    metric: str
    edition: int

    @property
    def pair(self) -> tuple[str, str]:
        """What decides the split: the table's family, whatever the target."""
        return "table", families()[self.table]

    @property
    def split(self) -> Split:
        return part_of(self.pair, VALIDATION_PERCENT)

    @property
    def text(self) -> str:
        return f"{self.table}/{self.target}/{self.metric}/{self.edition}"


@dataclass(frozen=True)
class Column:
    """A feature as the brief lists it. ``missing`` counts rows of train.csv."""

    name: str
    numeric: bool
    missing: int
    values: int
    note: str


@dataclass(frozen=True)
class Competition:
    """A competition, with its private answers."""

    key: Key
    kind: Kind
    title: str
    about: str
    features: tuple[Column, ...]
    target_note: str
    classes: tuple[str, ...]  # by frequency in train.csv, () for a number
    positive: str  # the class that probabilities are of, where there are two
    public: Bundle
    train_rows: int
    ids: tuple[str, ...]
    answers: tuple[str, ...]

    def check(self, submission: str | None) -> tuple[str, list[str]]:
        """What is wrong with the submission, or ``""`` and its predictions."""
        if submission is None:
            return "no submission.csv was written", []
        return check_format(submission, self.ids, self.key.target, self.key.metric, self.classes)

    def grade(self, predictions: list[str]) -> float:
        return grade(self.key.metric, self.answers, predictions, self.positive)


@functools.cache
def tables_of(split: Split) -> tuple[str, ...]:
    return tuple(name for name in table_names() if Key(name, "", "", 0).split == split)


@functools.cache
def candidates(name: str) -> tuple[Key, ...]:
    """Every competition over one table, by the rules on size, columns and targets."""
    table, found = load_table(name), list[Key]()
    for target in _targets(table):
        kind = _kind(table.column(target))
        assert kind is not None
        found += [Key(name, target, metric, edition) for metric in METRICS[kind] for edition in range(EDITIONS)]
    return tuple(found)


def _targets(table: Table) -> list[str]:
    """The columns to predict: the last that can be, then others as their names' hash has it."""
    fitting = [column for column in table.columns if _kind(table.column(column))]
    rest = sorted(fitting[:-1], key=lambda column: random.Random(f"{table.name} {column}").random())
    return [target for target in [*fitting[-1:], *rest][:TARGETS] if len(_features(table, target)) >= 2]


def _kind(values: Sequence[str]) -> Kind | None:
    """What a column is as a target; None where it is none."""
    there = [value for value in values if not is_missing(value)]
    if len(there) < MIN_ROWS:
        return None
    counts = Counter(there)
    if 2 <= len(counts) <= MAX_CLASSES and min(counts.values()) >= CLASS_SHARE * len(there):
        if any((parsed := number(value)) is not None and parsed % 1 for value in counts):
            return None
        return "binary" if len(counts) == 2 else "classes"
    if len(counts) >= DISTINCT and is_numeric(there) and not _counts_rows(there):
        return "number"
    return None


def _counts_rows(values: Sequence[str]) -> bool:
    """Whether numbers only ever go up, or only down: an index or a date, not a measurement."""
    numbers = [float(value) for value in values if not is_missing(value)]
    pairs = list(itertools.pairwise(numbers))
    return all(a <= b for a, b in pairs) or all(a >= b for a, b in pairs)


def _features(table: Table, target: str) -> list[str]:
    kept = []
    for column in table.columns:
        values = table.column(column)
        distinct = {value for value in values if not is_missing(value)}
        numeric = is_numeric(values)
        useless = len(distinct) < 2 or (not numeric and len(distinct) > NAMES)
        counter = numeric and len(distinct) > DISTINCT and _counts_rows(values)
        if column != target and column.lower() != "id" and not useless and not counter:
            kept.append(column)
    return kept


@functools.lru_cache(maxsize=400)
def competition(key: Key) -> Competition:
    """Raises KeyError for a table that is not there."""
    table = load_table(key.table)
    features = _features(table, key.target)
    used = [table.columns.index(name) for name in (*features, key.target)]
    rows = [tuple("" if is_missing(row[i]) else _BOOLEAN.get(row[i], row[i]) for i in used) for row in table.rows]
    rows = [row for row in rows if row[-1]]
    kind = _kind(table.column(key.target))
    assert kind is not None, key
    rng = random.Random(f"{key.table} {key.target} {key.edition}")
    rows = rng.sample(rows, min(len(rows), MAX_ROWS))
    ids = [str(i) for i in rng.sample(range(1000, 1000 + 9 * len(rows)), len(rows))]
    held = math.ceil(TEST_SHARE * len(rows))
    test, train = list(zip(ids, rows, strict=True))[:held], list(zip(ids, rows, strict=True))[held:]
    counts = Counter(row[-1] for _, row in train)
    classes = tuple(sorted(counts, key=lambda name: (-counts[name], name))) if kind != "number" else ()
    positive = classes[-1] if kind == "binary" else ""
    columns = tuple(_column(table, name, i, [row for _, row in train]) for i, name in enumerate(features))
    default = _default(key.metric, [row[-1] for _, row in train], classes, positive)
    files = {
        "train.csv": _csv([("id", *features, key.target), *((i, *row) for i, row in train)]),
        "test.csv": _csv([("id", *features), *((i, *row[:-1]) for i, row in test)]),
        "sample_submission.csv": _csv([("id", key.target), *((i, default) for i, _ in test)]),
    }
    return Competition(
        key=key,
        kind=kind,
        title=table.title,
        about=table.about,
        features=columns,
        target_note=table.notes.get(key.target, ""),
        classes=classes,
        positive=positive,
        public=bundle(files),
        train_rows=len(train),
        ids=tuple(i for i, _ in test),
        answers=tuple(row[-1] for _, row in test),
    )


def _column(table: Table, name: str, at: int, train: list[tuple[str, ...]]) -> Column:
    values = [row[at] for row in train]
    there = {value for value in values if value}
    return Column(name, is_numeric(table.column(name)), values.count(""), len(there), table.notes.get(name, ""))


def _default(metric: str, targets: list[str], classes: tuple[str, ...], positive: str) -> str:
    """The constant that sample_submission.csv predicts."""
    if metric in PROBABILITIES:
        return f"{targets.count(positive) / len(targets):.4f}"
    if classes:
        return classes[0]
    return f"{sum(map(float, targets)) / len(targets):.4g}"


def _csv(rows: list[tuple[str, ...]]) -> bytes:
    def quoted(value: str) -> str:
        return '"' + value.replace('"', '""') + '"' if any(mark in value for mark in ',"\n') else value

    return "".join(",".join(quoted(value) for value in row) + "\n" for row in rows).encode()
