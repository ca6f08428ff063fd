# SPDX-License-Identifier: Apache-2.0
"""Configuration of a ternary core: every size that a user may choose (architecture.md, 2.1)."""

from typing import Literal

from pydantic import Field, model_validator

from lutra.hls_models.config import Config
from lutra.hls_models.floats import FloatFormat
from lutra.hls_models.ternary.memory import PORT_BYTES, MemoryConfig

__all__ = ["CoreConfig", "KvFormat"]

KvFormat = Literal["int8", "fp16"]
"""Numbers in which ATTEND stores keys and values, and takes queries: 8-bit codes with a scale per head, or 16-bit floats."""


class CoreConfig(Config):
    """Hardware sizes of a ternary core; what depends on the model comes from its ``ModelShape``."""

    target: Literal["ternary"] = "ternary"
    name: str = Field(description="name that reports carry")
    clock_hz: float = Field(gt=0, description="clock that reports turn cycles into seconds with")
    group: int = Field(3, ge=2, le=5, description="trits per table (G)")
    tables: int = Field(ge=1, le=256, description="lookup tables (T): T*G activations are consumed per k-block")
    columns: int = Field(ge=1, le=256, description="output columns looked up per clock (Q)")
    lanes: int = Field(1, ge=1, le=16, description="token lanes that share one index read (M)")
    draft_lanes: int = Field(1, ge=1, le=16, description="tokens that a serial pass scores together: drafts verified per weight pass")
    vector_lanes: Literal[2, 4, 8, 16] = Field(4, description="element-wise lanes (V)")
    half_tables: bool = Field(True, description="tables of non-negative leading trit with a sign bit")
    allow_stalls: bool = Field(False, description="accept tiles in which lookups wait for table builds")
    ring_rows: int = Field(ge=2, description="weight rows buffered ahead (one row is one lookup clock)")
    max_tile_columns: int = Field(ge=2, description="columns of the widest tile (accumulator depth times Q)")
    chunk: int = Field(ge=1, le=128, description="prompt tokens per prefill pass (query block)")
    key_tile: int = Field(32, ge=1, le=1024, description="keys per attention tile")
    beat_bytes: int = Field(ge=1, le=512, description="memory port width in bytes (B)")
    params_rows: int = Field(ge=8, description="rows of V values buffered ahead for gains and scales")
    rope_rows: int = Field(ge=8, description="rows of V/2 (cos, sin) pairs buffered ahead")
    kv_format: KvFormat = Field("int8", description="numbers of the key/value cache")
    partials: Literal[8, 16] = Field(8, description="fp32 partial sums of long reductions (A)")
    best: int = Field(8, ge=1, le=64, description="logits kept for the host, best first")
    queue: int = Field(4, ge=2, le=16, description="instructions queued per unit")
    program_words: int = Field(128, ge=16, le=4096, description="instructions the sequencer can hold")
    tree: Literal["lut", "dsp"] = Field("lut", description="adders of the lookup array above the pairs: look-up tables, or DSP48E2 blocks (two sums each)")
    device_ram: Literal["block", "ultra"] = Field(
        "block", description="deep buffers: block RAM, or UltraRAM where the device has it (drain and program then in block RAM)"
    )
    memory_latency: int = Field(2, ge=2, le=64, description="clocks from a read request to its data, of weights and tables on chip")
    device: str | None = Field(None, description="FPGA board whose totals the core is held against (a name that `lutra presets` lists); none: no check")
    memory: MemoryConfig | None = Field(None, description="shared memory that holds model and cache; without it everything is on chip")
    head_planes: int = Field(
        0, ge=0, le=1024, description="rows of a segment of the head's table in two 4-bit planes, for passes of one token; 0: one 8-bit table (shared memory)"
    )
    prefetch_beats: int = Field(2048, ge=1, description="beats of the next weights that are fetched before a layer's keys and values (shared memory)")

    @property
    def format(self) -> FloatFormat:
        """Element-wise format F."""
        return FloatFormat(8, 11)

    @property
    def row_beats(self) -> int:
        """Memory beats of one weight row: T*Q*G trits, five to a byte, padded to whole beats."""
        return -(-self.tables * self.columns * self.group // (5 * self.beat_bytes))

    @property
    def params_rows_per_beat(self) -> int:
        """Rows of V values of 24 bits that a beat carries."""
        return self.beat_bytes // (3 * self.vector_lanes)

    @model_validator(mode="after")
    def _consistent(self) -> "CoreConfig":
        v = self.vector_lanes
        if self.draft_lanes > min(self.lanes, self.chunk):
            nearest = min(self.lanes, self.chunk)
            raise ValueError(f"draft_lanes must be at most lanes = {self.lanes} and chunk = {self.chunk}, not {self.draft_lanes}; nearest: {nearest}")
        if self.memory and self.memory.beat_bytes != self.beat_bytes:
            raise ValueError(f"beat_bytes must be ports x {PORT_BYTES} = {self.memory.beat_bytes}, not {self.beat_bytes}")
        if self.memory and self.kv_format != "int8":
            raise ValueError(f"kv_format must be int8 where memory is shared, not {self.kv_format}")
        if self.head_planes:
            self._check_planes()
        if self.beat_bytes % v:
            raise ValueError(f"beat_bytes must be a multiple of vector_lanes = {v}, not {self.beat_bytes}; nearest: {-(-self.beat_bytes // v) * v}")
        if self.beat_bytes < 3 * v:
            raise ValueError(f"beat_bytes must hold one row of vector_lanes x 3 bytes, so at least {3 * v}, not {self.beat_bytes}")
        if self.max_tile_columns % v:
            raise ValueError(
                f"max_tile_columns must be a multiple of vector_lanes = {v}, not {self.max_tile_columns}; nearest: {max(1, self.max_tile_columns // v) * v}"
            )
        return self

    def _check_planes(self) -> None:
        rows, scales = self.head_planes, self.beat_bytes // 4
        if self.memory is None:
            raise ValueError(f"head_planes must be 0 without a shared memory (memory), not {rows}; nearest: 0")
        if self.draft_lanes < 3:
            raise ValueError(f"draft_lanes must be at least 3 with head_planes (two lanes share a beat), not {self.draft_lanes}; nearest: 3")
        if scales & (scales - 1):
            raise ValueError(f"head_planes must be 0 where a beat holds {scales} scales, which is no power of two, not {rows}; nearest: 0")
        if rows & (rows - 1) or rows < scales:
            legal = [1 << power for power in range(scales.bit_length() - 1, 11)]
            nearest = min(legal, key=lambda one: abs(one - rows))
            raise ValueError(f"head_planes must be a power of two of at least {scales} rows (a beat of scales), not {rows}; nearest: {nearest}")
