"""What does a sandboxed call cost? The reused workers against a fresh ``bwrap python`` for every call, in one run.

    PYTHONPATH=src python benchmarks/sandbox.py [--calls 100]

Both see the same confinement from bubblewrap and import the same modules; their calls alternate, so that what else the
machine does hits both. Also: a plain fork of the same worker without any confinement (the opt-out), as the floor.
Prints a table and writes docs/results/sandbox.json.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from openhorizon.artifacts import write_json
from openhorizon.sandbox import OPT_OUT, cage, close_workers, open_workspace

MODULES: tuple[tuple[str, ...], ...] = ((), ("numpy",), ("pandas", "sklearn.linear_model"))
FRESH_CALLS = {0: 40, 1: 20, 2: 8}  # a fresh one is slow where there is much to import
CODE = "print(sum(range(10)))"


def milliseconds(call: Callable[[], str]) -> float:
    began = time.perf_counter()
    assert call() == "45\n"
    return 1e3 * (time.perf_counter() - began)


def fresh(modules: tuple[str, ...]) -> Callable[[], str]:
    """A bubblewrap and an interpreter for one call: what a worker is started with, but with the code on its command
    line."""
    *command, interpreter, _, _ = cage.command(Path(cage.__file__).with_name("worker.py"))
    code = "".join(f"import {module}\n" for module in modules) + CODE

    def call() -> str:
        return subprocess.run(
            [*command, interpreter, "-S", "-c", code], capture_output=True, text=True, check=True
        ).stdout

    return call


def quantiles(found: list[float]) -> dict[str, float]:
    return {"median_ms": statistics.median(found), "p95_ms": statistics.quantiles(found, n=20)[-1], "calls": len(found)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100)
    options = parser.parse_args()
    rows = []
    print(f"{'preloaded':30}{'':12}{'median ms':>10}{'p95 ms':>9}{'ratio':>7}", flush=True)
    for number, modules in enumerate(MODULES):
        began = time.perf_counter()
        with open_workspace(preload=modules) as workspace:
            assert workspace.python(CODE).output == "45\n"
            cold_ms = 1e3 * (time.perf_counter() - began)
            once = fresh(modules)
            found: dict[str, list[float]] = {"python": [], "bash": [], "fresh": []}
            for turn in range(options.calls):
                found["python"].append(milliseconds(lambda: workspace.python(CODE).output))
                found["bash"].append(milliseconds(lambda: workspace.bash("echo 45").output))
                if turn < FRESH_CALLS[number]:
                    found["fresh"].append(milliseconds(once))
        close_workers()
        os.environ[OPT_OUT] = "1"
        with open_workspace(preload=modules) as workspace:
            found["unconfined"] = [milliseconds(lambda: workspace.python(CODE).output) for _ in range(options.calls)]
        close_workers()
        del os.environ[OPT_OUT]
        base = statistics.median(found["python"])
        row = {name: quantiles(times) | {"ratio": statistics.median(times) / base} for name, times in found.items()}
        rows.append({"preload": list(modules), "cold_ms": cold_ms, **row})
        print(f"{', '.join(modules) or '–':30}{'cold start':12}{cold_ms:>10.0f}")
        for name, figures in row.items():
            print(f"{'':30}{name:12}{figures['median_ms']:>10.1f}{figures['p95_ms']:>9.1f}{figures['ratio']:>7.2f}")
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0))
    print(f"ratio: to the median of python · load {load:.1f} on {cores} cores")
    write_json(
        Path("docs/results/sandbox.json"),
        {"rows": rows, "load": load, "cores": cores, "machine": platform.machine(), "kernel": platform.release()},
    )


if __name__ == "__main__":
    main()
