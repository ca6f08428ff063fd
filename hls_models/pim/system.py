# SPDX-License-Identifier: Apache-2.0
"""Cycles of a whole PIM system: channels and companion chip as a network of queues (docs/architecture.md, 4.6).

Each unit runs its own program until it needs a time that another has not produced yet: the arrival of a beat, or the release of a place in a queue. The
lists in which units keep such times are shared, so that a pass over the units is all that exchanging them takes. Cycles are exact; no clock is stepped.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra.hls_models.errors import LutraError
from lutra.hls_models.pim.bursts import BurstChannel
from lutra.hls_models.pim.channel import ChannelModel
from lutra.hls_models.pim.companion_cycles import CompanionTiming
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.program import Program
from lutra.hls_models.pim.timing import Timing

__all__ = ["SystemModel", "SystemRun"]

POSTPONED = 8
"""Refreshes that may be due and not done (JEDEC's rule for GDDR devices; see 4.4)."""


@dataclass(frozen=True)
class SystemRun:
    """Times of one program; cycles of the command clock, from reset."""

    cycles: int
    """last command of any channel, or last write of the companion chip"""
    starts: NDArray[np.int64]
    """(instructions,) first item of each instruction of the companion chip"""
    dones: NDArray[np.int64]
    """(instructions,) last write of each"""
    channels: tuple[ChannelModel, ...]
    """as they stand at the end: commands by kind, cycles by reason"""
    companion: CompanionTiming


class SystemModel:
    """A program on C channels and their companion chip.

    Parameters
    ----------
    config, timing
        Sizes and timing preset.
    program
        Macro-commands per channel and the companion chip's instructions.
    record
        Step every command by itself and keep it; without it bursts are worked out in closed form (the same cycles).
    """

    def __init__(self, config: PimConfig, timing: Timing, program: Program, *, record: bool = False) -> None:
        if len(program.macros) != config.channels:
            raise ValueError(f"program must have macros for {config.channels} channels, not {len(program.macros)}")
        unit = ChannelModel if record else BurstChannel
        self.companion = CompanionTiming(config, program.instructions)
        self.channels = tuple(unit(config, timing, c, macros) for c, macros in enumerate(program.macros))
        for c, channel in enumerate(self.channels):
            channel.data_times = self.companion.send_times[c]
            channel.release_times = self.companion.take_times[c]
            self.companion.readout_times[c] = channel.readout_times
            self.companion.release_times[c] = channel.data_taken

    def run(self) -> SystemRun:
        """Runs the program to its end.

        Raises
        ------
        LutraError : the units wait for each other: the program takes beats that nobody sends; or refreshes fall further behind than a device allows
        """
        for _ in self.steps():
            pass
        companion = self.companion
        behind = max(channel.behind for channel in self.channels)
        if behind > POSTPONED:
            raise LutraError(f"program holds a row for so long that refreshes are {behind} behind; a device allows {POSTPONED}")
        ends = [channel.done or 0 for channel in self.channels]
        return SystemRun(max([*ends, *companion.dones]), np.array(companion.starts, np.int64), np.array(companion.dones, np.int64), self.channels, companion)

    def steps(self) -> Iterator[int]:
        """Passes over the units, for progress: the number of instructions done after each."""
        before = None
        while True:
            for channel in self.channels:
                channel.advance()
            self.companion.advance()
            if self.companion.finished and all(channel.done is not None for channel in self.channels):
                return
            now = self._progress()
            if now == before:
                raise LutraError(f"program stands still: {self._blocked()}")
            before = now
            yield self.companion.number

    def _progress(self) -> list[int]:
        companion = self.companion
        times = [*companion.take_times, *companion.send_times, *companion.readout_times, *companion.release_times]
        return [companion.number, *map(len, times)]

    def _blocked(self) -> str:
        waits = [f"channel {c} for {channel.waiting}" for c, channel in enumerate(self.channels) if channel.done is None]
        if not self.companion.finished:
            waits.append(f"instruction {self.companion.number} for channel {', '.join(map(str, self.companion.waiting))}")
        return ", ".join(waits) + "; a beat sent or read out is missing in the program"
