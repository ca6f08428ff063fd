# SPDX-License-Identifier: Apache-2.0
"""LOADER: fetches weights, parameters, rotary rows, embeddings and the head's table from memory (docs/architecture.md, 2.4).

Every request reserves the room of its data, so ``data`` is always accepted. WEIGHTS, PARAMS and ROPE are credited by their consumer, one beat of
``*_freed`` per row. PARAMS and ROPE beats pass a queue of ``rows_beats`` beats here (one row of V values leaves per clock), EMBED beats one of
``embed_beats``, HEAD beats one of ``head_beats``; a request needs a free entry of its queue too.

Times of one load (handshake cycles; internal events are named after the RTL's registers):

    instr t -> job valid:  DIRECT t+1;  POSITION t+3 (MULTIPLY, ADD), then 1 after the previous job;
                           TOKEN: id_request from t+1 (then 1 after the previous job), id i -> i+3
    job j   -> fire >= j+1; one per clock; the next job is taken in the cycle of the last fire, so DIRECT loads follow without a gap
    fire f  -> read from f+1; f is at least 1 after every event that frees what it needs: a ``*_freed`` beat, a pop of its queue, the ``data`` beat
               that ends one of ``outstanding`` requests
    data d  -> weights d+1 (``ready`` is not looked at: the room is reserved); the queues can be popped from d+QUEUE_LATENCY
    pop     -> params, rope, embed: output register, valid 1 after it is loaded; head: the queue's own output
    last beat e of a load on its output -> done from e+2, in program order
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lutra.hls_models.config import Config
from lutra.hls_models.ternary.isa import PASS_FIELDS, UNIT_FIELDS, LoadMode, LoadTarget, Unit

__all__ = ["PARAM_BITS", "QUEUE_LATENCY", "Load", "LoaderConfig", "LoaderTiming"]

PARAM_BITS = 24
"""Bits of one value of a params or rope row."""

QUEUE_LATENCY = 1
"""Clocks from a beat's way into a queue (``lutra.rtl.streams.Queue``) until it can leave."""

Cycles = NDArray[np.int64]
Accept = Callable[[Cycles], Cycles]
"""Handshake cycles of a consumer, strictly increasing, for beats offered no earlier than given."""


class Load(NamedTuple):
    """A LOADER instruction with the fields of its pass."""

    target: LoadTarget
    mode: LoadMode
    address: int
    beats: int
    rows: int = 0
    tokens: int = 1
    position: int = 0

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


