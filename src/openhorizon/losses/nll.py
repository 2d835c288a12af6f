"""Negative log-likelihood of response tokens: SFT (section 4.1)."""

from __future__ import annotations

import torch


def nll(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """-log p(target) a token, shape (N,); N trainable positions, V vocabulary. Not reduced: see ``reduce``."""
    return torch.nn.functional.cross_entropy(logits_NV.float(), targets_N, reduction="none")
