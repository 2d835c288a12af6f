"""Upcycling against the dense model it starts from, positions against the same model at others, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
import torch
from conftest import MACHINE, hybrid
from safetensors.torch import load_file, save_file
from settings import laptop
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3_5Tokenizer,
)

from openhorizon.artifacts import read_json, stage_dir
from openhorizon.config import ModelConfig, RopeConfig, UpcycleConfig
from openhorizon.forecast.table import model_size
from openhorizon.model import load
from openhorizon.model.load import Checkpoint, load_checkpoint, load_weights, save_checkpoint
from openhorizon.model.rope import stretch
from openhorizon.model.sampler import LocalPolicy
from openhorizon.model.start import start_from_checkpoint
from openhorizon.model.tokenizer import CHAT_TEMPLATE, END, ROLES
from openhorizon.model.upcycle import FAMILIES, break_symmetry, expert_layers, parameter_table, upcycle
from openhorizon.stages import base
from openhorizon.train.packing import convolution_gap, output_layer, pack, packed_hidden

Route = Literal["identical", "shared"]
SMALL: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": None,
    "eos_token_id": 1,
}  # fmt: skip


def dense(family: str = "llama", **changes: Any) -> PreTrainedModel:
    """A random dense model with weights large enough that a wrong one shows."""
    torch.manual_seed(1)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **(SMALL | changes)))
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(6)
        else:
            parameter.data.uniform_(0.5, 1.5)
    return model.float().eval()


def recipe(route: Route = "identical", **changes: Any) -> UpcycleConfig:
    width = 24 if route == "shared" else None
    values: dict[str, Any] = {
        "route": route, "experts": 4, "top_k": 2, "expert_width": width, "symmetry": "noise", "strength": 0.1,
        "router_std": 0.02,
    }  # fmt: skip
    return UpcycleConfig(**(values | changes))


def tokens(length: int = 40) -> torch.Tensor:
    return torch.randint(0, 320, (2, length), generator=torch.Generator().manual_seed(3))


def logits(model: PreTrainedModel, ids: torch.Tensor, **options: Any) -> torch.Tensor:
    with torch.no_grad():
        mask = torch.ones_like(ids)  # without one, transformers takes a jump in positions for another sample's start
        found: torch.Tensor = model(input_ids=ids, attention_mask=mask, use_cache=False, **options).logits
    return found


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).abs().max().item()


@pytest.mark.parametrize("route", ["identical", "shared"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_the_moe_on_disk_computes_what_the_dense_model_does(
    family: str, tied: bool, route: Route, tmp_path: Path
) -> None:
    before = dense(family, tie_word_embeddings=tied)
    upcycle(before, recipe(route), 0).save_pretrained(tmp_path)
    after = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)  # nothing of ours
    expected = logits(before, tokens())
    assert expected.std() > 0.3
    assert distance(logits(after, tokens()), expected) < 1e-5
    assert after.config.model_type == FAMILIES[family, route] and after.config.tie_word_embeddings == tied


@pytest.mark.parametrize(("family", "route"), [("llama", "identical"), ("qwen3", "identical"), ("qwen3", "shared")])
def test_heads_keep_a_width_of_their_own(family: str, route: Route) -> None:
    before = dense(family, head_dim=16)  # hidden / heads is 8
    assert distance(logits(upcycle(before, recipe(route), 0), tokens()), logits(before, tokens())) < 1e-5


def test_routers_are_small_random_and_seeded() -> None:
    models = [upcycle(dense(), recipe(router_std=0.05), seed) for seed in (0, 0, 1)]
    routers = [model.get_decoder().layers[1].mlp.gate.weight for model in models]
    assert torch.equal(routers[0], routers[1]) and not torch.equal(routers[0], routers[2])
    assert 0.035 < routers[0].std().item() < 0.065


def test_noise_is_as_strong_as_asked_and_another_in_each_expert() -> None:
    before = dense(hidden_size=64, intermediate_size=256)
    moe = upcycle(before, recipe(strength=0.3), 0)
    break_symmetry(moe, recipe(strength=0.3), 5)
    for layer, experts in zip(before.get_decoder().layers, expert_layers(moe), strict=True):
        gate, down = layer.mlp.gate_proj.weight, layer.mlp.down_proj.weight
        noise = [(experts.gate_up_proj[e, :256] - gate).detach() for e in range(4)]
        assert (noise[0].std() / gate.std()).item() == pytest.approx(0.3, rel=0.05)
        assert ((experts.down_proj[2] - down).std() / down.std()).item() == pytest.approx(0.3, rel=0.05)
        alike = torch.corrcoef(torch.stack([n.flatten() for n in noise]))
        assert (alike - torch.eye(4)).abs().max() < 0.1


def test_dropping_starts_a_share_of_the_neurons_again_others_in_each_expert() -> None:
    before, asked = dense(), recipe(symmetry="drop", strength=0.25)
    moe = upcycle(before, asked, 0)
    break_symmetry(moe, asked, 5)
    mlp, experts = before.get_decoder().layers[0].mlp, next(expert_layers(moe))
    started_again = []
    for e in range(4):
        changed = [
            (experts.gate_up_proj[e, :48] != mlp.gate_proj.weight).all(1),
            (experts.gate_up_proj[e, 48:] != mlp.up_proj.weight).all(1),
            (experts.down_proj[e] != mlp.down_proj.weight).all(0),
        ]
        assert torch.equal(changed[0], changed[1]) and torch.equal(changed[0], changed[2])
        kept = ~changed[0]
        assert torch.equal(experts.gate_up_proj[e, :48][kept], mlp.gate_proj.weight[kept])
        started_again.append(frozenset(changed[0].nonzero()[:, 0].tolist()))
    assert {len(neurons) for neurons in started_again} == {12}  # a quarter of 48
    assert len(set(started_again)) == 4


def test_equal_experts_teach_their_router_nothing_and_different_ones_do() -> None:
    def router_gradient(model: PreTrainedModel) -> float:
        model.zero_grad()
        loss = model(input_ids=tokens(), labels=tokens()).loss
        loss.backward()
        return max(float(layer.mlp.gate.weight.grad.abs().max()) for layer in model.get_decoder().layers)

    moe = upcycle(dense(), recipe(), 0)
    equal = router_gradient(moe)
    break_symmetry(moe, recipe(), 5)
    assert equal < 1e-6 < 1e-4 < router_gradient(moe)


@pytest.mark.parametrize("symmetry", ["noise", "drop"])
def test_beside_a_shared_expert_the_outputs_agree_behind_the_breaking_too(symmetry: str) -> None:
    before, asked = dense(), recipe("shared", symmetry=symmetry)
    moe = upcycle(before, asked, 0)
    whole = {tuple(row.tolist()) for row in before.get_decoder().layers[0].mlp.up_proj.weight}
    up = next(expert_layers(moe)).gate_up_proj[:, 24:]
    assert all(tuple(row.tolist()) in whole for expert in up for row in expert)  # half of its neurons, as they were
    break_symmetry(moe, asked, 5)
    assert not torch.equal(up[0], up[1])
    assert distance(logits(moe, tokens()), logits(before, tokens())) < 1e-5
    loss = moe(input_ids=tokens(), labels=tokens()).loss
    loss.backward()
    gradient: Any = next(expert_layers(moe)).down_proj.grad
    assert gradient.abs().amax(dim=(1, 2)).min() > 0  # and every expert learns


def test_the_same_seed_gives_the_same_weights() -> None:
    states = []
    for seed in (5, 5, 6):
        moe = upcycle(dense(), recipe(), 0)
        break_symmetry(moe, recipe(), seed)
        states.append(moe.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


@pytest.mark.parametrize("route", ["identical", "shared"])
def test_active_parameters_are_those_that_one_token_moves(route: Route) -> None:
    moe = upcycle(dense(tie_word_embeddings=False), recipe(route), 0)
    for experts in expert_layers(moe):
        torch.nn.init.normal_(experts.down_proj)
    table = parameter_table(moe)
    moe(input_ids=torch.tensor([[7]]), use_cache=False).logits.square().sum().backward()
    moved = sum(
        int((p.grad != 0).sum()) for name, p in moe.named_parameters() if ".experts." in name and p.grad is not None
    )
    assert moved == pytest.approx(table["routed experts"]["active"], rel=0.01)
    every = sum(p.numel() for p in moe.parameters())
    idle = sum(p.numel() for name, p in moe.named_parameters() if ".experts." in name) // 2  # 2 of 4 experts
    assert (table["all"]["total"], table["all"]["active"]) == (every, every - idle)
    assert sum(row["total"] for part, row in table.items() if part != "all") == every


def test_a_model_from_scratch_is_counted_by_part(tiny: Callable[..., Checkpoint]) -> None:
    table = parameter_table(tiny("lfm2_moe").model)
    assert table["routed experts"]["total"] == 3 * 4 * 3 * 32 * 16  # layers, experts, matrices, hidden, width
    assert table["routed experts"]["active"] == table["routed experts"]["total"] // 2
    assert table["embeddings"]["total"] == 320 * 32 and "output" not in table


@pytest.mark.parametrize(
    ("family", "settings", "changes", "said"),
    [
        ("gpt_neox", {}, {}, r"'gpt_neox'.*llama, qwen3"),
        ("llama", {"attention_bias": True}, {}, "biases"),
        ("llama", {"mlp_bias": True}, {}, "biases"),
        ("qwen3", {"use_sliding_window": True}, {}, "sliding window"),
        ("llama", {"head_dim": 16}, {"route": "shared"}, "heads"),
        ("llama", {}, {"route": "shared", "expert_width": 49}, r"expert_width=49.*48"),
        ("qwen3", {}, {"route": "shared", "expert_width": 20}, r"expert_width=20.*48"),
    ],
)
def test_what_has_no_moe_is_refused(family: str, settings: dict[str, Any], changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        upcycle(dense(family, **settings), recipe(**changes), 0)
    assert "\n" not in str(caught.value)


def test_linear_scaling_is_the_same_model_at_stretched_places() -> None:
    before = dense()
    settings = AutoConfig.for_model("llama", **SMALL)
    stretch(settings, RopeConfig("linear", 4.0), 256)
    after = AutoModelForCausalLM.from_config(settings).eval()
    after.load_state_dict(before.state_dict())
    places = torch.arange(40)[None].expand(2, -1)
    expected = logits(before, tokens(), position_ids=places)
    assert distance(logits(after, tokens(), position_ids=4 * places), expected) < 1e-5
    assert distance(logits(after, tokens(), position_ids=places), expected) > 1e-2


@pytest.mark.parametrize(("kind", "fastest"), [("yarn", 1.0), ("theta", 1.0), ("linear", 4.0)])
def test_slow_pairs_turn_slower_by_the_factor(kind: Any, fastest: float, tmp_path: Path) -> None:
    settings = AutoConfig.for_model("llama", **SMALL)
    before = AutoModelForCausalLM.from_config(settings).get_decoder().rotary_emb.inv_freq
    stretch(settings, RopeConfig(kind, 4.0), 256)
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    ratio = before / loaded.get_decoder().rotary_emb.inv_freq
    assert ratio[0].item() == pytest.approx(fastest) and ratio[-1].item() == pytest.approx(4.0, rel=1e-4)
    written = json.loads((tmp_path / "config.json").read_text())
    assert written["max_position_embeddings"] == 256
    if kind == "yarn":
        assert written["rope_parameters"]["original_max_position_embeddings"] == 64


def test_positions_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_tokens=65.*64"):
        stretch(AutoConfig.for_model("llama", **SMALL), None, 65)
    with pytest.raises(ValueError, match=r"max_tokens=300.*64.*4"):
        stretch(AutoConfig.for_model("llama", **SMALL), RopeConfig("yarn", 4.0), 300)
    scaled = AutoConfig.for_model("llama", **SMALL)
    stretch(scaled, RopeConfig("yarn", 4.0), 256)
    with pytest.raises(ValueError, match="already"):
        stretch(scaled, RopeConfig("linear", 2.0), 512)


ROUTES = [(family, route) for family in ("llama", "qwen3") for route in ("identical", "shared")]


@pytest.mark.parametrize(("family", "route"), ROUTES)
def test_an_upcycled_model_trains_packed_as_alone_and_talks(
    family: str, route: Any, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    moe = upcycle(dense(family), recipe(route), 0)
    break_symmetry(moe, recipe(route), 5)
    checkpoint = load_checkpoint(saved(tokenizer, tmp_path, moe), MACHINE)
    random = torch.Generator().manual_seed(1)
    lengths = (7, 30, 18, 11)
    samples = [torch.randint(10, 300, (n,), generator=random).tolist() for n in lengths]
    packed = pack([(ids, [True] * len(ids)) for ids in samples], 64, convolution_gap(checkpoint.model), 0)
    assert len(packed.ids_RT) < len(samples)
    with torch.no_grad():
        together = output_layer(checkpoint.model, MACHINE)(packed_hidden(checkpoint.model, packed, MACHINE))
    order = torch.unique_consecutive(packed.sample_RT[packed.train_RT]).tolist()
    alone = torch.cat([logits(checkpoint.model, torch.tensor([samples[i]]))[0, :-1] for i in order])
    assert distance(together, alone) < 1e-4
    talk = Talk(samples[1])
    LocalPolicy(checkpoint, batch=2).converse([talk, Talk(samples[2])], 0.0, lambda done, total: None)
    whole = logits(checkpoint.model, torch.tensor([samples[1] + talk.said]))[0, len(samples[1]) - 1 : -1]
    whole[:, tokenizer.convert_tokens_to_ids(["<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"])] = -1e9
    assert len(talk.said) > 3 and whole.argmax(-1).tolist() == talk.said


class Talk:
    """A conversation of one turn."""

    def __init__(self, prompt: list[int]) -> None:
        self.seed, self.prompt_ids, self.turn_tokens, self.context_tokens = 0, prompt, 9, 60
        self.said: list[int] = []

    def reply(self, ids: Sequence[int], logprobs: Sequence[float], complete: bool) -> None:
        self.said += ids


def saved(tokenizer: PreTrainedTokenizerFast, folder: Path, model: PreTrainedModel | None = None) -> Path:
    save_checkpoint(model or dense(), tokenizer, folder)
    return folder


def start(folder: Path, **changes: Any) -> ModelConfig:
    asked = ModelConfig(str(folder), 256, RopeConfig("yarn", 4.0), laptop().model.scratch, recipe())
    return replace(asked, **changes)


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_a_checkpoint_in_half_precision_is_trained_in_fp32(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, stored: torch.dtype
) -> None:
    model = dense()
    saved(tokenizer, tmp_path, model.to(stored))  # type: ignore[arg-type]
    loaded = load_checkpoint(tmp_path, MACHINE).model
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    assert distance(loaded.get_input_embeddings().weight, model.get_input_embeddings().weight.float()) == 0
    found = start_from_checkpoint(start(tmp_path), 0, "cpu")
    assert {parameter.dtype for parameter in found.model.parameters()} == {torch.float32}
    assert found.difference is not None and found.difference < 1e-5


def test_a_start_without_upcycling_is_the_checkpoint_itself(
    tiny: Callable[..., Checkpoint], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    moe = tiny("qwen3_moe").model
    saved(tokenizer, tmp_path, moe)
    found = start_from_checkpoint(start(tmp_path, rope=None, upcycle=None), 0, "cpu")
    assert found.difference is None
    assert distance(logits(found.model, tokens()), logits(moe, tokens())) == 0


def test_the_papers_checkpoint_gives_its_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Qwen3.5-MoE as it is published: a tokenizer of its own class, a vision tower and weights that predict several
    tokens, which are left aside."""
    own = Qwen3_5Tokenizer(
        vocab={byte: i for i, byte in enumerate(sorted(ByteLevel.alphabet()))}, chat_template=CHAT_TEMPLATE,
        extra_special_tokens=[END, *ROLES], eos_token=END,
    )  # fmt: skip
    text = hybrid(own, 1).config.to_dict()
    sees = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4}
    vision = sees | {"out_hidden_size": 32, "num_position_embeddings": 16}
    whole = Qwen3_5MoeForConditionalGeneration(Qwen3_5MoeConfig(text_config=text, vision_config=vision)).eval()
    source = saved(own, tmp_path / "published", whole)
    weights = load_file(source / "model.safetensors")
    save_file(weights | {"mtp.fc.weight": torch.ones(2, 2)}, source / "model.safetensors", {"format": "pt"})
    settings = run_base(start(source, max_tokens=512, rope=None, upcycle=None), tmp_path, monkeypatch)
    made = load_checkpoint(stage_dir("base"), settings.machine)
    assert type(made.model) is Qwen3_5MoeForCausalLM
    assert distance(logits(made.model, tokens() % 256), logits(whole, tokens() % 256)) == 0
    table = read_json(stage_dir("base") / "metrics.json")["parameters_by_part"]
    assert {"linear attention", "shared expert", "routed experts"} <= table.keys() and "dense MLP" not in table
    said = "say 37 <tool_call> Über"
    assert type(made.tokenizer) is Qwen3_5Tokenizer and made.tokenizer(said).input_ids == own(said).input_ids
    too_far = start(source, max_tokens=513, rope=None, upcycle=None)
    with pytest.raises(ValueError, match="max_tokens=513: the checkpoint reaches 512"):
        start_from_checkpoint(too_far, 0, "cpu")
    assert model_size(settings, {}).attention == 2 * 4 * 8, "every second layer looks back"


