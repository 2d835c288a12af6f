"""What a checkpoint's files say before they are loaded: safetensors headers, read without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
_LENGTH = 8  # bytes that say how long the header is


@dataclass(frozen=True)
class Weight:
    """A tensor in a file."""

    file: str
    dtype: str  # as safetensors writes it: F32, BF16 …
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.shape)


def read_weights(folder: Path) -> dict[str, Weight]:
    """Every tensor of a checkpoint by its name.

    Raises:
        ValueError: no weights, a shard or a tensor that the index lists is missing, or a file is damaged or cut off;
            the message has the file.
    """
    index = folder / INDEX
    listed: Mapping[str, str] = _json(index, index.read_bytes())["weight_map"] if index.is_file() else {}
    files = sorted(set(listed.values())) or sorted(path.name for path in folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: no safetensors weights")
    absent = [name for name in files if not (folder / name).is_file()]
    if absent:
        raise ValueError(f"{folder}: {len(absent)} of {len(files)} shards are missing, such as {absent[0]}")
    found = {name: weight for file in files for name, weight in _header(folder / file).items()}
    lost = sorted(set(listed) - set(found))
    if lost:
        raise ValueError(f"{folder / listed[lost[0]]}: {lost[0]} is missing, which {INDEX} lists")
    return found


def weights_hash(folder: Path) -> str:
    """The first 12 hex digits of SHA-256 over the weight files: a checkpoint's name in trajectories."""
    digest = hashlib.sha256()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ValueError(f"{folder}: no safetensors weights")
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def _header(path: Path) -> dict[str, Weight]:
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH), "little")
        if length > size - _LENGTH:
            raise ValueError(f"{path}: damaged weights ({size:,} bytes, its header alone would be {length:,})")
        header = _json(path, file.read(length))
    header.pop("__metadata__", None)
    try:
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
        weights = {name: Weight(path.name, it["dtype"], tuple(it["shape"])) for name, it in header.items()}
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"{path}: damaged weights (no safetensors header)") from error
    if _LENGTH + length + end != size:
        raise ValueError(f"{path}: damaged weights ({size:,} bytes instead of {_LENGTH + length + end:,})")
    return weights


def _json(path: Path, text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path}: damaged ({error})") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path}: damaged (expected a JSON object)")
    return value
