# SPDX-License-Identifier: Apache-2.0
"""Exact times of the companion chip (docs/architecture.md, 4.5), one numpy step per instruction.

i-th instruction accepted by the queue in companion clock q = max(offered, q[i-1] + 1, loaded[i-INSTRUCTION_DEPTH] + 1)
loaded   l = max(q + 1, last issue of the instruction before)         (the register that the pipeline's front works from)
issues   k[0] >= l + 1, and >= last issue + done + 1 of the one before unless it follows without draining; k[j] >= k[j-1] + 1;
         RECEIVE: 2k > cycle in which the read-out queue accepted the item;
         VECTOR: 2k > cycle in which the place of the item ``data_depth`` before it became free, for every channel of the mask
send     2 (k + latency)
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.instructions import INSTRUCTION_DEPTH, Kind, Work
from lutra.hls_models.pim.program import Instruction

__all__ = ["CompanionTiming"]

Clocks = NDArray[np.int64]


class CompanionTiming:
    """Times of a program. ``advance`` goes on until a time from outside is missing; append to the first two attributes and call it again.

    Attributes
    ----------
    readout_times
        Per channel, the cycle in which the read-out queue accepted each read-out (it can be taken from the next cycle on).
    release_times
        Per channel, the cycle in which ``freed`` was high for each place of the data queue, in order.
    take_times
        Per channel, the cycle in which each read-out is taken.
    send_times
        Per channel, the cycle in which the data queue accepts each beat.
    starts, dones
        Per finished instruction, the cycles of its first issue and of its last write.
    accepted
        Per instruction, the cycle in which the instruction queue took it.
    issues
        Per call that issued some: the instruction and the clocks of its further items.

    Parameters
    ----------
    config
        The system.
    instructions
        The program.
    offered
        Companion clock from which each instruction is offered; all from clock 0 on where absent.
    """

    def __init__(self, config: PimConfig, instructions: Sequence[Instruction], offered: Sequence[int] | None = None) -> None:
        self._lanes, self._depth = config.lanes, config.companion.data_depth
        self._work = [Work.of(instruction, config) for instruction in instructions]
        self._offered = [0] * len(self._work) if offered is None else list(offered)
        self.readout_times: list[list[int]] = [[] for _ in range(config.channels)]
        self.release_times: list[list[int]] = [[] for _ in range(config.channels)]
        self.take_times: list[list[int]] = [[] for _ in range(config.channels)]
        self.send_times: list[list[int]] = [[] for _ in range(config.channels)]
        self.starts: list[int] = []
        self.dones: list[int] = []
        self.accepted: list[int] = []
        self.issues: list[tuple[int, Clocks]] = []
        self._issued = 0  # items of the present instruction
        self._first = self._last = -1  # clocks of its first and its latest issue, of the instruction before at first
        self._free = -1  # clock in which all that was issued is written
        self._loads: list[int] = []
        self._sent = [0] * config.channels

    @property
    def number(self) -> int:
        """The present instruction."""
        return len(self.dones)

    @property
    def finished(self) -> bool:
        """All instructions are done."""
        return self.number == len(self._work)

    @property
    def waiting(self) -> list[int]:
        """Channels whose next read-out (RECEIVE) or release (VECTOR) the present instruction needs before it can go on; empty at the end."""
        if self.finished:
            return []
        work = self._work[self.number]
        if work.kind == Kind.RECEIVE:
            return [work.channel + self._issued % work.channels]
        return [c for c in _channels(work) if self._sent[c] + self._issued - self._depth >= len(self.release_times[c])]

    def advance(self) -> bool:
        """Goes on as far as known times allow; whether anything was issued."""
        moved = False
        while not self.finished:
            work = self._work[self.number]
            if len(self._loads) == self.number:
                self._load(work)
            known, earliest = self._known(work)
            if known:
                index = np.arange(known)
                clocks = np.maximum.accumulate(np.maximum(earliest, self._begin) - index) + index
                self._issue(work, clocks)
                moved = True
            if self._issued < work.items:
                break
            self._finish(work)
        return moved

    def _load(self, work: Work) -> None:
        n = self.number
        accepted = max(self._offered[n], self.accepted[-1] // 2 + 1 if n else 0)
        if n >= INSTRUCTION_DEPTH:
            accepted = max(accepted, self._loads[n - INSTRUCTION_DEPTH] + 1)
        load = max(accepted + 1, self._last)
        follows = work.follows(self._work[n - 1] if n else None)
        self._begin = load + 1 if follows else max(load + 1, self._free + 1)
        """Clock from which the next item may be issued."""
        self._issued = 0
        self.accepted.append(2 * accepted)
        self._loads.append(load)

    def _known(self, work: Work) -> tuple[int, Clocks | int]:
        """How many further items can be issued with the times at hand, and their earliest clocks."""
        rest = work.items - self._issued
        if work.kind == Kind.RECEIVE:
            # Item i is the (i // channels)-th of its channel; the first channel that runs dry ends what is known.
            lanes = range(work.channels)
            taken = [len(self.take_times[work.channel + c]) for c in lanes]
            first = self._issued % work.channels
            ready = [len(self.readout_times[work.channel + c]) - taken[c] for c in lanes]
            known = min(rest, min(ready[c] * work.channels + (c - first) % work.channels for c in lanes))
            if known <= 0:
                return 0, 0
            rows = -(-known // work.channels)
            arrivals = np.zeros((rows, work.channels), np.int64)
            for place in range(min(work.channels, known)):
                c = (first + place) % work.channels
                count = -(-(known - place) // work.channels)
                arrivals[:count, place] = self.readout_times[work.channel + c][taken[c] : taken[c] + count]
            return known, arrivals.reshape(-1)[:known] // 2 + 1
        earliest: Clocks | int = 0
        for c in _channels(work):
            begin = self._sent[c] + self._issued - self._depth
            rest = min(rest, max(0, len(self.release_times[c]) - begin))
        for c in _channels(work):
            begin = self._sent[c] + self._issued - self._depth
            if begin + rest > 0:
                releases = np.zeros(rest, np.int64)
                releases[max(0, -begin) :] = self.release_times[c][max(0, begin) : begin + rest]
                earliest = np.maximum(earliest, releases // 2 + 1)
        return rest, earliest

    def _issue(self, work: Work, clocks: Clocks) -> None:
        cycles = 2 * clocks
        if work.kind == Kind.RECEIVE:
            first = self._issued % work.channels
            for place in range(min(work.channels, len(clocks))):
                self.take_times[work.channel + (first + place) % work.channels] += cycles[place :: work.channels].tolist()
        elif work.mask:
            times = (cycles + 2 * work.latency).tolist()
            for c in _channels(work):
                self.send_times[c] += times
        if not self._issued:
            self._first = int(clocks[0])
        self.issues.append((self.number, clocks))
        self._last = int(clocks[-1])
        self._begin = self._last + 1
        self._issued += len(clocks)

    def _finish(self, work: Work) -> None:
        self._free = self._last + work.done(self._lanes)
        self.starts.append(2 * self._first)
        self.dones.append(2 * self._free)
        for c in _channels(work):
            self._sent[c] += work.items


def _channels(work: Work) -> list[int]:
    """Channels that an instruction sends to."""
    return [c for c in range(work.mask.bit_length()) if work.mask >> c & 1] if work.kind == Kind.VECTOR else []
