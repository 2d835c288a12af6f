"""Stage ``report``: all of a run's figures as ``reports/results.json`` and one page, ``reports/index.html``.

The same artifacts give the same bytes, but for commit, machine and timings, which say where the run took place.
"""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from openhorizon.agent.render import Renderer, render_trajectory
from openhorizon.agent.trajectory import iter_trajectories, read_trajectories
from openhorizon.artifacts import REPORTS, ROOT, checkpoint_dir, read_json, require, stage_dir, write_json, write_text
from openhorizon.bench.base import read_records
from openhorizon.config import Config
from openhorizon.domains import DOMAINS
from openhorizon.kag.describe import spread
from openhorizon.pipeline import commit
from openhorizon.report.claims import read_claims, read_figures
from openhorizon.report.page import page
from openhorizon.report.results import Run, models, results

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog

SAMPLE = 300  # demonstrations of a domain whose tokens are counted


def run(config: Config, target: str | None, log: StageLog) -> None:
    """Write ``reports/``.

    Raises:
        FileNotFoundError, ValueError: an artifact is missing or damaged; the message has its path.
    """
    log.progress(0, 3, "reading")
    found = collect(config)
    log.progress(1, 3, "figures")
    content, text = results(found), page(found)
    log.progress(2, 3, "writing")
    write_json(REPORTS / "results.json", content)
    write_text(REPORTS / "index.html", text)
    log.progress(3, 3)


def collect(config: Config) -> Run:
    """All artifacts of a run that a report is made of. Claims of studies are shown as they lie there, like timings:
    they are no part of the run, and ``openhorizon study`` has the page made again."""
    claims = read_claims(Path())
    return Run(
        config=config,
        commit=commit(Path()),
        machine=machine(config),
        generate={name: read_json(stage_dir("generate", name) / "metrics.json") for name in config.domains},
        curves={name: read_curves(checkpoint_dir(name) / "curves.jsonl") for name in models(config)},
        records={
            name: read_records(require(stage_dir("evaluate", name) / "records.parquet")) for name in models(config)
        },
        timings={taken["stage"]: taken for taken in map(read_json, sorted((ROOT / "timings").glob("*.json")))},
        trajectories=read_trajectories(require(stage_dir("evaluate", "student") / "trajectories.parquet")),
        tokens=token_lengths(config, checkpoint_dir("base")),
        benchmarks=benchmarks(config),
        claims=claims,
        claim_figures=read_figures(Path(), claims),
    )


def benchmarks(config: Config) -> list[dict[str, Any]]:
    """What each public benchmark of this run says of each model. Without their timings where it was restored."""
    found = []
    for name in config.benchmarks.run:
        for model in config.benchmarks.models:
            timing = ROOT / "timings" / "benchmark" / f"{name}@{model}.json"
            taken = read_json(timing).get(model) if timing.is_file() else None
            found.append(read_json(stage_dir("benchmark", name) / model / "metrics.json") | {"timing": taken})
    return found


def token_lengths(config: Config, base: Path) -> dict[str, dict[str, dict[str, Any]]]:
    """Lengths of a sample of each domain's demonstrations in tokens of ``base``, by world; none where it has no
    tokenizer. Any prefix of the demonstrations is balanced over worlds and horizons: the sample is one."""
    if not (base / "tokenizer.json").is_file():
        return {}
    from transformers import AutoTokenizer

    renderer, found = Renderer(AutoTokenizer.from_pretrained(base, local_files_only=True)), {}
    for name in config.domains:
        counts: dict[str, Counter[int]] = {}
        for trajectory in islice(iter_trajectories(stage_dir("generate", name) / "demonstrations.parquet"), SAMPLE):
            length = len(render_trajectory(renderer, DOMAINS, trajectory).ids)
            counts.setdefault(trajectory.task.world, Counter())[length] += 1
        found[name] = {world: spread(lengths) for world, lengths in sorted(counts.items())}
    return found


def read_curves(path: Path) -> list[dict[str, float]]:
    """The points of one training run; none for a checkpoint that was given and not trained here.

    Raises:
        ValueError: a line is not JSON; the message has its number.
    """
    require(path.parent)
    points = []
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.exists() else (), 1):
        try:
            points.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}:{i}: damaged ({error}); run its stage again") from error
    return points


def machine(config: Config) -> dict[str, Any]:
    """Where this was measured: what a time or a memory figure means nothing without."""
    packages = {}
    for name in ("torch", "transformers", "numpy"):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "device": config.machine.device,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **packages,
    }


def _cpu() -> str:
    """The processor's name; Linux keeps it in a file of its own."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
