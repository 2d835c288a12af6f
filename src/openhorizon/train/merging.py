"""One model out of several of one shape, by arithmetic on their weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

Weights = dict[str, torch.Tensor]  # a state dict


def mean_weights(models: Mapping[str, PreTrainedModel]) -> Weights:
    """1/D · Σ_d θ_d over D models by domain (Wortsman et al. 2022, "Model soups", arXiv 2203.05482).

    Raises:
        ValueError: models of several shapes.
    """
    check_shapes(models)
    weights: Weights = {}
    for model in models.values():
        for name, value in model.state_dict().items():
            weights[name] = weights[name] + value if name in weights else value
    return {name: value / len(models) for name, value in weights.items()}


def task_arithmetic(start: PreTrainedModel, models: Mapping[str, PreTrainedModel], scale: float) -> Weights:
    """θ_0 + λ · Σ_d (θ_d − θ_0), ``start`` θ_0 and ``scale`` λ (Ilharco et al. 2023, "Editing models with task
    arithmetic", arXiv 2212.04089). With λ = 1/D it is the mean.

    Raises:
        ValueError: models of several shapes, or of another than ``start``.
    """
    check_shapes({"the start": start, **models})
    own, others = start.state_dict(), [model.state_dict() for model in models.values()]
    return {name: value + scale * sum(theirs[name] - value for theirs in others) for name, value in own.items()}


def check_shapes(models: Mapping[str, PreTrainedModel]) -> None:
    """Raises ``ValueError`` with the first whose weights have other names or shapes than those of the first of all."""
    (first, ours), *others = [(n, {k: v.shape for k, v in m.state_dict().items()}) for n, m in models.items()]
    for name, theirs in others:
        if theirs != ours:
            raise ValueError(f"merging needs models of one shape; that of {name!r} is another than that of {first!r}")
