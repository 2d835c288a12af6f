"""What params.yaml says is what the paper says (sections in recipe order), and every profile merges to a valid file."""

from __future__ import annotations

from pathlib import Path

import pytest

from openhorizon import profiles
from openhorizon.config import Config, load

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(params=["laptop", "smoke"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    profiles.write(request.param, tmp_path)
    return load(tmp_path / "params.yaml")


def test_sft_as_in_section_4_1(config: Config) -> None:
    assert (config.sft.optim.schedule, config.sft.optim.warmup, config.sft.optim.weight_decay) == ("cosine", 0.05, 0.1)


def test_grpo_as_in_section_4_2(config: Config) -> None:
    for teacher in config.teach.values():
        grpo = teacher.grpo
        assert (grpo.clip_low, grpo.clip_high) == (0.2, 0.28)
        assert (grpo.kl, grpo.entropy, grpo.temperature) == (0.001, 0.0001, 1.0)
        assert grpo.optim.schedule == "constant" and grpo.dynamic_sampling


def test_group_of_eight_in_the_default_profile() -> None:
    assert {teacher.grpo.group for teacher in load(ROOT / "params.yaml").teach.values()} == {8}


def test_evaluation_as_in_section_5(config: Config) -> None:
    assert config.evaluate.temperature == 0.7 and config.evaluate.tasks >= 200


def test_horizons_reach_from_1_to_32_and_beyond_training() -> None:
    config = load(ROOT / "params.yaml")
    for name in ("search", "tool_calling"):
        block = config.generate[name]
        assert min(block.heldout_horizons) == 1 and max(block.heldout_horizons) == 32 > max(block.horizons)


def test_the_committed_params_are_the_laptop_profile(tmp_path: Path) -> None:
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    profiles.write("laptop", tmp_path)
    assert load(tmp_path / "params.yaml") == load(ROOT / "params.yaml")
