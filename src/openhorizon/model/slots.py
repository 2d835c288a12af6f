"""The cache of ragged decoding: a slot a conversation, each of its own length.

Keys and values lie in buffers of (slots, heads, capacity, D); a short convolution's last inputs in one of (slots, H,
kernel). T tokens of a pass, S chunks in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer, LinearAttentionCacheLayerMixin, LinearAttentionLayer


def convolution_gap(config: PreTrainedConfig) -> int:
    """Positions before a chunk that stand for what a short convolution saw before it."""
    return int(getattr(config, "conv_L_cache", 1)) - 1


def fits(config: PreTrainedConfig) -> bool:
    """Whether every layer's cache is one of these: full attention, or a short convolution (LFM2). Recurrent states and
    sliding windows are not."""
    layers = DynamicCache(config=config).layers
    kinds = {type(layer) for layer in layers}
    return kinds <= {DynamicLayer, LinearAttentionLayer} and (
        LinearAttentionLayer not in kinds or convolution_gap(config) > 0
    )


def recurrent(config: PreTrainedConfig) -> bool:
    """Whether a layer's state remembers all that it has read (linear attention), not the last few inputs alone."""
    layers = DynamicCache(config=config).layers
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in layers) and not convolution_gap(config)


class SlotCache(Cache):
    """``slots`` and ``capacity`` are what ``resize`` was last told."""

    def __init__(self, config: PreTrainedConfig, device: torch.device, dtype: torch.dtype) -> None:
        self.slots = self.capacity = 0
        self.keys_used: int | None = None
        self.slot_T = self.position_T = self.token_T = torch.empty(0)
        self.gap_slot_G = self.gap_G = self.gap_from_G = self.end_S = self.slot_S = torch.empty(0)
        inputs = torch.zeros(0, config.hidden_size, convolution_gap(config) + 1, device=device, dtype=dtype)
        layers = [
            KeyLayer(self, device, dtype) if type(layer) is DynamicLayer else InputLayer(self, inputs)
            for layer in DynamicCache(config=config).layers
        ]
        self.attentions = [layer for layer in layers if isinstance(layer, KeyLayer)]
        self.convolutions = [layer for layer in layers if isinstance(layer, InputLayer)]
        super().__init__(layers=list(layers))

    def resize(self, slots: int, capacity: int, live: int) -> None:
        """Other buffers, with what the first ``live`` slots hold."""
        self.slots, self.capacity = slots, capacity
        for layer in self.attentions:
            layer.resize(live)
        for inputs in self.convolutions:
            inputs.resize(live)

    def clear(self, slot: int) -> None:
        """For another conversation: keys need no clearing, since its length says which are its own."""
        for layer in self.convolutions:
            layer.state[slot] = 0

    def move(self, source: int, slot: int, length: int) -> None:
        """What one slot holds into another."""
        for layer in self.attentions:
            for buffer in layer.buffers:
                buffer[slot, :, :length] = buffer[source, :, :length]
        for inputs in self.convolutions:
            inputs.state[slot] = inputs.state[source]

    def reorder(self, order: Sequence[int]) -> None:
        """The first slots hold what these held."""
        for layer in self.attentions:
            for buffer in layer.buffers:
                buffer[: len(order)] = buffer[list(order)]
        for inputs in self.convolutions:
            inputs.state[: len(order)] = inputs.state[list(order)]

    def expect_step(self, position_B: torch.Tensor, keys_used: int) -> None:
        """Next is one token each for the first B slots, at these positions; they attend to so many keys at most."""
        self.slot_T = torch.arange(len(position_B), device=position_B.device)
        self.position_T, self.keys_used = position_B, keys_used
        for layer in self.convolutions:
            layer.conv_states[0] = layer.state[: len(position_B)]

    def expect_read(self, segments: Sequence[tuple[int, int, int, int]], gap: int, device: torch.device) -> None:
        """Next is one packed row of chunks, (slot, start, end, past) each, with ``gap`` positions before each."""
        self.keys_used = None
        at = [(slot, past + i, start + i) for slot, start, end, past in segments for i in range(end - start)]
        self.slot_T, self.position_T, self.token_T = torch.tensor(at, device=device).T
        if gap:
            before = [(slot, start - gap + i, i + 1) for slot, start, _, _ in segments for i in range(gap)]
            self.gap_slot_G, self.gap_G, self.gap_from_G = torch.tensor(before, device=device).T
            self.slot_S, self.end_S = torch.tensor([(slot, end) for slot, _, end, _ in segments], device=device).T

    def inputs_of(self, slots: Sequence[int]) -> list[torch.Tensor]:
        """A copy of what these slots' convolutions saw last, for ``put_back``."""
        return [layer.state[list(slots)] for layer in self.convolutions]

    def put_back(self, slots: Sequence[int], inputs: Sequence[torch.Tensor]) -> None:
        for layer, kept in zip(self.convolutions, inputs, strict=True):
            layer.state[list(slots)] = kept


class KeyLayer(DynamicLayer):
    """Keys and values of one layer, made where it first sees some: in their heads and width."""

    def __init__(self, cache: SlotCache, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.cache, self.buffers, self.wanted = cache, list[torch.Tensor](), (device, dtype)

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        cache, new = self.cache, (key_states, value_states)
        if not self.buffers:  # zeros: what a mask leaves out must still be finite
            device, dtype = self.wanted
            for states in new:
                shape = (cache.slots, states.shape[1], cache.capacity, states.shape[3])
                self.buffers.append(torch.zeros(shape, device=device, dtype=dtype))
        if cache.keys_used is None:
            for buffer, states in zip(self.buffers, new, strict=True):
                read_TKD = states[0].transpose(0, 1)[cache.token_T]
                buffer[cache.slot_T, :, cache.position_T] = read_TKD.to(buffer.dtype)
            return self.buffers
        for buffer, states in zip(self.buffers, new, strict=True):
            buffer[cache.slot_T, :, cache.position_T] = states[:, :, 0].to(buffer.dtype)
        return [buffer[: len(key_states), :, : cache.keys_used] for buffer in self.buffers]

    def resize(self, live: int) -> None:
        for i, old in enumerate(self.buffers):
            length = min(old.shape[2], self.cache.capacity)
            kept = min(live, len(old))  # the others have just come and hold nothing
            new = old.new_zeros(self.cache.slots, old.shape[1], self.cache.capacity, old.shape[3])
            new[:kept, :, :length] = old[:kept, :, :length]
            self.buffers[i] = new


class InputLayer(LinearAttentionLayer):
    """The last inputs of one short convolution. A step finds them as ``conv_states`` and writes them in place."""

    def __init__(self, cache: SlotCache, state: torch.Tensor) -> None:
        super().__init__()
        self.cache, self.state = cache, state
        self.has_previous_state[0] = True

    def update_conv_state(
        self, conv_states: torch.Tensor, state_idx: int = 0, conv_kernel_size: int | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Chunks (1, H, T) with their gaps filled by what the convolution saw before each."""
        cache, kernel = self.cache, self.state.shape[2]
        conv_states[0, :, cache.gap_G] = self.state[cache.gap_slot_G, :, cache.gap_from_G].T.to(conv_states.dtype)
        last_SK = cache.end_S[:, None] + torch.arange(-kernel, 0, device=conv_states.device)
        self.state[cache.slot_S] = conv_states[0][:, last_SK].transpose(0, 1).to(self.state.dtype)
        return conv_states

    def resize(self, live: int) -> None:
        new = self.state.new_zeros(self.cache.slots, *self.state.shape[1:])
        kept = min(live, len(self.state))
        new[:kept] = self.state[:kept]
        self.state = new
