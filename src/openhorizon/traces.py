"""An episode as the spans of a trace: one for the episode, one a turn and a tool call, the verdict beside them.

What is here knows no tracing system; ``tracking/`` writes it to MLflow. An episode has no times of its own, so
spans follow each other a millisecond apart: their order means something, their length nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from openhorizon.agent.render import read_action
from openhorizon.agent.trajectory import Trajectory
from openhorizon.domains.base import Answer

Kind = Literal["AGENT", "LLM", "TOOL"]


@dataclass(frozen=True)
class Span:
    """One step of an episode. Values are JSON."""

    name: str
    kind: Kind
    inputs: Any
    outputs: Any
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Trace:
    """An episode: its own span, those of its steps in their order, and what the verifier said by name: (value, why)."""

    task: str
    tags: Mapping[str, str]
    episode: Span
    steps: tuple[Span, ...]
    verdict: Mapping[str, tuple[bool | float, str]]


def trace_of(trajectory: Trajectory, model: str) -> Trace:
    """The whole episode, in all of its contexts."""
    task, verdict = trajectory.task, trajectory.verdict
    steps, read, call = list[Span](), "", ("", dict[str, Any]())
    for turn in trajectory.turns:
        if turn.role == "assistant":
            action = read_action(turn.text)
            said = "answer" if isinstance(action, Answer) else action.name or "no valid call"
            call = ("", {}) if isinstance(action, Answer) else (action.name, dict(action.arguments))
            attributes: dict[str, Any] = {"tokens": len(turn.ids)}
            if turn.logprobs:
                attributes["mean_logprob"] = round(sum(turn.logprobs) / len(turn.logprobs), 4)
            steps.append(Span(f"turn: {said}", "LLM", read, turn.text, attributes))
        elif turn.role == "tool":
            seen = {"error": turn.error, "evidence": list(turn.evidence)}
            steps.append(Span(call[0] or "no tool", "TOOL", call[1], turn.text, seen))
        read = turn.text
    about: dict[str, Any] = {"status": trajectory.status.value, "horizon": task.horizon, "calls": trajectory.tool_calls}
    about |= {"policy": trajectory.policy, "seed": trajectory.seed, "rubric": dict(verdict.rubric)}
    return Trace(
        task=task.id,
        tags={"openhorizon.task": task.id, "openhorizon.world": task.world, "openhorizon.model": model},
        episode=Span(f"{task.world} {task.id}", "AGENT", task.prompt, trajectory.answer, about),
        steps=tuple(steps),
        verdict={"passed": (verdict.passed, verdict.reason), "score": (verdict.score, verdict.reason)},
    )
