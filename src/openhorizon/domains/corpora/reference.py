"""Reference texts on physical chemistry, as they ship in packages: what ``scholar`` searches.

* chemicals 1.5.2 (MIT): the docstrings of its correlations: what is computed, the equation, parameters with units,
  notes, worked examples and the literature. Read from the source files, without importing them.
* CODATA 2022 recommended values of the fundamental constants, from scipy's source (BSD; the values are NIST's, public
  domain).
* mendeleev 1.3.0 (MIT): what each of its properties of the elements means and where it was taken from.
"""

from __future__ import annotations

import ast
import functools
import re
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from openhorizon.domains.corpora.substances import fact_line, package_folder

MIN_CHARS = 400  # of a docstring
MAX_CHARS = 6000
_MODULES = (
    "acentric air combustion critical density dipole elements environment flash_basic heat_capacity iapws interface "
    "lennard_jones molecular_geometry permittivity phase_change rachford_rice reaction refractivity safety solubility "
    "temperature thermal_conductivity triple vapor_pressure virial viscosity volume"
)


@dataclass(frozen=True)
class Text:
    """``title`` is what it is cited by; ``value`` is the number and unit of a constant, empty for other texts."""

    title: str
    text: str
    value: tuple[str, str] = ("", "")


@functools.cache
def load_reference() -> Mapping[str, Text]:
    """Title → text, sorted. Raises ``ValueError`` where a package is missing."""
    texts = [*_correlations(), *_constants(), *_properties()]
    return MappingProxyType({text.title: text for text in sorted(texts, key=lambda text: text.title)})


def _correlations() -> Iterator[Text]:
    folder = package_folder("chemicals")
    for module in _MODULES.split():
        path = folder / f"{module}.py"
        if not path.is_file():
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            written = ast.get_docstring(node) or ""
            if len(written) >= MIN_CHARS:
                title = f"{node.name.replace('_', ' ')} ({module.replace('_', ' ')})"
                yield Text(title, f"# {title}\nFrom the documentation of chemicals.{module}.\n\n{written[:MAX_CHARS]}")


def _constants() -> Iterator[Text]:
    path = package_folder("scipy") / "constants" / "_codata.py"
    table = next(
        (
            node.value.value
            for node in ast.parse(path.read_text(encoding="utf-8")).body
            if isinstance(node, ast.Assign)
            and any(isinstance(target, ast.Name) and target.id == "txt2022" for target in node.targets)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ),
        None,
    )
    if table is None:
        raise ValueError("scipy's CODATA 2022 table was not found; install scipy 1.16 or later")
    for line in table.splitlines():
        # Columns of fixed width: quantity, value, uncertainty, unit.
        name, value, uncertainty, unit = (line[a:b].strip() for a, b in ((0, 60), (60, 85), (85, 110), (110, None)))
        number = value.replace(" ", "").replace("...", "")
        if not re.fullmatch(r"-?\d+(?:\.\d*)?(?:e-?\d+)?", number):
            continue
        exact = "exact" in uncertainty
        lines = [
            f"# {name}",
            "Fundamental physical constant, CODATA recommended values 2022 (NIST).",
            "",
            fact_line("Value", (number, unit)),
            f"- Standard uncertainty: {'exact by definition' if exact else uncertainty + ' ' + unit}",
        ]
        yield Text(name, "\n".join(lines), (number, unit))


def _properties() -> Iterator[Text]:
    path: Path = package_folder("mendeleev") / "elements.db"
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        found = connection.execute(
            "select attribute_name, category, description, unit, annotations, citation_keys from propertymetadata"
            " where class_name = 'Element' and description is not null order by attribute_name"
        ).fetchall()
    finally:
        connection.close()
    for name, category, description, unit, notes, keys in found:
        title = f"{name.replace('_', ' ')} (element property)"
        lines = [f"# {title}", f"{' '.join(description.split())}. Category: {category}. Unit: {unit or 'none'}."]
        lines += ["", " ".join(notes.split())] if notes else []
        lines += [f"Source: {keys}"] if keys else []
        yield Text(title, "\n".join(lines))
