"""Long-horizon search (section 3): relation chains over hyperlinked pages of real facts.

A task is a trail: a walk over the links of ``facts`` under the paper's filters (no visited page, no near-duplicate of a
visited title, no dead end, pages of low degree removed; names masked). The prompt tells only where the trail starts.
Every page of the trail carries a margin note, shown when the trail has come that far, that says how it goes on:

    note: follow border 2                                      read the page that this one links so: one call
    note: find country with currency Euro and language Slovak  search for it, then read it: two calls
    note: off trail, back to Euro                              not a stop passed nor the next: the last stop is named
    note: end                                                  this page is the answer

What differs from the paper: its questions spell the whole chain out. Here the notes do, so that the question is equally
long at every horizon and the next step is learned from an observation. The horizon is exact: a start that is named
costs one call, a masked start two, and a "find" never asks for a page that the trail's pages have linked to so far.

The expert's thoughts repeat the note and look up what it names (``follow border 2 Brazil``), so that every token of a
thought or call stands near the tokens that decide it: a small model can learn the step by copying, and does not have to
find a fact and write its call in one go.

Search is lexical: pages are ranked by the summed rarity of the query's words that they hold, words of the title
counting more; words that more than ``COMMON`` of all pages hold are ignored. It can rank a distractor first: the
kind tells.
"""

from __future__ import annotations

import functools
import heapq
import math
import random
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from itertools import combinations

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
from openhorizon.domains.corpora.facts import Page, load_facts
from openhorizon.domains.search.titles import near_duplicates, normal, words_of

COMMON = 0.1  # share of pages beyond which a word is ignored by search
TITLE_WEIGHT = 1.5
RESULTS = 3
MIN_LINKS = 3  # pages with fewer outgoing links are of low degree: never on a trail
MASKED = 0.5  # chance that a start is masked
FIND = 0.3  # chance that a hop is searched instead of followed
WALKS = 8  # tried for one proposal
LOST = 0.03  # chance that a noisy expert takes a wrong page for the last one
OFF_TRAIL, BACK = "off trail", "back to"

Constraint = tuple[str, str]  # relation or attribute, value


class SearchDomain(Domain):
    name = "search"
    system = "Follow the notes from page to page. Search for a page you cannot name. End with Answer: title."
    tools = (
        Tool(
            "search",
            "Find up to 3 pages by words of their titles and facts.",
            {
                "type": "object",
                "properties": {"query": {"type": "string", "minLength": 1, "maxLength": 200}},
                "required": ["query"],
                "additionalProperties": False,
            },
        ),
        Tool(
            "read_page",
            "Read a page by its title.",
            {
                "type": "object",
                "properties": {"title": {"type": "string", "minLength": 1, "maxLength": 100}},
                "required": ["title"],
                "additionalProperties": False,
            },
        ),
    )

    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        """A trail of ``horizon`` calls; None where ``WALKS`` walks all died or had a (start, end) of another split."""
        if horizon < 1:
            raise ValueError(f"search: horizon {horizon} is less than 1")
        walks = (_walk(_corpus(), rng, horizon) for _ in range(WALKS))
        trail = next((walk for walk in walks if walk and split_of((walk[1][0], walk[1][-1])) == split), None)
        if trail is None:
            return None
        start, stops, notes = trail
        number = rng.randrange(100, 1000)
        return Task(
            domain=self.name,
            id=f"search-{split}-{horizon}-{seed}",
            split=split,
            prompt=f"Trail {number}: start at {start}. Follow the notes to the end and name the page.",
            horizon=horizon,
            seed=seed,
            state={"stops": stops, "notes": notes},
            evidence=tuple(stops),
            verifiers=("answer", "path"),
            reference=f"Answer: {stops[-1]}",
            entity_pairs=((stops[0], stops[-1]),),
        )

    def start(self, task: Task) -> Environment:
        return SearchEnvironment(task, self.tools)

    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        return _expert(prompt, rng, noise)

    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        """Passed: the answer is the last page of the trail and every page of the trail was read."""
        missing = [title for title in task.evidence if title not in environment.consulted()]
        named = normal(re.split("answer:", answer.text, flags=re.IGNORECASE)[-1]) if answer else ""
        rubric = {"answer": named == normal(task.evidence[-1]), "path": not missing}
        score = (1 - len(missing) / len(task.evidence) + rubric["answer"]) / 2
        if answer is None:
            reason = "no answer was given"
        elif not rubric["answer"]:
            reason = "the answer is not the last page of the trail"
        elif missing:
            reason = (
                f"{len(missing)} of {len(task.evidence)} pages of the trail were not read, the first is {missing[0]}"
            )
        else:
            reason = "the answer is right and every page of the trail was read"
        return Verdict(all(rubric.values()), score, reason, rubric)


