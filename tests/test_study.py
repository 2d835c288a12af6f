"""Studies: what a file may say, which stages cells share, and the statistics against slow references."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import CountDomain

from openhorizon import pipeline, profiles
from openhorizon.agent.render import render_trajectory
from openhorizon.agent.trajectory import Status, TaskWriter, Trajectory, Turn
from openhorizon.bench.base import Record
from openhorizon.bench.stats import holm, nested_mean
from openhorizon.config import PARAMS_FILE, ModelConfig, ScratchConfig, load
from openhorizon.domains.base import Verdict
from openhorizon.model.load import Checkpoint, new_model
from openhorizon.model.upcycle import parameter_table
from openhorizon.report.claims import Claim, read_claims, read_figures, write_claims
from openhorizon.report.figures import Figure, Line, Panel
from openhorizon.seeds import rng
from openhorizon.study import plan, workspace
from openhorizon.study.results import Evidence, Result, analysis_of, contrast, difference, success
from openhorizon.train.padding import padded

ROOT = Path(__file__).resolve().parents[1]
STUDIES = plan.known(ROOT)


@pytest.fixture(scope="module")
def graph() -> pipeline.Graph:
    return pipeline.graph(ROOT)


@pytest.fixture(scope="module")
def params() -> dict[str, tuple[str, ...]]:
    return pipeline.read_params(ROOT)


# ---- what a study's file says


@pytest.mark.parametrize("name", STUDIES)
def test_every_study_of_the_project_is_valid_in_every_size(name: str) -> None:
    study, words = plan.read(name, ROOT), yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"].keys()
    assert plan.SHORT in study.sizes, "the tests run a short form"
    analysis_of(name, ROOT)
    for size in study.sizes:
        cells = plan.cells(study, size, 2, ROOT)
        assert len({cell.folder for cell in cells}) == len(cells)
        for cell in cells:
            values = yaml.safe_load(cell.params)
            assert values["seed"] == cell.seed
            assert all(machine["threads"] <= 1 or machine["stages"] == 1 for machine in values["machines"].values())
            assert {need.partition("@")[0] for need in cell.needs} <= words


def write(root: Path, text: str) -> None:
    (root / "studies" / "one").mkdir(parents=True, exist_ok=True)
    (root / "studies" / "one" / "study.yaml").write_text(text)
    if not (root / "profiles").exists():
        (root / "profiles").symlink_to(ROOT / "profiles")


GOOD = """
question: Which?
paper_section: "1"
needs: [evaluate@sft]
arms: {a: {changes: {}}, b: {changes: {sft: {tokens: 7}}, needs: [evaluate@base]}}
sizes: {short: {profile: smoke, seeds: 2, changes: {sft: {tokens: 5}}, arms: {a: {}, b: {base: {tokens: 3}}}}}
"""


def test_an_arm_is_over_its_size_and_its_size_over_the_profile(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    cells = plan.cells(plan.read("one", tmp_path), "short", None, tmp_path)
    assert [cell.name for cell in cells] == ["a-0", "b-0", "a-1", "b-1"]
    a, b = (yaml.safe_load(cell.params) for cell in cells[:2])
    assert (a["sft"]["tokens"], b["sft"]["tokens"], b["base"]["tokens"]) == (5, 7, 3)
    assert a["base"] == yaml.safe_load(profiles.compose("smoke", ROOT, []))["base"]
    assert cells[1].needs == ("evaluate@base",)
    assert len(plan.cells(plan.read("one", tmp_path), "short", 1, tmp_path)) == 2


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("question: Which?", "", "missing key 'question'"),
        ("seeds: 2,", "", "sizes.short: missing key 'seeds'"),
        ("seeds: 2", "seeds: two", "sizes.short.seeds: expected int, got 'two'"),
        ("seeds: 2", "seed: 2", "sizes.short: unknown key 'seed'"),
        ("a: {changes: {}}", "a: {}", "arms.a: missing key 'changes'"),
        ("arms: {a: {}, b", "arms: {c: {}, b", "sizes.short.arms: unknown arm 'c'; known are a, b"),
        ("tokens: 7", "token: 7", "arm b: profiles/base.yaml"),
        ("tokens: 7", "token: 7", "params.yaml:sft: unknown key 'token'"),
        ("profile: smoke", "profile: smoky", "profile 'smoky': unknown"),
    ],
)
def test_a_wrong_study_is_refused_with_its_key(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    write(tmp_path, GOOD.replace(old, new))
    with pytest.raises(ValueError, match="study") as refused:
        plan.cells(plan.read("one", tmp_path), "short", None, tmp_path)
    assert said in str(refused.value)


def test_no_such_study_size_or_seed(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    study = plan.read("one", tmp_path)
    with pytest.raises(ValueError, match="study 'two': unknown; known are one"):
        plan.read("two", tmp_path)
    with pytest.raises(ValueError, match="no size 'h200'; known are short"):
        plan.cells(study, "h200", None, tmp_path)
    with pytest.raises(ValueError, match="0 seeds"):
        plan.cells(study, "short", 0, tmp_path)


def test_horizon_holds_flops_equal() -> None:
    """Each size's tokens times its active parameters is what P_long has, within 1%; sizes are what they are called."""
    study = plan.read("horizon", ROOT)
    for size in ("laptop", "smoke"):
        spent: dict[str, float] = {}
        for cell in plan.cells(study, size, 1, ROOT):
            values = yaml.safe_load(cell.params)
            config = ScratchConfig(**values["model"]["scratch"] | {"attention_layers": (1, 3)})
            table = _counts(config)
            times = {"P": 1, "2P": 2, "4P": 4, "8P": 8, "16P": 16}[cell.arm.partition("_")[0]]
            spent.setdefault(f"total {times}", table["total"])
            assert table["total"] == pytest.approx(times * spent["total 1"], rel=0.07)
            spent[cell.arm] = table["active"] * (values["sft"]["tokens"] + values["base"]["tokens"])
            if not cell.arm.endswith("_flops"):
                long = study.sizes[size].changes
                assert values["sft"]["tokens"] == long["sft"]["tokens"]
        for arm in ("2P_short_flops", "4P_short_flops", "8P_short_flops"):
            assert spent[arm] == pytest.approx(spent["P_long"], rel=0.01), (size, arm)


