"""A set of texts that is remembered by their hashes, so that what grows with the data grows by eight bytes a text.

Two of n texts share a hash with a chance of n² / 2⁶⁵: one in 37 million for a million texts.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

PENDING = 8_192  # numbers that are kept as a set before they are sorted in
GROWTH = 4  # a run of sorted numbers is merged into one that is less than so many times as long


class Fingerprints:
    """A set of 64-bit numbers at eight bytes each, and a little.

    They lie in sorted runs, each at least ``GROWTH`` times as long as the next: to add n of them copies each of them
    about log n times, not n times.
    """

    def __init__(self) -> None:
        self._runs: list[npt.NDArray[np.uint64]] = []
        self._pending: set[int] = set()

    def __len__(self) -> int:
        return sum(map(len, self._runs)) + len(self._pending)

    def add(self, value: int) -> bool:
        """Whether it was new."""
        if value in self._pending:
            return False
        wanted = np.uint64(value)
        for run in self._runs:
            at = int(np.searchsorted(run, wanted))
            if at < len(run) and run[at] == wanted:
                return False
        self._pending.add(value)
        if len(self._pending) >= PENDING:
            self._sort_in()
        return True

    def _sort_in(self) -> None:
        run = np.fromiter(self._pending, np.uint64, len(self._pending))
        self._pending.clear()
        while self._runs and len(self._runs[-1]) < GROWTH * len(run):
            run = np.concatenate([self._runs.pop(), run])
        run.sort()
        self._runs.append(run)


def digest(text: str) -> int:
    """64 bits of a text's SHA-256."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
