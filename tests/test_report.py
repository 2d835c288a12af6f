"""The report on artifacts of the real shape: what it claims, that it opens offline, that it repeats to the byte."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
from settings import laptop, laptop_text

from openhorizon.agent.render import Renderer
from openhorizon.agent.trajectory import Status, Trajectory, Turn, write_trajectories
from openhorizon.artifacts import checkpoint_dir, stage_dir, write_json, write_text
from openhorizon.bench.base import record_of, write_records
from openhorizon.bench.heldout import Comparison, Row
from openhorizon.config import Config
from openhorizon.domains import DOMAINS
from openhorizon.domains.base import Task, Verdict
from openhorizon.report.claims import Claim, write_claims
from openhorizon.report.figures import Figure, Line, Panel, draw, running_mean
from openhorizon.report.page import page, samples
from openhorizon.report.results import comparisons, models, results, stages, table, verdicts
from openhorizon.stages import report

ROOT = Path(__file__).parents[1]
SKILL = {"base": 0.25, "sft": 0.6, "teacher": 0.9, "student": 0.85, "baseline": 0.5}
TASKS = 64
EVIL = "<script>alert('x')</script> & \"quotes\""


class Log:
    """What a stage says about itself."""

    def __init__(self) -> None:
        self.said: list[tuple[int, int]] = []

    def progress(self, done: int, total: int, note: str = "") -> None:
        self.said.append((done, total))


def episode(domain: str, i: int, model: str) -> Trajectory:
    """A held-out episode as rollouts leave it: longer tasks are harder."""
    horizon = (1, 2, 4, 6, 8, 12, 16, 32)[i % 8]
    task = Task(
        domain, f"{domain}-{i}", "heldout", f"Find the capital of the country {EVIL}", horizon, i, {}, (), ("answer",),
        "Reference", (("a", str(i)),),
    )  # fmt: skip
    chance = SKILL[model.partition("@")[0]] ** (1 + horizon / 12)
    solved = random.Random(f"{domain} {i} {model}").random() < chance
    calls = horizon if solved else min(horizon, 2)
    turns = [Turn("prompt", task.prompt, (1, 2, 3))]
    for step in range(calls):
        lost = not solved and step > 0
        call = f'<tool_call>{{"name": "read_page", "arguments": {{"id": {step}}}}}</tool_call>'
        turns.append(Turn("assistant", call, (4, 5)))
        turns.append(Turn("tool", "error: no page" if lost else f"page {step}", (6,), error=lost))
    turns.append(Turn("assistant", f"Answer: {EVIL}", (7, 8)))
    status = Status.SOLVED if solved else (Status.TRUNCATED if i % 5 == 0 else Status.FAILED)
    verdict = Verdict(solved, float(solved), "right" if solved else "wrong answer")
    return Trajectory(task, tuple(turns), "said", status, verdict, "hash", i)


def curve(names: dict[str, tuple[float, float]], steps: int) -> list[dict[str, float]]:
    """Points that go from the first value to the second, with noise."""
    draw_from = random.Random(0)
    return [
        {"step": step}
        | {name: a + (b - a) * step / steps + draw_from.gauss(0, 0.02) * max(a, b) for name, (a, b) in names.items()}
        for step in range(steps)
    ]


def write_curves(folder: Path, points: list[dict[str, float]]) -> None:
    write_text(folder / "curves.jsonl", "".join(json.dumps(point) + "\n" for point in points))


def generated(name: str) -> dict[str, Any]:
    """What stage generate says of a domain with two worlds; in the second nothing was accepted."""
    counts = {str(h): 8 for h in (1, 2, 4, 8, 16)}
    acceptance = {
        "heldout": {"accepted": TASKS, "valid": 500, "duplicate": 0},
        "demonstrations": {"no proposal": 30, "accepted": 40, "duplicate": 3, "valid": 7, "no shortcut": 1},
        "prompts": {"accepted": 80, "duplicate": 5, "valid": 0, "no shortcut": 2, "contaminated": 9, "shared pair": 0},
    }
    none = {part: dict.fromkeys(("accepted", "valid"), 0) for part in acceptance}
    described = {
        "accepted": 40,
        "refused": 18,
        "rules": {"accepted": 40, "valid": 7},
        "horizons": counts,
        "tried": counts,
        "words": {
            "mean": 150.5, "p5": 40, "p50": 120, "p95": 420, "min": 30, "max": 610,
            "bins": [[30, 229, 30], [230, 429, 0], [430, 629, 10]],
        },
        "tool_calls": {"mean": 6.25, "p5": 1, "p50": 5, "p95": 17, "min": 1, "max": 22, "bins": [[1, 22, 40]]},
        "abilities": {"tool calling": 222, "constraint tracking": 31},
        "covered": {"tool calling": 40, "constraint tracking": 10},
    }  # fmt: skip
    empty = described | {
        "accepted": 0,
        "words": {},
        "tool_calls": {},
        "horizons": {},
        "abilities": dict.fromkeys(described["abilities"], 0),
        "covered": dict.fromkeys(described["covered"], 0),
    }
    return {
        "counts": {"demonstrations": 40, "prompts": 80, "heldout": TASKS, "rejected": 11},
        "acceptance": acceptance,
        "by_horizon": {"demonstrations": counts, "prompts": counts | {"3": 4}, "heldout": counts | {"32": 8}},
        "by_world": {name: {"acceptance": acceptance}, f"{name}/deep": {"acceptance": none}},
        "duplicates_removed": 8,
        "decontamination": {"shared_pairs": 0, "shared_seeds": 0, "shared_prompts": 0, "heldout_pairs": 300},
        "description": {"all": described, "worlds": {name: described, f"{name}/deep": empty}},
        "contamination": {
            "checked": 1_500,
            "ngram": 13,
            "sources": {"held-out tasks": TASKS, "IFBench": 294, "SciCode": "not installed, not checked"},
            "dropped": {"held-out tasks": {"entity": 3}, "IFBench": {"n-gram": 6, "prompt": 1}, "SciCode": {}},
            "examples": [{"source": "IFBench", "kind": "n-gram", "what": f"t1: 13 words of text 2: {EVIL}"}],
        },
        "graph": {
            "nodes": {"corpus": 10, "action": 1_234, "observation": 1_200, "verifier": 2},
            "edges": {"support": 900, "production": 1_200},
            "records": 1_234,
        },
    }


def write_artifacts(config: Config) -> None:
    """Everything that the stages before the report leave behind, below the working directory."""
    for name in config.domains:
        write_json(stage_dir("generate", name) / "metrics.json", generated(name))
        grpo = curve({"reward": (0.6, 0.8), "kl": (0.0, 0.01), "entropy": (0.4, 0.2), "dead_groups": (0.3, 0.6)}, 20)
        fitted = curve({"sft_loss": (0.4, 0.05), "sft_lr": (0.003, 0)}, 244)
        write_curves(stage_dir("teach", name), [*fitted, *grpo])
    write_curves(stage_dir("base"), curve({"loss": (6.0, 0.6), "lr": (0.003, 0.0)}, 183))
    write_curves(stage_dir("sft"), curve({"loss": (0.7, 0.2), "lr": (0.003, 0.0)}, 366))
    names = {"loss": (0.08, 0.01)}
    for i, name in enumerate(config.domains):
        names |= {f"loss@{name}": (0.1, 0.02), f"rho@{name}": (0.9 - i / 20, 0.98), f"success@{name}": (0.5, 0.8)}
        names |= {f"rho@{name}/turn{turn}": (0.95 - turn / 20, 0.99) for turn in range(1, 5)}
    write_curves(stage_dir("distill"), curve(names, 80))
    for model in models(config):
        own = model.partition("@")[2] if model.startswith("teacher@") else ""
        if model.startswith("baseline@"):
            write_curves(checkpoint_dir(model), curve({"loss": (0.5, 0.1), "reward": (0.2, 0.6)}, 12))
        found = [episode(name, i, model) for name in ([own] if own else config.domains) for i in range(TASKS)]
        folder = stage_dir("evaluate", model)
        folder.mkdir(parents=True)
        write_records(folder / "records.parquet", [record_of(t, model, config.seed) for t in found])
        write_trajectories(folder / "trajectories.parquet", found)
    for i, name in enumerate(stages(config)):
        if not name.startswith("generate"):
            taken = {"stage": name, "seconds": 10.5 * i, "tokens": 1000 * i, "peak_rss_mb": 700.0}
            write_json(Path("artifacts/timings") / f"{name}.json", taken)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Artifacts, written once."""
    folder = tmp_path_factory.mktemp("run")
    before = Path.cwd()
    os.chdir(folder)
    try:
        write_artifacts(laptop())
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def text(made: Path) -> str:
    """The page, drawn once."""
    before = Path.cwd()
    os.chdir(made)
    try:
        return page(report.collect(laptop()))
    finally:
        os.chdir(before)


