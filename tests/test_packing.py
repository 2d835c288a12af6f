"""A packed sample must give the numbers it gives alone, in every family (convolutions see across masks)."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch

from openhorizon.losses.nll import nll
from openhorizon.model.load import Checkpoint
from openhorizon.train.packing import convolution_gap, pack, packed_logits


def samples(seed: int, count: int = 9) -> list[tuple[list[int], list[bool]]]:
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        length = rng.randrange(2, 40)
        made.append(([rng.randrange(10, 300) for _ in range(length)], [rng.random() < 0.6 for _ in range(length)]))
    return made


@pytest.mark.parametrize("family", ["lfm2_moe", "qwen3_moe"])
def test_packed_equals_unpacked_in_loss_and_gradient(tiny: Callable[..., Checkpoint], family: str) -> None:
    model = tiny(family).model
    data = samples(0)
    packed = pack(data, 64, convolution_gap(model), 0)
    assert len(packed.ids_RT) < len(data), "nothing was packed"
    together = nll(packed_logits(model, packed), packed.ids_RT[packed.train_RT])
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


def test_without_the_gap_a_convolution_leaks(tiny: Callable[..., Checkpoint]) -> None:
    """What the gap is for: were it not needed, the test above could not fail for convolutions."""
    model = tiny("lfm2_moe").model
    data = samples(1)
    with torch.no_grad():
        right = packed_logits(model, pack(data, 64, convolution_gap(model), 0))
        leaking = packed_logits(model, pack(data, 64, 0, 0))
    assert right.shape != leaking.shape or not torch.allclose(right, leaking, atol=1e-3)


def test_loss_only_on_marked_tokens_and_never_on_the_first() -> None:
    packed = pack([([5, 6, 7], [True, False, True]), ([8, 9], [True, True])], 16, 2, 0)
    assert packed.ids_RT[packed.train_RT].tolist() == [7, 9]
    assert packed.tokens == 5 and packed.ids_RT.shape == (1, 7)


def test_a_sample_longer_than_a_row_gets_a_row_that_fits() -> None:
    packed = pack([(list(range(50)), [True] * 50), ([1, 2], [True, True])], 16, 2, 0)
    assert packed.ids_RT.shape == (2, 50)
