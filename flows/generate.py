"""Data: every domain's self-play at once (section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.futures import PrefectFuture

from flows.stage import Outcome, Submit


def generate(stage: Submit, domains: Sequence[str]) -> list[PrefectFuture[Outcome]]:
    """Knowledge-action graph, demonstrations, prompts and held-out tasks of each domain."""
    return [stage(f"generate@{domain}", after=[]) for domain in domains]
