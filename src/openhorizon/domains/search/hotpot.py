"""Long-horizon search over Wikipedia's opening paragraphs: question sheets of HotpotQA's real questions.

A task is a sheet of questions, a page like others, one question a part; the answer is all answers in order:

    read_page  {"title": "Sheet 4127"}              Question 1 of 3: Who was born first, A or B? …
    search     {"query": "Who was born first, …"}   1. [A] … 2. [B (actor)] …
    read_page  {"title": "A"}                       the paragraph and its file
    read_page  {"title": "B (actor)"}
    code       {"code": "…"}                        {'A': 1961, 'B': 1924} B
    read_page  {"title": "Sheet 4127", "part": 2}   Question 2 of 3: …
    Answer: B; no; 1998

So the prompt is equally long for every horizon, three tools do (no fourth hands in answers), and a long sheet asks the
solver to keep what it found. Right is what equals the published answer after normalisation, with both gold pages read.

The horizon is the number of calls that the scripted reader needs (hotpot_reader.py): a sheet takes only questions that
the reader, which sees what a policy sees, answers right; its calls add up to the horizon. One of a sheet's questions is
open (no choice between two answers), so that guessing does not pay.

What differs from the paper: its questions are made from walks; these were written by people, so there is nothing to
mask. They are easier one by one, and the horizon comes from their number.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

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
)
from openhorizon.domains.corpora.fulltext import FullText, build, tokens
from openhorizon.domains.corpora.hotpot import Collection, Question, load_hotpot
from openhorizon.domains.search.hotpot_reader import read_question, two_options
from openhorizon.domains.search.notebook import CODE, Notebook
from openhorizon.domains.search.results import answer_key, cut, write_results

RESULTS = 10
SNIPPET_WORDS = 60
SHORTEST = 4  # calls that a question takes at least: its part of the sheet, a search, two pages
SHORTEST_SHEET = 8  # calls
DRAWS = 40  # questions drawn for one proposal, and for each question that it could hold
COMPARISONS = 0.75  # share of comparisons among the questions drawn
MAX_ANSWER_WORDS = 8
LOST = 0.03  # chance that a noisy reader takes the first page's name for an answer


@dataclass(frozen=True)
class Solved:
    """What the reader did with a question: its calls, the sheet's part included, and its answer."""

    calls: int
    answer: str
    right: bool
    early: bool  # the answer stands in the first half of what the reader was shown


class Library:
    """Questions, pages and their index, prepared once."""

    def __init__(self, collection: Collection, index: FullText) -> None:
        self.questions, self.pages, self.report = collection.questions, collection.pages, collection.report
        self.index = index
        self.titles = {_key(title): title for title in sorted(self.pages, reverse=True)}
        self.pools: dict[tuple[Split, str], list[str]] = {}
        for question in self.questions.values():
            if ";" not in question.answer and len(question.answer.split()) <= MAX_ANSWER_WORDS:
                self.pools.setdefault((question.split, question.kind), []).append(question.id)
        self.results = functools.lru_cache(maxsize=20_000)(self._results)
        self.solved = functools.cache(self._solve)

    def find(self, title: str) -> str | None:
        return title if title in self.pages else self.titles.get(_key(title))

    def _results(self, query: str) -> str:
        found = self.index.search(query, RESULTS)
        return write_results((title, cut(self.pages[title], SNIPPET_WORDS)) for title in found)

    def _solve(self, number: str) -> Solved:
        """Let the reader try one question in an environment of its own."""
        question = self.questions[number]
        task = _task("dry run", question.split, 0, [question], 1, 0)
        environment = HotpotEnvironment(task, HotpotDomain.tools)
        try:
            actions = _expert(task.prompt, random.Random(0), 0.0)
            action = next(actions)
            while isinstance(action, Call):
                action = actions.send(environment.call(action))
        finally:
            environment.close()
        answer = action.text.removeprefix("Answer:").strip()
        right = answer_key(answer) == answer_key(question.answer) and set(question.pages) <= environment.consulted()
        calls = len(environment.steps)
        shown = environment.steps[: max(1, calls - max(2, round(calls / 2)))]
        wanted = f" {' '.join(tokens(question.answer))} "
        early = any(wanted in f" {' '.join(tokens(step.observation.text))} " for step in shown)
        return Solved(calls, answer, right, early)


