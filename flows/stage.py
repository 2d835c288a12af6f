"""The only task: one DVC stage as a subprocess, its lines streamed, its failure explained.

DVC decides what is stale (so Prefect caches nothing) and writes dvc.lock; a stage never knows that a flow started it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal, Protocol

import httpx
from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.futures import PrefectFuture, wait

from openhorizon.config import LimitConfig
from openhorizon.pipeline import Graph, affected
from openhorizon.process import child_environment, end_children, guard_children
from openhorizon.progress import Progress, say

Outcome = Literal["done", "up to date", "restored", "failed", "not run"]
GRACE_S = 8.0  # between SIGTERM and SIGKILL
SERVER_TRIES, SERVER_WAIT_S = 5, 2.0  # to start again where the flow server went away, and how long before each
TRIED_VARIABLE = "OPENHORIZON_FLOW_TRIED"
GPU_LIMIT = "gpu"  # `prefect gcl create gpu --limit N`
NO_GPU = ("generate", "report")  # the stages that run no model
QUIET_S = 4.6  # a stage speaks more often; this is for what comes before and behind it: interpreter, hashing
IN_WORKER = "PREFECT__FLOW_RUN_ID" in os.environ  # a worker started this process: lines go to the Prefect UI too
_NOISE = (  # of DVC
    *("To track the changes", "git add ", "To enable auto staging", "dvc config core.autostage", "Use `dvc push`"),
    *("Running stage ", "> ", "Updating lock file", "Generating lock file"),
)
_HINTS = {  # DVC's words → what to do
    "missing data": "an input is missing: `make reproduce` makes all of them, `dvc pull` fetches them",
    "[Errno 2]": "an input is missing: `make reproduce` makes all of them, `dvc pull` fetches them",
    "is busy": "another process runs DVC here: wait for it or end it",
    "No space left": "free some disk space and run again",
}


class Submit(Protocol):
    """How the recipe asks for a stage: its name in dvc.yaml and the futures it comes after."""

    def __call__(self, stage: str, after: Sequence[PrefectFuture[Outcome]]) -> PrefectFuture[Outcome]: ...


class StageFailed(RuntimeError):
    """A stage did not end well; the message says why in one line."""


def open_server(name: str) -> None:
    """Start Prefect's temporary server, unless PREFECT_API_URL names one; it ends with this process. ``name`` is what
    the line says that is printed."""
    with Progress(name, "starting the flow server"), get_client(sync_client=True) as client:
        client.hello()
    guard_children()


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
        self._children: set[subprocess.Popen[str]] = set()
        self._late: set[subprocess.Popen[str]] = set()  # ended because their time was over
        self._lock = threading.Lock()
        self._ending = False

    def submit(self, stage: str, after: Sequence[PrefectFuture[Outcome]]) -> PrefectFuture[Outcome]:
        """Start ``stage`` once everything in ``after`` has succeeded. Several, parted by spaces, are one process of
        DVC: for stages that are expected to come from its cache."""
        self.asked.append(stage)
        named = run_stage.with_options(task_run_name=self._said(stage), retries=self._limit(stage).retries)
        return named.submit(stage=stage, run=self.run, wait_for=list(after), return_state=False)

    def run(self, stage: str) -> Outcome:
        """Bring one stage up to date; raises ``StageFailed``."""
        said = self._said(stage)
        if not self._pending.intersection(stage.split()):
            say(f"{said}: up to date")
            return self._settle(stage, "up to date", 0.0)
        rank = self.first_rank + (self.asked.index(stage) if stage in self.asked else 0)
        with self._slots.hold(rank, alone=stage in self.alone), self._gpu(stage):
            began = time.monotonic()
            code, lines = self._repro(stage)
        seconds = time.monotonic() - began
        if self._ending:
            raise StageFailed(f"{said}: ended")
        if code:
            self._settle(stage, "failed", seconds)
            reason = f"{said}: {explain(lines)}"
            say(reason)
            raise StageFailed(reason)
        outcome: Outcome = "done"
        if any("didn't change, skipping" in line for line in lines):
            outcome = "up to date"
        elif any("is cached - skipping run" in line for line in lines):
            outcome = "restored"
        if outcome == "done" and self.ran:
            self.ran(stage)
        say(f"{said}: {outcome} in {seconds:.1f} s")
        return self._settle(stage, outcome, seconds)

    def end(self) -> None:
        """End every stage that runs, with all its children, and start no other."""
        with self._lock:
            self._ending = True
            children = list(self._children)
        for child in children:
            _signal_group(child, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(deadline - time.monotonic(), 0.1))
            _signal_group(child, signal.SIGKILL)  # whatever of the group outlived dvc, too

    def _repro(self, stage: str) -> tuple[int, list[str]]:
        arguments = ["-m", "openhorizon.process", "--wait-for-lock", "repro", "--single-item", *stage.split()]
        with self._lock:
            if self._ending:
                return 1, []
            child = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.root,
                env=child_environment(**self.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._children.add(child)
        timeout_s = self._limit(stage).timeout_s
        late = threading.Timer(timeout_s or 0.0, self._too_late, (child,))
        try:
            assert child.stdout is not None
            said = self._said(stage)
            if timeout_s is not None:
                late.start()
            with Progress(said, "started", live=False, silence_s=QUIET_S) as shown:
                lines = _stream(stage, said, child.stdout, shown)
            code = child.wait()
            if child in self._late:
                lines.append(f"openhorizon: took longer than {timeout_s:g} s (flow.{word_of(stage)}.timeout_s)")
            return code, lines
        finally:
            late.cancel()
            _signal_group(child, signal.SIGKILL)
            with self._lock:
                self._children.discard(child)

    def _too_late(self, child: subprocess.Popen[str]) -> None:
        self._late.add(child)
        _signal_group(child, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            child.wait(GRACE_S)
        _signal_group(child, signal.SIGKILL)

    def _limit(self, stage: str) -> LimitConfig:
        return self.limits.get(word_of(stage), self.limits["default"])

    def _gpu(self, stage: str) -> AbstractContextManager[None]:
        """A slot among all flow runs of a server; without a limit of that name there, nobody waits."""
        computes = self.gpu and word_of(stage) not in NO_GPU
        return concurrency(GPU_LIMIT, occupy=1) if computes else nullcontext()

    def _said(self, stage: str) -> str:
        several = len(stage.split())
        return self.prefix + (f"{several} shared stages" if several > 1 else stage)

    def _settle(self, stage: str, outcome: Outcome, seconds: float) -> Outcome:
        self.outcomes[stage] = (outcome, seconds)
        if self.settled:
            self.settled(len(self.outcomes))
        return outcome


class _Run(Protocol):
    def __call__(self, stage: str) -> Outcome: ...


@task(cache_policy=NO_CACHE, retry_delay_seconds=1, log_prints=IN_WORKER, persist_result=False)
def run_stage(stage: str, run: _Run) -> Outcome:
    """One stage of dvc.yaml."""
    return run(stage)


def word_of(stage: str) -> str:
    """The stage's word, by which the block ``flow`` names it: ``evaluate-teacher@search`` is an ``evaluate``."""
    return stage.split()[0].split("@")[0].split("-")[0]


