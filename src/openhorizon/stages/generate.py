"""Generate one domain's data by self-play: demonstrations, prompts, held-out tasks and the knowledge-action graph.

Section 2.2 in three steps. Held-out tasks come first, over all regions evenly, then those of validation, by which a
teacher's state is chosen; training tasks that share a prompt or an entity pair with either, or a long run of words with
held-out ones or a public benchmark, are dropped. Then each shard makes its part of the demonstrations and prompts, with
seeds of its own, streaming to disk. The last step merges the shards in their order, without what two of them came upon.
How many shards there are decides the result, so it stands in params.yaml; whether they run one by one here, side by
side, or as tasks of a flow (flows/generate.py) does not: finished shards are kept until the artifact is whole, and
reused.

Demonstrations are finite in number and imperfect: the solver's failures are kept as rejected, with the rule that
refused them. Held-out tasks and their rejections stay out of the graph and of rejected.parquet: both are training data.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from openhorizon import domains as registry
from openhorizon.agent.endpoint import Endpoint
from openhorizon.agent.rollout import allowed_calls
from openhorizon.agent.trajectory import (
    TaskWriter,
    read_tasks,
)
from openhorizon.artifacts import replace_dir, stage_dir, write_json
from openhorizon.config import Config, GenerateConfig
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Domain, Task
from openhorizon.kag import benchmarks
from openhorizon.kag.decontaminate import Contamination, usual_prompts
from openhorizon.kag.selfplay import (
    Bounds,
    Memory,
    Outcome,
    Part,
    PartName,
    SelfPlay,
)
from openhorizon.kag.shards import ShardWriter, merge
from openhorizon.kag.solve import EndpointSolver, ExpertSolver, PolicySolver, Solver
from openhorizon.kag.steer import Region
from openhorizon.kag.tally import Tally
from openhorizon.pipeline import STATE_FOLDER
from openhorizon.seeds import derive
from openhorizon.tracking import PARENT_VARIABLE

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog

SHARDS = STATE_FOLDER / "shards"
HELDOUT = "heldout"
DECIDING_CODE = ("agent", "domains", "kag", "sandbox", "stages/generate.py", "seeds.py")
PROGRESS_S = 1.0
POLL_S = 0.1
WORDING = 64  # draws of each world that show how it words its questions
Say = Callable[[int, int, str], None]  # done, total, note


def run(config: Config, target: str, log: StageLog) -> None:
    """Write ``artifacts/generate/TARGET``; layout in ``artifacts.py``.

    Raises:
        ValueError: no such domain, a yield too low, or training and held-out tasks overlap.
    """
    work = work_folder(config, target)
    for other in work.parent.glob("*"):
        if other != work:
            shutil.rmtree(other)
    wanted = config.generate[target]
    if not (work / HELDOUT).exists():
        run_shard(config, target, HELDOUT, log.progress)
    missing = [str(i) for i in range(wanted.shards) if not (work / str(i)).exists()]
    at_once = min(len(missing), _processes(config))
    if at_once > 1:
        _run_children(target, missing, at_once)
    else:
        for shard in missing:
            run_shard(config, target, shard, log.progress)
    with replace_dir(stage_dir("generate", target)) as folder:
        found = merge(work / HELDOUT, [work / str(i) for i in range(wanted.shards)], folder)
        metrics = {"domain": target, "seed": config.seed, "solver": wanted.solver, **found}
        write_json(folder / "metrics.json", metrics)
    shutil.rmtree(SHARDS / target)
    counts = metrics["counts"]
    log.metrics(0, words_mean=float(metrics["words"].get("mean", 0)), **{name: float(n) for name, n in counts.items()})
    for horizon, row in metrics["solve_rates"]["by_horizon"].items():
        log.metrics(int(horizon), solve_rate=row["success"])


def run_shard(config: Config, target: str, shard: str, say: Say) -> None:
    """Make one shard (a number), or the tasks that all shards keep out (``heldout``), unless it is there.

    Raises:
        ValueError: no such domain or shard, or a yield too low.
    """
    work = work_folder(config, target)
    wanted = config.generate[target]
    if shard != HELDOUT and not (shard.isdecimal() and int(shard) < wanted.shards):
        raise ValueError(f"generate.{target}.shards={wanted.shards}: no shard {shard!r}")
    if (work / shard).exists():
        return
    worlds = worlds_of(config, target)
    if shard == HELDOUT:
        with replace_dir(work / HELDOUT) as folder:
            write_heldout(config, target, worlds, folder, say)
        return
    if not (work / HELDOUT).exists():
        run_shard(config, target, HELDOUT, say)
    heldout, validation = (read_tasks(work / HELDOUT / f"{name}.parquet") for name in ("heldout", "validation"))
    with replace_dir(work / shard) as folder:
        write_shard(config, target, worlds, heldout, validation, int(shard), folder, say)


def write_heldout(config: Config, target: str, worlds: Mapping[str, Domain], folder: Path, say: Say) -> None:
    """The held-out tasks and those of validation, every region in turn. They are proposed once, so no benchmark bars
    them; held-out tasks bar those of validation as they bar training tasks."""
    wanted, tally, memory = config.generate[target], Tally(), Memory()
    play = _self_play(config, target, worlds, ExpertSolver(worlds, 0.0, _max_calls(config, target)), 0, memory)
    kept_out: tuple[tuple[PartName, int, Sequence[int], str], ...] = (
        ("heldout", wanted.heldout, wanted.heldout_horizons, "heldout_horizons"),
        ("validation", wanted.validation, wanted.prompt_horizons, "prompt_horizons"),
    )
    for name, count, horizons, key in kept_out:
        part, made = Part(name, count, regions(worlds, wanted.worlds, horizons, key)), list[Task]()
        with TaskWriter(folder / f"{name}.parquet") as tasks:
            for outcome in _Progress(say, count).watch(name, play.expand(part)):
                tally.add(name, outcome, bool(worlds[outcome.world].tools))
                if not outcome.rule and outcome.episode is not None:
                    tasks.add(outcome.episode.task)
                    made.append(outcome.episode.task)
        memory.bar(made)
    tally.write(folder / "tally.json")
    proposals = {name: memory.proposals[name] for name in ("heldout", "validation")}
    counted = {"proposals": proposals, "closed": memory.closed, "deaths": memory.deaths}
    write_json(folder / "shard.json", counted)


def write_shard(
    config: Config,
    target: str,
    worlds: Mapping[str, Domain],
    heldout: Sequence[Task],
    validation: Sequence[Task],
    shard: int,
    folder: Path,
    say: Say,
) -> None:
    """One shard's demonstrations, prompts, rejections and graph."""
    wanted = config.generate[target]
    contamination = _contamination(wanted, worlds, heldout, config.seed)
    memory = Memory(contaminated=contamination.check)
    memory.bar([*heldout, *validation])
    play = _self_play(config, target, worlds, make_solver(config, target, worlds), shard, memory)
    parts = _parts(wanted, worlds, shard)
    progress = _Progress(say, sum(part.count for part in parts))
    with ShardWriter(folder, worlds, heldout, validation) as writer:
        for part in parts:
            for outcome in progress.watch(part.name, play.expand(part)):
                writer.add(part.name, outcome)
        progress.say("writing")
    writer.finish(memory, contamination.report())


