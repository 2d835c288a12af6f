"""Salient Vocabulary Alignment (section 2.3): reverse KL to the teacher on the teacher's own top-k support.

    S        the teacher's top-k valid tokens at a position
    p̄_s, p̄_T  student and teacher, each renormalised on S
    ℓ        Σ_{u∈S} p̄_s(u) log( p̄_s(u) / p̄_T(u) )
    ρ        Σ_{u∈S} p_s(u): the student's mass on S, monitored and not optimised

The forward direction, Σ p̄_T log(p̄_T / p̄_s), is the same with the two exchanged; the paper's is the reverse.

Since both are renormalised on S, tokens outside S get no direct gradient: watch ρ. k = 1 has zero gradient by
construction and is refused.
"""

from __future__ import annotations

import torch

from openhorizon.losses.divergence import Direction


def sva(
    logits_NV: torch.Tensor,
    support_NK: torch.Tensor,
    teacher_logprobs_NK: torch.Tensor,
    direction: Direction = "reverse",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-token loss and coverage, both of shape (N,); N positions, V vocabulary, K support.

    ``support_NK`` holds token ids, ``teacher_logprobs_NK`` the teacher's log-probabilities of them (any constant shift
    a row is removed by the renormalisation); -inf marks an invalid token, which then carries nothing.

    Raises:
        ValueError: K < 2.
    """
    if support_NK.shape[1] < 2:
        raise ValueError(
            f"distill.top_k={support_NK.shape[1]}: with fewer than 2 tokens the renormalised loss is constant"
        )
    logits_NV = logits_NV.float()
    valid_NK = torch.isfinite(teacher_logprobs_NK)
    chosen_NK = logits_NV.gather(1, support_NK)
    coverage_N = torch.exp(
        (chosen_NK - torch.logsumexp(logits_NV, dim=1, keepdim=True)).masked_fill(~valid_NK, -torch.inf)
    ).sum(1)
    student_NK = torch.log_softmax(chosen_NK.masked_fill(~valid_NK, -torch.inf), dim=1)
    teacher_NK = torch.log_softmax(teacher_logprobs_NK.float(), dim=1)
    # 0 · (-inf - -inf) is written as 0, for the gradient too.
    difference_NK = torch.where(valid_NK, student_NK - teacher_NK, 0.0)
    leading_NK = student_NK
    if direction == "forward":
        leading_NK, difference_NK = teacher_NK, -difference_NK
    loss_N = (torch.where(valid_NK, leading_NK.exp(), 0.0) * difference_NK).sum(1)
    return loss_N, coverage_N.detach()
