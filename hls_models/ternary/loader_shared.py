# SPDX-License-Identifier: Apache-2.0
"""Cycles of a loader in front of a shared memory: the times of ``lutra.hls_models.ternary.loader``, load after load, for one pass.

Bursts are taken one by one, beats by whole bursts: where nothing but reads uses the memory, a burst's data follow each other clock by clock and a step is
a few comparisons; where a refresh, a rate or a write comes between, the memory says when each beat moves.
"""

from collections import defaultdict, deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutra.hls_models.ternary.isa import LoadMode, LoadTarget
from lutra.hls_models.ternary.loader import JOBS_AHEAD, LISTED, QUEUE_LATENCY, SEGMENT_STEP, TILES_START, Load, LoaderConfig
from lutra.hls_models.ternary.loader_timing import Accept, Credits, Moved, spaced
from lutra.hls_models.ternary.memory import DELIVER, REQUEST, MemoryTiming
from lutra.hls_models.ternary.planes import Lists
from lutra.hls_models.ternary.repetition import Moments

__all__ = ["SharedLoaderTiming"]

Cycles = NDArray[np.int64]


class _Queue:
    """Places of a queue: the clocks in which beats left it, in order."""

    def __init__(self, depth: int) -> None:
        self._depth, self._asked, self._popped = depth, 0, 0
        self._pops: deque[tuple[int, int, Cycles | None]] = deque()  # last beat + 1; clocks from the beats' numbers on, or clocks

    def ask(self, beats: int) -> int | None:
        """The clock in which the last place came free that ``beats`` more beats take; -1: all are free from the start, None: not known yet."""
        needed = self._asked + beats - self._depth
        if needed > self._popped:
            return None
        self._asked += beats
        if needed <= 0:
            return -1
        pops = self._pops
        while pops[0][0] < needed:
            pops.popleft()
        end, base, cycles = pops[0]
        return base + needed - 1 if cycles is None else int(cycles[needed - 1 - end])

    def pop(self, cycles: Cycles) -> None:
        """Beats left in ``cycles``."""
        if len(cycles):
            self._popped += len(cycles)
            self._pops.append((self._popped, 0, cycles))

    def visit(self, moments: Moments) -> None:
        moments.note(self._popped - self._asked)
        for place, (end, base, cycles) in enumerate(self._pops):
            if end > self._asked - self._depth:  # others are not asked for again
                moments.note(end - self._asked)
            if cycles is None:
                self._pops[place] = end, moments.at(base + self._asked) - self._asked, None
            else:
                self._pops[place] = end, base, moments.at(cycles)

    def pop_row(self, first: int, beats: int) -> None:
        """``beats`` beats left, one per clock from ``first`` on."""
        self._pops.append((self._popped + beats, first - self._popped, None))
        self._popped += beats


class _Plan(NamedTuple):
    """What does not depend on time: of each burst, its beats; of each job, its first burst and the clocks until the next one is there."""

    sizes: list[int]
    firsts: list[int]
    steps: list[int]


