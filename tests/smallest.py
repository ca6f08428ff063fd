# SPDX-License-Identifier: Apache-2.0
"""A model shape and a core that are as small as they can be, for whole systems on boards and lines."""

from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.config import CoreConfig

SHAPE = ModelShape(name="small", hidden=8, layers=1, heads=2, kv_heads=1, head_dim=4, ffn=12, vocabulary=27, context=40, activation="relu2")
CONFIG = CoreConfig(
    name="smallest",
    clock_hz=50e6,
    tables=1,
    columns=2,
    vector_lanes=2,
    allow_stalls=True,
    ring_rows=128,
    max_tile_columns=24,
    chunk=4,
    key_tile=4,
    beat_bytes=6,
    params_rows=64,
    rope_rows=16,
    best=2,
)
