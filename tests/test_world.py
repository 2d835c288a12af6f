"""Training on two processes is training on one: losses, weights, saves; a killed process ends the stage cleanly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import tiny_project
import torch
from safetensors.torch import load_file
from settings import laptop
from test_training import demonstrations
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from openhorizon import launch
from openhorizon.artifacts import RANK_VARIABLE, replace_dir
from openhorizon.config.checks import check
from openhorizon.model.load import Checkpoint
from openhorizon.train.packing import micro_batches, passes
from openhorizon.train.reinforcement import mean
from openhorizon.world import World

TESTS = Path(__file__).parent
JOBS = ("sft", "sft_qwen", "sft_spread", "grpo", "grpo_spread")
JOBS += ("distillation", "distillation_full", "distillation_behind")
HYBRIDS = ("sft_a1", "grpo_a1", "distillation_a1")
EACH_S = 300.0  # bound of a stage on a busy machine


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which every job of world_jobs.py was done."""
    folder = tmp_path_factory.mktemp("jobs")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, str(TESTS / "world_jobs.py"), str(folder)], env=environment, check=True)
    return folder


def rows(folder: Path, name: str) -> list[dict[str, float]]:
    found: list[dict[str, float]] = json.loads((folder / f"{name}.json").read_text())
    return found


def same_rows(ours: list[dict[str, float]], theirs: list[dict[str, float]]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)


def differences(folder: Path, one: str, other: str) -> torch.Tensor:
    ours, theirs = (load_file(folder / f"{name}.safetensors") for name in (one, other))
    assert ours.keys() == theirs.keys()
    return torch.cat([(ours[name] - theirs[name]).abs().flatten() for name in ours])


def far_apart(folder: Path, one: str, other: str) -> float:
    return differences(folder, one, other).max().item()


@pytest.mark.parametrize("job", [*JOBS, *HYBRIDS])
def test_two_processes_train_as_one(jobs: Path, job: str) -> None:
    alone, together = rows(jobs, f"{job}.1"), rows(jobs, f"{job}.2")
    same_rows(alone, together)
    assert len({row["loss"] for row in alone}) == len(alone), "every update is another"
    far = (differences(jobs, f"{job}.1", f"{job}.2") > 1e-4).sum().item()
    assert far <= (3 if job in HYBRIDS else 0), "of 69,600, whose gradients are rounding, which AdamW makes steps of"
    assert job != "sft" or len(alone) == 20


@pytest.mark.parametrize(("first", "then"), [(1, 2), (2, 1)])
def test_what_some_processes_saved_others_go_on_with(jobs: Path, first: int, then: int) -> None:
    stopped, whole = rows(jobs, f"stopped{first}.{first}"), rows(jobs, f"from{first}.{then}")
    assert len(stopped) == 9 and len(whole) == 20
    same_rows(rows(jobs, "sft.1"), whole)
    assert far_apart(jobs, "sft.1", f"from{first}.{then}") < 1e-4


def test_the_best_state_goes_with_it(jobs: Path) -> None:
    """Kept in pieces, saved whole, laid out again: what two processes restore is the start."""
    assert far_apart(jobs, "start.1", "kept.2") == 0 and far_apart(jobs, "start.1", "kept.1") == 0


def test_merged_weights_are_the_same(jobs: Path) -> None:
    assert far_apart(jobs, "merging.1", "merging.2") < 1e-6 < far_apart(jobs, "merging.1", "start.1")


@pytest.mark.parametrize("job", ["pieces", "pieces_spread"])
def test_a_process_holds_its_piece_of_each_layer(jobs: Path, job: str) -> None:
    (alone,), (half,) = rows(jobs, f"{job}.1"), rows(jobs, f"{job}.2")
    layers = alone["wholes"] - half["wholes"]
    assert alone["pieces"] == 0 and half["pieces"] == pytest.approx(layers / 2, rel=0.02)
    assert half["wholes"] < 0.4 * alone["wholes"], "embeddings and the last norm"


