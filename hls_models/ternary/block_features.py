# SPDX-License-Identifier: Apache-2.0
"""Counts of a block's structure that its resources follow, block by block; ``resources`` multiplies them by fitted coefficients.

Each feature names what it counts, so that a coefficient is look-up tables (flip-flops, …) per adder bit, per lane, per register bit.
"""

from collections.abc import Callable, Mapping
from math import gcd
from typing import Any

from lutra.hls_models.ternary.attention import AttentionConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.head import HeadConfig
from lutra.hls_models.ternary.loader import LoaderConfig
from lutra.hls_models.ternary.memory import PORT_BYTES
from lutra.hls_models.ternary.tlmm import TlmmConfig
from lutra.hls_models.ternary.trits import TRITS_PER_BYTE
from lutra.hls_models.ternary.vector import VectorConfig
from lutra.hls_models.ternary.weights import WeightPathConfig

__all__ = ["FEATURES", "Features", "adder_bits"]

Features = Mapping[str, float]


def adder_bits(operands: int, width: int) -> int:
    """Bits of the sums of a balanced tree, one more at every level."""
    total = 0
    while operands > 1:
        width += 1
        total += operands // 2 * width
        operands = -(-operands // 2)
    return total


def _gearbox(bits: int, inputs: int, outputs: int) -> float:
    """Bits of a gearbox' multiplexers: what it holds times the levels of its shifter; none where one item comes at a time."""
    return 0 if inputs == 1 else bits * (inputs + outputs - 1) * max(1, (outputs - 1).bit_length())


def _linear(c: TlmmConfig) -> Features:
    sums, pairs = c.columns * c.lanes, c.tables // 2
    upper = adder_bits(c.tables, c.value_bits) - pairs * (c.value_bits + 1)
    together = gcd(c.vector_lanes, c.block)
    return {
        "one": 1,
        "leaf_bits": sums * c.tables * c.value_bits,
        "pair_register_bits": sums * pairs * (c.value_bits + 1) * (c.tree == "lut"),
        "upper_bits": sums * upper * (c.tree == "lut"),
        "blocks": c.columns * -(-c.lanes // 2) * (c.tables - 1 - pairs) * (c.tree == "dsp"),
        "root_bits": sums * c.sum_bits * c.half_tables,
        "accumulator_bits": sums * c.accumulator_bits,
        "drain_bits": c.columns * c.accumulator_bits * -(-(c.lanes - 1) // 3),
        "build_bits": c.tables * c.lanes * c.value_bits,
        "index_bits": c.row_bits,
        "word_bits": c.block * c.activation_bits,
        "word_shifter_bits": _gearbox(c.activation_bits * together, c.vector_lanes // together, c.block // together),
        "sum_shifter_bits": _gearbox(c.accumulator_bits, c.columns, c.vector_lanes),
    }


def _weights(c: WeightPathConfig) -> Features:
    held = c.row_bytes if c.row_beats > 1 else -(-c.row_trits // TRITS_PER_BYTE)  # of several beats every byte is shifted through
    return {"one": 1, "bytes": held, "beat_bytes": c.beat_bytes, "row_bits": c.row_bits, "lanes": c.lanes}


def _vector(c: VectorConfig) -> Features:
    return {
        "one": 1,
        "lanes": c.lanes,
        "silu_lanes": c.lanes // 2 * (c.activation == "silu"),
        "dividers": c.dividers,
        "fp16_lanes": c.lanes * (c.kv_format == "fp16"),
    }


def _attention(c: AttentionConfig) -> Features:
    int8, blocks = c.kv_format == "int8", c.tree == "dsp"
    scores = adder_bits(c.head_dim // 4, 18) if blocks and c.head_dim % 4 == 0 else adder_bits(c.head_dim, 16)
    sums = c.head_dim * (16 + (c.key_tile - 1).bit_length())
    return {
        "one": 1,
        "lanes": c.vector_lanes,
        "integer_products": c.head_dim * int8,
        "registered_products": c.head_dim * int8 * (not blocks),
        "adder_bits": (scores + sums * (not blocks)) * int8,
        "float_products": 0 if int8 else c.key_lanes,
    }


def _head(c: HeadConfig) -> Features:
    pairs = c.lanes // 2 if c.tree == "dsp" else 0
    single = c.lanes - 2 * pairs
    quarter = -(-c.beat_bytes // 4)
    packed = 36 * (c.beat_bytes // 4) + 2 * adder_bits(quarter, 18)
    return {
        "one": 1,
        "single_products": c.beat_bytes * single,
        "pair_products": c.beat_bytes * pairs,
        "tree_bits": single * adder_bits(c.beat_bytes, 16) + pairs * packed,
        "lanes": c.lanes,
        "best": c.best,
        "beat_bytes": c.beat_bytes,
        "planes": c.planes is not None,
        "plane_bytes": c.beat_bytes * (c.planes is not None),
    }


def _loader(c: LoaderConfig) -> Features:
    queues = c.rows_beats + c.embed_beats + c.head_beats
    return {
        "one": 1,
        "beat_bits": 8 * c.beat_bytes,
        "vector_lanes": c.vector_lanes,
        "queue_bits": 8 * c.beat_bytes * -(-queues // 32),
        "outstanding": c.outstanding,
        "tiles": c.kv is not None,
        "planes": c.planes is not None,
    }


def _control(spec: CoreSpec) -> Features:
    return {"one": 1, "best": spec.config.best, "queue": spec.config.queue}


def _memory(spec: CoreSpec) -> Features:
    layout = spec.kv_layout
    least, most = sorted((layout.beat_bytes, layout.head_dim))
    return {"one": 1, "ports": layout.beat_bytes // PORT_BYTES, "row_bits": 8 * layout.head_dim, "crossing_bits": 8 * least * (most % least > 0)}


FEATURES: Mapping[str, Callable[[Any], Features]] = {
    "linear": _linear,
    "weights": _weights,
    "vector": _vector,
    "attention": _attention,
    "head": _head,
    "loader": _loader,
    "control": _control,
    "memory": _memory,
}
"""Features of a block's configuration, by block."""
