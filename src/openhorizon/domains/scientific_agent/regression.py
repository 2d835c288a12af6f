"""Predicting a measured property from descriptors: ridge regression, in plain Python.

Trained on the literature compounds (molecules of the training split that no campaign's library holds) and on the assays
of the campaign so far, which count ``ASSAY_WEIGHT`` times. The sums over the literature are made once a property, so
that a fit costs about a millisecond.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openhorizon.domains.corpora.molecules import load_molecules
from openhorizon.domains.scientific_agent.instruments import descriptor

RIDGE = 0.3
ASSAY_WEIGHT = 3.0
FEATURES = (
    "MolWt",
    "HeavyAtomCount",
    "MolLogP",
    "MolMR",
    "TPSA",
    "NumHDonors",
    "NumHAcceptors",
    "NumRotatableBonds",
    "RingCount",
    "NumAromaticRings",
    "FractionCSP3",
    "HallKierAlpha",
)
Vector = tuple[float, ...]


@dataclass(frozen=True)
class Sums:
    """Of the literature: features' means and scales, XᵀX and Xᵀy, the number of compounds, the mean absolute error."""

    means: Vector
    scales: Vector
    gram: tuple[Vector, ...]
    moment: Vector
    count: int
    error: float


def predict(known: str, literature: tuple[str, ...], assays: Mapping[str, float], wanted: Sequence[str]) -> list[float]:
    """The property ``known`` of the molecules ``wanted`` (SMILES), given ``assays`` (SMILES → value)."""
    sums = literature_sums(known, literature)
    gram, moment = [list(row) for row in sums.gram], list(sums.moment)
    for smiles, value in sorted(assays.items()):
        _add(gram, moment, _features(smiles, sums), value, ASSAY_WEIGHT)
    weights = _solve(gram, moment)
    return [_dot(weights, _features(smiles, sums)) for smiles in wanted]


@functools.cache
def literature_sums(known: str, literature: tuple[str, ...]) -> Sums:
    """``literature`` is the CAS numbers of the compounds to learn from; those without the property are skipped."""
    pairs = [(m.smiles, m.measured[known]) for cas in literature if known in (m := load_molecules()[cas]).measured]
    if len(pairs) < 2 * len(FEATURES):
        raise ValueError(f"molecules: {len(pairs)} literature values of {known!r}, too few to learn from")
    raw = [_raw(smiles) for smiles, _ in pairs]
    means = tuple(math.fsum(column) / len(raw) for column in zip(*raw, strict=True))
    spread = (
        math.fsum((x - mean) ** 2 for x in column) for column, mean in zip(zip(*raw, strict=True), means, strict=True)
    )
    draft = Sums(means, tuple(math.sqrt(s / len(raw)) or 1.0 for s in spread), (), (), len(pairs), 0.0)
    size = len(means) + 1
    gram, moment = [[0.0] * size for _ in range(size)], [0.0] * size
    rows = [_features(smiles, draft) for smiles, _ in pairs]
    for row, (_, value) in zip(rows, pairs, strict=True):
        _add(gram, moment, row, value, 1.0)
    for i in range(1, size):
        gram[i][i] += RIDGE
    weights = _solve([list(row) for row in gram], list(moment))
    misses = [abs(_dot(weights, row) - value) for row, (_, value) in zip(rows, pairs, strict=True)]
    frozen = tuple(tuple(row) for row in gram)
    return Sums(draft.means, draft.scales, frozen, tuple(moment), len(pairs), math.fsum(misses) / len(misses))


@functools.lru_cache(maxsize=10_000)
def _raw(smiles: str) -> Vector:
    values = [descriptor(smiles, name) for name in FEATURES]
    # Boiling points and their like grow ever more slowly with size.
    return (*values, math.sqrt(values[1]), values[4] / values[1], values[5] / values[1])


def _features(smiles: str, sums: Sums) -> Vector:
    scaled = ((x - mean) / scale for x, mean, scale in zip(_raw(smiles), sums.means, sums.scales, strict=True))
    return (1.0, *scaled)


def _add(gram: list[list[float]], moment: list[float], row: Vector, value: float, weight: float) -> None:
    for i, x in enumerate(row):
        moment[i] += weight * x * value
        for j, y in enumerate(row):
            gram[i][j] += weight * x * y


def _dot(a: Sequence[float], b: Sequence[float]) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def _solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Gaussian elimination with pivoting; both arguments are used up."""
    size = len(right)
    for i in range(size):
        pivot = max(range(i, size), key=lambda row: abs(matrix[row][i]))
        matrix[i], matrix[pivot] = matrix[pivot], matrix[i]
        right[i], right[pivot] = right[pivot], right[i]
        for row in range(i + 1, size):
            factor = matrix[row][i] / matrix[i][i]
            for column in range(i, size):
                matrix[row][column] -= factor * matrix[i][column]
            right[row] -= factor * right[i]
    for i in reversed(range(size)):
        right[i] = (right[i] - math.fsum(matrix[i][j] * right[j] for j in range(i + 1, size))) / matrix[i][i]
    return right
