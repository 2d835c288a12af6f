"""The contract of a domain: tasks, tools, environments, verifiers, a scripted expert.

A domain is the paper's (C_d, A_d, O_d, V_d) (section 2.2): a corpus, an action space (tools), observations and
verifiers. It needs neither torch nor transformers, so that a domain is written and tested without a model.

A domain has one or more worlds, each with a corpus, tools and verifier of its own: ``search`` is trails over short
facts, ``search/foldoc`` the same over a dictionary's full text. Samples are routed, weighed and reported by domain;
``generate.DOMAIN.worlds`` in params.yaml names the worlds that its tasks are drawn from.

Rules that every domain keeps (tests hold them):

* The expert sees what a policy sees (prompt and observations), never the reference answer or hidden state.
* The prompt's length does not grow with the horizon: what to do next is learned from observations.
* The verifier accepts the reference solution (the expert without noise) of every task.
* Training and held-out tasks share no seed and no entity pair: a pair belongs to one split by its hash.
* Nor do training tasks and those of validation, by which a teacher's state is chosen. Where tasks stand on a few large
  things that many of them share (a table, say), the domain sets some of these apart (``Domain.apart``, ``part_of``);
  elsewhere a few training tasks are taken, and no other training task may share a pair with them.
"""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import jsonschema

Split = Literal["train", "validation", "heldout"]
HELDOUT_PERCENT = 25


@dataclass(frozen=True)
class Tool:
    """A tool as a model sees it; ``parameters`` is a JSON Schema object."""

    name: str
    description: str
    parameters: Mapping[str, Any]

    def schema(self) -> dict[str, Any]:
        """The OpenAI function-calling form, which chat templates take."""
        return {
            "type": "function",
            "function": {"name": self.name, "description": self.description, "parameters": dict(self.parameters)},
        }


@dataclass(frozen=True)
class Task:
    """One question x = (q, d, τ, y*, E_q, V_q) of section 2.2.2, without its trajectory.

    ``state`` is JSON and rebuilds the environment; ``horizon`` is the number of tool calls (instruction: reasoning
    steps) that a shortest solution needs; ``entity_pairs`` is what the split is decided by. ``state``, ``evidence``
    and ``reference`` are never shown to a policy.
    """

    domain: str
    id: str
    split: Split
    prompt: str
    horizon: int
    seed: int
    state: Mapping[str, Any]
    evidence: tuple[str, ...]
    verifiers: tuple[str, ...]
    reference: str
    entity_pairs: tuple[tuple[str, str], ...]
    source: str = ""  # which of the domain's worlds, "" the first

    @property
    def world(self) -> str:
        """The key of the task's world in the registry."""
        return world_name(self.domain, self.source)


@dataclass(frozen=True)
class Call:
    """A tool call as parsed from a policy's turn; ``thought`` is the text before it."""

    name: str
    arguments: Mapping[str, Any]
    thought: str = ""


@dataclass(frozen=True)
class Answer:
    """A final answer: a turn without a tool call. ``thought`` is what stood inside <think></think>."""

    text: str
    thought: str = ""


Action = Call | Answer


@dataclass(frozen=True)
class Observation:
    """What a tool returned. ``evidence`` names the corpus items or state facts that it showed."""

    text: str
    evidence: tuple[str, ...] = ()
    error: bool = False


@dataclass(frozen=True)
class Step:
    """One executed action with its observation: (a_t, o_t)."""

    call: Call
    observation: Observation


@dataclass(frozen=True)
class Verdict:
    """What a verifier says: outcome, score in [0, 1], the reason in words and the rubric items behind the score."""

    passed: bool
    score: float
    reason: str
    rubric: Mapping[str, bool] = field(default_factory=dict)


class Environment(ABC):
    """A task's world while one episode runs. Subclasses implement ``execute``; arguments are valid by then."""

    def __init__(self, task: Task, tools: Sequence[Tool]) -> None:
        self.task = task
        self.tools = {tool.name: tool for tool in tools}
        self.steps: list[Step] = []

    def call(self, call: Call) -> Observation:
        """Validate, run and log one call. An invalid call is an observation, never an exception."""
        tool = self.tools.get(call.name)
        if tool is None:
            observation = Observation(f"error: no tool {call.name[:40]}", error=True)
        else:
            problem = next(jsonschema.Draft202012Validator(tool.parameters).iter_errors(dict(call.arguments)), None)
            observation = Observation("error: bad arguments", error=True) if problem is not None else self.execute(call)
        self.steps.append(Step(call, observation))
        return observation

    @abstractmethod
    def execute(self, call: Call) -> Observation: ...

    def close(self) -> None:  # noqa: B027 (most worlds hold nothing)
        """Give back what the episode held outside Python (a sandbox's folder, a simulator). Called once, at its end and
        after its verdict; never needed for a right verdict."""

    def consulted(self) -> set[str]:
        """Ids of all evidence shown so far."""
        return {item for step in self.steps for item in step.observation.evidence}


class NoActions(Environment):
    """Of a world without tools: no call passes validation, so there is nothing to act on."""

    def execute(self, call: Call) -> Observation:
        raise AssertionError(f"{self.task.world} has no tool {call.name}")


Expert = Generator[Action, Observation, None]


