"""Instruction following: two-stage GRPO, rules first, then answers from long documents by match (section 4.2).

The first stage is rewarded by the share of the rules that were followed, in the worlds that ``first`` names; the second
by the whole answer being right, in the others (where one world has both rules and documents: in the same). The paper
begins with GRPO at once; an SFT phase before it where ``tokens`` is above 0 is ours: a small model that is right in
none of its tries learns nothing from them.
"""

from __future__ import annotations

from openhorizon.config import TeachConfig
from openhorizon.train.teachers.phases import Grpo, Phase, Sft, graded, mixed, normalised, outcome


def phases(block: TeachConfig) -> tuple[Phase, ...]:
    before = (Sft("sft"),) if block.tokens else ()
    return (
        *before,
        Grpo("grpo_rules", normalised(graded(block.reward)), mixed, block.first_share, block.first),
        Grpo("grpo_match", normalised(outcome), mixed, 1 - block.first_share, block.then),
    )
