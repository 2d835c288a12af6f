"""A study: a question, the arms that answer it, and how large it is. Read from ``studies/NAME/study.yaml``.

    question: …            paper_section: "2.3"
    needs: [evaluate@student]      # stages of dvc.yaml, @* for all of a word; what they read is run, too
    arms:
      hard: {changes: {}}          # over the profile, as a profile is over base.yaml
      shuffled: {changes: {distill: {routing: shuffled}}, needs: [evaluate@student]}
    sizes:
      laptop: {profile: laptop, seeds: 3, changes: {…}, arms: {hard: {…}}}

A size says which profile it stands on, what all of its arms change, and which arms it has (all, where ``arms`` is not
there), each with what it changes there alone. ``short`` is the size that the tests run. An arm with a seed is a cell: a
workspace of its own (``study/workspace.py``) in which DVC runs the stages of the project.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from openhorizon import config, pipeline, profiles

STUDIES = Path("studies")
FILE = "study.yaml"
SHORT = "short"


@dataclass(frozen=True)
class Arm:
    changes: Mapping[str, Any]
    needs: tuple[str, ...]


@dataclass(frozen=True)
class Size:
    profile: str
    seeds: int
    first_seed: int  # other than those that settings were chosen on
    changes: Mapping[str, Any]
    arms: Mapping[str, Mapping[str, Any]]  # which there are → what each changes in this size


@dataclass(frozen=True)
class Study:
    name: str
    question: str
    paper_section: str
    arms: Mapping[str, Arm]
    sizes: Mapping[str, Size]


@dataclass(frozen=True)
class Cell:
    """One arm with one seed: its workspace, its params.yaml and the stages whose outputs the analysis reads."""

    study: str
    size: str
    arm: str
    seed: int
    folder: Path
    params: str
    needs: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.seed}"


def known(root: Path) -> list[str]:
    """The studies of a project."""
    return sorted(path.parent.name for path in (root / STUDIES).glob(f"*/{FILE}"))


def read(name: str, root: Path) -> Study:
    """A study's file.

    Raises:
        ValueError: no such study, or a key that is unknown, missing or of another kind; the message has its path.
    """
    if name not in known(root):
        raise ValueError(f"study {name!r}: unknown; known are {', '.join(known(root)) or 'none'}")
    path = root / STUDIES / name / FILE
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
    where = f"{STUDIES / name / FILE}"
    top = _block(raw, where, {"question": str, "paper_section": str, "needs": list, "arms": dict, "sizes": dict})
    needs = tuple(top["needs"])
    arms = {key: _arm(value, f"{where}:arms.{key}", needs) for key, value in top["arms"].items()}
    sizes = {key: _size(value, f"{where}:sizes.{key}", arms) for key, value in top["sizes"].items()}
    return Study(name, top["question"], top["paper_section"], arms, sizes)


def cells(study: Study, size: str, seeds: int | None, root: Path) -> list[Cell]:
    """Every arm with every seed, seed by seed, so that an early end leaves whole comparisons.

    Raises:
        ValueError: no such size, no seed, or an arm whose params.yaml is refused.
    """
    if size not in study.sizes:
        raise ValueError(f"study {study.name}: no size {size!r}; known are {', '.join(study.sizes)}")
    wanted = study.sizes[size]
    count = wanted.seeds if seeds is None else seeds
    if count < 1:
        raise ValueError(f"study {study.name}: {count} seeds; it needs at least 1")
    shared = [wanted.changes, one_thread_each(root, wanted.profile)]
    texts = {}
    for name, own in wanted.arms.items():
        try:
            texts[name] = profiles.compose(wanted.profile, root, [*shared, study.arms[name].changes, own])
        except ValueError as error:
            raise ValueError(f"study {study.name}, size {size}, arm {name}: {error}") from error
    folder = root / pipeline.STATE_FOLDER / "studies" / study.name / size
    return [
        Cell(
            study=study.name,
            size=size,
            arm=name,
            seed=seed,
            folder=folder / f"{name}-{seed}",
            params=re.sub(r"^seed: .*$", f"seed: {seed}", text, count=1, flags=re.MULTILINE),
            needs=study.arms[name].needs,
        )
        for seed in range(wanted.first_seed, wanted.first_seed + count)
        for name, text in texts.items()
    ]


def one_thread_each(root: Path, profile: str) -> dict[str, Any]:
    """Machines that run several stages at once give each its share of threads: cells are many, and threads that spin
    while they wait for one another cost more than they bring."""
    try:
        machines = yaml.safe_load(profiles.compose(profile, root, []))["machines"]
    except ValueError as error:
        raise ValueError(f"a study's size: {error}") from error
    return {"machines": {name: {"threads": max(it["threads"] // it["stages"], 1)} for name, it in machines.items()}}


def settings(cell: Cell) -> config.Config:
    """The cell's params.yaml, which must lie in its workspace."""
    return config.load(cell.folder / config.PARAMS_FILE)


