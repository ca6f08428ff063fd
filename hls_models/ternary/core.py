# SPDX-License-Identifier: Apache-2.0
"""A ternary core for one model shape: the configuration of every unit, derived from the hardware's sizes and the model's."""

import hashlib
from functools import cached_property
from typing import Any

from pydantic import model_validator

from lutra.hls_models.config import Config
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.attention import AttentionConfig
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.head import HeadConfig
from lutra.hls_models.ternary.kv_layout import KvLayout
from lutra.hls_models.ternary.loader import ROUND_TRIP, LoaderConfig
from lutra.hls_models.ternary.memory import DELIVER, PORT_BYTES, REQUEST
from lutra.hls_models.ternary.planes import PlanesConfig
from lutra.hls_models.ternary.tlmm import TlmmConfig
from lutra.hls_models.ternary.vector import VectorConfig
from lutra.hls_models.ternary.weights import WeightPathConfig

__all__ = ["CoreSpec"]

ADDERS_HZ = 100e6
"""Clock up to which five adders one behind another decode a byte of trits: some 11 ns on an ECP5."""


class CoreSpec(Config):
    """Hardware sizes and model shape together; everything about a core follows from it."""

    config: CoreConfig
    shape: ModelShape

    @model_validator(mode="after")
    def _units_agree(self) -> "CoreSpec":
        if self.config.memory and self.shape.head_dim % PORT_BYTES:  # asked first: no size of the core helps
            rule = f"head_dim must be a multiple of the {PORT_BYTES} bytes of a port where memory is shared, not {self.shape.head_dim}"
            raise ValueError(f"{rule}; nearest: a core that holds the model on chip (no memory), with vector_lanes {self.shape.most_lanes}")
        if fault := self.shape.lane_fault(self.config.vector_lanes):
            raise ValueError(fault)
        # Every unit validates its own sizes: an impossible core is refused here, before any work.
        _ = self.loader, self.weights, self.tlmm, self.vector, self.attention, self.head
        config, per_beat = self.config, self.config.params_rows_per_beat
        rows = self.vector.header_rows + self.widest_norm // config.vector_lanes
        needed = -(-rows // per_beat) * per_beat
        if config.params_rows < needed:
            # Gains are read again for every token of a tile and loaded ahead of the weights: all of an instruction's must fit.
            raise ValueError(f"params_rows must hold the header and the gains of the widest norm, {needed} rows, not {config.params_rows}; nearest: {needed}")
        if config.memory:
            # Values and o are loaded before the keys and values that the first of them waits for.
            norms = (self.shape.query_columns if self.shape.sub_norms else 0, self.shape.hidden)
            needed = sum(-(-(self.vector.header_rows + norm // config.vector_lanes) // per_beat) * per_beat for norm in norms)
            if config.params_rows < needed:
                what = "the parameters of attention's values and of the projection behind them"
                raise ValueError(f"params_rows must hold {what}, {needed} rows, not {config.params_rows}; nearest: {needed}")
            _ = self.kv_layout
        return self

    @cached_property
    def kv_layout(self) -> KvLayout:
        """Keys and values in the shared memory."""
        c = self.config
        burst = c.memory.burst_beats if c.memory else 1
        return KvLayout.behind_program(self.shape, beat_bytes=c.beat_bytes, key_tile=c.key_tile, program_words=c.program_words, burst_beats=burst)

    @property
    def hash(self) -> int:
        """64 bits that tell a host which hardware it talks to."""
        return int.from_bytes(hashlib.sha256(self.model_dump_json().encode()).digest()[:8], "big")

    @property
    def widest_input(self) -> int:
        """Largest K of a ternary matrix."""
        shape = self.shape
        return max(shape.hidden, shape.heads * shape.head_dim, shape.ffn)

    @property
    def widest_norm(self) -> int:
        """Columns of the widest norm."""
        return self.widest_input if self.shape.sub_norms else self.shape.hidden

    @cached_property
    def tlmm(self) -> TlmmConfig:
        c = self.config
        return TlmmConfig(
            group=c.group,
            tables=c.tables,
            columns=c.columns,
            lanes=c.lanes,
            vector_lanes=c.vector_lanes,
            half_tables=c.half_tables,
            max_tokens=c.chunk,
            max_k=self.widest_input,
            max_tile_columns=c.max_tile_columns,
            allow_stalls=c.allow_stalls,
            tree=c.tree,
            activation_ram=c.device_ram,
            drain_ram="block" if c.device_ram == "ultra" else "distributed",
        )

    @cached_property
    def weights(self) -> WeightPathConfig:
        c = self.config
        return WeightPathConfig(
            group=c.group,
            tables=c.tables,
            columns=c.columns,
            lanes=c.lanes,
            half_tables=c.half_tables,
            beat_bytes=c.beat_bytes,
            ring_rows=c.ring_rows,
            ring_ram=c.device_ram,
            decoder="adders" if c.clock_hz <= ADDERS_HZ else "table",
        )

    @cached_property
    def vector(self) -> VectorConfig:
        c, shape = self.config, self.shape
        return VectorConfig(
            lanes=c.vector_lanes,
            format=c.format,
            accumulator_bits=self.tlmm.accumulator_bits,
            max_tokens=c.chunk,
            max_columns=max(self.widest_input, (shape.heads + 2 * shape.kv_heads) * shape.head_dim),
            hidden=shape.hidden,
            head_dim=shape.head_dim,
            activation=shape.activation,
            partials=c.partials,
            params_rows=c.params_rows,
            rope_rows=c.rope_rows,
            max_groups=shape.heads + 2 * shape.kv_heads,
            kv_format=c.kv_format,
            buffer_ram=c.device_ram,
        )

    @cached_property
    def attention(self) -> AttentionConfig:
        c, shape = self.config, self.shape
        return AttentionConfig(
            heads=shape.heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            layers=shape.layers,
            context=shape.context,
            max_tokens=c.chunk,
            key_tile=c.key_tile,
            vector_lanes=c.vector_lanes,
            format=c.format,
            partials=c.partials,
            kv_format=c.kv_format,
            shared=c.memory is not None,
            tree=c.tree,
            row_ram="block" if c.device_ram == "ultra" else "distributed",
        )

    @cached_property
    def planes(self) -> PlanesConfig | None:
        """The head's table in two planes."""
        c = self.config
        return PlanesConfig(beat_bytes=c.beat_bytes, hidden=self.shape.hidden, segment=c.head_planes) if c.head_planes else None

    @cached_property
    def loader(self) -> LoaderConfig:
        c, memory = self.config, self.config.memory
        own: dict[str, Any] = {"outstanding": max(16, c.memory_latency + 2)}  # one request per clock, whatever the latency
        if memory:
            # A burst takes a quarter of its queue at most: the other three keep the output busy for the round trip of its place, and two whole bursts fit.
            queue = max(2 * memory.burst_beats, -(-4 * (memory.latency + REQUEST + DELIVER + ROUND_TRIP) // 3))
            own = {"outstanding": memory.outstanding, "burst_beats": memory.burst_beats, "kv": self.kv_layout, "rows_beats": queue, "head_beats": queue}
        return LoaderConfig(
            beat_bytes=c.beat_bytes,
            vector_lanes=c.vector_lanes,
            hidden=self.shape.hidden,
            row_beats=c.row_beats,
            ring_rows=c.ring_rows,
            params_rows=c.params_rows,
            rope_rows=c.rope_rows,
            planes=self.planes,
            **own,
        )

    @cached_property
    def head(self) -> HeadConfig:
        c, shape = self.config, self.shape
        return HeadConfig(
            beat_bytes=c.beat_bytes, vector_lanes=c.vector_lanes, hidden=shape.hidden, best=c.best, lanes=c.draft_lanes, tree=c.tree, planes=self.planes
        )
