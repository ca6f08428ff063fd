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

Arrays of cycles have shape (…, beats), single cycles (…): the leading axes, where there are any, are passes that make the same instructions at different
times.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutra.hls_models.floats import FLOAT_LATENCY
from lutra.hls_models.functions import FUNCTION_LATENCY
from lutra.hls_models.streams import Ready, handshakes
from lutra.hls_models.ternary.isa import Destination, Operation, Source
from lutra.hls_models.ternary.vector import OUTPUT_DEPTH, VectorConfig

__all__ = ["PORTS", "SOURCE_PORTS", "Requantised", "Sink", "VectorJob", "VectorLatencies", "VectorTimes", "VectorTiming"]

Cycles = NDArray[np.int64]
Sink = Callable[[int], int]

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

    source: Cycles
    params_freed: Cycles
    rope_freed: Cycles
    codes: Cycles
    done: Cycles
    idle: Cycles


class VectorJob(NamedTuple):
    """An instruction for ``VectorTiming.run``."""

    fields: dict[str, int]
    tokens: int


class Opens(NamedTuple):
    """Cycles in which the header's rows are popped (…, rows), and in which the tiles open but for the tile before (…, tiles)."""

    popped: Cycles
    tiles: Cycles


class Taken(NamedTuple):
    """Cycles of the source's beats and of z, and those in which params rows become free."""

    source: Cycles
    z: Cycles
    params_free: Cycles


class Requantised(NamedTuple):
    """Handshakes of the codes (beats,), and the first cycle in which the scaler is idle, counted from the last z."""

    codes: Cycles
    idle: int


class _Walk(NamedTuple):
    """What an instruction's beats are, whatever their times: clocks from the first beat to each at least, beats that end a tile in the order of gains,
    beats of z that free gains."""

    place: Cycles
    tile: int
    ends: Cycles
    last_token: Cycles


