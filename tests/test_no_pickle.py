"""Weights and everything else are read from formats that can run no code, and no secret is written down."""

from __future__ import annotations

import ast
import os
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import MACHINE
from settings import laptop, laptop_text

from openhorizon import lineage, tracking
from openhorizon.artifacts import stage_dir, write_json
from openhorizon.model.load import Checkpoint, load_checkpoint, save_checkpoint

ROOT = Path(__file__).parents[1]
CODE = [path for part in ("src", "flows", "studies", "benchmarks", "scripts") for path in (ROOT / part).rglob("*.py")]
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
CALLS = {"torch.load", "torch.save"}
METHODS = {"read_pickle", "to_pickle"}


def uses(tree: ast.AST) -> set[str]:
    """Of what can read or write a pickle."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] in MODULES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.add(str(node.module))
        elif isinstance(node, ast.Attribute):
            found |= {node.attr} & METHODS
            if isinstance(node.value, ast.Name):
                found |= {f"{node.value.id}.{node.attr}"} & CALLS
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.add("allow_pickle")
    return found


def test_no_code_reads_or_writes_a_pickle() -> None:
    assert len(CODE) > 200
    words = [*MODULES, *METHODS, "torch.load", "torch.save", "allow_pickle"]  # a file without them needs no parsing
    texts = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in CODE}
    found = {path: uses(ast.parse(text)) for path, text in texts.items() if any(word in text for word in words)}
    assert {path: what for path, what in found.items() if what} == {}


def test_a_pickle_would_be_seen() -> None:
    for line in (
        *("import pickle", "from joblib import load", "torch.load(p)", "x = torch.save", "pd.read_pickle(p)"),
        "np.load(p, allow_pickle=True)",
    ):
        assert uses(ast.parse(line)), line
    assert not uses(ast.parse("json.load(p); safetensors.torch.load(p); np.load(p)"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors"])
def test_pickled_weights_are_refused(tmp_path: Path, tiny: Callable[..., Checkpoint], name: str) -> None:
    """By any name, and before a byte of them is run."""

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'sprung'}",)

    checkpoint = tiny()
    save_checkpoint(checkpoint.model, checkpoint.tokenizer, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"weight": Trap()}, tmp_path / name)
    with pytest.raises(ValueError, match=r"no safetensors weights|damaged weights"):
        load_checkpoint(tmp_path, MACHINE)
    assert not (tmp_path / "sprung").exists()


def test_no_secret_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "sk-0123456789abcdef"
    for name in ("OPENHORIZON_API_KEY", "AWS_SECRET_ACCESS_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, secret)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(tracking.PARENT_VARIABLE, tracking.UNTRACKED)
    monkeypatch.setenv("MACHINE", "cpu")
    subprocess.run(["git", "init", "-q", "."], check=True)
    Path("params.yaml").write_text(laptop_text())
    Path("dvc.yaml").write_text((ROOT / "dvc.yaml").read_text())
    write_json(stage_dir("generate", "search") / "metrics.json", {})
    config = replace(laptop(), machines={"cpu": MACHINE})
    with tracking.StageLog(config, "generate", "search") as log:
        log.metrics(0, loss=1.0)
        made_of = lineage.origin("generate", "search")
        assert made_of
        lineage.record(made_of, config)
        saved = lineage.unfinished(config, "generate", "search")
        assert saved
        saved.save({"a": 1}, {})
    written = [path for path in tmp_path.rglob("*") if path.is_file() and ".git" not in path.parts]
    assert {".openhorizon", "artifacts"} <= {path.relative_to(tmp_path).parts[0] for path in written}
    assert not [path for path in written if secret.encode() in path.read_bytes()]
