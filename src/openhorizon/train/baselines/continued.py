"""SFT goes on from the SFT model, on the demonstrations of all domains, for the FLOPs of distillation.

How many demonstrations: as many as SFT saw, or those of the teachers as well (``baselines.continued.demonstrations``).
"""

from __future__ import annotations

from openhorizon.train.baselines.given import Given, Made, fine_tuned


def run(given: Given) -> Made:
    block = given.config.continued
    return given.start, fine_tuned(given, given.demonstrations(block.demonstrations), block.optim)
