"""Stage distill's own part: headroom of teachers, demonstrations that are not on-policy, budgets that cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import BUDGET, MACHINE, CountDomain
from settings import laptop
from test_training import DISTILL, OPTIM, Log, demonstrations, tasks

from openhorizon.agent.rollout import must_fit
from openhorizon.agent.trajectory import Turn, write_trajectories
from openhorizon.artifacts import stage_dir, write_json
from openhorizon.config import Config
from openhorizon.model.load import Checkpoint, Teacher
from openhorizon.model.sampler import LocalPolicy
from openhorizon.stages import distill, sft
from openhorizon.train.distillation import distil
from openhorizon.train.router import Router
from openhorizon.train.samples import off_policy, prompts_of


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """Three teachers: better after GRPO, better after SFT, and none better than the start."""
    monkeypatch.chdir(tmp_path)
    figures = {
        "search": (0.5, 0.6, 0.75, "grpo"),
        "tool_calling": (0.4, 0.5, 0.45, "sft"),
        "instruction": (0.7, 0.6, 0.6, "start"),
    }
    for name, (start, tuned, grpo, kept) in figures.items():
        stage_dir("teach", name).mkdir(parents=True)
        values = {"validation_start": start, "validation_sft": tuned, "validation_grpo": grpo, "kept": kept}
        write_json(stage_dir("teach", name) / "metrics.json", values)
    return laptop(tuple(figures))


def test_a_teacher_that_is_not_better_is_reported(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    found = distill.headrooms(config)
    assert found == pytest.approx({"headroom@search": 0.25, "headroom@tool_calling": 0.1, "headroom@instruction": 0.0})
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "distill: the teacher of instruction is not better than the SFT model: it solves 0.700 of "
        "teach.instruction.validation=96 tasks, the SFT model 0.700"
    ]


def test_a_teacher_without_the_headroom_asked_for_is_refused(config: Config) -> None:
    def asking(least: float | None, **teach: Any) -> Config:
        teachers = {name: replace(block, **teach) for name, block in config.teach.items()}
        return replace(config, teach=teachers, distill=replace(config.distill, min_headroom=least))

    with pytest.raises(
        ValueError, match=r"min_headroom=0\.05: the teacher of instruction solves 0\.700 of .*=96 tasks"
    ):
        distill.headrooms(asking(0.05))
    with pytest.raises(ValueError, match=r"min_headroom=0\.2: the teacher of tool_calling solves 0\.500"):
        distill.headrooms(asking(0.2))
    assert len(distill.headrooms(asking(0.0))) == 3
    with pytest.raises(ValueError, match=r"not known where teach\.search\.init is not sft"):
        distill.headrooms(asking(0.0, init="base"))
    assert distill.headrooms(asking(None, init="base")) == {}


def test_demonstrations_are_those_of_the_sft_within_horizon_and_budget(
    config: Config, tiny: Callable[..., Checkpoint], monkeypatch: pytest.MonkeyPatch
) -> None:
    student = tiny()
    monkeypatch.setattr(distill, "DOMAINS", {"count": CountDomain()})
    written = demonstrations(student, 6)
    plain = [
        replace(t, turns=tuple(Turn(turn.role, turn.text) for turn in t.turns), task=replace(t.task, horizon=1 + i))
        for i, t in enumerate(written)
    ]
    stage_dir("generate", "search").mkdir(parents=True)
    write_trajectories(stage_dir("generate", "search") / "demonstrations.parquet", plain)
    longest = max(len(t.ids) for t in written)
    asked = replace(
        config,
        sft=replace(config.sft, demonstrations=5),
        distill=replace(config.distill, max_horizon=4),
        budget=config.budget | {"search": replace(config.budget["search"], context_tokens=longest)},
    )
    found = distill.verified(asked, "search", student)
    assert [[context.ids for context in one] for one in found] == [[t.ids] for t in written[:4]]
    tight = replace(
        asked, budget=asked.budget | {"search": replace(asked.budget["search"], context_tokens=longest - 1)}
    )
    assert all(len(context.ids) < longest for one in distill.verified(tight, "search", student) for context in one)
    short = replace(asked, sft=replace(asked.sft, max_horizon=2))
    assert [[context.ids for context in one] for one in distill.verified(short, "search", student)] == [
        [t.ids] for t in written[:2]
    ]
    with pytest.raises(ValueError, match=r"sft\.domains leaves no demonstrations of search"):
        distill.verified(replace(asked, sft=replace(asked.sft, domains=("science",))), "search", student)


def test_a_domain_may_give_fewer_prompts(config: Config) -> None:
    asked = replace(config.distill, prompts=24)
    assert [prompts_of(asked, share) for share in (1.0, 0.5, 0.1, 0.001)] == [24, 12, 2, 1]
    half = replace(asked, on_policy=0.5)
    assert [sum(off_policy(half, i, count) for i in range(10)) for count in (24, 3)] == [120, 15]


def test_sft_takes_the_first_demonstrations_that_are_short_enough(
    config: Config, tiny: Callable[..., Checkpoint]
) -> None:
    mine = [
        replace(t, task=replace(t.task, horizon=h))
        for t, h in zip(demonstrations(tiny(), 6), (1, 5, 2, 1, 6, 3), strict=True)
    ]
    stage_dir("generate", "search").mkdir(parents=True)
    write_trajectories(stage_dir("generate", "search") / "demonstrations.parquet", mine)

    def horizons(longest: int | None, count: int) -> list[int]:
        asked = replace(config, sft=replace(config.sft, max_horizon=longest, demonstrations=count))
        return [t.task.horizon for t in sft.chosen(asked, "search")]

    assert horizons(None, 4) == [1, 5, 2, 1] and horizons(3, 3) == [1, 2, 1] and horizons(3, 9) == [1, 2, 1, 3]
    with pytest.raises(ValueError, match=r"sft\.max_horizon=0: no demonstration of search is that short"):
        horizons(0, 3)


def test_every_prompt_is_looked_at_before_a_stage_plays_the_first(tiny: Callable[..., Checkpoint]) -> None:
    domains: Any = {"count": CountDomain()}
    short, long = tasks(2)
    long = replace(long, prompt=" ".join([long.prompt] * 9))
    renderer = tiny().renderer
    limit = len(renderer.prompt(CountDomain.system, CountDomain.tools, long.prompt))
    for room, fits in ((limit, False), (limit + 1, True)):
        budgets = {"count": replace(BUDGET, context_tokens=room)}
        if fits:
            must_fit(domains, [short, long], renderer, budgets)
            continue
        wanted = rf"budget\.count\.context_tokens={limit}: the prompt of task {long.id} alone has {limit} tokens"
        with pytest.raises(ValueError, match=wanted):
            must_fit(domains, [short, long], renderer, budgets)


def test_a_budget_smaller_than_a_prompt_is_refused_before_anything_is_trained(tiny: Callable[..., Checkpoint]) -> None:
    student, log = tiny(), Log()
    config = replace(DISTILL, iterations=1, prompts=2, updates=1, top_k=4, optim=OPTIM)
    router = Router(student, [Teacher("count", tiny(seed=3))], ["count"], "hard", 0)
    domains: Any = {"count": CountDomain()}
    budgets = {"count": replace(BUDGET, context_tokens=10)}
    with pytest.raises(
        ValueError, match=r"budget\.count\.context_tokens=10: the prompt of task count-\d+ alone has \d+"
    ):
        distil(LocalPolicy(student, 8), router, domains, {"count": tasks(9)}, budgets, config, 0, MACHINE, log)  # type: ignore[arg-type]
    assert log.rows == []
