"""What a family of problems is: what is asked, which data it takes, and the steps that lead to the answer.

A family is a template over real data. ``roles`` are the substances that a problem is about, ``needs`` the facts of
their pages, ``constants`` what ``scholar`` has to be asked for, ``inputs`` what the problem's text gives. ``steps`` are
formulas in the order in which they are worked out; the last one is the answer. The same steps give a task its
reference, the expert's program its lines and the closed world its reasoning, so a formula is written once; the tests
hold every family against an independent calculation.

Amounts are in the units that a step names: what pages, texts and policies use may be any other unit of that kind.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from openhorizon.domains.corpora.substances import Substance, atoms

TOLERANCE = 0.01  # relative: what rounding to three digits on the way cannot reach
CELLS = {"face-centred cubic": 4, "body-centred cubic": 2}  # crystal structure → atoms in the unit cell


# Units that a text may use instead.
MASS, TEMPERATURE, PRESSURE = ("mg", "kg", "lb", "oz"), ("°C", "°F"), ("atm", "bar", "mmHg", "psi")


@dataclass(frozen=True)
class Need:
    """A fact of a role's page, in ``unit``. ``how``: "" the number; ``atoms:C`` counts the atoms of an element in the
    formula that the fact gives; ``cell`` is the number of atoms in the unit cell that it names."""

    role: str
    label: str
    unit: str = ""
    how: str = ""


@dataclass(frozen=True)
class Given:
    """A quantity that the text states: drawn from ``low`` to ``high`` in ``unit``. ``times`` names a need whose value
    the range is multiplied with (a fraction of a half-life). ``others`` are units that it may be stated in instead."""

    low: float
    high: float
    unit: str
    others: tuple[str, ...] = ()
    times: str = ""


@dataclass(frozen=True)
class Step:
    name: str
    formula: str
    unit: str


@dataclass(frozen=True)
class Constant:
    """A constant (``title`` is that of its reference text) in ``unit``; a text without a symbol is to be read only."""

    title: str
    unit: str = ""


@dataclass(frozen=True)
class Family:
    """``texts`` name roles and inputs in braces. ``fits`` says which substances may play role ``x``; ``partner`` which
    may play ``y``; every other role is a page by title in ``fixed``. ``report`` are other units to ask for."""

    name: str
    texts: tuple[str, ...]
    needs: Mapping[str, Need]
    inputs: Mapping[str, Given]
    steps: tuple[Step, ...]
    constants: Mapping[str, Constant] = field(default_factory=dict)
    fits: Callable[[Substance], bool] = lambda page: True
    partner: Callable[[Substance], bool] = lambda page: True
    choose: Callable[[Substance], tuple[str, ...]] | None = None  # titles for ``y`` that depend on ``x``
    fixed: Mapping[str, str] = field(default_factory=dict)
    bounds: tuple[float, float] = (1e-15, 1e30)  # that the answer's size must lie in
    report: tuple[str, ...] = ()
    difference: bool = False  # the answer is a difference of temperatures
    prelude: tuple[str, ...] = ()  # program lines that work out a need themselves, from text facts in braces
    tolerance: float = TOLERANCE

    @property
    def unit(self) -> str:
        return self.steps[-1].unit

    @property
    def roles(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*(need.role for need in self.needs.values()), *self.fixed]))


R = {"R": Constant("molar gas constant", "J/(mol K)")}
MOLAR_MASS = Need("x", "Molar mass", "g/mol")


def value_of(need: Need, page: Substance) -> float:
    """What the need comes to, from the fact as the page prints it (the unit is the page's own)."""
    text = page.facts[need.label][0]
    if need.how.startswith("atoms:"):
        return float(atoms(text).get(need.how.removeprefix("atoms:"), 0))
    if need.how == "cell":
        return float(CELLS[text])
    return float(text)


def steps(*steps: tuple[str, str, str]) -> tuple[Step, ...]:
    return tuple(Step(*step) for step in steps)


def _isotope(page: Substance, wanted: str) -> list[str]:
    """Mass numbers of which the page has the mass and ``wanted``."""
    found = [label.split()[1] for label in page.facts if label.startswith("Isotope ") and label.endswith(wanted)]
    return [number for number in found if f"Isotope {number} mass" in page.facts]


def isotopes(family: Family, page: Substance) -> list[str]:
    """Mass numbers that a problem of this family may be about; empty where the family has no isotope."""
    labels = [need.label for need in family.needs.values() if "{isotope}" in need.label]
    wanted = next((label.split()[-1] for label in labels if not label.endswith("mass")), "mass")
    return _isotope(page, wanted) if labels else []
