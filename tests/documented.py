"""The commands of README.md, CONTRIBUTING.md and docs/, and how each is tested.

A command is a line of a ``console`` block behind ``$``, a line of a ``bash`` block, a line of a block without a
language that begins with a program's name, or a span of code in the text that does.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROGRAM = re.compile(
    r"(?:[A-Z_0-9]+=\S+ )*"
    r"(openhorizon|make|dvc|prefect|python|pip|git|srun|sed|export|cd|(?:\.\w+|scripts)/[\w./-]+)(?=\s|$)"
)
FENCE = re.compile(r"^[ ]*```(\w*)\n(.*?)^[ ]*```", re.MULTILINE | re.DOTALL)
# Run by tests/test_docs.py, in a folder that holds the repository's params and profiles.
RUN = (
    "openhorizon plan",
    "openhorizon plan --profile a1",
    "openhorizon bench --list",
    "openhorizon profile smoke",
)
# Run by tests of their own, on artifacts that these make.
ELSEWHERE = {
    "openhorizon profile mine": "test_add_a_domain",
    "openhorizon plan --profile a1 --assumptions mine.yaml": "test_forecast",
    "openhorizon show lineage": "test_pipeline",
    "openhorizon show kag": "test_picture",
    "openhorizon show trajectory": "test_play",
    "openhorizon play": "test_play",
    "openhorizon compare": "test_comparing",
    "openhorizon export": "test_export",
    "openhorizon evaluate": "test_evaluating",
    "openhorizon inspect": "test_inspect",
    "openhorizon bridge": "test_inspect",
    "openhorizon stage": "test_resume",
    "openhorizon serve": "test_serve",
    "openhorizon bench": "test_public_bench",
    "python -m openhorizon stage": "test_resume",
    "dvc repro": "test_pipeline",
    "dvc pull": "test_pipeline",
    "dvc push": "test_pipeline",
    "dvc remote": "test_pipeline",
    "dvc --wait-for-lock repro": "test_flow",
    "git clone": "test_pipeline",
    "git commit": "test_pipeline",
    "git add": "test_pipeline",
    "python tests/interpreted_megablocks.py": "test_megablocks",
    "python tests/world_jobs.py": "test_world",
    "python tests/chaos.py": "test_chaos",
    "make chaos": "test_chaos",
    "make up": "test_servers",
    "python -m flows.generate": "test_flow_generate",
    "openhorizon reproduce --runner ray": "test_cluster",
}
# Read, but not run.
READ = {
    "make reproduce": "minutes; the flow that it starts is run by test_pipeline",
    "make test": "this is a part of it",
    "make test-long": "an hour",
    "make lint": "`make test` begins with it",
    "make gpu": "needs a GPU and nvcc",
    "make setup": "installs packages; CI begins with it",
    "make doctor": "its command is run by test_cli",
    "make mlflow": "a server that runs until it is interrupted",
    "make coverage": "as long as all tests",
    "openhorizon study": "minutes to hours; test_study_short runs the short sizes",
    "prefect server": "a server that runs until it is interrupted",
    "prefect work-pool": "changes a server",
    "prefect deploy": "changes a server",
    "prefect --no-prompt deploy": "changes a server",
    "prefect worker": "runs until it is interrupted; test_chaos kills one in its long form",
    "prefect deployment": "asks a server and a worker",
    "prefect gcl": "changes a server",
    "export": "sets a variable of the user's shell",
    "cd": "changes the user's shell",
    "sed": "edits params.yaml; test_pipeline does so in Python",
    "srun": "needs Slurm",
    "pip install": "needs a package index",
    ".openhorizon/inspect/bin/python": "an environment that installs from a package index",
    "scripts/debian-packages": "needs root and a package index",
    "scripts/install-inspect": "needs a package index",
    "scripts/install-tau2": "needs a package index",
    "scripts/install-megablocks": "needs a package index",
    "scripts/install-extra": "needs a package index",
    "scripts/index-scienceworld": "minutes, and Java",
    "scripts/screenshots": "needs Chromium and two servers",
    "python benchmarks/": "minutes, quiet cores or a GPU",
    ".venv/bin/python -m pytest": "as this is run",
    ".venv/bin/dvc": "needs an allocation of Slurm's before it",
}


def commands() -> dict[str, str]:
    """Each command, without comments, and the page that has it first."""
    found: dict[str, str] = {}
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        asked = [line for block in FENCE.finditer(text) for line in _of_block(block[1], block[2])]
        spans = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", FENCE.sub("", text)))
        asked += [span for span in spans if PROGRAM.match(span) and (" " in span or span.startswith("scripts/"))]
        for line in asked:
            for part in re.split(r"\s+#(?=\s)", line)[0].split(" && "):
                if part.strip():
                    found.setdefault(" ".join(part.split()), page.relative_to(ROOT).as_posix())
    return found


def _of_block(language: str, text: str) -> list[str]:
    lines = text.replace("\\\n", " ").splitlines()
    if language == "console":
        return [line.strip().removeprefix("$ ") for line in lines if line.strip().startswith("$ ")]
    if language == "bash":
        return [line for line in lines if line.strip() and not line.strip().startswith("#")]
    return [line.strip() for line in lines if not language and PROGRAM.match(line.strip())]


def bare(command: str) -> str:
    """Without the variables that a command begins with."""
    return re.sub(r"^(?:[A-Z_0-9]+=\S+ )+", "", command)


def known(command: str) -> bool:
    """Whether a test runs it or reads it."""
    return bare(command) in RUN or any(bare(command).startswith(start) for start in (*ELSEWHERE, *READ))
