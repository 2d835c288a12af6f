"""What is minimised at each token the student wrote, and how tokens add up: registries, behind which the loop knows no
name.

Every objective has the form (logits (C, V), what the teacher said) → (loss (C,), coverage ρ (C,)), position by
position, so that logits are made some positions at a time (``losses/chunked.py``). One that needs the teacher's whole
distribution has it computed again in each chunk, from the teacher's last hidden states, which are kept in its place:
H numbers a token instead of V, for one more product with an output layer.

N positions, C of a chunk, V vocabulary, H hidden width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from openhorizon.config import DistillConfig
from openhorizon.losses.chunked import by_chunks
from openhorizon.losses.divergence import Direction, Said, entropy, full, gen_kl, sampled, tail
from openhorizon.losses.reduce import (
    Ratios,
    domain_weights,
    gap_scales,
    sample_weights,
    share_weights,
    sigma_scales,
    token_weights,
    unscaled,
)
from openhorizon.losses.sva import sva
from openhorizon.train.scores import Head, TeacherScores, Wanted, said_by

Loss = Callable[[torch.Tensor, Said, torch.Tensor | None, Direction], tuple[torch.Tensor, torch.Tensor]]


@dataclass(frozen=True)
class Objective:
    """``loss`` of (logits, what the teacher said, its log-probabilities (C, V) where ``whole``, direction)."""

    loss: Loss
    whole: bool = False


def _full(
    logits_CV: torch.Tensor, said: Said, whole_CV: torch.Tensor | None, direction: Direction
) -> tuple[torch.Tensor, torch.Tensor]:
    assert whole_CV is not None, "scores were made without the teacher's hidden states"
    return full(logits_CV, said, whole_CV, direction)


OBJECTIVES: dict[str, Objective] = {
    "sva": Objective(lambda logits, said, _, direction: sva(logits, said.support_NK, said.logprobs_NK, direction)),
    "gen_kl": Objective(lambda logits, said, _, direction: gen_kl(logits, said, direction)),
    "tail": Objective(lambda logits, said, _, direction: tail(logits, said, direction)),
    "full": Objective(_full, whole=True),
    "sampled": Objective(lambda logits, said, _, direction: sampled(logits, said)),
}


@dataclass(frozen=True)
class Aggregation:
    """``weights`` of a sample's tokens from (domain index, trainable tokens) a sample; ``scales`` of the domains, which
    multiply them, from the log-ratios of the written tokens, now and in the first iteration, where ``measured``."""

    weights: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    scales: Callable[[Ratios, Ratios, tuple[float, float]], dict[str, float]] = unscaled
    measured: bool = False


AGGREGATIONS: dict[str, Aggregation] = {
    "domain": Aggregation(domain_weights),
    "token": Aggregation(token_weights),
    "sample": Aggregation(sample_weights),
    "dn_sigma": Aggregation(sample_weights, sigma_scales, measured=True),
    "budget": Aggregation(share_weights, gap_scales, measured=True),
}


def wanted(config: DistillConfig) -> Wanted:
    """What the configured objective has to know of a teacher."""
    whole = OBJECTIVES[config.support_loss].whole
    return Wanted(config.top_k, config.top_mass, config.loss_temperature, whole)


def token_losses(
    head: Head,
    hidden_NH: torch.Tensor,
    vocabulary: int,
    written_N: torch.Tensor,
    scores: Sequence[TeacherScores],
    config: DistillConfig,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Loss, ρ and the student's entropy at each position, (N,) each; the latter two without a gradient, all at
    ``loss_temperature``.

    ``hidden_NH`` are the student's hidden states, of which ``head`` makes logits; ``scores`` those of the samples that
    the positions belong to, in the positions' order.
    """
    objective, device = OBJECTIVES[config.support_loss], hidden_NH.device
    rows = (
        torch.cat([s.support_NK for s in scores]).to(device),
        torch.cat([s.logprobs_NK for s in scores]).to(device),
        torch.cat([s.tail_mass_N for s in scores]).to(device),
        written_N,
        torch.cat([s.written_logprobs_N for s in scores]).to(device),
    )

    def some(
        heads: Sequence[Head], logits_CV: torch.Tensor, *values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        said, hidden = Said(*values[: len(rows)]), values[len(rows) :]
        logits_CV = tempered(logits_CV, config.loss_temperature)
        with torch.no_grad():
            logits = [tempered(h(x), config.loss_temperature) for h, x in zip(heads, hidden, strict=True)]
            whole_CV = said_by(logits) if logits else None
        return (*objective.loss(logits_CV, said, whole_CV, config.direction), entropy(logits_CV))

    if not objective.whole:
        loss_N, rho_N, entropy_N = by_chunks(head, hidden_NH, vocabulary, lambda *r: some((), *r), *rows)
        return loss_N, rho_N, entropy_N
    # One call a teacher, whose output layers and widths are its own; then back into the positions' order.
    teacher_N = torch.repeat_interleave(
        torch.tensor([[s.teacher for s in scores].index(s.teacher) for s in scores]),
        torch.tensor([len(s.support_NK) for s in scores]),
    )
    found, places = [], []
    for first in teacher_N.unique().tolist():
        mine_M = (teacher_N == first).nonzero()[:, 0].to(device)
        theirs = [s for s in scores if s.teacher == scores[first].teacher]
        hidden = [torch.cat(parts).to(device) for parts in zip(*(s.hidden for s in theirs), strict=True)]
        heads = scores[first].heads
        chosen = [row[mine_M] for row in rows]
        results = by_chunks(
            head, hidden_NH[mine_M], vocabulary, lambda *r, heads=heads: some(heads, *r), *chosen, *hidden
        )
        found.append(results)
        places.append(mine_M)
    back_N = torch.cat(places).argsort()
    loss_N, rho_N, entropy_N = (torch.cat(values)[back_N] for values in zip(*found, strict=True))
    return loss_N, rho_N, entropy_N


def tempered(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Logits at a temperature, without a copy at 1."""
    return logits if temperature == 1 else logits / temperature
