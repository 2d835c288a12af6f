"""The expert of the screening campaigns: screen, rank, assay the most promising, learn, assay on, submit.

It sees briefs, tables, reports and its notebook. House rules and earlier hits it reads from the notebook, where it
wrote them down when they were said: a brief says a rule once. It may be wrong where an estimate is: then the true hit
was never assayed, and the verifier refuses the campaign.
"""

from __future__ import annotations

import random
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from openhorizon.domains.base import Answer, Call, Expert, Observation
from openhorizon.domains.scientific_agent.briefs import write_value
from openhorizon.domains.scientific_agent.laboratory import CLOSED, MOST_DESCRIBED, MOST_PREDICTED

ALSO = ("MolWt", "HeavyAtomCount", "MolLogP", "TPSA", "NumHDonors", "RingCount")  # looked at besides what is asked
REFIT = 6  # assays from which on the second half waits for a new fit
RUIN = 0.05  # share of strays at an assay that spend it elsewhere

_REAL = r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?"
_GOAL = re.compile(
    r"Find (?:the (?P<count>\d+) compounds|the compound) with the (?P<side>highest|lowest) measured (?P<known>[\w ]+?) "
    r"among the library compounds(?: that contain: \w+ \(SMARTS (?P<smarts>.+?)\)(?=\.|,))?"
    r"(?:, with (?P<bounds>.+?))?\.(?: |$)",
    re.MULTILINE,
)
_NEAR = re.compile(
    r"hit of stage (?P<origin>\d+).+measured (?P<known>[\w ]+) is (?P<side>at least|at most) (?P<limit>"
    + _REAL
    + r")(?: \S+)?\.$",
    re.MULTILINE,
)
_NUMBER = re.compile(r"Stage (\d+)\. ")
_BUDGET = re.compile(r"You may run (\d+) assays")
_BAN = re.compile(r"submit no compound that contains: (\w+) \(SMARTS (.+)\)\.")
_RULE = re.compile(r"every compound submitted must have (.+?)\. It will not")
_BOUND = re.compile(r"(\w+) (at most|at least) (" + _REAL + ")")
_PAGES = re.compile(r"page \d+ of (\d+)\. Saved as (\S+)\.csv")
_SAVED = re.compile(r"Saved as (\S+\.csv)\.")
_VALUE = re.compile(r"Measured value: (" + _REAL + ")")
_NOTED_BAN = re.compile(r"House rule: exclude (\S+)")
_NOTED_RULE = re.compile(r"House rule: (\w+) (at most|at least) (" + _REAL + ")")
_NOTED_HIT = re.compile(r"Hit of stage (\d+): (M-\d{3})(?: (" + _REAL + "))?")

Bound = tuple[str, str, str]
Saying = Generator[Call, Observation, str]
Finding = Generator[Call, Observation, list[tuple[str, float]]]


@dataclass(frozen=True)
class Memory:
    """What the notebook says."""

    bans: tuple[str, ...]
    rules: tuple[Bound, ...]
    hits: dict[str, tuple[str, str]]  # of a stage: the best compound, and its measured value or ""


def expert(prompt: str, rng: random.Random, noise: float) -> Expert:
    assert "campaign" in prompt, f"not a molecules prompt: {prompt}"
    chemist = Chemist(rng, noise)
    text = yield from chemist.do("read_brief", "I start with the brief of the first stage.")
    while CLOSED not in text:
        text = yield from chemist.stage(text)
    yield (yield from chemist.conclude())


