"""A packed sample must give the numbers it gives alone, in every family (convolutions see across masks)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import HYBRID, MACHINE
from test_training import demonstrations
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from openhorizon.config import MachineConfig
from openhorizon.losses.nll import nll
from openhorizon.model.attention import SEGMENTS
from openhorizon.model.load import Checkpoint
from openhorizon.train.packing import (
    Pack,
    convolution_gap,
    micro_batches,
    output_layer,
    pack,
    packed_hidden,
    passes,
    recurrent,
)


def samples(seed: int, count: int = 9) -> list[tuple[list[int], list[bool]]]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        length = rng.randrange(2, 40)
        made.append(([rng.randrange(10, 300) for _ in range(length)], [rng.random() < 0.6 for _ in range(length)]))
    return made


def packed_logits(model: PreTrainedModel, packed: Pack, machine: MachineConfig = MACHINE) -> torch.Tensor:
    return output_layer(model, machine)(packed_hidden(model, packed, machine))


def model_of(tiny: Callable[..., Checkpoint], family: str) -> PreTrainedModel:
    if family in ("lfm2_moe", "qwen3_moe", HYBRID):
        return tiny(family).model
    config = AutoConfig.for_model(
        family, vocab_size=320, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, sliding_window=None,
    )  # fmt: skip
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation=SEGMENTS)
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            parameter.data.mul_(6)
    return model.eval()


@pytest.mark.parametrize("masked_row", [0, 10_000], ids=["segments", "mask"])
@pytest.mark.parametrize("family", ["lfm2_moe", "qwen3_moe", HYBRID, "mixtral", "llama"])
def test_packed_equals_unpacked_in_loss_and_gradient(
    tiny: Callable[..., Checkpoint], family: str, masked_row: int
) -> None:
    model = model_of(tiny, family)
    data = samples(0)
    packed = pack(data, 64, convolution_gap(model), 0, recurrent(model))
    assert (len(packed.ids_RT) < len(data)) != recurrent(model), "all was packed that may be"
    together = nll(
        packed_logits(model, packed, replace(MACHINE, masked_row=masked_row)), packed.ids_RT[packed.train_RT]
    )
    together.sum().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    order = torch.unique_consecutive(packed.sample_RT[packed.train_RT]).tolist()
    alone = []
    for i in order:
        ids, mask = data[i]
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1]
        chosen = torch.tensor(mask[1:])
        alone.append(nll(logits[chosen], torch.tensor(ids[1:])[chosen]))
    torch.cat(alone).sum().backward()
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(gradients[name], parameter.grad, atol=1e-4, rtol=1e-4), name


@pytest.mark.parametrize(("family", "gap"), [("lfm2_moe", 0), (HYBRID, 9)])
def test_without_the_gap_a_convolution_leaks(tiny: Callable[..., Checkpoint], family: str, gap: int) -> None:
    """What the gap, or a row a sample, is for: were it not needed, the test above could not fail for such layers."""
    model = tiny(family).model
    data = samples(1)
    with torch.no_grad():
        right = by_sample(model, pack(data, 64, convolution_gap(model), 0, recurrent(model)))
        leaking = by_sample(model, pack(data, 64, gap, 0))
    assert not torch.allclose(right, leaking, atol=1e-3)


def by_sample(model: PreTrainedModel, packed: Pack) -> torch.Tensor:
    """The logits in the samples' order, however they were packed."""
    return packed_logits(model, packed)[packed.sample_RT[packed.train_RT].argsort(stable=True)]


def test_passes_of_rows_apart_hold_like_lengths_and_count_their_padding(tiny: Callable[..., Checkpoint]) -> None:
    made = demonstrations(tiny(), 30)
    cut = [replace(one, turns=one.turns[: 2 + i % 3]) for i, one in enumerate(made)]
    lengths, limit = [len(one.ids) for one in cut], 200
    parts = [part.samples for part in passes(cut, limit, apart=True)]
    assert sorted(i for part in parts for i in part) == list(range(30))
    assert max(map(len, parts)) > 1 and all(len(part) * max(lengths[i] for i in part) <= limit for part in parts)
    padded = sum(len(part) * max(lengths[i] for i in part) for part in parts)
    unsorted = sum(len(part) * max(lengths[i] for i in part) for part in micro_batches(cut, limit, apart=True))
    assert sum(lengths) <= padded < unsorted


def test_loss_only_on_marked_tokens_and_never_on_the_first() -> None:
    packed = pack([([5, 6, 7], [True, False, True]), ([8, 9], [True, True])], 16, 2, 0)
    assert packed.ids_RT[packed.train_RT].tolist() == [7, 9]
    assert packed.tokens == 5 and packed.ids_RT.shape == (1, 7)


def test_a_sample_longer_than_a_row_gets_a_row_that_fits() -> None:
    packed = pack([(list(range(50)), [True] * 50), ([1, 2], [True, True])], 16, 2, 0)
    assert packed.ids_RT.shape == (2, 50)


@pytest.mark.parametrize("family", ["lfm2_moe", "mixtral"])
def test_checkpointed_activations_give_the_same_gradients(tiny: Callable[..., Checkpoint], family: str) -> None:
    model = model_of(tiny, family).train()
    packed = pack(samples(2), 64, convolution_gap(model), 0)
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        nll(packed_logits(model, packed), packed.ids_RT[packed.train_RT]).sum().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        model.zero_grad()
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-6, rtol=1e-6), name
