"""Intervals and tests for success rates. Tasks are the unit that is resampled, never tokens or turns.

The bootstraps draw from numpy's PCG64 with the seed they are handed: the same numbers in every process.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
_CHUNK = 1_000  # resamples at once: bounds memory at _CHUNK * tasks floats


class Tested(NamedTuple):
    """A mean difference with its interval and its two-sided bootstrap p."""

    value: float
    low: float
    high: float
    p: float


class Estimate(NamedTuple):
    """A point estimate with its interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion p = successes / n:

        (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n),   z = Φ⁻¹((1 + confidence) / 2)

    It stays inside [0, 1] and is not empty at p = 0 or 1, where the normal interval is. Without data it is (0, 1).
    Source: Wilson, JASA 22 (1927) 209-212; Brown, Cai, DasGupta, Statistical Science 16 (2001) 101-133.

    Raises:
        ValueError: not 0 <= successes <= n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}")
    if n == 0:
        return 0.0, 1.0
    z, p = NormalDist().inv_cdf((1 + confidence) / 2), successes / n
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return low, high


def macro_mean(
    values: Mapping[str, Sequence[float]], seed: int, confidence: float = 0.95, resamples: int = RESAMPLES
) -> Estimate:
    """Unweighted mean over domains of each domain's mean, with a stratified percentile bootstrap:

        m = 1/D Σ_d 1/n_d Σ_i x_di;   x*_d1 … x*_dn_d drawn with replacement inside each domain, tasks independent

    The interval is the (1 ± confidence)/2 quantiles of m*. With no spread inside any domain it is a point.
    Source: Efron, Tibshirani, An Introduction to the Bootstrap (1993), sections 8.3 (strata) and 13.3 (percentiles).

    Raises:
        ValueError: no domain, or a domain without tasks.
    """
    if not values or not all(len(of_domain) for of_domain in values.values()):
        raise ValueError("a macro mean needs at least one task in every domain")
    generator = np.random.default_rng(seed)
    strata = [np.asarray(values[name], dtype=np.float64) for name in sorted(values)]
    means = np.zeros(resamples)
    for stratum in strata:
        for start in range(0, resamples, _CHUNK):
            stop = min(start + _CHUNK, resamples)
            drawn = generator.integers(0, len(stratum), size=(stop - start, len(stratum)))
            means[start:stop] += stratum[drawn].mean(axis=1) / len(strata)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float(np.mean([stratum.mean() for stratum in strata])), float(low), float(high))


def weighted_mean(
    values: Sequence[float],
    weights: Sequence[float],
    seed: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Σ w_i x_i / Σ w_i over tasks i, with a percentile bootstrap that draws tasks: a task brings its value together
    with its weight, such as the share of its instructions that were followed with how many they are. So the interval
    is as wide as tasks, not instructions, differ. Resamples without any weight are left out.
    Source: Efron, Tibshirani (1993), section 13.3; a ratio estimator.

    Raises:
        ValueError: lengths differ, a weight below 0, or no weight at all.
    """
    x, w = np.asarray(values, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if x.shape != w.shape or not w.sum() > 0 or w.min() < 0:
        raise ValueError(f"a weighted mean needs a weight of 0 or more a value, and one above 0: {len(x)} and {len(w)}")
    generator, means = np.random.default_rng(seed), list[float]()
    for start in range(0, resamples, _CHUNK):
        drawn = generator.integers(0, len(x), size=(min(_CHUNK, resamples - start), len(x)))
        total = w[drawn].sum(axis=1)
        means.extend(((w * x)[drawn].sum(axis=1)[total > 0] / total[total > 0]).tolist())
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Estimate(float((w * x).sum() / w.sum()), float(low), float(high))


def paired_difference(
    a: Sequence[float], b: Sequence[float], seed: int, confidence: float = 0.95, resamples: int = RESAMPLES
) -> Estimate:
    """Mean of a_i - b_i over the same tasks i, with a paired percentile bootstrap: tasks are resampled, and a task
    brings both of its results, so that what makes a task hard for both models cancels.
    Source: Efron, Tibshirani (1993), section 13.3; Koehn, EMNLP 2004, for paired use on a benchmark.

    Raises:
        ValueError: lengths differ, or there is no task.
    """
    differences = [x - y for x, y in zip(a, b, strict=True)]
    return macro_mean({"": differences}, seed, confidence, resamples)


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar test: of n = only_a + only_b tasks that just one model solves, each model's share under
    the null hypothesis is Binomial(n, ½), so p = min(1, 2 Σ_{k <= min(only_a, only_b)} C(n, k) / 2ⁿ).
    Source: McNemar, Psychometrika 12 (1947) 153-157, in the exact (sign test) form.

    Raises:
        ValueError: a negative count.
    """
    if only_a < 0 or only_b < 0:
        raise ValueError(f"counts of tasks cannot be negative: {only_a}, {only_b}")
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / (1 << n))


def nested_mean(
    values: Mapping[int, Mapping[str, Sequence[float]]],
    seed: int,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
) -> Tested:
    """Mean over training seeds s of the macro mean over domains d of the tasks' values x_sdi, with a two-level
    bootstrap: seeds are drawn with replacement, and for each drawn seed, anew, the tasks of each of its domains:

        m = 1/S Σ_s 1/D Σ_d 1/n_sd Σ_i x_sdi;   p = 2 min(P(m* <= 0), P(m* >= 0)), each (1 + count) / (1 + resamples)

    Hand it paired differences, and what makes a task or a seed hard for both sides cancels. With S seeds its interval
    is some 1 - √((S-1)/S) too narrow on the seeds' side (18% at 3); with one seed it says nothing of seeds at all.
    Source: Davison, Hinkley, Bootstrap Methods and their Application (1997), section 3.8.

    Raises:
        ValueError: no seed, no domain, or a domain without tasks.
    """
    if not values or not all(domains and all(len(x) for x in domains.values()) for domains in values.values()):
        raise ValueError("a nested mean needs a seed, and at least one task in every domain of it")
    generator, seeds = np.random.default_rng(seed), sorted(values)
    found = [[np.unique(values[s][d], return_counts=True) for d in sorted(values[s])] for s in seeds]
    point = np.mean([np.mean([x @ n / n.sum() for x, n in domains]) for domains in found])
    drawn = generator.integers(0, len(seeds), size=(resamples, len(seeds)))
    means = np.zeros(resamples)
    for slot in range(len(seeds)):
        for i, domains in enumerate(found):
            (rows,) = np.nonzero(drawn[:, slot] == i)
            for x, n in domains:  # resampling tasks is drawing how often each distinct value comes
                counts = generator.multinomial(n.sum(), n / n.sum(), size=len(rows))
                means[rows] += counts @ x / n.sum() / len(domains) / len(seeds)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    tails = [(1 + int(np.count_nonzero(side))) / (1 + resamples) for side in (means <= 0, means >= 0)]
    return Tested(float(point), float(low), float(high), min(1.0, 2 * min(tails)))


def holm(ps: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p values of one family: with p_(1) <= … <= p_(m), max_{j<=i} min(1, (m-j+1) p_(j)).
    Below α after adjustment, the chance of any false rejection in the family is at most α.
    Source: Holm, Scandinavian Journal of Statistics 6 (1979) 65-70."""
    adjusted, highest = dict[str, float](), 0.0
    for i, name in enumerate(sorted(ps, key=lambda name: (ps[name], name))):
        highest = max(highest, min(1.0, (len(ps) - i) * ps[name]))
        adjusted[name] = highest
    return {name: adjusted[name] for name in ps}
