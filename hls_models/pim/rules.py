# SPDX-License-Identifier: Apache-2.0
"""The one list of timing rules that the channel model and the RTL controller are made of (architecture.md, 4.3).

A rule says: a command of ``after`` stands at least ``cycles`` after the last (``window``-th last) command of ``before`` in the same channel, bank
group or bank. The list follows the open AiM simulator's table of constraints (arkhadem/aim_simulator, src/dram/impl/GDDR6.cpp), command for command;
what that table leaves open is added with our value and marked (``ours``).
"""

from dataclasses import dataclass
from typing import Literal

from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.program import Command
from lutra.hls_models.pim.timing import Timing

__all__ = ["ARRAY_COMMANDS", "BANKS_PER_GROUP", "BANK_COMMANDS", "CONTROLLER", "REGISTER_COMMANDS", "ROW_COMMANDS", "Rule", "Scope", "gaps", "rules"]

C = Command  # the tables below are read as sentences

Scope = Literal["channel", "group", "bank"]

BANKS_PER_GROUP = 4
CONTROLLER = tuple(C(kind) for kind in range(C.REF + 1))
"""Commands of the overlapped controller; the others are for traces."""
REGISTER_COMMANDS = frozenset({C.RDM, C.BIAS, C.RDAF})
"""Need the register mode."""
ARRAY_COMMANDS = frozenset({C.RD, C.WR, C.MAC, C.WRA, C.GBW, C.MACS, C.AF, C.EWMUL, C.RDCP, C.WRCP})
"""Need the array mode."""
ROW_COMMANDS = frozenset({C.ACT, C.ACTA, C.PRE, C.PREA, C.REF})
"""Need the array mode unless ``activate_in_register_mode``."""
BANK_COMMANDS = frozenset({C.ACT, C.PRE, C.RD, C.WR, C.MACS, C.RDCP, C.WRCP})
"""Address one bank; all others the whole channel."""


@dataclass(frozen=True, slots=True)
class Rule:
    """``after`` comes at least ``cycles`` after ``before`` in the same ``scope``; ``window``: after the window-th last of them."""

    name: str
    before: tuple[C, ...]
    after: tuple[C, ...]
    scope: Scope
    cycles: int
    window: int = 1
    source: str = "table"

    @property
    def ours(self) -> bool:
        """Added by us where the published table says nothing."""
        return self.source == "ours"


