"""Who plays, by the name that commands and reports have for it."""

from __future__ import annotations

from pathlib import Path

from openhorizon.agent.endpoint import Endpoint
from openhorizon.agent.player import Player, PolicyPlayer
from openhorizon.artifacts import checkpoint_dir, require
from openhorizon.config import MachineConfig

SMOLLM2 = "smollm2"
SCHEMES = ("http://", "https://")
KNOWN = "base, sft, teacher@DOMAIN, baseline@NAME, student, smollm2, a checkpoint's folder, or URL#MODEL of an endpoint"


def open_player(reference: str, machine: MachineConfig) -> Player:
    """A model of this checkout, ``smollm2`` out of its package, a checkpoint's folder, or a model that someone serves,
    such as ``http://127.0.0.1:8000/v1#student``.

    Raises:
        FileNotFoundError, ValueError: there is no such model; the message says what to do.
    """
    if is_endpoint(reference):
        return open_endpoint(reference)
    from openhorizon.model.sampler import load_policy

    policy = load_policy(checkpoint_of(reference), machine)
    return PolicyPlayer(policy, getattr(policy.checkpoint.model.config, "max_position_embeddings", None))


def open_endpoint(reference: str) -> Endpoint:
    """The endpoint that ``URL#MODEL`` names. Raises ``ValueError`` where it names none."""
    url, _, model = reference.partition("#")
    if not is_endpoint(url) or not model:
        raise ValueError(f"{reference}: an endpoint is URL#MODEL, such as http://127.0.0.1:8000/v1#student")
    return Endpoint(url, model)


def checkpoint_of(reference: str) -> Path:
    """The folder of a checkpoint: of a model of this checkout, of ``smollm2``, or the folder that ``reference`` is.

    Raises:
        FileNotFoundError: its stage has not run.
        ValueError: there is no such model.
    """
    if reference == SMOLLM2:
        from openhorizon.model.smollm2 import smollm2

        return smollm2()
    if Path(reference).is_dir():
        return Path(reference)
    try:
        folder = checkpoint_dir(reference)
    except ValueError as error:
        raise ValueError(f"unknown model {reference!r}; known are {KNOWN}") from error
    return require(folder)


def is_endpoint(reference: str) -> bool:
    return reference.startswith(SCHEMES)


def ours(reference: str) -> bool:
    """Whether the model was trained here, on ``artifacts/generate``."""
    if reference == SMOLLM2 or is_endpoint(reference) or Path(reference).is_dir():
        return False
    return checkpoint_dir(reference).is_dir()
