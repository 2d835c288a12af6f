"""What does scoring cost beside generation? A model on public benchmarks, and in the same run the time of scorers.

    PYTHONPATH=src python benchmarks/scoring.py --model FOLDER [--limit 20] [--turn-tokens 256] [NAME …]

Scoring is ``Domain.verify`` (at an episode's end, such as BFCL's checker, which carries all calls out again) and
``Benchmark.measure``; generation is all else of a rollout: the model and the tools. Both are CPU time of one process in
one run, so that what else the machine does changes neither. Prints a table and writes docs/results/scoring.json.
"""

from __future__ import annotations

import argparse
import copy
import platform
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from openhorizon.artifacts import write_json
from openhorizon.bench.public import BENCHMARKS
from openhorizon.config import load
from openhorizon.players import open_player
from openhorizon.seeds import derive

NAMES = ("bfcl", "ifbench", "hotpotqa")


class Timed:
    """A function and the seconds that it took in sum, by the process's own clock."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *given: Any) -> Any:
        began = time.process_time()
        try:
            return self.function(*given)
        finally:
            self.seconds += time.process_time() - began


def measured(name: str, model: str, limit: int, turn_tokens: int | None) -> dict[str, Any]:
    config, benchmark = load(), BENCHMARKS[name]
    tasks = list(benchmark.tasks()[:limit])
    domain, verify, measure = copy.copy(benchmark.domain), Timed(benchmark.domain.verify), Timed(benchmark.measure)
    domain.verify = verify  # type: ignore[method-assign]
    budget = benchmark.budget if turn_tokens is None else replace(benchmark.budget, turn_tokens=turn_tokens)
    player, seeds = open_player(model, config.machine), [derive(0, "bench", name, task.id) for task in tasks]
    benchmark.measure(player.rollout({tasks[0].world: domain}, tasks[:1], seeds[:1], {tasks[0].domain: budget}, 0.7)[0])
    verify.seconds, began = 0.0, time.process_time()  # what the first task loads is no part of a task's cost
    played = player.rollout({tasks[0].world: domain}, tasks, seeds, {tasks[0].domain: budget}, 0.7)
    generation = time.process_time() - began - verify.seconds
    for episode in played:
        measure(episode)
    scoring = verify.seconds + measure.seconds
    return {
        "benchmark": name,
        "tasks": len(tasks),
        "generation_ms": 1e3 * generation / len(tasks),
        "scoring_ms": 1e3 * scoring / len(tasks),
        "share": scoring / generation,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="a checkpoint's folder, smollm2, or a model of this checkout")
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--turn-tokens", type=int)
    parser.add_argument("--out", type=Path, default=Path("docs/results/scoring.json"))
    parser.add_argument("names", metavar="NAME", nargs="*", default=NAMES)
    options = parser.parse_args()
    rows = []
    print(f"{'':14}{'tasks':>6}{'generation ms':>15}{'scoring ms':>12}{'share':>8}", flush=True)
    for name in options.names:
        row = measured(name, options.model, options.limit, options.turn_tokens)
        rows.append(row)
        print(
            f"{name:14}{row['tasks']:6}{row['generation_ms']:15.1f}{row['scoring_ms']:12.2f}{row['share']:8.2%}",
            flush=True,
        )
    about = {"model": Path(options.model).name, "turn_tokens": options.turn_tokens, "machine": platform.machine()}
    write_json(options.out, {**about, "clock": "CPU time of the process", "rows": rows})


if __name__ == "__main__":
    main()
