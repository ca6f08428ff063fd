# SPDX-License-Identifier: Apache-2.0
"""The walk over a matrix's weight rows, shared by the weight ring's reader and the lookup engine."""

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.isa import PASS_FIELDS, UNIT_FIELDS, Unit

__all__ = ["COLUMN_BITS", "LINEAR_INSTRUCTION", "RowWalk"]

LINEAR_INSTRUCTION = data.StructLayout(
    {field.name: field.bits for field in UNIT_FIELDS[Unit.LINEAR]} | {field.name: field.bits for field in PASS_FIELDS if field.name == "tokens"}
)
"""What LINEAR and the weight path take: {k_blocks, columns, tile_columns, tokens}, all above zero."""

COLUMN_BITS = LINEAR_INSTRUCTION["columns"].width
TOKEN_BITS = LINEAR_INSTRUCTION["tokens"].width


class RowWalk(wiring.Component):
    """Counts through "for tile: for token group: for k-block: for row" (docs/architecture.md 2.5), one row per ``advance``.

    ``start`` takes ``instruction`` (cycle t); from t + 1 ``active`` is 1 and the other outputs, all from registers, describe the present row.
    ``advance`` moves on; after the last row ``active`` falls.

    Parameters
    ----------
    columns, lanes : int
        Q and M.

    Members
    -------
    first_row, last_row : of the sweep over a tile's rows
    first_block, last_block : of the k-blocks
    last_group, last_tile : the present group of tokens is the tile's last; the tile is the matrix's last
    tile : columns of the present tile
    tokens : tokens from the present group on
    """

    def __init__(self, *, columns: int, lanes: int):
        self.columns, self.lanes = columns, lanes
        flags = ("active", "first_row", "last_row", "first_block", "last_block", "last_group", "last_tile")
        super().__init__(
            {
                "instruction": In(LINEAR_INSTRUCTION),
                "start": In(1),
                "advance": In(1),
                "tile": Out(COLUMN_BITS),
                "tokens": Out(TOKEN_BITS),
                **{name: Out(1) for name in flags},
            }
        )

    def elaborate(self, platform):
        m = Module()
        held = Signal(LINEAR_INSTRUCTION)
        rest = Signal(COLUMN_BITS)  # columns behind the present tile
        left = Signal(COLUMN_BITS)  # columns of the sweep from the present row on
        blocks = Signal.like(held.k_blocks)
        following = Signal(COLUMN_BITS)  # columns of the next tile
        m.d.comb += [
            self.last_row.eq(left <= self.columns),
            self.last_block.eq(blocks == 1),
            self.last_group.eq(self.tokens <= self.lanes),
            self.last_tile.eq(rest == 0),
            following.eq(Mux(rest < held.tile_columns, rest, held.tile_columns)),
        ]
        with m.If(self.start):
            given = self.instruction
            tile = Signal(COLUMN_BITS)
            m.d.comb += tile.eq(Mux(given.columns < given.tile_columns, given.columns, given.tile_columns))
            m.d.sync += [
                held.eq(given),
                self.active.eq(1),
                self.first_row.eq(1),
                self.first_block.eq(1),
                self.tile.eq(tile),
                left.eq(tile),
                rest.eq(given.columns - tile),
                blocks.eq(given.k_blocks),
                self.tokens.eq(given.tokens),
            ]
        with m.Elif(self.advance):
            m.d.sync += [self.first_row.eq(self.last_row), left.eq(left - self.columns)]
            with m.If(self.last_row):
                m.d.sync += [left.eq(self.tile), blocks.eq(blocks - 1), self.first_block.eq(self.last_block)]
                with m.If(self.last_block):
                    m.d.sync += [blocks.eq(held.k_blocks), self.tokens.eq(self.tokens - self.lanes)]
                    with m.If(self.last_group):
                        m.d.sync += [
                            self.tokens.eq(held.tokens),
                            self.tile.eq(following),
                            left.eq(following),
                            rest.eq(rest - following),
                            self.active.eq(~self.last_tile),
                        ]
        return m
