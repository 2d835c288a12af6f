"""Tool calling: SFT, then GRPO with an asymmetric (PAPO-style) advantage on near-miss tasks, reused (section 4.2).

A_i = A_i^out + λ_neg · 1[r_i^out = 0] · A_i^proc: the process score ranks failures only, so that a success is never
worth less for how it came about.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from openhorizon.agent.trajectory import Trajectory
from openhorizon.config import TeachConfig
from openhorizon.losses.grpo import papo_advantages
from openhorizon.train.teachers.phases import Advantage, Grpo, Phase, Sft, near_misses, outcome


def papo(negative_weight: float) -> Advantage:
    def advantage(group: Sequence[Trajectory]) -> torch.Tensor:
        outcomes = torch.tensor([outcome(t) for t in group])
        return papo_advantages(outcomes, torch.tensor([t.verdict.score for t in group]), negative_weight)

    return advantage


def phases(block: TeachConfig) -> tuple[Phase, ...]:
    return Sft("sft"), Grpo("grpo", papo(block.reward.process_weight), near_misses)
