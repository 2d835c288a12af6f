"""Local graders: what a submission's format must be, its score on private answers, and how sure that score is.

Plain Python on purpose: grading is done outside the sandbox, where no domain imports numpy.

Metrics by kind of target: ``auc``, ``logloss`` (probabilities) and ``accuracy`` for two classes; ``accuracy`` and
``macro_f1`` for more; ``rmse`` and ``mae`` for numbers.
"""

from __future__ import annotations

import csv
import io
import math
import random
from collections.abc import Callable, Sequence

from openhorizon.domains.corpora.tables import number

METRICS = {"binary": ("auc", "accuracy", "logloss"), "classes": ("accuracy", "macro_f1"), "number": ("rmse", "mae")}
PROBABILITIES = ("auc", "logloss")
LOWER_IS_BETTER = ("logloss", "rmse", "mae")
CLIP = 1e-6  # of a probability, in the log loss
RESAMPLES = 60  # of the bootstrap


def label(value: str) -> str:
    """A class as it is compared: ``1``, ``1.0`` and ``"1 "`` are one class, and so are ``TRUE`` and ``True``."""
    parsed = number(value.strip())
    return f"{parsed:g}" if parsed is not None else value.strip().lower()


def check_format(
    text: str, ids: Sequence[str], target: str, metric: str, classes: Sequence[str]
) -> tuple[str, list[str]]:
    """What is wrong with a submission, in words, or ``""`` with its predictions in the order of ``ids``."""
    rows = [row for row in csv.reader(io.StringIO(text)) if row]
    if not rows or rows[0] != ["id", target]:
        found = ",".join(rows[0])[:60] if rows else "nothing"
        return f"the header must be id,{target}, found {found}", []
    broken = next((i for i, row in enumerate(rows[1:], 2) if len(row) != 2), None)
    if broken is not None:
        return f"line {broken} has {len(rows[broken - 1])} values instead of 2", []
    given = {row[0].strip(): row[1].strip() for row in rows[1:]}
    if len(given) < len(rows) - 1:
        return f"{len(rows) - 1 - len(given)} ids are there twice", []
    missing, unknown = [i for i in ids if i not in given], len(given.keys() - set(ids))
    if missing or unknown:
        return f"{len(missing)} of {len(ids)} ids are missing and {unknown} are not of test.csv", []
    predictions = [given[i] for i in ids]
    problem = _check_values(predictions, metric, classes)
    return problem, [] if problem else predictions


def _check_values(predictions: Sequence[str], metric: str, classes: Sequence[str]) -> str:
    if metric in ("accuracy", "macro_f1"):
        known = {label(name) for name in classes}
        strange = next((value for value in predictions if label(value) not in known), None)
        return "" if strange is None else f"{strange[:40] or 'an empty value'} is none of the classes"
    numbers = [number(value) for value in predictions]
    if any(value is None or math.isnan(value) for value in numbers):
        return "a value is not a finite number"
    if metric in PROBABILITIES and not all(value is not None and 0 <= value <= 1 for value in numbers):
        return "a value is no probability between 0 and 1"
    return ""


def grade(metric: str, answers: Sequence[str], predictions: Sequence[str], positive: str) -> float:
    """The score of predictions that ``check_format`` let pass."""
    if metric in ("accuracy", "macro_f1"):
        truth, given = [label(value) for value in answers], [label(value) for value in predictions]
        return _SCORES_OF_LABELS[metric](truth, given)
    values = [float(value) for value in predictions]
    if metric in PROBABILITIES:
        wanted = label(positive)
        return _SCORES_OF_NUMBERS[metric]([float(label(value) == wanted) for value in answers], values)
    return _SCORES_OF_NUMBERS[metric]([float(value) for value in answers], values)


def better(metric: str, a: float, b: float) -> bool:
    """Whether score ``a`` is better than ``b``."""
    return a < b if metric in LOWER_IS_BETTER else a > b


def gain(metric: str, a: float, b: float) -> float:
    """By how much ``a`` is better than ``b``; negative where it is worse."""
    return b - a if metric in LOWER_IS_BETTER else a - b


def standard_error(
    metric: str, answers: Sequence[str], first: Sequence[str], second: Sequence[str], positive: str, seed: int
) -> float:
    """Paired bootstrap: how much ``gain(first, second)`` varies when the private rows are drawn again."""
    rng, gains = random.Random(seed), list[float]()
    for _ in range(RESAMPLES):
        drawn = [rng.randrange(len(answers)) for _ in answers]
        truth = [answers[i] for i in drawn]
        one, other = (grade(metric, truth, [given[i] for i in drawn], positive) for given in (first, second))
        gains.append(gain(metric, one, other))
    mean = sum(gains) / len(gains)
    return math.sqrt(sum((value - mean) ** 2 for value in gains) / (len(gains) - 1))


def _accuracy(truth: Sequence[str], given: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(truth, given, strict=True)) / len(truth)


def _macro_f1(truth: Sequence[str], given: Sequence[str]) -> float:
    classes, total = sorted(set(truth)), 0.0
    for name in classes:
        hits = sum(a == b == name for a, b in zip(truth, given, strict=True))
        total += 2 * hits / (truth.count(name) + given.count(name))
    return total / len(classes)


def _auc(truth: Sequence[float], given: Sequence[float]) -> float:
    """The share of pairs that stand in the right order, ties counting half: from ranks. One half where the rows have
    one class only."""
    order = sorted(range(len(given)), key=given.__getitem__)
    ranks, i = [0.0] * len(given), 0
    while i < len(order):
        j = i
        while j + 1 < len(order) and given[order[j + 1]] == given[order[i]]:
            j += 1
        for at in order[i : j + 1]:
            ranks[at] = (i + j) / 2 + 1
        i = j + 1
    positives = int(sum(truth))
    negatives = len(truth) - positives
    if not positives or not negatives:
        return 0.5
    total = sum(rank for rank, one in zip(ranks, truth, strict=True) if one)
    return (total - positives * (positives + 1) / 2) / (positives * negatives)


def _logloss(truth: Sequence[float], given: Sequence[float]) -> float:
    clipped = [min(max(value, CLIP), 1 - CLIP) for value in given]
    return -sum(math.log(p if one else 1 - p) for one, p in zip(truth, clipped, strict=True)) / len(truth)


def _rmse(truth: Sequence[float], given: Sequence[float]) -> float:
    return math.sqrt(sum((a - b) ** 2 for a, b in zip(truth, given, strict=True)) / len(truth))


def _mae(truth: Sequence[float], given: Sequence[float]) -> float:
    return sum(abs(a - b) for a, b in zip(truth, given, strict=True)) / len(truth)


_SCORES_OF_LABELS: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "accuracy": _accuracy,
    "macro_f1": _macro_f1,
}
_SCORES_OF_NUMBERS: dict[str, Callable[[Sequence[float], Sequence[float]], float]] = {
    "auc": _auc,
    "logloss": _logloss,
    "rmse": _rmse,
    "mae": _mae,
}
