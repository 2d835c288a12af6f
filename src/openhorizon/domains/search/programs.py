"""Small programs over pages that were read: the plain functions, and the text of a program that calls one.

A search world asks for a computation, its expert writes it for the tool ``code``, and the environment knows what comes
out from the same function. A program is self-contained: it starts with the functions' own source and reads the files
that ``read_page`` has left in the workspace.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

IMPORTS = "import re\nfrom datetime import date\nfrom pathlib import Path"


def links_of(text: str) -> list[str]:
    """The different links of a page, in order: what stands in braces."""
    return list(dict.fromkeys(re.findall(r"\{([^{}]+)\}", text)))


def by_words(page: str, others: list[str]) -> str:
    """Count the words of all these pages; the link of ``page`` with that number, counted round and round from 0."""
    count = sum(len(re.findall(r"\w+", text)) for text in [page, *others])
    links = links_of(page)
    return links[count % len(links)]


def by_days(page: str, others: list[str]) -> str:
    """The days between the dates at the foot of ``page`` and of the last of ``others``; the link of that number."""
    dates = [date.fromisoformat(re.findall(r"\((\d{4}-\d\d-\d\d)\)", text)[-1]) for text in (page, others[-1])]
    links = links_of(page)
    return links[abs((dates[0] - dates[1]).days) % len(links)]


def by_alphabet(page: str, others: list[str]) -> str:
    """Sort the different links of all these pages; the first link of ``page`` behind the middle one, or its first."""
    every = sorted({link for text in [page, *others] for link in links_of(text)}, key=str.lower)
    middle = every[len(every) // 2].lower()
    behind = [link for link in sorted(links_of(page), key=str.lower) if link.lower() > middle]
    return (behind or sorted(links_of(page), key=str.lower))[0]


def read(name: str) -> str:
    """A page that ``read_page`` has kept."""
    return Path(name).read_text(encoding="utf-8")


@functools.cache
def source(function: Callable[..., object]) -> str:
    """A function's source without its docstring and without annotations' need of anything."""
    lines = inspect.getsource(function).rstrip().split("\n")
    body = [line for line in lines if not line.strip().startswith('"""')]
    return "\n".join(body)


def program(functions: Sequence[Callable[..., object]], last: str) -> str:
    """A program of these functions that ends with ``last``. Imports only what the functions use."""
    text = "\n\n\n".join(source(function) for function in functions)
    used = [line for line in IMPORTS.split("\n") if re.search(rf"\b{line.split()[-1]}\b", text)]
    return "\n".join(used) + f"\n\n\n{text}\n\n\n{last}"


def first_year(text: str) -> int:
    """The first year that a text names, 9999 where it names none."""
    return int(next(iter(re.findall(r"\b(?:1[0-9]|20)\d\d\b", text)), 9999))
