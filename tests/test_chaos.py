"""The fault suite's short form (tests/chaos.py): one cheap stage, by DVC alone and through its flow, killed at random.

The long form, of all stages, is ``make chaos``.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import chaos
import pytest
import tiny_project

STAGE = "generate@tool_calling"
DVC = [sys.executable, "-m", "openhorizon.process", "--wait-for-lock", "repro", "--single-item", STAGE]
FLOW = [sys.executable, "-m", "flows.generate", "tool_calling"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the stage was run once in peace."""
    root = tiny_project.make(tmp_path_factory.mktemp("chaos"), domains=("tool_calling",))
    chaos.reproduce(root, root.parent / "chaos.log", DVC)
    return root


@pytest.mark.parametrize(
    ("victim", "command"), [("stage", DVC), ("dvc", DVC), pytest.param("flow", FLOW, marks=pytest.mark.long)]
)
def test_after_a_kill_the_next_run_makes_the_same(project: Path, victim: str, command: list[str]) -> None:
    seed = random.randrange(10**6)  # another moment every time
    log = project.parent / "chaos.log"
    try:
        chaos.fault(project, victim, STAGE, 1.5, random.Random(seed), log, command)
    except chaos.Wrong as wrong:
        pytest.fail(f"seed {seed}: {wrong}\n{log.read_text()[-3000:]}")


def test_what_is_wrong_is_seen(project: Path) -> None:
    """Each of the checks can fail."""
    right = chaos.outs(project), chaos.figures(project)
    chaos.check(project, *right, {})
    teacher = project / "artifacts" / "teach" / "search" / "model.safetensors"
    teacher.parent.mkdir(parents=True)
    teacher.write_text("weights")
    for said, before, teachers in (
        ("other artifacts: base", {**right[0], "base": [{"md5": "x"}]}, {}),
        ("search: a finished teacher was trained again", right[0], {teacher: 1}),
    ):
        with pytest.raises(chaos.Wrong, match=said):
            chaos.check(project, before, right[1], teachers)
    half = project / "artifacts" / "generate" / ".search.half"
    for path, said in (
        (half, r"left behind: artifacts/generate/\.search\.half"),
        (project / ".openhorizon" / "resume" / "sft", r"left behind: \.openhorizon/resume/sft"),
    ):
        path.mkdir(parents=True)
        with pytest.raises(chaos.Wrong, match=said):
            chaos.check(project, *right, {})
        path.rmdir()


def test_faults_are_of_every_kind_in_every_stage() -> None:
    stages = [f"stage{i}" for i in range(16)]
    plan = [chaos.planned(number, chaos.VICTIMS, stages) for number in range(6 * 16)]
    assert len(set(plan)) == len(plan)
    assert {stage for _, stage in plan[:50]} == set(stages) and {victim for victim, _ in plan[:6]} == set(chaos.VICTIMS)
    rows = list(chaos.table([{"victim": "dvc", "stage": "stage1"}], ("dvc", "flow"), ("stage0", "stage1")))
    assert rows[-3:] == ["| `stage0` | 0 | 0 | 0 |", "| `stage1` | 1 | 0 | 1 |", "| all | 1 | 0 | 1 |"]


def test_a_fault_that_came_too_late_is_tried_sooner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stage of a second whose time was taken on a machine that was sixty times slower."""
    tried: list[float] = []

    def brief(
        root: Path, victim: str, stage: str, seconds: float, draw: random.Random, log: Path
    ) -> tuple[float, bool]:
        tried.append(delay := draw.uniform(0, seconds))
        return delay, delay < 1

    monkeypatch.setattr(chaos, "fault", brief)
    (log := tmp_path / "log").write_text("base: done in 60.0 s\n")
    assert all(chaos.hit_in(tmp_path, "dvc", "base", random.Random(seed), log) <= 1 for seed in range(9))
    assert len(tried) > 9
    (log := tmp_path / "log").write_text("base: done in 60.0 s\n")
    with pytest.raises(chaos.Wrong, match="it had ended 9 times"):
        chaos.hit_in(tmp_path, "dvc", "base", Late(), log)


class Late(random.Random):
    """Draws the end of every range."""

    def uniform(self, a: float, b: float) -> float:
        return b