class SearchEnvironment(Environment):
    """The corpus with one trail's margin notes. State: how many stops have been reached, in their order."""

    def __init__(self, task: Task, tools: Iterable[Tool]) -> None:
        super().__init__(task, tuple(tools))
        self.corpus = _corpus()
        self.stops: list[str] = list(task.state["stops"])
        self.notes: list[str] = list(task.state["notes"])
        self.reached = 0

    def execute(self, call: Call) -> Observation:
        if call.name == "search":
            found = self.corpus.search(call.arguments["query"])
            return Observation(" ".join(f"{self.corpus.pages[t].kind} {t}." for t in found) or "no results")
        title = self.corpus.titles.get(normal(call.arguments["title"]))
        if title is None:
            return Observation("error: no such page", error=True)
        if self.reached < len(self.stops) and title == self.stops[self.reached]:
            self.reached += 1
        passed = self.stops[: self.reached]
        if title in passed:
            note = self.notes[passed.index(title)]
        else:
            note = f"{OFF_TRAIL}, {BACK} {passed[-1]}" if passed else OFF_TRAIL
        return Observation(f"{self.corpus.texts[title]} note: {note}", evidence=(title,))


class Corpus:
    """The pages with what walks and search need, indexed once."""

    def __init__(self, pages: Mapping[str, Page]) -> None:
        self.pages = pages
        self.titles = {normal(title): title for title in pages}
        self.texts = {title: _write_page(page) for title, page in pages.items()}
        self.near = _all_near_duplicates(list(pages))
        self.linked = {title: frozenset(o for ts in page.links.values() for o in ts) for title, page in pages.items()}
        self.walkable = [title for title in pages if len(self.linked[title]) >= MIN_LINKS]
        on_walks = frozenset(self.walkable)
        # By relation, so that a walk chooses the relation first: long lists get no more than their share.
        self.exits: dict[str, list[list[tuple[str, str]]]] = {}
        self.entries: dict[str, list[Constraint]] = {title: [] for title in pages}  # title → [(relation, source)]
        self.holders: dict[tuple[str, Constraint], set[str]] = {}  # (kind, constraint) → titles
        for title, page in pages.items():
            groups = [[(s, t) for s, t in _slots(relation, ts) if t in on_walks] for relation, ts in page.links.items()]
            self.exits[title] = [group for group in groups if group]
            for relation, value in _constraints(page):
                self.holders.setdefault((page.kind, (relation, value)), set()).add(title)
                if value in pages and title in on_walks:
                    self.entries[value].append((relation, title))
        self._index()
        self.search = functools.lru_cache(maxsize=8_192)(self._search)
        self.describe = functools.cache(self._describe)

    def _index(self) -> None:
        holds = {title: set(words_of(text)) for title, text in self.texts.items()}
        count = Counter(word for words in holds.values() for word in words)
        self.postings: dict[str, list[tuple[str, float]]] = {}
        for title, words in holds.items():
            named = set(words_of(title))
            for word in sorted(words):
                if count[word] <= COMMON * len(holds):
                    rarity = math.log(len(holds) / count[word])
                    weight = TITLE_WEIGHT * rarity if word in named else rarity
                    self.postings.setdefault(word, []).append((title, weight))

    def _search(self, query: str) -> tuple[str, ...]:
        scores: dict[str, float] = {}
        for word in sorted(set(words_of(query))):
            for title, weight in self.postings.get(word, ()):
                scores[title] = scores.get(title, 0.0) + weight
        return tuple(heapq.nsmallest(RESULTS, scores, key=lambda title: (-scores[title], title)))

    def _describe(self, title: str, known: Constraint | None) -> tuple[str, ...]:
        """Descriptions that mask ``title`` (``country with currency Euro and language Slovak``), of one constraint or
        two, ``known`` and another where given. Each fits this page only, and a search for it ranks this page before
        every other of its kind."""
        page = self.pages[title]
        usable = [c for c in _constraints(page) if c[1] not in self.near[title]]
        pairs = [(known, c) for c in usable if c != known] if known else list(combinations(usable, 2))
        singles = [] if known else [(c,) for c in usable]
        short = [self._mask(page, constraints) for constraints in singles]
        # Two constraints only where one does not do: a mask says no more than it must.
        return tuple(m for m in short if m) or tuple(m for pair in pairs if (m := self._mask(page, pair)))

    def _mask(self, page: Page, constraints: tuple[Constraint, ...]) -> str:
        fitting = set.intersection(*(self.holders[page.kind, constraint] for constraint in constraints))
        text = " and ".join(f"{relation} {value}" for relation, value in constraints)
        first = next((found for found in self.search(text) if self.pages[found].kind == page.kind), None)
        return f"{page.kind} with {text}" if fitting == {page.title} and first == page.title else ""


