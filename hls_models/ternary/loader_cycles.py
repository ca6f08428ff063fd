# SPDX-License-Identifier: Apache-2.0
"""Handshake cycles of every port of a loader under any stimulus, a step per beat: what its bench holds the RTL against.

The times are those of ``lutra.hls_models.ternary.loader``; ``loader_timing`` and ``loader_shared`` have the fast forms for the core.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutra.hls_models.streams import Ready
from lutra.hls_models.ternary.isa import LoadMode, LoadTarget
from lutra.hls_models.ternary.loader import JOBS_AHEAD, LISTED, QUEUE_LATENCY, SEGMENT_STEP, TILES_START, Load, LoaderConfig
from lutra.hls_models.ternary.planes import Lists

__all__ = ["LoaderStimulus", "loader_cycles"]

Cycles = NDArray[np.int64]


@dataclass(frozen=True)
class LoaderStimulus:
    """What the surroundings of a loader do, relative to their causes; lists that end repeat their last value (0 where empty).

    Parameters
    ----------
    instr
        Earliest cycle of each instruction.
    id, data
        Clocks beyond 1 from a request's handshake to the earliest cycle of each beat of its response.
    rescore
        Clocks beyond 1 from the last beat of a segment's high plane on ``head`` to the earliest cycle of each row of its list.
    freed
        Per credit (weights, params, rope, k, v), clocks beyond 1 from a row's (a tile's) delivery to the earliest cycle of its ``*_freed`` beat.
    ready
        Per output, a bool per cycle; ready past the end and where absent.
    memory
        Instead of ``data``: handshakes (beats,) of the data of a burst from the cycle of its request and its beats, as ``MemoryTiming.read``.
    """

    instr: Cycles
    id: Cycles = field(default_factory=lambda: np.zeros(0, np.int64))
    data: Cycles = field(default_factory=lambda: np.zeros(0, np.int64))
    rescore: Cycles = field(default_factory=lambda: np.zeros(0, np.int64))
    freed: Mapping[str, Cycles] = field(default_factory=dict)
    ready: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    memory: Callable[[int, int], Cycles] | None = None


def loader_cycles(
    config: LoaderConfig, loads: Sequence[Load], stimulus: LoaderStimulus, ids: Sequence[Cycles | Lists | None] | None = None
) -> dict[str, Cycles]:
    """Handshake cycles (beats,) of every port by name; ``ids``: per load the tokens of mode TOKEN, where bursts depend on them, the lists of PLANES."""
    return _Simulation(config, stimulus).run(loads, ids or [None] * len(loads))


class _Simulation:
    """Events of a loader in program order; each depends on earlier ones only."""

    OUTPUTS = ("read", "id_request", "params", "rope", "embed", "head", "done")
    CREDITS = ("weights", "params", "rope", "k", "v")
    QUEUES: Mapping[LoadTarget, str] = {LoadTarget.EMBED: "embed", LoadTarget.HEAD: "head", LoadTarget.PARAMS: "rows", LoadTarget.ROPE: "rows"}

    def __init__(self, config: LoaderConfig, stimulus: LoaderStimulus) -> None:
        self.config, self.stimulus = config, stimulus
        self.ready = {name: Ready(stimulus.ready.get(name)) for name in self.OUTPUTS}
        inputs = ("instr", "id", "data", *(f"{name}_freed" for name in self.CREDITS), "weights", "kv", *(["rescore"] if config.planes else []))
        self.times: dict[str, list[int]] = {name: [] for name in (*inputs, *self.OUTPUTS)}
        self.bursts: list[int] = []  # last data beat of each
        self.pops: dict[str, list[int]] = {"rows": [], "embed": [], "head": []}
        self.row_taken = -1  # last handshake of params or rope: they share the output register
        # Rows and tiles that the consumer has room for, and how many were requested.
        self.credits = {"weights": config.ring_rows, "params": config.params_rows, "rope": config.rope_rows, "k": 2, "v": 2}
        self.used = dict.fromkeys(self.credits, 0)
        self.depths = {"rows": config.rows_beats, "embed": config.embed_beats, "head": config.head_beats}
        self.weight_beats = 0
        self.jobs = [-1] * JOBS_AHEAD  # taken

    def run(self, loads: Sequence[Load], ids: Sequence[Any]) -> dict[str, Cycles]:
        finishes: list[int] = []  # cycles in which the done register is loaded
        planned, issued = 0, -1  # plan is idle again; last fire of the job before
        for k, (load, tokens) in enumerate(zip(loads, ids, strict=True)):
            self.config.check(load)
            start = max(int(self.stimulus.instr[k]), planned)
            if k >= self.config.instructions:
                start = max(start, finishes[k - self.config.instructions] + 1)
            self.times["instr"].append(start)
            if load.target == LoadTarget.PLANES:
                job, issued = self._planes(load, tokens, start, issued)
                planned = job + 1
                finishes.append(self._done(finishes, k))
                continue
            counts = self.config.counts(load)
            if load.mode == LoadMode.TOKEN and tokens is None:
                tokens = np.zeros(load.tokens, np.int64)
            values = [tile.value for tile in self.config.tiles(load)] if load.mode == LoadMode.TILES else None
            valid = start + {LoadMode.POSITION: 3, LoadMode.TILES: TILES_START}.get(load.mode, 1)
            begin = job = 0
            for j, (address, beats, step) in enumerate(zip(*self.config.jobs(load, tokens), self.config.steps(load), strict=True)):
                if load.mode == LoadMode.TOKEN:
                    valid = self._id(valid) + 3
                job, issued = self._taken(valid, issued)
                valid = job + int(step)
                half = ("v" if values[j] else "k") if values else None
                for size in self.config.bursts(load.target, int(address), int(beats)).tolist():
                    issued = self._burst(load.target, counts[begin : begin + size].tolist(), issued, half)
                    begin, half = begin + size, None
                if values:
                    self._freed("v" if values[j] else "k")
            planned = job + 1
            finishes.append(self._done(finishes, k))
        return {name: np.array(cycles, np.int64) for name, cycles in self.times.items()}

    def _done(self, finishes: list[int], k: int) -> int:
        """Load ``k`` is delivered."""
        finish = max(self.ended + 1, self.times["done"][-1] if k else 0)
        self.times["done"].append(self._take("done", finish + 1))
        return finish

    def _planes(self, load: Load, lists: Lists, start: int, issued: int) -> tuple[int, int]:
        """A table in two planes: when its last job was taken, its last fire."""
        through: list[int] = []  # high planes
        job = start
        for address, beats, low in zip(*(part.tolist() for part in self.config.plane_jobs(load, lists)), strict=True):
            if low < 0:
                valid = job + SEGMENT_STEP
            else:
                offered = max(through[low] + 1 + _at(self.stimulus.rescore, len(self.times["rescore"])), job + 1, self._last("rescore") + 1)
                self.times["rescore"].append(offered)
                valid = offered + LISTED
            job, issued = self._taken(valid, issued)
            for size in self.config.bursts(load.target, address, beats).tolist():
                issued = self._burst(LoadTarget.HEAD, [1] * size, issued, None)
            if low < 0:
                through.append(self._last("head"))
        return job, issued

    def _take(self, port: str, offered: int) -> int:
        return int(self.ready[port].next_ready(offered))

    def _id(self, offered: int) -> int:
        asked = self._take("id_request", offered)
        self.times["id_request"].append(asked)
        answered = asked + 1 + _at(self.stimulus.id, len(self.times["id"]))
        self.times["id"].append(answered)
        return answered

    def _taken(self, valid: int, issued: int) -> tuple[int, int]:
        """A job leaves the plan, and is taken."""
        if not self.config.pipelined:
            return max(valid, issued), max(valid, issued)
        left = max(valid, self.jobs[-JOBS_AHEAD] + 1)
        self.jobs.append(max(left + 1, issued))
        return left, self.jobs[-1]

    def _burst(self, target: LoadTarget, counts: list[int], issued: int, half: str | None) -> int:
        """A burst from request to delivery: its fire, behind that of the burst before or its job. ``half``: the credit that a tile's first burst takes."""
        times, name, beats, config = self.times, target.name.lower(), len(counts), self.config
        queue = self.QUEUES.get(target)
        fire = max(issued + config.fire_clocks, self._last("read"))
        if len(self.bursts) >= config.outstanding:
            fire = max(fire, self.bursts[-config.outstanding] + 1)
        if target == LoadTarget.WEIGHTS:
            self.weight_beats += beats
            fire = max(fire, self._room(name, -(-self.weight_beats // config.row_beats) - self.used[name]))
        elif target in (LoadTarget.PARAMS, LoadTarget.ROPE):
            fire = max(fire, self._room(name, sum(counts)))
        elif half:
            fire = max(fire, self._room(half, 1))
        if queue and len(self.pops[queue]) + beats > self.depths[queue]:
            fire = max(fire, self.pops[queue][len(self.pops[queue]) + beats - self.depths[queue] - 1] + config.fire_clocks)
        times["read"].append(self._take("read", fire + 1))
        request = times["read"][-1]
        if self.stimulus.memory is None:
            offered = [request + 1 + _at(self.stimulus.data, len(times["data"]) + i) for i in range(beats)]
        else:
            offered = self.stimulus.memory(request, beats).tolist()
        for count, cycle in zip(counts, offered, strict=True):
            times["data"].append(max(cycle, self._last("data") + 1))
            self._arrived(target, count, times["data"][-1])
        self.bursts.append(times["data"][-1])
        return fire

    def _room(self, credit: str, count: int) -> int:
        """First cycle in which a burst with ``count`` more rows (tiles) can be fired; they take their room."""
        self.used[credit] += count
        freed = self.used[credit] - self.credits[credit]
        return self.times[f"{credit}_freed"][freed - 1] + self.config.fire_clocks if freed > 0 else 0

    def _arrived(self, target: LoadTarget, count: int, arrival: int) -> None:
        if target == LoadTarget.WEIGHTS:
            self._deliver(target, arrival + 1)
            if len(self.times["weights"]) % self.config.row_beats == 0:
                self._freed("weights")
        elif target == LoadTarget.KV:
            self._deliver(target, arrival + 1)
        elif target == LoadTarget.HEAD:
            self._deliver(target, self._take("head", max(arrival + QUEUE_LATENCY, self._last("head") + 1)))
            self.pops["head"].append(self.ended)
        else:
            self._unpack(target, count, arrival + QUEUE_LATENCY)

    def _unpack(self, target: LoadTarget, count: int, offered: int) -> None:
        name, loaded = target.name.lower(), offered
        for _ in range(count):
            loaded = max(offered, self._last("embed") if target == LoadTarget.EMBED else self.row_taken)
            self._deliver(target, self._take(name, loaded + 1))
            if target != LoadTarget.EMBED:
                self.row_taken = self.ended
                self._freed(name)
        self.pops["embed" if target == LoadTarget.EMBED else "rows"].append(loaded)

    def _last(self, port: str) -> int:
        return self.times[port][-1] if self.times[port] else -1

    def _deliver(self, target: LoadTarget, cycle: int) -> None:
        self.ended = cycle
        self.times[target.name.lower()].append(cycle)

    def _freed(self, credit: str) -> None:
        """The row (or tile) that ended is freed in time."""
        port = f"{credit}_freed"
        hold = _at(self.stimulus.freed.get(credit, ()), len(self.times[port]))
        self.times[port].append(max(self.ended + 1 + hold, self._last(port) + 1))


def _at(values: Sequence[int] | Cycles, index: int) -> int:
    return int(values[min(index, len(values) - 1)]) if len(values) else 0
