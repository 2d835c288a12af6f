"""The natural-text world: real scripts, assignments that depend on what they print, and what its verifier refuses."""

from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from openhorizon.agent.compaction import MEMORY, compact, read_steps, words
from openhorizon.agent.trajectory import Trajectory
from openhorizon.domains.base import Answer, Call, Split, Step, Task, solve
from openhorizon.domains.engineering.competitions import Key, competition
from openhorizon.domains.engineering.memory import recall
from openhorizon.domains.engineering.reports import local_analyst
from openhorizon.domains.engineering.runner import run_python
from openhorizon.domains.engineering.scripts import (
    CLASSES_OF,
    CV,
    Recipe,
    against_style,
    broken,
    bugs,
    leaky,
    least_needed,
    script,
    tuned,
    without,
)
from openhorizon.domains.engineering.studio import COSTS, TablesEnvironment, brief
from openhorizon.domains.engineering.tables import MIN_HORIZON, TablesDomain, _draw_plan, _prompt
from openhorizon.kag.selfplay import Outcome, play, to_trajectory

DOMAIN = TablesDomain()
SMALL = Key("MASS/birthwt", "bwt", "rmse", 0)
TOOLS = {tool.name for tool in DOMAIN.tools}


def task_of(plan: list[dict[str, object]], key: Key = SMALL) -> Task:
    """A task with this plan over a small table, made like ``propose`` makes one."""
    found = competition(key)
    horizon = 1 + sum(COSTS[str(given["kind"])] for given in plan)
    marks = [f"1234/{i}.{m + 1}" for i, given in enumerate(plan) for m in range(COSTS[str(given["kind"])])]
    state = {"team": "1234", "key": [key.table, key.target, key.metric, key.edition], "plan": plan, "percentile": 0}
    task = Task(
        "engineering", f"t{horizon}", key.split, _prompt("1234", found, 0), horizon, 0, state, ("1234/brief", *marks),
        ("answer",), "", (key.pair,), "tables",
    )  # fmt: skip
    made = DOMAIN._demand(task, found)
    assert made is not None
    return made


EVERYTHING: list[dict[str, object]] = [
    {"kind": "survey"},
    {"kind": "model", "model": "linear", "leave": ["ftv"]},
    {"kind": "repair twice", "model": "neighbours", "bugs": ["column", "setting"]},
    {"kind": "tune", "values": [0, 1]},
    {"kind": "ablate"},
    {"kind": "repeat", "seed": 3},
    {"kind": "leak", "model": "tree"},
    {"kind": "sound", "model": "linear"},
    {"kind": "repair", "model": "tree", "bugs": ["header"]},
    {"kind": "shell"},
    {"kind": "review"},
    {"kind": "notes"},
    {"kind": "submit"},
]


@pytest.fixture(scope="module")
def task() -> Task:
    """One with every kind of assignment."""
    assert {str(given["kind"]) for given in EVERYTHING} == set(COSTS)
    return task_of(EVERYTHING)


def reference(task: Task) -> tuple[TablesEnvironment, Answer]:
    environment, answer = solve(DOMAIN, task, random.Random(0), 0.0, task.horizon)
    assert isinstance(environment, TablesEnvironment) and answer is not None
    return environment, answer


def replay(task: Task, calls: list[Call]) -> TablesEnvironment:
    environment = DOMAIN.start(task)
    for call in calls:
        environment.call(call)
    return environment


def test_the_reference_is_accepted_with_exactly_horizon_calls(task: Task) -> None:
    environment, answer = reference(task)
    verdict = DOMAIN.verify(task, environment, answer)
    assert verdict.passed and verdict.score == 1.0, verdict
    assert len(environment.steps) == task.horizon == 1 + sum(COSTS[str(given["kind"])] for given in EVERYTHING)
    assert answer.text == task.reference and re.search(r"percentile \d+ of the leaderboard", verdict.reason)
    assert environment.consulted() == set(task.evidence)
    assert {step.call.name for step in environment.steps} == TOOLS - {"get_current_answer"}
    tracebacks = [step for step in environment.steps if "Traceback (most recent call last)" in step.observation.text]
    assert len(tracebacks) == 2 and "KeyError" in tracebacks[0].observation.text
    assert sum(node.status == "invalid" for node in environment.tree.nodes.values()) == 1
    assert not [step for step in environment.steps if step.observation.error]


