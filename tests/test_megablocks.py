"""The real MegaBlocks, without a GPU: its kernels under Triton's interpreter, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from openhorizon.model import moe

ROUTES = ("megablocks", "megablocks_dmoe")
CASES = (
    "lfm2_moe, top-2", "qwen3_moe, top-3 of 8", "mixtral, top-2", "one token", "top-1", "empty experts",
    "all tokens on one expert", "a single expert", "odd sizes", "whole model",
)  # fmt: skip


@pytest.fixture(scope="module")
def figures() -> dict[str, Any]:
    script = Path(__file__).with_name("interpreted_megablocks.py")
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, f"{done.stderr[-2000:]}\n(`make setup` installs MegaBlocks)"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("case", CASES)
def test_outputs_and_gradients_are_those_of_transformers_loop(figures: dict[str, Any], case: str, route: str) -> None:
    assert figures[f"{route}: {case}"] <= 1e-5


def test_block_sparse_layer_agrees(figures: dict[str, Any]) -> None:
    assert figures["sparse: top-2"] <= 1e-5


@pytest.mark.parametrize("route", ROUTES)
def test_autocast_agrees_to_its_own_precision(figures: dict[str, Any], route: str) -> None:
    """fp16, since the interpreter has no bf16; 2**-11 is half a unit in the last place."""
    assert 0 < figures[f"{route}: autocast"] <= 4 * 2**-11


def test_what_megablocks_cannot_do_is_refused(figures: dict[str, Any]) -> None:
    assert "split over processes" in figures["refused: expert parallel"]
    assert "biases" in figures["refused: biases"]


def test_choice_of_experts(monkeypatch: pytest.MonkeyPatch) -> None:
    """auto is MegaBlocks where it can run; asking for it by name elsewhere says what is missing."""
    config = MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4,
    )  # fmt: skip
    model = MixtralForCausalLM(config)
    if not torch.cuda.is_available():
        assert moe.choose_experts(model, "auto") == "grouped_mm" == model.config._experts_implementation
        for route in ROUTES:
            with pytest.raises(ValueError, match="no CUDA device"):
                moe.choose_experts(model, route)
    monkeypatch.setattr(moe, "megablocks_problem", lambda: None)
    assert moe.choose_experts(model, "auto") == "megablocks" == model.config._experts_implementation
    assert moe.choose_experts(model, "eager") == "eager"
    assert "experts_implementation" not in model.config.to_json_string()
