"""Problems: a family's template filled with substances and quantities, as text, as numbers, and read back from text.

    Problem 2. What is the vapour pressure of the compound known as grain alcohol at <T> by the Antoine equation?
    Here <T> is the normal boiling point of Acetone.
    Give the answer in mmHg.
    Reference: Antoine (vapor pressure).

``write`` and ``read`` are each other's inverse up to what only the proposer knows (which page a description means).
``value_of_answer`` computes the answer from what the pages print.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from openhorizon.domains.science.arithmetic import evaluate
from openhorizon.domains.science.families import families, follows
from openhorizon.domains.science.family import Family, Given, Need, value_of
from openhorizon.domains.science.library import substances, texts
from openhorizon.domains.science.units import Quantity, conversion, in_unit, read_quantity

MASS_OF, BOILING_POINT, RESULT = "the mass of", "the normal boiling point of", "the result of problem"


@dataclass(frozen=True)
class Slot:
    """How an input is given: as a quantity; as the mass of an amount (``text``) of a substance; as a substance's
    boiling point; as the result of an earlier problem (``text`` is its number)."""

    text: str
    how: str = ""
    mention: str = ""

    def phrase(self) -> str:
        if self.how == MASS_OF:
            return f"{MASS_OF} {self.text} of {self.mention}"
        return f"{self.how} {self.mention or self.text}" if self.how else self.text


@dataclass(frozen=True)
class Problem:
    """``roles`` maps a role to how the text names it, ``pages`` every such name to the page that it means."""

    family: str
    wording: int
    roles: Mapping[str, str]
    slots: Mapping[str, Slot]
    isotope: str = ""
    follow: str = ""
    report: str = ""
    aside: str = ""  # a sentence that does not matter
    data: tuple[str, ...] = ()  # facts and constants that the text gives
    variants: tuple[str, ...] = ()
    pages: Mapping[str, str] = field(default_factory=dict)

    @property
    def template(self) -> Family:
        return families()[self.family]

    def mentions(self) -> list[str]:
        """Every name of a substance in the text, in order."""
        return [*self.roles.values(), *(slot.mention for slot in self.slots.values() if slot.mention)]

    def given(self) -> Mapping[str, Given]:
        """The inputs of the question and of the one behind it."""
        return {**self.template.inputs, **(follows()[self.follow].inputs if self.follow else {})}

    @property
    def unit(self) -> str:
        """The unit that the answer is worked out in, before it is converted to the one that is asked for."""
        return follows()[self.follow].steps[-1].unit if self.follow else self.template.unit

    @property
    def difference(self) -> bool:
        return self.template.difference and not self.follow


@dataclass(frozen=True)
class Line:
    """One step of a solution: ``name = formula`` in ``unit``."""

    name: str
    formula: str
    unit: str


def need_label(need: Need, isotope: str) -> str:
    return need.label.replace("{isotope}", isotope)


def write(problem: Problem) -> str:
    """The problem's text, without its number."""
    family = problem.template
    asked = {name: f"<{name}>" if slot.how else slot.text for name, slot in problem.slots.items()}
    core = family.texts[problem.wording].format(**problem.roles, **asked, isotope=problem.isotope)
    heres = [f"Here <{name}> is {slot.phrase()}." for name, slot in problem.slots.items() if slot.how]
    lines = [" ".join(filter(None, (problem.aside, core, *heres)))]
    if problem.follow:
        lines.append(follows()[problem.follow].text.format(**asked))
    if problem.report:
        lines.append(f"Give the answer in {problem.report}.")
    if problem.data:
        lines.append(f"Data: {'; '.join(problem.data)}.")
    elif family.constants:
        lines.append(f"Reference: {'; '.join(constant.title for constant in family.constants.values())}.")
    return "\n".join(lines)


def read(text: str) -> Problem:
    """The problem that ``write`` put so; ``variants`` and ``pages`` are not to be read."""
    lines = text.strip().splitlines()
    matches = ((name, wording, pattern.search(lines[0])) for name, wording, pattern in _patterns())
    name, wording, match = next((found for found in matches if found[2]), ("", 0, None))
    if match is None:
        raise ValueError(f"no family asks this: {lines[0]}")
    found = match.groupdict()
    family = families()[name]
    slots = {key: _slot(key, found[key], lines[0]) for key in family.inputs}
    follow = ""
    for other in follows().values():
        second = re.fullmatch(_pattern(other.text), lines[1]) if len(lines) > 1 else None
        if second is not None:
            follow = other.name
            slots |= {key: _slot(key, value, lines[0]) for key, value in second.groupdict().items()}
    report = re.search(r"^Give the answer in (.+)\.$", text, re.MULTILINE)
    data = re.search(r"^Data: (.+)\.$", text, re.MULTILINE)
    return Problem(
        name,
        wording,
        {role: found[role] for role in family.roles if role in found},
        slots,
        isotope=found.get("isotope", ""),
        follow=follow,
        report=report[1] if report else "",
        data=tuple(data[1].split("; ")) if data else (),
    )


def _slot(name: str, text: str, line: str) -> Slot:
    if text != f"<{name}>":
        return Slot(text)
    here = re.search(rf"Here <{name}> is (.+?)\.(?= Here|$)", line)
    assert here, f"<{name}> is not explained: {line}"
    mass = re.fullmatch(rf"{MASS_OF} (\S+ \S+) of (.+)", here[1])
    if mass:
        return Slot(mass[1], MASS_OF, mass[2])
    if here[1].startswith(BOILING_POINT):
        return Slot("", BOILING_POINT, here[1].removeprefix(BOILING_POINT).strip())
    return Slot(here[1].removeprefix(RESULT).strip(), RESULT)


