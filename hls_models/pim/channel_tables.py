# SPDX-License-Identifier: Apache-2.0
"""What channel models share: the rule list by later command, the form of a run, why commands waited."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.program import Command
from lutra.hls_models.pim.rules import BANK_COMMANDS, Rule, gaps
from lutra.hls_models.pim.timing import Timing

__all__ = ["BANKED", "BEFORE", "COMMANDS", "DATA", "FLOOR", "KINDS", "NEVER", "SPACE", "ChannelRun", "Tables", "refresh_phase"]

COMMANDS = np.dtype(
    [("cycle", "<i8"), ("command", "<u1"), ("bank", "<u1"), ("row", "<i4"), ("column", "<i2"), ("entry", "<i2"), ("accumulator", "<u1")],
)
"""A command of a run: ``bank`` of ACT, PRE, RD, WR; ``row`` of activates; ``entry``: of the buffer (MAC, GBW), or the element that WRA and WR change."""

KINDS = len(Command)
FLOOR, DATA, SPACE = KINDS, KINDS + 1, KINDS + 2
"""What a command waited for, beside an earlier command: nothing but its turn, a data beat, a slot of the read-out queue."""
BEFORE = KINDS + 3
"""Number of those reasons: rows of ``ChannelModel.spent``."""

NEVER = -(1 << 40)
BANKED = tuple(kind in BANK_COMMANDS for kind in Command)


@dataclass(frozen=True)
class ChannelRun:
    """What a run of a channel did; every array holds int64 cycles but ``commands`` (dtype ``COMMANDS``, in order)."""

    commands: NDArray[np.void]
    data_accepted: NDArray[np.int64]
    """(beats,) acceptance by the data queue"""
    data_taken: NDArray[np.int64]
    """(beats,) command that took it (frees its place)"""
    readouts_queued: NDArray[np.int64]
    """(read-outs,) acceptance by the read-out queue"""
    readouts_taken: NDArray[np.int64]
    """(read-outs,) handshake towards the companion chip"""
    done: int
    """cycle of the last command"""


def refresh_phase(config: PimConfig, timing: Timing, index: int) -> int:
    """Cycle in which the first refresh of channel ``index`` is due."""
    return config.refresh_phase + (index * timing.cycles("tREFI") // config.channels if config.stagger else 0)


@dataclass
class Tables:
    """The rule list by later command: what must be looked at before it is issued."""

    channel: list[tuple[tuple[int, int], ...]]
    group: list[tuple[tuple[int, int], ...]]
    bank: list[tuple[tuple[int, int], ...]]
    window: list[int] = field(default_factory=lambda: [0] * KINDS)
    """cycles after the fourth last activate; 0: no such rule"""
    counted: frozenset[int] = frozenset()
    """activates that the window counts"""

    @classmethod
    def of(cls, listed: tuple[Rule, ...]) -> "Tables":
        """Tables of a rule list."""
        found: dict[str, list[list[tuple[int, int]]]] = {scope: [[] for _ in range(KINDS)] for scope in ("channel", "group", "bank")}
        for (before, after, scope), cycles in gaps(listed).items():
            found[scope][after].append((int(before), cycles))
        channel, group, bank = ([tuple(entries) for entries in found[scope]] for scope in ("channel", "group", "bank"))
        tables = cls(channel, group, bank)
        for (before, after, _), cycles in gaps(listed, windows=True).items():
            tables.window[after] = cycles
            tables.counted |= {int(before)}
        return tables
