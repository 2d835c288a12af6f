"""Solvers: whoever tries a proposed task (the paper's π_S, section 2.2.2).

Three kinds behind one protocol: the domain's scripted expert with noise, a policy such as the current student's
checkpoint (batched through ``agent.rollout``), and a model behind an OpenAI-compatible endpoint. What they leave behind
is an ``Episode``: text only. A checkpoint's token ids are not kept, as the tokenizer that later stages train on these
texts need not be the checkpoint's.

A world that breaks says nothing of who acted in it. So its episode is tried again with the same seed, at most
``DEATH_TRIES`` times in all (the same bytes come out as if it had never broken), then it is ABORTED: counted, reported,
kept nowhere. A request that times out is retried by the endpoint's client and then ABORTED likewise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from openhorizon.agent.endpoint import Endpoint
from openhorizon.agent.render import read_action, write_action
from openhorizon.agent.rollout import Policy, rollout
from openhorizon.agent.talk import FAILED as ENDPOINT_FAILED
from openhorizon.agent.trajectory import Status, Trajectory, Turn
from openhorizon.config import BudgetConfig
from openhorizon.domains.base import (
    Answer,
    Call,
    Domain,
    Environment,
    EnvironmentDied,
    Observation,
    Step,
    Task,
    Verdict,
    replay,
    solve,
)
from openhorizon.seeds import derive, rng

DEATH_TRIES = 3
BATCH = 64  # tasks that a model tries at once
DIED, UNREACHED = "environment died", "endpoint failed"  # why an episode was aborted
EXPERT, DATASET = "expert", "dataset"  # in place of a checkpoint's hash


@dataclass(frozen=True)
class Episode:
    """What a solver did with a task, and what the domain's verifier said of it."""

    task: Task
    steps: tuple[Step, ...]
    answer: Answer | None
    verdict: Verdict
    seed: int
    policy: str = EXPERT
    turns: tuple[Turn, ...] = ()  # as a model wrote them; empty: as the steps say
    ended: Status | None = None  # where answer and verdict do not say it
    deaths: int = 0  # how often the environment broke before this came of it

    @property
    def status(self) -> Status:
        if self.ended is not None:
            return self.ended
        if self.answer is None:
            return Status.TRUNCATED
        return Status.SOLVED if self.verdict.passed else Status.FAILED


class Solver(Protocol):
    """Whoever tries tasks. ``persistent``: it tries a task as often as it may, since its solve rate is of interest;
    otherwise until the task is solved."""

    @property
    def batch(self) -> int: ...  # tasks at once

    @property
    def persistent(self) -> bool: ...

    def solve(self, tasks: Sequence[Task], seed: int) -> list[Episode]:
        """One episode a task, in the order of ``tasks``; the same task twice gives two independent ones."""


@dataclass(frozen=True)
class ExpertSolver:
    """The domain's scripted expert, a step of which goes astray with chance ``noise``."""

    domains: Mapping[str, Domain]
    noise: float
    max_calls: Callable[[int], int]  # by horizon
    batch: int = 1
    persistent: bool = False

    def solve(self, tasks: Sequence[Task], seed: int) -> list[Episode]:
        def one(task: Task, own: int) -> Episode:
            domain, calls = self.domains[task.world], self.max_calls(task.horizon)
            return survive(task, own, lambda: play(domain, task, own, self.noise, calls))

        return [one(task, own) for task, own in zip(tasks, own_seeds(tasks, seed), strict=True)]


@dataclass(frozen=True)
class PolicySolver:
    """A policy under the domain's budgets, such as ``model.sampler.LocalPolicy`` of the current student."""

    domains: Mapping[str, Domain]
    policy: Policy
    budgets: Mapping[str, BudgetConfig]
    temperature: float
    batch: int = BATCH
    persistent: bool = True

    def solve(self, tasks: Sequence[Task], seed: int) -> list[Episode]:
        tried = rollout(self.domains, tasks, self.policy, self.budgets, self.temperature, seed)
        return [from_trajectory(trajectory) for trajectory in tried]


