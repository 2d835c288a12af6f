"""The best of several states of one model: which is kept, and when training has collapsed."""

from __future__ import annotations

from collections.abc import Callable

import torch

from openhorizon.model.sharding import laid_out
from openhorizon.train.resume import State


class Kept:
    """Validates the model as it is, and remembers the weights that did best; of equals, the earliest.

    ``drop``: collapse is success lower than the best by more than this.
    """

    def __init__(self, model: torch.nn.Module, validate: Callable[[str], float], drop: float) -> None:
        self.model, self.validate, self.drop = model, validate, drop
        self.found: dict[str, float] = {}
        self.name = ""
        self._state = dict[str, torch.Tensor]()
        self._changes = 0

    def offer(self, name: str) -> bool:
        """True where the model has collapsed. What was offered before, by this name, is not validated again."""
        if name not in self.found:
            self.found[name] = self.validate(name)
            if not self.name or self.found[name] > self.found[self.name]:
                self.name = name
                self._state = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
                self._changes += 1
        success = self.found[name]
        return success < self.found[self.name] - self.drop

    def restore(self) -> None:
        """The model as it did best."""
        self.model.load_state_dict(self._state)

    def state(self) -> State:
        return State(self._state, [self.found, self.name, self._changes], self._changes)

    def take_up(self, state: State) -> None:
        self.found, self.name, self._changes = state.values
        own = self.model.state_dict()
        self._state = {name: laid_out(tensor, own[name]) for name, tensor in state.tensors.items()}
