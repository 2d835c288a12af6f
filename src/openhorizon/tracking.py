"""What a run records: curves, timings, parameters, where it came from. The only import of mlflow.

One MLflow run a reproduction (the parent) and, below it, one a stage. A stage appends what it records to a file of its
own; the flow's process carries all of them to MLflow while it waits (under plain ``dvc repro`` each stage does so
itself, at its end). So a stage neither pays for importing mlflow nor ends when tracking fails: that is said once.
Timings stay out of what DVC compares, so that two runs of a stage write the same bytes.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import re
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import psutil

from openhorizon import artifacts, pipeline
from openhorizon.agent.trajectory import iter_trajectories
from openhorizon.config import Config
from openhorizon.progress import Progress
from openhorizon.traces import Span, trace_of

PARENT_VARIABLE = "OPENHORIZON_PARENT_RUN"  # set by the flow, which then carries the records
DATABASE = "mlruns.db"
EXPERIMENT = "openhorizon"
IDENTITY_TAG = "openhorizon.params"
RESULTS = artifacts.REPORTS / "results.json"
TIMINGS = artifacts.ROOT / "timings"
UNTRACKED = "untracked"  # in place of a parent where MLflow failed: the next flow takes the records up
RECORDS = pipeline.STATE_FOLDER / "records"
KEPT_RECORDS = "records"  # folder of a reproduction's run: what each model did on each held-out task
BATCH = 1000  # points a write; MLflow takes no more
PARAMS_BATCH = 100  # the same for parameters
SPAN_NS = 1_000_000  # between two spans of a trace, whose order alone means something
CARRY_S = 5.0  # between two writes of the flow
RUN_SUFFIX = ".run"  # beside a record: the run that it is carried to, and how far it has been
PARENT_SUFFIX = ".parent"  # named by its run, a reproduction that is not closed yet; its status, once it has one

T = TypeVar("T")


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
        self._record = root / RECORDS / f"{self.name}.{os.getpid()}.jsonl"

    def __enter__(self) -> StageLog:
        if not self._speaks:
            return self
        self._shown.__enter__()
        self._record.parent.mkdir(parents=True, exist_ok=True)
        self._append(
            {"start": self.name, "stage": self._dvc_stage, "params": self.params, "at": _now(), "parent": self._parent}
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
            self._append({"step": 0, "at": _now(), "values": {f"stage_{k}": v for k, v in self.summary().items()}})
            self._append({"end": _status(kind), "at": _now()})
        if not self._parent:
            self._shown.at("recording")
            tracked(lambda: Store(self.root).carry_alone(self._record))
        self._shown.__exit__(kind, value, trace)

    def metrics(self, step: int, **values: float) -> None:
        """One point of each named curve."""
        self.curves.append({"step": step, **values})
        self._append({"step": step, "at": _now(), "values": values})

    def timing(self, step: int, **values: float) -> None:
        """One point of curves that differ from run to run: for MLflow, never in ``curves.jsonl``."""
        self._append({"step": step, "at": _now(), "values": values})

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
            self._append({"step": point["step"], "at": _now(), "values": values})

    def summary(self) -> dict[str, float]:
        """What the stage took so far; never part of a DVC output."""
        seconds = round(time.monotonic() - self._began, 2)
        return {"seconds": seconds, "tokens": self._tokens, "peak_rss_mb": round(peak_rss_mb(), 1)}

    def _append(self, event: Mapping[str, Any]) -> None:
        if not self._speaks:
            return
        with self._record.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")


@contextmanager
def reproduction(config: Config, root: Path) -> Iterator[str]:
    """The parent run of one reproduction, for ``PARENT_VARIABLE`` of its stages, whose records it carries to MLflow."""
    with Progress("reproduce", "opening the MLflow run"):
        store = tracked(lambda: Store(root))
        if store:
            tracked(store.close_parents)
        parent = tracked(lambda: store.start_parent(config)) if store else None
    stop = threading.Event()

    def carry_all(opened: Store, last: bool) -> bool:
        for record in sorted((root / RECORDS).glob("*.jsonl")):
            opened.carry(record, last or not psutil.pid_exists(_pid(record)))
        return True

    def carry() -> None:
        """Where MLflow goes away, what was not carried waits in its record: for its return, or the next flow."""
        last, well = False, True
        while store and parent and not last:
            last = stop.wait(CARRY_S)
            well = tracked(partial(carry_all, store, last), say=well) is not None

    thread = threading.Thread(target=carry, name="tracking", daemon=True)
    thread.start()
    status = "FINISHED"
    try:
        yield parent or UNTRACKED
    except BaseException as error:
        status = _status(type(error))
        raise
    finally:
        stop.set()
        thread.join()
        if store and parent:
            tracked(lambda: store.end_parent(parent, status))


def publish(root: Path) -> None:
    """Put the report on the run above a stage that plain ``dvc repro`` started; a flow does this at its end."""
    if not os.environ.get(PARENT_VARIABLE):
        tracked(lambda: Store(root).publish(None))


def labels(samples: Iterable[Mapping[str, str]]) -> list[str]:
    """Of the report's samples of a domain, each once."""
    return list(dict.fromkeys(it["label"] for it in samples))


