"""What the authors of Agents-A1 report of a benchmark (``reported.yaml``), to stand beside what is measured here."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import yaml

FILE = Path(__file__).with_suffix(".yaml")


@functools.cache
def table() -> dict[str, Any]:
    """The whole file: source, protocol, and benchmarks with figures in percent."""
    found: dict[str, Any] = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return found


def reported(name: str) -> dict[str, Any] | None:
    """The authors' figures for our benchmark ``name``; None where they report none of the same tasks. Of what is in no
    package a user's folder may have the tasks: it is then called by the authors' title, such as ``gaia``, ``seal-0``,
    ``hle-with-tools``."""
    found = next((row for row in table()["benchmarks"] if name == (row["ours"] or _plain(row["title"]))), None)
    return found and {**found, "source": table()["source"], "protocol": table()["protocol"]}


def _plain(title: str) -> str:
    return title.casefold().replace(" ", "-")
