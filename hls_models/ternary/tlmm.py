# SPDX-License-Identifier: Apache-2.0
"""LINEAR, the table-lookup ternary matrix multiplication: configuration and golden values (cycles: ``tlmm_cycles``)."""

from collections.abc import Iterator
from typing import Literal

import numpy as np
from pydantic import Field, model_validator

from lutra.hls_models.config import Config
from lutra.hls_models.errors import ConfigError
from lutra.hls_models.ternary.trits import RowLayout, group_indices, matrix_trits, tiles_of

__all__ = ["LOAD_AHEAD", "TlmmConfig"]

LOAD_AHEAD = 3
"""The operands of the next build are read from the table builder's third last entry minus one on: register, address, memory, operand register."""


class TlmmConfig(Config):
    """Sizes of LINEAR; what follows from them; golden values."""

    group: int = Field(default=3, ge=2, le=5, description="trits per table lookup, G")
    tables: int = Field(ge=1, description="tables, T: T*G activations per k-block")
    columns: int = Field(ge=1, description="matrix columns per clock, Q")
    lanes: int = Field(default=1, ge=1, le=16, description="token lanes that share an index, M")
    vector_lanes: int = Field(default=4, ge=1, description="sums and codes per beat, V")
    activation_bits: Literal[4, 8] = Field(default=8, description="bits of an activation code")
    half_tables: bool = Field(default=True, description="tables of values with a non-negative leading trit, and a sign bit in the index")
    max_tokens: int = Field(ge=1, description="rows of activations kept, e.g. the prefill chunk")
    max_k: int = Field(ge=1, description="inputs of the longest matrix, e.g. 384")
    max_tile_columns: int = Field(ge=1, description="columns of the widest tile, e.g. 400")
    allow_stalls: bool = Field(default=False, description="accept tiles so narrow that lookups wait for table builds")
    activation_ram: Literal["block", "ultra"] = Field(default="block", description="memory of the activations: block RAM, or UltraRAM where the device has it")
    drain_ram: Literal["block", "distributed"] = Field(default="distributed", description="memory of finished sums: block RAM or LUT-RAM")

    tree: Literal["lut", "dsp"] = Field(default="lut", description="adders above the leaves' pairs: look-up tables or DSP48E2 blocks (xcup)")

    @model_validator(mode="after")
    def _stalls(self) -> "TlmmConfig":
        if not self.allow_stalls and self.max_tile_columns < self.stall_free_columns:
            raise ValueError(
                f"max_tile_columns must be at least {self.stall_free_columns} so that lookups do not wait for table builds "
                f"(ceil(columns / {self.columns}) >= {self.entries} entries + {self.swap_cycles} swap cycles), not {self.max_tile_columns}, or set allow_stalls"
            )
        return self

    @property
    def block(self) -> int:
        """Activations of a k-block, T * G."""
        return self.tables * self.group

    @property
    def max_blocks(self) -> int:
        """k-blocks of the longest row of codes, which comes in whole beats of V."""
        return -(-(-(-self.max_k // self.vector_lanes) * self.vector_lanes) // self.block)

    @property
    def entries(self) -> int:
        """Entries of a table: 3^G, or (3^G + 1) / 2."""
        return (3**self.group + 1) // 2 if self.half_tables else 3**self.group

    @property
    def entry_bits(self) -> int:
        """Address bits of a table."""
        return (self.entries - 1).bit_length()

    @property
    def index_bits(self) -> int:
        """Bits of a group index."""
        return self.entry_bits + self.half_tables

    @property
    def row_bits(self) -> int:
        """Bits of a row of indices."""
        return self.tables * self.columns * self.index_bits

    @property
    def value_bits(self) -> int:
        """Bits of a table entry: G activations of the largest magnitude, either sign."""
        return (self.group << (self.activation_bits - 1)).bit_length() + 1

    @property
    def sum_bits(self) -> int:
        """Bits of a column's sum over T tables."""
        return (self.block << (self.activation_bits - 1)).bit_length() + 1

    @property
    def accumulator_bits(self) -> int:
        """Bits of a sum over ``max_k`` activations: cannot overflow, -2^(activation_bits - 1) included."""
        return max((self.max_k << (self.activation_bits - 1)).bit_length() + 1, self.sum_bits)

    @property
    def tile_rows(self) -> int:
        """Rows of the widest tile."""
        return -(-self.max_tile_columns // self.columns)

    @property
    def tree_levels(self) -> int:
        return (self.tables - 1).bit_length()

    @property
    def sum_latency(self) -> int:
        """From the handshake of a row to the cycle in which its sums are accumulated: index register, table register, tree levels (look-up tables or DSP
        blocks), the sum's sign."""
        return 2 + self.tree_levels + int(self.half_tables)

    @property
    def swap_cycles(self) -> int:
        """Cycles between two builds in a row: M - 1 lane registers are loaded behind the last entry (the first one's in the last entry's cycle)."""
        return self.lanes - 1

    @property
    def stall_free_columns(self) -> int:
        """Narrowest tile whose lookups never wait for a build: ceil(columns / Q) >= entries + swap cycles."""
        return (self.entries + self.swap_cycles - 1) * self.columns + 1

    def check_tile(self, columns: int, tile_columns: int, k: int) -> None:
        """Raises ConfigError where a matrix of (columns, k) in such tiles does not fit or, unless ``allow_stalls``, would stall."""
        if not 1 <= k <= self.max_k:
            raise ConfigError(f"k must be 1 to max_k = {self.max_k}, not {k}")
        if not 1 <= tile_columns <= self.max_tile_columns:
            raise ConfigError(f"tile_columns must be 1 to max_tile_columns = {self.max_tile_columns}, not {tile_columns}")
        narrowest = min(tiles_of(columns, tile_columns))
        if not self.allow_stalls and narrowest < self.stall_free_columns:
            fitting = [
                size
                for size in range(self.stall_free_columns, self.max_tile_columns + 1)
                if size % self.vector_lanes == 0 and min(tiles_of(columns, size)) >= self.stall_free_columns
            ]
            near = f"; nearest: {min(fitting, key=lambda size: abs(size - tile_columns))}" if fitting else ""
            raise ConfigError(
                f"tile_columns: every tile of {columns} columns must have at least {self.stall_free_columns} so that lookups do not wait for table builds, "
                f"{tile_columns} leaves one of {narrowest}{near}, or set allow_stalls"
            )

    def matmul(self, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Sums int64 (n, N) of codes (n, K) and weights (N, K); exact: every partial sum is far below 2^53."""
        return (codes.astype(np.float64) @ weights.astype(np.float64).T).astype(np.int64)

    def tables_of(self, codes: np.ndarray) -> np.ndarray:
        """Table contents int64 (n, k-blocks, T, entries) of codes (n, K), in the order of the entries' addresses."""
        n, k = codes.shape
        blocks = -(-k // self.block)
        padded = np.zeros((n, blocks * self.block), np.int64)
        padded[:, :k] = codes
        value = np.arange(self.entries) - (0 if self.half_tables else (3**self.group - 1) // 2)
        digits = (value[:, None] + (3**self.group - 1) // 2) // 3 ** np.arange(self.group - 1, -1, -1) % 3 - 1
        return padded.reshape(n, blocks, self.tables, self.group) @ digits.T

    def matmul_by_tables(self, codes: np.ndarray, weights: np.ndarray, tile_columns: int) -> np.ndarray:
        """As ``matmul``, the way of the hardware: rows of indices in their order, lookups, accumulation over k-blocks."""
        layout = RowLayout(group=self.group, tables=self.tables, columns=self.columns, beat_bytes=1)
        n, k = codes.shape
        tables = self.tables_of(codes)
        index = group_indices(matrix_trits(weights, layout, tile_columns), self.half_tables).astype(np.int64)  # (rows, Q, T)
        sign = np.ones_like(index)
        if self.half_tables:
            sign = 1 - 2 * (index >> self.entry_bits)
            index &= (1 << self.entry_bits) - 1
        out, first = [], 0
        for tile in tiles_of(len(weights), tile_columns):
            rows = layout.tile_rows(tile)
            accumulators = np.zeros((n, rows, self.columns), np.int64)
            for kb in range(layout.blocks(k)):
                for c in range(rows):
                    row = first + kb * rows + c
                    accumulators[:, c] += (tables[:, kb, np.arange(self.tables), index[row]] * sign[row]).sum(axis=-1)
            first += layout.blocks(k) * rows
            out.append(accumulators.reshape(n, -1)[:, :tile])
        return np.concatenate(out, axis=1)

    def beats(self, sums: np.ndarray, tile_columns: int) -> np.ndarray:
        """The ``sums`` stream int64 (beats, V) of sums (n, N): for tile, for token, V columns, a tile's last beat zero-padded."""
        return np.concatenate(list(self._beats(sums, tile_columns)))

    def _beats(self, sums: np.ndarray, tile_columns: int) -> Iterator[np.ndarray]:
        n, start = len(sums), 0
        for tile in tiles_of(sums.shape[1], tile_columns):
            padded = np.zeros((n, -(-tile // self.vector_lanes) * self.vector_lanes), np.int64)
            padded[:, :tile] = sums[:, start : start + tile]
            yield padded.reshape(-1, self.vector_lanes)
            start += tile