def test_passes_are_as_many_everywhere_and_each_sample_counts_once(
    tiny: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = demonstrations(tiny(), 11)
    alone = [part.samples for part in passes(samples, 100)]
    assert alone == micro_batches(samples, 100) and len(alone) > 3
    for size, count in ((2, 11), (3, 11), (4, 3)):
        chosen, every = samples[:count], []
        for rank in range(size):
            monkeypatch.setattr(World, "here", staticmethod(lambda rank=rank, size=size: World(rank, size)))
            every.append(passes(chosen, 100))
        assert len({len(made) for made in every}) == 1
        assert sorted(i for made in every for part in made if part.counts for i in part.samples) == list(range(count))
        loads = [sum(len(chosen[i].ids) for part in made if part.counts for i in part.samples) for made in every]
        assert max(loads) - min(loads) <= max(len(sample.ids) for sample in chosen)
    assert passes([], 100) == []


def test_a_mean_leaves_out_what_does_not_count() -> None:
    assert mean([(3.0, 1), (6.0, 2), (100.0, 0)]) == 5.0
    value = torch.tensor([0.1, 0.7, 0.3]).mean().item()
    assert mean([(value, 12345)]) == value, "alone, to the last bit"


def test_only_the_first_process_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for rank, there in (("1", False), ("0", True)):
        monkeypatch.setenv(RANK_VARIABLE, rank)
        with replace_dir(tmp_path / "made") as folder:
            (folder / "file").write_text(rank)
        assert (tmp_path / "made" / "file").exists() is there


def failure(folder: Path, rank: int, code: int, message: str = "", at: int = 0) -> ProcessFailure:
    told = {"message": {"message": message, "extraInfo": {"py_callstack": "Traceback: here", "timestamp": at}}}
    file = folder / f"{rank}.json"
    if message:
        file.write_text(json.dumps(told))
    return ProcessFailure(rank, 1, code, str(file))


def test_the_first_cause_is_told_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = failure(tmp_path, 0, 1, "RuntimeError: connection closed", at=1)
    killed = failure(tmp_path, 1, -signal.SIGKILL)
    assert launch.told("sft", ChildFailedError("", {0: lost, 1: killed})) == 1
    assert capsys.readouterr().err == (
        "openhorizon: process 1 of sft was ended by SIGKILL, and the others with it; run again, it goes on from what "
        "was saved last\n"
    )
    ended = failure(tmp_path, 3, -signal.SIGTERM)  # by torchrun, because of the other
    assert launch.told("sft", ChildFailedError("", {0: ended, 1: killed})) == 1
    assert "process 1 of sft was ended by SIGKILL" in capsys.readouterr().err
    assert launch.told("sft", ChildFailedError("", {0: lost, 3: ended})) == 1
    assert "process 0 of sft failed: RuntimeError: connection closed" in capsys.readouterr().err
    refused = failure(tmp_path, 2, 2, "ValueError: sft.max_horizon=0: none", at=9)
    assert launch.told("sft", ChildFailedError("", {0: lost, 2: refused})) == 2
    assert capsys.readouterr().err == "openhorizon: sft.max_horizon=0: none\n"
    assert launch.told("sft", ChildFailedError("", {0: lost})) == 1
    assert capsys.readouterr().err == (
        "Traceback: here\nopenhorizon: process 0 of sft failed: RuntimeError: connection closed\n"
    )


def test_arguments_may_name_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEAD", "node7")
    assert launch.filled("--rdzv-endpoint=$HEAD:29500") == "--rdzv-endpoint=node7:29500"
    with pytest.raises(ValueError, match=r"machines\.\*\.torchrun: '--nnodes=\$NOWHERE' names a variable that is not"):
        launch.filled("--nnodes=$NOWHERE")
    assert launch.options(["--nnodes=2", "-m", "openhorizon"]).nnodes == "2"
    with pytest.raises(ValueError, match=r"machines\.\*\.torchrun: .*--node-rank"):
        launch.options(["--node-rank=first", "-m", "openhorizon"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"processes": 0}, "processes: 0 is less than 1"),
        ({"stages": 2, "torchrun": ("--nnodes=2",)}, "stages: 2 at once would meet at one endpoint"),
        ({"stages": 2, "processes": 8, "device": "cuda"}, "stages: 2 at once would share GPUs"),
        ({"expert_parallel": True, "experts": "megablocks"}, "expert_parallel: megablocks needs all experts"),
    ],
)
def test_machines_that_cannot_be_are_named(changes: dict[str, Any], message: str) -> None:
    settings = laptop()
    machines = {"cpu": replace(settings.machines["cpu"], **{"stages": 1, **changes})}
    with pytest.raises(ValueError, match=rf"^params\.yaml:machines\.cpu\.{message}"):
        check(replace(settings, machines=machines), "params.yaml")


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout with one domain's demonstrations, whose stages take two processes and save at every step."""
    machine = {"cpu": {"processes": 2, "checkpoint_s": 1e6, "checkpoint_steps": 1}}
    root = tiny_project.make(tmp_path_factory.mktemp("project"), [{"machines": machine}], ["search"])
    with started(root, "generate", "--target", "search") as child:
        assert child.wait(EACH_S) == 0
    return root


def started(root: Path, *stage: str) -> subprocess.Popen[str]:
    (root / "tmp").mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "OPENHORIZON_PARENT_RUN": "untracked"}
    environment["TMPDIR"] = str(root / "tmp")
    command = [sys.executable, "-m", "openhorizon", "stage", *stage]
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=root, env=environment, text=True, **streams)


def until(found: Callable[[], bool]) -> Iterator[None]:
    deadline = time.monotonic() + EACH_S
    while not found():
        assert time.monotonic() < deadline
        yield
        time.sleep(0.01)


@pytest.mark.slow
def test_a_killed_process_ends_the_stage_which_then_goes_on(project: Path) -> None:
    child = started(project, "base")
    for _ in until((project / ".openhorizon/resume/base/state.json").exists):
        assert child.poll() is None, child.communicate()
    ranks = psutil.Process(child.pid).children()
    assert len(ranks) == 2
    next(rank for rank in ranks if rank.environ()[RANK_VARIABLE] == "1").kill()
    _, errors = child.communicate(timeout=45)
    assert child.returncode == 1 and errors.startswith("openhorizon: process 1 of base was ended by SIGKILL")
    assert errors.count("\n") == 1
    assert not any(rank.is_running() and rank.status() != psutil.STATUS_ZOMBIE for rank in ranks)
    assert not (project / "artifacts/base").exists()

    again = started(project, "base")
    said, errors = again.communicate(timeout=EACH_S)
    assert again.returncode == 0 and not errors
    assert said.count("goes on behind step") == 1 and said.count("base: starting") == 1
    curves = [json.loads(line) for line in (project / "artifacts/base/curves.jsonl").read_text().splitlines()]
    assert [point["step"] for point in curves] == list(range(6))
    assert not list((project / "tmp").iterdir())
    assert not list((project / "artifacts").glob(".base.*")) and not (project / ".openhorizon/resume/base").exists()
