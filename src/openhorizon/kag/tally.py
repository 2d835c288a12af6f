"""What a run of self-play counts by part (held-out, validation, demonstrations, prompts) while it streams.

One counter keyed by tuples, so that the tallies of shards add up, and nothing of it grows with the number of
trajectories. What their texts are like is counted by ``describe``.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from openhorizon.agent.trajectory import Status
from openhorizon.artifacts import write_text
from openhorizon.kag.rules import RULES
from openhorizon.kag.selfplay import BEFORE_RULES, BESIDE_RULES, TRIED, Outcome

Key = tuple[str | int, ...]
PARTS = ("heldout", "validation", "demonstrations", "prompts")


class Tally:
    """Counts of outcomes."""

    def __init__(self) -> None:
        self.counts: Counter[Key] = Counter()

    def add(self, part: str, outcome: Outcome, has_tools: bool) -> None:
        """One verdict of self-play."""
        counts, episode, world, horizon = self.counts, outcome.episode, outcome.world, outcome.horizon
        if outcome.rule != TRIED:
            counts["region", part, world, horizon, outcome.rule or "accepted"] += 1
        if episode is None:
            return
        if outcome.attempt:
            counts["tries", world, horizon, episode.status.value] += 1
        elif not outcome.rule and has_tools:
            counts["off horizon",] += bool(episode.steps) and len(episode.steps) != horizon

    def dropped(self, part: str, world: str, horizon: int) -> None:
        """An accepted task turned out to be a duplicate of another shard's."""
        self.counts["region", part, world, horizon, "accepted"] -= 1
        self.counts["region", part, world, horizon, "duplicate"] += 1

    def merge(self, other: Tally) -> None:
        self.counts.update(other.counts)

    def write(self, path: Path) -> None:
        rows = sorted(([list(key), n] for key, n in self.counts.items()), key=json.dumps)
        write_text(path, json.dumps(rows) + "\n")

    @classmethod
    def read(cls, path: Path) -> Tally:
        tally = cls()
        tally.counts.update({tuple(key): n for key, n in json.loads(path.read_text(encoding="utf-8"))})
        return tally

    def figures(self) -> dict[str, Any]:
        """What metrics.json says of the run."""
        worlds = sorted({str(key[2]) for key in self.counts if key[0] == "region"})
        acceptance = {part: self._acceptance(part) for part in PARTS}
        return {
            "acceptance": acceptance,
            "by_horizon": {part: self._by_horizon(part) for part in PARTS},
            "by_world": {
                world: {
                    "acceptance": {part: self._acceptance(part, world) for part in PARTS},
                    "by_horizon": {part: self._by_horizon(part, world) for part in PARTS},
                }
                for world in worlds
            },
            "duplicates_removed": sum(counts["duplicate"] for counts in acceptance.values()),
            "reference_calls_off_horizon": self.counts["off horizon",],
            "solve_rates": {"by_horizon": self._rates(False), "by_region": self._rates(True)},
            "yield": {part: _yield(counts) for part, counts in acceptance.items()},
        }

    def _regions(self, part: str, world: str) -> list[tuple[int, str, int]]:
        """Horizon, verdict and how often, of one world or of all ("")."""
        return [
            (int(key[3]), str(key[4]), n)
            for key, n in self.counts.items()
            if key[:2] == ("region", part) and world in ("", key[2])
        ]

    def _acceptance(self, part: str, world: str = "") -> dict[str, int]:
        """Outcomes by what decided them; every rule is listed, also where it refused nothing."""
        found: Counter[str] = Counter()
        for _, verdict, n in self._regions(part, world):
            found[verdict] += n
        return {name: found[name] for name in ("accepted", *BEFORE_RULES, *RULES, *BESIDE_RULES)}

    def _by_horizon(self, part: str, world: str = "") -> dict[str, int]:
        found: Counter[int] = Counter()
        for horizon, verdict, n in self._regions(part, world):
            found[horizon] += n * (verdict == "accepted")
        return {str(horizon): n for horizon, n in sorted(found.items()) if n}

    def _rates(self, by_region: bool) -> dict[str, dict[str, float]]:
        """How often the solver's tries were solved, by horizon or by world and horizon."""
        found: dict[tuple[str, int], Counter[str]] = {}
        for key, n in self.counts.items():
            if key[0] == "tries":
                place = (str(key[1]) if by_region else "", int(key[2]))
                found.setdefault(place, Counter())[str(key[3])] += n
        return {f"{w}@{h}" if by_region else str(h): _rate(statuses) for (w, h), statuses in sorted(found.items())}


def _rate(statuses: Counter[str]) -> dict[str, float]:
    """Aborted tries say nothing of the solver."""
    tries = statuses.total() - statuses[Status.ABORTED]
    return {
        "tries": tries,
        "solved": statuses[Status.SOLVED],
        "truncated": statuses[Status.TRUNCATED],
        "aborted": statuses[Status.ABORTED],
        "success": round(statuses[Status.SOLVED] / tries, 4) if tries else 0.0,
    }


def _yield(acceptance: dict[str, int]) -> float | None:
    """Accepted share of all verdicts over a task; None where none was drawn."""
    judged = sum(acceptance.values()) - acceptance["no proposal"]
    return round(acceptance["accepted"] / judged, 4) if judged else None
