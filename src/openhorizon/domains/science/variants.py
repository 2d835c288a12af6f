"""Seed problems and their variants (section 3): harder reasoning, and more interaction.

``seed`` draws a plain problem: every substance by its title, every quantity in the unit that the solution uses. Each
variant is a function from a problem to a harder one, or None where it cannot be made so; a task names those that it
went through.

    harder reasoning     other_units, asked_unit, second_quantity, distractor
    more interaction     lookup_first, extra_retrieval, carried
    without tools        data_given
"""

from __future__ import annotations

import functools
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from openhorizon.domains.base import Split, part_of
from openhorizon.domains.corpora.substances import Substance
from openhorizon.domains.science.families import families, follows
from openhorizon.domains.science.family import Family, Given, isotopes
from openhorizon.domains.science.library import pages, substances
from openhorizon.domains.science.problems import (
    BOILING_POINT,
    MASS_OF,
    RESULT,
    Problem,
    Slot,
    data_of,
    need_label,
    value_of_answer,
)
from openhorizon.domains.science.units import Quantity, dimension, in_unit, read_quantity

VALIDATION_PERCENT = 20  # of the pairs that are not held out
DRAWS = 40  # tried for one partner, one range
FOLLOWED = (1e-6, 1e7)  # sizes that the answer of a second question may have

_ASIDES = (
    ("The laboratory is at {:.1f} °C that day.", 16, 27),
    ("The barometer on the wall reads {:.1f} kPa.", 96, 104),
    ("The stock bottle still holds {:.2f} kg.", 0.2, 3),
    ("An unrelated sample on the bench weighs {:.1f} g.", 2, 90),
    ("The flask in use has a nominal volume of {:.0f} mL.", 50, 900),
    ("The previous run had taken {:.0f} min.", 12, 300),
    ("The reagent was bought {:.0f} d ago.", 20, 700),
)


def seed(rng: random.Random, split: Split, family: Family, taken: frozenset[str] = frozenset()) -> Problem | None:
    """A plain problem whose substances are not ``taken`` and whose pairs are all of ``split``."""
    pool = _pool(family.name, split)
    if not pool:
        return None
    x = rng.choice(pool)
    page = substances()[x]
    roles = {"x": x}
    if "y" in family.roles and "y" not in family.fixed:
        partners = family.choose(page) if family.choose else _partners(family.name)
        y = _partner(rng, split, x, partners)
        if y is None:
            return None
        roles["y"] = y
    if taken & {*roles.values()} or {*roles.values()} & {*family.fixed.values()}:
        return None
    numbers = isotopes(family, page)
    isotope = rng.choice(numbers) if numbers else ""
    scales = {
        symbol: in_unit(Quantity(page.number(label), page.facts[label][1]), need.unit) or 1.0
        for symbol, need in family.needs.items()
        if need.role == "x" and not need.how and (label := need_label(need, isotope)) in page.facts
    }
    problem = Problem(
        family.name,
        rng.randrange(len(family.texts)),
        {**family.fixed, **roles} if family.fixed else roles,
        {name: Slot(_draw(rng, given, scales)) for name, given in family.inputs.items()},
        isotope=isotope,
        pages={title: title for title in (*roles.values(), *family.fixed.values())},
    )
    return problem if sound(problem) else None


def sound(problem: Problem, results: Sequence[Quantity] = ()) -> bool:
    """Whether the problem has an answer of a size that its family allows."""
    try:
        plain = value_of_answer(replace(problem, follow="", report=""), results)
        last = value_of_answer(problem, results)
    except ValueError:
        return False
    low, high = problem.template.bounds
    size = plain if problem.family in _SIGNED else abs(plain)
    return low <= size <= high and 1e-15 < abs(last) < 1e30


_SIGNED = ("cell voltage",)  # what is asked for has a sign


@functools.cache
def _pool(name: str, split: Split) -> tuple[str, ...]:
    """Titles that may be role ``x`` of the family, by split."""
    family = families()[name]
    return tuple(
        t
        for t, page in substances().items()
        if _plays(family, page) and part_of((t, name), VALIDATION_PERCENT) == split
    )


