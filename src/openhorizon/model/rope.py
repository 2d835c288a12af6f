"""Positions beyond what a checkpoint was trained for, as its own config records them (``rope_parameters``,
``max_position_embeddings``), so that every engine that loads it computes the same.

Transformers' ``dynamic`` is left out: its frequencies follow the longest sample of a batch, so that packed training,
decoding with a cache and a server would each see other positions.
"""

from __future__ import annotations

from transformers import PreTrainedConfig

from openhorizon.config import RopeConfig


def stretch(config: PreTrainedConfig, rope: RopeConfig | None, max_tokens: int) -> None:
    """Let ``config`` reach ``max_tokens`` positions, in place.

    - ``linear``: positions are divided by the factor (Chen et al. 2023, arXiv 2306.15595).
    - ``yarn``: slow pairs are divided, fast ones kept, attention sharpened (Peng et al. 2023, arXiv 2309.00071).
    - ``theta``: the base is raised so that the slowest of D/2 pairs turns slower by the factor: θ·f^(D/(D-2)).

    Raises:
        ValueError: the context would be longer than the checkpoint's, or than it times the factor; or its positions
            are scaled already.
    """
    trained: int = config.max_position_embeddings
    if rope is None:
        if max_tokens > trained:
            raise ValueError(f"model.max_tokens={max_tokens}: the checkpoint reaches {trained}; say how in model.rope")
        return
    before = dict(config.rope_parameters)
    if before.get("rope_type", "default") != "default":
        raise ValueError(f"model.rope: the checkpoint's positions are scaled already ({before['rope_type']})")
    if max_tokens > trained * rope.factor:
        raise ValueError(f"model.max_tokens={max_tokens}: more than the checkpoint's {trained} times {rope.factor:g}")
    if rope.type == "theta":
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        after = before | {"rope_theta": before["rope_theta"] * rope.factor ** (width / (width - 2))}
    else:
        after = before | {"rope_type": rope.type, "factor": rope.factor}
    if rope.type == "yarn":
        after["original_max_position_embeddings"] = trained
    config.rope_parameters = after
    config.max_position_embeddings = max_tokens
