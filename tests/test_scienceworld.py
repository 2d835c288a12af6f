"""ScienceWorld: the real simulator, one capped Java process, gold paths, and what happens when the process dies."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from openhorizon.agent.rollout import rollout
from openhorizon.domains.base import Call, Split, Task, replay
from openhorizon.domains.scientific_agent import scienceworld
from openhorizon.domains.scientific_agent import simulator as library
from openhorizon.domains.scientific_agent.scienceworld import (
    COMPLETED,
    LOST,
    House,
    ScienceWorldDomain,
    by_length,
    gold_paths,
    read_goals,
)
from openhorizon.domains.scientific_agent.simulator import Simulator, SimulatorDied, simulator

DOMAIN = ScienceWorldDomain()
QUICK = ("lifespan-longest-lived", "find-non-living-thing", "find-plant", "power-component", "use-thermometer")


@pytest.fixture(scope="module")
def java() -> Iterator[None]:
    """Java and the packages; where they are missing CI fails and others skip."""
    missing = "" if shutil.which("java") else "java"
    missing = missing or next((name for name in ("scienceworld", "py4j") if importlib.util.find_spec(name) is None), "")
    if missing:
        message = f"{missing} is not installed: {library.INSTALL}"
        if os.environ.get("OPENHORIZON_CI") == "1":
            pytest.fail(message)
        pytest.skip(message)
    yield
    simulator().close()


def task_of(kind: str, number: int = 0, split: Split = "train") -> Task:
    """The ``number``-th variation of a kind that we use, as ``propose`` gives it."""
    variation, path = list(gold_paths()["train" if split == "train" else "dev"][kind].items())[number]
    length = len(path) if split == "train" else path
    for seed in range(1000):
        rng = random.Random(seed)
        if rng.choice(by_length(split)[length]) == (kind, int(variation)):
            task = DOMAIN.propose(random.Random(seed), split, length, seed)
            assert task is not None
            return task
    raise AssertionError(f"{kind}/{variation} was never drawn")


def check(task: Task) -> None:
    """The demonstration passes; without its last step, without its focus, without an answer or work it does not."""
    demonstration = DOMAIN.demonstration(task)
    assert demonstration is not None
    environment, answer = replay(DOMAIN, task, demonstration)
    verdict = DOMAIN.verify(task, environment, answer)
    environment.close()
    assert verdict.passed and verdict.score == 1, (task.id, verdict)
    assert len(environment.steps) == task.horizon and answer is not None and answer.text == task.reference
    assert environment.steps[-1].observation.text.endswith(COMPLETED)
    assert not DOMAIN.verify(task, environment, None).passed
    assert not DOMAIN.verify(task, DOMAIN.start(task), answer).passed
    cut, said = replay(DOMAIN, task, [*demonstration[:-2], demonstration[-1]])
    verdict = DOMAIN.verify(task, cut, said)
    cut.close()
    assert not verdict.passed and verdict.score < 1, (task.id, verdict)
    focused = [a for a in demonstration if not (isinstance(a, Call) and a.arguments["command"].startswith("focus"))]
    if len(focused) < len(demonstration):
        skipped, said = replay(DOMAIN, task, focused)
        assert not DOMAIN.verify(task, skipped, said).passed
        skipped.close()


def test_gold_paths_pass_and_cut_ones_do_not(java: None) -> None:
    for kind in QUICK:
        check(task_of(kind))


@pytest.mark.long
def test_gold_paths_of_every_kind_pass(java: None) -> None:
    for kind in gold_paths()["train"]:
        for number in range(2):
            check(task_of(kind, number))


def test_the_split_is_the_packages(java: None) -> None:
    for kind in QUICK:
        session = simulator().open(kind, 0)
        sets = {split: set(session.variations(split)) for split in ("train", "dev", "test")}
        session.close()
        for split in ("train", "dev"):
            used = {int(variation) for variation in gold_paths()[split][kind]}
            assert used and used <= sets[split] and not used & sets["test"]
    train, heldout = task_of("find-plant"), task_of("find-plant", 0, "heldout")
    assert not set(train.entity_pairs) & set(heldout.entity_pairs) and train.prompt != heldout.prompt
    assert DOMAIN.demonstration(heldout) is None and heldout.state["gold"] == []


def test_no_variation_is_in_both_splits() -> None:
    pairs = {split: {p for found in by_length(split).values() for p in found} for split in ("train", "heldout")}
    assert len(pairs["train"]) > 250 and len(pairs["heldout"]) > 120 and not pairs["train"] & pairs["heldout"]
    assert len({kind for kind, _ in pairs["train"]}) == 30


def test_offers_are_the_lengths_that_exist() -> None:
    offered = DOMAIN.offers([8, 40])
    assert offered and all(8 <= n <= 40 for n in offered) and DOMAIN.offers([]) == ()
    for n in offered:
        assert len(by_length("train")[n]) >= 2 and by_length("heldout")[n]
    assert DOMAIN.propose(random.Random(0), "train", 1_000, 0) is None


def test_damaged_paths_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(scienceworld, "PATHS", tmp_path / "none.json")
    with pytest.raises(ValueError, match="missing or damaged"):
        gold_paths.__wrapped__()


def test_there_is_no_scripted_expert() -> None:
    with pytest.raises(ValueError, match="demonstrations"):
        DOMAIN.expert("find a plant", random.Random(0), 0.0)


def test_interleaved_dropped_and_repeated_episodes_agree(java: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four episodes in turns, with room for two simulations only, say what each says alone."""
    tasks = [task_of(kind) for kind in ("find-plant", "use-thermometer", "find-non-living-thing", "power-component")]
    alone = []
    for task in tasks:
        environment, _ = replay(DOMAIN, task, DOMAIN.demonstration(task) or ())
        alone.append([step.observation for step in environment.steps[:8]])
        environment.close()
    monkeypatch.setattr(library, "LIVE", 2)
    environments = [DOMAIN.start(task) for task in tasks]
    for i in range(8):
        for task, environment in zip(tasks, environments, strict=True):
            if i < task.horizon:
                environment.call(Call("act", {"command": task.state["gold"][i]}))
                assert len(simulator().live) <= 2
    assert [[step.observation for step in environment.steps] for environment in environments] == alone
    for environment in environments:
        environment.close()
    assert not simulator().live


