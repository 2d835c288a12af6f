"""What studies claim: ``reports/claims.json``, one object a claim, and the figures behind them.

    {"id", "statement", "paper_section", "holds", "effect", "ci95", "seeds", "tasks", "tokens", "flops", "control",
     "figure", "takeaway", "p", "study", "profile", "commit"}

``holds`` is null where the study cannot tell. Claims are merged by ``id``, so that studies are run one by one. A figure
is kept twice: as data (``reports/studies/ID.json``), from which the report's page draws it, and as an SVG to look at.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from openhorizon.artifacts import REPORTS, write_text
from openhorizon.report.figures import Figure, Line, Panel, draw, standalone

CLAIMS = REPORTS / "claims.json"
FIGURES = REPORTS / "studies"


@dataclass(frozen=True)
class Claim:
    """One statement with the evidence for or against it."""

    id: str
    statement: str
    paper_section: str
    holds: bool | None
    effect: float
    ci95: tuple[float, float]
    p: float | None  # adjusted for the comparisons that ``control`` names; None: not tested
    seeds: int
    tasks: int  # paired, over all seeds
    tokens: float | None  # processed in training by all arms compared
    flops: float | None
    control: str  # what was held equal, and the correction for several comparisons
    figure: str  # a file under reports/
    takeaway: str  # the sentence that a careful reader may take away
    study: str
    profile: str
    commit: str


def write_claims(root: Path, claims: Sequence[Claim], figures: Mapping[str, Figure]) -> None:
    """Merge ``claims`` into claims.json by id and write their figures, by file name without an ending."""
    found = {claim.id: claim for claim in read_claims(root)} | {claim.id: claim for claim in claims}
    text = json.dumps([asdict(found[key]) for key in sorted(found)], indent=2)
    for name, figure in figures.items():
        write_text(root / FIGURES / f"{name}.json", json.dumps(asdict(figure), indent=1) + "\n")
        for i, panel in enumerate(figure.panels):
            end = f"-{i}" if i else ""
            write_text(root / FIGURES / f"{name}{end}.svg", standalone(draw(panel, f"{figure.id}-{i}", legend=True)))
    write_text(root / CLAIMS, text + "\n")


def read_claims(root: Path) -> list[Claim]:
    """All claims, by id; none where no study was run.

    Raises:
        ValueError: the file is damaged, or of another version; the message says what to do.
    """
    path = root / CLAIMS
    if not path.is_file():
        return []
    try:
        return [Claim(**row | {"ci95": tuple(row["ci95"])}) for row in json.loads(path.read_text(encoding="utf-8"))]
    except (json.JSONDecodeError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: damaged ({error}); delete it and run its studies again") from error


def read_figures(root: Path, claims: Sequence[Claim]) -> dict[str, Figure]:
    """The figures that claims name, by that name; one that is not there is left out."""
    paths = {claim.figure: root / Path(claim.figure).with_suffix(".json") for claim in claims}
    return {name: _figure(json.loads(path.read_text("utf-8"))) for name, path in paths.items() if path.is_file()}


def _figure(raw: Mapping[str, Any]) -> Figure:
    panels = [Panel(**panel | {"lines": tuple(Line(**line) for line in panel["lines"])}) for panel in raw["panels"]]
    return Figure(raw["id"], raw["caption"], tuple(panels))