@pytest.fixture
def config(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The config, with a copy of the artifacts in the working directory."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return laptop()


class Reader(HTMLParser):
    """Collects ids and references, and checks that every element is closed where it must be."""

    VOID = ("meta", "link", "img", "br", "hr", "input", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.feed(text)
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in ("src", "href", "xlink:href", "srcset", "action", "data"):
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag, f"</{tag}> closes something else"


def test_stage_writes_what_the_contract_names(config: Config) -> None:
    log: Any = Log()
    report.run(config, None, log)
    assert log.said[-1] == (3, 3)
    found = json.loads(Path("reports/results.json").read_text())
    assert found["profile"] == "laptop"
    assert {frozenset(row) for row in found["rows"]} == {
        frozenset({"model", "domain", "horizon", "n", "success", "ci95", "seed"})
    }
    assert list(dict.fromkeys(row["model"] for row in found["rows"])) == models(config)
    overall = {(row["model"], row["domain"]): row for row in found["rows"] if row["horizon"] == "all"}
    assert set(overall) == {
        *((model, name) for model in ("base", "sft", "student") for name in ("macro", *config.domains)),
        *((f"teacher@{name}", name) for name in config.domains),
    }
    for name in config.domains:
        solved = sum(episode(name, i, "student").status is Status.SOLVED for i in range(TASKS))
        assert overall["student", name]["success"] == pytest.approx(solved / TASKS)
    assert found["decontamination"]["search"]["shared_pairs"] == 0
    by_stage = {stage.pop("stage"): stage for stage in found["stages"]}
    assert by_stage["generate@search"] == {"seconds": None, "tokens": None, "peak_rss_mb": None}
    assert by_stage["sft"] == {"seconds": 42.0, "tokens": 4000, "peak_rss_mb": 700.0}
    pairs = {(c["a"], c["b"], c["domain"]): c for c in found["comparisons"]}
    assert pairs["student", "sft", "macro"]["difference"] > 0.1
    assert pairs["teachers", "sft", "macro"]["n"] == TASKS * len(config.domains)
    assert ("teacher@search", "sft", "search") in pairs


def test_baselines_that_were_run_stand_beside_the_student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain = laptop()
    config = replace(plain, baselines=replace(plain.baselines, run=("seqkd", "mixed_grpo")))
    write_artifacts(config)
    run = report.collect(config)
    found, text = results(run), page(run)
    names = {"baseline@seqkd", "baseline@mixed_grpo"}
    assert list(dict.fromkeys(row["model"] for row in found["rows"]))[-2:] == ["baseline@seqkd", "baseline@mixed_grpo"]
    assert names <= set(found["episodes"])
    assert {"baseline@seqkd", "evaluate@baseline@seqkd"} <= {stage["stage"] for stage in found["stages"]}
    pairs = {(c["a"], c["b"], c["domain"]): c for c in found["comparisons"]}
    for name in names:
        own = [r for t in (run.records["student"], run.records[name]) for r in [sum(bool(x.success) for x in t)]]
        assert pairs["student", name, "macro"]["n"] == TASKS * len(config.domains)
        difference = (own[0] - own[1]) / (TASKS * len(config.domains))
        assert pairs["student", name, "macro"]["difference"] == pytest.approx(difference, abs=1e-5)
        assert (name, "sft", "search") in pairs
        said = [v.text for v in verdicts(table(run), comparisons(run), config.domains, config.baselines.run)]
        assert any("The distilled student beats " + name in words for words in said)
    assert "student − baseline@seqkd" in text and '<tr class="c-baseline">' in text
    assert "baseline@mixed grpo" in text, "its loss has a panel"
    without = page(report.collect(plain))
    assert "baseline@" not in without


def test_page_is_one_file_that_needs_no_network(text: str) -> None:
    reader = Reader(text)
    for link in reader.links:
        assert link.startswith(("#", "data:text/csv")), link
        if link.startswith("#"):
            assert link[1:] in reader.ids
    assert len(set(reader.ids)) == len(reader.ids)
    assert "benchmarks" not in reader.ids  # none was run
    assert not reader.seen & {"script", "link", "iframe", "img", "object", "embed"}
    style = text[text.index("<style>") : text.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style
    assert not re.findall(r"https?://(?!www\.w3\.org/)", text)
    assert text.count("<svg") > 20
    assert text.count("<caption>") == text.count("<table")


def test_page_escapes_what_models_write(text: str) -> None:
    assert "<script" not in text
    assert "&lt;script&gt;alert(" in text


def test_figures_carry_their_data(config: Config, text: str) -> None:
    found = dict(re.findall(r'download="([^"]+)" href="data:text/csv;charset=utf-8,([^"]+)"', text))
    drawn = ("horizon", "losses", "rho", "rho-turns", "rollouts", "grpo", "data", "lengths")
    assert set(found) == {f"{name}.csv" for name in drawn}
    lines = unquote(found["rho.csv"]).splitlines()
    assert lines[0] == "panel,series,x,y,low,high"
    assert len(lines) == 1 + 80 * len(config.domains)
    assert "turn 4 and later" in unquote(found["rho-turns.csv"])


def rows_of(text: str, region: str) -> list[list[str]]:
    """The cells of the table in a region of the page, as text."""
    table = text[text.index(f'aria-label="{region}"') :]
    table = table[table.index("<thead>") : table.index("</table>")]
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    return [[re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row)] for row in rows]


def test_data_section_shows_each_world(config: Config, text: str) -> None:
    accepted = {row[0]: row for row in rows_of(text, "Acceptance")}
    assert accepted["World"] == [
        "World", "share accepted", "accepted", "duplicate", "no proposal", "contaminated",
        "verifiable", "valid", "process-informative", "evidence-covering", "no shortcut",
    ]  # fmt: skip
    assert accepted["search"] == ["search", "82%", "120", "8", "30", "9", "0", "7", "0", "0", "3"], "120 of 147"
    assert accepted["search/deep"][1:3] == ["—", "0"]
    lengths = {row[0]: row for row in rows_of(text, "Lengths")}
    assert lengths["search"] == ["search", "40", "6.2", "1–5–17", "22", "words", "150.5", "40–120–420", "610"]
    assert lengths["search/deep"][5:7] == ["words", "—"]
    abilities = {row[0]: row for row in rows_of(text, "Abilities")}
    assert abilities["search"] == ["search", "25% 31", "100% 222"]
    assert abilities["search/deep"] == ["search/deep", "—", "—"]
    sizes = {row[0]: row for row in rows_of(text, "Size")}
    assert sizes["search"] == ["search", "40", "11", "80", str(TASKS), "8", "2,446", "2,100", "1,234"]
    held = {row[0]: row for row in rows_of(text, "Contamination")}
    n = len(config.domains)
    assert held["IFBench"] == ["IFBench", "294", *["6 n-gram, 1 prompt"] * n]
    assert held["SciCode"] == ["SciCode", "not installed, not checked", *["—"] * n]
    assert held["held-out tasks"][2:] == ["3 entity"] * n
    assert "search 1,500, tool calling 1,500" in text
    assert "IFBench, n-gram: t1: 13 words of text 2: &lt;script&gt;" in text
    drawn = dict(re.findall(r'download="([^"]+)" href="data:text/csv;charset=utf-8,([^"]+)"', text))
    lines = unquote(drawn["lengths.csv"]).splitlines()
    assert lines[1:5] == [
        "search,short text,30,0.75,,", "search,short text,230,0.0,,", "search,short text,430,0.25,,",
        "search,short text,630,0.0,,",
    ]  # fmt: skip
    assert "tool calling,prompts,3,4.0,," in unquote(drawn["data.csv"])


def test_claims_of_studies_have_a_section_with_their_figure(config: Config, text: str) -> None:
    assert 'id="studies"' not in text, "no study was run"
    said = [
        Claim(
            f"s/{name}", f"{name} {EVIL}", "1", holds, 0.1, (0.05, 0.2), 0.01, 3, 60, None, None, "all else equal",
            f"reports/studies/{name}.svg", "What to take away.", "some_study", "laptop", "c",
        )
        for name, holds in (("first", True), ("second", False), ("third", None))
    ]  # fmt: skip
    panel = Panel("t", "x", (Line("arm", "blue", [1], [0.5], [0.4], [0.6]),), "points", True)
    write_claims(Path(), said, {"first": Figure("first", "The first question.", (panel,))})
    made = page(report.collect(config))
    Reader(made)
    section = made[made.index('<section id="studies">') : made.index('<section id="reproduce">')]
    assert section.count("<svg") == 1 and "some study: The first question." in section
    words = re.findall(r"<li><b[^>]*>([^<]+)</b>", section)
    assert words == ["Holds", "Does not hold", "Cannot tell"]
    assert "What to take away." in section and "all else equal" in section and "<script" not in section


def test_lengths_are_in_tokens_where_the_base_has_a_tokenizer(config: Config, tokenizer: Any) -> None:
    assert report.collect(config).tokens == {}
    tokenizer.save_pretrained(checkpoint_dir("base"))
    told = [
        replace(episode(name, i, "student"), turns=(Turn("prompt", "count from 7"),))
        for name in config.domains
        for i in range(3)
    ]
    for name in config.domains:
        mine = [t for t in told if t.task.domain == name]
        write_trajectories(stage_dir("generate", name) / "demonstrations.parquet", mine)
    run = report.collect(config)
    for name in config.domains:
        domain = DOMAINS[name]
        expected = len(Renderer(tokenizer).prompt(domain.system, domain.tools, "count from 7"))
        assert run.tokens[name][name]["bins"] == [[expected, expected, 3]]
    row = next(row for row in rows_of(page(run), "Lengths") if row[0] == "search")
    assert row[5] == "tokens"


def test_same_artifacts_give_the_same_bytes_in_another_process(made: Path, config: Config, text: str) -> None:
    (made.parent / "params.yaml").write_text(laptop_text())
    here = json.dumps(results(replace(report.collect(config), commit=""))) + text
    code = (
        "import json, sys; from pathlib import Path\n"
        "from openhorizon.config import load; from openhorizon.stages import report\n"
        "from openhorizon.report.page import page; from openhorizon.report.results import results\n"
        f"run = report.collect(load(Path({str(made.parent / 'params.yaml')!r})))\n"
        "sys.stdout.write(json.dumps(results(run)) + page(run))\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": "123", "PYTHONPATH": os.pathsep.join(sys.path)}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout == here


def test_page_says_what_was_not_run_here_or_not_judged(config: Config, text: str) -> None:
    run = report.collect(config)
    assert text.count("restored from the cache, not run here") == len(config.domains)
    assert "aborted: the environment failed" not in text
    aborted = replace(run.records["student"][0], status=Status.ABORTED, success=None)
    broken = replace(run, records={**run.records, "student": [aborted, *run.records["student"][1:]]})
    assert "1 episode was aborted: the environment failed" in page(broken)
    assert results(broken)["episodes"]["student"][aborted.domain]["ABORTED"] == 1


def test_page_draws_what_is_there_and_no_more(config: Config) -> None:
    run = report.collect(config)
    bare = replace(run, curves={name: [] for name in run.curves}, timings={}, commit="")
    text = page(bare)
    Reader(text)
    assert text.count("No curves were recorded.") == 3
    assert "git checkout" not in text
    odd = [{"step": 0, "loss": float("nan")}, {"step": 1, "loss": 2.0}, {"step": 2, "other": 1.0}]
    Reader(page(replace(run, curves={**run.curves, "base": odd})))


def test_page_holds_for_one_domain(config: Config) -> None:
    run = report.collect(config)
    one = replace(run, config=dataclasses.replace(config, domains=("search",)))
    text = page(one)
    Reader(text)
    assert "macro success" not in text
    said = r"The distilled student is not clearly better than SFT: .* in success on search, intervals overlap"
    assert re.search(said, text)


def test_samples_are_drawn_by_the_seed(config: Config) -> None:
    run = report.collect(config)
    chosen = samples(run, "search")
    assert [sample.label for sample in chosen] == ["solved", "solved", "not solved", "not solved"]
    assert all((s.trajectory.status is Status.SOLVED) == (s.label == "solved") for s in chosen)
    assert chosen == samples(run, "search")
    other = samples(replace(run, config=dataclasses.replace(config, seed=1)), "search")
    assert [s.trajectory.task.id for s in other] != [s.trajectory.task.id for s in chosen]


def test_missing_and_damaged_artifacts_are_named(config: Config) -> None:
    curves = checkpoint_dir("sft") / "curves.jsonl"
    curves.write_text('{"step": 0, "loss": 1.0}\n{"step": 1, "lo')
    with pytest.raises(ValueError, match=re.escape(f"{curves}:2")):
        report.collect(config)
    curves.unlink()
    assert report.collect(config).curves["sft"] == []
    records = stage_dir("evaluate", "student") / "records.parquet"
    records.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(records))):
        report.run(config, None, Log())  # type: ignore[arg-type]
    assert not Path("reports").exists()


