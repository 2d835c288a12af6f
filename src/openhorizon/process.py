"""Processes that leave nothing behind: children that end with their parent, telemetry off, threads bounded.

``python -m openhorizon.process ARGUMENTS`` is ``dvc ARGUMENTS`` that ends with its parent: a killed flow leaves none.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

TELEMETRY_OFF = {
    "DO_NOT_TRACK": "1",  # Prefect's client and anything else that honours it
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
}
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_GUARD = """
import os, signal, sys, time
opened = [os.pidfd_open(int(pid)) for pid in sys.argv[1:]]
sys.stdin.read()
for wait_s, number in ((5, signal.SIGTERM), (0, signal.SIGKILL)):
    for fd in opened:
        try:
            signal.pidfd_send_signal(fd, number)
        except ProcessLookupError:
            pass
    time.sleep(wait_s)
"""
_GUARDS: list[subprocess.Popen[bytes]] = []  # their pipes stay open as long as this process lives


def telemetry_off() -> None:
    """Set what turns telemetry off; must come before prefect, mlflow or dvc are imported."""
    os.environ.update(TELEMETRY_OFF)


def limit_threads(threads: int) -> None:
    """Bound the threads of numerical libraries; must come before torch is imported."""
    for name in _THREAD_VARIABLES:
        os.environ[name] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    # Less spinning while a thread waits for another: it costs nothing on an idle machine (benchmarks/threads.py), and
    # stages with threads of their own side by side do not take each other's cores for it.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def die_with_parent() -> None:
    """Ask Linux to send SIGTERM when the parent ends, even by ``kill -9``; elsewhere this does nothing.

    An orphan would go on training and later overwrite the outputs of its successor.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it ended before the call
        sys.exit(128 + signal.SIGTERM)


def guard_children() -> None:
    """Have the children that this process has now end with it, even by ``kill -9``, where they cannot be told to ask
    for that themselves (Prefect's temporary server). A small process waits for the end of a pipe of ours, and then ends
    them; it knows them by a file descriptor each, so that a number that was given out again is nobody else's."""
    pids = [str(child.pid) for child in psutil.Process().children()]
    if sys.platform == "linux" and pids:
        command = [sys.executable, "-I", "-S", "-c", _GUARD, *pids]
        _GUARDS.append(subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True))


def end_children(grace_s: float = 5.0) -> None:
    """End every descendant of this process: SIGTERM, then SIGKILL for what is left after ``grace_s``."""
    children = psutil.Process().children(recursive=True)
    for child in children:
        _send(child, signal.SIGTERM)
    _, alive = psutil.wait_procs(children, timeout=grace_s)
    for child in alive:
        _send(child, signal.SIGKILL)


def exit_on_terminate() -> None:
    """Turn SIGTERM into ``SystemExit(143)``, so that ``finally`` blocks run."""

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)


def silence() -> None:
    """Nothing that this process prints is seen; errors are."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)


def child_environment(**extra: str) -> dict[str, str]:
    """The environment of a child that must find this interpreter as ``python`` and print without buffering."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, **TELEMETRY_OFF, "PATH": path, "PYTHONUNBUFFERED": "1", **extra}


def _send(child: psutil.Process, number: signal.Signals) -> None:
    with suppress(psutil.NoSuchProcess):  # it ended by itself
        child.send_signal(number)


def dvc(arguments: Sequence[str]) -> int:
    """``dvc ARGUMENTS`` in this process, which ends with its parent."""
    die_with_parent()
    telemetry_off()
    from dvc.cli import main

    return int(main(list(arguments)) or 0)


if __name__ == "__main__":
    sys.exit(dvc(sys.argv[1:]))
