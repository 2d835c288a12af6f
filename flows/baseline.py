"""Baselines: each as soon as distillation has said what it spent, independent of each other."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.futures import PrefectFuture

from flows.job import Outcome
from flows.stage import Submit


def baseline(stage: Submit, names: Sequence[str], student: PrefectFuture[Outcome]) -> dict[str, PrefectFuture[Outcome]]:
    """Those of ``baselines.run``, by name."""
    return {name: stage(f"baseline@{name}", after=[student]) for name in names}
