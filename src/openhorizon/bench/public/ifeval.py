"""IFEval: prompts under 25 kinds of verifiable instructions, from a user's file.

Its 541 prompts are in no package that can be installed: ``input_data.jsonl`` of google-research's
instruction_following_eval belongs into the user's folder (files.py), lines of ``key``, ``prompt``,
``instruction_id_list`` and ``kwargs``. Judged by the package if-verifiable: its IFEval rules, its strict and loose.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openhorizon.bench.public import followed
from openhorizon.bench.public.base import Benchmark
from openhorizon.bench.public.files import read_lines, user_file
from openhorizon.bench.public.followed import FIELDS, Following, nltk_with_data
from openhorizon.domains.base import Task
from openhorizon.domains.instruction.constraints import ifeval_rules
from openhorizon.domains.tool_calling.borrowed import Library, package_folder

FILE = "ifeval/input_data.jsonl"
WHERE = "IFEval's prompts are in no package: it is input_data.jsonl of google-research's instruction_following_eval"


def file() -> Path:
    return user_file(FILE, WHERE)


def rows() -> Mapping[str, Mapping[str, Any]]:
    """Raises ``ValueError``: no such file, or a line of it is wrong; the message has its number."""
    return _rows(file())


@functools.cache
def _rows(path: Path) -> Mapping[str, Mapping[str, Any]]:
    found: dict[str, Mapping[str, Any]] = {}
    for number, row in enumerate(read_lines(path, FIELDS), start=1):
        unknown = [rule for rule in row["instruction_id_list"] if rule not in ifeval_rules()]
        if unknown or len(row["kwargs"]) != len(row["instruction_id_list"]) or not row["kwargs"]:
            problem = f"no rule {unknown[0]!r}" if unknown else "not as many kwargs as instructions, or none"
            raise ValueError(f"{path}, record {number}, key {row['key']}: {problem}")
        found[f"ifeval-{row['key']}"] = row
    return found


@functools.cache
def _evaluate() -> Any:
    folder = package_folder("if_verifiable", "if-verifiable==0.1.2")
    return Library("if_verifiable", folder, {}).module("if_verifiable.common").evaluate_instructions


def judge(row: Mapping[str, Any], text: str) -> tuple[list[bool], list[bool]]:
    nltk_with_data()  # two rules count words and sentences with it
    rules = row["instruction_id_list"]
    found, _ = _evaluate()(text, rules, row["kwargs"], row["prompt"], ifeval_rules())
    if not found:  # nothing was said
        return [False] * len(rules), [False] * len(rules)
    return [result.strict_pass for result in found], [result.loose_pass for result in found]


def group(task: Task) -> str:
    return str(rows()[task.id]["instruction_id_list"][0]).partition(":")[0]


WORLD = Following("ifeval", rows, judge)
IFEVAL = Benchmark(
    name="ifeval",
    title="IFEval",
    package="",
    data=file,
    licence="Apache-2.0",
    split="the user's file (published: 541 prompts)",
    protocol=followed.PROTOCOL,
    domain=WORLD,
    budget=followed.BUDGET,
    primary="prompt_strict",
    tasks=WORLD.tasks,
    group=group,
    measure=WORLD.measure,
    texts=followed.texts,
    gold=None,
    no_gold="it ships no reference answers",
)
