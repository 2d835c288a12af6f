"""Each loss against a slow loop over positions and tokens."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from openhorizon.losses.chunked import by_chunks
from openhorizon.losses.grpo import group_advantages, grpo, papo_advantages
from openhorizon.losses.nll import nll
from openhorizon.losses.reduce import (
    domain_weights,
    gap_scales,
    sample_weights,
    share_weights,
    sigma_scales,
    token_weights,
)
from openhorizon.losses.sva import sva


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    exp = [math.exp(x - top) for x in row]
    return [x / sum(exp) for x in exp]


def test_nll_is_minus_log_of_the_target() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 11), torch.randint(0, 11, (7,))
    slow = [-math.log(softmax(row)[t]) for row, t in zip(logits.tolist(), targets.tolist(), strict=True)]
    assert torch.allclose(nll(logits, targets), torch.tensor(slow), atol=1e-5)


def test_sva_equals_the_explicit_sum() -> None:
    torch.manual_seed(1)
    student, teacher = 2 * torch.randn(9, 13), 2 * torch.randn(9, 13)
    top = torch.log_softmax(teacher, 1).topk(4, dim=1)
    loss, rho = sva(student, top.indices, top.values)
    for n in range(9):
        support = top.indices[n].tolist()
        p_student, p_teacher = softmax(student[n].tolist()), softmax(teacher[n].tolist())
        mass_s, mass_t = sum(p_student[u] for u in support), sum(p_teacher[u] for u in support)
        expected = sum(
            p_student[u] / mass_s * math.log((p_student[u] / mass_s) / (p_teacher[u] / mass_t)) for u in support
        )
        assert loss[n].item() == pytest.approx(expected, abs=1e-5)
        assert rho[n].item() == pytest.approx(mass_s, abs=1e-5)


def test_sva_ignores_invalid_tokens_in_value_and_gradient() -> None:
    torch.manual_seed(2)
    student = torch.randn(5, 10, requires_grad=True)
    support = torch.stack([torch.randperm(10)[:4] for _ in range(5)])
    teacher = torch.log_softmax(torch.randn(5, 4), 1)
    cut = teacher.clone()
    cut[:, 3] = -torch.inf
    loss, rho = sva(student, support, cut)
    alone, rho_alone = sva(student, support[:, :3], teacher[:, :3])
    assert torch.allclose(loss, alone, atol=1e-6) and torch.allclose(rho, rho_alone, atol=1e-6)
    loss.sum().backward()
    assert student.grad is not None and torch.isfinite(student.grad).all()


def test_sva_has_no_gradient_outside_the_support_and_is_zero_at_the_teacher() -> None:
    torch.manual_seed(3)
    teacher = torch.randn(4, 8)
    top = torch.log_softmax(teacher, 1).topk(3, dim=1)
    student = teacher.clone().requires_grad_()
    loss, _ = sva(student, top.indices, top.values)
    assert loss.abs().max() < 1e-6
    moved = torch.randn(4, 8, requires_grad=True)
    sva(moved, top.indices, top.values)[0].sum().backward()
    outside = torch.ones(4, 8, dtype=torch.bool).scatter(1, top.indices, False)
    assert moved.grad is not None and moved.grad[outside].abs().max() == 0 and moved.grad[~outside].abs().min() > 0


def test_sva_refuses_a_support_of_one() -> None:
    with pytest.raises(ValueError, match="top_k=1"):
        sva(torch.randn(2, 5), torch.zeros(2, 1, dtype=torch.long), torch.zeros(2, 1))


def test_domain_mean_is_sample_then_domain_then_overall() -> None:
    loss = torch.tensor([1.0, 3.0, 10.0, 4.0, 6.0, 8.0])
    sample = torch.tensor([0, 0, 1, 2, 2, 2])
    domain = torch.tensor([0, 0, 5, 5])  # sample 3 has no token and does not count
    expected = (((1 + 3) / 2 + 10) / 2 + (4 + 6 + 8) / 3) / 2
    weights = domain_weights(domain, torch.tensor([2, 1, 3, 0]))
    assert weights[3] == 0
    assert (loss * weights[sample]).sum().item() == pytest.approx(expected)


def test_other_means_are_their_explicit_loops() -> None:
    values = [[1.0, 3.0], [10.0], [4.0, 6.0, 8.0], []]
    domain, tokens = torch.tensor([0, 0, 5, 5]), torch.tensor([len(v) for v in values])
    every = [x for v in values for x in v]
    expected = {
        token_weights: sum(every) / 6,
        sample_weights: ((1 + 3) / 2 + 10 + (4 + 6 + 8) / 3) / 3,
        share_weights: ((1 + 3 + 10) / 3 + (4 + 6 + 8) / 3) / 2,
    }
    for weigh, mean in expected.items():
        weight = weigh(domain, tokens).tolist()
        assert sum(w * sum(v) for w, v in zip(weight, values, strict=True)) == pytest.approx(mean)
        assert sum(w * len(v) for w, v in zip(weight, values, strict=True)) == pytest.approx(1)


def test_sigma_scales_are_the_pooled_over_the_own_deviation() -> None:
    torch.manual_seed(7)
    ratios = {"a": 0.1 * torch.randn(30), "b": 3 + 2 * torch.randn(7), "c": torch.full((5,), 0.3), "d": torch.zeros(1)}

    def deviation(values: list[float]) -> float:
        mean = sum(values) / len(values)
        return math.sqrt(sum((x - mean) ** 2 for x in values) / len(values))

    pooled = deviation([x for r in ratios.values() for x in r.tolist()])
    scales = sigma_scales(ratios, ratios, (0.25, 4.0))
    assert scales["a"] == 4.0  # 15 times as narrow
    assert scales["b"] == pytest.approx(pooled / deviation(ratios["b"].tolist()), rel=1e-5)
    assert scales["c"] == scales["d"] == 1.0  # a constant, and a single token, have no spread to go by


def test_gap_scales_follow_what_remains_and_average_to_one() -> None:
    first = {"a": torch.tensor([2.0, -2.0]), "b": torch.tensor([1.0, -3.0]), "c": torch.tensor([0.0, 0.0])}
    now = {"a": torch.tensor([-1.0, 1.0]), "b": torch.tensor([2.0]), "c": torch.tensor([1.0]), "new": torch.ones(3)}
    assert gap_scales(first, first, (0.25, 4.0)) == dict.fromkeys(first, 1.0)
    scales = gap_scales(now, first, (0.25, 4.0))
    assert scales == pytest.approx({"a": 0.5 / 0.875, "b": 1 / 0.875, "c": 1 / 0.875, "new": 1 / 0.875})
    closed = gap_scales({"a": torch.full((2,), 0.01), "b": first["b"]}, first, (0.25, 4.0))
    assert closed == pytest.approx({"a": 0.25 / 0.625, "b": 1 / 0.625})


def test_chunks_change_neither_loss_nor_gradient() -> None:
    torch.manual_seed(6)
    hidden, weight = torch.randn(37, 8, requires_grad=True), torch.randn(50, 8, requires_grad=True)
    targets, top = torch.randint(0, 50, (37,)), torch.log_softmax(torch.randn(37, 50), 1).topk(5, dim=1)

    def both(logits: torch.Tensor, targets: torch.Tensor, ids: torch.Tensor, values: torch.Tensor) -> Any:
        return (nll(logits, targets), *sva(logits, ids, values))

    found = []
    for chunk_logits in (50, 250, 10**6):  # one position at a time, five, all
        rows = (targets, top.indices, top.values)
        losses = by_chunks(lambda h: h @ weight.T, hidden, 50, both, *rows, chunk_logits=chunk_logits)
        (losses[0].sum() + losses[1].sum()).backward()
        found.append([*losses, hidden.grad, weight.grad])
        hidden.grad = weight.grad = None
    for other in found[:2]:
        for mine, reference in zip(other, found[2], strict=True):
            assert torch.allclose(mine, reference, atol=1e-5)


def test_chunks_hold_a_fraction_of_the_logits() -> None:
    positions, vocabulary, width = 2048, 6000, 8
    hidden = torch.randn(positions, width, requires_grad=True)
    weight = torch.randn(vocabulary, width, requires_grad=True)
    targets = torch.randint(0, vocabulary, (positions,))

    def peak(chunk_logits: int) -> int:
        """Bytes of the largest tensors alive at once, by what the profiler saw allocated and freed."""
        with torch.profiler.profile(profile_memory=True) as seen:
            (loss,) = by_chunks(
                lambda h: h @ weight.T, hidden, vocabulary, lambda x, t: (nll(x, t),), targets,
                chunk_logits=chunk_logits,
            )  # fmt: skip
            loss.sum().backward()
        events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
        held = most = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            held += event.nbytes()
            most = max(most, held)
        return most

    assert peak(positions * vocabulary // 64) <= peak(positions * vocabulary) / 8


def test_group_advantages_by_hand_and_dead_group() -> None:
    assert group_advantages(torch.tensor([1.0, 0.0, 0.0, 0.0])).tolist() == pytest.approx(
        [0.75 / 0.4330127, *[-0.25 / 0.4330127] * 3], abs=1e-4
    )
    for equal in (1.0, 1.3, 1 / 3):  # a mean that rounds must not make a dead group look alive
        assert not group_advantages(torch.full((7,), equal)).any()


def test_papo_ranks_failures_only() -> None:
    outcome, process = torch.tensor([1.0, 0.0, 0.0, 1.0]), torch.tensor([0.1, 0.9, 0.1, 0.9])
    advantages = papo_advantages(outcome, process, 0.5)
    plain = group_advantages(outcome)
    assert torch.equal(advantages[[0, 3]], plain[[0, 3]])
    assert (advantages - plain)[[1, 2]].tolist() == pytest.approx([0.5, -0.5], abs=1e-4)


def test_grpo_equals_the_explicit_formula() -> None:
    torch.manual_seed(4)
    logits, targets = torch.randn(6, 9), torch.randint(0, 9, (6,))
    old, reference = -2 + 0.5 * torch.randn(6), -2 + 0.5 * torch.randn(6)
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.5, 2.0, -2.0])
    loss, health = grpo(logits, targets, old, reference, advantages, 0.2, 0.28, 0.1, 0.01)
    for n in range(6):
        p = softmax(logits[n].tolist())
        logp, a = math.log(p[targets[n]]), advantages[n].item()
        ratio = math.exp(logp - old[n].item())
        clipped = min(max(ratio, 0.8), 1.28)
        gap = reference[n].item() - logp
        entropy = -sum(x * math.log(x) for x in p)
        expected = -min(ratio * a, clipped * a) + 0.1 * (math.exp(gap) - gap - 1) - 0.01 * entropy
        assert loss[n].item() == pytest.approx(expected, abs=1e-5)
        assert health["clip_fraction"][n].item() == float(ratio * a > clipped * a)