@functools.cache
def _corpus() -> Corpus:
    return Corpus(load_facts())


def _walk(corpus: Corpus, rng: random.Random, horizon: int) -> tuple[str, list[str], list[str]] | None:
    """How the prompt names the start, the stops and their notes; None where the walk finds no way on."""
    here = rng.choice(corpus.walkable)
    masks = corpus.describe(here, None) if horizon > 1 and rng.random() < MASKED else ()
    start = f"the {rng.choice(masks)}" if masks else f"page {here}"
    cost = 2 if masks else 1
    stops, notes = [here], list[str]()
    closed = {here, *corpus.near[here]}
    shown = set(corpus.linked[here])
    while cost < horizon:
        hop = _find(corpus, rng, here, closed | shown) if horizon - cost > 1 and rng.random() < FIND else None
        if hop:
            cost += 2
        else:
            hop = _follow(corpus, rng, here, closed, last=cost + 1 == horizon)
            cost += 1
        if hop is None:
            return None
        note, here = hop
        notes.append(note)
        stops.append(here)
        closed |= {here, *corpus.near[here]}
        shown |= corpus.linked[here]
    return start, stops, [*notes, "end"]


def _follow(corpus: Corpus, rng: random.Random, here: str, closed: set[str], last: bool) -> tuple[str, str] | None:
    """A link hop: the relation is drawn first, then the link. A dead end is taken as the last stop only."""
    groups = [hops for group in corpus.exits[here] if (hops := [hop for hop in group if hop[1] not in closed])]
    while groups:
        hops = rng.choice(groups)
        slot, target = rng.choice(hops)
        if last or any(hop[1] not in closed and hop[1] != target for group in corpus.exits[target] for hop in group):
            return f"follow {slot}", target
        hops.remove((slot, target))
        groups = [group for group in groups if group]
    return None


def _find(corpus: Corpus, rng: random.Random, here: str, closed: set[str]) -> tuple[str, str] | None:
    """An inverse hop to a page that links here and that no page of the trail so far named: it must be searched."""
    sources = [entry for entry in corpus.entries[here] if entry[1] not in closed]
    if not sources:
        return None
    relation, target = rng.choice(sources)
    masks = corpus.describe(target, (relation, here))
    return (f"find {rng.choice(masks)}", target) if masks else None


def _write_page(page: Page) -> str:
    facts = [f"{slot} {title}." for relation, titles in page.links.items() for slot, title in _slots(relation, titles)]
    facts += [f"{name} {page.attributes[name]}." for name in ("symbol",) if name in page.attributes]
    return " ".join([f"{page.title}: {page.kind}.", *facts])


def _slots(relation: str, titles: tuple[str, ...]) -> list[tuple[str, str]]:
    """``[("border 1", …), ("border 2", …)]``; a relation with one title goes without a number."""
    if len(titles) == 1:
        return [(relation, titles[0])]
    return [(f"{relation} {i}", title) for i, title in enumerate(titles, start=1)]


def _constraints(page: Page) -> Iterator[Constraint]:
    for relation, titles in page.links.items():
        for title in titles:
            yield relation, title
    if "symbol" in page.attributes:
        yield "symbol", str(page.attributes["symbol"])


