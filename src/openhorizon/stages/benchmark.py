"""Stage ``benchmark``: models of this run on a public benchmark, one stage a benchmark (docs/benchmarks.md).

All models of ``benchmarks.models`` are in one stage: finished tasks are kept by the model's weights
(bench/journal.py), so that of several models only one that has changed is played again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from openhorizon.artifacts import ROOT, replace_dir, stage_dir
from openhorizon.benchmarking import Wanted, bench
from openhorizon.config import Config

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog


def run(config: Config, target: str | None, log: StageLog) -> None:
    """Write ``artifacts/evaluate/benchmark@TARGET``. Raises ``ValueError`` for an unknown benchmark."""
    name, wanted = target or "", config.benchmarks
    with replace_dir(stage_dir("benchmark", name)) as folder:
        for model in wanted.models:
            asked = Wanted(name, model, wanted.limit, wanted.temperature, wanted.turn_tokens)
            timing = ROOT / "timings" / "benchmark" / f"{name}@{model}.json"  # beside the stages', not among them
            made = bench(config, asked, folder / model, timing, lambda who, done, total: log.progress(done, total, who))
            log.tokens(made["cost"]["generated_tokens"] or 0)
            primary = made["benchmark"]["primary"]
            found = {rate["metric"]: rate["value"] for rate in made["rates"] if rate["group"] == "all"}
            log.metrics(0, **({f"{primary}@{model}": found[primary]} if primary in found else {}))
