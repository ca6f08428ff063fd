# SPDX-License-Identifier: Apache-2.0
"""Exact cycles of the whole core: the units' cycle models, joined as dispatch, semaphores and streams join the RTL.

Sequencer (states of rtl/ternary/sequencer.py): SETUP at s, then FETCH and DISPATCH per instruction. An instruction is pushed in its DISPATCH cycle d once
its queue holds fewer than ``queue`` items; the next DISPATCH is d + 2, and the queue offers it from d + 1. A semaphore signalled in t counts from t + 1.
END's DISPATCH e is followed by DRAIN until, from e + 1 on, every unit's running counter is zero (one clock after its last done); NEXT and SETUP follow.
Boot: BOOT_READ and BOOT_STORE take memory latency + 1 clocks per beat.

Instructions are evaluated in program order. What a later instruction decides about an earlier one (VECTOR opens the tiles that LINEAR drains into, and LINEAR
frees the rows that LOADER waits for) is joined when the later one is reached; nothing depends on anything further ahead.
"""

from collections import defaultdict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lutra.hls_models.streams import Ready
from lutra.hls_models.ternary.attention_cycles import AttentionTimes, AttentionTiming
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.executor import plan_passes
from lutra.hls_models.ternary.head import HeadTiming
from lutra.hls_models.ternary.isa import Destination, Instruction, LoadMode, LoadTarget, Operation, Semaphore, Source, Unit, When
from lutra.hls_models.ternary.linear import LinearTiming
from lutra.hls_models.ternary.loader import Load, LoaderTiming
from lutra.hls_models.ternary.program import Program
from lutra.hls_models.ternary.tlmm import TlmmConfig
from lutra.hls_models.ternary.tlmm_cycles import codes_handshakes
from lutra.hls_models.ternary.vector_cycles import VectorTiming
from lutra.hls_models.ternary.weights import LinearInstruction

__all__ = ["CoreTiming", "Event", "PassTimes"]

Cycles = NDArray[np.int64]
ID_LATENCY = 1  # token memory: request to id


class Event(NamedTuple):
    """One instruction: its place in the program, the cycle its unit took it, the cycle of its done."""

    place: int
    start: int
    done: int


@dataclass
class PassTimes:
    """A pass from its SETUP cycle ``start`` to the cycle ``end`` after its NEXT; ``token``: handshake of the chosen id.

    ``worked``: clocks in which a unit moved a beat (LOADER, HEAD: memory beats; LINEAR: lookups; VECTOR: source and code beats) or, ATTEND, attended.
    ``waits``: clocks of a unit's instructions without work, by reason.
    ``streams``: handshake cycles of every boundary, in pieces (only in detail).
    """

    position: int
    tokens: int
    last: bool
    start: int
    end: int = 0
    token: int | None = None
    events: list[Event] = field(default_factory=list)
    worked: dict[Unit, int] = field(default_factory=lambda: dict.fromkeys((unit for unit in Unit if unit is not Unit.END), 0))
    waits: dict[Unit, dict[str, int]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(int)))
    streams: dict[str, list[Cycles]] = field(default_factory=lambda: defaultdict(list))

    @property
    def cycles(self) -> int:
        return self.end - self.start

    def activity(self, instructions: Sequence[Instruction]) -> dict[Unit, tuple[int, int]]:
        """Per unit: clocks with an instruction under way (overlapping ones once), and ``worked``."""
        active = dict.fromkeys(self.worked, 0)
        seen = dict.fromkeys(self.worked, self.start)
        for event in sorted(self.events, key=lambda event: event.start):
            unit = instructions[event.place].unit
            active[unit] += max(event.done + 1 - max(event.start, seen[unit]), 0)
            seen[unit] = max(seen[unit], event.done + 1)
        return {unit: (active[unit], worked) for unit, worked in self.worked.items()}

    def stalls(self, instructions: Sequence[Instruction]) -> dict[Unit, dict[str, int]]:
        """Per unit and reason, clocks under way without work: with ``worked`` they sum to the active clocks."""
        out = {unit: dict(reasons) for unit, reasons in self.waits.items()}
        # Loads overlap each other: what no beat was requested in is one figure.
        active, worked = self.activity(instructions)[Unit.LOADER]
        out[Unit.LOADER] = {"ring room or token": active - worked}
        return out


