"""Who plays: a checkpoint in this process or a model that someone serves, behind one call.

``open_player`` takes what a user writes: ``base``, ``sft``, ``teacher@DOMAIN``, ``baseline@NAME`` or ``student`` of
this run, ``smollm2`` (its package), the folder of a Hugging Face checkpoint, or ``URL#MODEL`` of an OpenAI-compatible
endpoint, such as ``http://127.0.0.1:8000/v1#student``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from openhorizon.agent.endpoint import Endpoint
from openhorizon.agent.rollout import Policy, rollout
from openhorizon.agent.trajectory import Trajectory
from openhorizon.artifacts import checkpoint_dir, require
from openhorizon.config import BudgetConfig, MachineConfig
from openhorizon.domains.base import Domain, Task
from openhorizon.model.sampler import load_policy
from openhorizon.model.smollm2 import smollm2

SMOLLM2 = "smollm2"
SCHEMES = ("http://", "https://")
Progress = Callable[[int, int], None]


def silent(done: int, total: int) -> None:
    """Where nobody watches."""


class Player(Protocol):
    """Whoever plays episodes. ``name`` says which weights: a checkpoint's hash, or a served model's name."""

    @property
    def name(self) -> str: ...

    def rollout(
        self,
        domains: Mapping[str, Domain],
        tasks: Sequence[Task],
        seeds: Sequence[int],
        budgets: Mapping[str, BudgetConfig],
        temperature: float,
        progress: Progress = silent,
    ) -> list[Trajectory]:
        """One trajectory a task, in the order of ``tasks``. An episode is decided by its task and seed."""


@dataclass(frozen=True)
class LocalPlayer:
    """A policy in this process."""

    policy: Policy

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
        progress: Progress = silent,
    ) -> list[Trajectory]:
        return rollout(domains, tasks, self.policy, budgets, temperature, seeds, progress)


def open_player(reference: str, machine: MachineConfig) -> Player:
    """The player that ``reference`` names.

    Raises:
        FileNotFoundError: the stage that makes this model has not run, or there is no such folder.
        ValueError: neither a model, nor a folder, nor ``URL#MODEL``; or what ``load_checkpoint`` refuses.
    """
    if reference.startswith(SCHEMES):
        return open_endpoint(reference)
    return LocalPlayer(load_policy(checkpoint_of(reference), machine))


def open_endpoint(reference: str) -> Endpoint:
    """The endpoint that ``URL#MODEL`` names. Raises ``ValueError`` where it names none."""
    url, _, model = reference.partition("#")
    if not url.startswith(SCHEMES) or not model:
        raise ValueError(f"{reference}: an endpoint is URL#MODEL, such as http://127.0.0.1:8000/v1#student")
    return Endpoint(url, model)


def checkpoint_of(reference: str) -> Path:
    """The folder of a checkpoint: of a model of this run, of ``smollm2``, or the folder that ``reference`` is.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: no such model, and no such folder.
    """
    if reference == SMOLLM2:
        return smollm2()
    try:
        return require(checkpoint_dir(reference))
    except ValueError as error:
        folder = Path(reference)
        if (folder / "config.json").is_file():
            return folder
        problem = "a folder without config.json" if folder.is_dir() else "no folder either"
        raise ValueError(f"{error}, smollm2, URL#MODEL, or a checkpoint's folder ({problem})") from None
