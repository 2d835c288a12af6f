"""How good `openhorizon plan` is: predicted against measured seconds of a finished run, and what episodes measure.

    python benchmarks/forecast.py compare [--results docs/results/laptop.json]
    python benchmarks/forecast.py lengths [--count 300]

* compare: each stage of the laptop profile, predicted from the run's own rates of `base`, `sft`, `generate` and
  `evaluate@sft`, and measured; then the sums. Teachers and distillation are what is predicted.
* lengths: tokens of a demonstration as fixed + per_call * calls, by least squares, in the tokens of artifacts/base.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from openhorizon import profiles
from openhorizon.agent.compaction import render_contexts
from openhorizon.agent.render import Renderer
from openhorizon.agent.trajectory import read_trajectories
from openhorizon.artifacts import checkpoint_dir, read_json, stage_dir
from openhorizon.config import load
from openhorizon.domains import DOMAINS
from openhorizon.forecast.table import plan


def compare(results: Path) -> None:
    made = plan(profiles.settings("laptop", Path()), "cpu", "laptop", None, Path())
    measured = {row["stage"]: row["seconds"] for row in read_json(results)["stages"]}
    print(f"{'stage':36}{'predicted':>10}{'measured':>10}{'ratio':>7}")
    for cost in made.made:
        seconds = measured[cost.stage]
        print(f"{cost.stage:36}{cost.seconds:10.1f}{seconds:10.1f}{cost.seconds / seconds:7.2f}")
    predicted, whole = sum(cost.seconds for cost in made.made), sum(measured[cost.stage] for cost in made.made)
    print(f"{'sum':36}{predicted:10.1f}{whole:10.1f}{predicted / whole:7.2f}")


def lengths(count: int) -> None:
    from transformers import AutoTokenizer

    config = load()
    renderer = Renderer(AutoTokenizer.from_pretrained(checkpoint_dir("base")))
    for name in config.domains:
        calls, tokens, written = [], [], 0
        for trajectory in read_trajectories(stage_dir("generate", name) / "demonstrations.parquet")[:count]:
            contexts = render_contexts(renderer, DOMAINS, trajectory, config.model.max_tokens)
            calls.append(trajectory.task.horizon)
            tokens.append(sum(len(context.ids) for context in contexts))
            written += sum(sum(context.loss_mask) for context in contexts)
        design = np.stack([np.ones(len(calls)), calls], axis=1)
        fixed, per_call = np.linalg.lstsq(design, np.array(tokens, float), rcond=None)[0]
        share = written / sum(tokens)
        print(f"{name}: {{fixed: {fixed:.1f}, per_call: {per_call:.1f}, written: {share:.2f}}}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=["compare", "lengths"])
    parser.add_argument("--results", type=Path, default=Path("docs/results/laptop.json"))
    parser.add_argument("--count", type=int, default=300)
    options = parser.parse_args()
    if options.part == "compare":
        compare(options.results)
    else:
        lengths(options.count)


if __name__ == "__main__":
    main()
