"""The ``openhorizon`` command. Every error a user can mend is one line on stderr and exit code 2."""

from __future__ import annotations

import argparse
import dataclasses
import errno
import functools
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

from openhorizon import lineage, pipeline, process, profiles, sandbox
from openhorizon.artifacts import (
    RANK_VARIABLE,
    REPORTS,
    checkpoint_dir,
    is_first,
    read_json,
    require,
    stage_dir,
    write_json,
)
from openhorizon.config import PARAMS_FILE, STAGES, Config, load
from openhorizon.progress import Progress
from openhorizon.study import plan

TRAINING = {"base", "sft", "teach", "distill", "baseline"}  # stages that may be spread over several processes
USER_ERROR = 2
DEBUG_VARIABLE = "OPENHORIZON_DEBUG"
MLFLOW_PORT = 5000


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    process.telemetry_off()
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except ModuleNotFoundError as error:
        if os.environ.get(DEBUG_VARIABLE) or (error.name or "").startswith("openhorizon"):
            raise
        return _refuse(
            f"the package {error.name!r} is not installed; `make setup` installs what requirements.lock lists"
        )
    except OSError as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        return _refuse(_os_error(error))
    except ValueError as error:
        if os.environ.get(DEBUG_VARIABLE):
            raise
        return _refuse(" ".join(str(error).split()))


