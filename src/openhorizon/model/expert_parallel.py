"""Whole experts in different processes: transformers' expert parallelism, whose tokens travel to their experts.

Each of P processes owns E/P experts of every mixture layer (``machines.*.expert_parallel``) instead of a piece of each
layer's experts that is put together in all. A pass sends every (token, expert) pair to the expert's owner and its
result back, by two all-to-all exchanges a layer, so that an owner's gradients are those of all processes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers.distributed.expert_parallel import apply_expert_parallelism

from openhorizon.world import World

STYLES = {"gate_up_proj": "grouped_gemm", "down_proj": "grouped_gemm"}  # transformers' names: cut by expert


def spread(model: nn.Module, device: str) -> set[nn.Parameter]:
    """Leave this process its experts; returns their weights, for nothing else to cut.

    Raises:
        ValueError: experts that cannot be shared out evenly.
    """
    plan, world = dict[str, str](), World.here()
    for name, module in _mixtures(model):
        if module.num_experts % world.size:
            raise ValueError(
                f"machines.*.expert_parallel: {module.num_experts} experts cannot be shared out evenly to "
                f"{world.size} processes"
            )
        plan |= {f"{name}.{weights}": style for weights, style in STYLES.items()} | {name: "ep_dispatch_experts"}
    mesh = _mesh(device, world.size)
    apply_expert_parallelism(model, mesh["experts"], mesh["same_batch"], plan, "all_to_all")
    return {parameter for _, module in _mixtures(model) for parameter in module.parameters()}


@contextmanager
def together(module: Any) -> Iterator[None]:
    """Until the end of the block this process has all of one layer's experts, which wait for no other process."""
    own, forward, count = dict(module._parameters), module.forward, module.num_experts
    for name, part in own.items():
        module._parameters[name] = nn.Parameter(part.full_tensor(), requires_grad=False)
    del module.forward  # the class's own again
    module.num_experts, module._is_expert_parallel = len(own["down_proj"]), False
    try:
        yield
    finally:
        module.forward, module.num_experts, module._is_expert_parallel = forward, count, True
        module._parameters.update(own)


def apart(model: nn.Module) -> list[nn.Module]:
    """The layers' experts that lie in different processes."""
    return [module for _, module in _mixtures(model) if module._is_expert_parallel]


def _mixtures(model: nn.Module) -> list[tuple[str, Any]]:
    return [(n, m) for n, m in model.named_modules() if "gate_up_proj" in m._parameters and m.gate_up_proj.ndim == 3]


@functools.cache
def _mesh(device: str, size: int) -> DeviceMesh:
    """Each process has a batch of its own."""
    return init_device_mesh(device, (size, 1), mesh_dim_names=("experts", "same_batch"))
