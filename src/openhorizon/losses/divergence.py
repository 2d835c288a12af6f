"""Divergences of a student from a teacher at each position, besides the paper's (``sva.py``).

p is the student, q the teacher, S the teacher's top-k support; *reverse* is the divergence of p from q, *forward* that
of q from p, which is the same formula with the two exchanged.

    gen_kl    Σ_{u∈S} p log(p/q) - p + q         the generalised KL of masses that are not renormalised: 0 where they
                                                 agree on S, and mass that left S is pulled back
    tail      KL of (p on S, 1 - p(S)) from (q on S, 1 - q(S))       one more outcome, for all of what is outside
    full      Σ_u p log(p/q) over the vocabulary
    sampled   log p(y) - log q(y) at the token y that the student wrote: one sample's estimate of the reverse KL (k1 of
              Schulman 2020, "Approximating KL divergence"), its gradient the policy gradient with that as the cost,
              as in MOPD (arXiv 2606.30406) and Thinking Machines' on-policy distillation (2025)

``gen_kl`` and ``tail`` have a gradient on every token, in and outside of S; ``sampled`` has it through the softmax.

N positions, V vocabulary, K support.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch

Direction = Literal["reverse", "forward"]
TAIL_FLOOR = 1e-6  # fp32 knows a teacher's tail, 1 - Σ, to about 1e-7; a logarithm needs more than 0


class Said(NamedTuple):
    """What a teacher said at N positions, and what the student wrote there."""

    support_NK: torch.Tensor  # token ids
    logprobs_NK: torch.Tensor  # the teacher's over its whole vocabulary; -inf marks an id that is not in the support
    tail_N: torch.Tensor  # its mass outside of the support
    written_N: torch.Tensor  # ids of the tokens that the student wrote
    written_logprobs_N: torch.Tensor  # the teacher's log-probabilities of them


def gen_kl(logits_NV: torch.Tensor, said: Said, direction: Direction) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-token loss and coverage, both of shape (N,)."""
    student_NK, valid_NK = on_support(logits_NV, said)
    p_NK, q_NK = _ordered(student_NK, said.logprobs_NK.float().masked_fill(~valid_NK, 0.0), direction)
    terms_NK = p_NK.exp() * (p_NK - q_NK) - p_NK.exp() + q_NK.exp()
    return torch.where(valid_NK, terms_NK, 0.0).sum(1), _coverage(student_NK, valid_NK)


def tail(logits_NV: torch.Tensor, said: Said, direction: Direction) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-token loss and coverage, both of shape (N,). Masses outside of the support are floored at ``TAIL_FLOOR``."""
    logits_NV = logits_NV.float()
    student_NK, valid_NK = on_support(logits_NV, said)
    inside_NV = torch.zeros_like(logits_NV, dtype=torch.bool).scatter(1, said.support_NK, valid_NK)
    # A finite filler: where the support is the whole vocabulary, the gradient of a sum over nothing would be NaN.
    outside_NV = logits_NV.masked_fill(inside_NV, torch.finfo(torch.float32).min / 2)
    student_N = torch.logsumexp(outside_NV, dim=1) - torch.logsumexp(logits_NV, dim=1)
    student_N = student_N.clamp(min=math.log(TAIL_FLOOR))
    teacher_N = said.tail_N.float().clamp(min=TAIL_FLOOR).log()
    p_NK, q_NK = _ordered(student_NK, said.logprobs_NK.float().masked_fill(~valid_NK, 0.0), direction)
    p_N, q_N = _ordered(student_N, teacher_N, direction)
    inside_N = torch.where(valid_NK, p_NK.exp() * (p_NK - q_NK), 0.0).sum(1)
    return inside_N + p_N.exp() * (p_N - q_N), _coverage(student_NK, valid_NK)


def full(
    logits_NV: torch.Tensor, said: Said, teacher_logprobs_NV: torch.Tensor, direction: Direction
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-token loss over the whole vocabulary, and coverage of the teacher's top-k, both of shape (N,)."""
    logprobs_NV = torch.log_softmax(logits_NV.float(), dim=1)
    p_NV, q_NV = _ordered(logprobs_NV, teacher_logprobs_NV.float(), direction)
    loss_N = (p_NV.exp() * (p_NV - q_NV)).sum(1)
    return loss_N, _coverage(logprobs_NV.gather(1, said.support_NK), torch.isfinite(said.logprobs_NK))


def sampled(logits_NV: torch.Tensor, said: Said) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-token loss and coverage, both of shape (N,). The reverse direction alone: the student's own samples say
    nothing of what only the teacher would write."""
    logits_NV = logits_NV.float()
    total_N = torch.logsumexp(logits_NV, dim=1)
    student_N = logits_NV.gather(1, said.written_N[:, None])[:, 0] - total_N
    cost_N = (student_N - said.written_logprobs_N.float()).detach()
    loss_N = cost_N + cost_N * (student_N - student_N.detach())  # its value is the cost, its gradient cost · ∇ log p
    with torch.no_grad():
        student_NK, valid_NK = on_support(logits_NV, said)
    return loss_N, _coverage(student_NK, valid_NK)


def on_support(logits_NV: torch.Tensor, said: Said) -> tuple[torch.Tensor, torch.Tensor]:
    """The student's log-probabilities, over its whole vocabulary, of the ids in the support (N, K), and which of them
    are in it."""
    logits_NV = logits_NV.float()
    total_N1 = torch.logsumexp(logits_NV, dim=1, keepdim=True)
    return logits_NV.gather(1, said.support_NK) - total_N1, torch.isfinite(said.logprobs_NK)


def entropy(logits_NV: torch.Tensor) -> torch.Tensor:
    """Of the student at each position, in nats, (N,); monitored, without a gradient."""
    with torch.no_grad():
        logits_NV = logits_NV.float()
        mean_N = (torch.softmax(logits_NV, dim=1) * logits_NV).sum(1)
        return torch.logsumexp(logits_NV, dim=1) - mean_N


def _ordered(student: torch.Tensor, teacher: torch.Tensor, direction: Direction) -> tuple[torch.Tensor, torch.Tensor]:
    return (student, teacher) if direction == "reverse" else (teacher, student)


def _coverage(student_NK: torch.Tensor, valid_NK: torch.Tensor) -> torch.Tensor:
    return torch.where(valid_NK, student_NK.exp(), 0.0).sum(1).detach()