def rules(config: PimConfig, timing: Timing, *, traces: bool = False) -> tuple[Rule, ...]:
    """Every rule between the commands of a channel, those that cannot constrain anything (0 cycles) left out.

    Parameters
    ----------
    config : sizes of the channel (nothing of it changes a rule so far; banks beyond ``config.banks`` do not exist)
    timing : preset
    traces : the commands and rules that only public traces can meet, too
    """
    n = timing.cycles
    activates, all_read = (C.ACT, C.ACTA), (C.RDM, C.RDAF, C.MAC, C.EWMUL)
    write_end, recover = n("tCWL") + n("tBL"), n("tCWL") + n("tBL") + n("tWR")
    turn = n("tBL") + n("tTURN") + n("tWPRE")
    everything = tuple(kind for kind in C if kind is not C.MODE)
    listed = [
        # the data bus and the column path
        Rule("tBL read", (C.RD, C.RDM, C.RDAF), (C.RD, C.RDM, C.RDAF), "channel", n("tBL")),
        Rule("tBL write", (C.WR, C.WRA, C.GBW, C.BIAS), (C.WR, C.WRA, C.GBW, C.BIAS), "channel", n("tBL")),
        Rule("tCCDS read", (C.RD, C.MACS, C.MAC, C.RDCP, C.RDM, C.RDAF), (C.RD, C.MACS, C.MAC, C.RDCP, C.RDM, C.RDAF), "channel", n("tCCDS")),
        Rule("tCCDS write", (C.WR, C.WRA, C.GBW, C.WRCP, C.BIAS), (C.WR, C.WRA, C.GBW, C.WRCP, C.BIAS), "channel", n("tCCDS")),
        Rule("tCCDL to all banks, read", (C.RD, C.MACS, C.RDCP, *all_read), all_read, "channel", n("tCCDL")),
        Rule("tCCDL from all banks, read", all_read, (C.RD, C.MACS, C.RDCP, *all_read), "channel", n("tCCDL")),
        Rule("tCCDL to all banks, write", (C.WR, C.WRCP, C.WRA, C.BIAS, C.EWMUL), (C.WRA, C.BIAS, C.EWMUL), "channel", n("tCCDL")),
        Rule("tCCDL from all banks, write", (C.WRA, C.BIAS, C.EWMUL), (C.WR, C.WRCP, C.WRA, C.BIAS, C.EWMUL), "channel", n("tCCDL")),
        Rule("tCCDL read", (C.RD, C.MACS, C.RDCP), (C.RD, C.MACS, C.RDCP), "group", n("tCCDL")),
        Rule("tCCDL write", (C.WR, C.WRCP), (C.WR, C.WRCP), "group", n("tCCDL")),
        # read to write: the bus turns
        Rule("read to write", (C.RD,), (C.WR, C.WRA), "channel", n("tCL") + turn - n("tCWL")),
        Rule("read to buffer write", (C.RD,), (C.GBW,), "channel", n("tCL") + turn - n("tCWLGB")),
        Rule("read to bias", (C.RD,), (C.BIAS,), "channel", n("tCL") + turn - n("tCWLREG")),
        Rule("read-out to write", (C.RDM, C.RDAF), (C.WR, C.WRA), "channel", n("tCLREG") + turn - n("tCWL")),
        Rule("read-out to buffer write", (C.RDM, C.RDAF), (C.GBW,), "channel", n("tCLREG") + turn - n("tCWLGB")),
        Rule("read-out to bias", (C.RDM, C.RDAF), (C.BIAS,), "channel", n("tCLREG") + turn - n("tCWLREG")),
        # write to read
        Rule("tWTRS", (C.WR,), (C.RD,), "channel", write_end + n("tWTRS")),
        Rule("tWTRL", (C.WR,), (C.RD,), "group", write_end + n("tWTRL")),
        Rule("tWTRL to all banks", (C.WR,), (C.RDM, C.RDAF), "channel", write_end + n("tWTRL")),
        Rule("tWTRL from all banks", (C.WRA,), (C.RD, C.RDM, C.RDAF), "channel", write_end + n("tWTRL")),
        Rule("buffer write to read", (C.GBW,), (C.RD, C.RDM, C.RDAF), "channel", n("tCWLGB") + n("tBL") + n("tWTRS")),
        Rule("bias to read", (C.BIAS,), (C.RD, C.RDM, C.RDAF), "channel", n("tCWLREG") + n("tBL") + n("tWTRL")),
        # two commands' data never meet on the pins, and what was written has landed when a MAC uses it
        Rule("write data to buffer write", (C.WR, C.WRA), (C.GBW,), "channel", write_end - n("tCWLGB"), source="ours"),
        Rule("write data to bias", (C.WR, C.WRA), (C.BIAS,), "channel", write_end - n("tCWLREG"), source="ours"),
        Rule("read data to read-out", (C.RD,), (C.RDM, C.RDAF), "channel", n("tCL") + n("tBL") - n("tCLREG"), source="ours"),
        Rule("write to MAC", (C.WR, C.WRA), (C.MAC, C.MACS), "channel", write_end + n("tWTRL"), source="ours"),
        Rule("buffer write to MAC", (C.GBW,), (C.MAC, C.MACS), "channel", n("tCWLGB") + n("tBL") + n("tWTRL"), source="ours"),
        Rule("bias to MAC", (C.BIAS,), (C.MAC, C.MACS), "channel", n("tCWLREG") + n("tBL") + n("tWTRL"), source="ours"),
        # rows: activate, access, precharge
        Rule("tRCDRD", (C.ACT,), (C.RD,), "bank", n("tRCDRD")),
        Rule("tRCDRD all banks", (C.ACTA,), (C.RD,), "channel", n("tRCDRD")),
        Rule("tRCDWR", (C.ACT,), (C.WR,), "bank", n("tRCDWR")),
        Rule("tRCDWR all banks", (C.ACTA,), (C.WR, C.WRA), "channel", n("tRCDWR")),
        Rule("tRCDMAC", (C.ACTA,), (C.MAC, C.MACS), "channel", n("tRCDMAC")),
        Rule("tRTP", (C.RD, C.RDCP, C.MACS), (C.PRE,), "bank", n("tRTP")),
        Rule("tRTP to all banks", (C.RD, C.RDCP, C.MACS, C.MAC, C.AF, C.EWMUL), (C.PREA,), "channel", n("tRTP")),
        Rule("tWR", (C.WR, C.WRCP), (C.PRE,), "bank", recover),
        Rule("tWR to all banks", (C.WR, C.WRCP), (C.PREA,), "channel", recover),
        Rule("tWR auto-precharge", (C.WRA,), (C.ACT, C.ACTA, C.REF), "channel", recover + n("tRP")),
        Rule("tRAS", (C.ACT,), (C.PRE,), "bank", n("tRAS")),
        Rule("tRAS to all banks", activates, (C.PREA,), "channel", n("tRAS")),
        Rule("tRP", (C.PRE,), (C.ACT,), "bank", n("tRP")),
        Rule("tRP to all banks", (C.PRE,), (C.ACTA,), "channel", n("tRP")),
        Rule("tRP from all banks", (C.PREA,), activates, "channel", n("tRP")),
        Rule("tRC", (C.ACT,), (C.ACT,), "bank", n("tRC")),
        Rule("tRC to all banks", activates, (C.ACTA,), "channel", n("tRC")),
        Rule("tRC from all banks", (C.ACTA,), (C.ACT,), "channel", n("tRC")),
        Rule("tRRDS", (C.ACT,), (C.ACT,), "channel", n("tRRDS")),
        Rule("tRRDL", (C.ACT,), (C.ACT,), "group", n("tRRDL")),
        # refresh
        Rule("tRC to refresh", activates, (C.REF,), "channel", n("tRC")),
        Rule("tRP to refresh", (C.PRE, C.PREA), (C.REF,), "channel", n("tRP")),
        Rule("tRFC", (C.REF,), activates, "channel", n("tRFC")),
        Rule("tRFC to the rest", (C.REF,), tuple(kind for kind in C if kind not in activates), "channel", n("tRFC"), source="ours"),
        # registers and array
        Rule("tMODE", (C.MODE,), everything, "channel", n("tMODE")),
        Rule("tMODE back", (C.MODE,), (C.MODE,), "channel", n("tMODE"), source="ours"),
    ]
    if timing.four_activate_window:
        window = (C.ACT,) if timing.all_bank_exempt else activates
        listed.append(Rule("tFAW", window, window, "channel", n("tFAW"), window=4))
    if traces:
        listed += _trace_rules(timing)
    kinds = frozenset(C) if traces else frozenset(CONTROLLER)
    cut = [
        Rule(r.name, tuple(k for k in r.before if k in kinds), tuple(k for k in r.after if k in kinds), r.scope, r.cycles, r.window, r.source) for r in listed
    ]
    return tuple(r for r in cut if r.before and r.after and r.cycles > 0)