def test_every_skipped_step_and_every_wrong_end_is_refused(task: Task) -> None:
    environment, right = reference(task)
    calls = [step.call for step in environment.steps]
    for i in range(len(calls)):
        verdict = DOMAIN.verify(task, replay(task, calls[:i] + calls[i + 1 :]), right)
        assert not verdict.passed and verdict.score < 1, calls[i]
        assert not DOMAIN.verify(task, replay(task, calls[:i]), right).passed
    best = environment.tree.answer
    for node in [node for node in environment.tree.nodes.values() if node.id != best and node.score]:
        handed = replay(task, [*calls, Call("update_answer", {"node": node.id})])
        changed = handed.tree.answer != best
        assert DOMAIN.verify(task, handed, right).passed is not changed
        named = Answer(f"Answer: {node.id}, cv rmse {node.score}")
        assert not DOMAIN.verify(task, environment, named).passed
        assert not DOMAIN.verify(task, handed, named).passed
        if node.status == "ok" and node.id not in environment.planted:
            dropped = replay(task, [*calls, Call("invalidate_node", {"node": node.id})])
            verdict = DOMAIN.verify(task, dropped, right)
            assert not verdict.passed and not verdict.rubric["nothing sound invalidated"]
    for text in ("", right.text[:-1], right.text + "1", "Answer: n99, cv rmse 1.0", f"Answer: {best}"):
        assert not DOMAIN.verify(task, environment, Answer(text)).passed, text
    assert not DOMAIN.verify(task, environment, None).passed


def test_what_is_handed_in_is_graded(task: Task) -> None:
    """Predictions of a constant, of shuffled rows, copied from train.csv, or printed scores that lie: the tree hands in
    what a node's own run wrote, and the private answers judge it."""
    _, right = reference(task)
    cheap = script(Recipe("bwt", "rmse", "number", "", ("low", "age", "lwt"), (), "linear"))
    mean = "test[TARGET] = y.mean()"
    copied = "test[TARGET] = y.to_numpy()[: len(test)]"
    for line in (mean, copied, "test[TARGET] = rng.permutation(predict(test[NUMBERS + WORDS]))"):
        code = cheap.replace("test[TARGET] = predict(test[NUMBERS + WORDS])", line)
        code = code.replace("{np.mean(scores):.5g}", "{0.001}")  # claims to be the best
        environment = DOMAIN.start(task)
        environment.call(Call("read_notes", {}))
        environment.call(Call("write_full_code", {"code": code}))
        environment.call(Call("execute_code", {"node": "n1"}))
        assert environment.tree.nodes["n1"].status == "ok" and environment.best() is environment.tree.nodes["n1"]
        environment.call(Call("update_answer", {"node": "n1"}))
        demanding = replace(task, state={**task.state, "percentile": 25})
        verdict = DOMAIN.verify(demanding, environment, Answer("Answer: n1, cv rmse 0.001"))
        assert not verdict.passed and not verdict.rubric["percentile"] and verdict.rubric["answer"], line
    for wrong, said in (
        ('test[["id", TARGET]].head(9)', "ids are missing"),
        ("test[[TARGET]]", "the header must be"),
        ('test[["id", TARGET]].assign(bwt="x")', "not a finite number"),
    ):
        environment = DOMAIN.start(task)
        environment.call(Call("write_full_code", {"code": cheap.replace('test[["id", TARGET]]', wrong)}))
        assert said in environment.call(Call("execute_code", {"node": "n1"})).text
        refused = environment.call(Call("update_answer", {"node": "n1"}))
        assert refused.error and said in refused.text
    assert right.text.startswith("Answer: n")


def test_no_file_of_the_workspace_has_private_answers() -> None:
    for key in (SMALL, Key("sklearn/wine_data", "cultivar", "accuracy", 0)):
        found = competition(key)
        answers = dict(zip(found.ids, found.answers, strict=True))
        for name, data in found.public.files.items():
            for line in data.decode().splitlines()[1:]:
                first, *rest = line.split(",")
                if name != "sample_submission.csv":
                    assert first not in answers or len(rest) == len(found.features), name
        submission = "id," + key.target + "".join(f"\n{i},{value}" for i, value in answers.items())
        problem, predictions = found.check(submission)
        assert not problem and found.grade(predictions) == (0.0 if key.metric == "rmse" else 1.0)
        looked = "import sklearn.datasets as d; print(d.load_wine().target, d.load_iris().target)"
        assert not run_python(found.public, looked).ok


