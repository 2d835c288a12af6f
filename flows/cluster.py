"""Tasks on the workers of a Ray cluster (prefect-ray, the extra `ray`): here, or the one that RAY_ADDRESS names.

Assumed of its machines: this checkout at the same path (a shared file system with locks, such as NFS 4), the same
Python environment, and a Prefect server that all of them reach. That is looked at before a stage starts. DVC's own
locks let several machines record their stages in one dvc.lock, as several processes of one machine do.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture, as_completed
from prefect.settings import PREFECT_API_URL
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from flows.job import GRACE_S, Job, Outcome, Processes, StageFailed, word_of
from flows.stage import NO_GPU, Runner, gpu_slot, run_stage
from openhorizon import process
from openhorizon.config import MachineConfig
from openhorizon.pipeline import STATE_FOLDER
from openhorizon.progress import say

ROOT = Path(__file__).resolve().parents[1]
RUNNERS = ("threads", "ray")
PASSED = ("MACHINE", "MLFLOW_TRACKING_URI", "OPENHORIZON_DEBUG")  # of the flow's environment, to stages on workers
# No telemetry, every line as it is, and stages as nice as they are without Ray (15 is its default).
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_DEDUP_LOGS": "0", "RAY_COLOR_PREFIX": "0", "RAY_worker_niceness": "0"
}  # fmt: skip
LOOK_S = 300.0  # for a machine of the cluster to answer


def runner(name: str, at_once: int) -> TaskRunner[Any]:
    """Where tasks run.

    Raises:
        ValueError: no such runner, or its package is not installed.
    """
    if name == "threads":
        return ThreadPoolTaskRunner(max_workers=at_once)
    if name != "ray":
        raise ValueError(f"runner {name!r}: unknown; known are {', '.join(RUNNERS)}")
    try:
        from prefect_ray import RayTaskRunner
    except ModuleNotFoundError as error:
        raise ValueError("runner ray: prefect-ray is not installed: scripts/install-extra ray") from error
    os.environ |= SETTINGS
    address, path = os.environ.get("RAY_ADDRESS"), _python_path()
    there = {"runtime_env": {"env_vars": {"PYTHONPATH": path, **process.TELEMETRY_OFF}}}
    here = {"num_cpus": at_once, "include_dashboard": False}
    if not address:
        os.environ["PYTHONPATH"] = path  # workers are children of this process
    found: TaskRunner[Any] = RayTaskRunner(
        address or "local", there if address else here
    )  # else any that runs here is joined
    return found


def of_this_flow() -> bool:
    """Whether the tasks of the flow that runs here go to a cluster."""
    context = FlowRunContext.get()
    return context is not None and not isinstance(context.task_runner, ThreadPoolTaskRunner)


@dataclass(frozen=True)
class OnWorker:
    """Brings a stage up to date in a worker's process; it travels there, with what it says when it ends."""

    job: Job
    stale: bool
    gpu: bool

    def __call__(self, stage: str) -> tuple[Outcome, float]:
        """Outcome and seconds; raises ``StageFailed``. Whatever ends this task ends the stage's processes."""
        if not self.stale:
            return "up to date", 0.0
        running, began = Processes(), time.monotonic()
        try:
            with gpu_slot(self.gpu):
                outcome = running.run(self.job)
            seconds = time.monotonic() - began
            say(f"{self.job.said}: {outcome} in {seconds:.1f} s")
            return outcome, seconds
        except StageFailed as error:
            say(str(error))
            raise
        except BaseException:
            running.end()
            raise


