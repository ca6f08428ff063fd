# SPDX-License-Identifier: Apache-2.0
"""What placements cost in cycles: bursts of MACs with their row switches and read-outs, from the rules of the timing preset.

The commands of a run of bursts are those of the controller (architecture.md, 4.4), each at the first cycle that the rules between the commands of a
channel allow; refresh, data and decoding of macros are left out: they do not depend on the placement. Nothing is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.program import Command
from lutra.hls_models.pim.rules import gaps, rules
from lutra.hls_models.pim.timing import Timing, load_timing

__all__ = ["Costs"]

C = Command


@dataclass(frozen=True)
class Costs:
    """Costs on one channel; ``gap``: cycles from the last command of a kind to the next of another, channel-wide rules."""

    config: PimConfig
    timing: Timing
    gap: dict[tuple[C, C], int]

    @classmethod
    def of(cls, config: PimConfig) -> Costs:
        """From the configuration's timing preset."""
        timing = load_timing(config.timing)
        table = gaps(rules(config, timing))
        return cls(config, timing, {(before, after): cycles for (before, after, scope), cycles in table.items() if scope == "channel"})

    @property
    def row_switch(self) -> int:
        """Cycles of a whole row of MACs with its switch, no read-out: the unit of the row bound."""
        n = self.timing.cycles
        return n("tRCDMAC") + (self.config.columns - 1) * n("tCCDL") + n("tRTP") + n("tRP")

    def bursts(self, positions: Sequence[int], count: int, batch: int = 1) -> int:
        """Cycles of bursts of ``count`` MACs at ``positions`` (columns from row 0), the first row being opened at 0, until the next row could be opened.

        ``batch`` bursts are read out at a time.
        """
        columns = self.config.columns
        early = self.config.activate_in_register_mode
        run = _Run(self.gap)
        row = -1
        for index, position in enumerate(positions):
            first, last = position // columns, (position + count - 1) // columns
            done = index % batch
            reads = batch if index and not done else 0
            loads = min(batch, len(positions) - index) if index and not done else 0
            switch = first != row
            if switch and row >= 0:
                run.issue(C.PREA)
            if early or not switch:
                run.registers(C.RDM, reads)
            if switch:
                run.issue(C.ACTA)
            if not early and switch:
                run.registers(C.RDM, reads)
            run.registers(C.BIAS, loads)
            run.array()
            at = position
            for row in range(first, last + 1):
                if row > first:
                    run.issue(C.PREA)
                    run.issue(C.ACTA)
                end = min((row + 1) * columns, position + count)
                run.issue(C.MAC, end - at)
                at = end
        run.issue(C.PREA)
        return run.time + self.timing.cycles("tRP")

    def fill(self, entries: int) -> int:
        """Cycles by which ``entries`` buffer writes part the mode change after a read-out from the MACs."""
        run = _Run(self.gap)
        run.issue(C.ACTA)
        run.registers(C.BIAS, 1)
        run.array()
        run.issue(C.GBW, entries)
        run.issue(C.MAC)
        filled = run.time
        run = _Run(self.gap)
        run.issue(C.ACTA)
        run.issue(C.MAC)
        return filled - run.time

    def scatter(self, times: int) -> int:
        """Cycles of ``times`` writes of one value per bank, each to a row of its own."""
        n = self.timing.cycles
        if self.timing.all_bank_write:
            once = max(n("tRC"), n("tRCDWR") + n("tCWL") + n("tBL") + n("tWR") + n("tRP"))
        else:
            once = n("tRCDRD") + n("tCL") + n("tBL") + n("tCWL") + n("tBL") + n("tWR") + n("tRP") + (self.config.banks - 1) * n("tCCDL")
        return times * once


class _Run:
    """Commands of one channel in order, each as early as the rules allow."""

    def __init__(self, gap: dict[tuple[C, C], int]) -> None:
        self.gap, self.time, self.mode = gap, -1, False
        self.last: dict[C, int] = {}

    def issue(self, kind: C, count: int = 1) -> None:
        at = max([self.time + 1, *(cycle + self.gap.get((before, kind), 0) for before, cycle in self.last.items())])
        self.time = at + (count - 1) * max(1, self.gap.get((kind, kind), 1))
        self.last[kind] = self.time

    def registers(self, kind: C, count: int) -> None:
        if count:
            if not self.mode:
                self.issue(C.MODE)
                self.mode = True
            self.issue(kind, count)

    def array(self) -> None:
        if self.mode:
            self.issue(C.MODE)
            self.mode = False
