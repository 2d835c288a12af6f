"""Commands that look at what there is: results, graphs, episodes, lineages, plans, this machine."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openhorizon import process, profiles, sandbox
from openhorizon.artifacts import (
    REPORTS,
    checkpoint_dir,
    read_json,
    require,
    stage_dir,
    write_json,
)
from openhorizon.cli.naming import folder_name
from openhorizon.config import PARAMS_FILE, load

MLFLOW_PORT, PREFECT_PORT = 5000, 4200


def show_report(_options: argparse.Namespace) -> int:
    """The last report's table and where its page is."""
    from rich.console import Console

    results = read_json(REPORTS / "results.json")
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(results_table(results["rows"], f"held-out success, profile {results['profile']}"))
    console.print(f"report: {REPORTS / 'index.html'}  figures: {REPORTS / 'results.json'}", soft_wrap=True)
    return 0


def results_table(rows: Sequence[dict[str, Any]], title: str) -> Any:
    """Success by model and domain over all horizons, with the number of tasks."""
    from rich.table import Table

    from openhorizon.tracking import success

    table = Table(title=title, title_justify="left")
    figures = success(rows)
    domains = list(dict.fromkeys(row["domain"] for row in rows if (row["model"], row["domain"]) in figures))
    table.add_column("model")
    for domain in domains:
        table.add_column(domain, justify="right")
    for model in dict.fromkeys(row["model"] for row in rows):
        cells = [f"{figures[model, domain]:.3f}" if (model, domain) in figures else "–" for domain in domains]
        table.add_row(model, *cells)
    return table


def show_params(_options: argparse.Namespace) -> int:
    """Print the checked params.yaml."""
    load()
    print(PARAMS_FILE.read_text(encoding="utf-8"), end="")
    return 0


def show_kag(options: argparse.Namespace) -> int:
    """Count a domain's knowledge-action graph by type and draw a few steps of it."""
    from rich.console import Console

    from openhorizon.kag import picture
    from openhorizon.kag.store import open_graph

    known = load().domains
    if options.domain not in known:
        raise ValueError(f"show kag: unknown domain {options.domain!r}; known are {', '.join(known)}")
    graph = open_graph(require(stage_dir("generate", options.domain) / "graph"))
    out = options.out or REPORTS / f"kag_{options.domain}.png"
    scene = picture.draw(graph, out, options.seed, options.steps)
    console = Console(width=None if sys.stdout.isatty() else 100)
    console.print(kag_table(options.domain, graph.counts()))
    console.print(f"picture: {out} ({scene.title})", soft_wrap=True, markup=False)
    return 0


def kag_table(domain: str, counts: dict[str, dict[str, dict[str, int]]]) -> Any:
    """What a graph holds, by type and world; the sums in the first column where there are several worlds."""
    from rich.table import Table

    worlds = [name for name in counts if name != "all"]
    columns = ["all", *worlds] if len(worlds) > 1 else ["all"]
    table = Table(title=f"knowledge-action graph of {domain}", title_justify="left")
    table.add_column("")
    table.add_column("type")
    for column in columns if len(worlds) > 1 else [domain]:
        table.add_column(column, justify="right")
    for name, of_all in counts["all"].items():
        if name != "abilities":  # of which a record has one or more: a sum means nothing
            table.add_row(name, "all", *(f"{sum(counts[column][name].values()):,}" for column in columns))
        for i, kind in enumerate(of_all):
            cells = [f"{counts[column].get(name, {}).get(kind, 0):,}" for column in columns]
            table.add_row(name if name == "abilities" and i == 0 else "", kind, *cells)
        table.add_section()
    return table


def play(options: argparse.Namespace) -> int:
    """Watch a model solve a held-out task, step by step, or take its place."""
    from rich.console import Console

    from openhorizon import play as playing
    from openhorizon.domains import DOMAINS
    from openhorizon.domains.base import EnvironmentDied

    config = load()
    if options.domain not in config.domains:
        raise ValueError(f"play: unknown domain {options.domain!r}; known are {', '.join(config.domains)}")
    task = playing.heldout_task(options.domain, options.task, options.horizon, options.nth)
    domain, budget = DOMAINS[task.world], config.budget[task.domain]
    console = Console(width=None if sys.stdout.isatty() else 100, quiet=options.json)
    show = playing.shower(console, options.delay)
    try:
        if options.take:
            played = playing.take(domain, task, budget, input, functools.partial(console.print, markup=False), show)
        else:
            from openhorizon.model.sampler import load_policy

            temperature = config.evaluate.temperature if options.temperature is None else options.temperature
            policy = load_policy(require(checkpoint_dir(options.model)), config.machine)
            played = playing.watch(policy, domain, task, budget, temperature, options.seed, show)
    except EnvironmentDied as error:
        raise ValueError(f"play: {task.world} broke: {error}") from error
    finally:
        process.end_children()
    return _show_played(options, played, console)


def show_trajectory(options: argparse.Namespace) -> int:
    """Print an episode of an evaluation, or of any trajectories' file."""
    from rich.console import Console

    from openhorizon import play as playing

    named = Path(options.source)
    path = named if named.suffix == ".parquet" else stage_dir("evaluate", options.source) / "trajectories.parquet"
    played = playing.find(require(path), options.task, options.domain, options.status, options.nth)
    console = Console(width=None if sys.stdout.isatty() else 100, quiet=options.json)
    show = playing.shower(console)
    for turn in played.turns:
        show(turn)
    return _show_played(options, played, console)


