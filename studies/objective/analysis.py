"""What in the distillation objective matters: each question's arms against the paper's, and against SFT.

Every question has a family of comparisons of its own; p values are Holm's within all of them together. An effect is the
student's macro success on held-out tasks minus that of the paper's objective; in the rare-domain questions both arms
have the imbalanced prompts, and the rare domain is looked at alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from openhorizon.bench.base import Record
from openhorizon.bench.stats import holm
from openhorizon.report.claims import Claim
from openhorizon.report.figures import Figure, Line, Panel
from openhorizon.study.results import Evidence, difference, judged, success, total

RARE = "tool_calling"


@dataclass(frozen=True)
class Question:
    """``better`` against each of ``others``: the claim is that it is."""

    id: str
    title: str
    better: str
    others: tuple[str, ...]
    statement: str  # of one comparison; {other} is its arm
    domain: str | None = None  # all, or one


QUESTIONS = (
    Question("gain", "distilled or not", "paper", ("sft",), "Distillation improves on the SFT student it starts from"),
    Question("k", "tokens of the support", "paper", ("k4", "k16"), "k = 64 is better than {other}"),
    Question(
        "support_loss", "support loss", "paper", ("gen_kl", "tail", "full", "sampled"), "SVA is better than {other}"
    ),
    Question(
        "routing", "routing", "paper", ("mixture", "shuffled", "merged"), "Hard routing is better than {other} teachers"
    ),
    Question(
        "aggregation", f"aggregation, {RARE} 1:10", "rare_domain", ("rare_token", "rare_dn_sigma"),
        "Where a domain has a tenth of the prompts, the mean by domain serves it better than {other}", RARE,
    ),
    Question(
        "on_policy", "the student's share", "paper", ("half_policy", "off_policy"),
        "The student's own rollouts alone are better than {other}",
    ),
    Question("curriculum", "turn curriculum", "paper", ("curriculum",), "No curriculum of turns is better than one"),
)  # fmt: skip


def analyse(evidence: Evidence) -> tuple[list[Claim], dict[str, Figure]]:
    """A claim a comparison and a figure a question, for the arms that this size has."""
    compared = {
        f"objective/{question.id}/{other}": (question, other)
        for question in QUESTIONS
        for other in question.others
        if evidence.of(question.better) and evidence.of(other)
    }
    found = {
        key: difference(
            evidence.of(question.better), evidence.of(other), (_model(question.better), _model(other)), _keep(question)
        )
        for key, (question, other) in compared.items()
    }
    adjusted = holm({key: tested.p for key, (tested, _) in found.items()})
    claims = []
    for key, (question, other) in compared.items():
        tested, pairs = found[key]
        cells = [*evidence.of(question.better).values(), *evidence.of(other).values()]
        holds = judged(tested.value, adjusted[key])
        claims.append(
            Claim(
                id=key,
                statement=question.statement.format(other=other.removeprefix("rare_")) + ".",
                paper_section=evidence.study.paper_section,
                holds=holds,
                effect=round(tested.value, 6),
                ci95=(round(tested.low, 6), round(tested.high, 6)),
                p=round(adjusted[key], 6),
                seeds=len(evidence.of(question.better)),
                tasks=pairs,
                tokens=total(cells, "tokens"),
                flops=total(cells, "flops"),
                control="Same SFT student, teachers, prompts and number of updates; tasks paired; bootstrap over seeds "
                f"and tasks; Holm over {len(compared)} comparisons.",
                figure=f"reports/studies/objective-{question.id}.svg",
                takeaway=_takeaway(question, other, holds),
                study=evidence.study.name,
                profile=evidence.profile,
                commit=evidence.commit,
            )
        )
    shown = {question.id: question for question, _ in compared.values()}
    return claims, {f"objective-{key}": _figure(evidence, question) for key, question in shown.items()}


def _takeaway(question: Question, other: str, holds: bool | None) -> str:
    about = f"{question.title}: {question.better.removeprefix('rare_')} and {other.removeprefix('rare_')}"
    if holds is None:
        return f"{about} cannot be told apart at this size; choose by cost."
    return f"{about} differ at this size: {(question.better if holds else other).removeprefix('rare_')} is ahead."


def _figure(evidence: Evidence, question: Question) -> Figure:
    """Success of each arm of a question, an arm a place on the x axis."""
    lines = []
    arms = [arm for arm in (question.better, *question.others) if evidence.of(arm)]
    for i, arm in enumerate(arms):
        mean = success(evidence.of(arm), _model(arm), _keep(question))
        if mean:
            colour = "blue" if arm == question.better else ("vermillion", "green", "purple", "orange")[i - 1]
            label = arm.removeprefix("rare_")
            lines.append(Line(label, colour, [i + 1], [mean.value], [mean.low], [mean.high]))
    where = f"success in {question.domain.replace('_', ' ')}" if question.domain else "macro success"
    caption = f"{question.title}: held-out {where} with 95% bootstrap intervals over seeds and tasks."
    panel = Panel(where, "arm, in the legend's order", tuple(lines), "points", True)
    return Figure(f"objective-{question.id}", caption, (panel,))


def _keep(question: Question) -> Callable[[Record], bool]:
    def keep(record: Record) -> bool:
        return question.domain is None or record.domain == question.domain

    return keep


def _model(arm: str) -> str:
    return "sft" if arm == "sft" else "student"