def _counts(config: ScratchConfig) -> dict[str, float]:
    from openhorizon.model.tokenizer import train_tokenizer

    letters = "abcdefghij"  # words enough to merge into the whole vocabulary
    texts = [" ".join("".join(letters[int(digit)] for digit in str(i * 7919)) for i in range(3000))]
    tokenizer = train_tokenizer(texts, config.vocab_size, 64)
    assert len(tokenizer) == config.vocab_size
    model = ModelConfig(source="scratch", max_tokens=64, rope=None, scratch=config, upcycle=None)
    table = parameter_table(new_model(model, tokenizer, 0))["all"]
    return {key: float(table[key]) for key in ("total", "active")}


# ---- cells: what they share


def test_cells_share_what_the_same_numbers_decide(
    tmp_path: Path, graph: pipeline.Graph, params: dict[str, tuple[str, ...]]
) -> None:
    study = plan.read("objective", ROOT)
    cells = {cell.arm: cell for cell in plan.cells(study, "laptop", 1, ROOT)}
    graph = {stage: reads for stage, reads in graph.items() if _domain(stage) in ("", "search", "science")}
    graph = {stage: reads & graph.keys() for stage, reads in graph.items()}
    found = {}
    for arm in ("paper", "k4", "sft", "rare_token"):
        stages = plan.stages_of(cells[arm], graph)
        assert all(stages.index(below) < stages.index(stage) for stage in stages for below in graph[stage])
        found[arm] = plan.keys(stages, graph, params, yaml.safe_load(cells[arm].params))
    differ = {stage for stage in found["paper"] if found["paper"][stage] != found["k4"][stage]}
    assert differ == {"distill", "evaluate@student"}
    assert found["sft"].items() - found["paper"].items() == {("evaluate@sft", found["sft"]["evaluate@sft"])}
    assert "report" not in found["paper"] and "evaluate@base" not in found["paper"]
    other = yaml.safe_load(cells["paper"].params) | {"seed": 1}
    moved = plan.keys(plan.stages_of(cells["paper"], graph), graph, params, other)
    assert not set(moved.values()) & set(found["paper"].values())


