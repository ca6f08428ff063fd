# SPDX-License-Identifier: Apache-2.0
"""Clock cycles of ATTEND: every handshake of every port, exactly (docs/architecture.md §2.8, §2.10, 5.3); what happens between them: ``attention_schedule``.

Rows are stored one after the other, then the schedule runs. On chip a tile is requested when a half of its buffer is free and the last request before has
left; behind a shared memory its rows come at cycles that LOADER's model tells.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutra.hls_models.streams import Ready
from lutra.hls_models.ternary.attention import AttentionConfig, key_tiles
from lutra.hls_models.ternary.attention_schedule import WALK, Known, Schedule, TileMemory

__all__ = ["AttentionPhase", "AttentionTimes", "AttentionTiming", "RowStore", "RowWriter", "SharedPhase", "StoredRows", "attention_cycles"]

Cycles = NDArray[np.int64]

SETUP = 3  # states BASE and BEGIN between an instruction's handshake and the first code beat
START = 1  # state START follows the handshake of the pass's last row, or ``stored``
QUEUE = 1  # the queue of values


class RowWriter(Protocol):
    """What takes the rows of a pass."""

    def row(self, offered: int) -> int:
        """Handshake of the next row, which is offered from cycle ``offered`` on."""

    def idle(self) -> int:
        """First cycle after the last row's handshake in which all rows are in the (shared) memory."""


class _Cache(ABC):
    """The key/value memory on chip as the loader meets it: the first request of a tile follows its free half, or the last request before, by two clocks."""

    def begin(self, rows: Iterator[int], start: int) -> None:
        """Tiles of an instruction whose START is in ``start``."""
        self._rows, self._take = rows, start + WALK

    def tile(self, value: bool, freed: int) -> int:
        last, answered = self._load(max(self._take, freed + 1) + 1, next(self._rows))
        self._take = last + 1
        return answered

    @abstractmethod
    def _load(self, first: int, rows: int) -> tuple[int, int]:
        """Rows requested from cycle ``first`` on: handshake of the last request, and of the last answer."""


class FixedMemory(_Cache):
    """Takes a request in every clock and answers ``latency`` clocks later; keeps the runs of rows."""

    def __init__(self, latency: int) -> None:
        self._latency = latency
        self._runs: list[tuple[int, int]] = []

    def _load(self, first: int, rows: int) -> tuple[int, int]:
        self._runs.append((first, rows))
        last = first + rows - 1
        return last, last + self._latency

    @property
    def requests(self) -> Cycles:
        return np.concatenate([np.arange(first, first + rows) for first, rows in self._runs])


class TracedMemory(_Cache):
    """Requests meet a ready trace, answers come from a source with ``not_before`` (indexed over all instructions)."""

    def __init__(self, ready: Ready, not_before: Sequence[int]) -> None:
        self._ready, self._not_before = ready, not_before
        self.requests: list[int] = []
        self.answers: list[int] = []

    def _load(self, first: int, rows: int) -> tuple[int, int]:
        for _ in range(rows):
            request = int(self._ready.next_ready(first))
            answer = max(self._not_before[len(self.answers)], request + 1, self.answers[-1] + 1 if self.answers else 0)
            self.requests.append(request)
            self.answers.append(answer)
            first = request + 1
        return request, answer


class TracedRows:
    """Rows of a shared memory, no earlier than ``not_before`` (indexed over all instructions), the clock after the release of their half, and START."""

    def __init__(self, not_before: Sequence[int]) -> None:
        self._not_before = not_before
        self.cycles: list[int] = []

    def begin(self, rows: Iterator[int], start: int) -> None:
        self._rows, self._next = rows, start

    def tile(self, value: bool, freed: int) -> int:
        self._next = max(self._next, freed + 1)
        for _ in range(next(self._rows)):
            self.cycles.append(max(self._not_before[len(self.cycles)], self._next))
            self._next = self.cycles[-1] + 1
        return self.cycles[-1]


class TracedWriter:
    """Rows meet a ready trace; a response for each comes from a source with ``responses_from``, a clock later at the earliest."""

    def __init__(self, ready: Ready, responses_from: Sequence[int] = ()) -> None:
        self._ready, self._responses_from = ready, responses_from
        self.responses: list[int] = []

    def row(self, offered: int) -> int:
        taken = int(self._ready.next_ready(offered))
        if self._responses_from:
            self.responses.append(max(self._responses_from[len(self.responses)], taken + 1, self.responses[-1] + 1 if self.responses else 0))
        return taken

    def idle(self) -> int:
        return self.responses[-1] + 1


class ReadySink:
    """Moves a beat in every clock from ``start`` on."""

    def __init__(self, start: int = 0) -> None:
        self.free = start

    def take(self, first: int, beats: int) -> list[int]:
        begin = max(first + QUEUE, self.free)
        self.free = begin + beats
        return list(range(begin, self.free))


class TracedSink:
    def __init__(self, ready: Ready) -> None:
        self.ready, self.free = ready, 0

    def take(self, first: int, beats: int) -> list[int]:
        out = []
        for i in range(beats):
            out.append(int(self.ready.next_ready(max(first + i + QUEUE, self.free))))
            self.free = out[-1] + 1
        return out


