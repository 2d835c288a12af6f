"""The only task: one DVC stage, brought up to date by a process (``job.py``) here or on a worker of a cluster.

DVC decides what is stale (so Prefect caches nothing) and writes dvc.lock; a stage never knows that a flow started it.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import httpx
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.futures import PrefectFuture, wait

from flows.job import Job, Outcome, Processes, StageFailed, word_of
from openhorizon.cli import USER_ERROR
from openhorizon.config import LimitConfig
from openhorizon.pipeline import Graph, affected
from openhorizon.process import end_children, guard_children
from openhorizon.progress import Progress, say

SERVER_TRIES, SERVER_WAIT_S = 5, 2.0  # to start again where the flow server went away, and how long before each
TRIED_VARIABLE = "OPENHORIZON_FLOW_TRIED"
GPU_LIMIT = "gpu"  # `prefect gcl create gpu --limit N`
NO_GPU = ("generate", "report")  # the stages that run no model
IN_WORKER = "PREFECT__FLOW_RUN_ID" in os.environ  # a worker started this process: lines go to the Prefect UI too


class Submit(Protocol):
    """How the recipe asks for a stage: its name in dvc.yaml and the futures it comes after."""

    def __call__(self, stage: str, after: Sequence[PrefectFuture[Outcome]]) -> PrefectFuture[Outcome]: ...


def open_server(name: str) -> str:
    """Start Prefect's temporary server, unless PREFECT_API_URL names one; it ends with this process. ``name`` is what
    the line says that is printed. Returns its address."""
    with Progress(name, "starting the flow server"), get_client(sync_client=True) as client:
        client.hello()
        address = str(client.api_url)
    guard_children()
    return address


def start_again(error: httpx.TransportError) -> int:  # noqa: RET503 (execve does not return)
    """This process anew, where the flow server went away in the middle: stages that are done are up to date, and the
    one that ran goes on where it was. Returns an exit code where that was tried ``SERVER_TRIES`` times."""
    tried = int(os.environ.get(TRIED_VARIABLE, "0"))
    if tried >= SERVER_TRIES:
        print(f"openhorizon: the flow server does not answer: {error}", file=sys.stderr, flush=True)
        return 1
    say("the flow server went away; starting again, what is done stays done")
    end_children()
    time.sleep(SERVER_WAIT_S)
    arguments = [sys.executable, *sys.orig_argv[1:]]
    os.execve(sys.executable, arguments, {**os.environ, TRIED_VARIABLE: str(tried + 1)})


def exit_code(run: Callable[[], object]) -> int:
    """Run a flow for a command line. Returns what it exits with; why it failed is said in one line."""
    try:
        run()
    except httpx.TransportError as error:
        return start_again(error)
    except StageFailed as error:
        print(f"openhorizon: {error}", file=sys.stderr)
        return 1
    except (ValueError, OSError) as error:
        print(f"openhorizon: {' '.join(str(error).split())}", file=sys.stderr)
        return USER_ERROR
    return 0


class Slots:
    """As many holders at once as there are slots; of those who wait, the lowest rank is next.

    The recipe asks for training before evaluation, so that what everything else waits for is not kept waiting. A holder
    may take all slots: a stage that uses every core and has nothing beside it to wait for.
    """

    def __init__(self, count: int) -> None:
        self._count = self._free = count
        self._waiting: list[int] = []
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, rank: int, alone: bool = False) -> Iterator[None]:
        """Wait for a slot, or for all where ``alone``, and keep it for the block."""
        slots = self._count if alone else 1
        with self._changed:
            self._waiting.append(rank)
            self._changed.wait_for(lambda: self._free >= slots and rank == min(self._waiting))
            self._waiting.remove(rank)
            self._free -= slots
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._free += slots
                self._changed.notify_all()


@dataclass
class Runner:
    """Runs the stages of one project and knows its processes, so that all of them can be ended."""

    root: Path
    at_once: int
    graph: Graph
    stale: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    alone: Collection[str] = ()  # stages that take the whole machine
    slots: Slots | None = None  # that several projects share; None: its own
    first_rank: int = 0  # of its first stage among those of all projects
    prefix: str = ""  # of what is printed
    ran: Callable[[str], None] | None = None  # told of a stage that ran and ended well
    settled: Callable[[int], None] | None = None  # told how many stages have an outcome
    limits: Mapping[str, LimitConfig] = field(default_factory=lambda: {"default": LimitConfig(1, None)})
    gpu: bool = False  # whether stages that compute hold a slot of Prefect's limit `gpu`

    def __post_init__(self) -> None:
        self.asked: list[str] = []
        self.outcomes: dict[str, tuple[Outcome, float]] = {}
        self._pending = affected(self.graph, list(self.stale))
        self._slots = self.slots or Slots(self.at_once)
        self._processes = Processes()

    def submit(self, stage: str, after: Sequence[PrefectFuture[Outcome]]) -> PrefectFuture[Outcome]:
        """Start ``stage`` once everything in ``after`` has succeeded. Several, parted by spaces, are one process of
        DVC: for stages that are expected to come from its cache."""
        self.asked.append(stage)
        named = run_stage.with_options(task_run_name=self._said(stage), retries=self.limit(stage).retries)
        return named.submit(stage=stage, run=self.run, wait_for=list(after), return_state=False)

    def run(self, stage: str) -> Outcome:
        """Bring one stage up to date; raises ``StageFailed``."""
        said = self._said(stage)
        if not self._pending.intersection(stage.split()):
            say(f"{said}: up to date")
            return self.settle(stage, "up to date", 0.0)
        rank = self.first_rank + (self.asked.index(stage) if stage in self.asked else 0)
        with self._slots.hold(rank, alone=stage in self.alone), self._gpu(stage):
            began = time.monotonic()
            try:
                outcome = self._processes.run(self.job(stage))
            except StageFailed as error:
                if not self._processes.ending:
                    self.settle(stage, "failed", time.monotonic() - began)
                    say(str(error))
                raise
        seconds = time.monotonic() - began
        if outcome == "done" and self.ran:
            self.ran(stage)
        say(f"{said}: {outcome} in {seconds:.1f} s")
        return self.settle(stage, outcome, seconds)

    def wait(self, asked: Sequence[PrefectFuture[Outcome]]) -> None:
        """Until all of them have ended."""
        wait(list(asked))

    def end(self) -> None:
        """End every stage that runs, with all its children, and start no other."""
        self._processes.end()

    def job(self, stage: str) -> Job:
        """What has to be known to run it."""
        return Job(self.root, stage, self._said(stage), self.limit(stage).timeout_s, self.environment)

    def limit(self, stage: str) -> LimitConfig:
        """How often and how long a stage may be tried."""
        return self.limits.get(word_of(stage), self.limits["default"])

    def _gpu(self, stage: str) -> AbstractContextManager[None]:
        """A slot among all flow runs of a server; without a limit of that name there, nobody waits."""
        return gpu_slot(self.gpu and word_of(stage) not in NO_GPU)

    def _said(self, stage: str) -> str:
        several = len(stage.split())
        return self.prefix + (f"{several} shared stages" if several > 1 else stage)

    def settle(self, stage: str, outcome: Outcome, seconds: float) -> Outcome:
        """What became of a stage."""
        self.outcomes[stage] = (outcome, seconds)
        if self.settled:
            self.settled(len(self.outcomes))
        return outcome


def gpu_slot(wanted: bool) -> AbstractContextManager[None]:
    """A slot of Prefect's limit ``gpu``, where it is wanted."""
    return concurrency(GPU_LIMIT, occupy=1) if wanted else nullcontext()


@task(cache_policy=NO_CACHE, retry_delay_seconds=1, log_prints=IN_WORKER, persist_result=False)
def run_stage(stage: str, run: Callable[[str], Any], after: Sequence[Any] = ()) -> Any:
    """One stage of dvc.yaml. ``after``: what it waits for on a cluster, whose scheduler looks at arguments."""
    return run(stage)


def finish(futures: Iterable[PrefectFuture[Outcome]], runner: Runner) -> list[str]:
    """Wait for all; on Ctrl-C, SIGTERM or a cancelled flow end every child process first. Returns what failed."""
    asked = list(futures)
    try:
        runner.wait(asked)
    except BaseException:
        runner.end()
        raise
    return [stage for stage, (outcome, _) in runner.outcomes.items() if outcome == "failed"]
