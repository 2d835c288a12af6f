"""Policy × environment under budgets: episodes in, trajectories out (recipe stage 3, "rollout").

A policy is anything that can continue conversations; this module owns what a turn means. Control is inverted on
purpose: the policy asks each conversation for its reply, so that a batched sampler can keep every cache warm and
never waits for the slowest episode of a turn.

Outcomes: a verified answer is SOLVED or FAILED. An episode that runs out of tool calls, turn tokens or context is
TRUNCATED: kept as a valid prefix. One whose environment broke is ABORTED, tried again, and never trained on.

Where a world can say what to keep of a long run (``Domain.recall``), a context that has no room for another turn is
followed by a new one, of the prompt and that memory; the trajectory has a second prompt turn there
(``agent/compaction.py``).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from openhorizon.agent.compaction import with_memory
from openhorizon.agent.render import Renderer, read_action
from openhorizon.agent.trajectory import Status, Trajectory, Turn
from openhorizon.config import BudgetConfig
from openhorizon.domains.base import Answer, Domain, EnvironmentDied, Task, Verdict, open_environment
from openhorizon.seeds import derive

ABORT_TRIES = 3


class Conversation(Protocol):
    """One side of an episode, as a policy sees it."""

    seed: int  # decides every random choice of this conversation, whatever else is in the batch
    prompt_ids: list[int]
    turn_tokens: int  # budget of one generated turn
    context_tokens: int  # budget of everything, from the prompt on

    def reply(self, ids: Sequence[int], logprobs: Sequence[float], complete: bool) -> list[int] | None:
        """Take a generated turn; ``complete`` is False where a budget ran out (``ids`` may be empty then: what the last
        reply returned did not fit). Returns the ids to read before the
        next turn, or None when the episode is over."""

    def routed(self, experts: npt.NDArray[np.int16]) -> None:
        """Take what a mixture's routers chose at each id of this context that was read, (ids, layers, experts a token).
        Called once a context, when it is over, by a policy that records it."""


class Policy(Protocol):
    """Whatever can continue conversations: a local model, a server, a script in a test."""

    name: str  # checkpoint hash
    renderer: Renderer

    def converse(
        self,
        conversations: Sequence[Conversation],
        temperature: float,
        progress: Callable[[int, int], None],
    ) -> None:
        """Continue every conversation until its ``reply`` returns None. Temperature 0 is greedy. ``progress`` is told
        how many of how many conversations are over."""


class Episode:
    """A task's conversation with its environment."""

    def __init__(
        self,
        domain: Domain,
        task: Task,
        renderer: Renderer,
        budget: BudgetConfig,
        policy: str,
        seed: int,
        max_turns: int | None = None,
    ):
        self.domain, self.task, self.renderer, self.policy = domain, task, renderer, policy
        self.seed = self.own_seed = seed  # the first is that of the context it is in
        self.turn_tokens, self.context_tokens = budget.turn_tokens, budget.context_tokens
        self.max_calls = allowed_calls(budget, task.horizon) if domain.tools else 0
        if max_turns is not None:
            self.max_calls = min(self.max_calls, max_turns - 1)  # the last turn may answer, or call in vain
        self.environment = open_environment(domain, task)
        self.turns = list[Turn]()
        self.experts = list[npt.NDArray[np.int16]]()  # of each context, where the policy records them
        self._begin(task.prompt, self._rendered(task.prompt))
        self.answer: Answer | None = None
        self.status: Status | None = None
        self.verdict = Verdict(False, 0.0, "not finished")

    def reply(self, ids: Sequence[int], logprobs: Sequence[float], complete: bool) -> list[int] | None:
        self.waiting = False
        text = self.renderer.text(ids)
        if ids:
            self.turns.append(Turn("assistant", text, tuple(ids), tuple(logprobs)))
        if not complete:
            self._end(Status.TRUNCATED)
            return None
        action = read_action(text)
        if isinstance(action, Answer):
            self.answer = action
            self._end(None)
            return None
        if len(self.environment.steps) >= self.max_calls:
            self._end(Status.TRUNCATED)
            return None
        try:
            observation = self.environment.call(action)
        except Exception as error:  # the one boundary: a broken environment is data about the system, not the policy
            self.status = Status.ABORTED
            self.verdict = Verdict(False, 0.0, f"environment: {type(error).__name__}: {error}")
            self.environment.close()
            return None
        fed = self.renderer.tool(observation.text)
        self.turns.append(Turn("tool", observation.text, tuple(fed), (), observation.evidence, observation.error))
        self.used += len(ids) + len(fed)
        return None if self._renewed() else fed

    def routed(self, experts: npt.NDArray[np.int16]) -> None:
        self.experts.append(experts)

    def _rendered(self, prompt: str) -> list[int]:
        return self.renderer.prompt(self.domain.system, self.domain.tools_for(self.task), prompt)

    def _begin(self, prompt: str, ids: list[int]) -> None:
        self.prompt_ids, self.used, self.waiting = ids, len(ids), True
        self.turns.append(Turn("prompt", prompt, tuple(ids)))

    def _renewed(self) -> bool:
        """Whether this context has no room for another turn and a new one, which has, was begun in its place."""
        if self.used + self.turn_tokens < self.context_tokens:
            return False
        memory = self.domain.recall(self.environment.steps)
        if memory is None:
            return False
        prompt = with_memory(self.task.prompt, memory)
        ids = self._rendered(prompt)
        if len(ids) + self.turn_tokens >= self.context_tokens:
            return False
        self._begin(prompt, ids)
        self.seed = derive(self.own_seed, "context", len(self.turns))
        return True

    def _end(self, status: Status | None) -> None:
        self.verdict = self.domain.verify(self.task, self.environment, self.answer)
        self.environment.close()
        self.status = status or (Status.SOLVED if self.verdict.passed else Status.FAILED)

    def trajectory(self) -> Trajectory:
        assert self.status is not None, "the policy left a conversation unfinished"
        answer = self.answer.text if self.answer else None
        made = Trajectory(self.task, tuple(self.turns), answer, self.status, self.verdict, self.policy, self.own_seed)
        return made.with_experts(self.experts) if self.experts else made


