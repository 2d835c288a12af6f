"""python tests/chaos.py: kills a reproduction at random moments, in every stage, and checks what the next one makes.

A fault: a stage's artifact is taken away, and whatever would bring it back from a cache; a reproduction is started;
somewhere in that stage the victim gets SIGKILL, or the disk is full for a while; the reproduction is started again. In
the end there must be

    the same artifacts, by the hashes in dvc.lock, and the same figures in the report
    no process left, nothing half made, no unfinished work, no MLflow run open
    no other teacher that was trained again

Stages and victims go in turn: 50 faults are in every stage, as many as there are pairs are each victim in each stage. A
fault that came when its stage had ended is none and is tried again. What was done is kept in FOLDER/faults.jsonl, so
that a run that was ended goes on behind it. The project is the tiny one of tests/tiny_project.py with a baseline; the
disk is a tmpfs of its own, which needs root.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import tiny_project
import yaml

from openhorizon import pipeline, process

REPRODUCE = [sys.executable, "-m", "openhorizon", "reproduce"]
VICTIMS = ("stage", "dvc", "flow", "server", "worker", "disk")
TIMEOUT_S = 1800.0
ENDED_S = 20.0  # within which whatever belonged to what was killed has to end
FULL_S = (1.0, 6.0)  # how long the disk is full
SPARE_BYTES = 48 * 2**20  # of the tmpfs, above what the project takes
TRIES = 9  # to hit a stage while it runs
RETRIES = "3"  # of a call to Prefect's server, 14 s; by default 5, a minute, which a flow waits several times


class Wrong(AssertionError):
    """What must not be, after a fault."""


def environment(root: Path) -> dict[str, str]:
    """Of a project's own code, and of nobody's Prefect server."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "OPENHORIZON_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{own['PATH']}"
    more = {"PYTHONPATH": str(root / "src"), "PATH": path, "PYTHONUNBUFFERED": "1"}
    return {**own, **process.TELEMETRY_OFF, **more, "PREFECT_CLIENT_MAX_RETRIES": RETRIES}


def reproduce(root: Path, log: Path, command: Sequence[str] = REPRODUCE) -> None:
    """To its end, which must be good."""
    with log.open("ab") as file:
        done = subprocess.run(
            command, cwd=root, env=environment(root), stdout=file, stderr=file, timeout=TIMEOUT_S, check=False
        )
    if done.returncode:
        raise Wrong(f"the next reproduction ended with {done.returncode}: {log}")


def outs(root: Path) -> dict[str, list[dict[str, Any]]]:
    """What dvc.lock says of every stage's artifacts; the report's, which has times in it, left out."""
    stages = yaml.safe_load((root / "dvc.lock").read_text())["stages"]
    return {name: entry["outs"] for name, entry in stages.items() if name != "report"}


def figures(root: Path) -> Any:
    path = root / "reports" / "results.json"
    return json.loads(path.read_text())["rows"] if path.is_file() else None


def unmake(root: Path, stage: str) -> None:
    """Take a stage's artifact away, and what DVC would bring it back from."""
    lock = root / "dvc.lock"
    found = yaml.safe_load(lock.read_text())
    for out in found["stages"].pop(stage)["outs"]:
        path = root / out["path"]
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    lock.write_text(yaml.safe_dump(found))
    shutil.rmtree(root / ".dvc" / "cache" / "runs", ignore_errors=True)


def of_project(root: Path) -> list[psutil.Process]:
    """Every process that works in ``root``."""
    found = []
    for it in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if it.pid != os.getpid() and Path(it.cwd()).is_relative_to(root) and it.status() != psutil.STATUS_ZOMBIE:
                found.append(it)
    return found


def running(root: Path, words: Sequence[str]) -> list[psutil.Process]:
    """Those whose command has all of ``words``."""
    found = []
    for it in of_project(root):
        with contextlib.suppress(psutil.Error):
            if set(words) <= set(it.cmdline()):
                found.append(it)
    return found


def command_words(stage: str) -> list[str]:
    """Of the process that runs a stage of dvc.yaml."""
    name, _, target = stage.partition("@")
    kind, _, what = name.partition("-")
    target = f"{what}@{target}" if what else target
    return ["openhorizon", "stage", kind, *(["--target", target] if target else [])]


