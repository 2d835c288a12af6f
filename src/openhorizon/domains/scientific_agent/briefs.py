"""The stages of a screening campaign: what a brief asks, how it says it, and what the measured data say is right.

Two kinds: ``best`` asks for the compounds with the highest or lowest measured value of a property within a pool,
``near`` for the compound most like the hit of an earlier stage that measures above or below a limit. A stage may bring
a house rule, which its brief says once and which holds from then on.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from openhorizon.domains.base import Split, part_of, split_of
from openhorizon.domains.corpora.molecules import UNITS, Molecule, load_molecules
from openhorizon.domains.scientific_agent.instruments import GROUPS, descriptor, matches, similarity

VALIDATION_PERCENT = 20  # of the compounds that are not held out
LITERATURE_SHARE = 3  # one training compound in so many
Bound = tuple[str, str, float]  # descriptor, "at most" or "at least", limit


@dataclass(frozen=True)
class Stage:
    """One brief. ``bans`` and ``rules`` are the house rules that it brings: groups, and bounds, for good."""

    kind: str  # best or near
    known: str  # the property
    budget: int  # assays
    highest: bool = True  # best: the highest values; near: the measured value must be at least ``limit``
    count: int = 1
    group: str = ""
    bounds: tuple[Bound, ...] = ()
    origin: int = 0  # near: the stage whose hit it starts from
    limit: float = 0.0
    bans: tuple[str, ...] = ()
    rules: tuple[Bound, ...] = ()

    def to_json(self) -> dict[str, Any]:
        lists = {"bounds": list(map(list, self.bounds)), "rules": list(map(list, self.rules)), "bans": list(self.bans)}
        return asdict(self) | lists


def stage_from_json(value: Mapping[str, Any]) -> Stage:
    bounds = {key: tuple((d, op, limit) for d, op, limit in value[key]) for key in ("bounds", "rules")}
    return Stage(**{**value, **bounds, "bans": tuple(value["bans"])})


def write_brief(stage: Stage, number: int) -> str:
    """What the tools show of a stage."""
    unit = f" {UNITS[stage.known]}" if UNITS[stage.known] else ""
    if stage.kind == "near":
        side = "at least" if stage.highest else "at most"
        goal = (
            f"Take the hit of stage {stage.origin}, which is in your notebook. Find the library compound that is most "
            f"similar to it (Tanimoto similarity of Morgan fingerprints; not the hit itself) among those whose "
            f"measured {stage.known} is {side} {stage.limit:g}{unit}."
        )
    else:
        which = f"the {stage.count} compounds" if stage.count > 1 else "the compound"
        pool = f" that contain: {stage.group} (SMARTS {GROUPS[stage.group]})" if stage.group else ""
        limits = f", with {write_bounds(stage.bounds)}" if stage.bounds else ""
        side = "highest" if stage.highest else "lowest"
        goal = f"Find {which} with the {side} measured {stage.known} among the library compounds{pool}{limits}."
    lines = [
        f"Stage {number}. {goal}",
        f"Only compounds with a sample for {stage.known} count. You may run {stage.budget} assays of {stage.known} in "
        "this stage, and what you submit must have been assayed.",
    ]
    for group in stage.bans:
        lines.append(
            "New house rule, from this stage to the end of the campaign: submit no compound that contains: "
            f"{group} (SMARTS {GROUPS[group]}). It will not be repeated."
        )
    for bound in stage.rules:
        lines.append(
            "New house rule, from this stage to the end of the campaign: every compound submitted must have "
            f"{write_bounds([bound])}. It will not be repeated."
        )
    return "\n".join(lines)


def write_bounds(bounds: Sequence[Bound]) -> str:
    return " and ".join(f"{name} {side} {limit:g}" for name, side, limit in bounds)


def write_value(value: float) -> str:
    """A measured value as assay reports show it."""
    return f"{value:.7g}"


def pair_of(cas: str) -> tuple[str, str]:
    """What decides a compound's split: no compound is in the libraries of both."""
    return ("molecule", cas)


@functools.cache
def stock(split: Split) -> tuple[str, ...]:
    """CAS numbers that libraries of ``split`` are drawn from."""
    return tuple(
        cas
        for cas in load_molecules()
        if part_of(pair_of(cas), VALIDATION_PERCENT) == split and not _is_literature(cas)
    )


