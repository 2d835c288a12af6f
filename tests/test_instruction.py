"""The instruction domain: accepts what it must, refuses what it must, and is the same in every process."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from statistics import mean

import pytest

import openhorizon
from openhorizon.agent.render import read_action, write_action
from openhorizon.domains.base import Answer, Split, Task, Verdict, solve, split_of
from openhorizon.domains.corpora.facts import load_facts
from openhorizon.domains.instruction import constraints as library
from openhorizon.domains.instruction.constraints import EXTRAS, LAYOUTS, Constraint, compose, read_sentences, sentences
from openhorizon.domains.instruction.walks import ENTITIES, InstructionDomain

DOMAIN = InstructionDomain()
LIBRARY = {
    "brackets": ["PlaceholderChecker"],
    "highlights": ["HighlightSectionChecker"],
    "commas": [],  # no such rule in the library
    "semicolons": ["CommaChecker"],
    "title": ["TitleChecker"],
    "keyword": ["KeywordChecker"],
    "postscript": ["PostscriptChecker"],
    "end": ["EndChecker"],
    "quotation": ["QuotationChecker"],
}


def propose(number: int) -> Task:
    split: Split = "heldout" if number % 3 == 0 else "train"
    task = DOMAIN.propose(random.Random(number), split, number % 4 + 1, number)
    assert task is not None
    return task


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return [propose(number) for number in range(1000)]


def judge(task: Task, text: str) -> Verdict:
    return DOMAIN.verify(task, DOMAIN.start(task), Answer(text))


def constraints_of(task: Task) -> list[Constraint]:
    return [Constraint(kind, words) for kind, words in task.state["constraints"]]


def slow_values(task: Task, obey: bool) -> list[str]:
    """What the answer must give, from the prompt by string methods alone: shares no code with the domain."""
    lines = task.prompt.splitlines()
    end = next(i for i, line in enumerate(lines) if line.startswith("Start at "))
    rules: dict[str, str] = {}
    facts: dict[str, dict[str, str]] = {}
    for line in lines[:end]:
        if line.startswith("Rule: in "):
            group, _, given = line.removeprefix("Rule: in ").partition(" give ")
            rules.setdefault(group, given)
        else:
            name, key, value = line.split(" ", 2)
            facts.setdefault(name, {})[key] = value
    here, asked = lines[end].removeprefix("Start at "), lines[end + 1].split(" ")[-1]
    values = []
    while here != "stop":
        fact = facts[here]
        given = rules.get(fact["in"], asked) if obey else asked
        if given in ("capital", "currency", "language"):
            values.append(fact[given])
        elif given != "nothing":
            values.append(given)
        here = fact["next"]
    return values[::-1]


def test_reference_is_accepted_and_slow_reader_agrees(tasks: list[Task]) -> None:
    for task in tasks:
        environment, answer = solve(DOMAIN, task, random.Random(0), noise=0.0, max_steps=0)
        assert answer is not None
        verdict = DOMAIN.verify(task, environment, answer)
        assert verdict.passed and verdict.score == 1.0, (task, answer, verdict)
        assert answer.text == task.reference
        visits = [line for line in answer.thought.splitlines() if " next " in line]
        assert len(visits) == task.horizon == len(task.evidence)
        assert task.state["values"] == slow_values(task, obey=True)
        assert answer.thought.splitlines()[0] == f"Start at {task.evidence[0].removeprefix('entity:')}"
        assert f"\n{answer.text} so far\n" in answer.thought
        assert read_action(write_action(answer)) == answer


def test_an_answer_that_ignores_the_rules_fails(tasks: list[Task]) -> None:
    for task in tasks:
        values = slow_values(task, obey=False)
        assert values != task.state["values"]
        verdict = judge(task, compose(values, constraints_of(task)))
        assert not verdict.passed
        assert not (
            verdict.rubric["nothing else"] and all(verdict.rubric[f"value {i + 1}"] for i in range(len(values)))
        )


def test_corrupted_values_fail(tasks: list[Task]) -> None:
    swapped = 0
    for task in tasks:
        values, constraints = list(task.state["values"]), constraints_of(task)
        for i in range(len(values)):
            wrong = [*values[:i], "Atlantis", *values[i + 1 :]]
            verdict = judge(task, compose(wrong, constraints))
            missed = {item for item, met in verdict.rubric.items() if not met}
            assert missed == {f"value {i + 1}", "nothing else"}, (task, verdict)
            assert 0 < verdict.score < 1
        assert not judge(task, compose(values[:-1], constraints)).passed
        assert not judge(task, compose([*values, values[-1]], constraints)).passed
        assert len(set(values)) == len(values) >= min(task.horizon, 2)
        if len(values) > 1:
            swapped += 1
            assert not judge(task, compose(values[::-1], constraints)).passed
    assert swapped > 700


def test_a_rule_never_gives_the_whole_answer(tasks: list[Task]) -> None:
    """A walk of one entity is answered with one of its facts, never with a rule's own word."""
    for task in tasks:
        entity = task.evidence[0].removeprefix("entity:")
        if task.horizon == 1:
            (value,) = task.state["values"]
            assert re.search(rf"^{entity} \w+ {value}$", task.prompt, re.MULTILINE)


