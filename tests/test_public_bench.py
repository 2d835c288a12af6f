"""Public benchmarks' common parts: who plays, what is kept, what is counted; on a world of their own."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import BUDGET, CountDomain
from servers import Reply, called, said
from settings import laptop
from test_endpoint import count_up as endpoint_counts_up
from test_rollout import ScriptedPolicy, count_up
from transformers import PreTrainedTokenizerFast

from openhorizon import benchmarking
from openhorizon.agent.endpoint import Endpoint
from openhorizon.agent.player import TOO_LONG, Player, PolicyPlayer, Script
from openhorizon.agent.trajectory import Status, Trajectory, read_trajectories, write_tasks
from openhorizon.artifacts import checkpoint_dir, stage_dir
from openhorizon.bench.base import read_records
from openhorizon.bench.journal import journal_path
from openhorizon.bench.public import BENCHMARKS
from openhorizon.bench.public.base import Benchmark, Metrics, Value
from openhorizon.bench.public.journal import Journal
from openhorizon.bench.public.reported import reported, table
from openhorizon.bench.public.run import Sampling, reference, run
from openhorizon.bench.public.summary import counts, failures, rates
from openhorizon.bench.stats import weighted_mean
from openhorizon.config import BudgetConfig
from openhorizon.domains.base import Action, Answer, Call, Domain, Task
from openhorizon.kag.exposure import exposure
from openhorizon.model.load import Checkpoint, save_checkpoint
from openhorizon.model.shards import weights_hash
from openhorizon.stages import benchmark
from openhorizon.tracking import RECORDS, StageLog

DOMAIN = CountDomain()
SAMPLING = Sampling(0.0, 0, at_once=2)


def count_tasks(n: int = 6) -> list[Task]:
    made = [DOMAIN.propose(random.Random(i), "heldout", 2 + i % 2, i) for i in range(n)]
    return [task for task in made if task]


def solution(task: Task) -> tuple[Action, ...]:
    goal = task.state["goal"]
    steps = [Call("step", {"from": at}) for at in range(goal - task.horizon, goal)]
    return (*steps, Answer(f"Answer: {goal}"))


def measure(trajectory: Trajectory) -> Metrics:
    right = float(trajectory.verdict.passed)
    return {"right": Value(right), "calls": Value(right, trajectory.tool_calls)}


COUNT = Benchmark(
    name="count",
    title="Counting",
    package="pyarrow",
    licence="none",
    split="six",
    protocol="as it is",
    domain=DOMAIN,
    budget=BUDGET,
    primary="right",
    tasks=count_tasks,
    group=lambda task: f"{task.horizon} steps",
    measure=measure,
    texts=lambda task: (task.prompt,),
    gold=solution,
)


@dataclass
class Counting:
    """Plays the solution, tells how often it was asked, and breaks after ``left`` tasks."""

    left: int = 1000
    asked: list[str] = field(default_factory=list)
    name: str = "counting"

    def rollout(
        self,
        domains: Mapping[str, Domain],
        tasks: Sequence[Task],
        seeds: Sequence[int],
        budgets: Mapping[str, BudgetConfig],
        temperature: float,
    ) -> list[Trajectory]:
        if len(self.asked) >= self.left:
            raise KeyboardInterrupt
        self.asked += [task.id for task in tasks]
        return Script(self.name, solution).rollout(domains, tasks, seeds, budgets, temperature)


def test_references_reach_what_they_must(tmp_path: Path) -> None:
    tasks = count_tasks()
    gold = run(COUNT, reference(COUNT, "gold"), tasks, SAMPLING, Journal(tmp_path / "g", {}))
    floor = run(COUNT, reference(COUNT, "floor"), tasks, SAMPLING, Journal(tmp_path / "f", {}))
    assert [r.success for r in gold] == [True] * 6 and [r.success for r in floor] == [False] * 6
    assert failures(COUNT, gold) == [] and len(failures(COUNT, floor)) == 6
    with pytest.raises(ValueError, match="count has no gold: nobody wrote one"):
        reference(replace(COUNT, gold=None, no_gold="nobody wrote one"), "gold")


def test_rates_agree_with_plain_counting(tmp_path: Path) -> None:
    """One task answered wrong: rates by hand, weights included, and an interval of each kind."""
    wrong = count_tasks()[0]

    def mostly(task: Task) -> tuple[Action, ...]:
        return (Answer("Answer: 0"),) if task.id == wrong.id else solution(task)

    results = run(COUNT, Script("x", mostly), count_tasks(), SAMPLING, Journal(tmp_path / "j", {}))
    found = {(rate.metric, rate.group): rate for rate in rates(COUNT, results, 0)}
    assert next(iter(found)) == ("right", "all")
    assert found["right", "all"].value == pytest.approx(5 / 6, abs=1e-6)
    assert found["right", "2 steps"].value == pytest.approx(2 / 3, abs=1e-6) and found["right", "3 steps"].value == 1
    assert found["right", "all"].ci95 == (0.436497, 0.969947)  # Wilson, 5 of 6
    assert found["calls", "all"].value == 1  # the wrong one made no calls: it has no weight


def test_a_weighted_mean_is_what_a_loop_gives() -> None:
    rng = np.random.default_rng(0)
    values, weights = rng.random(12).tolist(), rng.integers(0, 4, 12).tolist()
    found = weighted_mean(values, weights, seed=5, resamples=2000)
    assert found.value == pytest.approx(sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights))
    again, means = np.random.default_rng(5), []
    for _ in range(2):
        for row in again.integers(0, 12, size=(1000, 12)):
            total = sum(weights[i] for i in row)
            if total:
                means.append(sum(values[i] * weights[i] for i in row) / total)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))
    for bad in ([0.0, 0.0], [1.0, -1.0]):
        with pytest.raises(ValueError, match="a weight of 0 or more"):
            weighted_mean([1.0, 0.0], bad, 0)


def test_what_was_finished_is_not_played_again(tmp_path: Path) -> None:
    broken = Counting(left=4)
    with pytest.raises(KeyboardInterrupt):
        run(COUNT, broken, count_tasks(), SAMPLING, Journal(tmp_path / "j", {}))
    again = Counting()
    results = run(COUNT, again, count_tasks(), SAMPLING, Journal(tmp_path / "j", {}))
    assert again.asked == [task.id for task in count_tasks()[4:]]
    whole = run(COUNT, Counting(), count_tasks(), SAMPLING, Journal(tmp_path / "k", {}))
    assert [replace(r, seconds=0) for r in results] == [replace(r, seconds=0) for r in whole]
    kept = Journal(tmp_path / "j", {}).trajectories
    assert kept == Journal(tmp_path / "k", {}).trajectories and len(kept) == 6


def test_a_killed_evaluation_goes_on(tmp_path: Path) -> None:
    """SIGKILL in the middle, a last line cut in half: what was whole is kept, the rest played."""
    path = tmp_path / "j"

    class Slow(Counting):
        def rollout(self, *given):  # type: ignore[no-untyped-def]
            time.sleep(0.2)
            return super().rollout(*given)

    def evaluate() -> None:
        run(COUNT, Slow(), count_tasks(40), SAMPLING, Journal(path, {}))

    child = multiprocessing.get_context("fork").Process(target=evaluate)
    child.start()
    while not path.is_file() or path.read_bytes().count(b"\n") < 5:
        assert child.is_alive()
        time.sleep(0.02)
    child.kill()
    child.join()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:5]) + b'{"result": {"task": "cou')
    again = Counting()
    results = run(COUNT, again, count_tasks(40), SAMPLING, Journal(path, {}))
    assert len(results) == 40 and again.asked == [task.id for task in count_tasks(40)[4:]]


def test_a_damaged_journal_names_its_line(tmp_path: Path) -> None:
    run(COUNT, Counting(), count_tasks(), SAMPLING, Journal(tmp_path / "j", {}))
    lines = (tmp_path / "j").read_text().splitlines(keepends=True)
    (tmp_path / "j").write_text("".join([*lines[:2], "{no json\n", *lines[3:]]))
    with pytest.raises(ValueError, match="j, line 3: damaged"):
        Journal(tmp_path / "j", {})


def test_another_identity_has_another_journal(tmp_path: Path) -> None:
    a = {"benchmark": "count", "temperature": 0.7}
    assert journal_path(a, tmp_path) != journal_path(a | {"temperature": 0.8}, tmp_path)


def test_aborted_is_no_failure_and_tried_again(tmp_path: Path) -> None:
    class Closed(CountDomain):
        def start(self, task: Task):  # type: ignore[no-untyped-def]
            if task.seed == 1:
                raise OSError("closed today")
            return super().start(task)

    closed = replace(COUNT, domain=Closed())
    results = run(closed, Counting(), count_tasks(), SAMPLING, Journal(tmp_path / "j", {}))
    assert [r.success for r in results] == [True, None, True, True, True, True]
    said = counts(results)
    assert said["judged"] == 5 and said["ended"]["ABORTED"] == 1
    assert rates(closed, results, 0)[0].n == 5
    again = Counting()
    results = run(COUNT, again, count_tasks(), SAMPLING, Journal(tmp_path / "j", {}))
    assert again.asked == [count_tasks()[1].id] and all(r.success for r in results)


def test_what_cannot_be_judged_is_counted_and_not_played(tmp_path: Path) -> None:
    some = replace(COUNT, unjudged=lambda task: "no tagger here" if task.seed < 2 else "")
    player = Counting()
    results = run(some, player, count_tasks(), SAMPLING, Journal(tmp_path / "j", {}))
    assert len(player.asked) == 4 and counts(results)["not_judged"] == {"no tagger here": 2}
    assert rates(some, results, 0)[0].n == 4 and failures(some, results) == []


def test_calls_that_are_no_json_are_counted(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    def decide(prompt: str, seen: list[str]) -> str:
        return "<tool_call>{step: 4</tool_call>" if not seen else "Answer: 1"

    player: Player = PolicyPlayer(ScriptedPolicy(tokenizer, decide))
    said = counts(run(COUNT, player, count_tasks(), SAMPLING, Journal(tmp_path / "j", {})))
    assert (said["unreadable_calls"], said["failed_calls"], said["tool_calls"]) == (6, 6, 6)


def test_what_an_endpoint_does_is_counted_and_shown(tmp_path: Path, serve: Any) -> None:
    """A reply without a choice, arguments that are no JSON, a refusal, an error 500: a task each, and two solved."""
    tasks = list({task.prompt: task for task in count_tasks(40)}.values())[:6]
    replies = [(200, b'{"choices": []}'), called("step", "{no json"), (400, b"{}"), (500, b"{}")]

    def answer(asked: dict[str, Any]) -> Reply:
        which = next(i for i, task in enumerate(tasks) if task.prompt == asked["messages"][1]["content"])
        spoilt = which < len(replies) and len(asked["messages"]) == 2
        return replies[which] if spoilt else endpoint_counts_up(asked) if which > 3 else said(content="Answer: 0")

    player = Endpoint(serve(answer).url, "m", retries=0)
    results = run(COUNT, player, tasks, SAMPLING, Journal(tmp_path / "j", {}))
    assert [result.success for result in results] == [False, False, False, None, True, True]
    found = counts(results)
    assert [found[name] for name in ("judged", "nonsense", "refused", "unreadable_calls")] == [5, 1, 1, 1]
    assert found["ended"]["ABORTED"] == 1 and rates(COUNT, results, 0)[0].n == 5


def test_a_package_that_is_missing_says_how_to_get_it() -> None:
    with pytest.raises(
        ValueError, match=r"count: the package 'nowhere' is not installed; .*pip install --no-deps nowhere"
    ):
        assert replace(COUNT, package="nowhere").version


def test_a_prompt_that_does_not_fit_is_a_counted_failure(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    long = count_tasks()
    long[1] = replace(long[1], prompt=long[1].prompt + " count" * 300)
    some = replace(COUNT, budget=replace(BUDGET, context_tokens=100_000))
    player = PolicyPlayer(ScriptedPolicy(tokenizer, count_up), context_tokens=256)
    results = run(some, player, long, SAMPLING, Journal(tmp_path / "j", {}))
    assert results[1].status is Status.TRUNCATED and results[1].reason.startswith(TOO_LONG)
    assert [r.success for r in results] == [True, False, True, True, True, True]
    assert counts(results)["too_long"] == 1 and results[0].tokens > 0 < results[0].read_tokens


def test_an_episode_of_a_player_depends_on_its_own_seed(tokenizer: PreTrainedTokenizerFast) -> None:
    player, tasks = PolicyPlayer(ScriptedPolicy(tokenizer, count_up)), count_tasks(3)
    worlds, budgets = {"count": DOMAIN}, {"count": BUDGET}
    together = player.rollout(worlds, tasks, [1, 2, 3], budgets, 1.0)
    alone = player.rollout(worlds, tasks[1:2], [2], budgets, 1.0)
    assert together[1].seed == alone[0].seed and len({t.seed for t in together}) == 3


def test_results_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Callable[..., object]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(BENCHMARKS, "count", COUNT)
    settings = config()
    made = benchmarking.bench(
        settings, benchmarking.Wanted("count", "floor", 4, 0.0), tmp_path / "out", tmp_path / "t.json"
    )  # type: ignore[arg-type]
    assert json.loads((tmp_path / "t.json").read_text())["floor"] == made.pop("timing")
    assert json.loads((tmp_path / "out/metrics.json").read_text()) == json.loads(json.dumps(made))
    assert made["broken"] is None and made["rates"][0]["value"] == 0
    assert made["references"]["gold"][0]["value"] == 1
    records = read_records(tmp_path / "out/records.parquet")
    assert [r.task for r in records] == [t.id for t in count_tasks(4)] and not any(r.success for r in records)
    assert len(read_trajectories(tmp_path / "out/trajectories.parquet")) == 4
    lines = (tmp_path / "out/results.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["metrics"]["right"] == [0.0, 1.0]
    with pytest.raises(ValueError, match="unknown benchmark 'cuont'; known are bfcl"):
        benchmarking.bench(settings, benchmarking.Wanted("cuont", "floor", 4, 0.0), tmp_path, tmp_path / "t.json")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="unknown model 'studnet'; known are base"):
        benchmarking.bench(settings, benchmarking.Wanted("count", "studnet", 4, 0.0), tmp_path, tmp_path / "t.json")  # type: ignore[arg-type]


def test_a_benchmark_whose_own_solution_fails_has_no_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: Callable[..., object]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(BENCHMARKS, "count", replace(COUNT, gold=lambda task: (Answer("Answer: 0"),)))
    made = benchmarking.bench(
        config(), benchmarking.Wanted("count", "floor", None, 0.0), tmp_path / "out", tmp_path / "t.json"
    )  # type: ignore[arg-type]
    assert made["rates"] == [] and made["broken"]["failures"] == 6
    assert made["broken"]["tasks"][0].startswith(count_tasks()[0].id)


def test_the_stage_plays_a_checkpoint_and_knows_what_it_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny: Callable[..., Checkpoint]
) -> None:
    """A real model on the benchmark's tasks; one of them was a prompt of its training. Again: the same bytes, and
    nothing is played."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(BENCHMARKS, "count", COUNT)
    student = tiny()
    save_checkpoint(student.model, student.tokenizer, checkpoint_dir("student"))
    seen = count_tasks()[3]
    for name in laptop().domains:
        stage_dir("generate", name).mkdir(parents=True)
        for part in ("demonstrations", "prompts"):
            write_tasks(stage_dir("generate", name) / f"{part}.parquet", [replace(seen, entity_pairs=())])
    config = laptop()
    config = replace(config, benchmarks=replace(config.benchmarks, run=(), models=("student",), limit=4))
    Path(RECORDS).mkdir(parents=True)
    benchmark.run(config, "count", StageLog(config, "benchmark", "count"))
    folder = stage_dir("benchmark", "count") / "student"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    made = json.loads(first["metrics.json"])
    assert made["player"] == weights_hash(checkpoint_dir("student")) and made["counts"]["judged"] == 4
    assert made["tools_shown"] is False  # the small models' template leaves tools to the system prompt
    assert made["cost"]["generated_tokens"] > 4 and made["rates"][0]["n"] == 4
    assert made["contamination"]["tasks"] == [seen.id] and made["contamination"]["training_tasks"] == 6
    monkeypatch.setattr(PolicyPlayer, "rollout", lambda *given: pytest.fail("played again"))
    benchmark.run(config, "count", StageLog(config, "benchmark", "count"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first


@pytest.fixture
def config() -> Callable[..., object]:
    return laptop


def test_training_tasks_that_touch_a_benchmark_are_named() -> None:
    def task(name: str, prompt: str) -> Task:
        return replace(count_tasks(1)[0], id=name, prompt=prompt, entity_pairs=())

    question = "In which year did the engineer who built the first iron bridge of the county publish his memoirs?"
    texts = {"a": [question], "b": [question.upper(), "something else entirely"], "c": ["The other question of all"]}
    training = [task("clean", "count from 4"), task("copied", f"Please answer. {question} Thank you.")]
    found = exposure(training, texts)
    assert (found["training_tasks"], found["touching"], found["tasks"]) == (2, 1, ["a", "b"])
    assert found["matches"][0]["training"] == "copied" and "13 words" in found["matches"][0]["what"]


def test_the_authors_figures_name_benchmarks_that_exist() -> None:
    for row in table()["benchmarks"]:
        assert not row["ours"] or row["ours"] in BENCHMARKS or row["ours"] in ("ifbench", "ifeval")
        assert all(0 <= figure <= 100 for figure in row["figures"].values())
    assert reported("bfcl") is None
