"""Science without tools: one problem whose data stand in the prompt, reasoned out line by line.

The paper trains its science teacher on reasoning without tools first, then with tools (section 4.2); this world is the
first part. Problems, variants and verifier are those of the sheets. The prompt gives every fact and constant that is
needed, among ``DECOYS`` facts of other substances that are not. The horizon is the number of lines that a solution
takes: one for each datum (picked out, converted), one for each quantity that the text states, one for each step.

    M = 46.06844 g/mol
    m = 0.25 kg = 0.25 * 1000 = 250 g
    n = m / M = 250 / 46.06844 = 5.42671 mol
    Answer: 5.42671 mol

The arithmetic is written out in the line that needs it: a model works it out itself, so this world is for pretrained
models, not for the short-text grain.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from openhorizon.domains.base import (
    Answer,
    Domain,
    Environment,
    Expert,
    NoActions,
    Split,
    Task,
    Verdict,
    part_of,
)
from openhorizon.domains.corpora.substances import atoms
from openhorizon.domains.science.arithmetic import evaluate
from openhorizon.domains.science.families import families, follows
from openhorizon.domains.science.family import CELLS, Family
from openhorizon.domains.science.library import substances
from openhorizon.domains.science.problems import (
    BOILING_POINT,
    MASS_OF,
    Problem,
    need_label,
    needed,
    page_of,
    read,
    solution,
    stated,
    tells,
    value_of_answer,
    write,
)
from openhorizon.domains.science.solver import read_data
from openhorizon.domains.science.units import agrees, conversion, dimension, read_quantity, unit
from openhorizon.domains.science.variants import (
    VALIDATION_PERCENT,
    asked_unit,
    data_given,
    distractor,
    extra_retrieval,
    other_units,
    second_quantity,
    seed,
    sound,
)

DECOYS = 3  # facts in the prompt that are not needed
DRAWS = 80  # problems tried for one proposal
DIGITS = 6  # that a line keeps
UNNOTICED = 0.15  # share of the expert's slips that it never corrects
MAX_HORIZON = 18


class ClosedProblems(Domain):
    name = "science"
    apart = True
    source = "closed"
    system = "Solve the problem from the data given, one line a step, and finish with 'Answer: number unit'."
    tools = ()

    def offers(self, horizons: Sequence[int]) -> tuple[int, ...]:
        """No solution is shorter than its data and a step."""
        return tuple(h for h in horizons if any(low <= h <= high for low, high in _spans().values()))

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        """A problem whose solution takes ``horizon`` lines; None where ``DRAWS`` draws give none."""
        if horizon not in self.offers((horizon,)):
            raise ValueError(f"science/closed: no solution takes {horizon} lines")
        names = [name for name, (low, high) in _spans().items() if low <= horizon <= high]
        for _ in range(DRAWS):
            problem = _draw(rng, split, families()[rng.choice(names)])
            if problem is None or len(_lines(problem)) != horizon:
                continue
            value, unit_ = value_of_answer(problem), problem.report or problem.unit
            if not tells(problem, value):
                break
        else:
            return None
        return Task(
            domain=self.name,
            id=f"science-closed-{split}-{horizon}-{seed}",
            split=split,
            prompt=write(problem),
            horizon=horizon,
            seed=seed,
            state={
                "family": problem.family,
                "variants": list(problem.variants),
                "value": value,
                "unit": unit_,
                "tolerance": problem.template.tolerance,
                "difference": problem.difference,
            },
            evidence=tuple(dict.fromkeys(f"page {title}" for _, title, _ in needed(problem))),
            verifiers=("answer", "unit"),
            reference=f"Answer: {value:.{DIGITS}g} {unit_}",
            entity_pairs=_pairs(problem),
            source=self.source,
        )

    def start(self, task: Task) -> Environment:
        return NoActions(task, self.tools)

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        """Reads the data, then calculates. A slip is a wrong number in a line; ``wait`` corrects it, mostly."""
        lines = _lines(read(prompt))
        values: dict[str, str] = {}
        thought: list[str] = []
        for name, formula, unit_, text in lines:
            try:
                number = _rounded(evaluate(formula, {symbol: float(value) for symbol, value in values.items()}))
            except ValueError:  # an uncorrected slip has led to a root or logarithm that does not exist
                yield Answer("Answer: none", "\n".join(thought))
                return
            if rng.random() < noise:
                wrong = _rounded(float(number) * rng.choice((10.0, 0.1, 1.2, 0.5)))
                thought.append(_line(name, text, formula, values, wrong, unit_))
                if rng.random() < UNNOTICED:
                    values[name] = wrong
                    continue
                thought.append("wait: I check that line.")
            thought.append(_line(name, text, formula, values, number, unit_))
            values[name] = number
        last = lines[-1]
        yield Answer(f"Answer: {values[last[0]]} {last[2]}", "\n".join(thought))

    def guesses(self, task: Task) -> tuple[str, ...]:
        """Every number of the prompt in the answer's unit, and the answer without its unit."""
        numbers = tuple(f"Answer: {number} {task.state['unit']}" for number in (*stated(task.prompt), "1", "0"))
        return (*numbers, f"Answer: {task.state['value']:.{DIGITS}g}") if task.state["unit"] != "" else numbers

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        """``unit``: the answer is a quantity of the right kind; ``answer``: it is the right one."""
        state = task.state
        said = re.split("answer:", answer.text, flags=re.IGNORECASE)[-1] if answer else ""
        quantity = read_quantity(said)
        fits = quantity is not None and dimension(quantity.unit) == dimension(state["unit"])
        right = quantity is not None and agrees(
            quantity, state["value"], state["unit"], state["tolerance"], state["difference"]
        )
        rubric = {"unit": fits, "answer": right}
        if answer is None:
            reason = "no answer was given"
        elif right:
            reason = "the answer is right"
        else:
            reason = "the number is wrong" if fits else "the answer is no quantity of the kind that is asked for"
        return Verdict(right, (fits + right) / 2, reason, rubric)


