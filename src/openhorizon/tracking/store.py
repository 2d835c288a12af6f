"""Runs in MLflow, on the project's database or a server: made, filled from records, closed, read."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from openhorizon import artifacts, pipeline
from openhorizon.config import Config
from openhorizon.tracking import episodes
from openhorizon.tracking.record import RECORDS, UNTRACKED, flat, may_run, now, parent_of

DATABASE = "mlruns.db"
EXPERIMENT = "openhorizon"
IDENTITY_TAG = "openhorizon.params"
RESULTS = artifacts.REPORTS / "results.json"
KEPT_RECORDS = "records"  # folder of a reproduction's run: what each model did on each held-out task
BATCH = 1000  # points a write; MLflow takes no more
PARAMS_BATCH = 100  # the same for parameters
RUN_SUFFIX = ".run"  # beside a record: the run that it is carried to, and how far it has been
PARENT_SUFFIX = ".parent"  # named by its run, a reproduction that is not closed yet; its status, once it has one

T = TypeVar("T")


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
        run_id = self._create(f"reproduce {config.profile}", self._parent_tags("flow"), now())
        artifacts.write_text(self.root / RECORDS / f"{run_id}{PARENT_SUFFIX}", "")
        machine = {"machine": config.machine, "machines": None}
        self._log_params(run_id, dict(flat(dataclasses.asdict(config) | machine)))
        return run_id

    def end_parent(self, parent: str, status: str) -> None:
        """Close a reproduction: where its stages' inputs came from, its report, its status."""
        artifacts.write_text(self.root / RECORDS / f"{parent}{PARENT_SUFFIX}", status)
        recorded = pipeline.recorded(self.root, {carried.stage for carried in self._carried.values()})
        for carried in self._carried.values():
            self._tag(carried.run_id, recorded.get(carried.stage, {}))
        if status == "FINISHED":
            self._publish_if_there(parent)
        self._close(parent, status)

    def settle(self) -> None:
        """Complete what reproductions left that ended before they could: killed, or while MLflow was away. To be called
        where no other one runs in this checkout."""
        for record in sorted((self.root / RECORDS).glob("*.jsonl")):
            if not may_run(record):
                self.carry(record)
        for file in sorted((self.root / RECORDS).glob(f"*{PARENT_SUFFIX}")):
            parent, status = file.name.removesuffix(PARENT_SUFFIX), file.read_text(encoding="utf-8") or "KILLED"
            # The report that is there is of the run where neither params.yaml nor the code has changed since.
            if status == "FINISHED" and self._parent_tags("flow").items() <= self._tags(parent).items():
                self._publish_if_there(parent)
            self._close(parent, status)

    def _tags(self, run_id: str) -> Mapping[str, str]:
        """None of a run that is not there, as in a database that is no longer used."""
        from mlflow.exceptions import MlflowException

        try:
            tags: Mapping[str, str] = self._client.get_run(run_id).data.tags
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
        return tags

    def _publish_if_there(self, parent: str) -> None:
        if (self.root / RESULTS).is_file():
            self.publish(parent)

    def _close(self, parent: str, status: str) -> None:
        if self._tags(parent):
            self._client.set_terminated(parent, status)
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
            self._client.set_terminated(carried.run_id, status, events[-1]["at"] if events else now())
            record.unlink()
            record.with_suffix(RUN_SUFFIX).unlink(missing_ok=True)
        elif complete:
            carried.offset += len(complete)
            artifacts.write_json(record.with_suffix(RUN_SUFFIX), dataclasses.asdict(carried))

    def _told(self, record: Path) -> _Carried | None:
        """How far an earlier process has carried it; None where none did, or the run is no longer there."""
        file = record.with_suffix(RUN_SUFFIX)
        if not file.is_file():
            return None
        carried = _Carried(**artifacts.read_json(file))
        return carried if self._tags(carried.run_id) else None

    def carry_alone(self, record: Path) -> None:
        """``carry`` for a stage without a flow, with the hashes of what it read; and for such stages that were killed
        before they could."""
        self.carry(record)
        carried = self._carried[record]
        self._tag(carried.run_id, pipeline.recorded(self.root, {carried.stage}).get(carried.stage, {}))
        for left in sorted((self.root / RECORDS).glob("*.jsonl")):
            if not may_run(left) and not parent_of(left):
                self.carry(left)

    def publish(self, parent: str | None) -> None:
        """Put the report's figures and page on a reproduction's run, where the MLflow UI compares them."""
        parent = parent or self._dvc_parent()
        rows = artifacts.read_json(self.root / RESULTS)["rows"]
        values = {f"success/{model}/{domain}": value for (model, domain), value in success(rows).items()}
        self._log_points(parent, [{"step": 0, "at": now(), "values": values}])
        self._client.log_artifacts(parent, str(self.root / artifacts.REPORTS), artifacts.REPORTS.name)
        for path in sorted((self.root / artifacts.stage_dir("evaluate")).glob("*/records.parquet")):
            self._client.log_artifact(parent, str(path), f"{KEPT_RECORDS}/{path.parent.name}")
        episodes.trace(self.root, self._uri, self._experiment, parent)

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
            run_id: str = found[0].info.run_id if found else self._create("dvc repro", tags, now())
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


def success(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], float]:
    """Success by model and domain over all horizons, from the report's rows that name one horizon."""
    solved: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        if isinstance(row["horizon"], int) and row["n"]:
            solved.setdefault((row["model"], row["domain"]), []).extend((row["success"] * row["n"], row["n"]))
    return {key: sum(values[::2]) / sum(values[1::2]) for key, values in solved.items()}


def _name(text: str) -> str:
    """``text`` with what MLflow refuses in a name replaced."""
    return re.sub(r"[^\w\-. :/]", "-", text)
