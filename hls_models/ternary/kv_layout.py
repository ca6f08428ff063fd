# SPDX-License-Identifier: Apache-2.0
"""Keys and values in a shared memory: where they lie, in which order tiles are read, which bytes a new row writes (docs/architecture.md, 5.3).

A block holds a tile of keys (or values) of one KV head and layer: first the fp32 scales of its rows without gaps, then their int8 codes, each row padded to
``row_bytes`` (not at all unless the number of ports has an odd factor that does not divide a row's units of 16 bytes).
"""

from collections.abc import Iterator
from math import gcd
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lutra.hls_models.config import Config
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.isa import INSTRUCTION_BITS
from lutra.hls_models.ternary.memory import PORT_BYTES

__all__ = ["KV_ROWS", "SCALE_BYTES", "KvLayout", "KvTile", "KvWrite"]

SCALE_BYTES = 4

KV_ROWS = 1
"""Clocks from the beat with which a row is complete, on ``KvRows.kv``, to the row on ``KvRows.kv_data``: the joined row's register."""


class KvTile(NamedTuple):
    """A tile in the order of work: ``rows`` rows of keys (or values) of ``head``, in ``beats`` beats from ``address``."""

    head: int
    value: bool
    rows: int
    address: int
    beats: int


class KvWrite(NamedTuple):
    """Bytes ``strobe`` (a mask of 16) of port ``lane`` in beat ``beat``; ``unit``: which 16 codes, None for the scale."""

    beat: int
    lane: int
    strobe: int
    unit: int | None


