"""Group-relative policy optimisation with clip-higher (section 4.2; Shao et al. 2024, DAPO 2025).

A_i   = (r_i - mean(r)) / (std(r) + ε) over the group of samples of one prompt
ratio = π(a_t) / π_old(a_t)
ℓ_t   = -min(ratio · A, clip(ratio, 1 - low, 1 + high) · A) + β KL_t - η H_t
KL_t  = exp(log π_ref - log π) - (log π_ref - log π) - 1      the k3 estimator
"""

from __future__ import annotations

import torch

EPSILON = 1e-6


def group_advantages(rewards_G: torch.Tensor) -> torch.Tensor:
    """Advantages of one group of G rewards; all zero where the rewards are equal (a dead group)."""
    if (rewards_G == rewards_G[0]).all():  # their mean is off by a rounding error, which dividing by ε would show
        return torch.zeros_like(rewards_G)
    centred_G = rewards_G - rewards_G.mean()
    return centred_G / (centred_G.square().mean().sqrt() + EPSILON)


def papo_advantages(outcome_G: torch.Tensor, process_G: torch.Tensor, negative_weight: float) -> torch.Tensor:
    """A_i = A_i^out + λ_neg · 1[r_i^out = 0] · A_i^proc, with A^proc normalised over the group's negative samples alone
    (section 4.2, tool calling). ``outcome_G`` in {0, 1}, ``process_G`` in [0, 1]."""
    advantages_G = group_advantages(outcome_G)
    negative_G = outcome_G == 0
    if negative_G.sum() > 1:
        advantages_G = advantages_G.clone()
        advantages_G[negative_G] += negative_weight * group_advantages(process_G[negative_G])
    return advantages_G


def grpo(
    logits_NV: torch.Tensor,
    targets_N: torch.Tensor,
    old_logprobs_N: torch.Tensor,
    reference_logprobs_N: torch.Tensor,
    advantages_N: torch.Tensor,
    clip_low: float,
    clip_high: float,
    kl: float,
    entropy: float,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Per-token loss of shape (N,) and per-token health (clipped, kl, entropy), detached.

    Every token of a sample carries the sample's advantage. ``logits_NV`` are those of the sampling temperature.
    """
    logprobs_NV = torch.log_softmax(logits_NV.float(), dim=1)
    logprobs_N = logprobs_NV.gather(1, targets_N[:, None])[:, 0]
    ratio_N = torch.exp(logprobs_N - old_logprobs_N)
    clipped_N = ratio_N.clamp(1 - clip_low, 1 + clip_high)
    gain_N = torch.minimum(ratio_N * advantages_N, clipped_N * advantages_N)
    gap_N = reference_logprobs_N - logprobs_N
    kl_N = torch.exp(gap_N) - gap_N - 1
    entropy_N = -(logprobs_NV.exp() * logprobs_NV.clamp(min=-1e4)).sum(1)
    loss_N = -gain_N + kl * kl_N - entropy * entropy_N
    health = {
        "clip_fraction": (ratio_N * advantages_N > clipped_N * advantages_N).float(),
        "kl": kl_N.detach(),
        "entropy": entropy_N.detach(),
    }
    return loss_N, health
