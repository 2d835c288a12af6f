"""Auxiliary losses of a mixture's routers, a number a layer.

Load balancing, eq. 4 to 6 of Switch Transformers (Fedus et al. 2021, arXiv 2101.03961; for K experts a token as in
GShard, Lepikhin et al. 2020, arXiv 2006.16668):

    ℓ = E Σ_e f_e P_e      f_e = share of the N·K assignments that expert e got      P_e = mean probability of e

1 where both are even, E/K where all tokens take the same K experts with all of the probability. Only P has a gradient.
transformers' ``load_balancing_loss_func`` divides the assignments by N, not by N·K, and pools counts and probabilities
over all layers before the product: with one layer it is K times this; with several, one layer's overload can hide
another's, which is why this is by layer (as MegaBlocks has it).

Router z loss, eq. 5 of ST-MoE (Zoph et al. 2022, arXiv 2202.08906): ℓ = mean over tokens of logsumexp(logits)².

Callers hand in real tokens only: padding is routed too, but says nothing. L layers, N tokens, E experts, K a token.
"""

from __future__ import annotations

import torch


def shares(chosen_LNK: torch.Tensor, experts: int) -> torch.Tensor:
    """f: the share of a layer's assignments that each expert got, (L, E)."""
    flat_LM = chosen_LNK.flatten(1)
    counts_LE = torch.zeros(len(flat_LM), experts, device=flat_LM.device)
    return counts_LE.scatter_add_(1, flat_LM, torch.ones_like(flat_LM, dtype=counts_LE.dtype)) / flat_LM.shape[1]


def load_balance(probabilities_LNE: torch.Tensor, chosen_LNK: torch.Tensor) -> torch.Tensor:
    """ℓ of each layer, (L,)."""
    experts = probabilities_LNE.shape[-1]
    return experts * (shares(chosen_LNK, experts) * probabilities_LNE.mean(1)).sum(1)


def router_z(logits_LNE: torch.Tensor) -> torch.Tensor:
    """ℓ of each layer, (L,)."""
    return torch.logsumexp(logits_LNE, dim=-1).square().mean(1)
