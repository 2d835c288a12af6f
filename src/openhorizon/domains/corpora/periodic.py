"""Measured properties of the elements, and physical constants, as short values with units.

* mendeleev 1.3.0 (MIT): atomic mass, radius, density, melting and boiling points (its SQLite file, read at once);
* scipy (BSD-3): CODATA values of physical constants.
"""

from __future__ import annotations

import functools
import importlib.util
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DIGITS = 4  # significant digits of every value shown


@dataclass(frozen=True)
class Value:
    """A quantity as it is shown: number (a decimal without exponent) and unit."""

    number: str
    unit: str


_QUERY = """
select e.name, e.symbol, e.atomic_weight, e.metallic_radius, e.density, e.melting_point, e.boiling_point from (
  select elements.*, min(phasetransitions.id), phasetransitions.melting_point, phasetransitions.boiling_point
  from elements left join phasetransitions using (atomic_number) group by elements.atomic_number
) e order by e.atomic_number
"""
_UNITS = {"mass": "g/mol", "radius": "pm", "density": "g/cm3", "melts": "K", "boils": "K"}
_CONSTANTS = {  # short name → (scipy's name, factor, unit)
    "Gas": ("molar gas constant", 1.0, "J/mol/K"),
    "Molar": ("molar volume of ideal gas (273.15 K, 101.325 kPa)", 1e3, "L/mol"),
}


@functools.cache
def load_elements() -> Mapping[str, Mapping[str, Value]]:
    """Element → property → value; properties without a measured value are left out, elements without any, too.

    Raises:
        ValueError: mendeleev is not installed or its file is damaged.
    """
    spec = importlib.util.find_spec("mendeleev")
    if spec is None or spec.origin is None:
        raise ValueError("package mendeleev is not installed; run: pip install mendeleev")
    connection = sqlite3.connect(f"file:{Path(spec.origin).parent / 'elements.db'}?mode=ro", uri=True)
    try:
        rows = connection.execute(_QUERY).fetchall()
    except sqlite3.DatabaseError as error:
        raise ValueError(f"elements.db of mendeleev: damaged ({error})") from error
    finally:
        connection.close()
    found = {}
    for name, _, *numbers in rows:
        values = {
            what: Value(short(number), unit)
            for (what, unit), number in zip(_UNITS.items(), numbers, strict=True)
            if number is not None and number >= 0.1
        }
        if len(values) >= 3:
            found[name] = values
    return found


@functools.cache
def load_symbols() -> Mapping[str, str]:
    """Symbol → element, of the elements that ``load_elements`` has."""
    spec = importlib.util.find_spec("mendeleev")
    assert spec is not None and spec.origin is not None, "load_elements has read it"
    connection = sqlite3.connect(f"file:{Path(spec.origin).parent / 'elements.db'}?mode=ro", uri=True)
    try:
        return {symbol: name for name, symbol, *_ in connection.execute(_QUERY) if name in load_elements()}
    finally:
        connection.close()


@functools.cache
def load_constants() -> Mapping[str, Value]:
    """Short name → value, from scipy's CODATA table."""
    from scipy import constants

    return {name: Value(short(constants.value(key) * factor), unit) for name, (key, factor, unit) in _CONSTANTS.items()}


def short(number: float) -> str:
    """``DIGITS`` significant digits without an exponent: 63.55, 0.8215, 12350."""
    rounded = float(f"{number:.{DIGITS}g}")
    return str(int(rounded)) if rounded == int(rounded) else f"{rounded:.10f}".rstrip("0")
