"""Competitions cut down for the short-text world: a few columns under short names, and one-line programs over them."""

from __future__ import annotations

import csv
import functools
import io
import json
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from itertools import combinations
from typing import Any

from openhorizon.domains.base import Split
from openhorizon.domains.corpora.tables import families, table_names
from openhorizon.domains.engineering.cache import remembered
from openhorizon.domains.engineering.competitions import Key, candidates, competition
from openhorizon.domains.engineering.grading import check_format, grade
from openhorizon.domains.engineering.lab import MODELS, lab, program, programs
from openhorizon.domains.engineering.leaderboard import measure
from openhorizon.domains.engineering.runner import Bundle, Run, bundle, run_python

COLUMNS = 4  # features of a table
LETTERS = 8  # of a column's name


def _read() -> tuple[tuple[str, str], ...]:
    text = resources.files(__package__).joinpath("small.csv").read_text(encoding="utf-8")
    return tuple((row["table"], row["target"]) for row in csv.DictReader(text.splitlines()))


COMPETITIONS = _read()  # (table, target), what ``sound`` finds


@dataclass(frozen=True, eq=False)
class Small:
    """A competition in short: columns cut and renamed."""

    name: str
    target: str
    kind: str  # label or number
    columns: tuple[str, ...]
    public: Bundle
    ids: tuple[str, ...]
    answers: tuple[str, ...]
    classes: tuple[str, ...]
    pair: tuple[str, str]

    @property
    def metric(self) -> str:
        return "accuracy" if self.kind == "label" else "error"

    def run(self, code: str) -> Run:
        """Code that a plan may ask for was run once on this machine, all of it together; other code runs now."""
        return _planned(self).get(code) or run_python(self.public, program(code))

    def beats(self, score: str, other: str) -> bool:
        return int(score) > int(other) if self.kind == "label" else int(score) < int(other)


@functools.lru_cache(maxsize=500)
def _planned(small: Small) -> Mapping[str, Run]:
    shown = [f"show({column!r})" for column in (small.target, *small.columns)]
    fitted = [f"fit('{spec}')" for spec in ("Mean", *specs(small), *map(misspelled, specs(small)))]
    codes = [*fitted, *shown]

    def run_all() -> list[list[Any]]:
        run = run_python(small.public, programs(codes))
        if not run.ok or run.submission is None:
            raise ValueError(f"engineering: the programs over {small.name} did not run: {run.output}")
        results: list[list[Any]] = json.loads(run.submission)
        return results

    results = remembered([small.public.digest, programs(codes)], run_all)
    return {code: Run(*result) for code, result in zip(codes, results, strict=True)}


@functools.lru_cache(maxsize=5000)
def private(small: Small, submission: str | None) -> tuple[str, float]:
    """What is wrong with a submission, or ``""`` with its private score; higher is better."""
    metric = "accuracy" if small.kind == "label" else "rmse"
    problem, predictions = check_format(submission or "", small.ids, small.target, metric, small.classes)
    if problem:
        return problem, 0.0
    score = grade(metric, small.answers, predictions, "")
    return "", score if small.kind == "label" else -score


@functools.lru_cache(maxsize=500)
def specs(small: Small) -> tuple[str, ...]:
    """What code may fit: a model and two columns; nine for each table, so that few programs are run."""
    pairs = list(combinations(small.columns, 2))
    chosen = random.Random(f"{small.name} {small.target}").sample(pairs, min(3, len(pairs)))
    return tuple(f"{model} {a} {b}" for model in MODELS[1:] for a, b in chosen)


def misspelled(spec: str) -> str:
    """The last column with its last letter twice."""
    return spec + spec[-1]


@functools.cache
def of_split(split: Split) -> tuple[tuple[str, str], ...]:
    return tuple(chosen for chosen in COMPETITIONS if Key(*chosen, "", 0).split == split)


def sound() -> Iterator[tuple[str, str]]:
    """Of each family of tables the first competition that is sound by the measured rule (``leaderboard.py``), has names
    that can be short, and a program that beats the constant. Runs programs over some 300 candidates: minutes."""
    found = set[str]()
    for key in (key for name in table_names() for key in candidates(name)):
        family = families()[key.table]
        if family in found or key.edition or key.metric not in ("accuracy", "rmse"):
            continue
        names = [feature.name for feature in competition(key).features]
        named = shortened([key.target, *names])
        if len(named) <= COLUMNS or key.target not in named.values() or measure(key).problem:
            continue
        small = small_competition(key.table, key.target)
        constant = small.run("fit('Mean')").output
        if any(small.beats(small.run(f"fit('{spec}')").output, constant) for spec in specs(small)):
            found.add(family)
            yield key.table, key.target


def shortened(columns: Iterable[str]) -> dict[str, str]:
    """Columns by their short names; without those whose name is too short, an earlier one's, or a model's."""
    named: dict[str, str] = {}
    for column in columns:
        short = re.sub(r"[^A-Za-z]", "", column)[:LETTERS].capitalize()
        if len(short) > 1 and short not in (*named, *MODELS):
            named[short] = column
    return named


@functools.cache
def small_competition(table: str, target: str) -> Small:
    """The competition over ``target``, its columns cut to the first ``COLUMNS`` under short names."""
    full = competition(Key(table, target, "", 0))
    named = shortened([target, *(feature.name for feature in full.features)])
    short_target, *columns = list(named)[: COLUMNS + 1]
    files = {}
    for file in ("train.csv", "test.csv"):
        rows = list(csv.DictReader(io.StringIO(full.public.files[file].decode())))
        kept = [*columns, short_target] if file == "train.csv" else columns
        lines = [["id", *kept], *([row["id"], *(row[named[short]] for short in kept)] for row in rows)]
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows(lines)
        files[file] = out.getvalue().encode()
    kind = "number" if full.kind == "number" else "label"
    return Small(
        name=re.sub(r"[^A-Za-z]", "", table.partition("/")[2])[:LETTERS].capitalize(),
        target=short_target,
        kind=kind,
        columns=tuple(columns),
        public=bundle({**files, "lab.py": lab(kind)}),
        ids=full.ids,
        answers=full.answers,
        classes=full.classes,
        pair=full.key.pair,
    )
