"""Long-horizon search over real articles: trails through the Free On-line Dictionary of Computing.

The prompt names where a trail starts, or describes it. Each page of the trail ends with a note, shown once the trail
has come that far, that tells how it goes on without naming the next stop (foldoc_walk.py has the kinds):

    search     {"query": "A logical connective with the truth table …"}   1. exclusive or: … 2. …
    read_page  {"title": "exclusive or"}   its text and file; Note: go on to what fills the gap in this sentence …
    read_page  {"title": "parity"}         … Note: let a program find the next stop among the different links …
    code       {"code": "…"}               flip-flop
    read_page  {"title": "flip-flop"}      … Note: the trail ends here.
    Answer: flip-flop

What differs from the paper: its questions spell the whole chain out, which makes a prompt as long as its horizon; here
the notes do. Its pages are the web's; ours lie on this machine, so that a trajectory can be made again. The horizon is
exact: the calls of a solution that makes no mistake. What has to be computed cannot be had by reading, and it counts as
evidence only when a program has printed it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Generator, Iterable

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
from openhorizon.domains.search import programs
from openhorizon.domains.search.foldoc_walk import (
    COMPUTED,
    DESCRIPTION,
    choose,
    clozes,
    library,
    walk,
)
from openhorizon.domains.search.notebook import CODE, Notebook

WALKS = 8  # tried for one proposal
LOST = 0.03  # chance that a noisy expert takes a wrong page for the last one
END = "the trail ends here; this page is the answer"


class FoldocDomain(Domain):
    name = "search"
    source = "foldoc"
    system = (
        "You follow a trail through a dictionary of computing. The note at the foot of a page says how the trail goes "
        "on. Links stand in braces. A long page comes in parts; the note stands under the last. Every page that you "
        "read is kept as a file; let programs count, sort and reckon. End with Answer: title of the last page."
    )
    tools = (
        Tool(
            "search",
            "Find up to 10 articles by their words.",
            {
                "type": "object",
                "properties": {"query": {"type": "string", "minLength": 1, "maxLength": 500}},
                "required": ["query"],
                "additionalProperties": False,
            },
        ),
        Tool(
            "read_page",
            "Read an article by its title, or a later part of a long one.",
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

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        """A trail of ``horizon`` calls; None where ``WALKS`` walks all died or had a (start, end) of another split."""
        if horizon < 1:
            raise ValueError(f"search/foldoc: horizon {horizon} is less than 1")
        lib = library()
        walks = (walk(lib, rng, horizon) for _ in range(WALKS))
        trail = next((t for t in walks if t and split_of((t.stops[0], t.stops[-1])) == split), None)
        if trail is None:
            return None
        number = rng.randrange(1000, 10000)
        stops, results = list(trail.stops), [hop.result for hop in trail.hops]
        evidence = [item for title in stops for item in part_ids(title, len(lib.parts(title)))]
        evidence += [program_id(i) for i, result in enumerate(results) if result]
        return Task(
            domain=self.name,
            id=f"search-foldoc-{split}-{horizon}-{seed}",
            split=split,
            prompt=f"Trail {number} starts at the article {trail.start}. Follow it and name the article at its end.",
            horizon=horizon,
            seed=seed,
            state={"stops": stops, "notes": [*(hop.note for hop in trail.hops), END], "results": [*results, ""]},
            evidence=tuple(evidence),
            verifiers=("answer", "path"),
            reference=f"Answer: {stops[-1]}",
            entity_pairs=((stops[0], stops[-1]),),
            source=self.source,
        )

    def start(self, task: Task) -> FoldocEnvironment:
        return FoldocEnvironment(task, self.tools)

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        return _expert(prompt, rng, noise)

    def guesses(self, task: Task) -> tuple[str, ...]:
        """The start, where the prompt names it, and, but for the shortest trails, what its page links to."""
        start = _START.search(task.prompt)
        if start is None or not start["title"] or task.horizon < 2:
            return ()
        links = [text for text, _ in library().articles[start["title"]].links] if task.horizon > 2 else []
        return tuple(f"Answer: {title}" for title in (start["title"], *links))

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        """Passed: the answer leads to the trail's last article (by its title or another headline), every part of every
        stop was read and every computation was printed by a program."""
        missing = [item for item in task.evidence if item not in environment.consulted()]
        text = re.split("answer:", answer.text, flags=re.IGNORECASE)[-1].strip().strip("\"'*") if answer else ""
        find = library().dictionary.find
        pages = [item for item in missing if not item.startswith(PROGRAM)]
        rubric = {"answer": task.state["stops"][-1] in (find(text), find(text.rstrip(". "))), "path": not pages}
        if any(task.state["results"]):
            rubric["programs"] = len(pages) == len(missing)
        score = (1 - len(missing) / len(task.evidence) + rubric["answer"]) / 2
        if answer is None:
            reason = "no answer was given"
        elif not rubric["answer"]:
            reason = "the answer is not the last article of the trail"
        elif missing:
            reason = f"{len(missing)} of {len(task.evidence)} pieces of evidence are missing, the first is {missing[0]}"
        else:
            reason = "the answer is right and the whole trail was followed"
        return Verdict(all(rubric.values()), score, reason, rubric)


PROGRAM = "program "


def program_id(stop: int) -> str:
    return f"{PROGRAM}{stop + 1}"


def part_ids(title: str, parts: int) -> list[str]:
    """Evidence ids of a page's parts."""
    return [title] if parts == 1 else [f"{title} ({part})" for part in range(1, parts + 1)]


