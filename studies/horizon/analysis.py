"""Success against test horizon by training horizon and size, at equal tokens and at equal FLOPs.

A claim compares P trained long with another arm on held-out tasks of ``LONG`` calls and more (in smaller sizes: of more
calls than any short demonstration has twice). The headline claims, against 8P and more, hold where the difference is at
least 20 points, its Holm-adjusted p is below .05 and the two arms' intervals are apart.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from statistics import fmean, median

from openhorizon.agent.trajectory import read_tasks
from openhorizon.bench.base import Record
from openhorizon.report.claims import Claim
from openhorizon.report.figures import Figure, Panel
from openhorizon.study.results import Comparison, Evidence, Result, claim, compare, judged, line, success

LONG = 16
LEAST = 0.2  # of a headline claim
HEADLINES = ("8P_short", "16P_short", "8P_short_flops")
WORDS = {
    "P_short": "the same model trained short",
    "P_mid": "the same model trained to 6 calls",
    "P_short_padded": "the same model on short tasks padded to the length of long ones",
    "P_short_varied": "the same model on more different short tasks",
}
PANELS = {
    "training horizon, P": ("P_short", "P_mid", "P_long", "P_short_padded", "P_short_varied"),
    "size at equal tokens": ("P_long", "2P_short", "4P_short", "8P_short", "16P_short", "P_short", "2P_long"),
    "size at equal FLOPs": ("P_long", "2P_short_flops", "4P_short_flops", "8P_short_flops", "P_short"),
}
COLOURS = {  # of an arm, by how its name begins; the longest that fits
    "P_long": "blue", "P_short": "grey", "P_mid": "sky", "P_short_padded": "orange", "P_short_varied": "purple",
    "2P_short": "green", "2P_long": "sky", "4P": "orange", "8P": "vermillion", "16P": "purple",
}  # fmt: skip
MODEL = "sft"


def analyse(evidence: Evidence) -> tuple[list[Claim], dict[str, Figure]]:
    """P_long against every other arm, and one figure of all curves."""
    long, border = evidence.of("P_long"), _border(evidence)

    def far(record: Record) -> bool:
        return record.horizon >= border

    arms = [arm for arm in evidence.study.arms if arm not in ("P_long", "2P_long")]
    found = compare(evidence, {arm: Comparison("P_long", arm, (MODEL, MODEL), far) for arm in arms})
    mine, control, claims = success(long, MODEL, far), _control(evidence, border, len(found)), []
    for arm, compared in found.items():
        theirs = success(evidence.of(arm), MODEL, far)
        assert mine and theirs
        holds = judged(compared.tested.value, compared.p)
        if holds and arm in HEADLINES and not (compared.tested.value >= LEAST and mine.low > theirs.high):
            holds = False
        equal = "equal FLOPs" if arm.endswith("_flops") else "equal tokens"
        other = WORDS.get(arm, f"{arm.partition('_')[0]} trained short, at {equal}")
        least = ", by at least 20 points and intervals apart" if arm in HEADLINES else ""
        sides = f"{mine.value:.2f} [{mine.low:.2f}, {mine.high:.2f}] against {theirs.value:.2f} [{theirs.low:.2f}, "
        takeaway = (
            f"{sides}{theirs.high:.2f}] of tasks; unsolved ones break at turn {_breaks(long, far)} against "
            f"{_breaks(evidence.of(arm), far)} in the median."
        )
        statement = f"On tasks of {border} calls and more, P trained long beats {other}{least}."
        claims.append(
            claim(evidence, f"horizon/{arm}", compared, statement, control, "horizon", takeaway, holds, decided=True)
        )
    return claims, {"horizon": _figure(evidence, border)}


def _border(evidence: Evidence) -> int:
    """The horizon from which tasks count as long: LONG, or in a small size the longer half of what is tested."""
    tested = sorted({record.horizon for result in evidence.results for record in result.records[MODEL]})
    return LONG if LONG in tested else tested[len(tested) // 2]


def _control(evidence: Evidence, border: int, comparisons: int) -> str:
    """What excludes other causes, with the figures that show it."""
    result = next(iter(evidence.of("P_long").values()))
    words: dict[int, list[int]] = {}
    for path in sorted((result.folder / "artifacts" / "generate").glob("*/heldout.parquet")):
        for task in read_tasks(path):
            words.setdefault(task.horizon, []).append(len(task.prompt.split()))
    means = [fmean(lengths) for lengths in words.values()]
    short, after = evidence.of("P_short"), min((h for h in words if h > 3), default=border)
    beyond = success(short, MODEL, lambda record: record.horizon == after) if short else None
    cliff = f"P trained short solves {beyond.value:.2f} at {after} calls, just past its data; " if beyond else ""
    return (
        f"Common start at 3 calls for each size; the same number of demonstrations and of tokens (or FLOPs); prompts "
        f"have {min(means):.0f} to {max(means):.0f} words at every horizon; {cliff}positions are relative, so "
        f"offsets change nothing; tasks paired; bootstrap over seeds and tasks; Holm over {comparisons} comparisons."
    )


def _breaks(results: Mapping[int, Result], keep: Callable[[Record], bool]) -> str:
    turns = [
        record.first_failing_turn
        for result in results.values()
        for record in result.records[MODEL]
        if keep(record) and record.first_failing_turn is not None
    ]
    return f"{median(turns):.0f}" if turns else "none"


def _at(horizon: int, record: Record) -> bool:
    return record.horizon == horizon


def _figure(evidence: Evidence, border: int) -> Figure:
    """Success by test horizon, an arm a line."""
    horizons = sorted({record.horizon for result in evidence.results for record in result.records[MODEL]})
    panels = []
    for title, arms in PANELS.items():
        lines = []
        for arm in (arm for arm in arms if evidence.of(arm)):
            points = [(h, success(evidence.of(arm), MODEL, partial(_at, h))) for h in horizons]
            colour = COLOURS[max((it for it in COLOURS if arm.startswith(it)), key=len)]
            lines.append(line(arm.replace("_", " "), colour, points))
        panels.append(Panel(title, "test horizon (calls)", tuple(lines), "points", True))
    caption = "Success against test horizon, with 95% bootstrap intervals over seeds and tasks; claims are on tasks of "
    return Figure("horizon", f"{caption}{border} calls and more.", tuple(panels))
