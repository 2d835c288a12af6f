"""What in the distillation objective matters: each question's arms against the paper's, and against SFT.

An effect is the student's macro success on held-out tasks minus that of the other arm; in the rare-domain question both
arms have the imbalanced prompts, and the rare domain is looked at alone. All comparisons are one family for Holm.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from openhorizon.bench.base import Record
from openhorizon.report.claims import Claim
from openhorizon.report.figures import Figure, Panel
from openhorizon.study.results import Comparison, Evidence, claim, compare, line, success

RARE = "tool_calling"
COLOURS = ("blue", "vermillion", "green", "purple", "orange")


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
    asked = {f"objective/{it.id}/{other}": (it, other) for it in QUESTIONS for other in it.others}
    found = compare(
        evidence,
        {
            key: Comparison(it.better, other, (_model(it.better), _model(other)), _keep(it))
            for key, (it, other) in asked.items()
        },
    )
    control = (
        "Same SFT student, teachers, prompts and number of updates; tasks paired; bootstrap over seeds and tasks; "
        f"Holm over {len(found)} comparisons."
    )
    claims = []
    for key, compared in found.items():
        question, other = asked[key]
        statement = question.statement.format(other=_said(other)) + "."
        takeaway = _takeaway(question, other, compared.tested.value, compared.p)
        claims.append(claim(evidence, key, compared, statement, control, f"objective-{question.id}", takeaway))
    shown = {question.id: question for question, _ in (asked[key] for key in found)}
    return claims, {f"objective-{key}": _figure(evidence, question) for key, question in shown.items()}


def _takeaway(question: Question, other: str, effect: float, p: float) -> str:
    about = f"{question.title}: {_said(question.better)} and {_said(other)}"
    if p >= 0.05:
        return f"{about} cannot be told apart at this size; choose by cost."
    return f"{about} differ at this size: {_said(question.better if effect > 0 else other)} is ahead."


def _figure(evidence: Evidence, question: Question) -> Figure:
    """Success of each arm of a question, an arm a place on the x axis."""
    arms = [arm for arm in (question.better, *question.others) if evidence.of(arm)]
    means = [success(evidence.of(arm), _model(arm), _keep(question)) for arm in arms]
    lines = tuple(line(_said(arm), COLOURS[i], [(i + 1, means[i])]) for i, arm in enumerate(arms))
    where = f"success in {question.domain.replace('_', ' ')}" if question.domain else "macro success"
    caption = f"{question.title}: held-out {where} with 95% bootstrap intervals over seeds and tasks."
    panel = Panel(where, "", lines, "points", True, ticks=[_said(arm).replace("_", " ") for arm in arms])
    return Figure(f"objective-{question.id}", caption, (panel,))


def _keep(question: Question) -> Callable[[Record], bool]:
    return lambda record: question.domain is None or record.domain == question.domain


def _said(arm: str) -> str:
    return arm.removeprefix("rare_")


def _model(arm: str) -> str:
    return "sft" if arm == "sft" else "student"
