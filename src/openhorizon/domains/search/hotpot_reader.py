"""A reader of HotpotQA questions by rules: what a script can find out honestly from searches and pages.

It sees a question's words and what the tools show, never the annotation. It searches for the question, reads the pages
that the question names, searches for what it has not found yet, and then

* compares dates with a program (``Which magazine was started first, A or B?``),
* checks what both pages say (``Are A and B both …?``, ``of the same nationality?``),
* picks the one of two pages that says more of the question's words (``Which one is a …, A or B?``),
* or, for a question of two hops, picks what answers it out of the second page: a year, a number, a nationality, a
  place, or that page's own name.

It is weak (docs/domains-search.md has how often it is right), and most of what it gets wrong it gets wrong for good. So
a task is built of questions that it answers right from what it observed, and stronger solvers are measured on them.
"""

from __future__ import annotations

import random
import re
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from openhorizon.domains.base import Call, Observation
from openhorizon.domains.corpora.fulltext import tokens
from openhorizon.domains.search import programs
from openhorizon.domains.search.results import read_results

Reading = Generator[Call, Observation, str]

_STOP = frozenset(
    tokens(
        "a an and are as at be been both by can did do does for from had has have he her his how in is it its of on "
        "one or same she that the their they this to was were what when where which who whom whose why will with you "
        "following between two there than first name into also"
    )
)
_EARLIER = re.compile(r"\b(?:first|earlier|earliest|older|oldest|before|born first|longer ago|previously)\b", re.I)
_LATER = re.compile(
    r"\b(?:later|latest|younger|youngest|newer|newest|more recent(?:ly)?|most recent(?:ly)?|last)\b", re.I
)
_TIMELY = re.compile(
    r"born|older|oldest|younger|youngest|found|establish|start|form|publish|release|open|creat|buil|complet|launch|came|"
    r"come|made|earl|recent|newer|premier|debut|fought|written|existence|occur|began|happen|take place|took place|died",
    re.I,
)
_BOTH = re.compile(r"^(?:are|were|is|was|do|does|did|have|has|had|both|can|could)\b", re.I)
_SAME = re.compile(
    r"\bsame (nationality|country|genus|family|state|city|profession|occupation|type)\b|nationalit", re.I
)
_NATION = re.compile(r"\b(?:is|was|are|were) (?:an?|the) (?:[a-z-]+ ){0,3}([A-Z][a-z]+(?:[- ][A-Z][a-z]+)?)")
_PAGE = re.compile(r"# (?P<title>.+?)\n\n(?P<text>.*)\n\nFile: (?P<file>\S+)", re.DOTALL)
_YEAR = re.compile(r"\b(?:1[0-9]|20)\d\d\b")
_NUMBER = re.compile(r"\b\d[\d,]*(?:\.\d+)?\b")
_PLACE = re.compile(r"(?<=\bin )(?:the )?[A-Z][\w.'-]+(?: [A-Z][\w.'-]+)*(?:, [A-Z][\w.'-]+)?")


@dataclass(frozen=True)
class Page:
    title: str
    text: str
    file: str

    @property
    def name(self) -> str:
        return bare(self.title)


def bare(title: str) -> str:
    """A title without what tells it from others in parentheses."""
    return re.sub(r" \([^()]*\)$", "", title)


def stem(word: str) -> str:
    """Enough of a word to compare it: plural and tense endings taken away."""
    for ending in ("ies", "ing", "ers", "ed", "er", "es", "s"):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word[: -len(ending)]
    return word


def content(text: str) -> list[str]:
    """The stems of a text's telling words, each once, in order."""
    return list(dict.fromkeys(stem(word) for word in tokens(text) if word not in _STOP))


def mentioned(title: str, question: str) -> int:
    """Where the question names this title (its position from 1), or 0."""
    name = " ".join(tokens(bare(title)))
    asked = " ".join(tokens(question))
    found = f" {asked} ".find(f" {name} ") + 1
    return found if name and len(name) > 2 else 0


def read_question(question: str, rng: random.Random, noise: float) -> Reading:
    """Work on one question; the answer, or "" where it has none."""
    results = yield from _search(question, "I search for the question's own words.", rng, noise)
    named = sorted((title for title, _ in results if mentioned(title, question)), key=lambda t: mentioned(t, question))
    named = _drop_parts(named, question)
    options = two_options(question)
    if options and len(named) < 2:
        for option in options:
            if not any(_same_name(option, title) for title in named):
                found = yield from _search(option, f"I have not found {option} yet.", rng, noise)
                named += [t for t, _ in found if _same_name(option, t)][:1] or [t for t, _ in found][:1]
        named = sorted(dict.fromkeys(named), key=lambda t: mentioned(t, question) or len(question))
    if options and len(named) >= 2:
        pages = []
        for title in named[:2]:
            pages.append((yield from _read(title, f"The question asks about {title}.", rng, noise)))
        return (yield from _compare(question, pages[0], pages[1], rng, noise))
    return (yield from _two_hops(question, results, named, rng, noise))