def worlds_of(config: Config, target: str) -> dict[str, Domain]:
    """The worlds that a domain's tasks are drawn from, by their key.

    Raises:
        ValueError: no such domain.
    """
    if target not in config.generate or all(domain.name != target for domain in DOMAINS.values()):
        known = ", ".join(sorted({domain.name for domain in DOMAINS.values()}))
        raise ValueError(f"generate: unknown domain {target!r}; known are {known}")
    return {world: DOMAINS[world] for world in config.generate[target].worlds}


def regions(
    worlds: Mapping[str, Domain], named: Sequence[str], horizons: Sequence[int], key: str
) -> tuple[Region, ...]:
    """Every world with every horizon that it has tasks of, as often as it is named, worlds taking turns.

    Raises:
        ValueError: a world has none of the horizons.
    """
    offered = {world: domain.offers(horizons) for world, domain in worlds.items()}
    for world, found in offered.items():
        if horizons and not found:
            raise ValueError(
                f"generate.{worlds[world].name}.{key}: world {world} has tasks of none of {list(horizons)}"
            )
    columns = ([Region(world, horizon) for horizon in found] for world in named for found in [offered[world]])
    return tuple(region for row in zip_longest(*columns) for region in row if region is not None)


def make_solver(config: Config, target: str, worlds: Mapping[str, Domain]) -> Solver:
    """What ``generate.DOMAIN.solver`` names.

    Raises:
        ValueError: it names nothing that is known.
        FileNotFoundError: the checkpoint is not there.
    """
    wanted = config.generate[target]
    kind, _, where = wanted.solver.partition(":")
    if wanted.solver == "expert":
        return ExpertSolver(worlds, wanted.noise, _max_calls(config, target))
    if kind == "checkpoint" and where:
        from openhorizon.model.sampler import load_policy

        return PolicySolver(worlds, load_policy(Path(where), config.machine), config.budget, wanted.temperature)
    url, _, model = where.rpartition("#")
    if kind == "endpoint" and url and model:
        return EndpointSolver(worlds, Endpoint(url, model), config.budget, wanted.temperature)
    raise ValueError(
        f"generate.{target}.solver: {wanted.solver!r} is none of expert, checkpoint:FOLDER, endpoint:URL#MODEL"
    )


