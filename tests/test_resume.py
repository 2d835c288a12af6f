"""Killed in the middle, a training ends with the same bits; what was saved is trusted only where it is whole."""

from __future__ import annotations

import copy
import errno
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_project
import torch
from conftest import BUDGET, GRPO, MACHINE, CountDomain
from safetensors import SafetensorError
from safetensors.torch import save_file
from test_training import DISTILL, OPTIM, Log, demonstrations, tasks

from openhorizon.config import CurriculumConfig, RouterConfig, WarmUpConfig
from openhorizon.model.load import Checkpoint, Teacher, full_disk_is_an_os_error
from openhorizon.model.sampler import LocalPolicy
from openhorizon.train.compute import Meter
from openhorizon.train.distillation import distil
from openhorizon.train.kept import Kept
from openhorizon.train.reinforcement import reinforce
from openhorizon.train.resume import Resume, State, Tensors, Weights
from openhorizon.train.router import Router
from openhorizon.train.supervised import fit
from openhorizon.train.teachers.phases import normalised
from openhorizon.train.warm_up import warm_up
from openhorizon.unfinished import Unfinished

EVERY_STEP = replace(MACHINE, checkpoint_s=1e9, checkpoint_steps=1)
ROUTERS = RouterConfig(balance=0.01, z=0.001, replay=False)
STAGES = ("sft", "teach@search", "teach@tool_calling", "distill", "evaluate@student")


class Killed(BaseException): ...


