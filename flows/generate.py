"""Data: every domain's self-play at once (section 2.2), and a flow that makes one domain's shards side by side.

    python -m flows.generate                          what is stale of all domains, shards as tasks of this process
    python -m flows.generate search --runner ray      on Ray (prefect-ray, the extra `ray`): here, or RAY_ADDRESS

A shard is one command, whoever starts it. Finished shards lie in .openhorizon/shards, which the machines of a cluster
share with the checkout; the stage takes them up, so that the artifact and dvc.lock are those of `dvc repro` alone.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture, wait

from flows.cluster import RUNNERS, runner
from flows.job import Outcome, StageFailed, explain
from flows.stage import Submit, exit_code, open_server
from openhorizon import config, pipeline, process

ROOT = Path(__file__).resolve().parents[1]


def generate(stage: Submit, domains: Sequence[str]) -> list[PrefectFuture[Outcome]]:
    """Knowledge-action graph, demonstrations, prompts and held-out tasks of each domain."""
    return [stage(f"generate@{domain}", after=[]) for domain in domains]


@task(cache_policy=NO_CACHE, retries=1, retry_delay_seconds=1, persist_result=False)
def make_shard(root: str, domain: str, shard: str) -> None:
    """One shard (``heldout``: what all of them share) as a process, which ends with this one."""
    command = ["-m", "openhorizon", "stage", "generate", "--target", domain, "--shard", shard]
    _run(root, command, f"generate@{domain} shard {shard}")


@flow(name="generate", validate_parameters=False)
def make_shards(root: str, shards: dict[str, int]) -> None:
    """The shards of these domains (domain → how many), each after its domain's held-out tasks."""
    asked: list[PrefectFuture[None]] = []
    for domain, count in shards.items():
        named = make_shard.with_options(task_run_name=f"generate@{domain} heldout")
        held = named.submit(root=root, domain=domain, shard="heldout", return_state=False)
        asked.append(held)
        for i in range(count):
            named = make_shard.with_options(task_run_name=f"generate@{domain} {i}")
            asked.append(named.submit(root=root, domain=domain, shard=str(i), wait_for=[held], return_state=False))
    wait(asked)
    failed = [future for future in asked if future.state.is_failed() or future.state.is_crashed()]
    if failed:
        reason = failed[0].result(raise_on_failure=False)
        raise StageFailed(f"{len(failed)} of {len(asked)} shards failed: {reason}; what the others made is kept")


def main(arguments: Sequence[str] | None = None) -> int:
    """``make`` for the domains that are named."""
    parser = argparse.ArgumentParser(prog="python -m flows.generate", description=__doc__.splitlines()[0])
    parser.add_argument("domains", nargs="*", help="all of params.yaml by default")
    parser.add_argument("--runner", choices=RUNNERS, default=RUNNERS[0])
    options = parser.parse_args(arguments)
    process.telemetry_off()
    process.exit_on_terminate()
    os.chdir(ROOT)
    try:
        return exit_code(partial(make, options.domains, options.runner))
    finally:
        process.end_children()


def make(domains: Sequence[str], runner_name: str) -> None:
    """Make the shards of what is stale, then let DVC run the stages, which take them up.

    Raises:
        ValueError: params.yaml has no such domain.
    """
    with pipeline.alone(ROOT):
        settings = config.load()
        wanted = domains or list(settings.domains)
        unknown = sorted(set(wanted) - set(settings.domains))
        if unknown:
            raise ValueError(f"unknown domain {unknown[0]!r}; known are {', '.join(settings.domains)}")
        stale = set(pipeline.stale(ROOT))
        shards = {name: settings.generate[name].shards for name in wanted if f"generate@{name}" in stale}
        if shards:
            open_server("generate")
            where = runner(runner_name, settings.machine.threads)
            make_shards.with_options(task_runner=where)(str(ROOT), shards)
        for name in wanted:
            repro = ["-m", "openhorizon.process", "--wait-for-lock", "repro", "--single-item", f"generate@{name}"]
            _run(str(ROOT), repro, f"generate@{name}")


def _run(root: str, command: Sequence[str], name: str) -> None:
    """A command of ours in ``root``; its lines go on to this one's output."""
    done = subprocess.run(
        [sys.executable, *command],
        cwd=root,
        env=process.child_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    lines = done.stdout.splitlines()
    print("\n".join(lines[-3:]), flush=True)
    if done.returncode:
        raise StageFailed(f"{name}: {explain(lines)}")


if __name__ == "__main__":
    sys.exit(main())
