# SPDX-License-Identifier: Apache-2.0
"""Attention heads over channels: which heads work at once, on how many channels each, and where a head's values lie (architecture.md, 4.7)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from lutra.hls_models.pim.config import PimConfig
from lutra.mapping.pim.shape import TransformerShape

__all__ = ["HEADS_PER_PASS", "HeadLayout", "Pass"]

HEADS_PER_PASS = 8
"""Limit set by the companion chip's scalars: a maximum and a sum per head, for two passes at a time."""


@dataclass(frozen=True)
class Pass:
    """``heads`` heads from ``first`` on, each on ``split`` neighbouring channels; head i on channels i*split to (i+1)*split - 1."""

    first: int
    heads: int
    split: int

    @property
    def channels(self) -> int:
        """Channels that work."""
        return self.heads * self.split


@dataclass(frozen=True)
class HeadLayout:
    """Sizes of a head in words, beats and columns, and the order of the outputs of the joint matrix: values, keys, queries."""

    shape: TransformerShape
    config: PimConfig
    passes: tuple[Pass, ...]

    @property
    def words(self) -> int:
        """Words of B values of a head."""
        return -(-self.shape.head_dim // self.config.banks)

    @property
    def beats(self) -> int:
        """Beats of V values, and columns of a key."""
        return -(-self.shape.head_dim // self.config.lanes)

    def groups(self, split: int) -> int:
        """Groups of output dimensions of a head (a dimension per bank and group), as many as whole beats of values fill."""
        return _up(-(-self.words // split), self.config.words_per_beat)

    def value_words(self, split: int, channel: int) -> int:
        """Words of values that the head's ``channel``-th channel stores: dimensions (j*split + channel)*B and B - 1 more for the j-th; whole beats."""
        return _up(-(-(self.words - channel) // split), self.config.words_per_beat) if channel < self.words else 0

    @cached_property
    def value_offsets(self) -> dict[tuple[int, int], int]:
        """(head, channel of the head) -> word of its values in the joint result."""
        offsets, at = {}, 0
        for part in self.passes:
            for head in range(part.first, part.first + part.heads):
                for channel in range(part.split):
                    offsets[head, channel] = at
                    at += self.value_words(part.split, channel)
        return offsets

    @cached_property
    def key_offset(self) -> int:
        """Word of head 0's key in the joint result; head h is ``beats`` beats further each."""
        return sum(self.value_words(p.split, c) for p in self.passes for _ in range(p.heads) for c in range(p.split))

    @property
    def head_stride(self) -> int:
        """Words from one head's key or query to the next one's."""
        return self.beats * self.config.words_per_beat

    @property
    def query_offset(self) -> int:
        """Word of head 0's query."""
        return self.key_offset + self.shape.heads * self.head_stride

    @property
    def outputs(self) -> int:
        """Values of the joint result."""
        return (self.query_offset + self.shape.heads * self.head_stride) * self.config.banks

    def rows(self) -> list[int]:
        """For every value of the joint result, the row of the stacked matrices value, key, query (each heads*head_dim) it comes from; -1: none."""
        banks, size = self.config.banks, self.shape.head_dim
        total = self.shape.heads * size
        found = [-1] * self.outputs
        for part in self.passes:
            for head in range(part.first, part.first + part.heads):
                for channel in range(part.split):
                    at = self.value_offsets[head, channel] * banks
                    for i in range(self.value_words(part.split, channel) * banks):
                        group, lane = divmod(i, banks)
                        dimension = (group * part.split + channel) * banks + lane
                        if dimension < size:
                            found[at + i] = head * size + dimension
        for head in range(self.shape.heads):
            for offset, start in ((self.key_offset, total), (self.query_offset, 2 * total)):
                at = (offset + head * self.head_stride) * banks
                found[at : at + size] = range(start + head * size, start + (head + 1) * size)
        return found


def _up(value: int, unit: int) -> int:
    return -(-value // unit) * unit
