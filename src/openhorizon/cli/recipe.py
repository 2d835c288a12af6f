"""Commands that run the recipe, or parts of it."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NoReturn

from openhorizon import lineage, pipeline, process, profiles
from openhorizon.artifacts import (
    RANK_VARIABLE,
    is_first,
    stage_dir,
)
from openhorizon.cli.look import show_report
from openhorizon.config import PARAMS_FILE, Config, load
from openhorizon.progress import Progress
from openhorizon.study import plan

TRAINING = {"base", "sft", "teach", "distill", "baseline"}  # stages that may be spread over several processes


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
            from openhorizon.tracking import settle

            settle(root)
            print(f"up to date: {len(stages)} stages (profile {config.profile})")
            return show_report(options)
    runner = ["--runner", options.runner] if options.runner else []
    _become_flow("flows.reproduce", *runner)


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


def _remove_leftovers(final: Path) -> None:
    """Delete what ``replace_dir`` had begun when an earlier run of this stage was killed."""
    for path in final.parent.glob(f".{final.name}.*"):
        if path.is_dir():
            shutil.rmtree(path)