def _begun(span: Span, at_ns: int, **more: Any) -> Any:
    """MLflow's span of one of ours; it has ended but for its time."""
    import mlflow

    begun = mlflow.start_span_no_context(
        span.name, span.kind, inputs=span.inputs, attributes=dict(span.attributes), start_time_ns=at_ns, **more
    )
    begun.set_outputs(span.outputs)
    return begun


def success(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Success by model and domain over all horizons, from the report's rows that name one horizon."""
    solved: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if isinstance(row["horizon"], int) and row["n"]:
            solved.setdefault((row["model"], row["domain"]), []).extend((row["success"] * row["n"], row["n"]))
    return {key: sum(values[::2]) / sum(values[1::2]) for key, values in solved.items()}


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
    return dict(_flat(blocks | {stage: chosen}))


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


def tracked(act: Callable[[], T], say: bool = True) -> T | None:
    """What ``act`` returns; tracking must end no run, so where it fails that is said and None returned."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        return act()
    except (MlflowException, SQLAlchemyError, OSError, ValueError) as error:
        if say:
            print(f"openhorizon: not tracked: {' '.join(str(error).split())[:300]}", file=sys.stderr, flush=True)
        return None


@dataclasses.dataclass
class _Carried:
    """How far a record has been carried to its run."""

    run_id: str
    stage: str
    offset: int = 0


class Store:
    """The project's MLflow database, or wherever MLFLOW_TRACKING_URI says. Its methods raise MLflow's errors."""

    def __init__(self, root: Path) -> None:
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self.root = root.resolve()
        self._carried: dict[Path, _Carried] = {}
        self._uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{self.root / DATABASE}"
        self._client = MlflowClient(self._uri)
        with self._locked():  # several processes that create the database at once break it
            found = self._client.get_experiment_by_name(EXPERIMENT)
            where = (self.root / "mlartifacts").as_uri()
            self._experiment = found.experiment_id if found else self._client.create_experiment(EXPERIMENT, where)

    def start_parent(self, config: Config) -> str:
        """The run of a flow's reproduction."""
        run_id = self._create(f"reproduce {config.profile}", self._parent_tags("flow"), _now())
        artifacts.write_text(self.root / RECORDS / f"{run_id}{PARENT_SUFFIX}", "")
        machine = {"machine": config.machine, "machines": None}
        self._log_params(run_id, dict(_flat(dataclasses.asdict(config) | machine)))
        return run_id

    def end_parent(self, parent: str, status: str) -> None:
        """Close a reproduction: where its stages' inputs came from, its report, its status."""
        artifacts.write_text(self.root / RECORDS / f"{parent}{PARENT_SUFFIX}", status)
        recorded = pipeline.recorded(self.root, {carried.stage for carried in self._carried.values()})
        for carried in self._carried.values():
            self._tag(carried.run_id, recorded.get(carried.stage, {}))
        if status == "FINISHED" and (self.root / RESULTS).is_file():
            self.publish(parent)
        self._close(parent, status)

    def close_parents(self) -> None:
        """Close the reproductions that ended before they could: killed, or while MLflow was away. To be called where
        no other one runs in this checkout."""
        for file in sorted((self.root / RECORDS).glob(f"*{PARENT_SUFFIX}")):
            self._close(file.name.removesuffix(PARENT_SUFFIX), file.read_text(encoding="utf-8") or "KILLED")

    def _close(self, parent: str, status: str) -> None:
        from mlflow.exceptions import MlflowException

        try:
            self._client.set_terminated(parent, status)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # of a database that is no longer used
                raise
        (self.root / RECORDS / f"{parent}{PARENT_SUFFIX}").unlink(missing_ok=True)

    def carry(self, record: Path, ended: bool = True) -> None:
        """Write what a stage has recorded since the last call. A record that ``ended`` without saying so was killed;
        one that is done is deleted."""
        carried = self._carried.get(record) or self._told(record)
        with record.open("rb") as file:
            file.seek(carried.offset if carried else 0)
            new = file.read()
        complete = new[: new.rfind(b"\n") + 1]
        events = [json.loads(line) for line in complete.splitlines()]
        if carried is None:
            if not events:
                if ended:  # killed before it could say anything
                    record.unlink()
                return
            start = events[0]
            parent = start["parent"] if start["parent"] not in ("", UNTRACKED) else self._dvc_parent()
            tags = {"mlflow.parentRunId": parent, **self._origin()}
            carried = _Carried(self._create(start["start"], tags, start["at"]), start["stage"])
            artifacts.write_json(record.with_suffix(RUN_SUFFIX), dataclasses.asdict(carried))
            self._log_params(carried.run_id, start["params"])
        self._carried[record] = carried
        self._log_points(carried.run_id, (event for event in events if "values" in event))
        status = next((event["end"] for event in events if "end" in event), "KILLED" if ended else None)
        if status:
            self._client.set_terminated(carried.run_id, status, events[-1]["at"] if events else _now())
            record.unlink()
            record.with_suffix(RUN_SUFFIX).unlink(missing_ok=True)
        elif complete:
            carried.offset += len(complete)
            artifacts.write_json(record.with_suffix(RUN_SUFFIX), dataclasses.asdict(carried))

    def _told(self, record: Path) -> _Carried | None:
        """How far an earlier process has carried it; None where none did, or the run is no longer there."""
        from mlflow.exceptions import MlflowException

        file = record.with_suffix(RUN_SUFFIX)
        if not file.is_file():
            return None
        carried = _Carried(**artifacts.read_json(file))
        try:
            self._client.get_run(carried.run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return carried

    def carry_alone(self, record: Path) -> None:
        """``carry`` for a stage without a flow, with the hashes of what it read; and for such stages that were killed
        before they could."""
        self.carry(record)
        carried = self._carried[record]
        self._tag(carried.run_id, pipeline.recorded(self.root, {carried.stage}).get(carried.stage, {}))
        for left in sorted((self.root / RECORDS).glob("*.jsonl")):
            if not psutil.pid_exists(_pid(left)) and not _parent(left):
                self.carry(left)

    def publish(self, parent: str | None) -> None:
        """Put the report's figures and page on a reproduction's run, where the MLflow UI compares them."""
        parent = parent or self._dvc_parent()
        rows = artifacts.read_json(self.root / RESULTS)["rows"]
        values = {f"success/{model}/{domain}": value for (model, domain), value in success(rows).items()}
        self._log_points(parent, [{"step": 0, "at": _now(), "values": values}])
        self._client.log_artifacts(parent, str(self.root / artifacts.REPORTS), artifacts.REPORTS.name)
        for path in sorted((self.root / artifacts.stage_dir("evaluate")).glob("*/records.parquet")):
            self._client.log_artifact(parent, str(path), f"{KEPT_RECORDS}/{path.parent.name}")
        self._trace(parent)

    def _trace(self, parent: str) -> None:
        """The first solved and the first unsolved of the episodes that the report shows of each domain, as traces of
        the reproduction's run; once a run."""
        import mlflow
        from mlflow.entities import AssessmentSource

        shown = artifacts.read_json(self.root / RESULTS).get("samples", {})
        wanted = {next(it["task"] for it in of if it["label"] == name) for of in shown.values() for name in labels(of)}
        path = self.root / artifacts.stage_dir("evaluate", "student") / "trajectories.parquet"
        os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"  # its queue drops traces silently when it is full
        mlflow.set_tracking_uri(self._uri)
        once = {"locations": [self._experiment], "run_id": parent, "max_results": 1, "return_type": "list"}
        if not wanted or not path.is_file() or mlflow.search_traces(**once):
            return
        source = AssessmentSource(source_type="CODE", source_id="verifier")
        for found in (it for it in iter_trajectories(path) if it.task.id in wanted):
            trace, began = trace_of(found, "student"), time.time_ns()
            kept = {"mlflow.sourceRun": parent}
            root = _begun(trace.episode, began, experiment_id=self._experiment, metadata=kept, tags=dict(trace.tags))
            for i, step in enumerate(trace.steps):
                _begun(step, began + i * SPAN_NS, parent_span=root).end(end_time_ns=began + (i + 1) * SPAN_NS)
            root.end(end_time_ns=began + (len(trace.steps) + 1) * SPAN_NS)
            for name, (value, why) in trace.verdict.items():
                mlflow.log_feedback(trace_id=root.trace_id, name=name, value=value, rationale=why, source=source)

    def records(self, run_id: str, model: str, folder: Path) -> Path:
        """The records of an evaluated model that a reproduction's run keeps, as a file in ``folder``.

        Raises:
            ValueError: no such run, or none of this model.
        """
        from mlflow.exceptions import MlflowException

        try:
            kept = {Path(it.path).name for it in self._client.list_artifacts(run_id, KEPT_RECORDS)}
            if model not in kept:
                raise ValueError(
                    f"MLflow run {run_id}: no records of {model!r}; it has {', '.join(sorted(kept)) or 'none'}"
                )
            path = f"{KEPT_RECORDS}/{model}/records.parquet"
            return Path(self._client.download_artifacts(run_id, path, str(folder)))
        except MlflowException as error:
            raise ValueError(f"MLflow run {run_id}: {str(error).splitlines()[0]}") from error

    def _dvc_parent(self) -> str:
        """The run above stages that plain ``dvc repro`` starts: the newest of the same params.yaml and commit."""
        tags = self._parent_tags("dvc")
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
        with self._locked():
            found = self._client.search_runs([self._experiment], wanted, max_results=1)
            run_id: str = found[0].info.run_id if found else self._create("dvc repro", tags, _now())
            self._client.set_terminated(run_id)
        return run_id

    def _create(self, name: str, tags: Mapping[str, str], at: int) -> str:
        run_id: str = self._client.create_run(self._experiment, at, dict(tags), name).info.run_id
        return run_id

    def _parent_tags(self, starter: str) -> dict[str, str]:
        return {IDENTITY_TAG: pipeline.identity(self.root), "openhorizon.starter": starter, **self._origin()}

    def _origin(self) -> dict[str, str]:
        return {"mlflow.source.git.commit": pipeline.commit(self.root), "mlflow.source.name": "openhorizon"}

    def _tag(self, run_id: str, hashes: Mapping[str, str]) -> None:
        for path, md5 in hashes.items():
            self._client.set_tag(run_id, _name(f"dvc.{path}"), md5)

    def _log_params(self, run_id: str, params: Mapping[str, str]) -> None:
        from mlflow.entities import Param

        listed = [Param(key, value) for key, value in params.items()]
        for start in range(0, len(listed), PARAMS_BATCH):
            self._client.log_batch(run_id, params=listed[start : start + PARAMS_BATCH])

    def _log_points(self, run_id: str, events: Iterable[Mapping[str, Any]]) -> None:
        from mlflow.entities import Metric

        points = [Metric(_name(k), v, e["at"], e["step"]) for e in events for k, v in e["values"].items()]
        for start in range(0, len(points), BATCH):  # a write each would be ten times as slow
            self._client.log_batch(run_id, metrics=points[start : start + BATCH])

    @contextmanager
    def _locked(self) -> Iterator[None]:
        folder = self.root / pipeline.STATE_FOLDER
        folder.mkdir(exist_ok=True)
        with (folder / "mlflow").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield


def _status(kind: type[BaseException] | None) -> str:
    if kind is None:
        return "FINISHED"
    return "FAILED" if issubclass(kind, Exception) else "KILLED"


def _pid(record: Path) -> int:
    """Of the process that writes it."""
    return int(record.name.split(".")[-2])


def _parent(record: Path) -> str | None:
    """The run above a record's, as its stage was told; None where it was killed before it could say so."""
    with record.open(encoding="utf-8") as file:
        first = file.readline()
    return str(json.loads(first)["parent"]) if first.endswith("\n") else None


def _name(text: str) -> str:
    """``text`` with what MLflow refuses in a name replaced."""
    return re.sub(r"[^\w\-. :/]", "-", text)


def _now() -> int:
    return int(time.time() * 1000)


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(item, f"{path}.{key}" if path else str(key))
    elif value is not None:
        yield path, str(value)
