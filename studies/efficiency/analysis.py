"""Success for compute: distillation with all its teachers against plain SFT that spends as much, or more.

Each distilled arm is held against the cheapest SFT arm that spends at least its FLOPs, or the dearest there is. Seconds
are of one thread each on the machine that ran the study, stages of a cell summed.
"""

from __future__ import annotations

from statistics import fmean

from openhorizon.report.claims import Claim
from openhorizon.report.figures import Figure, Panel
from openhorizon.study.results import Comparison, Evidence, claim, compare, line, success


def analyse(evidence: Evidence) -> tuple[list[Claim], dict[str, Figure]]:
    """A claim a distilled arm, and success over tokens, FLOPs and seconds."""
    present = [arm for arm in evidence.study.arms if evidence.of(arm)]
    plain, distilled = [a for a in present if a.startswith("sft")], [a for a in present if a.startswith("opd")]
    asked = {
        f"efficiency/{arm}": Comparison(arm, _equal(evidence, arm, plain), ("student", "sft")) for arm in distilled
    }
    found = compare(evidence, asked)
    control = (
        "Same base and data; teachers' training counts for the student; tasks paired; bootstrap over seeds and tasks; "
        f"Holm over {len(found)} comparisons."
    )
    claims = []
    for key, compared in found.items():
        a, b = compared.asked.a, compared.asked.b
        spent = [_mean(evidence, arm, "flops") for arm in (a, b)]
        ratio = f"{spent[1] / spent[0]:.1f} times" if spent[0] and spent[1] else "an unknown multiple of"
        recipe = f"Teachers and {a.removeprefix('opd_')} iterations of distillation"
        statement = f"{recipe} beat SFT alone that spends {ratio} their FLOPs."
        known = [(arm, success(evidence.of(arm), _model(arm)), _mean(evidence, arm, "seconds")) for arm in (a, b)]
        takeaway = "; ".join(
            f"{arm}: {mean.value:.2f}" + (f" in {seconds / 60:.0f} CPU minutes" if seconds else "")
            for arm, mean, seconds in known
            if mean
        )
        claims.append(claim(evidence, key, compared, statement, control, "efficiency", f"{takeaway}."))
    return claims, {"efficiency": _figure(evidence, plain, distilled)}


def _equal(evidence: Evidence, arm: str, plain: list[str]) -> str:
    spent = {name: _mean(evidence, name, "flops") or 0.0 for name in plain}
    enough = [name for name in plain if spent[name] >= (_mean(evidence, arm, "flops") or 0.0)]
    return min(enough, key=lambda name: spent[name]) if enough else max(plain, key=lambda name: spent[name])


def _figure(evidence: Evidence, plain: list[str], distilled: list[str]) -> Figure:
    panels = []
    for key, title, unit in (("tokens", "tokens", 1e6), ("flops", "FLOPs", 1e12), ("seconds", "CPU minutes", 60.0)):
        lines = []
        for label, colour, arms in (("SFT", "vermillion", plain), ("teachers and OPD", "blue", distilled)):
            at = [(_mean(evidence, arm, key), success(evidence.of(arm), _model(arm))) for arm in arms]
            lines.append(line(label, colour, [(round(x / unit, 2), mean) for x, mean in at if x]))
        lines = [it for it in lines if it.x]
        x_label = {"tokens": "million tokens", "flops": "10¹² FLOPs", "seconds": "CPU minutes"}[key]
        if lines:
            panels.append(Panel(f"success by {title}", x_label, tuple(lines), "points", True))
    return Figure("efficiency", "Macro success for what training took, with 95% bootstrap intervals.", tuple(panels))


def _mean(evidence: Evidence, arm: str, key: str) -> float | None:
    values = [getattr(result, key) for result in evidence.of(arm).values()]
    return None if not values or None in values else fmean(values)


def _model(arm: str) -> str:
    return "sft" if arm.startswith("sft") else "student"