class CoreTiming:
    """Cycle model of a core that runs ``program`` from memory of a fixed latency.

    Parameters
    ----------
    spec, program : as for the executor; no memory image is needed
    detail : keep every handshake
    """

    def __init__(self, spec: CoreSpec, program: Program, *, detail: bool = False) -> None:
        self.spec, self.program, self.detail = spec, program, detail
        latency = spec.config.memory_latency
        self._loader = LoaderTiming(spec.loader, latency, ID_LATENCY)
        self._linear = LinearTiming(spec.tlmm, spec.weights)
        self._vector = VectorTiming(spec.vector)
        self._attention = AttentionTiming(spec.attention, latency=2)
        self._head = HeadTiming(spec.head)
        self._free = dict.fromkeys((Unit.LINEAR, Unit.VECTOR, Unit.ATTEND), 0)
        self._loads = {index: _load_of(one) for index, one in enumerate(program.instructions) if one.unit is Unit.LOADER}
        self._booted = False
        self.now = 0
        """Cycle in which the sequencer is IDLE or, between passes, in SETUP."""

    def run(self, prompt: int, count: int, *, start: int = 0, at: int = 0) -> list[PassTimes]:
        """Passes of a run whose start pulse is in cycle ``at``: ``prompt`` tokens from position ``start``, then decoding until ``count`` tokens are there."""
        self.now = at + 1
        if not self._booted:
            beats = len(self.program.instructions) * self.program.word_beats
            self.now += beats * (self.spec.config.memory_latency + 1)
            self._booted = True
        passes = [self.pass_times(n, position, last) for position, n, last in plan_passes(start, prompt, self.spec.config.chunk)]
        first = start + prompt
        for position in range(first, min(first + count - 1, self.spec.shape.context)):
            passes.append(self.pass_times(1, position, True))
        return passes

    def pass_times(self, tokens: int, position: int, last: bool) -> PassTimes:
        """The pass that starts now."""
        done = _Pass(self, tokens, position, last).run()
        self.now = done.end
        return done


def _load_of(instruction: Instruction) -> Load:
    f = instruction.fields
    return Load(LoadTarget(f["target"]), LoadMode(f["mode"]), f["address"], f["beats"], f["rows"])


