"""Where artifacts live and how they are written: atomically, so that a killed run leaves nothing half-made.

Layout, relative to the project's root (a stage's working directory):

    artifacts/generate/DOMAIN/  demonstrations, rejected, prompts, validation, heldout .parquet; graph/; metrics.json
    artifacts/base|sft|distill/ Hugging Face checkpoint with tokenizer, curves.jsonl, metrics.json
    artifacts/teach/DOMAIN/     the same
    artifacts/baseline/NAME/    the same
    artifacts/evaluate/MODEL/   records.parquet, metrics.json
    artifacts/evaluate/benchmark@NAME/MODEL/  the same of a public benchmark; results.jsonl, trajectories.parquet
    reports/                    index.html, results.json
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path("artifacts")
REPORTS = Path("reports")
RANK_VARIABLE = "RANK"  # torchrun's: which of the processes that train together this is


def is_first() -> bool:
    """Whether this process writes: alone, or the first of several that train together."""
    return os.environ.get(RANK_VARIABLE, "0") == "0"


def stage_dir(stage: str, target: str | None = None) -> Path:
    """The folder of a stage's artifact; ``target`` is a domain or a model name such as ``teacher@search``. Benchmarks
    lie beside other evaluations, so that what reads evaluations depends on one folder, whichever are run."""
    if stage == "benchmark":
        return ROOT / "evaluate" / f"{stage}@{target}"
    return ROOT / stage / target if target else ROOT / stage


def checkpoint_dir(model: str) -> Path:
    """The checkpoint folder of a model as reports name it: ``base``, ``sft``, ``teacher@DOMAIN``, ``baseline@NAME``
    or ``student``.

    Raises:
        ValueError: no such model name.
    """
    name, _, target = model.partition("@")
    folders = {"base": stage_dir("base"), "sft": stage_dir("sft"), "student": stage_dir("distill")}
    if name in ("teacher", "baseline") and target:
        return stage_dir("teach" if name == "teacher" else name, target)
    if model in folders:
        return folders[model]
    raise ValueError(f"unknown model {model!r}; known are base, sft, teacher@DOMAIN, baseline@NAME, student")


@contextmanager
def replace_dir(final: Path) -> Iterator[Path]:
    """A folder to fill; it takes ``final``'s place only when the block ends without an error, and in the first of
    several processes that train together."""
    if not is_first():
        with tempfile.TemporaryDirectory() as unused:
            yield Path(unused)
        return
    final.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
    try:
        yield building
        for file in building.rglob("*"):
            if file.is_file():
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())
        building.chmod(0o755)
        shutil.rmtree(final, ignore_errors=True)
        building.rename(final)
        sync_folder(final.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a file by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
        sync_folder(path.parent)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Have a folder's names on disk: a rename is as safe as the file only then."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read an artifact's JSON.

    Raises:
        FileNotFoundError, ValueError: missing or not JSON; the message has the path and what to do.
    """
    require(path)
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: damaged ({error}); delete it and run `dvc repro` again") from error
    return value


def require(path: Path) -> Path:
    """``path`` itself, if it is there.

    Raises:
        FileNotFoundError: it is not; the message says which command makes it.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: missing; `make reproduce` makes it (or `dvc pull`, where a remote is set)")
    return path
