"""Rollouts of iterations to come, written while the present one is scored and trained on.

With a lag of s the episodes of iteration i are written by the weights that training had before iteration i - s (before
the first, where there is none). The lag is fixed: how fast either side is changes how long the other waits, never which
weights write, so that a run is deterministic and one that goes on ends with the same bits. s copies of the model hold
the weights of what is in flight; they are saved, and what was in flight is written again from its seeds.

Of several processes that train one model each writes at once, without a thread: putting a model together takes all of
them, in one order. Everything is then as it would be, and nothing is hidden.
"""

from __future__ import annotations

import copy
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from openhorizon.agent.trajectory import Trajectory
from openhorizon.model.sampler import LocalPolicy
from openhorizon.model.sharding import duplicate
from openhorizon.train.resume import Part, Weights
from openhorizon.world import World

Progress = Callable[[int, int], None]
Write = Callable[[LocalPolicy, int, Progress], list[Trajectory]]  # the episodes of an iteration, by a policy
PATIENCE_S = 10.0  # that a rollout which nobody wants any more is given to notice it


@dataclass
class _Job:
    """The episodes of one iteration, on their way."""

    iteration: int
    policy: LocalPolicy
    over: threading.Event = field(default_factory=threading.Event)
    made: list[Trajectory] = field(default_factory=list)
    error: BaseException | None = None
    seconds: float = 0.0
    idle_s: float = 0.0


class _Unwanted(Exception):
    """Training has ended while this was written."""


class Ahead:
    """Writes the episodes of ``iterations`` iterations, each by the weights of ``lag`` iterations before; with a lag of
    0 when they are asked for, by ``policy`` itself. A context manager: on leaving, what is in flight is given up."""

    def __init__(self, policy: LocalPolicy, lag: int, iterations: int, write: Write) -> None:
        self.policy, self.lag, self.iterations, self.write = policy, lag, iterations, write
        self.copies = [_copied(policy) for _ in range(lag)]
        self.flight = deque[_Job]()
        self.closed = False
        self._jobs = queue.SimpleQueue[_Job | None]()
        self._thread: threading.Thread | None = None

    def parts(self) -> dict[str, Part]:
        """The weights that what is in flight is written by, for a save."""
        return {f"behind{n}": Weights(policy.checkpoint.model) for n, policy in enumerate(self.copies)}

    def begin(self, iteration: int) -> None:
        """Start on the iterations from this one on, by the copies as they are."""
        for i in range(iteration, min(iteration + self.lag, self.iterations)):
            self._start(i)

    def take(self, iteration: int) -> tuple[list[Trajectory], dict[str, float]]:
        """The iteration's episodes, for which this waits. With a lag also ``seconds_rollout``: how long they took,
        ``seconds_waited``: how long training waited for them, ``seconds_idle``: how long the writer had waited for the
        weights, and ``rollout_hidden``: the share of the first that the second does not have. Then starts on those of
        ``lag`` iterations on, by the weights as they are now. Raises what writing raised."""
        asked = time.perf_counter()
        if not self.lag:
            return self.write(self.policy, iteration, _silent), {}
        job = self.flight.popleft()
        assert job.iteration == iteration
        job.over.wait()
        waited = job.seconds if self._thread is None else time.perf_counter() - asked
        if job.error is not None:
            raise job.error
        if iteration + self.lag < self.iterations:
            free = job.policy.checkpoint.model
            with torch.no_grad():
                now = self.policy.checkpoint.model.state_dict()
                for name, tensor in free.state_dict().items():
                    tensor.copy_(now[name])
            self._start(iteration + self.lag)
        hidden = max(1 - waited / job.seconds, 0.0) if job.seconds else 0.0
        times = {"seconds_rollout": job.seconds, "seconds_waited": waited, "seconds_idle": job.idle_s}
        return job.made, times | {"rollout_hidden": hidden}

    def __enter__(self) -> Ahead:
        if self.lag and World.here().size == 1:
            self._thread = threading.Thread(target=self._serve, name="rollouts", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *raised: Any) -> None:
        self.closed = True
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(PATIENCE_S)  # it is a daemon: an environment that hangs holds nothing up

    def _start(self, iteration: int) -> None:
        job = _Job(iteration, self.copies[iteration % self.lag])
        self.flight.append(job)
        if self._thread is None:
            self._make(job)
            return
        if self.policy.checkpoint.model.device.type == "cuda":
            torch.cuda.synchronize()  # the copy is there before another stream reads it
        self._jobs.put(job)

    def _serve(self) -> None:
        """The thread."""
        device = self.policy.checkpoint.model.device
        stream = torch.cuda.stream(torch.cuda.Stream(device)) if device.type == "cuda" else nullcontext()
        with stream:
            since = time.perf_counter()
            while (job := self._jobs.get()) is not None:
                job.idle_s = time.perf_counter() - since
                try:
                    self._make(job)
                except BaseException as error:  # it is raised where the episodes are asked for
                    job.error = error
                    job.over.set()
                since = time.perf_counter()

    def _make(self, job: _Job) -> None:
        begun = time.perf_counter()
        job.made = self.write(job.policy, job.iteration, self._wanted)
        job.seconds = time.perf_counter() - begun
        job.over.set()

    def _wanted(self, done: int, total: int) -> None:
        if self.closed:
            raise _Unwanted


def staleness(iteration: int, lag: int) -> int:
    """How many iterations of updates the weights that wrote this iteration's episodes are behind those it starts from:
    never more than ``lag``."""
    return min(iteration, lag)


def _copied(policy: LocalPolicy) -> LocalPolicy:
    """The same policy on weights of its own."""
    own = copy.copy(policy)
    model = duplicate(policy.checkpoint.model).requires_grad_(False).eval()
    own.checkpoint = replace(policy.checkpoint, model=model)
    return own


def _silent(done: int, total: int) -> None:
    """Nobody is told."""
