# SPDX-License-Identifier: Apache-2.0
"""Macro-commands and commands as bits: what enters a channel's controller and what leaves it."""

from collections.abc import Iterable

import numpy as np
from amaranth.lib import data
from amaranth.utils import bits_for, ceil_log2
from numpy.typing import NDArray

from lutra.hls_models.pim.config import LANE_BITS, PimConfig
from lutra.hls_models.pim.program import Macro, MacroKind
from lutra.hls_models.streams import pack, words_for

__all__ = ["COMMAND_BITS", "END", "TIMES_BITS", "command_layout", "encode", "macro_layout"]

COMMAND_BITS = 4
"""Of a command's kind: those of public traces have no code here."""
END = len(MacroKind)
"""Kind of the macro that ends a program: read-outs that are pending, register mode off."""
TIMES_BITS = 16


def _sizes(config: PimConfig) -> dict[str, int]:
    return {
        "bank": max(1, ceil_log2(config.banks)),
        "row": max(1, ceil_log2(config.rows)),
        "column": max(1, ceil_log2(config.columns)),
        "count": bits_for(config.columns),
        "accumulators": bits_for(config.accumulators_per_bank),
        "accumulator": max(1, ceil_log2(config.accumulators_per_bank)),
        "element": ceil_log2(config.lanes),
    }


def macro_layout(config: PimConfig) -> data.StructLayout:
    """Bits of a macro-command: the fields of ``Macro``, with the last bank instead of their number and the step split into rows and columns."""
    s = _sizes(config)
    return data.StructLayout(
        {
            "kind": 3,
            "bank": s["bank"],
            "last": s["bank"],
            "row": s["row"],
            "column": s["column"],
            "entry": s["column"],
            "count": s["count"],
            "load": s["accumulators"],
            "read": s["accumulators"],
            "accumulator": s["accumulator"],
            "times": TIMES_BITS,
            "step_rows": s["row"],
            "step_columns": s["column"],
            "open": 1,
            "element": s["element"],
        }
    )


def command_layout(config: PimConfig) -> data.StructLayout:
    """Bits of a command; fields that its kind does not use have any value. ``entry``: of the global buffer; ``data``: of GBW, WR; WRA: bank b's in lane b."""
    s = _sizes(config)
    return data.StructLayout(
        {
            "kind": COMMAND_BITS,
            "bank": s["bank"],
            "row": s["row"],
            "column": s["column"],
            "entry": s["column"],
            "accumulator": s["accumulator"],
            "element": s["element"],
            "data": LANE_BITS * config.lanes,
        }
    )


def encode(config: PimConfig, macros: Iterable[Macro], *, end: bool = True) -> NDArray[np.uint32]:
    """Macro-commands (n, words) uint32 as ``macro_layout`` has them, with ``END`` behind them.

    ValueError for a macro that reaches beyond the rows, the columns, the buffer or the banks.
    """
    layout = macro_layout(config)
    rows = [_fields(config, index, macro) for index, macro in enumerate(macros)]
    if end:
        rows.append({"kind": END})
    if not rows:
        return np.zeros((0, words_for(layout.size)), np.uint32)
    return pack(*((np.array([row.get(name, 0) for row in rows]), field.width) for name, field in layout))


def _fields(config: PimConfig, index: int, macro: Macro) -> dict[str, int]:
    """Fields of one macro; those that its kind does not use as the controller wants them."""
    kind, columns = macro.kind, config.columns
    access = kind in (MacroKind.READ, MacroKind.WRITE)
    repeats = kind in (MacroKind.MAC, MacroKind.SCATTER, MacroKind.MODIFY)
    buffers = kind in (MacroKind.MAC, MacroKind.BUFFER)
    times = macro.times if repeats else 1
    count = macro.count if kind in (MacroKind.MAC, MacroKind.BUFFER, MacroKind.READ, MacroKind.WRITE) else 1
    start = macro.row * columns + macro.column
    last = start + (times - 1) * macro.step + (count - 1 if kind is not MacroKind.BUFFER else 0)
    limits = [
        ("count", count, 1, columns),
        ("times", times, 1, (1 << TIMES_BITS) - 1),
        ("column", macro.column, 0, columns - 1 if kind is not MacroKind.READ and kind is not MacroKind.WRITE else columns - count),
        ("last position", last, start, config.rows * columns - 1),
        ("step", macro.step, 0, config.rows * columns - 1),
        ("entry", macro.entry, 0, columns - count if buffers else columns - 1),
        ("load", macro.load, 0, config.accumulators_per_bank),
        ("read", macro.read, 0, config.accumulators_per_bank),
        ("accumulator", macro.accumulator, 0, config.accumulators_per_bank - 1),
        ("bank", macro.bank, 0, config.banks - 1),
        ("banks", macro.banks, 1, config.banks - macro.bank),
        ("element", macro.element, 0, config.lanes - 1),
    ]
    for name, value, low, high in limits:
        if not low <= value <= high:
            raise ValueError(f"macro {index}, {kind.name}: {name} must be {low} to {high}, not {value}")
    step = divmod(macro.step, columns) if repeats else (0, 0)
    return {
        "kind": kind,
        "bank": macro.bank if access else 0,
        "last": macro.bank + macro.banks - 1 if access else config.banks - 1,
        "row": macro.row,
        "column": macro.column,
        "entry": macro.entry if buffers else 0,
        "count": count,
        "load": macro.load if buffers else 0,
        "read": macro.read if kind is MacroKind.MAC else 0,
        "accumulator": macro.accumulator,
        "times": times,
        "step_rows": step[0],
        "step_columns": step[1],
        "open": macro.open,
        "element": macro.element,
    }
