"""python tests/killed_stages.py PROJECT SEED: every stage once in peace, then again with SIGKILLs. Writes found.json.

A stage is a process of its own that runs `openhorizon stage`; it is forked from this one, which has imported what is
slow to import, has read the corpora, and trains nothing itself. It is killed in a chosen part, some random milliseconds
behind a random save.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from openhorizon import cli, lineage, unfinished
from openhorizon.stages import base, distill, evaluate, generate, sft, teach  # noqa: F401  (imported before the forks)

TIMEOUT_S = 120.0
STAGES = {  # a stage → the scopes (train/resume.py) in which it is killed, in turn
    ("base", None): [],
    ("sft", None): [[]],
    ("teach", "search"): [["sft"], ["grpo"]],
    ("teach", "tool_calling"): [["grpo"]],
    ("distill", None): [[], []],
    ("evaluate", "student"): [[]],
}


def start(stage: str, target: str | None, log: Path) -> int:
    """The stage's process."""
    child = os.fork()
    if child:
        return child
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    os._exit(cli.main(["stage", stage, *(("--target", target) if target else ())]))


def wait(child: int) -> None:
    _, status = os.waitpid(child, 0)
    if status:
        sys.exit(f"a stage ended with {os.waitstatus_to_exitcode(status)}")


def saves(stage: str, scope: list[str]) -> int:
    """How often the stage was saved, if the last save was inside ``scope``; else 0."""
    try:
        body = json.loads(json.loads((unfinished.FOLDER / stage / unfinished.STATE).read_text())["body"])
    except (OSError, ValueError):
        return 0
    inside = body["values"].get("scope", []) == scope and body["values"].get("loop", scope) is not None
    return int(body["number"]) if inside else 0


def killed(stage: str, target: str | None, scope: list[str], log: Path, draw: random.Random) -> bool:
    """Run the stage until a random save in ``scope`` and kill it; False where it had ended before."""
    name = f"{stage}@{target}" if target else stage
    before, first = saves(name, scope), 0
    child = start(stage, target, log)
    wanted, deadline = draw.randint(1, 2), time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, (name, status, log.read_text()[-2000:])
            return False
        number = saves(name, scope)
        first = first or (number if number > before else 0)
        if first and number - first + 1 >= wanted:
            time.sleep(draw.uniform(0, 0.03))
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return True
        time.sleep(0.001)
    raise TimeoutError(f"{name} was never saved in {scope}")


def main() -> None:
    os.chdir(sys.argv[1])
    draw, found = random.Random(int(sys.argv[2])), {}
    for domain in ("search", "tool_calling"):
        cli.main(["stage", "generate", "--target", domain])
    for (stage, target), scopes in STAGES.items():
        name = f"{stage}@{target}" if target else stage
        artifact = Path("artifacts", stage, target) if target else Path("artifacts", stage)
        log = Path(f"{name}.log")
        wait(start(stage, target, log))
        if not scopes:
            continue
        wanted = lineage.hash_of(artifact)
        shutil.rmtree(artifact)
        log.unlink()
        kills = sum([killed(stage, target, scope, log, draw) for scope in scopes])
        half = artifact.exists()
        wait(start(stage, target, log))
        left = [path.name for path in unfinished.FOLDER.glob("*")]
        found[name] = {
            "kills": kills,
            "same": lineage.hash_of(artifact) == wanted,
            "went_on": log.read_text().count("goes on behind"),
            "half": half,
            "left": left,
        }
    Path("found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