def _show_played(options: argparse.Namespace, played: Any, console: Any) -> int:
    from openhorizon import play as playing

    if options.json:
        print(json.dumps(playing.as_json(played), ensure_ascii=False))
    playing.show_end(console, played)
    return 0


def show_lineage(options: argparse.Namespace) -> int:
    """What a model or an artifact was made of, back to graph, parameters, commit and machine."""
    from openhorizon import ancestry

    found = ancestry.ancestors(options.name)
    print("\n".join(ancestry.told(found)))
    if options.out:
        write_json(options.out, {"ancestors": [dataclasses.asdict(it) for it in found]})
    return 0


def plan_profile(options: argparse.Namespace) -> int:
    """Predict tokens, time, memory and cost of a profile, stage by stage."""
    from rich.console import Console

    from openhorizon.forecast import table

    config = profiles.settings(options.profile, Path()) if options.profile else load()
    on_gpus = config.model.source != "scratch"
    machine = options.machine or ("h100" if on_gpus else "cpu")
    lengths = options.lengths or ("a1" if on_gpus else "laptop")
    made = table.plan(config, machine, lengths, options.assumptions, Path())
    if options.json:
        print(json.dumps(made.as_json()))
    else:
        Console(width=None if sys.stdout.isatty() else 120).print(table.rendered(made))
    return 0


def compare_models(options: argparse.Namespace) -> int:
    """Hold two evaluations of the same tasks against each other, task by task."""
    from rich.console import Console

    from openhorizon import comparing

    a, b = (comparing.read_side(reference, options.domain) for reference in (options.a, options.b))
    of = f"-{options.domain}" if options.domain else ""
    out = options.out or REPORTS / "compare" / f"{folder_name(options.a)}-vs-{folder_name(options.b)}{of}"
    found = comparing.compare(a, b, options.seed, out)
    Console(width=None if sys.stdout.isatty() else 120).print(comparing.table(found, a, b))
    print(f"{options.a} alone solved {len(found.won)} tasks, {options.b} alone {len(found.lost)}")
    if any(found.unjudged):
        print(f"not judged, in no pair: {found.unjudged[0]} of {options.a}, {found.unjudged[1]} of {options.b}")
    print(f"page: {out / 'index.html'}  figures: {out / 'compare.json'}")
    return 0


def doctor(_options: argparse.Namespace) -> int:
    """What this machine offers and what is missing."""
    rows = [("python", platform.python_version())]
    for package in ("torch", "transformers", "prefect", "dvc", "mlflow", "fastapi"):
        rows.append((package, _version(package) or "not installed: `make setup`"))
    rows.append(("git", shutil.which("git") or "not installed: DVC needs it"))
    rows.append(("sandbox", sandbox.describe()))
    rows.append(("cores", str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())))
    rows.append(("disk free", f"{shutil.disk_usage(Path()).free / 2**30:.1f} GiB"))
    rows.append(("GPU", "found" if Path("/dev/nvidia0").exists() else "none: MACHINE=cpu"))
    rows.append(("megablocks", _version("megablocks") or "not installed: `make setup`"))
    rows.append((f"port {MLFLOW_PORT}", "free" if port_free(MLFLOW_PORT) else "in use: `make mlflow PORT=…`"))
    if PARAMS_FILE.is_file():
        config = load()
        rows.append(("profile", config.profile))
        rows.append(("machine", f"{config.machine.device}, {config.machine.stages} stages at once"))
        rows.append(("experts", _experts(config.machine.experts)))
    for name, value in rows:
        print(f"{name:14} {value}")
    return 0


def _experts(wanted: str) -> str:
    """Which implementation computes the experts here, and why not MegaBlocks where it does not."""
    from openhorizon.model.moe import MEGABLOCKS, experts_here, megablocks_problem

    problem = megablocks_problem()
    if wanted in MEGABLOCKS and problem:
        return f"{wanted} cannot run: {problem}"
    return experts_here(wanted) + (f" (megablocks: {problem})" if problem and wanted == "auto" else "")


def mlflow_ui(options: argparse.Namespace) -> int:
    """The MLflow UI on loopback, until it is interrupted."""
    from openhorizon.tracking import DATABASE

    if not port_free(options.port):
        raise ValueError(f"port {options.port}: in use; choose another with `make mlflow PORT=…`")
    if not Path(DATABASE).is_file():
        raise FileNotFoundError(f"{DATABASE}: no run is recorded yet; `make reproduce` first")
    command = ["mlflow", "ui", "--backend-store-uri", f"sqlite:///{DATABASE}", "--host", "127.0.0.1"]
    print(f"http://127.0.0.1:{options.port} (Ctrl-C ends it)", flush=True)
    arguments = [sys.executable, "-m", *command, "--port", str(options.port), "--workers", "1"]
    os.execve(sys.executable, arguments, process.child_environment())


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def start_servers(options: argparse.Namespace) -> int:
    """Prefect's and MLflow's servers on loopback, until they are interrupted; on PostgreSQL by OPENHORIZON_POSTGRES."""
    from openhorizon.servers import up

    process.exit_on_terminate()
    for name in ("prefect_port", "mlflow_port"):
        if not port_free(getattr(options, name)):
            raise ValueError(f"port {getattr(options, name)}: in use; choose another with --{name.replace('_', '-')}")
    return up(Path().resolve(), options.prefect_port, options.mlflow_port, lambda line: print(line, flush=True))


def port_free(port: int) -> bool:
    """Whether a server could be started there, on loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
