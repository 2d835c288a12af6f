"""Training that goes on where it was killed, bit by bit as if it had not been (on a CPU).

A stage makes one ``Resume`` and gives it what it holds throughout (its model, the best state); a training loop gives
what it holds while it runs (optimizer, routing statistics, what was spent) and, behind each step, a few plain values.
By time or by steps, as the machine block says, all of it is saved at once (``unfinished.py``). Tensors are safetensors
files, the rest is JSON; there is no pickle.

What is not saved is made again from its seed: the data cursor is the number of steps, as streams of batches and prompts
depend on seeds alone and are cheap to run through; an iteration's rollouts that were in flight are rolled out again
from the same seeds by the same weights, and come out the same.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import DTensor

from openhorizon.agent.trajectory import Trajectory, trajectory_of, trajectory_row
from openhorizon.config import MachineConfig
from openhorizon.model.load import full_disk_is_an_os_error
from openhorizon.model.sharding import gathered_on_first, laid_out
from openhorizon.unfinished import Unfinished
from openhorizon.world import World

if TYPE_CHECKING:
    from openhorizon.tracking import StageLog

Result = TypeVar("Result")


class State(NamedTuple):
    """What has to be known of a part to go on. ``values`` is JSON. Tensors of the same ``version`` are written once;
    None: they change all the time."""

    tensors: Mapping[str, torch.Tensor]
    values: Any = None
    version: int | None = None


class Part(Protocol):
    """Something that a training changes."""

    def state(self) -> State: ...

    def take_up(self, state: State) -> None:
        """Be again what ``state`` was of."""


class Resume:
    """What is saved of one stage. Without ``unfinished`` nothing is, and everything begins at its beginning."""

    def __init__(
        self,
        unfinished: Unfinished | None = None,
        machine: MachineConfig | None = None,
        log: StageLog | None = None,
        **parts: Part,
    ) -> None:
        self._unfinished, self._log = unfinished, log
        self._every_s = machine.checkpoint_s if machine else 0.0
        self._every_steps = machine.checkpoint_steps if machine else None
        self._saved, self._steps = time.monotonic(), 0  # when, and how many steps ago
        self._parts = dict[str, Part]()
        self._scope: list[str] = []
        self._loop: dict[str, Any] | None = None  # values of the loop that runs
        self._entered = list[str]()  # the parts that it alone holds
        self._written: dict[str, int] = {}  # version of each part's file
        self._found: dict[str, Any] = dict(unfinished.values) if unfinished else {}
        self._done: dict[str, Any] = dict(self._found.get("done", {}))
        if self._found and log:
            log.take_up(self._found["log"])
        self.keep(random=Random(), **parts)

    def keep(self, **parts: Part) -> None:
        """Save these for as long as the stage runs. Where they were saved, they are taken up at once."""
        self._parts |= parts
        self._take_up(parts)

    def once(self, name: str, make: Callable[[], Result]) -> Result:
        """What ``make`` returned (JSON) when it was finished, perhaps in an earlier process; else it runs now."""
        key = "/".join([*self._scope, name])
        if key not in self._done:
            self._scope.append(name)
            made = make()
            self._scope.pop()
            self._leave()
            self._done[key] = made
            self.tick()
        result: Result = self._done[key]
        return result

    def enter(self, **parts: Part) -> dict[str, Any]:
        """Begin a loop that changes these parts. Returns the values that its last ``after`` was given, all parts being
        what they were then; empty where the loop begins at its beginning."""
        self._leave()
        self._entered = [name for name in parts if name not in self._parts]
        self._parts |= parts
        self._loop = {}
        if self._found and self._found["loop"] is not None and self._found["scope"] == self._scope:
            self._take_up(self._parts)
            self._loop, self._found = self._found["loop"], {}
            if self._log and self._unfinished:
                print(f"{self._unfinished.stage}: goes on behind step {self._loop['step']}", flush=True)
        return dict(self._loop)

    def after(self, step: int, **values: Any) -> None:
        """``step`` steps of the loop are done, and ``values`` are what it holds beside its parts."""
        self._steps += 1
        self._loop = {"step": step, **values}
        self.tick()

    def tick(self) -> None:
        """Save, if it is time."""
        if not self._unfinished:
            return
        by_steps = self._every_steps is not None and self._steps >= self._every_steps
        if World.here().told(by_steps or time.monotonic() - self._saved >= self._every_s):
            self._save(self._unfinished)
            self._saved, self._steps = time.monotonic(), 0

    def remove(self) -> None:
        """The stage's artifact is in place."""
        if self._unfinished and World.here().first:
            self._unfinished.remove()

    def _save(self, unfinished: Unfinished) -> None:
        values, fresh, same = dict[str, Any](), dict[str, Callable[[Path], None]](), list[str]()
        written, world = dict[str, int](), World.here()
        for name, part in self._parts.items():
            state = part.state()
            values[name] = state.values
            if not state.tensors:
                continue
            if state.version is not None and self._written.get(name) == state.version:
                same.append(name)
            else:
                fresh[name] = partial(_write, gathered_on_first(state.tensors))
            if state.version is not None:
                written[name] = state.version
        log = self._log.state() if self._log else None
        told = {"parts": values, "done": self._done, "scope": self._scope, "loop": self._loop or None, "log": log}
        if world.told(world.first and unfinished.save(told, fresh, same)):
            self._written = written

    def _take_up(self, parts: Mapping[str, Part]) -> None:
        for name, part in parts.items():
            if self._unfinished and name in self._found.get("parts", {}):
                stored = name in self._unfinished.names
                tensors = load_file(self._unfinished.path(name)) if stored else {}
                part.take_up(State(tensors, self._found["parts"][name]))

    def _leave(self) -> None:
        """The loop that ran last is over: what it alone held is no longer saved."""
        for name in self._entered if self._loop is not None else ():
            del self._parts[name]
            self._written.pop(name, None)
        self._loop, self._entered = None, []


