"""Problem sheets over the elements' properties: a thousand references, a thousand corruptions, units and arithmetic."""

from __future__ import annotations

import hashlib
import math
import os
import random
import subprocess
import sys
import warnings
from collections import Counter

import pytest

from openhorizon.domains.base import Answer, Call, Task, solve, split_of
from openhorizon.domains.corpora import periodic
from openhorizon.domains.corpora.periodic import load_constants, load_elements, load_symbols, short
from openhorizon.domains.science.arithmetic import evaluate
from openhorizon.domains.science.bench import FORMULAS, TOLERANCE, ScienceDomain
from openhorizon.domains.science.units import Quantity, in_unit

DOMAIN = ScienceDomain()
HORIZONS = (1, 2, 3, 4, 5, 6, 8, 12, 16, 32)


OTHERS = {  # unit → others, and their size in it: written down here, apart from the table of the verifier
    "g/mol": {"kg/mol": 1e3}, "g": {"kg": 1e3, "mg": 1e-3}, "mol": {"mmol": 1e-3}, "K": {}, "J/mol": {"kJ/mol": 1e3},
    "pm": {"nm": 1e3}, "g/cm3": {"kg/m3": 1e-3}, "cm3": {"mL": 1.0, "L": 1e3}, "L": {"mL": 1e-3, "cm3": 1e-3},
}  # fmt: skip


def some(count: int, split: str = "train") -> list[Task]:
    found = []
    for i in range(4 * count):
        task = DOMAIN.propose(random.Random(i), split, HORIZONS[i % len(HORIZONS)], i)  # type: ignore[arg-type]
        if task is not None:
            found.append(task)
        if len(found) == count:
            return found
    raise AssertionError(f"{len(found)} tasks from {4 * count} draws")


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return some(1000)


def test_references_are_accepted_in_exactly_their_horizon(tasks: list[Task]) -> None:
    for task in tasks:
        environment, answer = solve(DOMAIN, task, random.Random(0), 0.0, task.horizon)
        assert answer is not None and answer.text == task.reference
        verdict = DOMAIN.verify(task, environment, answer)
        assert verdict.passed and verdict.score == 1.0, (task, verdict)
        assert len(environment.steps) == task.horizon
        assert not any(step.observation.error for step in environment.steps)


def test_values_agree_with_a_slow_reading_of_the_steps(tasks: list[Task]) -> None:
    """Units and numbers worked out again from the steps alone, by dimensional analysis written out here."""
    gives = {(u, word, what): after for u, formulas in FORMULAS.items() for word, what, after in formulas}
    for task in tasks[:300]:
        value, unit, operand, item = math.nan, "", "", ""
        for step in task.state["steps"]:
            if step["tool"] == "visit":
                found = load_elements()[step["asked"]][step["item"]]
                operand, item = found.number, step["item"]
                if not unit:
                    value, unit = float(found.number), found.unit
            elif step["tool"] == "scholar":
                operand, item = load_constants()[step["asked"]].number, step["asked"]
            elif step["tool"] == "code":
                word, name = step["note"].split()
                number, what = (float(name), "number") if name.isdigit() else (float(operand), item)
                value = {"plus": value + number, "minus": value - number, "times": value * number}.get(
                    word, value / number
                )
                value, unit = float(short(value)), gives[unit, word, what]
        assert task.reference == f"Answer: {short(value)} {unit}"


def test_corrupted_episodes_are_refused(tasks: list[Task]) -> None:
    refused = Counter[str]()
    for i, task in enumerate(tasks):
        number, unit = task.reference.removeprefix("Answer: ").split()
        environment, _ = solve(DOMAIN, task, random.Random(0), 0.0, task.horizon)
        wrong = {
            "just outside": f"Answer: {float(number) * (1 + 1.1 * TOLERANCE):.8f} {unit}",
            "no unit": f"Answer: {number}",
            "wrong unit": f"Answer: {number} {next(u for u in FORMULAS if in_unit(Quantity(1.0, u), unit) is None)}",
            "no answer in it": "I do not know",
        }
        for kind, text in wrong.items():
            assert not DOMAIN.verify(task, environment, Answer(text)).passed, (kind, task)
            refused[kind] += 1
        skipped = DOMAIN.start(task)
        gone = i % task.horizon
        for k, step in enumerate(environment.steps):
            if k != gone:
                skipped.call(step.call)
        assert not DOMAIN.verify(task, skipped, Answer(task.reference)).passed, task
        assert not DOMAIN.verify(task, DOMAIN.start(task), Answer(task.reference)).passed
        assert not DOMAIN.verify(task, environment, None).passed
        refused["step skipped"] += 1
    assert set(refused.values()) == {1000}