@functools.cache
def literature() -> tuple[str, ...]:
    """CAS numbers of training compounds that no library holds: what predictions are learned from."""
    return tuple(cas for cas in load_molecules() if split_of(pair_of(cas)) == "train" and _is_literature(cas))


def _is_literature(cas: str) -> bool:
    return hashlib.sha256(cas.encode()).digest()[0] % LITERATURE_SHARE == 0 and split_of(pair_of(cas)) == "train"


@dataclass
class Library:
    """The compounds of a campaign by their ids, ``M-001`` and on."""

    compounds: Mapping[str, Molecule]
    samples: dict[str, list[str]] = field(default_factory=dict)

    @staticmethod
    def of(cas_numbers: Sequence[str]) -> Library:
        known = load_molecules()
        return Library({f"M-{i:03d}": known[cas] for i, cas in enumerate(cas_numbers, start=1)})

    def with_sample(self, known: str) -> list[str]:
        """Ids of what can be assayed for a property."""
        if known not in self.samples:
            self.samples[known] = [key for key, molecule in self.compounds.items() if known in molecule.measured]
        return self.samples[known]

    def matching(self, ids: Sequence[str], smarts: str, excluded: Sequence[str]) -> list[str]:
        return [
            key
            for key in ids
            if (not smarts or matches(self.compounds[key].smiles, smarts))
            and not any(matches(self.compounds[key].smiles, other) for other in excluded)
        ]

    def like(self, ids: Sequence[str], origin: str) -> list[tuple[str, float]]:
        """Most similar first, ``origin`` itself left out."""
        at = self.compounds[origin].smiles
        values = {key: round(similarity(at, self.compounds[key].smiles), 3) for key in ids if key != origin}
        return sorted(values.items(), key=lambda item: (-item[1], item[0]))

    def value(self, key: str, known: str) -> float:
        return self.compounds[key].measured[known]


@dataclass(frozen=True)
class Truth:
    """What is right in a stage: the ids to submit, best first, and every id that must have been assayed to know it."""

    hits: tuple[str, ...]
    needed: tuple[str, ...]
    pool: tuple[str, ...]
    clear: bool  # no tie decides


def truth(library: Library, stages: Sequence[Stage], number: int, earlier: Sequence[Truth]) -> Truth:
    """Of stage ``number`` (from 1), after ``earlier`` ones."""
    stage, past = stages[number - 1], stages[:number]
    bans = [GROUPS[group] for other in past for group in other.bans]
    bounds = [bound for other in past for bound in other.rules] + list(stage.bounds)
    pool = library.matching(library.with_sample(stage.known), GROUPS.get(stage.group, ""), bans)
    pool = [key for key in pool if all(meets(library.compounds[key], bound) for bound in bounds)]
    if stage.kind == "near":
        return _nearest(library, stage, pool, earlier[stage.origin - 1].hits[0])
    sign = -1 if stage.highest else 1
    ranked = sorted(pool, key=lambda key: (sign * library.value(key, stage.known), key))
    values = [library.value(key, stage.known) for key in ranked]
    k = stage.count
    clear = len(ranked) > k and values[k - 1] != values[k] and values[0] != values[min(1, len(values) - 1)]
    return Truth(tuple(ranked[:k]), tuple(ranked[:k]), tuple(pool), clear)


def _nearest(library: Library, stage: Stage, pool: Sequence[str], origin: str) -> Truth:
    ranked = library.like(pool, origin)
    for i, (key, likeness) in enumerate(ranked):
        value = library.value(key, stage.known)
        if value >= stage.limit if stage.highest else value <= stage.limit:
            clear = all(likeness != other for _, other in ranked[i + 1 :]) and likeness > 0
            return Truth((key,), tuple(other for other, _ in ranked[: i + 1]), tuple(pool), clear)
    return Truth((), (), tuple(pool), False)


def meets(molecule: Molecule, bound: Bound) -> bool:
    name, side, limit = bound
    value = descriptor(molecule.smiles, name)
    return value <= limit if side == "at most" else value >= limit