class FoldocEnvironment(Notebook):
    """The dictionary with one trail's notes. State: how many stops have been reached, in order, and the files."""

    def __init__(self, task: Task, tools: Iterable[Tool]) -> None:
        super().__init__(task, tuple(tools))
        self.lib = library()
        self.stops: list[str] = list(task.state["stops"])
        self.reached = 0

    def execute(self, call: Call) -> Observation:
        if call.name == "search":
            return Observation(self.lib.results(call.arguments["query"]) or "no results")
        if call.name == "code":
            return self._run(call.arguments["code"])
        title = self.lib.dictionary.find(call.arguments["title"])
        if title is None:
            return Observation(f"error: no article {call.arguments['title'][:80]!r}; search for it", error=True)
        return self._read(title, call.arguments.get("part", 1))

    def _run(self, code: str) -> Observation:
        result, failed = self.run(code)
        expected = self.task.state["results"][self.reached - 1] if self.reached else ""
        printed = result.strip().split("\n")[-1].strip()
        shown = (program_id(self.reached - 1),) if expected and not failed and printed == expected else ()
        return Observation(result, evidence=shown, error=failed)

    def _read(self, title: str, part: int) -> Observation:
        parts = self.lib.parts(title)
        if part > len(parts):
            return Observation(f"error: {title} has {len(parts)} part(s)", error=True)
        file = self.keep(title, self.lib.texts[title])
        evidence = (part_ids(title, len(parts))[part - 1],)
        head = f"# {title}" if len(parts) == 1 else f"# {title} (part {part} of {len(parts)})"
        text = f"{head}\n\n{parts[part - 1]}\n\nFile: {file}\n"
        if part < len(parts):
            return Observation(f"{text}Note: the page goes on in part {part + 1}", evidence)
        if self.reached < len(self.stops) and title == self.stops[self.reached]:
            self.reached += 1
        passed = self.stops[: self.reached]
        if title in passed:
            note = self.task.state["notes"][passed.index(title)]
        else:
            note = f'off the trail; the last stop was "{passed[-1]}"' if passed else "off the trail, before its start"
        return Observation(f"{text}Note: {note}", evidence)


_START = re.compile(r'starts at the article (?:that says: "(?P<said>.*)"|"(?P<title>.*)")\. Follow', re.DOTALL)
_PAGE = re.compile(
    r"# (?P<title>.+?)(?: \(part \d+ of \d+\))?\n\n(?P<text>.*)\n\nFile: (?P<file>\S+)\nNote: (?P<note>.*)", re.DOTALL
)
_GAP = re.compile(r'fills the gap in this sentence of the page: "(.*)"', re.DOTALL)
_MORE = re.compile(r"the page goes on in part (\d+)")


