"""A cell's workspace: a DVC project of its own made of links to this one's code, with the cell's params.yaml.

DVC takes a stage whose code, params and inputs it has seen before from its run cache instead of running it; all
workspaces share the project's cache, so what two arms have in common is made once, and an arm that equals the project's
own run is not trained again. Files are hard links into the cache where the file system has them.

Stages here do not report to MLflow (``tracking.UNTRACKED``): a study's figures are its claims, and its curves lie in
the workspace's artifacts.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from openhorizon.artifacts import write_text
from openhorizon.config import PARAMS_FILE
from openhorizon.pipeline import PIPELINE_FILE, STATE_FOLDER, mend
from openhorizon.study.plan import Cell

LINKED = ("src", "flows", "profiles", PIPELINE_FILE, ".dvcignore")
COSTS = STATE_FOLDER / "studies" / "costs"


def make(cell: Cell, root: Path) -> None:
    """Create or bring up to date ``cell.folder``; what its stages have made stays."""
    (cell.folder / ".dvc").mkdir(parents=True, exist_ok=True)
    for name in LINKED:
        link, target = cell.folder / name, os.path.relpath(root / name, cell.folder)
        if not link.is_symlink() or os.readlink(link) != target:
            link.unlink(missing_ok=True)
            link.symlink_to(target)
    cache = os.path.relpath(root / ".dvc" / "cache", cell.folder / ".dvc")
    lines = ["[core]", "analytics = false", "check_update = false", "no_scm = true"]
    lines += ["[cache]", f"dir = {cache}", "type = reflink,hardlink,copy"]
    for path, text in ((".dvc/config", "\n".join(lines) + "\n"), (str(PARAMS_FILE), cell.params)):
        target_file = cell.folder / path
        if not target_file.is_file() or target_file.read_text(encoding="utf-8") != text:
            write_text(target_file, text)
    mend(cell.folder)


def record_cost(root: Path, cell: Cell, stage: str, key: str) -> None:
    """Keep what a stage took where every cell with the same key finds it; DVC restores outputs, not timings."""
    timing = cell.folder / "artifacts" / "timings" / f"{timed_as(stage)}.json"
    if timing.is_file():
        write_text(root / COSTS / f"{key}.json", timing.read_text(encoding="utf-8"))


def cost(root: Path, key: str) -> dict[str, float] | None:
    """``seconds`` and ``tokens`` of the stage with this key; None where it was restored from before the study."""
    path = root / COSTS / f"{key}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def timed_as(stage: str) -> str:
    """A stage of dvc.yaml as stages name themselves: ``evaluate-teacher@search`` is ``evaluate@teacher@search``."""
    return f"evaluate@{evaluated(stage)}" if stage.startswith("evaluate") else stage


def evaluated(stage: str) -> str:
    """The model that an evaluation stage is of: ``evaluate@student`` → student, ``evaluate-teacher@search`` →
    teacher@search."""
    word, _, target = stage.partition("@")
    kind = word.partition("-")[2]
    return f"{kind}@{target}" if kind else target
