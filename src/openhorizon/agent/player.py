"""Whoever plays episodes: a local checkpoint, a model behind an endpoint, a script.

Evaluation and benchmarks know nothing of a model but this. ``agent/endpoint.py:Endpoint`` is a player as it is; a
policy in this process becomes one as ``PolicyPlayer``; ``Script`` plays actions that are known beforehand, which is
what a benchmark's own solutions are.

What does not fit a player's context is no error here: a benchmark's prompt is as long as it is. Such an episode is
TRUNCATED before its first turn, with the reason in its verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from openhorizon.agent.render import write_action
from openhorizon.agent.rollout import Policy, rollout
from openhorizon.agent.trajectory import Status, Trajectory, Turn
from openhorizon.config import BudgetConfig
from openhorizon.domains.base import Action, Domain, EnvironmentDied, Task, Verdict, replay

TOO_LONG = "the prompt does not fit"


class Player(Protocol):
    """``name`` tells one player from another for good: a checkpoint's hash, an address with a model's name."""

    @property
    def name(self) -> str: ...

    def rollout(
        self,
        domains: Mapping[str, Domain],
        tasks: Sequence[Task],
        seeds: Sequence[int],
        budgets: Mapping[str, BudgetConfig],
        temperature: float,
    ) -> list[Trajectory]:
        """One trajectory a task, in the order of ``tasks``. ``domains`` are by world, ``budgets`` by domain."""


@dataclass(frozen=True)
class PolicyPlayer:
    """A policy in this process. ``context_tokens`` is what its model can read at most; None: whatever it is given."""

    policy: Policy
    context_tokens: int | None = None

    @property
    def name(self) -> str:
        return self.policy.name

    def rollout(
        self,
        domains: Mapping[str, Domain],
        tasks: Sequence[Task],
        seeds: Sequence[int],
        budgets: Mapping[str, BudgetConfig],
        temperature: float,
    ) -> list[Trajectory]:
        own = {name: self._bounded(budget) for name, budget in budgets.items()}
        finished: dict[int, Trajectory] = {}
        for i, (task, seed) in enumerate(zip(tasks, seeds, strict=True)):
            domain, limit = domains[task.world], own[task.domain].context_tokens
            length = len(self.policy.renderer.prompt(domain.system, domain.tools_for(task), task.prompt))
            if length >= limit:
                verdict = Verdict(False, 0.0, f"{TOO_LONG}: {length} tokens, the context has {limit}")
                turns = (Turn("prompt", task.prompt),)
                finished[i] = Trajectory(task, turns, None, Status.TRUNCATED, verdict, self.name, seed)
        playing = [i for i in range(len(tasks)) if i not in finished]
        played = rollout(
            domains, [tasks[i] for i in playing], self.policy, own, temperature, [seeds[i] for i in playing]
        )
        finished.update(zip(playing, played, strict=True))
        return [finished[i] for i in range(len(tasks))]

    def shows_tools(self, domain: Domain, task: Task) -> bool:
        """Whether its chat template tells the model of a world's tools; some leave that to the system prompt."""
        renderer, tools = self.policy.renderer, domain.tools_for(task)
        said = renderer.text(renderer.prompt(domain.system, tools, task.prompt))
        return not tools or said != renderer.text(renderer.prompt(domain.system, (), task.prompt))

    def _bounded(self, budget: BudgetConfig) -> BudgetConfig:
        return replace(budget, context_tokens=min(budget.context_tokens, self.context_tokens or budget.context_tokens))


@dataclass(frozen=True)
class Script:
    """Plays what ``actions`` gives for a task, whatever comes back. Budgets do not bind it: a solution is as long as
    it is."""

    name: str
    actions: Callable[[Task], Sequence[Action]]

    def rollout(
        self,
        domains: Mapping[str, Domain],
        tasks: Sequence[Task],
        seeds: Sequence[int],
        budgets: Mapping[str, BudgetConfig],
        temperature: float,
    ) -> list[Trajectory]:
        return [self._play(domains[task.world], task, seed) for task, seed in zip(tasks, seeds, strict=True)]

    def _play(self, domain: Domain, task: Task, seed: int) -> Trajectory:
        turns = [Turn("prompt", task.prompt)]
        try:
            environment, answer = replay(domain, task, self.actions(task))
        except EnvironmentDied as error:
            verdict = Verdict(False, 0.0, f"environment: {error}")
            return Trajectory(task, tuple(turns), None, Status.ABORTED, verdict, self.name, seed)
        try:
            verdict = domain.verify(task, environment, answer)
        finally:
            environment.close()
        for step in environment.steps:
            seen = step.observation
            turns.append(Turn("assistant", write_action(step.call)))
            turns.append(Turn("tool", seen.text, evidence=seen.evidence, error=seen.error))
        if answer is not None:
            turns.append(Turn("assistant", write_action(answer)))
        status = Status.TRUNCATED if answer is None else Status.SOLVED if verdict.passed else Status.FAILED
        return Trajectory(task, tuple(turns), answer.text if answer else None, status, verdict, self.name, seed)
