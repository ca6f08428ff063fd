# SPDX-License-Identifier: Apache-2.0
"""Whole cores of random sizes with random models: conversations on the RTL against golden values and cycle model."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lutra.cosim.core import CoreBench, Job, Turn
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.config import CoreConfig, KvFormat
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.memory import MemoryConfig
from lutra.hls_models.ternary.program import Program
from lutra.mapping.lower import compile_model
from lutra.mapping.model import TernaryModel

__all__ = ["Small", "bench", "conversation", "pattern", "shared", "small"]


@dataclass(frozen=True)
class Small:
    """A core and a random model compiled for it."""

    spec: CoreSpec
    program: Program


def small(rng: np.random.Generator, kv_format: KvFormat = "int8") -> Small:
    """A core and a model of random small sizes: lanes, tables, heads, groups, activations, non-multiples of every size."""
    v: Literal[2, 4] = 4 if rng.integers(2) else 2
    kv_heads, group = int(rng.integers(1, 3)), int(rng.integers(1, 4))
    head_dim = v * int(rng.integers(1, 4))
    shape = ModelShape(
        name="random",
        hidden=v * int(rng.integers(2, 9)),
        layers=int(rng.integers(1, 3)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=v * int(rng.integers(2, 12)),
        vocabulary=int(rng.integers(5, 40)),
        context=int(rng.integers(12, 40)),
        activation="silu" if rng.integers(2) else "relu2",
        sub_norms=bool(rng.integers(4)),
        tied=bool(rng.integers(2)),
    )
    chunk = int(rng.integers(1, 6))
    widest = max(shape.hidden, shape.heads * head_dim, shape.ffn, (shape.heads + 2 * kv_heads) * head_dim)
    config = CoreConfig(
        name="random",
        clock_hz=50e6,
        group=int(rng.integers(2, 5)),
        tables=int(rng.integers(1, 5)),
        columns=int(rng.integers(1, 8)),
        lanes=int(rng.integers(1, 4)),
        vector_lanes=v,
        half_tables=bool(rng.integers(2)),
        allow_stalls=True,
        ring_rows=2 * widest * (-(-widest // 2) + 1),
        max_tile_columns=-(-2 * shape.ffn // v) * v,
        chunk=chunk,
        key_tile=int(rng.choice([4, 8, 16])),
        beat_bytes=v * int(rng.integers(3, 9)),
        params_rows=64 + widest // v,
        rope_rows=max(8, chunk * head_dim // v) + 8,
        best=int(rng.integers(1, 6)),
        queue=int(rng.integers(2, 5)),
        kv_format=kv_format,
        memory_latency=int(rng.choice([2, 3, 25])),
    )
    row_beats = -(-(-(-4 // v) * v + shape.hidden) // config.beat_bytes)  # HEAD scores as many tokens together, at most
    config = config.model_copy(update={"draft_lanes": min(config.lanes, chunk, row_beats)})
    model = TernaryModel.random(shape, int(rng.integers(1 << 31)))
    return Small(CoreSpec(config=config, shape=shape), compile_model(model, config))


def pattern(rng: np.random.Generator) -> dict[str, Any]:
    """A memory that rests now and then: a rate, a refresh, or both."""
    kind, denominator = int(rng.integers(1, 4)), int(rng.integers(2, 9))
    rate = {"rate_numerator": int(rng.integers(denominator // 2, denominator)) or 1, "rate_denominator": denominator}
    refresh = {"refresh_period": int(rng.integers(60, 300)), "refresh_window": int(rng.integers(1, 40))}
    return (rate if kind & 1 else {}) | (refresh if kind & 2 else {})


def shared(
    rng: np.random.Generator, *, layers: int | None = None, planes: bool = False, ports: int | None = None, head_dim: int | None = None, **changes: Any
) -> Small:
    """A core on a shared memory and a model of random small sizes; ``planes``: with a head in two planes; ``ports`` and ``head_dim``, or random ones (rows of
    keys not padded); ``changes`` of its ``MemoryConfig``."""
    ports = ports or int(rng.choice([1, 2, 4]))
    v: Literal[4, 8] = 8 if ports > 1 and rng.integers(2) else 4
    kv_heads, group = (1, 2) if head_dim else (int(rng.integers(1, 3)), int(rng.integers(1, 4)))
    most_rows = 1 << (13 if head_dim else 30)  # a wide head's matrices are not buffered whole
    head_dim = head_dim or int(rng.choice([size for size in (16, 32, 48, 64) if size >= 16 * ports]))
    even = ports & -ports  # a tile's padded rows are whole beats
    key_tile = int(rng.choice([tile for tile in (4, 8, 16) if tile * head_dim % (16 * even) == 0]))
    burst = int(rng.choice([4, 8, 16]))
    memory = {
        "ports": ports,
        "burst_beats": burst,
        "outstanding": int(rng.integers(1, 9)),
        "latency": int(rng.choice([2, 5, 20])),
        "write_latency": int(rng.choice([1, 3, 30])),
    }
    shape = ModelShape(
        name="random",
        hidden=v * int(rng.integers(4, 12)) + 32 * ports * planes,  # rows of a plane have two beats at least
        layers=layers or int(rng.integers(1, 4)),
        heads=kv_heads * group,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=v * int(rng.integers(4, 16)),
        vocabulary=int(rng.integers(5, 60)),
        context=key_tile * int(rng.integers(2, 6)),
        activation="silu" if rng.integers(2) else "relu2",
        sub_norms=bool(rng.integers(4)),
        tied=bool(rng.integers(2)),
    )
    lanes, chunk = (3, int(rng.integers(3, 6))) if planes else (int(rng.integers(1, 4)), int(rng.integers(1, 6)))
    widest = max(shape.hidden, shape.query_columns, shape.ffn, shape.query_columns + 2 * shape.kv_columns)
    config = CoreConfig(
        name="random",
        clock_hz=50e6,
        group=int(rng.integers(2, 5)),
        tables=int(rng.integers(2, 6)),
        columns=int(rng.integers(2, 8)),
        lanes=lanes,
        draft_lanes=min(lanes, chunk, -(-(v + shape.hidden) // (16 * ports))),  # at most the beats of a table row
        vector_lanes=v,
        half_tables=bool(rng.integers(2)),
        allow_stalls=True,
        ring_rows=min(most_rows, 2 * widest * (-(-widest // 4) + 1)),
        max_tile_columns=-(-2 * max(shape.ffn, head_dim) // v) * v,
        chunk=chunk,
        key_tile=key_tile,
        beat_bytes=16 * ports,
        params_rows=2 * (64 + widest // v),
        rope_rows=2 * burst * max(8, chunk * head_dim // v),
        best=int(rng.integers(1, 6)),
        queue=int(rng.integers(2, 5)),
        program_words=max(128, 32 * shape.layers),
        memory=MemoryConfig.model_validate(memory | changes),
        prefetch_beats=int(rng.choice([1, 40, 200])),
        head_planes=4 * ports * int(rng.choice([1, 2, 4])) if planes else 0,
    )
    model = TernaryModel.random(shape, int(rng.integers(1 << 31)))
    return Small(CoreSpec(config=config, shape=shape), compile_model(model, config))


def bench(cores: list[Small]) -> CoreBench:
    """All of them in one top, as ``c0``, ``c1`` …"""
    return CoreBench({f"c{i}": (one.spec, one.program.beats) for i, one in enumerate(cores)})


def conversation(one: Small, rng: np.random.Generator) -> Job:
    """Turns that fill the context bit by bit: prompts of any length, a turn that goes back, a stop token, drafts to verify."""
    shape, lanes, at = one.spec.shape, one.spec.config.draft_lanes, 0
    turns: list[Turn] = []
    while at < shape.context - 2 and len(turns) < 5:
        verify = bool(at and not rng.integers(3))
        length = int(rng.integers(1, min(lanes + 1 if verify else 11, shape.context - at)))
        count = int(rng.integers(1, 4))
        stop = int(rng.integers(shape.vocabulary)) if rng.integers(2) else None
        turns.append(Turn(rng.integers(0, shape.vocabulary, length).tolist(), count, at, stop, verify))
        at = int(rng.integers(0, at + 1)) if not rng.integers(4) else at + length
    return Job(one.program, turns)