Written = tuple[str, str, str, str]  # name, formula over numbers and earlier names, unit, what stands before the number


def _draw(rng: random.Random, split: Split, family: Family) -> Problem | None:
    problem = seed(rng, split, family)
    if problem is None:
        return None
    if rng.random() < 0.4:
        problem = extra_retrieval(rng, problem, split) or problem
    for vary in (other_units, second_quantity, asked_unit, distractor):
        if rng.random() < 0.5:
            changed = vary(rng, problem)
            problem = changed if changed is not None and sound(changed) else problem
    problem = data_given(problem)
    data = [*problem.data, *_decoys(rng, problem)]
    rng.shuffle(data)
    problem = replace(problem, data=tuple(data))
    return problem if all(part_of(pair, VALIDATION_PERCENT) == split for pair in _pairs(problem)) else None


def _decoys(rng: random.Random, problem: Problem) -> list[str]:
    """The same facts of other substances."""
    found = []
    labels = [(title, need_label(need, problem.isotope)) for _, title, need in needed(problem) if not need.how]
    taken = {title for title, _ in labels}
    for _ in range(DECOYS if labels else 0):
        title, label = rng.choice(labels)
        pool = _having(label, substances()[title].kind)
        other = rng.choice(pool)
        if other not in taken:
            taken.add(other)
            number, unit_ = substances()[other].facts[label]
            found.append(f"{label} of {other} = {number} {unit_}".strip())
    return found


@functools.cache
def _having(label: str, kind: str) -> tuple[str, ...]:
    return tuple(title for title, page in substances().items() if page.kind == kind and label in page.facts)


@functools.cache
def _spans() -> Mapping[str, tuple[int, int]]:
    """Family → least and most lines of its solutions; families that need a program are left out."""
    spans = {}
    for family in families().values():
        if family.prelude:
            continue
        constants = sum(bool(constant.unit) for constant in family.constants.values())
        least = len(family.needs) + constants + len(family.inputs) + len(family.steps)
        fitting = [f for f in follows().values() if dimension(f.unit) == dimension(family.unit)]
        follow = max((1 + len(f.inputs) + len(f.steps) for f in fitting), default=0)
        # A retrieved input adds a line where it is a mass; a unit that is asked for, one.
        most = least + max(follow, bool(family.report)) + ("m" in family.inputs)
        spans[family.name] = least, min(most, MAX_HORIZON)
    return spans


def _lines(problem: Problem) -> list[Written]:
    """The solution's lines, from what the problem's text says."""
    family = problem.template
    pages, texts = read_data(problem.data)
    roles = {role: family.fixed.get(role) or problem.roles[role] for role in family.roles}
    lines: list[Written] = []
    for symbol, need in family.needs.items():
        number, have = pages[roles[need.role]][need_label(need, problem.isotope)]
        if need.how.startswith("atoms:"):
            wanted = need.how.removeprefix("atoms:")
            lines.append((symbol, str(atoms(number).get(wanted, 0)), "", f"atoms of {wanted} in {number}"))
        elif need.how == "cell":
            lines.append((symbol, str(CELLS[number]), "", f"atoms in a {number} cell"))
        else:
            lines.append(_datum(symbol, number, have, need.unit))
    for symbol, constant in family.constants.items():
        if constant.unit:
            lines.append(_datum(symbol, *texts[constant.title]["Value"], constant.unit))
    for name, given in problem.given().items():
        slot = problem.slots[name]
        if slot.how == MASS_OF:
            number, have = pages[slot.mention]["Molar mass"]
            lines.append(_datum(f"M_{name}", number, have, "g/mol"))
            amount, of = slot.text.split(" ")
            factor = " / 1000" if given.unit == "kg" else ""
            lines.append((name, f"{conversion(amount, of, 'mol')} * M_{name}{factor}", given.unit, ""))
        elif slot.how == BOILING_POINT:
            lines.append(_datum(name, *pages[slot.mention]["Boiling point"], given.unit))
        else:
            number, _, have = slot.text.partition(" ")
            lines.append(_datum(name, number, have, given.unit))
    steps = [(step.name, step.formula, step.unit, step.formula) for step in solution(problem)]
    return [*lines, *steps]


def _datum(symbol: str, number: str, have: str, wanted: str) -> Written:
    if unit(have) == unit(wanted):
        return symbol, number, wanted, ""
    return symbol, conversion(number, have, wanted), wanted, f"{number} {have}"


def _line(name: str, text: str, formula: str, values: Mapping[str, str], number: str, unit_: str) -> str:
    """``n = m / M = 250 / 46.07 = 5.427 mol``; what repeats itself is left out."""
    filled = re.sub(r"[A-Za-z_]\w*", lambda match: _inserted(values.get(match[0], match[0])), formula)
    parts = dict.fromkeys(part for part in (name, text, filled, number) if part)
    return f"{' = '.join(parts)} {unit_}".rstrip()


def _inserted(value: str) -> str:
    return f"({value})" if value.startswith("-") else value


def _rounded(value: float) -> str:
    return f"{value:.{DIGITS}g}"


def _pairs(problem: Problem) -> tuple[tuple[str, str], ...]:
    x = page_of(problem, "x")
    fixed = problem.template.fixed.values()
    others = [problem.pages[name] for name in problem.mentions()]
    pairs = [(x, problem.family), *((x, other) for other in others if other != x and other not in fixed)]
    return tuple(dict.fromkeys(pairs))
