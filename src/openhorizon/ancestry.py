"""From a number in the report back to all that it comes from: evaluation, checkpoint, teachers, trajectories and graph,
with the parameters, the commit and the machine that made each.

dvc.lock says which artifact came of which; what a stage wrote down beside the artifacts (``lineage.py``) says where it
ran; the artifacts themselves say what they hold. Each is hashed, so that what was changed since is seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openhorizon import lineage, pipeline
from openhorizon.artifacts import REPORTS, checkpoint_dir, read_json, stage_dir
from openhorizon.export import recorded
from openhorizon.model.shards import weights_hash


@dataclass(frozen=True)
class Ancestor:
    """An artifact. ``made`` is what its stage wrote down here; empty where it ran elsewhere (``dvc pull``)."""

    path: str
    stage: str  # as in dvc.yaml
    md5: str
    state: str  # as recorded, changed since, or not here
    params: Mapping[str, Any]
    made_of: tuple[str, ...]
    made: Mapping[str, Any]
    holds: Mapping[str, Any]


def ancestors(name: str) -> list[Ancestor]:
    """Of a model (from its evaluation, where it was evaluated), or of a stage of dvc.lock; it comes first.

    Raises:
        ValueError: no such model or stage; FileNotFoundError: dvc.lock does not know it.
    """
    stages = lineage.lock()
    by_path = {out["path"]: stage for stage, entry in stages.items() for out in entry.get("outs", ())}
    if name in stages:
        start = Path(stages[name]["outs"][0]["path"])
    else:
        found = [stage_dir("evaluate", name), checkpoint_dir(name)]
        start = next((path for path in found if path.as_posix() in by_path), found[-1])
    files = recorded(Path(pipeline.LOCK_FILE), start)
    if start.as_posix() not in files:
        raise FileNotFoundError(f"{pipeline.LOCK_FILE}: knows nothing of {start}; `make reproduce` makes it")
    written = {made["md5"]: made for made in lineage.made_here()}
    order = sorted(files, key=lambda path: (path != start.as_posix(), path))
    return [_ancestor(path, by_path[path], stages[by_path[path]], files, written) for path in order]


def told(found: list[Ancestor]) -> Iterator[str]:
    """In words, a few lines each."""
    for it in found:
        yield f"{it.path}  md5 {it.md5}  {it.state}"
        made, ran = it.made, f"stage {it.stage}"
        if made:
            machine, versions = made["machine"], made["packages"]
            kind = f"{machine['device']} {machine['precision']}, {machine['system']}"
            where = f"{kind}, torch {versions.get('torch', 'not there')}"
            ran += f", {made['at']}, profile {made['profile']}, commit {made['commit'] or 'not known'}, on {where}"
        yield f"    {ran if made else f'{ran}, which ran elsewhere'}"
        if it.holds:
            yield f"    holds {', '.join(f'{key} {value}' for key, value in it.holds.items())}"
        if it.made_of:
            yield f"    made of {', '.join(it.made_of)}"
        yield f"    params {', '.join(f'{key}={_short(value)}' for key, value in it.params.items())}"


def _ancestor(
    path: str, stage: str, entry: Mapping[str, Any], files: Mapping[str, str], written: Mapping[str, Any]
) -> Ancestor:
    reads = [Path(dep["path"]) for dep in entry.get("deps", ())]
    made_of = tuple(other for other in files if other != path and any(Path(other).is_relative_to(it) for it in reads))
    params = {key: value for of_file in entry.get("params", {}).values() for key, value in of_file.items()}
    md5, here = files[path], Path(path)
    state = "not here"
    if here.exists():
        state = "as recorded" if lineage.hash_of(here) == md5 else "CHANGED SINCE"
    return Ancestor(path, stage, md5, state, params, made_of, written.get(md5, {}), _holds(here))


def _holds(path: Path) -> dict[str, Any]:
    """What tells one artifact of its kind from another."""
    if path.is_relative_to(REPORTS) or not (path / "metrics.json").is_file():
        return {}
    metrics, found = read_json(path / "metrics.json"), dict[str, Any]()
    if any(path.glob("*.safetensors")):
        found["weights"] = weights_hash(path)
    found |= {f"weights of {key}": value for key, value in metrics.items() if key.startswith("teacher@")}
    if "checkpoint" in metrics:
        found["the evaluation of weights"] = metrics["checkpoint"]
    found |= {key: f"{count:,}" for key, count in metrics.get("counts", {}).items()}
    graph = metrics.get("graph", {})
    found |= {f"graph {key}": f"{sum(graph[key].values()):,}" for key in ("nodes", "edges") if key in graph}
    return found


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
