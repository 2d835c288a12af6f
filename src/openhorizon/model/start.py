"""The model that the recipe starts from where it is not from scratch: a checkpoint, stretched and upcycled."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast

from openhorizon.agent.render import Renderer
from openhorizon.artifacts import require
from openhorizon.config import ModelConfig
from openhorizon.model.load import load_tokenizer, load_weights
from openhorizon.model.rope import stretch
from openhorizon.model.shards import weights_hash
from openhorizon.model.smollm2 import NAME, smollm2
from openhorizon.model.upcycle import break_symmetry, check_family, upcycle
from openhorizon.seeds import derive

TOLERANCE = 1e-5  # of logits, in shares of the largest
PROBE_TOKENS = 128


@dataclass(frozen=True)
class Origin:
    """Where a checkpoint comes from: what a model that was made of it has to say about it."""

    name: str
    licence: str  # SPDX; empty where the folder does not say
    hash: str  # of the weights
    folder: Path

    @property
    def licence_file(self) -> Path | None:
        found = sorted(path for path in self.folder.glob("LICENSE*") if path.is_file())
        return found[0] if found else None


@dataclass(frozen=True)
class Start:
    """A pretrained model ready to be trained on, in fp32 on the CPU. ``difference`` is the largest between its logits
    and the dense model's before the experts were made to differ; None where it was not upcycled."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    origin: Origin
    difference: float | None


def start_from_checkpoint(config: ModelConfig, seed: int, device: str) -> Start:
    """Read ``config.source``, stretch its positions, upcycle it.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: what ``load_weights``, ``stretch`` or ``upcycle`` refuses, or a chat template without tool messages.
    """
    folder = smollm2() if config.source == "smollm2" else require(Path(config.source))
    settings = _settings(folder)
    if config.upcycle:
        check_family(settings.model_type, config.upcycle)  # before gigabytes are read
    stretch(settings, config.rope, config.max_tokens)
    model = load_weights(folder, device, settings).eval()
    tokenizer = load_tokenizer(folder, model)
    tokenizer.model_max_length = config.max_tokens
    try:
        Renderer(tokenizer)
    except TemplateError as error:
        raise ValueError(f"{folder}: its chat template refuses a tool's message ({error})") from error
    difference = None
    if config.upcycle:
        dense = model
        model = upcycle(dense, config.upcycle, derive(seed, "experts") % 2**32)
        difference, largest = compare(dense, model, derive(seed, "probe") % 2**32)
        assert difference <= TOLERANCE * largest, f"upcycling changed logits of up to {largest} by {difference}"
        break_symmetry(model, config.upcycle, derive(seed, "symmetry") % 2**32)
    return Start(model, tokenizer, describe(folder, NAME if config.source == "smollm2" else ""), difference)


@torch.no_grad()
def compare(a: PreTrainedModel, b: PreTrainedModel, seed: int) -> tuple[float, float]:
    """The largest difference between the logits of two models on random tokens, and the largest logit."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(a.config.vocab_size, (1, PROBE_TOKENS), generator=random).to(a.device)
    ours, theirs = (model(input_ids=ids, use_cache=False).logits for model in (a, b))
    return (ours - theirs).abs().max().item(), ours.abs().max().item()


def describe(folder: Path, name: str = "") -> Origin:
    """What a checkpoint's folder says of itself: the licence stands in the head of its model card."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    head = re.match(r"---\n(.*?)\n---", text, re.DOTALL)
    found = re.search(r"^license:\s*(\S+)", head.group(1), re.MULTILINE) if head else None
    return Origin(name or folder.resolve().name, found.group(1) if found else "", weights_hash(folder), folder)


def _settings(folder: Path) -> PreTrainedConfig:
    """Of its language model, where it sees, too (Qwen3.5)."""
    try:
        found: Any = AutoConfig.from_pretrained(folder, local_files_only=True).get_text_config()
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{folder}: no usable config.json ({str(error).splitlines()[0]})") from error
    settings: PreTrainedConfig = found
    return settings
