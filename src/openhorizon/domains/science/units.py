"""Units of measurement: read a number with its unit, compare quantities, write a conversion as code.

    read_quantity("about 3.5e2 kJ/mol.")      Quantity(350.0, "kJ/mol")
    in_unit(Quantity(25, "°C"), "K")          298.15
    conversion("25.0", "°C", "K")             "25.0 + 273.15"

A small table instead of a package, since what a verifier accepts should be readable in one place: SI units with
prefixes, the units that chemists use beside them, products and quotients of their powers. Exact factors are from the
SI brochure and NIST SP 811; the dalton and the electronvolt are CODATA 2018. A unit has a scale and exponents of (m,
kg, s, K, mol, A); ``°C`` and ``°F`` have an offset too, and only when they stand alone. A count (``molecules``), a
``%`` and a bare number are dimensionless.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass

Dimension = tuple[int, int, int, int, int, int]  # exponents of m, kg, s, K, mol, A
NONE: Dimension = (0, 0, 0, 0, 0, 0)
_EV_J = 1.602176634e-19


@dataclass(frozen=True)
class Unit:
    """``value in SI = number * scale + offset``."""

    scale: float
    dimension: Dimension
    offset: float = 0.0


@dataclass(frozen=True)
class Quantity:
    value: float
    unit: str

    def __str__(self) -> str:
        return f"{self.value:.4g} {self.unit}".rstrip()


_M, _KG, _S, _K, _MOL, _A = ((0,) * i + (1,) + (0,) * (5 - i) for i in range(6))


def _d(m: int = 0, kg: int = 0, s: int = 0, kelvin: int = 0, mol: int = 0, ampere: int = 0) -> Dimension:
    return m, kg, s, kelvin, mol, ampere


_ENERGY, _PRESSURE, _VOLUME = _d(2, 1, -2), _d(-1, 1, -2), _d(3)
_PREFIXED: dict[str, tuple[float, Dimension]] = {  # take an SI prefix
    "m": (1.0, _d(1)),
    "g": (1e-3, _d(0, 1)),
    "s": (1.0, _d(0, 0, 1)),
    "K": (1.0, _d(0, 0, 0, 1)),
    "mol": (1.0, _d(0, 0, 0, 0, 1)),
    "A": (1.0, _d(0, 0, 0, 0, 0, 1)),
    "J": (1.0, _ENERGY),
    "eV": (_EV_J, _ENERGY),
    "cal": (4.184, _ENERGY),
    "Wh": (3600.0, _ENERGY),
    "W": (1.0, _d(2, 1, -3)),
    "Pa": (1.0, _PRESSURE),
    "bar": (1e5, _PRESSURE),
    "N": (1.0, _d(1, 1, -2)),
    "L": (1e-3, _VOLUME),
    "Hz": (1.0, _d(0, 0, -1)),
    "Bq": (1.0, _d(0, 0, -1)),
    "Ci": (3.7e10, _d(0, 0, -1)),
    "V": (1.0, _d(2, 1, -3, 0, 0, -1)),
    "C": (1.0, _d(0, 0, 1, 0, 0, 1)),
    "Da": (1.66053906660e-27, _d(0, 1)),
}
_PLAIN: dict[str, tuple[float, Dimension]] = {
    "t": (1e3, _d(0, 1)),
    "lb": (0.45359237, _d(0, 1)),
    "oz": (0.028349523125, _d(0, 1)),
    "min": (60.0, _d(0, 0, 1)),
    "h": (3600.0, _d(0, 0, 1)),
    "d": (86400.0, _d(0, 0, 1)),
    "a": (31557600.0, _d(0, 0, 1)),
    "in": (0.0254, _d(1)),
    "ft": (0.3048, _d(1)),
    "Å": (1e-10, _d(1)),
    "atm": (101325.0, _PRESSURE),
    "mmHg": (133.322387415, _PRESSURE),
    "Torr": (101325.0 / 760, _PRESSURE),
    "psi": (6894.757293168, _PRESSURE),
    "gal": (3.785411784e-3, _VOLUME),
    "u": (1.66053906660e-27, _d(0, 1)),
    "M": (1e3, _d(-3, 0, 0, 0, 1)),
    "ct": (2e-4, _d(0, 1)),
    "gr": (6.479891e-5, _d(0, 1)),
    "bohr": (5.29177210903e-11, _d(1)),
    "rankine": (5 / 9, _d(0, 0, 0, 1)),
    "°R": (5 / 9, _d(0, 0, 0, 1)),
    "%": (0.01, NONE),
    "1": (1.0, NONE),
    "molecules": (1.0, NONE),
    "atoms": (1.0, NONE),
}
_OFFSET = {"°C": Unit(1.0, _d(0, 0, 0, 1), 273.15), "°F": Unit(5 / 9, _d(0, 0, 0, 1), 459.67 * 5 / 9)}
_PREFIXES = {
    "": 1.0, "f": 1e-15, "p": 1e-12, "n": 1e-9, "u": 1e-6, "µ": 1e-6, "μ": 1e-6, "m": 1e-3, "c": 1e-2, "d": 1e-1,
    "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
}  # fmt: skip
_SPELT = {  # what people and handbooks write
    "second": "s", "seconds": "s", "sec": "s", "minute": "min", "minutes": "min", "hour": "h", "hours": "h", "hr": "h",
    "day": "d", "days": "d", "year": "a", "years": "a", "yr": "a", "angstrom": "Å", "Angstrom": "Å", "l": "L",
    "ml": "mL", "gram": "g", "grams": "g", "mole": "mol", "moles": "mol", "kelvin": "K", "joule": "J", "joules": "J",
    "volt": "V", "volts": "V", "watt": "W", "watts": "W", "degC": "°C", "degF": "°F", "percent": "%", "tonne": "t",
    "tonnes": "t", "torr": "Torr", "liter": "L", "litre": "L", "liters": "L", "litres": "L", "nucleon": "1",
    "msec": "ms", "usec": "us", "nsec": "ns", "psec": "ps", "kyear": "ka", "Myear": "Ma", "Gyear": "Ga",
}  # fmt: skip
_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_FACTOR = re.compile(r"(?P<symbol>[^\W\d_]+|°[CFR]|%|1)(?:\^?(?P<power>-?\d))?")
_NUMBER = r"[-+−]?(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|[-+−]?\.\d+"
_POWER = r"[eE](?P<e>[-+−]?\d+)|\s*[×x*·]\s*10\s*(?:\^|\*\*)?\s*(?P<ten>[-+−]?\d+|[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)"
_QUANTITY = re.compile(rf"(?<![\w.,])(?P<number>{_NUMBER})(?:{_POWER})?(?![\d.]*\d)(?P<unit>[^\n]*)")


@functools.lru_cache(maxsize=4096)
def unit(text: str) -> Unit | None:
    """The unit that ``text`` names; None for what is no unit. An empty text is dimensionless.

    ``J/(mol K)``, ``J mol^-1 K^-1``, ``J/mol/K`` and ``J·mol⁻¹·K⁻¹`` are one unit.
    """
    text = " ".join(text.translate(_SUPERSCRIPT).replace("−", "-").split())
    if text in _OFFSET or _SPELT.get(text) in _OFFSET:
        return _OFFSET[_SPELT.get(text, text)]
    scale, exponents = 1.0, [0] * 6
    sign, depth, pos = 1, 0, 0
    while pos < len(text):
        character = text[pos]
        if character in " ·*":
            pos += 1
        elif character == "/":
            sign, pos = -1, pos + 1
        elif character == "(":
            depth, pos = depth + 1, pos + 1
        elif character == ")":
            depth, pos = depth - 1, pos + 1
            sign = 1
        else:
            match = _FACTOR.match(text, pos)
            factor = _symbol(match["symbol"]) if match else None
            if match is None or factor is None or depth not in (0, 1):
                return None
            power = sign * int(match["power"] or 1)
            scale *= factor[0] ** power
            exponents = [have + power * more for have, more in zip(exponents, factor[1], strict=True)]
            # A division holds for the one factor behind it, or for a whole bracket.
            sign, pos = sign if depth else 1, match.end()
    if depth:
        return None
    m, kg, s, kelvin, mol, ampere = exponents
    return Unit(scale, (m, kg, s, kelvin, mol, ampere))


def _symbol(symbol: str) -> tuple[float, Dimension] | None:
    symbol = _SPELT.get(symbol, symbol)
    if symbol in _PLAIN:
        return _PLAIN[symbol]
    for base in (symbol, symbol[1:]):
        prefix = symbol[: len(symbol) - len(base)]
        if base in _PREFIXED and prefix in _PREFIXES:
            scale, dimension = _PREFIXED[base]
            return scale * _PREFIXES[prefix], dimension
    return (_PREFIXES[symbol[0]] * 31557600.0, _d(0, 0, 1)) if symbol in ("ka", "Ma", "Ga") else None


def dimension(text: str) -> Dimension:
    """Of a unit that is known to be one."""
    found = unit(text)
    if found is None:
        raise ValueError(f"{text!r} is not a unit")
    return found.dimension


def read_quantity(text: str) -> Quantity | None:
    """The first number of ``text`` with the unit that fills the rest of its line; None where something else does (a
    second number, words). A full stop at the end is not part of it."""
    match = _QUANTITY.search(text.strip())
    if match is None:
        return None
    named = " ".join(match["unit"].split()).rstrip(".!*")
    power = (match["e"] or match["ten"] or "0").translate(_SUPERSCRIPT).replace("−", "-")
    value = float(f"{match['number'].replace(',', '').replace('−', '-')}e{power}")
    return Quantity(value, named) if unit(named) is not None and math.isfinite(value) else None


def in_unit(quantity: Quantity, wanted: str, difference: bool = False) -> float | None:
    """The number of ``quantity`` in unit ``wanted``; None where it is no unit of that kind. A difference of
    temperatures has no offset: 2 °C are 2 K then."""
    have, want = unit(quantity.unit), unit(wanted)
    if have is None or want is None or have.dimension != want.dimension:
        return None
    offset = 0.0 if difference else have.offset - want.offset
    return (quantity.value * have.scale + offset) / want.scale


def agrees(quantity: Quantity, value: float, wanted: str, tolerance: float, difference: bool = False) -> bool:
    """Whether ``quantity`` is ``value`` (in unit ``wanted``) within the relative ``tolerance``."""
    found = in_unit(quantity, wanted, difference)
    return found is not None and abs(found - value) <= tolerance * abs(value)


def conversion(number: str, have: str, want: str) -> str:
    """Python that converts ``number`` (as written) from one unit to another: ``"2.5 * 1000"``, ``"25 + 273.15"``."""
    old, new = unit(have), unit(want)
    if old is None or new is None or old.dimension != new.dimension:
        raise ValueError(f"no conversion from {have!r} to {want!r}")
    if have == "°F" and want == "K":
        return f"({number} + 459.67) * 5 / 9"
    if old.offset != new.offset:
        assert old.scale == new.scale == 1.0, f"{have} to {want}"
        shift = old.offset - new.offset
        return f"{number} {'+' if shift > 0 else '-'} {abs(shift):g}"
    factor = float(f"{old.scale / new.scale:.12g}")
    if factor == 1.0:
        return number
    if factor < 1.0 and float(f"{1 / factor:.12g}").is_integer():
        return f"{number} / {1 / factor:.12g}"
    return f"{number} * {factor:.12g}"
