"""Public benchmarks in the report: intervals, n, reference rows, the authors' figures; broken ones without a score."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from settings import laptop
from test_public_bench import COUNT
from test_report import Log, Reader, write_artifacts

from openhorizon import benchmarking
from openhorizon.artifacts import stage_dir
from openhorizon.bench.public import BENCHMARKS
from openhorizon.bench.public.base import Benchmark
from openhorizon.bench.public.tau2 import TAU2_SCRIPTED
from openhorizon.benchmarking import Wanted
from openhorizon.config import Config
from openhorizon.domains.base import Answer
from openhorizon.report.benchmarks import benchmarks
from openhorizon.stages import report


def evaluated(benchmark: Benchmark, monkeypatch: pytest.MonkeyPatch) -> Config:
    """What the stage leaves of a student that does nothing."""
    monkeypatch.setitem(BENCHMARKS, benchmark.name, benchmark)
    config = laptop()
    config = replace(config, benchmarks=replace(config.benchmarks, run=(benchmark.name,), models=("student",)))
    folder = stage_dir("benchmark", benchmark.name) / "student"
    benchmarking.bench(
        config, Wanted(benchmark.name, "floor", None, 0.7), folder, Path("artifacts/timings/benchmark/x.json")
    )
    path = folder / "metrics.json"
    path.write_text(path.read_text().replace('"model": "floor"', '"model": "student"'))
    return config


def test_a_benchmark_has_its_table_and_its_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = evaluated(replace(COUNT, name="ifbench", title="Counting & more"), monkeypatch)
    write_artifacts(config)
    report.run(config, None, Log())  # type: ignore[arg-type]
    page, found = (Path("reports") / "index.html").read_text(), json.loads(Path("reports/results.json").read_text())
    assert "benchmarks" in Reader(page).ids and "Counting &amp; more" in page
    assert "Reported by the authors of Agents-A1, not measured here" in page and "Agents-A1 80.6%" in page
    assert "its own solution" in page and "an empty policy" in page and "Broken" not in page
    (mine,) = found["benchmarks"]
    assert mine["model"] == "student" and mine["rates"][0]["n"] == 6 and mine["rates"][0]["value"] == 0
    assert mine["references"]["gold"][0]["value"] == 1 and mine["reported"]["figures"]["SFT"] == 68.7
    assert "benchmark@ifbench" in {stage["stage"] for stage in found["stages"]}


def test_a_broken_benchmark_shows_no_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = evaluated(replace(COUNT, gold=lambda task: (Answer("Answer: 0"),)), monkeypatch)
    (table,) = benchmarks(report.benchmarks(config))
    assert table.rows[0].cells == [None] and table.notes[0].startswith("Broken, no score: its own solution fails on 6")


def test_a_scripted_users_table_says_so_and_has_no_figure_of_the_authors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The authors report τ²'s, played with a language model as the user."""
    monkeypatch.chdir(tmp_path)
    named = {name: getattr(TAU2_SCRIPTED, name) for name in ("name", "title", "protocol")}
    (table,) = benchmarks(report.benchmarks(evaluated(replace(COUNT, **named), monkeypatch)))
    assert table.reported is None and "scripted user (not τ²)" in table.about["title"]
    assert table.about["protocol"].startswith("scripted user, not τ²'s official protocol")
