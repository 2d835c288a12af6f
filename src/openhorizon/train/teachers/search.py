"""Search: SFT, then GRPO on questions of mixed outcome (section 4.2).

reward = outcome + process share - efficiency penalty - repetition penalty + format share

The penalties keep an agent from answering by wandering: beyond a number of free calls each costs a little, and so does
a call made again within a window, up to a cap. What differs from the paper: the judge is the domain's own verifier, and
its process score takes part, so that a group in which nobody succeeds still says who came further.
"""

from __future__ import annotations

from openhorizon.agent.trajectory import Trajectory
from openhorizon.config import RewardConfig, TeachConfig
from openhorizon.train.teachers.phases import (
    Grpo,
    Phase,
    Sft,
    calls_of,
    efficiency_penalty,
    graded,
    mixed,
    normalised,
    repetition_penalty,
    well_formed,
)


def reward(trajectory: Trajectory, block: RewardConfig) -> float:
    calls = calls_of(trajectory)
    return (
        graded(block)(trajectory)
        - efficiency_penalty(trajectory.tool_calls, block.free_calls, block.call_penalty)
        - repetition_penalty(calls, block.repeat_window, block.repeat_penalty, block.repeat_cap)
        + block.format_weight * well_formed(trajectory)
    )


def phases(block: TeachConfig) -> tuple[Phase, ...]:
    return Sft("sft"), Grpo("grpo", normalised(lambda t: reward(t, block.reward)), mixed)