class KvLayout(Config):
    """Sizes; addresses are in beats from ``base``."""

    beat_bytes: int = Field(ge=PORT_BYTES, multiple_of=PORT_BYTES, description="bytes of a beat (B)")
    layers: int = Field(ge=1)
    kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=1)
    context: int = Field(ge=1, description="positions of the cache")
    key_tile: int = Field(ge=1, description="rows of a tile (TL), a power of two")
    base: int = Field(0, ge=0, description="first beat")

    @classmethod
    def behind_program(cls, shape: ModelShape, *, beat_bytes: int, key_tile: int, program_words: int, burst_beats: int) -> "KvLayout":
        """The cache of a model, behind room for ``program_words`` instructions, from the next burst on."""
        program = program_words * -(-INSTRUCTION_BITS // (8 * beat_bytes))
        return cls(
            beat_bytes=beat_bytes,
            layers=shape.layers,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            context=shape.context,
            key_tile=key_tile,
            base=-(-program // burst_beats) * burst_beats,
        )

    @model_validator(mode="after")
    def _consistent(self) -> "KvLayout":
        if self.head_dim % PORT_BYTES:
            raise ValueError(f"head_dim must be a multiple of the port's {PORT_BYTES} bytes, not {self.head_dim}")
        if self.head_dim < self.beat_bytes:
            raise ValueError(
                f"ports must be at most head_dim / {PORT_BYTES} = {self.head_dim // PORT_BYTES} (a beat holds at most one row), "
                f"not {self.beat_bytes // PORT_BYTES}"
            )
        if self.key_tile & (self.key_tile - 1):
            raise ValueError(f"key_tile must be a power of two, not {self.key_tile}; nearest: {1 << self.key_tile.bit_length() - 1}")
        if self.key_tile * self.row_bytes % self.beat_bytes:
            nearest = self.beat_bytes // gcd(self.beat_bytes, self.row_bytes)
            raise ValueError(
                f"key_tile must make whole beats of {self.beat_bytes} bytes of its rows of {self.row_bytes}, not {self.key_tile}; nearest: {nearest}"
            )
        if self.context % self.key_tile:
            nearest = max(1, self.context // self.key_tile) * self.key_tile
            raise ValueError(f"context must be whole key tiles of {self.key_tile}, not {self.context}; nearest: {nearest}")
        return self

    @property
    def row_bytes(self) -> int:
        """Bytes from a row's codes to the next one's: the least multiple of the ports' odd factor (and of 16) that holds a row, so that tiles of a power of
        two of rows are whole beats."""
        ports = self.beat_bytes // PORT_BYTES
        unit = ports // (ports & -ports) * PORT_BYTES
        return -(-self.head_dim // unit) * unit

    @property
    def scale_beats(self) -> int:
        """Beats of a block's scales (S)."""
        return -(-SCALE_BYTES * self.key_tile // self.beat_bytes)

    @property
    def block_beats(self) -> int:
        return self.scale_beats + self.key_tile * self.row_bytes // self.beat_bytes

    @property
    def tiles(self) -> int:
        """Tiles of a head's whole context."""
        return self.context // self.key_tile

    @property
    def layer_beats(self) -> int:
        return 2 * self.kv_heads * self.tiles * self.block_beats

    @property
    def beats(self) -> int:
        """Beats of the whole cache."""
        return self.layers * self.layer_beats

    @property
    def row_writes(self) -> int:
        """Written beats of 16 bytes per row: its codes, its scale."""
        return self.head_dim // PORT_BYTES + 1

    def tile_beats(self, rows: int) -> int:
        """Beats that are read for the first ``rows`` rows of a block: all of its scales, then the codes."""
        return self.scale_beats + -(-rows * self.row_bytes // self.beat_bytes)

    def last_beat(self, row: int) -> int:
        """Beat of a block, counted from its first, with which row ``row`` is complete."""
        return self.scale_beats + -(-(row + 1) * self.row_bytes // self.beat_bytes) - 1

    def tile_rows(self, beats: NDArray[np.uint8], rows: int) -> tuple[NDArray[np.int8], NDArray[np.uint32]]:
        """Codes (rows, head_dim) and scales (rows,) of a tile's ``tile_beats(rows)`` beats (n, B), as ``KvRows`` gives them."""
        first = self.scale_beats
        scales = np.ascontiguousarray(beats[:first]).reshape(-1).view("<u4")[:rows]
        codes = np.ascontiguousarray(beats[first:]).reshape(-1).view(np.int8)[: rows * self.row_bytes].reshape(rows, -1)
        return np.ascontiguousarray(codes[:, : self.head_dim]), scales

    def row_cycles(self, beats: NDArray[np.int64], rows: int) -> NDArray[np.int64]:
        """Cycles (rows,) in which ``KvRows`` gives a tile's rows, of those (tile_beats,) in which it gets the beats."""
        return np.asarray(beats, np.int64)[[self.last_beat(row) for row in range(rows)]] + KV_ROWS

    def address(self, layer: int, head: int, tile: int, *, value: bool) -> int:
        """First beat of a block."""
        return self.base + layer * self.layer_beats + ((head * self.tiles + tile) * 2 + value) * self.block_beats

    def order(self, layer: int, tokens: int, position: int, *, serial: bool = False) -> Iterator[KvTile]:
        """Tiles that a pass reads, in order: prefill for head: for tile, newest first: K, V. Decode: for head: for tile, oldest first: V of the head before,
        K of the head. ``serial``: as in decode, token after token."""
        if tokens > 1 and not serial:
            count = -(-(position + tokens) // self.key_tile)
            for head in range(self.kv_heads):
                for tile in reversed(range(count)):
                    for value in (False, True):
                        yield self._tile(layer, head, tile, value, position + tokens)
            return
        for token in range(tokens):
            end = position + token + 1
            for head in range(self.kv_heads + 1):
                for tile in range(-(-end // self.key_tile)):
                    if head:
                        yield self._tile(layer, head - 1, tile, True, end)
                    if head < self.kv_heads:
                        yield self._tile(layer, head, tile, False, end)

    def _tile(self, layer: int, head: int, tile: int, value: bool, end: int) -> KvTile:
        rows = min(self.key_tile, end - tile * self.key_tile)
        return KvTile(head, value, rows, self.address(layer, head, tile, value=value), self.tile_beats(rows))

    def writes(self, row: int) -> list[KvWrite]:
        """Written beats of row number ``row`` (``AttentionConfig.address``), in order: its codes upwards, then its scale."""
        place, value = divmod(row, 2)
        block, at = divmod(place, self.key_tile)  # tiles of a head, heads and layers follow each other in both numberings
        first = self.base + (2 * block + value) * self.block_beats
        out = []
        for unit in range(self.head_dim // PORT_BYTES):
            beat, byte = divmod(at * self.row_bytes + unit * PORT_BYTES, self.beat_bytes)
            out.append(KvWrite(first + self.scale_beats + beat, byte // PORT_BYTES, 0xFFFF, unit))
        beat, byte = divmod(at * SCALE_BYTES, self.beat_bytes)
        return [*out, KvWrite(first + beat, byte // PORT_BYTES, 0xF << byte % PORT_BYTES, None)]

    def pack(self, codes: NDArray[np.int8], scales: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """Memory (beats * B,) of ``KvCache`` arrays: codes (layers, kv_heads, context, 2, head_dim), scales (layers, kv_heads, context, 2)."""
        blocks = self.layers * self.kv_heads * self.tiles
        out = np.zeros((blocks, 2, self.block_beats * self.beat_bytes), np.uint8)
        width, first = SCALE_BYTES * self.key_tile, self.scale_beats * self.beat_bytes
        out[:, :, :width] = np.ascontiguousarray(scales.reshape(blocks, self.key_tile, 2).swapaxes(1, 2), "<u4").view(np.uint8).reshape(blocks, 2, -1)
        rows = out[:, :, first:].reshape(blocks, 2, self.key_tile, self.row_bytes)
        rows[..., : self.head_dim] = codes.reshape(blocks, self.key_tile, 2, self.head_dim).swapaxes(1, 2).view(np.uint8)
        out[:, :, first:] = rows.reshape(blocks, 2, -1)
        return out.reshape(-1)

    def unpack(self, memory: NDArray[np.uint8]) -> tuple[NDArray[np.int8], NDArray[np.uint32]]:
        """Inverse of ``pack``."""
        both = memory.reshape(-1, 2, self.block_beats * self.beat_bytes)
        width, first = SCALE_BYTES * self.key_tile, self.scale_beats * self.beat_bytes
        shape = (self.layers, self.kv_heads, self.context, 2)
        scales = np.ascontiguousarray(both[:, :, :width]).view("<u4").swapaxes(1, 2).reshape(shape)
        rows = both[:, :, first:].view(np.int8).reshape(-1, 2, self.key_tile, self.row_bytes)[..., : self.head_dim]
        codes = rows.swapaxes(1, 2).reshape(*shape, self.head_dim)
        return codes, scales
