"""How large may a knowledge-action graph grow? Write, load, count and look up at a million action records.

    python benchmarks/graph.py [--records 1000000] [--worlds search tool_calling] [--out FILE.json]

Trajectories are real ones, failed ones included, of the given worlds' scripted experts with noise; ``--distinct`` of
them a world are made and then repeated under other ids until there are enough records, so that corpus items and texts
repeat more than in a graph of as many distinct trajectories, while ids, edges and records do not. Each step runs in a
process of its own: peak memory is that step's alone, with the package's imports in it.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import platform
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

from openhorizon.agent.render import write_action
from openhorizon.agent.trajectory import Status, Trajectory, Turn
from openhorizon.artifacts import write_json
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import solve
from openhorizon.kag.store import GraphWriter, merge, open_graph
from openhorizon.seeds import derive, rng

HORIZONS, NOISE = (2, 4, 8, 16), 0.15
SHARDS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--worlds", nargs="+", default=["search", "tool_calling"], choices=sorted(DOMAINS))
    parser.add_argument("--distinct", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("docs/results/graph.json"))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kag-"))
    try:
        rows = [
            alone("write", write, folder / "whole", options.worlds, options.distinct, options.records, 0),
            alone("load", load, folder / "whole"),
            alone("counts", counts, folder / "whole"),
            alone("neighbourhood, two hops", neighbourhood, folder / "whole"),
            alone("texts of 1,000 nodes", texts, folder / "whole"),
            *(
                alone(
                    f"write shard {i}",
                    write,
                    folder / f"{i}",
                    options.worlds,
                    options.distinct,
                    options.records // SHARDS,
                    i + 1,
                )
                for i in range(SHARDS)
            ),
            alone(f"merge {SHARDS} shards", merged, folder),
        ]
        size = sum(file.stat().st_size for file in (folder / "whole").iterdir())
    finally:
        shutil.rmtree(folder)
    print(f"{'step':26}{'seconds':>9}{'peak MB':>9}  what")
    for row in rows:
        print(f"{row['step']:26}{row['seconds']:>9.3f}{row['peak_mb']:>9.0f}  {row['what']}")
    print(f"on disk: {size / 1e6:.1f} MB")
    result = {"rows": rows, "disk_mb": size / 1e6, "worlds": options.worlds, "distinct": options.distinct}
    write_json(options.out, result | {"machine": platform.machine(), "python": platform.python_version()})


def write(folder: Path, worlds: list[str], distinct: int, records: int, seed: int) -> tuple[float, str]:
    """The time is the writer's; making the trajectories is not in it."""
    made = [trajectory for world in worlds for trajectory in episodes(world, distinct, seed)]
    done, began = 0, time.perf_counter()
    with GraphWriter(folder) as graph:
        for i in count():
            if done >= records:
                break
            source = made[i % len(made)]
            done += len(graph.add(replace(source, task=replace(source.task, id=f"{source.task.id}-{seed}-{i}"))))
    return time.perf_counter() - began, f"{done:,} records of {i:,} trajectories, {len(made):,} of them distinct"


def episodes(world: str, count: int, seed: int) -> list[Trajectory]:
    """The expert's, with noise, solved or not, within a quarter more calls than the horizon."""
    domain, found, drawn = DOMAINS[world], [], 0
    horizons = domain.offers(HORIZONS) or HORIZONS
    while len(found) < count:
        horizon, own = horizons[drawn % len(horizons)], derive(seed, world, drawn)
        drawn += 1
        task = domain.propose(rng(own, "propose"), "train", horizon, own)
        if task is None:
            continue
        environment, answer = solve(domain, task, rng(own, "expert"), NOISE, horizon * 5 // 4 + 2)
        verdict = domain.verify(task, environment, answer)
        turns = [Turn("prompt", task.prompt)]
        for step in environment.steps:
            turns.append(Turn("assistant", write_action(step.call)))
            turns.append(Turn("tool", step.observation.text, (), (), step.observation.evidence, step.observation.error))
        if answer is not None:
            turns.append(Turn("assistant", write_action(answer)))
        status = Status.TRUNCATED if answer is None else Status.SOLVED if verdict.passed else Status.FAILED
        text = None if answer is None else answer.text
        found.append(Trajectory(task, tuple(turns), text, status, verdict, "expert", own))
        environment.close()
    return found


def load(folder: Path) -> tuple[float, str]:
    began = time.perf_counter()
    tables = open_graph(folder)
    rows = {name: getattr(tables, name).num_rows for name in ("trajectories", "nodes", "edges", "records")}
    return time.perf_counter() - began, ", ".join(f"{n:,} {name}" for name, n in rows.items())


def counts(folder: Path) -> tuple[float, str]:
    tables = open_graph(folder)
    began = time.perf_counter()
    found = tables.counts()["all"]
    return time.perf_counter() - began, json.dumps(found["edges"])


def neighbourhood(folder: Path) -> tuple[float, str]:
    tables = open_graph(folder)
    action = tables.records.column("action")[tables.records.num_rows // 2].as_py()
    began = time.perf_counter()
    edges = tables.neighbourhood(action, 2)
    return time.perf_counter() - began, f"{edges.num_rows} edges"


def texts(folder: Path) -> tuple[float, str]:
    tables = open_graph(folder)
    wanted = range(0, tables.nodes.num_rows, max(tables.nodes.num_rows // 1_000, 1))
    began = time.perf_counter()
    found = tables.texts(wanted)
    return time.perf_counter() - began, f"{sum(map(len, found.values())):,} characters from all row groups"


def merged(folder: Path) -> tuple[float, str]:
    began = time.perf_counter()
    merge([folder / f"{i}" for i in range(SHARDS)], folder / "merged")
    taken = time.perf_counter() - began
    return taken, f"{open_graph(folder / 'merged').records.num_rows:,} records"


def alone(step: str, function: Callable[..., tuple[float, str]], *arguments: Any) -> dict[str, Any]:
    """Run one step in a fresh process."""
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("spawn").Process(target=_child, args=(send, function, arguments))
    process.start()
    send.close()
    seconds, what, peak_mb = receive.recv()
    process.join()
    return {"step": step, "seconds": seconds, "peak_mb": peak_mb, "what": what}


def _child(send: Any, function: Callable[..., tuple[float, str]], arguments: tuple[Any, ...]) -> None:
    seconds, what = function(*arguments)
    send.send((seconds, what, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


if __name__ == "__main__":
    main()