@functools.cache
def library() -> Library:
    collection = load_hotpot()
    return Library(collection, build("hotpot", list(collection.pages.items())))


class HotpotDomain(Domain):
    name = "search"
    apart = True
    source = "hotpot"
    system = (
        "You answer a sheet of questions over an encyclopedia. The sheet is a page; its parts hold one question each. "
        "Search, and read the pages that an answer rests on. Every page that you read is kept as a file; let programs "
        "compare and count. When the last question is done, end with Answer: all answers in order, between semicolons."
    )
    tools: tuple[Tool, ...] = (
        Tool(
            "search",
            "Find up to 10 pages by their words.",
            {
                "type": "object",
                "properties": {"query": {"type": "string", "minLength": 1, "maxLength": 500}},
                "required": ["query"],
                "additionalProperties": False,
            },
        ),
        Tool(
            "read_page",
            "Read a page by its title, or a later part of one.",
            {
                "type": "object",
                "properties": {
                    "title": {"type": "string", "minLength": 1, "maxLength": 200},
                    "part": {"type": "integer", "minimum": 1},
                },
                "required": ["title"],
                "additionalProperties": False,
            },
        ),
        CODE,
    )

    def heldout_texts(self) -> tuple[str, ...]:
        return tuple(f"{q.text}\n{q.answer}" for q in load_hotpot().questions.values() if q.split == "heldout")

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        """A sheet whose questions take the reader ``horizon`` calls; None where the draws do not add up to it."""
        if horizon < 1:
            raise ValueError(f"search/hotpot: horizon {horizon} is less than 1")
        lib, chosen, left = library(), list[Question](), horizon
        for _ in range(DRAWS * (1 + horizon // SHORTEST)):
            if left < SHORTEST:
                break
            kind = "comparison" if rng.random() < COMPARISONS else "bridge"
            question = lib.questions[rng.choice(lib.pools[split, kind])]
            if any(set(question.pages) & set(other.pages) for other in chosen):
                continue
            solved = lib.solved(question.id)
            rest = left - solved.calls
            if solved.right and (rest == 0 or rest >= SHORTEST):
                chosen.append(question)
                left = rest
        if left or all(choices(question) for question in chosen):
            return None
        if len(chosen) == 1 and lib.solved(chosen[0].id).early:
            return None
        return _task(
            f"search-hotpot-{split}-{horizon}-{seed}", split, horizon, chosen, rng.randrange(1000, 10000), seed
        )

    def offers(self, horizons: Sequence[int]) -> tuple[int, ...]:
        """Sheets of two questions or more: hardly any single one is open and shows its answer late enough."""
        return tuple(horizon for horizon in horizons if horizon >= SHORTEST_SHEET)

    def start(self, task: Task) -> HotpotEnvironment:
        return HotpotEnvironment(task, self.tools)

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        return _expert(prompt, rng, noise)

    def guesses(self, task: Task) -> tuple[str, ...]:
        """What somebody answers who always takes the first choice, or the second, or yes, or no."""
        options = [choices(library().questions[number]) or ("yes", "no") for number in task.state["questions"]]
        ways = [[pair[0] for pair in options], [pair[1] for pair in options]]
        return tuple(f"Answer: {'; '.join(way)}" for way in ways)

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        """Passed: every answer is the published one, in order, and both pages of every question were read."""
        asked = [library().questions[number] for number in task.state["questions"]]
        text = re.split("answer:", answer.text, flags=re.IGNORECASE)[-1] if answer else ""
        given = [answer_key(part) for part in text.split(";")]
        right = [i < len(given) and given[i] == answer_key(question.answer) for i, question in enumerate(asked)]
        missing = [item for item in task.evidence if item not in environment.consulted()]
        rubric = {"answer": all(right) and len(given) == len(asked), "path": not missing}
        if len(asked) > 1:
            rubric |= {f"question {i}": found for i, found in enumerate(right, start=1)}
        score = (sum(right) / max(len(asked), len(given)) + 1 - len(missing) / len(task.evidence)) / 2
        if answer is None:
            reason = "no answer was given"
        elif not rubric["answer"]:
            wrong = [str(i) for i, found in enumerate(right, start=1) if not found]
            reason = f"of {len(asked)} answers, wrong: {', '.join(wrong)}" if wrong else "more answers than questions"
        elif missing:
            reason = f"{len(missing)} of {len(task.evidence)} pages were not read, the first is {missing[0]}"
        else:
            reason = "all answers are right and their pages were read"
        return Verdict(all(rubric.values()), score, reason, rubric)


def choices(question: Question) -> tuple[str, str] | None:
    """The two answers between which somebody could guess this question's; None where it is open."""
    if answer_key(question.answer) in ("yes", "no"):
        return "yes", "no"
    options = two_options(question.text)
    if options and " or " in question.text:
        return options
    return (question.answer, question.answer) if answer_key(question.answer) in answer_key(question.text) else None


def _task(name: str, split: Split, horizon: int, asked: list[Question], number: int, seed: int) -> Task:
    sheet = f"Sheet {number}"
    return Task(
        domain="search",
        id=name,
        split=split,
        prompt=f'Answer the questions of "{sheet}", part by part, to its last.',
        horizon=horizon,
        seed=seed,
        state={"sheet": sheet, "questions": [question.id for question in asked]},
        evidence=tuple(dict.fromkeys(page for question in asked for page in question.pages)),
        verifiers=("answer", "path"),
        reference=f"Answer: {'; '.join(question.answer for question in asked)}",
        entity_pairs=tuple((question.pages[0], question.pages[1]) for question in asked),
        source="hotpot",
    )


class HotpotEnvironment(Notebook):
    """The encyclopedia, and one sheet of questions among its pages."""

    def __init__(self, task: Task, tools: Iterable[Tool]) -> None:
        super().__init__(task, tuple(tools))
        self.lib = library()

    def execute(self, call: Call) -> Observation:
        if call.name == "search":
            return Observation(self.lib.results(call.arguments["query"]) or "no results")
        if call.name == "code":
            text, failed = self.run(call.arguments["code"])
            return Observation(text, error=failed)
        title, part = call.arguments["title"], call.arguments.get("part", 1)
        if _key(title) == _key(self.task.state["sheet"]):
            return self._question(part)
        found = self.lib.find(title)
        if found is None:
            return Observation(f"error: no page {title[:80]!r}; search for it", error=True)
        if part > 1:
            return Observation(f"error: {found} has 1 part(s)", error=True)
        text = self.lib.pages[found]
        return Observation(f"# {found}\n\n{text}\n\nFile: {self.keep(found, text)}", (found,))

    def _question(self, part: int) -> Observation:
        numbers = self.task.state["questions"]
        if part > len(numbers):
            return Observation(f"error: the sheet has {len(numbers)} part(s)", error=True)
        after = f"the next question is part {part + 1}" if part < len(numbers) else "this was the last question"
        text = self.lib.questions[numbers[part - 1]].text
        return Observation(
            f"# {self.task.state['sheet']}\n\nQuestion {part} of {len(numbers)}: {text}\n\nNote: {after}"
        )


_SHEET = re.compile(r'questions of "(?P<sheet>[^"]+)"')
_QUESTION = re.compile(r".*\n\nQuestion \d+ of \d+: (?P<text>.*)\n\nNote: (?P<note>.*)", re.DOTALL)


def _key(title: str) -> str:
    return " ".join(title.casefold().split())


def _expert(prompt: str, rng: random.Random, noise: float) -> Expert:
    """Reads the sheet part by part and works on one question after the other."""
    match = _SHEET.search(prompt)
    assert match, f"not a sheet's prompt: {prompt}"
    answers: list[str] = []
    thought = "I begin with the first question."
    arguments: dict[str, str | int] = {"title": match["sheet"]}
    while True:
        part = _QUESTION.fullmatch((yield Call("read_page", dict(arguments), thought)).text)
        assert part, "not a part of the sheet"
        found = yield from read_question(part["text"], rng, noise)
        if noise and rng.random() < LOST:
            found = ""
        answers.append(found or "unknown")
        if not part["note"].startswith("the next"):
            listed = "; ".join(f"{i}: {answer}" for i, answer in enumerate(answers, start=1))
            yield Answer(f"Answer: {'; '.join(answers)}", f"These are all answers. {listed}")
            return
        thought = f"Question {len(answers)} is answered: {answers[-1]}. Now the next one."
        arguments = {"title": match["sheet"], "part": len(answers) + 1}
