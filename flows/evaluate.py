"""Evaluation: each model as soon as it is there, beside whatever trains on (section 5)."""

from __future__ import annotations

from collections.abc import Mapping

from prefect.futures import PrefectFuture

from flows.job import Outcome
from flows.stage import Submit


def evaluate(
    stage: Submit,
    base: PrefectFuture[Outcome],
    sft: PrefectFuture[Outcome],
    teachers: Mapping[str, PrefectFuture[Outcome]],
    student: PrefectFuture[Outcome],
    baselines: Mapping[str, PrefectFuture[Outcome]],
) -> list[PrefectFuture[Outcome]]:
    """Held-out tasks for every model; a teacher meets those of its own domain."""
    everywhere = {"base": base, "sft": sft, "student": student}
    scores = [stage(f"evaluate@{model}", after=[it]) for model, it in everywhere.items()]
    scores += [stage(f"evaluate-teacher@{domain}", after=[it]) for domain, it in teachers.items()]
    return scores + [stage(f"evaluate-baseline@{name}", after=[it]) for name, it in baselines.items()]
