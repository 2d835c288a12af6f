"""A model of this run as a folder to hand on: an ordinary Hugging Face checkpoint with its model card.

The weights are the stage's files as they are. The card says what the model is, which recipe, profile and seed made it,
how it did on held-out tasks, under which licence its base stands, and by hashes what it was made of, so that somebody
else's copy can be held against this one.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from openhorizon import pipeline
from openhorizon.artifacts import REPORTS, ROOT, checkpoint_dir, read_json, replace_dir, require, stage_dir, write_text
from openhorizon.config import Config
from openhorizon.model.shards import read_weights, weights_hash

NOT_EXPORTED = {"curves.jsonl", "metrics.json", "LICENSE"}  # of a stage; the licence is the base's, see _write_licence
OURS = "apache-2.0"  # the licence of this project, whose LICENSE file has its text
_WHAT = {
    "base": "The starting model: it knows the chat format and short horizons.",
    "sft": "The student after full-domain supervised fine-tuning, before distillation.",
    "teacher": "The teacher of the domain `{}`: SFT, then GRPO.",
    "baseline": "The baseline `{}` that distillation is held against.",
    "student": "The student: the domain teachers merged by domain-routed on-policy distillation.",
}


def export(config: Config, model: str, out: Path) -> dict[str, Any]:
    """Write ``model`` (base, sft, teacher@DOMAIN, baseline@NAME or student) to ``out`` and return its lineage.

    Raises:
        FileNotFoundError: the stage of ``model`` has not run.
        ValueError: ``out`` is a file or holds something; the weights are damaged; or the evaluation that would stand
            in the card was of other weights.
    """
    source = require(checkpoint_dir(model))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: {'not empty' if out.is_dir() else 'a file'}; export writes to a new or empty folder")
    read_weights(source)
    name = weights_hash(source)
    results = _results(model, name)
    made = _lineage(config, model, name, results)
    base = _base()
    with replace_dir(out.absolute()) as folder:
        for path in sorted(source.iterdir()):
            if path.is_file() and path.name not in NOT_EXPORTED:
                shutil.copyfile(path, folder / path.name)
        _write_licence(base, folder)
        write_text(folder / "README.md", _card(model, base, results, made))
        write_text(folder / "lineage.json", json.dumps(made, indent=2, sort_keys=True) + "\n")
        if results:
            write_text(folder / "results.json", json.dumps(results, indent=2, sort_keys=True) + "\n")
    return made


def _results(model: str, name: str) -> dict[str, Any]:
    """results.json, if the weights named ``name`` are what it is about; empty where nothing was evaluated."""
    evaluated, report = stage_dir("evaluate", model) / "metrics.json", REPORTS / "results.json"
    if not evaluated.is_file() or not report.is_file():
        return {}
    of = read_json(evaluated)["checkpoint"]
    if of != name:
        raise ValueError(f"{evaluated}: is of weights {of}, not {name}; `make reproduce` evaluates these")
    return read_json(report)


def _base() -> dict[str, str]:
    """Name, licence and hash of the checkpoint that the recipe started from; from scratch, a licence alone."""
    source: dict[str, str] = read_json(require(stage_dir("base") / "metrics.json")).get("source", {"licence": OURS})
    return source


def _lineage(config: Config, model: str, name: str, results: Mapping[str, Any]) -> dict[str, Any]:
    """What the model was made of. Hashes of artifacts are those that DVC recorded; of weights and graphs, of what
    lies there."""
    kind, _, own = model.partition("@")
    files = recorded(Path(pipeline.LOCK_FILE), checkpoint_dir(model))
    domains = [domain for domain in config.domains if stage_dir("generate", domain).as_posix() in files]
    if not files:  # no dvc.lock (stages run alone): what the recipe says it reads
        domains = [d for d in config.domains if kind != "teacher" or d == own]
    teachers = [f"teacher@{domain}" for domain in config.domains] if kind in ("student", "baseline") else []
    return {
        "model": model,
        "weights": name,
        "commit": pipeline.commit(Path()),
        "profile": results.get("profile", config.profile),
        "seed": results.get("seed", config.seed),
        "artifacts": files,
        "graphs": {domain: _folder_hash(stage_dir("generate", domain) / "graph") for domain in domains},
        "demonstrations": {domain: _demonstrations(domain) for domain in domains},
        "teachers": {teacher: weights_hash(require(checkpoint_dir(teacher))) for teacher in teachers},
    }


def recorded(lock: Path, artifact: Path) -> dict[str, str]:
    """From dvc.lock: the md5 of ``artifact`` and of every artifact that it was made of, directly or not, by path."""
    written: Any = yaml.safe_load(lock.read_text(encoding="utf-8")) if lock.is_file() else {}
    stages: list[dict[str, Any]] = list((written or {}).get("stages", {}).values())
    found: dict[str, str] = {}
    waiting = [artifact]
    while waiting:
        wanted = waiting.pop()
        for stage, out in ((it, out) for it in stages for out in it.get("outs", [])):
            path = Path(out["path"])
            if path.is_relative_to(wanted) and path.as_posix() not in found:
                found[path.as_posix()] = out.get("md5", "")
                waiting += [Path(dep["path"]) for dep in stage["deps"] if Path(dep["path"]).is_relative_to(ROOT)]
    return dict(sorted(found.items()))


def _folder_hash(folder: Path) -> str:
    """The first 12 hex digits of SHA-256 over a folder's files, in the order of their names."""
    digest = hashlib.sha256()
    for path in sorted(path for path in require(folder).rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _demonstrations(domain: str) -> int | None:
    counts: Mapping[str, int] = read_json(stage_dir("generate", domain) / "metrics.json").get("counts", {})
    return counts.get("demonstrations")


def _write_licence(base: Mapping[str, str], folder: Path) -> None:
    """The text of the base's licence: what came with it, or ours where it is the same."""
    theirs = stage_dir("base") / "LICENSE"
    text = theirs if theirs.is_file() else Path("LICENSE")
    if (theirs.is_file() or base["licence"] == OURS) and text.is_file():
        shutil.copyfile(text, folder / "LICENSE")
    else:
        said = base["licence"] or "not known: the base's folder did not say"
        write_text(folder / "LICENSE", f"Licence of the base model {base.get('name', '')}: {said}\n")


def _card(model: str, base: Mapping[str, str], results: Mapping[str, Any], made: Mapping[str, Any]) -> str:
    kind, _, own = model.partition("@")
    what = _WHAT[kind].format(own)
    start = f"{base['name']} (weights {base['hash']})" if "name" in base else "random weights"
    head = {
        "license": base["licence"] or "unknown",
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["openhorizon", "agent", "tool-use"],
    }
    return "\n".join(
        [
            "---",
            yaml.safe_dump(head, sort_keys=False).rstrip(),
            "---",
            f"# OpenHorizon {model}, profile {made['profile']}",
            "",
            f"{what} Made by OpenHorizon, the open reproduction of the Agents-A1 recipe (arXiv 2606.30616).",
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "model, tokenizer = (auto.from_pretrained(FOLDER) for auto in (AutoModelForCausalLM, AutoTokenizer))",
            "```",
            "",
            "| | |",
            "| --- | --- |",
            f"| recipe | profile `{made['profile']}`, seed {made['seed']}, commit `{made['commit'] or 'not known'}` |",
            f"| starts from | {start} |",
            f"| licence of the base | {base['licence'] or 'not known'}; the data have their own, see the project |",
            f"| weights | `{made['weights']}` (SHA-256, first 12 digits) |",
            "",
            "## Held-out success",
            "",
            *_results_table(model, results),
            "",
            "## Made of",
            "",
            *_lineage_table(made),
            "",
        ]
    )


def _results_table(model: str, results: Mapping[str, Any]) -> Iterator[str]:
    """All models' rows over all horizons, the exported one's in bold."""
    rows = {(row["model"], row["domain"]): row for row in results.get("rows", []) if row["horizon"] == "all"}
    if not rows:
        yield "Not evaluated."
        return
    domains = list(dict.fromkeys(domain for _, domain in rows))
    yield f"pass@1 with 95% intervals; commit `{results['commit']}`, seed {results['seed']}:"
    yield ""
    yield f"| model | {' | '.join(domains)} |"
    yield f"| --- |{' --- |' * len(domains)}"
    for name in dict.fromkeys(name for name, _ in rows):
        cells = " | ".join(_cell(rows.get((name, domain))) for domain in domains)
        yield f"| {f'**{name}**' if name == model else name} | {cells} |"


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None or row["success"] is None:
        return "–"
    low, high = row["ci95"]
    return f"{row['success']:.3f} [{low:.3f}, {high:.3f}] (n={row['n']})"


def _lineage_table(made: Mapping[str, Any]) -> Iterator[str]:
    yield "| artifact | hash |"
    yield "| --- | --- |"
    for path, md5 in made["artifacts"].items():
        yield f"| `{path}` | md5 `{md5}` |"
    for domain, graph in made["graphs"].items():
        yield f"| knowledge-action graph of {domain} ({made['demonstrations'][domain]} demonstrations) | `{graph}` |"
    for teacher, name in made["teachers"].items():
        yield f"| weights of {teacher} | `{name}` |"
