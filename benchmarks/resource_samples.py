# SPDX-License-Identifier: Apache-2.0
"""Configurations whose synthesis the resource model is fitted to, and those that it is held against."""

from collections.abc import Mapping
from typing import Any

from lutra.hls_models.load import load_config
from lutra.hls_models.ternary.attention import AttentionConfig
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.head import HeadConfig
from lutra.hls_models.ternary.loader import LoaderConfig
from lutra.hls_models.ternary.planes import PlanesConfig
from lutra.hls_models.ternary.resources import block_configs
from lutra.hls_models.ternary.tlmm import TlmmConfig
from lutra.hls_models.ternary.vector import VectorConfig
from lutra.hls_models.ternary.weights import WeightPathConfig
from lutra.mapping.catalogue import open_model

__all__ = ["HELD_OUT", "SAMPLES"]


def _linear(tables: int, columns: int, lanes: int, **others: Any) -> TlmmConfig:
    given = {"vector_lanes": 8, "max_tokens": 24, "max_k": 4096, "max_tile_columns": 64 * columns, "allow_stalls": True, **others}
    return TlmmConfig(tables=tables, columns=columns, lanes=lanes, **given)


def _weights(tables: int, columns: int, beat_bytes: int, **others: Any) -> WeightPathConfig:
    given = {"group": 3, "lanes": 4, "ring_rows": 2048, "ring_ram": "ultra", **others}
    return WeightPathConfig(tables=tables, columns=columns, beat_bytes=beat_bytes, **given)


def _vector(lanes: int, **others: Any) -> VectorConfig:
    given = {
        "accumulator_bits": 21, "max_tokens": 24, "max_columns": 4608, "hidden": 1536, "head_dim": 96, "activation": "silu", "params_rows": 1024,
        "rope_rows": 24 * 96 // lanes, "max_groups": 48, "buffer_ram": "ultra", **others,
    }  # fmt: skip
    return VectorConfig(lanes=lanes, **given)


def _attention(heads: int, kv_heads: int, head_dim: int, **others: Any) -> AttentionConfig:
    given = {
        "layers": 24,
        "context": 2048,
        "max_tokens": 24,
        "key_tile": 64,
        "vector_lanes": 8,
        "row_ram": "block",
        "shared": others.get("kv_format") != "fp16",
        **others,
    }
    return AttentionConfig(heads=heads, kv_heads=kv_heads, head_dim=head_dim, **given)


def _head(beat_bytes: int, lanes: int, **others: Any) -> HeadConfig:
    return HeadConfig(**{"beat_bytes": beat_bytes, "vector_lanes": 8, "hidden": 1536, "lanes": lanes, "tree": "dsp", **others})


def _planes(beat_bytes: int, hidden: int = 1536) -> PlanesConfig:
    return PlanesConfig(beat_bytes=beat_bytes, hidden=hidden)


def _loader(beat_bytes: int, **others: Any) -> LoaderConfig:
    given = {"vector_lanes": 8, "hidden": 1536, "row_beats": 3, "ring_rows": 4096, "params_rows": 2048, "rope_rows": 512, **others}
    return LoaderConfig(beat_bytes=beat_bytes, **given)


def _spec(preset: str, model: str, **others: Any) -> CoreSpec:
    opened = open_model(model)
    return CoreSpec(config=load_config(preset, CoreConfig).model_copy(update=others), shape=getattr(opened, "shape", opened))


def _ports(ports: int, model: str = "bitnet-2b4t") -> CoreSpec:
    memory = load_config("kv260", CoreConfig).memory
    assert memory is not None
    return _spec("kv260", model, memory=memory.model_copy(update={"ports": ports}), beat_bytes=16 * ports)


KV260 = _spec("kv260", "bitnet-0.73b")
BLOCKS = block_configs(KV260)
PLANES = block_configs(_spec("kv260", "bitnet-0.73b", head_planes=128))
LARGE = block_configs(_spec("kv260", "bitnet-2b4t"))

