"""python tests/world_jobs.py FOLDER: training loops in one process and in two, for test_world.py to compare.

Each job runs in forks of this process, which has imported what is slow to import and computes nothing itself. A job
leaves FOLDER/NAME.SIZE.json, what it logged, and FOLDER/NAME.SIZE.safetensors, its weights.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from conftest import BUDGET, GRPO, HYBRID, MACHINE, CountDomain, build, count_tokenizer
from safetensors.torch import save_file
from test_training import DISTILL, OPTIM, Log, as_domain, demonstrations, tasks
from torch.distributed.tensor import DTensor

from openhorizon import profiles
from openhorizon.config import RouterConfig
from openhorizon.model.load import Checkpoint, Teacher, place
from openhorizon.model.sampler import LocalPolicy
from openhorizon.model.sharding import duplicate, gathered_on_first
from openhorizon.train.distillation import distil
from openhorizon.train.experts import UNTOUCHED
from openhorizon.train.kept import Kept
from openhorizon.train.merging import task_arithmetic
from openhorizon.train.reinforcement import reinforce
from openhorizon.train.resume import Resume, Weights
from openhorizon.train.router import Router
from openhorizon.train.supervised import fit
from openhorizon.train.teachers.phases import normalised, outcome
from openhorizon.unfinished import Unfinished
from openhorizon.world import World, joined

SMALL = replace(MACHINE, micro_tokens=300)  # several passes an update, not as many in each process
SPREAD = replace(SMALL, expert_parallel=True)
REPLAY = RouterConfig(balance=0.0, z=0.0, replay=True)
A1 = profiles.settings("a1", Path(__file__).parents[1])
WIDE = replace(MACHINE, micro_tokens=1, checkpointing=True)  # a sample a pass, as at 131,072 tokens
BRIEF = replace(DISTILL, iterations=3, prompts=3, updates=2, top_k=4, temperature=1.0, optim=OPTIM)
STEPS, STOPPED = 20, 8


class Stopped(Exception):
    """A run that ends behind a save."""


class StoppingLog(Log):
    def state(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def take_up(self, state: dict[str, Any]) -> None:
        self.rows = state["rows"]

    def progress(self, done: int, total: int, note: str = "") -> None:
        if done == STOPPED + 1 and self.stops:
            raise Stopped

    stops = False


def model(seed: int, family: Any = "lfm2_moe", machine: Any = MACHINE) -> Checkpoint:
    """Random, its matrices large enough that outputs differ clearly."""
    made = build(TOKENIZER, family, seed, 4, False)
    for parameter in made.model.parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(3)
    place(made.model, machine)
    return made


def sft(log: Log) -> torch.nn.Module:
    start = model(0)
    fit(start.model, demonstrations(start, 40), STEPS * OPTIM.batch_tokens, OPTIM, 0, SMALL, log)  # type: ignore[arg-type]
    return start.model


def sft_qwen(log: Log) -> torch.nn.Module:
    """Another family, activations computed again, and fewer samples an update than processes."""
    machine = replace(MACHINE, checkpointing=True)
    start, optim = model(0, "qwen3_moe", machine), replace(OPTIM, batch_tokens=60)
    fit(start.model, demonstrations(start, 9), 6 * 60, optim, 0, machine, log)  # type: ignore[arg-type]
    return start.model


def sft_spread(log: Log) -> torch.nn.Module:
    """Whole experts in each process."""
    start = model(0, machine=SPREAD)
    fit(start.model, demonstrations(start, 40), 6 * OPTIM.batch_tokens, OPTIM, 0, SPREAD, log)  # type: ignore[arg-type]
    return start.model


def grpo_spread(log: Log) -> torch.nn.Module:
    return grpo(log, SPREAD)


def grpo(
    log: Log, machine: Any = SMALL, start: Checkpoint | None = None, config: Any = None, router: Any = REPLAY
) -> torch.nn.Module:
    start = start or model(1, machine=machine)
    policy, reference = LocalPolicy(start, 8), duplicate(start.model).requires_grad_(False)
    config = config or replace(GRPO, iterations=3, prompts=3, group=3, updates=2)
    advantage = normalised(lambda trajectory: outcome(trajectory) + trajectory.seed % 7)
    worlds, budgets = {"count": CountDomain()}, {"count": BUDGET}
    reinforce(policy, reference, worlds, tasks(9), budgets, config, advantage, 0, machine, log, router)  # type: ignore[arg-type]
    return start.model


def distillation(
    log: Log, machine: Any = SMALL, family: Any = "lfm2_moe", config: Any = None, routers: Any = UNTOUCHED
) -> torch.nn.Module:
    student, names = model(0, family, machine), ["count", "far"]
    teachers = [Teacher(name, model(3 + i, family, machine)) for i, name in enumerate(names)]
    for teacher in teachers:
        teacher.checkpoint.model.requires_grad_(False)
    config = config or BRIEF
    prompts = {"count": tasks(9), "far": [replace(task, domain="far", id=f"far-{task.id}") for task in tasks(9, 2)]}
    worlds, budgets = dict.fromkeys(names, CountDomain()), dict.fromkeys(names, BUDGET)
    shown = {name: [[as_domain(one, name)] for one in demonstrations(student, 6)] for name in names}
    router = Router(student, teachers, names, config.routing, 0)
    policy = LocalPolicy(student, 8)
    distil(policy, router, worlds, prompts, budgets, config, 0, machine, log, routers, shown)  # type: ignore[arg-type]
    return student.model


def distillation_full(log: Log) -> torch.nn.Module:
    """The teacher's whole distribution, the mean of all teachers, scales that are measured, demonstrations."""
    config = replace(BRIEF, support_loss="full", aggregation="dn_sigma", routing="mixture", on_policy=0.5)
    return distillation(log, config=config)