def _all_near_duplicates(titles: list[str]) -> dict[str, frozenset[str]]:
    """Title → titles that are too much like it, either way round: one's words hold the other's (``Guinea``,
    ``Guinea-Bissau``), one begins with the other (``Niger``, ``Nigeria``), or they are spelt alike."""
    near: dict[str, set[str]] = {title: set() for title in titles}
    blocks: dict[str, list[str]] = {}
    for title in titles:
        for key in sorted({*words_of(title), "^" + title[:3].lower()}):
            blocks.setdefault(key, []).append(title)
    for block in blocks.values():
        for a, b in combinations(block, 2):
            if near_duplicates(a, b):
                near[a].add(b)
                near[b].add(a)
    return {title: frozenset(others) for title, others in near.items()}


_START = re.compile(r"start at (?:page (?P<title>.+?)|the (?P<mask>.+?))\. Follow")
_FIND = re.compile(r"(?P<kind>\w+) with (?P<query>.+)")
_FACT = re.compile(r"(?P<slot>[a-z]+(?: \d)?) (?P<title>[A-Z].*)")


def _expert(prompt: str, rng: random.Random, noise: float) -> Expert:
    """Reads the note of the page it stands on and does what it says, over and over.

    A step goes astray with chance ``noise`` (again and again with the same chance): a query that lost a word, a title
    that does not exist, or a wrong page, from which it goes back to its last page and reads the note again.
    """
    start = _START.search(prompt)
    assert start, f"not a search prompt: {prompt}"
    here, passed, facts = "", set[str](), dict[str, str]()  # facts: slot → title, of the page it stands on
    note = f"find {start['mask']}" if start["mask"] else f"start at page {start['title']}"
    while note != "end":
        verb, _, rest = note.partition(" ")
        if verb == "find":
            kind, found = yield from _look_up(rest, rng, noise)
            thoughts = {title: f"found {kind} {title}" for kind, title in found}
            target = next(title for of_kind, title in found if of_kind == kind)
        elif verb == "follow":
            thoughts = {title: f"follow {slot} {title}" for slot, title in facts.items()}
            target = facts[rest]
        else:
            target = start["title"]
            thoughts = {target: note}
        others = [title for title in thoughts if title != target and title not in passed]
        wrong = yield from _slip(target, thoughts[target], others, rng, noise)
        if wrong:
            yield Call("read_page", {"title": wrong}, thoughts[wrong])
            if rng.random() < LOST:
                yield Answer(f"Answer: {wrong}")
                return
            if not here:
                continue
            target, thoughts = here, {here: f"{BACK} {here}"}
        here = target
        passed.add(here)
        text, _, note = (yield Call("read_page", {"title": here}, thoughts[here])).text.rpartition(" note: ")
        facts = _read_facts(text)
    yield Answer(f"Answer: {here}")


def _look_up(
    description: str, rng: random.Random, noise: float
) -> Generator[Call, Observation, tuple[str, list[tuple[str, str]]]]:
    """Search until the right query was asked: the sought kind, and kind and title of every result."""
    match = _FIND.fullmatch(description)
    assert match, f"not a description: {description}"
    query, thought = match["query"], f"find {match['kind']}"
    while rng.random() < noise:
        words = query.split()
        del words[rng.randrange(len(words))]
        yield Call("search", {"query": " ".join(words)}, thought)
    observation = yield Call("search", {"query": query}, thought)
    results = [result.partition(" ") for result in observation.text.removesuffix(".").split(". ")]
    return match["kind"], [(kind, title) for kind, _, title in results]


def _slip(
    target: str, thought: str, others: list[str], rng: random.Random, noise: float
) -> Generator[Call, Observation, str]:
    """Misspelled titles; returns the wrong page that it reads instead of ``target``, mostly none."""
    while rng.random() < noise:
        if others and rng.random() < 0.7:
            return rng.choice(others)
        i = rng.choice([i for i, character in enumerate(target) if character.isalnum()])
        yield Call("read_page", {"title": target[:i] + target[i] + target[i:]}, thought)
    return ""


def _read_facts(text: str) -> dict[str, str]:
    """Slot → title, as a page's text lists its links."""
    matches = (_FACT.fullmatch(fact) for fact in text.removesuffix(".").split(". ")[1:])
    return {match["slot"]: match["title"] for match in matches if match and match["slot"] != "symbol"}
