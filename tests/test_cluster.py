"""The flow on a Ray cluster of two local machines with a worker each: what holds in one process holds there."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml
from test_flow import GRAPH, ROOT, SLEEPER, STAGE, make_project, server  # noqa: F401 (a fixture)

from flows.cluster import looker

HERE = importlib.util.find_spec("prefect_ray") is not None
ray = pytest.mark.skipif(not HERE, reason="prefect-ray is not installed: scripts/install-extra ray")
WHERE = """
import os, psutil
def worker():
    return [it.pid for it in psutil.Process().parents() if it.cmdline()[:1] and it.cmdline()[0].startswith("ray::")][:1]
"""
FLOW = """
import json, os, pathlib, sys
sys.path.insert(0, sys.argv[2])
from flows import cluster
from flows.stage import finish, open_server
from openhorizon import pipeline, process
from openhorizon.config import LimitConfig, load
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from settings import laptop

process.exit_on_terminate()
root = pathlib.Path(sys.argv[1])
limits = {"default": LimitConfig(1, None), "late": LimitConfig(0, 2.0)}
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sys.argv[2] + "/src", os.environ.get("PYTHONPATH")]))

@flow(name="throwaway")
def throwaway(asked):
    assert cluster.of_this_flow()
    runner = cluster.ClusterRunner(laptop().machine, root, 2, pipeline.graph(root), pipeline.stale(root), limits=limits)
    made = {}
    for name, after in asked.items():
        made[name] = runner.submit(name, after=[made[it] for it in after])
    return finish(made.values(), runner), {name: found[0] for name, found in runner.outcomes.items()}

def run(asked):
    where = cluster.runner("ray", 2)
    with temporary_settings({PREFECT_API_URL: open_server("test")}):
        return throwaway.with_options(task_runner=where)(asked)
"""
ORPHAN = "from openhorizon.process import die_with_parent\n\ndie_with_parent()  # as every stage of ours\n"
TWO = """
from ray.cluster_utils import Cluster
os.environ |= cluster.SETTINGS
two = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
two.add_node(num_cpus=1)
os.environ["RAY_ADDRESS"] = two.address
failed, outcomes = run({
    "good": [], "flaky": [], "broken": [], "after_broken": ["broken"], "last": ["good", "flaky"], "late": ["good"],
})
(root / "outcomes.json").write_text(json.dumps({"failed": failed, **outcomes}))
"""


def environment(server: dict[str, str]) -> dict[str, str]:  # noqa: F811
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    return {**server, "PYTHONPATH": path, "RAY_worker_register_timeout_seconds": "300"}  # where it is busy


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, server: dict[str, str]) -> tuple[Path, str]:  # noqa: F811
    """The project after one run of the flow, and what was printed."""
    stage = f'{WHERE}{STAGE}\npathlib.Path("signs", f"{{name}}.worker").write_text(str(worker()))\n'
    root = make_project(tmp_path_factory.mktemp("project"), GRAPH, stage)
    (root / "flow.py").write_text(FLOW + TWO)
    said = subprocess.run(
        [sys.executable, "flow.py", str(root), str(ROOT)],
        cwd=root,
        env=environment(server),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=500,
        check=False,
    ).stdout
    return root, said


@ray
@pytest.mark.long  # a busy machine does not start Ray within the 30 s that it gives itself
def test_stages_run_on_different_workers_with_retries_and_time_limits(finished: tuple[Path, str]) -> None:
    root, said = finished
    assert (root / "outcomes.json").is_file(), said[-4000:]
    found = json.loads((root / "outcomes.json").read_text())
    assert sorted(found.pop("failed")) == ["broken", "late"], said[-4000:]
    assert found == {**dict.fromkeys(("good", "flaky", "last"), "done"), "broken": "failed", "late": "failed"}
    workers = {name: (root / "signs" / f"{name}.worker").read_text() for name in ("good", "flaky")}
    assert "[]" not in workers.values() and workers["good"] != workers["flaky"]  # each waited for the other's sign
    assert said.count("flaky: failed: told to fail") == 1 and said.count("broken: failed: told to fail") == 2
    assert said.count("late: failed: took longer than 2 s (flow.late.timeout_s)") == 1
    assert not psutil.pid_exists(int((root / "late_pid").read_text()))
    assert set(yaml.safe_load((root / "dvc.lock").read_text())["stages"]) == {"good", "flaky", "last"}
    assert not list((root / ".openhorizon").glob("seen-*"))


@ray
@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_leaves_nothing_on_a_worker(
    tmp_path: Path,
    server: dict[str, str],  # noqa: F811
    number: signal.Signals,
) -> None:
    root = make_project(tmp_path, {"slow": {"cmd": "exec python stage.py", "outs": ["slow.txt"]}}, ORPHAN + SLEEPER)
    (root / "flow.py").write_text(FLOW + 'run({"slow": []})\n')
    main = subprocess.Popen(
        [sys.executable, "flow.py", str(root), str(ROOT)],
        cwd=root,
        env=environment(server),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + 300
    while not (root / "pids").exists() and main.poll() is None and time.monotonic() < deadline:
        time.sleep(0.1)
    if not (root / "pids").exists():
        main.kill()
        pytest.fail(main.communicate()[0][-4000:])
    time.sleep(0.3)
    slow = psutil.Process(int((root / "pids").read_text()))
    above = [it for it in itertools.takewhile(lambda it: it.pid not in (main.pid, 1), slow.parents()) if here(it, root)]
    assert above
    main.send_signal(number)
    main.wait(120)
    if number == signal.SIGTERM:
        assert main.returncode == 128 + number
    _, alive = psutil.wait_procs([*above], timeout=60)
    assert not alive
    assert not (root / "dvc.lock").exists()


def here(it: psutil.Process, root: Path) -> bool:
    with contextlib.suppress(psutil.AccessDenied):
        return it.cwd() == str(root)
    return False


def test_a_worker_that_does_not_see_the_checkout_is_named_with_what_is_missing(tmp_path: Path) -> None:
    problem = looker()
    assert f"does not see this checkout: {tmp_path} must be on a file system" in problem(
        str(tmp_path / ".openhorizon" / "seen-1"), "http://127.0.0.1:9/api"
    )
    (tmp_path / "seen-1").touch()
    assert "does not reach Prefect's server at http://127.0.0.1:9/api" in problem(
        str(tmp_path / "seen-1"), "http://127.0.0.1:9/api"
    )
