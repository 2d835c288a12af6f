"""Texts as words: what counts as the same text, and which of many texts hold a phrase.

Answers, arguments and entities are looked for as whole words in text that has lost its case and punctuation. One text
is searched by ``holds``; many, such as all that an episode of a hundred turns has shown, by ``Phrases``, which asks an
index of words first and reads only the texts that have the rarest word of the phrase.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

WORD = re.compile(r"\w+")


def normal(text: str) -> str:
    """What an answer check compares: case, punctuation, spacing and the form's own "Answer:" taken away."""
    return " ".join(WORD.findall(text.casefold().strip().removeprefix("answer:")))


def holds(text: str, value: str) -> bool:
    """Whether ``value`` stands in ``text`` as whole words; both are normalised already."""
    return bool(value) and f" {value} " in f" {text} "


class Phrases:
    """Normalised texts in the order in which they were added, searched for phrases as whole words."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._having: dict[str, list[int]] = {}  # word → the texts that have it, in order

    def add(self, text: str) -> None:
        for word in set(text.split(" ")):  # normalised: one space between words
            self._having.setdefault(word, []).append(len(self.texts))
        self.texts.append(f" {text} ")

    def holding(self, phrase: str) -> Iterator[int]:
        """Indices of the texts that hold ``phrase``, the latest first; none hold the empty one."""
        if not phrase:
            return
        rarest: list[int] | None = None
        for word in set(phrase.split(" ")):
            having = self._having.get(word)
            if having is None:
                return
            if rarest is None or len(having) < len(rarest):
                rarest = having
        assert rarest is not None, "a phrase has words"
        whole = f" {phrase} "
        yield from (i for i in reversed(rarest) if whole in self.texts[i])

    def latest(self, phrase: str) -> int | None:
        """The latest text that holds ``phrase``."""
        return next(self.holding(phrase), None)
