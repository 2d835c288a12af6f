"""Models as Hugging Face checkpoints: build, load, save, hash. Weights only as safetensors."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as hf_logging

from openhorizon.agent.render import Renderer
from openhorizon.artifacts import require
from openhorizon.config import MachineConfig, ModelConfig
from openhorizon.model.attention import SEGMENTS
from openhorizon.model.induction import start_with_induction
from openhorizon.model.moe import choose_experts
from openhorizon.model.sharding import gathered_on_first, shard
from openhorizon.model.shards import read_weights, weights_hash
from openhorizon.world import World

hf_logging.set_verbosity_error()  # the reference convolution is what runs on CPU; it need not be said at every load
hf_logging.disable_progress_bar()  # the stage has its own


@dataclass(frozen=True)
class Checkpoint:
    """A model with what it takes to talk to it. ``hash`` names the weights."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    renderer: Renderer
    hash: str


@dataclass(frozen=True)
class Teacher:
    """A frozen checkpoint of one domain. Its weights take no gradient, so it can never be the student."""

    domain: str
    checkpoint: Checkpoint


def new_model(start: ModelConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """A model of a stock family from scratch, fp32, its random weights decided by ``seed``."""
    config = start.scratch
    own: dict[str, Any] = {
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
    }
    hf = AutoConfig.for_model(config.family, **sizes_of(start, len(tokenizer)), **own)
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(hf, attn_implementation=SEGMENTS)
    if config.induction:
        if config.family != "lfm2_moe":
            raise ValueError(f"model.scratch.induction: only for lfm2_moe (it has convolutions); got {config.family}")
        start_with_induction(model)
    model.float()
    return model


def sizes_of(start: ModelConfig, vocabulary: int) -> dict[str, Any]:
    """What a family's config says of a model from scratch, its tokenizer aside."""
    config = start.scratch
    common: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "moe_intermediate_size": config.moe_intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "norm_topk_prob": True,
        "max_position_embeddings": start.max_tokens,
        "tie_word_embeddings": True,
    }
    if config.family == "lfm2_moe":
        kinds = ["full_attention" if i in config.attention_layers else "conv" for i in range(config.num_layers)]
        common |= {
            "layer_types": kinds,
            "num_dense_layers": config.num_dense_layers,
            "use_expert_bias": True,
            "conv_L_cache": config.conv_kernel,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        }
    else:
        common |= {
            "mlp_only_layers": list(range(config.num_dense_layers)),
            "head_dim": config.hidden_size // config.num_heads,
            "router_aux_loss_coef": 0.001,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0},
        }
    return common


def load_checkpoint(path: Path, machine: MachineConfig) -> Checkpoint:
    """Load a checkpoint folder of ours or of any Hugging Face causal language model.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: what ``load_weights`` refuses, or a tokenizer with ids past the model's vocabulary.
    """
    model = load_weights(path, machine.device)
    tokenizer = load_tokenizer(path, model)
    place(model, machine)
    return Checkpoint(model, tokenizer, Renderer(tokenizer), weights_hash(path))


def load_weights(path: Path, device: str, config: PreTrainedConfig | None = None) -> PreTrainedModel:
    """A folder's model on the CPU, in fp32 whatever it is stored in: training adds steps to weights that bf16 would
    round away. ``config`` takes the place of its own.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: not a checkpoint, a shard or a weight missing or damaged or not finite, or more weights than the
            memory of this machine, or of ``device``, has room for.
    """
    require(path)
    require_room(str(path), sum(weight.size for weight in read_weights(path).values()), device)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=torch.float32,
            attn_implementation=SEGMENTS,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: not a usable checkpoint ({_first_line(error)})") from error
    except Exception as error:  # safetensors raises its own type, which is not importable as an error class everywhere
        if type(error).__name__ != "SafetensorError":
            raise
        raise ValueError(f"{path}: damaged weights ({error}); delete the folder and run its stage again") from error
    model: PreTrainedModel = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])  # transformers would start them at random
    if missing:
        raise ValueError(f"{path}: {len(missing)} weights of a {model.config.model_type} missing, such as {missing[0]}")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(f"{path}: weights of {name} are not finite")
    return model


def load_tokenizer(path: Path, model: PreTrainedModel) -> PreTrainedTokenizerFast:
    """A folder's tokenizer, if it fits ``model``. Raises ``ValueError``: none, or ids past the model's vocabulary."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path}: no usable tokenizer ({_first_line(error)})") from error
    needed = max(tokenizer.get_vocab().values(), default=-1) + 1
    if needed > model.config.vocab_size:
        raise ValueError(f"{path}: tokenizer has {needed} tokens, the model only {model.config.vocab_size}")
    loaded: PreTrainedTokenizerFast = tokenizer
    return loaded


def require_room(what: str, parameters: int, device: str) -> None:
    """Refuse weights that do not fit in fp32, before they are made; what training adds to them is not counted.

    Raises:
        ValueError: too little memory; the message says how much is needed and how much there is.
    """
    needed = 4 * parameters
    for where, free in free_memory(device).items():
        if needed > free:
            raise ValueError(f"{what}: takes {needed / 1e9:.2f} GB in fp32; {where} has {free / 1e9:.2f} GB free")


def free_memory(device: str) -> dict[str, int]:
    """Free bytes of each memory that a model for ``device`` passes through."""
    found = {"this machine": int(psutil.virtual_memory().available)}
    return found | ({device: torch.cuda.mem_get_info()[0]} if device.startswith("cuda") else {})


def place(model: PreTrainedModel, machine: MachineConfig) -> None:
    """Put ``model`` where and how the machine block says, in place, ready for inference."""
    torch.nn.Module.to(model, machine.device).eval()
    apart = machine.expert_parallel and machine.experts == "auto"  # MegaBlocks takes whole layers alone
    _say(f"experts: {choose_experts(model, 'grouped_mm' if apart else machine.experts)}")
    if machine.checkpointing:  # in training mode alone
        model.activation_checkpointing_enable()
    shard(model, machine.expert_parallel)


def load_teacher(path: Path, domain: str, machine: MachineConfig) -> Teacher:
    """A teacher with its gradients off."""
    checkpoint = load_checkpoint(path, machine)
    checkpoint.model.requires_grad_(False)
    return Teacher(domain, checkpoint)


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights (safetensors), config and tokenizer into ``folder``. All processes that train it must ask; the
    first writes."""
    world = World.here()
    weights = gathered_on_first(model.state_dict()) if world.size > 1 else None
    if world.first:
        with full_disk_is_an_os_error(folder):
            model.save_pretrained(folder, state_dict=weights)
        tokenizer.save_pretrained(folder)


@contextmanager
def full_disk_is_an_os_error(path: Path) -> Iterator[None]:
    """safetensors has no type of its own for a disk without space."""
    try:
        yield
    except SafetensorError as error:
        if f"os error {errno.ENOSPC}" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise


@functools.cache
def _say(what: str) -> None:
    """A line of the stage's log, once a process: distillation places seven models."""
    print(what, flush=True)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
