# SPDX-License-Identifier: Apache-2.0
"""The cells of a channel beside RTL in a simulation: an Amaranth shell around ``lutra_dram_cells.v``, and the files that it reads and writes."""

from pathlib import Path
from typing import Any

import numpy as np
from amaranth.hdl import ClockSignal, Elaboratable, Instance, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2
from numpy.typing import NDArray

from .device import Device

__all__ = ["DramCells", "contents", "read_dump"]


class DramCells(wiring.Component):
    """Rows of one channel; columns come one cycle after their command. For simulation only.

    Parameters
    ----------
    name
        Of the files: ``name.cells`` holds the first contents (``contents``); where ``name.dump`` exists, it gets the last ones (``read_dump``).
    banks, lanes, rows, columns
        Sizes. All rows are held in memory: model as few as the program uses.
    address_rows
        Rows that ``row`` can address, at least ``rows``.
    read_latency
        Clocks from RD to its data on ``read``.

    Members
    -------
    valid, command, bank, row, column, element, data
        The command port; ``data`` is the beat of WR, or bank b's value in lane b for WRA (into value ``element`` of the column).
    columns : Out(banks * lanes * 16)
        From the cycle after a MAC on, the column of every bank's open row, bank 0 lowest. A bank without an open row gives NaNs.
    read : Out(lanes * 16)
        ``read_latency`` cycles after RD, the column of the bank's open row; NaNs at other times.
    """

    def __init__(self, *, name: str, banks: int, lanes: int, rows: int, columns: int, address_rows: int = 0, read_latency: int = 1) -> None:
        self.read_latency = read_latency
        self.name, self.banks, self.lanes, self.rows, self.row_columns = name, banks, lanes, rows, columns
        super().__init__(
            {
                "valid": In(1),
                "command": In(5),
                "bank": In(max(1, ceil_log2(banks))),
                "row": In(max(1, ceil_log2(max(rows, address_rows)))),
                "column": In(max(1, ceil_log2(columns))),
                "element": In(max(1, ceil_log2(lanes))),
                "data": In(16 * lanes),
                "columns": Out(16 * lanes * banks),
                "read": Out(16 * lanes),
            }
        )

    def elaborate(self, platform: Any) -> Elaboratable:
        m = Module()
        m.submodules.cells = Instance(
            "lutra_dram_cells",
            p_NAME=self.name,
            p_BANKS=self.banks,
            p_LANES=self.lanes,
            p_ROWS=self.rows,
            p_COLUMNS=self.row_columns,
            p_BANK_BITS=len(self.bank),
            p_ROW_BITS=len(self.row),
            p_COLUMN_BITS=len(self.column),
            p_ELEMENT_BITS=len(self.element),
            p_READ_LATENCY=self.read_latency,
            i_clk=ClockSignal(),
            i_valid=self.valid,
            i_command=self.command,
            i_bank=self.bank,
            i_row=self.row,
            i_column=self.column,
            i_element=self.element,
            i_data=self.data,
            o_columns=self.columns,
            o_read=self.read,
        )
        return m


def contents(device: Device, *, rows: int) -> str:
    """Text of ``name.cells``: what a device model holds in its first ``rows`` rows; rows that were never touched are left out (zeros)."""
    lines = []
    for row in device.touched():
        if row >= rows:
            raise ValueError(f"row {row} is used and only {rows} rows are modelled")
        cells = device.row(row)
        for bank in range(device.banks):
            lines.append(f"@{(bank * rows + row) * device.columns:x}")
            lines.append(cells[bank, :, ::-1].astype(">u2").tobytes().hex("\n", 2 * device.lanes))
    return "\n".join(lines) + "\n"


def read_dump(path: str | Path, *, banks: int, lanes: int, rows: int, columns: int) -> NDArray[np.uint16]:
    """Cells (banks, rows, columns, lanes) from a ``name.dump``."""
    return np.fromfile(path, "<u2").reshape(banks, rows, columns, lanes)
