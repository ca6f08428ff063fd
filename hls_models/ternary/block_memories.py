# SPDX-License-Identifier: Apache-2.0
"""Memories of every block of a core as RAM primitives of a family, by the formulas of ``sizing``; small tables and queues that yosys puts into
look-up tables are among them where their size follows the configuration."""

from collections.abc import Callable, Mapping
from typing import Any

from lutra.hls_models.floats import FP32
from lutra.hls_models.ternary.attention import AttentionConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.head import HeadConfig
from lutra.hls_models.ternary.isa import INSTRUCTION_BITS
from lutra.hls_models.ternary.loader import LoaderConfig
from lutra.hls_models.ternary.memory import PORT_BYTES
from lutra.hls_models.ternary.sizing import Family, Primitives, block_ram, lookup_memories, lut_ram, styled_ram
from lutra.hls_models.ternary.tlmm import TlmmConfig
from lutra.hls_models.ternary.vector import LANE_BITS, OUTPUT_DEPTH, VectorConfig
from lutra.hls_models.ternary.weights import WeightPathConfig

__all__ = ["MEMORIES"]

LUT_ROWS = 64
READ_QUEUE = 32
"""Beats that ``AxiReader`` queues for a port."""


def _automatic(family: Family, width: int, depth: int) -> Primitives:
    """Where the design leaves the choice to synthesis."""
    return lut_ram(family, width, depth) if depth <= LUT_ROWS else block_ram(family, width, depth)


def _linear(c: TlmmConfig, family: Family) -> list[Primitives]:
    return list(lookup_memories(family, c).values())


def _weights(c: WeightPathConfig, family: Family) -> list[Primitives]:
    return [styled_ram(family, c.ring_ram, c.row_bits, c.ring_rows)]


def _vector(c: VectorConfig, family: Family) -> list[Primitives]:
    v, n = c.lanes, c.max_tokens
    entry = v * c.code_bits + FP32.bits + 21
    return [
        styled_ram(family, c.buffer_ram, v * c.format.bits, n * (c.max_columns // v)),  # U
        styled_ram(family, c.buffer_ram, v * c.format.bits, n * (c.hidden // v)),  # X
        block_ram(family, LANE_BITS * v, c.params_rows),
        block_ram(family, LANE_BITS * v, c.rope_rows),
        _automatic(family, c.format.bits - 1, n * c.max_groups),  # maxima
        *[_automatic(family, FP32.bits, n * c.partials // 2) for _ in range(2)],
        lut_ram(family, FP32.bits, n),  # scales
        lut_ram(family, entry, OUTPUT_DEPTH - 1),
    ]


def _bits(count: int) -> int:
    return max(1, (count - 1).bit_length())


def _attention(c: AttentionConfig, family: Family) -> list[Primitives]:
    rows = (c.group - 1).bit_length() + _bits(c.max_tokens)
    tile = 2 << _bits(c.key_tile)
    deep = c.deep_ram or "block"
    return [
        styled_ram(family, c.row_ram, c.row_bits, c.max_tokens * c.heads),  # queries
        styled_ram(family, c.row_ram, c.row_bits, tile),  # keys
        styled_ram(family, c.row_ram, c.code_bits * c.head_dim, tile),  # values
        styled_ram(family, deep, FP32.bits, c.score_depth),
        styled_ram(family, deep, FP32.bits * c.vector_lanes, 1 << (_bits(c.head_beats) + rows)),  # running outputs
        _automatic(family, FP32.bits, 1 << rows),  # denominators
    ]


def _head(c: HeadConfig, family: Family) -> list[Primitives]:
    codes = [_automatic(family, 8 * c.beat_bytes, c.store_beats)] * c.lanes
    if c.planes is None:
        return codes
    half, listed = (c.hidden * 15 * 128).bit_length() + 1, _bits(c.planes.segment) + 1
    queues = [lut_ram(family, listed, 2 * c.planes.segment - 1)] * 2
    return [*codes, *queues, block_ram(family, half + FP32.bits, 2 * c.planes.segment), block_ram(family, FP32.bits, c.planes.segment)]


def _loader(c: LoaderConfig, family: Family) -> list[Primitives]:
    return [lut_ram(family, 8 * c.beat_bytes, depth) for depth in (c.embed_beats, c.head_beats, c.rows_beats)]


def _control(spec: CoreSpec, family: Family) -> list[Primitives]:
    style = "block" if spec.config.device_ram == "ultra" else "distributed"
    program = styled_ram(family, style, INSTRUCTION_BITS, spec.config.program_words)
    id_bits, context = max(1, (spec.shape.vocabulary - 1).bit_length()), spec.shape.context
    tokens = [block_ram(family, id_bits, context)] * 2 if context > LUT_ROWS * 8 else []  # read by two; a shallow one is LUT-RAM, and fitted
    return [program, *tokens]


def _memory(spec: CoreSpec, family: Family) -> list[Primitives]:
    layout = spec.kv_layout
    queues = [lut_ram(family, 8 * PORT_BYTES, READ_QUEUE)] * (layout.beat_bytes // PORT_BYTES)
    return [*queues, lut_ram(family, 8 * layout.beat_bytes, layout.scale_beats)]


MEMORIES: Mapping[str, Callable[[Any, Family], list[Primitives]]] = {
    "linear": _linear,
    "weights": _weights,
    "vector": _vector,
    "attention": _attention,
    "head": _head,
    "loader": _loader,
    "control": _control,
    "memory": _memory,
}
"""RAM primitives of a block's configuration in a family, by block."""
