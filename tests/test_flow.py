"""A real Prefect flow over a small throw-away DVC project: order, retries, what a failure leaves, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import httpx
import psutil
import pytest
import yaml

from flows import shown
from flows.shown import Shown, markdown_table
from flows.stage import Runner, Slots
from openhorizon import pipeline, process

ROOT = Path(__file__).parents[1]
DVC = [sys.executable, "-m", "openhorizon.process"]
# good and flaky run at once (each waits for the other's sign); flaky fails first and succeeds when tried again; broken
# always fails, so that after_broken never starts; last reads what did succeed; late takes longer than it may.
GRAPH = {
    "good": {"cmd": "python stage.py good flaky", "outs": ["good.txt"]},
    "flaky": {"cmd": "python stage.py flaky good --fail-once", "outs": ["flaky.txt"]},
    "broken": {"cmd": "python stage.py broken --fail", "outs": ["broken.txt"]},
    "after_broken": {"cmd": "python stage.py after_broken", "deps": ["broken.txt"], "outs": ["after_broken.txt"]},
    "last": {"cmd": "python stage.py last", "deps": ["good.txt", "flaky.txt"], "outs": ["last.txt"]},
    "late": {"cmd": "python stage.py late --sleep", "outs": ["late.txt"]},
}
STAGE = """
import pathlib, sys, time
name, *rest = sys.argv[1:]
seen = pathlib.Path("signs"); seen.mkdir(exist_ok=True)
first = not (seen / name).exists()
(seen / name).touch()
for other in [word for word in rest if not word.startswith("--")]:
    deadline = time.monotonic() + 60
    while not (seen / other).exists():
        if time.monotonic() > deadline:
            sys.exit(f"{other} does not run beside {name}")
        time.sleep(0.05)
if "--sleep" in rest:
    child = __import__("subprocess").Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    pathlib.Path("late_pid").write_text(str(child.pid))
    time.sleep(600)
if "--fail" in rest or ("--fail-once" in rest and first):
    pathlib.Path(f"{name}.txt").write_text("half")
    sys.exit("openhorizon: told to fail")
pathlib.Path(f"{name}.txt").write_text("whole")
"""
FLOW = """
import json, pathlib, sys
sys.path.insert(0, sys.argv[2])
from flows.shown import Shown
from flows.stage import Runner, finish
from openhorizon import pipeline, process
from openhorizon.config import LimitConfig
from prefect import flow
from prefect.client.orchestration import get_client

process.exit_on_terminate()
root = pathlib.Path(sys.argv[1])
limits = {"default": LimitConfig(1, None), "late": LimitConfig(0, 2.0)}
runner = Runner(root, 2, pipeline.graph(root), pipeline.stale(root), limits=limits, gpu=True)
artifacts = []

@flow(name="throwaway")
def throwaway():
    shown = Shown("throwaway", 6)
    runner.settled = shown.settled
    good, flaky, broken = (runner.submit(name, after=[]) for name in ("good", "flaky", "broken"))
    after = runner.submit("after_broken", after=[broken])
    last, late = runner.submit("last", after=[good, flaky]), runner.submit("late", after=[good])
    failed = finish([good, flaky, broken, after, last, late], runner)
    shown.end(runner, root)
    with get_client(sync_client=True) as client:
        found = client.request("POST", "/artifacts/filter", json={}).json()
    artifacts.extend((it["key"], it["type"], it["data"], it["flow_run_id"] is not None) for it in found)
    return failed

