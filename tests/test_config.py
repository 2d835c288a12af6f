"""params.yaml is refused in words: the key's path, what stands there and what could."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from openhorizon import config, profiles

ROOT = Path(__file__).parents[1]
OPTIM = {"lr": 1e-3, "schedule": "cosine", "warmup": 0.0, "weight_decay": 0.0, "grad_clip": 1.0, "batch_tokens": 512}


@pytest.fixture
def params() -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    return values


def refusal(tmp_path: Path, values: dict[str, Any]) -> str:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(ValueError, match=r"params\.yaml") as caught:
        config.load(path)
    return str(caught.value)


def test_the_committed_file_is_valid() -> None:
    assert config.load(ROOT / "params.yaml").domains


def test_an_unknown_key_is_named_with_those_that_exist(tmp_path: Path, params: dict[str, Any]) -> None:
    params["sft"]["learning_rate"] = 1.0
    said = refusal(tmp_path, params)
    assert "sft" in said
    assert "'learning_rate'" in said
    assert "optim" in said


def test_a_missing_key_is_named_with_its_block(tmp_path: Path, params: dict[str, Any]) -> None:
    del params["teach"]["search"]["grpo"]["clip_low"]
    said = refusal(tmp_path, params)
    assert "teach.search.grpo" in said
    assert "'clip_low'" in said


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        (("seed",), "one", "seed"),
        (("seed",), True, "seed"),
        (("distill", "top_k"), 1.5, "distill.top_k"),
        (("router", "balance"), -0.01, "router.balance"),
        (("router", "replay"), 1, "router.replay"),
        (("sft", "optim", "lr"), "3e-3", "sft.optim.lr"),
        (("generate", "search", "horizons"), 3, "generate.search.horizons"),
        (("generate", "search", "horizons"), [1, "two"], "generate.search.horizons[1]"),
        (("model",), 7, "model"),
        (("model", "scratch", "family"), "gpt", "model.scratch.family"),
        (("machines",), [], "machines"),
    ],
)
def test_a_wrong_type_is_named_with_its_path(
    tmp_path: Path, params: dict[str, Any], path: tuple[str, ...], value: object, where: str
) -> None:
    block = params
    for key in path[:-1]:
        block = block[key]
    block[path[-1]] = value
    said = refusal(tmp_path, params)
    assert f":{where}:" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"updates": 0}, "distill.updates: 0"),
        ({"top_k": 1}, "distill.top_k: 1"),
        ({"top_mass": 1.5}, "distill.top_mass: 1.5"),
        ({"loss_temperature": 0.0}, "distill.loss_temperature: 0.0"),
        ({"scale_bounds": [0.25]}, "distill.scale_bounds: [0.25]"),
        ({"scale_bounds": [2.0, 4.0]}, "distill.scale_bounds: [2.0, 4.0]"),
        ({"support_loss": "kl"}, "distill.support_loss: 'kl' is none of sva, gen_kl, tail, full, sampled"),
        ({"on_policy": 1.1}, "distill.on_policy: 1.1"),
        ({"warm_up": {"prompts": 0, "tokens": 9, "optim": OPTIM}}, "distill.warm_up.prompts: 0 is less than 1"),
        ({"staleness": -1}, "distill.staleness: -1 is less than 0"),
        ({"support_loss": "sampled", "staleness": 1}, "distill.staleness: 1; sampled"),
        ({"support_loss": "sampled", "on_policy": 0.5}, "distill.on_policy: 0.5; sampled"),
        ({"turn_curriculum": {"turns": 0, "every": 1}}, "distill.turn_curriculum.turns: 0"),
        ({"turn_curriculum": {"turns": 2}}, "distill.turn_curriculum: missing key 'every'"),
        ({"turn_curriculum": {"turns": 2, "every": 1}, "truncated": "drop"}, "distill.truncated: drop"),
        ({"alarm": {"rho_drop": 0, "length_growth": 2, "stop": False}}, "distill.alarm.rho_drop: 0"),
        ({"alarm": {"rho_drop": 0.1, "length_growth": 1, "stop": False}}, "distill.alarm.length_growth: 1"),
        ({"min_headroom": 5.0}, "distill.min_headroom: 5.0"),
        ({"support_loss": "sampled", "direction": "forward"}, "distill.direction: forward"),
        ({"shares": {"search": 0}}, "distill.shares.search: 0.0 is no share"),
        ({"shares": {"cooking": 0.5}}, "distill.shares.cooking: 0.5 is no share in (0, 1] of a domain"),
    ],
)
def test_a_distillation_that_cannot_be_is_named(
    tmp_path: Path, params: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    params["distill"] |= changes
    assert said in refusal(tmp_path, params)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("run", ["seqkd", "soup"], "baselines.run[1]: 'soup' is none of continued, seqkd, average"),
        ("run", ["seqkd", "seqkd"], "baselines.run: seqkd is there twice"),
        ("validation", 0, "baselines.validation: 0 is less than 1"),
        ("continued.demonstrations", 0, "baselines.continued.demonstrations: 0"),
        ("seqkd.share", 1.0, "baselines.seqkd.share: 1.0"),
        ("arithmetic.scales", [], "baselines.arithmetic.scales: []"),
        ("arithmetic.scales", [0.0, 1.0], "baselines.arithmetic.scales: [0.0, 1.0]"),
        ("mixed_grpo.grpo.group", 1, "baselines.mixed_grpo.grpo.group: 1 is less than 2"),
        ("mixed_grpo.grpo.optim.schedule", "cosine", "baselines.mixed_grpo.grpo.optim.schedule: must be constant"),
    ],
)
def test_a_baseline_that_cannot_be_is_named(
    tmp_path: Path, params: dict[str, Any], path: str, value: object, said: str
) -> None:
    *blocks, key = path.split(".")
    block = params["baselines"]
    for name in blocks:
        block = block[name]
    block[key] = value
    assert said in refusal(tmp_path, params)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"domains": ["cooking"]}, "sft.domains: 'cooking' is none of"),
        ({"domains": []}, "sft.domains: empty"),
        ({"padding": -1}, "sft.padding: -1"),
        ({"max_horizon": "long"}, "sft.max_horizon: expected int, got 'long'"),
    ],
)
def test_an_sft_that_cannot_be_is_named(
    tmp_path: Path, params: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    params["sft"] |= changes
    assert said in refusal(tmp_path, params)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tries", 0),
        ("shards", 0),
        ("steer_every", 0),
        ("region_proposals", 0),
        ("noise", 1.5),
        ("min_yield", -0.1),
        ("steer_floor", 2.0),
        ("solve_rate_min", 0.9),
        ("solver", "oracle"),
    ],
)
def test_a_number_that_would_make_no_data_is_named(
    tmp_path: Path, params: dict[str, Any], key: str, value: object
) -> None:
    params["generate"]["search"][key] = value
    assert f"generate.search.{key}: {value!r}" in refusal(tmp_path, params)


UPCYCLE = {
    "route": "identical", "experts": 8, "top_k": 2, "expert_width": None, "symmetry": "noise", "strength": 0.05,
    "router_std": 0.02,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"upcycle": UPCYCLE}, "model.upcycle: is for a checkpoint"),
        ({"rope": {"type": "yarn", "factor": 8}}, "model.rope: is for a checkpoint"),
        ({"source": "smollm2", "rope": {"type": "yarn", "factor": 1}}, "model.rope.factor: 1.0"),
        ({"source": "smollm2", "rope": {"type": "dynamic", "factor": 8}}, "model.rope.type: 'dynamic'"),
        ({"source": "smollm2", "upcycle": UPCYCLE | {"top_k": 9}}, "model.upcycle.top_k: 9 of 8"),
        ({"source": "smollm2", "upcycle": UPCYCLE | {"strength": 0}}, "model.upcycle.strength: 0.0"),
        ({"source": "smollm2", "upcycle": UPCYCLE | {"symmetry": "drop", "strength": 1.5}}, "model.upcycle.strength"),
        ({"source": "smollm2", "upcycle": UPCYCLE | {"router_std": 0.0}}, "model.upcycle.router_std"),
        ({"source": "smollm2", "upcycle": UPCYCLE | {"expert_width": 16}}, "model.upcycle.expert_width"),
        ({"max_tokens": 0}, "model.max_tokens: 0"),
    ],
)
def test_a_start_that_cannot_be_is_named(
    tmp_path: Path, params: dict[str, Any], changes: dict[str, Any], said: str
) -> None:
    params["model"] |= changes
    assert said in refusal(tmp_path, params)


def test_an_unknown_domain_is_named_with_those_that_exist(tmp_path: Path, params: dict[str, Any]) -> None:
    params["domains"].append("cooking")
    said = refusal(tmp_path, params)
    assert "cooking" in said
    assert "search" in said


def test_a_domain_without_its_block_is_named(tmp_path: Path, params: dict[str, Any]) -> None:
    del params["budget"]["search"]
    assert "budget" in refusal(tmp_path, params)


def test_text_that_is_no_yaml_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("seed: [1")
    with pytest.raises(ValueError, match="not valid YAML"):
        config.load(path)


def test_no_file_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="openhorizon profile"):
        config.load(tmp_path / "params.yaml")


def test_machine_names_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = config.load(ROOT / "params.yaml")
    monkeypatch.setenv("MACHINE", "cpu")
    assert loaded.machine is loaded.machines["cpu"]
    monkeypatch.setenv("MACHINE", "abacus")
    with pytest.raises(ValueError, match=r"abacus.*cpu"):
        _ = loaded.machine


def test_merging_goes_key_by_key_and_replaces_lists() -> None:
    base = {"a": {"x": 1, "y": [1, 2]}, "b": 3}
    assert profiles.merge(base, {"a": {"y": [9]}, "c": 4}) == {"a": {"x": 1, "y": [9]}, "b": 3, "c": 4}
    assert base == {"a": {"x": 1, "y": [1, 2]}, "b": 3}


@pytest.mark.parametrize("name", profiles.known(ROOT))
def test_every_profile_makes_a_valid_file_with_all_numbers(tmp_path: Path, name: str) -> None:
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    assert profiles.write(name, tmp_path)
    assert not profiles.write(name, tmp_path)
    loaded = config.load(tmp_path / "params.yaml")
    assert loaded.profile == name
    text = (tmp_path / "params.yaml").read_text()
    assert "&" not in text
    assert "# section 4.1" in text  # the sources stand in the merged file, too


def test_profiles_are_joined_in_their_order(tmp_path: Path) -> None:
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    assert profiles.write("smoke+best", tmp_path)
    assert "profiles/smoke.yaml and profiles/best.yaml changes" in (tmp_path / "params.yaml").read_text()
    smoke, joined = profiles.settings("smoke", tmp_path), config.load(tmp_path / "params.yaml")
    assert joined.profile == "smoke+best" and joined.distill.warm_up and not smoke.distill.warm_up
    assert joined.distill.iterations == smoke.distill.iterations and joined.sft == smoke.sft
    with pytest.raises(ValueError, match=r"profile 'smoke\+none': 'none' is unknown; known are .*best"):
        profiles.write("smoke+none", tmp_path)


def test_the_committed_file_is_profile_laptop(tmp_path: Path) -> None:
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    profiles.write("laptop", tmp_path)
    committed = yaml.safe_load((ROOT / "params.yaml").read_text())
    assert committed["profile"] != "laptop" or committed == yaml.safe_load((tmp_path / "params.yaml").read_text())


def test_a_refused_profile_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles/base.yaml").write_text((ROOT / "profiles/base.yaml").read_text())
    (tmp_path / "profiles/broken.yaml").write_text("sft: {tokens: many}\n")
    (tmp_path / "params.yaml").write_text("as it was\n")
    with pytest.raises(ValueError, match=r"broken\.yaml.*sft\.tokens"):
        profiles.write("broken", tmp_path)
    with pytest.raises(ValueError, match=r"'none'.*broken"):
        profiles.write("none", tmp_path)
    assert (tmp_path / "params.yaml").read_text() == "as it was\n"