class LoaderConfig(Config):
    """Sizes of a loader, with its golden values and cycles."""

    beat_bytes: int = Field(ge=6, le=512, description="memory port width in bytes (B)")
    vector_lanes: int = Field(ge=2, le=64, description="element-wise lanes (V), even")
    hidden: int = Field(ge=2, le=1 << 16, description="columns of an embedding row")
    row_beats: int = Field(default=1, ge=1, le=256, description="memory beats per weight row")
    ring_rows: int = Field(ge=1, le=1 << 20, description="weight rows that the weight ring holds")
    params_rows: int = Field(ge=1, le=1 << 16, description="rows of V values that the params ring holds")
    rope_rows: int = Field(ge=1, le=1 << 16, description="rows of V values that the rope ring holds")
    rows_beats: int = Field(default=8, ge=2, le=256, description="params and rope beats queued here")
    embed_beats: int = Field(default=8, ge=2, le=256, description="embedding beats queued here")
    head_beats: int = Field(default=8, ge=2, le=256, description="beats of the head's table queued here")
    outstanding: int = Field(default=16, ge=1, le=1024, description="requests whose data are on their way, at most")
    instructions: int = Field(default=32, ge=1, le=256, description="instructions accepted and not done, at most")

    @property
    def rows_per_beat(self) -> int:
        """Params or rope rows that a beat carries (P), lowest first."""
        return self.beat_bytes // (self.vector_lanes * PARAM_BITS // 8)

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
        for name, rows in (("params_rows", self.params_rows), ("rope_rows", self.rope_rows)):
            if rows < self.rows_per_beat:
                raise ValueError(f"{name} must hold one beat of {self.rows_per_beat} rows, not {rows}; nearest: {self.rows_per_beat}")
        return self

    # Values

    def check(self, load: Load) -> None:
        """Raises ValueError where the encoder made a load that this hardware cannot carry out."""
        if not 1 <= load.beats < (1 << 24 if load.mode == LoadMode.DIRECT else 1 << 16) or load.repetitions < 1:
            raise ValueError(f"beats must be 1 to 2**24 - 1 (2**16 - 1 per token) and tokens at least 1, not {load.beats} and {load.tokens}")
        if load.target in (LoadTarget.PARAMS, LoadTarget.ROPE) and -(-load.rows // self.rows_per_beat) != load.beats:
            raise ValueError(f"{load.rows} rows take {-(-load.rows // self.rows_per_beat)} beats, not {load.beats}")
        if load.target == LoadTarget.WEIGHTS and load.beats % self.row_beats:
            raise ValueError(f"beats of weights must be a multiple of row_beats = {self.row_beats}, not {load.beats}")
        if load.target == LoadTarget.EMBED and load.beats != self.table_beats:
            raise ValueError(f"beats of a table row must be {self.table_beats}, not {load.beats}")

    def addresses(self, load: Load, ids: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Beat addresses (repetitions * beats,) in request order; ``ids`` (tokens,) for mode TOKEN."""
        first = {LoadMode.DIRECT: np.zeros(1, np.int64), LoadMode.POSITION: load.position + np.arange(load.tokens), LoadMode.TOKEN: ids}[LoadMode(load.mode)]
        assert first is not None  # a caller's slip, not a user's
        return (load.address + (first[:, None] * load.beats + np.arange(load.beats))).reshape(-1) & 0xFFFFFFFF

    def counts(self, load: Load) -> NDArray[np.int64]:
        """Output beats that each memory beat of a load becomes (repetitions * beats,): rows, embedding units, or itself."""
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


class LoaderTiming:
    """Cycles of a loader in the core: memory answers every request after ``latency`` clocks, and all outputs but embed and head are always taken.

    Loads are given in program order: ``start`` one, then ``advance`` it until ``remaining`` is 0. A window is as long as the credits that are known
    allow; the consumer's frees are told with ``free`` as they become known, so a load may be longer than its ring. EMBED and HEAD have ``deliver``, which
    alternates with the consumer.

    Parameters
    ----------
    config
        The loader; its ``outstanding`` must be at least latency + 2, so that it never binds.
    latency
        Clocks from a request's handshake to its data's.
    id_latency
        Clocks from ``id_request`` to ``id``.
    """

    def __init__(self, config: LoaderConfig, latency: int, id_latency: int = 1) -> None:
        if config.outstanding < latency + 2:
            raise ValueError(f"outstanding must be at least latency + 2 = {latency + 2}, not {config.outstanding}; nearest: {latency + 2}")
        self.config, self.latency, self.id_latency = config, latency, id_latency
        rooms = (config.ring_rows, config.params_rows, config.rope_rows, config.embed_beats, config.head_beats)
        self._known = {target: np.full(room, -1) for target, room in zip(LoadTarget, rooms, strict=True)}
        """Per target, cycles at which the credits of the next rows (or queue entries) came free."""
        self._rows_pops = np.full(config.rows_beats, -1)
        self._planned, self._issued, self._row, self._unit = 0, -1, -1, -1
        self._load: Load | None = None
        self.remaining = 0
        """Memory beats of the present load that are not requested yet."""
        self.done: list[int] = []
        """Handshake of ``done`` per load that is finished."""

    def start(self, load: Load, not_before: int) -> int:
        """Handshake of the instruction, offered from ``not_before`` on, once the load before it is delivered."""
        self.config.check(load)
        start = max(not_before, self._planned)
        if len(self.done) >= self.config.instructions:
            start = max(start, self.done[len(self.done) - self.config.instructions])
        self._load, self._counts = load, self.config.counts(load)
        self.remaining = len(self._counts)
        self._valid = start + (3 if load.mode == LoadMode.POSITION else 1)
        return start

    def free(self, target: LoadTarget, cycles: Cycles) -> None:
        """Handshakes of ``*_freed`` (one per row), or clocks in which beats left the embed or head queue, in order."""
        self._known[target] = np.concatenate([self._known[target], cycles])

    def advance(self) -> tuple[Cycles, Cycles]:
        """Requests as many beats as known credits allow: (``read`` handshakes per beat, delivery per row).

        Delivery is the handshake at the output: per weight row that of its last beat; for EMBED and HEAD, per beat, the clock from which the queue offers it.
        """
        assert self._load is not None
        load, config = self._load, self.config
        target = LoadTarget(load.target)
        unpacked = target in (LoadTarget.PARAMS, LoadTarget.ROPE)
        per_credit = config.row_beats if target == LoadTarget.WEIGHTS else 1
        requests, delivered = [], []
        while self.remaining:
            first = len(self._counts) - self.remaining
            beats = load.beats - first % load.beats  # of this job
            if unpacked:
                beats = min(beats, config.rows_beats)
            counts = self._counts[first : first + beats]
            ends = np.cumsum(counts) if unpacked else -(-np.arange(1, beats + 1) // per_credit)
            known = self._known[target]
            beats = int(np.searchsorted(ends, len(known), side="right"))
            if not beats:
                break
            counts, ends = counts[:beats], ends[:beats]
            lower = known[ends - 1] + 1
            self._known[target] = known[ends[-1] :]
            if first % load.beats == 0:
                self._job()
            if unpacked:
                lower = np.maximum(lower, self._rows_pops[:beats] + 1)
            fires = _spaced(lower, self._issued)
            self._issued = int(fires[-1])
            self.remaining -= beats
            requests.append(fires + 1)
            arrivals = fires + 1 + self.latency
            if target == LoadTarget.WEIGHTS:
                delivered.append((arrivals + 1)[config.row_beats - 1 :: config.row_beats])
            elif unpacked:
                loads = _spaced(np.repeat(arrivals + QUEUE_LATENCY, counts), self._row)
                self._row = int(loads[-1])
                self._rows_pops = np.concatenate([self._rows_pops[beats:], loads[np.cumsum(counts) - 1]])
                delivered.append(loads + 1)
            else:
                delivered.append(arrivals + QUEUE_LATENCY)
        if not self.remaining:
            self._planned = self._valid
            if unpacked or target == LoadTarget.WEIGHTS:
                self.finish(int(delivered[-1][-1]))
        empty = np.zeros(0, np.int64)
        return np.concatenate([*requests, empty]), np.concatenate([*delivered, empty])

    def delivered_beats(self, rows: Cycles) -> Cycles:
        """Handshakes of all beats of weight rows, from their last beats': a row's room is granted whole, so its beats follow each other."""
        return (rows[:, None] + np.arange(1 - self.config.row_beats, 1)).reshape(-1)

    def deliver(self, accept: Accept) -> tuple[Cycles, Cycles]:
        """The rest of an EMBED or HEAD load: (``read`` handshakes, handshakes at the output: units of V codes, or beats).

        ``accept`` is asked for as many beats at a time as the queue has free, with the clocks from which they are offered.
        """
        assert self._load is not None
        requests, taken = [], []
        while self.remaining:
            first = len(self._counts) - self.remaining
            asked, offered = self.advance()
            requests.append(asked)
            if self._load.target == LoadTarget.EMBED:
                counts = self._counts[first : first + len(offered)]
                offered = np.repeat(offered, counts)
                took = accept(offered + 1)
                loads = np.maximum(offered, np.concatenate([[self._unit], took[:-1]]))
                self._unit = int(took[-1])
                self.free(LoadTarget.EMBED, loads[np.cumsum(counts) - 1])
            else:
                took = accept(offered)
                self.free(LoadTarget.HEAD, took)
            taken.append(took)
        self.finish(int(taken[-1][-1]))
        return np.concatenate(requests), np.concatenate(taken)

    def stream(self, opened: int) -> tuple[Cycles, Cycles]:
        """``deliver`` of a HEAD load to a sink that takes a beat in every clock from ``opened`` on: at once where the queue covers a request's round trip.

        Then the sink never waits again once it has the first beat, ``lag`` after its fire: a freed place is refilled before the sink comes to it.
        """
        config, lag = self.config, 1 + self.latency + QUEUE_LATENCY
        depth, known, first = config.head_beats, self._known[LoadTarget.HEAD], max(self._valid, self._issued) + 1
        assert self._load is not None
        if self._load.mode != LoadMode.DIRECT or depth <= lag or known[-1] >= first:
            end = [opened - 1]

            def accept(offered: Cycles) -> Cycles:
                taken = _spaced(offered, end[0])
                end[0] = int(taken[-1])
                return taken

            return self.deliver(accept)
        index = np.arange(self.remaining)
        taken = max(opened, first + lag) + index
        fires = first + index
        fires[depth:] = np.maximum(fires[depth:], taken[:-depth] + 1)
        self._known[LoadTarget.HEAD] = np.concatenate([known, taken])[-depth:]
        self._planned, self._issued, self.remaining = first, int(fires[-1]), 0
        self.finish(int(taken[-1]))
        return fires + 1, taken

    def finish(self, last: int) -> int:
        """Handshake of ``done`` of the present load, whose last output beat was taken at ``last``; EMBED and HEAD without ``deliver`` call it themselves."""
        self.done.append(max(last + 2, self.done[-1] + 1 if self.done else 0))
        return self.done[-1]

    def _job(self) -> None:
        assert self._load is not None
        if self._load.mode == LoadMode.TOKEN:
            self._valid += self.id_latency + 3
        job = max(self._valid, self._issued)
        self._valid, self._issued = job + 1, job


def _spaced(lower: Cycles, before: int) -> Cycles:
    """Earliest strictly increasing cycles above ``before``, each at least its lower bound."""
    index = np.arange(len(lower))
    return np.maximum(np.maximum.accumulate(lower - index), before + 1) + index
