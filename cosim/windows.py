# SPDX-License-Identifier: Apache-2.0
"""Long runs: one hash per window of beats instead of every beat. The hash of a beat mixes its place in the window, cycle and payload, word by word
(multiply, fold the upper half down); a window's is their sum, so that numpy takes a window at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["WINDOW", "Digests", "Golden", "digests_of", "read_digests", "window_setting"]

WINDOW = 1024
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Golden:
    """What a port must show: payloads (n, words) uint32 and handshake cycles (n,)."""

    payloads: NDArray[np.uint32]
    cycles: ArrayLike


@dataclass(frozen=True)
class Digests:
    """Hashes (ceil(beats / WINDOW),) uint64 of a port's handshakes, and their number."""

    hashes: NDArray[np.uint64]
    beats: int

    def first_difference(self, other: "Digests") -> int | None:
        """The first window that differs or that one of both lacks; None: equal."""
        common = min(len(self.hashes), len(other.hashes))
        different = np.flatnonzero(self.hashes[:common] != other.hashes[:common])
        if len(different):
            return int(different[0])
        return None if self.beats == other.beats else min(self.beats, other.beats) // WINDOW


def digests_of(golden: Golden) -> Digests:
    """The hashes that a recorder makes of these beats."""
    payloads = np.asarray(golden.payloads, np.uint32)
    cycles = np.asarray(golden.cycles, np.int64).view(np.uint64)
    count = len(cycles)
    if len(payloads) != count:
        raise ValueError(f"golden payloads ({len(payloads)}) and cycles ({count}) must be equally many")
    columns: list[Any] = [cycles & np.uint64(0xFFFFFFFF), cycles >> np.uint64(32), *payloads.T]
    hashes = np.arange(count, dtype=np.uint64) % np.uint64(WINDOW)
    for column in columns:
        hashes = (hashes ^ column) * MULTIPLIER
        hashes ^= hashes >> np.uint64(32)
    return Digests(np.add.reduceat(hashes, np.arange(0, count, WINDOW)) if count else hashes, count)


def window_setting(first: int = 0, last: int = 0) -> bytes:
    """Contents of a recorder's window file: hash everything, keep beats first <= i < last."""
    return b"".join(value.to_bytes(8, "big") for value in (WINDOW, first, last))


def read_digests(path: Path) -> Digests:
    """What a recorder wrote."""
    raw = np.fromfile(path, "<u8")
    return Digests(raw[:-1], int(raw[-1]))