class SharedLoaderTiming:
    """As ``LoaderTiming``, of a single pass (leading axis 1), for bursts from a ``MemoryTiming`` and loads of keys and values.

    A KV load is worked out by ``tile`` after ``tile``. Weights may end in the middle of a row: ``advance`` tells whole rows.

    Parameters
    ----------
    config
        The loader; its ``outstanding`` must be at most the memory's.
    memory
        Written beats that take slots up to the data of a request must be known to it before the request is made.
    id_latency
        Clocks from ``id_request`` to ``id``.
    detail
        Whether ``streams`` is kept, and ``stream`` tells all beats of a HEAD load, not the last ones only.
    """

    def __init__(self, config: LoaderConfig, memory: MemoryTiming, id_latency: int = 1, *, detail: bool = True) -> None:
        if config.outstanding > memory.config.outstanding:
            raise ValueError(f"outstanding must be at most the memory's {memory.config.outstanding}, not {config.outstanding}")
        self.config, self.memory, self.id_latency, self.detail = config, memory, id_latency, detail
        rooms = {LoadTarget.WEIGHTS: config.ring_rows, LoadTarget.PARAMS: config.params_rows, LoadTarget.ROPE: config.rope_rows}
        self._credits = {target: Credits(np.full(room, -1)) for target, room in rooms.items()}
        self._queues = {LoadTarget.EMBED: _Queue(config.embed_beats), LoadTarget.HEAD: _Queue(config.head_beats)}
        self._queues[LoadTarget.PARAMS] = self._queues[LoadTarget.ROPE] = _Queue(config.rows_beats)
        self._queues[LoadTarget.PLANES] = self._queues[LoadTarget.HEAD]
        self._flight = deque([-1] * config.outstanding)  # last data of the bursts before
        self._waiting = deque([-1] * JOBS_AHEAD)  # when the jobs before were taken
        self._clocks = config.fire_clocks
        self._lead = 1 + REQUEST + memory.config.latency + DELIVER  # from a fire to the first data at the earliest
        self._data = self._issued = self._row = self._unit = self._head = -1  # last data; fire; load of the row register; handshakes of embed, of head
        self._planned = self._begun = 0  # the plan is idle; beats of the row of weights that is not complete
        self._tiles: dict[tuple[int, int, int], tuple[Cycles, Cycles]] = {}
        self.remaining = 0
        """Memory beats of the present load that are not requested yet."""
        self.done: list[Cycles] = []
        """Handshake (1,) of ``done`` per load that is finished."""
        self.streams: dict[str, list[Cycles]] = defaultdict(list)
        """Handshakes (beats,) of ``read``, ``data``, ``weights``, ``kv``, ``rescore`` in pieces (only in detail)."""
        self._lows: list[int] = []  # of a table in two planes: the list that each job stands in
        self._asked = -1  # last row of a list

    def start(self, load: Load, not_before: ArrayLike, lists: Lists | None = None) -> Cycles:
        """Handshake (1,) of the instruction, offered from ``not_before`` (1,) on, once the load before it is delivered; ``lists``: of a table in two planes."""
        if load.mode == LoadMode.TOKEN and load.target != LoadTarget.EMBED:
            raise ValueError(f"target must be EMBED in mode TOKEN, whose bursts must not depend on the token, not {load.target.name}")
        self.config.check(load)
        start = max(int(np.asarray(not_before).reshape(())), self._planned)
        if len(self.done) >= self.config.instructions:
            start = max(start, int(self.done[-self.config.instructions][0]))
        self._load, self._next, self._job = load, 0, 0
        if load.target == LoadTarget.PLANES:
            assert lists is not None  # a caller's slip
            address, beats, lows = self.config.plane_jobs(load, lists)
            self._lows = lows.tolist()
        else:
            address, beats = self._jobs(load)
        firsts = [0, *np.cumsum(self.config.job_bursts(load.target, address, beats)).tolist()]
        steps = np.zeros(len(beats), np.int64) if load.target == LoadTarget.PLANES else self.config.steps(load)
        self._plan = _Plan(self.config.bursts(load.target, address, beats).tolist(), firsts, steps.tolist())
        self.remaining = int(beats.sum())
        self._valid = (
            start + SEGMENT_STEP if load.target == LoadTarget.PLANES else start + {LoadMode.POSITION: 3, LoadMode.TILES: TILES_START}.get(load.mode, 1)
        )
        if load.target in (LoadTarget.PARAMS, LoadTarget.ROPE, LoadTarget.EMBED):
            self._counts = self.config.counts(load)
        return np.array([start])

    def _jobs(self, load: Load) -> tuple[Cycles, Cycles]:
        if load.mode != LoadMode.TILES:
            return self.config.jobs(load, np.zeros(load.tokens, np.int64))
        key = load.tokens, load.position, load.serial
        if key not in self._tiles:  # the same in all layers but for the first block's address
            self._tiles[key] = self.config.jobs(load._replace(address=0))
        first, beats = self._tiles[key]
        return first + load.address, beats

    def free(self, target: LoadTarget, cycles: Cycles) -> None:
        """Handshakes (1, rows) of ``*_freed``, in order."""
        self._credits[target].add(cycles.reshape(-1))

    def advance(self) -> Moved:
        """Requests as many bursts of weights, params or rope as known credits allow: their fires (1, bursts), and whole rows (1, rows) as they are taken."""
        fires: list[Cycles] = []
        taken: list[Cycles] = []
        step = self._weights if self._load.target == LoadTarget.WEIGHTS else self._rows
        while self.remaining:
            first = self._next
            if first == self._plan.firsts[self._job]:
                self._begin_job()
            moved = step(first, self._plan.firsts[self._job])
            if moved is None:
                break
            fires.append(moved.fires)
            taken.append(moved.taken)
        result = Moved(_joined(fires), _joined(taken))
        if not self.remaining:
            self.finish(result.taken[..., -1])
        return result

    def _begin_job(self) -> None:
        """The next job is taken; ``_job`` counts those that were."""
        if self._load.mode == LoadMode.TOKEN:
            self._valid += self.id_latency + 3
        if self.config.pipelined:
            left = max(self._valid, self._waiting.popleft() + 1)
            self._issued = max(left + 1, self._issued)
            self._waiting.append(self._issued)
        else:
            left = self._issued = max(self._valid, self._issued)
        self._planned = left + 1
        self._valid = left + self._plan.steps[self._job]
        self._job += 1

    def _moved(self, bursts: int, beats: int) -> None:
        self._next += bursts
        self.remaining -= beats

    def _weights(self, first: int, end: int) -> Moved | None:
        credits, row, begun = self._credits[LoadTarget.WEIGHTS], self.config.row_beats, self._begun
        # A row takes its credit with its first beat.
        touched = -(-(begun + np.cumsum(self._plan.sizes[first:end])) // row) - (begun > 0)
        count = int(np.searchsorted(touched, credits.count, side="right"))
        if not count:
            return None
        touched = touched[:count]
        rooms = np.append(credits.take(int(touched[-1])), -1)[touched - 1]
        fires, data = self._request(self._plan.sizes[first : first + count], rooms.tolist())
        if self.detail:
            self.streams["weights"].append(data + 1)
        self._moved(count, len(data))
        taken = data[row - 1 - begun :: row] + 1
        self._begun = (begun + len(data)) % row
        return Moved(fires[None], taken[None])

    def _rows(self, first: int, end: int) -> Moved | None:
        """The next burst of params or rope, and its rows."""
        size, at = self._plan.sizes[first], len(self._counts) - self.remaining
        counts, credits, queue = self._counts[at : at + size], self._credits[self._load.target], self._queues[self._load.target]
        rows = int(counts.sum())
        if credits.count < rows:
            return None
        place = queue.ask(size)
        assert place is not None  # a beat leaves its queue without anyone's doing
        fires, data = self._request([size], [max(int(credits.take(rows)[-1]), place)])
        loads = spaced(np.repeat(data + QUEUE_LATENCY, counts), np.array(self._row))
        self._row = int(loads[-1])
        queue.pop(loads[np.cumsum(counts) - 1])
        self._moved(1, size)
        return Moved(fires[None], loads[None] + 1)

    def tile(self, freed: int) -> Cycles:
        """Handshakes (beats,) of ``kv`` for the next tile of a KV load, which takes the half of a buffer that ``k_freed`` or ``v_freed`` gave back in cycle
        ``freed`` (-1: the first two of each)."""
        first = self._next
        self._begin_job()
        sizes = self._plan.sizes[first : self._plan.firsts[self._job]]
        _, data = self._request(sizes, [freed] + [-1] * (len(sizes) - 1))
        self._moved(len(sizes), len(data))
        if self.detail:
            self.streams["kv"].append(data + 1)
        if not self.remaining:
            self.finish(data[-1:] + 1)
        return data + 1

    def deliver(self, accept: Accept) -> Moved:
        """The rest of an EMBED or HEAD load; ``accept`` as for ``LoaderTiming``, with cycles (1, beats)."""
        fires: list[Cycles] = []
        taken: list[Cycles] = []
        while self.remaining:
            self._begin_job()
            self._deliver(accept, fires, taken)
        self.finish(taken[-1][..., -1])
        return Moved(_joined(fires), _joined(taken))

    def planes(self, accept: Accept, listed: Callable[[int, int], Cycles]) -> Moved:
        """A table in two planes, whole; ``accept`` as for ``deliver``, ``listed`` gives the clocks from which the rows of a segment's list are offered, of the
        segment and the handshake of its high plane's last beat."""
        fires: list[Cycles] = []
        taken: list[Cycles] = []
        offered: deque[int] = deque()
        asked, segment = [], 0
        for number, low in enumerate(self._lows):
            left = self._planned - 1
            if low >= 0:
                self._asked = max(offered.popleft(), left + 1, self._asked + 1)
                asked.append(self._asked)
                self._valid = self._asked + LISTED
            elif number:
                self._valid = left + SEGMENT_STEP
            self._begin_job()
            self._deliver(accept, fires, taken)
            if low < 0:
                offered.extend(listed(segment, int(taken[-1][0, -1])).tolist())
                segment += 1
        if self.detail:
            self.streams["rescore"].append(np.array(asked))
        self.finish(taken[-1][..., -1])
        return Moved(_joined(fires), _joined(taken))

    def _deliver(self, accept: Accept, fires: list[Cycles], taken: list[Cycles]) -> None:
        """The present job of a load that leaves through a queue which its consumer stalls."""
        embed, queue, end = self._load.target == LoadTarget.EMBED, self._queues[self._load.target], self._plan.firsts[self._job]
        while self._next < end:
            sizes, rooms = [], []
            for size in self._plan.sizes[self._next : min(end, self._next + self.config.outstanding)]:
                if (place := queue.ask(size)) is None:
                    break
                sizes.append(size)
                rooms.append(place)
            asked, data = self._request(sizes, rooms)
            self._moved(len(sizes), len(data))
            fires.append(asked[None])
            offered = data + QUEUE_LATENCY
            if embed:
                through = len(self._counts) - self.remaining
                counts = self._counts[through - len(offered) : through]
                offered = np.repeat(offered, counts)
                took = accept(offered[None] + 1)
                loads = np.maximum(offered, np.append(self._unit, took[0, :-1]))
                self._unit = int(took[0, -1])
                queue.pop(loads[np.cumsum(counts) - 1])
            else:
                took = accept(offered[None])
                self._head = int(took[0, -1])
                queue.pop(took[0])
            taken.append(took)

    def stream(self, opened: ArrayLike) -> Moved:
        """``deliver`` to a sink that takes a beat in every clock from ``opened`` (1,) on."""
        head = self._load.target == LoadTarget.HEAD
        end = max(int(np.asarray(opened).reshape(())) - 1, self._head if head else self._unit)
        if head and self._load.mode == LoadMode.DIRECT and self.memory.quiet(max(self._valid, self._issued) + self._clocks + 1):
            return self._stream(end)

        def accept(offered: Cycles) -> Cycles:
            nonlocal end
            taken = spaced(offered, np.array([end]))
            end = int(taken[0, -1])
            return taken

        return self.deliver(accept)

    def _stream(self, end: int) -> Moved:
        """A HEAD load whose data follow each other within a burst."""
        self._begin_job()
        queue, flight, lead = self._queues[LoadTarget.HEAD], self._flight, self._lead
        issued, data, clocks = self._issued, self._data, self._clocks
        fires, firsts, taken = [], [], []
        for size in self._plan.sizes:
            place = queue.ask(size)
            assert place is not None  # the beats before are on their way out
            issued = max(max(issued, place) + clocks, flight.popleft() + 1)
            first = max(issued + lead, data + 1)
            data = first + size - 1
            flight.append(data)
            begun = max(first + QUEUE_LATENCY, end + 1)
            queue.pop_row(begun, size)
            end = begun + size - 1
            fires.append(issued)
            firsts.append(first)
            taken.append(begun)
        self._issued, self._head = issued, end
        self._serve(data)
        self._moved(len(fires), self.remaining)
        self.finish(np.array([end]))
        if not self.detail:
            return Moved(np.array([fires[-1:]]), np.arange(taken[-1], end + 1)[None])
        self.streams["read"].append(np.array(fires) + 1)
        self.streams["data"].append(_beats(firsts, self._plan.sizes))
        return Moved(np.array([fires]), _beats(taken, self._plan.sizes)[None])

    def visit(self, moments: Moments) -> None:
        """Between two loads."""
        assert not self.remaining  # a caller's slip
        moments.note(self._begun)
        for credits in self._credits.values():
            credits.visit(moments)
        for queue in dict.fromkeys(self._queues.values()):
            queue.visit(moments)
        for times in (self._flight, self._waiting):
            times.extend([moments.at(times.popleft()) for _ in range(len(times))])
        for name in ("_data", "_issued", "_row", "_unit", "_head", "_planned"):
            setattr(self, name, moments.at(getattr(self, name)))
        last = self.done[-self.config.instructions :]
        self.done[-len(last) :] = [moments.at(done) for done in last]

    def finish(self, last: Cycles) -> None:
        """The present load's last output beat was taken at ``last`` (1,)."""
        self.done.append(np.maximum(last + 2, self.done[-1] + 1) if self.done else last + 2)

    def _request(self, sizes: list[int], rooms: list[int]) -> tuple[Cycles, Cycles]:
        """Fires of bursts that have their room from the clocks after ``rooms`` on, and the handshakes of their data."""
        if self.memory.quiet(max(max(self._issued, rooms[0]) + self._clocks, self._flight[0] + 1) + 1):
            fires, data = self._quiet(sizes, rooms)
        else:
            most = self.config.outstanding  # of so many bursts none waits for another's data
            parts = [self._disturbed(sizes[first : first + most], rooms[first : first + most]) for first in range(0, len(sizes), most)]
            fires, data = parts[0] if len(parts) == 1 else tuple(np.concatenate(both) for both in zip(*parts, strict=True))
        if self.detail:
            self.streams["read"].append(fires + 1)
            self.streams["data"].append(data)
        return fires, data

    def _quiet(self, sizes: list[int], rooms: list[int]) -> tuple[Cycles, Cycles]:
        flight, lead, issued, data, clocks = self._flight, self._lead, self._issued, self._data, self._clocks
        fires, firsts = [], []
        for size, room in zip(sizes, rooms, strict=True):
            issued = max(max(issued, room) + clocks, flight.popleft() + 1)
            first = max(issued + lead, data + 1)
            data = first + size - 1
            flight.append(data)
            fires.append(issued)
            firsts.append(first)
        self._issued = issued
        self._serve(data)
        return np.array(fires), _beats(firsts, sizes)

    def _disturbed(self, sizes: list[int], rooms: list[int]) -> tuple[Cycles, Cycles]:
        clocks = self._clocks
        waited = [max(room + clocks, self._flight.popleft() + 1) for room in rooms]
        fires = spaced(np.array(waited), np.array(self._issued + clocks - 1), clocks)
        data = self.memory.read_many(fires + 1, np.array(sizes), every=True)
        self._issued, self._data = int(fires[-1]), int(data[-1])
        self._flight.extend(data[np.cumsum(sizes) - 1].tolist())
        return fires, data

    def _serve(self, data: int) -> None:
        self._data = data
        self.memory.served(data)


def _beats(firsts: list[int], sizes: list[int]) -> Cycles:
    """Clocks of beats that follow each other from ``firsts`` on."""
    end = firsts[-1] + sizes[-1]
    if end - firsts[0] == sum(sizes):
        return np.arange(firsts[0], end)
    counts = np.array(sizes)
    return np.repeat(np.array(firsts) - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum())


def _joined(pieces: list[Cycles]) -> Cycles:
    if len(pieces) == 1:
        return pieces[0]
    return np.concatenate(pieces, axis=-1) if pieces else np.zeros((1, 0), np.int64)
