"""What the search worlds share about words and titles."""

from __future__ import annotations

import functools
import re
from difflib import SequenceMatcher

NEAR_RATIO = 0.85  # titles at least this similar are near-duplicates


def words_of(text: str) -> list[str]:
    """ASCII words and numbers in lower case."""
    return re.findall(r"[a-z0-9]+", text.lower())


def normal(title: str) -> str:
    """What titles are compared by."""
    return " ".join(words_of(title))


def alike(a: str, b: str) -> bool:
    """Whether two titles in lower case are spelt alike, or one begins with the other (``niger``, ``nigeria``)."""
    # Of "Group 8" and "Group 18" only the number tells, and it does.
    if a[-1].isdigit() and b[-1].isdigit():
        return False
    if a.startswith(b) or b.startswith(a):
        return True
    if 2 * min(len(a), len(b)) < NEAR_RATIO * (len(a) + len(b)):
        return False  # the ratio cannot be larger than that
    matcher = SequenceMatcher(None, a, b)
    return matcher.quick_ratio() >= NEAR_RATIO and matcher.ratio() >= NEAR_RATIO


@functools.lru_cache(maxsize=200_000)
def near_duplicates(a: str, b: str) -> bool:
    """Too much like each other to be two stops of one trail: one's words hold the other's (``Guinea``,
    ``Guinea-Bissau``), or they are spelt alike."""
    if a.casefold() == b.casefold():
        return True
    of_a, of_b = set(words_of(a)), set(words_of(b))
    if of_a and of_b and (of_a <= of_b or of_b <= of_a):
        return True
    return alike(a.lower(), b.lower())