def test_an_answer_in_another_right_unit_passes(tasks: list[Task]) -> None:
    passed = 0
    for task in tasks[:300]:
        number, unit = task.reference.removeprefix("Answer: ").split()
        environment, _ = solve(DOMAIN, task, random.Random(0), 0.0, task.horizon)
        for other, size in OTHERS[unit].items():
            converted = Answer(f"Answer: {float(number) / size:.12f} {other}")
            assert DOMAIN.verify(task, environment, converted).passed, (task.reference, converted)
            passed += 1
    assert passed > 200


def test_off_the_sheet_the_note_is_repeated_and_nothing_is_lost(tasks: list[Task]) -> None:
    task = next(task for task in tasks if task.horizon == 6)
    environment, _ = solve(DOMAIN, task, random.Random(0), 0.0, 6)
    again = DOMAIN.start(task)
    for step in environment.steps:
        assert again.call(Call("visit", {"page": "Nowhere", "item": "mass"})).error
        off = again.call(Call("code", {"run": "1 + 1"}))
        assert "off, " in off.text and not off.evidence
        assert again.call(step.call).text == step.observation.text
    assert DOMAIN.verify(task, again, Answer(task.reference)).passed


def test_noise_strays_and_mostly_recovers() -> None:
    chosen = some(200)
    passed = strays = 0
    for task in chosen:
        environment, answer = solve(DOMAIN, task, random.Random(task.seed), 0.15, 2 * task.horizon + 2)
        passed += DOMAIN.verify(task, environment, answer).passed
        strays += len(environment.steps) - task.horizon
    assert 180 <= passed < 200 and strays > 150


def test_variants_seeds_and_splits(tasks: list[Task]) -> None:
    kinds = Counter(task.state["variant"] for task in tasks)
    assert set(kinds) == {"seed", "harder", "interaction", "harder+interaction"} and min(kinds.values()) > 50, kinds
    heldout = some(100, "heldout")
    assert {p for t in tasks for p in t.entity_pairs}.isdisjoint(p for t in heldout for p in t.entity_pairs)
    assert all(split_of(pair) == "heldout" for task in heldout for pair in task.entity_pairs)
    assert len({task.prompt for task in tasks}) > 990
    assert max(len(task.prompt.split()) for task in tasks) <= 14


def test_the_data_are_the_measured_ones() -> None:
    elements = load_elements()
    assert elements["Copper"]["mass"] == periodic.Value("63.55", "g/mol")
    assert elements["Gold"]["density"].number == "19.3" and elements["Mercury"]["boils"].number == "629.8"
    assert load_symbols()["Zn"] == "Zinc" and len(elements) > 90
    assert load_constants()["Gas"] == periodic.Value("8.314", "J/mol/K")
    assert [short(x) for x in (63.546, 12345.6, 0.123456, 2.0)] == ["63.55", "12350", "0.1235", "2"]


def test_missing_data_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install mendeleev"):
        load_elements.__wrapped__()


def test_a_horizon_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="horizon 0"):
        DOMAIN.propose(random.Random(0), "train", 0, 0)


def test_same_bytes_in_every_process() -> None:
    script = (
        "import random, hashlib\n"
        "from openhorizon.domains.base import solve\n"
        "from openhorizon.domains.science.bench import ScienceDomain\n"
        "d, out = ScienceDomain(), []\n"
        "for i in range(60):\n"
        "    task = d.propose(random.Random(i), 'train', 1 + i % 9, i)\n"
        "    if task: out.append(repr((task, solve(d, task, random.Random(i), 0.3, 40)[0].steps)))\n"
        "print(hashlib.sha256(''.join(out).encode()).hexdigest())\n"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(found) == 1 and found != {hashlib.sha256(b"").hexdigest() + "\n"}


def test_odd_arithmetic_warns_nobody() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="not arithmetic"):
            evaluate("190if 1 else 2")
    assert not said
