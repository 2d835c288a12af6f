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
    return read(path)


def read(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The file's rows by task. Raises as ``rows``."""
    found: dict[str, Mapping[str, Any]] = {}
    for number, row in enumerate(read_lines(path, FIELDS), start=1):
        name = f"ifeval-{row['key']}"
        if problem := "its key is there twice" if name in found else _problem(row):
            raise ValueError(f"{path}, record {number}, key {row['key']}: {problem}")
        found[name] = row
    return found


def _problem(row: Mapping[str, Any]) -> str:
    """Why no answer could be judged by a row; empty where one can."""
    rules, kwargs = row["instruction_id_list"], row["kwargs"]
    unknown = [rule for rule in rules if not isinstance(rule, str) or rule not in ifeval_rules()]
    if unknown:
        return f"no rule {unknown[0]!r:.60}"
    if len(kwargs) != len(rules) or not kwargs:
        return "not as many kwargs as instructions, or none"
    try:
        with followed.seeded(str(row["key"])):
            judge(row, "an answer")
    except Exception as error:  # of the package, whatever its rules make of kwargs of another type
        return f"its rules do not take its kwargs ({type(error).__name__}: {str(error)[:80]})"
    return ""


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
