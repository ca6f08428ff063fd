# SPDX-License-Identifier: Apache-2.0
"""Exact cycles of passes of the whole core: the units' cycle models, joined as dispatch, semaphores and streams join the RTL.

A pass begins when every unit is idle: its cycles, counted from its SETUP, depend on its tokens, its position and whether it is a prompt's last, and on no
pass before. So passes that make the same instructions are evaluated together, as the leading axis of every array, and the batch is one walk over the program.

Sequencer (states of rtl/ternary/sequencer.py): SETUP at 0, then FETCH and DISPATCH per instruction. An instruction is pushed in its DISPATCH cycle d once
its queue holds fewer than ``queue`` items; the next DISPATCH is d + 2, and the queue offers it from d + 1. A semaphore signalled in t counts from t + 1.
END's DISPATCH e is followed by DRAIN until, from e + 1 on, every unit's running counter is zero (one clock after its last done); NEXT and SETUP follow.

Instructions are evaluated in program order. What a later instruction decides about an earlier one (VECTOR opens the tiles that LINEAR drains into, and LINEAR
frees the rows that LOADER waits for) is joined when the later one is reached; nothing depends on anything further ahead.
"""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra.hls_models.ternary.attention_cycles import AttentionTiming
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.head import HeadTiming
from lutra.hls_models.ternary.isa import Destination, Instruction, LoadMode, LoadTarget, Operation, Semaphore, Source, Unit, When
from lutra.hls_models.ternary.linear import LinearTiming
from lutra.hls_models.ternary.loader import Load
from lutra.hls_models.ternary.loader_timing import LoaderTiming
from lutra.hls_models.ternary.program import Program
from lutra.hls_models.ternary.tlmm_cycles import codes_handshakes
from lutra.hls_models.ternary.vector_cycles import Requantised, VectorTiming
from lutra.hls_models.ternary.weights import LinearInstruction

__all__ = ["PassBatch", "PassTimes", "Units"]

Cycles = NDArray[np.int64]
ID_LATENCY = 1  # token memory: request to id
PASSES, CELLS = 64, 1 << 19
"""Passes evaluated together, at most, and passes times beats: enough to hide what a call of numpy costs, few enough for memory."""
DONE = {unit: f"{unit.name.lower()}_done" for unit in Unit}  # boundaries
UNITS: tuple[Unit, ...] = tuple(unit for unit in Unit if unit is not Unit.END)


@dataclass(frozen=True)
class PassTimes:
    """A pass from its SETUP cycle ``start`` to the cycle ``end`` after its NEXT; ``token``: handshake of the chosen id.

    ``begins``, ``dones``: per instruction of the program, the cycle in which its unit took it and that of its done, -1 where the pass leaves it out.
    ``active``: clocks in which a unit had an instruction under way; ``worked``: those of them in which it moved a beat (LOADER, HEAD: memory beats; LINEAR:
    lookups; VECTOR: source and code beats) or, ATTEND, attended; ``stalls``: the others by reason.
    ``streams``: handshake cycles of every boundary (only in detail).
    """

    position: int
    tokens: int
    last: bool
    start: int
    end: int
    token: int | None
    begins: Cycles
    dones: Cycles
    active: dict[Unit, int]
    worked: dict[Unit, int]
    stalls: dict[Unit, dict[str, int]]
    streams: dict[str, Cycles]

    @property
    def cycles(self) -> int:
        return self.end - self.start