@pytest.mark.parametrize("model", sorted(CLASSES_OF))
def test_scripts_run_and_bugs_stop_them(model: str) -> None:
    for key in (SMALL, Key("survival/lung", "sex", "auc", 0)):
        found = competition(key)
        numbers = tuple(column.name for column in found.features if column.numeric)
        gaps = [column.name for column in found.features if column.numeric and column.missing]
        recipe = Recipe(key.target, key.metric, found.kind, found.positive, numbers, (), model)
        code = script(recipe)
        run = run_python(found.public, code)
        assert run.ok and not found.check(run.submission)[0] and not against_style(code, run.output), run.output
        changed = code.replace(*without(code, least_needed(run.output)))
        assert least_needed(run.output) not in changed.split("FOLDS")[0]
        setting, now, others = tuned(code)
        assert f"{setting}={now}" in code and now not in others
        for bug in bugs(recipe, gaps):
            if model == "linear":
                bad = run_python(found.public, broken(code, bug))
                assert not bad.ok or found.check(bad.submission)[0], bug
    assert against_style("print(1)", "1") and against_style(code, "cv auc 1 +- 0")


def test_a_leak_shows_when_the_target_is_dealt_out() -> None:
    environment = DOMAIN.start(task_of([{"kind": "model", "model": "tree", "leave": []}, {"kind": "submit"}]))
    code = script(environment.recipe("tree"))
    for text, leaks in ((code, False), (leaky(code), True)):
        node = environment.tree.write(text)
        environment._run(node)
        before = {key: (n.status, n.score) for key, n in environment.tree.nodes.items()}
        report = local_analyst(f"node {node.id}", environment.competition, environment.tree)
        logged, dealt, constant = (float(f) for f in re.findall(r"^rmse .*: (\S+)$", report, re.MULTILINE))
        assert (constant - dealt > (constant - logged) / 2) is leaks, report
        assert before == {key: (n.status, n.score) for key, n in environment.tree.nodes.items()}


def test_another_analyst_can_take_the_seat() -> None:
    domain = TablesDomain(lambda about, found, tree: f"{about}: {len(tree.nodes)} nodes")
    environment = domain.start(task_of([{"kind": "model", "model": "tree", "leave": []}, {"kind": "submit"}]))
    assert environment.call(Call("analyze", {"about": "train.csv"})).text == "train.csv: 0 nodes"


def test_plans_add_up_and_begin_with_a_model() -> None:
    found, rng = competition(SMALL), random.Random(0)
    for calls in range(MIN_HORIZON - 2, 120):
        plan = _draw_plan(rng, found, calls)
        kinds = [given["kind"] for given in plan]
        assert sum(COSTS[kind] for kind in kinds) == calls + 1 and kinds[-1] == "submit"
        assert kinds[0] == "model" or kinds[:2] == ["survey", "model"]
        assert kinds.count("ablate") <= len(found.features) - 3
    assert DOMAIN.offers((1, 4, 5, 60)) == (5, 60)
    with pytest.raises(ValueError, match="horizon 4"):
        DOMAIN.propose(rng, "train", 4, 0)


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_proposals_are_solved_and_noise_is_mostly_recovered_from(split: Split) -> None:
    found = passed = 0
    for seed in range(4):
        task = DOMAIN.propose(random.Random(seed), split, 9, seed)
        if task is None:
            continue
        found += 1
        again = replace(task, state=json.loads(json.dumps(task.state)))
        environment, answer = reference(again)
        assert DOMAIN.verify(again, environment, answer).passed and len(environment.steps) == 9
        assert all(step.call.thought for step in environment.steps)
        assert f"beat {task.state['percentile']}%" in task.prompt and task.split == split
        noisy, final = solve(DOMAIN, task, random.Random(seed), 0.3, 30)
        passed += DOMAIN.verify(task, noisy, final).passed
    assert found >= 1 and passed >= found - 1


def test_failed_runs_are_repaired_from_their_traceback(task: Task) -> None:
    passed = repaired = 0
    plain = len(reference(task)[0].tree.nodes)
    for seed in range(6):
        environment, answer = solve(DOMAIN, task, random.Random(seed), 0.5, 150)
        passed += DOMAIN.verify(task, environment, answer).passed
        assert isinstance(environment, TablesEnvironment)
        repaired += len(environment.tree.nodes) > plain
    assert passed >= 5 and repaired >= 2


def test_the_brief_has_what_is_public_and_nothing_more() -> None:
    text = brief(competition(SMALL))
    assert "Predict bwt (birth weight in grams.), scored by rmse" in text and "lower is better" in text
    assert "- lwt (number" in text and "mother's weight in pounds" in text and "House style" in text


