"""The filters of controlled random walks over hyperlinked articles (section 3, search), each a function.

The paper names them; how each decides is ours and is said where it is:

* visited pages: ``unvisited``
* near-duplicate titles: ``unlike_all``
* disambiguation pages: ``is_disambiguation``
* list paragraphs: ``is_list``
* degree and length limits, low-degree nodes removed: ``fits_limits``, ``prune``
* dead ends: ``is_dead_end``; the auxiliary walk that follows one is the walk's own (foldoc_walk.py)
* topic shifts: ``shifts_topic``
* names masked: ``mask``
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from openhorizon.domains.corpora.foldoc import Article, link_texts, plain
from openhorizon.domains.search.titles import near_duplicates

MIN_WORDS, MAX_WORDS = 60, 2000  # of an article on a trail
MIN_LINKS, MAX_LINKS = 2, 60  # that lead on from it
MAX_ENTRIES = 150  # articles that link to it: what every other one names is no find
LIST_SHARE = 0.5  # of a paragraph's words inside links, from which on it is a list
GAP = "___"

_SENSE = re.compile(r"(\d)\. ")
_SENTENCE = re.compile(r"(?<=[.;:!?])\s+(?=[A-Z\"({<])")
_SEE = re.compile(r"(?:\[?see|compare|contrast)\b(?: also)?|opposite:", re.IGNORECASE)
_ABBREVIATION = re.compile(r"^(?:\d\. )?(?:<[^>]*> ?)?\(([^()]{2,60})\)")
_TABLE = re.compile(r"\S {2,}\S")


def unvisited(titles: Iterable[str], path: Collection[str]) -> list[str]:
    """Those that the trail has not come to yet."""
    return [title for title in titles if title not in path]


def unlike_all(title: str, path: Iterable[str]) -> bool:
    """Whether no title on the trail is a near-duplicate of this one."""
    return not any(near_duplicates(title, other) for other in path)


def is_disambiguation(article: Article) -> bool:
    """Several numbered senses (``1. … 2. …``): the article is about more than one thing."""
    senses = [match[1] for paragraph in article.paragraphs if (match := _SENSE.match(paragraph))]
    return senses[:2] == ["1", "2"]


def is_list(paragraph: str) -> bool:
    """A paragraph that only refers on, so that nothing in it says what the linked article is: a table or a listing
    (several lines), one that says to see, or one whose words mostly stand in links."""
    if "\n" in paragraph or _SEE.match(paragraph) or _TABLE.search(paragraph):
        return True
    linked = sum(len(text.split()) for text in link_texts(paragraph))
    return linked > 0 and linked >= LIST_SHARE * len(plain(paragraph).split())


def prose(article: Article) -> list[str]:
    """Its paragraphs without lists and without the date at its end."""
    last = f"({article.updated})"
    return [p for p in article.paragraphs if not is_list(p) and p != last]


def fits_limits(words: int, links: int, entries: int) -> bool:
    """Length and degree within the limits."""
    return MIN_WORDS <= words <= MAX_WORDS and MIN_LINKS <= links <= MAX_LINKS and entries <= MAX_ENTRIES


def prune(exits: Mapping[str, Collection[str]], fits: Callable[[str, int, int], bool]) -> set[str]:
    """The pages that stay when all that do not fit are removed, again and again, as links to a removed page no longer
    count. ``fits`` takes a title and its numbers of links and of entries."""
    kept = set(exits)
    while True:
        entries = Counter(target for title in kept for target in exits[title] if target in kept)
        staying = {title for title in kept if fits(title, sum(t in kept for t in exits[title]), entries[title])}
        if staying == kept:
            return kept
        kept = staying


def is_dead_end(targets: Iterable[str], path: Collection[str]) -> bool:
    """No link leads to a page that the trail may still visit."""
    return not any(unlike_all(title, path) for title in unvisited(targets, path))


def shifts_topic(a: Article, b: Article) -> bool:
    """Whether the two have subject labels and share none."""
    return bool(a.labels and b.labels and not set(a.labels) & set(b.labels))


def names(article: Article) -> list[str]:
    """What the article is called: title, other headlines, the abbreviation that opens its text; longest first."""
    found = [article.title, *article.aliases]
    for paragraph in article.paragraphs[:1]:
        match = _ABBREVIATION.match(plain(paragraph))
        if match:
            for part in re.split(r",| or ", match[1]):
                found += re.findall(r'"([^"]+)"', part) or [part.strip()]
    return sorted({name for name in found if len(name) > 1}, key=lambda name: (-len(name), name))


def mask(text: str, hidden: Sequence[str]) -> str:
    """``text`` with each of the names in ``hidden`` (and its plural) replaced by a gap."""
    for name in hidden:
        text = _named(name).sub(GAP, text)
    return text


@functools.lru_cache(maxsize=50_000)  # re's own cache is too small for thousands of names
def _named(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(name)}(?:e?s)?(?!\w)", re.IGNORECASE)


def sentences(paragraph: str) -> list[str]:
    """A prose paragraph's sentences, without the subject label before the first."""
    return _SENTENCE.split(re.sub(r"^<[^>]*> ?", "", paragraph))
