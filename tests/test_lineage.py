"""What decides a result is known by its hash, and what is not what a stage has written is not used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from conftest import MACHINE
from settings import laptop, laptop_text

from openhorizon import ancestry, cli, lineage, pipeline, process, profiles
from openhorizon.artifacts import checkpoint_dir, stage_dir, write_json, write_text
from openhorizon.config import STAGES

ROOT = Path(__file__).parents[1]
DOMAINS = ("search", "instruction")
SETTINGS = replace(laptop(DOMAINS), machines={"cpu": MACHINE})


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """dvc.yaml as it is, code that is a line a file, and artifacts that dvc.lock records, stages here having written
    them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MACHINE", "cpu")
    monkeypatch.delenv("DVC_STAGE", raising=False)
    Path("params.yaml").write_text(laptop_text(DOMAINS))
    shutil.copy2(ROOT / "dvc.yaml", "dvc.yaml")
    for dep in {dep for block in _blocks() for dep in block["deps"] if dep.startswith("src/") and "$" not in dep}:
        write_text(Path(dep) if dep.endswith(".py") else Path(dep, "code.py"), f"# {dep}\n")
    for name in DOMAINS:
        write_text(Path("src/openhorizon/domains", name, "code.py"), f"# {name}\n")
        write_text(stage_dir("generate", name) / "demonstrations.parquet", f"demonstrations of {name}")
        write_json(stage_dir("generate", name) / "metrics.json", {"counts": {"demonstrations": 2400}})
    for model in ("base", "sft", "student", *(f"teacher@{name}" for name in DOMAINS)):
        write_text(checkpoint_dir(model) / "model.safetensors", f"weights of {model}" * 100)
        write_json(checkpoint_dir(model) / "metrics.json", {})
    write_json(stage_dir("evaluate", "student") / "metrics.json", {"checkpoint": "389859972b43"})
    write_lock()
    return tmp_path


def _blocks() -> list[dict]:
    return [block.get("do", block) for block in yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].values()]


MADE = {
    "generate@search": ("generate", "search"),
    "generate@instruction": ("generate", "instruction"),
    "base": ("base", None),
    "sft": ("sft", None),
    "teach@search": ("teach", "search"),
    "teach@instruction": ("teach", "instruction"),
    "distill": ("distill", None),
    "evaluate@student": ("evaluate", "student"),
}


def write_lock() -> None:
    """dvc.lock as DVC would write it for what lies there."""
    stages = {}
    for name, (stage, target) in MADE.items():
        found = lineage.origin(stage, target)
        assert found
        stages[name] = {
            "deps": [{"path": path, "md5": md5} for path, md5 in {**found.code, **found.inputs}.items()],
            "params": {"params.yaml": dict(found.params)},
            "outs": [{"path": out, "md5": lineage.hash_of(Path(out))} for out in found.outs],
        }
    Path("dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": stages}))


def flip(path: Path) -> None:
    """A bit, and nothing that DVC remembers a file by: size and times stay."""
    data, times = bytearray(path.read_bytes()), path.stat()
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def refused(stage: str, target: str | None = None) -> str:
    found = lineage.origin(stage, target)
    assert found
    with pytest.raises(ValueError, match="not what its stage has written") as caught:
        lineage.check(found)
    return str(caught.value)


def accepted(stage: str, target: str | None = None) -> None:
    found = lineage.origin(stage, target)
    assert found
    lineage.check(found)


def test_hashes_are_dvcs(tmp_path: Path) -> None:
    folder = tmp_path / "artifacts" / "made"
    for name in ("b/c.txt", "b/a.txt", "a b.txt", "ß.txt", "b-.txt", ".hidden", "b/__pycache__/x"):
        write_text(folder / name, f"text of {name}\n")
    (folder / "bytes").write_bytes(bytes(range(256)) * 999)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    shutil.copy2(ROOT / ".dvcignore", tmp_path)
    stage = {"cmd": "true", "deps": ["artifacts/made", "artifacts/made/bytes"]}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"s": stage}}))
    dvc = [sys.executable, "-m", "openhorizon.process"]
    for command in (["init", "-q"], ["repro", "-q"]):
        subprocess.run([*dvc, *command], cwd=tmp_path, check=True, env=process.child_environment())
    (entry,) = lineage.lock(tmp_path).values()
    assert {dep["path"]: dep["md5"] for dep in entry["deps"]} == {
        dep: lineage.hash_of(tmp_path / dep) for dep in stage["deps"]
    }


