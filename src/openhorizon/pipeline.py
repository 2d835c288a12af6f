"""What DVC knows of a project: its graph, what is stale, what it recorded; and who is running it."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from openhorizon import profiles
from openhorizon.config import PARAMS_FILE

STATE_FOLDER = Path(".openhorizon")
PIPELINE_FILE = "dvc.yaml"
LOCK_FILE = "dvc.lock"
WRITTEN_S = 1.0  # within which DVC has written either
CONFLICT = "<<<<<<<"  # of a merge, which is for people to decide
DVC_LOCKS = Path(".dvc", "tmp", "rwlock")  # dvc.rwlock
Graph = Mapping[str, frozenset[str]]  # a stage → the stages whose outputs it reads


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Hold the project for one reproduction.

    Raises:
        ValueError: another one runs here; the message names its process and when it began.
    """
    path = root / STATE_FOLDER / "running"
    path.parent.mkdir(exist_ok=True)
    with path.open("a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            handle.seek(0)
            holder = handle.read().strip() or "a process that gave no name"
            raise ValueError(f"another reproduction runs in this checkout: {holder}; wait for it or end it") from error
        handle.truncate(0)
        handle.write(f"process {os.getpid()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}")
        handle.flush()
        try:
            mend(root)
            yield
        finally:
            handle.truncate(0)


def mend(root: Path) -> None:
    """Take away what DVC, which writes in place, has left half written: killed, or without room on the disk. It would
    not start with it. No other reproduction may run in ``root``."""
    table, lock = root / DVC_LOCKS, root / LOCK_FILE
    if _is_half(table, json.loads):
        table.unlink(missing_ok=True)
    if _is_half(lock, _read_lock) and CONFLICT not in lock.read_text(encoding="utf-8", errors="replace"):
        aside = root / STATE_FOLDER / f"{LOCK_FILE}.half"
        lock.replace(aside)
        print(f"{LOCK_FILE}: half written, moved to {aside}; DVC's cache knows what was made", flush=True)


def _is_half(file: Path, read: Callable[[str], object]) -> bool:
    """Whether it cannot be read, for longer than a DVC that somebody runs by hand takes to write it."""
    for wait_s in (WRITTEN_S, 0.0):
        try:
            read(file.read_text(encoding="utf-8", errors="replace"))
        except FileNotFoundError:
            return False
        except ValueError:
            time.sleep(wait_s)
        else:
            return False
    return True


def _read_lock(text: str) -> None:
    """Raises ``ValueError`` where DVC would refuse it."""
    from dvc.schema import COMPILED_LOCKFILE_SCHEMA
    from voluptuous import Invalid

    try:
        COMPILED_LOCKFILE_SCHEMA(yaml.load(text, yaml.CSafeLoader))
    except (yaml.YAMLError, Invalid) as error:
        raise ValueError(str(error)) from error


def graph(root: Path) -> Graph:
    """The stages of ``root``'s own dvc.yaml with what each depends on.

    Raises:
        ValueError: no git, or a dvc.yaml that DVC refuses; the message is DVC's own, in one line.
    """
    with _open(root) as repo:
        names = {it: it.name for it in repo.index.graph.nodes if it.path_in_repo == PIPELINE_FILE}
        edges = repo.index.graph.adj
        return {
            name: frozenset(names[below] for below in edges[stage] if below in names) for stage, name in names.items()
        }


def read_params(root: Path) -> dict[str, tuple[str, ...]]:
    """For each stage of ``root``'s own dvc.yaml the keys of params.yaml that decide its result."""
    from dvc.dependency import ParamsDependency

    with _open(root) as repo:
        return {
            it.name: tuple(sorted(key for dep in it.deps if isinstance(dep, ParamsDependency) for key in dep.params))
            for it in repo.index.stages
            if it.path_in_repo == PIPELINE_FILE
        }


def stale(root: Path) -> list[str]:
    """Stages whose command, params, dependencies or outputs differ from what dvc.lock records. What only follows
    from these is not listed: see ``affected``."""
    with _open(root) as repo:
        return sorted(address.rpartition(":")[2] for address in repo.status())  # it is relative to where we stand


def affected(stages: Graph, changed: list[str]) -> set[str]:
    """``changed`` and everything that reads, directly or not, what they write."""
    found = set(changed)
    while more := {name for name, reads in stages.items() if reads & found} - found:
        found |= more
    return found


def recorded(root: Path, stages: Collection[str]) -> dict[str, dict[str, str]]:
    """For each of ``stages`` the hashes in dvc.lock of the artifacts that it reads: path → md5."""
    with _open(root) as repo, repo.lock:  # DVC writes the file in place: half of it could be read
        lock = root / LOCK_FILE
        written = yaml.safe_load(lock.read_text(encoding="utf-8"))["stages"] if lock.is_file() else {}
        asked = [it for it in repo.index.stages if it.path_in_repo == PIPELINE_FILE and it.name in stages]
        reads = {stage.name: [dep.def_path for dep in stage.deps] for stage in asked}
    hashes = {out["path"]: out.get("md5", "") for entry in written.values() for out in entry.get("outs", [])}
    return {
        stage: {path: md5 for path, md5 in hashes.items() if any(Path(path).is_relative_to(it) for it in paths)}
        for stage, paths in reads.items()
    }


def commit(root: Path) -> str:
    """The commit that is checked out, with ``-dirty`` behind it where tracked files differ; empty without git.

    What a reproduction writes is no difference: dvc.lock, and params.yaml where it is a profile of this checkout.
    """
    try:
        found = _git(root, "describe", "--always", "--abbrev=40", "--exclude=*").strip()
        changed = set(_git(root, "diff", "--name-only", "--relative", "HEAD").splitlines()) - {LOCK_FILE}
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""
    if str(PARAMS_FILE) in changed and profiles.unedited(root):
        changed.remove(str(PARAMS_FILE))
    return f"{found}-dirty" if changed else found


def _git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout


def identity(root: Path) -> str:
    """A short hash of params.yaml: reproductions with the same one can be compared run by run."""
    return hashlib.sha256((root / "params.yaml").read_bytes()).hexdigest()[:12]


@contextmanager
def _open(root: Path) -> Iterator[Any]:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCMError

    try:
        with Repo(str(root), _wait_for_lock=True) as repo:
            yield repo
    except SCMError as error:
        raise ValueError(
            f"{root}: not a git repository; `git init`, or `dvc config --local core.no_scm true` to go without"
        ) from error
    except DvcException as error:
        raise ValueError(f"dvc: {' '.join(str(error).split())}") from error
