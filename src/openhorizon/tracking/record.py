"""A stage's record: a file that it appends to, which others carry to MLflow.

.openhorizon/records/STAGE.PID@HOST.jsonl    a line an event: start, points of curves, end
                     STAGE.PID@HOST.run      beside it: the run that it is carried to, and how far it has been
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import resource
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from openhorizon import artifacts, pipeline
from openhorizon.config import Config
from openhorizon.progress import Progress

PARENT_VARIABLE = "OPENHORIZON_PARENT_RUN"  # set by the flow, which then carries the records
UNTRACKED = "untracked"  # in place of a parent where MLflow failed: the next flow takes the records up
TIMINGS = artifacts.ROOT / "timings"
RECORDS = pipeline.STATE_FOLDER / "records"
HOST = socket.gethostname().replace(".", "-")


class StageLog:
    """A stage's progress, curves and record. A context manager: the run ends as FINISHED, FAILED or KILLED.

    Of several processes that train together the first alone has one that says and records anything."""

    def __init__(self, config: Config, stage: str, target: str | None = None, root: Path = Path()) -> None:
        self.name = f"{stage}@{target}" if target else stage
        self.root = root
        self.params = parameters(config, stage, target)
        self.curves: list[dict[str, float]] = []
        self._tokens = 0
        self._speaks = artifacts.is_first()
        self._began = time.monotonic()
        self._dvc_stage = os.environ.get("DVC_STAGE", self.name)  # as dvc.yaml calls it
        self._parent = os.environ.get(PARENT_VARIABLE, "")
        self._shown = Progress(self._dvc_stage)
        self._record = root / RECORDS / f"{self.name}.{os.getpid()}@{HOST}.jsonl"

    def __enter__(self) -> StageLog:
        if not self._speaks:
            return self
        self._shown.__enter__()
        self._record.parent.mkdir(parents=True, exist_ok=True)
        self._append(
            {"start": self.name, "stage": self._dvc_stage, "params": self.params, "at": now(), "parent": self._parent}
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._speaks:
            return
        if kind is None:
            artifacts.write_json(self.root / TIMINGS / f"{self.name}.json", {"stage": self.name, **self.summary()})
        with suppress(OSError):  # a full disk has been said already, or will be
            self._append({"step": 0, "at": now(), "values": {f"stage_{k}": v for k, v in self.summary().items()}})
            self._append({"end": status_of(kind), "at": now()})
        if not self._parent:
            self._shown.at("recording")
            _carry_alone(self.root, self._record)
        self._shown.__exit__(kind, value, trace)

    def metrics(self, step: int, **values: float) -> None:
        """One point of each named curve."""
        self.curves.append({"step": step, **values})
        self._append({"step": step, "at": now(), "values": values})

    def timing(self, step: int, **values: float) -> None:
        """One point of curves that differ from run to run: for MLflow, never in ``curves.jsonl``."""
        self._append({"step": step, "at": now(), "values": values})

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Where the stage is; call it as often as you like."""
        if self._speaks:
            self._shown.update(done, total, note)

    def at(self, where: str) -> None:
        """What the stage does next, for work without a count."""
        if self._speaks:
            self._shown.at(where)

    def tokens(self, count: int) -> None:
        """Add to the tokens trained on or generated."""
        self._tokens += count

    def save_curves(self, folder: Path) -> None:
        """Write ``curves.jsonl``: one object a call of ``metrics``, no times in it."""
        lines = (json.dumps(point, sort_keys=True) for point in self.curves)
        artifacts.write_text(folder / "curves.jsonl", "".join(f"{line}\n" for line in lines))

    def state(self) -> dict[str, Any]:
        """What a stage that is killed here would have to be told to go on: JSON."""
        return {"curves": self.curves, "tokens": self._tokens, "seconds": self.summary()["seconds"]}

    def take_up(self, state: Mapping[str, Any]) -> None:
        """Go on with the curves, tokens and seconds of a stage that was killed; its curves are recorded once more, so
        that this run has them from their beginning."""
        self.curves, self._tokens = list(state["curves"]), state["tokens"]
        self._began -= state["seconds"]
        for point in self.curves:
            values = {name: value for name, value in point.items() if name != "step"}
            self._append({"step": point["step"], "at": now(), "values": values})

    def summary(self) -> dict[str, float]:
        """What the stage took so far; never part of a DVC output."""
        seconds = round(time.monotonic() - self._began, 2)
        return {"seconds": seconds, "tokens": self._tokens, "peak_rss_mb": round(peak_rss_mb(), 1)}

    def _append(self, event: Mapping[str, Any]) -> None:
        if not self._speaks:
            return
        with self._record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


def _carry_alone(root: Path, record: Path) -> None:
    from openhorizon.tracking.store import Store, tracked  # no stage of a flow pays for it

    tracked(lambda: Store(root).carry_alone(record))


def parameters(config: Config, stage: str, target: str | None = None) -> dict[str, str]:
    """Flat parameters that say what a stage does (``generate.noise`` → ``"0.15"``), with profile, seed, machine."""
    chosen = getattr(config, {"baseline": "baselines", "benchmark": "benchmarks"}.get(stage, stage), None)
    if isinstance(chosen, Mapping):
        chosen = chosen.get(target)
    blocks: dict[str, Any] = {"profile": config.profile, "seed": config.seed, "machine": config.machine}
    if stage == "base":
        blocks["model"] = config.model
    if stage in ("base", "sft", "teach", "distill", "baseline"):
        blocks["router"] = config.router
    return dict(flat(blocks | {stage: chosen}))


def peak_rss_mb() -> float:
    """The most memory that this process, or one of its ended children, held at once.

    Linux's ``ru_maxrss`` of a process starts at that of the process it was forked from, so it is read from /proc.
    """
    own: float = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE)):
        own = float(found.group(1))
    unit = 1024 if sys.platform != "darwin" else 1024 * 1024
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / unit


def status_of(kind: type[BaseException] | None) -> str:
    if kind is None:
        return "FINISHED"
    return "FAILED" if issubclass(kind, Exception) else "KILLED"


def may_run(record: Path) -> bool:
    """Whether the process that writes it may be there: of another machine's nobody can tell here."""
    pid, _, host = record.name.split(".")[-2].partition("@")
    return psutil.pid_exists(int(pid)) if host in ("", HOST) else True


def parent_of(record: Path) -> str | None:
    """The run above a record's, as its stage was told; None where it was killed before it could say so."""
    with record.open(encoding="utf-8") as file:
        first = file.readline()
    return str(json.loads(first)["parent"]) if first.endswith("\n") else None


def now() -> int:
    return int(time.time() * 1000)


def flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flat(item, f"{path}.{key}" if path else str(key))
    elif value is not None:
        yield path, str(value)
