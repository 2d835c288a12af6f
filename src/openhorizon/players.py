"""Who plays, by the name that commands and reports have for it."""

from __future__ import annotations

from pathlib import Path

from openhorizon.agent.player import Player, PolicyPlayer
from openhorizon.artifacts import checkpoint_dir
from openhorizon.config import MachineConfig

KNOWN = "base, sft, teacher@DOMAIN, baseline@NAME, student, smollm2, a checkpoint's folder"


def open_player(reference: str, machine: MachineConfig) -> Player:
    """A model of this checkout, ``smollm2`` out of its package, or a checkpoint's folder.

    Raises:
        FileNotFoundError, ValueError: there is no such model; the message says what to do.
    """
    from openhorizon.model.sampler import load_policy
    from openhorizon.model.smollm2 import smollm2

    folder = smollm2() if reference == "smollm2" else Path(reference)
    if not folder.is_dir():
        try:
            folder = checkpoint_dir(reference)
        except ValueError as error:
            raise ValueError(f"unknown model {reference!r}; known are {KNOWN}") from error
    policy = load_policy(folder, machine)
    return PolicyPlayer(policy, getattr(policy.checkpoint.model.config, "max_position_embeddings", None))


def ours(reference: str) -> bool:
    """Whether the model was trained here, on ``artifacts/generate``."""
    if reference == "smollm2" or Path(reference).is_dir():
        return False
    return checkpoint_dir(reference).is_dir()
