# SPDX-License-Identifier: Apache-2.0
"""Cycles of a loader in the core: the times of ``lutra.hls_models.ternary.loader``, load after load, for many passes at once.

Arrays of cycles have shape (…, beats): the leading axes are passes, which make the same loads at different times.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutra.hls_models.ternary.isa import LoadMode, LoadTarget
from lutra.hls_models.ternary.loader import QUEUE_LATENCY, Load, LoaderConfig

__all__ = ["LoaderTiming"]

Cycles = NDArray[np.int64]
Accept = Callable[[Cycles], Cycles]
"""Handshake cycles of a consumer, strictly increasing, for beats offered no earlier than given."""


class Moved(NamedTuple):
    """Of requests, the cycles (…, n) of their fires, one before their ``read`` handshakes, and of what came of them (…, m).

    Of a row of weights ``fires`` has its first beat's, ``taken`` the handshake of its last beat: the beats of a row follow each other. Of params and rope
    there is a fire per beat and a handshake per row, of EMBED a fire per beat and a handshake per unit of V codes, of HEAD both per beat.
    """

    fires: Cycles
    taken: Cycles


class _Plan(NamedTuple):
    """What does not depend on time. An item is what credits are asked for: a row of weights, whose beats follow each other, or a beat.

    ``used``: credits that the items up to and with each take; of params and rope, ``beat``: the beat of each row, ``last``: the last row of each beat;
    ``covered``: their queue never makes a row late.
    """

    beats: int
    items: int
    per_job: int
    counts: Cycles
    used: Cycles
    beat: Cycles
    last: Cycles
    covered: bool


class _Credits:
    """Cycles at which the credits of the next rows (or queue entries) came free, in order."""

    def __init__(self, free: Cycles) -> None:
        self._pieces, self.count = [free], free.shape[-1]

    def add(self, cycles: Cycles) -> None:
        self._pieces.append(cycles)
        self.count += cycles.shape[-1]

    def take(self, count: int) -> Cycles:
        if self._pieces[0].shape[-1] < count:
            self._pieces = [np.concatenate(self._pieces, axis=-1)]
        first = self._pieces[0]
        self._pieces[0] = first[..., count:]
        self.count -= count
        return first[..., :count]

    @property
    def last(self) -> Cycles:
        return self._pieces[-1][..., -1]


class LoaderTiming:
    """Memory answers every request after ``latency`` clocks, and all outputs but embed and head are always taken.

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
    passes
        Leading axes of all cycles.
    detail
        Whether ``stream`` tells all beats of a HEAD load, or the last ones only.
    """

    def __init__(self, config: LoaderConfig, latency: int, id_latency: int = 1, *, passes: tuple[int, ...] = (), detail: bool = True) -> None:
        if config.outstanding < latency + 2:
            raise ValueError(f"outstanding must be at least latency + 2 = {latency + 2}, not {config.outstanding}; nearest: {latency + 2}")
        self.config, self.latency, self.id_latency, self.detail = config, latency, id_latency, detail
        rooms = {
            LoadTarget.WEIGHTS: config.ring_rows,
            LoadTarget.PARAMS: config.params_rows,
            LoadTarget.ROPE: config.rope_rows,
            LoadTarget.EMBED: config.embed_beats,
            LoadTarget.HEAD: config.head_beats,
        }
        self._credits = {target: _Credits(np.full((*passes, room), -1)) for target, room in rooms.items()}
        self._rows_pops = np.full((*passes, config.rows_beats), -1)
        self._planned = np.zeros(passes, np.int64)
        self._issued = self._row = self._unit = np.full(passes, -1)
        self._plans: dict[tuple[LoadTarget, LoadMode, int, int, int], _Plan] = {}
        self.remaining = 0
        """Memory beats of the present load that are not requested yet."""
        self.done: list[Cycles] = []
        """Handshake of ``done`` per load that is finished."""

    def start(self, load: Load, not_before: ArrayLike) -> Cycles:
        """Handshake (…) of the instruction, offered from ``not_before`` (…) on, once the load before it is delivered."""
        start = np.maximum(np.asarray(not_before, np.int64), self._planned)
        if len(self.done) >= self.config.instructions:
            start = np.maximum(start, self.done[-self.config.instructions])
        key = load.target, load.mode, load.beats, load.rows, load.repetitions
        if key not in self._plans:
            self._plans[key] = self._planned_load(load)
        self._load, self._plan, self._next = load, self._plans[key], 0
        self.remaining = self._plan.beats
        self._valid = start + (3 if load.mode == LoadMode.POSITION else 1)
        return start

    def _planned_load(self, load: Load) -> _Plan:
        config = self.config
        config.check(load)
        counts = config.counts(load)
        row, unpacked = config.row_beats if load.target == LoadTarget.WEIGHTS else 1, load.target in (LoadTarget.PARAMS, LoadTarget.ROPE)
        items = len(counts) // row
        # POSITION's jobs are there before the one before ends: as one.
        per_job = load.beats // row if load.mode == LoadMode.TOKEN else items
        ends = np.cumsum(counts)
        # A beat waits for the pop of the one ``rows_beats`` before; the rows between occupy the output while it is on its way.
        between = ends[config.rows_beats - 1 : -1] - ends[: -config.rows_beats]
        covered = not unpacked or bool((between > self.latency + QUEUE_LATENCY).all())
        used, beat = ends if unpacked else np.arange(1, items + 1), np.repeat(np.arange(items), counts[:items])
        return _Plan(len(counts), items, per_job, counts, used, beat, ends - 1, covered)

    def free(self, target: LoadTarget, cycles: Cycles) -> None:
        """Handshakes (…, rows) of ``*_freed``, or clocks in which beats left the embed or head queue, in order."""
        self._credits[target].add(cycles)

    def advance(self) -> Moved:
        """Requests as many beats as known credits allow; ``taken`` of EMBED and HEAD is the clock from which the queue offers each beat."""
        load, plan = self._load, self._plan
        row = plan.beats // plan.items
        # The last repetition is planned when the one before it has been requested; a token's waits for its id.
        last_job = plan.items - load.beats // row if load.mode != LoadMode.TOKEN else 0
        requests, delivered = [], []
        while count := self._window():
            first = self._next
            if first % plan.per_job == 0:
                self._job()
            if load.target in (LoadTarget.PARAMS, LoadTarget.ROPE):
                fires, taken = self._unpack(first, first + count)
            else:
                fires = _spaced(self._credits[load.target].take(count) + 1, self._issued, row)
                taken = fires + (row + self.latency + (1 if load.target == LoadTarget.WEIGHTS else QUEUE_LATENCY))
            delivered.append(taken)
            requests.append(fires)
            if first < last_job <= first + count:
                self._valid = fires[..., last_job - first - 1] + row
            self._issued = fires[..., -1] + row - 1
            self._next += count
            self.remaining -= count * row
        if not self.remaining:
            self._planned = self._valid
            if load.target not in (LoadTarget.EMBED, LoadTarget.HEAD):
                self.finish(delivered[-1][..., -1])
        return Moved(self._joined(requests), self._joined(delivered))

    def _window(self) -> int:
        """Items that can be requested now: credits, the job, the queue of params and rope limit them."""
        plan, first = self._plan, self._next
        known = self._credits[self._load.target].count + (plan.used[first - 1] if first else 0)
        end = min(int(np.searchsorted(plan.used, known, side="right")), first - first % plan.per_job + plan.per_job, plan.items)
        return end - first if plan.covered else min(end - first, self.config.rows_beats)

    def _unpack(self, first: int, end: int) -> tuple[Cycles, Cycles]:
        """Fires of beats ``first`` to ``end`` of params or rope, and handshakes of their rows."""
        plan, depth = self._plan, self.config.rows_beats
        used, total = int(plan.used[first - 1]) if first else 0, int(plan.used[end - 1])
        lower = self._credits[self._load.target].take(total - used)[..., plan.used[first:end] - used - 1] + 1
        limited = lower.copy()
        np.maximum(lower[..., :depth], self._rows_pops[..., : end - first] + 1, out=limited[..., :depth])
        fires = _spaced(limited, self._issued)
        loads = _spaced((fires + (1 + self.latency + QUEUE_LATENCY))[..., plan.beat[used:total] - first], self._row)
        pops = np.concatenate([self._rows_pops, loads[..., plan.last[first:end] - used]], axis=-1)
        if end - first > depth:  # the beats that wait for pops of this window: no row is later for that
            fires = _spaced(np.maximum(lower, pops[..., : end - first] + 1), self._issued)
        self._row, self._rows_pops = loads[..., -1], pops[..., -depth:]
        return fires, loads + 1

    def deliver(self, accept: Accept) -> Moved:
        """The rest of an EMBED or HEAD load.

        ``accept`` is asked for as many beats at a time as the queue has free, with the clocks from which they are offered.
        """
        requests, taken = [], []
        while self.remaining:
            first = self._next
            asked, offered = self.advance()
            requests.append(asked)
            if self._load.target == LoadTarget.EMBED:
                counts = self._plan.counts[first : self._next]
                offered = np.repeat(offered, counts, axis=-1)
                took = accept(offered + 1)
                loads = np.maximum(offered, np.concatenate([self._unit[..., None], took[..., :-1]], axis=-1))
                self._unit = took[..., -1]
                self.free(LoadTarget.EMBED, loads[..., np.cumsum(counts) - 1])
            else:
                took = accept(offered)
                self.free(LoadTarget.HEAD, took)
            taken.append(took)
        self.finish(taken[-1][..., -1])
        return Moved(self._joined(requests), self._joined(taken))

    def stream(self, opened: ArrayLike) -> Moved:
        """``deliver`` to a sink that takes a beat in every clock from ``opened`` (…) on: at once for a HEAD load that finds its queue's places free.

        The sink comes to the first beat of every ``head_beats`` when that has made its way, ``lag`` from its fire, or, in a longer queue, when it has taken
        those before; the others follow it clock by clock.
        """
        depth, lag = self.config.head_beats, 1 + self.latency + QUEUE_LATENCY
        credits, first = self._credits[LoadTarget.HEAD], np.maximum(self._valid, self._issued) + 1
        opened = np.asarray(opened, np.int64)
        if self._load.mode != LoadMode.DIRECT or (credits.last >= first).any():
            end = [opened - 1]

            def accept(offered: Cycles) -> Cycles:
                taken = _spaced(offered, end[0])
                end[0] = taken[..., -1]
                return taken

            return self.deliver(accept)
        index = np.arange(0 if self.detail else max(0, self.remaining - depth), self.remaining)
        clocks = index // depth * max(depth, lag + 1) + index % depth
        taken = np.maximum(opened, first + lag)[..., None] + clocks
        freed = np.where(index < depth, first[..., None] + index, taken - max(depth, lag + 1) + 1)
        fires = np.maximum(first[..., None] + index, freed)
        credits.add(taken[..., -depth:])
        credits.take(min(self.remaining, depth))
        self._planned, self._issued, self.remaining = first, fires[..., -1], 0
        self.finish(taken[..., -1])
        return Moved(fires, taken)

    def finish(self, last: Cycles) -> None:
        """The present load's last output beat was taken at ``last`` (…)."""
        self.done.append(np.maximum(last + 2, self.done[-1] + 1) if self.done else last + 2)

    def _joined(self, pieces: list[Cycles]) -> Cycles:
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate(pieces, axis=-1) if pieces else np.zeros((*self._issued.shape, 0), np.int64)

    def _job(self) -> None:
        if self._load.mode == LoadMode.TOKEN:
            self._valid = self._valid + self.id_latency + 3
        self._issued = np.maximum(self._valid, self._issued)
        self._valid = self._issued + 1


def _spaced(lower: Cycles, before: Cycles, step: int = 1) -> Cycles:
    """Earliest cycles, ``step`` or more apart and above ``before`` (…), each at least its lower bound (…, n)."""
    index = np.arange(0, step * lower.shape[-1], step)
    return np.maximum(np.maximum.accumulate(lower - index, axis=-1), before[..., None] + 1) + index
