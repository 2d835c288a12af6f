"""Families about amounts, solutions, reactions and electrodes. See ``family`` for what each part means."""

from __future__ import annotations

from openhorizon.domains.science.family import MASS, MOLAR_MASS, TEMPERATURE, Constant, Family, Given, Need, R, steps
from openhorizon.domains.science.fits import (
    compound,
    drawn,
    elements_of,
    extracted,
    liquid,
    metal_ion,
    organic,
    salt,
    warming,
)

F = {"F": Constant("Faraday constant", "C/mol")}

AMOUNTS = (
    Family(
        "amount of substance",
        ("How many moles of {x} are there in {m}?", "What amount of substance does {m} of {x} correspond to?"),
        {"M": MOLAR_MASS},
        {"m": Given(1, 900, "g", MASS)},
        steps(("n", "m / M", "mol")),
        fits=compound,
        report=("mmol",),
    ),
    Family(
        "solution",
        ("What mass of {x} must be weighed out to prepare {V} of a solution of concentration {c}?",),
        {"M": MOLAR_MASS},
        {"V": Given(0.05, 5, "L", ("mL", "gal")), "c": Given(0.01, 2, "mol/L", ("mmol/L",))},
        steps(("n", "c * V", "mol"), ("m", "n * M", "g")),
        fits=salt,
        report=("mg", "oz"),
    ),
    Family(
        "dilution",
        ("What concentration results when {m} of {x} is dissolved to {V1}, and {V2} of that is diluted to {V3}?",),
        {"M": MOLAR_MASS},
        {
            "m": Given(1, 60, "g", ("mg", "oz")),
            "V1": Given(0.2, 2, "L", ("mL",)),
            "V2": Given(0.005, 0.05, "L", ("mL",)),
            "V3": Given(0.1, 1, "L", ("mL",)),
        },
        steps(("n", "m / M", "mol"), ("c1", "n / V1", "mol/L"), ("c2", "c1 * V2 / V3", "mol/L")),
        fits=salt,
        report=("mmol/L",),
    ),
    Family(
        "mass percentage",
        ("What mass percentage of {y} is there in {x}? Count the atoms in its SMILES with RDKit.",),
        {
            "M": MOLAR_MASS,
            "A": Need("y", "Molar mass", "g/mol"),
            "k": Need("x", "SMILES", how="count"),
            "symbol": Need("y", "Symbol", how="text"),
        },
        {},
        steps(("w", "100 * k * A / M", "%")),
        fits=drawn,
        choose=elements_of,
        bounds=(0.5, 99.9),
        prelude=(
            "from rdkit import Chem",
            'molecule = Chem.AddHs(Chem.MolFromSmiles("{k}"))',
            'k = sum(atom.GetSymbol() == "{symbol}" for atom in molecule.GetAtoms())',
        ),
    ),
    Family(
        "combustion products",
        ("How much {y} is formed when {m} of {x} burns completely in oxygen?",),
        {
            "M": MOLAR_MASS,
            "k": Need("x", "Formula", how="atoms:C"),
            "My": Need("y", "Molar mass", "g/mol"),
        },
        {"m": Given(1, 800, "g", MASS)},
        steps(("n", "m / M", "mol"), ("ny", "k * n", "mol"), ("my", "ny * My", "g")),
        fits=organic,
        fixed={"y": "Carbon dioxide"},
        report=("kg", "lb"),
    ),
    Family(
        "combustion enthalpy",
        (
            "How much heat is released when {m} of {x} (liquid) burns completely to {y} (gas) and "
            "{z} (liquid) at 298.15 K?",
            "Calculate the heat given off by the complete combustion of {m} of {x} (liquid) to {y} (gas) and "
            "{z} (liquid) at 298.15 K.",
        ),
        {
            "M": MOLAR_MASS,
            "Hx": Need("x", "Enthalpy of formation (liquid)", "kJ/mol"),
            "k": Need("x", "Formula", how="atoms:C"),
            "j": Need("x", "Formula", how="atoms:H"),
            "Hy": Need("y", "Enthalpy of formation (gas)", "kJ/mol"),
            "Hz": Need("z", "Enthalpy of formation (liquid)", "kJ/mol"),
        },
        {"m": Given(1, 900, "g", MASS)},
        steps(("H", "Hx - k * Hy - j / 2 * Hz", "kJ/mol"), ("n", "m / M", "mol"), ("q", "n * H", "kJ")),
        fits=organic,
        fixed={"y": "Carbon dioxide", "z": "Water"},
        report=("kcal", "MJ", "kWh"),
    ),
    Family(
        "freezing point depression",
        (
            "By how much does the freezing point of {mx} of {x} fall when {my} of {y}, which does not dissociate, "
            "is dissolved in it?",
        ),
        {
            "Tm": Need("x", "Melting point", "K"),
            "H": Need("x", "Enthalpy of fusion", "J/mol"),
            "M": Need("x", "Molar mass", "kg/mol"),
            "My": Need("y", "Molar mass", "g/mol"),
        },
        {"mx": Given(0.2, 3, "kg", ("g", "lb")), "my": Given(2, 40, "g", ("mg", "oz"))},
        steps(("K", "R * Tm**2 * M / H", "K kg/mol"), ("b", "my / My / mx", "mol/kg"), ("dT", "K * b", "K")),
        constants=R,
        fits=lambda page: liquid(page) and page.number("Melting point") > 150,
        partner=lambda page: organic(page) and 60 < page.number("Molar mass") < 400,
        difference=True,
        bounds=(0.02, 20),
    ),
    Family(
        "electrode potential",
        ("What is the standard potential of the electrode at which {x} in water is reduced to the metal?",),
        {
            "G": Need("x", "Gibbs energy of formation (aqueous)", "J/mol"),
            "z": Need("x", "Charge number"),
        },
        {},
        steps(("E", "G / (z * F)", "V")),
        constants=F,
        fits=metal_ion,
        report=("mV",),
        bounds=(0.02, 9),
    ),
    Family(
        "electrode potential (Nernst)",
        (
            "What is the potential of the electrode of {x} and its metal when the ion's activity is {a} at {T}, if its "
            "standard potential is that at 298.15 K?",
        ),
        {
            "G": Need("x", "Gibbs energy of formation (aqueous)", "J/mol"),
            "z": Need("x", "Charge number"),
        },
        {"a": Given(1e-4, 0.05, ""), "T": Given(285, 330, "K", TEMPERATURE)},
        steps(("E0", "G / (z * F)", "V"), ("s", "R * T / (z * F)", "V"), ("E", "E0 + s * log(a)", "V")),
        constants=R | F,
        fits=metal_ion,
        report=("mV",),
        bounds=(0.02, 9),
    ),
    Family(
        "cell voltage",
        (
            "What is the standard voltage of a cell in which {x} is reduced at the cathode and the metal of {y} is "
            "oxidized at the anode?",
        ),
        {
            "Gx": Need("x", "Gibbs energy of formation (aqueous)", "J/mol"),
            "zx": Need("x", "Charge number"),
            "Gy": Need("y", "Gibbs energy of formation (aqueous)", "J/mol"),
            "zy": Need("y", "Charge number"),
        },
        {},
        steps(("Ex", "Gx / (zx * F)", "V"), ("Ey", "Gy / (zy * F)", "V"), ("E", "Ex - Ey", "V")),
        constants=F,
        fits=metal_ion,
        partner=metal_ion,
        report=("mV",),
        bounds=(0.05, 9),
    ),
    Family(
        "carbon dioxide equivalent",
        ("What mass of carbon dioxide warms the climate over 100 years as much as {m} of {x}?",),
        {"g": Need("x", "Global warming potential over 100 years")},
        {"m": Given(1, 900, "kg", ("g", "t", "lb"))},
        steps(("w", "m * g", "kg")),
        fits=warming,
        report=("t", "lb"),
    ),
    Family(
        "extraction",
        (
            "Suppose {m} of {x} is dissolved in {Vw} of water and shaken with {Vo} of 1-octanol. "
            "What mass stays in the water?",
        ),
        {"L": Need("x", "Octanol-water partition coefficient (log10)")},
        {
            "m": Given(1, 20, "g", ("mg",)),
            "Vw": Given(0.1, 1, "L", ("mL",)),
            "Vo": Given(0.02, 0.3, "L", ("mL",)),
        },
        steps(("K", "10**L", ""), ("r", "m * Vw / (Vw + K * Vo)", "g")),
        fits=extracted,
        report=("mg",),
    ),
)