def _trace_rules(timing: Timing) -> list[Rule]:
    """Rules that the overlapped controller cannot meet: other commands, precharges of closed banks, all-bank commands with single rows open."""
    n = timing.cycles
    to_copies = (("tRCDRDCP", C.RDCP), ("tRCDWRCP", C.WRCP), ("tRCDMAC", C.MACS))
    to_all = (("tRCDAF", C.AF), ("tRCDEWMUL", C.EWMUL))
    listed = [Rule(f"{name} single", (C.ACT,), (kind,), "bank", n(name)) for name, kind in to_copies]
    listed += [Rule(f"{name} all banks", (C.ACTA,), (kind,), "channel", n(name)) for name, kind in to_copies[:2]]
    listed += [Rule(name, (C.ACT, C.ACTA), (kind,), "channel", n(name)) for name, kind in to_all]
    return [
        *listed,
        Rule("tRCDMAC from single rows", (C.ACT,), (C.MAC,), "channel", n("tRCDMAC")),
        Rule("tRCDWR from single rows", (C.ACT,), (C.WRA,), "channel", n("tRCDWR")),
        Rule("tRAS all banks to one", (C.ACTA,), (C.PRE,), "channel", n("tRAS")),
        Rule("tRTP all banks to one", (C.MAC, C.AF, C.EWMUL), (C.PRE,), "channel", n("tRTP")),
        Rule("tWR element-wise", (C.EWMUL,), (C.PRE, C.PREA), "channel", n("tCWL") + n("tWR")),
        Rule("tRP precharges", (C.PREA,), (C.PRE, C.PREA), "channel", n("tRP")),
        Rule("tRP one to all", (C.PRE,), (C.PREA,), "channel", n("tRP")),
        Rule("tRP same bank", (C.PRE,), (C.PRE,), "bank", n("tRP")),
        Rule("copy holds its group", (C.RDCP, C.WRCP), (C.RD, C.WR, C.MACS, C.RDCP, C.WRCP), "group", n("tCCDL"), source="ours"),
    ]


def gaps(listed: tuple[Rule, ...], *, windows: bool = False) -> dict[tuple[C, C, Scope], int]:
    """(before, after, scope) -> cycles: the largest of the plain rules, or with ``windows`` of the rules with a window above 1.

    Gaps of a wider scope that are at least as large make the narrower one void; it is left out.
    """
    table: dict[tuple[C, C, Scope], int] = {}
    for rule in listed:
        if (rule.window > 1) == windows:
            for before in rule.before:
                for after in rule.after:
                    key = (before, after, rule.scope)
                    table[key] = max(table.get(key, 0), rule.cycles)
    wider: dict[Scope, tuple[Scope, ...]] = {"channel": (), "group": ("channel",), "bank": ("group", "channel")}
    return {(b, a, s): cycles for (b, a, s), cycles in table.items() if all(table.get((b, a, w), 0) < cycles for w in wider[s])}