def _plays(family: Family, page: Substance) -> bool:
    own = [need for need in family.needs.values() if need.role == "x"]
    if any("{isotope}" not in need.label and need.label not in page.facts for need in own):
        return False
    tied = any("{isotope}" in need.label for need in own)
    return page.title not in family.fixed.values() and family.fits(page) and (not tied or bool(isotopes(family, page)))


@functools.cache
def _partners(name: str) -> tuple[str, ...]:
    family = families()[name]
    labels = [need.label for need in family.needs.values() if need.role == "y"]
    known = [page for page in substances().values() if all(label in page.facts for label in labels)]
    return tuple(page.title for page in known if family.partner(page))


def _partner(rng: random.Random, split: Split, x: str, titles: Sequence[str]) -> str | None:
    """One of ``titles`` that forms a pair of ``split`` with ``x``."""
    for _ in range(DRAWS):
        y = rng.choice(titles) if titles else x
        if y != x and part_of((x, y), VALIDATION_PERCENT) == split:
            return y
    return None


def _draw(rng: random.Random, given: Given, scales: Mapping[str, float]) -> str:
    scale = scales.get(given.times, 1.0)
    low, high = given.low * scale, given.high * scale
    # Ranges over decades are drawn evenly in the logarithm, as quantities occur.
    value = low * (high / low) ** rng.random() if high > 20 * low else rng.uniform(low, high)
    return _stated(value, given.unit)


def _stated(value: float, unit: str) -> str:
    digits = 4 if unit in ("K", "°C", "°F") else 3
    return f"{float(f'{value:.{digits}g}'):.{digits}g} {unit}".strip()


def _named(problem: Problem, variant: str) -> tuple[str, ...]:
    return (*problem.variants, variant)


def other_units(rng: random.Random, problem: Problem) -> Problem | None:
    """One input is stated in another unit than the solution uses."""
    given = problem.given()
    names = [name for name, slot in problem.slots.items() if not slot.how and given[name].others]
    if not names:
        return None
    name = rng.choice(names)
    quantity = read_quantity(problem.slots[name].text)
    unit = rng.choice(given[name].others)
    assert quantity
    value = in_unit(quantity, unit)
    assert value is not None, (quantity, unit)
    slots = {**problem.slots, name: Slot(_stated(value, unit))}
    return replace(problem, slots=slots, variants=_named(problem, "other units"))


def asked_unit(rng: random.Random, problem: Problem) -> Problem | None:
    """The answer is asked for in another unit than it comes in."""
    if problem.follow or problem.report or not problem.template.report:
        return None
    unit = rng.choice(problem.template.report)
    return replace(problem, report=unit, variants=_named(problem, "asked unit"))


def second_quantity(rng: random.Random, problem: Problem, results: Sequence[Quantity] = ()) -> Problem | None:
    """A second question takes the answer of the first as its input."""
    if problem.follow or problem.report:
        return None
    fitting = [f for f in follows().values() if dimension(f.unit) == dimension(problem.template.unit)]
    if not fitting or problem.difference:
        return None
    follow = rng.choice(fitting)
    slots = {**problem.slots, **{name: Slot(_draw(rng, given, {})) for name, given in follow.inputs.items()}}
    changed = replace(problem, follow=follow.name, slots=slots, variants=_named(problem, "second quantity"))
    try:
        size = abs(value_of_answer(changed, results))
    except ValueError:
        return None
    return changed if FOLLOWED[0] <= size <= FOLLOWED[1] else None


def distractor(rng: random.Random, problem: Problem) -> Problem | None:
    """A sentence with a number that does not matter stands in front."""
    if problem.aside:
        return None
    text, low, high = rng.choice(_ASIDES)
    return replace(problem, aside=text.format(rng.uniform(low, high)), variants=_named(problem, "distractor"))


def lookup_first(rng: random.Random, problem: Problem) -> Problem | None:
    """A substance is described instead of named: its page must be searched for."""
    names = [name for name in problem.mentions() if problem.pages[name] == name and name not in _fixed(problem)]
    if not names:
        return None
    title = rng.choice(names)
    described = [
        text for text in descriptions(substances()[title]) if (pages().search(query_of(text)) or ("",))[0] == title
    ]
    if not described:
        return None
    mention = rng.choice(described)
    roles = {role: mention if name == title else name for role, name in problem.roles.items()}
    slots = {
        name: replace(slot, mention=mention) if slot.mention == title else slot for name, slot in problem.slots.items()
    }
    known = {name: page for name, page in problem.pages.items() if name != title}
    return replace(
        problem, roles=roles, slots=slots, pages={**known, mention: title}, variants=_named(problem, "look-up first")
    )


