"""Results of a benchmark → rates with intervals, by metric and group, and everything that was not a rate.

A metric that is 0 or 1 for every task has a Wilson interval, any other a bootstrap over tasks. What was not judged
(ABORTED, or a task that cannot be judged here) is in no rate and in ``counts``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from openhorizon.agent.player import TOO_LONG
from openhorizon.agent.talk import NONSENSE, REFUSED
from openhorizon.agent.trajectory import Status
from openhorizon.bench.public.base import Benchmark, Result, Value
from openhorizon.bench.stats import weighted_mean, wilson
from openhorizon.seeds import derive

ALL = "all"
LISTED = 20  # tasks on which a solution failed, named in a report


@dataclass(frozen=True)
class Rate:
    """One metric on one group; ``n`` tasks were judged."""

    metric: str
    group: str
    n: int
    value: float
    ci95: tuple[float, float]


def rates(benchmark: Benchmark, results: Sequence[Result], seed: int) -> list[Rate]:
    """The primary metric first, each metric on all tasks and then by group; none of a metric that nobody was judged
    by."""
    judged = [result for result in results if result.success is not None]
    names = sorted({name for result in judged for name in result.metrics}, key=lambda n: (n != benchmark.primary, n))
    groups = list(dict.fromkeys(result.group for result in judged))
    found = []
    for name in names:
        for group in (ALL, *(groups if len(groups) > 1 else ())):
            mine = [r.metrics[name] for r in judged if group in (ALL, r.group) and name in r.metrics]
            if any(value.weight > 0 for value in mine):
                found.append(_rate(name, group, mine, derive(seed, "bench", benchmark.name, name, group)))
    return found


def failures(benchmark: Benchmark, gold: Sequence[Result]) -> list[str]:
    """Tasks that the benchmark's own solution does not solve, each with the reason; with any, it is broken."""
    return [
        f"{result.task}: {result.reason}"
        for result in gold
        if result.status is not None
        and (result.success is None or result.metrics[benchmark.primary].value < benchmark.gold_score)
    ]


def counts(results: Sequence[Result]) -> dict[str, Any]:
    """How episodes ended and what went wrong in them, in numbers of tasks and of calls."""
    ended = Counter(result.status for result in results if result.status)
    aborted = Status.ABORTED
    why = Counter(r.reason.partition(" (")[0] for r in results if r.success is None and r.status is not aborted)
    return {
        "tasks": len(results),
        "judged": sum(result.success is not None for result in results),
        "not_judged": dict(sorted(why.items())),
        "ended": {status.value: ended[status] for status in Status},
        "too_long": sum(result.reason.startswith(TOO_LONG) for result in results),
        "nonsense": sum(result.reason.startswith(NONSENSE) for result in results),
        "refused": sum(result.reason.startswith(REFUSED) for result in results),
        "tool_calls": sum(result.tool_calls for result in results),
        "unreadable_calls": sum(result.unreadable_calls for result in results),
        "failed_calls": sum(result.failed_calls for result in results),
    }


def pace(results: Sequence[Result]) -> dict[str, float]:
    """Seconds of play, in sum and a task; apart from all else, since they differ from run to run."""
    seconds = [result.seconds for result in results if result.status]
    return {"seconds": round(sum(seconds), 2), "seconds_a_task": round(fmean(seconds), 3) if seconds else 0.0}


def cost(results: Sequence[Result]) -> dict[str, int | None]:
    """Tokens; None of a player that counts none."""
    played = [result for result in results if result.status]
    known = any(result.read_tokens or result.tokens for result in played)
    return {
        "read_tokens": sum(result.read_tokens for result in played) if known else None,
        "generated_tokens": sum(result.tokens for result in played) if known else None,
    }


def _rate(name: str, group: str, values: Sequence[Value], seed: int) -> Rate:
    if all(value.weight == 1 and value.value in (0, 1) for value in values):
        reached = sum(value.value == 1 for value in values)
        mean, (low, high) = reached / len(values), wilson(reached, len(values))
    else:
        mean, low, high = weighted_mean([v.value for v in values], [v.weight for v in values], seed)
    return Rate(name, group, len(values), round(mean, 6), (round(low, 6), round(high, 6)))
