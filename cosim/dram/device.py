# SPDX-License-Identifier: Apache-2.0
"""Cells, global buffer and accumulators of one channel: replays a recorded command stream and says what every read must have returned."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arithmetic import BF16_DIGITS, FP32_DIGITS, accumulate, bf16_bits, dot
from .commands import Command, Stream, as_stream

__all__ = ["Device", "Readouts"]

Cells = NDArray[np.uint16]
CLOSED = -1
WRITES = frozenset({Command.GBW, Command.WR, Command.WRA})


@dataclass
class Readouts:
    """What RD and RDM returned: ``values`` (n, lanes) uint16 (RDM: bank b in lane b, zeros above), ``commands`` (n,): index of the command in the stream."""

    values: Cells
    commands: NDArray[np.int64]


@dataclass
class Device:
    """The contents of a channel.

    Parameters
    ----------
    banks, lanes, rows, columns
        Sizes; a column holds ``lanes`` bf16 values, the global buffer has one entry per column of a row.
    accumulators
        Of each bank.
    bf16_accumulator
        Whether an accumulator is rounded to bf16 after every add; else fp32.
    """

    banks: int
    lanes: int
    rows: int
    columns: int
    accumulators: int = 1
    bf16_accumulator: bool = False
    _rows: dict[int, Cells] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.buffer: Cells = np.zeros((self.columns, self.lanes), np.uint16)
        self.registers = np.zeros((self.accumulators, self.banks))
        self._open = np.full(self.banks, CLOSED, np.int64)

    def row(self, row: int) -> Cells:
        """Cells (banks, columns, lanes) of one row of all banks; a row never written is zero. Writing into the array writes the cells."""
        if not 0 <= row < self.rows:
            raise ValueError(f"row must be 0 to {self.rows - 1}, not {row}")
        if row not in self._rows:
            self._rows[row] = np.zeros((self.banks, self.columns, self.lanes), np.uint16)
        return self._rows[row]

    def touched(self) -> list[int]:
        """Rows that were read or written."""
        return sorted(self._rows)

    def load(self, bank: int, row: int, column: int, values: ArrayLike) -> None:
        """Writes values (columns, lanes) from a column of one bank on, without any command."""
        block = np.asarray(values, np.uint16).reshape(-1, self.lanes)
        if column + len(block) > self.columns:
            raise ValueError(f"columns must end at {self.columns - 1}, not {column + len(block) - 1}")
        self.row(row)[bank, column : column + len(block)] = block

    def replay(self, commands: Stream, data: ArrayLike = ()) -> Readouts:
        """Runs a stream. ``data``: beats (n, lanes) uint16 of its GBW, WR and WRA commands in order (WRA: bank b's value in lane b).

        State stays: a stream may come in pieces. ValueError where a command has no open row, or beats are missing or left over. BIAS loads +0.
        """
        stream = as_stream(commands)
        beats = np.asarray(data, np.uint16).reshape(-1, self.lanes)
        wanted = int(np.isin(stream["command"], list(WRITES)).sum())
        if wanted != len(beats):
            raise ValueError(f"a stream with {wanted} writes needs as many beats of data, not {len(beats)}")
        values: list[Cells] = []
        indices: list[int] = []
        used = 0
        for first, last in _runs(stream["command"]):
            command = stream[first]
            kind = Command(command["command"])
            if kind is Command.MAC:
                self._mac(stream[first:last])
            elif kind in (Command.RD, Command.RDM):
                values.append(self._read(command) if kind is Command.RD else self._read_register(int(command["accumulator"])))
                indices.append(first)
            elif kind in WRITES:
                self._write(kind, command, beats[used])
                used += 1
            elif kind is Command.BIAS:
                self.registers[command["accumulator"]] = 0.0
            else:
                self._row_command(kind, command)
        return Readouts(np.array(values, np.uint16).reshape(-1, self.lanes), np.array(indices, np.int64))

    def _row_command(self, kind: Command, command: Any) -> None:
        if kind is Command.ACT:
            self._open[command["bank"]] = command["row"]
        elif kind is Command.ACTA:
            self._open[:] = command["row"]
        elif kind is Command.PRE:
            self._open[command["bank"]] = CLOSED
        elif kind is Command.PREA:
            self._open[:] = CLOSED
        elif kind not in (Command.MODE, Command.REF):
            raise ValueError(f"cycle {command['cycle']}: {kind.name} has timing here, but no values")

    def _opened(self, command: Any, bank: int | None) -> Cells:
        """Cells of the open row: (banks, columns, lanes), or of one bank only."""
        row = int(self._open[bank or 0])
        if row == CLOSED or (bank is None and (self._open != row).any()):
            raise ValueError(f"cycle {command['cycle']}: {Command(command['command']).name} needs {'one row of all banks' if bank is None else 'a row'} open")
        cells = self.row(row)
        return cells if bank is None else cells[bank : bank + 1]

    def _read(self, command: Any) -> Cells:
        return self._opened(command, int(command["bank"]))[0, command["column"]].copy()

    def _read_register(self, accumulator: int) -> Cells:
        out = np.zeros(self.lanes, np.uint16)
        out[: self.banks] = bf16_bits(self.registers[accumulator])
        return out

    def _write(self, kind: Command, command: Any, beat: Cells) -> None:
        if kind is Command.GBW:
            self.buffer[command["entry"]] = beat
        elif kind is Command.WR:
            self._opened(command, int(command["bank"]))[0, command["column"]] = beat
        else:
            self._opened(command, None)[:, command["column"], command["element"]] = beat[: self.banks]
            self._open[:] = CLOSED

    def _mac(self, run: Stream) -> None:
        """Consecutive MACs: no row, buffer or cell changes between them."""
        columns = self._opened(run[0], None)[:, run["column"]]  # (banks, count, lanes)
        terms = dot(columns, self.buffer[run["entry"]]).T
        for accumulator in np.unique(run["accumulator"]):
            mine = terms[run["accumulator"] == accumulator]
            digits = BF16_DIGITS if self.bf16_accumulator else FP32_DIGITS
            self.registers[accumulator] = accumulate(self.registers[accumulator], mine, digits=digits)


def _runs(kinds: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Ranges of the stream to be taken at once: consecutive MACs together, every other command alone."""
    mac = kinds == Command.MAC
    starts = np.flatnonzero(~mac | np.concatenate([[True], ~mac[:-1]])) if len(kinds) else np.zeros(0, np.int64)
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(kinds)], strict=True))