_SAY = """
import json, sys
from openhorizon.domains.base import Call
from test_scienceworld import DOMAIN, replay, task_of
task = task_of("find-plant")
environment, _ = replay(DOMAIN, task, DOMAIN.demonstration(task))
print(json.dumps([step.observation.text for step in environment.steps]))
"""


def test_every_process_says_the_same(java: None) -> None:
    said = set()
    for seed in ("1", "2"):
        path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": path}
        command = [sys.executable, "-c", _SAY]
        said.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(said) == 1 and len(said.pop()) > 200


def test_wrong_commands_are_observations_and_a_wrong_focus_loses(java: None) -> None:
    environment = DOMAIN.start(task_of("find-plant"))
    assert isinstance(environment, House)
    assert environment.call(Call("act", {"command": "sing a song"})).error
    assert environment.call(Call("act", {"command": ""})).error
    assert environment.call(Call("walk", {})).error
    assert "This room is called" in environment.call(Call("act", {"command": "look around"})).text
    lost = environment.call(Call("act", {"command": "focus on air"}))
    assert lost.text.endswith(LOST) and environment.over and environment.score == 0
    assert environment.call(Call("act", {"command": "look around"})).error
    environment.close()


def test_goals_are_read() -> None:
    text = "0\ttrue\t   GoalFind\tfocus on instrument\n1\tfalse\t   GoalMoveToLocation\tgo to the (box)\n-----\n"
    assert read_goals(text) == {"1. focus on instrument": True, "2. go to the (box)": False}


def test_a_killed_process_breaks_the_episode_and_the_next_has_a_new_one(java: None) -> None:
    task = task_of("find-non-living-thing")
    environment = DOMAIN.start(task)
    environment.call(Call("act", {"command": "look around"}))
    process = simulator().process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    for _ in range(2):
        with pytest.raises(SimulatorDied):
            environment.call(Call("act", {"command": "look around"}))
    environment.close()
    check(task)
    assert simulator().process is not None and simulator().process is not process


