"""Families about gases, liquids and what turns one into the other. See ``family`` for what each part means."""

from __future__ import annotations

from openhorizon.domains.science.family import (
    MASS,
    MOLAR_MASS,
    PRESSURE,
    TEMPERATURE,
    Constant,
    Family,
    Given,
    Need,
    R,
    steps,
)
from openhorizon.domains.science.fits import BOILS, antoine, compound, gas, liquid, polynomial, subcritical

FLUIDS = (
    Family(
        "volume of a gas",
        ("What volume does {m} of {x} as a gas occupy at {T} and {p} if it behaves ideally?",),
        {"M": MOLAR_MASS},
        {
            "m": Given(1, 500, "g", MASS),
            "T": Given(290, 480, "K", TEMPERATURE),
            "p": Given(20, 300, "kPa", PRESSURE),
        },
        steps(("n", "m / M", "mol"), ("V", "n * R * T / p", "L")),
        constants=R,
        fits=gas,
        report=("m^3", "mL", "gal"),
    ),
    Family(
        "density of a gas",
        ("What is the density of {x} as an ideal gas at {T} and {p}?",),
        {"M": MOLAR_MASS},
        {"T": Given(290, 480, "K", TEMPERATURE), "p": Given(20, 300, "kPa", PRESSURE)},
        steps(("Vm", "R * T / p", "L/mol"), ("rho", "M / Vm", "g/L")),
        constants=R,
        fits=gas,
        report=("kg/m^3", "mg/mL"),
    ),
    Family(
        "molecular speed",
        ("What is the root-mean-square speed of the molecules of {x} as a gas at {T}?",),
        {"M": Need("x", "Molar mass", "kg/mol")},
        {"T": Given(280, 900, "K", TEMPERATURE)},
        steps(("s", "3 * R * T / M", "m^2/s^2"), ("v", "sqrt(s)", "m/s")),
        constants=R,
        fits=gas,
        report=("km/h",),
    ),
    Family(
        "van der Waals pressure",
        (
            "What pressure does {n} of {x} exert in a vessel of {V} at {T} by the van der Waals equation, with a and b "
            "from its critical temperature and pressure?",
        ),
        {"Tc": Need("x", "Critical temperature", "K"), "pc": Need("x", "Critical pressure", "Pa")},
        {
            "n": Given(0.5, 3, "mol", ("mmol",)),
            "V": Given(0.004, 0.02, "m^3", ("L",)),
            "T": Given(420, 700, "K", TEMPERATURE),
        },
        steps(
            ("a", "27 * R**2 * Tc**2 / (64 * pc)", "Pa m^6/mol^2"),
            ("b", "R * Tc / (8 * pc)", "m^3/mol"),
            ("p", "n * R * T / (V - n * b) - a * n**2 / V**2", "Pa"),
        ),
        constants=R,
        fits=lambda page: compound(page) and page.number("Critical temperature") < 650,
        report=("atm", "bar", "kPa"),
    ),
    Family(
        "vapour pressure (Antoine)",
        ("What is the vapour pressure of {x} at {T} by the Antoine equation?",),
        {
            "A": Need("x", "Antoine A"),
            "B": Need("x", "Antoine B", "K"),
            "C": Need("x", "Antoine C", "K"),
        },
        {"T": Given(300, 340, "K", TEMPERATURE)},
        steps(("y", "A - B / (T + C)", ""), ("p", "10**y", "Pa")),
        constants={"": Constant("Antoine (vapor pressure)")},
        fits=antoine,
        report=("mmHg", "kPa", "bar"),
    ),
    Family(
        "boiling under pressure (Antoine)",
        ("At what temperature does the vapour pressure of {x} reach {p} by the Antoine equation?",),
        {
            "A": Need("x", "Antoine A"),
            "B": Need("x", "Antoine B", "K"),
            "C": Need("x", "Antoine C", "K"),
        },
        {"p": Given(5e3, 1e5, "Pa", ("kPa", *PRESSURE))},
        steps(("y", "log10(p)", ""), ("T", "B / (A - y) - C", "K")),
        constants={"": Constant("Antoine (vapor pressure)")},
        fits=antoine,
        report=("°C",),
        tolerance=0.002,
    ),
    Family(
        "vapour pressure (Clausius-Clapeyron)",
        (
            "Estimate the vapour pressure of {x} at {T} with the Clausius-Clapeyron equation from its normal boiling "
            "point (at 101.325 kPa) and its enthalpy of vaporization at that point.",
        ),
        {
            "Tb": Need("x", BOILS, "K"),
            "H": Need("x", "Enthalpy of vaporization at the boiling point", "J/mol"),
        },
        {"T": Given(0.8, 0.98, "K", TEMPERATURE, times="Tb")},
        steps(("y", "H / R * (1 / Tb - 1 / T)", ""), ("p", "101325 * exp(y)", "Pa")),
        constants=R,
        fits=liquid,
        report=("mmHg", "kPa", "atm"),
    ),
    Family(
        "vapour pressure (Lee-Kesler)",
        ("Estimate the vapour pressure of {x} at {T} with the Lee-Kesler correlation.",),
        {
            "Tc": Need("x", "Critical temperature", "K"),
            "pc": Need("x", "Critical pressure", "kPa"),
            "w": Need("x", "Acentric factor"),
        },
        {"T": Given(0.6, 0.9, "K", TEMPERATURE, times="Tc")},
        steps(
            ("t", "T / Tc", ""),
            ("f0", "5.92714 - 6.09648 / t - 1.28862 * log(t) + 0.169347 * t**6", ""),
            ("f1", "15.2518 - 15.6875 / t - 13.4721 * log(t) + 0.43577 * t**6", ""),
            ("p", "pc * exp(f0 + w * f1)", "kPa"),
        ),
        constants={"": Constant("Lee Kesler (vapor pressure)")},
        fits=compound,
        report=("bar", "mmHg"),
    ),
    Family(
        "entropy of vaporization",
        ("What is the molar entropy of vaporization of {x} at its normal boiling point?",),
        {
            "Tb": Need("x", BOILS, "K"),
            "H": Need("x", "Enthalpy of vaporization at the boiling point", "J/mol"),
        },
        {},
        steps(("S", "H / Tb", "J/(mol K)")),
        fits=compound,
        report=("cal/(mol K)",),
    ),
    Family(
        "heat of vaporization",
        ("How much heat does it take to boil away {m} of {x} at its normal boiling point?",),
        {
            "M": MOLAR_MASS,
            "H": Need("x", "Enthalpy of vaporization at the boiling point", "kJ/mol"),
        },
        {"m": Given(5, 900, "g", MASS)},
        steps(("n", "m / M", "mol"), ("q", "n * H", "kJ")),
        fits=compound,
        report=("kcal", "Wh", "MJ"),
    ),
    Family(
        "enthalpy of vaporization (Riedel)",
        ("Estimate the molar enthalpy of vaporization of {x} at its normal boiling point with Riedel's method.",),
        {
            "Tb": Need("x", BOILS, "K"),
            "Tc": Need("x", "Critical temperature", "K"),
            "pc": Need("x", "Critical pressure", "bar"),
        },
        {},
        steps(("t", "Tb / Tc", ""), ("H", "1.093 * R * Tb * (log(pc) - 1.013) / (0.930 - t)", "J/mol")),
        constants=R | {"": Constant("Riedel (phase change)")},
        fits=lambda page: compound(page) and page.number("Critical pressure") > 1500,
        report=("kJ/mol", "kcal/mol"),
    ),
    Family(
        "enthalpy of vaporization (Watson)",
        (
            "What is the molar enthalpy of vaporization of {x} at {T} by Watson's correlation, from its value at the "
            "normal boiling point?",
        ),
        {
            "Tb": Need("x", BOILS, "K"),
            "Tc": Need("x", "Critical temperature", "K"),
            "H": Need("x", "Enthalpy of vaporization at the boiling point", "kJ/mol"),
        },
        {"T": Given(0.8, 0.98, "K", TEMPERATURE, times="Tb")},
        steps(
            ("t1", "1 - T / Tc", ""),
            ("t2", "1 - Tb / Tc", ""),
            ("H1", "H * (t1 / t2)**0.38", "kJ/mol"),
        ),
        constants={"": Constant("Watson (phase change)")},
        fits=compound,
        report=("J/mol", "kcal/mol"),
        tolerance=0.005,
    ),
    Family(
        "molar volume of a liquid (Rackett)",
        ("What is the molar volume of {x} as a saturated liquid at {T} by the Rackett equation?",),
        {
            "Tc": Need("x", "Critical temperature", "K"),
            "pc": Need("x", "Critical pressure", "Pa"),
            "Vc": Need("x", "Critical volume", "m^3/mol"),
        },
        {"T": Given(280, 360, "K", TEMPERATURE)},
        steps(
            ("Z", "pc * Vc / (R * Tc)", ""),
            ("y", "1 + (1 - T / Tc)**(2 / 7)", ""),
            ("V", "R * Tc / pc * Z**y", "m^3/mol"),
        ),
        constants=R | {"": Constant("Rackett (volume)")},
        fits=subcritical,
        report=("cm^3/mol", "L/mol"),
    ),
    Family(
        "heating a gas",
        (
            "How much heat does it take to warm {n} of {x} as a gas at constant pressure from {T1} to {T2}, by the "
            "polynomial of its ideal-gas heat capacity?",
        ),
        {f"a{i}": Need("x", f"Poling a{i}") for i in range(5)},
        {
            "n": Given(0.5, 40, "mol", ("mmol",)),
            "T1": Given(300, 380, "K", TEMPERATURE),
            "T2": Given(450, 700, "K", TEMPERATURE),
        },
        steps(
            ("i1", "a0 * T1 + a1 * T1**2 / 2 + a2 * T1**3 / 3 + a3 * T1**4 / 4 + a4 * T1**5 / 5", "K"),
            ("i2", "a0 * T2 + a1 * T2**2 / 2 + a2 * T2**3 / 3 + a3 * T2**4 / 4 + a4 * T2**5 / 5", "K"),
            ("q", "n * R * (i2 - i1)", "J"),
        ),
        constants=R | {"": Constant("Poling (heat capacity)")},
        fits=polynomial,
        report=("kJ", "kcal"),
    ),
)
