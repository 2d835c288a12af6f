"""Imports point downward only: read from the source, so that a lazy import counts, too."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "openhorizon"

GROUND = {"artifacts", "config", "seeds", "sandbox", "unfinished"}  # what anything may use
BELOW = {  # a package or module → what of openhorizon it may import besides the ground and itself
    "artifacts": set(),
    "unfinished": {"pipeline"},
    "lineage": {"pipeline", "world"},
    "world": set(),
    "launch": set(),
    "seeds": set(),
    "sandbox": set(),
    "config": {"domains"},  # the names of the registry
    "domains": set(),
    "losses": set(),
    "agent": {"domains"},
    "model": {"agent", "domains", "world"},
    "kag": {"agent", "domains", "model", "losses"},
    "train": {"agent", "domains", "model", "losses", "tracking", "world"},  # tracking: the type of the log
    "bench": {"agent", "domains", "model", "losses"},
    "report": {"agent", "domains", "bench"},
    "study": {"bench", "pipeline", "profiles", "report"},
    "progress": set(),
    "process": set(),
    "profiles": set(),
    "pipeline": {"profiles"},  # whether params.yaml is one
    "traces": {"agent", "domains"},
    "tracking": {"agent", "pipeline", "progress", "traces"},
    "stages": {
        *("agent", "bench", "benchmarking", "domains", "kag", "lineage", "losses", "model", "pipeline", "report"),
        *("tracking", "train"),
    },
    "export": {"model", "pipeline"},
    "ancestry": {"export", "lineage", "model", "pipeline"},
    "play": {"agent", "domains"},
    "forecast": {"model", "progress"},
    "players": {"agent", "model"},
    "serve": {"players", "process"},
    "servers": {"process", "tracking"},
    "benchmarking": {"agent", "bench", "domains", "kag", "players"},  # kag: what a model may have seen
    "benchtables": {"bench"},
    "evaluating": {"agent", "bench", "domains"},
    "bridge": {"agent", "bench", "domains"},
    "inspecting": {"agent", "bench", "players", "process"},
    "comparing": {"agent", "bench", "report", "tracking"},
    # kag: `show kag`; model: `doctor`, `play`
    "cli": {
        "ancestry",
        "benchmarking",
        "benchtables",
        "bridge",
        "comparing",
        "domains",
        "evaluating",
        "export",
        "forecast",
        "inspecting",
        "kag",
        "launch",
        "lineage",
        "model",
        "pipeline",
        "play",
        "players",
        "process",
        "profiles",
        "progress",
        "serve",
        "servers",
        "study",
        "tracking",
        "world",
    },
    "__main__": {"cli"},
}
FLOWS_MAY_USE = {"artifacts", "cli", "config", "pipeline", "process", "profiles", "progress", "study", "tracking"}
ONLY_IN = {  # a package from outside → the only places that may import it
    "prefect": ("flows/",),
    "mlflow": ("src/openhorizon/tracking/",),
    "megablocks": ("src/openhorizon/model/moe.py",),
    "dvc": ("src/openhorizon/pipeline.py", "src/openhorizon/process.py"),
}
NOT_IN = {"torch": ("domains", "agent"), "transformers": ("domains", "agent", "losses"), "numpy": ("domains",)}

FILES = sorted([*SOURCE.rglob("*.py"), *(ROOT / "flows").glob("*.py")])


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides what it reaches"
            assert node.module
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def unit(path: Path) -> str:
    """The package, or module, right below openhorizon that a file belongs to."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(path: Path) -> None:
    place = path.relative_to(ROOT).as_posix()
    for name in sorted(imports(path)):
        parts = name.split(".")
        for package, where in ONLY_IN.items():
            assert parts[0] != package or place.startswith(where), f"{place} imports {name}"
        if place.startswith("flows/"):
            assert parts[0] != "openhorizon" or parts[1] in FLOWS_MAY_USE, f"{place} imports {name}"
            continue
        assert parts[0] != "flows", f"{place} imports {name}"
        if path == SOURCE / "__init__.py":
            assert parts[0] != "openhorizon", f"{place} imports {name}"
            continue
        own = unit(path)
        assert own not in NOT_IN.get(parts[0], ()), f"{place} imports {name}"
        if parts[0] == "openhorizon":
            assert parts[1] in BELOW[own] | GROUND | ({own} - {"stages"}), f"{place} imports {name}"


def test_every_unit_has_a_place() -> None:
    assert {unit(path) for path in SOURCE.rglob("*.py")} - {"__init__"} <= set(BELOW)


def test_an_upward_import_would_be_seen(tmp_path: Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("def f():\n    from openhorizon.stages import sft\n    import openhorizon.train.optim\n")
    assert imports(path) == {"openhorizon.stages.sft", "openhorizon.train.optim"}
