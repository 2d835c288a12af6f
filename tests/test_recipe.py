"""What params.yaml says is what the paper says (sections in recipe order), and every profile merges to a valid file."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from openhorizon import profiles
from openhorizon.config import Config, load

ROOT = Path(__file__).resolve().parents[1]


def merged(profile: str, folder: Path) -> Config:
    """The profile as it is in the repository, whatever params.yaml holds at the moment."""
    (folder / "profiles").symlink_to(ROOT / "profiles")
    profiles.write(profile, folder)
    return load(folder / "params.yaml")


@pytest.fixture(params=["laptop", "smoke"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    return merged(request.param, tmp_path)


def test_sft_as_in_section_4_1(config: Config) -> None:
    assert (config.sft.optim.schedule, config.sft.optim.warmup, config.sft.optim.weight_decay) == ("cosine", 0.05, 0.1)


def test_grpo_as_in_section_4_2(config: Config) -> None:
    for teacher in config.teach.values():
        grpo = teacher.grpo
        assert (grpo.clip_low, grpo.clip_high) == (0.2, 0.28)
        assert (grpo.kl, grpo.entropy) == (0.001, 0.0001)
        assert grpo.temperature == config.evaluate.temperature, "a small model's rollouts, not the paper's 1.0"
        assert grpo.optim.schedule == "constant" and grpo.dynamic_sampling


def test_small_profiles_leave_the_routers_alone(config: Config) -> None:
    """LFM2-MoE has no auxiliary loss of its own, and the published results were made without one."""
    assert (config.router.balance, config.router.z, config.router.replay) == (0.0, 0.0, False)


def test_routers_as_in_their_sources(tmp_path: Path) -> None:
    """0.01: Switch Transformers, 1e-3: ST-MoE, replay: R3."""
    router = merged("h200", tmp_path).router
    assert (router.balance, router.z, router.replay) == (0.01, 0.001, True)


def test_group_of_eight_in_the_default_profile(tmp_path: Path) -> None:
    assert {teacher.grpo.group for teacher in merged("laptop", tmp_path).teach.values()} == {8}


def test_evaluation_as_in_section_5(config: Config) -> None:
    assert config.evaluate.temperature == 0.7 and config.evaluate.tasks >= 200


def test_horizons_reach_from_1_to_32_and_beyond_training(tmp_path: Path) -> None:
    config = merged("laptop", tmp_path)
    for name in ("search", "tool_calling"):
        block = config.generate[name]
        assert min(block.heldout_horizons) == 1 and max(block.heldout_horizons) == 32 > max(block.horizons)


def test_the_committed_params_are_the_laptop_profile(tmp_path: Path) -> None:
    shown = subprocess.run(["git", "show", "HEAD:params.yaml"], cwd=ROOT, capture_output=True, text=True, check=False)
    if shown.returncode:
        pytest.skip("not a git checkout")
    (tmp_path / "committed.yaml").write_text(shown.stdout)
    assert merged("laptop", tmp_path) == load(tmp_path / "committed.yaml")
