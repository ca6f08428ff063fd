# SPDX-License-Identifier: Apache-2.0
"""Weight path: configuration, golden values and exact cycles of the ring of weight rows between loader and lookup engine.

Beats are assembled to rows, unpacked to trits, turned into table indices and written into a ring; the reader plays every tile once per group
of M tokens and frees its rows while it reads them for the last time (docs/architecture.md 2.5).

Cycles, each constant the register that it names. A row whose last beat is taken at h is assembled (h + 1), unpacked (h + 2), indexed (h + 3), written
and counted (h + 4 = h + ``ARRIVAL_CYCLES``): the first cycle in which its address can be read. A row read at a is offered on ``rows`` from a + 1. Row i is
read at a[i] = max(readable[i], x[i-1], instruction + 1), with x[i-1] the handshake of the row before. The read for the last time gives the space back:
``freed`` fires at a + 1, and a beat may use the space from a + 1 on.
"""

from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from lutra.hls_models.errors import ConfigError
from lutra.hls_models.streams import Ready
from lutra.hls_models.ternary.trits import RowLayout, indices_of_rows, tiles_of

__all__ = ["ARRIVAL_CYCLES", "LinearInstruction", "WeightPathConfig", "WeightPathCycles", "read_order"]

ARRIVAL_CYCLES = 4
"""From the handshake of a row's last beat to the first cycle in which the row can be read: assembled, unpacked, indexed, written."""


class LinearInstruction(NamedTuple):
    """What the weight path and LINEAR are told: fields of the instruction set, and the tokens of the pass."""

    k_blocks: int
    columns: int
    tile_columns: int
    tokens: int


class WeightPathConfig(RowLayout):
    """Sizes of the weight path."""

    half_tables: bool = Field(default=True, description="indices are a sign and a magnitude")
    lanes: int = Field(default=1, ge=1, description="token lanes, M: a tile is read once per M tokens")
    ring_rows: int = Field(ge=2, description="rows that the ring holds, e.g. 512")
    ring_ram: Literal["block", "ultra"] = Field(default="block", description="memory of the ring: block RAM, or UltraRAM where the device has it")

    decoder: Literal["table", "adders"] = Field(
        default="table", description="of code bytes to trits: a table of look-up tables, or five adders one behind another (a third of them, for slow clocks)"
    )

    @property
    def index_bits(self) -> int:
        """Bits of a group index."""
        largest = (3**self.group - 1) // 2
        return 1 + largest.bit_length() if self.half_tables else (2 * largest).bit_length()

    @property
    def row_bits(self) -> int:
        """Bits of a row in the ring."""
        return self.tables * self.columns * self.index_bits

    def check_tile(self, k: int, tile_columns: int, tokens: int) -> None:
        """Raises ConfigError where a tile is read more than once and does not fit the ring."""
        rows = self.blocks(k) * self.tile_rows(tile_columns)
        if tokens > self.lanes and rows > self.ring_rows:
            fitting = self.ring_rows // self.blocks(k) * self.columns
            nearest = f"; nearest: {fitting}" if fitting else f", and no tile of k = {k} does"
            raise ConfigError(
                f"tile_columns: a tile must fit ring_rows = {self.ring_rows} when tokens > {self.lanes}, {tile_columns} takes {rows} rows{nearest}"
            )

    def indices(self, stored: np.ndarray) -> np.ndarray:
        """Stored bytes of whole rows to what the ring holds: uint8 (rows, Q * T), position q * T + t."""
        return indices_of_rows(stored, self, self.half_tables)


def read_order(layout: RowLayout, lanes: int, instruction: LinearInstruction) -> tuple[np.ndarray, np.ndarray]:
    """(row of the matrix, whether it is freed) for every read of an instruction, in order: int64 and bool (reads,)."""
    groups = -(-instruction.tokens // lanes)
    order, freed, first = [], [], 0
    for tile in tiles_of(instruction.columns, instruction.tile_columns):
        rows = instruction.k_blocks * layout.tile_rows(tile)
        order.append(np.tile(np.arange(first, first + rows), groups))
        freed.append(np.arange(rows * groups) >= rows * (groups - 1))
        first += rows
    return np.concatenate(order), np.concatenate(freed)


class WeightPathCycles(NamedTuple):
    """Handshake cycles of every port: instr (instructions,), beats (beats,), rows (reads,), freed (rows,)."""

    instr: np.ndarray
    beats: np.ndarray
    rows: np.ndarray
    freed: np.ndarray


def cycles(
    config: WeightPathConfig, instructions: list[LinearInstruction], instr_not_before: np.ndarray, beats_not_before: np.ndarray, rows_ready: Ready
) -> WeightPathCycles:
    """Exact handshakes for earliest cycles of the inputs and a ready trace of ``rows`` (one step per row: the ring couples the sides)."""
    per_row = config.row_beats
    beats: list[int] = []
    rows: list[int] = []
    freed: list[int] = []
    taken: list[int] = []
    free, loaded, read = 0, 0, -1  # rows given back, rows whose beats are known, last read
    arrived: list[int] = []

    def load(target: int) -> None:
        nonlocal loaded
        while loaded < target:
            space = freed[loaded - config.ring_rows] if loaded >= config.ring_rows else 0
            for i in range(loaded * per_row, (loaded + 1) * per_row):
                beats.append(max(int(beats_not_before[i]), beats[-1] + 1 if beats else 0, space))
            arrived.append(beats[-1] + ARRIVAL_CYCLES)
            loaded += 1

    base = 0
    for instruction, earliest in zip(instructions, instr_not_before, strict=True):
        order, last = read_order(config, config.lanes, instruction)
        start = max(int(earliest), taken[-1] + 1 if taken else 0, read + 1)
        taken.append(start)
        for row, give_back in zip((order + base).tolist(), last.tolist(), strict=True):
            load(row + 1)
            read = max(arrived[row], rows[-1] if rows else 0, read + 1, start + 1)
            rows.append(int(rows_ready.next_ready(read + 1)))
            if give_back:
                freed.append(read + 1)
                free += 1
        base += int(order[-1]) + 1
    total = len(beats_not_before) // per_row
    load(min(total, len(freed) + config.ring_rows))
    rest = beats_not_before[len(beats) :]
    if loaded < total:
        rest = rest[:0]
    for earliest in rest:  # beats of a row that never ends
        space = freed[loaded - config.ring_rows] if loaded >= config.ring_rows else 0
        beats.append(max(int(earliest), beats[-1] + 1 if beats else 0, space))
    return WeightPathCycles(*(np.array(item, np.int64) for item in (taken, beats, rows, freed)))