# One full-size core and small blocks, each of which changes what the others have in common: the whole fit is minutes of yosys.
SAMPLES: Mapping[str, list[Any]] = {
    "linear": [
        BLOCKS["linear"],
        _linear(8, 4, 1, half_tables=False),
        _linear(6, 10, 2, vector_lanes=4, max_k=384, max_tokens=8),
        _linear(8, 3, 4, tree="dsp", drain_ram="block"),
        _linear(6, 3, 3, half_tables=False, tree="dsp"),
        _linear(4, 8, 3, group=4, max_k=384),
        _linear(16, 2, 2, activation_ram="ultra"),
        _linear(12, 6, 1),
        _linear(10, 4, 6, tree="dsp", drain_ram="block"),
        _linear(6, 5, 2, group=2),
        _linear(9, 7, 1, vector_lanes=2, half_tables=False, max_k=768),
        _linear(5, 2, 8, vector_lanes=16),
        _linear(20, 2, 3, tree="dsp"),
        _linear(3, 12, 4, half_tables=False),
        _linear(14, 5, 2, vector_lanes=12),
        _linear(1, 2, 1, vector_lanes=2, max_k=96, max_tokens=4),
        _linear(2, 3, 1, vector_lanes=4, max_k=192, max_tokens=4),
        _linear(3, 2, 2, vector_lanes=2, max_k=384, max_tokens=8, half_tables=False),
    ],
    "weights": [
        BLOCKS["weights"],
        _weights(8, 5, 16),
        _weights(16, 8, 32, half_tables=False),
        _weights(6, 10, 36, ring_ram="block"),
        _weights(4, 12, 24),
        _weights(20, 4, 64, half_tables=False),
        _weights(1, 2, 6, lanes=1, ring_rows=128, ring_ram="block"),
        _weights(2, 4, 12, lanes=2, ring_rows=512, ring_ram="block"),
        _weights(6, 2, 12, lanes=1, ring_rows=1024, ring_ram="block"),
    ],
    "vector": [
        BLOCKS["vector"],
        _vector(2),
        _vector(4, activation="relu2", dividers=2),
        _vector(4, kv_format="fp16", max_tokens=8, max_columns=512, hidden=160, head_dim=32, rope_rows=64, buffer_ram="block", dividers=8),
        _vector(8, activation="relu2", dividers=8),
        _vector(2, activation="relu2", kv_format="fp16", dividers=2),
    ],
    "attention": [
        BLOCKS["attention"],
        _attention(5, 1, 32, vector_lanes=4, context=256, max_tokens=8, key_tile=32, row_ram="distributed"),
        _attention(4, 4, 64, vector_lanes=4, tree="dsp"),
        _attention(4, 2, 128, vector_lanes=4, tree="dsp"),
        _attention(4, 2, 32, kv_format="fp16", vector_lanes=4, context=256, row_ram="distributed"),
        _attention(8, 4, 64, vector_lanes=4),
        _attention(2, 2, 96, tree="dsp"),
        _attention(2, 2, 32, kv_format="fp16", vector_lanes=2, context=256, row_ram="distributed"),
    ],
    "head": [
        BLOCKS["head"],
        _head(24, 1),
        _head(32, 2),
        _head(32, 3, tree="lut"),
        _head(64, 1, best=4),
        BLOCKS["head"].model_copy(update={"planes": _planes(64)}),
        _head(32, 4, planes=_planes(32)),
        _head(24, 4, tree="lut"),
        _head(48, 5),
        _head(24, 2, best=16),
        _head(64, 4, planes=_planes(64)),
    ],
    "loader": [
        BLOCKS["loader"],
        _loader(24),
        _loader(36, vector_lanes=4, outstanding=16),
        _loader(64, head_beats=64, embed_beats=64),
        BLOCKS["loader"].model_copy(update={"planes": _planes(64)}),
        _loader(32, outstanding=32),
        _loader(48, vector_lanes=4, rows_beats=64),
        block_configs(_ports(2))["loader"],
    ],
    "control": [KV260, _spec("tiny", "tiny-shakespeare"), _spec("kv260", "bitnet-0.73b", best=32, queue=8), _spec("kv260", "bitnet-0.73b", queue=16)],
    "memory": [KV260, _ports(2), _ports(4), _ports(2, "bitnet-0.73b"), _ports(6, "bitnet-0.73b")],
}
"""Configurations to fit to, by block."""

HELD_OUT: Mapping[str, list[Any]] = {
    "linear": [
        BLOCKS["linear"].model_copy(update={"columns": 8, "lanes": 4, "max_tile_columns": 512}),
        _linear(12, 4, 4, tree="dsp", activation_ram="ultra", max_k=1536),
        _linear(10, 5, 2, max_k=768),
    ],
    "weights": [_weights(12, 10, 64), _weights(12, 6, 48)],
    "vector": [LARGE["vector"], _vector(4, dividers=6, max_tokens=16)],
    "attention": [LARGE["attention"], _attention(8, 2, 96, vector_lanes=4, tree="dsp")],
    "head": [
        LARGE["head"].model_copy(update={"lanes": 4, "best": 16}),
        _head(48, 2, tree="lut"),
        LARGE["head"].model_copy(update={"lanes": 5, "planes": _planes(64, 2560)}),
    ],
    "loader": [LARGE["loader"].model_copy(update={"outstanding": 12, "rows_beats": 64}), _loader(48)],
    "control": [_spec("kv260", "bitnet-2b4t", best=16)],
    "memory": [_ports(8)],
}
"""Configurations that took no part in the fit, by block: small ones, and such of full size. Each differs from every sample in what the model sees of it."""
