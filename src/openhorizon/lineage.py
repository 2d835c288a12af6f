"""What decides a stage's result, whether its inputs are what a stage has written, and what made an artifact.

dvc.yaml says what a stage reads, dvc.lock which artifact (by its MD5) came of which inputs. Beside the artifacts lies a
file for each that a stage here has written, by the MD5 of what it describes, so that it is true whenever DVC puts that
artifact back:

    artifacts/provenance/MD5.json    stage, inputs and code by MD5, params, commit, machine, packages

Hashes are DVC's own, made here without DVC and without its memory of them: a byte that was flipped on disk, with size
and time as they were, is seen. No stage of DVC has this folder in its `outs`.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from openhorizon import pipeline
from openhorizon.artifacts import REPORTS, ROOT, read_json, write_json
from openhorizon.config import Config
from openhorizon.unfinished import Unfinished

PROVENANCE = ROOT / "provenance"
PACKAGES = ("torch", "transformers", "numpy", "safetensors", "tokenizers", "pyarrow")
SPREAD: dict[str, Any] = {  # of a machine block: when work is saved, and how it is spread over processes
    "checkpoint_s": 0.0,
    "checkpoint_steps": None,
    "processes": 1,
    "torchrun": None,
    "expert_parallel": False,
}
READ_TRIES, READ_WAIT_S = 20, 0.1  # at dvc.lock, which DVC writes in place


@dataclass(frozen=True)
class Origin:
    """What a stage's result is made of. ``code`` and ``inputs``: path → MD5; ``params`` are values."""

    stage: str
    inputs: Mapping[str, str]
    code: Mapping[str, str]
    params: Mapping[str, Any]
    outs: tuple[str, ...]

    def identity(self, config: Config) -> str:
        """A hash of all that decides the result to the last bit: this, the machine block, the packages. All but over
        how many processes it is spread: what some have begun, others may go on with."""
        machine = asdict(replace(config.machine, **SPREAD))
        decides = [self.stage, self.inputs, self.code, self.params, machine, packages(), platform.machine()]
        return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()


def origin(stage: str, target: str | None, root: Path = Path()) -> Origin | None:
    """Of a stage as dvc.yaml has it, with every hash made now. None where there is no dvc.yaml, or it has no such
    stage: then nothing says what decides its result."""
    name = f"{stage}@{target}" if target else stage
    entry = _entry(stage, target, root)
    params = _yaml(root / "params.yaml")
    if entry is None or params is None:
        return None
    deps = [root / dep for dep in entry["deps"]]
    code = {_relative(dep, root): hash_of(dep) for dep in deps if not _is_artifact(dep, root) and dep.exists()}
    inputs = {_relative(path, root): hash_of(path) for dep in deps for path in _artifacts(dep, root)}
    listed = [*entry.get("outs", ()), *entry.get("metrics", ())]
    outs = tuple(out if isinstance(out, str) else next(iter(out)) for out in listed)
    return Origin(name, inputs, code, {key: _value(params, key) for key in entry["params"]}, outs)


def check(found: Origin, root: Path = Path()) -> None:
    """Refuse inputs that are not what a stage has written: under DVC, what dvc.lock says of them; where stages are run
    by hand, that or what any stage here wrote there. An artifact that nothing is known of, as somebody put it there, is
    taken as it is.

    Raises:
        ValueError: changed, damaged or swapped; the message has the path and what to do.
    """
    locked = {out["path"]: out["md5"] for entry in lock(root).values() for out in entry.get("outs", ())}
    by_hand = "DVC_STAGE" not in os.environ
    for path, md5 in found.inputs.items():
        known = {locked[path]} if path in locked else set()
        if by_hand or not known:
            known |= {made["md5"] for made in made_here(root) if made["path"] == path}
        if known and md5 not in known:
            raise ValueError(
                f"{path}: not what its stage has written (md5 {md5[:12]} instead of {sorted(known)[0][:12]}): changed, "
                "damaged or another's; delete it, `make reproduce` then restores it or makes it again"
            )


def unfinished(config: Config, stage: str, target: str | None = None) -> Unfinished | None:
    """Where a stage's unfinished work is saved; None where nothing says what decides its result."""
    from openhorizon.world import World  # torch, which whoever has work to save has imported

    found = origin(stage, target)
    with World.here().first_alone():  # which removes what is of no use
        return Unfinished(found.stage, found.identity(config)) if found else None