def _arm(raw: Any, where: str, needs: tuple[str, ...]) -> Arm:
    block = _block(raw, where, {"changes": dict}, {"needs": list})
    return Arm(block["changes"], tuple(block.get("needs", needs)))


def _size(raw: Any, where: str, arms: Mapping[str, Arm]) -> Size:
    block = _block(raw, where, {"profile": str, "seeds": int, "changes": dict}, {"arms": dict, "first_seed": int})
    own = block.get("arms", dict.fromkeys(arms))
    for name in own:
        if name not in arms:
            raise ValueError(f"{where}.arms: unknown arm {name!r}; known are {', '.join(arms)}")
    own = {name: changes or {} for name, changes in own.items()}
    return Size(block["profile"], block["seeds"], block.get("first_seed", 0), block["changes"], own)


def _block(raw: Any, where: str, required: Mapping[str, type], optional: Mapping[str, type] | None = None) -> Any:
    """``raw`` itself, if it is a block of these keys."""
    kinds = {**required, **(optional or {})}
    if not isinstance(raw, dict):
        raise ValueError(f"{where}: expected a block of keys, got {raw!r}")
    for key, value in raw.items():
        if key not in kinds:
            raise ValueError(f"{where}: unknown key {key!r}; known are {', '.join(sorted(kinds))}")
        if not isinstance(value, kinds[key]) or isinstance(value, bool):
            raise ValueError(f"{where}.{key}: expected {kinds[key].__name__}, got {value!r}")
    for key in required:
        if key not in raw:
            raise ValueError(f"{where}: missing key {key!r}")
    return raw


def stages_of(cell: Cell, graph: pipeline.Graph) -> list[str]:
    """What the cell runs: its needs and all that these read, each behind what it reads.

    Raises:
        ValueError: a need is no stage of dvc.yaml.
    """
    needs = [stage for need in cell.needs for stage in _named(need, graph)]
    for need in needs:
        if need not in graph:
            raise ValueError(f"study {cell.study}, arm {cell.arm}: dvc.yaml has no stage {need!r}")
    ordered: list[str] = []

    def visit(stage: str) -> None:
        for below in sorted(graph[stage]):
            visit(below)
        if stage not in ordered:
            ordered.append(stage)

    for need in needs:
        visit(need)
    return ordered


def _named(need: str, graph: pipeline.Graph) -> list[str]:
    """``evaluate-teacher@*`` is every stage of that word; any other name is itself."""
    word, _, target = need.partition("@")
    every = sorted(stage for stage in graph if stage.startswith(f"{word}@"))
    return every if target == "*" and every else [need]


def keys(
    stages: Sequence[str], graph: pipeline.Graph, params: Mapping[str, Sequence[str]], values: Mapping[str, Any]
) -> dict[str, str]:
    """What decides each stage's result, as a short hash: its name, the params that it lists and the keys of what it
    reads. Equal in two cells: the same artifact, to be made once. ``stages`` as ``stages_of`` orders them."""
    found: dict[str, str] = {}
    for stage in stages:
        read = {name: _at(values, name) for name in params.get(stage, ())}
        found[stage] = profiles.digest([stage, read, sorted(found[below] for below in graph[stage])])
    return found


def _at(values: Mapping[str, Any], path: str) -> Any:
    found: Any = values
    for key in path.split("."):
        found = found[key]
    return found