@dataclass(frozen=True)
class AttentionTimes:
    """Handshakes of one instruction; ``done`` is the clock from which it is offered, ``ready`` the one after which the next instruction could be taken
    if ``done`` meets a ready sink."""

    instr: int
    qkv: Cycles
    kv_write: Cycles
    kv_read: Cycles
    kv_data: Cycles
    values: Cycles
    items: Cycles

    @property
    def done(self) -> int:
        return int(self.values[-1]) + 1


class AttentionPhase(NamedTuple):
    """The attending phase of an instruction, counted from its START: handshakes of values and of kv_read, clocks in which the softmax takes items."""

    values: Cycles
    kv_read: Cycles
    items: Cycles


class StoredRows(NamedTuple):
    """The phase before with a shared memory: handshakes of code beats and of the rows that they make, the pulse of ``stored``, and START."""

    qkv: Cycles
    kv_write: Cycles
    stored: int
    start: int


class SharedPhase(NamedTuple):
    """The attending phase with a shared memory, in absolute cycles: handshakes of values, k_freed and v_freed, clocks in which the softmax takes items."""

    values: Cycles
    k_freed: Cycles
    v_freed: Cycles
    items: Cycles


class AttentionTiming:
    """Incremental form for a core: the sink of values never stalls once it is ready.

    On chip, memory answers every request after a fixed latency and takes every row, and the attending phase does not change when it is shifted in time: it is
    computed once per (tokens, position, serial) and reused. With a shared memory it depends on when rows come: ``store_shared`` and ``phase_shared``.
    """

    def __init__(self, config: AttentionConfig, *, latency: int = 2) -> None:
        self.config, self.latency = config, latency
        self._phases: dict[tuple[int, int, bool], AttentionPhase] = {}
        self._tiles: Known = {}

    def instruction(self, tokens: int, position: int, instr: int, qkv: ArrayLike, values_ready: int = 0, *, serial: bool = False) -> AttentionTimes:
        """One instruction on chip.

        Parameters
        ----------
        instr
            Cycle of its handshake: after the one of ``done`` before.
        qkv
            (beats,) cycles from which the code beats are offered, each also after the one before.
        values_ready
            Cycle from which the sink of values is always ready.
        """
        qkv_times, kv_write, start = self.store(np.asarray(qkv, np.int64), np.asarray(instr))
        values, kv_read, items = (times + start for times in self.phase(tokens, position, values_ready - int(start), serial=serial))
        return AttentionTimes(instr, qkv_times, kv_write, kv_read, kv_read + self.latency, values, items)

    def phase(self, tokens: int, position: int, values_ready: int, *, serial: bool = False) -> AttentionPhase:
        """The attending phase; ``values_ready`` counts from START, too."""
        serial = serial and tokens > 1
        known = self._phases.get((tokens, position, serial))
        if known is None:
            known = self._phases[tokens, position, serial] = self._attend(tokens, position, 0, serial)
        return known if known.values[0] >= values_ready else self._attend(tokens, position, values_ready, serial)

    def _attend(self, tokens: int, position: int, values_ready: int, serial: bool) -> AttentionPhase:
        memory = FixedMemory(self.latency)
        memory.begin(_tile_rows(self.config, tokens, position, serial), 0)
        schedule = Schedule(self.config, tokens, position, 0, memory, ReadySink(values_ready), serial=serial, known=self._tiles)
        return AttentionPhase(np.array(schedule.values, np.int64), memory.requests, np.array(schedule.items, np.int64))

    def store(self, not_before: Cycles, instr: Cycles) -> tuple[Cycles, Cycles, Cycles]:
        """The phase before: handshakes of the code beats (…, beats) and of the rows that they make, cycle of START (…); leading axes are passes."""
        start = instr + SETUP
        if self.config.head_beats == 1:  # a row a beat: each K or V row holds its successor up
            passes = zip(not_before.reshape(-1, not_before.shape[-1]).tolist(), np.ravel(start).tolist(), strict=True)
            both = [_store(self.config, beats, first, TracedWriter(Ready())) for beats, first in passes]
            taken, written = (np.reshape([one[i] for one in both], (*not_before.shape[:-1], -1)) for i in range(2))
        else:
            index = np.arange(not_before.shape[-1])
            taken = np.maximum.accumulate(np.maximum(not_before, start[..., None]) - index, axis=-1) + index
            ends = taken[..., self.config.head_beats - 1 :: self.config.head_beats]
            rows = ends.reshape(*ends.shape[:-1], -1, self.config.heads + 2 * self.config.kv_heads)[..., self.config.heads :]
            written = rows.reshape(*ends.shape[:-1], -1) + 1
        return taken, written, written[..., -1] + START

    def store_shared(self, not_before: ArrayLike, instr: int, writer: RowWriter) -> StoredRows:
        """The same for one pass whose rows ``writer`` takes: code beats (beats,) offered from ``not_before`` on."""
        taken, written = _store(self.config, np.asarray(not_before, np.int64).tolist(), instr + SETUP, writer)
        stored = writer.idle()
        return StoredRows(taken, written, stored, stored + START)

    def phase_shared(self, tokens: int, position: int, serial: bool, start: int, memory: TileMemory, values_ready: int) -> SharedPhase:
        """The attending phase of an instruction with START in ``start``; tiles come from ``memory`` in the order of ``key_tiles`` (``KvLayout.order``)."""
        schedule = Schedule(self.config, tokens, position, start, memory, ReadySink(values_ready), serial=serial, known=self._tiles)
        return SharedPhase(*(np.array(cycles, np.int64) for cycles in (schedule.values, schedule.k_freed, schedule.v_freed, schedule.items)))