def test_an_empty_answer_meets_nothing(tasks: list[Task]) -> None:
    for task in tasks:
        for verdict in (judge(task, ""), judge(task, " \n"), DOMAIN.verify(task, DOMAIN.start(task), None)):
            assert verdict.score == 0.0 and not verdict.passed and not any(verdict.rubric.values())


def test_saying_everything_fails(tasks: list[Task]) -> None:
    """Neither the whole document nor all its values in any layout are an answer."""
    for task in tasks:
        everything = re.findall(r"^\w+ (?:capital|currency|language) (\w+)$", task.prompt, re.MULTILINE)
        assert len(everything) == 2 * ENTITIES
        assert not judge(task, task.prompt).passed
        assert not judge(task, compose(everything, constraints_of(task))).passed


BROKEN_LAYOUT = {"brackets": "commas", "highlights": "brackets", "commas": "semicolons"}


def test_each_constraint_broken_in_turn_fails_and_alone(tasks: list[Task]) -> None:
    """Leaving one constraint out costs exactly its own rubric item, and every kind occurs."""
    seen: set[str] = set()
    for task in tasks:
        values, constraints = task.state["values"], constraints_of(task)
        for i, constraint in enumerate(constraints):
            kind = constraint.kind
            if kind in ("commas", "semicolons") and len(values) == 1:
                continue  # nothing to separate
            other = [Constraint(BROKEN_LAYOUT.get(kind, "commas"))] if kind in LAYOUTS else []
            verdict = judge(task, compose(values, [*constraints[:i], *other, *constraints[i + 1 :]]))
            assert {item for item, met in verdict.rubric.items() if not met} == {kind}, (task.prompt, verdict)
            assert not verdict.passed
            seen.add(kind)
    assert seen == {*LAYOUTS, *EXTRAS}


BRACKETS_END = [Constraint("brackets"), Constraint("end", "that is all")]
COMMAS_KEYWORD = [Constraint("commas"), Constraint("keyword", "In short")]
COMMAS_END_QUOTATION = [Constraint("commas"), Constraint("end", "that is all"), Constraint("quotation", "marks")]
BRACKETS_POSTSCRIPT = [Constraint("brackets"), Constraint("postscript", "checked")]
SEMICOLONS_QUOTATION = [Constraint("semicolons"), Constraint("quotation", "marks")]
SEMICOLONS_TITLE = [Constraint("semicolons"), Constraint("title", "report")]
HIGHLIGHTS_END = [Constraint("highlights"), Constraint("end", "that is all")]


