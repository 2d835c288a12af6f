"""The start with an induction head: it copies before any training, in the stock architecture, and saves like one."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import MACHINE
from transformers import PreTrainedTokenizerFast

from openhorizon.config import ModelConfig, ScratchConfig
from openhorizon.model.load import Checkpoint, load_checkpoint, new_model, save_checkpoint


def model_config(**changes: object) -> ModelConfig:
    values: dict[str, object] = {
        "family": "lfm2_moe", "vocab_size": 320, "hidden_size": 64, "intermediate_size": 128,
        "moe_intermediate_size": 32, "num_layers": 4, "num_dense_layers": 1, "attention_layers": (1, 3),
        "conv_kernel": 4, "num_heads": 2, "num_kv_heads": 2, "num_experts": 4, "experts_per_token": 2,
        "induction": True,
    }  # fmt: skip
    scratch = ScratchConfig(**(values | changes))  # type: ignore[arg-type]
    return ModelConfig(source="scratch", max_tokens=512, rope=None, scratch=scratch, upcycle=None)


def copy_loss(tokenizer: PreTrainedTokenizerFast, config: ModelConfig) -> float:
    """Mean NLL on the second of two equal runs of random tokens; log(320) = 5.8 is chance."""
    model = new_model(config, tokenizer, 0).eval()
    rng, losses = random.Random(0), []
    for _ in range(8):
        segment = [rng.randrange(10, 310) for _ in range(40)]
        ids = torch.tensor([segment + [rng.randrange(10, 310) for _ in range(20)] + segment])
        with torch.no_grad():
            logits = model(input_ids=ids, use_cache=False).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits[60:-1], ids[0, 61:]).item())
    return sum(losses) / len(losses)


def test_it_copies_before_any_training_and_a_random_start_does_not(tokenizer: PreTrainedTokenizerFast) -> None:
    assert copy_loss(tokenizer, model_config()) < 3.5
    assert copy_loss(tokenizer, model_config(induction=False)) > 5.0


def test_the_checkpoint_is_a_stock_one(fresh: Callable[[int], Checkpoint], tmp_path: Path) -> None:
    checkpoint = fresh(0)
    save_checkpoint(checkpoint.model, checkpoint.tokenizer, tmp_path)
    loaded = load_checkpoint(tmp_path, MACHINE)
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        assert torch.equal(checkpoint.model(ids).logits, loaded.model(ids).logits)
    assert loaded.model.config.model_type == "lfm2_moe"
    assert not list(tmp_path.glob("*.bin")) and not list(tmp_path.glob("*.pkl"))


@pytest.mark.parametrize(
    "changes", [{"attention_layers": (0, 2)}, {"num_heads": 1, "num_kv_heads": 1}, {"family": "qwen3_moe"}]
)
def test_where_it_does_not_fit_it_says_so(tokenizer: PreTrainedTokenizerFast, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="induction"):
        new_model(model_config(**changes), tokenizer, 0)


def test_damaged_checkpoints_are_refused_with_their_path(fresh: Callable[[int], Checkpoint], tmp_path: Path) -> None:
    checkpoint = fresh(0)
    folder = tmp_path / "model"
    save_checkpoint(checkpoint.model, checkpoint.tokenizer, folder)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="model"):
        load_checkpoint(folder, MACHINE)
    weights.unlink()
    with pytest.raises(ValueError, match="model"):
        load_checkpoint(folder, MACHINE)
    with pytest.raises(FileNotFoundError, match="make reproduce"):
        load_checkpoint(tmp_path / "nothing", MACHINE)
    checkpoint.model.get_input_embeddings().weight.data[5] = torch.nan
    save_checkpoint(checkpoint.model, checkpoint.tokenizer, folder)
    with pytest.raises(ValueError, match="not finite"):
        load_checkpoint(folder, MACHINE)
