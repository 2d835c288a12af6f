"""Intervals and tests against published values and slow explicit references."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import product

import pytest

from openhorizon.bench.stats import macro_mean, mcnemar, paired_difference, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3 (score)
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_agrees_with_newcombe(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_solves_the_score_equation() -> None:
    """Its ends are the p with |p̂ - p| = z √(p(1-p)/n): the definition, without the closed form."""
    z = 1.6448536269514722
    for successes, n in [(3, 7), (50, 200), (199, 200)]:
        for end in wilson(successes, n, confidence=0.9):
            assert abs(successes / n - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), rel=1e-9)


def test_wilson_edges() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(0, 50)[0] == 0.0
    assert wilson(50, 50)[1] == 1.0
    assert wilson(13, 50)[0] == pytest.approx(1 - wilson(37, 50)[1])
    for successes, n in [(3, 2), (-1, 2), (0, -1)]:
        with pytest.raises(ValueError, match="successes of"):
            wilson(successes, n)


def test_wilson_covers_the_truth() -> None:
    """Exact coverage at n = 200, over p: close to 95% on average, never far below."""
    n = 200
    intervals = [wilson(k, n) for k in range(n + 1)]

    def coverage(p: float) -> float:
        inside = [k for k in range(n + 1) if intervals[k][0] <= p <= intervals[k][1]]
        return sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in inside)

    found = [coverage(i / 50) for i in range(1, 50)]
    assert sum(found) / len(found) == pytest.approx(0.95, abs=0.005)
    assert min(found) > 0.92


def test_macro_mean_agrees_with_every_possible_resample() -> None:
    """Two domains of three tasks: all 27 x 27 resamples are listed, and the quantiles of their means compared."""
    values = {"a": [0.0, 1.0, 1.0], "b": [0.0, 0.0, 1.0]}
    every = sorted(
        (sum(a) / 3 + sum(b) / 3) / 2 for a in product(values["a"], repeat=3) for b in product(values["b"], repeat=3)
    )
    found = macro_mean(values, seed=1)
    assert found.value == pytest.approx(0.5)
    low, high = every[round(len(every) * 0.025)], every[round(len(every) * 0.975)]
    assert (found.low, found.high) == pytest.approx((low, high), abs=1e-9)


def test_macro_mean_weighs_domains_not_tasks() -> None:
    found = macro_mean({"many": [1.0] * 90, "few": [0.0] * 10}, seed=0)
    assert found == pytest.approx((0.5, 0.5, 0.5))  # nothing varies inside a domain, so nothing varies at all


def test_macro_mean_has_the_width_of_the_normal_approximation() -> None:
    draw = random.Random(3)
    values = {name: [float(draw.random() < p) for _ in range(400)] for name, p in (("a", 0.3), ("b", 0.6), ("c", 0.8))}
    found = macro_mean(values, seed=0)
    means = {name: sum(mine) / 400 for name, mine in values.items()}
    error = math.sqrt(sum(p * (1 - p) / 400 for p in means.values())) / 3
    assert found.value == pytest.approx(sum(means.values()) / 3)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.05)


def test_bootstrap_depends_on_its_seed_and_nothing_else() -> None:
    values = {"b": [float(i % 3 == 0) for i in range(50)], "a": [float(i % 2) for i in range(40)]}
    turned = {name: values[name] for name in sorted(values)}
    assert macro_mean(values, seed=5) == macro_mean(turned, seed=5)
    assert macro_mean(values, seed=5, resamples=99) != macro_mean(values, seed=6, resamples=99)


def test_bootstrap_refuses_what_has_no_tasks() -> None:
    for values in ({}, {"a": [1.0], "b": []}):
        with pytest.raises(ValueError, match="at least one task"):
            macro_mean(values, seed=0)


def test_paired_difference_is_narrower_than_an_unpaired_one() -> None:
    """Two models that solve the same hard tasks: pairing sees that, two separate intervals do not."""
    draw = random.Random(0)
    b = [float(draw.random() < 0.5) for _ in range(300)]
    a = [1.0 if y or draw.random() < 0.1 else 0.0 for y in b]
    paired = paired_difference(a, b, seed=0)
    p, q = sum(a) / 300, sum(b) / 300
    assert paired.value == pytest.approx(p - q)
    assert paired.low > 0
    assert paired.high - paired.low < 0.6 * 2 * 1.96 * math.sqrt((p * (1 - p) + q * (1 - q)) / 300)
    with pytest.raises(ValueError, match="longer"):
        paired_difference([1.0], [1.0, 0.0], seed=0)


def test_mcnemar_agrees_with_every_sequence_of_coin_flips() -> None:
    for only_a, only_b in product(range(6), range(6)):
        n = only_a + only_b
        extreme = sum(abs(2 * sum(flips) - n) >= abs(only_a - only_b) for flips in product((0, 1), repeat=n))
        assert mcnemar(only_a, only_b) == pytest.approx(float(Fraction(extreme, 2**n)))


def test_mcnemar_holds_for_many_tasks() -> None:
    assert mcnemar(600, 600) == 1.0
    assert mcnemar(0, 0) == 1.0
    assert 0 < mcnemar(900, 600) < 1e-13
    with pytest.raises(ValueError, match="negative"):
        mcnemar(-1, 3)
