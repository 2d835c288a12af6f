"""Success on held-out tasks: by domain and horizon, by domain, macro, and paired between models.

ABORTED episodes stand in no rate (n counts what was judged) and are counted by ``episodes``, which reports show. A
slice of which nothing was judged has no row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from openhorizon.agent.trajectory import Status
from openhorizon.bench.base import Record
from openhorizon.bench.stats import macro_mean, mcnemar, wilson
from openhorizon.seeds import derive

MACRO = "macro"
TEACHERS = "teachers"  # in a macro comparison: each teacher on its own domain


@dataclass(frozen=True)
class Row:
    """Success of one model on one slice."""

    model: str
    domain: str
    horizon: int | Literal["all"]
    n: int
    success: float
    ci95: tuple[float, float]
    seed: int


@dataclass(frozen=True)
class Comparison:
    """``a`` minus ``b`` on the tasks that both were judged on; ``p`` is McNemar's."""

    a: str
    b: str
    domain: str
    n: int
    difference: float
    ci95: tuple[float, float]
    p: float


def rows(records: Sequence[Record], domains: Sequence[str]) -> list[Row]:
    """All rows of one model: macro (only where it was judged on all of ``domains``, and these are more than one), each
    domain, each horizon. Wilson intervals; for the macro row the stratified bootstrap.

    Raises:
        ValueError: records of more than one model or seed.
    """
    owners = {(record.model, record.seed) for record in records}
    if len(owners) != 1:
        raise ValueError(f"expected records of one model and seed, got {sorted(owners)}")
    (model, seed), result = owners.pop(), []
    judged = {domain: [r for r in records if r.domain == domain and r.success is not None] for domain in domains}
    if len(domains) > 1 and all(judged.values()):
        values = {domain: [float(bool(r.success)) for r in mine] for domain, mine in judged.items()}
        mean = macro_mean(values, derive(seed, "bootstrap", model))
        interval = (_round(mean.low), _round(mean.high))
        result.append(Row(model, MACRO, "all", sum(map(len, values.values())), _round(mean.value), interval, seed))
    for domain in domains:
        if judged[domain]:
            result.append(_row(model, domain, "all", judged[domain], seed))
        for horizon in sorted({record.horizon for record in judged[domain]}):
            here = [record for record in judged[domain] if record.horizon == horizon]
            result.append(_row(model, domain, horizon, here, seed))
    return result


def episodes(records: Sequence[Record]) -> dict[str, dict[str, int]]:
    """How episodes ended, by domain; every status is listed, also where there is none."""
    counts = Counter((record.domain, record.status) for record in records)
    domains = sorted({record.domain for record in records})
    return {domain: {status.value: counts[domain, status] for status in Status} for domain in domains}


def breaking(records: Sequence[Record]) -> tuple[int, float, float] | None:
    """Where unsolved episodes break: how many there are, the share that made no progress at all, and the median of
    (first failing turn - 1) / horizon. None where every judged episode was solved."""
    failed = [r for r in records if r.success is False and r.first_failing_turn is not None]
    if not failed:
        return None
    turns = [(r.first_failing_turn or 1, r.horizon) for r in failed]
    at_once = sum(turn == 1 for turn, _ in turns) / len(turns)
    return len(failed), at_once, median((turn - 1) / horizon for turn, horizon in turns)


def compare(
    a: Sequence[Record], b: Sequence[Record], domains: Sequence[str], names: tuple[str, str], seed: int
) -> list[Comparison]:
    """a - b by domain, then macro where both were judged on all of ``domains``. Pairs are formed by task id.

    Raises:
        ValueError: a task twice in one of the two.
    """
    found, result = {}, []
    for domain in domains:
        of_a, of_b = _outcomes(a, domain), _outcomes(b, domain)
        pairs = [(of_a[task], of_b[task]) for task in sorted(of_a.keys() & of_b.keys())]
        if pairs:
            found[domain] = pairs
            result.append(_compare({domain: pairs}, names, domain, seed))
    if len(domains) > 1 and len(found) == len(domains):
        result.append(_compare(found, names, MACRO, seed))
    return result


def _compare(pairs: dict[str, list[tuple[bool, bool]]], names: tuple[str, str], domain: str, seed: int) -> Comparison:
    differences = {name: [float(x) - float(y) for x, y in mine] for name, mine in pairs.items()}
    mean = macro_mean(differences, derive(seed, "bootstrap", *names, domain))
    every = [pair for mine in pairs.values() for pair in mine]
    p = mcnemar(sum(x and not y for x, y in every), sum(y and not x for x, y in every))
    interval = (_round(mean.low), _round(mean.high))
    return Comparison(*names, domain, len(every), _round(mean.value), interval, p)


def _outcomes(records: Sequence[Record], domain: str) -> dict[str, bool]:
    mine = [record for record in records if record.domain == domain]
    if len({record.task for record in mine}) != len(mine):
        raise ValueError(f"{mine[0].model}: a task of {domain} was evaluated more than once")
    return {record.task: record.success for record in mine if record.success is not None}


def _row(model: str, domain: str, horizon: int | Literal["all"], judged: Sequence[Record], seed: int) -> Row:
    solved = sum(bool(record.success) for record in judged)
    low, high = wilson(solved, len(judged))
    return Row(model, domain, horizon, len(judged), _round(solved / len(judged)), (_round(low), _round(high)), seed)


def _round(value: float) -> float:
    """Six digits: far below any interval, and the same in every file."""
    return round(value, 6)
