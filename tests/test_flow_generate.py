"""The flow over shards: its runners, and what it says of a shard that fails. tests/test_generate.py holds the bytes."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.task_runners import ThreadPoolTaskRunner

from flows import cluster, generate
from flows.job import StageFailed
from openhorizon import config
from openhorizon.stages.generate import work_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    values: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    small = {"demonstrations": 6, "prompts": 2, "heldout": 2, "shards": 2, "benchmarks": [], "horizons": [1, 2]}
    values["generate"]["instruction"] |= small
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    return tmp_path


def test_a_shard_is_one_command_that_its_stage_takes_up(project: Path) -> None:
    generate.make_shard.fn(str(project), "instruction", "1")
    work = work_folder(config.load(), "instruction")
    assert {path.name for path in work.iterdir()} == {"heldout", "1"}


def test_a_shard_that_fails_says_why(project: Path) -> None:
    with pytest.raises(StageFailed, match=r"shard 7: failed: generate\.instruction\.shards=2: no shard '7'"):
        generate.make_shard.fn(str(project), "instruction", "7")


def test_a_shard_of_another_stage_is_refused(project: Path) -> None:
    command = [sys.executable, "-m", "openhorizon", "stage", "teach", "--target", "search", "--shard", "0"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--shard: only of" in done.stderr


def test_runners_are_known_by_name() -> None:
    assert isinstance(cluster.runner("threads", 2), ThreadPoolTaskRunner)
    with pytest.raises(ValueError, match=r"'dask': unknown; known are threads, ray"):
        cluster.runner("dask", 2)


@pytest.mark.skipif(importlib.util.find_spec("prefect_ray") is not None, reason="prefect-ray is installed")
def test_ray_that_is_not_installed_is_said_in_words() -> None:
    with pytest.raises(ValueError, match=r"prefect-ray is not installed: scripts/install-extra ray"):
        cluster.runner("ray", 2)


def test_an_unknown_domain_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    if shutil.which("git") is None:
        pytest.skip("no git")
    assert generate.main(["cooking"]) == 2
    assert "unknown domain 'cooking'; known are" in capsys.readouterr().err
