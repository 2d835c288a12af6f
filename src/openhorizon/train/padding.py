"""Short tasks made as long as long ones: a control for studies of the horizon. Is it the horizon, or the length?

Behind every observation a demonstration is given turns that were there before: an earlier call of the same episode with
what it returned, once more. They are context alone and carry no loss, so the model reads contexts
as long as those of a long task, and must look past them for what comes next, but decides no more often than a short
task asks for. Nothing is invented, and the verdict is that of the episode without them.
"""

from __future__ import annotations

from dataclasses import replace

from openhorizon.agent.render import Renderer
from openhorizon.agent.trajectory import Trajectory, Turn
from openhorizon.seeds import rng


def padded(renderer: Renderer, trajectory: Trajectory, count: int, limit: int, seed: int) -> Trajectory:
    """A rendered trajectory with ``count`` earlier steps repeated behind each observation that an assistant's turn
    follows; as it is where it would be longer than ``limit`` tokens, or has no step."""
    draw, steps, turns = rng(seed, "padding", trajectory.task.id), list[Turn](), list[Turn]()
    for i, turn in enumerate(trajectory.turns):
        turns.append(turn)
        if turn.role != "tool" or i + 1 == len(trajectory.turns):
            continue
        call = trajectory.turns[i - 1]
        both = (*renderer.assistant(call.text), *renderer.tool(turn.text))
        steps.append(Turn("tool", f"{call.text}\n{turn.text}", both))
        turns += [draw.choice(steps) for _ in range(count)]
    longer = replace(trajectory, turns=tuple(turns))
    return longer if len(longer.ids) <= limit else trajectory
