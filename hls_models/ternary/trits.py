# SPDX-License-Identifier: Apache-2.0
"""Trit code, order of the weight rows and group indices: one definition for packer, golden models and RTL.

A *row* holds what one lookup cycle needs: T x Q groups of G trits (docs/architecture.md 2.5). The byte code is TQ1_0's of ggml
(five trits t = w + 1, first most significant, stored as ceil(v * 256 / 243)).
"""

from collections.abc import Iterator

import numpy as np
from pydantic import Field

from lutra.hls_models.config import Config

__all__ = [
    "TRITS_PER_BYTE",
    "RowLayout",
    "bits_per_weight",
    "decode_bytes",
    "encode_bytes",
    "group_indices",
    "indices_of_rows",
    "matrix_rows",
    "matrix_trits",
    "pack_matrix",
    "pack_tiles",
    "rows_of",
    "tiles_of",
    "unpack_matrix",
]

TRITS_PER_BYTE = 5
CODES = ((np.arange(3**TRITS_PER_BYTE) * 256 + 242) // 243).astype(np.uint8)
"""Stored byte of each value of five trits."""


def _decoded() -> np.ndarray:
    rest = np.arange(256)
    out = np.empty((256, TRITS_PER_BYTE), np.int8)
    for i in range(TRITS_PER_BYTE):
        product = rest * 3  # the top of three times the fraction is the digit, the low byte the rest
        out[:, i] = (product >> 8) - 1
        rest = product & 255
    return out


TRITS = _decoded()
"""The five trits of each byte."""


class RowLayout(Config):
    """Shape of a weight row: ``columns`` x ``tables`` groups of ``group`` trits, padded with zero weights to whole beats."""

    group: int = Field(ge=2, le=5, description="trits per table lookup, G, e.g. 3")
    tables: int = Field(ge=1, description="tables, T, e.g. 6: T*G activations are looked up per clock")
    columns: int = Field(ge=1, description="matrix columns per clock, Q, e.g. 10")
    beat_bytes: int = Field(ge=1, description="bytes of a memory beat, B, e.g. 36")

    @property
    def block(self) -> int:
        """Activations of one k-block, T * G."""
        return self.tables * self.group

    @property
    def row_trits(self) -> int:
        return self.block * self.columns

    @property
    def row_bytes(self) -> int:
        """Stored bytes of a row: whole bytes, then whole beats."""
        return -(-self.row_trits // (TRITS_PER_BYTE * self.beat_bytes)) * self.beat_bytes

    @property
    def row_beats(self) -> int:
        return self.row_bytes // self.beat_bytes

    def blocks(self, k: int) -> int:
        """k-blocks of a matrix with ``k`` inputs."""
        return -(-k // self.block)

    def tile_rows(self, tile_columns: int) -> int:
        """Rows per k-block of a tile."""
        return -(-tile_columns // self.columns)


def encode_bytes(trits: np.ndarray) -> np.ndarray:
    """Trits -1, 0, 1 (..., 5 * b) to code bytes uint8 (..., b)."""
    digits = (trits.astype(np.int8) + 1).view(np.uint8).reshape(*trits.shape[:-1], -1, TRITS_PER_BYTE)
    value = digits[..., 0]
    for place in range(1, TRITS_PER_BYTE):  # at most 242: bytes suffice
        value = value * np.uint8(3) + digits[..., place]
    return CODES[value]


def decode_bytes(code: np.ndarray) -> np.ndarray:
    """Code bytes uint8 (..., b) to trits int8 (..., 5 * b); every one of the 256 byte values has a meaning, as in the RTL."""
    return TRITS[code].reshape(*code.shape[:-1], -1)


def tiles_of(columns: int, tile_columns: int) -> list[int]:
    """Columns of each tile: ``tile_columns``, the last one the rest."""
    return [min(tile_columns, columns - start) for start in range(0, columns, tile_columns)]


def matrix_rows(layout: RowLayout, columns: int, k: int, tile_columns: int) -> int:
    """Rows that a (columns, k) matrix takes."""
    return layout.blocks(k) * sum(layout.tile_rows(tile) for tile in tiles_of(columns, tile_columns))


def matrix_trits(weights: np.ndarray, layout: RowLayout, tile_columns: int) -> np.ndarray:
    """Weights int8 (N, K) to rows int8 (rows, Q, T, G), zero-padded, in the order of the weight path."""
    return np.concatenate([_tile_trits(weights[start : start + tile_columns], layout) for start in range(0, len(weights), tile_columns)])


def _tile_trits(weights: np.ndarray, layout: RowLayout) -> np.ndarray:
    """Rows of one tile, weights int8 (columns of the tile, K)."""
    columns, k = weights.shape
    rows, blocks = layout.tile_rows(columns), layout.blocks(k)
    padded = np.zeros((rows * layout.columns, blocks * layout.block), np.int8)
    padded[:columns, :k] = weights
    cube = padded.reshape(rows, layout.columns, blocks, layout.tables, layout.group)
    return cube.transpose(2, 0, 1, 3, 4).reshape(blocks * rows, layout.columns, layout.tables, layout.group)


def pack_tiles(weights: np.ndarray, layout: RowLayout, tile_columns: int) -> Iterator[np.ndarray]:
    """Weights int8 (N, K) of -1, 0, 1 to the stored bytes of one tile after another, uint8 (rows * row_bytes,).

    Raises ValueError where a weight is not a trit.
    """
    for start in range(0, len(weights), tile_columns):
        tile = weights[start : start + tile_columns]
        if tile.size and (tile.min() < -1 or tile.max() > 1):
            raise ValueError(f"weights must be -1, 0 or 1, not {tile.min()}..{tile.max()}")
        rows = _tile_trits(tile, layout)
        padded = np.zeros((len(rows), layout.row_bytes * TRITS_PER_BYTE), np.int8)
        padded[:, : layout.row_trits] = rows.reshape(len(rows), -1)
        yield encode_bytes(padded).reshape(-1)


def pack_matrix(weights: np.ndarray, layout: RowLayout, tile_columns: int) -> np.ndarray:
    """The bytes of ``pack_tiles``, whole."""
    return np.concatenate(list(pack_tiles(weights, layout, tile_columns)))


def rows_of(stored: np.ndarray, layout: RowLayout) -> np.ndarray:
    """Stored bytes of whole rows to trits int8 (rows, Q, T, G)."""
    trits = decode_bytes(stored.reshape(-1, layout.row_bytes))[:, : layout.row_trits]
    return trits.reshape(-1, layout.columns, layout.tables, layout.group)


def unpack_matrix(stored: np.ndarray, layout: RowLayout, columns: int, k: int, tile_columns: int) -> np.ndarray:
    """Inverse of ``pack_matrix``: weights int8 (columns, k)."""
    rows, out, first = rows_of(stored, layout), [], 0
    blocks = layout.blocks(k)
    for tile in tiles_of(columns, tile_columns):
        height = layout.tile_rows(tile)
        part = rows[first : first + blocks * height].reshape(blocks, height, layout.columns, layout.tables, layout.group)
        out.append(part.transpose(1, 2, 0, 3, 4).reshape(height * layout.columns, -1)[:tile, :k])
        first += blocks * height
    return np.concatenate(out)


def group_indices(trits: np.ndarray, half: bool) -> np.ndarray:
    """Trits (..., G) to the table index uint8 (...,): full, v + (3^G - 1) / 2; half, the sign of v above |v|."""
    group = trits.shape[-1]
    trits = trits.astype(np.int8, copy=False)
    value = trits[..., 0]
    for place in range(1, group):  # at most 121: bytes suffice
        value = value * np.int8(3) + trits[..., place]
    largest = (3**group - 1) // 2
    if not half:
        return value.view(np.uint8) + np.uint8(largest)
    sign = value < 0
    return np.where(sign, -value, value).view(np.uint8) | sign.view(np.uint8) << np.uint8(largest.bit_length())


def indices_of_rows(stored: np.ndarray, layout: RowLayout, half: bool) -> np.ndarray:
    """Stored bytes of whole rows to the indices that the weight ring holds, uint8 (rows, Q * T), position q * T + t."""
    rows = rows_of(stored, layout)
    return group_indices(rows, half).reshape(len(rows), -1)


def bits_per_weight(layout: RowLayout, columns: int, k: int, tile_columns: int) -> float:
    """Stored bits per useful weight of a (columns, k) matrix, padding included."""
    return 8 * layout.row_bytes * matrix_rows(layout, columns, k, tile_columns) / (columns * k)