def test_every_stage_of_the_recipe_is_known(project: Path) -> None:
    targets = {"generate": DOMAINS, "teach": DOMAINS, "baseline": ("seqkd",), "benchmark": ("bfcl",)}
    models = ("base", "sft", "student", "teacher@search", "baseline@seqkd")
    for stage in STAGES:
        for target in targets.get(stage, models if stage == "evaluate" else (None,)):
            found = lineage.origin(stage, target)
            assert found and found.code and found.params and found.outs, (stage, target)
            assert "${" not in str(found)
    read = lineage.origin("distill", None)
    assert read and set(read.inputs) == {
        "artifacts/sft",
        *(f"artifacts/{kind}/{name}" for kind in ("generate", "teach") for name in DOMAINS),
    }
    assert lineage.origin("evaluate", "grandmaster") is None


def test_an_identity_is_of_all_that_decides_and_of_nothing_else(project: Path) -> None:
    def identity(config: object = SETTINGS) -> str:
        found = lineage.origin("teach", "search")
        assert found
        return found.identity(config)  # type: ignore[arg-type]

    seen = [identity()]
    write_text(Path("src/openhorizon/report/code.py"), "# another report")
    write_text(stage_dir("generate", "instruction") / "demonstrations.parquet", "another domain's")
    often = replace(SETTINGS, machines={"cpu": replace(MACHINE, checkpoint_s=1.0, checkpoint_steps=1)})
    assert identity() == identity(often) == seen[0]
    flip(checkpoint_dir("sft") / "model.safetensors")
    seen.append(identity())
    write_text(Path("src/openhorizon/train/code.py"), "# another trainer")
    seen.append(identity())
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["teach"]["search"]["tokens"] += 1
    Path("params.yaml").write_text(yaml.safe_dump(params))
    seen.append(identity())
    seen.append(identity(replace(SETTINGS, machines={"cpu": replace(MACHINE, threads=3)})))
    assert len(set(seen)) == 5


