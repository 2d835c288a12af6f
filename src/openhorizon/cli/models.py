"""Commands that take a model elsewhere: export, serving, evaluations and benchmarks of any player."""

from __future__ import annotations

import argparse
import sys

from openhorizon import process
from openhorizon.artifacts import (
    REPORTS,
)
from openhorizon.cli.look import port_free, results_table
from openhorizon.cli.naming import folder_name
from openhorizon.config import load
from openhorizon.progress import Progress


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
    if not port_free(options.port):
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
    wanted = benchmarking.Wanted(
        options.benchmark, options.model, options.limit, temperature, options.turn_tokens, options.calls, options.user
    )
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