_NAME_WORDS = r"(?:[A-Z0-9\"][^\s,:]*)(?: (?:[A-Z0-9\"(&][^\s,:]*|of|the|and|de|von|van|for|in|on|a|to|is))*"
_LEFT = re.compile(rf"({_NAME_WORDS}),?$")
_RIGHT = re.compile(rf"(?:the |an? |by )?({_NAME_WORDS.replace('|and', '').replace('|is', '')})")
_LEAD = re.compile(
    r"^(?:Are|Were|Is|Was|Do|Does|Did|Have|Has|Both|Which|Who|What|Between|In|Of)\b (?:between |both )?(?:the )?"
)


def two_options(question: str) -> tuple[str, str] | None:
    """The two things that a comparison names, on both sides of its "or" or "and", as the question writes them."""
    text = question.strip().rstrip("?").strip()
    joint = " or " if " or " in text else " and "
    for match in re.finditer(joint, text):
        left, right = _LEFT.search(text[: match.start()]), _RIGHT.match(text[match.end() :])
        if left and right:
            first = _LEAD.sub("", left[1]).strip(' "')
            second = re.sub(r" (?:of|the|in|on|a|to|for)$", "", right[1]).strip(' "')
            if first and second:
                return first, second
    return None


def _same_name(option: str, title: str) -> bool:
    a, b = tokens(option), tokens(bare(title))
    return bool(a and b) and (a == b or set(a) <= set(b) or set(b) <= set(a))


def _drop_parts(named: list[str], question: str) -> list[str]:
    """Titles inside a longer named one (``Ed`` in ``Ed Wood``) go; of two pages of one name the first stays."""
    kept: list[str] = []
    for title in named:
        name = " ".join(tokens(bare(title)))
        others = [" ".join(tokens(bare(t))) for t in named]
        inside = any(name != other and f" {name} " in f" {other} " for other in others)
        if not inside and name not in [" ".join(tokens(bare(t))) for t in kept]:
            kept.append(title)
    return kept


def _compare(question: str, a: Page, b: Page, rng: random.Random, noise: float) -> Reading:
    """What two read pages say to the question."""
    if _BOTH.match(question) and not re.search(r"\bor\b|\bwhich\b|\bwhat\b|\bwho\b|\bthis\b", question):
        return _both(question, a, b)
    if not re.search(r"\bor\b", question):
        return _common(question, a, b)
    later = bool(_LATER.search(question))
    if (later or _EARLIER.search(question)) and _TIMELY.search(question):
        wanted = max if later else min
        code = programs.program(
            (programs.read, programs.first_year),
            f'years = {{{a.name!r}: first_year(read("{a.file}")), {b.name!r}: first_year(read("{b.file}"))}}\n'
            f"print(years, {wanted.__name__}(years, key=years.get), sep='\\n')",
        )
        thought = f"A program takes the years from both pages and finds the {'later' if later else 'earlier'} one."
        if rng.random() < noise:
            yield Call("code", {"code": code.replace("first_year(read", "year(read")}, thought)
            thought = "The function is called first_year; I correct it."
        observed = yield Call("code", {"code": code}, thought)
        lines = observed.text.strip().split("\n")
        return "" if observed.error or "9999" in lines[0] else lines[-1]
    names = set(content(f"{a.title} {b.title}"))
    asked = [word for word in content(question) if word not in names]
    said = [set(content(page.text)) for page in (a, b)]
    scores = [sum(word in words for word in asked) for words in said]
    return "" if scores[0] == scores[1] else (a if scores[0] > scores[1] else b).name


def _both(question: str, a: Page, b: Page) -> str:
    """Yes where both pages say what is asked for."""
    same = _SAME.search(question)
    if same:
        nations = [match[1].split("-")[0] for page in (a, b) if (match := _NATION.search(page.text))]
        return "" if len(nations) < 2 else "yes" if nations[0] == nations[1] else "no"
    names = set(content(f"{a.title} {b.title}"))
    asked = [word for word in content(question) if word not in names]
    if not asked:
        return ""
    return "yes" if all(word in content(page.text) for page in (a, b) for word in asked) else "no"


