"""The plan's counts against loops written out, its predictions against a measured run, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from openhorizon import cli, profiles
from openhorizon.artifacts import read_json
from openhorizon.forecast.cost import Assumed, Size, costs
from openhorizon.forecast.table import assumptions, model_size, plan
from openhorizon.forecast.work import Length, Work, looks_within, works
from tests.settings import laptop

ROOT = Path(__file__).parents[1]


def test_a_teachers_tokens_are_those_of_a_loop() -> None:
    config = profiles.settings("laptop", ROOT)
    lengths = {name: Length(10.0, 3.0, 0.5) for name in config.domains}
    found = {work.stage: work for work in works(config, lengths, {"chosen": 0.9, "all": 0.25})}
    block, horizons = config.teach["search"], config.generate["search"].prompt_horizons
    looks = 2 + sum(1 for i in range(1, block.grpo.iterations) if i % block.grpo.validate_every == 0) + 1
    validated = sum(block.validation * (10 + 3 * sum(horizons) / len(horizons)) for _ in range(looks))
    near = [h for h in horizons if h <= block.grpo.max_horizon]
    episodes = [10 + 3 * sum(near) / len(near)] * (block.grpo.iterations * block.grpo.prompts * block.grpo.group)
    teacher = found["teach@search"]
    assert teacher.rolled == pytest.approx(validated + sum(episodes))
    assert teacher.scored == pytest.approx(0.75 * sum(episodes))
    assert teacher.trained == pytest.approx(block.tokens + 0.75 * sum(episodes))
    assert teacher.written == pytest.approx(teacher.rolled / 2)
    assert not block.grpo.tries, "the laptop's prompts are all taken"
    tried = replace(config.teach["search"], grpo=replace(block.grpo, tries=5))
    choosing = replace(config, teach={**config.teach, "search": tried})
    found = {work.stage: work for work in works(choosing, lengths, {"chosen": 0.9, "all": 0.25})}
    assert found["teach@search"].trained == pytest.approx(block.tokens + 0.1 * sum(episodes))


@pytest.mark.parametrize(("iterations", "every", "looks"), [(0, 4, 0), (1, 4, 1), (4, 4, 1), (5, 4, 2), (12, 4, 3)])
def test_looks_within_grpo(iterations: int, every: int, looks: int) -> None:
    grpo = laptop().teach["search"].grpo
    assert looks_within(replace(grpo, iterations=iterations, validate_every=every)) == looks


def test_the_laptop_profile_is_predicted_within_a_quarter() -> None:
    """Teachers and distillation, that is: their run gave the rates of SFT and of rollouts, and nothing else."""
    made = plan(profiles.settings("laptop", ROOT), "cpu", "laptop", None, ROOT)
    measured = {row["stage"]: row["seconds"] for row in read_json(ROOT / "docs/results/laptop.json")["stages"]}
    assert {cost.stage for cost in made.made} == measured.keys()
    ours = {cost.stage: cost.seconds for cost in made.made if cost.stage.startswith(("teach@", "distill"))}
    for seconds, whole in ((ours, ours.keys()), ({c.stage: c.seconds for c in made.made}, measured.keys())):
        assert sum(seconds.values()) == pytest.approx(sum(measured[name] for name in whole), rel=0.25)


def test_the_papers_model_has_the_papers_size() -> None:
    size = model_size(profiles.settings("a1", ROOT), assumptions(None)["architectures"])
    assert size.total == pytest.approx(35e9, rel=0.02)
    assert size.active == pytest.approx(3e9, rel=0.16)
    assert size.attention == 10 * 16 * 256  # every fourth of 40 layers


def test_gpus_take_flops_over_what_they_reach() -> None:
    gpus = Assumed(8, 80.0, 2.0, 1e15, 0.4, 0.5, 1000.0, 0.0)
    work = Work("x", context=100.0, rolled=3e6, written=1e6, scored=1e6, trained=4e6)
    (cost,) = costs([work], gpus, Size(10**9, 10**8, 10**4))
    token = 10**8 + 10**4 * 100
    expected = 6 * token * 4e6 / (8e15 * 0.4) + 2 * token * 3e6 / (8e15 * 0.5) + 1e6 / 8000
    assert cost.seconds == pytest.approx(expected)
    assert cost.dollars == pytest.approx(expected * 16 / 3600)
    assert cost.flops == pytest.approx(token * (6 * 4e6 + 2 * 4e6))


def test_plan_speaks_json_and_takes_assumptions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = yaml.safe_load((ROOT / "src/openhorizon/forecast/assumptions.yaml").read_text())["machines"]["h100"]
    given = tmp_path / "mine.yaml"
    given.write_text(yaml.safe_dump({"machines": {"mine": own | {"gpus": 128}}}))
    hours = []
    for arguments in (["--machine", "h100"], ["--machine", "mine", "--assumptions", str(given)]):
        assert cli.main(["plan", "--profile", "a1", "--json", *arguments]) == 0
        hours.append(json.loads(capsys.readouterr().out)["hours"])
    assert hours[1] == pytest.approx(hours[0] / 2)


def test_what_cannot_be_planned_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: str) -> str:
        assert cli.main(["plan", *arguments]) == cli.USER_ERROR
        return capsys.readouterr().err

    assert "known are cpu, h100" in refused("--machine", "abacus")
    assert "no architecture of profile h200" in refused("--profile", "h200")
    (tmp_path / "bad.yaml").write_text("machines: {half: {kind: assumed, gpus: 8}}")
    assert "not complete" in refused("--machine", "half", "--assumptions", str(tmp_path / "bad.yaml"))
    (tmp_path / "odd.yaml").write_text("prices: {}")
    assert "expected blocks among" in refused("--assumptions", str(tmp_path / "odd.yaml"))
    (tmp_path / "old.yaml").write_text("dead_groups: 0.5")
    assert "dead_groups is 0.5, expected a block: chosen, all" in refused("--assumptions", str(tmp_path / "old.yaml"))
