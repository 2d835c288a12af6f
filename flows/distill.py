"""The student: waits for every teacher, as each of its samples is supervised by one of them (section 4.3)."""

from __future__ import annotations

from collections.abc import Mapping

from prefect.futures import PrefectFuture

from flows.job import Outcome
from flows.stage import Submit


def distill(stage: Submit, teachers: Mapping[str, PrefectFuture[Outcome]]) -> PrefectFuture[Outcome]:
    """Domain-routed on-policy distillation from the SFT student."""
    return stage("distill", after=list(teachers.values()))