def _common(question: str, a: Page, b: Page) -> str:
    """What both pages call their subject: the first noun of one's opening that stands in the other's."""
    if re.search(r"nationalit|what country|which country", question, re.I):
        nations = [match[1] for page in (a, b) if (match := _NATION.search(page.text))]
        return nations[0] if len(nations) == 2 and nations[0] == nations[1] else ""
    openings = [re.split(r"\b(?:is|was|are|were) ", page.text, maxsplit=1)[-1].split(". ")[0] for page in (a, b)]
    roles = [re.findall(r"\b[a-z]{4,}\b", opening) for opening in openings]
    asked = set(content(question))
    shared = [word for word in roles[0] if word in roles[1] and stem(word) not in asked and word not in _STOP]
    return shared[0] if shared else ""


def _two_hops(
    question: str, results: list[tuple[str, str]], named: list[str], rng: random.Random, noise: float
) -> Reading:
    """Read the page that the question names (or the best result), then the one that it leads to."""
    if not results:
        return ""
    first = yield from _read(named[0] if named else results[0][0], "This fits the question best.", rng, noise)
    asked = content(question)
    left = [word for word in asked if word not in content(first.text)]
    linked = [t for t, _ in results if t != first.title and mentioned(t, first.text)]
    back = [t for t, text in results if t != first.title and mentioned(first.title, text)]
    if not linked and not back:
        more = yield from _search(
            f"{first.name} {' '.join(w for w in tokens(question) if stem(w) in left)}",
            f"{first.title} is not all; I search for what leads on from it.",
            rng,
            noise,
        )
        known = {title for title, _ in results}
        results = results + [(t, text) for t, text in more if t not in known]
        linked = [t for t, _ in results if t != first.title and mentioned(t, first.text)]
        back = [t for t, text in results if t != first.title and mentioned(first.title, text)]
    pool = list(dict.fromkeys([*named[1:], *linked, *back])) or [t for t, _ in results if t != first.title]
    passages = dict(results)
    if not pool:
        return ""
    best = max(pool[:10], key=lambda title: len(set(asked) & set(content(f"{title} {passages.get(title, '')}"))))
    second = yield from _read(best, f"{best} leads on from {first.title}.", rng, noise)
    return _pick(question, first, second)


def _pick(question: str, first: Page, second: Page) -> str:
    """What answers the question, by its form, out of the page that says more of its words without being named in it."""
    pages = [second, first]
    asked = question.lower()
    unnamed = [page for page in pages if not mentioned(page.title, question)]
    if re.search(r"\b(?:what|which) year\b|\bwhen\b|\bin what year\b|\bwhat date\b", asked):
        return _near(question, pages, _YEAR)
    if re.search(
        r"\bhow many\b|\bwhat (?:is the )?(?:number|population)\b|\bhow (?:old|tall|high|long|large)\b", asked
    ):
        return _near(question, pages, _NUMBER)
    if re.search(r"\bnationality\b", asked):
        found = [match for page in unnamed or pages if (match := _NATION.search(page.text))]
        return found[0][1] if found else ""
    if re.search(r"\bwhere\b|\b(?:what|which) (?:city|town|county|state|country|village|borough)\b", asked):
        return _near(question, pages, _PLACE)
    return unnamed[0].name if unnamed else ""


def _near(question: str, pages: Sequence[Page], pattern: re.Pattern[str]) -> str:
    """The match in the sentence that says most of the question's words; within it the first that the question lacks."""
    asked = content(question)
    best, answer = 0.0, ""
    for page in pages:
        for sentence in re.split(r"(?<=[.;])\s+(?=[A-Z])", page.text):
            found = [m for m in pattern.findall(sentence) if m not in question]
            score = sum(word in content(sentence) for word in asked) - 0.01 * len(found)
            if found and score > best:
                best, answer = score, found[0]
    return answer


def _search(
    query: str, thought: str, rng: random.Random, noise: float
) -> Generator[Call, Observation, list[tuple[str, str]]]:
    """Results of a search; a noisy one first asks with too few words."""
    words = query.split()
    if len(words) > 3 and rng.random() < noise:
        yield Call("search", {"query": " ".join(sorted(rng.sample(words, 2), key=words.index))}, thought)
        thought = "Too few words to find it; I search again."
    return read_results((yield Call("search", {"query": query[:500]}, thought)).text)


def _read(title: str, thought: str, rng: random.Random, noise: float) -> Generator[Call, Observation, Page]:
    """A page by its title; a noisy reader first misspells it."""
    if rng.random() < noise:
        i = rng.randrange(len(title))
        yield Call("read_page", {"title": title[:i] + title[i] + title[i:]}, thought)
        thought = f"The title is {title}."
    match = _PAGE.match((yield Call("read_page", {"title": title}, thought)).text)
    assert match, f"not a page: {title}"
    return Page(match["title"], match["text"], match["file"])
