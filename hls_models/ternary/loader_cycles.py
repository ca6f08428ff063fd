# SPDX-License-Identifier: Apache-2.0
"""Handshake cycles of every port of a loader under any stimulus, a step per beat: what its bench holds the RTL against.

The times are those of ``lutra.hls_models.ternary.loader``; ``loader_timing`` has the fast form for the core.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lutra.hls_models.streams import Ready
from lutra.hls_models.ternary.isa import LoadMode, LoadTarget
from lutra.hls_models.ternary.loader import QUEUE_LATENCY, Load, LoaderConfig

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
        Clocks beyond 1 from a request's handshake to the earliest cycle of its response.
    freed
        Per credited target, clocks beyond 1 from a row's delivery to the earliest cycle of its ``*_freed`` beat.
    ready
        Per output, a bool per cycle; ready past the end and where absent.
    """

    instr: Cycles
    id: Cycles = field(default_factory=lambda: np.zeros(0, np.int64))
    data: Cycles = field(default_factory=lambda: np.zeros(0, np.int64))
    freed: Mapping[LoadTarget, Cycles] = field(default_factory=dict)
    ready: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)


def loader_cycles(config: LoaderConfig, loads: Sequence[Load], stimulus: LoaderStimulus) -> dict[str, Cycles]:
    """Handshake cycles (beats,) of every port by name."""
    return _Simulation(config, stimulus).run(loads)


class _Simulation:
    """Events of a loader in program order; each depends on earlier ones only."""

    OUTPUTS = ("read", "id_request", "params", "rope", "embed", "head", "done")

    def __init__(self, config: LoaderConfig, stimulus: LoaderStimulus) -> None:
        self.config, self.stimulus = config, stimulus
        self.ready = {name: Ready(stimulus.ready.get(name)) for name in self.OUTPUTS}
        inputs = ("instr", "id", "data", "weights_freed", "params_freed", "rope_freed", "k_freed", "v_freed", "weights", "kv")
        self.times: dict[str, list[int]] = {name: [] for name in (*inputs, *self.OUTPUTS)}
        self.fires: list[int] = []
        self.pops: dict[str, list[int]] = {"rows": [], "embed": [], "head": []}
        self.row_taken = -1  # last handshake of params or rope: they share the output register
        self.credits = {LoadTarget.WEIGHTS: config.ring_rows, LoadTarget.PARAMS: config.params_rows, LoadTarget.ROPE: config.rope_rows}
        self.rows = dict.fromkeys(self.credits, 0)
        self.depths = {"rows": config.rows_beats, "embed": config.embed_beats, "head": config.head_beats}

    def run(self, loads: Sequence[Load]) -> dict[str, Cycles]:
        finishes: list[int] = []  # cycles in which the done register is loaded
        planned, issued = 0, -1  # plan is idle again; last fire of the job before
        for k, load in enumerate(loads):
            self.config.check(load)
            start = max(int(self.stimulus.instr[k]), planned)
            if k >= self.config.instructions:
                start = max(start, finishes[k - self.config.instructions] + 1)
            self.times["instr"].append(start)
            counts = self.config.counts(load).reshape(load.repetitions, -1)
            valid = start + (3 if load.mode == LoadMode.POSITION else 1)
            for repetition in range(load.repetitions):
                if load.mode == LoadMode.TOKEN:
                    valid = self._id(valid) + 3
                job = max(valid, issued)
                valid, issued = job + 1, job
                for count in counts[repetition]:
                    issued = self._beat(load.target, int(count), issued + 1)
            planned = valid
            finish = max(self.ended + 1, self.times["done"][-1] if k else 0)
            finishes.append(finish)
            self.times["done"].append(self._take("done", finish + 1))
        return {name: np.array(cycles, np.int64) for name, cycles in self.times.items()}

    def _take(self, port: str, offered: int) -> int:
        return int(self.ready[port].next_ready(offered))

    def _id(self, offered: int) -> int:
        asked = self._take("id_request", offered)
        self.times["id_request"].append(asked)
        answered = asked + 1 + _at(self.stimulus.id, len(self.times["id"]))
        self.times["id"].append(answered)
        return answered

    def _beat(self, target: LoadTarget, count: int, earliest: int) -> int:
        """One beat from request to delivery: its fire, no earlier than ``earliest``."""
        times, i = self.times, len(self.fires)
        queue = {LoadTarget.EMBED: "embed", LoadTarget.HEAD: "head", LoadTarget.PARAMS: "rows", LoadTarget.ROPE: "rows"}.get(target)
        fire = max(earliest, times["read"][-1] if i else 0)
        if i >= self.config.outstanding:
            fire = max(fire, times["data"][i - self.config.outstanding] + 1)
        if target in self.credits:
            rows = self.rows[target] + count
            needed = -(-rows // self.config.row_beats) if target == LoadTarget.WEIGHTS else rows
            if needed > self.credits[target]:
                fire = max(fire, times[f"{target.name.lower()}_freed"][needed - self.credits[target] - 1] + 1)
            self.rows[target] = rows
        if queue and len(self.pops[queue]) >= self.depths[queue]:
            fire = max(fire, self.pops[queue][-self.depths[queue]] + 1)
        self.fires.append(fire)
        times["read"].append(self._take("read", fire + 1))
        data = times["read"][-1] + 1 + _at(self.stimulus.data, i)
        times["data"].append(max(data, times["data"][-1] + 1 if i else 0))
        arrival = times["data"][-1]
        if target == LoadTarget.WEIGHTS:
            self._deliver(target, arrival + 1, freed=self.rows[target] % self.config.row_beats == 0)
        elif target == LoadTarget.HEAD:
            self._deliver(target, self._take("head", max(arrival + QUEUE_LATENCY, self._last("head") + 1)))
            self.pops["head"].append(self.ended)
        else:
            self._unpack(target, count, arrival + QUEUE_LATENCY)
        return fire

    def _unpack(self, target: LoadTarget, count: int, offered: int) -> None:
        loaded = offered
        for _ in range(count):
            loaded = max(offered, self._last("embed") if target == LoadTarget.EMBED else self.row_taken)
            self._deliver(target, self._take(target.name.lower(), loaded + 1), freed=target != LoadTarget.EMBED)
            if target != LoadTarget.EMBED:
                self.row_taken = self.ended
        self.pops["embed" if target == LoadTarget.EMBED else "rows"].append(loaded)

    def _last(self, port: str) -> int:
        return self.times[port][-1] if self.times[port] else -1

    def _deliver(self, target: LoadTarget, cycle: int, *, freed: bool = False) -> None:
        self.ended = cycle
        self.times[target.name.lower()].append(cycle)
        if freed:
            port = f"{target.name.lower()}_freed"
            hold = _at(self.stimulus.freed.get(target, ()), len(self.times[port]))
            self.times[port].append(max(cycle + 1 + hold, self._last(port) + 1))


def _at(values: Sequence[int] | Cycles, index: int) -> int:
    return int(values[min(index, len(values) - 1)]) if len(values) else 0
