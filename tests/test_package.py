"""Wheel and source distribution are complete, typed, and work where they are installed alone."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What git has, in a folder of its own."""
    folder = tmp_path_factory.mktemp("package") / "tree"
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()  # fmt: skip
    for name in listed:
        if (ROOT / name).is_file() and not name.startswith(".venv"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(tree: Path) -> Path:
    options = [
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "--disable-pip-version-check",
        "--wheel-dir",
        str(tree.parent),
    ]
    subprocess.run([sys.executable, "-m", "pip", "wheel", str(tree), *options], check=True, timeout=120)
    (built,) = tree.parent.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def unpacked(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of it, unpacked elsewhere."""
    code = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(tree.parent)], cwd=tree, check=True, capture_output=True)
    (built,) = tree.parent.glob("*.tar.gz")
    elsewhere = tmp_path_factory.mktemp("sdist")
    with tarfile.open(built) as packed:
        packed.extractall(elsewhere, filter="data")
    (folder,) = elsewhere.iterdir()
    return folder


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_source_distribution_is_the_repository(tree: Path, unpacked: Path) -> None:
    made = {name for name in files(tree) if ".egg-info/" in name or name.startswith("build/")}  # while it was packed
    assert files(tree) - made - files(unpacked) == set()
    assert {name for name in files(unpacked) - files(tree) if ".egg-info/" not in name} <= {"PKG-INFO", "setup.cfg"}
    assert os.access(unpacked / "scripts" / "setup-venv", os.X_OK)


def test_it_installs_alone_as_the_wheel_does(unpacked: Path, wheel: Path, tmp_path: Path) -> None:
    """Into an empty environment of its own, which has nothing else: what it needs comes from this one's path."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "clean")], check=True)
    python = tmp_path / "clean" / "bin" / "python"
    options = ["--python", str(python), "install", "--no-deps", "--no-build-isolation", "--quiet"]
    here = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path[1:])}  # setuptools, for the build
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *options, str(unpacked)]
    subprocess.run(command, check=True, timeout=120, env=here)
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip())
    installed = {name for name in files(site) if name.startswith("openhorizon/") and "__pycache__" not in name}
    assert installed == {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("openhorizon/")}
    needed = [path for path in sys.path if path.endswith("-packages")]
    said = subprocess.run(
        [tmp_path / "clean" / "bin" / "openhorizon", "--help"], cwd=tmp_path, check=True, text=True,
        capture_output=True, env=os.environ | {"PYTHONPATH": os.pathsep.join([str(site), *needed])},
    ).stdout  # fmt: skip
    assert "reproduce" in said


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
