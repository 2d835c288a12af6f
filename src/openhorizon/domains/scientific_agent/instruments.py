"""What can be computed of a molecule: rdkit, called when first needed, each result once.

rdkit (BSD-3-Clause) brings numpy with it, hence it is imported inside functions only. ``DESCRIPTORS`` are rdkit's own,
by their names; ``GROUPS`` are SMARTS patterns of common functional groups.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

DESCRIPTORS: Mapping[str, str] = MappingProxyType(
    {  # name → what it is
        "MolWt": "average molecular weight, g/mol",
        "HeavyAtomCount": "atoms that are not hydrogen",
        "MolLogP": "Crippen's estimate of the octanol-water partition coefficient",
        "MolMR": "Crippen's estimate of the molar refractivity",
        "TPSA": "topological polar surface area, square angstrom",
        "LabuteASA": "Labute's approximate surface area",
        "NumHDonors": "hydrogen bond donors",
        "NumHAcceptors": "hydrogen bond acceptors",
        "NumRotatableBonds": "bonds that turn freely",
        "RingCount": "rings",
        "NumAromaticRings": "aromatic rings",
        "FractionCSP3": "share of carbon atoms that are sp3",
        "NumHeteroatoms": "atoms other than carbon and hydrogen",
        "NumValenceElectrons": "valence electrons",
        "BalabanJ": "Balaban's J index of branching",
        "BertzCT": "Bertz's index of complexity",
        "Chi0": "connectivity index of order 0",
        "Chi1": "connectivity index of order 1",
        "Kappa1": "Hall-Kier shape index of order 1",
        "Kappa2": "Hall-Kier shape index of order 2",
        "HallKierAlpha": "Hall-Kier alpha",
        "qed": "quantitative estimate of drug-likeness",
    }
)
GROUPS: Mapping[str, str] = MappingProxyType(
    {  # name → SMARTS
        "nitrogen": "[#7]",
        "oxygen": "[#8]",
        "sulfur": "[#16]",
        "halogen": "[F,Cl,Br,I]",
        "ring": "[R]",
        "aromatic": "[a]",
        "alcohol": "[OX2H][CX4]",
        "phenol": "[OX2H]c",
        "aldehyde": "[CX3H1](=O)[#6]",
        "ketone": "[#6][CX3](=O)[#6]",
        "acid": "[CX3](=O)[OX2H1]",
        "ester": "[#6][CX3](=O)[OX2H0][#6]",
        "ether": "[OD2]([#6;!$(C=O)])[#6;!$(C=O)]",
        "amine": "[NX3;H2,H1,H0;!$(NC=O);!$(N=*);!$(N[!#6;!#1])]",
        "amide": "[NX3][CX3](=[OX1])[#6]",
        "nitrile": "[NX1]#[CX2]",
        "nitro": "[$([NX3](=O)=O),$([NX3+](=O)[O-])]",
        "alkene": "[CX3]=[CX3]",
        "alkyne": "[CX2]#[CX2]",
        "chlorine": "[Cl]",
        "bromine": "[Br]",
        "fluorine": "[F]",
    }
)
FINGERPRINT_RADIUS, FINGERPRINT_BITS = 2, 2048  # Morgan


@functools.lru_cache(maxsize=100_000)
def descriptor(smiles: str, name: str) -> float:
    """One of ``DESCRIPTORS``, rounded to three decimals."""
    function = getattr(_rdkit("rdkit.Chem.Descriptors"), name)
    return round(float(function(_molecule(smiles))), 3) + 0.0  # without the sign of -0.0


@functools.lru_cache(maxsize=200_000)
def similarity(one: str, other: str) -> float:
    """Tanimoto similarity of Morgan fingerprints, in [0, 1]."""
    return float(_rdkit("rdkit.DataStructs").TanimotoSimilarity(_fingerprint(one), _fingerprint(other)))


@functools.lru_cache(maxsize=200_000)
def matches(smiles: str, smarts: str) -> bool:
    """Whether the molecule holds the substructure.

    Raises:
        ValueError: ``smarts`` is no pattern.
    """
    return bool(_molecule(smiles).HasSubstructMatch(_pattern(smarts)))


@functools.lru_cache(maxsize=5_000)
def _pattern(smarts: str) -> Any:
    pattern = _rdkit("rdkit.Chem").MolFromSmarts(smarts)
    if pattern is None:
        raise ValueError(f"{smarts[:60]!r} is no SMARTS pattern")
    return pattern


@functools.lru_cache(maxsize=10_000)
def _molecule(smiles: str) -> Any:
    molecule = _rdkit("rdkit.Chem").MolFromSmiles(smiles)
    if molecule is None:
        raise ValueError(f"{smiles[:60]!r} is no SMILES")
    return molecule


@functools.lru_cache(maxsize=10_000)
def _fingerprint(smiles: str) -> Any:
    return _generator().GetFingerprint(_molecule(smiles))


@functools.cache
def _generator() -> Any:
    module = _rdkit("rdkit.Chem.rdFingerprintGenerator")
    return module.GetMorganGenerator(radius=FINGERPRINT_RADIUS, fpSize=FINGERPRINT_BITS)


@functools.cache
def _rdkit(module: str) -> Any:
    try:
        importlib.import_module("rdkit.RDLogger").DisableLog("rdApp.*")  # what is wrong is said by what we raise
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError("molecules: package 'rdkit' is not installed; run: pip install rdkit") from error
