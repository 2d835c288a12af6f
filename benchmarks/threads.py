"""A training step of two threads beside busy processes, by how long a waiting thread of libgomp spins.

    python benchmarks/threads.py [--busy 0 2] [--seconds 12]

Each setting runs in a process of its own, since libgomp reads its environment once; ``--busy`` says how many processes
that only count run beside it. A step is one SFT update of 4,096 tokens of the profile's model. Writes
docs/results/threads.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

OUT = Path("docs/results/threads.json")
SETTINGS: dict[str, tuple[int, dict[str, str]]] = {
    "two threads": (2, {}),
    "two threads, GOMP_SPINCOUNT=10000": (2, {"GOMP_SPINCOUNT": "10000"}),
    "two threads, OMP_WAIT_POLICY=PASSIVE": (2, {"OMP_WAIT_POLICY": "PASSIVE"}),
    "one thread": (1, {}),
}


def step_s(threads: int, seconds: float) -> float:
    """Mean seconds of an update, after one that is not counted."""
    import torch
    from student import demonstrations, untrained

    from openhorizon.agent.render import render_trajectory
    from openhorizon.config import load
    from openhorizon.domains import DOMAINS
    from openhorizon.train.optim import Optimizer
    from openhorizon.train.supervised import batches, losses

    torch.set_num_threads(threads)
    config = load()
    found = demonstrations(["tool_calling"], (1, 2, 3), 60, config.seed)
    student = untrained(config, found, config.seed)
    samples = [render_trajectory(student.renderer, DOMAINS, trajectory) for trajectory in found]
    optimizer, stream = Optimizer(student.model, config.base.optim, 100), batches(samples, 4096, config.seed)
    student.model.train()
    optimizer.step(losses(student.model, next(stream), config.machine))
    began, count = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        optimizer.step(losses(student.model, next(stream), config.machine))
        count += 1
    return (time.perf_counter() - began) / count


def measured(name: str, busy: int, seconds: float) -> dict[str, Any]:
    """One setting beside so many busy processes."""
    threads, extra = SETTINGS[name]
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
    try:
        command = [sys.executable, __file__, "--alone", str(threads), "--seconds", str(seconds)]
        plain = {key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
        ran = subprocess.run(command, env=plain | extra, stdout=subprocess.PIPE, text=True, check=True)
    finally:
        for other in others:
            other.kill()
            other.wait()
    row = {"setting": name, "busy": busy, "step_s": json.loads(ran.stdout.splitlines()[-1])}
    print(f"{busy} busy, {name}: {row['step_s']:.3f} s a step", flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--seconds", type=float, default=12.0)
    parser.add_argument("--alone", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(step_s(options.alone, options.seconds)))
        return
    from openhorizon.artifacts import write_json

    rows = [measured(name, busy, options.seconds) for busy in options.busy for name in SETTINGS]
    write_json(OUT, {"rows": rows, "cores": os.cpu_count(), "machine": platform.processor() or platform.machine()})


if __name__ == "__main__":
    main()