def test_prompt_length_does_not_grow_with_the_horizon(task: Task) -> None:
    short = task_of([{"kind": "model", "model": "linear", "leave": []}, {"kind": "submit"}])
    assert abs(len(task.prompt.split()) - len(short.prompt.split())) <= 1


def test_compaction_cuts_a_run_into_segments_that_can_go_on(task: Task) -> None:
    run = play(DOMAIN, task, 1, 0.0, task.horizon)
    whole = to_trajectory(Outcome(task.horizon, "", "", run))
    limit = 2200
    segments = compact(whole, recall, limit)
    assert len(segments) > 3
    assert [turn for segment in segments for turn in segment.turns[1:]] == list(whole.turns[1:])
    steps: list[Step] = []
    for i, segment in enumerate(segments):
        head, first = segment.turns[:2]
        assert head.role == "prompt" and first.role == "assistant" and head.text.startswith(task.prompt)
        assert sum(map(words, segment.turns)) <= limit
        assert (segment.status, segment.verdict, segment.task) == (whole.status, whole.verdict, whole.task)
        if i:
            memory = head.text.partition(f"{MEMORY}\n")[2]
            assert memory == recall(steps) and "Competition: " in memory and "Lead: assignment" in memory
            environment = replay(task, [step.call for step in steps])
            assert all(note in memory for note in environment.notes)
            for node in environment.tree.nodes.values():
                mine = any(step.call.arguments.get("node") == node.id for step in steps)
                assert not (mine and node.score) or f"cv rmse {node.score}" in memory or node.status == "invalid"
            if environment.tree.current:
                assert environment.tree.nodes[environment.tree.current].code.rstrip() in memory
        steps += read_steps(segment.turns[1:])
    assert compact(whole, recall, 10**6) == [whole]
    with pytest.raises(ValueError, match=r"compaction of t\d+: a prompt of \d+ and a step of \d+ do not fit into 300"):
        compact(whole, recall, 300)


def test_the_score_line_is_read_strictly() -> None:
    assert CV.search("x\ncv rmse 1.5e-05 +- 0.1\n") and not CV.search("cv rmse nan +- 0.1")
    assert not CV.search("cv rmse best +- 1") and isinstance(Trajectory, type)


@pytest.mark.long
def test_many_references_are_accepted_and_every_skipped_step_is_refused() -> None:
    accepted = refused = 0
    for seed in range(80):
        task = DOMAIN.propose(random.Random(seed), "heldout" if seed % 4 == 0 else "train", 6 + seed % 12, seed)
        if task is None:
            continue
        environment, answer = reference(task)
        accepted += DOMAIN.verify(task, environment, answer).passed
        calls = [step.call for step in environment.steps]
        for i in range(len(calls)):
            assert not DOMAIN.verify(task, replay(task, calls[:i] + calls[i + 1 :]), answer).passed, (task.id, i)
            assert not DOMAIN.verify(task, replay(task, calls[:i]), answer).passed
            refused += 2
        assert not DOMAIN.verify(task, environment, Answer("Answer: n0, cv rmse 1")).passed
    assert accepted >= 40 and refused >= 800


def judged(first: int = 0) -> Iterator[str]:
    """Tasks of 5 to 8 calls, a quarter of them held out: the reference of each must be accepted, and what four kinds of
    corruption make of it refused. Yields the id of each task that did so."""
    for seed in itertools.count(first):
        task = DOMAIN.propose(random.Random(seed), "heldout" if seed % 4 == 0 else "train", 5 + seed // 4 % 4, seed)
        if task is None:
            continue
        environment, right = reference(task)
        verdict = DOMAIN.verify(task, environment, right)
        assert verdict.passed and len(environment.steps) == task.horizon and right.text == task.reference, task.id
        calls = [step.call for step in environment.steps]
        skipped = seed % len(calls)
        node, _, score = right.text.rpartition(" ")
        for kind, kept, given in (
            ("wrong answer", calls, Answer(f"{node} {2 * float(score) + 1:.5g}")),
            ("missing evidence", [call for call in calls if call.name != "read_notes"], right),
            ("skipped step", calls[:skipped] + calls[skipped + 1 :], right),
            ("shortcut", calls[:1], right),
        ):
            assert not DOMAIN.verify(task, replay(task, kept), given).passed, (task.id, kind)
        yield task.id


@pytest.mark.long
def test_a_thousand_references_are_accepted_and_their_corruptions_refused() -> None:
    assert len(set(itertools.islice(judged(), 1000))) == 1000
