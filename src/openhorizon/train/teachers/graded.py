"""Engineering and scientific agent: SFT, then GRPO on grader scores (section 4.2)."""

from __future__ import annotations

from openhorizon.config import TeachConfig
from openhorizon.train.teachers.phases import Grpo, Phase, Sft, graded, mixed, normalised


def phases(block: TeachConfig) -> tuple[Phase, ...]:
    return Sft("sft"), Grpo("grpo", normalised(graded(block.reward)), mixed)
