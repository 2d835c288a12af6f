"""A study as one flow: every arm with every seed, as many stages at once as the machine block says.

    python -m flows.study NAME SIZE [--seeds N]        what `openhorizon study` starts

Cells (``openhorizon.study.plan``) share stages: what decides the same result is run by the first of them alone, and the
others take it from DVC's cache in one go when it is there. What is up to date is not run again, so an interrupted study
goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import yaml
from prefect import flow
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture, wait

from flows.job import Outcome, StageFailed, explain
from flows.stage import IN_WORKER, Runner, Slots, exit_code, open_server
from openhorizon import config, pipeline, process, tracking
from openhorizon.progress import Progress, say
from openhorizon.study import plan, results, workspace

ROOT = Path(__file__).resolve().parents[1]
Keyed = tuple[plan.Cell, dict[str, str]]


@flow(name="study", validate_parameters=False, log_prints=IN_WORKER)
def study(name: str, size: str, seeds: int | None = None) -> None:
    """Bring every cell up to date, then write what the study claims."""
    os.chdir(ROOT)
    process.telemetry_off()
    with pipeline.alone(ROOT):
        asked = plan.read(name, ROOT)
        cells = plan.cells(asked, size, seeds, ROOT)
        found = run(cells)
        for claim in results.conclude(ROOT, asked, size, found):
            verdict = {True: "holds", False: "does not hold", None: "cannot tell"}[claim.holds]
            low, high = claim.ci95
            print(f"{claim.id}: {verdict}: {claim.effect:+.3f} [{low:+.3f}, {high:+.3f}]", flush=True)
        show(ROOT)


def show(root: Path) -> None:
    """Make the project's report again, which shows the claims. Only where it is up to date: else what made it is gone,
    and it will show them when it is next made."""
    if not (root / "reports" / "index.html").is_file() or pipeline.stale(root):
        return
    command = ["-m", "openhorizon.process", "--wait-for-lock", "repro", "--force", "--single-item", "report"]
    quiet = process.child_environment(**{tracking.PARENT_VARIABLE: tracking.UNTRACKED})
    done = subprocess.run([sys.executable, *command], cwd=root, env=quiet, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StageFailed(f"report: {explain(done.stdout.splitlines())}")
    say("report: reports/index.html shows the claims")


def run(cells: Sequence[plan.Cell]) -> list[Keyed]:
    """Every cell with the keys of its stages.

    Raises:
        StageFailed: a stage did; what the others made is kept.
    """
    slots: Slots | None = None
    made: dict[str, PrefectFuture[Outcome]] = {}  # a key → the stage that makes it
    runners, futures, keyed = list[Runner](), list[PrefectFuture[Outcome]](), list[Keyed]()
    graphs: dict[tuple[tuple[str, ...], ...], tuple[pipeline.Graph, dict[str, tuple[str, ...]]]] = {}
    try:
        for i, cell in enumerate(cells):
            with Progress(f"study {cell.study}", f"cell {i + 1} of {len(cells)}: {cell.name}"):
                workspace.make(cell, ROOT)
                settings = plan.settings(cell)
                fans = settings.domains, settings.baselines.run  # the same dvc.yaml everywhere: these decide its stages
                if fans not in graphs:
                    graphs[fans] = pipeline.graph(cell.folder), pipeline.read_params(cell.folder)
                stale = pipeline.stale(cell.folder)
            graph, params = graphs[fans]
            slots = slots or Slots(settings.machine.stages)
            stages = plan.stages_of(cell, graph)
            keys = plan.keys(stages, graph, params, yaml.safe_load(cell.params))
            keyed.append((cell, keys))
            runner = Runner(
                root=cell.folder,
                at_once=settings.machine.stages,
                graph=graph,
                stale=[stage for stage in stale if stage in stages],
                environment=environment(),
                slots=slots,
                first_rank=i * len(graph),
                prefix=f"{cell.name} ",
                ran=partial(record, cell, keys),
            )
            runners.append(runner)
            futures += submit(runner, stages, keys, made)
        wait(futures)
    except BaseException:
        for runner in runners:
            runner.end()
        raise
    failed = sorted(
        f"{cell.name} {stage}"
        for (cell, _), runner in zip(keyed, runners, strict=True)
        for stage, (outcome, _) in runner.outcomes.items()
        if outcome == "failed"
    )
    if failed:
        raise StageFailed(f"failed: {', '.join(failed)}; what the others made is kept, so run it again")
    return keyed


def record(cell: plan.Cell, keys: dict[str, str], stages: str) -> None:
    """Keep what a stage took; of several in one go not all ran, so nothing is known."""
    if stages in keys:
        workspace.record_cost(ROOT, cell, stages, keys[stages])


def submit(
    runner: Runner, stages: Sequence[str], keys: dict[str, str], made: dict[str, PrefectFuture[Outcome]]
) -> list[PrefectFuture[Outcome]]:
    """One cell's stages, in order. What another cell makes is taken over in one go; that another cell makes a stage
    means that it makes all that the stage reads, too."""
    mine: dict[str, PrefectFuture[Outcome]] = {}
    shared = [stage for stage in stages if keys[stage] in made]
    if shared:
        taken = runner.submit(" ".join(shared), after=[made[keys[stage]] for stage in shared])
        mine |= dict.fromkeys(shared, taken)
    for stage in stages:
        if stage not in mine:
            below = [mine[it] for it in stages if it in runner.graph[stage]]
            mine[stage] = made[keys[stage]] = runner.submit(stage, after=below)
    return list(dict.fromkeys(mine.values()))


def environment() -> dict[str, str]:
    """Of stages in a workspace: this project's code, and nothing for MLflow."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), os.environ.get("PYTHONPATH")]))
    return {tracking.PARENT_VARIABLE: tracking.UNTRACKED, "PYTHONPATH": path}


def main(arguments: Sequence[str] | None = None) -> int:
    """The flow in this process, with a server of its own unless PREFECT_API_URL names one."""
    parser = argparse.ArgumentParser(prog="python -m flows.study", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name")
    parser.add_argument("size")
    parser.add_argument("--seeds", type=int)
    options = parser.parse_args(arguments)
    process.exit_on_terminate()

    def here() -> None:
        open_server(f"study {options.name}")
        study(options.name, options.size, options.seeds)
        say(f"claims: {config.PARAMS_FILE.parent / 'reports' / 'claims.json'}")

    try:
        return exit_code(here)
    except (KeyboardInterrupt, TerminationSignal):
        return 130


if __name__ == "__main__":
    sys.exit(main())
