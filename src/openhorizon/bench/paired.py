"""Two evaluations of the same tasks, task by task: rates, paired tests, and the tasks that one side alone solved.

Pairs are formed by task id. What was not judged on either side (ABORTED, or not to be judged there) is in no pair and
is counted. Rates here are over the pairs, so that a difference is that of its two rates.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from openhorizon.bench.base import Record
from openhorizon.bench.heldout import Comparison, compare
from openhorizon.bench.stats import holm, mcnemar, paired_difference
from openhorizon.seeds import derive

NAMED = 3  # tasks that a refusal names


@dataclass(frozen=True)
class Line:
    """One row of the comparison: success of both on the same tasks. ``adjusted`` is Holm's p among the domains."""

    domain: str
    horizon: int | Literal["all"]
    n: int
    a: float
    b: float
    difference: float
    ci95: tuple[float, float]
    p: float
    adjusted: float | None


@dataclass(frozen=True)
class Pair:
    """One task with both records."""

    a: Record
    b: Record

    @property
    def judged(self) -> bool:
        return self.a.success is not None and self.b.success is not None


@dataclass(frozen=True)
class Paired:
    """The whole comparison; ``won`` are tasks that only a solved, ``lost`` those that only b did."""

    lines: list[Line]
    pairs: list[Pair]

    @property
    def won(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.judged and pair.a.success and not pair.b.success]

    @property
    def lost(self) -> list[Pair]:
        return [pair for pair in self.pairs if pair.judged and pair.b.success and not pair.a.success]

    @property
    def unjudged(self) -> tuple[int, int]:
        """Tasks that a, and that b, was not judged on."""
        return sum(p.a.success is None for p in self.pairs), sum(p.b.success is None for p in self.pairs)


def paired(a: Sequence[Record], b: Sequence[Record], seed: int) -> Paired:
    """The comparison of a with b.

    Raises:
        ValueError: not the same tasks (the message has the numbers), a task twice in one of the two, or no task that
            both were judged on.
    """
    require_same_tasks(a, b)
    of_b = {_key(record): record for record in b}
    pairs = [Pair(record, of_b[_key(record)]) for record in a]
    judged = [pair for pair in pairs if pair.judged]
    if not judged:
        raise ValueError(f"compare: of {len(pairs)} tasks none was judged on both sides")
    domains = list(dict.fromkeys(pair.a.domain for pair in judged))
    lines = _by_domain(judged, domains, seed)
    horizons = sorted({pair.a.horizon for pair in judged})
    if len(horizons) > 1:
        lines += [_at(h, [pair for pair in judged if pair.a.horizon == h], seed) for h in horizons]
    return Paired(lines, pairs)


def require_same_tasks(a: Sequence[Record], b: Sequence[Record]) -> None:
    """Raises ``ValueError`` with the numbers where the two are not about the same tasks."""
    for side, records in (("A", a), ("B", b)):
        if len({_key(record) for record in records}) != len(records):
            raise ValueError(f"compare: a task is in {side} more than once")
    keys_a, keys_b = {_key(record) for record in a}, {_key(record) for record in b}
    if keys_a == keys_b:
        return
    said = [f"{len(keys_a)} in A, {len(keys_b)} in B, {len(keys_a & keys_b)} in both"]
    for side, only in (("A", keys_a - keys_b), ("B", keys_b - keys_a)):
        if only:
            named = ", ".join("/".join(key) for key in sorted(only)[:NAMED])
            said.append(f"{len(only)} in {side} alone ({named}{', …' if len(only) > NAMED else ''})")
    shared = sorted({domain for domain, _ in keys_a} & {domain for domain, _ in keys_b})
    hint = f"; --domain takes one of {', '.join(shared)}" if shared else ""
    raise ValueError(f"compare: not the same tasks: {'; '.join(said)}{hint}")


def _by_domain(judged: Sequence[Pair], domains: Sequence[str], seed: int) -> list[Line]:
    """Macro first, then each domain."""
    both = [[replace(pair.a, model="a") for pair in judged], [replace(pair.b, model="b") for pair in judged]]
    found = compare(both[0], both[1], domains, ("a", "b"), seed)
    adjusted = holm({it.domain: it.p for it in found if it.domain in domains}) if len(domains) > 1 else {}
    macro = [_line(it, judged, domains, None) for it in found if it.domain not in domains]
    return macro + [_line(it, judged, [it.domain], adjusted.get(it.domain)) for it in found if it.domain in domains]


def _line(found: Comparison, judged: Sequence[Pair], domains: Sequence[str], adjusted: float | None) -> Line:
    """With both rates: of one domain, or the mean over domains."""
    of = [[pair for pair in judged if pair.a.domain == domain] for domain in domains]
    a = sum(sum(bool(pair.a.success) for pair in mine) / len(mine) for mine in of) / len(of)
    b = sum(sum(bool(pair.b.success) for pair in mine) / len(mine) for mine in of) / len(of)
    return Line(found.domain, "all", found.n, a, b, found.difference, found.ci95, found.p, adjusted)


def _at(horizon: int, mine: Sequence[Pair], seed: int) -> Line:
    """One horizon, all domains together."""
    a, b = ([float(bool(record.success)) for record in side] for side in zip(*((p.a, p.b) for p in mine), strict=True))
    mean = paired_difference(a, b, derive(seed, "bootstrap", "horizon", horizon))
    p = mcnemar(sum(x > y for x, y in zip(a, b, strict=True)), sum(y > x for x, y in zip(a, b, strict=True)))
    interval = (round(mean.low, 6), round(mean.high, 6))
    return Line(
        "all", horizon, len(mine), sum(a) / len(a), sum(b) / len(b), round(mean.value, 6), interval, p, None
    )  # fmt: skip


def _key(record: Record) -> tuple[str, str]:
    return record.domain, record.task
