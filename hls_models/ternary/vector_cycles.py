# SPDX-License-Identifier: Apache-2.0
"""Cycles of the VECTOR unit (architecture.md, 2.7), derived from the registers of rtl/ternary/vector*.py and requantise.py.

With instr taken at i (all other names: handshake cycles, or cycles in which a state is current):

    header row k popped   h[k] = max(i + 1, h[k-1] + 2, params[k] + 1)                    states HEADER, HEADER_DATA
    tile j opens          o[j] = max(h[-1] + 2 or last beat of tile j-1 + 1, its last gain + 1); the first of ROPE: its last rope row + 1, too
    first beat of tile j  from o[j] + 1, then one per clock
    z of a source beat s  s + latencies.sums or .values + latencies.operate or .gate      gate: of the second of two beats
    gain freed            z of the last token's beat; params_freed from the cycle after
    rope rows freed       one per clock from the cycle after the last z
    measured              last z + latencies.gain + latencies.levels                      then LOAD
    group g divided       d[g] = max(d[g-1] + 1 + latencies.load, p[g - dividers] + 1), d[0] = measured + 1 + latencies.load
    group g taken         p[g] = max(d[g] + division, last beat of group g-1 read)
    code beats read       from p[g] + 1, one per clock, at most OUTPUT_DEPTH not yet accepted; offered latencies.code later
    done                  from the last code + 1; instr of the next: max(done + 1, scaler idle) + 1
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutra.hls_models.floats import FLOAT_LATENCY
from lutra.hls_models.functions import FUNCTION_LATENCY
from lutra.hls_models.streams import Ready, handshakes
from lutra.hls_models.ternary.isa import Destination, Operation, Source
from lutra.hls_models.ternary.vector import OUTPUT_DEPTH, VectorConfig

__all__ = ["PORTS", "SOURCE_PORTS", "VectorJob", "VectorLatencies", "VectorTimes", "VectorTiming"]

Cycles = NDArray[np.int64]

PORTS = ("instr", "sums", "values", "embed", "params", "rope", "params_freed", "rope_freed", "codes", "done")
SOURCE_PORTS = {Source.SUMS: "sums", Source.VALUES: "values", Source.EMBED: "embed"}


class VectorLatencies:
    """Fixed latencies in clock cycles; the RTL takes its delays from here."""

    def __init__(self, config: VectorConfig) -> None:
        add, mul, convert = FLOAT_LATENCY["add"], FLOAT_LATENCY["mul"], FLOAT_LATENCY["convert"]
        activation = FUNCTION_LATENCY["silu"] if config.activation == "silu" else mul
        self.levels = config.levels
        self.factor = max(mul, FLOAT_LATENCY["from_int"])  # scale * weight_scale beside the conversion of the integer
        self.sums = 1 + self.factor + mul + convert + 1  # input register, factor, product, rounding to F, y register
        self.values = 2  # input register, y register
        self.operate = mul + add + 1  # product, sum, z register
        self.gate = activation + mul + 1
        self.gain = 1 + mul  # read of the ring, product
        self.load = 1 + convert  # read of the maximum, conversion to fp32
        self.division = FLOAT_LATENCY["divsqrt"]
        self.code = 1 + mul + FLOAT_LATENCY["to_int"] + 1  # read of U, product, rounding, queue
        self.scale = mul
        # From the last beat of z to the first mean square: squares, tree, partial sum, write; then ``reduce``.
        self.summed = mul + config.levels * add + add
        # A level of k sums takes k + (read, adder, write); the last goes on through multiplier and adder to a register.
        sizes = [config.partials >> i for i in range(1, config.partials.bit_length())]
        self.reduce = sum(k + add + 1 for k in sizes[:-1]) + 1 + add + mul + add + 1


class VectorTimes(NamedTuple):
    """Handshake cycles of one instruction; ``idle`` is the first cycle in which the next may be taken."""

    instr: int
    source: Cycles
    params_freed: Cycles
    rope_freed: Cycles
    codes: Cycles
    done: int
    idle: int


class VectorJob(NamedTuple):
    """An instruction for ``VectorTiming.run``."""

    fields: dict[str, int]
    tokens: int


class Taken(NamedTuple):
    """Cycles of the source's beats and of z, and those in which params rows become free."""

    source: Cycles
    z: Cycles
    params_free: Cycles


