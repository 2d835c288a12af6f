"""Controlled random walks over the dictionary: what a trail's stops are and how each note hides the next one.

Four kinds of hop lead from a stop to the next:

* a *link*: a sentence of the page with one link left out: the next stop is what stands there (1 call);
* a *search*: a description of an article that no page so far named, either one that links to this page or, as a topic
  shift, any one of another subject; its own first sentences with its names masked (2 calls);
* a *program*: the link of this page that a computation over pages read so far comes to (2 calls);
* and each further part of a long page costs a call (``PART_WORDS``).

A walk that dies (no way on that the filters leave, or none that fits the calls left) goes back a stop and tries another
branch, the auxiliary walk, ``AUXILIARY`` times.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from openhorizon.domains.corpora.foldoc import Article, Dictionary, link_texts, load_foldoc, plain
from openhorizon.domains.corpora.fulltext import FullText, build, tokens
from openhorizon.domains.search import filters, programs
from openhorizon.domains.search.results import cut, read_results, write_results

RESULTS = 10
SNIPPET_WORDS = 60
PART_WORDS = 500
SEARCH, SHIFT, PROGRAM = 0.3, 0.3, 0.12  # chances: a hop is searched; a searched one shifts the topic; is computed
AUXILIARY = 12
TRIED = 8  # targets tried for one hop of a kind
DESCRIBED = (12, 45)  # words of a description
CLOZE = (6, 60)  # words of a sentence that a link is left out of
MASKED = 0.5  # chance that a start is described instead of named
OTHERS = 4  # pages before the last that a program reads, at most
COMPUTE = "let a program find the next stop among the different links of this page (what stands in braces)."
COMPUTED: Mapping[str, tuple[Callable[[str, list[str]], str], str]] = {
    "words": (
        programs.by_words,
        "Number them from 0 in their order; take the one whose number is the remainder of the count of all words (runs "
        "of letters, digits and underscores) on these pages, divided by how many links there are.",
    ),
    "days": (
        programs.by_days,
        "Number them from 0 in their order; take the one whose number is the remainder of the days between the dates "
        "at the foot of these two pages, divided by how many links there are.",
    ),
    "alphabet": (
        programs.by_alphabet,
        "Sort the different links of all these pages by alphabet; the middle one is number n // 2 of n, from 0. Take "
        "the first link of this page that comes behind it, or, if none does, this page's first by alphabet.",
    ),
}
DESCRIPTION = re.compile(r'it says: "(.*)"', re.DOTALL)


@dataclass(frozen=True)
class Hop:
    """How a stop is left: ``note`` tells it, ``target`` is the next stop, ``result`` what a program must print."""

    note: str
    target: str
    calls: int
    result: str = ""


@dataclass(frozen=True)
class Trail:
    """``start`` is how the prompt names the first stop; ``hops[i]`` leads from ``stops[i]`` on."""

    start: str
    stops: tuple[str, ...]
    hops: tuple[Hop, ...]


class Library:
    """The dictionary with what walks and tools need, prepared once."""

    def __init__(self, dictionary: Dictionary, index: FullText) -> None:
        self.dictionary, self.index = dictionary, index
        self.articles = dictionary.articles
        self.texts = {title: page_text(article) for title, article in self.articles.items()}
        self.words = {title: len(text.split()) for title, text in self.texts.items()}
        self.prose = {title: filters.prose(article) for title, article in self.articles.items()}
        exits = {title: self._exits(title) for title in self.articles}
        several = {title for title, article in self.articles.items() if filters.is_disambiguation(article)}
        candidates = {title: targets for title, targets in exits.items() if title not in several}
        self.walkable = filters.prune(
            candidates, lambda title, links, entries: filters.fits_limits(self.words[title], links, entries)
        )
        self.report: Mapping[str, int] = {
            **dictionary.report,
            "dropped: disambiguation": len(several),
            "dropped: length or degree": len(candidates) - len(self.walkable),
            "list paragraphs": sum(filters.is_list(p) for a in self.articles.values() for p in a.paragraphs),
            "walkable": len(self.walkable),
        }
        self.starts = sorted(self.walkable)
        self.exits = {title: [t for t in exits[title] if t in self.walkable] for title in self.starts}
        self.entries: dict[str, list[str]] = {title: [] for title in self.starts}
        for title in self.starts:
            for target in self.exits[title]:
                self.entries[target].append(title)
        self.parts = functools.cache(self._parts)
        self.names = functools.cache(lambda title: filters.names(self.articles[title]))
        self.clozes = functools.cache(lambda title: clozes(self.texts[title]))
        self.describe = functools.cache(self._describe)
        self.results = functools.lru_cache(maxsize=20_000)(self._results)
        self.linked = {title: frozenset(t for _, t in article.links) for title, article in self.articles.items()}

    def _exits(self, title: str) -> list[str]:
        """What the article's prose links to, each once, in order."""
        linked = {text for paragraph in self.prose[title] for text in link_texts(paragraph)}
        return list(dict.fromkeys(target for text, target in self.articles[title].links if text in linked))

    def _parts(self, title: str) -> tuple[str, ...]:
        return split_parts(self.texts[title])

    def _results(self, query: str) -> str:
        """What the tool ``search`` returns: titles with the passage that fits the query best."""
        wanted = set(tokens(query))
        found = self.index.search(query, RESULTS)
        return write_results((title, snippet(self.articles[title], wanted)) for title in found)

    def _describe(self, title: str) -> str:
        """The article's first sentences of prose with its names masked, if a search for them finds it: the reader's own
        choice among the results has to be right. Else empty."""
        said_by = [s for paragraph in self.prose[title][:2] for s in filters.sentences(plain(paragraph))]
        chosen: list[str] = []
        for sentence in [filters.mask(s, self.names(title)) for s in said_by if s.endswith((".", "!", "?"))]:
            if sum(len(s.split()) for s in [*chosen, sentence]) > DESCRIBED[1]:
                break
            chosen.append(sentence)
        said = " ".join(chosen).replace('"', "'")
        if not DESCRIBED[0] <= len(said.split()) <= DESCRIBED[1]:
            return ""
        return said if choose(self.results(said), said) == title else ""


