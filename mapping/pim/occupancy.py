# SPDX-License-Identifier: Apache-2.0
"""What a placement makes of the banks: capacity used, row hits and switches, banks that work on nothing."""

from __future__ import annotations

from dataclasses import dataclass

from lutra.hls_models.pim.config import LANE_BITS
from lutra.mapping.pim.partition import Matrix, Partition

__all__ = ["Occupancy", "Use", "occupancy"]


@dataclass(frozen=True)
class Use:
    """MACs of one kind of work in a token, all channels together."""

    name: str
    bank_macs: int
    """MACs of single banks that are issued: all-bank commands times banks, idle channels included"""
    useful_bank_macs: int
    """of those, the ones that an output comes from"""
    rows: int
    """rows opened for them, of all banks of a channel at a time, summed over channels"""
    commands: int
    """all-bank MACs, summed over channels"""

    @property
    def row_hit_rate(self) -> float:
        """Share of the MACs that find their row open."""
        return 1 - self.rows / self.commands

    @property
    def idle_banks(self) -> float:
        """Share of the bank MACs that no output comes from."""
        return 1 - self.useful_bank_macs / self.bank_macs


@dataclass(frozen=True)
class Occupancy:
    """A token at one context."""

    capacity_bytes: int
    used_bytes: int
    """rows taken, padding included"""
    weight_bytes: int
    """the model's numbers alone"""
    overflow_bytes: int
    uses: tuple[Use, ...]

    @property
    def total(self) -> Use:
        """All work together."""
        return Use("total", *(sum(getattr(use, name) for use in self.uses) for name in ("bank_macs", "useful_bank_macs", "rows", "commands")))


def occupancy(partition: Partition, context: int) -> Occupancy:
    """Of a token that attends to ``context`` tokens."""
    config, shape, layout = partition.config, partition.shape, partition.layout
    banks, layers = config.banks, shape.layers
    first = partition.layers[0]
    uses = [
        _matrix("values, keys, queries", first.joint, partition, layers),
        _matrix("output", first.output, partition, layers),
        _matrix("up", first.up, partition, layers),
        _matrix("down", first.down, partition, layers),
        _matrix("head", partition.head, partition, 1),
    ]
    scores = weighted = (0, 0, 0, 0)
    for i, part in enumerate(layout.passes):
        groups, at = -(-context // (part.split * banks)), 0
        for step in partition.keyvalues:
            keys = step[0][i].keys
            here = min(keys.groups, groups - at)
            if here > 0:
                scores = _plus(scores, _work(keys.positions(here), layout.beats, part.channels, config.columns, banks, 0))
            at += max(0, here)
        scores = _plus(scores, (0, part.heads * context * layout.beats, 0, 0))
        per_step = partition.reservation // partition.block
        for b in range(-(-context // partition.block)):
            room = partition.keyvalues[b // per_step][0][i].values[b % per_step]
            columns = -(-min(partition.block, context - b * partition.block) // config.lanes)
            positions = room.positions(-(-layout.words // part.split))
            weighted = _plus(weighted, _work(positions, columns, part.channels, config.columns, banks, part.heads * shape.head_dim * columns))
    uses += [Use(name, *(layers * value for value in work)) for name, work in (("scores", scores), ("weighted values", weighted))]
    row_bytes = config.channels * banks * config.row_bytes
    capacity = (config.rows - partition.overflow_rows) * row_bytes
    return Occupancy(capacity, partition.rows * row_bytes, shape.parameters * LANE_BITS // 8, partition.overflow_rows * row_bytes, tuple(uses))


Work = tuple[int, int, int, int]
"""bank MACs, useful ones, rows, commands"""


def _plus(a: Work, b: Work) -> Work:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2], a[3] + b[3])


def _work(positions: list[int], columns: int, channels: int, row_columns: int, banks: int, useful: int) -> Work:
    """Bursts of ``columns`` MACs on some channels: a row is opened where it is not the one before."""
    rows, open_row = 0, -1
    for position in positions:
        first, last = position // row_columns, (position + columns - 1) // row_columns
        rows += last - first + (first != open_row)
        open_row = last
    commands = len(positions) * columns * channels
    return commands * banks, useful, rows * channels, commands


def _matrix(name: str, matrix: Matrix, partition: Partition, times: int) -> Use:
    config, total = partition.config, (0, 0, 0, 0)
    for chunk in matrix.chunks:
        useful = matrix.outputs * chunk.columns
        total = _plus(total, _work(chunk.positions(), chunk.columns, config.channels, config.columns, config.banks, useful))
    return Use(name, *(times * value for value in total))
