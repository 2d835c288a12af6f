"""What an iteration of distillation spends on rollout, scoring and update, and what is saved of each.

    python benchmarks/distill_scale.py [--tokens 300000] [--iterations 4] [--rounds 3]

One small student, trained shortly in three worlds with short text, and three teachers of its size (the student, moved:
what they say is of no interest here). Side by side in one run, a round at a time, wall clock and CPU time, one thread:

    staleness   the same distillation with rollouts beside training (s = 1) and without (s = 0)
    teachers    one batch of samples scored with teachers that are loaded when they are needed: sorted, as
                ``train/router.py`` does, against in the order in which samples come
    cache       the same batch scored for a second objective by ``train/score_cache.py``, against the first

Writes docs/results/distill_scale.json.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import os
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from decode import Timed, compared, said, seconds
from student import Said, keep, trained
from trl_peers import tasks_of

from openhorizon.agent.rollout import rollout
from openhorizon.agent.trajectory import Trajectory
from openhorizon.artifacts import write_json
from openhorizon.config import Config, load
from openhorizon.domains import DOMAINS
from openhorizon.model.load import Checkpoint, Teacher, load_checkpoint, load_teacher
from openhorizon.model.sampler import local_policy
from openhorizon.train.distillation import distil
from openhorizon.train.objectives import wanted
from openhorizon.train.router import Router
from openhorizon.train.score_cache import ScoreCache
from openhorizon.train.scores import score

OUT = Path("docs/results/distill_scale.json")
NAMES, HORIZONS, PROMPTS = ("search", "tool_calling", "instruction"), (1, 2, 3, 4), 8


class Timings(Said):
    """Keeps the seconds of every iteration."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def timing(self, step: int, **values: float) -> None:
        self.rows.append(values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=300_000, help="of the student's training")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = load()
    config = replace(config, distill=replace(config.distill, iterations=options.iterations, prompts=PROMPTS))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keep(trained(config, NAMES, HORIZONS, 100, options.tokens), folder / "student")
        for i, domain in enumerate(NAMES):
            keep(moved(load_checkpoint(folder / "student", config.machine), i), folder / domain)
        rows = [overlap(config, folder, options.rounds), *scoring(config, folder, options.rounds)]
    machine = {"cpu": platform.processor() or platform.machine(), "cores": os.cpu_count(), "threads": 1}
    write_json(OUT, {"rows": rows, "machine": machine, "iterations": options.iterations, "prompts": PROMPTS})


def moved(student: Checkpoint, seed: int) -> Checkpoint:
    """Another model of the same size."""
    torch.manual_seed(seed)
    for parameter in student.model.parameters():
        parameter.data += 0.02 * parameter.std().nan_to_num() * torch.randn_like(parameter)
    return student


def overlap(config: Config, folder: Path, rounds: int) -> dict[str, Any]:
    """s = 0 against s = 1, and what an iteration of s = 0 goes into."""
    teachers = [load_teacher(folder / name, name, config.machine) for name in NAMES]
    start = load_checkpoint(folder / "student", config.machine)
    prompts = {name: tasks_of(DOMAINS[name], HORIZONS, 64) for name in NAMES}
    logs: dict[int, list[dict[str, float]]] = {0: [], 1: []}

    def run(lag: int) -> None:
        student, log = replace(start, model=copy.deepcopy(start.model)), Timings()
        router, block = Router(student, teachers, NAMES, "hard", 0), replace(config.distill, staleness=lag)
        policy, budgets = local_policy(student, config.machine), config.budget
        distil(policy, router, DOMAINS, prompts, budgets, block, 0, config.machine, log)  # type: ignore[arg-type]
        logs[lag] += log.rows

    run(0)  # sandboxes and caches are there
    logs[0].clear()
    timed = [(seconds(run, 1), seconds(run, 0)) for _ in range(rounds)]
    row = compared(timed, config.distill.iterations)
    total = sum(sum(one.values()) for one in logs[0])
    shares = {key: sum(one[f"seconds_{key}"] for one in logs[0]) / total for key in ("rollout", "scoring", "update")}
    # The first iteration's rollouts have nothing to stand beside.
    later = [one for i, one in enumerate(logs[1]) if i % config.distill.iterations]
    hidden = fmean(one["rollout_hidden"] for one in later)
    print(f"shares at s = 0: {', '.join(f'{key} {share:.1%}' for key, share in shares.items())}")
    print(f"s = 0 by s = 1: {said(row)}; hidden of rollouts behind the first iteration {hidden:.1%}", flush=True)
    return {"what": "staleness 0 by 1", "shares": shares, "hidden": hidden, **row}


def scoring(config: Config, folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Teachers in the samples' order against sorted, and scoring against reading."""
    policy = local_policy(load_checkpoint(folder / "student", config.machine), config.machine)
    tasks = [task for group in zip(*(tasks_of(DOMAINS[n], HORIZONS, 32) for n in NAMES), strict=True) for task in group]
    batch = rollout(DOMAINS, tasks, policy, config.budget, config.distill.temperature, 0)
    wish, loads = wanted(config.distill), dict[str, int]()

    def by(order: str) -> None:
        mine = sorted(batch, key=lambda t: t.task.domain) if order == "sorted" else batch
        groups: list[tuple[str, Sequence[Trajectory]]] = [
            (name, list(some)) for name, some in itertools.groupby(mine, key=lambda t: t.task.domain)
        ]
        for name, some in groups:
            teacher: Teacher = load_teacher(folder / name, name, config.machine)
            score([teacher.checkpoint.model], name, some, wish, policy.never, config.machine)
        loads[order] = len(groups)

    by("sorted")
    timed: list[tuple[Timed, Timed]] = [(seconds(by, "sorted"), seconds(by, "as they come")) for _ in range(rounds)]
    row = compared(timed, 1)
    print(f"as they come ({loads['as they come']} loads) by sorted ({loads['sorted']}): {said(row)}", flush=True)
    teacher = load_teacher(folder / NAMES[0], NAMES[0], config.machine).checkpoint

    def cached(place: Path, wish: Any) -> None:
        ScoreCache(place).score([teacher.model], teacher.hash, batch, wish, policy.never, config.machine)

    second = wanted(replace(config.distill, support_loss="tail", top_k=16))
    cached(folder / "warm", wish)
    timed = []
    for i in range(rounds):
        made = seconds(cached, folder / f"scores{i}", wish)
        timed.append((seconds(cached, folder / f"scores{i}", second), made))
    again = compared(timed, 1)
    print(f"scoring by reading: {said(again)}", flush=True)
    return [
        {"what": "teachers as samples come by sorted", "loads": loads, **row},
        {"what": "scoring by cache", **again},
    ]


if __name__ == "__main__":
    main()
