"""What cells leave behind, and how arms are compared: paired tasks, bootstrap over seeds and tasks, Holm.

Within a seed all arms that share data meet the same held-out tasks with the same episode seeds, so two arms are paired
task by task. Compute is what training cost: tokens times a factor for each stage, times the active parameters.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from openhorizon.artifacts import read_json, require
from openhorizon.bench.base import Record, read_records
from openhorizon.bench.stats import Tested, holm, nested_mean
from openhorizon.pipeline import commit
from openhorizon.report.claims import FIGURES, Claim, write_claims
from openhorizon.report.figures import Figure, Line
from openhorizon.seeds import derive
from openhorizon.study.plan import STUDIES, Cell, Study
from openhorizon.study.workspace import cost, evaluated

# FLOPs a token and active parameter: forward and backward 6, a forward alone 2. Distillation decodes a token (2),
# scores it (2) and trains on it (6). A teacher's tokens are taken as trained on; GRPO's decoding is not counted apart.
FLOPS = {"base": 6, "sft": 6, "teach": 6, "distill": 10, "baseline": 6}
ALPHA = 0.05
TEACHER = "teacher"


@dataclass(frozen=True)
class Result:
    """One cell's outcome. ``tokens`` and ``flops`` are of training, None where a stage was restored from before the
    study; ``seconds`` likewise."""

    arm: str
    seed: int
    folder: Path
    records: Mapping[str, Sequence[Record]]  # by model, as evaluated
    tokens: float | None
    flops: float | None
    seconds: float | None
    parameters: float  # active


@dataclass(frozen=True)
class Evidence:
    """All that an analysis is handed."""

    study: Study
    profile: str
    commit: str
    results: Sequence[Result]

    def of(self, arm: str) -> dict[int, Result]:
        """An arm's results by seed; empty where this size has no such arm."""
        return {result.seed: result for result in self.results if result.arm == arm}


@dataclass(frozen=True)
class Comparison:
    """Arm ``a`` with a model of it against arm ``b`` with one, on the records to ``keep``."""

    a: str
    b: str
    models: tuple[str, str]
    keep: Callable[[Record], bool] = lambda record: True


@dataclass(frozen=True)
class Compared:
    """What a comparison found: ``p`` is adjusted for its family."""

    asked: Comparison
    tested: Tested
    pairs: int
    p: float


Analysis = Callable[[Evidence], tuple[list[Claim], dict[str, Figure]]]


def load(root: Path, cell: Cell, keys: Mapping[str, str]) -> Result:
    """Read a finished cell; ``keys`` are those of its stages.

    Raises:
        FileNotFoundError, ValueError: an artifact is missing or damaged.
    """
    artifacts = cell.folder / "artifacts"
    records = {
        evaluated(stage): read_records(require(artifacts / "evaluate" / evaluated(stage) / "records.parquet"))
        for stage in keys
        if stage.startswith("evaluate")
    }
    active = float(read_json(artifacts / "base" / "metrics.json")["parameters_active"])
    costs = {stage: cost(root, key) for stage, key in keys.items() if stage.partition("@")[0] in FLOPS}
    known = [(FLOPS[stage.partition("@")[0]], taken) for stage, taken in costs.items() if taken]
    whole = len(known) == len(costs)
    return Result(
        arm=cell.arm,
        seed=cell.seed,
        folder=cell.folder,
        records=records,
        tokens=sum(taken["tokens"] for _, taken in known) if whole else None,
        flops=sum(factor * taken["tokens"] * active for factor, taken in known) if whole else None,
        seconds=sum(taken["seconds"] for _, taken in known) if whole else None,
        parameters=active,
    )


def analysis_of(name: str, root: Path) -> Analysis:
    """``analyse`` of ``studies/NAME/analysis.py``."""
    path = require(root / STUDIES / name / "analysis.py")
    found = importlib.util.spec_from_file_location(f"studies_{name}", path)
    assert found and found.loader
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # dataclasses look their module up
    found.loader.exec_module(module)
    analyse: Analysis = module.analyse
    return analyse


def conclude(root: Path, study: Study, size: str, found: Sequence[tuple[Cell, Mapping[str, str]]]) -> list[Claim]:
    """Analyse finished cells, each with its stages' keys, and write claims and figures."""
    results = [load(root, cell, keys) for cell, keys in found]
    profile = size if size == study.sizes[size].profile else f"{study.sizes[size].profile} ({size})"
    claims, figures = analysis_of(study.name, root)(Evidence(study, profile, commit(root), results))
    write_claims(root, claims, figures)
    return claims


def compare(evidence: Evidence, asked: Mapping[str, Comparison]) -> dict[str, Compared]:
    """Every comparison that this size has the arms of, by its key; their p values are Holm's, as one family."""
    found = {
        key: difference(evidence.of(it.a), evidence.of(it.b), it.models, it.keep)
        for key, it in asked.items()
        if evidence.of(it.a) and evidence.of(it.b)
    }
    adjusted = holm({key: tested.p for key, (tested, _) in found.items()})
    return {key: Compared(asked[key], tested, pairs, adjusted[key]) for key, (tested, pairs) in found.items()}