def sft_a1(log: Log) -> torch.nn.Module:
    """The paper's family, and what profile a1 says of its routers."""
    start = model(0, HYBRID, WIDE)
    fit(start.model, demonstrations(start, 20), 4 * OPTIM.batch_tokens, OPTIM, 0, WIDE, log, router=A1.router)  # type: ignore[arg-type]
    return start.model


def grpo_a1(log: Log) -> torch.nn.Module:
    """With the paper's losses and replayed routers; each process has whole experts."""
    machine = replace(WIDE, expert_parallel=True)
    config = replace(A1.teach["search"].grpo, iterations=2, prompts=2, group=3, updates=2, optim=OPTIM)
    return grpo(log, machine, model(1, HYBRID, machine), config, A1.router)


def distillation_a1(log: Log) -> torch.nn.Module:
    config = replace(A1.distill, iterations=2, prompts=3, updates=2, top_k=4, optim=OPTIM)
    return distillation(log, WIDE, HYBRID, config, A1.router)


def distillation_behind(log: Log) -> torch.nn.Module:
    """Rollouts by older weights: in a thread alone, at once in two processes."""
    return distillation(log, config=replace(BRIEF, iterations=4, staleness=2))


def merging(log: Log) -> torch.nn.Module:
    start = model(0)
    others = {"a": model(3).model, "b": model(4).model}
    start.model.load_state_dict(task_arithmetic(duplicate(start.model), others, 0.3))
    return start.model


def pieces(log: Log, machine: Any = MACHINE) -> torch.nn.Module:
    """How many numbers this process holds, of layers and of what is whole everywhere."""
    start = model(0, machine=machine)
    held = {True: 0, False: 0}
    for parameter in start.model.parameters():
        piece = isinstance(parameter, DTensor)
        held[piece] += (parameter.to_local() if piece else parameter).numel()
    log.rows.append({"pieces": held[True], "wholes": held[False]})
    return start.model


def pieces_spread(log: Log) -> torch.nn.Module:
    return pieces(log, SPREAD)


def saved(log: StoppingLog, where: Path) -> torch.nn.Module:
    """Best state, model and optimizer are saved at every step."""
    start = model(0)
    kept = Kept(start.model, lambda name: 1.0, 1.0)
    with World.here().first_alone():
        unfinished = Unfinished("sft", "test", where)
    machine = replace(SMALL, checkpoint_s=1e9, checkpoint_steps=1)
    resume = Resume(unfinished, machine, log, model=Weights(start.model), kept=kept)  # type: ignore[arg-type]
    kept.offer("start")
    fit(
        start.model, demonstrations(start, 40), STEPS * OPTIM.batch_tokens, OPTIM, 0, machine, log, saved=resume  # type: ignore[arg-type]
    )  # fmt: skip
    return start.model


def best(log: StoppingLog, where: Path) -> torch.nn.Module:
    """What went on has kept."""
    other = model(5)
    kept = Kept(other.model, lambda name: 0.0, 1.0)
    with World.here().first_alone():
        unfinished = Unfinished("sft", "test", where)
    Resume(unfinished, SMALL, log, kept=kept)  # type: ignore[arg-type]
    kept.restore()
    return other.model


def run(job: Callable[..., torch.nn.Module], size: int, out: str, folder: Path, stops: bool = False) -> None:
    """``job`` in ``size`` processes; its rows and weights as ``out``."""
    children = []
    for rank in range(size):
        child = os.fork()
        if not child:
            torch.set_num_threads(1)
            if size > 1:
                store = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(PORT), "GLOO_SOCKET_IFNAME": "lo"}
                os.environ.update(store | {"RANK": str(rank), "WORLD_SIZE": str(size)})
            log = StoppingLog()
            log.stops = stops
            with joined("cpu"):
                try:
                    weights = gathered_on_first(job(log).state_dict())
                except Stopped:
                    weights = {}
                if rank == 0:
                    (folder / f"{out}.{size}.json").write_text(json.dumps(log.rows))
                    unique = {name: w.clone() for name, w in weights.items()}
                    save_file(unique, folder / f"{out}.{size}.safetensors")
            os._exit(0)
        children.append(child)
    for child in children:
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{out} failed in a world of {size}")


def main() -> None:
    folder = Path(sys.argv[1])
    trained = (sft, sft_qwen, sft_spread, grpo, grpo_spread, distillation, distillation_full)
    trained += (distillation_behind, sft_a1, grpo_a1, distillation_a1)
    for job in (*trained, merging, pieces, pieces_spread):
        for size in (1, 2):
            run(job, size, job.__name__, folder)
    for first, then in ((1, 2), (2, 1)):
        where = folder / f"from{first}"
        run(lambda log, where=where: saved(log, where), first, f"stopped{first}", folder, stops=True)
        run(lambda log, where=where: saved(log, where), then, f"from{first}", folder)
        run(lambda log, where=where: best(log, where), first, "kept", folder)
    run(lambda log: model(0).model, 1, "start", folder)
    for job in trained:
        one, two = (json.loads((folder / f"{job.__name__}.{size}.json").read_text()) for size in (1, 2))
        differ = max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(one, two, strict=True))
        print(f"{job.__name__:20}{len(one):3} updates or iterations, losses differ by {differ:.1e} at most")


PORT = 0
TOKENIZER: Any = None

if __name__ == "__main__":
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        PORT = probe.getsockname()[1]
    TOKENIZER = count_tokenizer()
    main()