class Domain(ABC):
    """One world of a domain: what an agent can be asked to do there. The registry is ``openhorizon.domains``."""

    name: str  # of the domain
    source: str = ""  # of the world within it
    system: str  # system prompt, the same for every task
    tools: tuple[Tool, ...]
    scripted: bool = True  # False: no expert, its tasks come with demonstrations (those of the training split)
    apart: bool = False  # True: ``propose`` knows the split "validation"; False: training tasks serve for it

    @property
    def world(self) -> str:
        """This world's key in the registry."""
        return world_name(self.name, self.source)

    def offers(self, horizons: Sequence[int]) -> tuple[int, ...]:
        """Those of ``horizons`` that this world has tasks of; a fixed set of tasks may add its own."""
        return tuple(horizons)

    def guesses(self, task: Task) -> tuple[str, ...]:
        """Answers that somebody could give without the work: options named in the prompt, a rule ignored, a unit
        dropped. Self-play tries them all, and a task that accepts one is refused (rule 5, no shortcut)."""
        return ()

    def tools_for(self, task: Task) -> tuple[Tool, ...]:
        """What a policy is offered in this task: all tools, or, where a world has too many for one prompt, those of the
        services that the task is about. Never empty where ``tools`` is not."""
        return self.tools

    def demonstration(self, task: Task) -> tuple[Action, ...] | None:
        """A solution that came with the task, written by the people who wrote the task (a benchmark's gold calls, a
        simulator's gold path), or None. It may know what no policy was shown, so it is no expert: it is replayed by
        ``replay`` and labelled policy "dataset". A world with demonstrations needs no expert; training tasks only."""
        return None

    def recall(self, steps: Sequence[Step]) -> str | None:
        """What an agent keeps of these calls and observations when its context is full: a text made of nothing but what
        it called and saw, enough to go on (``agent/compaction.py``). None: a run of this world is not compacted."""
        return None

    def heldout_texts(self) -> tuple[str, ...]:
        """Texts of the public benchmark that this world is made from, one or more a test item: no training task of any
        world may contain them. Empty where there is no such benchmark, or its package is not installed."""
        return ()

    @abstractmethod
    def propose(self, rng: random.Random, split: Split, horizon: int, seed: int) -> Task | None:
        """One task of ``split`` whose shortest solution has ``horizon`` steps, or None where this draw gives none."""

    @abstractmethod
    def start(self, task: Task) -> Environment:
        """A fresh environment, the same for the same task."""

    @abstractmethod
    def expert(self, prompt: str, rng: random.Random, noise: float) -> Expert:
        """A scripted solver: yields actions, is sent observations. ``noise`` in [0, 1] is the chance a step goes astray
        (a detour, a wrong call that must be recovered from); 0 gives the reference solution."""

    @abstractmethod
    def verify(self, task: Task, environment: Environment, answer: Answer | None) -> Verdict:
        """Judge a finished episode; ``answer`` is None where the policy never gave one."""


def world_name(domain: str, source: str) -> str:
    return f"{domain}/{source}" if source else domain


def split_of(pair: tuple[str, str]) -> Split:
    """The one split that may use this entity pair, by hash: no register of used pairs is needed."""
    digest = hashlib.sha256("\x1f".join(pair).encode()).digest()
    return "heldout" if int.from_bytes(digest[:4], "big") % 100 < HELDOUT_PERCENT else "train"


def part_of(pair: tuple[str, str], percent: int) -> Split:
    """``split_of``, where so many percent of the training pairs are set apart for validation, by a hash of its own."""
    split = split_of(pair)
    digest = hashlib.sha256("\x1f".join(pair).encode()).digest()
    apart = split == "train" and int.from_bytes(digest[4:8], "big") % 100 < percent
    return "validation" if apart else split


class EnvironmentDied(RuntimeError):
    """A world broke under an episode: says nothing of who acted in it, so the episode is tried again."""


def solve(
    domain: Domain, task: Task, rng: random.Random, noise: float, max_steps: int
) -> tuple[Environment, Answer | None]:
    """Run the scripted expert on ``task``; the answer is None if it used ``max_steps`` tool calls without one. The
    caller closes the environment once it has its verdict.

    Raises:
        EnvironmentDied: start or a tool raised; the environment is closed by then.
    """
    with _alive(domain, task) as environment:
        expert = domain.expert(task.prompt, rng, noise)
        action = next(expert)
        for _ in range(max_steps + 1):
            if isinstance(action, Answer):
                return environment, action
            if len(environment.steps) == max_steps:
                break
            action = expert.send(carry_out(environment, action))
        return environment, None


def replay(domain: Domain, task: Task, actions: Sequence[Action]) -> tuple[Environment, Answer | None]:
    """Carry out a demonstration, to its first answer. Raises and leaves to the caller what ``solve`` does."""
    with _alive(domain, task) as environment:
        for action in actions:
            if isinstance(action, Answer):
                return environment, action
            carry_out(environment, action)
        return environment, None


def open_environment(domain: Domain, task: Task) -> Environment:
    """``domain.start``; whatever it raises comes as ``EnvironmentDied``."""
    try:
        return domain.start(task)
    except Exception as error:  # a world's own failure, whatever its type: a boundary, as in agent/rollout.py
        raise EnvironmentDied(f"start: {type(error).__name__}: {error}") from error


def carry_out(environment: Environment, call: Call) -> Observation:
    """``environment.call``; whatever the tool raises comes as ``EnvironmentDied``."""
    try:
        return environment.call(call)
    except Exception as error:  # the same boundary
        raise EnvironmentDied(f"{call.name}: {type(error).__name__}: {error}") from error


@contextmanager
def _alive(domain: Domain, task: Task) -> Iterator[Environment]:
    """A fresh environment, closed where the block raises."""
    environment = open_environment(domain, task)
    try:
        yield environment
    except BaseException:
        environment.close()
        raise