@functools.cache
def _patterns() -> tuple[tuple[str, int, re.Pattern[str]], ...]:
    return tuple(
        (family.name, wording, re.compile(_pattern(text)))
        for family in families().values()
        for wording, text in enumerate(family.texts)
    )


def _pattern(text: str) -> str:
    parts = re.split(r"\{(\w+)\}", text)
    return "".join(rf"(?P<{part}>.+?)" if i % 2 else re.escape(part) for i, part in enumerate(parts))


def solution(problem: Problem) -> list[Line]:
    """The steps from the data to the answer in the unit that is asked for; the last line is the answer."""
    family = problem.template
    lines = [Line(s.name, s.formula.replace("{isotope}", problem.isotope), s.unit) for s in family.steps]
    if problem.follow:
        follow = follows()[problem.follow]
        last = lines[-1]
        lines.append(Line("answer", conversion(last.name, last.unit, follow.unit), follow.unit))
        lines += [Line(step.name, step.formula, step.unit) for step in follow.steps]
    if problem.report:
        last = lines[-1]
        lines.append(Line("result", conversion(last.name, last.unit, problem.report), problem.report))
    return lines


def needed(problem: Problem) -> list[tuple[str, str, Need]]:
    """(symbol, page, need) of every fact that the solution takes from a page, those behind slots included."""
    found = [(symbol, page_of(problem, need.role), need) for symbol, need in problem.template.needs.items()]
    for name, slot in problem.slots.items():
        if slot.how == MASS_OF:
            found.append((f"M_{name}", problem.pages[slot.mention], Need(name, "Molar mass", "g/mol")))
        elif slot.how == BOILING_POINT:
            found.append((name, problem.pages[slot.mention], Need(name, "Boiling point", "K")))
    return found


def page_of(problem: Problem, role: str) -> str:
    """The page that a role means, where it is known."""
    return problem.template.fixed.get(role) or problem.pages[problem.roles[role]]


def texts_of(problem: Problem) -> list[str]:
    """The reference texts that the solution takes constants and correlations from."""
    return [] if problem.data else [constant.title for constant in problem.template.constants.values()]


def data_of(problem: Problem) -> tuple[str, ...]:
    """Everything that would have to be looked up, as a ``Data:`` line gives it."""
    found = []
    for _, title, need in needed(problem):
        label = need_label(need, problem.isotope)
        number, unit = substances()[title].facts[label]
        found.append(f"{label} of {title} = {number} {unit}".strip())
    for constant in problem.template.constants.values():
        if constant.unit:
            number, unit = texts()[constant.title].value
            found.append(f"{constant.title} = {number} {unit}")
    return tuple(dict.fromkeys(found))


def value_of_answer(problem: Problem, results: Sequence[Quantity] = ()) -> float:
    """The answer in the unit asked for, unrounded; ``results`` are those of the problems before this one.

    Raises:
        ValueError: there is no such number (a page lacks a fact, or the mathematics does).
    """
    family = problem.template
    names: dict[str, float] = {}
    for symbol, title, need in needed(problem):
        label = need_label(need, problem.isotope)
        page = substances()[title]
        if label not in page.facts:
            raise ValueError(f"{title} has no {label}")
        if need.how == "count":
            names[symbol] = _atoms_of(problem)
        elif need.how != "text":
            number = value_of(Need(need.role, label, need.unit, need.how), page)
            names[symbol] = number if need.how else _converted(Quantity(number, page.facts[label][1]), need.unit)
    for symbol, constant in family.constants.items():
        if constant.unit:
            printed, unit = texts()[constant.title].value
            names[symbol] = _converted(Quantity(float(printed), unit), constant.unit)
    for name, given in problem.given().items():
        slot = problem.slots[name]
        if slot.how == MASS_OF:
            amount = read_quantity(slot.text)
            assert amount
            mass_g = _converted(amount, "mol") * names[f"M_{name}"]
            names[name] = _converted(Quantity(mass_g, "g"), given.unit)
        elif slot.how == RESULT:
            names[name] = _converted(results[int(slot.text) - 1], given.unit)
        elif not slot.how:
            quantity = read_quantity(slot.text)
            assert quantity, slot.text
            names[name] = _converted(quantity, given.unit)
        else:
            names[name] = _converted(Quantity(names[name], "K"), given.unit)
    value = 0.0
    for line in solution(problem):
        value = names[line.name] = evaluate(line.formula, names)
    return value


def stated(text: str) -> tuple[str, ...]:
    """Every number that a problem's text shows."""
    return tuple(dict.fromkeys(re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e-?\d+)?", text)))


def tells(problem: Problem, value: float) -> bool:
    """Whether a number of the text would pass for the answer: such a problem could be solved by copying."""
    tolerance = problem.template.tolerance * abs(value)
    return any(abs(float(number) - value) <= tolerance for number in (*stated(write(problem)), "1"))


def _atoms_of(problem: Problem) -> float:
    """How many atoms of role ``y`` the formula of role ``x`` has: what counting in the SMILES must give."""
    x, y = (substances()[page_of(problem, role)] for role in ("x", "y"))
    return value_of(Need("x", "Formula", how=f"atoms:{y.facts['Symbol'][0]}"), x)


def _converted(quantity: Quantity, unit: str) -> float:
    value = in_unit(quantity, unit)
    if value is None:
        raise ValueError(f"{quantity} is not in {unit}")
    return value