@dataclass(frozen=True)
class EndpointSolver:
    """A model that someone serves."""

    domains: Mapping[str, Domain]
    endpoint: Endpoint
    budgets: Mapping[str, BudgetConfig]
    temperature: float
    batch: int = BATCH
    persistent: bool = True

    def solve(self, tasks: Sequence[Task], seed: int) -> list[Episode]:
        seeds = own_seeds(tasks, seed)
        tried = self.endpoint.rollout(self.domains, tasks, seeds, self.budgets, self.temperature)
        return [from_trajectory(trajectory) for trajectory in tried]


def own_seeds(tasks: Sequence[Task], seed: int) -> list[int]:
    """A seed an episode: depends on its task and on how often that came before, not on what else is tried."""
    seen: Counter[str] = Counter()
    found = []
    for task in tasks:
        found.append(derive(seed, task.id, seen[task.id]))
        seen[task.id] += 1
    return found


def play(domain: Domain, task: Task, seed: int, noise: float, max_calls: int) -> Episode:
    """One run of the scripted expert under a budget of tool calls, judged by the domain's verifier. Where the task came
    with a demonstration, that is replayed instead.

    Raises:
        EnvironmentDied: the environment broke, or its verifier did.
    """
    given = domain.demonstration(task)
    if given is None:
        environment, answer = solve(domain, task, rng(seed, "expert"), noise, max_calls)
    else:
        environment, answer = replay(domain, task, given)
    try:
        verdict = judge(domain, task, environment, answer)
    finally:
        environment.close()
    return Episode(task, tuple(environment.steps), answer, verdict, seed, EXPERT if given is None else DATASET)


def judge(domain: Domain, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
    """``domain.verify``; whatever it raises comes as ``EnvironmentDied``."""
    try:
        return domain.verify(task, environment, answer)
    except Exception as error:  # a world's own failure, whatever its type: the boundary of domains/base.py
        raise EnvironmentDied(f"verify: {type(error).__name__}: {error}") from error


def survive(task: Task, seed: int, run: Callable[[], Episode]) -> Episode:
    """What ``run`` gives, tried again where its environment dies; ABORTED where it always does."""
    reason = ""
    for deaths in range(DEATH_TRIES):
        try:
            episode = run()
        except EnvironmentDied as error:
            reason = str(error)
        else:
            return Episode(**{**vars(episode), "deaths": deaths}) if deaths else episode
    verdict = Verdict(False, 0.0, f"{DIED}: {reason}")
    return Episode(task, (), None, verdict, seed, ended=Status.ABORTED, deaths=DEATH_TRIES)


def from_trajectory(trajectory: Trajectory) -> Episode:
    """A rollout as self-play sees it: its calls with what came back, and its turns as text."""
    turns = tuple(Turn(t.role, t.text, evidence=t.evidence, error=t.error) for t in trajectory.turns)
    steps, answer = [], None
    for turn, after in zip(turns, (*turns[1:], None), strict=True):
        action = read_action(turn.text) if turn.role == "assistant" else None
        if isinstance(action, Call) and after is not None and after.role == "tool":
            steps.append(Step(action, Observation(after.text, after.evidence, after.error)))
        elif isinstance(action, Answer) and trajectory.answer is not None:
            answer = action
    status, verdict, deaths = trajectory.status, trajectory.verdict, 0
    if status is Status.ABORTED and not verdict.reason.startswith(ENDPOINT_FAILED):
        deaths, verdict = 1, Verdict(False, 0.0, f"{DIED}: {verdict.reason.removeprefix('environment: ')}")
    return Episode(
        trajectory.task, tuple(steps), answer, verdict, trajectory.seed, trajectory.policy, turns, status, deaths
    )


def turns_of(episode: Episode) -> tuple[Turn, ...]:
    """The episode in the chat's own form."""
    if episode.turns:
        return episode.turns
    turns = [Turn("prompt", episode.task.prompt)]
    for step in episode.steps:
        observation = step.observation
        turns.append(Turn("assistant", write_action(step.call)))
        turns.append(Turn("tool", observation.text, evidence=observation.evidence, error=observation.error))
    if episode.answer is not None:
        turns.append(Turn("assistant", write_action(episode.answer)))
    return tuple(turns)
