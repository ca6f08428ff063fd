# SPDX-License-Identifier: Apache-2.0
"""TeLLMe v2's serial schedule on our units' cycle models: one decoded token of its 0.73B model (arXiv 2510.15926).

Ours: the time of a k-block in LINEAR with their sizes (`LinearTiming`, builds not hidden), of a transfer (`MemoryTiming`), of requantising a row
(`VectorTiming`). Theirs, each named in ``FACTS``: sizes of the engine, what is serial, stored bits, cache format, where the head runs. What no source
tells is in ``ASSUMED``, and the result is given for other values of it.
"""

from typing import Any

import numpy as np

from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.isa import Destination, Operation, Source
from lutra.hls_models.ternary.linear import LinearTiming
from lutra.hls_models.ternary.memory import MemoryConfig, MemoryTiming
from lutra.hls_models.ternary.tlmm import TlmmConfig
from lutra.hls_models.ternary.vector import VectorConfig
from lutra.hls_models.ternary.vector_cycles import VectorTiming
from lutra.hls_models.ternary.weights import LinearInstruction, WeightPathConfig
from lutra.mapping.catalogue import open_model

__all__ = ["ASSUMED", "FACTS", "PUBLISHED", "measure", "token"]

CLOCK_HZ = 250e6
GROUP, TABLES, COLUMNS = 3, 28, 16
INDEX_BITS = 6
HEAD_SECONDS = 9e-3
PUBLISHED = {"tokens_per_second": 25.0, "weight_bytes": 175.3e6, "lookup_share": 0.55, "bits_per_weight": 2.064}
FACTS = {
    "engine": "G = 3, T = 28 tables, Q = 16 columns a clock, M = 1, full tables of 27 entries, 250 MHz (the released code)",
    "weights": "2.064 bits per useful weight, 175.3 MB a token: an index of 5 bits takes 6, K is padded to 84",
    "linear": "activation read, table build and lookup in sequence, k-block after k-block",
    "schedule": "weight load and compute strictly serial, matrix after matrix, no ping-pong",
    "intermediates": "go to DDR between projections and come back",
    "cache": "16-bit floats, read K then V",
    "head": "on the ARM cores, about 9 ms of every 40 ms token (relayed by a third party)",
}
"""What is taken from shared knowledge of TeLLMe v2 (arXiv 2510.15926 and its released code)."""
ASSUMED = {
    "ports": "two 128-bit memory ports at 250 MHz (8.0 GB/s): not in the paper's text; with one or four the token takes the other times given",
    "activation read": "one code a clock",
    "requantisation": "8 lanes, as ours",
    "context": "128 rows",
}
CONTEXT, PORTS = 128, 2


class _Clock:
    """Runs one thing after another and keeps what each kind took."""

    def __init__(self, ports: int) -> None:
        self.memory = MemoryTiming(MemoryConfig(ports=ports))
        self.now = 0
        self.cycles: dict[str, int] = {}
        self.bytes: dict[str, int] = {}

    def run(self, kind: str, cycles: int) -> None:
        self.now += cycles
        self.cycles[kind] = self.cycles.get(kind, 0) + cycles

    def load(self, kind: str, size: int) -> None:
        """A transfer of ``size`` bytes to its last beat; a write takes as long as a read."""
        config = self.memory.config
        left, last = -(-size // config.beat_bytes), self.now
        while left:  # requests of a transfer follow each other at once
            beats = min(left, config.burst_beats)
            last = int(self.memory.read(self.now, beats)[-1])
            left -= beats
        self.bytes[kind] = self.bytes.get(kind, 0) + size
        self.run(kind, last + 1 - self.now)


def _linear(widest: int) -> LinearTiming:
    sizes = TlmmConfig(
        group=GROUP, tables=TABLES, columns=COLUMNS, lanes=1, vector_lanes=1, half_tables=False, max_tokens=1, max_k=widest, max_tile_columns=widest
    )
    path = WeightPathConfig(group=GROUP, tables=TABLES, columns=COLUMNS, lanes=1, half_tables=False, beat_bytes=1, ring_rows=sizes.tile_rows)
    return LinearTiming(sizes, path)


def _requantise(shape: ModelShape, columns: int) -> int:
    """Cycles from the last result of a row to its last code."""
    config = VectorConfig(
        lanes=8,
        accumulator_bits=24,
        max_tokens=1,
        max_columns=columns,
        hidden=shape.hidden,
        head_dim=shape.head_dim,
        activation=shape.activation,
        params_rows=2048,
        rope_rows=64,
        max_groups=1,
    )
    fields = {"source": Source.SUMS, "operation": Operation.COPY, "norm": 1, "destination": Destination.LINEAR, "columns": columns, "group_columns": columns}
    return int(VectorTiming(config).requantise(fields, 1).codes[-1]) + 1


def token(ports: int = PORTS, context: int = CONTEXT, model: str = "bitnet-0.73b") -> dict[str, Any]:
    """Milliseconds of a decoded token by kind, tokens per second, bytes, share of the linear engine's time in lookups."""
    shape = open_model(model)
    assert isinstance(shape, ModelShape)
    clock, linear, lookups = _Clock(ports), _linear(max(shape.hidden, shape.ffn)), 0
    block = GROUP * TABLES
    for _ in range(shape.layers):
        for matrix in shape.linears():
            blocks, rows = -(-matrix.inputs // block), -(-matrix.outputs // COLUMNS)
            clock.load("weights", blocks * rows * TABLES * COLUMNS * INDEX_BITS // 8)
            clock.load("intermediates", matrix.inputs)
            linear.rest()
            cycles, _ = linear.instruction(LinearInstruction(1, matrix.outputs, matrix.outputs, 1), 0)
            clock.run("activation read", blocks * block)
            clock.run("lookups", blocks * rows)
            clock.run("table builds", blocks * (int(np.max(cycles.rows)) + 1 - rows))
            lookups += blocks * rows
            clock.load("intermediates", 2 * matrix.outputs)
            if matrix.name in ("v_proj", "o_proj", "up_proj", "down_proj"):
                clock.run("requantisation", _requantise(shape, matrix.outputs))
            if matrix.name == "v_proj":
                for _ in ("keys", "values"):
                    clock.load("cache", 2 * shape.kv_columns * context)
    clock.run("head", round(HEAD_SECONDS * CLOCK_HZ))
    engine = sum(clock.cycles[kind] for kind in ("activation read", "lookups", "table builds"))
    return {
        "ports": ports,
        "context": context,
        "tokens_per_second": CLOCK_HZ / clock.now,
        "milliseconds": {kind: 1e3 * cycles / CLOCK_HZ for kind, cycles in clock.cycles.items()},
        "bytes": clock.bytes,
        "bits_per_weight": 8 * clock.bytes["weights"] / shape.ternary_weights,
        "lookup_share": lookups / engine,
        "memory_bytes_per_second": sum(clock.bytes.values()) * CLOCK_HZ / clock.now,
    }


def measure() -> dict[str, Any]:
    """The token with the assumed ports, with one and with four, and at a long context."""
    return {"facts": FACTS, "assumed": ASSUMED, "published": PUBLISHED, "tokens": [token(), token(ports=1), token(ports=4), token(context=1024)]}