def run_stage(options: argparse.Namespace) -> int:
    """One stage, in this process: what DVC calls."""
    process.die_with_parent()
    process.exit_on_terminate()
    config = load()
    # Stages with a target run side by side; one thread each beats two threads that wait for one another.
    threads = 1 if options.target and config.machine.stages > 1 else config.machine.threads
    together = config.machine.processes if options.name in TRAINING else 1
    process.limit_threads(max(threads // together, 1))
    if (together > 1 or (config.machine.torchrun and options.name in TRAINING)) and RANK_VARIABLE not in os.environ:
        from openhorizon import launch

        return launch.run(options.name, options.target, together, config.machine.torchrun)
    if options.shard is not None:
        return _run_shard(config, options)
    from openhorizon.tracking import StageLog, publish

    made_of = None
    if is_first():
        _remove_leftovers(stage_dir(options.name, options.target))
        made_of = lineage.origin(options.name, options.target)
        if made_of:
            lineage.check(made_of)
    try:
        with _world(options.name, config), StageLog(config, options.name, options.target) as log:
            importlib.import_module(f"openhorizon.stages.{options.name}").run(config, options.target, log)
            if made_of:
                lineage.record(made_of, config)
        if options.name == "report":
            publish(Path())
    finally:
        process.end_children()
    return 0


def _world(stage: str, config: Config) -> AbstractContextManager[object]:
    """What a stage's process is part of: of the processes that train together the first speaks."""
    if stage not in TRAINING or RANK_VARIABLE not in os.environ:
        return nullcontext()
    from openhorizon import launch, world

    launch.report_errors()
    if not is_first():
        process.silence()
    return world.joined(config.machine.device)


def _run_shard(config: Config, options: argparse.Namespace) -> int:
    """One shard of ``generate``, which its stage takes up: no artifact yet, so nothing is tracked."""
    if options.name != "generate" or not options.target:
        raise ValueError("--shard: only of `stage generate --target DOMAIN`")
    generate = importlib.import_module("openhorizon.stages.generate")
    try:
        with Progress(f"generate@{options.target} shard {options.shard}", live=False) as shown:
            generate.run_shard(config, options.target, options.shard, shown.update)
    finally:
        process.end_children()
    return 0


def reproduce(options: argparse.Namespace) -> int:  # noqa: RET503 (execve does not return)
    """The whole recipe. Asks DVC first: where nothing changed, it says so and starts nothing."""
    root = Path()
    with pipeline.alone(root):
        if options.profile:
            use_profile(options)
        config = load()
        if shutil.which("git") is None:
            raise ValueError("git: not installed; DVC needs it (Debian: apt-get install git)")
        stages = pipeline.graph(root)
        if not pipeline.stale(root):
            print(f"up to date: {len(stages)} stages (profile {config.profile})")
            return show_report(options)
    _become_flow("flows.reproduce")


def run_study(options: argparse.Namespace) -> int:
    """A question put to the recipe: arms and seeds side by side, then what they say."""
    root = Path()
    found = plan.read(options.study, root)
    if options.short and options.profile:
        raise ValueError("study: --short has a size of its own; leave out --profile")
    size = plan.SHORT if options.short else options.profile or load().profile
    plan.cells(found, size, options.seeds, root)  # refused before anything starts
    seeds = [] if options.seeds is None else ["--seeds", str(options.seeds)]
    _become_flow("flows.study", options.study, size, *seeds)


def _become_flow(module: str, *arguments: str) -> NoReturn:
    """One process from here on: signals reach the flow itself."""
    if importlib.util.find_spec("prefect") is None:
        raise ModuleNotFoundError("prefect", name="prefect")
    sys.stdout.flush()
    levels = ("PREFECT_LOGGING_LEVEL", "PREFECT_SERVER_LOGGING_LEVEL")
    quiet = {name: os.environ.get(name, "CRITICAL") for name in levels}  # the flow prints what matters itself
    os.execve(sys.executable, [sys.executable, "-m", module, *arguments], process.child_environment(**quiet))


def use_profile(options: argparse.Namespace) -> int:
    """Merge a profile into params.yaml."""
    changed = profiles.write(options.profile, Path())
    print(f"{PARAMS_FILE}: {'now' if changed else 'already'} profile {options.profile}")
    return 0


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


def export_model(options: argparse.Namespace) -> int:
    """Write a model of this run with its model card into a folder of its own."""
    from openhorizon.export import export

    made = export(load(), options.model, options.out)
    print(f"{options.out}: {options.model}, weights {made['weights']}")
    return 0


def serve_model(options: argparse.Namespace) -> int:  # noqa: RET503 (execve does not return)
    """Serve a model behind an OpenAI-compatible endpoint, until it is interrupted."""
    from openhorizon.serve import instructions, serve

    machine, where = load().machine, (options.host, options.port)
    if options.print:
        print(instructions(options.model, machine, *where, options.engine or "transformers", options.raw))
        return 0
    if not _port_free(options.port):
        raise ValueError(f"port {options.port}: in use; choose another with --port")
    serve(options.model, machine, *where, options.engine, options.raw)


def evaluate_model(options: argparse.Namespace) -> int:
    """Play held-out tasks with any model, also one that is served."""
    from rich.console import Console

    from openhorizon import evaluating
    from openhorizon.players import open_player

    config = load()
    name = options.name or folder_name(options.model.rpartition("#")[2])
    temperature = config.evaluate.temperature if options.temperature is None else options.temperature
    domains = options.domains.split(",") if options.domains else list(config.domains)
    wanted = evaluating.Wanted(name, domains, options.tasks or config.evaluate.tasks, temperature)
    out = options.out or REPORTS / "evaluate" / name
    process.limit_threads(config.machine.threads)
    try:
        with Progress(f"evaluate {name}") as shown:
            table = evaluating.evaluate(config, open_player(options.model, config.machine), wanted, out, shown.update)
    finally:
        process.end_children()
    title = f"held-out success of {options.model}"
    Console(width=None if sys.stdout.isatty() else 100).print(results_table([vars(row) for row in table], title))
    print(f"results: {out}")
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


def inspect_model(options: argparse.Namespace) -> int:
    """Run a task of Inspect, in its own environment, with a served model."""
    from openhorizon import inspecting

    task = options.task.removesuffix(".py")
    out = options.out or REPORTS / "inspect" / folder_name(task) / folder_name(options.model)
    found = inspecting.run(options.task, options.model, options.limit, options.arguments, out, options.environment)
    for name, values in found["inspect"].items():
        print(f"{name}: {', '.join(f'{metric} {value}' for metric, value in values.items())}")
    for row in found["rows"][:1]:
        low, high = row["ci95"]
        print(f"{found['task']}: {row['success']:.3f} [{low:.3f}, {high:.3f}] of {row['n']} judged samples")
    for why, count in found["not_judged"].items():
        print(f"not judged: {count}: {why}")
    print(f"results: {out} (Inspect says: {found['status']})")
    return 0 if found["status"] == "success" else 1


def run_bridge(_options: argparse.Namespace) -> int:
    """Held-out tasks for a program in another environment: JSON lines in and out."""
    from openhorizon.bridge import replies

    process.die_with_parent()
    try:
        for reply in replies(load(), sys.stdin):
            print(reply, flush=True)
    finally:
        process.end_children()
    return 0


def folder_name(model: str) -> str:
    """A folder's name for a model that may be a path or an address."""
    return re.sub(r"[^\w.@#-]+", "_", model.strip("/"))


def run_bench(options: argparse.Namespace) -> int:
    """Evaluate a model on a public benchmark, beside the benchmark's own solution and an empty policy."""
    from rich.console import Console

    from openhorizon import benchmarking, benchtables

    console = Console(width=None if sys.stdout.isatty() else 120)
    if options.list:
        console.print(benchtables.known())
        return 0
    if not options.benchmark or not options.model:
        raise ValueError("bench: name a benchmark and --model, or --list")
    config = load()
    temperature = config.evaluate.temperature if options.temperature is None else options.temperature
    wanted = benchmarking.Wanted(options.benchmark, options.model, options.limit, temperature, options.turn_tokens)
    out = options.out or REPORTS / "bench" / benchmarking.find(options.benchmark).name / folder_name(options.model)
    process.limit_threads(config.machine.threads)
    try:
        with Progress(f"bench {options.benchmark}") as shown:
            metrics = benchmarking.bench(
                config, wanted, out, out / "timing.json", lambda who, done, total: shown.update(done, total, who)
            )
    finally:
        process.end_children()
    console.print(benchtables.result(metrics))
    console.print(f"results: {out}", soft_wrap=True, markup=False)
    return 1 if metrics["broken"] else 0


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
    rows.append((f"port {MLFLOW_PORT}", "free" if _port_free(MLFLOW_PORT) else "in use: `make mlflow PORT=…`"))
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

    if not _port_free(options.port):
        raise ValueError(f"port {options.port}: in use; choose another with `make mlflow PORT=…`")
    if not Path(DATABASE).is_file():
        raise FileNotFoundError(f"{DATABASE}: no run is recorded yet; `make reproduce` first")
    command = ["mlflow", "ui", "--backend-store-uri", f"sqlite:///{DATABASE}", "--host", "127.0.0.1"]
    print(f"http://127.0.0.1:{options.port} (Ctrl-C ends it)", flush=True)
    arguments = [sys.executable, "-m", *command, "--port", str(options.port), "--workers", "1"]
    os.execve(sys.executable, arguments, process.child_environment())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="openhorizon", description="The Agents-A1 recipe, end to end.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, function: Any) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=(function.__doc__ or "").splitlines()[0])
        command.set_defaults(command=function)
        return command

    add("reproduce", reproduce).add_argument("--profile", help="merge this profile into params.yaml first")
    study = add("study", run_study)
    study.add_argument("study", metavar="NAME", help="a folder of studies/")
    study.add_argument("--profile", help="the size: one of the study's sizes (default: the profile of params.yaml)")
    study.add_argument("--seeds", type=int, help="how many (default: the size's own)")
    study.add_argument("--short", action="store_true", help="the size that the tests run: the effect's direction only")
    stage = add("stage", run_stage)
    stage.add_argument("name", choices=STAGES)
    stage.add_argument("--target", help="a domain (generate, teach), a baseline, or a model (evaluate)")
    stage.add_argument(
        "--shard", help="of generate: make this shard alone (a number, or heldout), for its stage to use"
    )
    add("profile", use_profile).add_argument("profile")
    add("report", show_report)
    shown = commands.add_parser("show", help="Print the params, a knowledge-action graph, an episode, or a lineage.")
    what = shown.add_subparsers(required=True, metavar="WHAT")
    what.add_parser("params", help=show_params.__doc__).set_defaults(command=show_params)
    back = what.add_parser("lineage", help=show_lineage.__doc__)
    back.set_defaults(command=show_lineage)
    back.add_argument("name", help="base, sft, teacher@DOMAIN, baseline@NAME, student, or a stage as in dvc.yaml")
    back.add_argument("--out", type=Path, help="write all of it to this JSON file, too")
    kag = what.add_parser("kag", help=show_kag.__doc__)
    kag.set_defaults(command=show_kag)
    kag.add_argument("domain")
    kag.add_argument("--out", type=Path, help="the picture, a PNG (default: reports/kag_DOMAIN.png)")
    kag.add_argument("--seed", type=int, default=0, help="which trajectory is drawn")
    kag.add_argument("--steps", type=int, default=4, help="how many of its last actions")
    seen = what.add_parser("trajectory", help=show_trajectory.__doc__)
    seen.set_defaults(command=show_trajectory)
    seen.add_argument("source", metavar="MODEL", help="an evaluated model, or a file of trajectories (.parquet)")
    seen.add_argument("--domain", help="only of this one")
    seen.add_argument("--status", help="only SOLVED, FAILED, TRUNCATED or ABORTED ones")
    played = add("play", play)
    played.add_argument("domain")
    played.add_argument("--model", default="student", help="who plays (default: student)")
    played.add_argument("--take", action="store_true", help="play it yourself")
    played.add_argument("--horizon", type=int, help="a task that needs so many calls")
    played.add_argument("--temperature", type=float, help="0 is greedy (default: the evaluation's)")
    played.add_argument("--seed", type=int, default=0, help="of the sampling")
    played.add_argument("--delay", type=float, default=0.0, help="seconds between turns")
    for command in (seen, played):
        command.add_argument("--task", help="its id")
        command.add_argument("--nth", type=int, default=0, help="of those that fit (default: 0, the first)")
        command.add_argument("--json", action="store_true", help="one line for a script")
    planned = add("plan", plan_profile)
    planned.add_argument("--profile", help="of profiles/ (default: params.yaml as it is)")
    planned.add_argument("--machine", help="of the assumptions (default: cpu from scratch, else h100)")
    planned.add_argument("--lengths", help="of episodes, in the assumptions (default: laptop from scratch, else a1)")
    planned.add_argument("--assumptions", type=Path, help="a file whose blocks take the place of the shipped ones")
    planned.add_argument("--json", action="store_true", help="one line for a script")
    exported = add("export", export_model)
    exported.add_argument("model", help="base, sft, teacher@DOMAIN, baseline@NAME or student")
    exported.add_argument("--out", type=Path, required=True, help="a new or empty folder")
    compared = add("compare", compare_models)
    for side in ("a", "b"):
        compared.add_argument(
            side, metavar=side.upper(), help="an evaluated model, a folder or file of records, RUN#MODEL"
        )
    compared.add_argument("--domain", help="only tasks of this one, such as a teacher's")
    compared.add_argument("--seed", type=int, default=0, help="of the bootstrap")
    compared.add_argument("--out", type=Path, help="default: reports/compare/A-vs-B")
    evaluated = add("evaluate", evaluate_model)
    evaluated.add_argument("model", help="a model of this checkout, smollm2, a folder, or URL#MODEL of an endpoint")
    evaluated.add_argument("--name", help="what records and reports call it (default: the model's)")
    evaluated.add_argument("--domains", help="by commas (default: all)")
    evaluated.add_argument("--tasks", type=int, help="a domain (default: evaluate.tasks)")
    evaluated.add_argument("--temperature", type=float, help="default: that of evaluate in params.yaml; 0 is greedy")
    evaluated.add_argument("--out", type=Path, help="default: reports/evaluate/NAME")
    inspected = add("inspect", inspect_model)
    inspected.add_argument("task", help="as `inspect eval` takes it, such as interop/inspect_heldout.py")
    inspected.add_argument("--model", required=True, help="URL#MODEL of an endpoint, or a name of Inspect's own")
    inspected.add_argument("--limit", type=int, help="samples (default: all)")
    inspected.add_argument("--environment", type=Path, default=Path(".openhorizon/inspect"), help="where Inspect is")
    inspected.add_argument("--out", type=Path, help="default: reports/inspect/TASK/MODEL")
    inspected.add_argument("arguments", nargs="*", help="behind --, for `inspect eval`, such as -- -T domain=search")
    add("bridge", run_bridge)
    served = add("serve", serve_model)
    served.add_argument("model", help="base, sft, teacher@DOMAIN, baseline@NAME, student, smollm2 or a folder")
    served.add_argument("--host", default="127.0.0.1")
    served.add_argument("--port", type=int, default=8000)
    served.add_argument("--engine", choices=("vllm", "sglang", "transformers"), help="default: the first installed")
    served.add_argument("--raw", action="store_true", help="the text as the model writes it, calls and thoughts in it")
    served.add_argument("--print", action="store_true", help="say what would be started, for another environment")
    bench = add("bench", run_bench)
    bench.add_argument("benchmark", metavar="NAME", nargs="?", help="one that --list names, or a folder of yours")
    bench.add_argument("--list", action="store_true", help="all benchmarks, what they need, and what is there")
    bench.add_argument(
        "--model", help="base, sft, teacher@DOMAIN, baseline@NAME, student, smollm2, a folder, gold, floor"
    )
    bench.add_argument("--limit", type=int, help="the first so many tasks (default: all)")
    bench.add_argument("--temperature", type=float, help="default: that of evaluate in params.yaml; 0 is greedy")
    bench.add_argument(
        "--turn-tokens", type=int, help="tokens that a turn may have (default: the benchmark's own bound)"
    )
    bench.add_argument("--out", type=Path, help="a folder for the results (default: reports/bench/NAME/MODEL)")
    add("doctor", doctor)
    add("mlflow", mlflow_ui).add_argument("--port", type=int, default=MLFLOW_PORT)
    return parser


def _remove_leftovers(final: Path) -> None:
    """Delete what ``replace_dir`` had begun when an earlier run of this stage was killed."""
    for path in final.parent.glob(f".{final.name}.*"):
        if path.is_dir():
            shutil.rmtree(path)


def _refuse(message: str) -> int:
    _say(message)
    return USER_ERROR


def _say(message: str) -> None:
    if "TORCHELASTIC_ERROR_FILE" in os.environ:  # one of several processes, for which their launcher speaks
        from openhorizon import launch

        launch.tell(message)
    else:
        print(f"openhorizon: {message}", file=sys.stderr, flush=True)


def _os_error(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"no space left on the disk{f' for {error.filename}' if error.filename else ''}; free some and run again"
    if error.errno is None or not error.filename:
        return " ".join(str(error).split())
    return f"{error.filename}: {error.strerror}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _port_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
