"""Screening campaigns, short and natural: exact horizons, budgets that bind, a verifier that wants the work done."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from openhorizon.agent.trajectory import read_tasks, write_tasks
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Answer, Call, Domain, Environment, Split, Task, solve, split_of
from openhorizon.domains.corpora import molecules as corpus
from openhorizon.domains.corpora.molecules import UNITS, load_molecules
from openhorizon.domains.scientific_agent.briefs import literature, pair_of, stock, write_brief
from openhorizon.domains.scientific_agent.campaign import CampaignDomain, Lab, measure, outcome, shelf
from openhorizon.domains.scientific_agent.chemist import _GOAL, _NEAR, write_filter
from openhorizon.domains.scientific_agent.instruments import DESCRIPTORS, GROUPS, descriptor, matches, similarity
from openhorizon.domains.scientific_agent.laboratory import TOOLS, Laboratory
from openhorizon.domains.scientific_agent.molecules import LIBRARY, SHORTEST, MoleculesDomain
from openhorizon.domains.scientific_agent.regression import FEATURES, predict
from openhorizon.kag.rules import no_shortcut
from openhorizon.kag.solve import play
from openhorizon.sandbox import SandboxUnavailable, open_workspace

SHORT, NATURAL = CampaignDomain(), MoleculesDomain()


def make_tasks(domain: Domain, horizon: int, count: int, split: Split = "train") -> list[Task]:
    rng, tasks = random.Random(f"{domain.world} {horizon} {split}"), list[Task]()
    for seed in range(20 * count):
        task = domain.propose(rng, split, horizon, seed)
        if task is not None:
            tasks.append(task)
        if len(tasks) == count:
            return tasks
    raise AssertionError(f"horizon {horizon}: {len(tasks)} tasks after {20 * count} draws")


@pytest.fixture(scope="module")
def short() -> list[Task]:
    """1,024 tasks over horizons 1 to 32, a quarter of them held out."""
    train = [task for h in range(1, 33) for task in make_tasks(SHORT, h, 24)]
    return train + [task for h in range(1, 33) for task in make_tasks(SHORT, h, 8, "heldout")]


@pytest.fixture(scope="module")
def sandbox() -> None:
    """What campaigns in natural text run Python in."""
    try:
        open_workspace().close()
    except SandboxUnavailable as error:
        if os.environ.get("OPENHORIZON_CI") == "1":
            pytest.fail(f"CI must have a sandbox: {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def natural(sandbox: None) -> list[Task]:
    """48 campaigns of 8 to 64 calls, a quarter of them held out."""
    train = [task for h in (8, 9, 12, 16, 24, 32, 40, 48, 64) for task in make_tasks(NATURAL, h, 4)]
    return train + [task for h in (8, 12, 16, 32) for task in make_tasks(NATURAL, h, 3, "heldout")]


def replayed(domain: Domain, task: Task, calls: Sequence[Call]) -> Environment:
    environment = domain.start(task)
    for call in calls:
        environment.call(call)
    return environment


def check_reference(domain: Domain, task: Task) -> None:
    environment, answer = solve(domain, task, random.Random(0), 0.0, task.horizon)
    verdict = domain.verify(task, environment, answer)
    environment.close()
    assert verdict.passed and verdict.score == 1.0, (task, verdict)
    assert len(environment.steps) == task.horizon
    assert answer is not None and answer.text == task.reference
    assert set(task.evidence) <= environment.consulted()


def test_short_reference_is_accepted_with_exactly_horizon_calls(short: list[Task]) -> None:
    assert len(short) >= 1000
    for task in short:
        check_reference(SHORT, task)


def test_short_corruptions_are_refused(short: list[Task]) -> None:
    """A wrong answer, none, a look-up or any other call left out, a needless assay, the work not done."""
    corrupted = Counter[str]()
    for task in short:
        environment, answer = solve(SHORT, task, random.Random(0), 0.0, task.horizon)
        calls = [step.call for step in environment.steps]
        rng = random.Random(task.seed)
        other = rng.choice([name for name in shelf() if f"Answer: {name}" != task.reference])

        def refused(kind: str, calls: Sequence[Call], answer: Answer | None, task: Task = task) -> None:
            verdict = SHORT.verify(task, replayed(SHORT, task, calls), answer)
            assert not verdict.passed, (kind, task)
            corrupted[kind] += 1

        refused("wrong answer", calls, Answer(f"Answer: {other}"))
        refused("no answer", calls, None)
        refused("no work", [], answer)
        left_out = rng.randrange(len(calls))
        if calls[left_out].name != "open_plan":  # it shows what is known by then
            refused(calls[left_out].name, calls[:left_out] + calls[left_out + 1 :], answer)
        if any(call.name == "assay" for call in calls):
            at = next(i for i, call in enumerate(calls) if call.name == "assay")
            needless = next(name for name in shelf() if name != calls[at].arguments["molecule"])
            refused("needless assay", [*calls[:at], Call("assay", {"molecule": needless}), *calls[at:]], answer)
    assert sum(corrupted.values()) >= 4000 and min(corrupted.values()) > 10, corrupted
    assert {"rank", "similar", "match", "recall", "assay", "remember", "purify"} <= set(corrupted)


def test_a_guess_that_is_right_is_refused() -> None:
    """Assaying what the step means without the look-up that says so advances the plan, but not the verdict."""
    drawn = make_tasks(SHORT, 3, 60)
    task = next(task for task in drawn if task.state["steps"][0]["do"] == "assay")
    found = task.state["steps"][0]["pick"][1]
    environment = replayed(SHORT, task, [Call("open_plan", {}), Call("assay", {"molecule": found})])
    verdict = SHORT.verify(task, environment, Answer(task.reference))
    assert environment.steps[-1].observation.text.endswith(f"done. hit {found}")
    assert not verdict.passed and not verdict.rubric["step 1"] and verdict.rubric["budget"]


def test_a_wasted_assay_is_missing_in_the_end() -> None:
    task = next(task for task in make_tasks(SHORT, 6, 40) if len(task.state["steps"]) > 1)
    environment, _ = solve(SHORT, task, random.Random(0), 0.0, 6)
    planned = [step.call for step in environment.steps]
    wasted = next(name for name in shelf() if name not in str(task.state["steps"]))
    again = replayed(SHORT, task, [planned[0], Call("assay", {"molecule": wasted}), *planned[1:]])
    assert "off plan" in again.steps[1].observation.text
    assert "error: no assays left" in [step.observation.text for step in again.steps]


def test_instruments_show_what_rdkit_computes() -> None:
    """Against values that were looked up: masses, polar surfaces, boiling points."""
    smiles = {name: shelf()[name][0] for name in shelf()}
    assert descriptor(smiles["benzene"], "MolWt") == pytest.approx(78.11, abs=0.01)
    assert descriptor(smiles["glycerol"], "TPSA") == pytest.approx(60.69, abs=0.01)
    assert descriptor(smiles["decane"], "NumRotatableBonds") == 7 and descriptor(smiles["pyrene"], "RingCount") == 4
    assert matches(smiles["phenol"], GROUPS["phenol"]) and not matches(smiles["ethanol"], GROUPS["phenol"])
    assert similarity(smiles["hexane"], smiles["hexane"]) == 1.0
    assert similarity(smiles["hexane"], smiles["heptane"]) > similarity(smiles["hexane"], smiles["pyrene"])
    assert measure("high mass of b10", ["butane", "anisole", "furan"])[0] == ("anisole", "108")
    assert measure("low mass of b10", ["butane", "anisole", "furan"])[0] == ("butane", "58")
    assert measure("with nitrogen of b10", ["butane", "aniline", "furan"]) == [("aniline", "")]
    assert (outcome("butane"), outcome("benzene"), outcome("glycerol")) == ("cold", "warm", "hot")
    with pytest.raises(ValueError, match="no SMARTS"):
        matches("C", "[C")
    for name in DESCRIPTORS:
        assert isinstance(descriptor("CCO", name), float), name


def test_steps_say_each_kind_of_thing_and_branches_differ(short: list[Task]) -> None:
    kinds, forks = Counter[str](), 0
    for task in short:
        for before, step in zip([None, *task.state["steps"]], task.state["steps"], strict=False):
            kinds[step["pick"][0].split()[0] if " " in step["pick"][0] else "name"] += 1
            kinds["impure"] += step["impure"]
            if step["fork"]:
                assert before is not None
                forks += 1
                branches = dict(step["fork"])
                assert len(branches) == 2 and branches[outcome(before["pick"][1])] == step["pick"][0]
    assert forks > 300 and min(kinds[k] for k in ("name", "note", "high", "low", "like", "with", "impure")) > 100


def test_notes_hold_what_is_needed_later(short: list[Task]) -> None:
    """Memory over the horizon: some note is read ten calls and more after it was written."""
    longest = 0
    for task in short:
        environment, _ = solve(SHORT, task, random.Random(0), 0.0, task.horizon)
        written: dict[str, int] = {}
        for i, step in enumerate(environment.steps):
            if step.call.name == "remember":
                written[step.call.arguments["key"]] = i
            elif step.call.name == "recall":
                longest = max(longest, i - written[step.call.arguments["key"]])
    assert longest >= 20


def test_short_texts_are_short(short: list[Task]) -> None:
    for task in short[::9]:
        environment, answer = solve(SHORT, task, random.Random(0), 0.0, task.horizon)
        assert len(task.prompt.split()) <= 20 and answer is not None
        for step in environment.steps:
            assert len(step.observation.text.split()) <= 40, step.observation.text
            assert len(re.findall(r"\w+|[^\w\s]", json.dumps(dict(step.call.arguments)) + step.call.thought)) <= 50


def test_thoughts_copy_what_stands_before_them(short: list[Task]) -> None:
    """Every word of a call stands in its thought, and every word of a thought in the two latest observations."""
    for task in short[::5]:
        environment, _ = solve(SHORT, task, random.Random(0), 0.0, task.horizon)
        shown = [task.prompt]
        for step in environment.steps:
            known = set(re.findall(r"\w+", " ".join(shown[-3:])))
            thought = re.findall(r"\w+", step.call.thought)
            assert set(thought) - known <= {"assay", "keep", "as"}, (step.call, shown[-3:])
            for value in step.call.arguments.values():
                assert value in thought, step.call
            shown += [step.call.thought, step.observation.text]


def test_noisy_short_expert_mostly_recovers() -> None:
    passed = longer = missed = 0
    batch = make_tasks(SHORT, 8, 300)
    for i, task in enumerate(batch):
        environment, answer = solve(SHORT, task, random.Random(i), 0.2, 20)
        passed += SHORT.verify(task, environment, answer).passed
        longer += len(environment.steps) > task.horizon
        missed += any(step.observation.error for step in environment.steps)
    assert 0.85 * len(batch) < passed < len(batch)
    assert longer > len(batch) / 2 and missed > len(batch) / 4


def test_short_splits_share_no_pair_and_no_prompt(short: list[Task]) -> None:
    check_splits(short)
    compared = {pair for task in short if task.split == "heldout" for pair in task.entity_pairs if pair[0] != "lab"}
    for task in short:
        for batch in task.state["batches"].values():
            for a in batch:
                for b in batch:
                    assert a >= b or (a, b) in task.entity_pairs
                    assert task.split == "heldout" or (a, b) not in compared


def check_splits(tasks: Sequence[Task]) -> None:
    pairs = {split: {p for t in tasks if t.split == split for p in t.entity_pairs} for split in ("train", "heldout")}
    prompts = {split: {t.prompt for t in tasks if t.split == split} for split in ("train", "heldout")}
    assert pairs["train"] and pairs["heldout"] and not pairs["train"] & pairs["heldout"]
    assert not prompts["train"] & prompts["heldout"]
    assert all(split_of(pair) == task.split for task in tasks for pair in task.entity_pairs)


@pytest.mark.parametrize(
    "call",
    [
        Call("assay", {"molecule": "unobtain"}),
        Call("assay", {"molecule": "B12"}),
        Call("rank", {"order": "high", "by": "mass", "batch": "b00"}),
        Call("rank", {"order": "top", "by": "mass", "batch": "b10"}),
        Call("recall", {"key": "red"}),
        Call("recall", {"key": "mauve"}),
        Call("similar", {"to": "nothing", "batch": "b10"}),
        Call("purify", {"molecule": "furan"}),
        Call("launch", {}),
        Call("", {}),
    ],
)
def test_invalid_calls_are_observations(call: Call) -> None:
    environment = SHORT.start(make_tasks(SHORT, 1, 1)[0])
    observation = environment.call(call)
    assert observation.error and observation.text.startswith("error: ") and not observation.evidence
    assert isinstance(environment, Lab) and not environment.spent


def test_a_horizon_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="horizon 0"):
        SHORT.propose(random.Random(0), "train", 0, 0)


def test_registered_worlds_go_by_their_names() -> None:
    for world in ("scientific_agent", "scientific_agent/molecules", "scientific_agent/scienceworld"):
        assert DOMAINS[world].world == world and DOMAINS[world].name == "scientific_agent"
    assert NATURAL.offers([1, 4, 8, 64]) == (8, 64)
    assert NATURAL.propose(random.Random(0), "train", SHORTEST - 1, 0) is None


# ---------------------------------------------------------------------------------------- molecules in natural text


def test_molecules_are_real_and_measured() -> None:
    molecules = load_molecules()
    assert len(molecules) > 1500 and list(molecules) == sorted(molecules)
    toluene = molecules["108-88-3"]
    assert (toluene.name, toluene.formula) == ("Toluene", "C7H8")
    assert toluene.measured["boiling point"] == pytest.approx(383.75, abs=0.5)
    assert toluene.measured["logP"] == pytest.approx(2.73, abs=0.1)
    for molecule in molecules.values():
        assert molecule.measured and set(molecule.measured) <= set(UNITS)
        assert molecule.name.isascii() and "." not in molecule.smiles
        assert descriptor(molecule.smiles, "HeavyAtomCount") >= 1
    for known in UNITS:
        assert sum(known in molecule.measured for molecule in molecules.values()) > 500


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="'chemicals' is not installed; run: pip install chemicals"):
        load_molecules.__wrapped__()


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("Misc/Physical Constants of Organic Compounds.csv", None, "cannot be read"),
        ("Misc/Physical Constants of Organic Compounds.csv", "CAS\tName\n", "no column RI, Tb, Tm, rho"),
        (
            "Misc/Physical Constants of Organic Compounds.csv",
            "CAS\tName\tTm\tTb\trho\tRI\n1-1-1\tx\thot\t\t\t\n",
            "'hot'",
        ),
        ("Identifiers/chemical identifiers pubchem small.tsv", "4\t78-96-6\tC3H9NO\n", "a line of 3 fields"),
        ("Environment/Syrres logP data.csv.gz", "not compressed", "cannot be read"),
    ],
)
def test_a_damaged_corpus_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str, text: str | None, reason: str
) -> None:
    """With a copy of the package's files in which one is missing or wrong."""
    source = corpus._folder()
    for name in (*corpus._IDENTIFIERS, *(name for name, _ in corpus._MEASURED)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name != file:
            (tmp_path / name).symlink_to(source / name)
        elif text is not None:
            (tmp_path / name).write_text(text)
    monkeypatch.setattr(corpus, "_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match=reason):
        load_molecules.__wrapped__()


def test_predictions_are_a_ridge_regression() -> None:
    """Against numpy's solution of the same normal equations, and better than the mean on compounds never seen."""
    numpy = importlib.import_module("numpy")
    known = load_molecules()
    seen = [known[cas] for cas in literature() if "boiling point" in known[cas].measured]
    unseen = [known[cas] for cas in stock("heldout") if "boiling point" in known[cas].measured]
    assays = {molecule.smiles: molecule.measured["boiling point"] for molecule in unseen[:5]}
    got = predict("boiling point", literature(), assays, [molecule.smiles for molecule in unseen])

    def raw(smiles: str) -> list[float]:
        values = [descriptor(smiles, name) for name in FEATURES]
        return [*values, values[1] ** 0.5, values[4] / values[1], values[5] / values[1]]

    table = numpy.array([raw(molecule.smiles) for molecule in seen])
    means, scales = table.mean(0), table.std(0)
    rows = numpy.array([raw(m.smiles) for m in [*seen, *unseen[:5]]])
    x = numpy.hstack([numpy.ones((len(rows), 1)), (rows - means) / scales])
    y = numpy.array([molecule.measured["boiling point"] for molecule in [*seen, *unseen[:5]]])
    weight = numpy.array([1.0] * len(seen) + [3.0] * 5)
    penalty = 0.3 * numpy.eye(x.shape[1])
    penalty[0, 0] = 0
    solution = numpy.linalg.solve(x.T @ (weight[:, None] * x) + penalty, x.T @ (weight * y))
    wanted = numpy.array([raw(molecule.smiles) for molecule in unseen])
    expected = numpy.hstack([numpy.ones((len(wanted), 1)), (wanted - means) / scales]) @ solution
    assert numpy.allclose(got, expected, rtol=1e-6)
    truth = numpy.array([molecule.measured["boiling point"] for molecule in unseen])
    assert ((truth - expected) ** 2).sum() < 0.25 * ((truth - truth.mean()) ** 2).sum()


def test_natural_reference_is_accepted_with_exactly_horizon_calls(natural: list[Task]) -> None:
    assert len(natural) == 48
    for task in natural:
        check_reference(NATURAL, task)


@pytest.mark.long
def test_a_thousand_natural_references_and_as_many_corruptions(sandbox: None) -> None:
    tasks = [task for h in (8, 9, 10, 12, 14, 16, 20, 24, 32, 64) for task in make_tasks(NATURAL, h, 100)]
    assert len(tasks) == 1000
    for task in tasks:
        check_reference(NATURAL, task)
    assert sum(corrupt(task) for task in tasks) >= 4000


def test_natural_corruptions_are_refused(natural: list[Task]) -> None:
    assert sum(corrupt(task) for task in natural[::2]) >= 9 * 24


def corrupt(task: Task) -> int:
    """How many kinds of corrupted episodes of this task were tried; each must be refused."""
    environment, answer = solve(NATURAL, task, random.Random(0), 0.0, task.horizon)
    assert isinstance(environment, Laboratory) and answer is not None
    environment.close()
    # Python and reading change nothing: without them the episode is the same and needs no sandbox.
    calls = [step.call for step in environment.steps if step.call.name not in ("run_python", "notebook_read")]
    last_stage = task.state["stages"][-1]
    needed = environment.truths[-1].needed[-1]
    submit = max(i for i, call in enumerate(calls) if call.name == "submit")
    right = list(calls[submit].arguments["ids"])
    wrong = [next(key for key in environment.library.compounds if key not in right), *right[1:]]
    episodes: list[tuple[list[Call], Answer | None]] = [
        (calls, Answer("Answer: M-000")),
        (calls, Answer(re.sub(r"(M-\d+) [^;]+", r"\1", answer.text))),  # ids without their values
        (calls, Answer(re.sub(r"\S+$", "123456.5", answer.text))),  # another value of the last one
        (calls, None),
        ([], answer),
        ([call for call in calls if call.name in ("read_brief", "submit")], answer),
        ([call for call in calls if call.arguments.get("id") != needed], answer),
        ([*calls[:submit], replace(calls[submit], arguments={"ids": wrong})], answer),
        (calls[:submit], answer),
    ]
    if last_stage["count"] > 1:
        episodes.append(([*calls[:submit], replace(calls[submit], arguments={"ids": right[::-1]})], answer))
    for kept, given in episodes:
        again = replayed(NATURAL, task, kept)
        assert not NATURAL.verify(task, again, given).passed, (task.id, [call.name for call in kept], given)
    assert NATURAL.verify(task, replayed(NATURAL, task, calls), answer).passed
    return len(episodes)


def test_an_answer_may_round_and_say_more(natural: list[Task]) -> None:
    task = next(task for task in natural if len(task.state["stages"]) > 1)
    environment, _ = solve(NATURAL, task, random.Random(0), 0.0, task.horizon)
    environment.close()
    hits = [named.split() for named in task.reference.removeprefix("Answer: ").split("; ")]
    rounded = [f"{key.lower()} ({float(value):.4g} K)" for key, value in hits]
    assert NATURAL.verify(task, environment, Answer(f"The hits. Answer: {', '.join(rounded)}.")).passed
    assert not NATURAL.verify(task, environment, Answer(f"Answer: {', '.join(rounded[::-1])}")).passed
    assert not NATURAL.verify(task, environment, Answer(f"Answer: {', '.join([*rounded, 'M-001 1'])}")).passed


def test_the_shortest_campaign_has_no_shortcut(natural: list[Task]) -> None:
    """Its answer is not to be read off the list of candidates, which is its second observation."""
    for task in natural:
        if task.horizon == SHORTEST:
            reference = play(NATURAL, task, task.seed, 0.0, task.horizon)
            assert reference.verdict.passed and not no_shortcut(NATURAL, reference, ())


def test_the_truth_is_what_a_scan_of_all_compounds_finds(natural: list[Task]) -> None:
    """Stages without an origin, against a plain reading of the measured data."""
    checked = 0
    for task in natural:
        library = Laboratory(task, TOOLS).library.compounds
        hits = [named.split()[0] for named in task.reference.removeprefix("Answer: ").split("; ")]
        bans: list[str] = []
        bounds: list[tuple[str, str, float]] = []
        for stage, hit in zip(task.state["stages"], hits, strict=True):
            bans += stage["bans"]
            bounds += stage["rules"]
            if stage["kind"] != "best":
                continue
            values = {}
            for key, molecule in library.items():
                if stage["known"] not in molecule.measured or any(matches(molecule.smiles, GROUPS[g]) for g in bans):
                    continue
                if stage["group"] and not matches(molecule.smiles, GROUPS[stage["group"]]):
                    continue
                limits = [*bounds, *stage["bounds"]]
                if all(
                    descriptor(molecule.smiles, name) <= limit
                    if side == "at most"
                    else descriptor(molecule.smiles, name) >= limit
                    for name, side, limit in limits
                ):
                    values[key] = molecule.measured[stage["known"]]
            best = max(values.values()) if stage["highest"] else min(values.values())
            assert values[hit] == best and len(values) > stage["budget"]
            checked += 1
    assert checked > 40


def test_budgets_bind_and_evidence_is_measured(natural: list[Task]) -> None:
    task = natural[10]
    environment = NATURAL.start(task)
    assert isinstance(environment, Laboratory)
    stage = environment.stages[0]
    ids = environment.library.with_sample(stage.known)
    environment.call(Call("read_brief", {}))
    for key in ids[: stage.budget]:
        assert "Measured value" in environment.call(Call("assay", {"id": key, "property": stage.known})).text
    assert environment.call(Call("assay", {"id": ids[stage.budget], "property": stage.known})).error
    again = environment.call(Call("assay", {"id": ids[0], "property": stage.known}))
    assert not again.error and f"0 of {stage.budget}" in again.text
    other = next(known for known in UNITS if known != stage.known)
    assert environment.call(Call("assay", {"id": ids[0], "property": other})).error


def test_tables_lie_as_files_beside_the_code(natural: list[Task]) -> None:
    environment = NATURAL.start(natural[0])
    assert isinstance(environment, Laboratory)
    text = environment.call(Call("search_library", {"smarts": "c1ccccc1"})).text
    code = "import csv\nprint([row['id'] for row in csv.DictReader(open('search_1.csv'))])"
    shown = environment.call(Call("run_python", {"code": code}))
    broken = environment.call(Call("run_python", {"code": "print(open('search_2.csv').read())"}))
    environment.close()
    environment.close()
    ids = re.findall(r"^(M-\d{3}) \|", text, re.MULTILINE)
    assert shown.text == str(ids) and ids and not shown.error
    assert broken.error and "FileNotFoundError" in broken.text
    rows = list(csv.reader(environment.tables["search_1.csv"].splitlines()))
    assert [row[0] for row in rows[1:]] == ids
    compounds = environment.library.compounds
    assert all(re.search(r"[cC]\d", compounds[key].smiles) for key in ids), "a ring"


@pytest.mark.parametrize(
    "call",
    [
        Call("search_library", {"smarts": "[C"}),
        Call("search_library", {"exclude": ["(("]}),
        Call("search_library", {"page": 99}),
        Call("similarity_search", {"id": "M-999"}),
        Call("compute_descriptors", {"ids": ["M-001"], "descriptors": ["Beauty"]}),
        Call("compute_descriptors", {"ids": ["M-001", "M-999"], "descriptors": ["MolWt"]}),
        Call("predict", {"property": "taste", "ids": ["M-001"]}),
        Call("submit", {"ids": ["M-001", "M-002", "M-003", "M-004", "M-005"]}),
        Call("submit", {"ids": []}),
        Call("notebook_write", {"title": "x"}),
    ],
)
def test_natural_invalid_calls_are_observations(natural: list[Task], call: Call) -> None:
    observation = NATURAL.start(natural[0]).call(call)
    assert observation.error and observation.text.startswith("error: ") and not observation.evidence


def test_rules_are_said_once_and_hold(natural: list[Task]) -> None:
    """No later brief repeats a rule; reference solutions read it from the notebook."""
    held = 0
    for task in natural:
        environment, _ = solve(NATURAL, task, random.Random(0), 0.0, task.horizon)
        environment.close()
        briefs = [s.observation.text for s in environment.steps if s.call.name in ("read_brief", "submit")]
        for i, stage in enumerate(task.state["stages"]):
            for group in stage["bans"]:
                said = f"submit no compound that contains: {group} "
                assert [said in brief for brief in briefs] == [j == i for j in range(len(briefs))]
                held += i + 1 < len(task.state["stages"])
        notes = [step.observation.text for step in environment.steps if step.call.name == "notebook_read"]
        assert len(notes) == len(task.state["stages"])
    assert held > 4


def test_every_brief_reads_back(natural: list[Task]) -> None:
    for task in natural:
        environment = Laboratory(task, TOOLS)
        for number, stage in enumerate(environment.stages, start=1):
            brief = write_brief(stage, number)
            goal, near = _GOAL.search(brief), _NEAR.search(brief)
            if stage.kind == "near":
                assert near and (near["origin"], float(near["limit"])) == (str(stage.origin), stage.limit)
            else:
                assert goal and goal["known"] == stage.known and (goal["smarts"] or "") == GROUPS.get(stage.group, "")
                assert int(goal["count"] or 1) == stage.count


def test_filters_written_by_the_expert_are_right(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,MolWt,TPSA\nM-001,100,0\nM-002,90.5,20\nM-003,90.4,20\n")
    code = write_filter(["a.csv"], [("MolWt", "at least", "90.5"), ("TPSA", "at least", "1")])
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert said == "M-002 90.5 20\n1 of 3 within the limits\n"


def test_natural_splits_share_no_compound(natural: list[Task]) -> None:
    check_splits(natural)
    libraries = {
        split: {cas for t in natural if t.split == split for cas in t.state["library"]}
        for split in ("train", "heldout")
    }
    assert not libraries["train"] & libraries["heldout"]
    assert not (libraries["train"] | libraries["heldout"]) & set(literature())
    assert all(split_of(pair_of(cas)) == "train" for cas in literature())
    assert all(len(set(task.state["library"])) == LIBRARY for task in natural)


def test_noisy_natural_expert_mostly_recovers(sandbox: None) -> None:
    passed = longer = 0
    batch = make_tasks(NATURAL, 12, 24)
    for i, task in enumerate(batch):
        environment, answer = solve(NATURAL, task, random.Random(i), 0.25, 40)
        passed += NATURAL.verify(task, environment, answer).passed
        longer += len(environment.steps) > task.horizon
        environment.close()
    assert 0.8 * len(batch) < passed and longer > 0.8 * len(batch)


def test_a_chemist_who_spends_the_budget_elsewhere_ends_all_the_same(natural: list[Task]) -> None:
    """Every assay goes elsewhere: the campaign is finished, and refused."""
    from openhorizon.domains.scientific_agent import chemist

    class Careless(chemist.Chemist):
        def _assay(self, key: str, known: str, others: Sequence[str], thought: str):  # type: ignore[no-untyped-def]
            yield Call("assay", {"id": "M-001", "property": "logP"}, thought)
            return None

    task = natural[30]
    environment = NATURAL.start(task)
    careless = Careless(random.Random(0), 0.0)
    text = environment.call(Call("read_brief", {})).text
    while "All stages are closed" not in text:
        working = careless.stage(text)
        action = next(working)
        try:
            while True:
                action = working.send(environment.call(action))
        except StopIteration as end:
            text = end.value
    assert not NATURAL.verify(task, environment, Answer(task.reference)).passed
    environment.close()


def test_state_survives_json_and_parquet(tmp_path: Path, natural: list[Task]) -> None:
    tasks = [*make_tasks(SHORT, 9, 3), *natural[::20]]
    write_tasks(tmp_path / "tasks.parquet", tasks)
    again = read_tasks(tmp_path / "tasks.parquet")
    assert [json.dumps(asdict(task), sort_keys=True) for task in again] == [
        json.dumps(asdict(task), sort_keys=True) for task in tasks
    ]
    for task in again:
        check_reference(DOMAINS[task.world], task)


def test_prompt_length_does_not_grow_with_the_horizon(short: list[Task], natural: list[Task]) -> None:
    assert len({len(task.prompt.split()) for task in short}) == 1
    assert len({len(task.prompt.split()) for task in natural}) == 1


def digest() -> str:
    """Of tasks, and of noisy episodes on them."""
    parts: list[str] = []
    short = [task for horizon in (1, 5, 13) for task in make_tasks(SHORT, horizon, 10)]
    for task in [*short, *make_tasks(NATURAL, 16, 2)]:
        domain = DOMAINS[task.world]
        environment, answer = solve(domain, task, random.Random(task.seed), 0.3, 60)
        environment.close()
        parts.append(json.dumps([asdict(task), [asdict(step) for step in environment.steps], answer and answer.text]))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def test_same_seed_gives_the_same_tasks_in_every_process(sandbox: None) -> None:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": path}
    command = [sys.executable, "-c", "from test_scientific_agent import digest\nprint(digest())"]
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert other == digest()
