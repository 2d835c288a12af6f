"""AdamW with warm-up and a schedule; one place for an update step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

from openhorizon.config import OptimConfig
from openhorizon.model.sharding import gathered, laid_out
from openhorizon.train.resume import State
from openhorizon.world import World


class Optimizer:
    """AdamW over a model's matrices with decay, over its vectors without; ``steps`` is how many updates are planned.
    Where a model lies in pieces in several processes (``model/sharding.py``), each updates its own."""

    def __init__(self, model: torch.nn.Module, config: OptimConfig, steps: int) -> None:
        self.config, self.steps, self.done = config, max(steps, 1), 0
        parameters = [p for p in model.parameters() if p.requires_grad]
        assert parameters, "nothing to train: a frozen model (a teacher?) was handed to the optimizer"
        self.parameters = parameters
        layouts: dict[DeviceMesh | None, list[torch.nn.Parameter]] = {None: []}  # None: whole in every process
        for parameter in parameters:
            layouts.setdefault(parameter.device_mesh if isinstance(parameter, DTensor) else None, []).append(parameter)
        self.layouts, groups = layouts, []
        for kind in layouts.values():  # no operation takes a mixture of them
            groups += [
                {"params": [p for p in kind if p.ndim >= 2], "weight_decay": config.weight_decay},
                {"params": [p for p in kind if p.ndim < 2], "weight_decay": 0.0},
            ]
        self.adam = torch.optim.AdamW(groups, lr=config.lr, betas=(0.9, 0.95), eps=1e-8)

    def state(self) -> State:
        """What it has seen of the gradients, by the parameter's place, and its place in the schedule."""
        found = {
            f"{i}.{name}": value
            for i, parameter in enumerate(self.parameters)
            for name, value in self.adam.state.get(parameter, {}).items()
        }
        return State(found, self.done)

    def take_up(self, state: State) -> None:
        self.done = state.values
        self.adam.state.clear()
        for key, value in state.tensors.items():
            place, name = key.split(".")
            parameter = self.parameters[int(place)]
            own = value.to(parameter.device) if name != "step" else value  # AdamW counts on the CPU
            self.adam.state[parameter][name] = laid_out(own, parameter) if name != "step" else own

    @property
    def lr(self) -> float:
        """Learning rate of the next step."""
        warmup = max(round(self.config.warmup * self.steps), 1) if self.config.warmup else 0
        if self.done < warmup:
            return self.config.lr * (self.done + 1) / warmup
        if self.config.schedule == "constant":
            return self.config.lr
        progress = min((self.done - warmup) / max(self.steps - warmup, 1), 1.0)
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * progress))

    def step(self, losses: Iterable[torch.Tensor]) -> dict[str, float]:
        """One update from the sum of ``losses`` (each backpropagated as it comes, so that memory is one micro-batch's)
        over all processes, each of which has some.

        Raises:
            ValueError: the loss is not finite; the weights are left as they were.
        """
        total = 0.0
        for loss in losses:
            if not torch.isfinite(loss):
                self.adam.zero_grad(set_to_none=True)
                raise ValueError(f"loss is {loss.item()} at update {self.done}; lower the learning rate")
            loss.backward()
            total += loss.item()
        norm = self._clip() if World.here().size > 1 else clip_grad_norm_(self.parameters, self.config.grad_clip)
        for group in self.adam.param_groups:
            group["lr"] = lr = self.lr
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        self.done += 1
        return {"loss": _sum(total), "grad_norm": norm.item(), "lr": lr}

    def _clip(self) -> torch.Tensor:
        """``clip_grad_norm_`` over pieces, whose gradients are sums already, and wholes, whose are added up here."""
        world = World.here()
        for parameter in self.layouts[None]:
            if parameter.grad is not None:
                world.add(parameter.grad)
        norms = [get_total_norm([p.grad for p in kind if p.grad is not None]) for kind in self.layouts.values()]
        norm: torch.Tensor = torch.linalg.vector_norm(torch.stack([gathered(part) for part in norms]))
        for kind in self.layouts.values():
            clip_grads_with_norm_(kind, self.config.grad_clip, norm)
        return norm


def _sum(value: float) -> float:
    """Over all processes."""
    total = torch.tensor(value, dtype=torch.double)
    World.here().add(total)
    return total.item()
