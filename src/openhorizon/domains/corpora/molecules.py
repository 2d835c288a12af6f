"""Real molecules with measured properties: what scientific agents screen.

From the data files of the package ``chemicals`` 1.5.2 (MIT; Caleb Bell and contributors), read as files, since
importing it takes a second and numpy. A molecule is here when it has a CAS number, a structure (PubChem's SMILES) and
at least one measured value:

    melting point, boiling point (K), density (kg/m3), refractive index    CRC Handbook, organic compounds
    logP                                                                    Syracuse Research's measured values
    flash point (K)                                                         DIPPR, after Serat

Left out: salts and mixtures, names longer than ``MAX_NAME``, structures without carbon. Values are facts as measured
and tabled; two tables may disagree on what is not asked of both.
"""

from __future__ import annotations

import csv
import functools
import gzip
import importlib.util
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

MAX_NAME = 40
MAX_SMILES = 60
UNITS = {
    "boiling point": "K",
    "melting point": "K",
    "density": "kg/m3",
    "refractive index": "",
    "logP": "",
    "flash point": "K",
}
_IDENTIFIERS = (
    "Identifiers/chemical identifiers pubchem small.tsv",
    "Identifiers/chemical identifiers example user db.tsv",
)
_MEASURED = (  # file, column → property
    (
        "Misc/Physical Constants of Organic Compounds.csv",
        {"Tb": "boiling point", "Tm": "melting point", "rho": "density", "RI": "refractive index"},
    ),
    ("Environment/Syrres logP data.csv.gz", {"logP": "logP"}),
    ("Safety/DIPPR T_flash Serat.csv", {"T_flash": "flash point"}),
)
_CARBON = re.compile(r"C(?![laroudesmf])|c")


@dataclass(frozen=True)
class Molecule:
    """A compound. ``measured`` maps a property (a key of ``UNITS``) to its value in that unit."""

    cas: str
    name: str
    smiles: str
    formula: str
    measured: Mapping[str, float]


@functools.cache
def load_molecules() -> Mapping[str, Molecule]:
    """CAS number → molecule, sorted by CAS number; the same in every process. Read once (0.2 s).

    Raises:
        ValueError: the package is not installed, or a file of it is missing or not as expected.
    """
    folder = _folder()
    names: dict[str, str] = {}
    measured: dict[str, dict[str, float]] = {}
    for file, columns in _MEASURED:
        for cas, row in _rows(folder / file, ("CAS", *columns)):
            if row.get("Name"):
                names.setdefault(cas, row["Name"])
            found = {
                known: _number(row[column], folder / file, cas) for column, known in columns.items() if row[column]
            }
            measured.setdefault(cas, {}).update(found)
    molecules = {}
    for file in _IDENTIFIERS:
        for line in _lines(folder / file):
            fields = line.rstrip("\n").split("\t")
            if len(fields) < 8:
                raise ValueError(f"molecules: {folder / file}: a line of {len(fields)} fields, expected 8 or more")
            cas, formula, smiles = fields[1], fields[2], fields[4]
            name = names.get(cas, "")
            if cas in molecules or not measured.get(cas) or not _wanted(name, smiles):
                continue
            values = {known: measured[cas][known] for known in UNITS if known in measured[cas]}
            molecules[cas] = Molecule(cas, name, smiles, formula, MappingProxyType(values))
    if not molecules:
        raise ValueError(f"molecules: {folder}: no molecule has both a structure and a measured value")
    return MappingProxyType({cas: molecules[cas] for cas in sorted(molecules)})


def _wanted(name: str, smiles: str) -> bool:
    return (
        0 < len(name) <= MAX_NAME
        and name.isascii()
        and "." not in smiles
        and 0 < len(smiles) <= MAX_SMILES
        and _CARBON.search(smiles) is not None
    )


def _folder() -> Path:
    spec = importlib.util.find_spec("chemicals")
    if spec is None or spec.origin is None:
        raise ValueError("molecules: package 'chemicals' is not installed; run: pip install chemicals")
    return Path(spec.origin).parent


def _lines(path: Path) -> Iterator[str]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"molecules: {path} cannot be read ({error}); reinstall the package 'chemicals'") from error


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """(CAS number, row) of a table with a head and tabs."""
    reader = csv.DictReader(_lines(path), delimiter="\t")
    missing = set(columns) - set(reader.fieldnames or ())
    if missing:
        raise ValueError(f"molecules: {path} has no column {', '.join(sorted(missing))}")
    for row in reader:
        yield row["CAS"], row


def _number(text: str, path: Path, cas: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ValueError(f"molecules: {path}: {text!r} of {cas} is no number") from error