class Chemist:
    """Works off one stage after the other; keeps nothing but what it counts on finding in the notebook."""

    def __init__(self, rng: random.Random, noise: float) -> None:
        self.rng, self.noise = rng, noise

    def do(self, tool: str, thought: str, /, **values: object) -> Saying:
        """One call; strays come before it, each with chance ``noise``."""
        while self.rng.random() < self.noise:
            yield self._slip(tool, values)
        return (yield Call(tool, values, thought)).text

    def stage(self, brief: str) -> Saying:
        """From a brief to the next one."""
        number, budget = _first(_NUMBER, brief), int(_first(_BUDGET, brief))
        new_bans = tuple(smarts for _, smarts in _BAN.findall(brief))
        new_rules = tuple(bound for said in _RULE.findall(brief) for bound in _BOUND.findall(said))
        memory = Memory((), (), {})
        if number != "1":
            memory = read_notes(
                (yield from self.do("notebook_read", "House rules and earlier hits are in my notebook."))
            )
        bans, rules = (*memory.bans, *new_bans), (*memory.rules, *new_rules)
        goal, near = _GOAL.search(brief), _NEAR.search(brief)
        if near:
            hits = yield from self._near(near, memory.hits[near["origin"]][0], bans, rules, budget)
        else:
            assert goal, f"no goal: {brief}"
            hits = yield from self._best(goal, bans, rules, budget)
        count = int(goal["count"] or 1) if goal else 1
        # What was not found is made up for with anything: a stage is closed, right or wrong.
        spare = (f"M-{i:03d}" for i in range(1, 99) if f"M-{i:03d}" not in [key for key, _ in hits])
        best = [key for key, _ in hits] + [next(spare) for _ in range(count - len(hits))]
        measured = [f"{key} {write_value(value)}" for key, value in hits]
        lines = [f"Hit of stage {number}: {(measured or best)[0]}"]
        lines += [f"Measured: {', '.join(measured)}."] if hits else ["Not measured."]
        lines += [f"House rule: exclude {smarts}" for smarts in new_bans]
        lines += [f"House rule: {' '.join(bound)}" for bound in new_rules]
        thought = "I note the hit" + (
            " and the new rule, which will not be repeated." if new_bans or new_rules else "."
        )
        yield from self.do("notebook_write", thought, title=f"Stage {number}", text="\n".join(lines))
        return (yield from self.do("submit", f"The stage is settled: {', '.join(best)}.", ids=best))

    def conclude(self) -> Generator[Call, Observation, Answer]:
        hits = read_notes((yield from self.do("notebook_read", "The hits of all stages are in my notebook."))).hits
        named = "; ".join(" ".join(hits[number]).strip() for number in sorted(hits, key=int))
        return Answer(f"Answer: {named}", "These are the best hits with their values, stage by stage.")

    def _best(self, goal: re.Match[str], bans: Sequence[str], rules: Sequence[Bound], budget: int) -> Finding:
        """Screen the pool, rank it by prediction, assay the top; with enough budget, fit again half-way."""
        known, count = goal["known"], int(goal["count"] or 1)
        bounds = [*_BOUND.findall(goal["bounds"] or ""), *rules]
        values: dict[str, object] = {"smarts": goal["smarts"]} if goal["smarts"] else {}
        if bans:
            values["exclude"] = list(bans)
        pool = yield from self._pages("search_library", "I list the candidates.", {**values, "assay": known})
        pool = yield from self._within(pool, bounds)
        sign = -1 if goal["side"] == "highest" else 1
        measured: dict[str, float] = {}
        parts = [budget - budget // 2, budget // 2] if budget >= REFIT else [budget]
        for i, part in enumerate(parts):
            rest = [key for key in pool if key not in measured]
            if not rest:
                break
            thought = "I fit again with the new values before I go on." if i else "I rank the candidates by prediction."
            ranked = yield from self._ranked(known, rest, thought)
            for key, estimate in sorted(ranked, key=lambda item: (sign * item[1], item[0]))[:part]:
                thought = f"{key} is next, with {known} estimated at {estimate:g}."
                value = yield from self._assay(key, known, rest, thought)
                if value is not None:
                    measured[value[0]] = value[1]
        return sorted(measured.items(), key=lambda item: (sign * item[1], item[0]))[:count]

    def _near(
        self, near: re.Match[str], origin: str, bans: Sequence[str], rules: Sequence[Bound], budget: int
    ) -> Finding:
        """Down the list of the most similar, until one measures as asked."""
        known, limit = near["known"], float(near["limit"])
        values: dict[str, object] = {"id": origin, "assay": known}
        if bans:
            values["exclude"] = list(bans)
        thought = f"Stage {near['origin']}'s hit was {origin}. I list what is similar to it."
        listed = yield from self._pages("similarity_search", thought, values, most=1)
        pool = yield from self._within(listed, rules)
        for key in pool[:budget]:
            value = yield from self._assay(key, known, pool, f"{key} is the most similar of those left.")
            if value and (value[1] >= limit if near["side"] == "at least" else value[1] <= limit):
                return [value]
        return []

    def _pages(
        self, tool: str, thought: str, values: dict[str, object], most: int = 99
    ) -> Generator[Call, Observation, list[str]]:
        """The ids of a table, all pages of it or the first ``most``."""
        found: list[str] = []
        page = pages = 1
        while page <= min(pages, most):
            text = yield from self.do(tool, thought, **values, **({"page": page} if page > 1 else {}))
            match = _PAGES.search(text)
            assert match, f"no table: {text}"
            pages, thought = int(match[1]), f"There is more: page {page + 1}."
            found += _rows(text)
            page += 1
        return found

    def _within(self, pool: list[str], bounds: Sequence[Bound]) -> Generator[Call, Observation, list[str]]:
        """What of the pool meets the bounds: descriptors first, then a few lines of Python over their tables."""
        if not bounds or not pool:
            return pool
        names = list(dict.fromkeys([name for name, _, _ in bounds] + list(ALSO)))
        files: list[str] = []
        for start in range(0, len(pool), MOST_DESCRIBED):
            ids = pool[start : start + MOST_DESCRIBED]
            thought = f"I need {', '.join(dict.fromkeys(name for name, _, _ in bounds))} of {ids[0]} to {ids[-1]}."
            files += _SAVED.findall((yield from self.do("compute_descriptors", thought, ids=ids, descriptors=names)))
        text = yield from self.do(
            "run_python", "Now I sort out what meets the limits.", code=write_filter(files, bounds)
        )
        kept = set(re.findall(r"^M-\d{3}", text, re.MULTILINE))
        return [key for key in pool if key in kept]

    def _ranked(self, known: str, ids: Sequence[str], thought: str) -> Finding:
        """With what is predicted of each."""
        values: dict[str, float] = {}
        for start in range(0, len(ids), MOST_PREDICTED):
            part = list(ids[start : start + MOST_PREDICTED])
            text = yield from self.do("predict", thought, property=known, ids=part)
            lines = [line.split(" | ") for line in text.splitlines()[2:]]
            values.update((line[0], float(line[-1])) for line in lines)
        return list(values.items())

    def _assay(
        self, key: str, known: str, others: Sequence[str], thought: str
    ) -> Generator[Call, Observation, tuple[str, float] | None]:
        if self.rng.random() < self.noise * RUIN:
            key = self.rng.choice(list(others))
        text = yield from self.do("assay", thought, id=key, property=known)
        match = _VALUE.search(text)
        return (key, float(match[1])) if match else None

    def _slip(self, tool: str, values: dict[str, object]) -> Call:
        """A wrong pattern or id, an argument forgotten, a script with a mistake, a needless look."""
        roll = self.rng.random()
        if "smarts" in values and roll < 0.5:
            return Call(tool, {**values, "smarts": f"{values['smarts']}("}, "I list the candidates.")
        if "id" in values and roll < 0.5:
            return Call(tool, {**values, "id": "M-999"}, "I take the next one.")
        if "code" in values and roll < 0.7:
            return Call(
                tool, {"code": str(values["code"]).replace("import csv\n", "")}, "A few lines of Python will do."
            )
        if values and roll < 0.7:
            key = self.rng.choice(sorted(values))
            return Call(tool, {name: value for name, value in values.items() if name != key} | {"unit": "K"}, "")
        return Call("read_brief", {}, "I look at the brief again.") if roll < 0.9 else Call("notebook_read", {}, "")


def read_notes(text: str) -> Memory:
    """What the expert's own entries say."""
    hits = {number: (key, value) for number, key, value in _NOTED_HIT.findall(text)}
    return Memory(tuple(_NOTED_BAN.findall(text)), tuple(_NOTED_RULE.findall(text)), hits)


def write_filter(files: Sequence[str], bounds: Sequence[Bound]) -> str:
    """Python that prints the compounds within the bounds, with the values that decided."""
    tests = " and ".join(
        f"float(row['{name}']) {'<=' if side == 'at most' else '>='} {limit}" for name, side, limit in bounds
    )
    shown = ", ".join(f"row['{name}']" for name in dict.fromkeys(name for name, _, _ in bounds))
    return (
        "import csv\n"
        "rows = []\n"
        f"for name in {list(files)}:\n"
        "    with open(name) as file:\n"
        "        rows += csv.DictReader(file)\n"
        f"kept = [row for row in rows if {tests}]\n"
        "for row in kept:\n"
        f"    print(row['id'], {shown})\n"
        "print(len(kept), 'of', len(rows), 'within the limits')"
    )


def _rows(table: str) -> list[str]:
    return re.findall(r"^(M-\d{3}) \|", table, re.MULTILINE)


def _first(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    assert match, f"{pattern.pattern!r} is not in {text!r}"
    return match[1]
