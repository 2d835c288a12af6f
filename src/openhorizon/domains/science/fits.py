"""Which substances a family of problems may be about, by what their pages say."""

from __future__ import annotations

from openhorizon.domains.corpora.elements import load_elements
from openhorizon.domains.corpora.substances import Substance, atoms
from openhorizon.domains.science.family import CELLS

BOILS = "Boiling point"


def compound(page: Substance) -> bool:
    return page.kind == "compound"


def element(page: Substance) -> bool:
    return page.kind == "element"


def gas(page: Substance) -> bool:
    return compound(page) and page.number(BOILS) < 285 if BOILS in page.facts else False


def organic(page: Substance) -> bool:
    counts = atoms(page.facts["Formula"][0]) if compound(page) else {}
    return "C" in counts and "H" in counts and set(counts) <= {"C", "H", "O"}


def drawn(page: Substance) -> bool:
    """A single molecule of organic chemistry: what a SMILES says of salts and oxides is not always their formula."""
    counts = atoms(page.facts["Formula"][0]) if compound(page) else {}
    return "C" in counts and "H" in counts and "." not in page.facts["SMILES"][0]


def liquid(page: Substance) -> bool:
    facts = page.facts
    melts = page.number("Melting point") if "Melting point" in facts else 400.0
    return compound(page) and BOILS in facts and melts < 290 < 320 < page.number(BOILS)


def salt(page: Substance) -> bool:
    return compound(page) and page.number("Molar mass") < 400 and not gas(page)


def antoine(page: Substance) -> bool:
    facts = page.facts
    return "Antoine A" in facts and page.number("Antoine valid from") < 300 < 340 < page.number("Antoine valid to")


def polynomial(page: Substance) -> bool:
    valid = ("Poling valid from", "Poling valid to")
    return all(label in page.facts for label in valid) and page.number(valid[0]) <= 298 < 700 <= page.number(valid[1])


def subcritical(page: Substance) -> bool:
    """A liquid between 250 and 350 K, well below its critical point."""
    facts = page.facts
    return compound(page) and "Critical temperature" in facts and page.number("Critical temperature") > 450


def metal_ion(page: Substance) -> bool:
    """A bare metal cation, so that the couple with the metal has the ion's Gibbs energy alone."""
    formula = page.facts["Ion formula"][0] if page.kind == "ion" else ""
    bare = formula.split("+")[0]
    return "+" in formula and len(atoms(bare)) == 1 and bare.isalpha() and len(bare) <= 2 and bare != "H"


def cubic(page: Substance) -> bool:
    known = "Lattice constant" in page.facts and "Density near room temperature" in page.facts
    return element(page) and known and page.facts["Crystal structure"][0] in CELLS


def solid(page: Substance) -> bool:
    melts = page.facts.get("Melting point")
    return element(page) and melts is not None and float(melts[0]) > 320


def warming(page: Substance) -> bool:
    return compound(page) and page.facts["Formula"][0] != "CO2"


def extracted(page: Substance) -> bool:
    return compound(page) and abs(page.number("Octanol-water partition coefficient (log10)")) < 3


def elements_of(page: Substance) -> tuple[str, ...]:
    """The elements of a compound."""
    counts = atoms(page.facts["Formula"][0])
    return tuple(name for name, element in load_elements().items() if element.facts["Symbol"][0] in counts)
