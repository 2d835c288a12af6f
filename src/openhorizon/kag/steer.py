"""Which region of the graph is proposed next, steered by the measured solve rate.

A region is a world and a horizon. Worlds get equal shares, or as often as they are named. Within a world a region keeps
``floor`` of an even share, for coverage; the rest goes by 2√(p(1-p)), where p is the share of tries on it that the
solver solved so far: most to where outcomes are mixed, least to what always or never works. A region that was not tried
counts as mixed. Weights change once a round of ``every`` slots. The paper steers by difficulty, too, but does not say
how.

Slots are dealt by smooth weighted round robin: even weights give strict turns, and any stretch of a round is mixed like
the whole. Weights are integers, so that turns are exact.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

SCALE = 1_000_000


class Region(NamedTuple):
    world: str  # key of the registry
    horizon: int

    def __str__(self) -> str:
        return f"{self.world} at horizon {self.horizon}"


class SolveRates:
    """What a solver achieved by region, over all tries."""

    def __init__(self) -> None:
        self.tries: Counter[Region] = Counter()
        self.solved: Counter[Region] = Counter()

    def add(self, region: Region, solved: bool) -> None:
        self.tries[region] += 1
        self.solved[region] += solved

    def mixed(self, region: Region) -> float:
        """2√(p(1-p)) in (0, 1], with one solved and one failed try added: 1 where nothing is known."""
        p = (self.solved[region] + 1) / (self.tries[region] + 2)
        return 2 * math.sqrt(p * (1 - p))


class Turns:
    """The order in which regions come up."""

    def __init__(self, regions: Sequence[Region], floor: float, every: int, rates: SolveRates) -> None:
        self.named = Counter(regions)  # a world that is named twice has twice the share
        self.open = list(self.named)
        self.floor, self.every, self.rates = floor, every, rates
        self.weights: dict[Region, int] = {}
        self._credit: Counter[Region] = Counter()
        self._dealt = 0

    def next(self) -> Region:
        """The region whose turn it is."""
        if self._dealt % self.every == 0 or not self.weights:
            self.weights = self._weigh()
        self._dealt += 1
        for region, weight in self.weights.items():
            self._credit[region] += weight
        chosen = max(self.open, key=lambda region: self._credit[region])  # of equals the first
        self._credit[chosen] -= sum(self.weights.values())
        return chosen

    def close(self, region: Region) -> None:
        """It comes up no more."""
        self.open.remove(region)
        self.weights = {}
        self._credit.clear()

    def _weigh(self) -> dict[Region, int]:
        of_world = Counter(region.world for region in self.open)
        if self.floor >= 1:
            whole = math.lcm(*of_world.values())
            return {region: self.named[region] * whole // of_world[region.world] for region in self.open}
        mixed = {region: self.rates.mixed(region) for region in self.open}
        total = dict.fromkeys(of_world, 0.0)
        for region, value in mixed.items():
            total[region.world] += value
        shares = {
            region: self.floor / of_world[region.world] + (1 - self.floor) * value / total[region.world]
            for region, value in mixed.items()
        }
        return {region: max(1, round(SCALE * self.named[region] * share)) for region, share in shares.items()}
