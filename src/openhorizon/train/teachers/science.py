"""Science: two-stage SFT, reasoning without tools first, then with tools (section 4.2).

``first`` names the worlds without tools. The second stage takes all worlds, so that the first is not unlearned. The
paper's science teacher ends here; a GRPO phase follows where ``grpo.iterations`` is above 0, which is ours.
"""

from __future__ import annotations

from openhorizon.config import TeachConfig
from openhorizon.train.teachers.phases import Grpo, Phase, Sft, graded, mixed, normalised


def phases(block: TeachConfig) -> tuple[Phase, ...]:
    stages: tuple[Phase, ...] = (Sft("sft"),)
    if block.first:
        share = block.first_share
        stages = Sft("sft_reasoning", share, block.first), Sft("sft_tools", 1 - share, block.then)
    after = (Grpo("grpo", normalised(graded(block.reward)), mixed),) if block.grpo.iterations else ()
    return stages + after