@functools.cache
def library() -> Library:
    dictionary = load_foldoc()
    pages = [(title, plain(page_text(article))) for title, article in dictionary.articles.items()]
    return Library(dictionary, build("foldoc", pages))


def page_text(article: Article) -> str:
    """The article as a page shows it."""
    also = [f"Also: {'; '.join(article.aliases)}"] if article.aliases else []
    return "\n\n".join([*also, *article.paragraphs])


def split_parts(text: str) -> tuple[str, ...]:
    """A page in parts of at most ``PART_WORDS`` words, cut between paragraphs (a longer paragraph is a part)."""
    parts: list[list[str]] = [[]]
    for paragraph in text.split("\n\n"):
        if parts[-1] and sum(len(p.split()) for p in [*parts[-1], paragraph]) > PART_WORDS:
            parts.append([])
        parts[-1].append(paragraph)
    return tuple("\n\n".join(part) for part in parts)


def snippet(article: Article, wanted: set[str]) -> str:
    """The paragraph with most of the words, cut; the first of equals."""
    best = max(article.paragraphs, key=lambda p: len(wanted & set(tokens(p))))
    return cut(plain(best), SNIPPET_WORDS)


def clozes(text: str) -> dict[str, str]:
    """Sentence of a page's prose with one link left out → that link, where the sentence tells it from all others."""
    found: dict[str, set[str]] = {}
    for paragraph in text.split("\n\n"):
        if filters.is_list(paragraph):
            continue
        for sentence in filters.sentences(paragraph):
            if not CLOZE[0] <= len(sentence.split()) <= CLOZE[1] or '"' in sentence:
                continue
            for link in dict.fromkeys(link_texts(sentence)):
                gapped = filters.mask(plain(sentence.replace(f"{{{link}}}", filters.GAP)), [link])
                found.setdefault(gapped, set()).add(link)
    return {cloze: min(links) for cloze, links in found.items() if len(links) == 1}


def choose(results: str, description: str) -> str:
    """The title of the result whose snippet says most of the description's words; empty where there is none."""
    wanted = set(tokens(description)) - {filters.GAP}
    scored = [(len(wanted & set(tokens(text))), title) for title, text in read_results(results)]
    return max(scored, key=lambda pair: pair[0])[1] if scored else ""


def walk(lib: Library, rng: random.Random, horizon: int) -> Trail | None:
    """A trail of exactly ``horizon`` calls; None where it dies too often, or shows its end too early."""
    first = rng.choice(lib.starts)
    said = lib.describe(first) if rng.random() < MASKED else ""
    calls = len(lib.parts(first)) + bool(said)
    if calls > horizon:
        return None
    stops, hops, dead = [first], list[Hop](), set[str]()
    while calls < horizon:
        hop = _next_hop(lib, rng, stops, dead, horizon - calls)
        if hop is not None:
            stops.append(hop.target)
            hops.append(hop)
            calls += hop.calls
        elif len(stops) > 1 and len(dead) < AUXILIARY:  # the auxiliary walk: another branch from the stop before
            dead.add(stops.pop())
            calls -= hops.pop().calls
        else:
            return None
    start = f'that says: "{said}"' if said else f'"{first}"'
    trail = Trail(start, tuple(stops), tuple(hops))
    return None if _shows_end_early(lib, trail, said, horizon) else trail


