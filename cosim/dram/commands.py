# SPDX-License-Identifier: Apache-2.0
"""Commands of a GDDR6-AiM channel and the form of a recorded command stream."""

from collections.abc import Iterable
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ACTIVATES", "ALL_BANK", "ARRAY", "REGISTER", "STREAM", "Command", "Stream", "as_stream"]

Stream = NDArray[Any]


class Command(IntEnum):
    """Codes on the command port. The names of the open simulator's table are in brackets where they differ."""

    ACT = 0
    ACTA = 1  # ACT16
    PRE = 2
    PREA = 3
    RD = 4
    WR = 5
    MAC = 6  # MAC16
    WRA = 7  # WRA16: all banks, precharges by itself
    GBW = 8  # WRGB
    RDM = 9  # RDMAC16
    BIAS = 10  # WRMAC16
    MODE = 11  # TMOD
    REF = 12  # REFab
    MACS = 13  # MAC, one bank
    AF = 14  # AF16
    EWMUL = 15  # EWMUL16
    RDCP = 16
    WRCP = 17
    RDAF = 18  # RDAF16


C = Command

ACTIVATES = frozenset({C.ACT, C.ACTA})

ALL_BANK = frozenset({C.ACTA, C.PREA, C.MAC, C.WRA, C.GBW, C.RDM, C.BIAS, C.MODE, C.REF, C.AF, C.EWMUL, C.RDAF})
"""Commands without a bank: they concern all of them, or none."""

ARRAY = frozenset({C.RD, C.WR, C.MAC, C.WRA, C.MACS, C.AF, C.EWMUL, C.RDCP, C.WRCP})
"""Commands that reach into open rows."""

REGISTER = frozenset({C.RDM, C.BIAS, C.RDAF})
"""Commands of register mode."""

STREAM = np.dtype(
    [
        ("cycle", np.int64),
        ("command", np.uint8),
        ("bank", np.int16),
        ("row", np.int32),
        ("column", np.int32),
        ("entry", np.int32),
        ("accumulator", np.int16),
        ("element", np.int16),
    ]
)
"""One command. ``row``: of an activate; of an access the row it means, -1 where that is not known. ``entry``: of the global buffer. ``element``: value of
the column that a WRA writes."""


def as_stream(commands: Stream | Iterable[dict[str, int]], *, rows_of: frozenset[Command] | None = None) -> Stream:
    """A stream of dtype ``STREAM`` from any structured array with some of its fields, or from one dictionary per command.

    Fields that are missing are 0, but for ``row`` (-1), and ``element``, which is then ``entry``. ``rows_of``: commands whose ``row`` means
    something, if not all.
    """
    if not isinstance(commands, np.ndarray):
        rows = list(commands)
        out = np.zeros(len(rows), STREAM)
        out["row"] = -1
        for i, row in enumerate(rows):
            for name, value in row.items():
                out[name][i] = value
        return out
    names = commands.dtype.names or ()
    if "cycle" not in names or "command" not in names:
        raise ValueError(f"a command stream needs the fields cycle and command, not {', '.join(names) or 'none'}")
    if commands.dtype == STREAM and rows_of is None:
        return commands
    out = np.zeros(len(commands), STREAM)
    out["row"] = -1
    for name in names:
        if name in (STREAM.names or ()):
            out[name] = commands[name]
    if "element" not in names:
        out["element"] = out["entry"]
    if rows_of is not None:
        out["row"][~np.isin(out["command"], list(rows_of))] = -1
    return out
