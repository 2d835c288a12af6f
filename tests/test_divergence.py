"""Divergences against slow loops over positions and tokens, and what each does to the tokens outside of the support."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from conftest import MACHINE
from settings import laptop
from test_losses import softmax
from test_training import FOUR, as_domain, demonstrations

from openhorizon.losses.divergence import TAIL_FLOOR, Direction, Said, entropy, full, gen_kl, sampled, tail
from openhorizon.losses.sva import sva
from openhorizon.model.load import Checkpoint
from openhorizon.model.sampler import LocalPolicy
from openhorizon.train.objectives import OBJECTIVES, token_losses
from openhorizon.train.packing import output_layer, pack_trajectories, packed_hidden
from openhorizon.train.scores import enough, score

DIRECTIONS: list[Direction] = ["reverse", "forward"]


def heard(teacher: torch.Tensor, written: torch.Tensor, k: int) -> Said:
    logprobs = torch.log_softmax(teacher, 1)
    top = logprobs.topk(k, dim=1)
    tail_mass = 1 - top.values.exp().sum(1)
    return Said(top.indices, top.values, tail_mass, written, logprobs.gather(1, written[:, None])[:, 0])


def example(n: int = 9, v: int = 13, k: int = 4) -> tuple[torch.Tensor, torch.Tensor, Said]:
    student, teacher = 2 * torch.randn(n, v), 2 * torch.randn(n, v)
    return student, teacher, heard(teacher, torch.randint(0, v, (n,)), k)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_each_divergence_equals_its_explicit_sum(direction: Direction) -> None:
    torch.manual_seed(1)
    student, teacher, said = example()
    found = {
        "sva": sva(student, said.support_NK, said.logprobs_NK, direction),
        "gen_kl": gen_kl(student, said, direction),
        "tail": tail(student, said, direction),
        "full": full(student, said, torch.log_softmax(teacher, 1), direction),
    }
    for n in range(9):
        p, q = softmax(student[n].tolist()), softmax(teacher[n].tolist())
        support = said.support_NK[n].tolist()
        covered = sum(p[u] for u in support)
        if direction == "forward":
            p, q = q, p
        on_p, on_q = [p[u] for u in support], [q[u] for u in support]
        mass_p, mass_q = sum(on_p), sum(on_q)
        expected = {
            "sva": kl([x / mass_p for x in on_p], [x / mass_q for x in on_q]),
            "gen_kl": sum(a * math.log(a / b) - a + b for a, b in zip(on_p, on_q, strict=True)),
            "tail": kl([*on_p, 1 - mass_p], [*on_q, 1 - mass_q]),
            "full": kl(p, q),
        }
        assert expected["tail"] <= expected["full"] + 1e-6  # the same outcomes, some of them taken together
        for name, value in expected.items():
            loss, rho = found[name]
            assert loss[n].item() == pytest.approx(value, abs=1e-5), name
            assert rho[n].item() == pytest.approx(covered, abs=1e-5), name


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_shorter_support_is_the_same_as_an_invalid_end(direction: Direction) -> None:
    torch.manual_seed(2)
    student, teacher, said = example()
    short = heard(teacher, said.written_N, 3)
    cut = said._replace(logprobs_NK=said.logprobs_NK.index_fill(1, torch.tensor([3]), -torch.inf), tail_N=short.tail_N)
    for loss in (gen_kl, tail, lambda x, s, d: sva(x, s.support_NK, s.logprobs_NK, d)):
        gradients = []
        for one in (short, cut):
            logits = student.clone().requires_grad_()
            value, rho = loss(logits, one, direction)
            value.sum().backward()
            assert logits.grad is not None and torch.isfinite(logits.grad).all()
            gradients.append((value, rho, logits.grad))
        for a, b in zip(*gradients, strict=True):
            assert torch.allclose(a, b, atol=1e-6)


def test_mass_that_left_the_support_is_pulled_back_by_all_but_sva() -> None:
    """A student that agrees with the teacher inside of S and has moved half of its mass to a token outside: SVA sees
    nothing, the others have a gradient that takes it back."""
    torch.manual_seed(3)
    teacher = torch.randn(1, 10)
    said = heard(teacher, torch.tensor([0]), 3)
    outside = next(u for u in range(10) if u not in said.support_NK[0].tolist())
    moved = torch.log_softmax(teacher, 1).clone()
    moved[0, outside] = 0.0
    losses: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "sva": lambda x: sva(x, said.support_NK, said.logprobs_NK)[0],
        "gen_kl": lambda x: gen_kl(x, said, "reverse")[0],
        "tail": lambda x: tail(x, said, "reverse")[0],
        "full": lambda x: full(x, said, torch.log_softmax(teacher, 1), "reverse")[0],
    }
    for name, loss in losses.items():
        logits = moved.clone().requires_grad_()
        loss(logits).sum().backward()
        assert logits.grad is not None
        if name == "sva":
            assert logits.grad.abs().max() < 1e-6
        else:
            assert logits.grad[0, outside] > 0.05, name


def test_what_agrees_costs_nothing() -> None:
    torch.manual_seed(4)
    _, teacher, said = example()
    whole = torch.log_softmax(teacher, 1)
    for direction in DIRECTIONS:
        values = (
            gen_kl(teacher, said, direction),
            tail(teacher, said, direction),
            full(teacher, said, whole, direction),
        )
        assert all(loss.abs().max() < 1e-5 for loss, _ in values)
    assert sampled(teacher, said)[0].abs().max() < 1e-5


def test_one_sample_is_on_average_the_reverse_kl_and_its_gradient() -> None:
    """Over all tokens that the student could have written, weighted by how likely it writes them."""
    torch.manual_seed(5)
    student, teacher = torch.randn(1, 7), torch.randn(1, 7)
    logits = student.clone().requires_grad_()
    value, _ = full(logits, heard(teacher, torch.tensor([0]), 3), torch.log_softmax(teacher, 1), "reverse")
    value.sum().backward()
    p = torch.softmax(student, 1)[0]
    mean, gradient = 0.0, torch.zeros(1, 7)
    for token in range(7):
        one = student.clone().requires_grad_()
        loss, _ = sampled(one, heard(teacher, torch.tensor([token]), 3))
        loss.sum().backward()
        assert one.grad is not None
        mean, gradient = mean + p[token].item() * loss.item(), gradient + p[token] * one.grad
    assert logits.grad is not None
    assert mean == pytest.approx(value.item(), abs=1e-5) and torch.allclose(gradient, logits.grad, atol=1e-5)


def test_a_tail_of_nothing_stays_finite() -> None:
    """K = V: there is no token outside, of the student or the teacher."""
    torch.manual_seed(6)
    student, _, said = example(4, 6, 6)
    for direction in DIRECTIONS:
        logits = student.clone().requires_grad_()
        loss, _ = tail(logits, said, direction)
        loss.sum().backward()
        assert logits.grad is not None and torch.isfinite(logits.grad).all()
        inside, _ = gen_kl(student, said, direction)
        assert torch.allclose(loss, inside, atol=20 * TAIL_FLOOR)


def test_entropy_is_the_explicit_sum() -> None:
    torch.manual_seed(7)
    logits = 3 * torch.randn(5, 8)
    slow = [-sum(x * math.log(x) for x in softmax(row)) for row in logits.tolist()]
    assert torch.allclose(entropy(logits), torch.tensor(slow), atol=1e-5)


def test_the_support_by_mass_is_the_shortest_that_reaches_it() -> None:
    torch.manual_seed(8)
    logprobs = torch.log_softmax(3 * torch.randn(50, 20), 1).topk(8, dim=1).values
    for mass in (0.3, 0.9, 0.999, 1.0):
        kept = torch.isfinite(enough(logprobs, mass)).sum(1)
        for row, k in zip(logprobs.exp().tolist(), kept.tolist(), strict=True):
            reaching = [k for k in range(1, 9) if sum(row[:k]) >= mass]
            assert k == max(min(reaching, default=8), 2)


@pytest.mark.parametrize("name", list(OBJECTIVES))
@pytest.mark.parametrize("temperature", [1.0, 1.7])
def test_an_objective_on_a_model_is_its_formula_on_the_teachers_logits(
    tiny: Callable[..., Checkpoint], name: str, temperature: float
) -> None:
    """From scores of two teachers, one of them another mean of two, through packing, against unpacked whole logits."""
    student = tiny(seed=0)
    samples = [as_domain(s, "ab"[i % 2]) for i, s in enumerate(demonstrations(student, 6))]
    never = LocalPolicy(student, 8).never
    teachers = {"a": [tiny(seed=1).model], "b": [tiny(seed=2).model, tiny(seed=3).model]}
    config = replace(laptop().distill, support_loss=name, top_mass=0.9, loss_temperature=temperature)  # type: ignore[arg-type]
    wanted = replace(FOUR, top_mass=0.9, temperature=temperature, whole=OBJECTIVES[name].whole)
    scores = [score(teachers[s.task.domain], s.task.domain, [s], wanted, never, MACHINE)[0] for s in samples]
    packed = pack_trajectories(student.model, samples, MACHINE)
    written = packed.ids_RT[packed.train_RT]
    order = torch.unique_consecutive(packed.sample_RT[packed.train_RT]).tolist()
    with torch.no_grad():
        hidden = packed_hidden(student.model, packed, MACHINE)
        loss, rho, spread = token_losses(
            output_layer(student.model, MACHINE), hidden, 320, written, [scores[i] for i in order], config
        )
        at = 0
        for i in order:
            sample = samples[i]
            trained = torch.tensor(sample.loss_mask[1:])

            def logits(model: torch.nn.Module, sample=sample, trained=trained) -> torch.Tensor:  # type: ignore[no-untyped-def]
                made = model(input_ids=torch.tensor([sample.ids]), use_cache=False).logits[0, :-1]
                return made[trained] / temperature

            mine = logits(student.model)
            probabilities = torch.stack([torch.softmax(logits(m), 1) for m in teachers[sample.task.domain]]).mean(0)
            ids = torch.tensor(sample.ids)[1:][trained]
            top = probabilities.log().masked_fill(never, -torch.inf).topk(4, dim=1)
            support = enough(top.values, 0.9)
            mass = 1 - support.exp().sum(1)
            said = Said(top.indices, support, mass, ids, probabilities.log().gather(1, ids[:, None])[:, 0])
            expected, covered = OBJECTIVES[name].loss(mine, said, probabilities.log(), "reverse")
            span = slice(at, at + len(ids))
            at += len(ids)
            assert torch.allclose(loss[span], expected, atol=1e-3, rtol=1e-3)
            assert torch.allclose(rho[span], covered, atol=1e-4)
            assert torch.allclose(spread[span], entropy(mine), atol=1e-3)
    assert at == len(loss)
