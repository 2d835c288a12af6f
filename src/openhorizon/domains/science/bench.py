"""Work at the bench: chains of small problems over measured properties of the elements, in short text.

A sheet is a chain of small problems. The prompt has the first note; a result shows the value so far and the next note:

    visit Copper for mass                  Copper mass is 63.55 g/mol. value 63.55 g/mol. note: times 3
    code 63.55 * 3                         63.55 * 3 is 190.7. value 190.7 g. note: search Zn
    search Zn                              Zn is Zinc. value 190.7 g. note: visit Zn for mass
    visit Zinc for mass                    Zinc mass is 65.38 g/mol. value 190.7 g. note: over Zinc
    code 190.7 / 65.38                     190.7 / 65.38 is 2.917. value 2.917 mol. note: end
    Answer: 2.917 mol

A seed problem looks one quantity up and does one thing with it. Two kinds of variants lengthen it (section 3 of the
paper): *harder*, where the result goes into another formula, and *interaction-enriched*, where what is needed has to be
found first (an element by its symbol, a constant by ``scholar``). ``state["variant"]`` names them. The formulas are
those that the units allow: grams over a molar mass are moles, kelvins times the gas constant J/mol.

What differs from the paper: short texts for a small model, no arithmetic in its head, and ``code`` evaluates arithmetic
only (parsed, never executed, so that it needs no sandbox; the natural-text world runs programs in it).
"""

from __future__ import annotations

import functools
import operator
import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from openhorizon.domains.base import (
    Answer,
    Call,
    Domain,
    Environment,
    Expert,
    Observation,
    Split,
    Task,
    Tool,
    Verdict,
    split_of,
)
from openhorizon.domains.corpora.periodic import Value, load_constants, load_elements, load_symbols, short
from openhorizon.domains.science.arithmetic import evaluate
from openhorizon.domains.science.units import Quantity, agrees, in_unit, read_quantity

TOLERANCE = 0.002  # relative, of an answer: the last of four digits
MOST, LEAST = 99_999.0, 0.01  # a value outside is not shown well in four digits
WALKS = 16  # sheets tried for one proposal
MASKED = 0.3  # chance that an element is named by its symbol and has to be searched
WRONG_UNIT = 0.03  # chance that a noisy expert answers in a wrong unit: such an episode fails
SIGNS: dict[str, tuple[str, Callable[[float, float], float]]] = {
    "plus": ("+", operator.add),
    "minus": ("-", operator.sub),
    "times": ("*", operator.mul),
    "over": ("/", operator.truediv),
}
PROPERTIES = ("mass", "radius", "density", "melts", "boils")
FORMULAS: dict[str, tuple[tuple[str, str, str], ...]] = {  # unit → (operation, with what, unit of the result)
    "g/mol": (("times", "number", "g"), ("plus", "mass", "g/mol")),
    "g": (("times", "number", "g"), ("over", "mass", "mol"), ("over", "density", "cm3")),
    "mol": (("times", "mass", "g"), ("times", "Molar", "L"), ("times", "number", "mol")),
    "K": (("minus", "melts", "K"), ("plus", "number", "K"), ("times", "Gas", "J/mol")),
    "J/mol": (("over", "number", "J/mol"), ("plus", "number", "J/mol")),
    "pm": (("times", "number", "pm"), ("plus", "radius", "pm")),
    "g/cm3": (("times", "number", "g"),),
    "cm3": (("times", "density", "g"), ("over", "number", "cm3")),
    "L": (("over", "Molar", "mol"), ("times", "number", "L")),
}

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_NOTE = re.compile(r"note: (.+)$")
_TEXT = {"type": "string", "minLength": 1, "maxLength": 40}


