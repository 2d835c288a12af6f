"""What self-play costs as it grows: 1K, 10K and 100K accepted trajectories of one domain, each in a fresh process.

    python benchmarks/generate.py search tool_calling [--sizes 1000 10000] [--out docs/results/generate.json]

Runs the real stage in a scratch folder: real proposals, episodes, all five rules, decontamination, graph and Parquet on
disk, merged; one shard, one thread. Time counts from the first proposal for training on (corpora and benchmarks are
loaded by then), so that the cost per trajectory of two sizes can be compared; the ratio is of CPU time, which hangs
less on what else the machine does. Memory is the process's peak.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from openhorizon.artifacts import read_json, stage_dir, write_json
from openhorizon.config import load
from openhorizon.stages import generate

HELDOUT = 200
COLUMNS = ("domain", "trajectories", "seconds", "cpu_s", "per_second", "peak_rss_mb", "cost_ratio", "disk_mb", "yield")


class Clock:
    """What the stage uses of a log; knows when training data began."""

    began = cpu_began = 0.0

    def metrics(self, step: int, **values: float) -> None: ...

    def progress(self, done: int, total: int, note: str = "") -> None:
        if note == "demonstrations" and not self.began:
            self.began, self.cpu_began = time.perf_counter(), time.process_time()


def measure(domain: str, count: int) -> dict[str, Any]:
    """One size, in this process and the working directory."""
    config = load()
    block = replace(
        config.generate[domain],
        demonstrations=count, prompts=0, heldout=HELDOUT, shards=1, steer_floor=1.0, max_proposals=20 * count,
    )  # fmt: skip
    clock = Clock()
    generate.run(replace(config, generate=config.generate | {domain: block}), domain, clock)  # type: ignore[arg-type]
    seconds, cpu_s = time.perf_counter() - clock.began, time.process_time() - clock.cpu_began
    folder = stage_dir("generate", domain)
    metrics = read_json(folder / "metrics.json")
    made = metrics["counts"]["demonstrations"]
    return {
        "domain": domain,
        "trajectories": made,
        "seconds": round(seconds, 2),
        "cpu_s": round(cpu_s, 2),
        "per_second": round(made / seconds, 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "disk_mb": round(sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20, 1),
        "yield": metrics["yield"]["demonstrations"],
        "closed_regions": len(metrics["closed_regions"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("domains", nargs="+")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.domains[0], options.sizes[0])))
        return
    rows: list[dict[str, Any]] = []
    print("".join(f"{name:>14}" for name in COLUMNS), flush=True)
    for domain in options.domains:
        first = 0.0
        for size in options.sizes:
            with tempfile.TemporaryDirectory() as folder:
                Path(folder, "params.yaml").write_text(Path("params.yaml").read_text())
                command = [sys.executable, str(Path(__file__).resolve()), domain, "--sizes", str(size), "--one"]
                env = os.environ | {"OMP_NUM_THREADS": "1"}
                done = subprocess.run(command, cwd=folder, env=env, stdout=subprocess.PIPE, check=True)
            row = json.loads(done.stdout)
            cost = row["cpu_s"] / row["trajectories"]
            first = first or cost
            row["cost_ratio"] = round(cost / first, 3)
            rows.append(row)
            print("".join(f"{row[name]!s:>14}" for name in COLUMNS), flush=True)
    if options.out:
        write_json(options.out, {"rows": rows, "machine": platform.machine(), "python": platform.python_version()})
        print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
