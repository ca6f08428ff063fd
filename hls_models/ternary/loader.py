# SPDX-License-Identifier: Apache-2.0
"""LOADER: fetches weights, parameters, rotary rows, embeddings and the head's table from memory (docs/architecture.md, 2.4).

A request is a burst: consecutive beats up to the next multiple of ``burst_beats`` (1 on chip), or of the largest power of two within a quarter of the
queue that they pass: the other three quarters are on their way meanwhile. EMBED is requested beat by beat: its cycles do not depend on the token. Every
request reserves the room of its data, so ``data`` is always accepted. WEIGHTS, PARAMS and ROPE are credited by their consumer, one beat of ``*_freed`` per
row; a burst of weights needs the room of every row that it is the first to touch. PARAMS and ROPE beats pass a queue of ``rows_beats`` beats here (one row
of V values leaves per clock), EMBED beats one of ``embed_beats``, HEAD beats one of ``head_beats``; a burst needs as many free entries of its queue as it
has beats, too. A tile of keys (values) needs one of two credits, which a beat of ``k_freed`` (``v_freed``) gives back, for its first burst.

Times of one load (handshake cycles; internal events are named after the RTL's registers):

    instr t -> job valid:  DIRECT t+1;  POSITION t+3 (MULTIPLY, ADD), then 1 after the previous job;
                           TOKEN: id_request from t+1 (then 1 after the previous job), id i -> i+3;
                           TILES t+4 (END, SIZE, PLACE), then 2 after the previous job (STEP), 4 where it was the last one of its token;
                           PLANES t+2 (SEGMENT), a segment's high plane 2 after the previous job; low row: taken from ``rescore`` 1 after the previous job
                           or later, at i -> i+3 (MULTIPLY, ADD)
    job j   -> fire >= j+C, the next ones C after the one before, C = 1; the next job is taken in the cycle of the last fire, so DIRECT loads follow without a
               gap. With bursts C = 2 (``fire_clocks``: rooms are compared a clock ahead), and two jobs wait behind the plan (``JOBS_AHEAD``): a job leaves
               the plan when it is valid and at least 1 after the one two before was taken, and is taken at least 1 later
    fire f  -> read from f+1, and not before the ``read`` handshake of the fire before; f is at least C after every event that frees what it needs, a
               ``*_freed`` beat or a pop of its queue, and 1 after the ``data`` beat that ends one of ``outstanding`` requests
    data d  -> weights, kv d+1 (``ready`` is not looked at: the room is reserved); the queues can be popped from d+QUEUE_LATENCY
    pop     -> params, rope, embed: output register, valid 1 after it is loaded; head: the queue's own output
    last beat e of a load on its output -> done from e+2, in program order
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from lutra.hls_models.config import Config
from lutra.hls_models.ternary.isa import PASS_FIELDS, UNIT_FIELDS, LoadMode, LoadTarget, Unit
from lutra.hls_models.ternary.kv_layout import KvLayout, KvTile
from lutra.hls_models.ternary.planes import Lists, PlanesConfig

__all__ = ["JOBS_AHEAD", "LISTED", "PARAM_BITS", "QUEUE_LATENCY", "ROUND_TRIP", "SEGMENT_STEP", "TILES_START", "TILE_STEP", "Load", "LoaderConfig"]

PARAM_BITS = 24
"""Bits of one value of a params or rope row."""

QUEUE_LATENCY = 1
"""Clocks from a beat's way into a queue (``lutra.rtl.streams.Queue``) until it can leave."""

ROUND_TRIP = 3 + QUEUE_LATENCY
"""Clocks from a pop of a queue to that of the beat that takes its place, besides those from ``read`` to ``data``: credit, comparison, fire, queue."""

JOBS_AHEAD = 2
"""Jobs between plan and issue, where bursts are requested."""

TILE_STEP = 2
"""Clocks from the clock in which a tile is taken until the next one is there: STEP, its place."""

TILES_START = 4
"""Clocks from the start of a walk over a token's tiles (a pass's, in prefill) to the first one: END, SIZE, PLACE, its place."""


SEGMENT_STEP = 2
"""Clocks from the clock in which a job (or the instruction) is taken until that of the next segment's high plane is there: SEGMENT, its place."""

LISTED = 3
"""Clocks from a row on ``rescore`` to its job: MULTIPLY, ADD, its place."""


class Load(NamedTuple):
    """A LOADER instruction with the fields of its pass."""

    target: LoadTarget
    mode: LoadMode
    address: int
    beats: int
    rows: int = 0
    tokens: int = 1
    position: int = 0
    serial: int = 0

    @property
    def repetitions(self) -> int:
        """Times that ``beats`` beats are fetched."""
        return 1 if self.mode == LoadMode.DIRECT else self.tokens

    def pack(self) -> int:
        """Payload of the ``instr`` stream."""
        word, offset = 0, 0
        for entry in UNIT_FIELDS[Unit.LOADER] + PASS_FIELDS:
            word |= int(getattr(self, entry.name)) << offset
            offset += entry.bits
        return word


