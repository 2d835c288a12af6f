"""Science in natural text: problem sheets over real data, solved with search, visit, scholar and code.

The prompt shows the first problem of a sheet. Its data are on the pages of substances (``search``, ``visit``), its
constants and correlations in the reference texts (``scholar``); a program prints the result, and with it the next
problem appears, until the sheet is finished:

    search "grain alcohol"           1. Ethanol (compound): C2H6O; CAS 64-17-5; ...
    visit "Ethanol"                  # Ethanol ... - Antoine A: 10.33675 [Poling 2001] ...
    scholar "Antoine (vapor pressure)"
    code "... print(f'problem 1: {p:.6g} Pa')"
                                     problem 1: 16671.2 Pa
                                     Sheet 4821. Problem 2. How much heat ...

The sheet takes every result as it comes: whether it is right, only the verifier says. A later line for an earlier
problem replaces its result. A task passes where every problem's result agrees with the reference in value and unit
(any unit of that kind, within the tolerance), every page and text that it takes its data from was consulted, and the
final answer is the last result.

What differs from the paper: problems are made, not collected; their seeds are ``families``, their variants
``variants``, and a task's state names both. Long horizons are sheets of many problems, of which some start from the
results of others. Programs run in the sandbox, each afresh: nothing is kept between calls, so the same program gives
the same output and is run once.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
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
    part_of,
)
from openhorizon.domains.science.families import families
from openhorizon.domains.science.library import pages, reference, snippet, substances, texts
from openhorizon.domains.science.problems import Problem, page_of, stated, tells, texts_of, value_of_answer, write
from openhorizon.domains.science.solver import solve_sheet
from openhorizon.domains.science.units import Quantity, agrees, read_quantity
from openhorizon.domains.science.variants import (
    VALIDATION_PERCENT,
    asked_unit,
    carried,
    data_given,
    distractor,
    extra_retrieval,
    lookup_first,
    other_units,
    second_quantity,
    seed,
    sound,
)
from openhorizon.sandbox import Limits, open_workspace

DRAWS = 60  # problems tried for one place of a sheet
SELF_CONTAINED = 0.05  # chance that a problem gives its data itself; where one call is left, always
CHANCES = {  # of each variant, where it can be made
    "other units": 0.5,
    "second quantity": 0.35,
    "asked unit": 0.35,
    "distractor": 0.3,
    "look-up first": 0.5,
    "extra retrieval": 0.35,
    "carried": 0.5,
}
LIMITS = Limits(wall_s=10.0, cpu_s=10, memory_mb=512, processes=8, output_chars=4000, file_mb=4)
RDKIT = "rdkit.Chem"
MAX_CODE = 4000

_RESULT = re.compile(r"^problem (\d{1,3}): (.+)$", re.MULTILINE)


def _text_tool(name: str, description: str, argument: str, longest: int) -> Tool:
    text = {"type": "string", "minLength": 1, "maxLength": longest}
    return Tool(
        name,
        description,
        {"type": "object", "properties": {argument: text}, "required": [argument], "additionalProperties": False},
    )


class ProblemSheets(Domain):
    name = "science"
    apart = True
    source = "problems"
    system = (
        "You solve problems in chemistry and physics with tools. Take data from pages and constants from the reference "
        "texts, compute with code, and finish with a line 'Answer: number unit'."
    )
    tools = (
        _text_tool("search", "Find pages of elements, compounds and ions by name, formula or number.", "query", 200),
        _text_tool("visit", "Read the page of a substance by its title.", "title", 100),
        _text_tool("scholar", "Find and read a reference text on a constant or a correlation.", "query", 200),
        _text_tool("code", "Run a Python program (rdkit is installed) and see what it prints.", "code", MAX_CODE),
    )

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        """A sheet whose problems need ``horizon`` calls in all; None where this draw finds none."""
        if horizon < 1:
            raise ValueError(f"science/problems: horizon {horizon} is less than 1")
        while part_of(pair := ("sheet", str(rng.randint(1000, 99999))), VALIDATION_PERCENT) != split:
            pass
        drafts: list[Problem] = []
        results: list[Quantity] = []
        known: set[str] = set()
        left = horizon
        while left:
            draft = _next(rng, split, left, results, known)
            if draft is None:
                return None
            problem, cost = draft
            left -= cost
            known |= _consulted(problem)
            drafts.append(problem)
            results.append(Quantity(value_of_answer(problem, results), problem.report or problem.unit))
        problems = [
            _to_json(problem, result, number)
            for number, (problem, result) in enumerate(zip(drafts, results, strict=True), 1)
        ]
        evidence = [item for problem in problems for item in problem["evidence"]]
        return Task(
            domain=self.name,
            id=f"science-problems-{split}-{horizon}-{seed}",
            split=split,
            prompt=_PROMPT.format(sheet=pair[1], problem=problems[0]["text"]),
            horizon=horizon,
            seed=seed,
            state={"sheet": pair[1], "problems": problems},
            evidence=tuple(dict.fromkeys(evidence)),
            verifiers=("answer", *(f"problem {problem['number']}" for problem in problems), "evidence"),
            reference=f"Answer: {results[-1].value:.6g} {results[-1].unit}",
            entity_pairs=(pair, *dict.fromkeys(p for draft in drafts for p in _pairs(draft))),
            source=self.source,
        )

    def start(self, task: Task) -> Environment:
        return SheetEnvironment(task, self.tools)

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        return solve_sheet(prompt, rng, noise)

    def guesses(self, task: Task) -> tuple[str, ...]:
        """The quantities of the last problem's text, the answer without its unit or in a unit of the same size that
        was not converted, and the constants that its families use."""
        last = task.state["problems"][-1]
        unit = last["unit"]
        numbers = [f"Answer: {number} {unit}" for number in (*stated(last["text"]), "1", "0", "8.314462618", "298.15")]
        unitless = [f"Answer: {last['value']:.6g} {other}" for other in ("", *OTHER_UNITS) if other != unit]
        return (*numbers, *(guess for guess in unitless if not _right(last, guess)))

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        """Passed: every problem was given the right result, from the evidence, and the last is the answer."""
        assert isinstance(environment, SheetEnvironment)
        problems = task.state["problems"]
        missing = [item for item in task.evidence if item not in environment.consulted()]
        rubric = {f"problem {p['number']}": _right(p, environment.results.get(p["number"], "")) for p in problems}
        said = re.split("answer:", answer.text, flags=re.IGNORECASE)[-1] if answer else ""
        rubric["answer"] = _right(problems[-1], said)
        rubric["evidence"] = not missing
        wrong = [item for item, met in rubric.items() if not met]
        score = 1 - len(wrong) / len(rubric)
        if answer is None:
            reason = "no answer was given"
        elif not wrong:
            reason = "every result is right and all evidence was consulted"
        else:
            reason = f"not met: {', '.join(wrong)}" + (f"; not consulted: {', '.join(missing)}" if missing else "")
        return Verdict(not wrong, score, reason, rubric)


OTHER_UNITS = ("K", "kJ", "g", "Pa", "mol", "%")

_PROMPT = """Work through problem sheet {sheet}. Take the data of substances from their pages and constants and \
correlations from the reference texts, not from memory. Compute every problem with code that prints a line of the form
problem 1: 12.34 kJ
with the number and the unit of the result. The sheet then shows the next problem. When it says that it is finished, \
answer with the last result.

