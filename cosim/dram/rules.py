# SPDX-License-Identifier: Apache-2.0
"""Which command must wait how long for which: the rule list of this device model.

Written from the table that the open AiM simulator publishes (src/dram/impl/GDDR6.cpp, ``populate_timingcons``) and from common GDDR6 practice. Rules that
this table does not have are marked *ours*. A wait is counted from command to command.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from .commands import Command
from .timing import Timing

__all__ = ["BUS_READS", "BUS_WRITES", "GROUP_BANKS", "REFRESHES_BEHIND", "Rule", "Scope", "rules"]

C = Command
GROUP_BANKS = 4
REFRESHES_BEHIND = 8
"""Refreshes that may be postponed (and pulled in), as GDDR5/6 data sheets allow."""

BUS_READS = {C.RD: "tCL", C.RDM: "tCLREG", C.RDAF: "tCLREG"}
BUS_WRITES = {C.WR: "tCWL", C.WRA: "tCWL", C.GBW: "tCWLGB", C.BIAS: "tCWLREG"}
"""Commands with data on the pins, and the time from command to data; data last tBL."""


class Scope(Enum):
    """Between which commands a rule holds: any, those of one bank group, those of one bank. Commands of all banks belong to each."""

    CHANNEL = 0
    GROUP = 1
    BANK = 2


@dataclass(frozen=True)
class Rule:
    """A command of ``after`` comes at least ``cycles`` after the latest of ``before`` within the scope."""

    name: str
    before: frozenset[Command]
    after: frozenset[Command]
    scope: Scope
    cycles: int


def rules(timing: Timing) -> tuple[Rule, ...]:
    """Every rule between two commands. tFAW, the data bus, rows, modes and refreshes are checked apart."""
    c = timing.cycles
    return tuple(
        Rule(name, frozenset(before), frozenset(after), scope, cycles)
        for group in (_columns(c), _turns(c), _rows(c), _refresh(c))
        for name, before, after, scope, cycles in group
        if cycles > 1  # with one command per cycle less is no rule
    )


CHANNEL, GROUP, BANK = Scope
ACTS = {C.ACT, C.ACTA}
PRES = {C.PRE, C.PREA}
READS = {C.RD, C.MAC, C.MACS, C.RDCP, C.RDM, C.RDAF}
WRITES = {C.WR, C.WRA, C.GBW, C.WRCP, C.BIAS}
OUTPUTS = set(BUS_READS)
CELL_READS = {C.RD, C.MAC, C.MACS, C.RDCP, C.AF, C.EWMUL}

_Cycles = Callable[..., int]
_Entry = tuple[str, set[Command], set[Command], Scope, int]


def _columns(c: _Cycles) -> list[_Entry]:
    """Column command to column command of one direction: the shared bus between groups, that inside a group, the pins."""
    group_reads, group_writes = READS | {C.EWMUL}, (WRITES - {C.GBW}) | {C.EWMUL}
    return [
        ("tCCDS read", READS, READS, CHANNEL, c("tCCDS")),
        ("tCCDS write", WRITES, WRITES, CHANNEL, c("tCCDS")),
        ("tCCDL read", group_reads, group_reads, GROUP, c("tCCDL")),
        ("tCCDL write", group_writes, group_writes, GROUP, c("tCCDL")),
        ("tBL read", OUTPUTS, OUTPUTS, CHANNEL, c("tBL")),
        ("tBL write", set(BUS_WRITES), set(BUS_WRITES), CHANNEL, c("tBL")),
    ]


def _turns(c: _Cycles) -> list[_Entry]:
    """From reading to writing and back; change of mode."""
    entries: list[_Entry] = []
    for read, read_latency in BUS_READS.items():
        for write, write_latency in BUS_WRITES.items():
            wait = c(read_latency, "tBL", "tTURN", "tWPRE") - c(write_latency)
            entries.append(("tRTW", {read}, {write}, CHANNEL, wait))
    registers = {C.RDM, C.RDAF}
    entries += [
        ("tWTRS", {C.WR, C.WRA}, OUTPUTS, CHANNEL, c("tCWL", "tBL", "tWTRS")),
        ("tWTRS buffer", {C.GBW}, OUTPUTS, CHANNEL, c("tCWLGB", "tBL", "tWTRS")),
        ("tWTRL", {C.WR, C.WRA}, OUTPUTS, GROUP, c("tCWL", "tBL", "tWTRL")),
        ("tWTRL bias", {C.BIAS}, {C.RD, *registers}, GROUP, c("tCWLREG", "tBL", "tWTRL")),
        # Ours: cells and buffer must be written before a MAC unit reads them, as for a RD of the same group.
        ("write to MAC", {C.WR, C.WRA, C.WRCP}, CELL_READS - {C.RD}, GROUP, c("tCWL", "tBL", "tWTRL")),
        ("write to MAC", {C.WRCP}, OUTPUTS, GROUP, c("tCWL", "tBL", "tWTRL")),
        ("buffer to MAC", {C.GBW}, {C.MAC, C.MACS, C.WRCP}, CHANNEL, c("tCWLGB", "tBL", "tWTRL")),
        ("bias to MAC", {C.BIAS}, {C.MAC, C.MACS}, CHANNEL, c("tCWLREG", "tBL", "tWTRL")),
        # Ours: a copy holds the bus inside the group for a column's time, whichever way it goes.
        ("copy turnaround", {C.RDCP}, {C.MAC, C.MACS, C.WRCP, C.GBW}, CHANNEL, c("tCCDL")),
        ("copy turnaround", {C.WRCP, C.MAC, C.MACS}, {C.RDCP}, CHANNEL, c("tCCDL")),
        ("tMODE", {C.MODE}, set(C), CHANNEL, c("tMODE")),
    ]
    return entries


def _rows(c: _Cycles) -> list[_Entry]:
    """Activates, precharges and what lies between them."""
    delays = {
        "RD": ({C.RD}, "tRCDRD"),
        "WR": ({C.WR, C.WRA}, "tRCDWR"),
        "MAC": ({C.MAC, C.MACS}, "tRCDMAC"),
        "EWMUL": ({C.EWMUL}, "tRCDEWMUL"),
        "AF": ({C.AF}, "tRCDAF"),
        "RDCP": ({C.RDCP}, "tRCDRDCP"),
        "WRCP": ({C.WRCP}, "tRCDWRCP"),
    }
    write_end = c("tCWL", "tBL", "tWR")
    return [
        *((f"tRCD {kind}", ACTS, after, BANK, c(key)) for kind, (after, key) in delays.items()),
        ("tRAS", ACTS, PRES, BANK, c("tRAS")),
        ("tRC", ACTS, ACTS | {C.REF}, BANK, c("tRC")),
        ("tRP", PRES, ACTS | {C.REF} | PRES, BANK, c("tRP")),
        ("tRP write", {C.WRA}, ACTS | {C.REF} | PRES, BANK, write_end + c("tRP")),
        ("tRTP", CELL_READS, PRES, BANK, c("tRTP")),
        ("tWR", {C.WR, C.WRCP}, PRES, BANK, write_end),
        ("tWR product", {C.EWMUL}, PRES, BANK, c("tCWL", "tWR")),
        ("tRRDS", ACTS, ACTS, CHANNEL, c("tRRDS")),
        ("tRRDL", ACTS, ACTS, GROUP, c("tRRDL")),
    ]


def _refresh(c: _Cycles) -> list[_Entry]:
    """After a refresh of all banks. The published table holds back activates only; that all else waits too is ours, as data sheets of DRAMs have it."""
    return [("tRFC", {C.REF}, ACTS, CHANNEL, c("tRFC")), ("tRFC others", {C.REF}, set(C) - ACTS, CHANNEL, c("tRFC"))]
