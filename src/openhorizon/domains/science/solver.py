"""The scripted expert of the problem sheets: searches, visits, looks constants up, and writes a program a problem.

It sees what a policy sees. Which family a problem belongs to, and that family's formulas, is its schooling; every
number comes from the problem's text, a page, a reference text or a result that it printed before.

A step goes astray with chance ``noise``: a query that lost its point, the wrong page of a result list, a program that
fails or that forgets a conversion. Wrong results are noticed and printed again, but for a share of ``UNNOTICED``.
"""

from __future__ import annotations

import random
import re
from collections.abc import Generator, Sequence
from dataclasses import replace

from openhorizon.domains.base import Answer, Call, Expert, Observation
from openhorizon.domains.corpora.substances import Fact, read_facts
from openhorizon.domains.science.family import CELLS, Need
from openhorizon.domains.science.problems import (
    BOILING_POINT,
    MASS_OF,
    RESULT,
    Problem,
    need_label,
    read,
    solution,
)
from openhorizon.domains.science.units import conversion, unit
from openhorizon.domains.science.variants import query_of

UNNOTICED = 0.08  # share of the wrong results that are never corrected

_PROBLEM = re.compile(r"Problem (\d+)\. (.+?)(?=\n\n|\Z)", re.DOTALL)
_RESULT = re.compile(r"^problem (\d+): (.+)$", re.MULTILINE)
_FOUND = re.compile(r"^\d+\. (.+?) \((?:element|compound|ion)\):", re.MULTILINE)
_DATUM = re.compile(
    r"(?P<label>[A-Z].*) of (?P<title>.+?) = (?P<fact>.+)|(?P<constant>.+?) = (?P<value>\S+) (?P<of>.+)"
)
_NUMBER = re.compile(r"(-?\d[\d.]*(?:e-?\d+)?)(?: (.+))?")

Doing = Generator[Call, Observation, str]


def solve_sheet(prompt: str, rng: random.Random, noise: float) -> Expert:
    """Problem after problem, until the sheet shows no other one."""
    solver = _Solver(rng, noise)
    text = prompt
    while True:
        shown = _PROBLEM.findall(text)
        if not shown:
            break
        number, problem = shown[-1]
        text = yield from solver.work(number, problem)
    last = solver.results.get(max(solver.results, default=0), "none")
    yield Answer(f"Answer: {last}")


def read_data(data: Sequence[str]) -> tuple[dict[str, dict[str, Fact]], dict[str, dict[str, Fact]]]:
    """Facts by page, and constants, of a ``Data:`` line."""
    pages: dict[str, dict[str, Fact]] = {}
    texts: dict[str, dict[str, Fact]] = {}
    for datum in data:
        match = _DATUM.fullmatch(datum)
        assert match, f"not a datum: {datum}"
        if match["label"]:
            numeric = _NUMBER.fullmatch(match["fact"])
            fact = (numeric[1], numeric[2] or "") if numeric else (match["fact"], "")
            pages.setdefault(match["title"], {})[match["label"]] = fact
        else:
            texts[match["constant"]] = {"Value": (match["value"], match["of"])}
    return pages, texts