def test_a_rollout_whose_process_dies_is_aborted_and_tried_again(java: None) -> None:
    """Through the real rollout: the first try loses its process after one command, the second is solved."""
    from openhorizon.config import BudgetConfig

    task = task_of("lifespan-longest-lived")
    replies = [
        f'<tool_call>{{"name": "act", "arguments": {{"command": "{c}"}}}}</tool_call>' for c in task.state["gold"]
    ]
    tries = 0

    class Texts:
        """A tokenizer that is none: ids are characters."""

        def prompt(self, system: str, tools: object, prompt: str) -> list[int]:
            return [ord(c) for c in prompt]

        def tool(self, text: str) -> list[int]:
            return [ord(c) for c in text]

        def text(self, ids: list[int]) -> str:
            return "".join(map(chr, ids))

    class Policy:
        name = "gold"
        renderer = Texts()

        def converse(self, conversations, temperature, progress):  # type: ignore[no-untyped-def]
            nonlocal tries
            tries += 1
            for conversation in conversations:
                for i, text in enumerate([*replies, "Answer: done"]):
                    if tries == 1 and i == 1:
                        process = simulator().process
                        assert process is not None
                        process.kill()
                        process.wait(10)
                    ids = [ord(c) for c in text]
                    if conversation.reply(ids, [0.0] * len(ids), True) is None:
                        break

    budget = BudgetConfig(slack=1.25, extra=2, turn_tokens=400, context_tokens=100_000)
    budgets = {"scientific_agent": budget}
    (trajectory,) = rollout({DOMAIN.world: DOMAIN}, [task], Policy(), budgets, 0.0, 0)  # type: ignore[arg-type]
    assert tries == 2 and trajectory.status == "SOLVED"


_ORPHAN = """
import os, signal
from openhorizon.domains.scientific_agent.simulator import simulator
simulator().open("find-plant", 0).step("look around")
print(simulator().process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_process_ends_with_its_parent_however_that_ends(java: None) -> None:
    command = [sys.executable, "-c", _ORPHAN]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    deadline = time.monotonic() + 20
    while os.path.exists(f"/proc/{pid}") and time.monotonic() < deadline:
        if Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":  # ended; waits for whoever reaps orphans here
            break
        time.sleep(0.1)
    else:
        assert not os.path.exists(f"/proc/{pid}")


def test_the_heap_is_capped_and_the_port_is_not_open_to_others(java: None) -> None:
    simulator().open("find-plant", 0).close()
    process = simulator().process
    assert process is not None
    command = Path(f"/proc/{process.pid}/cmdline").read_text().split("\0")
    assert f"-Xmx{library.HEAP_MB}m" in command and "--enable-auth" in command
    listening = [
        line.split()[1]
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for line in Path(table).read_text().splitlines()[1:]
        if line.split()[3] == "0A" and line.split()[9] in _sockets(process.pid)
    ]
    # 127.0.0.1, plain or mapped into IPv6.
    assert listening and all(a.split(":")[0] in ("0100007F", "0000000000000000FFFF00000100007F") for a in listening)


def _sockets(pid: int) -> set[str]:
    links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
    return {link[8:-1] for link in links if link.startswith("socket:[")}


def test_no_java_is_said_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("scienceworld") and importlib.util.find_spec("py4j"):
        monkeypatch.setattr(shutil, "which", lambda name, path=None: None)
        monkeypatch.delenv("JAVA_HOME", raising=False)
        with pytest.raises(ValueError, match=r"no 'java' in PATH; install Java 17.*openjdk-17-jre-headless"):
            Simulator().open("boil", 0)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"package '\w+' is not installed; install Java 17.*--no-deps scienceworld"):
        Simulator().open("boil", 0)


@pytest.mark.parametrize(
    ("body", "reason"), [("echo no memory; exit 1", "no memory"), ("exec sleep 60", "silent for 1 s")]
)
def test_a_process_that_does_not_start_is_given_up(
    java: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str, reason: str
) -> None:
    fake = tmp_path / "java"
    fake.write_text(f"#!/bin/sh\n{body}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name, path=None: str(fake))
    monkeypatch.setattr(library, "START_S", 1.0)
    began = time.monotonic()
    with pytest.raises(ValueError, match=f"did not start: .*{reason}"):
        Simulator().open("boil", 0)
    assert time.monotonic() - began < 20


def test_an_unknown_task_is_refused(java: None) -> None:
    with pytest.raises(ValueError, match="'nope'"):
        simulator().open("nope", 0)
    with pytest.raises(ValueError, match="variation 999"):
        simulator().open("boil", 999)
