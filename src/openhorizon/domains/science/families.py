"""The registry of problem families, and the second questions that may follow on an answer."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from openhorizon.domains.science.amounts import AMOUNTS
from openhorizon.domains.science.atoms import ATOMS
from openhorizon.domains.science.family import Family, Given, Step, steps
from openhorizon.domains.science.fluids import FLUIDS


@dataclass(frozen=True)
class Follow:
    """A second question about the answer of a first, which ``steps`` call ``answer`` (in ``unit``)."""

    name: str
    unit: str
    text: str
    inputs: Mapping[str, Given]
    steps: tuple[Step, ...]


_FOLLOWS = (
    Follow(
        "heater",
        "J",
        "How long does a heater of {z1} take to supply that heat?",
        {"z1": Given(50, 3000, "W", ("kW",))},
        steps(("z", "answer / z1", "s")),
    ),
    Follow(
        "pump",
        "g",
        "How long does a feed of {z1} take to deliver that mass?",
        {"z1": Given(0.5, 90, "g/min", ("kg/h",))},
        steps(("z", "answer / z1", "min")),
    ),
    Follow(
        "lid",
        "Pa",
        "What force does that pressure exert on a lid of {z1}?",
        {"z1": Given(0.002, 0.5, "m^2", ("cm^2",))},
        steps(("z", "answer * z1", "N")),
    ),
    Follow(
        "filling",
        "L",
        "How long does it take to fill that volume at {z1}?",
        {"z1": Given(0.2, 20, "L/min", ("mL/s",))},
        steps(("z", "answer / z1", "min")),
    ),
    Follow(
        "made up",
        "mol",
        "In what volume of solution is that amount at a concentration of {z1}?",
        {"z1": Given(0.05, 2, "mol/L", ("mmol/L",))},
        steps(("z", "answer / z1", "L")),
    ),
    Follow(
        "batch",
        "kJ/mol",
        "How much heat is that for {z1}?",
        {"z1": Given(0.2, 30, "mol", ("mmol",))},
        steps(("z", "answer * z1", "kJ")),
    ),
    Follow(
        "charge",
        "V",
        "What work corresponds to a charge of {z1} passing at that voltage?",
        {"z1": Given(500, 90000, "C")},
        steps(("z", "answer * z1", "J")),
    ),
    Follow(
        "block",
        "g/cm^3",
        "What does {z1} of it weigh?",
        {"z1": Given(0.5, 900, "cm^3", ("L",))},
        steps(("z", "answer * z1", "g")),
    ),
    Follow(
        "flight",
        "m/s",
        "How long does it take to cover {z1} at that speed?",
        {"z1": Given(0.1, 40, "m", ("cm", "ft"))},
        steps(("z", "z1 / answer", "s")),
    ),
    Follow(
        "loss",
        "W",
        "How much heat passes in {z1}?",
        {"z1": Given(60, 7200, "s", ("min", "h"))},
        steps(("z", "answer * z1", "J")),
    ),
    Follow(
        "aliquot",
        "mol/L",
        "What amount of substance is there in {z1} of it?",
        {"z1": Given(0.001, 0.2, "L", ("mL",))},
        steps(("z", "answer * z1", "mol")),
    ),
)


@functools.cache
def follows() -> Mapping[str, Follow]:
    return {follow.name: follow for follow in _FOLLOWS}


@functools.cache
def families() -> Mapping[str, Family]:
    return {family.name: family for family in (*AMOUNTS, *FLUIDS, *ATOMS)}
