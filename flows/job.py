"""One DVC stage as a process: started, its lines passed on, ended with all its children, its failure explained.

A flow's own process holds several; a worker of a cluster holds one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Literal

from openhorizon.process import child_environment
from openhorizon.progress import Progress

Outcome = Literal["done", "up to date", "restored", "failed", "not run"]
GRACE_S = 8.0  # between SIGTERM and SIGKILL
QUIET_S = 4.6  # a stage speaks more often; this is for what comes before and behind it: interpreter, hashing
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


class StageFailed(RuntimeError):
    """A stage did not end well; the message says why in one line."""


@dataclass(frozen=True)
class Job:
    """What has to be known to run ``stage``; ``said`` is its name in what is printed. Several stages, parted by spaces,
    are one process."""

    root: Path
    stage: str
    said: str
    timeout_s: float | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


class Processes:
    """The stages that run here, so that all of them can be ended."""

    def __init__(self) -> None:
        self.ending = False
        self._children: set[subprocess.Popen[str]] = set()
        self._late: set[subprocess.Popen[str]] = set()  # ended because their time was over
        self._lock = threading.Lock()

    def end(self) -> None:
        """End every stage that runs, with all its children, and start no other."""
        with self._lock:
            self.ending = True
            children = list(self._children)
        for child in children:
            _signal_group(child, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        for child in children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(deadline - time.monotonic(), 0.1))
            _signal_group(child, signal.SIGKILL)  # whatever of the group outlived dvc, too

    def run(self, job: Job) -> Outcome:
        """Bring the stage up to date; raises ``StageFailed``."""
        code, lines = self._repro(job)
        if self.ending:
            raise StageFailed(f"{job.said}: ended")
        if code:
            raise StageFailed(f"{job.said}: {explain(lines)}")
        if any("didn't change, skipping" in line for line in lines):
            return "up to date"
        return "restored" if any("is cached - skipping run" in line for line in lines) else "done"

    def _repro(self, job: Job) -> tuple[int, list[str]]:
        arguments = ["-m", "openhorizon.process", "--wait-for-lock", "repro", "--single-item", *job.stage.split()]
        with self._lock:
            if self.ending:
                return 1, []
            child = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=job.root,
                env=child_environment(**job.environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            self._children.add(child)
        late = threading.Timer(job.timeout_s or 0.0, self._too_late, (child,))
        try:
            assert child.stdout is not None
            if job.timeout_s is not None:
                late.start()
            with Progress(job.said, "started", live=False, silence_s=QUIET_S) as shown:
                lines = _stream(job, child.stdout, shown)
            code = child.wait()
            if child in self._late:
                lines.append(f"openhorizon: took longer than {job.timeout_s:g} s (flow.{word_of(job.stage)}.timeout_s)")
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


def word_of(stage: str) -> str:
    """The stage's word, by which the block ``flow`` names it: ``evaluate-teacher@search`` is an ``evaluate``."""
    return stage.split()[0].split("@")[0].split("-")[0]


def explain(lines: Sequence[str]) -> str:
    """One line on why ``dvc repro`` failed: the stage's own error if it gave one, else DVC's, with what to do."""
    own = [line for line in lines if line.startswith("openhorizon: ")]
    errors = [line for line in lines if line.startswith("ERROR: ")]
    if any(line.startswith("Traceback ") for line in lines):
        own = [line for line in lines if not line.startswith("ERROR: ")][-1:]
    reason = (own or errors or list(lines) or ["it printed nothing"])[-1]
    hint = next((hint for words, hint in _HINTS.items() if not own and any(words in line for line in errors)), "")
    return f"failed: {reason.removeprefix('openhorizon: ')}{f' ({hint})' if hint else ''}"


def _stream(job: Job, output: IO[str], shown: Progress) -> list[str]:
    """Print each line behind the stage's name here, as it comes; returns the last ones."""
    kept: deque[str] = deque(maxlen=40)
    for line in output:
        text = line.rstrip()
        kept.append(text)
        if text and not text.lstrip().startswith(_NOISE):
            shown.relay(f"{job.said}: {text.removeprefix(f'{job.stage}: ')}")
    return list(kept)


def _signal_group(child: subprocess.Popen[str], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):  # nothing of the group is left
        os.killpg(child.pid, number)
