# SPDX-License-Identifier: Apache-2.0
"""Where things lie in the banks: groups of columns for MACs, vectors striped over the channels. Positions count columns from row 0."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from lutra.mapping.pim.costs import Costs

__all__ = ["Groups", "Piece", "Shelf", "Striped", "batched", "pieces", "placements"]


@dataclass(frozen=True)
class Groups:
    """``groups`` times ``columns`` columns, at the same place in all banks of all channels.

    ``per_row`` groups share a row and none crosses into the next; 0: packed without gaps.
    """

    base: int
    columns: int
    groups: int
    per_row: int
    row_columns: int
    batch: int = 1
    """groups that are read out at a time"""

    def position(self, group: int) -> int:
        """First column of a group."""
        if not self.per_row:
            return self.base + group * self.columns
        row, slot = divmod(group, self.per_row)
        return self.base + row * self.row_columns + slot * self.columns

    def positions(self, groups: int | None = None) -> list[int]:
        """First columns of the first ``groups`` (all) groups."""
        return [self.position(g) for g in range(self.groups if groups is None else groups)]

    @property
    def rows(self) -> int:
        """Rows that it takes, from the row of its base on."""
        if not self.per_row:
            return -(-self.groups * self.columns // self.row_columns)
        return -(-self.groups // self.per_row)

    @property
    def row(self) -> int:
        """Its first row."""
        return self.base // self.row_columns

    def at(self, row: int) -> Groups:
        """The same from another row on."""
        return replace(self, base=row * self.row_columns)


def placements(columns: int, groups: int, costs: Costs) -> list[tuple[int, Groups]]:
    """Ways to place groups that are each read out, with their cycles, quickest first: packed, as many whole ones as a row holds, a row each."""
    width = costs.config.columns
    ways = [0, width // columns, 1] if width % columns else [0, 1]
    made = [batched(Groups(0, columns, groups, per_row, width), costs) for per_row in dict.fromkeys(ways)]
    return sorted(made, key=lambda pair: (pair[0], pair[1].rows))


def batched(groups: Groups, costs: Costs) -> tuple[int, Groups]:
    """Cycles and the groups with the batches of read-outs that take fewest: they spare mode changes, and hide less well behind row switches."""
    batches = [1 << i for i in range(costs.config.accumulators_per_bank.bit_length())]
    return min(((_cycles(one, costs), one) for one in (replace(groups, batch=batch) for batch in batches)), key=lambda pair: pair[0])


def _cycles(groups: Groups, costs: Costs) -> int:
    """``Costs.bursts`` of all groups; once the bursts begin rows and batches of accumulators anew, the same cycles pass again."""
    period = groups.per_row or groups.row_columns // math.gcd(groups.columns, groups.row_columns)
    period = math.lcm(period, groups.batch)
    times = max(0, groups.groups // period - 2)
    short, longer = (costs.bursts(groups.positions(groups.groups - n * period), groups.columns, groups.batch) for n in (times, max(0, times - 1)))
    return short + times * (longer - short)


@dataclass(frozen=True)
class Piece:
    """Columns of one bank that one READ takes."""

    bank: int
    row: int
    column: int
    count: int


def pieces(bank: int, position: int, count: int, row_columns: int) -> Iterator[Piece]:
    """``count`` columns of a bank from ``position`` on, cut at row ends."""
    while count:
        row, column = divmod(position, row_columns)
        part = min(count, row_columns - column)
        yield Piece(bank, row, column, part)
        position, count = position + part, count - part


@dataclass(frozen=True)
class Striped:
    """A vector of ``beats`` beats over the channels: beat i on channel i % C, its (i // C)-th column; all channels alike."""

    values: int
    beats: int
    pieces: tuple[Piece, ...]

    @property
    def columns(self) -> int:
        """Columns per channel."""
        return sum(piece.count for piece in self.pieces)


class Shelf:
    """Places striped vectors one behind the other, bank by bank of a row, row by row from ``row`` on."""

    def __init__(self, row: int, banks: int, row_columns: int) -> None:
        self._first, self._banks, self._columns, self._used = row, banks, row_columns, 0

    def place(self, sizes: Sequence[int], lanes: int, channels: int) -> list[Striped]:
        """The next columns, for vectors of these sizes that are read together: in one row of a bank if they fit one."""
        columns = [-(-size // (lanes * channels)) for size in sizes]
        if self._columns - self._used % self._columns < sum(columns) <= self._columns:
            self._used = -(-self._used // self._columns) * self._columns
        return [Striped(size, -(-size // lanes), tuple(self._next(count))) for size, count in zip(sizes, columns, strict=True)]

    def _next(self, count: int) -> Iterator[Piece]:
        while count:
            strip, column = divmod(self._used, self._columns)
            row, bank = divmod(strip, self._banks)
            part = min(count, self._columns - column)
            yield Piece(bank, self._first + row, column, part)
            self._used, count = self._used + part, count - part

    @property
    def rows(self) -> int:
        """Rows begun."""
        return -(-self._used // (self._columns * self._banks))
