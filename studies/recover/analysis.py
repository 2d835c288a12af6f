"""How much of the teachers' headroom distillation recovers, in two regimes, and whether a baseline does better.

Every model of a regime stands in one workspace, so all are paired by task: SFT student, teachers (each on its own
domain), distilled student, and baselines with the FLOPs of distillation. The share recovered is (student - SFT) /
(teachers - SFT); that it is at least four fifths is tested as student - SFT - 0.8 (teachers - SFT) > 0, which needs no
ratio of two uncertain numbers. A baseline that is ahead is a claim that does not hold, and the finding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from openhorizon.bench.base import Record
from openhorizon.bench.stats import Tested, holm
from openhorizon.report.claims import Claim
from openhorizon.report.figures import Figure, Panel
from openhorizon.study.results import TEACHER, Compared, Comparison, Evidence, Result, claim, contrast, line

SHARE = 0.8
DOMAINS_OF_SIX = 5 / 6  # in which the share must be reached, too
REGIMES = {
    "seen": "Where the student may see the teachers' demonstrations",
    "private": "Where the teachers' lead is theirs",
}
WARM_UP = "baseline@warm_up_first"  # another arm's student, as one more model of the regime that it is held against
COLOURS = {"sft": "grey", TEACHER: "green", "student": "blue", "baseline": "orange"}


def analyse(evidence: Evidence) -> tuple[list[Claim], dict[str, Figure]]:
    """For each regime: is there headroom, what is gained of it, and each baseline against the student."""
    evidence = replace(evidence, results=[_with_warm_up(result, evidence) for result in evidence.results])
    asked: dict[str, tuple[str, Mapping[str, float], str]] = {}
    for regime, where in REGIMES.items():
        for result in list(evidence.of(regime).values())[:1]:
            asked[f"recover/{regime}/headroom"] = (
                regime, {TEACHER: 1.0, "sft": -1.0}, f"{where}, the teachers are better than SFT."
            )  # fmt: skip
            asked[f"recover/{regime}/gain"] = (
                regime, {"student": 1.0, "sft": -1.0}, f"{where}, distillation gains on the SFT that it starts from."
            )  # fmt: skip
            asked[f"recover/{regime}/share"] = (
                regime, {"student": 1.0, "sft": SHARE - 1.0, TEACHER: -SHARE},
                f"{where}, distillation recovers {SHARE:.0%} of it and more, in macro and in five of six domains.",
            )  # fmt: skip
            for model in sorted(name for name in result.records if name.startswith("baseline@")):
                said = model.partition("@")[2].replace("_", " ")
                asked[f"recover/{regime}/{model.partition('@')[2]}"] = (
                    regime, {"student": 1.0, model: -1.0}, f"{where}, distillation beats {said} at equal extra FLOPs."
                )  # fmt: skip
    found = {key: contrast(evidence.of(regime), weights) for key, (regime, weights, _) in asked.items()}
    adjusted = holm({key: tested.p for key, (tested, _) in found.items()})
    control = (
        "Every baseline has the FLOPs that distillation spent (rollouts, scoring, updates); the same SFT student, "
        f"teachers and tasks, paired; bootstrap over seeds and tasks; Holm over {len(found)} comparisons."
    )
    claims = []
    for key, (regime, weights, statement) in asked.items():
        tested, pairs = found[key]
        compared = Compared(Comparison(regime, regime, ("student", "sft")), tested, pairs, adjusted[key])
        mine, takeaway, holds = evidence.of(regime), _levels(evidence.of(regime), weights), None
        decided = key.endswith("/share")
        if decided:
            shares = _shares(mine)
            reached = sum(share >= SHARE for share in shares.values())
            said = ", ".join(f"{name.replace('_', ' ')} {share:.0%}" for name, share in shares.items())
            takeaway = f"{takeaway} Recovered: {_share(mine):.0%} in macro ({said})."
            if adjusted[key] < 0.05:
                holds = tested.value > 0 and reached >= DOMAINS_OF_SIX * len(shares)
        claims.append(
            claim(evidence, key, compared, statement, control, f"recover-{regime}", takeaway, holds, decided=decided)
        )
    return claims, {f"recover-{regime}": _figure(evidence, regime) for regime in REGIMES if evidence.of(regime)}


def _with_warm_up(result: Result, evidence: Evidence) -> Result:
    """The student of the same regime and seed that was warmed up first is among the models, where all seeds have it."""
    plain, warm = evidence.of(result.arm), evidence.of(f"{result.arm}_warm_up")
    if plain.keys() - warm.keys():
        return result
    return replace(result, records={**result.records, WARM_UP: warm[result.seed].records["student"]})


def _levels(results: Mapping[int, Result], models: Mapping[str, float]) -> str:
    """Success of each model that is compared, on the tasks that it was judged on."""
    levels = {model: _level(results, model).value for model in models}
    return ", ".join(f"{model.partition('@')[2] or model} {value:.2f}" for model, value in levels.items()) + "."


def _level(results: Mapping[int, Result], model: str, domain: str | None = None) -> Tested:
    return contrast(results, {model: 1.0}, _of(domain))[0]


def _share(results: Mapping[int, Result], domain: str | None = None) -> float:
    """(student - SFT) / (teachers - SFT); 0 where the teachers have no lead."""
    gain = contrast(results, {"student": 1.0, "sft": -1.0}, _of(domain))[0].value
    lead = contrast(results, {TEACHER: 1.0, "sft": -1.0}, _of(domain))[0].value
    return gain / lead if lead > 0 else 0.0


def _shares(results: Mapping[int, Result]) -> dict[str, float]:
    domains = sorted({record.domain for result in results.values() for record in result.records["student"]})
    return {domain: _share(results, domain) for domain in domains}


def _figure(evidence: Evidence, regime: str) -> Figure:
    """Macro success of every model, one a place on the x axis."""
    results = evidence.of(regime)
    present = next(iter(results.values())).records
    models = ["sft", TEACHER, "student", *sorted(name for name in present if name.startswith("baseline@"))]
    kinds = {kind: [model for model in models if model.partition("@")[0] == kind] for kind in COLOURS}
    lines = tuple(
        line(kind, COLOURS[kind], [(models.index(model) + 1, _level(results, model)) for model in mine])
        for kind, mine in kinds.items()
        if mine
    )
    names = [(model.partition("@")[2] or model).replace("_", " ") for model in models]
    panel = Panel("macro success", "", lines, "points", True, ticks=names)
    return Figure(f"recover-{regime}", f"{REGIMES[regime]}: success with 95% bootstrap intervals.", (panel,))


def _of(domain: str | None) -> Callable[[Record], bool]:
    return lambda record: domain is None or record.domain == domain
