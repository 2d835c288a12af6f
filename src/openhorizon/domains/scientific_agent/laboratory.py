"""The environment of a screening campaign: a library, instruments, an assay budget, a notebook and Python.

Tables come as text, as real tools print them, and lie as CSV files in the folder of ``run_python`` at the same time.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from openhorizon.domains.base import Call, Environment, Observation, Task, Tool
from openhorizon.domains.corpora.molecules import UNITS
from openhorizon.domains.scientific_agent.briefs import (
    Library,
    Stage,
    Truth,
    literature,
    stage_from_json,
    truth,
    write_brief,
    write_value,
)
from openhorizon.domains.scientific_agent.instruments import DESCRIPTORS, descriptor, matches
from openhorizon.domains.scientific_agent.regression import literature_sums, predict

if TYPE_CHECKING:
    from openhorizon.sandbox import Workspace

PAGE = 40  # rows of a search or similarity table
MOST_DESCRIBED = 30  # molecules of one compute_descriptors call
MOST_PREDICTED = 80
CLOSED = "All stages are closed."

_ID = {"type": "string", "pattern": "^M-[0-9]{3}$"}
_TEXT = {"type": "string", "minLength": 1, "maxLength": 200}
_PROPERTY = {"type": "string", "enum": list(UNITS)}
_EXCLUDE = {"type": "array", "items": _TEXT, "maxItems": 8, "description": "SMARTS of what must not be contained"}


def _ids(most: int) -> dict[str, Any]:
    return {"type": "array", "items": _ID, "minItems": 1, "maxItems": most}


def _tool(name: str, description: str, properties: dict[str, Any], required: Sequence[str]) -> Tool:
    schema = {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}
    return Tool(name, description, schema)


TOOLS = (
    _tool("read_brief", "Show the brief of the stage that is open.", {}, ()),
    _tool(
        "search_library",
        f"List library compounds by substructure, {PAGE} a page.",
        {
            "smarts": {**_TEXT, "description": "SMARTS that must be contained; leave out for all compounds"},
            "exclude": _EXCLUDE,
            "assay": {**_PROPERTY, "description": "only compounds with a sample for this assay"},
            "page": {"type": "integer", "minimum": 1},
        },
        (),
    ),
    _tool(
        "similarity_search",
        f"List library compounds by Tanimoto similarity to one of them, most similar first, {PAGE} a page.",
        {"id": _ID, "exclude": _EXCLUDE, "assay": _PROPERTY, "page": {"type": "integer", "minimum": 1}},
        ("id",),
    ),
    _tool(
        "compute_descriptors",
        f"RDKit descriptors of up to {MOST_DESCRIBED} compounds: "
        + ", ".join(f"{n} ({what})" for n, what in DESCRIPTORS.items())
        + ".",
        {
            "ids": _ids(MOST_DESCRIBED),
            "descriptors": {
                "type": "array",
                "items": {"type": "string", "enum": list(DESCRIPTORS)},
                "minItems": 1,
                "maxItems": len(DESCRIPTORS),
            },
        },
        ("ids", "descriptors"),
    ),
    _tool(
        "predict",
        f"Estimate a property of up to {MOST_PREDICTED} compounds by ridge regression, fitted to literature values and "
        "to this campaign's assays; sorted, highest first.",
        {"property": _PROPERTY, "ids": _ids(MOST_PREDICTED)},
        ("property", "ids"),
    ),
    _tool(
        "assay",
        "Measure a property of one compound. Spends the stage's budget; what was measured before is repeated free.",
        {"id": _ID, "property": _PROPERTY},
        ("id", "property"),
    ),
    _tool(
        "notebook_write",
        "Add an entry to the notebook.",
        {"title": _TEXT, "text": {"type": "string", "minLength": 1, "maxLength": 4000}},
        ("title", "text"),
    ),
    _tool("notebook_read", "Show all entries of the notebook.", {}, ()),
    _tool(
        "run_python",
        "Run Python in a folder that holds all tables so far as CSV files.",
        {"code": {"type": "string", "minLength": 1, "maxLength": 8000}},
        ("code",),
    ),
    _tool(
        "submit",
        "Submit the compounds of the stage, best first, and close it; shows the next brief.",
        {"ids": _ids(5)},
        ("ids",),
    ),
)


class Laboratory(Environment):
    """State: the stage that is open, what was assayed, submitted and noted, and the tables."""

    def __init__(self, task: Task, tools: Sequence[Tool]) -> None:
        super().__init__(task, tools)
        self.campaign: str = task.state["campaign"]
        self.library = Library.of(task.state["library"])
        self.stages: list[Stage] = [stage_from_json(stage) for stage in task.state["stages"]]
        self.truths: list[Truth] = []
        for number in range(1, len(self.stages) + 1):
            self.truths.append(truth(self.library, self.stages, number, self.truths))
        self.assayed: dict[tuple[str, str], int] = {}  # (property, id) → stage
        self.submitted: list[tuple[str, ...]] = []
        self.notes: list[tuple[str, str]] = []
        self.tables: dict[str, str] = {}
        self._workspace: Workspace | None = None
        self._written: dict[str, str] = {}

    @property
    def number(self) -> int:
        """Of the stage that is open, from 1."""
        return len(self.submitted) + 1

    @property
    def stage(self) -> Stage | None:
        return self.stages[self.number - 1] if self.number <= len(self.stages) else None

    def execute(self, call: Call) -> Observation:
        values = dict(call.arguments)
        unknown = [
            key for key in [*values.get("ids", ()), values.get("id")] if key and key not in self.library.compounds
        ]
        if unknown and call.name != "submit":
            return _error(f"no compound {unknown[0]} in the library")
        match call.name:
            case "read_brief":
                return self._brief("")
            case "search_library":
                return self._search(values)
            case "similarity_search":
                return self._similar(values)
            case "compute_descriptors":
                return self._describe(values["ids"], values["descriptors"])
            case "predict":
                return self._predict(values["property"], values["ids"])
            case "assay":
                return self._assay(values["id"], values["property"])
            case "notebook_write":
                self.notes.append((values["title"], values["text"]))
                return Observation(f"Entry {len(self.notes)} added.")
            case "notebook_read":
                entries = [f"[{i}] {title}\n{text}" for i, (title, text) in enumerate(self.notes, start=1)]
                return Observation("\n\n".join(entries) or "The notebook is empty.")
            case "run_python":
                return self._run(values["code"])
            case _:
                return self._submit(tuple(values["ids"]))

    def execute_brief(self) -> str:
        """The brief of the open stage, without a call."""
        return self._brief("").text

    def _brief(self, said: str) -> Observation:
        if self.stage is None:
            text = "Answer with the best hit of every stage and its measured value, in the order of the stages."
            return Observation(f"{said}{CLOSED} {text}", (f"{self.campaign}/end",))
        return Observation(said + write_brief(self.stage, self.number), (f"{self.campaign}/brief {self.number}",))

    def _search(self, values: dict[str, Any]) -> Observation:
        try:
            found = self._filtered(values, values.get("smarts", ""))
        except ValueError as error:
            return _error(str(error))
        rows = [[key, m.name, m.cas, m.formula, m.smiles] for key in found for m in [self.library.compounds[key]]]
        return self._pages(rows, ["id", "name", "CAS", "formula", "SMILES"], values.get("page", 1), "search", "match")

    def _similar(self, values: dict[str, Any]) -> Observation:
        try:
            found = self._filtered(values, "")
        except ValueError as error:
            return _error(str(error))
        rows = [
            [key, f"{likeness:.3f}", m.name, m.formula, m.smiles]
            for key, likeness in self.library.like(found, values["id"])
            for m in [self.library.compounds[key]]
        ]
        head = ["id", "similarity", "name", "formula", "SMILES"]
        return self._pages(rows, head, values.get("page", 1), "similar", "are ranked")

    def _filtered(self, values: dict[str, Any], smarts: str) -> list[str]:
        """Ids that a search may show.

        Raises:
            ValueError: a pattern is none.
        """
        known = values.get("assay")
        ids = self.library.with_sample(known) if known else list(self.library.compounds)
        for pattern in [smarts, *values.get("exclude", ())]:
            if pattern:
                matches("C", pattern)  # also where no compound is left to match
        return self.library.matching(ids, smarts, values.get("exclude", ()))

    def _pages(self, rows: list[list[str]], head: list[str], page: int, name: str, verb: str) -> Observation:
        pages = max(1, math.ceil(len(rows) / PAGE))
        if page > pages:
            return _error(f"there are {pages} pages")
        shown = rows[(page - 1) * PAGE : page * PAGE]
        said = f"{len(rows)} of {len(self.library.compounds)} compounds {verb}; page {page} of {pages}."
        return Observation(self._table(said, head, shown, name))

    def _describe(self, ids: Sequence[str], names: Sequence[str]) -> Observation:
        rows = [
            [key, *(f"{descriptor(self.library.compounds[key].smiles, name):g}" for name in names)]
            for key in dict.fromkeys(ids)
        ]
        said = f"{len(rows)} compounds, {len(names)} descriptors."
        return Observation(self._table(said, ["id", *names], rows, "descriptors"))

    def _predict(self, known: str, ids: Sequence[str]) -> Observation:
        compounds, wanted = self.library.compounds, list(dict.fromkeys(ids))
        assays = {compounds[key].smiles: self.library.value(key, known) for name, key in self.assayed if name == known}
        values = predict(known, literature(), assays, [compounds[key].smiles for key in wanted])
        sums = literature_sums(known, literature())
        ranked = sorted(zip(wanted, values, strict=True), key=lambda item: (-round(item[1], 6), item[0]))
        said = (
            f"Ridge regression for {known}: {sums.count} literature values and {len(assays)} assays of this campaign; "
            f"mean absolute error on the literature {sums.error:.3g}."
        )
        rows = [[key, compounds[key].name, f"{value:.5g}"] for key, value in ranked]
        return Observation(self._table(said, ["id", "name", f"predicted {known}"], rows, "predicted"))

    def _assay(self, key: str, known: str) -> Observation:
        stage = self.stage
        if (known, key) not in self.assayed:
            if stage is None or stage.known != known:
                return _error(f"there is no budget for {known} now")
            if known not in self.library.compounds[key].measured:
                return _error(f"there is no sample of {key} for {known}")
            if self._left(stage) <= 0:
                return _error("the budget of this stage is spent")
            self.assayed[known, key] = self.number
        molecule = self.library.compounds[key]
        unit = f" {UNITS[known]}" if UNITS[known] else ""
        left = f" Assays left in stage {self.number}: {self._left(stage)} of {stage.budget}." if stage else ""
        text = (
            f"Assay report. Sample {key}: {molecule.name} (CAS {molecule.cas}, {molecule.formula}).\n"
            f"Property: {known}. Measured value: {write_value(molecule.measured[known])}{unit}.{left}"
        )
        return Observation(text, (f"{self.campaign}/{known} of {key}",))

    def _left(self, stage: Stage) -> int:
        return stage.budget - sum(number == self.number for number in self.assayed.values())

    def _run(self, code: str) -> Observation:
        if self._workspace is None:
            from openhorizon.sandbox import open_workspace

            self._workspace = open_workspace()
        for name, text in self.tables.items():
            if self._written.get(name) != text:
                self._workspace.write(name, text.encode())
                self._written[name] = text
        result = self._workspace.python(code)
        tail = "\n[stopped: it took too long]" if result.timed_out else "\n[output cut]" if result.cut else ""
        text = (result.output.rstrip("\n") + tail).strip("\n") or "(no output)"
        return Observation(text, error=result.exit_code != 0)

    def _submit(self, ids: tuple[str, ...]) -> Observation:
        stage = self.stage
        if stage is None:
            return _error("all stages are closed")
        if len(set(ids)) != stage.count:
            return _error(f"this stage asks for {stage.count} compound(s)")
        self.submitted.append(ids)
        return self._brief(f"Stage {len(self.submitted)} is closed. ")

    def _table(self, said: str, head: list[str], rows: list[list[str]], name: str) -> str:
        """The text of a table, which is kept as a CSV file, too."""
        file = f"{name}_{1 + sum(other.startswith(name) for other in self.tables)}.csv"
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([head, *rows])
        self.tables[file] = stream.getvalue()
        return "\n".join([f"{said} Saved as {file}.", " | ".join(head), *(" | ".join(row) for row in rows)])

    def close(self) -> None:
        if self._workspace is not None:
            self._workspace.close()
            self._workspace = None


def _error(text: str) -> Observation:
    return Observation(f"error: {text}", error=True)
