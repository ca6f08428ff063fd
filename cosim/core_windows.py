# SPDX-License-Identifier: Apache-2.0
"""Golden words of a core's boundaries in runs too long to keep them: hashes of all of them, excerpts of those that are wanted."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutra.cosim.windows import Digests, in_windows, payload_hashes

__all__ = ["Excerpts", "PayloadHashes"]


class PayloadHashes:
    """A ``Sink`` of the golden executor that keeps eight bytes of every beat, and counts words: ``words`` by boundary."""

    def __init__(self) -> None:
        self.words: dict[str, int] = defaultdict(int)
        self._hashes: dict[str, list[NDArray[np.uint64]]] = defaultdict(list)

    def __call__(self, name: str, label: str, words: NDArray[np.uint32]) -> None:
        self.words[name] += words.size
        self._hashes[name].append(payload_hashes(words))

    def digests(self, name: str, cycles: ArrayLike) -> Digests:
        """What a recorder makes of boundary ``name``, given all of its predicted cycles; once."""
        return in_windows(np.concatenate(self._hashes.pop(name)), cycles)


class Excerpts:
    """A ``Sink`` that keeps beats first <= i < last of some boundaries, and where they belong.

    Parameters
    ----------
    ranges : (first, last) by boundary
    """

    def __init__(self, ranges: Mapping[str, tuple[int, int]]) -> None:
        self.ranges, self.number = ranges, 0
        self._seen: dict[str, int] = defaultdict(int)
        self._words: dict[str, list[NDArray[np.uint32]]] = defaultdict(list)
        self._origins: dict[str, list[tuple[int, str, int]]] = defaultdict(list)

    def __call__(self, name: str, label: str, words: NDArray[np.uint32]) -> None:
        begin = self._seen[name]
        self._seen[name] = end = begin + len(words)
        first, last = self.ranges.get(name, (0, 0))
        if max(first, begin) < min(last, end):
            self._words[name].append(words[max(first - begin, 0) : last - begin].copy())
            self._origins[name].append((begin, label, self.number))

    def end_pass(self) -> None:
        """What comes now is the next pass's."""
        self.number += 1

    def words(self, name: str) -> NDArray[np.uint32]:
        """Golden payloads (beats, words) of the range, fewer where the boundary has fewer."""
        return np.concatenate(self._words[name]) if name in self._words else np.zeros((0, 1), np.uint32)

    def origin(self, name: str, beat: int) -> tuple[str, int, int] | None:
        """Label of the instruction that beat ``beat`` belongs to, the index in what that makes, and the number of the pass."""
        found = [one for one in self._origins[name] if one[0] <= beat]
        return (found[-1][1], beat - found[-1][0], found[-1][2]) if found else None
