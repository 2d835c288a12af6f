"""Families about elements: solids, bonds, light and nuclei. See ``family`` for what each part means."""

from __future__ import annotations

from openhorizon.domains.science.family import MASS, MOLAR_MASS, TEMPERATURE, Constant, Family, Given, Need, steps
from openhorizon.domains.science.fits import cubic, element, solid

NA = {"NA": Constant("Avogadro constant", "1/mol")}
HC = {"h": Constant("Planck constant", "J s"), "c": Constant("speed of light in vacuum", "m/s")}
EV = {"e": Constant("elementary charge", "C")}

ATOMS = (
    Family(
        "heating and melting",
        ("How much heat does it take to warm {m} of {x} (solid) from {T} to its melting point and melt it there?",),
        {
            "M": MOLAR_MASS,
            "C": Need("x", "Specific heat capacity at 25 °C", "J/(g K)"),
            "Tm": Need("x", "Melting point", "K"),
            "H": Need("x", "Enthalpy of fusion", "J/mol"),
        },
        {"m": Given(5, 900, "g", MASS), "T": Given(285, 315, "K", TEMPERATURE)},
        steps(("q1", "m * C * (Tm - T)", "J"), ("q2", "m / M * H", "J"), ("q", "q1 + q2", "J")),
        fits=solid,
        report=("kJ", "kcal", "Wh"),
    ),
    Family(
        "density of a crystal",
        ("Calculate the density of {x} as a crystal from its crystal structure, lattice constant and molar mass.",),
        {
            "M": MOLAR_MASS,
            "a": Need("x", "Lattice constant", "cm"),
            "k": Need("x", "Crystal structure", how="cell"),
        },
        {},
        steps(("V", "a**3", "cm^3"), ("m", "k * M / NA", "g"), ("rho", "m / V", "g/cm^3")),
        constants=NA,
        fits=cubic,
        report=("kg/m^3",),
    ),
    Family(
        "heat conduction",
        ("What heat flow passes through a plate of {x} of area {A} and thickness {d} whose faces differ by {D}?",),
        {"k": Need("x", "Thermal conductivity at 25 °C", "W/(m K)")},
        {
            "A": Given(0.01, 2, "m^2", ("cm^2",)),
            "d": Given(0.002, 0.05, "m", ("mm", "cm", "in")),
            "D": Given(2, 60, "K"),
        },
        steps(("g", "D / d", "K/m"), ("P", "k * A * g", "W")),
        fits=solid,
        report=("kW",),
    ),
    Family(
        "ionic character",
        (
            "What percentage of ionic character does Pauling's relation, 100 (1 - exp(-d^2 / 4)), give to the bond "
            "between {x} and {y}?",
        ),
        {
            "a": Need("x", "Electronegativity (Pauling)"),
            "b": Need("y", "Electronegativity (Pauling)"),
        },
        {},
        steps(("d", "a - b", ""), ("w", "100 * (1 - exp(-d**2 / 4))", "%")),
        fits=element,
        partner=element,
        bounds=(2, 99),
    ),
    Family(
        "threshold wavelength",
        ("What is the longest wavelength of light that can ionize a free atom of {x}?",),
        {"I": Need("x", "Ionization energy 1", "eV")},
        {},
        steps(("E", "I * e", "J"), ("w", "h * c / E", "m")),
        constants=HC | EV,
        fits=element,
        report=("nm", "Å"),
    ),
    Family(
        "nuclear binding energy",
        ("What is the binding energy per nucleon of the isotope {isotope} of {x}?",),
        {
            "Z": Need("x", "Atomic number"),
            "m": Need("x", "Isotope {isotope} mass", "Da"),
        },
        {},
        steps(
            ("N", "{isotope} - Z", ""),
            ("d", "Z * (mp + me) + N * mn - m", "Da"),
            ("E", "d * u / {isotope}", "MeV"),
        ),
        constants={
            "mp": Constant("proton mass in u", "Da"),
            "me": Constant("electron mass in u", "Da"),
            "mn": Constant("neutron mass in u", "Da"),
            "u": Constant("atomic mass constant energy equivalent in MeV", "MeV"),
        },
        fits=element,
        report=("keV",),
    ),
    Family(
        "activity",
        ("What is the activity of {m} of the pure isotope {isotope} of {x}?",),
        {
            "M": Need("x", "Isotope {isotope} mass", "Da"),
            "th": Need("x", "Isotope {isotope} half-life", "s"),
        },
        {"m": Given(1e-6, 1e-3, "g", ("mg", "kg"))},
        steps(("k", "log(2) / th", "1/s"), ("n", "m / M * NA", ""), ("a", "k * n", "Bq")),
        constants=NA,
        fits=element,
        report=("MBq", "Ci"),
    ),
    Family(
        "radioactive decay",
        ("How much of {m} of the isotope {isotope} of {x} is left after {t}?",),
        {"th": Need("x", "Isotope {isotope} half-life", "h")},
        {"m": Given(1, 900, "g", ("mg", "kg", "oz")), "t": Given(0.2, 4, "h", ("d", "a"), times="th")},
        steps(("y", "t / th", ""), ("r", "m * exp(-log(2) * y)", "g")),
        fits=element,
        report=("mg",),
    ),
)