def wait_for(found: Callable[[], Any], alive: Callable[[], bool], timeout_s: float = TIMEOUT_S) -> Any:
    """What ``found`` gives as soon as it is something; nothing where ``alive`` ends before."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := found():
            return value
        if not alive():
            return found()
        time.sleep(0.02)
    return None


def kill(victim: str, root: Path, flow: psutil.Process, stage: str) -> None:
    """SIGKILL to what there is of the victim."""
    words = {
        "stage": command_words(stage),
        "dvc": ["openhorizon.process", "repro", stage],
        "server": ["uvicorn"],
        "worker": ["worker", "start"],
    }
    victims = [flow] if victim == "flow" else running(root, words[victim])
    if victim == "server":
        victims = [it for it in victims if it.pid != flow.pid]
    for it in victims:
        with contextlib.suppress(psutil.NoSuchProcess):
            it.kill()


def fault(
    root: Path,
    victim: str,
    stage: str,
    seconds: float,
    draw: random.Random,
    log: Path,
    command: Sequence[str] = REPRODUCE,
) -> tuple[float, bool]:
    """One of them, and the reproduction behind it. Returns how long the stage had run and whether it still did; raises
    ``Wrong``."""
    before, rows = outs(root), figures(root)
    teachers = {path: path.stat().st_mtime_ns for path in (root / "artifacts" / "teach").glob("*/model.safetensors")}
    unmake(root, stage)
    with contextlib.ExitStack() as ends:
        begun = started_by_worker(root, log) if victim == "worker" else started(root, log, command)
        flow = ends.enter_context(begun)
        there = wait_for(lambda: running(root, command_words(stage)), flow.is_running)
        delay = draw.uniform(0, seconds)
        time.sleep(delay if there else 0)
        hit = bool(running(root, command_words(stage)))
        if victim == "disk":
            with full(root):
                time.sleep(draw.uniform(*FULL_S))
        else:
            kill(victim, root, flow, stage)
        if victim in ("flow", "worker"):
            ended(root, ENDED_S, "server start" if victim == "worker" else "")
        else:
            wait_for(lambda: False, lambda: flow.is_running() and flow.status() != psutil.STATUS_ZOMBIE)
    ended(root, ENDED_S)
    reproduce(root, log, command)
    check(
        root,
        before,
        rows,
        {path: time for path, time in teachers.items() if path.parent.name != stage.removeprefix("teach@")},
    )
    return delay, hit


def check(root: Path, before: dict[str, Any], rows: Any, teachers: dict[Path, int]) -> None:
    """Raises ``Wrong`` where the project is not what it was."""
    after = outs(root)
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if changed:
        raise Wrong(f"other artifacts: {', '.join(changed)}")
    if figures(root) != rows:
        raise Wrong("other figures in the report")
    for path, time_ns in teachers.items():
        if path.stat().st_mtime_ns != time_ns:
            raise Wrong(f"{path.parent.name}: a finished teacher was trained again")
    half = [path for path in (root / "artifacts").rglob(".*") if path.name != ".gitignore"]
    left = [*half, *(root / ".openhorizon" / "resume").glob("*"), *(root / ".openhorizon" / "records").glob("*")]
    if left:
        raise Wrong(f"left behind: {', '.join(str(path.relative_to(root)) for path in left)}")
    if open_runs(root):
        raise Wrong(f"MLflow runs that are open: {', '.join(open_runs(root))}")
    ended(root, ENDED_S)


def open_runs(root: Path) -> list[str]:
    if not (root / "mlruns.db").is_file():
        return []
    with contextlib.closing(sqlite3.connect(root / "mlruns.db")) as database:
        return [row[0] for row in database.execute("select name from runs where status = 'RUNNING'")]


def ended(root: Path, timeout_s: float, but: str = "") -> None:
    """Raises ``Wrong`` where processes of the project are left; ``but`` those whose command has these words."""
    left = wait_for(
        lambda: not [it for it in of_project(root) if not but or but not in _command(it)], lambda: True, timeout_s
    )
    if not left:
        raise Wrong(f"processes left: {[_command(it)[:120] for it in of_project(root)]}")


def _command(it: psutil.Process) -> str:
    try:
        return " ".join(it.cmdline())
    except psutil.Error:
        return ""


@contextlib.contextmanager
def started(root: Path, log: Path, command: Sequence[str]) -> Iterator[psutil.Process]:
    """A reproduction that runs."""
    with log.open("ab") as file:
        flow = subprocess.Popen(command, cwd=root, env=environment(root), stdout=file, stderr=file)
    try:
        yield psutil.Process(flow.pid)
    finally:
        flow.terminate()
        flow.wait(60)


@contextlib.contextmanager
def started_by_worker(root: Path, log: Path) -> Iterator[psutil.Process]:
    """A reproduction that a Prefect worker runs, with a server that stays; yields the worker."""
    deployment = {"name": "tiny", "entrypoint": "flows/reproduce.py:reproduce", "work_pool": {"name": "chaos"}}
    pull = [{"prefect.deployments.steps.set_working_directory": {"directory": str(root)}}]
    (root / "prefect.yaml").write_text(yaml.safe_dump({"pull": pull, "deployments": [deployment]}))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    prefect = [sys.executable, "-m", "prefect"]
    own = environment(root) | {
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_HOME": str(root / ".prefect"),
    }
    long_lived = list[subprocess.Popen[bytes]]()

    def begin(*arguments: str) -> psutil.Process:
        with log.open("ab") as file:
            long_lived.append(subprocess.Popen([*prefect, *arguments], cwd=root, env=own, stdout=file, stderr=file))
        return psutil.Process(long_lived[-1].pid)

    def run(*arguments: str) -> bool:
        with log.open("ab") as file:
            return not subprocess.run([*prefect, *arguments], cwd=root, env=own, stdout=file, stderr=file).returncode

    try:
        begin("server", "start", "--host", "127.0.0.1", "--port", port)
        wait_for(lambda: run("work-pool", "create", "chaos", "--type", "process", "--overwrite"), lambda: True, 180)
        if not run("--no-prompt", "deploy", "--all"):
            raise Wrong(f"no deployment: {log}")
        worker = begin("worker", "start", "--pool", "chaos", "--type", "process")
        run("deployment", "run", "reproduce/tiny")
        yield worker
    finally:
        for it in reversed(long_lived):
            it.terminate()
            it.wait(60)


@contextlib.contextmanager
def full(root: Path) -> Iterator[None]:
    """The disk of ``root`` has no byte left."""
    ballast = root / "ballast"
    try:
        with contextlib.suppress(OSError), ballast.open("wb") as file:
            while True:
                file.write(bytes(2**16))
                file.flush()
        yield
    finally:
        ballast.unlink(missing_ok=True)


@contextlib.contextmanager
def on_a_small_disk(root: Path) -> Iterator[Path]:
    """A copy of the project on a tmpfs."""
    size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) + SPARE_BYTES
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size * 5 // 4}", "tmpfs", folder], check=True)
        try:
            yield Path(shutil.copytree(root, Path(folder, "project"), symlinks=True))
        finally:
            subprocess.run(["umount", "-l", folder], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir(), "openhorizon-chaos"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--victims", nargs="*", default=list(VICTIMS))
    parser.add_argument("--stages", type=int, default=2, help="so many at once")
    options = parser.parse_args()
    folder = options.folder.resolve()
    root, record, log = folder / "project", folder / "faults.jsonl", folder / "log"
    if not (root / "reports" / "results.json").is_file():
        shutil.rmtree(options.folder, ignore_errors=True)
        root.mkdir(parents=True)
        often = {"checkpoint_s": 0.2, "checkpoint_steps": None, "stages": options.stages, "threads": options.stages}
        tiny_project.make(root, [{"machines": {"cpu": often}}, {"baselines": {"run": ["continued"]}}])
        print(f"chaos: one reproduction in peace, in {root}", flush=True)
        reproduce(root, log)
    stages = sorted([*outs(root), "report"])
    commit = pipeline.commit(tiny_project.ROOT)
    for number in range(len(read(record)), options.faults):
        victim, stage = planned(number, options.victims, stages)
        said, began = f"chaos: {number + 1}/{options.faults}: {victim} in {stage}", time.monotonic()
        try:
            after = hit_in(root, victim, stage, random.Random(f"{options.seed} {number}"), log)
        except Wrong as wrong:
            print(f"{said}: WRONG: {wrong}", flush=True)
            return 1
        seconds = round(time.monotonic() - began)
        row = {"victim": victim, "stage": stage, "after_s": after, "took_s": seconds, "commit": commit}
        with record.open("a") as file:
            file.write(json.dumps({**row, "seed": options.seed}) + "\n")
        print(f"{said} after {after} s: the same results ({seconds} s)", flush=True)
    print("\n".join(table(read(record), options.victims, stages)), flush=True)
    return 0


def planned(number: int, victims: Sequence[str], stages: Sequence[str]) -> tuple[str, str]:
    """Who is killed in which stage: each pair once before any comes again, neighbours in stages far from each other."""
    turn, who = divmod(number, len(victims))
    return victims[who], stages[(turn + who * (len(stages) // len(victims))) % len(stages)]


def hit_in(root: Path, victim: str, stage: str, draw: random.Random, log: Path) -> float:
    """Faults until one comes while the stage runs, each sooner than one that was too late: how long the stage takes was
    measured once, on a machine that may have been busier. Returns how many seconds it had; raises ``Wrong``."""
    took = re.findall(rf"^{re.escape(stage)}: done in ([\d.]+) s", log.read_text(errors="replace"), re.MULTILINE)
    within = float(took[0])
    for _ in range(TRIES):
        place = on_a_small_disk(root) if victim == "disk" else contextlib.nullcontext(root)
        with place as here:
            after, hit = fault(here, victim, stage, within, draw, log)
        if hit:
            return round(after, 1)
        print(f"chaos: {victim} in {stage} after {after:.1f} s: it had ended", flush=True)
        within = after
    raise Wrong(f"it had ended {TRIES} times")


def read(record: Path) -> list[dict[str, Any]]:
    """What was done, a row a fault."""
    return [json.loads(line) for line in record.read_text().splitlines()] if record.is_file() else []


def table(done: Sequence[Mapping[str, Any]], victims: Sequence[str], stages: Sequence[str]) -> Iterator[str]:
    """Faults by stage and victim, in Markdown."""
    counts = Counter((row["stage"], row["victim"]) for row in done)
    yield f"| stage | {' | '.join(victims)} | all |"
    yield f"| --- |{' --- |' * (len(victims) + 1)}"
    for stage in stages:
        each = [counts[stage, victim] for victim in victims]
        yield f"| `{stage}` | {' | '.join(map(str, each))} | {sum(each)} |"
    each = [sum(counts[stage, victim] for stage in stages) for victim in victims]
    yield f"| all | {' | '.join(map(str, each))} | {sum(each)} |"


if __name__ == "__main__":
    sys.exit(main())
