"""Models as Hugging Face checkpoints: build, load, save, hash. Weights only as safetensors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as hf_logging

from openhorizon.agent.render import Renderer
from openhorizon.artifacts import require
from openhorizon.config import MachineConfig, ModelConfig
from openhorizon.model.attention import SEGMENTS
from openhorizon.model.induction import start_with_induction
from openhorizon.model.moe import choose_experts

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


def new_model(config: ModelConfig, tokenizer: PreTrainedTokenizerFast, seed: int) -> PreTrainedModel:
    """A model of a stock family from scratch, fp32, its random weights decided by ``seed``."""
    common: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "moe_intermediate_size": config.moe_intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
        "norm_topk_prob": True,
        "max_position_embeddings": config.max_tokens,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
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
    hf = AutoConfig.for_model(config.family, **common)
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(hf, attn_implementation=SEGMENTS)
    if config.induction:
        if config.family != "lfm2_moe":
            raise ValueError(f"model.induction: only for lfm2_moe, which has convolutions; family is {config.family}")
        start_with_induction(model)
    model.float()
    return model


def load_checkpoint(path: Path, machine: MachineConfig) -> Checkpoint:
    """Load a checkpoint folder of ours or of any Hugging Face causal language model.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: not a checkpoint, damaged shards, NaN weights, or a tokenizer larger than the model's vocabulary.
    """
    require(path)
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            path, attn_implementation=SEGMENTS, local_files_only=True, use_safetensors=True
        )
        tokenizer: Any = AutoTokenizer.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: not a usable checkpoint ({str(error).splitlines()[0]})") from error
    except Exception as error:  # safetensors raises its own type, which is not importable as an error class everywhere
        if type(error).__name__ != "SafetensorError":
            raise
        raise ValueError(f"{path}: damaged weights ({error}); delete the folder and run its stage again") from error
    if len(tokenizer) > model.config.vocab_size:
        raise ValueError(f"{path}: tokenizer has {len(tokenizer)} tokens, the model only {model.config.vocab_size}")
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise ValueError(f"{path}: weights of {name} are not finite")
    place(model, machine)
    return Checkpoint(model, tokenizer, Renderer(tokenizer), weights_hash(path))


def place(model: PreTrainedModel, machine: MachineConfig) -> None:
    """Put ``model`` where and how the machine block says, in place, ready for inference."""
    torch.nn.Module.to(model, machine.device).eval()
    choose_experts(model, machine.experts)
    if machine.checkpointing:  # in training mode alone
        model.activation_checkpointing_enable()


def load_teacher(path: Path, domain: str, machine: MachineConfig) -> Teacher:
    """A teacher with its gradients off."""
    checkpoint = load_checkpoint(path, machine)
    checkpoint.model.requires_grad_(False)
    return Teacher(domain, checkpoint)


def save_checkpoint(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write weights (safetensors), config and tokenizer into ``folder``."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def weights_hash(folder: Path) -> str:
    """The first 12 hex digits of SHA-256 over the weight files: a checkpoint's name in trajectories."""
    digest = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: no safetensors weights")
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]
