"""What is written is whole or not there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from openhorizon.artifacts import checkpoint_dir, read_json, replace_dir, require, stage_dir, write_json, write_text


def test_a_folder_takes_its_place_only_when_it_is_whole(tmp_path: Path) -> None:
    final = tmp_path / "sft"
    with replace_dir(final) as folder:
        (folder / "a").write_text("first")

    def fail_half_way() -> None:
        with replace_dir(final) as folder:
            (folder / "a").write_text("second")
            assert (final / "a").read_text() == "first"
            raise ValueError("half")

    with pytest.raises(ValueError, match="half"):
        fail_half_way()
    assert (final / "a").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["sft"]


def test_a_replaced_folder_keeps_nothing_of_the_old_one(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with replace_dir(tmp_path / "x") as folder:
            (folder / name).write_text(name)
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["new"]


def test_kill_in_the_middle_leaves_the_old_artifact(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, pathlib\nfrom openhorizon.artifacts import replace_dir\n"
        "with replace_dir(pathlib.Path(sys.argv[1])) as folder:\n"
        "    (folder / 'a').write_text('half')\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    final = tmp_path / "sft"
    with replace_dir(final) as folder:
        (folder / "a").write_text("whole")
    killed = subprocess.run([sys.executable, "-c", code, str(final)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert (final / "a").read_text() == "whole"


def test_a_text_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "\ud800")
    assert read_json(path) == {"a": 1}
    assert os.listdir(tmp_path) == ["x.json"]


def test_same_content_same_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"x": 1, "y": 2})
    write_json(tmp_path / "b", {"y": 2, "x": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_missing_and_damaged_files_are_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.json.*make reproduce"):
        require(tmp_path / "gone.json")
    (tmp_path / "cut.json").write_text('{"a": ')
    with pytest.raises(ValueError, match=r"cut\.json.*damaged"):
        read_json(tmp_path / "cut.json")


def test_models_have_folders_and_unknown_ones_are_refused() -> None:
    assert checkpoint_dir("teacher@search") == stage_dir("teach", "search")
    assert checkpoint_dir("student") == stage_dir("distill")
    assert checkpoint_dir("baseline@seqkd") == stage_dir("baseline", "seqkd")
    for name in ("teacher", "teacher@", "baseline", "sft@search", "oracle"):
        with pytest.raises(ValueError, match="unknown model"):
            checkpoint_dir(name)
