# SPDX-License-Identifier: Apache-2.0
"""Exact cycles of the whole core, run after run. Boot: BOOT_READ and BOOT_STORE take memory latency + 1 clocks per beat; what a pass takes says
``core_passes``."""

from collections import defaultdict
from collections.abc import Sequence

from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.core_passes import PassBatch, PassTimes, Units
from lutra.hls_models.ternary.executor import plan_passes
from lutra.hls_models.ternary.program import Program

__all__ = ["CoreTiming"]


class CoreTiming:
    """Cycle model of a core that runs ``program`` from memory of a fixed latency.

    Parameters
    ----------
    spec, program : as for the executor; no memory image is needed
    detail : keep every handshake
    """

    def __init__(self, spec: CoreSpec, program: Program, *, detail: bool = False) -> None:
        self.spec, self.program = spec, program
        self._units = Units(spec, program, detail=detail)
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
        first = start + prompt
        decoded = range(first, min(first + count - 1, self.spec.shape.context))
        return self.passes([*plan_passes(start, prompt, self.spec.config.chunk), *((position, 1, True) for position in decoded)])

    def passes(self, plan: Sequence[tuple[int, int, bool]]) -> list[PassTimes]:
        """Passes of (position, tokens, last), one after the other from now on."""
        alike: dict[tuple[int, bool], list[int]] = defaultdict(list)
        for number, (_, tokens, last) in enumerate(plan):
            alike[tokens, last].append(number)
        found: dict[int, tuple[PassBatch, int]] = {}
        for (tokens, last), numbers in alike.items():
            most = self._units.together(tokens)
            for first in range(0, len(numbers), most):
                some = numbers[first : first + most]
                batch = PassBatch(self._units, tokens, last, [plan[number][0] for number in some])
                found |= {number: (batch, place) for place, number in enumerate(some)}
        out: list[PassTimes] = []
        for number in range(len(plan)):
            batch, place = found[number]
            out.append(batch.times(place, self.now))
            self.now = out[-1].end
        return out
