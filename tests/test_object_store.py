"""`dvc push` to S3 and `dvc pull` in a fresh clone, of two stages. A reproduction's are in tests/test_pipeline.py."""

from __future__ import annotations

import subprocess
from pathlib import Path

import yaml
from object_store import dvc, object_store, s3, use  # noqa: F401 (a fixture)
from test_flow import make_project

STAGES = {
    "made": {"cmd": "python stage.py", "outs": ["made"]},
    "read": {"cmd": "cp made/b read.txt", "deps": ["made"], "outs": ["read.txt"]},
}
STAGE = """
import pathlib
pathlib.Path("ran").touch()
made = pathlib.Path("made")
made.mkdir()
(made / "a").write_bytes(bytes(range(256)) * 40_000)
(made / "b").write_text("two")
"""


@s3
def test_a_fresh_clone_pulls_everything_from_s3_and_runs_nothing(tmp_path: Path, object_store: str) -> None:  # noqa: F811
    root, clone = make_project(tmp_path / "first", STAGES, STAGE), tmp_path / "clone"
    (root / ".gitignore").write_text("/made\n/read.txt\n/ran\n")
    dvc(root, "repro", "--quiet")
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    for words in (("add", "--all"), (*who, "commit", "--quiet", "--message", "made")):
        subprocess.run(["git", *words], cwd=root, check=True)
    subprocess.run(["git", "clone", "--quiet", str(root), str(clone)], check=True)
    for place, direction in ((root, "push"), (clone, "pull")):
        use(place, object_store, "clone")
        dvc(place, direction, "--quiet")
    assert (clone / "made" / "a").read_bytes() == (root / "made" / "a").read_bytes()
    assert (clone / "read.txt").read_text() == "two"
    assert "up to date" in dvc(clone, "repro") and not (clone / "ran").exists()
    locked = [yaml.safe_load((place / "dvc.lock").read_text()) for place in (root, clone)]
    assert locked[0] == locked[1]
