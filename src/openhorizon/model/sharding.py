"""A model whose layers lie in pieces in the memories of the processes that train it together: PyTorch's FSDP2.

Each decoder layer is one unit: its weights, gradients and optimizer state are cut along their first dimension (experts
by expert), put together where the layer runs, and freed again. Embeddings, last norm and output layer, which the loops
call by themselves, are whole everywhere; ``train/optim.py`` adds up their gradients. Gradients are summed, not
averaged, since losses are normalised over a whole update already.

In a world of one process no model is changed by anything here.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from openhorizon.model.expert_parallel import apart, spread, together
from openhorizon.world import World


def shard(model: PreTrainedModel, expert_parallel: bool = False) -> None:
    """Leave this process its piece of each layer, or whole experts and its piece of the rest. ``model`` is the same in
    every process, and on its device."""
    world = World.here()
    if world.size == 1:
        return
    decoder: Any = model.get_decoder()
    mesh = init_device_mesh(model.device.type, (world.size,))
    experts = spread(model, model.device.type) if expert_parallel else set()
    for layer in decoder.layers:
        fully_shard(layer, mesh=mesh, ignored_params=experts)
    whole = {parameter for parameter in decoder.parameters() if not isinstance(parameter, DTensor)}
    fully_shard(decoder, mesh=mesh, ignored_params=whole | experts)
    for unit in _units(model):
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo has no other


@contextmanager
def whole(model: nn.Module) -> Iterator[None]:
    """Until the end of the block every process has all weights, and forward passes wait for no other process: for
    decoding, which takes a different number of steps in each."""
    units = _units(model)
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        with ExitStack() as stack:
            for experts in apart(model):
                stack.enter_context(together(experts))
            yield
    finally:
        for unit in units:
            unit.reshard()
            unit.set_reshard_after_forward(True, recurse=False)


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor, whose pieces lie in all processes; each of them must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_out(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """This process's piece of a whole ``tensor``, where ``like`` is one; else ``tensor`` itself."""
    if not isinstance(like, DTensor):
        return tensor
    there = tensor.to(like.device)
    return distribute_tensor(there, like.device_mesh, like.placements, src_data_rank=None)


def gathered_on_first(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """All of each tensor, in the first process's main memory; the others, which must ask too, get none. Alone, the
    tensors as they are."""
    world = World.here()
    if world.size == 1:
        return dict(tensors)
    found = {}
    for name, tensor in tensors.items():
        full = gathered(tensor)
        if world.first:
            found[name] = full.cpu()
    return found


def duplicate(model: PreTrainedModel) -> PreTrainedModel:
    """A copy with weights of its own, in the same pieces. FSDP2 refuses ``copy.deepcopy``."""
    if not _units(model):
        return copy.deepcopy(model)
    config = copy.deepcopy(model.config)
    with torch.random.fork_rng(), torch.device(model.device):
        made: PreTrainedModel = AutoModelForCausalLM.from_config(
            config,
            attn_implementation=config._attn_implementation,
            experts_implementation=config._experts_implementation,
        )
    made.float().train(model.training)
    shard(made, bool(apart(model)))
    with torch.no_grad():
        for name, own in made.state_dict(keep_vars=True).items():
            own.copy_(model.state_dict()[name])
    return made


def _units(model: nn.Module) -> list[FSDPModule]:
    return [module for module in model.modules() if isinstance(module, FSDPModule)]