class ClusterRunner(Runner):
    """Runs the stages of one project on the workers of a cluster, which decides where and how many at once."""

    def __init__(self, machine: MachineConfig, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.machine = machine
        passed = {name: os.environ[name] for name in PASSED if name in os.environ}
        self.environment = {**self.environment, **passed}
        self._futures: dict[str, PrefectFuture[Any]] = {}
        self._most = look(self.root)
        process.exit_on_terminate()  # Ray has put its own in the place of it

    def submit(self, stage: str, after: Sequence[PrefectFuture[Outcome]]) -> PrefectFuture[Outcome]:
        """Ask for ``stage`` on any worker once everything in ``after`` has succeeded. A worker that dies is replaced as
        often as the stage may be tried again."""
        from prefect_ray.context import remote_options

        self.asked.append(stage)
        job = replace(self.job(stage), root=self.root.resolve())
        retries = self.limit(stage).retries
        computes = self.gpu and word_of(stage) not in NO_GPU
        stale = bool(self._pending.intersection(stage.split()))
        named = run_stage.with_options(task_run_name=job.said, retries=retries)
        wanted = self.machine.threads if stage in self.alone else max(self.machine.threads // self.at_once, 1)
        options: dict[str, Any] = {"num_cpus": min(wanted, self._most), "max_retries": retries}
        if computes:
            options["num_gpus"] = self.machine.processes
        with remote_options(scheduling_strategy="SPREAD", **options):
            future: PrefectFuture[Any] = named.submit(
                stage=stage, run=OnWorker(job, stale, computes), after=list(after), return_state=False
            )
        self._futures[stage] = future
        return future

    def wait(self, asked: Sequence[PrefectFuture[Outcome]]) -> None:
        """Until all of them have ended; what became of each is known as it ends."""
        stages = {future.task_run_id: stage for stage, future in self._futures.items()}
        for future in as_completed(list(asked)):
            future.wait()
            stage = stages[future.task_run_id]
            if not future.state.is_final():  # what it comes after has failed: it never ran and has no result
                continue
            found: Any = future.result(raise_on_failure=False)
            if future.state.is_completed():
                self.settle(stage, *found)
            elif future.state.is_failed() or future.state.is_crashed():
                self.settle(stage, "failed", 0.0)
                if not isinstance(found, StageFailed):  # which the worker has said
                    say(f"{stage}: failed: {' '.join(str(found).split())[:300]}")

    def end(self) -> None:
        """End every stage that runs, with all its children, and start no other."""
        import ray

        references = [future.wrapped_future for future in self._futures.values()]  # type: ignore[attr-defined]
        for reference in references:
            ray.cancel(reference)
        ray.wait(references, num_returns=len(references), timeout=GRACE_S + 2)


def look(root: Path) -> int:
    """See that every machine of the cluster sees this checkout and the flow's server. Returns the most CPUs of one.

    Raises:
        ValueError: one does not; the message names it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if not nodes:
        raise ValueError("runner ray: no machine of the cluster offers CPUs")
    sign = root.resolve() / STATE_FOLDER / f"seen-{secrets.token_hex(8)}"
    sign.parent.mkdir(exist_ok=True)
    sign.write_text(sign.name, encoding="utf-8")
    there = ray.remote(looker())
    server = str(PREFECT_API_URL.value() or "")
    try:
        asked = {}
        for node in nodes:
            where = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[node["NodeManagerAddress"]] = there.options(scheduling_strategy=where).remote(str(sign), server)
        for address, answer in asked.items():
            try:
                problem = ray.get(answer, timeout=LOOK_S)
            except ray.exceptions.RayError as error:
                problem = f"does not answer: {' '.join(str(error).split())[:200]}"
            if problem:
                raise ValueError(f"runner ray: the worker on {address} {problem}")
    finally:
        sign.unlink()
    return max(int(node["Resources"]["CPU"]) for node in nodes)


def looker() -> Callable[[str, str], str]:
    """What looks around on a worker. Made within a function, so that it travels by value: there may be no checkout."""

    def problem(sign: str, server: str) -> str:
        import importlib.util
        import pathlib
        import urllib.error
        import urllib.request

        file = pathlib.Path(sign)
        if not file.is_file():
            root = file.parents[1]
            return f"does not see this checkout: {root} must be on a file system that all machines share, at this path"
        missing = [name for name in ("openhorizon", "flows", "dvc") if importlib.util.find_spec(name) is None]
        if missing:
            return f"cannot import {', '.join(missing)}: it needs the same Python environment as this machine"
        try:
            urllib.request.urlopen(f"{server.rstrip('/')}/health", timeout=20).close()
        except (OSError, ValueError) as error:
            return (
                f"does not reach Prefect's server at {server} ({error}): start one that all machines reach and name it"
                " in PREFECT_API_URL"
            )
        return ""

    return problem


def _python_path() -> str:
    before: Collection[str] = filter(None, [os.environ.get("PYTHONPATH")])  # type: ignore[assignment]
    return os.pathsep.join([str(ROOT), str(ROOT / "src"), *before])
