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
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lutra.hls_models.ternary.attention_cycles import SETUP
from lutra.hls_models.ternary.core_shared import ID_LATENCY, SharedPass
from lutra.hls_models.ternary.core_units import DONE, UNITS, PassPlan, PassTimes, Units
from lutra.hls_models.ternary.head import HeadTiming, PlaneScan
from lutra.hls_models.ternary.isa import Destination, Instruction, LoadMode, LoadTarget, Semaphore, Source, Unit, executed
from lutra.hls_models.ternary.loader import Load
from lutra.hls_models.ternary.loader_shared import SharedLoaderTiming
from lutra.hls_models.ternary.loader_timing import LoaderTiming, spaced
from lutra.hls_models.ternary.planes import Lists
from lutra.hls_models.ternary.repetition import Moments, Mover, Snapshot
from lutra.hls_models.ternary.vector_cycles import Requantised
from lutra.hls_models.ternary.weights import LinearInstruction

__all__ = ["PassBatch"]

Cycles = NDArray[np.int64]


class _Layer(NamedTuple):
    """What a layer found at ``now``, and what had been counted until then."""

    state: Snapshot
    now: int
    worked: dict[Unit, Cycles]
    stalls: dict[tuple[Unit, str], Cycles]


class PassBatch:
    """Passes like ``plan`` at ``positions``, each from cycle 0 on; evaluated at once, told by ``times``.

    On a shared memory a batch is one pass; its cycle 0 is cycle ``origin`` from reset.
    """

    def __init__(self, units: Units, plan: PassPlan, positions: Sequence[int], origin: int = 0) -> None:
        self.units, self.spec = units, units.spec
        self.tokens, self.last, self.serial, self.positions = plan.tokens, plan.last, plan.serial, positions
        passes = (len(positions),)
        self.shared = SharedPass(self.spec, origin, detail=units.detail) if self.spec.config.memory else None
        self.loader: LoaderTiming | SharedLoaderTiming
        if self.shared:
            self.loader = self.shared.loader
        else:
            self.loader = LoaderTiming(self.spec.loader, self.spec.config.memory_latency, ID_LATENCY, passes=passes, detail=units.detail)
        self.head = HeadTiming(self.spec.head)
        self.lists: Lists = ()
        if self.spec.planes and plan.last and plan.tokens == 1:
            self.lists = plan.lists or self.spec.planes.assumed(self.spec.shape.vocabulary, units.rescored)
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
        self.rope = self.codes = self.written = self.arrived = np.zeros((*passes, 0), np.int64)
        self.start = np.zeros(passes, np.int64)  # ATTEND's START
        self.linear = self.attend = -1
        self.loads: deque[int] = deque()  # loads whose done is not known
        self.layer: _Layer | None = None  # the one before, where layers repeat
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
        return PassTimes(
            self.positions[place], self.tokens, self.last, start, end, token, begins, dones, active, worked, stalls, streams, self.serial, self.rescored
        )

    @property
    def rescored(self) -> int:
        """Rows of a head in two planes that are scored again."""
        return sum(len(one) for one in self.lists)

    def _run(self) -> Cycles:
        """Clocks of each pass."""
        dispatch, depth = np.full(len(self.positions), 2), self.spec.config.queue
        whens = executed(self.tokens, self.last)
        execute = {Unit.LOADER: self._load, Unit.LINEAR: self._linear, Unit.VECTOR: self._vector, Unit.ATTEND: self._attend, Unit.HEAD: self._head}
        index = -1
        while True:
            index += 1
            if index in self.units.bodies:
                index, dispatch = self._repeat(index, dispatch)
            instruction = self.units.program.instructions[index]
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
        if self.shared and self.units.detail:
            for name, pieces in self.shared.loader.streams.items():
                self.streams["bursts" if name == "read" else name] += [piece[None] for piece in pieces]
            self.streams["kv_data"] += [piece[None] for piece in self.shared.rows]
        return cycles

    def _repeat(self, index: int, dispatch: Cycles) -> tuple[int, Cycles]:
        """At the begin of a layer's body: where it finds the state that the one before found, it and all that follow are copies of that one, moved."""
        if self.loads:
            return index, dispatch
        units, now = self.units, int(dispatch[0])
        found, before = Snapshot(now), self.layer
        self._visit(found)
        self.layer = _Layer(found, now, dict(self.worked), dict(self.stalls))
        if before is None or before.state != found:
            return index, dispatch
        size, clocks = units.body, now - before.now
        count = (units.bodies[-1] - index) // size + 1
        last = slice(index - size, index)
        for cycles in (self.begins, self.dones):
            for n in range(1, count + 1):
                cycles[index + (n - 1) * size : index + n * size] = np.where(cycles[last] < 0, -1, cycles[last] + n * clocks)
        for places in self.places.values():
            mine = [place for place in places if place >= last.start]
            places += [place + n * size for n in range(1, count + 1) for place in mine]
        for unit, worked in before.worked.items():
            self.worked[unit] = self.worked[unit] + count * (self.worked[unit] - worked)
        for reason, waited in before.stalls.items():
            self.stalls[reason] = self.stalls[reason] + count * (self.stalls[reason] - waited)
        self._visit(Mover(count * clocks))
        return index + count * size, dispatch + count * clocks

    def _visit(self, moments: Moments) -> None:
        """What the next layer finds. HEAD rests meanwhile."""
        assert self.shared  # a caller's slip
        self.shared.visit(moments)
        self.units.linear.visit(moments)
        for unit, places in self.places.items():
            self.free[unit] = moments.at(self.free[unit]) if unit is not Unit.HEAD else self.free[unit]
            for place in places[-self.spec.config.queue :]:
                moments.at(self.begins[place])
        for waiting in (*self.signals.values(), self.params):
            moments.note(len(waiting))
            waiting.extend([moments.at(waiting.popleft()) for _ in range(len(waiting))])
        for name in ("rope", "codes", "written", "arrived", "start"):
            setattr(self, name, moments.at(getattr(self, name)))

    def _count(self) -> None:
        """Clocks with an instruction under way, overlapping ones once. Loads overlap each other: what no beat was requested in is one figure."""
        self.active = dict(self.worked)
        for unit, places in self.places.items():
            if places:
                ends = np.maximum.accumulate(self.dones[places] + 1, axis=0)
                seen = np.concatenate([np.zeros_like(ends[:1]), ends[:-1]])
                self.active[unit] = np.maximum(ends - np.maximum(self.begins[places], seen), 0).sum(axis=0)
        self.stalls[Unit.LOADER, "room, memory or token" if self.shared else "ring room or token"] = self.active[Unit.LOADER] - self.worked[Unit.LOADER]

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
        loader, load = self.loader, self._load_of(index)
        while loader.remaining:  # weights ahead of another load
            self._arrive(index)
        if load.target == LoadTarget.PLANES:
            assert isinstance(loader, SharedLoaderTiming)  # ``CoreConfig`` refuses others
            self._begun(index, loader.start(load, granted, self.lists))
        else:
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
        elif load.target == LoadTarget.KV and self.shared:
            self.shared.begin(load)

    def _load_of(self, index: int) -> Load:
        return self.units.loads[index]._replace(tokens=self.tokens, position=self.positions[0], serial=int(self.serial))

    def _loaded(self) -> None:
        index = self.loads.popleft()
        load = self._load_of(index)
        tiled = load.mode == LoadMode.TILES
        beats = sum(tile.beats for tile in self.loader.config.tiles(load)) if tiled else load.beats * load.repetitions
        if load.target == LoadTarget.PLANES and self.spec.planes:
            beats += self.rescored * self.spec.planes.row_beats
        self._ended(index, self.loader.done[-1], beats, {})

    def _arrive(self, index: int) -> None:
        """Further rows of weights."""
        delivered = self.loader.advance().taken
        if not delivered.shape[-1] and self.loader.remaining:
            raise ValueError(f"instruction {index}: what stands before it wants more rows of weights than the ring can hold")
        if self.units.detail and not self.shared:
            beats = delivered[..., None] + np.arange(1 - self.spec.loader.row_beats, 1)
            self._record("weights", beats.reshape(len(delivered), -1))
        self.arrived = np.concatenate([self.arrived, delivered], axis=-1) if self.arrived.shape[-1] else delivered
        if not self.loader.remaining:
            self._loaded()

    # LINEAR and VECTOR

    def _linear(self, index: int, instruction: Instruction, granted: Cycles) -> None:
        self._begun(index, granted)
        self.linear = index

    def _sums(self, opened: Cycles) -> Cycles:
        """Runs LINEAR into a sink that opens tile j no earlier than ``opened[:, j]``; returns the handshakes of the sums."""
        index, loader = self.linear, self.loader
        f, start = self.units.program.instructions[index].fields, self.begins[index]
        run = self.units.linear.begin(LinearInstruction(f["k_blocks"], f["columns"], f["tile_columns"], self.tokens), start)
        sums: list[Cycles] = []
        tile, looked_up = -1, 0
        while not run.finished:
            wanted = run.rows_wanted
            while self.arrived.shape[-1] < wanted:
                self._arrive(index)
            if run.tile != tile:
                tile = run.tile
                ready = np.maximum(opened[:, tile], sums[-1][:, -1] + 2) if sums else opened[:, tile]
            step = run.step(self.arrived[:, :wanted], ready)
            self.arrived = self.arrived[:, wanted:]
            loader.free(LoadTarget.WEIGHTS, step.freed)
            self._record("rows", step.rows)
            looked_up += step.rows.shape[-1]
            if step.sums.shape[-1]:
                sums.append(step.sums)
        self.free[Unit.LINEAR] = np.maximum(run.done + 1, run.weights_free)
        waited = {"weights or VECTOR": run.lateness, "table builds and drain": run.done + 1 - start - looked_up - run.lateness}
        self._ended(index, run.done, looked_up, waited)
        cycles = np.concatenate(sums, axis=-1)
        self._record("sums", cycles)
        return cycles

    def _vector(self, index: int, instruction: Instruction, start: Cycles) -> None:
        units, f = self.units, instruction.fields
        if f["source"] == Source.VALUES and self.serial:  # they come token after token: as one tile
            f = f | {"tile_columns": f["columns"]}
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
        requantised = units.requantised(f, self.tokens)
        if f["destination"] == Destination.ATTEND and self.shared:
            requantised = self._stored(self.shared, f, units.vector.take(f, self.tokens, opens, source).z, requantised)
        times = units.vector.instruction(f, self.tokens, opens, source=source, requantised=requantised)
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

    def _stored(self, shared: SharedPass, f: dict[str, int], z: Cycles, requantised: Requantised) -> Requantised:
        """Codes that become rows of keys and values, and perhaps wait for them: as they are taken."""
        last_z = int(z[0, -1])
        rows = shared.store(last_z + requantised.codes)
        if rows is None:
            store = shared.sink()
            requantised = self.units.vector.requantise(f, self.tokens, sink=lambda offered: store.take(offered + last_z) - last_z)
            rows = np.array(store.rows, np.int64)
        self.written = rows[None]
        return requantised

    # ATTEND

    def _attend(self, index: int, instruction: Instruction, granted: Cycles) -> None:
        self._begun(index, granted)
        self.attend = index
        if self.shared:
            assert granted[0] + SETUP <= self.codes[0, 0], f"instruction {index}: ATTEND does not follow VECTOR's codes"
            stored = np.array([self.shared.stored])
            self.signals[Semaphore.STORED].append(stored)
            self.start = stored + 1
        else:
            taken, self.written, self.start = self.units.attention.store(self.codes, granted)
            assert np.array_equal(taken, self.codes), f"instruction {index}: ATTEND does not follow VECTOR's codes"
        self._record("kv_write", self.written)

    def _values(self, opened: Cycles) -> Cycles:
        """Handshakes of the values into a sink that is ready from cycle ``opened`` (passes,) on."""
        index, start = self.attend, self.start
        values = self._attended(self.shared, int(opened[0])) if self.shared else self._attended_on_chip(opened)
        done, stored = values[:, -1] + 1, start - 1
        self._record("values", values)
        self.free[Unit.ATTEND] = done + 1
        self._ended(index, done, done - stored, {"codes": stored + 1 - self.begins[index]})
        return values

    def _attended(self, shared: SharedPass, opened: int) -> Cycles:
        phase = self.units.attention.phase_shared(self.tokens, self.positions[0], self.serial, int(self.start[0]), shared, opened)
        self._loaded()
        self._record("k_freed", phase.k_freed[None])
        self._record("v_freed", phase.v_freed[None])
        return phase.values[None]

    def _attended_on_chip(self, opened: Cycles) -> Cycles:
        attention, start = self.units.attention, self.start
        places = zip(self.positions, (opened - start).tolist(), strict=True)
        phases = [attention.phase(self.tokens, position, ready, serial=self.serial) for position, ready in places]
        if self.units.detail:
            reads = [phase.kv_read + first for phase, first in zip(phases, start, strict=True)]
            self._record("kv_read", reads)
            self._record("kv_data", [cycles + attention.latency for cycles in reads])
        return np.stack([phase.values for phase in phases]) + start[:, None]

    # HEAD

    def _head(self, index: int, instruction: Instruction, granted: Cycles) -> None:
        start = self.head.start(granted)
        self._begun(index, start)
        beats, several = self.loader.remaining, self.serial and not instruction.fields["planes"]
        rows = self._planes(start) if instruction.fields["planes"] else self.loader.stream(start + 1).taken
        self._loaded()
        if instruction.fields["planes"]:
            self.token, done = self.head.finish_planes(self.rescored, rows[:, -1])
        else:
            self.token, done = self.head.finish(instruction.fields["vocabulary"], rows[:, -1], self.tokens, serial=self.serial)
        self.free[Unit.HEAD] = self.head.free
        self._record("head_rows", rows)
        self._record("token", self.token[:, None] + np.arange(1 - self.tokens if several else 0, 1))
        self._ended(index, done, beats, {"table and pipeline": done + 1 - start - beats})

    def _planes(self, start: Cycles) -> Cycles:
        """Handshakes of the rows of a table in two planes, one per clock from the clock after ``start`` on."""
        loader, planes = self.loader, self.spec.planes
        assert planes and isinstance(loader, SharedLoaderTiming)
        scan, rows, end = PlaneScan(self.spec.head), planes.segments(self.spec.shape.vocabulary), start

        def accept(offered: Cycles) -> Cycles:
            nonlocal end
            taken = spaced(offered, end)
            end = taken[:, -1]
            return taken

        return loader.planes(accept, lambda segment, last: scan.given(last, rows[segment], self.lists[segment]) + 1).taken
