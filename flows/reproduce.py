"""The recipe in order: the first file to read. `python -m flows.reproduce`, or `make reproduce`.

Independent stages run at once, as many as the machine block says. A failed stage is tried again as the block `flow`
says; what does not need it goes on, and its results stay committed in dvc.lock.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prefect import flow
from prefect.exceptions import TerminationSignal
from prefect.futures import PrefectFuture
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import cluster
from flows.baseline import baseline
from flows.distill import distill
from flows.evaluate import evaluate
from flows.generate import generate
from flows.job import Outcome, StageFailed
from flows.shown import Shown
from flows.stage import IN_WORKER, Runner, Submit, exit_code, finish, open_server
from flows.teach import teach
from openhorizon import cli, config, pipeline, process, profiles, tracking
from openhorizon.progress import Progress, duration

ROOT = Path(__file__).resolve().parents[1]
ALONE = ("base", "sft", "distill")  # each uses every core (cli.run_stage), and everything behind it waits for it


def recipe(
    stage: Submit, domains: Sequence[str], baselines: Sequence[str], benchmarks: Sequence[str] = ()
) -> list[PrefectFuture[Outcome]]:
    """Agents-A1, stage by stage; ``after`` is what a stage reads."""
    data = generate(stage, domains)
    base = stage("base", after=data)
    sft = stage("sft", after=[base])
    teachers = teach(stage, domains, after=[sft])
    student = distill(stage, teachers)
    others = baseline(stage, baselines, student)
    scores = evaluate(stage, base, sft, teachers, student, others)
    scores += [stage(f"benchmark@{name}", after=[student]) for name in benchmarks]
    return [*data, base, sft, *teachers.values(), student, *others.values(), *scores, stage("report", after=scores)]


@flow(name="reproduce", validate_parameters=False, log_prints=IN_WORKER)
def reproduce(profile: str | None = None) -> None:
    """The whole recipe; ``profile`` is merged into params.yaml first."""
    os.chdir(ROOT)  # a worker starts flows elsewhere
    if IN_WORKER:
        process.die_with_parent()
    process.telemetry_off()
    with pipeline.alone(ROOT):
        if profile:
            profiles.write(profile, ROOT)
        settings = config.load()
        with Progress("reproduce", "asking DVC what is stale"):
            graph, stale = pipeline.graph(ROOT), pipeline.stale(ROOT)
        at_once = settings.machine.stages
        print(f"reproduce: profile {settings.profile}, {len(graph)} stages, {at_once} at once", flush=True)
        with tracking.reproduction(settings, ROOT) as parent:
            shown = Shown("reproduce", len(graph))
            made: type[Runner] | partial[cluster.ClusterRunner] = Runner
            if cluster.of_this_flow():
                made = partial(cluster.ClusterRunner, settings.machine)
            runner = made(
                ROOT, at_once, graph, stale, {tracking.PARENT_VARIABLE: parent}, ALONE, settled=shown.settled,
                limits=settings.flow, gpu=settings.machine.device == "cuda",
            )  # fmt: skip
            failed = finish(
                recipe(runner.submit, settings.domains, settings.baselines.run, settings.benchmarks.run), runner
            )
            print("\n".join(summary(runner)), flush=True)
            shown.end(runner, ROOT)
            if failed:
                raise StageFailed(f"failed: {', '.join(failed)}; what the others made is kept, so run it again")


def summary(runner: Runner) -> list[str]:
    """A line a stage, in the recipe's order."""
    lines = ["", f"{'stage':34}{'time':>8}  result"]
    for stage in runner.asked:
        outcome, seconds = runner.outcomes.get(stage, ("not run", 0.0))
        lines.append(f"{stage:34}{duration(seconds):>8}  {outcome}")
    return lines


def here() -> None:
    """The flow and its stages in this process."""
    open_server("reproduce")
    reproduce()


def on_cluster(name: str) -> None:
    """The flow in this process, its stages on workers, which reach its server by name."""
    machine = config.load().machine
    where = cluster.runner(name, max(machine.threads, machine.stages))
    with temporary_settings({PREFECT_API_URL: open_server("reproduce")}):
        reproduce.with_options(task_runner=where)()


def main(arguments: Sequence[str] = ()) -> int:
    """The flow in this process, with a server of its own unless PREFECT_API_URL names one."""
    parser = argparse.ArgumentParser(prog="python -m flows.reproduce", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runner", choices=cluster.RUNNERS, default=cluster.RUNNERS[0])
    name = parser.parse_args(arguments).runner
    process.exit_on_terminate()
    try:
        code = exit_code(here if name == "threads" else partial(on_cluster, name))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except TerminationSignal:
        return 128 + signal.SIGTERM
    return code or cli.main(["report"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
