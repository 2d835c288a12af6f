"""Pages of compounds and of ions in water, from the tables of chemicals 1.5.2 (MIT).

The tables are read as they lie in the package, without importing it. What each holds, and the work it was taken from,
is in ``_TABLES``; the first table that has a number for a compound is believed. Names, formulas, SMILES and synonyms
are the package's extract of PubChem. A page is kept where at least ``MIN_FACTS`` numbers are known.

Numbers that contradict their neighbours are left out rather than repaired: a boiling point below the melting point or
above the critical one, a density of a gas given in the units of a liquid.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from openhorizon.domains.corpora.substances import (
    Fact,
    Substance,
    atoms,
    fact_line,
    package_folder,
    rows,
    section,
    written,
)

MIN_FACTS = 3
MAX_TITLE = 40
SYNONYMS = 8


@dataclass(frozen=True)
class Table:
    """Columns of one file: column → (section, label, factor, unit)."""

    file: str
    source: str
    columns: Mapping[str, tuple[str, str, float, str]]


_THERMO = "Thermochemistry"


def _thermo(phase: str, letter: str) -> dict[str, tuple[str, str, float, str]]:
    at = _THERMO
    return {
        f"Hf{letter}": (at, f"Enthalpy of formation ({phase})", 1e-3, "kJ/mol"),
        f"Gf{letter}": (at, f"Gibbs energy of formation ({phase})", 1e-3, "kJ/mol"),
        f"S0{letter}": (at, f"Standard entropy ({phase})", 1.0, "J/(mol K)"),
        f"Cp{letter}": (at, f"Heat capacity ({phase})", 1.0, "J/(mol K)"),
    }


_CRC = "CRC Handbook"
_PHASE, _CRITICAL, _VAPOUR, _GAS = (
    "Phase changes",
    "Critical point",
    "Vapour pressure",
    "Heat capacity of the ideal gas",
)
_CRITICALS = {
    "Tc": (_CRITICAL, "Critical temperature", 1.0, "K"),
    "Pc": (_CRITICAL, "Critical pressure", 1e-3, "kPa"),
    "Vc": (_CRITICAL, "Critical volume", 1e6, "cm^3/mol"),
    "omega": (_CRITICAL, "Acentric factor", 1.0, ""),
}
_CONSTANTS = {
    "Tm": (_PHASE, "Melting point", 1.0, "K"),
    "Tb": (_PHASE, "Boiling point", 1.0, "K"),
    "rho": ("General", "Density near room temperature", 1.0, "kg/m^3"),
    "RI": ("General", "Refractive index", 1.0, ""),
}
_TABLES = (
    Table("Misc/Physical Constants of Inorganic Compounds.csv", _CRC, _CONSTANTS),
    Table("Misc/Physical Constants of Organic Compounds.csv", _CRC, _CONSTANTS),
    Table("Critical Properties/IUPACOrganicCriticalProps.tsv", "IUPAC critical data", _CRITICALS),
    Table("Critical Properties/CRCCriticalOrganics.tsv", _CRC, _CRITICALS),
    Table("Critical Properties/Mathews1972InorganicCriticalProps.tsv", "Mathews 1972", _CRITICALS),
    Table("Critical Properties/Appendix to PSRK Revision 4.tsv", "PSRK appendix", _CRITICALS),
    Table(
        "Phase Change/CRC Handbook Heat of Fusion.tsv",
        _CRC,
        {"Hfus": (_PHASE, "Enthalpy of fusion", 1e-3, "kJ/mol")},
    ),
    Table(
        "Phase Change/CRC Handbook Heat of Vaporization.tsv",
        _CRC,
        {
            "HvapTb": (_PHASE, "Enthalpy of vaporization at the boiling point", 1e-3, "kJ/mol"),
            "Hvap298": (_PHASE, "Enthalpy of vaporization at 298.15 K", 1e-3, "kJ/mol"),
        },
    ),
    Table(
        "Vapor Pressure/Antoine Collection Poling.tsv",
        "Poling 2001",
        {
            "A": (_VAPOUR, "Antoine A", 1.0, ""),
            "B": (_VAPOUR, "Antoine B", 1.0, "K"),
            "C": (_VAPOUR, "Antoine C", 1.0, "K"),
            "Tmin": (_VAPOUR, "Antoine valid from", 1.0, "K"),
            "Tmax": (_VAPOUR, "Antoine valid to", 1.0, "K"),
        },
    ),
    Table(
        "Heat Capacity/CRC Standard Thermodynamic Properties of Chemical Substances.tsv",
        _CRC,
        _thermo("solid", "s") | _thermo("liquid", "l") | _thermo("gas", "g"),
    ),
    Table(
        "Heat Capacity/PolingDatabank.tsv",
        "Poling 2001",
        {f"a{i}": (_GAS, f"Poling a{i}", 1.0, "") for i in range(5)}
        | {
            "Tmin": (_GAS, "Poling valid from", 1.0, "K"),
            "Tmax": (_GAS, "Poling valid to", 1.0, "K"),
        },
    ),
    Table(
        "Environment/CRC logP table.tsv",
        _CRC,
        {"logP": ("General", "Octanol-water partition coefficient (log10)", 1.0, "")},
    ),
    Table(
        "Environment/Official Global Warming Potentials 2021.tsv",
        "IPCC 2021",
        {
            "Lifetime, years": ("Environment", "Atmospheric lifetime", 1.0, "a"),
            "20yr GWP": ("Environment", "Global warming potential over 20 years", 1.0, ""),
            "100yr GWP": ("Environment", "Global warming potential over 100 years", 1.0, ""),
            "500yr GWP": ("Environment", "Global warming potential over 500 years", 1.0, ""),
        },
    ),
    Table(
        "Safety/NFPA 497 2008.tsv",
        "NFPA 497",
        {
            "T_flash": ("Safety", "Flash point", 1.0, "K"),
            "T_autoignition": ("Safety", "Autoignition temperature", 1.0, "K"),
            "LFL": ("Safety", "Lower flammability limit", 100.0, "%"),
            "UFL": ("Safety", "Upper flammability limit", 100.0, "%"),
        },
    ),
    Table(
        "Misc/cccbdb.nist.gov Dipoles.csv",
        "NIST CCCBDB",
        {"dipole_moment": ("General", "Dipole moment in debye", 1.0, "")},
    ),
    Table(
        "Electrolytes/Permittivity (Dielectric Constant) of Liquids.tsv",
        _CRC,
        {
            "Permittivity": ("General", "Relative permittivity of the liquid", 1.0, ""),
            "T": ("General", "Temperature of that permittivity", 1.0, "K"),
        },
    ),
)
_IDENTIFIERS = ("Identifiers/chemical identifiers pubchem small.tsv", "Identifiers/Inorganic db.tsv")
_IONS = "Electrolytes/CRC Thermodynamic Properties of Aqueous Ions.tsv"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9,'() \-]*")


@functools.cache
def load_compounds() -> Mapping[str, Substance]:
    """Title → page, sorted. Raises ``ValueError`` where chemicals is not installed."""
    folder = package_folder("chemicals")
    values: dict[str, dict[str, tuple[str, str, str, str]]] = {}  # CAS → label → (section, number, unit, source)
    for table in _TABLES:
        for row in rows(folder / table.file):
            known = values.setdefault(row["CAS"], {})
            fresh = {
                label: (part, written(float(row[column]) * factor), unit, table.source)
                for column, (part, label, factor, unit) in table.columns.items()
                if row.get(column) and label not in known
            }
            known.update(fresh)
    pages: dict[str, Substance] = {}
    taken: dict[str, str] = {}
    drafts = list(_identified(folder))
    for title, cas, _, _, _, _ in drafts:
        taken.setdefault(title.lower(), cas)
    for title, cas, mass, formula, smiles, synonyms in drafts:
        known = _consistent(values.get(cas, {}))
        if taken[title.lower()] == cas and len(known) >= MIN_FACTS and len(atoms(formula)) > 1:
            # A name that another compound has too does not find this one.
            own = [name for name in synonyms if taken.setdefault(name, cas) == cas and name != title.lower()]
            pages[title] = _page(title, cas, mass, formula, smiles, tuple(own[:SYNONYMS]), known)
    return MappingProxyType(dict(sorted(pages.items())))


def _identified(folder: Path) -> list[tuple[str, str, float, str, str, list[str]]]:
    """(title, CAS, molar mass, formula, SMILES, synonyms) of everything that has a name of plain letters."""
    found, seen = [], set[str]()
    for file in _IDENTIFIERS:
        path = folder / file
        if not path.is_file():
            raise ValueError(f"{path.name} is not in package 'chemicals'; install the pinned version")
        for line in path.read_text(encoding="utf-8").splitlines():
            _, cas, formula, mass, smiles, _, _, systematic, *names = line.split("\t")
            title = next((name for name in (*names[:1], systematic) if _plain(name)), "")
            if title and cas not in seen:
                seen.add(cas)
                synonyms = [name.lower() for name in names if _plain(name) and not re.search(r"\d{3}", name)]
                title = title[0].upper() + title[1:]
                found.append((title, cas, float(mass), formula, smiles, list(dict.fromkeys(synonyms))))
    return found


def _plain(name: str) -> bool:
    short = len(name) <= MAX_TITLE and any(c.isalpha() for c in name[:4])
    return short and _NAME.fullmatch(name) is not None and " of " not in name


def _consistent(known: dict[str, tuple[str, str, str, str]]) -> dict[str, tuple[str, str, str, str]]:
    number = {label: float(entry[1]) for label, entry in known.items()}
    melts, boils = number.get("Melting point"), number.get("Boiling point")
    critical = number.get("Critical temperature", float("inf"))
    wrong = set()
    if boils is not None and (boils >= critical or (melts is not None and melts >= boils)):
        wrong |= {"Boiling point", "Melting point", "Critical temperature"}
    if number.get("Density near room temperature", 1e9) < 300:
        wrong.add("Density near room temperature")
    return {label: entry for label, entry in known.items() if label not in wrong}


def _page(
    title: str,
    cas: str,
    mass: float,
    formula: str,
    smiles: str,
    synonyms: tuple[str, ...],
    known: dict[str, tuple[str, str, str, str]],
) -> Substance:
    facts: dict[str, Fact] = {
        "Formula": (formula, ""),
        "Molar mass": (f"{mass:.7g}", "g/mol"),
        "SMILES": (smiles, ""),
        "CAS number": (cas, ""),
    }
    head = [f"# {title}", "Chemical compound.", "", *(fact_line(label, fact) for label, fact in facts.items())]
    if synonyms:
        head.append(f"- Other names: {'; '.join(synonyms)}")
    parts: dict[str, list[str]] = {}
    for label, (part, number, unit, source) in known.items():
        facts[label] = (number, unit)
        parts.setdefault(part, []).append(fact_line(label, facts[label], source))
    for part, remark in _REMARKS.items():
        if part in parts:
            parts[part].insert(0, remark)
    text = "\n".join([*head, *(line for part in sorted(parts) for line in section(part, parts[part]))])
    return Substance(title, "compound", (f"CAS {cas}", *synonyms), MappingProxyType(facts), text)


_REMARKS = {
    _THERMO: "Of formation from the elements, and standard values, at 298.15 K.",
    _VAPOUR: "Antoine equation with log10, P in Pa and T in K: log10(P) = A - B / (T + C).",
    _GAS: "Polynomial of Poling: Cp / R = a0 + a1 T + a2 T^2 + a3 T^3 + a4 T^4, T in K.",
}


@functools.cache
def load_ions() -> Mapping[str, Substance]:
    """Title → page of an ion in water at infinite dilution, sorted."""
    pages: dict[str, Substance] = {}
    for row in rows(package_folder("chemicals") / _IONS):
        title = re.sub(r"[^A-Za-z0-9 ()\-]", "", row["Name"]).strip()
        charge = re.search(r"([+-])(\d?)$", row["Formula"])
        if not title or charge is None or title in pages:
            continue
        facts: dict[str, Fact] = {
            "Ion formula": (row["Formula"], ""),
            "Charge number": (f"{charge[1].replace('+', '')}{charge[2] or 1}", ""),
        }
        if row["MW"]:
            facts["Molar mass"] = (written(float(row["MW"])), "g/mol")
        for column, label, factor, unit in (
            ("Hf(aq)", "Enthalpy of formation (aqueous)", 1e-3, "kJ/mol"),
            ("Gf(aq)", "Gibbs energy of formation (aqueous)", 1e-3, "kJ/mol"),
            ("S(aq)", "Standard entropy (aqueous)", 1.0, "J/(mol K)"),
            ("Cp(aq)", "Heat capacity (aqueous)", 1.0, "J/(mol K)"),
        ):
            if row[column]:
                facts[label] = (written(float(row[column]) * factor), unit)
        lines = [fact_line(label, fact, _CRC if fact[1] else "") for label, fact in facts.items()]
        remark = "Ion in water at 298.15 K and infinite dilution, on the scale where the hydrogen ion is zero."
        text = "\n".join([f"# {title}", remark, "", *lines])
        names = (f"CAS {row['CAS']}", f"ion {row['Formula']}")
        pages[title] = Substance(title, "ion", names, MappingProxyType(facts), text)
    return MappingProxyType(dict(sorted(pages.items())))