def record(found: Origin, config: Config, root: Path = Path()) -> None:
    """Write down what made each artifact of a stage that has just ended well. Where that cannot be written, it is said:
    the artifact is as good."""
    for out in found.outs:
        md5 = hash_of(root / out)
        made = {
            "path": out,
            "md5": md5,
            **{key: value for key, value in asdict(found).items() if key != "outs"},
            "profile": config.profile,
            "commit": pipeline.commit(root),
            "machine": {"system": platform.platform(), **asdict(config.machine)},
            "packages": packages(),
            "at": time.strftime("%Y-%m-%d %H:%M:%S"),
        }
        try:
            write_json(root / PROVENANCE / f"{md5}.json", made)
        except OSError as error:
            print(f"{found.stage}: what made it is not written down: {error}", flush=True)


def made_here(root: Path = Path()) -> Iterator[dict[str, Any]]:
    """All that was recorded. A damaged file says nothing."""
    for path in sorted((root / PROVENANCE).glob("*.json")):
        try:
            yield read_json(path)
        except ValueError:
            continue


def lock(root: Path = Path()) -> dict[str, Any]:
    """The stages of dvc.lock; none without it. DVC writes it in place, so a half one is read again.

    Raises:
        ValueError: it stays unreadable.
    """
    path = root / pipeline.LOCK_FILE
    for _ in range(READ_TRIES):
        if not path.is_file():
            return {}
        try:
            before = path.stat().st_mtime_ns
            stages: dict[str, Any] = _parsed(path.read_text(encoding="utf-8"))["stages"]
            if path.stat().st_mtime_ns == before:
                return stages
        except (yaml.YAMLError, KeyError, TypeError):
            pass
        time.sleep(READ_WAIT_S)
    raise ValueError(f"{path}: damaged; `git checkout {path}`, or delete it and run `make reproduce` again")


def hash_of(path: Path) -> str:
    """DVC's hash of a file, or of a folder by its files (with ``.dir`` behind it)."""
    if path.is_file():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "md5").hexdigest()
    files = {
        inner.relative_to(path).as_posix(): inner
        for inner in path.rglob("*")
        if inner.is_file() and not _ignored(inner.relative_to(path))
    }
    entries = [{"md5": hash_of(files[name]), "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def packages() -> dict[str, str]:
    """Versions of what computes."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _entry(stage: str, target: str | None, root: Path) -> dict[str, Any] | None:
    """The stage of dvc.yaml whose command this is, with its placeholders filled in."""
    command = f"exec python -m openhorizon stage {stage}" + (f" --target {target}" if target else "")
    for block in (_yaml(root / pipeline.PIPELINE_FILE) or {}).get("stages", {}).values():
        body, items = block.get("do", block), block.get("foreach")
        pairs = items.items() if isinstance(items, dict) else [("", target or ""), ("", (target or "").split("@")[-1])]
        for key, item in pairs:
            filled = _filled(body, {"${key}": str(key), "${item}": str(item)})
            if filled["cmd"] == command:
                entry: dict[str, Any] = filled
                return entry
    return None


def _filled(value: Any, words: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for word, other in words.items():
            value = value.replace(word, other)
        return value
    if isinstance(value, list):
        return [_filled(item, words) for item in value]
    if isinstance(value, dict):
        return {_filled(key, words): _filled(item, words) for key, item in value.items()}
    return value


def _artifacts(dep: Path, root: Path) -> list[Path]:
    """The artifacts of which a dependency consists: itself, or those of each target below it."""
    if not _is_artifact(dep, root) or not dep.exists():
        return []
    whole = dep.is_file() or any(path.is_file() and not path.name.startswith(".") for path in dep.iterdir())
    return [dep] if whole else sorted(path for path in dep.iterdir() if not path.name.startswith("."))


def _is_artifact(path: Path, root: Path) -> bool:
    return path.is_relative_to(root / ROOT) or path.is_relative_to(root / REPORTS)


def _ignored(file: Path) -> bool:
    """As .dvcignore says of artifacts."""
    return any(part == "__pycache__" or part.startswith(".") for part in file.parts)


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _value(params: Any, key: str) -> Any:
    for part in key.split("."):
        params = params[part]
    return params


def _yaml(path: Path) -> Any:
    return _parsed(path.read_text(encoding="utf-8")) if path.is_file() else None


def _parsed(text: str) -> Any:
    """As ``yaml.safe_load``, by libyaml: every stage reads a thousand lines before it begins."""
    return yaml.load(text, Loader=yaml.CSafeLoader)