def claim(student: tuple[float, float, float], difference: float) -> str:
    sft = Row("sft", "a", "all", 100, 0.5, (0.4, 0.6), 0)
    over = Row("student", "a", "all", 100, student[1], (student[0], student[2]), 0)
    pair = Comparison("student", "sft", "a", 100, difference, (difference - 0.1, difference + 0.1), 0.02)
    verdict = next(v for v in verdicts([sft, over], [pair], ["a"]) if v.text.startswith("The distilled student"))
    return f"{verdict.holds} {verdict.text}"


def test_verdicts_follow_the_numbers() -> None:
    won = claim((0.61, 0.7, 0.8), 0.2)
    assert won.startswith("True The distilled student beats SFT: student 0.700 [0.610, 0.800] against SFT 0.500 [0.400")
    assert "intervals do not overlap; paired difference +0.200 [+0.100, +0.300], p = 0.020" in won
    assert claim((0.55, 0.6, 0.7), 0.1).startswith("False The distilled student is not clearly better than SFT")
    lost = claim((0.1, 0.2, 0.3), -0.3)
    assert lost.startswith("False The distilled student is worse than SFT")
    assert "intervals do not overlap" in lost
    missing = verdicts([], [], ["a"])
    assert {verdict.holds for verdict in missing} == {None}