@pytest.mark.parametrize("under_dvc", [True, False])
def test_a_flipped_bit_is_noticed_before_it_is_used(
    project: Path, under_dvc: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if under_dvc:
        monkeypatch.setenv("DVC_STAGE", "distill")
    accepted("distill")
    flip(checkpoint_dir("teacher@search") / "model.safetensors")
    said = refused("distill")
    assert said.startswith("artifacts/teach/search: not what") and "delete it, `make reproduce`" in said
    accepted("teach", "search")  # which does not read it
    assert cli.main(["stage", "distill"]) == cli.USER_ERROR
    assert capsys.readouterr().err == f"openhorizon: {said}\n"
    assert not Path(".openhorizon/records").exists()


def test_swapped_teachers_are_noticed(project: Path) -> None:
    one, other = (checkpoint_dir(f"teacher@{name}") for name in DOMAINS)
    one.rename("aside")
    other.rename(one)
    Path("aside").rename(other)
    assert "artifacts/teach/" in refused("distill")


def test_stages_run_by_hand_know_what_stages_here_have_written(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as scripts/stages-alone: dvc.lock is of another run, or there is none."""
    write_text(checkpoint_dir("sft") / "model.safetensors", "trained by hand")
    refused("distill")
    by_hand = lineage.origin("sft", None)
    assert by_hand
    lineage.record(by_hand, SETTINGS)
    accepted("distill")
    monkeypatch.setenv("DVC_STAGE", "distill")
    refused("distill")  # dvc.lock says otherwise, and DVC asks
    monkeypatch.delenv("DVC_STAGE")
    Path("dvc.lock").unlink()
    accepted("distill")  # of the others nothing is known
    flip(checkpoint_dir("sft") / "model.safetensors")
    refused("distill")


def test_a_half_written_lock_is_read_again(project: Path) -> None:
    whole = Path("dvc.lock").read_text()
    Path("dvc.lock").write_text("schema: '2.0'\nstages:\n  base: {deps: [")

    def finish() -> None:
        time.sleep(0.3)
        Path("dvc.lock").write_text(whole)

    writer = threading.Thread(target=finish)
    writer.start()
    assert set(lineage.lock()) == set(MADE)
    writer.join()


def test_a_lineage_goes_back_to_the_data_and_says_what_has_changed(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = lineage.origin("teach", "search")
    assert teacher
    lineage.record(teacher, SETTINGS)
    assert cli.main(["show", "lineage", "student", "--out", "made.json"]) == 0
    said = capsys.readouterr().out
    found = {it["path"]: it for it in json.loads(Path("made.json").read_text())["ancestors"]}
    assert next(iter(found)) == "artifacts/evaluate/student" and set(found) == {
        *("artifacts/evaluate/student", "artifacts/distill", "artifacts/sft", "artifacts/base"),
        *(f"artifacts/{kind}/{name}" for kind in ("teach", "generate") for name in DOMAINS),
    }
    assert all(it["state"] == "as recorded" for it in found.values())
    assert found["artifacts/evaluate/student"]["holds"] == {"the evaluation of weights": "389859972b43"}
    assert found["artifacts/generate/search"]["holds"] == {"demonstrations": "2,400"}
    assert found["artifacts/teach/search"]["made_of"] == [
        *("artifacts/base", "artifacts/generate/search", "artifacts/sft"),
    ]
    made = found["artifacts/teach/search"]["made"]
    assert (
        made["machine"]["device"] == "cpu"
        and made["params"]["teach.search"]["tokens"] == SETTINGS.teach["search"].tokens
    )
    assert {"commit", "at", "packages", "code", "inputs"} <= set(made)
    assert "stage distill, which ran elsewhere" in said and f"stage teach@search, {made['at']}" in said
    flip(checkpoint_dir("teacher@search") / "model.safetensors")
    shutil.rmtree(stage_dir("generate", "search"))
    states = {it.path: it.state for it in ancestry.ancestors("evaluate@student")}
    assert states["artifacts/teach/search"] == "CHANGED SINCE" and states["artifacts/generate/search"] == "not here"
    assert {it.path for it in ancestry.ancestors("teacher@search")} == {
        *("artifacts/teach/search", "artifacts/sft", "artifacts/base"),
        *(f"artifacts/generate/{name}" for name in DOMAINS),
    }


def test_a_lineage_that_is_not_known_is_said(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["show", "lineage", "grandmaster"]) == cli.USER_ERROR
    assert "unknown model 'grandmaster'" in capsys.readouterr().err
    assert cli.main(["show", "lineage", "baseline@seqkd"]) == cli.USER_ERROR
    assert "artifacts/baseline/seqkd" in capsys.readouterr().err
    assert pipeline.LOCK_FILE == "dvc.lock"


def test_a_commit_is_dirty_by_what_people_change_and_not_by_what_a_reproduction_writes(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    profiles.write("laptop", tmp_path)
    write_text(tmp_path / "dvc.lock", "schema: '2.0'\n")
    assert pipeline.commit(tmp_path) == ""
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b.c")
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "all"]):
        subprocess.run([*git, *arguments], cwd=tmp_path, check=True)
    clean = pipeline.commit(tmp_path)
    assert len(clean) == 40
    profiles.write("laptop+best", tmp_path)
    write_text(tmp_path / "dvc.lock", "schema: '2.0'\nstages: {}\n")
    assert pipeline.commit(tmp_path) == clean
    params = tmp_path / "params.yaml"
    params.write_text(params.read_text().replace("seed: 0", "seed: 1"))
    assert pipeline.commit(tmp_path) == f"{clean}-dirty"
    profiles.write("laptop", tmp_path)
    (tmp_path / "profiles" / "best.yaml").write_text("seed: 7\n")
    assert pipeline.commit(tmp_path) == f"{clean}-dirty"


def test_what_dvc_has_left_half_written_does_not_keep_it_from_starting(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a disk leaves that was full while DVC wrote, or a DVC that was killed then."""
    table, lock = project / pipeline.DVC_LOCKS, project / pipeline.LOCK_FILE
    whole = "schema: '2.0'\nstages:\n  sft:\n    cmd: c\n    outs:\n    - path: a\n      md5: abc\n      size: 3\n"
    write_text(lock, whole)
    for half in ("", '{"artifacts/sft": {"wri'):
        write_text(table, half)
        with pipeline.alone(project):
            assert not table.exists() and lock.read_text() == whole
    write_text(table, "{}")
    for end in (0, whole.index("md5") + 2, whole.index("outs:") + 5):  # nothing, no YAML, no lock file
        write_text(lock, whole[:end])
        with pipeline.alone(project):
            assert table.exists() and not lock.exists()
        assert "dvc.lock: half written" in capsys.readouterr().out
    conflict = f"<<<<<<< HEAD\n{whole}=======\n{whole}>>>>>>> other\n"
    write_text(lock, conflict)
    with pipeline.alone(project):
        assert lock.read_text() == conflict