Problem 1. {problem}"""


class SheetEnvironment(Environment):
    """State: the results printed so far, by problem."""

    def __init__(self, task: Task, tools: Iterable[Tool]) -> None:
        super().__init__(task, tuple(tools))
        self.problems: Sequence[Mapping[str, Any]] = task.state["problems"]
        self.results: dict[int, str] = {}

    def execute(self, call: Call) -> Observation:
        if call.name == "search":
            found = pages().search(call.arguments["query"])
            lines = [f"{i}. {snippet(title)}" for i, title in enumerate(found, 1)]
            return Observation("\n".join(lines) or "no results")
        if call.name == "visit":
            title = pages().find(call.arguments["title"])
            if title is None:
                return Observation("error: no such page; search for it", error=True)
            return Observation(substances()[title].text, (f"page {title}",))
        if call.name == "scholar":
            hits = reference().search(call.arguments["query"])
            if not hits:
                return Observation("error: no such text", error=True)
            others = f"\n\nSee also: {'; '.join(hits[1:])}" if hits[1:] else ""
            return Observation(texts()[hits[0]].text + others, (f"text {hits[0]}",))
        output, failed = run(call.arguments["code"])
        return Observation(output if failed else output + self._advance(output), error=failed)

    def _advance(self, output: str) -> str:
        """Take the results that a program printed; the next problem, if they uncovered one."""
        shown = len(self.results)
        for number, text in _RESULT.findall(output):
            if int(number) - 1 <= len(self.results) and 1 <= int(number) <= len(self.problems):
                self.results[int(number)] = text
        if len(self.results) == shown:
            return ""
        sheet = f"\nSheet {self.task.state['sheet']}."
        if len(self.results) == len(self.problems):
            return f"{sheet} It is finished: answer with the last result."
        return f"{sheet} Problem {len(self.results) + 1}. {self.problems[len(self.results)]['text']}"


@functools.lru_cache(maxsize=4096)
def run(code: str) -> tuple[str, bool]:
    """What a program prints in a workspace of its own, and whether it failed."""
    # RDKit takes a quarter of a second to import: a worker that has it is kept for the programs that want it.
    with open_workspace({}, LIMITS, (RDKIT,) if "rdkit" in code else ()) as workspace:
        result = workspace.python(code)
    ending = "error: time limit" if result.timed_out else f"exit code {result.exit_code}" if result.exit_code else ""
    return "\n".join(part for part in (result.output.rstrip("\n"), ending) if part) or "(no output)", bool(ending)


def _next(
    rng: random.Random, split: Split, left: int, results: Sequence[Quantity], known: set[str]
) -> tuple[Problem, int] | None:
    """A problem that needs at most ``left`` calls, and how many it needs."""
    names = list(families())
    taken = frozenset(item.removeprefix("page ") for item in known if item.startswith("page "))
    for _ in range(DRAWS):
        problem = seed(rng, split, families()[rng.choice(names)], taken)
        if problem is None:
            continue
        problem = _vary(rng, split, problem, results, taken)
        if left == 1 or rng.random() < SELF_CONTAINED:
            problem = data_given(_plain(problem))
        cost = _cost(problem, known)
        if cost <= left and sound(problem, results) and not tells(problem, value_of_answer(problem, results)):
            return problem, cost
    return None


def _vary(
    rng: random.Random, split: Split, problem: Problem, results: Sequence[Quantity], taken: frozenset[str]
) -> Problem:
    """Apply each variant with its chance, where it can be made."""
    steps: tuple[tuple[str, Callable[[Problem], Problem | None]], ...] = (
        ("carried", lambda p: carried(rng, p, results)),
        ("extra retrieval", lambda p: extra_retrieval(rng, p, split, taken, results)),
        ("other units", lambda p: other_units(rng, p)),
        ("second quantity", lambda p: second_quantity(rng, p, results)),
        ("asked unit", lambda p: asked_unit(rng, p)),
        ("distractor", lambda p: distractor(rng, p)),
        ("look-up first", lambda p: lookup_first(rng, p)),
    )
    for name, make in steps:
        if rng.random() < CHANCES[name]:
            changed = make(problem)
            problem = changed if changed is not None and sound(changed, results) else problem
    return problem


def _plain(problem: Problem) -> Problem:
    """Every substance named by its title: there is nothing to search for."""
    titles = problem.pages
    return replace(
        problem,
        roles={role: titles[name] for role, name in problem.roles.items()},
        slots={n: replace(s, mention=titles[s.mention]) if s.mention else s for n, s in problem.slots.items()},
        pages={title: title for title in titles.values()},
        variants=tuple(variant for variant in problem.variants if variant != "look-up first"),
    )


def _consulted(problem: Problem) -> set[str]:
    return set() if problem.data else {*_pages_of(problem), *(f"text {title}" for title in texts_of(problem))}


def _pages_of(problem: Problem) -> list[str]:
    if problem.data:
        return []
    titles = [page_of(problem, role) for role in problem.roles]
    return [f"page {t}" for t in dict.fromkeys([*titles, *(problem.pages[name] for name in problem.mentions())])]


def _cost(problem: Problem, known: set[str]) -> int:
    """Calls that the problem needs: a search for every description, a look at everything not seen yet, a program."""
    described = 0 if problem.data else sum(name != title for name, title in problem.pages.items())
    return described + len(_consulted(problem) - known) + 1


def _pairs(problem: Problem) -> list[tuple[str, str]]:
    x = page_of(problem, "x")
    fixed = problem.template.fixed.values()
    others = [problem.pages[name] for name in problem.mentions()]
    return [(x, problem.family), *((x, other) for other in others if other != x and other not in fixed)]


def _to_json(problem: Problem, result: Quantity, number: int) -> dict[str, Any]:
    return {
        "number": number,
        "family": problem.family,
        "variants": list(problem.variants),
        "text": write(problem),
        "value": result.value,
        "unit": result.unit,
        "tolerance": problem.template.tolerance,
        "difference": problem.difference,
        "evidence": [*_pages_of(problem), *(f"text {title}" for title in texts_of(problem))],
    }


def _right(problem: Mapping[str, Any], text: str) -> bool:
    quantity = read_quantity(text)
    if quantity is None:
        return False
    return agrees(quantity, problem["value"], problem["unit"], problem["tolerance"], problem["difference"])
