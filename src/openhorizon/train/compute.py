"""What training costs: tokens through models, and floating-point operations by the usual count.

FLOPs = 2 · N · tokens for a forward pass, 6 · N · tokens for one with its backward pass (Kaplan et al. 2020, "Scaling
laws for neural language models", arXiv 2001.08361, section 2.1), N the parameters that compute a token: of a mixture
the experts that were chosen, of embeddings all (a tied output layer is the same matrix). Attention over the context,
the optimizer and activations that are computed again are not in it, which is the same for whatever is compared.

A token is read once: prompt, observation and what is written alike, as with a cache of keys and values. Attempts that
were aborted and made again are not known here; the last one counts.
"""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedModel

from openhorizon.agent.trajectory import Trajectory
from openhorizon.model.upcycle import parameter_table
from openhorizon.train.resume import State

FORWARD, TRAINED = 2, 6  # FLOPs a token and parameter


class Meter:
    """Adds up what was spent, by purpose."""

    def __init__(self) -> None:
        self.flops = 0
        self._tokens = {"forward": 0, "trained": 0}
        self._purposes: dict[str, int] = {}

    def forward(self, purpose: str, model: PreTrainedModel, tokens: int) -> None:
        """``tokens`` that ``model`` read, without a gradient."""
        self._add("forward", purpose, tokens, FORWARD * active_parameters(model))

    def trained(self, purpose: str, model: PreTrainedModel, tokens: int) -> None:
        """``tokens`` that went forward and backward."""
        self._add("trained", purpose, tokens, TRAINED * active_parameters(model))

    def figures(self) -> dict[str, int]:
        """``flops``, ``tokens_forward`` and ``tokens_trained``, and ``tokens@PURPOSE``; each with ``spent_`` before."""
        kinds = {f"spent_tokens_{kind}": count for kind, count in self._tokens.items()}
        return {"spent_flops": self.flops} | kinds | {f"spent_tokens@{p}": n for p, n in self._purposes.items()}

    def state(self) -> State:
        return State({}, [self.flops, self._tokens, self._purposes])

    def take_up(self, state: State) -> None:
        self.flops, self._tokens, self._purposes = state.values

    def _add(self, kind: str, purpose: str, tokens: int, cost: int) -> None:
        self.flops += cost * tokens
        self._tokens[kind] += tokens
        self._purposes[purpose] = self._purposes.get(purpose, 0) + tokens


def active_parameters(model: PreTrainedModel) -> int:
    """N: how many parameters compute one token."""
    return parameter_table(model)["all"]["active"]


def tokens_of(trajectories: Iterable[Trajectory]) -> int:
    """All of their tokens, whoever wrote them."""
    return sum(len(trajectory.ids) for trajectory in trajectories)
