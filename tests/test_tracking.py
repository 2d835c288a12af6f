"""Progress is never silent, records reach MLflow, and a tracking failure ends no stage."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import CountDomain

from openhorizon import config, tracking
from openhorizon.agent.render import write_action
from openhorizon.agent.trajectory import Status, Trajectory, Turn, write_trajectories
from openhorizon.artifacts import write_json
from openhorizon.config import Config
from openhorizon.domains.base import Call, Verdict
from openhorizon.progress import SILENCE_S, Progress, duration
from openhorizon.tracking import (
    DATABASE,
    EXPERIMENT,
    PARENT_VARIABLE,
    RECORDS,
    StageLog,
    carry,
    reproduction,
    success,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (PARENT_VARIABLE, "DVC_STAGE", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    for command in (["git", "init", "-q"], [sys.executable, "-m", "openhorizon.process", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    return tmp_path


@pytest.fixture(scope="module")
def settings() -> Config:
    return config.load(ROOT / "params.yaml")


def runs(root: Path) -> dict[str, object]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{root / DATABASE}")
    experiment = client.get_experiment_by_name(EXPERIMENT)
    return {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}


def test_a_reproduction_has_a_run_a_stage_below_its_own(
    project: Path, settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    domain = settings.domains[0]
    with reproduction(settings, project) as parent:
        monkeypatch.setenv(PARENT_VARIABLE, parent)
        with StageLog(settings, "teach", domain, project) as log:
            for step in range(1500):  # more than one write
                log.metrics(step, loss=1.0 / (step + 1), **{"rho/a@b": 0.5})
            log.tokens(7)
        with pytest.raises(ValueError, match="broken"), StageLog(settings, "distill", None, project):
            raise ValueError("broken")
        with pytest.raises(SystemExit), StageLog(settings, "sft", None, project):
            sys.exit(143)
    found = runs(project)
    above = found[f"reproduce {settings.profile}"]
    assert above.info.status == "FINISHED"
    assert above.data.params["distill.top_k"] == str(settings.distill.top_k)  # the whole recipe, to compare
    taught = found[f"teach@{domain}"]
    assert taught.data.tags["mlflow.parentRunId"] == parent == above.info.run_id
    assert taught.data.params["teach.grpo.group"] == str(settings.teach[domain].grpo.group)
    assert taught.data.metrics["loss"] == pytest.approx(1 / 1500)
    assert taught.data.metrics["rho/a-b"] == 0.5
    assert taught.data.metrics["stage_tokens"] == 7
    assert [found[name].info.status for name in (f"teach@{domain}", "distill", "sft")] == [
        "FINISHED",
        "FAILED",
        "KILLED",
    ]
    assert list((project / RECORDS).iterdir()) == []


def test_plain_dvc_repro_puts_its_stages_below_one_run(project: Path, settings: Config) -> None:
    """Also the record of one that was killed: the next stage carries it."""
    killed = project / RECORDS / "distill.4194304.jsonl"  # of a process that is not there
    killed.parent.mkdir(parents=True)
    killed.write_text('{"start": "distill", "stage": "distill", "parent": "", "params": {}, "at": 1}\n')
    killed.with_name("base.4194304.jsonl").write_text('{"sta')
    for stage in ("base", "sft"):
        with StageLog(settings, stage, None, project) as log:
            log.metrics(0, loss=2.0)
    found = runs(project)
    assert {found[stage].data.tags["mlflow.parentRunId"] for stage in ("base", "sft", "distill")} == {
        found["dvc repro"].info.run_id
    }
    assert found["distill"].info.status == "KILLED" and list((project / RECORDS).iterdir()) == []


def test_the_record_of_a_killed_stage_is_taken_up(
    project: Path, settings: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with reproduction(settings, project) as parent:
        monkeypatch.setenv(PARENT_VARIABLE, parent)
        log = StageLog(settings, "sft", None, project)
        log._record.parent.mkdir(parents=True, exist_ok=True)
        log._append({"start": "sft", "stage": "sft", "parent": parent, "params": {"a": "b"}, "at": 1})
        with log._record.open("a") as file:
            file.write('{"step": 0, "at": 2, "val')  # kill -9 in the middle of a line
    assert runs(project)["sft"].info.status == "KILLED"


def test_a_database_that_is_locked_for_a_while_has_the_whole_record_afterwards(
    project: Path, settings: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes away in the middle, and for the first flow it stays away: said once, and the next flow writes the rest
    to the same runs, whose status is what it was."""
    monkeypatch.setattr(carry, "CARRY_S", 0.1)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    away = threading.Event()
    log_points = tracking.Store._log_points

    def fragile(store: tracking.Store, run_id: str, events: Any) -> None:
        if away.is_set():
            raise OSError("database is locked")
        log_points(store, run_id, events)

    monkeypatch.setattr(tracking.Store, "_log_points", fragile)
    with reproduction(settings, project) as parent:
        monkeypatch.setenv(PARENT_VARIABLE, parent)
        with StageLog(settings, "sft", None, project) as log:
            log.metrics(0, loss=3.0)
            wait_for(lambda: list((project / RECORDS).glob("*.run")))
            away.set()
            log.metrics(1, loss=2.0)
            time.sleep(0.5)
        with StageLog(settings, "distill", None, project) as log:
            log.metrics(0, loss=9.0)
    assert capsys.readouterr().err.count("database is locked") == 1
    assert runs(project)["sft"].info.status == "RUNNING"
    away.clear()
    with reproduction(settings, project):
        pass
    found = runs(project)
    for name, loss in (("sft", 2.0), ("distill", 9.0)):
        assert found[name].info.status == "FINISHED" and found[name].data.metrics["loss"] == loss
        assert found[name].data.tags["mlflow.parentRunId"] == parent
    assert list((project / RECORDS).iterdir()) == []