@pytest.mark.parametrize(
    ("constraints", "text", "missed"),
    [
        (BRACKETS_END, "[Rome]\n[Oslo]\n\nthat is all", set()),
        (BRACKETS_END, "[Rome] [Oslo] that was all", {"end", "brackets", "nothing else"}),
        (BRACKETS_END, "(Rome) (Oslo) that is all", {"brackets", "value 1", "value 2", "nothing else"}),
        (COMMAS_KEYWORD, "Rome,Oslo In short", set()),
        (COMMAS_KEYWORD, "Rome Oslo, In short", {"commas", "value 1", "value 2", "nothing else"}),
        (COMMAS_KEYWORD, "rome, Oslo In short", {"value 1", "nothing else"}),
        (COMMAS_END_QUOTATION, '"Rome, Oslo that is all"', set()),
        (COMMAS_END_QUOTATION, '" Rome, Oslo that is all "', set()),
        (COMMAS_END_QUOTATION, '" that is all Rome, Oslo "', {"end"}),
        (COMMAS_END_QUOTATION, "Rome, Oslo that is all", {"quotation"}),
        (BRACKETS_POSTSCRIPT, "[Rome] [Oslo] P.S.", {"postscript", "brackets", "nothing else"}),
        (SEMICOLONS_QUOTATION, '"Rome; Oslo', {"quotation"}),
        (SEMICOLONS_QUOTATION, '"Rome, Oslo"', {"semicolons"}),
        (SEMICOLONS_TITLE, "Rome; Oslo <<report>>", {"title"}),
        (HIGHLIGHTS_END, "*Rome* *Oslo* that is all *Bonn*", {"end", "nothing else"}),
    ],
)
def test_hand_written_answers(constraints: list[Constraint], text: str, missed: set[str]) -> None:
    """The same answer in another dress, and small faults, on the values Rome and Oslo."""
    state = {"values": ["Rome", "Oslo"], "constraints": [[c.kind, c.words] for c in constraints]}
    task = Task("instruction", "t", "train", "", 2, 0, state, (), (), "", ())
    assert {item for item, met in judge(task, text).rubric.items() if not met} == missed


def test_library_judges_every_constraint_it_has_a_rule_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the library's classes refusing everything, each kind that it has a rule for is refused, by that class."""
    asked: list[str] = []

    class Refuses:
        def __init__(self, name: str) -> None:
            self.name = name

        def check_following(self, text: str) -> bool:
            asked.append(self.name)
            return False

    real = library._checker
    monkeypatch.setattr(library, "_checker", lambda *key: Refuses(type(real(*key)).__name__))
    for kind, classes in LIBRARY.items():
        words = EXTRAS[kind][1][0] if kind in EXTRAS else ""
        state = {"values": ["Rome", "Oslo"], "constraints": [[kind, words]]}
        task = Task("instruction", "t", "train", "", 2, 0, state, (), (), "", ())
        asked.clear()
        verdict = judge(task, compose(["Rome", "Oslo"], [Constraint(kind, words)]))
        assert set(asked) == set(classes)
        assert verdict.rubric[kind] is (not classes)
    assert set(LIBRARY) == {*LAYOUTS, *EXTRAS}


def test_sentences_are_read_back(tasks: list[Task]) -> None:
    for task in tasks:
        asked = sentences(constraints_of(task))
        assert task.prompt.endswith("\n".join(asked))
        assert read_sentences(asked) == constraints_of(task)


def test_library_leaves_the_global_random_state_alone() -> None:
    library._checker.cache_clear()
    random.seed(7)
    before = random.getstate()
    for number in range(50):
        task = propose(number)
        assert judge(task, task.reference).passed
    assert random.getstate() == before