def test_drawing_is_themed_labelled_and_repeatable() -> None:
    line = Line("sft", "vermillion", [1, 2, 32], [0.9, 0.5, 0.1], [0.8, 0.4, 0.0], [1.0, 0.6, 0.2])
    panel = Panel("a < b & c", "horizon", (line,), "points", True, 2)
    svg = draw(panel, "x")
    assert svg == draw(panel, "x")
    assert svg.startswith("<svg")
    assert 'aria-label="a &lt; b &amp; c: sft by horizon"' in svg
    assert "a &lt; b &amp; c</text>" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)
    assert {"var(--vermillion)", "var(--shade)", "var(--muted)"} <= set(re.findall(r"var\(--\w+\)", svg))
    ids = {salt: set(re.findall(r' id="([^"]+)"', draw(panel, salt))) for salt in ("x", "y")}
    assert ids["x"]
    assert not ids["x"] & ids["y"]
    assert "var(--shade)" not in draw(replace(panel, shade_from=32), "x")
    assert Figure("f", "c", (panel,)).table.splitlines()[1] == "a < b & c,sft,1,0.9,0.8,1.0"


def test_a_histogram_names_its_own_lines() -> None:
    lines = (
        Line("short", "blue", [10, 20, 30], [0.25, 0.75, 0.0]),
        Line("long", "vermillion", [1_000, 5_000], [1.0, 0.0]),
    )
    figure = Figure("f", "c", (Panel("a", "words", lines, "steps"), Panel("b", "words", lines[:1], "steps")))
    assert figure.legend == []
    two, one = (draw(panel, "x") for panel in figure.panels)
    assert ">short</text>" in two and ">long</text>" in two
    assert ">short</text>" not in one, "one line needs no name"
    assert ">1,000</text>" in two, "lengths that far apart stand on a logarithmic axis"


def test_running_mean_agrees_with_a_slow_one() -> None:
    values = [random.Random(i).random() for i in range(50)]
    slow = [sum(values[max(i - 6, 0) : i + 1]) / len(values[max(i - 6, 0) : i + 1]) for i in range(50)]
    assert running_mean(values, 7) == pytest.approx(slow)
