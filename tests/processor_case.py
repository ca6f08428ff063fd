# SPDX-License-Identifier: Apache-2.0
"""The smallest core on a shared memory of two ports, as tests of the processor's side use it."""

from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.memory import MemoryConfig

SHAPE = ModelShape(
    name="small", hidden=16, layers=1, heads=1, kv_heads=1, head_dim=32, ffn=16, vocabulary=30, context=24, activation="relu2", sub_norms=False, tied=True
)
CONFIG = CoreConfig(
    name="small-shared",
    clock_hz=250e6,
    tables=2,
    columns=2,
    vector_lanes=4,
    allow_stalls=True,
    ring_rows=256,
    max_tile_columns=32,
    chunk=3,
    key_tile=8,
    beat_bytes=32,
    params_rows=128,
    rope_rows=64,
    program_words=64,
    best=3,
    queue=2,
    memory=MemoryConfig(ports=2, burst_beats=8, outstanding=2, latency=16, write_latency=8),
)
SPEC = CoreSpec(config=CONFIG, shape=SHAPE)
