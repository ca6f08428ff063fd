# SPDX-License-Identifier: Apache-2.0
"""Requests of public AiM traces, and what a trace took."""

from dataclasses import dataclass
from enum import Enum

from lutra.hls_models.pim.program import Command

__all__ = ["ACTIVATION_ROWS", "BANKS", "TRACE_CHANNELS", "Opcode", "Request", "TraceResult"]

TRACE_CHANNELS = 32
BANKS = 16
ACTIVATION_ROWS = 1 << 29
"""Rows from here on are the tables of activation functions."""


class Opcode(Enum):
    """A request of a trace; values: the command it ends in, None where no channel is involved."""

    WR_SBK = Command.WR
    RD_SBK = Command.RD
    WR_ABK = Command.WRA
    WR_GB = Command.GBW
    WR_BIAS = Command.BIAS
    RD_MAC = Command.RDM
    RD_AF = Command.RDAF
    COPY_BKGB = Command.RDCP
    COPY_GBBK = Command.WRCP
    MAC_SBK = Command.MACS
    MAC_ABK = Command.MAC
    AF = Command.AF
    EWMUL = Command.EWMUL
    EWADD = "EWADD"
    SYNC = "SYNC"
    EOC = "EOC"
    HOST = "registers of the host engine"


@dataclass(frozen=True, slots=True)
class Request:
    """A line of a trace. ``channels``: bit c for channel c; ``count``: columns; ``row`` of AF: the table of its function."""

    opcode: Opcode
    channels: int = 0
    bank: int = -1
    row: int = -1
    count: int = 1


@dataclass(frozen=True)
class TraceResult:
    """What a trace took. ``commands``: by kind, all channels together; ``hits``: accesses to banks that found their row open."""

    cycles: int
    commands: dict[str, int]
    accesses: int
    hits: int
    channels: int
    """channels that had a command of the trace"""
    clock_ns: float

    @property
    def ns(self) -> float:
        """Time in nanoseconds."""
        return self.cycles * self.clock_ns
