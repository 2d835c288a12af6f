"""Two libraries: pages of substances behind ``search`` and ``visit``, reference texts behind ``scholar``.

Search is lexical: a text's rank is the summed rarity of the query's words that it holds, words of its title counting
more, damped by its length. A query that holds a whole title, or another name that means one text alone (a CAS number,
a synonym), ranks that text first: the longest such name, as a look-up in an index would.
"""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from openhorizon.domains.corpora.compounds import load_compounds, load_ions
from openhorizon.domains.corpora.elements import load_elements
from openhorizon.domains.corpora.reference import Text, load_reference
from openhorizon.domains.corpora.substances import Substance

RESULTS = 6
COMMON = 0.2  # share of texts beyond which a word is ignored
TITLE_WEIGHT = 3.0
MAX_NAME_WORDS = 10
SHOWN_NAMES = 4


@dataclass(frozen=True)
class Entry:
    """What is indexed of a text."""

    title: str
    names: tuple[str, ...]
    text: str


class Library:
    def __init__(self, entries: Sequence[Entry]) -> None:
        self.titles: dict[str, str] = {}  # in one spelling → title; titles before other names
        for entry in entries:
            self.titles[normal(entry.title)] = entry.title
        for entry in entries:
            for name in entry.names:
                self.titles.setdefault(normal(name), entry.title)
        held = {entry.title: (words(f"{entry.title} {' '.join(entry.names)}"), words(entry.text)) for entry in entries}
        count = Counter(word for title_words, text in held.values() for word in {*title_words, *text})
        self.postings: dict[str, list[tuple[str, float]]] = {}
        for title, (title_words, text) in held.items():
            length = 1.0 + math.log1p(len(text))
            for word in sorted({*title_words, *text}):
                if count[word] <= COMMON * len(entries):
                    rarity = math.log(len(entries) / count[word])
                    weight = TITLE_WEIGHT if word in title_words else 1.0 / length
                    self.postings.setdefault(word, []).append((title, rarity * weight))
        self.search = functools.lru_cache(maxsize=20_000)(self._search)

    def find(self, title: str) -> str | None:
        """The text that goes by this title or name."""
        return self.titles.get(normal(title))

    def _search(self, query: str) -> tuple[str, ...]:
        asked = words(query)
        scores: dict[str, float] = {}
        for word in dict.fromkeys(asked):
            for title, weight in self.postings.get(word, ()):
                scores[title] = scores.get(title, 0.0) + weight
        named = self._named(asked)
        return tuple(sorted(scores, key=lambda title: (title != named, -scores[title], title))[:RESULTS])

    def _named(self, asked: Sequence[str]) -> str | None:
        """The text whose name stands in the query, the longest first."""
        for length in range(min(len(asked), MAX_NAME_WORDS), 0, -1):
            for start in range(len(asked) - length + 1):
                title = self.titles.get(" ".join(asked[start : start + length]))
                if title is not None:
                    return title
        return None


@functools.cache
def substances() -> Mapping[str, Substance]:
    """Every page by title. An element keeps its title where a compound has the same one."""
    return {**load_ions(), **load_compounds(), **load_elements()}


@functools.cache
def pages() -> Library:
    return Library([Entry(s.title, s.names, s.text) for s in substances().values()])


@functools.cache
def texts() -> Mapping[str, Text]:
    return load_reference()


@functools.cache
def reference() -> Library:
    return Library([Entry(text.title, (), text.text) for text in texts().values()])


@functools.cache
def snippet(title: str) -> str:
    """A line about a page, as a result list shows it: what it is called and what it has, no data."""
    page = substances()[title]
    known = [page.facts[label][0] for label in ("Formula", "Symbol", "Ion formula") if label in page.facts]
    parts = re.findall(r"^## (.+)$", page.text, re.MULTILINE)
    about = [*known, *page.names[:SHOWN_NAMES]]
    return f"{page.title} ({page.kind}): {'; '.join(about)}. {page.text.count(chr(10))} lines" + (
        f" on {', '.join(parts).lower()}." if parts else "."
    )


def words(text: str) -> list[str]:
    return re.findall(r"[a-z0-9]+", text.lower())


def normal(title: str) -> str:
    return " ".join(words(title))
