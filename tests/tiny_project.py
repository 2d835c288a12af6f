"""A checkout of its own with the whole recipe at a size that costs seconds a stage."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openhorizon import profiles

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("src", "flows", "profiles", "dvc.yaml", "pyproject.toml", ".dvc/config", ".dvcignore", ".gitignore")
DOMAINS = ("search", "tool_calling")
GRPO = {"iterations": 3, "validate_every": 2, "prompts": 2, "group": 3, "stop_drop": 1.0, "dead_stop": 9}
TINY: dict[str, Any] = {
    "generate": {"default": {"demonstrations": 60, "prompts": 30, "validation": 6, "heldout": 20}},
    "model": {"scratch": {"vocab_size": 512}},
    "base": {"tokens": 24000, "demonstrations": 60},
    "sft": {"tokens": 24000, "demonstrations": 60},
    "teach": {
        "default": {"demonstrations": 60, "tokens": 12000, "validation": 6, "grpo": GRPO},
        "tool_calling": {"grpo": {"tries": 2, "tried_prompts": 8}},
    },
    "distill": {"iterations": 4, "prompts": 2, "updates": 2},
    "evaluate": {"tasks": 20},
}


def make(root: Path, changes: Sequence[dict[str, Any]] = (), domains: Sequence[str] = DOMAINS) -> Path:
    """``root`` as a git repository that holds what a reproduction needs, and params.yaml of this size."""
    for part in PARTS:
        source, target = ROOT / part, root / part
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy2(source, target)
    text = profiles.compose("smoke", ROOT, [{"domains": list(domains)}, TINY, *changes])
    (root / "params.yaml").write_text(text)
    subprocess.run(["git", "init", "--quiet", "."], cwd=root, check=True)
    return root