def _domain(stage: str) -> str:
    target = stage.partition("@")[2]
    return target if target not in ("base", "sft", "student") else ""


def test_a_need_may_be_all_stages_of_a_word(tmp_path: Path) -> None:
    cell = replace(plan.cells(plan.read("recover", ROOT), "laptop", 1, ROOT)[0], folder=tmp_path)
    workspace.make(cell, ROOT)
    graph = pipeline.graph(tmp_path)
    stages = plan.stages_of(cell, graph)
    every = {stage for stage in graph if stage.startswith(("evaluate-teacher@", "evaluate-baseline@"))}
    assert len(every) == 12 and every <= set(stages) and cell.seed == 10
    with pytest.raises(ValueError, match=r"arm seen: dvc\.yaml has no stage 'evaluate@nobody'"):
        plan.stages_of(replace(cell, needs=("evaluate@nobody",)), graph)


def test_a_workspace_is_a_project_of_the_same_stages(tmp_path: Path, graph: pipeline.Graph) -> None:
    cell = replace(plan.cells(plan.read("objective", ROOT), "short", 1, ROOT)[0], folder=tmp_path / "deep" / "cell")
    workspace.make(cell, ROOT)
    first = (cell.folder / PARAMS_FILE).stat().st_mtime_ns
    workspace.make(cell, ROOT)  # again changes nothing
    assert (cell.folder / PARAMS_FILE).stat().st_mtime_ns == first
    mine = pipeline.graph(cell.folder)
    assert plan.settings(cell).domains == ("science", "tool_calling")
    benchmarks = {f"benchmark@{name}" for name in plan.settings(cell).benchmarks.run}
    others = {stage for stage in graph if _domain(stage) in ("", "science", "tool_calling")}
    assert mine.keys() == others | benchmarks
    assert (cell.folder / "src").resolve() == ROOT / "src"
    assert (cell.folder / ".dvc" / "config").read_text().count("cache") == 2


# ---- statistics


def test_nested_mean_is_the_two_level_bootstrap() -> None:
    """Against resampling one by one, as the definition says it."""
    draw = np.random.default_rng(1)
    values = {
        seed: {d: list(draw.choice([-1.0, 0.0, 1.0], size=n, p=[0.1, 0.5, 0.4])) for d, n in (("x", 12), ("y", 30))}
        for seed in range(4)
    }
    point = np.mean([np.mean([np.mean(v) for v in domains.values()]) for domains in values.values()])
    means = []
    for _ in range(4000):
        seeds = draw.choice(list(values), size=len(values))
        means.append(
            np.mean([np.mean([np.mean(draw.choice(v, size=len(v))) for v in values[s].values()]) for s in seeds])
        )
    found = nested_mean(values, 0)
    assert found.value == pytest.approx(point)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])), abs=0.02)
    assert found.p < 0.01 and nested_mean({0: {"x": [1.0, -1.0] * 20}}, 0).p > 0.5
    assert nested_mean(values, 0) == found


@pytest.mark.parametrize("values", [{}, {0: {}}, {0: {"x": []}}])
def test_nested_mean_refuses_nothing_to_average(values: dict[int, dict[str, list[float]]]) -> None:
    with pytest.raises(ValueError, match="at least one task"):
        nested_mean(values, 0)