class Units:
    """What the passes of a core share: its program, the models of its units, what follows from an instruction and the tokens of a pass alone.

    Parameters
    ----------
    spec, program : as for the executor; no memory image is needed
    detail : keep every handshake
    """

    def __init__(self, spec: CoreSpec, program: Program, *, detail: bool) -> None:
        self.spec, self.program, self.detail = spec, program, detail
        self.linear = LinearTiming(spec.tlmm, spec.weights)
        self.vector = VectorTiming(spec.vector)
        self.attention = AttentionTiming(spec.attention, latency=2)
        self.waits = [tuple(one.wait) for one in program.instructions]
        self.signals = [tuple(one.signal) for one in program.instructions]
        self.loads = {index: _load_of(one) for index, one in enumerate(program.instructions) if one.unit is Unit.LOADER}
        self._requantised: dict[tuple[int, ...], Requantised] = {}

    def together(self, tokens: int) -> int:
        """How many passes of ``tokens`` tokens are evaluated at once, for arrays of a few megabytes."""
        columns = max(one.fields["columns"] for one in self.program.instructions if one.unit is Unit.VECTOR)
        widest = max(self.spec.config.ring_rows, tokens * columns // self.spec.config.vector_lanes)
        return max(1, min(PASSES, CELLS // widest))

    def requantised(self, fields: dict[str, int], tokens: int) -> Requantised:
        """VECTOR's codes behind the last z. LINEAR's activation buffer takes a clock more where a token's last codes fill one row and begin another."""
        columns = fields["columns"] >> (fields["operation"] == Operation.GATE)
        key = tokens, columns, fields["group_columns"], fields["norm"], fields["destination"]
        if key not in self._requantised:
            spans = None
            if fields["destination"] == Destination.LINEAR:
                row = columns // self.spec.config.vector_lanes
                last = np.arange(1, tokens * row + 1) % row == 0
                spans = np.diff(codes_handshakes(self.spec.tlmm, np.zeros(len(last), np.int64), last))
            self._requantised[key] = self.vector.requantise(fields, tokens, spans=spans)
        return self._requantised[key]


def _load_of(instruction: Instruction) -> Load:
    f = instruction.fields
    return Load(LoadTarget(f["target"]), LoadMode(f["mode"]), f["address"], f["beats"], f["rows"])


class PassBatch:
    """Passes of ``tokens`` tokens at ``positions``, ``last`` or not, each from cycle 0 on; evaluated at once, told by ``times``."""

    def __init__(self, units: Units, tokens: int, last: bool, positions: Sequence[int]) -> None:
        self.units, self.spec = units, units.spec
        self.tokens, self.last, self.positions = tokens, last, positions
        passes = (len(positions),)
        self.loader = LoaderTiming(self.spec.loader, self.spec.config.memory_latency, ID_LATENCY, passes=passes, detail=units.detail)
        self.head = HeadTiming(self.spec.head)
        units.linear.rest()
        self.begins = np.full((len(units.program.instructions), *passes), -1)
        self.dones = self.begins.copy()
        self.token: Cycles | None = None
        self.worked = dict.fromkeys(UNITS, np.zeros(passes, np.int64))
        self.stalls: dict[tuple[Unit, str], Cycles] = {}
        self.streams: dict[str, list[Cycles | Sequence[Cycles]]] = defaultdict(list)
        self.places: dict[Unit, list[int]] = {unit: [] for unit in UNITS}  # instructions that were begun
        self.free = {unit: np.zeros(passes, np.int64) for unit in UNITS}  # first cycle in which a unit takes an instruction
        self.signals: dict[Semaphore, deque[Cycles]] = {semaphore: deque() for semaphore in Semaphore}
        self.signals[Semaphore.TOKEN].append(np.full(passes, -1))
        # What waits for the instruction that uses it.
        self.params: deque[Cycles] = deque()
        self.rope = self.codes = np.zeros((*passes, 0), np.int64)
        self.linear = self.attend = -1
        self.loads: deque[int] = deque()  # loads whose done is not known
        self.cycles = self._run()

    def times(self, place: int, start: int) -> PassTimes:
        """Pass ``place`` of the batch, its SETUP in cycle ``start``."""
        begins, dones = (np.where(cycles[:, place] < 0, -1, cycles[:, place] + start) for cycles in (self.begins, self.dones))
        worked = {unit: int(clocks[place]) for unit, clocks in self.worked.items()}
        active = {unit: int(clocks[place]) for unit, clocks in self.active.items()}
        stalls: dict[Unit, dict[str, int]] = {unit: {} for unit in UNITS}
        for (unit, reason), clocks in self.stalls.items():
            stalls[unit][reason] = int(clocks[place])
        streams = {name: np.concatenate([piece[place] for piece in pieces]) + start for name, pieces in self.streams.items()}
        token = None if self.token is None else int(self.token[place]) + start
        end = start + int(self.cycles[place])
        return PassTimes(self.positions[place], self.tokens, self.last, start, end, token, begins, dones, active, worked, stalls, streams)

    def _run(self) -> Cycles:
        """Clocks of each pass."""
        dispatch, depth = np.full(len(self.positions), 2), self.spec.config.queue
        whens = (When.ALWAYS, When.LAST if self.last else When.NOT_LAST)
        execute = {Unit.LOADER: self._load, Unit.LINEAR: self._linear, Unit.VECTOR: self._vector, Unit.ATTEND: self._attend, Unit.HEAD: self._head}
        for index, instruction in enumerate(self.units.program.instructions):
            if instruction.unit is Unit.END:
                break
            if instruction.when in whens:
                begun = self.places[instruction.unit]
                if len(begun) >= depth:
                    dispatch = np.maximum(dispatch, self.begins[begun[-depth]] + 1)
                execute[instruction.unit](index, instruction, self._granted(index, dispatch + 1))
            dispatch = dispatch + 2
        cycles = np.maximum(dispatch, self.dones.max(axis=0)) + 3
        for unit, places in self.places.items():
            # HEAD still hands out its best scores, VECTOR works out a scale: the next pass comes to them later.
            assert not places or (self.free[unit] - cycles <= self.begins[places[0]]).all(), f"{unit.name} is not idle when a pass ends"
        self._count()
        return cycles

    def _count(self) -> None:
        """Clocks with an instruction under way, overlapping ones once. Loads overlap each other: what no beat was requested in is one figure."""
        self.active = dict(self.worked)
        for unit, places in self.places.items():
            if places:
                ends = np.maximum.accumulate(self.dones[places] + 1, axis=0)
                seen = np.concatenate([np.zeros_like(ends[:1]), ends[:-1]])
                self.active[unit] = np.maximum(ends - np.maximum(self.begins[places], seen), 0).sum(axis=0)
        self.stalls[Unit.LOADER, "ring room or token"] = self.active[Unit.LOADER] - self.worked[Unit.LOADER]

    def _granted(self, index: int, offered: Cycles) -> Cycles:
        """Earliest start of an instruction offered by its queue: its unit and its semaphores are there (LOADER's own waiting: ``LoaderTiming.start``)."""
        unit = self.units.program.instructions[index].unit
        offered = np.maximum(offered, self.free[unit])
        for semaphore in self.units.waits[index]:
            offered = np.maximum(offered, self.signals[semaphore].popleft() + 1)
        return offered

    def _begun(self, index: int, start: Cycles) -> None:
        self.begins[index] = start
        self.places[self.units.program.instructions[index].unit].append(index)

    def _ended(self, index: int, done: Cycles, worked: int | Cycles, stalls: dict[str, Cycles]) -> None:
        unit = self.units.program.instructions[index].unit
        self.dones[index] = done
        for semaphore in self.units.signals[index]:
            self.signals[semaphore].append(done)
        self.worked[unit] = self.worked[unit] + worked
        for reason, clocks in stalls.items():
            self.stalls[unit, reason] = self.stalls.get((unit, reason), 0) + clocks
        self._record(DONE[unit], done[:, None])

    def _record(self, name: str, cycles: Cycles | Sequence[Cycles]) -> None:
        if self.units.detail:
            self.streams[name].append(cycles)

    # LOADER

    def _load(self, index: int, instruction: Instruction, granted: Cycles) -> None:
        loader, load = self.loader, self.units.loads[index]._replace(tokens=self.tokens)
        self._begun(index, loader.start(load, granted))
        self.loads.append(index)
        if load.target in (LoadTarget.PARAMS, LoadTarget.ROPE):
            rows = loader.advance().taken
            if loader.remaining:
                raise ValueError(
                    f"instruction {index}: its rows wait for rows of a later instruction; params_rows and rope_rows must hold a whole instruction's"
                )
            self._record(load.target.name.lower(), rows)
            if load.target == LoadTarget.PARAMS:
                self.params.append(rows)
            else:
                self.rope = rows
            self._loaded()

    def _loaded(self) -> None:
        index = self.loads.popleft()
        load = self.units.loads[index]._replace(tokens=self.tokens)
        self._ended(index, self.loader.done[-1], load.beats * load.repetitions, {})

    # LINEAR and VECTOR

    def _linear(self, index: int, instruction: Instruction, granted: Cycles) -> None:
        self._begun(index, granted)
        self.linear = index

    def _sums(self, opened: Cycles) -> Cycles:
        """Runs LINEAR into a sink that opens tile j no earlier than ``opened[:, j]``; returns the handshakes of the sums."""
        index, loader = self.linear, self.loader
        f, start = self.units.program.instructions[index].fields, self.begins[index]
        run = self.units.linear.begin(LinearInstruction(f["k_blocks"], f["columns"], f["tile_columns"], self.tokens), start)
        arrived = np.zeros((len(start), 0), np.int64)
        sums: list[Cycles] = []
        tile, looked_up = -1, 0
        while not run.finished:
            wanted = run.rows_wanted
            while arrived.shape[-1] < wanted:
                delivered = loader.advance().taken
                if not delivered.shape[-1]:
                    raise ValueError(f"instruction {index}: a step of LINEAR wants more rows than the ring can hold")
                self._record_weights(delivered)
                arrived = np.concatenate([arrived, delivered], axis=-1) if arrived.shape[-1] else delivered
            if run.tile != tile:
                tile = run.tile
                ready = np.maximum(opened[:, tile], sums[-1][:, -1] + 2) if sums else opened[:, tile]
            step = run.step(arrived[:, :wanted], ready)
            arrived = arrived[:, wanted:]
            loader.free(LoadTarget.WEIGHTS, step.freed)
            self._record("rows", step.rows)
            looked_up += step.rows.shape[-1]
            if step.sums.shape[-1]:
                sums.append(step.sums)
        self._loaded()
        self.free[Unit.LINEAR] = np.maximum(run.done + 1, run.weights_free)
        waited = {"weights or VECTOR": run.lateness, "table builds and drain": run.done + 1 - start - looked_up - run.lateness}
        self._ended(index, run.done, looked_up, waited)
        cycles = np.concatenate(sums, axis=-1)
        self._record("sums", cycles)
        return cycles

    def _record_weights(self, rows: Cycles) -> None:
        if self.units.detail:
            beats = rows[..., None] + np.arange(1 - self.spec.loader.row_beats, 1)
            self._record("weights", beats.reshape(len(rows), -1))

    def _vector(self, index: int, instruction: Instruction, start: Cycles) -> None:
        units, f = self.units, instruction.fields
        self._begun(index, start)
        opens = units.vector.opens(f, start, params=self.params.popleft(), rope=self.rope)
        opened = opens.tiles + 1  # the first beat follows by a clock
        if f["source"] == Source.SUMS:
            source = self._sums(opened)
        elif f["source"] == Source.VALUES:
            source = self._values(opened[:, 0])
        else:
            source = self.loader.stream(opened[:, 0]).taken
            self._record("embed", source)
            self._loaded()
        times = units.vector.instruction(f, self.tokens, opens, source=source, requantised=units.requantised(f, self.tokens))
        assert np.array_equal(times.source, source), f"instruction {index}: VECTOR does not follow its source"
        self.free[Unit.VECTOR] = times.idle
        self.loader.free(LoadTarget.PARAMS, times.params_freed)
        self.loader.free(LoadTarget.ROPE, times.rope_freed)
        self.codes = times.codes
        beats, first = source.shape[-1] + times.codes.shape[-1], opened[:, 0]
        waits = {"parameters": first - start, "source": source[:, -1] + 1 - first - source.shape[-1]}
        rest = times.done + 1 - start - beats - waits["parameters"] - waits["source"]
        self._record("codes", times.codes)
        self._ended(index, times.done, beats, waits | {"pipeline and scales": rest})

    # ATTEND

    def _attend(self, index: int, instruction: Instruction, granted: Cycles) -> None:
        self._begun(index, granted)
        self.attend = index

    def _values(self, opened: Cycles) -> Cycles:
        """Handshakes of the values into a sink that is ready from cycle ``opened`` (passes,) on."""
        attention, index = self.units.attention, self.attend
        taken, written, start = attention.store(self.codes, self.begins[index])
        assert np.array_equal(taken, self.codes), f"instruction {index}: ATTEND does not follow VECTOR's codes"
        phases = [attention.phase(self.tokens, *one) for one in zip(self.positions, (opened - start).tolist(), strict=True)]
        values = np.stack([phase.values for phase in phases]) + start[:, None]
        if self.units.detail:
            reads = [phase.kv_read + first for phase, first in zip(phases, start, strict=True)]
            data = [cycles + attention.latency for cycles in reads]
            for name, cycles in (("kv_write", written), ("kv_read", reads), ("kv_data", data), ("values", values)):
                self._record(name, cycles)
        done, stored = values[:, -1] + 1, written[:, -1]
        self.free[Unit.ATTEND] = done + 1
        self._ended(index, done, done - stored, {"codes": stored + 1 - self.begins[index]})
        return values

    # HEAD

    def _head(self, index: int, instruction: Instruction, granted: Cycles) -> None:
        start = self.head.start(granted)
        self._begun(index, start)
        beats, rows = self.loader.remaining, self.loader.stream(start + 1).taken
        self._loaded()
        self.token, done = self.head.finish(instruction.fields["vocabulary"], rows[:, -1])
        self.free[Unit.HEAD] = self.head.free
        self._record("head_rows", rows)
        self._record("token", self.token[:, None])
        self._ended(index, done, beats, {"table and pipeline": done + 1 - start - beats})