def finish(futures: Iterable[PrefectFuture[Outcome]], runner: Runner) -> list[str]:
    """Wait for all; on Ctrl-C, SIGTERM or a cancelled flow end every child process first. Returns what failed."""
    asked = list(futures)
    try:
        wait(asked)
    except BaseException:
        runner.end()
        raise
    return [stage for stage, (outcome, _) in runner.outcomes.items() if outcome == "failed"]


def explain(lines: Sequence[str]) -> str:
    """One line on why ``dvc repro`` failed: the stage's own error if it gave one, else DVC's, with what to do."""
    own = [line for line in lines if line.startswith("openhorizon: ")]
    errors = [line for line in lines if line.startswith("ERROR: ")]
    if any(line.startswith("Traceback ") for line in lines):
        own = [line for line in lines if not line.startswith("ERROR: ")][-1:]
    reason = (own or errors or list(lines) or ["it printed nothing"])[-1]
    hint = next((hint for words, hint in _HINTS.items() if not own and any(words in line for line in errors)), "")
    return f"failed: {reason.removeprefix('openhorizon: ')}{f' ({hint})' if hint else ''}"


def _stream(stage: str, said: str, output: IO[str], shown: Progress) -> list[str]:
    """Print each line behind ``said``, the stage's name here, as it comes; returns the last ones."""
    kept: deque[str] = deque(maxlen=40)
    for line in output:
        text = line.rstrip()
        kept.append(text)
        if text and not text.lstrip().startswith(_NOISE):
            shown.relay(f"{said}: {text.removeprefix(f'{stage}: ')}")
    return list(kept)


def _signal_group(child: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # nothing of the group is left
        os.killpg(child.pid, number)
