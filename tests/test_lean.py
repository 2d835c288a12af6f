"""The lean decoding step beside the model's own forward pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Lfm2MoeForCausalLM

from openhorizon.model import lean
from openhorizon.model.attention import SEGMENTS
from openhorizon.model.load import Checkpoint
from openhorizon.model.routing import recording
from openhorizon.model.slots import SlotCache


@pytest.fixture
def model() -> Lfm2MoeForCausalLM:
    """Heads that share keys, a dense layer, experts whose bias decides, weights far from their start."""
    torch.manual_seed(3)
    config = AutoConfig.for_model(
        "lfm2_moe", vocab_size=97, hidden_size=32, intermediate_size=48, moe_intermediate_size=24, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, num_experts=6, num_experts_per_tok=2, conv_L_cache=3,
        layer_types=["conv", "full_attention", "conv", "full_attention"], num_dense_layers=1, use_expert_bias=True,
        max_position_embeddings=128, tie_word_embeddings=False,
    )  # fmt: skip
    made: Lfm2MoeForCausalLM = AutoModelForCausalLM.from_config(config, attn_implementation=SEGMENTS).eval()
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(torch.randn_like(weight), alpha=0.2)
        for layer in made.model.layers[1:]:
            layer.feed_forward.expert_bias.copy_(torch.randn(6) * 0.3)
    return made


@pytest.mark.parametrize("dense_flop", [lean.DENSE_FLOP, 0])
def test_a_step_equals_the_whole_forward(
    model: Lfm2MoeForCausalLM, dense_flop: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lean, "DENSE_FLOP", dense_flop)
    rows, steps = 5, 9
    assert lean.fits(model, torch.device("cpu"), torch.float32)
    ids_BT = torch.randint(0, 97, (rows, steps), generator=torch.Generator().manual_seed(1))
    cache = SlotCache(model.config, torch.device("cpu"), torch.float32)
    cache.resize(8, 64, 0)
    step = lean.LeanStep(model, cache)
    with torch.no_grad(), recording(model) as seen:
        whole_BTV = model(input_ids=ids_BT, use_cache=False).logits
        routed = seen.chosen_LNK().view(3, rows, steps, 2)
        for at in range(steps):
            position_B = torch.full((rows,), at)
            cache.expect_step(position_B, 64)
            seen_B = (torch.arange(64) <= position_B[:, None])[:, None, None]
            groups = [(0, 3, seen_B[:3, ..., :32]), (3, 5, seen_B[3:])]
            logits_BV = step(ids_BT[:, at], position_B, groups)
            torch.testing.assert_close(logits_BV, whole_BTV[:, at], atol=2e-5, rtol=1e-5)
            assert torch.equal(seen.chosen_LNK(), routed[:, :, at])


def test_other_models_and_precisions_keep_their_own_forward(
    model: Lfm2MoeForCausalLM, tiny: Callable[..., Checkpoint]
) -> None:
    cpu = torch.device("cpu")
    assert not lean.fits(tiny("qwen3_moe").model, cpu, torch.float32)
    assert not lean.fits(model, cpu, torch.bfloat16)
    assert not lean.fits(model, torch.device("cuda"), torch.float32)
    assert not lean.fits(model.double(), cpu, torch.float32)
    model.float().config.conv_bias = True
    assert not lean.fits(model, cpu, torch.float32)