def _tile_rows(config: AttentionConfig, tokens: int, position: int, serial: bool) -> Iterator[int]:
    return (one.rows for one in key_tiles(config, tokens, position, serial=serial))


class RowStore:
    """The phase before, beat by beat: code beats are taken from ``start`` on, a row's last one once the row before has left (it did in ``written``)."""

    def __init__(self, config: AttentionConfig, start: int, writer: RowWriter, written: int = -1) -> None:
        self._beats, self._heads, self._groups = config.head_beats, config.heads, config.heads + 2 * config.kv_heads
        self._writer, self._written, self._free = writer, written, start
        self._beat = self._group = 0
        self.rows: list[int] = []
        """Handshakes of the rows that keys and values make."""

    def take(self, offered: int) -> int:
        """Handshake of the next code beat."""
        take = max(offered, self._free)
        self._beat += 1
        if self._beat == self._beats:
            take = max(take, self._written + 1)
            if self._group >= self._heads:
                self._written = self._writer.row(take + 1)
                self.rows.append(self._written)
            self._beat, self._group = 0, (self._group + 1) % self._groups
        self._free = take + 1
        return take


def _store(config: AttentionConfig, not_before: Sequence[int], start: int, writer: RowWriter, written: int = -1) -> tuple[Cycles, Cycles]:
    """Handshakes of the code beats of a pass and of the rows they make, the last row before having left at ``written``."""
    store = RowStore(config, start, writer, written)
    taken = [store.take(offered) for offered in not_before]
    return np.array(taken, np.int64), np.array(store.rows, np.int64)


def attention_cycles(
    config: AttentionConfig,
    instructions: Sequence[tuple[int, int, bool]],
    not_before: Mapping[str, ArrayLike],
    ready: Mapping[str, ArrayLike | None],
) -> dict[str, Cycles]:
    """Handshakes of all ports for a sequence of (tokens, position, serial), from reset.

    Parameters
    ----------
    not_before
        Per input (instr, qkv, kv_data) the cycles before which its beats are not offered, over the whole sequence. With a shared memory, ``kv_data``, which
        ATTEND takes at once, is offered in the cycles that are returned: where that is later than given, its tile's half was not free. There ``responses``
        has a beat per row: when its writer has it in memory.
    ready
        Per output (kv_write, kv_read, values, done) a trace, True past its end; absent or None: always.
    """
    traces = {name: Ready(ready.get(name)) for name in ("kv_write", "kv_read", "values", "done")}
    instr_from, qkv_from, data_from = (np.asarray(not_before[name], np.int64).tolist() for name in ("instr", "qkv", "kv_data"))
    memory = TracedRows(data_from) if config.shared else TracedMemory(traces["kv_read"], data_from)
    writer = TracedWriter(traces["kv_write"], np.asarray(not_before.get("responses", ()), np.int64).tolist())
    sink = TracedSink(traces["values"])
    names = ("instr", "qkv", "kv_write", "values", "done", *(("k_freed", "v_freed", "stored") if config.shared else ()))
    times: dict[str, list[int]] = {name: [] for name in names}
    pass_beats = (config.heads + 2 * config.kv_heads) * config.head_beats
    offset = 0
    for i, (tokens, position, serial) in enumerate(instructions):
        instr = max(instr_from[i], times["done"][-1] + 1 if times["done"] else 0)
        end = offset + tokens * pass_beats
        # A source offers a beat no earlier than a clock after the one before was taken: that lies before this instruction's first clock.
        qkv, rows = _store(config, qkv_from[offset:end], instr + SETUP, writer)
        offset = end
        stored = writer.idle() if config.shared else int(rows[-1])
        memory.begin(_tile_rows(config, tokens, position, serial), stored + START)
        schedule = Schedule(config, tokens, position, stored + START, memory, sink, serial=serial)
        times["instr"].append(instr)
        times["qkv"] += qkv.tolist()
        times["kv_write"] += rows.tolist()
        times["values"] += schedule.values
        times["done"].append(int(traces["done"].next_ready(schedule.values[-1] + 1)))
        if config.shared:
            times["stored"].append(stored)
            times["k_freed"] += schedule.k_freed
            times["v_freed"] += schedule.v_freed
    if isinstance(memory, TracedRows):
        times |= {"kv_data": memory.cycles, "responses": writer.responses}
    else:
        times |= {"kv_read": memory.requests, "kv_data": memory.answers}
    return {name: np.array(cycles, np.int64) for name, cycles in times.items()}