class Mortal(Log):
    """A log that dies when its ``last`` point is to be recorded, and can be taken up."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def metrics(self, step: int, **values: float) -> None:
        if len(self.rows) == self.last:
            raise Killed
        super().metrics(step, **values)

    def state(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def take_up(self, state: dict[str, Any]) -> None:
        self.rows = list(state["rows"])


Train = Callable[[Checkpoint, Mortal, Meter, Resume], dict[str, float]]


def ended(
    train: Train, start: Callable[[], Checkpoint], folder: Path, kills: list[int], every: int = 1
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]], dict[str, float], dict[str, int]]:
    """Weights, curves, figures and what was spent when ``train`` has ended, killed at each of these points before."""
    machine = replace(EVERY_STEP, checkpoint_steps=every)
    for last in [*kills, 10**9]:
        checkpoint, log, meter = start(), Mortal(last), Meter()
        unfinished = Unfinished("stage", "same", folder)
        saved = Resume(unfinished, machine, log, model=Weights(checkpoint.model))  # type: ignore[arg-type]
        try:
            figures = train(checkpoint, log, meter, saved)
        except Killed:
            continue
        saved.remove()
        assert not unfinished.folder.exists()
    return dict(checkpoint.model.state_dict()), log.rows, figures, meter.figures()


def same(train: Train, start: Callable[[], Checkpoint], tmp_path: Path, kills: list[int], every: int = 1) -> None:
    in_peace = ended(train, start, tmp_path / "peace", [])
    killed = ended(train, start, tmp_path / "killed", kills, every)
    assert in_peace[0].keys() == killed[0].keys()
    assert all(torch.equal(value, killed[0][name]) for name, value in in_peace[0].items())
    assert in_peace[1:] == killed[1:]
    assert len(in_peace[1]) > max(kills)


def test_fine_tuning(fresh: Callable[[int], Checkpoint], tmp_path: Path) -> None:
    """A schedule, routers with losses of their own, several epochs; not every step is saved."""
    optim = replace(OPTIM, schedule="cosine", warmup=0.2, weight_decay=0.1)

    def train(checkpoint: Checkpoint, log: Mortal, meter: Meter, saved: Resume) -> dict[str, float]:
        samples: Any = demonstrations(checkpoint, 20)
        return fit(checkpoint.model, samples, 6000, optim, 3, MACHINE, log, "x_", ROUTERS, 0, meter, saved)  # type: ignore[arg-type]

    same(train, lambda: fresh(1), tmp_path, [3, 4, 9], every=2)


def test_grpo(fresh: Callable[[int], Checkpoint], tmp_path: Path) -> None:
    """With replayed routers, and the best state kept, which differs from the last."""
    config = replace(GRPO, iterations=5, updates=2, validate_every=2, kl=0.1)
    domains: Any = {"count": CountDomain()}
    unlike = normalised(lambda trajectory: float(sum(trajectory.ids) % 7))  # whatever was written, something is learned

    def train(checkpoint: Checkpoint, log: Mortal, meter: Meter, saved: Resume) -> dict[str, float]:
        scores = {"start": 0.1, "2": 0.7, "4": 0.3}
        kept = Kept(checkpoint.model, lambda name: scores[name], 1.0)
        saved.keep(kept=kept)
        kept.offer("start")
        kept.restore()
        reference = copy.deepcopy(checkpoint.model).requires_grad_(False)
        figures = reinforce(
            LocalPolicy(checkpoint, 8), reference, domains, tasks(12), {"count": BUDGET}, config, unlike, 4, MACHINE,
            log, replace(ROUTERS, replay=True), lambda i: kept.offer(str(i)), meter=meter, saved=saved,  # type: ignore[arg-type]
        )  # fmt: skip
        last = checkpoint.model.get_input_embeddings().weight.clone()
        kept.restore()
        assert kept.name == "2" and not torch.equal(last, checkpoint.model.get_input_embeddings().weight)
        return figures

    same(train, lambda: fresh(2), tmp_path, [1, 3, 4])


@pytest.mark.parametrize(
    "changes",
    [
        {"aggregation": "budget", "on_policy": 0.5},
        {"aggregation": "domain"},
        {"aggregation": "budget", "on_policy": 0.5, "staleness": 1},
        {"staleness": 2},
    ],
    ids=["measured", "plain", "one_behind", "two_behind"],
)
def test_distillation(fresh: Callable[[int], Checkpoint], tmp_path: Path, changes: dict[str, Any]) -> None:
    """With scales that look back at the first iteration, demonstrations in turn, turns that grow, and rollouts in
    flight by older weights."""
    config = replace(
        DISTILL, iterations=4, prompts=4, updates=2, top_k=8, turn_curriculum=CurriculumConfig(1, 2), **changes
    )
    domains: Any = {"count": CountDomain()}
    teacher = fresh(1)
    fit(teacher.model, demonstrations(teacher, 30), 5_000, OPTIM, 0, MACHINE, Log())  # type: ignore[arg-type]
    teacher.model.requires_grad_(False)

    def train(checkpoint: Checkpoint, log: Mortal, meter: Meter, saved: Resume) -> dict[str, float]:
        router = Router(checkpoint, [Teacher("count", teacher)], ["count"], "hard", 0)
        shown = {"count": [[sample] for sample in demonstrations(checkpoint, 9)]}
        return distil(
            LocalPolicy(checkpoint, 8), router, domains, {"count": tasks(9)}, {"count": BUDGET}, config, 0, MACHINE,
            log, ROUTERS, shown, meter, saved,  # type: ignore[arg-type]
        )  # fmt: skip

    same(train, lambda: fresh(1), tmp_path, [1, 2, 3])


def test_a_warm_up_before_distillation(fresh: Callable[[int], Checkpoint], tmp_path: Path) -> None:
    """Killed in it, and before distillation, which counts what it spent, has saved anything."""
    config = replace(DISTILL, iterations=2, prompts=4, updates=1, top_k=8, temperature=0.7)
    block = WarmUpConfig(prompts=8, tokens=1500, optim=OPTIM)
    domains: Any = {"count": CountDomain()}
    prompts, budgets = {"count": tasks(9)}, {"count": BUDGET}
    teacher = replace(fresh(1), hash="teacher")
    with pytest.raises(ValueError, match=r"distill\.warm_up\.prompts=8: no teacher solves any"):
        warm_up(
            fresh(2), {"count": teacher}, domains, prompts, budgets, block, 0.7, 0, MACHINE, Log(), ROUTERS, Meter(),  # type: ignore[arg-type]
            Resume(),
        )  # fmt: skip
    fit(teacher.model, demonstrations(teacher, 60, giving_up=True), 30_000, OPTIM, 0, MACHINE, Log())  # type: ignore[arg-type]
    teacher.model.requires_grad_(False)

    def train(checkpoint: Checkpoint, log: Mortal, meter: Meter, saved: Resume) -> dict[str, float]:
        saved.keep(spent=meter)
        router = Router(checkpoint, [Teacher("count", teacher)], ["count"], "hard", 0)
        warming = partial(
            warm_up, checkpoint, {"count": teacher}, domains, prompts, budgets, block, 0.7, 0, MACHINE, log, ROUTERS,  # type: ignore[arg-type]
            meter, saved,
        )  # fmt: skip
        warm = saved.once("warm_up", warming)
        assert 0 < warm["warm_up_solved@count"] < warm["warm_up_written@count"] == 8
        after = distil(
            LocalPolicy(checkpoint, 8), router, domains, prompts, budgets, config, 0, MACHINE, log, ROUTERS,
            meter=meter, saved=saved,  # type: ignore[arg-type]
        )  # fmt: skip
        return warm | after

    same(train, lambda: fresh(1), tmp_path, [1, 3, 4])


def test_a_finished_piece_is_not_done_again(tmp_path: Path) -> None:
    """Pieces in order, each with a loop of its own; what a loop held is not handed to the next one."""
    made = list[str]()

    def run(dies_in: str) -> Any:
        held = Tensors({"x": torch.zeros(1)})
        saved = Resume(Unfinished("s", "i", tmp_path), EVERY_STEP, held=held)

        def piece(name: str) -> dict[str, float]:
            mine = Tensors({"y": torch.zeros(1)})
            begin = saved.enter(mine=mine)
            for step in range(begin.get("step", 0), 3):
                made.append(f"{name}{step}")
                mine.held["y"] += step + 1
                held.held["x"] += 1
                if dies_in == f"{name}{step}":
                    raise Killed
                saved.after(step + 1)
            return {"y": mine.held["y"].item()}

        return [saved.once(name, lambda name=name: piece(name)) for name in "ab"], held.held["x"].item()

    for dies_in in ("a1", "b0", "b2"):
        with pytest.raises(Killed):
            run(dies_in)
    assert run("") == ([{"y": 6.0}, {"y": 6.0}], 6.0)
    assert made == ["a0", "a1", "a1", "a2", "b0", "b0", "b1", "b2", "b2"]


def test_saves_are_made_by_time_or_by_steps(tmp_path: Path) -> None:
    for machine, saves in (
        (replace(MACHINE, checkpoint_s=1e9, checkpoint_steps=None), 0),
        (replace(MACHINE, checkpoint_s=1e9, checkpoint_steps=3), 2),
        (replace(MACHINE, checkpoint_s=0.0, checkpoint_steps=None), 7),
    ):
        unfinished = Unfinished("s", "i", tmp_path)
        resume = Resume(unfinished, machine)
        resume.enter()
        for step in range(7):
            resume.after(step + 1)
        assert unfinished._number == saves
        resume.remove()


def test_what_does_not_change_is_written_once(tmp_path: Path) -> None:
    frozen, moving = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    unfinished = Unfinished("s", "i", tmp_path)
    resume = Resume(unfinished, EVERY_STEP, frozen=Weights(frozen, frozen=True), moving=Weights(moving))
    resume.enter()
    for step in range(3):
        resume.after(step + 1)
    assert {path.name for path in unfinished.folder.iterdir()} == {"frozen.1", "moving.3", "random.3", "state.json"}


@pytest.fixture
def work(tmp_path: Path) -> Unfinished:
    """Saved once, with a file."""
    found = Unfinished("sft", "identity", tmp_path)
    found.save({"step": 3, "loss": 0.1}, {"weights": lambda path: save_file({"w": torch.arange(9.0)}, path)})
    return found


def reopened(work: Unfinished, identity: str = "identity") -> Unfinished:
    return Unfinished("sft", identity, work.folder.parents[2])


def test_what_was_saved_is_read_again(work: Unfinished) -> None:
    found = reopened(work)
    assert found.values == {"step": 3, "loss": 0.1} and set(found.names) == {"weights"}
    assert found.path("weights").read_bytes() == work.path("weights").read_bytes()


@pytest.mark.parametrize("file", ["weights", "state.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_damage_is_noticed_and_not_trusted(
    work: Unfinished, capsys: pytest.CaptureFixture[str], file: str, damage: str
) -> None:
    """Whatever byte it is; the times of the file are as they were."""
    draw = random.Random(0)
    for _ in range(12):
        work.save({"step": 3}, {"weights": lambda path: save_file({"w": torch.arange(9.0)}, path)})
        path = work.folder / file if file == "state.json" else work.path("weights")
        data, times = path.read_bytes(), path.stat()
        at = draw.randrange(len(data))
        path.write_bytes(
            {"flip": data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], "cut": data[:at], "empty": b""}[damage]
        )
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        capsys.readouterr()
        found = reopened(work)
        said = capsys.readouterr().out
        assert found.values == {} and not found.names and not found.folder.exists()
        assert said.count("\n") == 1 and "discarded" in said and "damaged" in said and str(path) in said


def test_work_of_another_identity_is_discarded(work: Unfinished, capsys: pytest.CaptureFixture[str]) -> None:
    assert reopened(work, "other").values == {}
    assert capsys.readouterr().out == (
        "sft: saved work is discarded, it begins anew: what decides its result has changed since\n"
    )
    assert reopened(work).values == {}


def test_a_save_that_was_cut_off_leaves_the_one_before(work: Unfinished) -> None:
    def die(path: Path) -> None:
        path.write_bytes(b"half")
        raise Killed

    with pytest.raises(Killed):
        work.save({"step": 4}, {"other": lambda path: path.write_bytes(b"whole"), "weights": die})  # type: ignore[arg-type, dict-item]
    assert {path.name for path in work.folder.iterdir()} == {"weights.1", "other.2", "weights.2", "state.json"}
    found = reopened(work)
    assert found.values["step"] == 3
    assert {path.name for path in work.folder.iterdir()} == {"weights.1", "state.json"}


def test_a_full_disk_ends_no_training(work: Unfinished, capsys: pytest.CaptureFixture[str]) -> None:
    def full(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    assert not work.save({"step": 4}, {"weights": full})
    assert capsys.readouterr().out == "sft: no space left on the disk to save its work; it goes on without\n"
    assert reopened(work).values["step"] == 3
    assert {path.name for path in work.folder.iterdir()} == {"weights.1", "state.json"}


def test_weights_on_a_full_disk_are_an_os_error(tmp_path: Path) -> None:
    """As safetensors says it."""
    with pytest.raises(OSError, match="No space left") as caught, full_disk_is_an_os_error(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(SafetensorError), full_disk_is_an_os_error(tmp_path):
        raise SafetensorError("Error while serializing: I/O error: Permission denied (os error 13)")


def test_tied_weights_are_saved_once_and_stay_tied() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3, bias=False), "b": torch.nn.Linear(3, 3, bias=False)})
    model["b"].weight = model["a"].weight
    state = Weights(model).state()
    assert list(state.tensors) == ["a.weight"]
    Weights(model).take_up(State({"a.weight": torch.full((3, 3), 2.0)}))
    assert torch.equal(model["b"].weight, torch.full((3, 3), 2.0))


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/killed_stages.py found: real stages, real SIGKILLs."""
    root = tmp_path_factory.mktemp("killed")
    machine = {"checkpoint_s": 1e9, "checkpoint_steps": 1, "rollout_batch": 8, "threads": 1, "stages": 1}
    tiny_project.make(root, [{"machines": {"cpu": machine}}])
    environment = {
        **os.environ,
        "PYTHONPATH": str(root / "src"),
        "MACHINE": "cpu",
        "OMP_NUM_THREADS": "1",
        "OPENHORIZON_PARENT_RUN": "untracked",
    }
    seed = str(random.randrange(10**6))  # another moment every time
    script = Path(__file__).with_name("killed_stages.py")
    done = subprocess.run(
        [sys.executable, str(script), str(root), seed], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, (seed, done.stdout[-2000:], done.stderr[-4000:])
    found: dict[str, Any] = json.loads((root / "found.json").read_text())
    shutil.rmtree(root)
    return {"seed": seed, **found}


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_killed_stage_goes_on_and_writes_the_same_bytes(killed: dict[str, Any], stage: str) -> None:
    found = killed[stage]
    assert found["same"], killed
    assert found["kills"] and found["went_on"] == found["kills"], killed
    assert not found["half"] and found["left"] == [], killed
