"""What a teacher's recipe is made of: phases of SFT and GRPO, rewards, and the choice of tasks to train on.

A recipe (one file each beside this one) is a function of its params block that gives phases in order; the stage runs
them without knowing which recipe they are of. An advantage takes the samples of one prompt and gives a number each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from openhorizon.agent.compaction import read_steps
from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.config import RewardConfig
from openhorizon.domains.base import Task
from openhorizon.losses.grpo import group_advantages

Advantage = Callable[[Sequence[Trajectory]], torch.Tensor]
Select = Callable[[Sequence[Sequence[Trajectory]], int], list[Task]]


@dataclass(frozen=True)
class Sft:
    """Fine-tuning on demonstrations of ``worlds`` (empty: all) for a share of the teacher's tokens."""

    name: str
    share: float = 1.0
    worlds: tuple[str, ...] = ()


@dataclass(frozen=True)
class Grpo:
    """GRPO on prompts of ``worlds`` (empty: all), chosen by ``select`` from several tries each, for a share of the
    teacher's iterations."""

    name: str
    advantage: Advantage
    select: Select
    share: float = 1.0
    worlds: tuple[str, ...] = ()


Phase = Sft | Grpo


def outcome(trajectory: Trajectory) -> float:
    """1 for an accepted answer, else 0. A TRUNCATED episode gave none."""
    return float(trajectory.status is Status.SOLVED)


def normalised(reward: Callable[[Trajectory], float]) -> Advantage:
    """The group-relative advantage of a reward."""

    def advantage(group: Sequence[Trajectory]) -> torch.Tensor:
        return group_advantages(torch.tensor([reward(t) for t in group]))

    return advantage


def graded(block: RewardConfig) -> Callable[[Trajectory], float]:
    """Outcome plus a share of the process score: a group in which nobody succeeds still says who came further."""
    return lambda trajectory: outcome(trajectory) + block.process_weight * trajectory.verdict.score


def efficiency_penalty(calls: int, free_calls: int, penalty: float) -> float:
    """The first ``free_calls`` calls are free, then each costs ``penalty`` (section 4.2, search)."""
    return penalty * max(calls - free_calls, 0)


def repetition_penalty(calls: Sequence[str], window: int, penalty: float, cap: float) -> float:
    """``penalty`` for each call that one of the ``window`` calls before it was already, at most ``cap`` a trajectory
    (section 4.2, search)."""
    repeated = sum(call in calls[max(i - window, 0) : i] for i, call in enumerate(calls))
    return min(penalty * repeated, cap)


def well_formed(trajectory: Trajectory) -> float:
    """Share of an episode's calls that were valid; 0 where no answer was given."""
    if trajectory.answer is None:
        return 0.0
    return 1 - sum(turn.error for turn in trajectory.turns) / max(trajectory.tool_calls, 1)


def calls_of(trajectory: Trajectory) -> list[str]:
    """Tool calls as written, in order, without the thoughts before them."""
    steps = [step for context in trajectory.contexts for step in read_steps(context.turns[1:])]
    return [f"{step.call.name} {sorted(step.call.arguments.items())}" for step in steps]


def turn_rewards(trajectory: Trajectory) -> list[float]:
    """Of each assistant turn: -1 for an invalid call, the share of the task's required evidence that the answer to it
    was the first to show, else 0."""
    wanted, rewards = set(trajectory.task.evidence), list[float]()
    whole = max(len(wanted), 1)
    for turn in trajectory.turns:
        if turn.role == "assistant":
            rewards.append(0.0)
        elif turn.role == "tool":
            found = wanted.intersection(turn.evidence)
            rewards[-1] = -1.0 if turn.error else len(found) / whole
            wanted -= found
    return rewards


def turn_advantages(group: Sequence[Trajectory]) -> list[torch.Tensor]:
    """Advantages of the turns of one prompt's samples, normalised over all of them (multi-turn credit assignment: Zeng
    et al. 2025, arXiv 2505.11821): which turn went wrong is told to that turn, not to the episode alone."""
    rewards = [turn_rewards(trajectory) for trajectory in group]
    flat = group_advantages(torch.tensor([reward for turns in rewards for reward in turns]))
    return list(flat.split([len(turns) for turns in rewards]))


def count_turns(trajectory: Trajectory) -> int:
    """Of the assistant."""
    return sum(turn.role == "assistant" for turn in trajectory.turns)


def mixed(tried: Sequence[Sequence[Trajectory]], limit: int) -> list[Task]:
    """Tasks that were sometimes solved and sometimes not, in the order given (section 4.2: questions of mixed outcomes
    over 5 tries)."""
    return [group[0].task for group in tried if len({outcome(t) for t in group}) > 1][:limit]


def near_misses(tried: Sequence[Sequence[Trajectory]], limit: int) -> list[Task]:
    """The hardest tasks within reach: not always solved, those whose failures met most of their rubric first (section
    4.2, tool calling: 64 near-miss tasks, reused)."""

    def reached(group: Sequence[Trajectory]) -> float:
        failures = [t.verdict.score for t in group if not outcome(t)]
        return sum(failures) / len(failures)

    missed = [group for group in tried if not all(map(outcome, group))]
    return [group[0].task for group in sorted(missed, key=reached, reverse=True)[:limit]]


def expected_reuse(iterations: int, prompts: int, group: int, tasks: int) -> float:
    """Expected trajectories a task, R·B·K / |D| (section 4.2)."""
    return iterations * prompts * group / tasks


def dealt(total: int, phases: Sequence[Phase], kind: type) -> dict[str, int]:
    """``total`` tokens or iterations over the phases of one kind by their shares, by name; at least 1 each, unless
    there are none at all: then that kind of phase is left out."""
    mine = [phase for phase in phases if isinstance(phase, kind)]
    whole = sum(phase.share for phase in mine)
    return {phase.name: max(math.floor(total * phase.share / whole), min(total, 1)) for phase in mine}
