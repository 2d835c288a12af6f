"""What a mixture's routers decide: seen, and decided again as it was.

A router is found by structure, a block's ``gate`` beside its ``experts``, and gives (logits, weights, chosen experts):
so do LFM2-MoE, Mixtral, Qwen2-, Qwen3- and Qwen3.5-MoE (with a shared expert or without) in transformers. ``recording``
keeps what each gave in the last forward pass, with its gradient. ``replaying`` answers each router's top-k with
experts chosen before, so that its own code makes the weights, from today's logits at yesterday's experts: rollout
routing replay (R3; Ma et al. 2025, arXiv 2510.11370), whose weights are a softmax over the replayed experts. The
gradient reaches the router through the weights, as ever.

N tokens (rows × positions, flattened), L mixture layers, E experts, K experts a token.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

UNKNOWN = -1  # in place of an expert that was not recorded: the router's own choice is taken
SIGMOID = {"lfm2_moe"}  # model types that score each expert by itself; the others take a softmax over all


def routers(model: nn.Module) -> dict[int, nn.Module]:
    """The routers by their layer's number, in order; none in a dense model."""
    found: dict[int, nn.Module] = {}
    for name, block in model.named_modules():
        children = dict(block.named_children())
        parameters = dict(children["experts"].named_parameters(recurse=False)) if "experts" in children else {}
        if "gate" in children and "gate_up_proj" in parameters:
            numbers = re.findall(r"\.layers\.(\d+)\.", f".{name}.")
            assert len(numbers) == 1, f"a mixture outside of the layers: {name}"
            found[int(numbers[0])] = children["gate"]
    return found


class Recorder:
    """What the routers gave in the last forward pass. A pass in which activations are computed again gives the same
    once more, so that nothing is counted twice."""

    def __init__(self, layers: int) -> None:
        self._logits: list[torch.Tensor | None] = [None] * layers
        self._chosen: list[torch.Tensor | None] = [None] * layers

    def keep(self, layer: int, module: nn.Module, inputs: Any, output: tuple[torch.Tensor, ...]) -> None:
        logits_NE, _, chosen_NK = output
        self._logits[layer], self._chosen[layer] = logits_NE, chosen_NK

    def logits_LNE(self) -> torch.Tensor:  # noqa: N802  (shape suffix)
        """Router logits in fp32, with their gradient."""
        return torch.stack(_all(self._logits)).float()

    def chosen_LNK(self) -> torch.Tensor:  # noqa: N802
        """The experts of each token, best first (replayed: in the order of the record)."""
        return torch.stack(_all(self._chosen))

    def chosen_NLK(self) -> torch.Tensor:  # noqa: N802
        """The same by token, int16 on the CPU: as a trajectory carries it."""
        return self.chosen_LNK().transpose(0, 1).to(device="cpu", dtype=torch.int16)


def _all(tensors: list[torch.Tensor | None]) -> list[torch.Tensor]:
    present = [tensor for tensor in tensors if tensor is not None]
    assert len(present) == len(tensors), "a router did not run"
    return present


@contextmanager
def recording(model: nn.Module) -> Iterator[Recorder]:
    """Keep what ``model``'s routers give until the end of the block; it does not change what they give."""
    found = routers(model)
    recorder = Recorder(len(found))
    handles = [
        router.register_forward_hook(functools.partial(recorder.keep, i)) for i, router in enumerate(found.values())
    ]
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaying(model: nn.Module, experts_NLK: torch.Tensor) -> Iterator[None]:
    """Forward passes of N tokens take these experts; ``UNKNOWN`` leaves a token's choice to the router. Where
    activations are computed again in the backward pass, that belongs into the block too.

    Raises:
        ValueError: the record is of another number of layers or experts a token, or a pass of other tokens.
    """
    found = routers(model)
    if experts_NLK.shape[1] != len(found):
        raise ValueError(f"routing of {experts_NLK.shape[1]} layers cannot be replayed in a model with {len(found)}")
    device = next(model.parameters()).device
    forced_LNK = experts_NLK.to(device=device, dtype=torch.long).transpose(0, 1).contiguous()
    with ExitStack() as restored:
        for router, forced_NK in zip(found.values(), forced_LNK, strict=True):
            router.forward = functools.partial(_forced, router.forward, forced_NK)
            restored.callback(delattr, router, "forward")  # the class's own again
        yield


def _forced(own: Callable[..., Any], forced_NK: torch.Tensor, *arguments: Any, **named: Any) -> Any:
    with _Answered(forced_NK) as answered:
        output = own(*arguments, **named)
    assert answered.times == 1, f"a router that takes a top-k {answered.times} times cannot be replayed"
    return output


class _Answered(TorchFunctionMode):
    """Inside, a top-k gives the experts it is told, and their scores."""

    def __init__(self, forced_NK: torch.Tensor) -> None:
        super().__init__()
        self.forced_NK, self.times = forced_NK, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func not in (torch.topk, torch.Tensor.topk):
            return result
        self.times += 1
        scores_NE, own_NK = args[0], result.indices
        if own_NK.shape != self.forced_NK.shape:
            told, wanted = tuple(self.forced_NK.shape), tuple(own_NK.shape)
            raise ValueError(f"routing of {told} (tokens, experts) cannot be replayed in a pass of {wanted}")
        index_NK = torch.where(self.forced_NK == UNKNOWN, own_NK, self.forced_NK)
        return scores_NE.gather(-1, index_NK), index_NK


def probabilities(model: PreTrainedModel, logits_LNE: torch.Tensor) -> torch.Tensor:
    """The routers' distributions over experts: a softmax, or sigmoid scores over their sum (as the sequence-wise
    balance loss of DeepSeek-V3 takes them; arXiv 2412.19437, eq. 17 to 20)."""
    if model.config.model_type in SIGMOID:
        scores_LNE = logits_LNE.sigmoid()
        return scores_LNE / scores_LNE.sum(-1, keepdim=True)
    return logits_LNE.softmax(-1)
