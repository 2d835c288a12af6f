"""Teachers: one a domain, independent of each other (section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

from prefect.futures import PrefectFuture

from flows.job import Outcome
from flows.stage import Submit


def teach(
    stage: Submit, domains: Sequence[str], after: Sequence[PrefectFuture[Outcome]]
) -> dict[str, PrefectFuture[Outcome]]:
    """SFT, then GRPO, by domain."""
    return {domain: stage(f"teach@{domain}", after=after) for domain in domains}
