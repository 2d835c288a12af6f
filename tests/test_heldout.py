"""Records and what is made of them: nothing is dropped, nothing is scored 0 in silence."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import BUDGET, MACHINE, CountDomain
from settings import laptop

from openhorizon.agent.trajectory import Status, Trajectory, Turn, read_trajectories, write_tasks
from openhorizon.artifacts import checkpoint_dir, stage_dir
from openhorizon.bench.base import Record, first_failing_turn, read_records, record_of, write_records
from openhorizon.bench.heldout import MACRO, Comparison, breaking, compare, episodes, rows
from openhorizon.bench.stats import mcnemar, wilson
from openhorizon.config import Config, EvaluateConfig
from openhorizon.domains import DOMAINS as REGISTRY
from openhorizon.domains.base import Task, Verdict
from openhorizon.model.load import Checkpoint, save_checkpoint
from openhorizon.stages import evaluate

DOMAINS = ("a", "b")


def record(task: str, success: bool | None, domain: str = "a", horizon: int = 1, model: str = "sft") -> Record:
    status = {True: Status.SOLVED, False: Status.FAILED, None: Status.ABORTED}[success]
    turn = None if success else 1
    return Record(task, domain, horizon, 0, model, status, success, float(success or 0), "why", 2, turn, 9, "x")


def trajectory(turns: list[Turn], status: Status, evidence: tuple[str, ...] = ()) -> Trajectory:
    task = Task("a", "a-1", "heldout", "question", 3, 5, {}, evidence, ("v",), "ref", (("x", "y"),))
    return Trajectory(task, tuple(turns), "said", status, Verdict(False, 0.25, "wrong"), "hash", 77)


def turns(*observations: tuple[tuple[str, ...], bool]) -> list[Turn]:
    """A question, then a call and its observation for each ``(evidence, error)``, then an answer."""
    result = [Turn("prompt", "question", (1, 2))]
    for evidence, error in observations:
        result += [Turn("assistant", "call", (3, 4, 5)), Turn("tool", "shown", (6,), (), evidence, error)]
    return [*result, Turn("assistant", "answer", (7, 8))]


@pytest.mark.parametrize(
    ("observations", "evidence", "expected"),
    [
        ([], (), 1),  # the only turn is the answer
        ([((), True), ((), True)], (), 1),  # refused from the start
        ([((), False), ((), True)], (), 2),  # one step went well
        ([((), True), ((), False)], (), 3),  # recovered: the answer is what failed
        ([(("p",), False), (("z",), False)], ("p", "q"), 2),  # wandered off behind the first evidence
        ([(("p",), False), (("p",), False)], ("p", "q"), 2),  # what was seen before is no progress
        ([(("p",), False), (("q",), False)], ("p", "q"), 3),
        ([(("z",), False)], ("p",), 1),
    ],
)
def test_first_failing_turn(observations: list[Any], evidence: tuple[str, ...], expected: int) -> None:
    assert first_failing_turn(trajectory(turns(*observations), Status.FAILED, evidence)) == expected


def test_first_failing_turn_stays_inside_the_episode() -> None:
    """Truncated behind its last observation: the failing turn is the last one that there is."""
    cut = trajectory(turns(((), False), ((), False))[:-1], Status.TRUNCATED)
    assert first_failing_turn(cut) == 2
    assert first_failing_turn(replace(cut, status=Status.SOLVED)) is None


def test_record_says_what_the_trajectory_says() -> None:
    found = record_of(trajectory(turns(((), False)), Status.FAILED), "student", 3)
    assert found == Record("a-1", "a", 3, 3, "student", Status.FAILED, False, 0.25, "wrong", 1, 2, 5, "said")
    assert record_of(trajectory(turns(), Status.TRUNCATED), "student", 3).success is False
    assert record_of(trajectory(turns(), Status.SOLVED), "student", 3).success is True
    assert record_of(trajectory(turns(), Status.ABORTED), "student", 3).success is None


def test_records_survive_the_disk_and_bad_files_are_named(tmp_path: Path) -> None:
    records = [record("1", True), record("2", False), replace(record("3", None), answer=None)]
    path = tmp_path / "records.parquet"
    write_records(path, records)
    assert read_records(path) == records
    path.write_bytes(path.read_bytes()[:100])
    for bad in (path, tmp_path / "none.parquet"):
        with pytest.raises(ValueError, match=bad.name):
            read_records(bad)


def test_rows_by_horizon_domain_and_macro() -> None:
    records = [record(f"a{i}", i < 6, "a", 1 + i % 2) for i in range(8)]
    records += [record(f"b{i}", i < 1, "b") for i in range(4)]
    found = {(row.domain, row.horizon): row for row in rows(records, DOMAINS)}
    assert set(found) == {(MACRO, "all"), ("a", "all"), ("a", 1), ("a", 2), ("b", "all"), ("b", 1)}
    assert (found["a", "all"].n, found["a", "all"].success) == (8, 0.75)
    assert found["a", "all"].ci95 == pytest.approx(wilson(6, 8), abs=1e-6)
    assert (found["a", 1].n, found["a", 1].success) == (4, 0.75)
    macro = found[MACRO, "all"]
    assert (macro.n, macro.success) == (12, 0.5)  # (0.75 + 0.25) / 2, not 7 / 12
    assert macro.ci95[0] < 0.5 < macro.ci95[1]


def test_aborted_episodes_are_counted_and_score_nothing() -> None:
    records = [record("1", True), record("2", False), record("3", None), record("4", None, horizon=9)]
    found = {row.horizon: row for row in rows(records, ("a",))}
    assert set(found) == {"all", 1}  # nothing was judged at horizon 9, so no rate is claimed
    assert (found["all"].n, found["all"].success) == (2, 0.5)
    assert episodes(records) == {"a": {"SOLVED": 1, "FAILED": 1, "TRUNCATED": 0, "ABORTED": 2}}


def test_no_macro_without_every_domain() -> None:
    assert MACRO not in {row.domain for row in rows([record("1", True)], DOMAINS)}
    aborted = [record("1", True), record("2", None, "b")]
    assert MACRO not in {row.domain for row in rows(aborted, DOMAINS)}


def test_rows_refuse_a_mixture() -> None:
    with pytest.raises(ValueError, match="one model"):
        rows([record("1", True), record("2", True, model="base")], DOMAINS)


def test_compare_pairs_by_task_whatever_the_order() -> None:
    draw = random.Random(1)
    tasks = [(f"{domain}{i}", domain) for domain in DOMAINS for i in range(60)]
    b = [record(task, draw.random() < 0.4, domain) for task, domain in tasks]
    a = [replace(r, model="student", success=r.success or draw.random() < 0.3) for r in b]
    draw.shuffle(a)
    found = {c.domain: c for c in compare(a, b, DOMAINS, ("student", "sft"), 0)}
    assert set(found) == {"a", "b", MACRO}
    before = {r.task: bool(r.success) for r in b}
    wins = {name: sum(bool(r.success) > before[r.task] for r in a if r.domain == name) for name in DOMAINS}
    for name in DOMAINS:
        assert found[name].difference == pytest.approx(wins[name] / 60, abs=1e-6)
        assert found[name].p == mcnemar(wins[name], 0)
    assert found[MACRO].difference == pytest.approx(sum(wins.values()) / 120, abs=1e-6)
    assert found[MACRO].n == 120
    assert found[MACRO].ci95[0] > 0


def test_compare_uses_only_what_both_were_judged_on() -> None:
    a = [record("1", True), record("2", None), record("3", True)]
    b = [record("1", False), record("2", True), record("4", True)]
    assert compare(a, b, ("a",), ("x", "y"), 0) == [Comparison("x", "y", "a", 1, 1.0, (1.0, 1.0), 1.0)]
    assert compare(a[:1], b[2:], ("a",), ("x", "y"), 0) == []
    with pytest.raises(ValueError, match="more than once"):
        compare([*a, a[0]], b, ("a",), ("x", "y"), 0)


def test_breaking_is_relative_to_the_horizon() -> None:
    records = [
        replace(record("1", False, horizon=4), first_failing_turn=3),
        replace(record("2", False, horizon=2), first_failing_turn=1),
        replace(record("3", False, horizon=4), first_failing_turn=5),
        record("4", True),
        record("5", None),
    ]
    found = breaking(records)
    assert found is not None
    assert found == pytest.approx((3, 1 / 3, 0.5))
    assert breaking(records[3:]) is None


class Log:
    """What a stage says about itself."""

    def __init__(self) -> None:
        self.said: list[tuple[int, int]] = []
        self.counted = 0
        self.figures: dict[str, float] = {}

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.said.append((done, total))

    def tokens(self, count: int) -> None:
        self.counted += count

    def metrics(self, step: int, **values: float) -> None:
        self.figures |= values


@pytest.fixture
def setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count_domain: CountDomain, tiny: Callable[..., Checkpoint]
) -> Config:
    """A registry with the counting domain, six held-out tasks and checkpoints of three kinds of models."""
    config = laptop()
    monkeypatch.setitem(REGISTRY, "count", count_domain)
    monkeypatch.chdir(tmp_path)
    draw = random.Random(0)
    tasks = [count_domain.propose(draw, "heldout", 1 + i % 3, i) for i in range(6)]
    stage_dir("generate", "count").mkdir(parents=True)
    write_tasks(stage_dir("generate", "count") / "heldout.parquet", [task for task in tasks if task])
    for model, seed in (("sft", 0), ("teacher@count", 1), ("baseline@seqkd", 2)):
        checkpoint = tiny(seed=seed)
        checkpoint_dir(model).mkdir(parents=True)
        save_checkpoint(checkpoint.model, checkpoint.tokenizer, checkpoint_dir(model))
    return replace(
        config,
        seed=4,
        domains=("count",),
        budget={"count": BUDGET},
        evaluate=EvaluateConfig(tasks=5, temperature=0.7),
        machines={"cpu": MACHINE},
    )


def test_evaluate_writes_the_same_records_twice(setting: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACHINE", "cpu")
    log: Any = Log()
    evaluate.run(setting, "sft", log)
    folder = stage_dir("evaluate", "sft")
    first = {file.name: file.read_bytes() for file in folder.iterdir()}
    assert set(first) == {"records.parquet", "trajectories.parquet", "metrics.json"}
    records, found = read_records(folder / "records.parquet"), read_trajectories(folder / "trajectories.parquet")
    assert records == [record_of(t, "sft", 4) for t in found]
    assert len(records) == 5
    assert log.said[-1] == (5, 5)
    assert log.counted == sum(len(t.ids) for t in found)
    metrics = json.loads(first["metrics.json"])
    assert sum(metrics["episodes"]["count"].values()) == 5
    assert metrics["rows"][0]["n"] == 5
    assert log.figures == {"success@count": metrics["rows"][0]["success"]}
    evaluate.run(setting, "sft", log)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == first


def test_evaluate_gives_every_model_the_same_tasks_and_seeds(setting: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACHINE", "cpu")
    episodes_of = {}
    for model in ("sft", "teacher@count", "baseline@seqkd"):
        evaluate.run(setting, model, Log())  # type: ignore[arg-type]
        found = read_trajectories(stage_dir("evaluate", model) / "trajectories.parquet")
        episodes_of[model] = [(t.task.id, t.seed) for t in found]
        assert len({t.policy for t in found}) == 1
    assert episodes_of["sft"] == episodes_of["teacher@count"] == episodes_of["baseline@seqkd"]


def test_evaluate_refuses_what_it_cannot_judge(setting: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MACHINE", "cpu")
    log: Any = Log()
    for target in ("ensemble", None, "teacher"):
        with pytest.raises(ValueError, match="unknown model"):
            evaluate.run(setting, target, log)
    with pytest.raises(ValueError, match="unknown domain 'chess'"):
        evaluate.run(setting, "teacher@chess", log)
    with pytest.raises(FileNotFoundError, match="distill"):
        evaluate.run(setting, "student", log)
    with pytest.raises(ValueError, match=r"6 held-out tasks for evaluate\.tasks=7"):
        evaluate.run(replace(setting, evaluate=EvaluateConfig(tasks=7, temperature=0.7)), "sft", log)
    assert not stage_dir("evaluate").exists()