class VectorTiming:
    """Cycle model of the unit. The sinks of ``params_freed`` and ``rope_freed`` must always be ready."""

    def __init__(self, config: VectorConfig) -> None:
        self.config = config
        self.latencies = VectorLatencies(config)

    def instruction(
        self,
        fields: dict[str, int],
        tokens: int,
        start: int,
        *,
        params: ArrayLike,
        source: ArrayLike = 0,
        rope: ArrayLike = (),
        codes_ready: Ready | None = None,
        done_ready: Ready | None = None,
    ) -> VectorTimes:
        """Times of an instruction taken at ``start``.

        Parameters
        ----------
        params, rope
            Handshake cycles of this instruction's rows: header, gains of tile after tile; rows of ROPE.
        source
            Earliest cycles of the source's beats (beats,), or one for all: a beat is offered from then on, and after the one before it.
        codes_ready, done_ready
            Sinks; always ready where absent.
        """
        taken = self.take(fields, tokens, start, params=params, source=source, rope=rope)
        last_z = int(taken.z[-1])
        codes, idle = self._requantise(fields, tokens, last_z, codes_ready)
        done = int(codes[-1]) + 1
        if done_ready is not None:
            done = int(done_ready.next_ready(done))
        rope_freed = np.arange(last_z + 1, last_z + 1 + self.rope_rows(fields, tokens))
        return VectorTimes(start, taken.source, taken.params_free + 1, rope_freed, codes, done, max(done + 1, idle) + 1)

    def params_rows(self, fields: dict[str, int]) -> int:
        """Rows of ``params`` that an instruction takes."""
        gains = (fields["columns"] >> (fields["operation"] == Operation.GATE)) // self.config.lanes
        return self.config.header_rows + (gains if fields["norm"] else 0)

    def rope_rows(self, fields: dict[str, int], tokens: int) -> int:
        """Rows of ``rope`` that an instruction takes."""
        return tokens * self.config.head_dim // self.config.lanes if fields["operation"] == Operation.ROPE else 0

    def opens(self, fields: dict[str, int], start: int, *, params: ArrayLike, rope: ArrayLike = ()) -> tuple[Cycles, Cycles]:
        """(cycles in which the header's rows are popped, cycles in which the tiles open but for the tile before)."""
        config = self.config
        rows = np.asarray(params, np.int64)
        two = 2 * np.arange(config.header_rows)
        popped = two + np.maximum.accumulate(np.maximum(rows[: len(two)], start) + 1 - two)
        row_beats = fields["columns"] // config.lanes
        tile_beats = min(fields["tile_columns"] // config.lanes, row_beats)
        opened = np.full(-(-row_beats // tile_beats), int(popped[-1]) + 2, np.int64)
        if fields["norm"]:
            ends = np.minimum(tile_beats * np.arange(1, len(opened) + 1), row_beats) >> int(fields["operation"] == Operation.GATE)
            opened = np.maximum(opened, rows[len(two) + ends - 1] + 1)
        if fields["operation"] == Operation.ROPE:
            opened[0] = max(opened[0], int(np.asarray(rope, np.int64)[-1]) + 1)
        return popped, opened

    def take(self, fields: dict[str, int], tokens: int, start: int, *, params: ArrayLike, source: ArrayLike = 0, rope: ArrayLike = ()) -> Taken:
        """The first half of ``instruction``: up to z."""
        lat, v = self.latencies, self.config.lanes
        gated = int(fields["operation"] == Operation.GATE)
        popped, opened = self.opens(fields, start, params=params, rope=rope)
        row_beats = fields["columns"] // v
        tile_beats = min(fields["tile_columns"] // v, row_beats)

        # One clock per beat, one more between tiles: without these the handshakes are a running maximum.
        index = np.arange(tokens * row_beats)
        place = index + index // (tile_beats * tokens)
        earliest = np.array(np.broadcast_to(np.asarray(source, np.int64), index.shape))
        first = slice(None, None, tile_beats * tokens)
        earliest[first] = np.maximum(earliest[first], opened + 1)
        beats = place + np.maximum.accumulate(earliest - place)

        z = beats[1::2] if gated else beats
        z = z + (lat.values if fields["source"] == Source.VALUES else lat.sums) + (lat.gate if gated else lat.operate)
        free = popped
        if fields["norm"]:
            free = np.concatenate([popped, z[_last_token(row_beats >> gated, tile_beats >> gated, tokens)]])
        return Taken(beats, z, free)

    def _requantise(self, fields: dict[str, int], tokens: int, last_z: int, ready: Ready | None) -> tuple[Cycles, int]:
        """Handshakes of ``codes``, and the first cycle in which the scaler is idle."""
        lat, norm = self.latencies, bool(fields["norm"])
        before_codes = norm and fields["destination"] == Destination.HEAD
        results = fields["columns"] >> (fields["operation"] == Operation.GATE)
        groups = tokens * (results // fields["group_columns"])
        per_group = fields["group_columns"] // self.config.lanes
        divide = last_z + lat.gain + lat.levels + 1 + lat.load
        variance = last_z + lat.summed + 1 + lat.reduce
        root = 2 * lat.division + 2 + lat.scale  # from ROOT to PUSH: two divisions with a clock after each, the product

        codes: list[Cycles] = []
        reads = _Reads(lat.code, ready)
        taken: list[int] = []
        free = 0  # cycle from which the next group is taken
        for group in range(groups):
            if group >= self.config.dividers:
                divide = max(divide, taken[group - self.config.dividers] + 1)
            at = divide + lat.division
            if before_codes:
                begun = max(at + 1, variance)
                variance = begun + 1 + lat.reduce
                at = begun + root
            taken.append(max(at, free))
            free = reads.read(taken[-1] + 1, per_group, codes)
            divide = (taken[-1] if before_codes else divide) + 1 + lat.load
        idle = taken[-1] + 1
        if norm and not before_codes:
            for _ in range(tokens):
                begun = max(idle, variance)
                variance = begun + 1 + lat.reduce
                idle = begun + root + 1
        return np.concatenate(codes), idle

    def run(self, jobs: Sequence[VectorJob], not_before: Mapping[str, ArrayLike], ready: Mapping[str, Ready] | None = None) -> dict[str, Cycles]:
        """Handshake cycles of every port for jobs from reset on.

        Parameters
        ----------
        not_before
            Per input port, earliest cycles of its beats.
        ready
            Sinks of ``codes`` and ``done``; always ready where absent.
        """
        config, sinks = self.config, ready or {}
        earliest = {name: np.asarray(cycles, np.int64) for name, cycles in not_before.items()}
        out: dict[str, list[Cycles]] = {name: [] for name in PORTS}
        used = dict.fromkeys(PORTS, 0)
        params_free, rope_free, params, rope = _Backlog(config.params_rows), _Backlog(config.rope_rows), -1, -1
        idle = 0
        for job in jobs:
            port = SOURCE_PORTS[Source(job.fields["source"])]
            counts = {"instr": 1, "params": self.params_rows(job.fields), "rope": self.rope_rows(job.fields, job.tokens)}
            counts[port] = job.tokens * job.fields["columns"] // config.lanes
            mine = {name: earliest[name][used[name] : used[name] + count] for name, count in counts.items()}
            for name, count in counts.items():
                used[name] += count
            start = max(int(mine["instr"][0]), idle)
            turns = handshakes(rope_free.limit(mine["rope"]), start=rope + 1)
            # Rows that wait for room wait for rows that this instruction frees: each round fixes at least one more tile.
            freed: Cycles = np.zeros(0, np.int64)
            while True:
                rows = handshakes(params_free.limit(mine["params"], freed), start=params + 1)
                freed_before, freed = freed, self.take(job.fields, job.tokens, start, params=rows, source=mine[port], rope=turns).params_free
                if np.array_equal(freed, freed_before):
                    break
            times = self.instruction(
                job.fields, job.tokens, start, params=rows, source=mine[port], rope=turns, codes_ready=sinks.get("codes"), done_ready=sinks.get("done")
            )
            params, idle = int(rows[-1]), times.idle
            params_free.add(freed)
            if len(turns):
                rope = int(turns[-1])
                rope_free.add(np.full(len(turns), times.rope_freed[0] - 1))
            got = {"instr": [start], port: times.source, "params": rows, "rope": turns, "params_freed": times.params_freed, "rope_freed": times.rope_freed}
            for name, cycles in {**got, "codes": times.codes, "done": [times.done]}.items():
                out[name].append(np.asarray(cycles, np.int64))
        joined = {name: np.concatenate(parts) if parts else np.zeros(0, np.int64) for name, parts in out.items()}
        return {**joined, "rope_freed": handshakes(joined["rope_freed"])}


def _last_token(row_beats: int, tile_beats: int, tokens: int) -> NDArray[np.int64]:
    """Indices of the last token's beats in the order "for tile: for token: for beat"."""
    beat = np.arange(row_beats)
    first = beat // tile_beats * tile_beats
    return first * tokens + (tokens - 1) * np.minimum(tile_beats, row_beats - first) + beat - first


class _Backlog:
    """Rows of a ring in order: row r is accepted after row r - depth became free."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.free: Cycles = np.zeros(0, np.int64)

    def add(self, free: Cycles) -> None:
        self.free = np.concatenate([self.free, free])

    def limit(self, earliest: Cycles, own: Cycles | None = None) -> Cycles:
        """Earliest cycles of the rows that follow those already freed; ``own``: cycles in which they become free themselves, as far as known."""
        known = self.free if own is None else np.concatenate([self.free, own])
        rows = len(self.free) + np.arange(len(earliest)) - self.depth
        limited = (rows >= 0) & (rows < len(known))
        return np.where(limited, np.maximum(earliest, known[np.where(limited, rows, 0)] + 1), earliest) if len(known) else earliest


class _Reads:
    """Reads of the U buffer, limited by the places of the output queue."""

    def __init__(self, latency: int, ready: Ready | None) -> None:
        self.latency = latency
        self.ready = ready
        self.read_at = -1
        self.left: list[int] = []  # handshakes so far, where the sink may stall

    def read(self, start: int, count: int, codes: list[Cycles]) -> int:
        """Reads ``count`` beats from ``start`` on, appends their handshakes to ``codes`` and returns the cycle of the last read."""
        if self.ready is None:  # places are free again before they are missed
            codes.append(np.arange(start + self.latency, start + self.latency + count))
            return start + count - 1
        for _ in range(count):
            self.read_at = max(start, self.read_at + 1)
            if len(self.left) >= OUTPUT_DEPTH:
                self.read_at = max(self.read_at, self.left[-OUTPUT_DEPTH] + 1)
            self.left.append(int(self.ready.next_ready(max(self.read_at + self.latency, self.left[-1] + 1 if self.left else 0))))
        codes.append(np.array(self.left[-count:], np.int64))
        return self.read_at