def test_missing_library_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    missing = "if_verifiable"
    monkeypatch.delitem(sys.modules, missing, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    library.ifeval_rules.cache_clear()
    with pytest.raises(
        ModuleNotFoundError, match=r"^package 'if_verifiable' is not installed; run: pip install .*==0.1.2$"
    ):
        library.ifeval_rules()


def test_prompt_length_and_document_do_not_depend_on_the_horizon() -> None:
    words = {}
    for horizon in range(1, ENTITIES):
        prompts = []
        for seed in range(250):
            task = DOMAIN.propose(random.Random(f"{horizon}/{seed}"), "train", horizon, seed)
            assert task is not None
            prompts.append(task.prompt)
            links = re.findall(r"^\w+ next (\w+)$", task.prompt, re.MULTILINE)
            assert len(links) == ENTITIES and links.count("stop") == 1
        words[horizon] = [len(prompt.split()) for prompt in prompts]
        assert max(words[horizon]) <= 140
    means = [mean(counts) for counts in words.values()]
    assert max(means) / min(means) < 1.03, means


def test_documents_say_what_the_corpus_says(tasks: list[Task]) -> None:
    facts = load_facts()
    for task in tasks[:200]:
        found = re.findall(r"^(\w+) in ([\w ]+)\n\1 (\w+) (\w+)\n\1 (\w+) (\w+)$", task.prompt, re.MULTILINE)
        assert len(found) == ENTITIES
        for name, group, *pairs in found:
            page = facts[name]
            assert group in facts[page.links["region"][0]].links["continent"]
            for field, value in zip(pairs[::2], pairs[1::2], strict=True):
                known = page.links[field]
                assert any(value == title or title.startswith(f"{value} ") for title in known), (name, field, value)


def test_walked_pairs_belong_to_the_split(tasks: list[Task]) -> None:
    for task in tasks:
        ((start, final),) = task.entity_pairs
        assert split_of((start, final)) == task.split
        assert task.evidence[0] == f"entity:{start}" and task.evidence[-1] == f"entity:{final}"


def test_a_noisy_expert_corrects_most_slips_and_fails_seldom(tasks: list[Task]) -> None:
    passed, waits = 0, 0
    for task in tasks:
        environment, answer = solve(DOMAIN, task, random.Random(task.seed), noise=0.3, max_steps=0)
        assert answer is not None
        ok = DOMAIN.verify(task, environment, answer).passed
        passed += ok
        if ok:
            lines = answer.thought.splitlines()
            corrections = [i for i, line in enumerate(lines) if line.startswith("wait: ")]
            waits += len(corrections)
            for i in corrections:
                wrong, right = lines[i - 1].split(" "), lines[i].removeprefix("wait: ").split(" ")
                assert wrong[0] == right[0] and wrong[1:] != right[1:]
    assert 750 < passed < 950
    assert waits > 500


def test_horizons_out_of_range_are_refused() -> None:
    for horizon in (0, ENTITIES):
        with pytest.raises(ValueError, match=f"horizon {horizon} is not between 1 and {ENTITIES - 1}"):
            DOMAIN.propose(random.Random(0), "train", horizon, 0)


def test_a_tool_call_is_answered_with_an_error(tasks: list[Task]) -> None:
    environment = DOMAIN.start(tasks[0])
    action = read_action('<tool_call>{"name": "search", "arguments": {}}</tool_call>')
    assert not isinstance(action, Answer)
    assert environment.call(action).error and environment.consulted() == set()


DIGEST = """
import hashlib, random
from openhorizon.domains.base import solve
from openhorizon.domains.instruction.walks import InstructionDomain
domain, digest = InstructionDomain(), hashlib.sha256()
for i in range(200):
    task = domain.propose(random.Random(i), "train", i % 4 + 1, i)
    environment, answer = solve(domain, task, random.Random(i), 0.3, 0)
    digest.update(repr((task, answer, domain.verify(task, environment, answer))).encode())
print(digest.hexdigest())
"""


def test_same_bytes_in_every_process() -> None:
    source = str(Path(openhorizon.__file__).parents[1])
    digests = set()
    for hash_seed in ("0", "1"):
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": source}
        run = subprocess.run(
            [sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True
        )
        digests.add(run.stdout.strip())
    assert len(digests) == 1 and len(digests.pop()) == hashlib.sha256().digest_size * 2
