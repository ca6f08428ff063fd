# SPDX-License-Identifier: Apache-2.0
"""Long runs: one hash per window of beats instead of every beat. The hash of a beat mixes its payload, then its place in the window and its cycle, word by
word (multiply, fold the upper half down); a window's is their sum. So numpy takes many beats at once, and payloads before their cycles are known."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["WINDOW", "Digests", "Golden", "digests_of", "in_windows", "payload_hashes", "read_digests", "window_setting"]

WINDOW = 1024
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
HALF, LOWER = np.uint64(32), np.uint64(0xFFFFFFFF)
BLOCK = 1 << 14
"""Beats hashed together: their columns stay in the processor's cache."""


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


def _mix(hashes: NDArray[np.uint64], word: NDArray[Any]) -> None:
    hashes ^= word
    hashes *= MULTIPLIER
    hashes ^= hashes >> HALF


def payload_hashes(payloads: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """The first part of the hash of beats (n, words) or, of one word, (n,): what can be kept of them until their cycles are known, eight bytes each."""
    payloads = np.asarray(payloads, np.uint32).reshape(len(payloads), -1)
    hashes = np.zeros(len(payloads), np.uint64)
    for first in range(0, len(payloads), BLOCK):
        part = hashes[first : first + BLOCK]
        for column in np.ascontiguousarray(payloads[first : first + BLOCK].T).astype(np.uint64):
            _mix(part, column)
    return hashes


def in_windows(hashes: NDArray[np.uint64], cycles: ArrayLike) -> Digests:
    """The hashes that a recorder makes of all beats of a port, given those of their payloads; these are worked on in place."""
    cycles = np.asarray(cycles, np.int64).view(np.uint64)
    count = len(hashes)
    if len(cycles) != count:
        raise ValueError(f"golden payloads ({count}) and cycles ({len(cycles)}) must be equally many")
    _mix(hashes, np.arange(count, dtype=np.uint64) % np.uint64(WINDOW))
    _mix(hashes, cycles & LOWER)
    _mix(hashes, cycles >> HALF)
    return Digests(np.add.reduceat(hashes, np.arange(0, count, WINDOW)) if count else hashes, count)


def digests_of(golden: Golden) -> Digests:
    """The hashes that a recorder makes of these beats."""
    return in_windows(payload_hashes(golden.payloads), golden.cycles)


def window_setting(first: int = 0, last: int = 0) -> bytes:
    """Contents of a recorder's window file: hash everything, keep beats first <= i < last."""
    return b"".join(value.to_bytes(8, "big") for value in (WINDOW, first, last))


def read_digests(path: Path) -> Digests:
    """What a recorder wrote."""
    raw = np.fromfile(path, "<u8")
    return Digests(raw[:-1], int(raw[-1]))