def _next_hop(lib: Library, rng: random.Random, stops: Sequence[str], dead: Collection[str], left: int) -> Hop | None:
    """A hop of a kind that is drawn; a link where that kind has none here, then whatever there is."""
    drawn, shifted = rng.random(), rng.random() < SHIFT
    kinds: list[Callable[[], Iterator[Hop]]] = [lambda: _links(lib, rng, stops)]
    if left > 1:
        searched = [lambda: _searches(lib, rng, stops, shifted), lambda: _searches(lib, rng, stops, not shifted)]
        computed = [lambda: _programs(lib, rng, stops)]
        if drawn < PROGRAM:
            kinds = [*computed, *kinds, *searched]
        elif drawn < PROGRAM + SEARCH:
            kinds = [*searched, *kinds, *computed]
        else:
            kinds = [*kinds, *searched, *computed]
    path = set(stops)
    for kind in kinds:
        for hop in kind():
            if hop.calls > left or hop.target in dead or not filters.unlike_all(hop.target, stops):
                continue
            if hop.calls < left and filters.is_dead_end(lib.exits[hop.target], path | {hop.target}):
                continue
            return hop
    return None


def _links(lib: Library, rng: random.Random, stops: Sequence[str]) -> Iterator[Hop]:
    """Sentences of the page with a link left out that they do not name otherwise."""
    found = list(lib.clozes(stops[-1]).items())
    rng.shuffle(found)
    for cloze, link in found:
        target = lib.dictionary.find(link)
        if target is None or target not in lib.walkable or target in stops:
            continue
        if filters.mask(cloze, lib.names(target)) == cloze:
            note = f'go on to what fills the gap in this sentence of the page: "{cloze}"'
            yield Hop(note, target, len(lib.parts(target)))


def _searches(lib: Library, rng: random.Random, stops: Sequence[str], shifted: bool) -> Iterator[Hop]:
    """Described articles that no page of the trail links to: of another subject, or such as link to this page."""
    here = stops[-1]
    pool = lib.starts if shifted else lib.entries[here]
    for target in rng.sample(pool, min(TRIED, len(pool))):
        if target in stops or any(target in lib.linked[stop] for stop in stops):
            continue
        if shifted and not filters.shifts_topic(lib.articles[here], lib.articles[target]):
            continue
        said = lib.describe(target)
        if said:
            relation = "is about something else" if shifted else "links to this one"
            note = f'search for an article that {relation}; it says: "{said}"'
            yield Hop(note, target, 1 + len(lib.parts(target)))


def _programs(lib: Library, rng: random.Random, stops: Sequence[str]) -> Iterator[Hop]:
    """Computations over this page and those before it that come to a link of this page."""
    here, before = stops[-1], list(stops[-1 - OTHERS : -1])
    for kind in rng.sample(sorted(COMPUTED), len(COMPUTED)):
        others = before[-1:] if kind == "days" else before
        if kind == "days" and not (others and all(lib.articles[title].updated for title in (here, *others))):
            continue
        if not lib.articles[here].links:
            continue
        result = COMPUTED[kind][0](lib.texts[here], [lib.texts[title] for title in others])
        target = lib.dictionary.find(result)
        if target is None or target not in lib.walkable or target in stops:
            continue
        pages = ", ".join([f'"{title}"' for title in others] + ["this page"])
        yield Hop(f"{COMPUTE} {COMPUTED[kind][1]} Pages: {pages}.", target, 1 + len(lib.parts(target)), result)


def _shows_end_early(lib: Library, trail: Trail, said: str, horizon: int) -> bool:
    """Whether the last stop's title stands in the prompt or in what the first half of the calls shows. A trail of one
    call is a look-up: its prompt names what to read."""
    if horizon < 2:
        return False
    if horizon > 2 and trail.stops[-1] in lib.linked[trail.stops[0]]:
        return True  # under another name, perhaps
    end = f" {' '.join(tokens(trail.stops[-1]))} "
    shown = [trail.start]
    if said:
        shown.append(lib.results(said))
    for stop, hop in zip(trail.stops, [*trail.hops, None], strict=True):
        shown += lib.parts(stop)
        if hop is not None:
            shown[-1] += f" {hop.note}"
            match = DESCRIPTION.search(hop.note)
            shown += [hop.result] if hop.result else [lib.results(match[1])] if match else []
    early = 1 + max(horizon - max(2, round(horizon / 2)), 0)
    return any(end in f" {' '.join(tokens(text))} " for text in shown[:early])
