"""What a run shows, as numbers and sentences: every sentence is computed, also one that says an effect is absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.bench.base import Record
from openhorizon.bench.heldout import MACRO, TEACHERS, Comparison, Row, compare, episodes, rows
from openhorizon.config import Config
from openhorizon.report.claims import Claim
from openhorizon.report.figures import Figure
from openhorizon.seeds import rng

SAMPLES = 2  # of each outcome and domain
_NAMES = {"base": "base", "sft": "SFT", "student": "student"}


@dataclass(frozen=True)
class Run:
    """Everything a report is made of. ``curves`` are by model, ``timings`` by stage (``teach@search``)."""

    config: Config
    commit: str  # with -dirty behind it where tracked files differ; empty without git
    machine: Mapping[str, Any]
    generate: Mapping[str, Mapping[str, Any]]
    curves: Mapping[str, Sequence[Mapping[str, float]]]
    records: Mapping[str, Sequence[Record]]
    timings: Mapping[str, Mapping[str, Any]]
    trajectories: Sequence[Trajectory]  # the student's
    # By domain and world, lengths in the base model's tokens as ``kag.describe.spread`` has them; empty without one.
    tokens: Mapping[str, Mapping[str, Mapping[str, Any]]]
    # metrics.json of each public benchmark and model, with the seconds that it took here, if it was played here
    benchmarks: Sequence[Mapping[str, Any]] = ()
    claims: Sequence[Claim] = ()  # of studies, whatever run they stood beside
    claim_figures: Mapping[str, Figure] = field(default_factory=dict)  # by the name that claims have for them


@dataclass(frozen=True)
class Sample:
    """An episode to show, with the outcome it stands for."""

    trajectory: Trajectory
    label: str


@dataclass(frozen=True)
class Verdict:
    """One claim of the recipe and whether this run bears it out; None where the run cannot tell."""

    holds: bool | None
    text: str


def models(config: Config) -> list[str]:
    """In the order of the recipe, then what its student is held against."""
    teachers, baselines = (
        [f"teacher@{name}" for name in config.domains],
        [f"baseline@{n}" for n in config.baselines.run],
    )
    return ["base", "sft", *teachers, "student", *baselines]


def stages(config: Config) -> list[str]:
    """As timings and the page name them, in the order of the recipe; the report itself is still running."""
    fan = [f"generate@{name}" for name in config.domains], [f"teach@{name}" for name in config.domains]
    others = [f"baseline@{name}" for name in config.baselines.run]
    scores = [f"evaluate@{name}" for name in models(config)] + [f"benchmark@{name}" for name in config.benchmarks.run]
    return [*fan[0], "base", "sft", *fan[1], "distill", *others, *scores]


def table(run: Run) -> list[Row]:
    """All rows of all models."""
    return [row for model in models(run.config) for row in rows(run.records[model], run.config.domains)]


def comparisons(run: Run) -> list[Comparison]:
    """Student and SFT, SFT and base, each teacher and SFT on its own domain, and student and SFT with each baseline,
    paired by task."""
    domains, seed, records = run.config.domains, run.config.seed, run.records
    found = compare(records["student"], records["sft"], domains, ("student", "sft"), seed)
    found += compare(records["sft"], records["base"], domains, ("sft", "base"), seed)
    for name in domains:
        teacher = f"teacher@{name}"
        found += compare(records[teacher], records["sft"], [name], (teacher, "sft"), seed)
    for name in (f"baseline@{name}" for name in run.config.baselines.run):
        found += compare(records["student"], records[name], domains, ("student", name), seed)
        found += compare(records[name], records["sft"], domains, (name, "sft"), seed)
    teachers = [record for name in domains for record in records[f"teacher@{name}"]]
    return found + [c for c in compare(teachers, records["sft"], domains, (TEACHERS, "sft"), seed) if c.domain == MACRO]


def results(run: Run) -> dict[str, Any]:
    """The content of results.json. A stage that was restored from the cache has no timing: nulls."""
    empty = {"seconds": None, "tokens": None, "peak_rss_mb": None}
    return {
        "profile": run.config.profile,
        "seed": run.config.seed,
        "commit": run.commit,
        "machine": dict(run.machine),
        "rows": [asdict(row) for row in table(run)],
        "comparisons": [asdict(comparison) for comparison in comparisons(run)],
        "episodes": {model: episodes(run.records[model]) for model in models(run.config)},
        "stages": [
            {"stage": name} | {key: run.timings.get(name, empty).get(key) for key in empty}
            for name in stages(run.config)
        ],
        "samples": {
            name: [{"task": it.trajectory.task.id, "label": it.label} for it in samples(run, name)]
            for name in run.config.domains
        },
        "benchmarks": [dict(found) for found in run.benchmarks],
        "decontamination": {name: run.generate[name].get("decontamination", {}) for name in run.config.domains},
    }


def samples(run: Run, domain: str) -> list[Sample]:
    """Solved and unsolved episodes of the student, drawn by the seed: nobody chose the good ones."""
    mine = [t for t in run.trajectories if t.task.domain == domain]
    draw_from, chosen = rng(run.config.seed, "report", domain), []
    for name, wanted in (("solved", (Status.SOLVED,)), ("not solved", (Status.FAILED, Status.TRUNCATED))):
        found = [t for t in mine if t.status in wanted]
        picked = draw_from.sample(found, min(SAMPLES, len(found)))
        chosen += [Sample(t, name) for t in sorted(picked, key=lambda t: (t.task.horizon, t.task.id))]
    return chosen


def verdicts(
    rows: Sequence[Row], compared: Sequence[Comparison], domains: Sequence[str], baselines: Sequence[str] = ()
) -> list[Verdict]:
    """The recipe's claims, in the order of its stages, then the student against what it is held against."""
    overall = MACRO if len(domains) > 1 else domains[0]
    at = {(row.model, row.domain): row for row in rows if row.horizon == "all"}
    pairs = {(c.a, c.b, c.domain): c for c in compared}
    found = [_beats("SFT", "sft", "base", overall, at, pairs)]
    found += [_teacher(name, at, pairs) for name in domains]
    found.append(_beats("The distilled student", "student", "sft", overall, at, pairs))
    gap = pairs.get((TEACHERS, "sft", MACRO)) or pairs.get((f"teacher@{overall}", "sft", overall))
    gain = pairs.get(("student", "sft", overall))
    if gap and gain and gap.ci95[0] > 0:
        text = f"The student recovers {gain.difference / gap.difference:.0%} of the teachers' lead over SFT"
        found.append(Verdict(gain.difference > 0, f"{text} ({gain.difference:+.3f} of {gap.difference:+.3f})."))
    elif gap:
        lead = f"{gap.difference:+.3f} {span(gap.ci95, signed=True)}"
        found.append(Verdict(None, f"The teachers have no clear lead over SFT to hand on ({lead})."))
    against = [f"baseline@{name}" for name in baselines]
    return found + [_beats("The distilled student", "student", name, overall, at, pairs) for name in against]


