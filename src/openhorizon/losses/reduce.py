"""From a loss a token to one number. N tokens, S samples, D domains.

The paper's order (section 2.3): mean over a sample's tokens, mean over a domain's samples, mean over active domains,
so that neither a long sample nor a large domain outweighs the others.
"""

from __future__ import annotations

import torch


def token_mean(loss_N: torch.Tensor) -> torch.Tensor:
    """Mean over all tokens."""
    return loss_N.mean()


def sample_means(loss_N: torch.Tensor, sample_N: torch.Tensor, samples: int) -> torch.Tensor:
    """Mean over each sample's tokens, shape (S,). ``sample_N`` holds sample indices; no tokens give 0."""
    total_S = torch.zeros(samples, dtype=loss_N.dtype, device=loss_N.device).index_add(0, sample_N, loss_N)
    count_S = torch.bincount(sample_N, minlength=samples).clamp(min=1)
    return total_S / count_S


def domain_mean(loss_N: torch.Tensor, sample_N: torch.Tensor, domain_S: torch.Tensor) -> torch.Tensor:
    """L = 1/|D_B| Σ_d 1/|B_d| Σ_{i∈B_d} 1/|R_i| Σ_t ℓ_it, over the domains and samples present (section 2.3).

    ``domain_S`` holds a domain index a sample. Samples without trainable tokens do not count.
    """
    means_S = sample_means(loss_N, sample_N, len(domain_S))
    has_tokens_S = torch.bincount(sample_N, minlength=len(domain_S)) > 0
    per_domain = [
        means_S[has_tokens_S & (domain_S == domain)].mean() for domain in domain_S[has_tokens_S].unique().tolist()
    ]
    return torch.stack(per_domain).mean()
