"""What updates do with a mixture's routers: auxiliary losses, health by layer, the replay of a rollout's choices.

A dense model has no routers, and nothing here changes its numbers; neither does it a mixture's where both coefficients
are 0 and nothing is replayed. Health is of every real token that passed since the last look, padding left out:

    load      tokens of the busiest expert over an even share: 1 is even, E/K one expert in every choice
    entropy   of a token's distribution over experts, mean, in units of log E: 1 is undecided
    dead      share of experts that got less than a hundredth of an even share
    balance   the load-balancing loss, z the router z loss (losses/balance.py), without their coefficients

L mixture layers, N tokens, E experts, K experts a token; R rows of T positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from transformers import PreTrainedModel

from openhorizon.agent.trajectory import Trajectory
from openhorizon.config import MachineConfig, RouterConfig
from openhorizon.losses.balance import load_balance, router_z, shares
from openhorizon.model.routing import UNKNOWN, probabilities, recording, replaying, routers
from openhorizon.train.packing import Pack, packed_hidden
from openhorizon.train.resume import State
from openhorizon.world import World

DEAD_SHARE = 0.01  # of an even share
LOOKS = 50  # at the health of a stage that has many updates
UNTOUCHED = RouterConfig(balance=0.0, z=0.0, replay=False)
WORST = {"load": max, "entropy": min, "dead": max, "balance": max, "z": max}


class Experts:
    """The routers of a model in training."""

    def __init__(self, model: PreTrainedModel, config: RouterConfig) -> None:
        self.model, self.config, self.layers = model, config, list(routers(model))
        self._seen = 0
        self._sums: dict[str, torch.Tensor] = {}

    @contextmanager
    def replayed(self, packed: Pack, samples: Sequence[Trajectory]) -> Iterator[None]:
        """Until the end of the block, the model takes the experts that these samples' rollouts took, if so configured.
        The backward pass belongs into the block: activations may be computed again in it."""
        if not self.layers or not self.config.replay:
            yield
            return
        with replaying(self.model, packed_experts(packed, samples)):
            yield

    def hidden(
        self, packed: Pack, machine: MachineConfig, update_tokens: int, counts: bool = True
    ) -> tuple[torch.Tensor, torch.Tensor | float]:
        """``packed_hidden`` and the auxiliary loss to add to the micro-batch's own, weighted by its share of the
        update's real tokens: the z loss adds up to that of the update at once, the load-balancing loss to the mean over
        micro-batches, each balanced by itself. Of a pass that does not count, health sees nothing."""
        if not self.layers:
            return packed_hidden(self.model, packed, machine), 0.0
        with recording(self.model) as seen:
            hidden_NH = packed_hidden(self.model, packed, machine)
        real_N = (packed.sample_RT >= 0).flatten().to(hidden_NH.device)
        chosen_LNK = seen.chosen_LNK()[:, real_N]
        wanted = bool(self.config.balance or self.config.z)
        with torch.set_grad_enabled(wanted and torch.is_grad_enabled()):
            logits_LNE = seen.logits_LNE()[:, real_N]
            probabilities_LNE = probabilities(self.model, logits_LNE)
            balance_L, z_L = load_balance(probabilities_LNE, chosen_LNK), router_z(logits_LNE)
        if counts:
            self._watch(probabilities_LNE.detach(), chosen_LNK, z_L.detach())
        if not wanted:
            return hidden_NH, 0.0
        loss = self.config.balance * balance_L.sum() + self.config.z * z_L.sum()
        return hidden_NH, loss * (packed.tokens / update_tokens)

    def state(self) -> State:
        """What was seen since the last look, in all processes."""
        seen, sums = self._all_seen()
        return State(sums, seen)

    def take_up(self, state: State) -> None:
        self._seen, device = state.values, next(self.model.parameters()).device
        self._sums = {name: total.to(device) for name, total in state.tensors.items()}
        if not World.here().first:  # what all have seen counts once
            self._seen, self._sums = 0, {}

    def due(self, step: int, steps: int) -> bool:
        """Whether to look at the health behind this of so many updates."""
        return (step + 1) % math.ceil(steps / LOOKS) == 0 or step + 1 == steps

    def health(self) -> tuple[dict[str, float], dict[str, float]]:
        """Since the last look: curves by layer (five a layer), and each figure's worst layer."""
        seen, sums = self._all_seen()
        if not seen:
            return {}, {}
        means = {name: total / seen for name, total in sums.items()}
        self._seen, self._sums = 0, {}
        experts = means["shares"].shape[1]
        found = {
            "load": experts * means["shares"].amax(1),
            "entropy": means["entropy"] / math.log(experts),
            "dead": (means["shares"] < DEAD_SHARE / experts).float().mean(1),
            "balance": experts * (means["shares"] * means["probabilities"]).sum(1),
            "z": means["z"],
        }
        values = {name: value_L.tolist() for name, value_L in found.items()}
        curves = {
            f"router/{name}/layer{layer}": value
            for name, by_layer in values.items()
            for layer, value in zip(self.layers, by_layer, strict=True)
        }
        return curves, {f"router_{name}": worst(values[name]) for name, worst in WORST.items()}

    def _all_seen(self) -> tuple[int, dict[str, torch.Tensor]]:
        """Tokens and sums of all processes."""
        world = World.here()
        if world.size == 1:
            return self._seen, self._sums
        found = world.gather((self._seen, {name: total.cpu() for name, total in self._sums.items()}))
        names = dict.fromkeys(name for _, sums in found for name in sums)
        whole = {name: torch.stack([sums[name] for _, sums in found if name in sums]).sum(0) for name in names}
        return sum(seen for seen, _ in found), whole

    @torch.no_grad()
    def _watch(self, probabilities_LNE: torch.Tensor, chosen_LNK: torch.Tensor, z_L: torch.Tensor) -> None:
        tokens, experts = probabilities_LNE.shape[1:]
        entropy_L = torch.special.entr(probabilities_LNE).sum(-1).mean(1)
        seen = {
            "shares": shares(chosen_LNK, experts),
            "probabilities": probabilities_LNE.mean(1),
            "entropy": entropy_L,
            "z": z_L,
        }
        for name, value in seen.items():
            held = self._sums.get(name)
            self._sums[name] = value.double() * tokens + (0 if held is None else held)
        self._seen += tokens


def packed_experts(packed: Pack, samples: Sequence[Trajectory]) -> torch.Tensor:
    """What the samples' rollouts chose, (R·T, L, K), at the places where ``packed`` has put them.

    Raises:
        ValueError: a sample's experts were not recorded.
    """
    recorded = []
    for sample in samples:
        experts = sample.experts
        if experts is None:
            raise ValueError(f"router.replay: the experts of trajectory {sample.task.id} were not recorded")
        recorded.append(torch.from_numpy(experts))
    starts = torch.tensor([0, *(len(experts) for experts in recorded)]).cumsum(0)
    real_N, sample_N = (packed.sample_RT >= 0).flatten(), packed.sample_RT.flatten()
    source_N = starts[sample_N] + packed.position_RT.flatten()
    placed = torch.full((len(real_N), *recorded[0].shape[1:]), UNKNOWN, dtype=torch.int16)
    placed[real_N] = torch.cat(recorded)[source_N[real_N]]
    return placed
