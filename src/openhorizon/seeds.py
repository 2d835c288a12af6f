"""Where every seed comes from: one derivation, so that a stream depends on its name and on nothing else.

Streams are independent of the order they are drawn in, of the process (``PYTHONHASHSEED``) and of each other: what a
stage draws does not move when another stage draws more.
"""

from __future__ import annotations

import hashlib
import random


def derive(seed: int, *names: str | int) -> int:
    """The seed of the stream ``names`` under ``seed``: the first 63 bits of a SHA-256, so that it fits an int64.

    Names keep their type and borders: ``("a", "b")``, ``("ab",)``, ``(1,)`` and ``("1",)`` are four streams.
    """
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def rng(seed: int, *names: str | int) -> random.Random:
    """A generator of the stream ``names`` under ``seed``."""
    return random.Random(derive(seed, *names))