def _beats(
    subject: str,
    a: str,
    b: str,
    domain: str,
    at: Mapping[tuple[str, str], Row],
    pairs: Mapping[tuple[str, str, str], Comparison],
) -> Verdict:
    over, under, pair = at.get((a, domain)), at.get((b, domain)), pairs.get((a, b, domain))
    if not over or not under or not pair:
        return Verdict(None, f"{subject} cannot be compared with {_NAMES.get(b, b)}: an evaluation judged no episodes.")
    apart = over.ci95[0] > under.ci95[1] or under.ci95[0] > over.ci95[1]
    overlap = "intervals do not overlap" if apart else "intervals overlap"
    where = "macro success" if domain == MACRO else f"success on {_words(domain)}"
    name = _NAMES.get(b, b)
    figures = f"{_NAMES[a]} {rate(over)} against {name} {rate(under)} in {where}, {overlap}"
    paired = f"paired difference {pair.difference:+.3f} {span(pair.ci95, signed=True)}, {p_value(pair.p)}, n = {pair.n}"
    said = "beats" if over.success > under.success else "is worse than"
    if not apart:
        said = "is not clearly better than"
    return Verdict(said == "beats", f"{subject} {said} {name}: {figures}; {paired}.")


def _teacher(
    domain: str, at: Mapping[tuple[str, str], Row], pairs: Mapping[tuple[str, str, str], Comparison]
) -> Verdict:
    name = f"teacher@{domain}"
    teacher, sft, pair = at.get((name, domain)), at.get(("sft", domain)), pairs.get((name, "sft", domain))
    if not teacher or not sft or not pair:
        return Verdict(None, f"The {_words(domain)} teacher cannot be compared: an evaluation judged no episodes.")
    holds = teacher.success >= sft.success
    said = "is at least as good as SFT" if holds else "is worse than SFT"
    figures = f"{rate(teacher)} against {rate(sft)}"
    paired = f"paired difference {pair.difference:+.3f} {span(pair.ci95, signed=True)}, {p_value(pair.p)}"
    return Verdict(holds, f"The {_words(domain)} teacher {said} on its own domain: {figures}; {paired}.")


def rate(row: Row) -> str:
    """0.712 [0.690, 0.741]"""
    return f"{row.success:.3f} {span(row.ci95)}"


def span(interval: tuple[float, float], signed: bool = False) -> str:
    """[0.690, 0.741]"""
    sign = "+" if signed else ""
    return f"[{interval[0]:{sign}.3f}, {interval[1]:{sign}.3f}]"


def _words(domain: str) -> str:
    return domain.replace("_", " ")


def p_value(p: float) -> str:
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"
