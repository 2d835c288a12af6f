"""Batched decoding of many multi-turn conversations.

The model's cache layers decide how. A model of full attention (Mixtral, Qwen3-MoE, Llama), with short convolutions or
without (LFM2-MoE), reads prompts and observations in chunks, every row at its own position (``model/ragged.py``). One
with recurrent states (linear attention) goes in lock-step, a token a row (``model/lockstep.py``).
Both give what reading each conversation alone would give, up to the last bits of floating point.

Sampling draws one uniform number a position from a stream of the conversation's own seed, so that a conversation does
not depend on what else is in the batch, on the way of decoding, or on memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

from openhorizon.agent.rollout import Conversation
from openhorizon.config import MachineConfig
from openhorizon.model import lockstep, slots
from openhorizon.model.load import Checkpoint, load_checkpoint
from openhorizon.model.ragged import RaggedBatch
from openhorizon.model.routing import recording, routers
from openhorizon.model.rows import Row

CACHE_BYTES = 4 * 2**30  # where no machine block says otherwise
FREE_SHARE = 0.8  # of a GPU's free memory that the cache may take; the rest is for activations and logits


class LocalPolicy:
    """A checkpoint in this process. Satisfies ``agent.rollout.Policy``.

    ``batch`` conversations at once at most, fewer where keys and values would need more than ``cache_bytes``.
    """

    def __init__(
        self, checkpoint: Checkpoint, batch: int, cache_bytes: int = CACHE_BYTES, precision: str = "fp32"
    ) -> None:
        self.checkpoint, self.batch, self.cache_bytes, self.precision = checkpoint, batch, cache_bytes, precision
        self.name, self.renderer = checkpoint.hash, checkpoint.renderer
        self.ragged = slots.fits(checkpoint.model.config)
        self.records_experts = False  # whether conversations are told which experts their ids took
        tokenizer = checkpoint.tokenizer
        self.never = torch.zeros(checkpoint.model.config.vocab_size, dtype=torch.bool)  # ids that no turn may hold
        special = set(tokenizer.all_special_ids) | set(range(len(tokenizer), len(self.never)))
        self.never[sorted(special - {self.renderer.end_id})] = True

    @torch.inference_mode()
    def converse(
        self,
        conversations: Sequence[Conversation],
        temperature: float,
        progress: Callable[[int, int], None],
    ) -> None:
        """Raises ``ValueError`` where not even one conversation's keys and values fit into memory."""
        model = self.checkpoint.model
        never = self.never.to(model.device)
        total, low = len(conversations), self.precision == "bf16"
        token_bytes = cache_token_bytes(model.config, 2 if low else 4)
        longest = max((c.context_tokens for c in conversations), default=0)
        cache_bytes = self._cache_bytes(model.device)
        fitting = cache_bytes // max(token_bytes * longest * (1 if self.ragged else 2), 1)  # lock-step: spare room
        if not fitting:
            raise ValueError(
                f"a context of {longest:,} tokens needs {token_bytes * longest / 2**30:.2f} GiB of keys and values, "
                f"{cache_bytes / 2**30:.2f} GiB are there; raise machines.*.cache_gib or lower budget.*.context_tokens"
            )
        rows = [Row(conversation) for conversation in conversations]
        watched = recording(model) if self.records_experts and routers(model) else nullcontext()
        # Around it all: autocast keeps its copies of the weights until it is left.
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=low), watched as seen:
            if self.ragged and rows:
                dtype = torch.bfloat16 if low else torch.float32
                batch = RaggedBatch(
                    model, rows, never, self.renderer.end_id, self.batch, cache_bytes, token_bytes, dtype, seen
                )
                batch.run(temperature, lambda over: progress(over, total))
                return
            size = min(self.batch, fitting)
            for start in range(0, total, size):
                report = functools.partial(_report, progress, start, total)
                lockstep.run(model, rows[start : start + size], never, self.renderer.end_id, temperature, report, seen)

    def _cache_bytes(self, device: torch.device) -> int:
        """What the keys and values of a batch may take."""
        if device.type != "cuda":
            return self.cache_bytes
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        return min(self.cache_bytes, int(FREE_SHARE * (free - torch.cuda.memory_allocated(device))))


def cache_token_bytes(config: PreTrainedConfig, width: int) -> int:
    """Bytes of keys and values that a token takes in all layers; ``width`` bytes a number. Recurrent states, which do
    not grow, are not counted."""
    layers = sum(isinstance(layer, DynamicLayer) for layer in DynamicCache(config=config).layers)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * layers * heads * head_dim * width)


def _report(progress: Callable[[int, int], None], before: int, total: int, over: int) -> None:
    progress(before + over, total)


def local_policy(checkpoint: Checkpoint, machine: MachineConfig) -> LocalPolicy:
    """A checkpoint as a policy, as the machine block says."""
    return LocalPolicy(checkpoint, machine.rollout_batch, int(machine.cache_gib * 2**30), machine.precision)


def load_policy(path: Path, machine: MachineConfig) -> LocalPolicy:
    """A checkpoint folder as a policy."""
    return local_policy(load_checkpoint(path, machine), machine)
