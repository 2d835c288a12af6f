"""What a domain's data is like: acceptance by rule, horizons, lengths and abilities, in all and by world.

An accumulator of counts: it takes one trajectory at a time, so that nothing has to be kept, and two of them (of two
shards) merge into what one over both would have held. Lengths and abilities are those of the accepted trajectories;
draws that never reached a solver (duplicates, shared prompts) are counted by ``refuse``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Self

from openhorizon.agent.trajectory import Trajectory
from openhorizon.kag.graph import ABILITIES, Record, of_trajectory

ACCEPTED = "accepted"
BINS = 20  # of a length's histogram
# What is counted of each world: name → count. Names of the numeric ones are numbers written out.
_RULES, _HORIZONS, _TRIED, _WORDS, _CALLS = "rules", "horizons", "tried", "words", "tool_calls"
_ABILITIES, _COVERED = "abilities", "covered"
_COUNTED = (_RULES, _HORIZONS, _TRIED, _WORDS, _CALLS, _ABILITIES, _COVERED)


class Description:
    """Counts over trajectories, by world."""

    def __init__(self) -> None:
        self._worlds: dict[str, dict[str, Counter[str]]] = {}

    def add(
        self, trajectory: Trajectory, accepted: bool, rule: str = "", records: Sequence[Record] | None = None
    ) -> None:
        """Count a trajectory: an accepted one, or one that ``rule`` refused. ``records`` are its records in the graph,
        where they have been made already.

        Raises:
            ValueError: an accepted one with a rule, or a refused one without.
        """
        if accepted == bool(rule):
            raise ValueError(f"trajectory {trajectory.task.id}: accepted={accepted} with rule {rule!r}")
        counts, horizon = self._of(trajectory.task.world), str(trajectory.task.horizon)
        counts[_RULES][rule or ACCEPTED] += 1
        counts[_TRIED][horizon] += 1
        if not accepted:
            return
        if records is None:
            records = of_trajectory("", trajectory).records
        counts[_HORIZONS][horizon] += 1
        counts[_WORDS][str(sum(len(turn.text.split()) for turn in trajectory.turns))] += 1
        counts[_CALLS][str(trajectory.tool_calls)] += 1
        used = [ability for record in records for ability in record.abilities]
        counts[_ABILITIES].update(used)
        counts[_COVERED].update(set(used))

    def refuse(self, world: str, rule: str, count: int = 1) -> None:
        """Count draws that have no trajectory: no proposal, a duplicate, a prompt of the other split."""
        self._of(world)[_RULES][rule] += count

    def merge(self, other: Description) -> None:
        """Add another's counts."""
        for world, counts in other._worlds.items():
            mine = self._of(world)
            for name in _COUNTED:
                mine[name].update(counts[name])

    def figures(self) -> dict[str, Any]:
        """What metrics.json and the report hold: {"all": …, "worlds": {world: …}}, each with

        accepted, refused, rules {rule: draws}, horizons {horizon: accepted}, tried {horizon: trajectories},
        words and tool_calls {mean, min, p5, p50, p95, max, bins [[from, to, count], …]} of the accepted (empty where
        there are none), abilities {ability: records}, covered {ability: accepted trajectories that draw on it}.
        """
        whole = Description()
        for counts in self._worlds.values():
            part = Description()
            part._worlds["all"] = counts
            whole.merge(part)
        return {
            "all": _figures(whole._of("all")),
            "worlds": {world: _figures(self._worlds[world]) for world in sorted(self._worlds)},
        }

    def to_json(self) -> dict[str, Any]:
        """The counts themselves, for ``from_json`` in another process."""
        return {
            world: {name: dict(sorted(counts[name].items())) for name in _COUNTED}
            for world, counts in sorted(self._worlds.items())
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Mapping[str, Mapping[str, int]]]) -> Self:
        read = cls()
        for world, counts in value.items():
            read._worlds[world] = {name: Counter(counts[name]) for name in _COUNTED}
        return read

    def _of(self, world: str) -> dict[str, Counter[str]]:
        return self._worlds.setdefault(world, {name: Counter() for name in _COUNTED})


def spread(counts: Mapping[int, int]) -> dict[str, Any]:
    """Mean, percentiles and a histogram of values that are given as value → how often."""
    if not counts:
        return {}
    ranked, total = sorted(counts), sum(counts.values())
    wanted = {f"p{q}": min(total * q // 100, total - 1) for q in (5, 50, 95)}
    found: dict[str, Any] = {}
    seen = 0
    for value in ranked:
        seen += counts[value]
        found |= {name: value for name, rank in wanted.items() if rank < seen and name not in found}
    width = -(-(ranked[-1] - ranked[0] + 1) // BINS)
    bins: Counter[int] = Counter()
    for value in ranked:
        bins[(value - ranked[0]) // width] += counts[value]
    mean = sum(value * n for value, n in counts.items()) / total
    edges = [(ranked[0] + i * width, ranked[0] + (i + 1) * width - 1) for i in range(max(bins) + 1)]
    return found | {
        "mean": round(mean, 3),
        "min": ranked[0],
        "max": ranked[-1],
        "bins": [[low, high, bins[i]] for i, (low, high) in enumerate(edges)],
    }


def _figures(counts: Mapping[str, Counter[str]]) -> dict[str, Any]:
    rules = counts[_RULES]
    return {
        "accepted": rules[ACCEPTED],
        "refused": rules.total() - rules[ACCEPTED],
        _RULES: dict(sorted(rules.items())),
        _HORIZONS: _by_number(counts[_HORIZONS]),
        _TRIED: _by_number(counts[_TRIED]),
        _WORDS: spread({int(value): n for value, n in counts[_WORDS].items()}),
        _CALLS: spread({int(value): n for value, n in counts[_CALLS].items()}),
        _ABILITIES: {ability: counts[_ABILITIES][ability] for ability in ABILITIES},
        _COVERED: {ability: counts[_COVERED][ability] for ability in ABILITIES},
    }


def _by_number(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: int(item[0])))