@lru_cache(maxsize=256)
def _spans(config: TlmmConfig, beats: int, tokens: int) -> tuple[Cycles, NDArray[np.bool_]]:
    """When LINEAR's activation buffer takes codes that are offered at once, and which are a token's last."""
    last = np.arange(1, beats + 1) % (beats // tokens) == 0
    return codes_handshakes(config, np.zeros(beats, np.int64), last), last


class _Pass:
    """Evaluation of one pass."""

    def __init__(self, core: CoreTiming, tokens: int, position: int, last: bool) -> None:
        self.core, self.spec = core, core.spec
        self.times = PassTimes(position, tokens, last, core.now)
        self.tokens, self.position = tokens, position
        self.depth = core.spec.config.queue
        self.pops: dict[Unit, list[int]] = {unit: [] for unit in Unit}
        self.signals: dict[Semaphore, deque[int]] = {s: deque() for s in Semaphore}
        self.signals[Semaphore.TOKEN].append(core.now - 1)
        self.params: deque[Cycles] = deque()
        self.rope: Cycles = np.zeros(0, np.int64)
        self.weights_rows = 0
        self.embed: Load | None = None
        self.linear: tuple[int, LinearInstruction, int] | None = None
        self.attend: tuple[int, int, Cycles] | None = None
        self.codes: Cycles = np.zeros(0, np.int64)
        self.loads: deque[tuple[int, int]] = deque()  # program index and start of loads whose done is not known

    def run(self) -> PassTimes:
        dispatch = self.times.start + 2
        whens = (When.ALWAYS, When.LAST if self.times.last else When.NOT_LAST)
        execute = {Unit.LOADER: self._load, Unit.LINEAR: self._linear, Unit.VECTOR: self._vector, Unit.ATTEND: self._attend, Unit.HEAD: self._head}
        for index, instruction in enumerate(self.core.program.instructions):
            if instruction.unit is Unit.END:
                break
            if instruction.when in whens:
                pops = self.pops[instruction.unit]
                if len(pops) >= self.depth:
                    dispatch = max(dispatch, pops[-self.depth] + 1)
                execute[instruction.unit](index, instruction, dispatch + 1)
            dispatch += 2
        drain = max(dispatch + 1, max(event.done for event in self.times.events) + 1)
        self.times.end = drain + 2
        self.times.events.sort()
        return self.times

    def _granted(self, instruction: Instruction, offered: int) -> int:
        """Earliest start of an instruction offered by its queue: its semaphores are there."""
        pops = self.pops[instruction.unit]
        offered = max(offered, pops[-1] + 1 if pops else 0)
        if instruction.wait:
            for semaphore, signals in self.signals.items():
                if semaphore & instruction.wait:
                    offered = max(offered, signals.popleft() + 1)
        return offered

    def _ended(self, index: int, start: int, done: int) -> None:
        instruction = self.core.program.instructions[index]
        self.times.events.append(Event(index, start, done))
        if instruction.signal:
            for semaphore, signals in self.signals.items():
                if semaphore & instruction.signal:
                    signals.append(done)
        if self.core.detail:
            self._record(f"{instruction.unit.name.lower()}_done", [done])

    def _waited(self, unit: Unit, reasons: dict[str, int]) -> None:
        for reason, clocks in reasons.items():
            self.times.waits[unit][reason] += clocks

    def _record(self, name: str, cycles: Iterable[int]) -> None:
        if self.core.detail:
            self.times.streams[name].append(np.asarray(cycles, np.int64))

    # LOADER

    def _load(self, index: int, instruction: Instruction, offered: int) -> None:
        loader = self.core._loader
        load = self.core._loads[index]._replace(tokens=self.tokens, position=self.position)
        start = loader.start(load, self._granted(instruction, offered))
        self.pops[Unit.LOADER].append(start)
        self.loads.append((index, start))
        self.times.worked[Unit.LOADER] += load.beats * load.repetitions
        if load.target in (LoadTarget.PARAMS, LoadTarget.ROPE):
            rows = []
            while loader.remaining:
                _, delivered = loader.advance()
                if not len(delivered):
                    raise ValueError(
                        f"instruction {index}: its rows wait for rows of a later instruction; params_rows and rope_rows must hold a whole instruction's"
                    )
                rows.append(delivered)
            cycles = np.concatenate(rows)
            self._record(load.target.name.lower(), cycles)
            if load.target == LoadTarget.PARAMS:
                self.params.append(cycles)
            else:
                self.rope = cycles
            self._loaded()

    def _loaded(self) -> None:
        index, start = self.loads.popleft()
        self._ended(index, start, self.core._loader.done[-1])

    # LINEAR and VECTOR

    def _linear(self, index: int, instruction: Instruction, offered: int) -> None:
        f = instruction.fields
        start = max(self._granted(instruction, offered), self.core._free[Unit.LINEAR])
        self.pops[Unit.LINEAR].append(start)
        self.linear = (index, LinearInstruction(f["k_blocks"], f["columns"], f["tile_columns"], self.tokens), start)

    def _sums(self, opened: Cycles) -> Cycles:
        """Runs LINEAR into a sink that opens tile j no earlier than ``opened[j]``; returns the handshakes of the sums."""
        assert self.linear is not None
        core, loader = self.core, self.core._loader
        index, instruction, start = self.linear
        run = core._linear.begin(instruction, start)
        arrived: Cycles = np.zeros(0, np.int64)
        sums: list[Cycles] = []
        rows: list[Cycles] = []
        tile, ready = -1, 0
        while not run.finished:
            wanted = run.rows_wanted
            while len(arrived) < wanted:
                _, delivered = loader.advance()
                if not len(delivered):
                    raise ValueError(f"instruction {index}: a step of LINEAR wants more rows than the ring can hold")
                self._record_weights(delivered)
                arrived = np.concatenate([arrived, delivered])
            if run.tile != tile:
                tile = run.tile
                ready = max(int(opened[tile]), int(sums[-1][-1]) + 2 if sums else 0)
            step = run.step(arrived[:wanted], ready)
            arrived = arrived[wanted:]
            loader.free(LoadTarget.WEIGHTS, step.freed)
            self._record("rows", step.rows)
            rows.append(step.rows)
            if len(step.sums):
                sums.append(step.sums)
        self._loaded()
        core._free[Unit.LINEAR] = max(run.done + 1, run.weights_free)
        self._ended(index, start, run.done)
        looked_up = sum(len(part) for part in rows)
        self.times.worked[Unit.LINEAR] += looked_up
        self._waited(Unit.LINEAR, {"weights or VECTOR": run.lateness, "table builds and drain": run.done + 1 - start - looked_up - run.lateness})
        self.linear = None
        cycles = np.concatenate(sums)
        self._record("sums", cycles)
        return cycles

    def _record_weights(self, delivered: Cycles) -> None:
        if self.core.detail:
            beats = self.spec.loader.row_beats
            self._record("weights", delivered if beats == 1 else self.core._loader.delivered_beats(delivered))

    def _vector(self, index: int, instruction: Instruction, offered: int) -> None:
        core, vector, f = self.core, self.core._vector, instruction.fields
        start = max(self._granted(instruction, offered), core._free[Unit.VECTOR])
        self.pops[Unit.VECTOR].append(start)
        params = self.params.popleft()
        rope = self.rope if f["operation"] == Operation.ROPE else np.zeros(0, np.int64)
        opened = vector.opens(f, start, params=params, rope=rope)[1] + 1  # the first beat follows by a clock
        if f["source"] == Source.SUMS:
            source = self._sums(opened)
        elif f["source"] == Source.VALUES:
            source = self._values(int(opened[0]))
        else:
            _, source = core._loader.stream(int(opened[0]))
            self._record("embed", source)
            self._loaded()
        times = vector.instruction(f, self.tokens, start, params=params, source=source, rope=rope)
        if f["destination"] == Destination.LINEAR:
            times = self._into_linear(f, start, params, source, rope, times)
        assert np.array_equal(times.source, source), f"instruction {index}: VECTOR does not follow its source"
        core._free[Unit.VECTOR] = times.idle
        core._loader.free(LoadTarget.PARAMS, times.params_freed)
        core._loader.free(LoadTarget.ROPE, times.rope_freed)
        self.codes = times.codes
        beats, first = len(source) + len(times.codes), int(opened[0])
        waits = {"parameters": first - start, "source": int(source[-1]) + 1 - first - len(source)}
        self.times.worked[Unit.VECTOR] += beats
        self._waited(Unit.VECTOR, waits | {"pipeline and scales": times.done + 1 - start - beats - sum(waits.values())})
        self._record("codes", times.codes)
        self._ended(index, start, times.done)

    def _into_linear(self, f: dict[str, int], start: int, params: Cycles, source: Cycles, rope: Cycles, times):  # type: ignore[no-untyped-def]
        """LINEAR's activation buffer takes a clock more where a token's last codes fill one row and begin another."""
        spans, last = _spans(self.spec.tlmm, len(times.codes), self.tokens)
        if not len(stalls := np.flatnonzero(np.diff(spans) > 1)):
            return times
        for _ in range(8):
            taken = codes_handshakes(self.spec.tlmm, times.codes, last)
            if np.array_equal(taken, times.codes):
                return times
            trace = np.ones(int(taken[-1]) + 2, bool)
            for i in stalls:
                trace[int(taken[i]) + 1 : int(taken[i]) + int(spans[i + 1] - spans[i])] = False
            times = self.core._vector.instruction(f, self.tokens, start, params=params, source=source, rope=rope, codes_ready=Ready(trace))
        raise ValueError("VECTOR and LINEAR's activation buffer do not settle")

    # ATTEND

    def _attend(self, index: int, instruction: Instruction, offered: int) -> None:
        start = max(self._granted(instruction, offered), self.core._free[Unit.ATTEND])
        self.pops[Unit.ATTEND].append(start)
        self.attend = (index, start, self.codes)

    def _values(self, opened: int) -> Cycles:
        assert self.attend is not None
        index, start, codes = self.attend
        times: AttentionTimes = self.core._attention.instruction(self.tokens, self.position, start, codes, opened)
        assert np.array_equal(times.qkv, codes), f"instruction {index}: ATTEND does not follow VECTOR's codes"
        for name in ("kv_write", "kv_read", "kv_data", "values"):
            self._record(name, getattr(times, name))
        self.core._free[Unit.ATTEND] = times.done + 1
        stored = int(times.kv_write[-1])
        self.times.worked[Unit.ATTEND] += times.done - stored
        self._waited(Unit.ATTEND, {"codes": stored + 1 - start})
        self._ended(index, start, times.done)
        self.attend = None
        return times.values

    # HEAD

    def _head(self, index: int, instruction: Instruction, offered: int) -> None:
        head, loader = self.core._head, self.core._loader
        start = head.start(self._granted(instruction, offered))
        self.pops[Unit.HEAD].append(start)
        _, rows = loader.stream(start + 1)
        self._loaded()
        token, done = head.finish(instruction.fields["vocabulary"], int(rows[-1]))
        self.times.token = token
        self.times.worked[Unit.HEAD] += len(rows)
        self._waited(Unit.HEAD, {"table and pipeline": done + 1 - start - len(rows)})
        self._record("head_rows", rows)
        self._record("token", [token])
        self._ended(index, start, done)
