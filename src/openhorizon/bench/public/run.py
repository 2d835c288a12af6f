"""A player on a benchmark's tasks: played in small batches, measured, and written to the journal as they finish."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from openhorizon.agent.player import Player, Script
from openhorizon.agent.render import read_action
from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.bench.public.base import GOLD, Benchmark, Result
from openhorizon.bench.public.journal import Journal
from openhorizon.domains.base import Call, Task
from openhorizon.seeds import derive

AT_ONCE = 32


@dataclass(frozen=True)
class Sampling:
    """How a player is asked."""

    temperature: float
    seed: int
    at_once: int = AT_ONCE  # tasks, and what a kill costs at most; no part of a result


def run(
    benchmark: Benchmark,
    player: Player,
    tasks: Sequence[Task],
    sampling: Sampling,
    journal: Journal,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Result]:
    """One result a task, in the order of ``tasks``; what the journal has is not played again, unless it was ABORTED."""
    _judge_again(benchmark, player, tasks, journal)
    done = {name for name, result in journal.results.items() if result.status is not Status.ABORTED}
    waiting = [task for task in tasks if task.id not in done]
    unjudged = {task.id: why for task in waiting if (why := benchmark.unjudged(task))}
    journal.add(
        (not_judged(benchmark, player, task, unjudged[task.id]), None) for task in waiting if task.id in unjudged
    )
    waiting = [task for task in waiting if task.id not in unjudged]
    for start in range(0, len(waiting), sampling.at_once):
        progress(len(tasks) - len(waiting) + start, len(tasks))
        batch = waiting[start : start + sampling.at_once]
        seeds = [derive(sampling.seed, "bench", benchmark.name, task.id) for task in batch]
        began = time.monotonic()
        played = player.rollout(
            {batch[0].world: benchmark.domain}, batch, seeds, {batch[0].domain: benchmark.budget}, sampling.temperature
        )
        seconds = (time.monotonic() - began) / len(batch)
        played = _judged(benchmark, played)
        journal.add((measured(benchmark, player, it, seconds), text_only(it)) for it in played)
    progress(len(tasks), len(tasks))
    return [journal.results[task.id] for task in tasks]


def _judged(benchmark: Benchmark, played: Sequence[Trajectory]) -> list[Trajectory]:
    """With the judge's verdicts, where there is one. What the system broke is not put before it."""
    if benchmark.judge is None:
        return list(played)
    asked = [it for it in played if it.status is not Status.ABORTED]
    verdicts = dict(zip(map(id, asked), benchmark.judge(asked), strict=True))
    return [verdicts.get(id(it), it) for it in played]


def _judge_again(benchmark: Benchmark, player: Player, tasks: Sequence[Task], journal: Journal) -> None:
    """Episodes that an earlier run played and got no verdict for."""
    waiting = [
        (result, journal.trajectories[task.id])
        for task in tasks
        if (result := journal.results.get(task.id)) and task.id in journal.trajectories
        if result.success is None and result.status is not Status.ABORTED
    ]
    judged = _judged(benchmark, [trajectory for _, trajectory in waiting])
    journal.add(
        (_again(measured(benchmark, player, it, before.seconds), before), it)
        for (before, _), it in zip(waiting, judged, strict=True)
    )


def _again(result: Result, before: Result) -> Result:
    """With the counts of when it was played: a journal keeps no token ids."""
    return replace(result, read_tokens=before.read_tokens, tokens=before.tokens)


def reference(benchmark: Benchmark, name: str) -> Script:
    """The benchmark's own solution, the answers that it ships, or its empty policy, as a player.

    Raises:
        ValueError: there is no such thing.
    """
    if name not in benchmark.references:
        why = f": {benchmark.no_gold}" if name == GOLD else ""
        raise ValueError(f"benchmark {benchmark.name} has no {name}{why}")
    return Script(name, benchmark.references[name])


def measured(benchmark: Benchmark, player: Player, trajectory: Trajectory, seconds: float) -> Result:
    """What an episode was worth. ABORTED is worth nothing, and is no failure either."""
    task, aborted = trajectory.task, trajectory.status is Status.ABORTED
    metrics = {} if aborted else benchmark.measure(trajectory)
    actions = [read_action(turn.text) for turn in trajectory.turns if turn.role == "assistant"]
    generated = trajectory.written
    return Result(
        task=task.id,
        group=benchmark.group(task),
        horizon=task.horizon,
        player=player.name,
        status=trajectory.status,
        success=metrics[benchmark.primary].value >= 1 if benchmark.primary in metrics else None,
        metrics=metrics,
        reason=trajectory.verdict.reason,
        tool_calls=trajectory.tool_calls,
        unreadable_calls=sum(isinstance(action, Call) and not action.name for action in actions),
        failed_calls=sum(turn.role == "tool" and turn.error for turn in trajectory.turns),
        read_tokens=len(trajectory.ids) - sum(trajectory.loss_mask),
        tokens=generated,
        seconds=seconds,
        answer=trajectory.answer,
    )


def not_judged(benchmark: Benchmark, player: Player, task: Task, why: str) -> Result:
    return Result(
        task.id, benchmark.group(task), task.horizon, player.name, None, None, {}, why, 0, 0, 0, 0, 0, 0.0, None
    )


def text_only(trajectory: Trajectory) -> Trajectory:
    """Without token ids: they serve training, and a journal is read by people and comparisons."""
    return replace(
        trajectory, turns=tuple(replace(turn, ids=(), logprobs=(), experts=None) for turn in trajectory.turns)
    )