def work_folder(config: Config, target: str) -> Path:
    """Where the finished shards of exactly this data lie: named by the params, the seed and the code that decide it.

    Raises:
        ValueError: no such domain.
    """
    worlds_of(config, target)
    source = Path(registry.__file__).parents[1]
    files = [path for name in DECIDING_CODE for path in _files(source / name, "*.py")]
    kind, _, checkpoint = config.generate[target].solver.partition(":")
    if kind == "checkpoint":
        files += _files(Path(checkpoint), "*.safetensors")
    read = [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    decides = [config.seed, asdict(config.generate[target]), asdict(config.budget[target]), read]
    key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    return SHARDS / target / key


def _files(path: Path, pattern: str) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob(pattern))


def _self_play(
    config: Config, target: str, worlds: Mapping[str, Domain], solver: Solver, shard: int, memory: Memory
) -> SelfPlay:
    wanted = config.generate[target]
    bounds = Bounds(wanted.max_proposals, wanted.region_proposals, wanted.min_yield)
    return SelfPlay(worlds, solver, _max_calls(config, target), bounds, config.seed, shard, memory)


def _max_calls(config: Config, target: str) -> partial[int]:
    return partial(allowed_calls, config.budget[target])


def _parts(wanted: GenerateConfig, worlds: Mapping[str, Domain], shard: int) -> list[Part]:
    """What one shard is to make: its share, beginning with another region than the shard before it. Prompts are tried
    where the solver's success says which of them are worth a rollout; the scripted expert's says nothing of that."""

    def part(name: PartName, total: int, horizons: Sequence[int], key: str, tries: int) -> Part:
        count = total // wanted.shards + (shard < total % wanted.shards)
        found = regions(worlds, wanted.worlds, horizons, key)
        start = shard % max(len(found), 1)
        bounds = wanted.solve_rate_min, wanted.solve_rate_max
        turned = found[start:] + found[:start]
        return Part(name, count, turned, tries, wanted.steer_floor, wanted.steer_every, bounds)

    tries = 0 if wanted.solver == "expert" else wanted.tries
    return [
        part("demonstrations", wanted.demonstrations, wanted.horizons, "horizons", wanted.tries),
        part("prompts", wanted.prompts, wanted.prompt_horizons, "prompt_horizons", tries),
    ]


def _contamination(
    wanted: GenerateConfig, worlds: Mapping[str, Domain], heldout: Sequence[Task], seed: int
) -> Contamination:
    own = derive(seed, "wording")
    wording = [
        prompt
        for domain in worlds.values()
        if wanted.horizons
        for prompt in usual_prompts(domain, domain.offers(wanted.horizons), WORDING, own)
    ]
    return Contamination(heldout, benchmarks.load(wanted.benchmarks), wanted.ngram, wording)


def _processes(config: Config) -> int:
    """How many shards may run at once here: the machine's threads, of which a flow gives each stage its share."""
    machine = config.machine
    return max(machine.threads // (machine.stages if os.environ.get(PARENT_VARIABLE) else 1), 1)


def _run_children(target: str, shards: Sequence[str], at_once: int) -> None:
    """Shards in processes of their own, each of which prints where it is. All of them end with this call.

    Raises:
        ValueError: one of them failed; the message is its own. What the others finished is kept.
    """
    waiting, running = list(shards), dict[str, subprocess.Popen[bytes]]()
    with tempfile.TemporaryDirectory() as folder:
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    shard = waiting.pop(0)
                    command = ["-m", "openhorizon", "stage", "generate", "--target", target, "--shard", shard]
                    with Path(folder, shard).open("wb") as said:
                        running[shard] = subprocess.Popen(
                            [sys.executable, *command], stdin=subprocess.DEVNULL, stderr=said
                        )
                time.sleep(POLL_S)
                for shard in [shard for shard, child in running.items() if child.poll() is not None]:
                    code = running.pop(shard).returncode
                    lines = Path(folder, shard).read_text(errors="replace").splitlines() or [f"it ended with {code}"]
                    if code:
                        raise ValueError(f"generate@{target}, shard {shard}: {lines[-1].removeprefix('openhorizon: ')}")
        finally:
            for child in running.values():
                child.terminate()
                child.wait()


class _Progress:
    """Tells the log how many tasks are done, about once a second."""

    def __init__(self, say: Say, total: int) -> None:
        self._say, self.total, self.done, self.last = say, total, 0, 0.0

    def watch(self, note: str, outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
        """The same outcomes; an accepted one is a task done."""
        for outcome in outcomes:
            self.done += not outcome.rule
            if time.monotonic() - self.last >= PROGRESS_S:
                self.say(note)
            yield outcome

    def say(self, note: str) -> None:
        self.last = time.monotonic()
        self._say(self.done, self.total, note)