def _schema(**properties: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


@dataclass(frozen=True)
class Step:
    """One call: ``tool`` with ``asked`` (a symbol, a page, a constant, or how the other operand is named), and what the
    value is afterwards. ``note`` is what the step before it showed."""

    tool: str
    note: str
    asked: str
    item: str  # of a visit: the property
    number: str
    unit: str


class ScienceDomain(Domain):
    name = "science"
    system = "Do what each note says: search, visit, scholar or code. End with Answer: value and unit."
    tools = (
        Tool("search", "The element that has a symbol.", _schema(query=_TEXT)),
        Tool("visit", "A property of an element.", _schema(page=_TEXT, item={"type": "string", "enum": [*PROPERTIES]})),
        Tool("scholar", "A physical constant.", _schema(topic=_TEXT)),
        Tool("code", "The value of an arithmetic expression.", _schema(run=_TEXT)),
    )

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        """A sheet of ``horizon`` calls; None where ``WALKS`` drafts ran out of formulas or had a pair (first and last
        element, with the value) of the other split."""
        if horizon < 1:
            raise ValueError(f"science: horizon {horizon} is less than 1")
        for _ in range(WALKS):
            steps = _draft(rng, horizon)
            if steps is None:
                continue
            named = [f"{step.asked} {step.item}" for step in steps if step.tool == "visit"]
            pair = (named[0], f"{named[-1]} {steps[-1].number}")
            if split_of(pair) == split:
                break
        else:
            return None
        kinds = {step.tool for step in steps}
        formulas = sum(step.tool == "code" for step in steps)
        variant = [
            name for name, is_so in (("harder", formulas > 1), ("interaction", kinds & {"search", "scholar"})) if is_so
        ]
        first = steps[0]
        return Task(
            domain=self.name,
            id=f"science-{split}-{horizon}-{seed}",
            split=split,
            prompt=f"Sheet {rng.randrange(1000, 10000)}: do what each note says. note: {first.note}",
            horizon=horizon,
            seed=seed,
            state={"steps": [asdict(step) for step in steps], "variant": "+".join(variant) or "seed"},
            evidence=tuple(f"step {i}" for i in range(1, horizon + 1)),
            verifiers=("answer", "path"),
            reference=f"Answer: {steps[-1].number} {steps[-1].unit}",
            entity_pairs=(pair,),
        )

    def start(self, task: Task) -> BenchEnvironment:
        return BenchEnvironment(task, self.tools)

    def guesses(self, task: Task) -> tuple[str, ...]:
        """The last number without its unit, and in another one: neither is an answer."""
        number, unit = task.reference.removeprefix("Answer: ").split()
        other = next(name for name in FORMULAS if in_unit(Quantity(1.0, name), unit) is None)
        return (f"Answer: {number}", f"Answer: {number} {other}")

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        return _expert(prompt, rng, noise)

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        """Passed: the last value within ``TOLERANCE`` in its unit or a convertible one, and every step done."""
        wanted, unit = task.reference.removeprefix("Answer: ").split()
        missing = [item for item in task.evidence if item not in environment.consulted()]
        given = read_quantity(answer.text.rsplit("Answer:", 1)[-1]) if answer else None
        right = given is not None and agrees(given, float(wanted), unit, TOLERANCE)
        rubric = {"answer": right, "path": not missing}
        score = (1 - len(missing) / len(task.evidence) + right) / 2
        if answer is None:
            reason = "no answer was given"
        elif given is None:
            reason = "the answer is no quantity"
        elif not right:
            reason = f"the answer is not within {TOLERANCE:.1%} of the value, in {unit} or a unit that converts to it"
        else:
            reason = (
                f"{len(missing)} steps were not done, the first is {missing[0]}"
                if missing
                else "value and path are right"
            )
        return Verdict(all(rubric.values()), score, reason, rubric)


class BenchEnvironment(Environment):
    """One sheet. State: how many of its steps are done."""

    def __init__(self, task: Task, tools: Sequence[Tool]) -> None:
        super().__init__(task, tools)
        self.sheet = [Step(**step) for step in task.state["steps"]]
        self.done = 0

    def execute(self, call: Call) -> Observation:
        step = self.sheet[self.done] if self.done < len(self.sheet) else None
        asked = next(iter(call.arguments.values()))
        text = _look(call)
        if text is None:
            return Observation(f"error: no {asked[:20]}. {self._standing()}", error=True)
        if step is None or step.tool != call.name or not _fits(step, call, self._number(), text):
            return Observation(f"{text}. off, {self._standing()}")
        self.done += 1
        return Observation(f"{text}. {self._standing()}", (f"step {self.done}",))

    def _number(self) -> str:
        return self.sheet[self.done - 1].number if self.done else ""

    def _standing(self) -> str:
        """The value so far and the note that is to be done."""
        last = self.sheet[self.done - 1] if self.done else None
        value = f"value {last.number} {last.unit}. " if last and last.number else ""
        return f"{value}note: {self.sheet[self.done].note if self.done < len(self.sheet) else 'end'}"


def _look(call: Call) -> str | None:
    """What a tool finds; None where there is no such thing."""
    values = call.arguments
    match call.name:
        case "search":
            name = load_symbols().get(values["query"])
            return f"{values['query']} is {name}" if name else None
        case "visit":
            found = load_elements().get(values["page"], {}).get(values["item"])
            return f"{values['page']} {values['item']} is {found.number} {found.unit}" if found else None
        case "scholar":
            constant = load_constants().get(values["topic"])
            return f"{values['topic']} constant is {constant.number} {constant.unit}" if constant else None
    assert call.name == "code", call.name
    try:
        return f"{values['run']} is {short(evaluate(values['run']))}"
    except ValueError:
        return None


def _fits(step: Step, call: Call, before: str, text: str) -> bool:
    """Whether a call is the one that a step asks for: of arithmetic, any that comes to the step's value."""
    match step.tool:
        case "search":
            return bool(call.arguments["query"] == step.asked)
        case "visit":
            return (call.arguments["page"], call.arguments["item"]) == (step.asked, step.item)
        case "scholar":
            return bool(call.arguments["topic"] == step.asked)
    return text.rsplit(" is ", 1)[-1] == step.number and text.split(" is ")[0].strip() not in (step.number, before)


def _draft(rng: random.Random, horizon: int) -> list[Step] | None:
    """Steps that cost exactly ``horizon`` calls; None where no formula goes on from a value."""
    steps: list[Step] = []
    start = rng.choice(sorted(load_elements()))
    item = rng.choice(list(load_elements()[start]))
    value = load_elements()[start][item]
    steps += _visit(rng, start, item, value, Value("", ""), horizon > 1)
    while len(steps) < horizon:
        left = horizon - len(steps)
        choices = [
            more
            for formula in FORMULAS[value.unit]
            for more in [_formula(rng, formula, value, left)]
            if more is not None and len(more) <= left
        ]
        if not choices:
            return None
        steps += rng.choice(choices)
        value = Value(steps[-1].number, steps[-1].unit)
    return steps


def _visit(rng: random.Random, element: str, item: str, shown: Value, value: Value, may_mask: bool) -> list[Step]:
    """Look a property up, after a search where only the symbol is named. ``shown`` is the value afterwards; ``value``
    what it was before."""
    if may_mask and rng.random() < MASKED:
        symbol = _symbol_of()[element]
        search = Step("search", f"search {symbol}", symbol, "", value.number, value.unit)
        return [search, Step("visit", f"visit {symbol} for {item}", element, item, shown.number, shown.unit)]
    return [Step("visit", f"visit {element} for {item}", element, item, shown.number, shown.unit)]


def _formula(rng: random.Random, formula: tuple[str, str, str], value: Value, left: int) -> list[Step] | None:
    """The steps of one formula from ``value``; None where its result is out of bounds or no element fits."""
    word, operand, unit = formula
    steps: list[Step] = []
    if operand == "number":
        name = number = str(rng.randint(2, 9))
    elif operand in load_constants():
        name, number = operand, load_constants()[operand].number
        steps = [Step("scholar", f"scholar {operand}", operand, "", value.number, value.unit)]
    else:
        name = rng.choice([element for element, values in sorted(load_elements().items()) if operand in values])
        number = load_elements()[name][operand].number
        steps = _visit(rng, name, operand, value, value, left > 2)
    result = SIGNS[word][1](float(value.number), float(number))
    if not LEAST <= result <= MOST or short(result) in (value.number, number):
        return None
    return [*steps, Step("code", f"{word} {name}", name, "", short(result), unit)]


@functools.cache
def _symbol_of() -> Mapping[str, str]:
    return {name: symbol for symbol, name in load_symbols().items()}


def _expert(prompt: str, rng: random.Random, noise: float) -> Expert:
    """Does what the last note says. What it looked up it finds again in what it has read."""
    note = prompt.rsplit("note: ", 1)[-1]
    read: dict[str, str] = {}  # what was said of a name: an element by "symbol Zn", a number by "Zinc" or "Gas"
    value = ""
    while note != "end":
        call = _call(note, value, read)
        if rng.random() < noise:
            yield _stray(call, rng)  # the answer repeats the note, so that the next call is the one meant
        seen = yield call
        fact = re.match(r"(\w+)(?: \w+)? is (\d+(?:\.\d+)?|\w+)", seen.text)
        if fact and call.name != "code":
            read[f"symbol {fact.group(1)}" if call.name == "search" else fact.group(1)] = fact.group(2)
        found = re.search(r"value (\S+ \S+)\. note", seen.text)
        value = found.group(1) if found else ""
        match = _NOTE.search(seen.text)
        assert match is not None, seen.text
        note = match.group(1)
    number, unit = value.split()
    if rng.random() < noise * WRONG_UNIT / 0.15:
        unit = rng.choice(sorted(FORMULAS))
    yield Answer(f"Answer: {number} {unit}", f"value {number} {unit}")


def _call(note: str, value: str, read: Mapping[str, str]) -> Call:
    """The call that a note asks for, with the thought that looks its parts up."""
    word, *rest = note.split()
    match word:
        case "search":
            return Call("search", {"query": rest[0]}, note)
        case "scholar":
            return Call("scholar", {"topic": rest[0]}, note)
        case "visit":
            page = read.get(f"symbol {rest[0]}", rest[0])
            thought = note if page == rest[0] else f"{rest[0]} is {page}. visit {page} for {rest[2]}"
            return Call("visit", {"page": page, "item": rest[2]}, thought)
    number, name = value.split()[0], rest[0]
    other = name if _NUMBER.fullmatch(name) else read[name]
    thought = f"value {number} {word} {name}" + ("" if other == name else f" is {other}")
    return Call("code", {"run": f"{number} {SIGNS[word][0]} {other}"}, thought)


def _stray(call: Call, rng: random.Random) -> Call:
    """The same call gone wrong: another property, a digit lost, a number taken twice, or no argument at all."""
    values: dict[str, Any] = dict(call.arguments)
    if rng.random() < 0.2:
        return Call(call.name, {}, call.thought)
    match call.name:
        case "visit":
            values["item"] = rng.choice([item for item in ("mass", "radius", "boils") if item != values["item"]])
        case "code":
            left, sign, right = values["run"].split()
            values["run"] = f"{left} {sign} {right[:-1] or '1'}" if rng.random() < 0.5 else f"{left} {sign} {left}"
        case _:
            key = next(iter(values))
            values[key] = f"{values[key]}{rng.choice('aeiou')}"
    return Call(call.name, values, call.thought)
