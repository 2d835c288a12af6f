"""What GRPO has to win and what it wins, on a model that the recipe has made.

    python benchmarks/grpo.py spread [--domains D ...] [--tasks 72]
    python benchmarks/grpo.py train DOMAIN [--iterations 40] [--every 10] [--grpo KEY=VALUE ...]

Both start from ``artifacts/sft`` (``--checkpoint``) and the domain's tasks in ``artifacts/generate``, as
``dvc repro sft`` leaves them.

* spread: success on held-out tasks of at most ``--horizon`` calls, greedy and at temperatures 0.7 and 1.0 over four
  tries: the mean, the share solved at least once, and the share sometimes solved and sometimes not, which is all that
  GRPO can learn from. Where the mean at the evaluation's temperature is far below what is solved once, there is
  something to sharpen; what is never solved there gives no signal.
* train: the GRPO phases of the domain's recipe with changed settings, without SFT before them; held-out success before,
  every so many iterations and after, on the same tasks with the same episode seeds, differences paired.

Adds to docs/results/grpo.json.
"""

from __future__ import annotations

import argparse
import copy
import platform
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml

from openhorizon.agent.rollout import rollout
from openhorizon.agent.trajectory import Status, read_tasks
from openhorizon.artifacts import checkpoint_dir, read_json, stage_dir, write_json
from openhorizon.bench.stats import paired_difference, wilson
from openhorizon.config import Config, load
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Task
from openhorizon.model.load import Checkpoint, load_checkpoint
from openhorizon.model.sampler import LocalPolicy, local_policy
from openhorizon.seeds import derive
from openhorizon.train.reinforcement import chosen_prompts, reinforce
from openhorizon.train.teachers import RECIPES
from openhorizon.train.teachers.phases import Grpo, dealt

OUT = Path("docs/results/grpo.json")
TRIES = {0.0: 1, 0.7: 4, 1.0: 4}  # temperature: tries a task
SHOWN = ("reward", "dead_groups", "kl", "entropy", "length", "truncated", "invalid_calls")


class Said:
    """What the loop uses of a log; keeps its curves."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def metrics(self, step: int, **values: float) -> None:
        self.rows.append({name: round(values[name], 4) for name in SHOWN if name in values})
        print(f"iteration {step + 1}: {self.rows[-1]}", flush=True)

    def tokens(self, count: int) -> None: ...

    def progress(self, done: int, total: int, note: str = "") -> None: ...


def heldout(domain: str, count: int, horizon: int) -> list[Task]:
    tasks = read_tasks(stage_dir("generate", domain) / "heldout.parquet")
    return [task for task in tasks if task.horizon <= horizon][:count]


def solved(policy: LocalPolicy, tasks: Sequence[Task], config: Config, temperature: float, seed: int) -> list[float]:
    found = rollout(DOMAINS, tasks, policy, config.budget, temperature, seed)
    return [float(t.status is Status.SOLVED) for t in found]


def spread(checkpoint: Checkpoint, config: Config, domain: str, count: int, horizon: int) -> dict[str, Any]:
    """Success by temperature."""
    policy, tasks = local_policy(checkpoint, config.machine), heldout(domain, count, horizon)
    row: dict[str, Any] = {"tasks": len(tasks), "horizon": horizon}
    for temperature, tries in TRIES.items():
        repeated = [task for task in tasks for _ in range(tries)]
        outcomes = solved(policy, repeated, config, temperature, config.seed)
        groups = [outcomes[i : i + tries] for i in range(0, len(outcomes), tries)]
        row[str(temperature)] = {
            "tries": tries,
            "mean": sum(outcomes) / len(outcomes),
            "once": sum(map(any, groups)) / len(groups),
            "mixed": sum(any(group) and not all(group) for group in groups) / len(groups),
        }
    print(domain, row, flush=True)
    return row


def train(checkpoint: Checkpoint, config: Config, domain: str, options: argparse.Namespace) -> dict[str, Any]:
    """Held-out success before and after the recipe's GRPO phases."""
    changes = {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in options.grpo)}
    recipe = config.teach[domain]
    optim = replace(recipe.grpo.optim, lr=changes.pop("lr", recipe.grpo.optim.lr))
    grpo = replace(recipe.grpo, optim=optim, validate_every=options.every, **changes)
    policy, log, seed = local_policy(checkpoint, config.machine), Said(), derive(options.seed, "grpo", domain)
    tasks = heldout(domain, options.tasks, options.horizon)
    prompts = read_tasks(stage_dir("generate", domain) / "prompts.parquet")
    began, before, states = time.perf_counter(), list[float](), list[dict[str, Any]]()

    def look(name: str) -> bool:
        now = solved(policy, tasks, config, config.evaluate.temperature, derive(seed, "heldout"))
        before.extend(now if not before else ())
        low, high = wilson(int(sum(now)), len(now))
        gain = paired_difference(now, before, 0)
        states.append(
            {"state": name, "success": sum(now) / len(now), "ci95": [low, high], "gain": list(gain)}
            | {"seconds": round(time.perf_counter() - began)}
        )
        print(states[-1], flush=True)
        return False

    look("start")
    phases = RECIPES[recipe.recipe](recipe)
    shares = dealt(options.iterations, phases, Grpo)
    for phase in phases:
        if not isinstance(phase, Grpo):
            continue
        mine = [t for t in prompts if t.horizon <= grpo.max_horizon and (not phase.worlds or t.world in phase.worlds)]
        chosen = chosen_prompts(policy, DOMAINS, mine, config.budget, grpo, phase.select, seed)
        reference = copy.deepcopy(checkpoint.model).requires_grad_(False)
        reinforce(
            policy, reference, DOMAINS, chosen, config.budget, replace(grpo, iterations=shares[phase.name]),
            phase.advantage, derive(seed, phase.name), config.machine, log, config.router,  # type: ignore[arg-type]
            lambda iteration, phase=phase: look(f"{phase.name}_{iteration}"),  # type: ignore[misc]
        )  # fmt: skip
        look(phase.name)
    settings = {"checkpoint": checkpoint.hash, "grpo": options.grpo, "seed": options.seed, "horizon": options.horizon}
    return settings | {"tasks": len(tasks), "states": states, "curves": log.rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=["spread", "train"])
    parser.add_argument("domain", nargs="?")
    parser.add_argument("--checkpoint", type=Path, default=checkpoint_dir("sft"))
    parser.add_argument("--domains", nargs="+")
    parser.add_argument("--tasks", type=int, default=72)
    parser.add_argument("--horizon", type=int, default=12)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grpo", nargs="*", default=[], help="KEY=VALUE of teach.DOMAIN.grpo, and lr")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = load()
    checkpoint = load_checkpoint(options.checkpoint, config.machine)
    domains = [options.domain] if options.domain else options.domains or list(config.domains)
    made: dict[str, Any] = {}
    for domain in domains:
        if options.part == "spread":
            made[domain] = spread(checkpoint, config, domain, options.tasks, options.horizon)
        else:
            made[domain] = train(copy.deepcopy(checkpoint), config, domain, options)
    result: dict[str, Any] = (
        read_json(OUT) if OUT.exists() else {}
    )  # read when it is written: parts may run side by side
    if options.part == "spread":
        result |= {"spread": result.get("spread", {}) | made, "checkpoint": checkpoint.hash}
    else:
        result["train"] = [*result.get("train", []), *({"domain": domain, **row} for domain, row in made.items())]
    result["machine"] = {"cpu": platform.processor() or platform.machine(), "threads": options.threads}
    write_json(OUT, result)


if __name__ == "__main__":
    main()