def _expert(prompt: str, rng: random.Random, noise: float) -> Expert:
    """Reads the note of the page it stands on and does what it says, over and over. All that it knows it has read.

    With chance ``noise`` a step goes astray: a query that lost most of its words, a title misspelt, a program with a
    slip, or a wrong link, from which it goes back to the last stop.
    """
    start = _START.search(prompt)
    assert start, f"not a trail's prompt: {prompt}"
    files: dict[str, str] = {}  # title → file, of every page read
    if start["said"]:
        title = yield from _look_up(start["said"], "The start is only described, so I search for it.", rng, noise)
        thought = f"{title} says what the start was described by."
    else:
        title, thought = start["title"], "The trail starts here."
    while True:
        page = yield from _read(title, thought, files, rng, noise)
        if page["note"] == END:
            yield Answer(f"Answer: {page['title']}", "The note says that the trail ends here.")
            return
        if rng.random() < noise:
            wrong = [link for link in programs.links_of(page["text"]) if link not in files]
            if wrong:
                stray = rng.choice(wrong)
                observed = yield Call("read_page", {"title": stray}, f"{stray} could be the next stop.")
                if rng.random() < LOST:
                    yield Answer(f"Answer: {stray}")
                    return
                if not observed.error:
                    shown = _PAGE.fullmatch(observed.text)
                    assert shown
                    files[shown["title"]] = shown["file"]
                back = f"That was not on the trail, so I go back to {page['title']} and read its note again."
                page = yield from _read(page["title"], back, files, rng, 0.0)
        title, thought = yield from _next_stop(page, files, rng, noise)


def _read(
    title: str, thought: str, files: dict[str, str], rng: random.Random, noise: float
) -> Generator[Call, Observation, dict[str, str]]:
    """All parts of a page: title, text, file and the note under the last part."""
    while rng.random() < noise:
        i = rng.randrange(len(title))
        observed = yield Call("read_page", {"title": title[:i] + title[i] + title[i:]}, thought)
        if observed.error:
            thought = f"No such article; the title is {title}."
    arguments: dict[str, str | int] = {"title": title}
    texts: list[str] = []
    while True:
        page = _PAGE.fullmatch((yield Call("read_page", dict(arguments), thought)).text)
        assert page, f"not a page: {title}"
        texts.append(page["text"])
        more = _MORE.fullmatch(page["note"])
        if more is None:
            files[page["title"]] = page["file"]
            return {**page.groupdict(), "text": "\n\n".join(texts)}
        arguments["part"] = int(more[1])
        thought = f"The page goes on in part {more[1]}."


def _next_stop(
    page: dict[str, str], files: dict[str, str], rng: random.Random, noise: float
) -> Generator[Call, Observation, tuple[str, str]]:
    """What the page's note leads to, and the thought with which it is read."""
    gap, said = _GAP.search(page["note"]), DESCRIPTION.search(page["note"])
    if gap:
        link = clozes(page["text"])[gap[1]]
        return link, f"In that sentence the page says {link}, so {link} is next."
    if said:
        found = yield from _look_up(said[1], "The next stop is only described, so I search for it.", rng, noise)
        return found, f"{found} says what the note describes."
    code = write_program(page["note"], files, page["file"])
    thought = "The note asks for a program over pages that I have read."
    if rng.random() < noise:
        yield Call("code", {"code": code.replace("print(", "print(next_")}, thought)
        thought = "The last line calls a function that does not exist; I correct it."
    link = (yield Call("code", {"code": code}, thought)).text.strip()
    return link, f"The program says {link}, so {link} is next."


def _look_up(said: str, thought: str, rng: random.Random, noise: float) -> Generator[Call, Observation, str]:
    """The article that says this, chosen among the results of a search for it."""
    if rng.random() < noise:
        few = rng.sample(said.split(), min(3, len(said.split())))
        yield Call("search", {"query": " ".join(few)}, thought)
        thought = "Too few words to tell; I search for the whole description."
    return choose((yield Call("search", {"query": said[:500]}, thought)).text, said)


def write_program(note: str, files: dict[str, str], here: str) -> str:
    """The program that a note asks for, over the files of the pages that it names."""
    function = next(function for function, text in COMPUTED.values() if text in note)
    others = [files[title] for title in re.findall(r'"([^"]+)"', note.rpartition("Pages: ")[2])]
    names = ", ".join(f'read("{name}")' for name in others)
    return programs.program(
        (programs.read, programs.links_of, function), f'print({function.__name__}(read("{here}"), [{names}]))'
    )
