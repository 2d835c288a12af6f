"""Pages of the chemical elements, from mendeleev 1.3.0 (MIT): its SQLite file, read at once.

A page lists what the package stores of an element, each number with its unit and the reference that the package names
for it: properties, phase transitions, ionization energies, ionic radii, isotopes. Left out are colours, radii in
drawing conventions, isotopes that live less than an hour, and ionization energies beyond the twelfth.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Mapping
from types import MappingProxyType

from openhorizon.domains.corpora.substances import Fact, Substance, fact_line, package_folder, section, written

STAGES = 12  # ionization energies on a page
MIN_HALF_LIFE_S = 3600.0

_UNITS = {
    "angstrom": "Å",
    "J/mol/K": "J/(mol K)",
    "J/g/K": "J/(g K)",
    "W/m/K": "W/(m K)",
    "1/pm": "1/pm",
    "cm^{3}/mol": "cm^3/mol",
}
_LABELS = {  # what the package's descriptions leave unclear, or words too long
    "atomic_weight": ("Molar mass", "g/mol"),
    "density": ("Density near room temperature", "g/cm^3"),
    "en_pauling": ("Electronegativity (Pauling)", ""),
    "electron_affinity": ("Electron affinity", "eV"),
    "lattice_constant": ("Lattice constant", "Å"),
    "specific_heat_capacity": ("Specific heat capacity at 25 °C", "J/(g K)"),
    "molar_heat_capacity": ("Molar heat capacity at 25 °C", "J/(mol K)"),
    "thermal_conductivity": ("Thermal conductivity at 25 °C", "W/(m K)"),
    "fusion_heat": ("Enthalpy of fusion", "kJ/mol"),
    "evaporation_heat": ("Enthalpy of vaporization", "kJ/mol"),
}
_SKIPPED = {"cpk_color", "jmol_color", "molcas_gv_color", "name", "symbol", "is_monoisotopic", "is_radioactive"}
_PROSE = ("description", "discoverers", "discovery_location", "name_origin", "sources", "uses")
_LATTICES = {
    "BCC": "body-centred cubic", "FCC": "face-centred cubic", "HEX": "hexagonal", "DIA": "diamond cubic",
    "SC": "simple cubic", "CUB": "cubic", "TET": "tetragonal", "ORC": "orthorhombic", "RHL": "rhombohedral",
    "MCL": "monoclinic",
}  # fmt: skip
_TIME_S = {
    "sec": 1.0, "minute": 60.0, "hour": 3600.0, "day": 86400.0, "year": 31557600.0, "kyear": 3.15576e10,
    "Myear": 3.15576e13, "Gyear": 3.15576e16,
}  # fmt: skip
_TIME = {"minute": "min", "hour": "h", "day": "d", "year": "a", "kyear": "ka", "Myear": "Ma", "Gyear": "Ga"}


@functools.cache
def load_elements() -> Mapping[str, Substance]:
    """Name → page, by atomic number. Raises ``ValueError`` where mendeleev is not installed."""
    path = package_folder("mendeleev") / "elements.db"
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    connection.row_factory = sqlite3.Row
    try:
        columns = connection.execute(
            "select column_name, description, unit, citation_keys from propertymetadata where table_name = 'elements'"
            " and value_origin = 'STORED' order by category, column_name"
        ).fetchall()
        found = connection.execute(
            "select e.*, s.name as series, g.name as group_name from elements e left join series s on s.id ="
            " e.series_id left join groups g on g.group_id = e.group_id order by e.atomic_number"
        ).fetchall()
        pages = [_page(connection, row, columns) for row in found]
    except sqlite3.Error as error:
        raise ValueError(f"mendeleev's elements.db cannot be read ({error}); install mendeleev 1.3.0") from error
    finally:
        connection.close()
    return MappingProxyType({page.title: page for page in pages})


def _page(connection: sqlite3.Connection, row: sqlite3.Row, columns: list[sqlite3.Row]) -> Substance:
    name = "Aluminium" if row["name"] == "Aluminum" else str(row["name"])
    number = row["atomic_number"]
    facts: dict[str, Fact] = {"Symbol": (row["symbol"], ""), "Atomic number": (str(number), "")}
    if row["group_id"]:
        facts["Group"] = (str(row["group_id"]), "")
    general = [fact_line(label, fact) for label, fact in facts.items()]
    if row["lattice_structure"]:
        facts["Crystal structure"] = (_LATTICES[row["lattice_structure"]], "")
        general.append(fact_line("Crystal structure", facts["Crystal structure"]))
    lines = []
    for column in columns:
        key = column["column_name"]
        value = row[key] if key in row.keys() else None  # noqa: SIM118 (a Row is no mapping)
        if key in _SKIPPED or key in _PROSE or value is None or not isinstance(value, (int, float)):
            continue
        described: tuple[str, str] = " ".join(column["description"].split()), column["unit"] or ""
        label, unit = _LABELS.get(key, described)
        if label not in facts and ":" not in label:
            facts[label] = (written(value), _UNITS.get(unit, unit))
            lines.append(fact_line(label, facts[label], column["citation_keys"] or ""))
    groups = [
        ("Properties", lines),
        ("Phase transitions", _add(facts, _phases(connection, number))),
        ("Ionization energies", _add(facts, _ionization(connection, number), "NIST ASD")),
        ("Ionic radii", _radii(connection, number)),
        ("Isotopes", _add(facts, _isotopes(connection, number))),
    ]
    place = f"period {row['period']}, {row['block']}-block"
    if row["group_id"]:
        place += f", group {row['group_id']}" + (f" ({row['group_name']})" if row["group_name"] else "")
    head = [f"# {name}", f"Chemical element: {str(row['series']).lower()}, {place}.", "", *general]
    prose = [f"{key.replace('_', ' ').capitalize()}: {' '.join(str(row[key]).split())}" for key in _PROSE if row[key]]
    text = "\n".join([*head, "", *prose, *(line for title, body in groups for line in section(title, body))])
    cas = (f"CAS {row['cas']}",) if row["cas"] else ()
    names = (f"element {row['symbol']}", f"atomic number {number}", *cas)
    return Substance(name, "element", names, MappingProxyType(facts), text)


def _add(facts: dict[str, Fact], more: dict[str, Fact], source: str = "") -> list[str]:
    facts |= more
    return [fact_line(label, fact, source) for label, fact in more.items()]


def _phases(connection: sqlite3.Connection, number: int) -> dict[str, Fact]:
    found = connection.execute("select * from phasetransitions where atomic_number = ? order by id", (number,))
    facts: dict[str, Fact] = {}
    for row in found.fetchall():
        form = f" ({row['allotrope']})" if row["allotrope"] else ""
        for key, label, unit in (
            ("melting_point", "Melting point", "K"),
            ("boiling_point", "Sublimation point" if row["is_sublimation_point"] else "Boiling point", "K"),
            ("critical_temperature", "Critical temperature", "K"),
            ("critical_pressure", "Critical pressure", "MPa"),
            ("triple_point_temperature", "Triple point temperature", "K"),
            ("triple_point_pressure", "Triple point pressure", "kPa"),
        ):
            if row[key] is not None:
                facts[f"{label}{form}"] = (written(row[key]), unit)
    return facts


def _ionization(connection: sqlite3.Connection, number: int) -> dict[str, Fact]:
    found = connection.execute(
        "select ion_charge, ionization_energy from ionizationenergies where atomic_number = ? and ion_charge < ?"
        " and ionization_energy is not null order by ion_charge",
        (number, STAGES),
    )
    return {f"Ionization energy {charge + 1}": (written(energy), "eV") for charge, energy in found.fetchall()}


def _radii(connection: sqlite3.Connection, number: int) -> list[str]:
    found = connection.execute(
        "select charge, coordination, spin, ionic_radius, crystal_radius, origin from ionicradii"
        " where atomic_number = ? order by charge, coordination, spin, id",
        (number,),
    )
    return [
        f"- Charge {row['charge']:+d}, coordination {row['coordination']}{', ' + row['spin'] if row['spin'] else ''}:"
        f" ionic radius {row['ionic_radius']:g} pm, crystal radius {row['crystal_radius']:g} pm"
        f"{', from ' + row['origin'].strip(' ,') if row['origin'] else ''}"
        for row in found.fetchall()
    ]


def _isotopes(connection: sqlite3.Connection, number: int) -> dict[str, Fact]:
    found = connection.execute(
        "select mass_number, mass, abundance, half_life, half_life_unit from isotopes where atomic_number = ?"
        " and mass is not null order by mass_number",
        (number,),
    )
    facts: dict[str, Fact] = {}
    for row in found.fetchall():
        known = row["half_life"] is not None and row["half_life_unit"] in _TIME_S
        lived_s = row["half_life"] * _TIME_S[row["half_life_unit"]] if known else 0.0
        if row["abundance"] is None and lived_s < MIN_HALF_LIFE_S:
            continue
        isotope = f"Isotope {row['mass_number']}"
        facts[f"{isotope} mass"] = (f"{row['mass']:.9g}", "Da")
        if row["abundance"] is not None:
            facts[f"{isotope} abundance"] = (written(row["abundance"]), "%")
        if lived_s:
            facts[f"{isotope} half-life"] = (written(row["half_life"]), _TIME.get(row["half_life_unit"], "s"))
    return facts
