"""The wheel has all of the source, is typed, and works where it is installed alone."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from what git has, in a folder of its own."""
    folder = tmp_path_factory.mktemp("wheel")
    parts = ["src", "pyproject.toml", "README.md", "LICENSE"]
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *parts],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        (folder / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "tree" / name).write_bytes((ROOT / name).read_bytes())
    options = [
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--disable-pip-version-check",
        "--wheel-dir",
        str(folder),
    ]
    subprocess.run([sys.executable, "-m", "pip", "wheel", str(folder / "tree"), *options], check=True, timeout=120)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_every_file_of_the_source(wheel: Path) -> None:
    source = {
        path.relative_to(ROOT / "src").as_posix()
        for path in (ROOT / "src" / "openhorizon").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packed = set(zipfile.ZipFile(wheel).namelist())
    assert source <= packed, source - packed
    assert "openhorizon/py.typed" in packed
    assert not [name for name in packed if name.endswith((".pkl", ".pt", ".bin", ".pyc"))]


def test_the_wheel_runs_where_it_is_unpacked(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    where = "import openhorizon; print(openhorizon.__path__[0])"
    printed = subprocess.run(
        [sys.executable, "-c", where], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert printed.stdout.strip() == str(tmp_path / "site" / "openhorizon")
    said = subprocess.run(
        [sys.executable, "-m", "openhorizon", "show", "params"],
        cwd=tmp_path, env=environment, check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert said.returncode == 2
    assert said.stderr.splitlines() == [
        "openhorizon: params.yaml: no such file; run from the project's root, or `openhorizon profile laptop`"
    ]
