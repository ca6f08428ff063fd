# SPDX-License-Identifier: Apache-2.0
"""Bytes of the memory image, block by block (architecture.md, 2.5, 2.7 and 2.9)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lutra.hls_models.floats import FP32, FloatFormat, from_float64
from lutra.hls_models.ternary.planes import PlanesConfig
from lutra.mapping.model import Table, given
from lutra.mapping.tiles import Core

__all__ = ["HEADER_BITS", "header_rows", "params", "planes", "rope_row_beats", "rope_table", "table", "table_row_beats"]

HEADER_BITS = 160
"""weight_scale[0..2], reciprocal, eps: five fp32 words."""

VALUE_BYTES = 3
"""A value of a params or rope row, zero-extended."""


def header_rows(core: Core) -> int:
    """Params rows before the gains."""
    return -(-HEADER_BITS // (8 * VALUE_BYTES * core.vector_lanes))


def table_row_beats(core: Core, hidden: int) -> int:
    """Beats of one row of the embedding table: its scale in whole beats of V bytes, then the codes."""
    v = core.vector_lanes
    return -(-(-(-4 // v) * v + hidden) // core.beat_bytes)


def rope_row_beats(core: Core, head_dim: int) -> int:
    """Beats of the (cos, sin) rows of one position."""
    return -(-(head_dim // core.vector_lanes) // core.params_rows_per_beat)


def params(core: Core, gains: np.ndarray, header: tuple[float, ...] | None) -> np.ndarray:
    """uint8, whole beats: the header's five values (fp32) if given, then gains (bit patterns of F, a multiple of V)."""
    row_bytes = VALUE_BYTES * core.vector_lanes
    head = np.zeros((header_rows(core) if header else 0) * row_bytes, np.uint8)
    if header:
        head[: HEADER_BITS // 8] = from_float64(FP32, np.array(header)).astype("<u4").view(np.uint8)
    return _beats(core, np.concatenate((head, _three_bytes(gains))))


def rope_table(core: Core, format: FloatFormat, context: int, head_dim: int, theta: float) -> np.ndarray:
    """uint8 (context, bytes of a position): lanes (2i, 2i+1) of row r hold cos and sin of pair r*V/2 + i; each position fills whole beats."""
    half = head_dim // 2
    angle = np.outer(np.arange(context), theta ** (-np.arange(half) / half))
    pairs = from_float64(format, np.stack((np.cos(angle), np.sin(angle)), -1).reshape(context, head_dim))
    return np.stack([_beats(core, _three_bytes(row)) for row in pairs])


def table(core: Core, values: Table) -> Iterator[np.ndarray]:
    """uint8 (rows, bytes of a row), some rows at a time: scale (fp32) in the first beats of V bytes, then the codes, each row padded to whole beats."""
    scales = given(values.scales).astype("<f4").view(np.uint8).reshape(-1, 4)
    first = -(-4 // core.vector_lanes) * core.vector_lanes
    for row, codes in values.parts():
        rows = np.zeros((len(codes), table_row_beats(core, values.columns) * core.beat_bytes), np.uint8)
        rows[:, :4] = scales[row : row + len(codes)]
        rows[:, first : first + values.columns] = codes.view(np.uint8)
        yield rows


def planes(config: PlanesConfig, values: Table) -> Iterator[np.ndarray]:
    """uint8 parts of a table in two planes: segments, one at a time."""
    scales = given(values.scales).astype("<f4").view("<u4")
    return config.pack((codes, scales[row : row + len(codes)]) for row, codes in values.parts())


def _three_bytes(bits: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bits.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :VALUE_BYTES]).reshape(-1)


def _beats(core: Core, data: np.ndarray) -> np.ndarray:
    """Rows of V values, as many to a beat as fit, each beat padded."""
    row_bytes = VALUE_BYTES * core.vector_lanes
    used = core.params_rows_per_beat * row_bytes
    beats = -(-len(data) // used)
    padded = np.zeros(beats * used, np.uint8)
    padded[: len(data)] = data
    out = np.zeros((beats, core.beat_bytes), np.uint8)
    out[:, :used] = padded.reshape(beats, used)
    return out.reshape(-1)