failed = throwaway()
outcomes = {k: v[0] for k, v in runner.outcomes.items()}
(root / "outcomes.json").write_text(json.dumps({"failed": failed, "artifacts": artifacts, **outcomes}))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a flow with a Prefect server of its own, in a folder of its own."""
    home = tmp_path_factory.mktemp("prefect")
    environment = process.child_environment(
        PREFECT_HOME=str(home),
        PREFECT_SERVER_DATABASE_CONNECTION_URL=f"sqlite+aiosqlite:///{home / 'prefect.db'}",
        PREFECT_SERVER_ALLOW_EPHEMERAL_MODE="true",
        PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS="180",
        PREFECT_LOGGING_LEVEL="CRITICAL",
        PREFECT_SERVER_LOGGING_LEVEL="CRITICAL",
    )
    environment.pop("PREFECT_API_URL", None)
    return environment


def make_project(root: Path, stages: dict[str, object], stage: str = STAGE) -> Path:
    subprocess.run(["git", "init", "-q", str(root)], check=True)
    (root / "dvc.yaml").write_text(yaml.safe_dump({"stages": stages}, sort_keys=False))
    (root / "stage.py").write_text(stage)
    subprocess.run([*DVC, "init", "-q"], cwd=root, check=True, env=process.child_environment())
    return root


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, server: dict[str, str]) -> tuple[Path, str]:
    """The project after one run of the flow, and what was printed."""
    root = make_project(tmp_path_factory.mktemp("project"), GRAPH)
    (root / "flow.py").write_text(FLOW)
    said = subprocess.run(
        [sys.executable, "flow.py", str(root), str(ROOT)],
        cwd=root,
        env=server,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
        check=False,
    ).stdout
    return root, said


def outcomes(finished: tuple[Path, str]) -> dict[str, object]:
    root, said = finished
    assert (root / "outcomes.json").is_file(), said
    found: dict[str, object] = yaml.safe_load((root / "outcomes.json").read_text())
    return found


def test_independent_stages_run_at_once_and_a_failed_one_is_retried(finished: tuple[Path, str]) -> None:
    found = outcomes(finished)
    assert found["good"] == found["flaky"] == found["last"] == "done"
    assert finished[1].count("flaky: failed: told to fail") == 1


def test_what_a_failed_stage_feeds_does_not_run_and_the_rest_stays_committed(finished: tuple[Path, str]) -> None:
    root, said = finished
    found = outcomes(finished)
    assert sorted(found["failed"]) == ["broken", "late"]  # in the order in which they ended
    assert "after_broken" not in found
    assert said.count("broken: failed: told to fail") == 2  # tried once more
    locked = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    assert set(locked) == {"good", "flaky", "last"}
    ask = "import pathlib; from openhorizon import pipeline; print(*pipeline.stale(pathlib.Path()))"
    told = subprocess.run([sys.executable, "-c", ask], cwd=root, check=True, capture_output=True, text=True).stdout
    assert set(told.split()) == {"broken", "after_broken", "late"}  # in a process of its own: DVC says what was killed
    assert (root / "last.txt").read_text() == "whole"


def test_a_stage_that_takes_too_long_is_ended_with_its_children_and_not_tried_again(finished: tuple[Path, str]) -> None:
    root, said = finished
    assert said.count("late: failed: took longer than 2 s (flow.late.timeout_s)") == 1
    assert not psutil.pid_exists(int((root / "late_pid").read_text()))


def test_prefect_shows_how_far_the_run_is_and_what_became_of_each_stage(finished: tuple[Path, str]) -> None:
    found = outcomes(finished)["artifacts"]
    assert isinstance(found, list)
    kinds = {key: (kind, data) for key, kind, data, of_the_run in found if of_the_run}
    assert kinds["throwaway-progress"] == ("progress", pytest.approx(100 * 5 / 6))  # after_broken has no outcome
    kind, data = kinds["throwaway-stages"]
    assert kind == "table"
    rows = {row["stage"]: row["result"] for row in json.loads(data)}
    assert rows == {
        **dict.fromkeys(("good", "flaky", "last"), "done"),
        **dict.fromkeys(("broken", "late"), "failed"),
        "after_broken": "not run",
    }


def test_a_page_has_the_reports_table() -> None:
    row = {"model": "sft", "domain": "search", "horizon": 2, "n": 10, "success": 0.5}
    other = {"model": "student", "domain": "search", "horizon": 2, "n": 10, "success": 0.7}
    table = markdown_table({"rows": [row, other, {**other, "horizon": "all"}]})
    assert table.splitlines() == ["| model | search |", "| --- | ---: |", "| sft | 0.500 |", "| student | 0.700 |"]


def test_the_flow_leaves_the_same_lock_as_dvc_alone(finished: tuple[Path, str], tmp_path: Path) -> None:
    root = make_project(tmp_path, {name: GRAPH[name] for name in ("good", "flaky", "last")})
    (root / "signs").mkdir()
    for name in ("good", "flaky"):
        (root / "signs" / name).touch()
    subprocess.run([*DVC, "repro", "-q"], cwd=root, check=True, env=process.child_environment())
    assert yaml.safe_load((root / "dvc.lock").read_text()) == yaml.safe_load((finished[0] / "dvc.lock").read_text())


def test_a_stage_that_takes_the_machine_has_nothing_beside_it() -> None:
    slots, running, seen = Slots(2), [0], []

    def hold(rank: int, alone: bool) -> None:
        with slots.hold(rank, alone):
            running[0] += 1
            time.sleep(0.05)
            seen.append((alone, running[0]))
            running[0] -= 1

    threads = [threading.Thread(target=hold, args=(rank, rank % 3 == 0)) for rank in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(seen) == 9
    assert all(beside == 1 for alone, beside in seen if alone)
    assert max(beside for alone, beside in seen if not alone) == 2


SLEEPER = """
import pathlib, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path("pids").write_text(str(child.pid))
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_every_child_and_nothing_half_written_is_recorded(
    tmp_path: Path, server: dict[str, str], number: signal.Signals
) -> None:
    root = make_project(tmp_path, {"slow": {"cmd": "exec python stage.py", "outs": ["slow.txt"]}}, SLEEPER)
    flow = FLOW[: FLOW.index("    good, flaky")] + '    finish([runner.submit("slow", after=[])], runner)\n\n'
    (root / "flow.py").write_text(flow + "throwaway()\n")
    main = subprocess.Popen(
        [sys.executable, "-c", f"import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n{RUN}"],
        cwd=root,
        env={**server, "FLOW": "flow.py", "PROJECT": str(root), "SOURCE": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 200
    while not (root / "pids").exists() and main.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert (root / "pids").exists(), main.communicate(timeout=30)[0]
    time.sleep(0.3)
    family = psutil.Process(main.pid).children(recursive=True)
    assert any(it.pid == int((root / "pids").read_text()) for it in family)
    main.send_signal(number)
    main.communicate(timeout=60)
    assert main.returncode == 128 + number if number == signal.SIGTERM else main.returncode != 0
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert not (root / "dvc.lock").exists()


RUN = """
import os, runpy, sys
sys.argv = [os.environ["FLOW"], os.environ["PROJECT"], os.environ["SOURCE"]]
runpy.run_path(os.environ["FLOW"], run_name="__main__")
"""


def test_a_killed_dvc_leaves_no_stage_behind(tmp_path: Path) -> None:
    """kill -9 of dvc: the stage, which asked for a parent-death signal, ends too."""
    code = (
        "import pathlib, time\nfrom openhorizon.process import die_with_parent\n"
        'die_with_parent()\npathlib.Path("pids").write_text(str(__import__("os").getpid()))\ntime.sleep(600)\n'
    )
    root = make_project(tmp_path, {"slow": {"cmd": "exec python stage.py", "outs": ["slow.txt"]}}, code)
    dvc = subprocess.Popen([*DVC, "repro", "-q"], cwd=root, env=process.child_environment(SHELL="/bin/sh"))
    deadline = time.monotonic() + 60
    while not (root / "pids").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.2)
    stage = psutil.Process(int((root / "pids").read_text()))
    dvc.kill()
    dvc.wait()
    assert stage.wait(10) in (None, -signal.SIGTERM)


def test_what_cannot_ask_for_it_ends_with_a_killed_parent(tmp_path: Path) -> None:
    """Such as Prefect's temporary server: kill -9 of the flow ends it, too."""
    code = (
        "import pathlib, subprocess, sys, time\nfrom openhorizon import process\n"
        'child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])\n'
        'process.guard_children()\npathlib.Path("pid").write_text(str(child.pid))\ntime.sleep(600)\n'
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").is_file() and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)  # the guard has opened what it guards
    child = psutil.Process(int((tmp_path / "pid").read_text()))
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs([child], timeout=15)
    assert not [it for it in alive if it.status() != psutil.STATUS_ZOMBIE]


def test_a_flow_whose_server_goes_away_begins_anew_a_few_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from flows import reproduce, stage

    class Replaced(BaseException): ...

    def replaced(program: str, arguments: list[str], environment: dict[str, str]) -> None:
        assert program == arguments[0] == sys.executable and arguments[1:] == sys.orig_argv[1:]
        monkeypatch.setenv(stage.TRIED_VARIABLE, environment[stage.TRIED_VARIABLE])
        raise Replaced

    def gone() -> None:
        raise httpx.ConnectError("connection refused")

    monkeypatch.setattr(os, "execve", replaced)
    monkeypatch.setattr(stage, "SERVER_WAIT_S", 0.0)
    monkeypatch.setattr(stage, "end_children", lambda: None)
    monkeypatch.setattr(process, "exit_on_terminate", lambda: None)
    monkeypatch.setattr(reproduce, "open_server", lambda name: None)
    monkeypatch.setattr(reproduce, "reproduce", gone)
    monkeypatch.delenv(stage.TRIED_VARIABLE, raising=False)
    for _ in range(stage.SERVER_TRIES):
        with pytest.raises(Replaced):
            reproduce.main()
    assert reproduce.main() == 1
    said = capsys.readouterr()
    assert said.out.count("what is done stays done") == stage.SERVER_TRIES
    assert said.err == "openhorizon: the flow server does not answer: connection refused\n"


def test_only_one_reproduction_runs_in_a_checkout(tmp_path: Path) -> None:
    with (
        pipeline.alone(tmp_path),
        pytest.raises(ValueError, match=rf"process {os.getpid()}, since"),
        pipeline.alone(tmp_path),
    ):
        pass
    with pipeline.alone(tmp_path):
        pass


def test_no_git_is_said_in_one_line(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    with pytest.raises(ValueError, match="not a git repository") as caught:
        pipeline.graph(tmp_path)
    assert "no_scm" in str(caught.value)


def test_a_missing_input_is_explained() -> None:
    from flows.job import explain

    said = explain(["ERROR: failed to reproduce 'sft': [Errno 2] No storage files available: 'artifacts/base'"])
    assert "artifacts/base" in said
    assert "make reproduce" in said
    assert explain(["openhorizon: params.yaml:seed: expected int", "ERROR: failed"]) == (
        "failed: params.yaml:seed: expected int"
    )
    assert explain(["Traceback (most recent call last):", "  File", "KeyError: 3", "ERROR: x"]) == "failed: KeyError: 3"


def test_waiting_stages_are_taken_in_the_recipes_order() -> None:
    slots, taken = Slots(1), []

    def take(rank: int) -> None:
        with slots.hold(rank):
            taken.append(rank)

    with slots.hold(0):
        threads = [threading.Thread(target=take, args=(rank,)) for rank in (5, 3, 9, 1)]
        for thread in threads:
            thread.start()
        while len(slots._waiting) < len(threads):
            time.sleep(0.01)
    for thread in threads:
        thread.join()
    assert taken == [1, 3, 5, 9]


def test_a_server_that_is_gone_is_asked_once_and_again_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def gone(*given: object, **named: object) -> None:
        asked.append(given)
        raise httpx.ConnectError("connection refused")

    monkeypatch.setattr(shown, "create_progress_artifact", lambda *given, **named: uuid.uuid4())
    page = Shown("reproduce", 9)
    for name in ("update_progress_artifact", "create_table_artifact", "create_markdown_artifact"):
        monkeypatch.setattr(shown, name, gone)
    for count in range(1, 10):
        page.settled(count)
    assert len(asked) == 1 and capsys.readouterr().out.count("shows less") == 1
    page.end(Runner(tmp_path, 1, {}, []), tmp_path)
    assert len(asked) == 2
