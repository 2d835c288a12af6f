"""The best of several states of one model: which is kept, and when training has collapsed."""

from __future__ import annotations

from collections.abc import Callable

import torch

State = dict[str, torch.Tensor]


class Kept:
    """Validates the model as it is, and remembers the weights that did best; of equals, the earliest.

    ``drop``: collapse is success lower than the best by more than this.
    """

    def __init__(self, model: torch.nn.Module, validate: Callable[[str], float], drop: float) -> None:
        self.model, self.validate, self.drop = model, validate, drop
        self.found: dict[str, float] = {}
        self.name = ""
        self._state = State()

    def offer(self, name: str) -> bool:
        """True where the model has collapsed."""
        success = self.found[name] = self.validate(name)
        if not self.name or success > self.found[self.name]:
            self.name = name
            self._state = {key: value.detach().clone() for key, value in self.model.state_dict().items()}
        return success < self.found[self.name] - self.drop

    def restore(self) -> None:
        """The model as it did best."""
        self.model.load_state_dict(self._state)
