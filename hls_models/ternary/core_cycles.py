# SPDX-License-Identifier: Apache-2.0
"""Exact cycles of the whole core, run after run. Boot: BOOT_READ and BOOT_STORE take memory latency + 1 clocks per beat (of a shared memory, as long as it
takes, and 1); what a pass takes says ``core_passes``."""

from collections import defaultdict
from collections.abc import Sequence

from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.core_passes import PassBatch
from lutra.hls_models.ternary.core_units import PassPlan, PassTimes, Units
from lutra.hls_models.ternary.executor import plan_passes
from lutra.hls_models.ternary.memory import MemoryTiming
from lutra.hls_models.ternary.planes import Lists
from lutra.hls_models.ternary.program import Program

__all__ = ["CoreTiming"]


class CoreTiming:
    """Cycle model of a core that runs ``program`` from memory of a fixed latency, or from the shared memory of its configuration.

    Parameters
    ----------
    spec, program : as for the executor; no memory image is needed
    detail : keep every handshake
    rescored : share of rows that a head in two planes scores again, in passes whose lists are not given; by default the worst case
    """

    def __init__(self, spec: CoreSpec, program: Program, *, detail: bool = False, rescored: float = 1.0) -> None:
        self.spec, self.program = spec, program
        self._units = Units(spec, program, detail=detail, rescored=rescored)
        self._booted = False
        self.now = 0
        """Cycle in which the sequencer is IDLE or, between passes, in SETUP."""

    def run(self, prompt: int, count: int, *, start: int = 0, at: int = 0, lists: Sequence[Lists | None] = ()) -> list[PassTimes]:
        """Passes of a run whose start pulse is in cycle ``at``: ``prompt`` tokens from position ``start``, then decoding until ``count`` tokens are there;
        ``lists``: of the passes, in order."""
        self._begin(at)
        first = start + prompt
        decoded = range(first, min(first + count - 1, self.spec.shape.context))
        plan = [PassPlan(*one) for one in (*plan_passes(start, prompt, self.spec.config.chunk), *((position, 1, True) for position in decoded))]
        return self.passes([one._replace(lists=its) for one, its in zip(plan, [*lists, *[None] * len(plan)], strict=False)])

    def verify(self, tokens: int, *, start: int, at: int = 0, lists: Lists | None = None) -> list[PassTimes]:
        """The serial pass of a run whose start pulse is in cycle ``at``: ``tokens`` tokens from position ``start``."""
        self._begin(at)
        return self.passes([PassPlan(start, tokens, True, True, lists)])

    def _begin(self, at: int) -> None:
        self.now = at + 1
        if self._booted:
            return
        self._booted = True
        beats, memory = len(self.program.instructions) * self.program.word_beats, self.spec.config.memory
        if memory is None:
            self.now += beats * (self.spec.config.memory_latency + 1)
            return
        timing = MemoryTiming(memory)
        for _ in range(beats):
            self.now = int(timing.read(self.now, 1)[0]) + 1

    def passes(self, plan: Sequence[PassPlan | tuple[int, int, bool]]) -> list[PassTimes]:
        """Passes of (position, tokens, last, serial), one after the other from now on."""
        plans = [PassPlan(*one) for one in plan]
        return self._one_by_one(plans) if self.spec.config.memory else self._together(plans)

    def _one_by_one(self, plans: Sequence[PassPlan]) -> list[PassTimes]:
        """Where memory is shared a pass depends on its position and, unless the memory is uniform, on when it starts."""
        out: list[PassTimes] = []
        for plan in plans:
            batch = PassBatch(self._units, plan, [plan.position], origin=self.now)
            out.append(batch.times(0, self.now))
            self.now = out[-1].end
        return out

    def _together(self, plans: Sequence[PassPlan]) -> list[PassTimes]:
        alike: dict[PassPlan, list[int]] = defaultdict(list)
        for number, plan in enumerate(plans):
            alike[plan._replace(position=0)].append(number)
        found: dict[int, tuple[PassBatch, int]] = {}
        for numbers in alike.values():
            most = self._units.together(plans[numbers[0]].tokens)
            for first in range(0, len(numbers), most):
                some = numbers[first : first + most]
                batch = PassBatch(self._units, plans[some[0]], [plans[number].position for number in some])
                found |= {number: (batch, place) for place, number in enumerate(some)}
        out: list[PassTimes] = []
        for number in range(len(plans)):
            batch, place = found[number]
            out.append(batch.times(place, self.now))
            self.now = out[-1].end
        return out