def allowed_calls(budget: BudgetConfig, horizon: int) -> int:
    """Tool calls that an episode of this horizon may use."""
    return math.ceil(budget.slack * horizon) + budget.extra


def must_fit(
    domains: Mapping[str, Domain], tasks: Iterable[Task], renderer: Renderer, budgets: Mapping[str, BudgetConfig]
) -> None:
    """Refuse a prompt that leaves an episode no room, before anything is played or trained.

    Raises:
        ValueError: with the prompt's tokens and the key of its budget.
    """
    for task in tasks:
        domain = domains[task.world]
        tokens = len(renderer.prompt(domain.system, domain.tools_for(task), task.prompt))
        _must_fit(task, tokens, budgets[task.domain])


def _must_fit(task: Task, tokens: int, budget: BudgetConfig) -> None:
    if tokens >= budget.context_tokens:
        raise ValueError(
            f"budget.{task.domain}.context_tokens={budget.context_tokens}: the prompt of task "
            f"{task.id} alone has {tokens} tokens"
        )


def rollout(
    domains: Mapping[str, Domain],
    tasks: Sequence[Task],
    policy: Policy,
    budgets: Mapping[str, BudgetConfig],
    temperature: float,
    seed: int | Sequence[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
    max_turns: int | None = None,
    chosen: Sequence[int] | None = None,
) -> list[Trajectory]:
    """One trajectory a task, in the order of ``tasks``; the same task twice gives two independent samples. An episode's
    seed depends on its task and on how often that came before, not on what else is rolled out; ``seed`` is one for all
    of them, or one a task.

    Tasks of several domains are rolled out together, since a step of the policy costs much the same for few
    conversations as for many; each meets the environment and the budget of its own domain.

    ABORTED episodes are tried again, ABORT_TRIES times in all, each with a seed of its own; what still fails comes
    back as ABORTED, for the caller to count. ``max_turns`` is the most that an episode may have, whatever its budget.
    With ``chosen``, only the tasks at these places are played, as they would be among all.

    Raises:
        ValueError: a prompt does not fit the context budget.
    """
    finished: dict[int, Trajectory] = {}
    chosen = range(len(tasks)) if chosen is None else chosen
    waiting = list(chosen)
    nth, seen = list[int](), Counter[str]()
    for task in tasks:
        nth.append(seen[task.id])
        seen[task.id] += 1
    for attempt in range(ABORT_TRIES):
        episodes: dict[int, Episode] = {}
        for i in waiting:
            task, budget = tasks[i], budgets[tasks[i].domain]
            own = derive(seed if isinstance(seed, int) else seed[i], task.id, nth[i], attempt)
            try:
                episodes[i] = Episode(domains[task.world], task, policy.renderer, budget, policy.name, own, max_turns)
            except EnvironmentDied as error:  # it did not even start
                verdict, turns = Verdict(False, 0.0, f"environment: {error}"), (Turn("prompt", task.prompt),)
                finished[i] = Trajectory(task, turns, None, Status.ABORTED, verdict, policy.name, own)
                continue
            _must_fit(task, len(episodes[i].prompt_ids), budget)
        # Long ones together: a batch ends with its longest episode.
        order = sorted(episodes, key=lambda i: (-tasks[i].horizon, i))
        talking = [episodes[i] for i in order]
        while talking:
            policy.converse(talking, temperature, progress)
            talking = [episode for episode in talking if episode.waiting]  # in a new context
        finished.update((i, episode.trajectory()) for i, episode in episodes.items())
        waiting = [i for i in waiting if finished[i].status is Status.ABORTED]
        if not waiting:
            break
    return [finished[i] for i in chosen]
