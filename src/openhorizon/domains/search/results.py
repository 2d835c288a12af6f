"""How search results are written and read back, and what an answer is compared by."""

from __future__ import annotations

import re
from collections.abc import Iterable

_RESULT = re.compile(r"\d+\. \[(?P<title>.+?)\] (?P<text>.*)")
_ARTICLE = re.compile(r"\b(?:a|an|the)\b")


def write_results(found: Iterable[tuple[str, str]]) -> str:
    """Titles with a passage each, numbered."""
    return "\n".join(f"{rank}. [{title}] {passage}" for rank, (title, passage) in enumerate(found, start=1))


def read_results(text: str) -> list[tuple[str, str]]:
    """Title and passage of each result, as ``write_results`` has written them."""
    return [(match["title"], match["text"]) for line in text.split("\n") if (match := _RESULT.fullmatch(line))]


def cut(text: str, limit: int) -> str:
    """The first ``limit`` words."""
    words = text.split()
    return " ".join(words[:limit]) + (" …" if len(words) > limit else "")


def answer_key(text: str) -> str:
    """What answers are compared by: case, punctuation, articles and spacing taken away."""
    bare = "".join(c if c.isalnum() else " " if c in "-–/" else "" if not c.isspace() else " " for c in text.casefold())
    return " ".join(_ARTICLE.sub(" ", bare).split())
