"""A model handed on is the model of the run, says where it comes from, and never overwrites anything."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from settings import laptop_text
from transformers import AutoModelForCausalLM, AutoTokenizer

from openhorizon import cli
from openhorizon.artifacts import REPORTS, checkpoint_dir, stage_dir, write_json, write_text
from openhorizon.export import recorded
from openhorizon.model.load import Checkpoint, save_checkpoint
from openhorizon.model.shards import weights_hash
from openhorizon.model.start import describe

DOMAINS = ("search", "instruction")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Checkpoint]) -> Path:
    """What a run leaves: checkpoints, data, an evaluation of the student, the report, dvc.lock."""
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(laptop_text(DOMAINS))
    Path("LICENSE").write_text("Apache License, Version 2.0\n")
    models = ("base", "sft", *(f"teacher@{name}" for name in DOMAINS), "student")
    for i, model in enumerate(models):
        checkpoint = tiny("lfm2_moe", i)
        save_checkpoint(checkpoint.model, checkpoint.tokenizer, checkpoint_dir(model))
        write_text(checkpoint_dir(model) / "curves.jsonl", "{}\n")
        write_json(checkpoint_dir(model) / "metrics.json", {"parameters": 1})
    for name in DOMAINS:
        write_json(stage_dir("generate", name) / "metrics.json", {"counts": {"demonstrations": 2400}})
        write_text(stage_dir("generate", name) / "graph" / "nodes.parquet", f"nodes of {name}")
    evaluated = {"checkpoint": weights_hash(checkpoint_dir("student"))}
    write_json(stage_dir("evaluate", "student") / "metrics.json", evaluated)
    row = {"model": "student", "domain": "search", "horizon": "all", "n": 200, "success": 0.58, "ci95": [0.511, 0.646]}
    rows = [
        row,
        row | {"model": "sft", "success": 0.51, "ci95": [0.441, 0.578]},
        row | {"horizon": 4, "success": 0.123},
    ]
    write_json(REPORTS / "results.json", {"rows": rows, "commit": "abc123", "seed": 7, "profile": "smoke"})
    Path("dvc.lock").write_text(yaml.safe_dump(LOCK))
    return tmp_path


def entry(out: str, *deps: str) -> dict[str, Any]:
    return {"deps": [{"path": it, "md5": "old"} for it in deps], "outs": [{"path": out, "md5": f"md5 of {out}"}]}


LOCK = {
    "schema": "2.0",
    "stages": {
        "generate@search": entry("artifacts/generate/search", "src/openhorizon/kag"),
        "generate@instruction": entry("artifacts/generate/instruction"),
        "base": entry("artifacts/base", "artifacts/generate"),
        "sft": entry("artifacts/sft", "artifacts/generate", "artifacts/base"),
        "teach@search": entry("artifacts/teach/search", "artifacts/generate/search", "artifacts/base", "artifacts/sft"),
        "teach@instruction": entry("artifacts/teach/instruction", "artifacts/generate/instruction", "artifacts/sft"),
        "distill": entry("artifacts/distill", "artifacts/generate", "artifacts/sft", "artifacts/teach"),
        "evaluate@sft": entry("artifacts/evaluate/sft", "artifacts/generate", "artifacts/sft"),
    },
}
DATA = {"artifacts/generate/search", "artifacts/generate/instruction"}
TEACHERS = {"artifacts/teach/search", "artifacts/teach/instruction"}


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.main(["export", *arguments]) == cli.USER_ERROR
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_plain_transformers_computes_the_same(project: Path) -> None:
    assert cli.main(["export", "student", "--out", "made/here"]) == 0
    ids = torch.arange(20, 60)[None]
    models = [AutoModelForCausalLM.from_pretrained(it).eval() for it in (checkpoint_dir("student"), "made/here")]
    with torch.no_grad():
        ours, theirs = (model(ids).logits for model in models)
    assert torch.equal(ours, theirs) and ours.std() > 0.1
    text = "count from 7"
    tokenizers = [AutoTokenizer.from_pretrained(it) for it in (checkpoint_dir("student"), "made/here")]
    assert tokenizers[0].encode(text) == tokenizers[1].encode(text)
    assert tokenizers[0].chat_template == tokenizers[1].chat_template
    assert weights_hash(Path("made/here")) == weights_hash(checkpoint_dir("student"))


def test_the_card_says_what_it_is_and_where_it_comes_from(project: Path) -> None:
    cli.main(["export", "student", "--out", "made"])
    card = Path("made/README.md").read_text()
    head = yaml.safe_load(card.split("---\n")[1])
    assert head["license"] == "apache-2.0" and describe(Path("made")).licence == "apache-2.0"
    assert Path("made/LICENSE").read_text() == Path("LICENSE").read_text()
    assert "profile `smoke`, seed 7" in card  # the run's, whatever params.yaml says by now
    assert "| **student** | 0.580 [0.511, 0.646] (n=200) |" in card
    assert "| sft | 0.510 [0.441, 0.578] (n=200) |" in card and "0.123" not in card
    for path in DATA | TEACHERS | {"artifacts/base", "artifacts/sft", "artifacts/distill"}:
        assert f"| `{path}` | md5 `md5 of {path}` |" in card
    for name in DOMAINS:
        assert f"| weights of teacher@{name} | `{weights_hash(checkpoint_dir(f'teacher@{name}'))}` |" in card
    made = json.loads(Path("made/lineage.json").read_text())
    assert made["weights"] == weights_hash(checkpoint_dir("student"))
    assert made["demonstrations"] == dict.fromkeys(DOMAINS, 2400)
    assert len(set(made["graphs"].values())) == 2 and all(graph in card for graph in made["graphs"].values())
    assert json.loads(Path("made/results.json").read_text())["commit"] == "abc123"
    assert not {"metrics.json", "curves.jsonl"} & set(os.listdir("made"))


def test_a_teacher_or_a_start_has_its_own_story(project: Path) -> None:
    cli.main(["export", "teacher@search", "--out", "teacher"])
    card = Path("teacher/README.md").read_text()
    assert "teacher of the domain `search`" in card and "Not evaluated." in card
    assert "artifacts/distill" not in card and "weights of teacher" not in card
    shutil.copytree(checkpoint_dir("student"), checkpoint_dir("baseline@seqkd"))
    cli.main(["export", "baseline@seqkd", "--out", "baseline"])
    card = Path("baseline/README.md").read_text()
    assert "The baseline `seqkd` that distillation is held against." in card and "weights of teacher@search" in card


def test_lineage_follows_what_was_read(tmp_path: Path) -> None:
    lock = tmp_path / "dvc.lock"
    lock.write_text(yaml.safe_dump(LOCK))
    assert set(recorded(lock, Path("artifacts/generate/search"))) == {"artifacts/generate/search"}
    assert set(recorded(lock, Path("artifacts/base"))) == DATA | {"artifacts/base"}
    assert set(recorded(lock, Path("artifacts/teach/search"))) == DATA | {
        "artifacts/base",
        "artifacts/sft",
        "artifacts/teach/search",
    }
    everything = {stage["outs"][0]["path"] for stage in LOCK["stages"].values()} - {"artifacts/evaluate/sft"}  # type: ignore[attr-defined]
    assert set(recorded(lock, Path("artifacts/distill"))) == everything
    assert recorded(tmp_path / "none", Path("artifacts/base")) == {}


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ({"name": "SmolLM2", "licence": "apache-2.0", "hash": "h"}, None, "Apache License, Version 2.0\n"),
        ({"name": "their", "licence": "mit", "hash": "h"}, "Do as you like.\n", "Do as you like.\n"),
        ({"name": "their", "licence": "llama3", "hash": "h"}, None, "Licence of the base model their: llama3\n"),
        ({"name": "their", "licence": "", "hash": "h"}, None, "not known"),
    ],
)
def test_the_licence_is_the_bases(project: Path, source: dict[str, str], text: str | None, expected: str) -> None:
    write_json(stage_dir("base") / "metrics.json", {"source": source})
    if text:
        write_text(stage_dir("base") / "LICENSE", text)
    cli.main(["export", "student", "--out", "made"])
    assert expected in Path("made/LICENSE").read_text()
    assert yaml.safe_load(Path("made/README.md").read_text().split("---\n")[1])["license"] == (
        source["licence"] or "unknown"
    )
    assert f"| starts from | {source['name']} (weights h) |" in Path("made/README.md").read_text()


def test_nothing_is_overwritten(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    assert "mine: not empty" in refusal(capsys, "student", "--out", "mine")
    assert os.listdir("mine") == ["thesis.txt"]
    assert "params.yaml: a file" in refusal(capsys, "student", "--out", "params.yaml")
    Path("empty").mkdir()
    assert cli.main(["export", "student", "--out", "empty"]) == 0


def damage(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda: damage(checkpoint_dir("student")), "damaged weights"),
        (lambda: write_json(stage_dir("evaluate", "student") / "metrics.json", {"checkpoint": "0ther"}), "0ther"),
        (lambda: shutil.rmtree(checkpoint_dir("teacher@search")), "make reproduce"),
        (lambda: shutil.rmtree(stage_dir("generate", "search") / "graph"), "make reproduce"),
        (lambda: shutil.rmtree(checkpoint_dir("student")), "make reproduce"),
    ],
)
def test_a_refusal_leaves_nothing_behind(
    project: Path, capsys: pytest.CaptureFixture[str], break_it: Callable[[], object], said: str
) -> None:
    break_it()
    before = sorted(os.listdir(project))
    assert said in refusal(capsys, "student", "--out", "made")
    assert sorted(os.listdir(project)) == before


def test_a_write_that_fails_leaves_nothing_half_made(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        if source.suffix == ".safetensors":
            raise OSError(28, "No space left on device", str(target))
        target.write_bytes(source.read_bytes())

    before = sorted(os.listdir(project))
    monkeypatch.setattr(shutil, "copyfile", full)
    assert "no space left" in refusal(capsys, "student", "--out", "made")
    assert sorted(os.listdir(project)) == before


def test_an_unknown_model_is_named_with_the_known_ones(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "teacher@DOMAIN" in refusal(capsys, "grandmaster", "--out", "made")
