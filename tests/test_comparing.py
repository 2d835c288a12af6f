"""Two evaluations held against each other: the same tasks or none, every unpaired task counted, pages that lead on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from openhorizon import comparing
from openhorizon.agent.trajectory import Status, Trajectory, Turn, write_trajectories
from openhorizon.artifacts import stage_dir, write_json
from openhorizon.bench.base import Record, write_records
from openhorizon.bench.paired import paired
from openhorizon.bench.stats import holm, mcnemar
from openhorizon.cli import main
from openhorizon.domains.base import Task, Verdict
from openhorizon.tracking import Store


def record(n: int, success: bool | None, domain: str = "search", model: str = "a") -> Record:
    status = {True: Status.SOLVED, False: Status.FAILED, None: Status.ABORTED}[success]
    return Record(
        f"{domain}-{n}", domain, 1 + n % 2, 0, model, status, success, float(success or 0), "why <b>", 2, None, 9, "x"
    )


def episode(it: Record) -> Trajectory:
    task = Task(it.domain, it.task, "heldout", "question <i>", it.horizon, 1, {}, (), (), "amber", ())
    turns = (Turn("prompt", "question <i>"), Turn("assistant", f"{it.model} says"), Turn("tool", "seen", error=True))
    return Trajectory(task, turns, it.answer, it.status, Verdict(bool(it.success), it.score, it.reason), it.model, 5)


def sides(model: str, pattern: Callable[[int], bool | None], count: int = 20) -> list[Record]:
    return [
        record(n, pattern(n + i), name, model) for i, name in enumerate(("search", "science")) for n in range(count)
    ]


def save(folder: Path, records: list[Record], episodes: bool = True) -> Path:
    folder.mkdir(parents=True)
    write_records(folder / "records.parquet", records)
    if episodes:
        write_trajectories(folder / "trajectories.parquet", [episode(it) for it in records])
    return folder


A, B = sides("a", lambda n: n % 4 != 0), sides("b", lambda n: n % 2 == 0)


def test_rates_tests_and_tasks_are_those_of_a_loop() -> None:
    found = paired(A, B, 0)
    of_b = {(it.domain, it.task): it for it in B}
    for name in ("search", "science"):
        mine = [(bool(it.success), bool(of_b[it.domain, it.task].success)) for it in A if it.domain == name]
        (line,) = [it for it in found.lines if it.domain == name]
        assert (line.n, line.a, line.b) == (20, sum(x for x, _ in mine) / 20, sum(y for _, y in mine) / 20)
        assert line.difference == pytest.approx(line.a - line.b) and line.ci95[0] <= line.difference <= line.ci95[1]
        assert line.p == mcnemar(sum(x and not y for x, y in mine), sum(y and not x for x, y in mine))
    by_domain = {it.domain: it for it in found.lines if it.adjusted is not None}
    assert {name: it.adjusted for name, it in by_domain.items()} == holm({name: it.p for name, it in by_domain.items()})
    macro = found.lines[0]
    assert (macro.domain, macro.n) == ("macro", 40)
    assert macro.difference == pytest.approx(sum(it.difference for it in by_domain.values()) / 2)
    wins = {(it.domain, it.task) for it in A if it.success and not of_b[it.domain, it.task].success}
    assert {(pair.a.domain, pair.a.task) for pair in found.won} == wins and len(wins) == 20
    assert len(found.lost) == 10
    horizons = [it for it in found.lines if it.horizon != "all"]
    assert [it.horizon for it in horizons] == [1, 2] and sum(it.n for it in horizons) == 40
    swapped = paired(B, A, 0)
    assert swapped.lines[0].difference == pytest.approx(-macro.difference) and swapped.won == [
        replace(pair, a=pair.b, b=pair.a) for pair in found.lost
    ]


def test_what_was_not_judged_is_in_no_pair_and_counted() -> None:
    gone = [replace(it, success=None, status=Status.ABORTED) if it.task == "search-0" else it for it in A]
    found = paired(gone, B, 0)
    assert found.unjudged == (1, 0) and len(found.pairs) == 40
    assert next(it for it in found.lines if it.domain == "search").n == 19
    with pytest.raises(ValueError, match="of 40 tasks none was judged on both"):
        paired([replace(it, success=None) for it in A], B, 0)


def test_other_tasks_are_refused_with_the_numbers() -> None:
    with pytest.raises(ValueError, match=r"40 in A, 20 in B, 20 in both; 20 in A alone \(science/science-0, .*, …\)"):
        paired(A, [it for it in B if it.domain == "search"], 0)
    with pytest.raises(ValueError, match=r"not the same tasks.*0 in both; .*--domain|not the same tasks.*0 in both"):
        paired(A, [replace(it, task=f"x{it.task}") for it in B], 0)
    with pytest.raises(ValueError, match="in B more than once"):
        paired(A, [*B, B[0]], 0)


def test_the_page_leads_to_both_episodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(stage_dir("evaluate", "student"), A)
    other = save(tmp_path / "other", B, episodes=False)
    out = tmp_path / "out"
    assert main(["compare", "student", str(other), "--out", str(out)]) == 0
    page = (out / "index.html").read_text()
    links = re.findall(r'<a href="(tasks/\d+\.html)">([^<]+)</a>', page)
    assert len(links) == 30 and all((out / link).is_file() for link, _ in links)
    assert "http" not in re.sub(r'xmlns(:\w+)?="[^"]*"', "", page), "opens offline"
    assert page.count("<svg") == 2 and "why &lt;b&gt;" in page
    link, task = links[0]
    shown = (out / link).read_text()
    assert f"<h1>{task}</h1>" in shown and "question &lt;i&gt;" in shown and "a says" in shown
    assert "Its episodes were not kept." in shown
    numbers = json.loads((out / "compare.json").read_text())
    assert (len(numbers["won"]), len(numbers["lost"])) == (20, 10)
    assert numbers["won"][0]["page"] == links[0][0] and numbers["a"]["model"] == "a"


def test_one_domain_of_a_larger_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """A teacher was tried on its own domain alone."""
    monkeypatch.chdir(tmp_path)
    save(stage_dir("evaluate", "student"), A)
    save(stage_dir("evaluate", "teacher@search"), [it for it in B if it.domain == "search"])
    assert main(["compare", "teacher@search", "student"]) == 2
    assert "--domain takes one of search" in capsys.readouterr().err
    assert main(["compare", "teacher@search", "student", "--domain", "search"]) == 0
    assert (tmp_path / "reports/compare/teacher@search-vs-student-search/index.html").is_file()
    assert main(["compare", "teacher@search", "student", "--domain", "chess"]) == 2
    assert "no records of domain 'chess'" in capsys.readouterr().err


def test_sides_that_are_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"artifacts/evaluate/student.*RUN#MODEL"):
        comparing.read_side("student")
    mixed = save(tmp_path / "mixed", [*A, *(replace(it, task=f"x{it.task}") for it in B)])
    with pytest.raises(ValueError, match=r"more than one model or seed.*'a', 0.*'b', 0"):
        comparing.read_side(str(mixed))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "records.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"broken/records\.parquet"):
        comparing.read_side("broken")


def test_a_reproduction_keeps_its_records_on_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    save(stage_dir("evaluate", "student"), A)
    save(stage_dir("evaluate", "teacher@search"), B)
    write_json(Path("reports/results.json"), {"rows": []})
    Path("params.yaml").write_text("seed: 0\n")
    store = Store(Path())
    run = store._create("reproduce", {}, 0)
    store.publish(run)
    assert comparing.read_side(f"{run}#student").records == A
    assert comparing.read_side(f"{run}#teacher@search").model == "b"
    with pytest.raises(ValueError, match=r"no records of 'sft'; it has student, teacher@search"):
        comparing.read_side(f"{run}#sft")
    with pytest.raises(ValueError, match=f"MLflow run {'0' * 32}"):
        comparing.read_side(f"{'0' * 32}#student")
