"""From a loss a token to one number. S samples, D domains.

The paper's order (section 2.3): mean over a sample's tokens, mean over a domain's samples, mean over active domains,
so that neither a long sample nor a large domain outweighs the others. It is a weighted sum over tokens, and a sum can
go through a model in parts.
"""

from __future__ import annotations

import torch


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
