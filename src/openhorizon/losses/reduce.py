"""From a loss a token to one number, as weights: a weighted sum over tokens can go through a model in parts.

The paper's order (section 2.3, ``domain_weights``): mean over a sample's tokens, over a domain's samples, over active
domains, so that neither a long sample nor a large domain outweighs the others. The alternatives weigh tokens or
samples alike, or domains by what was measured on the rollouts:

    dn_sigma  w_d = clip(σ_all / σ_d): domains whose feedback is spread wider count less. σ_d is the population's
              standard deviation of r = log q(y) - log p(y), teacher's less student's log-probability of the written
              tokens, over the domain's tokens, σ_all that over all (DN-MOPD, arXiv 2609.35347)
    budget    w_d ∝ clip(g_d / g_d at the start), g_d the mean |r|: with an equal share of the loss for every domain,
              the budget then follows the gap that remains (Open-MOPD, arXiv 2608.19098: target shares and the
              anchored, multiplying direction of its reward scale)

S samples, D domains.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

Ratios = Mapping[str, torch.Tensor]  # domain → r of its tokens


def domain_weights(domain_S: torch.Tensor, tokens_S: torch.Tensor) -> torch.Tensor:
    """What a sample's tokens weigh each, 1 / (|D_B| · |B_d| · |R_i|), shape (S,), over the domains and samples there:
    L = 1/|D_B| Σ_d 1/|B_d| Σ_{i∈B_d} 1/|R_i| Σ_t ℓ_it (section 2.3) is the sum of weight times loss.

    ``domain_S`` holds a domain index a sample, ``tokens_S`` its trainable tokens; samples without any weigh 0 and do
    not count.
    """
    counted_S = tokens_S > 0
    samples_D = torch.bincount(domain_S[counted_S], minlength=int(domain_S.max()) + 1)
    weight_S = 1 / ((samples_D > 0).sum() * samples_D[domain_S] * tokens_S)
    return torch.where(counted_S, weight_S, 0.0)


def token_weights(domain_S: torch.Tensor, tokens_S: torch.Tensor) -> torch.Tensor:
    """1 / Σ_i |R_i| for all: every token counts the same."""
    return torch.full(tokens_S.shape, 1 / max(int(tokens_S.sum()), 1))


def sample_weights(domain_S: torch.Tensor, tokens_S: torch.Tensor) -> torch.Tensor:
    """1 / (|B| · |R_i|): mean over a sample's tokens, then over samples, whatever their domain."""
    counted_S = tokens_S > 0
    return torch.where(counted_S, 1 / (counted_S.sum() * tokens_S), 0.0)


def share_weights(domain_S: torch.Tensor, tokens_S: torch.Tensor) -> torch.Tensor:
    """1 / (|D_B| · Σ_{i∈B_d} |R_i|): mean over a domain's tokens, then over active domains."""
    tokens_D = torch.bincount(domain_S, weights=tokens_S.float(), minlength=int(domain_S.max()) + 1)
    weight_S = 1 / ((tokens_D > 0).sum() * tokens_D[domain_S])
    return torch.where(tokens_S > 0, weight_S, 0.0)


def unscaled(now: Ratios, first: Ratios, bounds: tuple[float, float]) -> dict[str, float]:
    """1 for every domain."""
    return dict.fromkeys(now, 1.0)


def sigma_scales(now: Ratios, first: Ratios, bounds: tuple[float, float]) -> dict[str, float]:
    """DN-MOPD's w_d; 1 where a deviation is 0 or of fewer than two tokens."""
    low, high = bounds
    pooled = _deviation(torch.cat([r_N.flatten() for r_N in now.values()]))
    own = {name: _deviation(r_N) for name, r_N in now.items()}
    return {name: min(max(pooled / sigma, low), high) if sigma * pooled > 0 else 1.0 for name, sigma in own.items()}


def gap_scales(now: Ratios, first: Ratios, bounds: tuple[float, float]) -> dict[str, float]:
    """Each domain's remaining gap over that of ``first``, within ``bounds``, over the mean of these: they average to 1.
    A domain without a gap at the start, or that was not there, counts as unchanged."""
    low, high = bounds
    moved = {}
    for name, r_N in now.items():
        start = first[name].abs().mean().item() if name in first else 0.0
        moved[name] = min(max(r_N.abs().mean().item() / start, low), high) if start > 0 else 1.0
    mean = sum(moved.values()) / len(moved)
    return {name: value / mean for name, value in moved.items()}


def _deviation(r_N: torch.Tensor) -> float:
    return r_N.double().std(correction=0).item() if len(r_N) > 1 else 0.0
