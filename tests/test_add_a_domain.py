"""docs/add-a-domain.md, done as it says in a copy of the project: one file, one line, one block, nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from openhorizon.agent.trajectory import read_tasks, read_trajectories
from openhorizon.artifacts import read_json

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "add-a-domain.md").read_text(encoding="utf-8")


def block(heading: str, language: str) -> str:
    """The first code block below a heading of the page."""
    below = PAGE.split(f"## {heading}", 1)[1]
    found = re.search(rf"```{language}\n(.*?)```", below, re.DOTALL)
    assert found is not None, heading
    return found.group(1)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    for name in ("src", "flows", "profiles"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "pyproject.toml"):
        shutil.copy(ROOT / name, folder)
    file = folder / re.search(r"## The file: `(.+?)`", PAGE).group(1)  # type: ignore[union-attr]
    file.parent.mkdir()
    file.write_text(block("The file", "python"), encoding="utf-8")
    imported, entry = block("The line", "python").split("...\n")
    registry = folder / "src/openhorizon/domains/__init__.py"
    first = "from openhorizon.domains.base import Domain\n"
    text = registry.read_text(encoding="utf-8").replace(first, first + imported, 1)
    registry.write_text(re.sub(r"\n}\n", "\n" + entry.rstrip() + "\n}\n", text, count=1), encoding="utf-8")
    (folder / "profiles/mine.yaml").write_text(block("The block", "yaml"), encoding="utf-8")
    return folder


def run(project: Path, *command: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(project / "src")}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=project, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_new_domain_generates_its_data(project: Path) -> None:
    run(project, "openhorizon", "profile", "mine")
    params = (project / "params.yaml").read_text()
    changed = re.sub(r"(\n  calendar:\n(?:    .*\n)*?    demonstrations: )\d+", r"\g<1>200", params)
    changed = re.sub(r"(\n  calendar:\n(?:    .*\n)*?    prompts: )\d+", r"\g<1>50", changed)
    assert changed != params
    (project / "params.yaml").write_text(changed)
    run(project, "openhorizon", "stage", "generate", "--target", "calendar")
    folder = project / "artifacts/generate/calendar"
    demonstrations = read_trajectories(folder / "demonstrations.parquet")
    assert len(demonstrations) == 200 and {t.task.domain for t in demonstrations} == {"calendar"}
    assert all(t.verdict.passed for t in demonstrations) and {t.task.horizon for t in demonstrations} == {1, 2, 3}
    heldout = {pair for task in read_tasks(folder / "heldout.parquet") for pair in task.entity_pairs}
    assert heldout and heldout.isdisjoint(pair for t in demonstrations for pair in t.task.entity_pairs)
    assert read_json(folder / "metrics.json")["domain"] == "calendar"


def test_the_graph_has_its_stages(project: Path) -> None:
    run(project, "openhorizon", "profile", "mine")
    script = "from pathlib import Path; from openhorizon import pipeline; print(*pipeline.graph(Path()), sep='\\n')"
    environment = {**os.environ, "PYTHONPATH": str(project / "src")}
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    run(project, "dvc", "init", "-q", "-f")
    stages = subprocess.run(
        [sys.executable, "-c", script], cwd=project, env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert {"generate@calendar", "teach@calendar", "evaluate-teacher@calendar"} <= set(stages)