class Weights:
    """A model's parameters and buffers, each once however many names it has. A ``frozen`` model is written once."""

    def __init__(self, model: torch.nn.Module, frozen: bool = False) -> None:
        self.model, self.version = model, 0 if frozen else None

    def state(self) -> State:
        seen, tensors = set[int](), dict[str, torch.Tensor]()
        for name, tensor in self.model.state_dict().items():
            if tensor.data_ptr() not in seen:
                seen |= set() if isinstance(tensor, DTensor) else {tensor.data_ptr()}
                tensors[name] = tensor
        return State(tensors, None, self.version)

    def take_up(self, state: State) -> None:
        own = self.model.state_dict()
        found = {name: laid_out(tensor, own[name]) for name, tensor in state.tensors.items()}
        lacking, unknown = self.model.load_state_dict(found, strict=False)
        assert not unknown and found.keys() | set(lacking) == own.keys()


class Tensors:
    """Named tensors that a loop holds in ``held`` and adds to."""

    def __init__(self, held: dict[str, torch.Tensor]) -> None:
        self.held = held

    def state(self) -> State:
        return State(self.held)

    def take_up(self, state: State) -> None:
        self.held.clear()
        self.held.update(state.tensors)


class Episodes:
    """Trajectories that a loop adds to ``held``. What routers chose in them is not saved."""

    def __init__(self, held: list[Trajectory]) -> None:
        self.held = held
        self._lines = list[bytes]()  # of JSON, one a trajectory: each is written once

    def state(self) -> State:
        fresh = self.held[len(self._lines) :]
        self._lines += [json.dumps(trajectory_row(trajectory)).encode() for trajectory in fresh]
        text = bytearray(b"\n".join(self._lines))
        return State({"lines": torch.frombuffer(text, dtype=torch.uint8)} if text else {}, None, len(self._lines))

    def take_up(self, state: State) -> None:
        self._lines = [line for text in state.tensors.values() for line in text.numpy().tobytes().split(b"\n")]
        self.held[:] = [trajectory_of(json.loads(line)) for line in self._lines]


class Random:
    """Torch's global generators. Every draw of a training has a seed of its own (``seeds.py``); a model with dropout
    draws from these."""

    def state(self) -> State:
        found = {"cpu": torch.get_rng_state()}
        return State(found | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_initialized() else {}))

    def take_up(self, state: State) -> None:
        torch.set_rng_state(state.tensors["cpu"])
        if "cuda" in state.tensors:
            torch.cuda.set_rng_state(state.tensors["cuda"])


def _write(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    with full_disk_is_an_os_error(path):
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