def extra_retrieval(
    rng: random.Random,
    problem: Problem,
    split: Split,
    taken: frozenset[str] = frozenset(),
    results: Sequence[Quantity] = (),
) -> Problem | None:
    """An input is not stated: it follows from a fact of another substance's page."""
    given = problem.template.inputs
    free = [name for name, slot in problem.slots.items() if not slot.how and name in given and not given[name].times]
    usable = [name for name in free if given[name].unit in ("g", "kg", "K") and given[name].high > 1]
    main = problem.pages[problem.roles["x"]]
    if not usable:
        return None
    name = rng.choice(usable)
    wanted = given[name]
    if wanted.unit == "K":
        pool = [t for t, boils in _boiling() if wanted.low <= boils <= wanted.high]
    else:
        pool = list(_massive())
    title = _partner(rng, split, main, [t for t in pool if t not in taken and t not in problem.pages.values()])
    if title is None:
        return None
    if wanted.unit == "K":
        slot = Slot("", BOILING_POINT, title)
    else:
        quantity = read_quantity(problem.slots[name].text)
        assert quantity
        mass_g = in_unit(quantity, "g")
        assert mass_g is not None
        slot = Slot(_stated(mass_g / substances()[title].number("Molar mass"), "mol"), MASS_OF, title)
    changed = replace(
        problem,
        slots={**problem.slots, name: slot},
        pages={**problem.pages, title: title},
        variants=_named(problem, "extra retrieval"),
    )
    return changed if sound(changed, results) else None


def carried(rng: random.Random, problem: Problem, results: Sequence[Quantity]) -> Problem | None:
    """An input is the result of an earlier problem of the sheet."""
    given = problem.template.inputs
    choices = []
    for name, slot in problem.slots.items():
        wanted = given.get(name)
        if slot.how or wanted is None or wanted.times:
            continue
        for number, result in enumerate(results, 1):
            value = in_unit(result, wanted.unit)
            if value is not None and wanted.low / 5 <= value <= wanted.high * 5:
                choices.append((name, number))
    if not choices:
        return None
    name, number = rng.choice(choices)
    changed = replace(
        problem,
        slots={**problem.slots, name: Slot(str(number), RESULT)},
        variants=_named(problem, "carried"),
    )
    return changed if sound(changed, results) else None


def data_given(problem: Problem) -> Problem:
    """Everything that would be looked up stands in the text."""
    return replace(problem, data=data_of(problem), variants=_named(problem, "data given"))


def _fixed(problem: Problem) -> tuple[str, ...]:
    return tuple(problem.template.fixed.values())


@functools.cache
def _boiling() -> tuple[tuple[str, float], ...]:
    known = [page for page in substances().values() if page.kind == "compound" and "Boiling point" in page.facts]
    return tuple((page.title, page.number("Boiling point")) for page in known)


@functools.cache
def _massive() -> tuple[str, ...]:
    return tuple(title for title, page in substances().items() if page.kind in ("compound", "element"))


def descriptions(page: Substance) -> tuple[str, ...]:
    """Ways to speak of a substance without its title."""
    if page.kind == "element":
        return f"the element with symbol {page.facts['Symbol'][0]}", (
            f"the element with atomic number {page.facts['Atomic number'][0]}"
        )
    if page.kind == "ion":
        return (f"the ion of formula {page.facts['Ion formula'][0]}",)
    synonyms = [name for name in page.names if not name.startswith("CAS ")]
    by_name = tuple(f"the compound known as {name}" for name in synonyms[:3])
    return f"the compound with CAS number {page.facts['CAS number'][0]}", *by_name


_PREFIXES = {
    "the element with symbol": "element",
    "the element with atomic number": "atomic number",
    "the ion of formula": "ion",
    "the compound with CAS number": "CAS",
    "the compound known as": "",
}


def query_of(mention: str) -> str:
    """What to search for: the description's own words; empty where ``mention`` is a title."""
    for prefix, word in _PREFIXES.items():
        if mention.startswith(prefix):
            return f"{word} {mention.removeprefix(prefix).strip()}".strip()
    return ""