class _Solver:
    def __init__(self, rng: random.Random, noise: float) -> None:
        self.rng, self.noise = rng, noise
        self.pages: dict[str, dict[str, Fact]] = {}  # by title, as read
        self.texts: dict[str, dict[str, Fact]] = {}
        self.results: dict[int, str] = {}

    def work(self, number: str, text: str) -> Doing:
        """All calls for one problem; returns what the sheet said after its result."""
        problem = read(text)
        titles: dict[str, str] = {}
        kept = self.pages, self.texts
        if problem.data:
            # What this text says is no page that was read: it serves this problem only.
            self.pages, self.texts = read_data(problem.data)
        else:
            for mention in problem.mentions():
                if mention not in titles:
                    titles[mention] = yield from self._visit(mention)
            for constant in problem.template.constants.values():
                yield from self._consult(constant.title)
        problem = replace(problem, pages={name: titles.get(name, name) for name in problem.mentions()})
        said = yield from self._compute(number, problem)
        self.pages, self.texts = kept
        return said

    def _visit(self, mention: str) -> Generator[Call, Observation, str]:
        """Read the page that is meant, unless it was read before; returns its title."""
        query = query_of(mention)
        title, others = mention, list[str]()
        if query:
            found = yield from self._search(mention, query)
            title, others = found[0], found[1:]
        if title in self.pages:
            return title
        while self.rng.random() < self.noise:
            if others and self.rng.random() < 0.6:
                wrong = others.pop(0)
                thought = f"{wrong} might be {mention}. I open it."
            else:
                i = self.rng.randrange(len(title))
                wrong, thought = title[:i] + title[i + 1 :] or "page", f"I need the data of {mention}."
            observation = yield Call("visit", {"title": wrong}, thought)
            if not observation.error:
                self.pages[_heading(observation.text)] = read_facts(observation.text)
        if title in self.pages:  # a slip has found it
            return title
        thought = f"{mention[0].upper()}{mention[1:]} is {title}. I open its page." if query else f"I open {title}."
        observation = yield Call("visit", {"title": title}, thought)
        self.pages[title] = read_facts(observation.text)
        return title

    def _search(self, mention: str, query: str) -> Generator[Call, Observation, list[str]]:
        while self.rng.random() < self.noise:
            words = query.split()
            lost = " ".join(words[:-1]) or query[: max(1, len(query) // 2)]
            yield Call("search", {"query": lost}, f"Which substance is {mention}?")
        observation = yield Call("search", {"query": query}, f"I have to find out which substance is {mention}.")
        return _FOUND.findall(observation.text)

    def _consult(self, title: str) -> Generator[Call, Observation, None]:
        if title in self.texts:
            return
        while self.rng.random() < self.noise:
            words = title.split()
            observation = yield Call("scholar", {"query": self.rng.choice(words)}, f"I look up the {title}.")
            self.texts[_heading(observation.text)] = read_facts(observation.text)
        if title in self.texts:
            return
        observation = yield Call("scholar", {"query": title}, f"I look up: {title}.")
        self.texts[title] = read_facts(observation.text)

    def _compute(self, number: str, problem: Problem) -> Doing:
        lines, plan = self._program(number, problem)
        code = "\n".join(lines)
        shown = ""
        while self.rng.random() < self.noise:
            if self.rng.random() < 0.5:
                # A name that was never assigned, or was misspelt.
                broken = code.replace("print(f", "print(result_, f", 1)
                yield Call("code", {"code": broken}, plan)
                continue
            wrong = self._forgetful(lines)
            observation = yield Call("code", {"code": "\n".join(wrong)}, plan)
            shown = shown or _tail(observation.text)
            if not observation.error and self.rng.random() < UNNOTICED:
                self._remember(observation.text)
                return shown
            plan = "That cannot be right: I left out a conversion. I compute it again."
        observation = yield Call("code", {"code": code}, plan)
        self._remember(observation.text)
        return shown or _tail(observation.text)

    def _remember(self, text: str) -> None:
        for number, result in _RESULT.findall(text):
            self.results[int(number)] = result

    def _forgetful(self, lines: list[str]) -> list[str]:
        """The program with the conversion of one datum left out, or else with a digit lost."""
        converted = [i for i, line in enumerate(lines) if re.match(r"\w+ = [-\d.e]+ [-+*/] [\d.e]+  #", line)]
        changed = list(lines)
        if converted:
            i = self.rng.choice(converted)
            changed[i] = re.sub(r"(= [-\d.e]+) [-+*/] [\d.e]+", r"\1", changed[i])
        else:
            i = next(i for i, line in enumerate(lines) if re.match(r"\w+ = -?\d", line))
            changed[i] = re.sub(r"= (-?\d)", r"= \g<1>0", changed[i], count=1)
        return changed

    def _program(self, number: str, problem: Problem) -> tuple[list[str], str]:
        """The lines of the program, and in words what it does."""
        family = problem.template
        lines = [f"# Problem {number}: {family.name}", "from math import exp, log, log10, sqrt", ""]
        texts: dict[str, str] = {}
        for symbol, need in family.needs.items():
            title = family.fixed.get(need.role) or problem.pages[problem.roles[need.role]]
            label = need_label(need, problem.isotope)
            fact = self.pages[title][label]
            if need.how in ("count", "text"):
                texts[symbol] = fact[0]
            else:
                lines.append(_assignment(symbol, fact, need, f"{title}: {label.lower()}"))
        lines += [line.format(**texts) for line in family.prelude]
        for symbol, constant in family.constants.items():
            if constant.unit:
                value = self.texts[constant.title]["Value"]
                lines.append(_assignment(symbol, value, Need("", "", constant.unit), constant.title))
        for name, given in problem.given().items():
            lines.append(self._input(name, problem, given.unit))
        lines.append("")
        steps = solution(problem)
        lines += [f"{step.name} = {step.formula}" + (f"  # {step.unit}" if step.unit else "") for step in steps]
        last = steps[-1]
        lines.append(f'print(f"problem {number}: {{{last.name}:.6g}} {last.unit}")')
        route = ", then ".join(f"{step.name} = {step.formula}" for step in steps)
        return lines, f"I have what problem {number} ({family.name}) needs. {route}."

    def _input(self, name: str, problem: Problem, wanted: str) -> str:
        slot = problem.slots[name]
        if slot.how == MASS_OF:
            title = problem.pages[slot.mention]
            mass, _ = self.pages[title]["Molar mass"]
            amount, of = slot.text.split(" ")
            moles = conversion(amount, of, "mol")
            factor = " / 1000" if wanted == "kg" else ""
            return f"{name} = {moles} * {mass}{factor}  # {wanted}, the mass of {slot.text} of {title}"
        if slot.how == BOILING_POINT:
            title = problem.pages[slot.mention]
            return f"{name} = {self.pages[title]['Boiling point'][0]}  # K, boiling point of {title}"
        text = self.results[int(slot.text)] if slot.how == RESULT else slot.text
        value, _, of = text.partition(" ")
        remark = f"the result of problem {slot.text}" if slot.how == RESULT else "given"
        return f"{name} = {conversion(value, of, wanted)}  # {wanted or 'no unit'}, {remark}"


def _assignment(symbol: str, fact: Fact, need: Need, remark: str) -> str:
    number, have = fact
    if need.how.startswith("atoms:"):
        wanted = need.how.removeprefix("atoms:")
        count = sum(int(n or 1) for s, n in re.findall(r"([A-Z][a-z]?)(\d*)", number) if s == wanted)
        return f"{symbol} = {count}  # atoms of {wanted} in {number}"
    if need.how == "cell":
        return f"{symbol} = {CELLS[number]}  # atoms in the unit cell, {number}"
    same = unit(have) == unit(need.unit)
    return f"{symbol} = {number if same else conversion(number, have, need.unit)}  # {need.unit or '-'}, {remark}"


def _heading(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")


def _tail(text: str) -> str:
    """What the sheet added behind a program's output."""
    return text[text.find("Sheet ") :] if "Sheet " in text else ""
