"""``openhorizon inspect TASK --model URL#MODEL``: any Inspect task with a served model, as an evaluation of ours.

Inspect (https://inspect.aisi.org.uk) runs in an environment of its own (``scripts/install-inspect``), since its pins
conflict with the stack; it talks to the model over its OpenAI-compatible endpoint, and what comes back is its log, a
JSON file. From that are made, in the form of every evaluation here, ``records.parquet`` and ``metrics.json``, so that
``openhorizon compare`` takes them; Inspect's own metrics and the whole log stand beside.

A sample counts as solved where its score is "C", true or at least 1. One that broke, or that no scorer judged, has no
success and is in no rate.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openhorizon import process
from openhorizon.agent.endpoint import KEY_VARIABLE
from openhorizon.agent.trajectory import Status
from openhorizon.artifacts import replace_dir, write_json, write_text
from openhorizon.bench.base import Record, write_records
from openhorizon.bench.evaluation import RECORDS
from openhorizon.bench.heldout import rows
from openhorizon.players import open_endpoint

ENVIRONMENT = Path(".openhorizon") / "inspect"
ROOT_VARIABLE = "OPENHORIZON_ROOT"  # which interop/inspect_heldout.py reads
PROVIDER = "openhorizon"  # Inspect reads OPENHORIZON_BASE_URL and OPENHORIZON_API_KEY for it


def run(
    task: str, model: str, limit: int | None, arguments: list[str], out: Path, environment: Path = ENVIRONMENT
) -> dict[str, Any]:
    """Run, write ``out`` and return what its metrics.json has. ``arguments`` go to ``inspect eval``; ``model`` is
    URL#MODEL, or a name of Inspect's own.

    Raises:
        ValueError: Inspect is not installed, or ended without a log; the message has its last line.
    """
    program = environment / "bin" / "inspect"
    if not program.is_file():
        raise ValueError(f"{program}: missing; `scripts/install-inspect {environment}` makes the environment")
    name, variables = _model(model)
    variables |= {ROOT_VARIABLE: str(Path().absolute())}  # Inspect goes to the folder of the task's file
    with replace_dir(out) as folder:
        logs = folder / "logs"
        command = [str(program.absolute()), "eval", _relative(task), "--model", name, "--log-dir", str(logs.absolute())]
        command += ["--log-format", "json", "--display", "plain", *arguments]
        command += [] if limit is None else ["--limit", str(limit)]
        done = subprocess.run(
            command, env=process.child_environment(**variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, check=False,
        )  # fmt: skip
        found = sorted(logs.glob("*.json"))
        if done.returncode or len(found) != 1:
            said = [line for line in done.stdout.splitlines() if line.strip()] or ["nothing"]
            raise ValueError(
                f"inspect eval {task}: ended with {done.returncode} and {len(found)} logs: {said[-1][:300]}"
            )
        log = json.loads(found[0].read_text(encoding="utf-8"))
        write_text(folder / "inspect.txt", done.stdout)
        records = read_log(log, model)
        metrics = summary(log, records, model)
        write_records(folder / RECORDS, records)
        write_json(folder / "metrics.json", metrics)
    return metrics


def _relative(task: str) -> str:
    """Inspect takes a path only where it is relative."""
    return os.path.relpath(task) if os.path.isabs(task) else task


def summary(log: Mapping[str, Any], records: list[Record], model: str) -> dict[str, Any]:
    """Our rates, and Inspect's own beside them."""
    results = log.get("results") or {}
    unjudged = Counter(record.reason.partition(" (")[0] for record in records if record.success is None)
    return {
        "task": log["eval"]["task"],
        "model": model,
        "status": log["status"],
        "packages": log["eval"].get("packages", {}),
        "samples": len(records),
        "not_judged": dict(sorted(unjudged.items())),
        "rows": [asdict(row) for row in rows(records, [records[0].domain])] if records else [],
        "inspect": {
            score["name"]: {name: it["value"] for name, it in score["metrics"].items()}
            for score in results.get("scores", [])
        },
    }


def read_log(log: Mapping[str, Any], model: str) -> list[Record]:
    """One record a sample and epoch."""
    epochs = max((sample.get("epoch", 1) for sample in log.get("samples") or []), default=1)
    return [_record(sample, str(log["eval"]["task"]), model, epochs > 1) for sample in log.get("samples") or []]


def _record(sample: Mapping[str, Any], task: str, model: str, several: bool) -> Record:
    name = f"{sample['id']}" + (f" #{sample['epoch']}" if several else "")
    messages = sample.get("messages") or []
    score = next(iter((sample.get("scores") or {}).values()), None)
    value, status = _value(sample, score), Status.ABORTED
    limit = (sample.get("limit") or {}).get("type", "")
    if value is not None:
        status = Status.SOLVED if value >= 1 else Status.TRUNCATED if limit else Status.FAILED
    return Record(
        task=name,
        domain=task,
        horizon=int((sample.get("metadata") or {}).get("horizon") or 1),
        seed=0,
        model=model,
        status=status,
        success=None if value is None else value >= 1,
        score=value or 0.0,
        reason=_reason(sample, score, limit),
        tool_calls=sum(message.get("role") == "tool" for message in messages),
        first_failing_turn=None,
        tokens=sum(usage.get("output_tokens", 0) for usage in (sample.get("model_usage") or {}).values()),
        answer=None if score is None or score.get("answer") is None else str(score["answer"]),
    )


def _value(sample: Mapping[str, Any], score: Mapping[str, Any] | None) -> float | None:
    """The first score as a number; None where the sample broke or nothing can be read from the score."""
    if sample.get("error") or score is None:
        return None
    letters = {"C": 1.0, "P": 0.5, "I": 0.0}  # of Inspect; "N", no answer, is left to the scorer's metrics
    value = score.get("value")
    if isinstance(value, str):
        return letters.get(value)
    return float(value) if isinstance(value, int | float) else None


def _reason(sample: Mapping[str, Any], score: Mapping[str, Any] | None, limit: str) -> str:
    if sample.get("error"):
        return f"the sample broke ({' '.join(str(sample['error'].get('message', '')).split())[:200]})"
    if score is None:
        return "no score"
    said = f"scored {score.get('value')!r}" + (f", ended by its {limit} limit" if limit else "")
    return f"{said}: {score['explanation'][:300]}" if score.get("explanation") else said


def _model(model: str) -> tuple[str, dict[str, str]]:
    """Inspect's name for it, and the variables that it needs."""
    if "#" not in model:
        return model, {}
    endpoint = open_endpoint(model)
    key = os.environ.get(KEY_VARIABLE) or "none"
    prefix = PROVIDER.upper()  # of the variables' names
    variables = {f"{prefix}_BASE_URL": endpoint.url, f"{prefix}_API_KEY": key}
    return f"openai-api/{PROVIDER}/{endpoint.model}", variables