@lru_cache(maxsize=256)
def _walk(row_beats: int, tile_beats: int, tokens: int, gated: int) -> _Walk:
    index = np.arange(tokens * row_beats)
    tiles = -(-row_beats // tile_beats)
    ends = np.minimum(tile_beats * np.arange(1, tiles + 1), row_beats) >> gated
    # One clock per beat, one more between tiles.
    return _Walk(index + index // (tile_beats * tokens), tile_beats * tokens, ends, _last_token(row_beats >> gated, tile_beats >> gated, tokens))


class VectorTiming:
    """Cycle model of the unit. The sinks of ``params_freed`` and ``rope_freed`` must always be ready."""

    def __init__(self, config: VectorConfig) -> None:
        self.config = config
        self.latencies = VectorLatencies(config)

    def instruction(
        self,
        fields: dict[str, int],
        tokens: int,
        opens: Opens,
        *,
        source: ArrayLike = 0,
        requantised: Requantised | None = None,
        done_ready: Ready | None = None,
    ) -> VectorTimes:
        """Times of an instruction.

        Parameters
        ----------
        opens
            What ``opens`` makes of its start and its parameters.
        source
            Earliest cycles of the source's beats (…, beats), or one for all: a beat is offered from then on, and after the one before it.
        requantised
            What ``requantise`` makes of the instruction and its sink; that of a sink which is always ready where absent.
        done_ready
            Sink; always ready where absent.
        """
        taken = self.take(fields, tokens, opens, source)
        last_z = taken.z[..., -1]
        after = requantised or self.requantise(fields, tokens)
        codes = last_z[..., None] + after.codes
        done = codes[..., -1] + 1
        if done_ready is not None:
            done = done_ready.next_ready(done)
        rope_freed = last_z[..., None] + np.arange(1, self.rope_rows(fields, tokens) + 1)
        idle = np.maximum(done + 1, last_z + after.idle) + 1
        return VectorTimes(taken.source, taken.params_free + 1, rope_freed, codes, done, idle)

    def params_rows(self, fields: dict[str, int]) -> int:
        """Rows of ``params`` that an instruction takes."""
        gains = (fields["columns"] >> (fields["operation"] == Operation.GATE)) // self.config.lanes
        return self.config.header_rows + (gains if fields["norm"] else 0)

    def rope_rows(self, fields: dict[str, int], tokens: int) -> int:
        """Rows of ``rope`` that an instruction takes."""
        return tokens * self.config.head_dim // self.config.lanes if fields["operation"] == Operation.ROPE else 0

    def _beats(self, fields: dict[str, int], tokens: int) -> _Walk:
        row_beats = fields["columns"] // self.config.lanes
        return _walk(row_beats, min(fields["tile_columns"] // self.config.lanes, row_beats), tokens, int(fields["operation"] == Operation.GATE))

    def opens(self, fields: dict[str, int], start: ArrayLike, *, params: ArrayLike, rope: ArrayLike = ()) -> Opens:
        """What an instruction taken at ``start`` (…) makes of the handshakes (…, rows) of its parameters: header, gains of tile after tile; rows of ROPE."""
        rows, ends = np.asarray(params, np.int64), self._beats(fields, 1).ends
        two = np.arange(0, 2 * self.config.header_rows, 2)
        popped = np.maximum(rows[..., : len(two)], np.asarray(start)[..., None]) + 1
        popped = np.maximum.accumulate(popped - two, axis=-1) + two
        header = popped[..., -1:] + 2
        opened = np.maximum(header, rows[..., len(two) - 1 + ends] + 1) if fields["norm"] else np.repeat(header, len(ends), axis=-1)
        if fields["operation"] == Operation.ROPE:
            opened[..., 0] = np.maximum(opened[..., 0], np.asarray(rope, np.int64)[..., -1] + 1)
        return Opens(popped, opened)

    def take(self, fields: dict[str, int], tokens: int, opens: Opens, source: ArrayLike = 0) -> Taken:
        """The first half of ``instruction``: up to z."""
        lat, walk = self.latencies, self._beats(fields, tokens)
        gated = fields["operation"] == Operation.GATE
        # Without the clocks that beats and tiles take at least the handshakes are a running maximum.
        earliest = np.asarray(source, np.int64) - walk.place
        earliest = earliest if earliest.ndim >= opens.tiles.ndim else np.broadcast_to(earliest, (*opens.tiles.shape[:-1], len(walk.place))).copy()
        earliest[..., :: walk.tile] = np.maximum(earliest[..., :: walk.tile], opens.tiles + 1 - walk.place[:: walk.tile])
        beats = np.maximum.accumulate(earliest, axis=-1) + walk.place

        z = beats[..., 1::2] if gated else beats
        z = z + (lat.values if fields["source"] == Source.VALUES else lat.sums) + (lat.gate if gated else lat.operate)
        free = np.concatenate([opens.popped, z[..., walk.last_token]], axis=-1) if fields["norm"] else opens.popped
        return Taken(beats, z, free)

    def requantise(self, fields: dict[str, int], tokens: int, *, spans: Cycles | None = None, sink: Sink | None = None) -> Requantised:
        """The second half of ``instruction``: from the last z on.

        Parameters
        ----------
        spans
            Clocks (beats,) from a code's handshake until the sink takes the next; one where absent.
        sink
            Handshake of the next code, offered from a clock on, counted from the last z; always ready where absent.
        """
        lat, norm = self.latencies, bool(fields["norm"])
        before_codes = norm and fields["destination"] == Destination.HEAD
        results = fields["columns"] >> (fields["operation"] == Operation.GATE)
        groups = tokens * (results // fields["group_columns"])
        divide = lat.gain + lat.levels + 1 + lat.load
        variance = lat.summed + 1 + lat.reduce
        root = 2 * lat.division + 2 + lat.scale  # from ROOT to PUSH: two divisions with a clock after each, the product

        beats = fields["group_columns"] // self.config.lanes
        reads = _Reads(lat.code, beats, np.ones(groups * beats, np.int64) if spans is None else spans, sink)
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
            free = reads.group(taken[-1] + 1)
            divide = (taken[-1] if before_codes else divide) + 1 + lat.load
        idle = taken[-1] + 1
        if norm and not before_codes:
            for _ in range(tokens):
                begun = max(idle, variance)
                variance = begun + 1 + lat.reduce
                idle = begun + root + 1
        return Requantised(np.array(reads.codes, np.int64), idle)

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
                opens = self.opens(job.fields, start, params=rows, rope=turns)
                taken = self.take(job.fields, job.tokens, opens, mine[port])
                freed_before, freed = freed, taken.params_free
                if np.array_equal(freed, freed_before):
                    break
            trace = Ready(sinks["codes"].trace[int(taken.z[-1]) :]) if "codes" in sinks else None
            after = self.requantise(job.fields, job.tokens, sink=trace.next_ready if trace else None)
            times = self.instruction(job.fields, job.tokens, opens, source=mine[port], requantised=after, done_ready=sinks.get("done"))
            params, idle = int(rows[-1]), int(times.idle)
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
    """Reads of the U buffer, limited by the places of the output queue; ``codes``: handshakes so far."""

    def __init__(self, latency: int, count: int, spans: Cycles, sink: Sink | None) -> None:
        self.latency, self.count, self.sink = latency, count, sink
        self.spans = spans.tolist()
        self.read_at = -1
        self.codes: list[int] = []

    def group(self, start: int) -> int:
        """Reads a group's beats from ``start`` on; returns the cycle of the last read."""
        if self.sink is None and self._unhindered(start):  # places are free again before they are missed
            self.codes += range(start + self.latency, start + self.latency + self.count)
            self.read_at = start + self.count - 1
            return self.read_at
        for _ in range(self.count):
            self.read_at = max(start, self.read_at + 1)
            if len(self.codes) >= OUTPUT_DEPTH:
                self.read_at = max(self.read_at, self.codes[-OUTPUT_DEPTH] + 1)
            offered = self.read_at + self.latency
            if self.codes:
                offered = max(offered, self.codes[-1] + self.spans[len(self.codes) - 1])
            self.codes.append(offered if self.sink is None else int(self.sink(offered)))
        return self.read_at

    def _unhindered(self, start: int) -> bool:
        """The sink keeps up with a group that is read from ``start`` on."""
        first = len(self.codes)
        in_time = not first or self.codes[-1] + self.spans[first - 1] <= start + self.latency
        return in_time and max(self.spans[first : first + self.count - 1], default=1) == 1