@lru_cache(maxsize=32)
def _first_layer(layout: KvLayout, tokens: int, position: int, serial: int) -> tuple[KvTile, ...]:
    """Tiles of a pass in layer 0: those of the others are the same but for the first block's address."""
    return tuple(layout.order(0, tokens, position, serial=bool(serial)))


class LoaderConfig(Config):
    """Sizes of a loader, with its golden values and cycles."""

    beat_bytes: int = Field(ge=6, le=512, description="memory port width in bytes (B)")
    vector_lanes: int = Field(ge=2, le=64, description="element-wise lanes (V), even")
    hidden: int = Field(ge=2, le=1 << 16, description="columns of an embedding row")
    row_beats: int = Field(default=1, ge=1, le=256, description="memory beats per weight row")
    ring_rows: int = Field(ge=1, le=1 << 20, description="weight rows that the weight ring holds")
    params_rows: int = Field(ge=1, le=1 << 16, description="rows of V values that the params ring holds")
    rope_rows: int = Field(ge=1, le=1 << 16, description="rows of V values that the rope ring holds")
    rows_beats: int = Field(default=8, ge=2, le=2048, description="params and rope beats queued here")
    embed_beats: int = Field(default=8, ge=2, le=2048, description="embedding beats queued here")
    head_beats: int = Field(default=8, ge=2, le=2048, description="beats of the head's table queued here")
    outstanding: int = Field(default=16, ge=1, le=1024, description="requests whose data are on their way, at most")
    burst_beats: int = Field(default=1, ge=1, le=256, description="beats of a request at most, a power of two whose multiples it does not cross")
    kv: KvLayout | None = Field(default=None, description="keys and values, where they come through the loader")
    planes: PlanesConfig | None = Field(default=None, description="the head's table in two planes, where it is loaded so")
    instructions: int = Field(default=32, ge=1, le=256, description="instructions accepted and not done, at most")

    @property
    def rows_per_beat(self) -> int:
        """Params or rope rows that a beat carries (P), lowest first."""
        return self.beat_bytes // (self.vector_lanes * PARAM_BITS // 8)

    @property
    def pipelined(self) -> bool:
        """Whether rooms are compared a clock ahead of the fire, and jobs queued: with wide counters all of it is too long a path for one clock of a large
        device, and bursts have the time."""
        return self.burst_beats > 1

    @property
    def fire_clocks(self) -> int:
        """Clocks (C) from one fire to the next, and from what gives room to the fire."""
        return 1 + self.pipelined

    def largest_burst(self, target: LoadTarget) -> int:
        """Beats of a request at most, a power of two, multiples of which it does not cross."""
        if target in (LoadTarget.WEIGHTS, LoadTarget.KV):
            return self.burst_beats
        depth = {LoadTarget.HEAD: self.head_beats, LoadTarget.PLANES: self.head_beats, LoadTarget.EMBED: 1}.get(target, self.rows_beats)
        return min(self.burst_beats, 1 << max(1, depth // 4).bit_length() - 1)

    def bursts(self, target: LoadTarget, address: ArrayLike, beats: ArrayLike) -> NDArray[np.int64]:
        """Beats of each request (n,) of jobs of ``beats`` beats from ``address`` (jobs,), one after the other."""
        size = self.largest_burst(target)
        address = np.atleast_1d(np.asarray(address, np.int64))
        counts, end = self.job_bursts(target, address, beats), address + np.asarray(beats, np.int64)
        index = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        cut = (np.repeat(address // size, counts) + index) * size
        return np.minimum(np.repeat(end, counts), cut + size) - np.maximum(np.repeat(address, counts), cut)

    def job_bursts(self, target: LoadTarget, address: ArrayLike, beats: ArrayLike) -> NDArray[np.int64]:
        """Requests (jobs,) of each job."""
        size, first = self.largest_burst(target), np.asarray(address, np.int64)
        return (first + np.asarray(beats, np.int64) - 1) // size - first // size + 1

    @property
    def tile_rows(self) -> int:
        """Weight rows of a tile that is read more than once, at most: the burst that brings its last beat may begin the next tile, and needs its room."""
        return self.ring_rows - -(-(self.burst_beats - 1) // self.row_beats)

    @property
    def scale_units(self) -> int:
        """Units of V bytes that the fp32 scale of a table row takes (its upper bytes are zero)."""
        return -(-4 // self.vector_lanes)

    @property
    def table_beats(self) -> int:
        """Beats of one table row: the scale's units, then the codes, padded."""
        return -(-(self.scale_units * self.vector_lanes + self.hidden) // self.beat_bytes)

    @model_validator(mode="after")
    def _consistent(self) -> "LoaderConfig":
        v, b = self.vector_lanes, self.beat_bytes
        if v % 2:
            raise ValueError(f"vector_lanes must be even (lane pairs are rotated), not {v}; nearest: {v + 1}")
        if b % v:
            raise ValueError(f"beat_bytes must be a multiple of vector_lanes = {v}, not {b}; nearest: {-(-b // v) * v}")
        if b < 3 * v:
            raise ValueError(f"beat_bytes must hold one row of vector_lanes x {PARAM_BITS} bits, so at least {3 * v}, not {b}")
        if self.hidden % v:
            raise ValueError(f"hidden must be a multiple of vector_lanes = {v}, not {self.hidden}; nearest: {-(-self.hidden // v) * v}")
        if self.burst_beats & (self.burst_beats - 1):
            raise ValueError(f"burst_beats must be a power of two, not {self.burst_beats}; nearest: {1 << self.burst_beats.bit_length() - 1}")
        if self.kv is not None and self.kv.beat_bytes != b:
            raise ValueError(f"kv must have beats of beat_bytes = {b} bytes, not {self.kv.beat_bytes}")
        if self.planes is not None and (self.planes.beat_bytes, self.planes.hidden) != (b, self.hidden):
            raise ValueError(f"planes must have rows of {self.hidden} codes in beats of {b} bytes, not of {self.planes.hidden} in {self.planes.beat_bytes}")
        if self.tile_rows < 1:
            what, needed = f"a row that has begun and a burst of {self.burst_beats} beats", self.ring_rows - self.tile_rows + 1
            raise ValueError(f"ring_rows must hold {what}, {needed} rows, not {self.ring_rows}; nearest: {needed}")
        for name, rows in (("params_rows", self.params_rows), ("rope_rows", self.rope_rows)):
            beats = self.largest_burst(LoadTarget.PARAMS)
            if rows < beats * self.rows_per_beat:
                what, needed = "beat" if beats == 1 else f"burst of {beats} beats", beats * self.rows_per_beat
                raise ValueError(f"{name} must hold one {what} of {needed} rows, not {rows}; nearest: {needed}")
        return self

    # Values

    def check(self, load: Load) -> None:
        """Raises ValueError where the encoder made a load that this hardware cannot carry out."""
        if (load.target == LoadTarget.KV) != (load.mode == LoadMode.TILES):
            raise ValueError(f"mode must be TILES for keys and values and for nothing else, not {load.mode.name} for {load.target.name}")
        if load.mode == LoadMode.TILES:
            if self.kv is None:
                raise ValueError("keys and values must have a layout (kv) where they are loaded")
            if load.tokens < 1 or load.position + load.tokens > self.kv.context:
                raise ValueError(f"positions must lie within the context of {self.kv.context}, not at {load.position} to {load.position + load.tokens - 1}")
            return
        if load.target == LoadTarget.PLANES and (self.planes is None or load.mode != LoadMode.DIRECT):
            raise ValueError("a table in two planes must have a layout (planes) where it is loaded, in mode DIRECT")
        if not 1 <= load.beats < (1 << 24 if load.mode == LoadMode.DIRECT else 1 << 16) or load.repetitions < 1:
            raise ValueError(f"beats must be 1 to 2**24 - 1 (2**16 - 1 per token) and tokens at least 1, not {load.beats} and {load.tokens}")
        if load.target in (LoadTarget.PARAMS, LoadTarget.ROPE) and -(-load.rows // self.rows_per_beat) != load.beats:
            raise ValueError(f"{load.rows} rows take {-(-load.rows // self.rows_per_beat)} beats, not {load.beats}")
        if load.target == LoadTarget.WEIGHTS and load.beats % self.row_beats:
            raise ValueError(f"beats of weights must be a multiple of row_beats = {self.row_beats}, not {load.beats}")
        if load.target == LoadTarget.EMBED and load.beats != self.table_beats:
            raise ValueError(f"beats of a table row must be {self.table_beats}, not {load.beats}")

    def tiles(self, load: Load) -> list[KvTile]:
        """Tiles of a load of keys and values, in order."""
        assert self.kv is not None  # ``check`` refuses it
        moved = load.address - self.kv.base
        tiles = _first_layer(self.kv, load.tokens, load.position, load.serial)
        return [KvTile(head, value, rows, address + moved, beats) for head, value, rows, address, beats in tiles]

    def jobs(self, load: Load, ids: NDArray[np.int64] | None = None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First addresses (jobs,) and beats (jobs,) of what a load fetches in one piece; ``ids`` (tokens,) for mode TOKEN."""
        if load.mode == LoadMode.TILES:
            tiles = self.tiles(load)
            return np.array([tile.address for tile in tiles]), np.array([tile.beats for tile in tiles])
        first = {LoadMode.DIRECT: np.zeros(1, np.int64), LoadMode.POSITION: load.position + np.arange(load.tokens), LoadMode.TOKEN: ids}[load.mode]
        assert first is not None  # a caller's slip, not a user's
        return (load.address + first * load.beats) & 0xFFFFFFFF, np.full(len(first), load.beats)

    def plane_jobs(self, load: Load, lists: Lists) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """As ``jobs``, of a table in two planes, with the list that each job stands in, -1 for a high plane."""
        assert self.planes is not None  # ``check`` refuses it
        first, beats, listed = self.planes.jobs(self.plane_rows(load), lists)
        return (first + load.address) & 0xFFFFFFFF, beats, listed

    def plane_rows(self, load: Load) -> int:
        """Rows of a table in two planes, the beats of whose high planes are the load's: whole segments, and what is left."""
        assert self.planes is not None  # ``check`` refuses it
        whole, rest = divmod(load.beats, self.planes.high_beats(self.planes.segment))
        rest -= -(-rest // (1 + self.planes.block * self.planes.row_beats))
        return whole * self.planes.segment + rest // self.planes.row_beats

    def steps(self, load: Load) -> NDArray[np.int64]:
        """Clocks (jobs,) from the clock in which a job is taken until the next one is there, besides what TOKEN waits for an id."""
        if load.mode != LoadMode.TILES:
            return np.ones(load.repetitions, np.int64)
        assert self.kv is not None
        ends = load.position + np.arange(1, load.tokens + 1)
        tiles = 2 * self.kv.kv_heads * -(-(ends if load.serial else ends[-1:]) // self.kv.key_tile)
        steps = np.full(tiles.sum(), TILE_STEP)
        steps[np.cumsum(tiles) - 1] = TILES_START
        return steps

    def addresses(self, load: Load, ids: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Beat addresses (beats in all,) in request order; ``ids`` (tokens,) for mode TOKEN."""
        first, beats = self.jobs(load, ids)
        return (np.repeat(first - (np.cumsum(beats) - beats), beats) + np.arange(beats.sum())) & 0xFFFFFFFF

    def counts(self, load: Load) -> NDArray[np.int64]:
        """Output beats that each memory beat of a load becomes (beats in all,): rows, embedding units, or itself."""
        if load.mode == LoadMode.TILES:
            return np.ones(sum(tile.beats for tile in self.tiles(load)), np.int64)
        counts = np.full(load.beats, 1)
        if load.target in (LoadTarget.PARAMS, LoadTarget.ROPE):
            counts[:] = self.rows_per_beat
            counts[-1] = load.rows - (load.beats - 1) * self.rows_per_beat
        elif load.target == LoadTarget.EMBED:
            units = np.arange(load.beats * (self.beat_bytes // self.vector_lanes)) - self.scale_units
            used = (units >= 0) & (units < self.hidden // self.vector_lanes)
            counts = used.reshape(load.beats, -1).sum(axis=1)
        return np.tile(counts, load.repetitions)

    def pack_rows(self, rows: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """Params or rope rows (n, V) of 24 bits as memory beats (ceil(n / P), B)."""
        p, size = self.rows_per_beat, self.vector_lanes * PARAM_BITS // 8
        raw = np.ascontiguousarray(rows, "<u4").view(np.uint8).reshape(len(rows), -1, 4)[:, :, :3].reshape(len(rows), size)
        raw = np.concatenate([raw, np.zeros((-len(rows) % p, size), np.uint8)]).reshape(-1, p * size)
        return np.pad(raw, ((0, 0), (0, self.beat_bytes - p * size)))

    def rows(self, load: Load, beats: NDArray[np.uint8]) -> NDArray[np.uint32]:
        """Golden params or rope rows (n, V) of a load's memory beats (repetitions * beats, B)."""
        p, size = self.rows_per_beat, self.vector_lanes * PARAM_BITS // 8
        raw = beats[:, : p * size].reshape(load.repetitions, -1, self.vector_lanes, 3)[:, : load.rows].reshape(-1, self.vector_lanes, 3)
        return np.pad(raw, ((0, 0), (0, 0), (0, 1))).view("<u4")[:, :, 0]

    def embedding(self, load: Load, beats: NDArray[np.uint8]) -> tuple[NDArray[np.int8], NDArray[np.uint32]]:
        """Golden codes (repetitions, hidden) int8 and scales (repetitions,) fp32 bits of a load's memory beats."""
        raw = beats.reshape(load.repetitions, -1)
        skip = self.scale_units * self.vector_lanes
        return raw[:, skip : skip + self.hidden].view(np.int8), np.ascontiguousarray(raw[:, :4]).view("<u4")[:, 0]