def test_base_writes_the_upcycled_start_with_its_figures(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = saved(tokenizer, tmp_path / "dense")
    (source / "README.md").write_text("---\nlicense: mit\n---\nA model.\n")
    (source / "LICENSE").write_text("Do as you like.\n")
    settings = run_base(start(source), tmp_path, monkeypatch)
    made = load_checkpoint(stage_dir("base"), settings.machine)
    metrics = read_json(stage_dir("base") / "metrics.json")
    assert made.model.config.model_type == "mixtral" and made.model.config.max_position_embeddings == 256
    assert made.tokenizer.model_max_length == 256
    assert metrics["parameters"] == sum(p.numel() for p in made.model.parameters()) > metrics["parameters_active"]
    assert metrics["source"] == {"name": "dense", "licence": "mit", "hash": metrics["source"]["hash"]}
    assert metrics["upcycled_logits_differ_by"] < 1e-5
    assert (stage_dir("base") / "LICENSE").read_text() == "Do as you like.\n"


def run_base(model: ModelConfig, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The stage on demonstrations that nothing is trained on."""
    monkeypatch.chdir(folder)
    short = SimpleNamespace(task=SimpleNamespace(horizon=1))
    monkeypatch.setattr(base, "read_trajectories", lambda path: [short])
    settings = laptop()
    settings = replace(settings, model=model, base=replace(settings.base, tokens=0), machines={"cpu": MACHINE})
    monkeypatch.setenv("MACHINE", "cpu")
    log: Any = SimpleNamespace(at=lambda where: None, save_curves=lambda folder: None)
    base.run(settings, None, log)
    return settings


def missing_shard(folder: Path) -> None:
    dense().save_pretrained(folder, max_shard_size="40KB")
    (folder / "model.safetensors").unlink()
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def missing_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def weight_missing_from_its_shard(folder: Path) -> None:
    dense().save_pretrained(folder, max_shard_size="40KB")
    (folder / "model.safetensors").unlink()
    shard = sorted(folder.glob("model-*.safetensors"))[0]
    weights = load_file(shard)
    weights.pop(sorted(weights)[0])
    save_file(weights, shard, {"format": "pt"})


def cut_off(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def header_damaged(folder: Path) -> None:
    file = folder / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[8:12] = b"!!!!"
    file.write_bytes(content)


def not_a_number(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][3, 4] = math.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def small_vocabulary(folder: Path) -> None:
    dense(vocab_size=300).save_pretrained(folder)


def another_family(folder: Path) -> None:
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(settings | {"model_type": "gpt_neox"}))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def no_tool_messages(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ raise_exception('user and assistant alone') }}")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (missing_shard, r"1 of \d+ shards are missing, such as model-00002-of-"),
        (missing_weight, r"1 weights of a llama missing, such as model\.layers\.1\.mlp\.up_proj"),
        (weight_missing_from_its_shard, r"model-00001-of-.* is missing, which model\.safetensors\.index\.json lists"),
        (cut_off, r"model\.safetensors: damaged weights \([\d,]+ bytes instead of [\d,]+\)"),
        (header_damaged, r"model\.safetensors: damaged"),
        (not_a_number, r"model\.layers\.2\.mlp\.up_proj\.weight are not finite"),
        (small_vocabulary, r"tokenizer has 320 tokens, the model only 300"),
        (another_family, r"'gpt_neox' cannot be upcycled.*llama, qwen3"),
        (no_config, r"no usable config\.json"),
        (no_tool_messages, r"chat template refuses a tool's message.*user and assistant alone"),
    ],
)
def test_a_bad_checkpoint_is_one_line_and_leaves_nothing(
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], None],
    said: str,
) -> None:
    source = saved(tokenizer, tmp_path / "dense")
    damage(source)
    with pytest.raises(ValueError, match=said) as caught:
        run_base(start(source), tmp_path, monkeypatch)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "artifacts").exists()


def test_too_little_memory_is_said_with_the_numbers_before_anything_is_read(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tokenizer, tmp_path, dense(hidden_size=256, intermediate_size=1024, head_dim=64))
    needed = 4 * sum(p.numel() for p in dense(hidden_size=256, intermediate_size=1024, head_dim=64).parameters())
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    monkeypatch.setattr(load, "free_memory", lambda device: {"this machine": needed - 1})
    with pytest.raises(ValueError, match=rf"{needed / 1e9:.2f} GB in fp32; this machine has .* GB free"):
        load_weights(tmp_path, "cpu")


def test_an_moe_that_does_not_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dense()
    needed = 4 * sum(p.numel() for p in upcycle(before, recipe(), 0).parameters())
    monkeypatch.setattr(load, "free_memory", lambda device: {"this machine": needed - 1})
    with pytest.raises(ValueError, match="mixtral of 4 experts"):
        upcycle(before, recipe(), 0)
    monkeypatch.setattr(load, "free_memory", lambda device: {"this machine": needed})
    upcycle(before, recipe(), 0)