def claim(
    evidence: Evidence,
    key: str,
    compared: Compared,
    statement: str,
    control: str,
    figure: str,
    takeaway: str,
    holds: bool | None = None,
    decided: bool = False,
) -> Claim:
    """The claim that ``a`` is better than ``b``. It holds, or does not, by the adjusted p, unless ``decided``: then
    ``holds`` says it. With one seed nobody can tell: what differs may be the seed. ``figure`` is the name of one that
    is written beside it."""
    a, b = evidence.of(compared.asked.a), evidence.of(compared.asked.b)
    tested, cells = compared.tested, list({id(cell): cell for cell in (*a.values(), *b.values())}.values())
    seeds = len(a.keys() & b.keys())
    return Claim(
        id=key,
        statement=statement,
        paper_section=evidence.study.paper_section,
        holds=None if seeds < 2 else holds if decided else judged(tested.value, compared.p),
        effect=round(tested.value, 6),
        ci95=(round(tested.low, 6), round(tested.high, 6)),
        p=round(compared.p, 6),
        seeds=seeds,
        tasks=compared.pairs,
        tokens=total(cells, "tokens"),
        flops=total(cells, "flops"),
        control=control,
        figure=f"{FIGURES}/{figure}.svg",
        takeaway=takeaway + (" One seed: nothing is known of others." if seeds == 1 else ""),
        study=evidence.study.name,
        profile=evidence.profile,
        commit=evidence.commit,
    )


def line(label: str, colour: str, points: Sequence[tuple[float, Tested | None]]) -> Line:
    """A series of means with their intervals; what was not judged is left out."""
    known = [(x, mean) for x, mean in points if mean]
    columns = [[getattr(mean, key) for _, mean in known] for key in ("value", "low", "high")]
    return Line(label, colour, [x for x, _ in known], *columns)


def outcomes(
    result: Result, model: str, keep: Callable[[Record], bool] = lambda record: True
) -> dict[str, dict[str, float]]:
    """1 or 0 by domain and task, of what was judged."""
    found: dict[str, dict[str, float]] = {}
    for record in result.records[model]:
        if record.success is not None and keep(record):
            found.setdefault(record.domain, {})[record.task] = float(record.success)
    return found


def success(
    results: Mapping[int, Result], model: str, keep: Callable[[Record], bool] = lambda record: True
) -> Tested | None:
    """Macro success of an arm over its seeds; None where nothing was judged."""
    values = {
        seed: {domain: list(tasks.values()) for domain, tasks in outcomes(result, model, keep).items()}
        for seed, result in results.items()
    }
    values = {seed: domains for seed, domains in values.items() if domains}
    return nested_mean(values, derive(0, "study", model)) if values else None


def difference(
    a: Mapping[int, Result],
    b: Mapping[int, Result],
    models: tuple[str, str],
    keep: Callable[[Record], bool] = lambda record: True,
) -> tuple[Tested, int]:
    """Success of ``a`` minus ``b`` on the tasks and seeds that both have, and how many pairs that is.

    Raises:
        ValueError: no task in common.
    """
    values: dict[int, dict[str, list[float]]] = {}
    for seed in sorted(a.keys() & b.keys()):
        of_a, of_b = outcomes(a[seed], models[0], keep), outcomes(b[seed], models[1], keep)
        for domain in sorted(of_a.keys() & of_b.keys()):
            shared = sorted(of_a[domain].keys() & of_b[domain].keys())
            if shared:
                values.setdefault(seed, {})[domain] = [of_a[domain][task] - of_b[domain][task] for task in shared]
    if not values:
        raise ValueError("two arms have no task in common: their data differ")
    pairs = sum(len(x) for domains in values.values() for x in domains.values())
    return nested_mean(values, derive(0, "study", *models)), pairs


def contrast(
    results: Mapping[int, Result], weights: Mapping[str, float], keep: Callable[[Record], bool] = lambda record: True
) -> tuple[Tested, int]:
    """The weighted sum of several models' outcomes on a task, such as a student's lead less four fifths of the
    teachers', over the tasks that all were judged on. A model ``teacher`` is each domain's own.

    Raises:
        ValueError: no such task.
    """
    values: dict[int, dict[str, list[float]]] = {}
    for seed, result in sorted(results.items()):
        found = {model: _outcomes_of(result, model, keep) for model in weights}
        for domain in sorted(set.intersection(*(set(of) for of in found.values()))):
            shared = sorted(set.intersection(*(set(of[domain]) for of in found.values())))
            if shared:
                sums = [
                    sum(weight * found[model][domain][task] for model, weight in weights.items()) for task in shared
                ]
                values.setdefault(seed, {})[domain] = sums
    if not values:
        raise ValueError(f"no task on which all of {', '.join(weights)} were judged")
    pairs = sum(len(x) for domains in values.values() for x in domains.values())
    return nested_mean(values, derive(0, "study", *weights)), pairs


def _outcomes_of(result: Result, model: str, keep: Callable[[Record], bool]) -> dict[str, dict[str, float]]:
    if model != TEACHER:
        return outcomes(result, model, keep)
    teachers = [name for name in result.records if name.startswith(f"{TEACHER}@")]
    return {domain: tasks for name in teachers for domain, tasks in outcomes(result, name, keep).items()}


def judged(direction: float, p: float) -> bool | None:
    """Whether a claim of a positive difference holds: None where the difference cannot be told from none."""
    return (direction > 0) if p < ALPHA else None


def total(results: Sequence[Result], key: str) -> float | None:
    """Tokens, flops or seconds over cells; None where one of them is not known."""
    values = [getattr(result, key) for result in results]
    return None if None in values else float(sum(values))