def test_holm_is_the_closed_test_of_bonferroni() -> None:
    """Adjusted p of a hypothesis: the largest Bonferroni p over all intersections that it is part of."""
    ps = {"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.6, "e": 0.01}
    for name in ps:
        sets = [s for n in range(1, len(ps) + 1) for s in itertools.combinations(ps, n) if name in s]
        closed = max(min(1.0, len(s) * min(ps[it] for it in s)) for s in sets)
        assert holm(ps)[name] == pytest.approx(closed)
    assert holm({}) == {}


def record(task: str, domain: str, horizon: int, solved: bool | None, seed: int = 0) -> Record:
    status = Status.ABORTED if solved is None else Status.SOLVED if solved else Status.FAILED
    return Record(task, domain, horizon, seed, "sft", status, solved, 0.0, "", 1, None if solved else 2, 9, "x")


def result(arm: str, seed: int, solved: dict[str, bool | None], horizon: int = 8) -> Result:
    records = [record(task, task[0], horizon, ok, seed) for task, ok in solved.items()]
    return Result(arm, seed, Path("nowhere"), {"sft": records, "student": records}, 10.0, 60.0, 1.0, 1.0)


def test_arms_are_compared_on_the_tasks_that_both_were_judged_on() -> None:
    a = {0: result("a", 0, {"x1": True, "x2": True, "x3": None, "y1": True}), 1: result("a", 1, {"x1": True})}
    b = {0: result("b", 0, {"x1": False, "x2": True, "x3": True, "y1": False}), 2: result("b", 2, {"x1": True})}
    tested, pairs = difference(a, b, ("sft", "sft"))
    assert pairs == 3 and tested.value == pytest.approx((0.5 + 1.0) / 2)
    mean = success(b, "sft")
    assert mean and mean.value == pytest.approx(((2 / 3 + 0) / 2 + 1.0) / 2)
    with pytest.raises(ValueError, match="no task in common"):
        difference({0: a[0]}, {2: b[2]}, ("sft", "sft"))


def test_a_contrast_is_a_weighted_sum_on_the_tasks_of_all() -> None:
    """Each teacher stands for its own domain; student - SFT - 0.8 (teachers - SFT), by hand."""
    told = {"sft": "x10 x20 y10", "student": "x11 x21 y10", "teacher@x": "x11 x21 x31", "teacher@y": "y11"}
    records = {model: [record(t[:2], t[0], 8, t[2] == "1") for t in said.split()] for model, said in told.items()}
    results = {0: Result("a", 0, Path("nowhere"), records, None, None, None, 1.0)}
    tested, pairs = contrast(results, {"student": 1.0, "sft": -0.2, "teacher": -0.8})
    assert pairs == 3 and tested.value == pytest.approx(((1 - 0.8 + 1 - 0.8) / 2 + (0 - 0.8)) / 2)
    with pytest.raises(ValueError, match="all of base"):
        contrast({0: replace(results[0], records={"base": []})}, {"base": 1.0})


# ---- controls of the horizon study


def episode(turns: int) -> Trajectory:
    task = CountDomain().propose(rng(0, "task"), "train", turns, 3)
    assert task
    said = [Turn("prompt", task.prompt)]
    for i in range(turns):
        call = f'<tool_call>{{"name": "step", "arguments": {{"from": {i}}}}}</tool_call>'
        said += [Turn("assistant", call), Turn("tool", f"now {i + 1}")]
    said.append(Turn("assistant", "Answer: 31"))
    return Trajectory(task, tuple(said), "31", Status.SOLVED, Verdict(True, 1.0, "right", {}), "expert", 0)


def test_padding_adds_only_context_that_was_there(tiny: Callable[..., Checkpoint]) -> None:
    renderer = tiny().renderer
    short = render_trajectory(renderer, {"count": CountDomain()}, episode(2))
    long = padded(renderer, short, 3, 10_000, 0)
    trained = [[i for i, own in zip(t.ids, t.loss_mask, strict=True) if own] for t in (short, long)]
    assert trained[0] == trained[1], "what carries loss is the same"
    assert [t for t in long.turns if t in short.turns and t.role != "tool"] == [
        t for t in short.turns if t.role != "tool"
    ]
    added = [turn for turn in long.turns if turn not in short.turns]
    assert len(long.turns) == len(short.turns) + 2 * 3 and added
    for turn in added:  # the ids are those of the earlier turns, one behind the other
        pairs = [(a.ids + b.ids) for a, b in itertools.pairwise(short.turns) if b.role == "tool"]
        assert turn.ids in pairs
    first = next(i for i, turn in enumerate(long.turns) if turn.role == "tool")
    assert {turn.text.splitlines()[-1] for turn in long.turns[first : first + 4]} == {"now 1"}, "nothing of the future"
    assert padded(renderer, short, 3, len(short.ids), 0) is short, "not past the limit"
    assert padded(renderer, short, 3, 10_000, 0) == long


def test_offsets_of_positions_change_nothing(tiny: Callable[..., Checkpoint]) -> None:
    """Positions are rotary: a control with random offsets would train the same model."""
    model = tiny().model
    ids = torch.randint(10, 200, (1, 24), generator=torch.Generator().manual_seed(0))
    at = torch.arange(24)[None]
    with torch.no_grad():
        plain, moved = (model(input_ids=ids, position_ids=at + offset).logits for offset in (0, 137))
    assert torch.allclose(plain, moved, atol=1e-3 * float(plain.abs().max()))


# ---- claims


def claim(name: str, holds: bool | None = True, figure: str = "reports/studies/f.svg") -> Claim:
    return Claim(
        name, "A beats B.", "1", holds, 0.1, (0.05, 0.2), 0.01, 3, 60, 1e6, None, "equal", figure, "so", "s", "p", "c"
    )


def test_claims_merge_by_id_and_come_back_with_their_figures(tmp_path: Path) -> None:
    drawn = Figure("f", "caption", (Panel("t", "x", (Line("a", "blue", [1], [0.5], [0.4], [0.6]),), "points", True),))
    write_claims(tmp_path, [claim("b"), claim("a", None)], {"f": drawn})
    write_claims(tmp_path, [claim("b", False)], {})
    found = read_claims(tmp_path)
    assert [(it.id, it.holds) for it in found] == [("a", None), ("b", False)]
    shown = read_figures(tmp_path, found)["reports/studies/f.svg"]
    assert shown.table == drawn.table and shown.legend == drawn.legend
    picture = (tmp_path / "reports/studies/f.svg").read_text()
    assert picture.startswith("<svg") and "var(--" not in picture
    row = json.loads((tmp_path / "reports/claims.json").read_text())[0]
    asked = "id statement paper_section holds effect ci95 seeds tasks tokens flops control figure"
    assert set(asked.split()) <= row.keys()
    (tmp_path / "reports/claims.json").write_text("[{]")
    with pytest.raises(ValueError, match=r"claims\.json: damaged"):
        read_claims(tmp_path)


def evidence(name: str, solved: dict[str, float], folder: Path) -> Evidence:
    """Arms that solve a given share of 200 tasks, over three seeds, at horizons 4 and 16."""
    results = []
    kept = folder / "artifacts" / "generate" / "count"
    kept.mkdir(parents=True)
    with TaskWriter(kept / "heldout.parquet") as tasks:
        for i, horizon in enumerate((4, 16)):
            task = CountDomain().propose(rng(i, "task"), "heldout", horizon, i)
            assert task
            tasks.add(task)
    for arm, share in solved.items():
        for seed in range(3):
            draw = rng(seed, "arms")  # the same tasks are easy for all arms
            outcomes = {f"{d}{i}": draw.random() < share for d in "xy" for i in range(100)}
            records = [record(task, task[0], (4, 16)[i % 2], ok, seed) for i, (task, ok) in enumerate(outcomes.items())]
            results.append(Result(arm, seed, folder, {"sft": records, "student": records}, 1.0, 6.0, 1.0, 1.0))
    return Evidence(plan.read(name, ROOT), "test", "commit", results)


def test_objective_claims_what_its_arms_show(tmp_path: Path) -> None:
    claims, figures = analysis_of("objective", ROOT)(
        evidence("objective", {"paper": 0.6, "sft": 0.4, "shuffled": 0.1, "k4": 0.6, "full": 0.75}, tmp_path)
    )
    found = {claim.id.removeprefix("objective/"): claim for claim in claims}
    assert found.keys() == {"gain/sft", "routing/shuffled", "k/k4", "support_loss/full"}
    assert found["gain/sft"].holds and found["routing/shuffled"].holds
    assert found["k/k4"].holds is None and found["support_loss/full"].holds is False
    assert found["gain/sft"].seeds == 3 and found["gain/sft"].tasks == 600
    assert {claim.figure for claim in claims} == {f"reports/studies/{name}.svg" for name in figures}


def test_one_seed_decides_nothing(tmp_path: Path) -> None:
    whole = evidence("objective", {"paper": 0.6, "sft": 0.4}, tmp_path)
    alone = replace(whole, results=[result for result in whole.results if result.seed == 0])
    for given, holds in ((whole, True), (alone, None)):
        (claim,), _ = analysis_of("objective", ROOT)(given)
        assert claim.holds is holds and claim.effect > 0.1
        assert ("nothing is known of others" in claim.takeaway) is (holds is None)


def test_horizon_claims_need_twenty_points_and_intervals_apart(tmp_path: Path) -> None:
    arms = {"P_long": 0.6, "P_short": 0.1, "8P_short": 0.5, "8P_short_flops": 0.2, "4P_short": 0.5}
    claims, _ = analysis_of("horizon", ROOT)(evidence("horizon", arms, tmp_path))
    found = {claim.id.removeprefix("horizon/"): claim for claim in claims}
    assert found["8P_short_flops"].holds and found["P_short"].holds
    assert found["4P_short"].holds, "clearly better"
    assert found["8P_short"].holds is False, "better, but not by 20 points"


def test_the_committed_params_have_the_options_off() -> None:
    config = load(ROOT / PARAMS_FILE)
    assert (config.sft.max_horizon, config.sft.padding, config.distill.shares) == (None, 0, None)


def test_recover_says_what_is_recovered_and_what_beats_it(tmp_path: Path) -> None:
    found = evidence("recover", {"private": 0.0}, tmp_path)
    skill = {
        "sft": 0.3,
        "student": 0.62,
        "teacher@x": 0.7,
        "teacher@y": 0.7,
        "baseline@seqkd": 0.8,
        "baseline@average": 0.2,
    }
    results = []
    for seed in range(3):
        records = {}
        for model, share in skill.items():
            draw = rng(seed, "arms")
            tasks = {f"{d}{i}": draw.random() < share for d in "xy" for i in range(150)}
            own = model.partition("@")[2] if model.startswith("teacher@") else ""
            records[model] = [record(t, t[0], 8, ok, seed) for t, ok in tasks.items() if own in ("", t[0])]
        results.append(Result("private", seed, tmp_path, records, None, None, None, 1.0))
        warmed = {"student": records["baseline@seqkd"]}
        results.append(Result("private_warm_up", seed, tmp_path, warmed, None, None, None, 1.0))
    claims, figures = analysis_of("recover", ROOT)(replace(found, results=results))
    said = {claim.id.removeprefix("recover/private/"): claim for claim in claims}
    assert said.keys() == {"headroom", "gain", "share", "seqkd", "average", "warm_up_first"}
    assert figures.keys() == {"recover-private"}
    assert said["warm_up_first"].effect == said["seqkd"].effect, "another arm's student, on the same tasks"
    assert said["headroom"].holds and said["average"].holds
    assert said["gain"].holds and said["gain"].effect == pytest.approx(0.32, abs=0.06)
    assert said["seqkd"].holds is False, "a baseline that wins is the finding"
    assert "in macro" in said["share"].takeaway and said["share"].effect == pytest.approx(0.32 - 0.8 * 0.4, abs=0.06)
