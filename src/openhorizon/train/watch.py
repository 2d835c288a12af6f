"""What is monitored while a student is distilled: means by domain, turn and depth, gradient shares, seconds, alarms.

Depth is how far into what the student wrote in a context a token is, in quarters: 1 is the first quarter, 4 the last.
N positions, H hidden width.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from openhorizon.agent.trajectory import Status, Trajectory
from openhorizon.config import AlarmConfig
from openhorizon.world import World

LOGGED_TURNS = 4  # 1..3 and 4+
DEPTHS = 4


class Watch:
    """Means over an update's tokens, by name: sums and counts that grow with its micro-batches."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}
        self._gradients: dict[str, float] = {}

    def add(self, values: Mapping[str, torch.Tensor], index_N: torch.Tensor, labels: Sequence[str]) -> None:
        """Values (N,) of each position by quantity; ``index_N`` says which label a position counts for. Figures are
        called QUANTITY@LABEL; a label without a position has none."""
        counts = torch.bincount(index_N, minlength=len(labels)).tolist()
        for name, values_N in values.items():
            sums = torch.bincount(index_N, weights=values_N.double(), minlength=len(labels)).tolist()
            for label, total, count in zip(labels, sums, counts, strict=True):
                if count:
                    key = f"{name}@{label}"
                    self._sums[key] = self._sums.get(key, 0.0) + total
                    self._counts[key] = self._counts.get(key, 0.0) + count

    def gradient(self, hidden: torch.Tensor, index_N: torch.Tensor, labels: Sequence[str]) -> None:
        """Norms of the gradient at each last hidden state (N, H), by label: whose tokens pull how hard."""
        norm_N = hidden.float().norm(dim=1).double()
        for label, norm in zip(labels, torch.bincount(index_N, norm_N, minlength=len(labels)).tolist(), strict=True):
            self._gradients[label] = self._gradients.get(label, 0.0) + norm

    def share(self) -> None:
        """Be what all processes have seen of the update."""
        world = World.here()
        if world.size > 1:
            found = world.gather((self._sums, self._counts, self._gradients))
            self._sums, self._counts, self._gradients = (_added(parts) for parts in zip(*found, strict=True))

    def figures(self) -> dict[str, float]:
        """The means, and each label's share of the gradient norms."""
        pulled = sum(self._gradients.values())
        shares = {f"gradient_share@{label}": norm / pulled for label, norm in self._gradients.items() if pulled}
        return {name: total / self._counts[name] for name, total in self._sums.items()} | shares


def _added(parts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for part in parts for name in part)
    return {name: sum(part.get(name, 0.0) for part in parts) for name in names}


def turn_of_tokens(trajectory: Trajectory) -> torch.Tensor:
    """1 for tokens of the first assistant turn, 2 for the second, …: aligned with the trainable tokens."""
    turns = [turn for turn in trajectory.turns if turn.role == "assistant"]
    return torch.cat([torch.full((len(turn.ids),), i + 1) for i, turn in enumerate(turns)])


def depth_of_tokens(trajectory: Trajectory) -> torch.Tensor:
    """1 to ``DEPTHS``: aligned with the trainable tokens."""
    count = sum(trajectory.loss_mask)
    return torch.arange(count) * DEPTHS // max(count, 1) + 1


def rollout_figures(name: str, trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Success, length and how episodes ended, for one domain."""
    n = len(trajectories)
    return {
        f"success@{name}": sum(t.status is Status.SOLVED for t in trajectories) / n,
        f"truncated@{name}": sum(t.status is Status.TRUNCATED for t in trajectories) / n,
        f"aborted@{name}": sum(t.status is Status.ABORTED for t in trajectories) / n,
        f"length@{name}": sum(sum(t.loss_mask) for t in trajectories) / n,
    }


def alarms(now: Mapping[str, float], first: Mapping[str, float], config: AlarmConfig) -> list[str]:
    """In words, each domain whose ρ fell, or whose episodes grew, by more than the thresholds since ``first``, the
    first iteration's figures."""
    found = []
    for key, start in sorted(first.items()):
        quantity, _, name = key.partition("@")
        if key not in now or "/" in name:
            continue
        if quantity == "rho" and now[key] < start - config.rho_drop:
            found.append(
                f"ρ of {name} fell from {start:.3f} to {now[key]:.3f} (distill.alarm.rho_drop={config.rho_drop}): the "
                "loss no longer sees what the student does"
            )
        if quantity == "length" and now[key] > start * config.length_growth > 0:
            found.append(
                f"episodes of {name} grew from {start:.0f} to {now[key]:.0f} tokens "
                f"(distill.alarm.length_growth={config.length_growth})"
            )
    return found


class Clock:
    """Seconds by what they went into, and whatever the device still has to do for it."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.seconds, self._last = device, dict[str, float](), time.perf_counter()

    def lap(self, name: str) -> None:
        """What passed since the last lap goes to ``name``."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
