"""The smoke profile end to end, through the real flow, in a checkout of its own; one run serves all tests."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from object_store import dvc, object_store, s3, use  # noqa: F401 (a fixture)

from openhorizon.agent.trajectory import read_tasks, read_trajectories
from openhorizon.model.load import weights_hash

ROOT = Path(__file__).resolve().parents[1]
PARTS = (
    "src",
    "flows",
    "profiles",
    "dvc.yaml",
    "params.yaml",
    "pyproject.toml",
    ".dvc/config",
    ".dvcignore",
    ".gitignore",
)
DOMAINS = ("search", "engineering", "science", "instruction", "tool_calling", "scientific_agent")
MODELS = {"base", "sft", "student", *(f"teacher@{domain}" for domain in DOMAINS)}

pytestmark = pytest.mark.slow


def command(root: Path, *arguments: str) -> str:
    """Run a command in ``root``, its lines shown as they come; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(root / "src"), "PYTHONUNBUFFERED": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    lines = []
    with subprocess.Popen(
        [sys.executable, *arguments],
        cwd=root,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            sys.__stdout__.write(line) if sys.__stdout__ else None
            lines.append(line)
    text = "".join(lines)
    assert child.returncode == 0, text[-4000:]
    return text


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkout in which the smoke profile was reproduced once; ``first.log`` holds what that printed."""
    root = tmp_path_factory.mktemp("project")
    for part in PARTS:
        source, target = ROOT / part, root / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(source, target)
    subprocess.run(["git", "init", "--quiet", "."], cwd=root, check=True)
    (root / "first.log").write_text(command(root, "-m", "openhorizon", "reproduce", "--profile", "smoke"))
    return root


def results(root: Path) -> dict:
    return json.loads((root / "reports" / "results.json").read_text())


def test_results_hold_every_model_domain_and_stage(project: Path) -> None:
    found = results(project)
    assert found["profile"] == "smoke"
    assert {row["model"] for row in found["rows"]} == MODELS
    for row in found["rows"]:
        assert {"model", "domain", "horizon", "n", "success", "ci95", "seed"} <= set(row)
        low, high = row["ci95"]
        assert 0 <= low <= row["success"] <= high <= 1
    whole = {(row["model"], row["domain"]): row["n"] for row in found["rows"] if row["horizon"] == "all"}
    for model in ("base", "sft", "student"):
        assert all(whole[model, domain] >= 200 for domain in DOMAINS)
    timed = {stage["stage"] for stage in found["stages"]}
    assert {"base", "sft", "distill", *(f"teach@{domain}" for domain in DOMAINS)} <= timed


def test_learning_is_visible_in_at_least_one_domain(project: Path) -> None:
    """Above what a policy that has learned nothing reaches (0 of 200: no answer is right by chance)."""
    rows = {(r["model"], r["domain"]): r for r in results(project)["rows"] if r["horizon"] == "all"}
    assert max(rows["sft", domain]["ci95"][0] for domain in DOMAINS) > 0.1, rows


def test_distillation_was_routed_and_changed_the_student(project: Path) -> None:
    """Four iterations show no fall of the loss through the noise of the prompts: tests/test_training.py shows it."""
    curve = [json.loads(line) for line in (project / "artifacts/distill/curves.jsonl").read_text().splitlines()]
    for row in curve:
        assert 0 < row["loss"] < 5
        assert all(0 < row[f"rho@{domain}"] <= 1 + 1e-5 and row[f"loss@{domain}"] >= 0 for domain in DOMAINS)
    metrics = json.loads((project / "artifacts/distill/metrics.json").read_text())
    for domain in DOMAINS:
        assert metrics[f"teacher@{domain}"] == weights_hash(project / "artifacts/teach" / domain)
    assert weights_hash(project / "artifacts/distill") != weights_hash(project / "artifacts/sft")


def test_held_out_shares_nothing_with_training(project: Path) -> None:
    for domain in DOMAINS:
        folder = project / "artifacts/generate" / domain
        held = read_tasks(folder / "heldout.parquet")
        train = [t.task for t in read_trajectories(folder / "demonstrations.parquet")]
        train += read_tasks(folder / "prompts.parquet")
        assert held and train
        assert not {t.seed for t in held} & {t.seed for t in train}
        assert not {p for t in held for p in t.entity_pairs} & {p for t in train for p in t.entity_pairs}
        assert not {t.prompt for t in held} & {t.prompt for t in train}
        chosen_by = read_tasks(folder / "validation.parquet")
        assert len(chosen_by) == 16
        assert not {p for t in chosen_by for p in t.entity_pairs} & {p for t in (*held, *train) for p in t.entity_pairs}


def test_records_agree_with_the_rates(project: Path) -> None:
    rows = [r for r in results(project)["rows"] if r["horizon"] == "all" and r["domain"] in DOMAINS]
    for row in rows:
        records = pq.read_table(project / "artifacts/evaluate" / row["model"] / "records.parquet").to_pylist()
        mine = [r for r in records if r["domain"] == row["domain"] and r["success"] is not None]
        assert len(mine) == row["n"]
        assert math.isclose(sum(r["success"] for r in mine) / len(mine), row["success"], abs_tol=1e-6)


def test_the_report_is_one_page_that_needs_no_network(project: Path) -> None:
    page = (project / "reports/index.html").read_text()
    assert "<svg" in page and "<script" not in page
    assert "http-equiv" not in page and 'src="http' not in page and 'rel="stylesheet"' not in page


def test_a_second_run_is_up_to_date_in_seconds(project: Path) -> None:
    began = time.monotonic()
    printed = command(project, "-m", "openhorizon", "reproduce")
    assert "up to date" in printed
    assert time.monotonic() - began < 30  # 10 s on a quiet machine; here it shares its cores


def test_dvc_alone_agrees_with_the_flow(project: Path) -> None:
    before = (project / "dvc.lock").read_bytes()
    printed = command(project, "-m", "openhorizon.process", "repro")
    assert "up to date" in printed and (project / "dvc.lock").read_bytes() == before


def test_the_same_seed_gives_the_same_bytes(project: Path) -> None:
    """Forced again, without Prefect: data, a teacher and its evaluation come out with the hashes they had."""
    before = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    again = ("generate@tool_calling", "base", "teach@tool_calling", "evaluate-teacher@tool_calling")
    command(project, "-m", "openhorizon.process", "repro", "--force", "--single-item", *again)
    after = yaml.safe_load((project / "dvc.lock").read_text())["stages"]
    for stage in again:
        assert after[stage]["outs"] == before[stage]["outs"], stage


def test_a_changed_teacher_reruns_only_what_depends_on_it(project: Path) -> None:
    params = project / "params.yaml"
    original = params.read_text()
    changed = yaml.safe_load(original)
    changed["teach"]["search"]["reward"]["process_weight"] = 0.31
    try:
        params.write_text(yaml.safe_dump(changed))
        printed = command(project, "-m", "openhorizon.process", "status", "--json")
    finally:
        params.write_text(original)
    stale = set(json.loads(printed[printed.index("{") :]))
    assert "teach@search" in stale
    assert not stale & {"base", "sft", "teach@tool_calling", "teach@instruction", "evaluate@sft"}


@pytest.fixture(params=["folder", pytest.param("s3", marks=[s3, pytest.mark.long])])
def remote(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Path], None]:
    """Gives a checkout its default remote."""
    if request.param == "s3":
        address = request.getfixturevalue("object_store")
        return lambda root: use(root, address, "reproduction")
    add = ("remote", "add", "--quiet", "--force", "--local", "--default", "store", str(tmp_path / "store"))
    return lambda root: print(dvc(root, *add))


def test_a_fresh_clone_pulls_everything_and_runs_nothing(
    project: Path, tmp_path: Path, remote: Callable[[Path], None]
) -> None:
    """`dvc push`, `git clone`, `dvc pull`: the same artifacts, up to date; and where they come from."""
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for words in (("add", "--all"), (*who, "commit", "--quiet", "--allow-empty", "--message", "reproduced")):
        subprocess.run(["git", *words], cwd=project, check=True)
    subprocess.run(["git", "clone", "--quiet", str(project), str(tmp_path / "clone")], check=True)
    for root, direction in ((project, "push"), (tmp_path / "clone", "pull")):
        remote(root)
        dvc(root, direction, "--quiet")
    clone = tmp_path / "clone"
    assert results(clone) == results(project)
    assert "up to date" in dvc(clone, "repro")
    assert (clone / "dvc.lock").read_bytes() == (project / "dvc.lock").read_bytes()
    assert "up to date" in command(clone, "-m", "openhorizon", "reproduce")
    told = command(clone, "-m", "openhorizon", "show", "lineage", "student")
    assert told.count("as recorded") == told.count(" md5 ") > len(DOMAINS)
    assert "CHANGED SINCE" not in told and "which ran elsewhere" in told