def test_a_killed_flow_leaves_no_run_open(project: Path, settings: Config) -> None:
    store = tracking.Store(project)
    killed, finished = store.start_parent(settings), store.start_parent(settings)
    (project / RECORDS / f"{finished}.parent").write_text("FINISHED")  # MLflow was away at its end
    gone = StageLog(settings, "sft", None, project)
    gone._record = gone._record.with_name("sft.4194304.jsonl")  # of a process that is not there
    gone._append({"start": "sft", "stage": "sft", "parent": killed, "params": {}, "at": 1})
    store.carry(gone._record, ended=False)
    (project / RECORDS / "0123456789abcdef0123456789abcdef.parent").write_text("")  # of a database that is gone
    write_json(
        project / "reports/results.json",
        {"rows": [{"model": "sft", "domain": "search", "horizon": 1, "n": 4, "success": 0.5}]},
    )
    tracking.settle(project)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{project / DATABASE}")
    assert [client.get_run(it).data.metrics for it in (killed, finished)] == [{}, {"success/sft/search": 0.5}]
    assert [client.get_run(it).info.status for it in (killed, finished)] == ["KILLED", "FINISHED"]
    assert runs(project)["sft"].info.status == "KILLED"
    assert list((project / RECORDS).iterdir()) == []


def wait_for(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert true()


def test_a_database_that_is_none_ends_no_stage(
    project: Path, settings: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / DATABASE).write_text("this is no database")
    with StageLog(settings, "sft", None, project) as log:
        log.metrics(0, loss=1.0)
    said = capsys.readouterr().err
    assert said.count("not tracked") == 1
    assert (project / "artifacts/timings/sft.json").is_file()


def test_curves_hold_no_times_and_are_the_same_twice(project: Path, settings: Config) -> None:
    for folder in ("a", "b"):
        log = StageLog(settings, "sft", None, project)
        log._record.parent.mkdir(parents=True, exist_ok=True)
        for step in range(3):
            log.metrics(step, loss=0.1 * step, accuracy=1.0)
            log.timing(step, seconds_update=1.5)
        log.save_curves(project / folder)
    written = (project / "a" / "curves.jsonl").read_text()
    assert written == (project / "b" / "curves.jsonl").read_text()
    recorded = [json.loads(line) for line in log._record.read_text().splitlines()]
    assert sum(event["values"] == {"seconds_update": 1.5} for event in recorded) == 6  # twice three: one record
    assert json.loads(written.splitlines()[2]) == {"step": 2, "loss": 0.2, "accuracy": 1.0}


def test_a_failed_stage_leaves_no_timing_that_the_report_would_read(project: Path, settings: Config) -> None:
    with pytest.raises(ValueError, match="x"), StageLog(settings, "sft", None, project):
        raise ValueError("x")
    assert not (project / "artifacts/timings/sft.json").exists()


def test_peak_memory_is_of_this_process_not_of_its_parent() -> None:
    """A small child of a process that holds 200 MB must not report the 200 MB."""
    held = bytearray(os.urandom(1) * 200_000_000)
    code = "from openhorizon.tracking import peak_rss_mb; print(peak_rss_mb())"
    child = float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 5 < child < tracking.peak_rss_mb() - 50
    assert len(held)


def test_silence_is_broken_and_says_where(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("sft", "reading") as progress:
        progress.update(3, 10, "loss 0.5")
        time.sleep(SILENCE_S + 1)
    lines = capsys.readouterr().out.splitlines()
    assert any(re.fullmatch(r"sft: still at 3/10 · loss 0\.5 \(0:0\d\)", line) for line in lines), lines


def test_many_updates_print_few_lines_and_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("sft") as progress:
        for done in range(1, 20_001):
            progress.update(done, 20_000)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 3
    assert lines[-1].startswith("sft: 20,000/20,000")


def test_rate_and_time_left_are_of_the_present_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    progress = Progress("x")
    for now[0], done in ((0.0, 0), (10.0, 20), (20.0, 40)):
        progress.update(done, 100)
    assert "2.0/s · 0:30 left" in progress._where
    for now[0], done in ((100.0, 0), (110.0, 5)):
        progress.update(done, 50)
    assert "2.0 s each · 1:30 left" in progress._where


def test_durations() -> None:
    assert [duration(s) for s in (0, 75, 3700)] == ["0:00", "1:15", "1:01:40"]


def test_success_weighs_horizons_by_their_tasks() -> None:
    row = {"model": "sft", "domain": "search", "ci95": [0, 1], "seed": 0}
    rows = [row | {"horizon": h, "n": n, "success": s} for h, n, s in ((1, 10, 1.0), (8, 30, 0.0), ("all", 40, 0.9))]
    assert success(rows) == {("sft", "search"): 0.25}


def test_a_reproduction_keeps_episodes_as_traces(project: Path, settings: Config, count_domain: CountDomain) -> None:
    """The first solved and the first unsolved of each domain, a span a turn and a call, the verdict; once a run."""
    import mlflow

    task = count_domain.propose(random.Random(3), "heldout", 2, 3)
    assert task
    begin = int(task.prompt.split()[-1])
    turns = [Turn("prompt", task.prompt)]
    for at in (begin, begin + 1):
        turns.append(Turn("assistant", write_action(Call("step", {"from": at})), (5, 6), (-0.5, -1.5)))
        turns.append(Turn("tool", f"now {at + 1}", (7,), (), (f"at{at + 1}",)))
    turns.append(Turn("assistant", f"Answer: {begin + 2}", (5,), (-0.25,)))
    solved = Trajectory(
        task, tuple(turns), f"Answer: {begin + 2}", Status.SOLVED, Verdict(True, 1.0, "right", {"answer": True}), "p", 1
    )
    others = [replace(solved, task=replace(task, id=name), status=Status.FAILED) for name in ("wrong", "unshown")]
    folder = project / "artifacts/evaluate/student"
    folder.mkdir(parents=True)
    write_trajectories(folder / "trajectories.parquet", [*others, solved])
    samples = [{"task": task.id, "label": "solved"}, {"task": "wrong", "label": "not solved"}]
    more = {"task": "unshown", "label": "not solved"}
    write_json(project / "reports/results.json", {"rows": [], "samples": {"count": [*samples, more]}})
    with reproduction(settings, project) as parent:
        pass
    tracking.Store(project).publish(parent)  # a second time, as of a report that was made again
    experiment = mlflow.get_experiment_by_name(EXPERIMENT)
    assert experiment
    found = mlflow.search_traces(locations=[experiment.experiment_id], run_id=parent, return_type="list")
    by_task = {trace.info.tags["openhorizon.task"]: trace for trace in found}
    assert len(found) == 2 and by_task.keys() == {task.id, "wrong"}
    spans = by_task[task.id].data.spans
    assert [(span.name, span.span_type) for span in spans] == [
        (f"count {task.id}", "AGENT"),
        *[("turn: step", "LLM"), ("step", "TOOL")] * 2,
        ("turn: answer", "LLM"),
    ]
    assert spans[2].inputs == {"from": begin} and spans[2].outputs == f"now {begin + 1}"
    assert spans[1].attributes["mean_logprob"] == -1.0 and spans[0].inputs == task.prompt
    said = {it.name: (it.value, it.rationale) for it in by_task[task.id].info.assessments}
    assert said == {"passed": (True, "right"), "score": (1.0, "right")}
