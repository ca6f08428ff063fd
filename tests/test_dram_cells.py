# SPDX-License-Identifier: Apache-2.0
"""Cells of the DRAM model under Verilator against its Python form: random streams of commands, contents from a file, dump at the end."""

import numpy as np
import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.cosim.dram.cells import DramCells, contents, read_dump
from lutra.cosim.dram.commands import STREAM, Command
from lutra.cosim.dram.device import Device
from lutra.cosim.harness import Bench, Stimulus
from lutra.hls_models.errors import ToolError
from lutra.hls_models.streams import pack, unpack

BANKS, LANES, ROWS, COLUMNS = 4, 16, 6, 8
READ_LATENCY = 5
SIZES = {"banks": BANKS, "lanes": LANES, "rows": ROWS, "columns": COLUMNS}


class CellsBench(wiring.Component):
    """A stream of commands in; out: every bank's column per MAC, one bank's column per RD."""

    def __init__(self):
        self.cells = DramCells(name="memory", address_rows=8, read_latency=READ_LATENCY, **SIZES)
        ports = {name: len(getattr(self.cells, name)) for name in ("command", "bank", "row", "column", "element", "data")}
        super().__init__(
            {
                "commands": In(stream.Signature(data.StructLayout(ports), always_ready=True)),
                "columns": Out(stream.Signature(16 * LANES * BANKS, always_ready=True)),
                "read": Out(stream.Signature(16 * LANES, always_ready=True)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.cells = cells = self.cells
        m.d.comb += [getattr(cells, name).eq(self.commands.payload[name]) for name in ("command", "bank", "row", "column", "element", "data")]
        m.d.comb += [cells.valid.eq(self.commands.valid), self.columns.payload.eq(cells.columns), self.read.payload.eq(cells.read)]
        m.d.sync += self.columns.valid.eq(self.commands.valid & (cells.command == Command.MAC))
        later = self.commands.valid & (cells.command == Command.RD)
        for i in range(READ_LATENCY):
            stage = Signal(name=f"read_{i}")
            m.d.sync += stage.eq(later)
            later = stage
        m.d.comb += self.read.valid.eq(later)
        return m


@pytest.fixture(scope="module")
def bench():
    out = Bench("dram_cells")
    out.add("c0", CellsBench())
    out.build()
    return out


def random_commands(rng, rounds):
    """Rows opened in one or all banks, read, multiplied and written; (stream, a beat per command)."""
    rows = []
    for _ in range(rounds):
        row = int(rng.integers(ROWS))
        if rng.integers(2):
            rows.append({"command": Command.ACTA, "row": row})
            for _ in range(rng.integers(1, 5)):
                kind = rng.choice([Command.RD, Command.MAC, Command.WR])
                rows.append({"command": kind, "bank": rng.integers(BANKS), "column": rng.integers(COLUMNS)})
            rows.append({"command": rng.choice([Command.PREA, Command.WRA]), "column": rng.integers(COLUMNS), "element": rng.integers(LANES)})
        else:
            bank = int(rng.integers(BANKS))
            rows.append({"command": Command.ACT, "bank": bank, "row": row})
            rows += [{"command": rng.choice([Command.RD, Command.WR]), "bank": bank, "column": rng.integers(COLUMNS)} for _ in range(rng.integers(1, 5))]
            rows.append({"command": Command.PRE, "bank": bank})
    commands = np.zeros(len(rows), STREAM)
    commands["cycle"] = np.arange(len(rows))
    for i, row in enumerate(rows):
        for name, value in row.items():
            commands[name][i] = value
    return commands, rng.integers(0, 1 << 16, (len(rows), LANES)).astype(np.uint16)


def played(commands, beats):
    fields = [(commands[name].astype(np.int64), width) for name, width in (("command", 5), ("bank", 2), ("row", 3), ("column", 3), ("element", 4))]
    return Stimulus(pack(*fields, (beats, 16)), commands["cycle"])


def test_the_cells_obey_as_the_model_does(bench, rng, tmp_path):
    commands, beats = random_commands(rng, 200)
    device = Device(**SIZES)
    for row in (0, 3, 4):
        device.row(row)[:] = rng.integers(0, 1 << 16, (BANKS, COLUMNS, LANES))
    files = {"memory.cells": contents(device, rows=ROWS), "memory.dump": ""}
    reads, macs = (np.flatnonzero(commands["command"] == kind) for kind in (Command.RD, Command.MAC))
    run = bench.run(
        stimuli={"c0": {"commands": played(commands, beats)}},
        beats={"c0": {"columns": len(macs), "read": len(reads)}},
        files=files,
        max_cycles=len(commands) + 100,
        keep=tmp_path,
    )["c0"]
    written = np.isin(commands["command"], [Command.WR, Command.WRA])
    used = 0
    for i, mac in enumerate([*macs, None]):  # what a MAC reads is in the cells when it comes
        piece = slice(0 if i == 0 else macs[i - 1], mac)
        count = int(written[piece].sum())
        values = device.replay(commands[piece], beats[written][used : used + count]).values
        used += count
        first = int((reads < (piece.start or 0)).sum())
        assert np.array_equal(unpack(run["read"].payloads, 16, lanes=LANES)[first : first + len(values)], values)
        if mac is not None:
            got = unpack(run["columns"].payloads[i : i + 1], 16, lanes=BANKS * LANES).reshape(BANKS, LANES)
            row = commands["row"][np.flatnonzero(commands["command"][:mac] == Command.ACTA)[-1]]
            assert np.array_equal(got, device.row(row)[:, commands["column"][mac]])
    assert np.array_equal(run["columns"].cycles, macs + 1)
    assert np.array_equal(run["read"].cycles, reads + READ_LATENCY)
    dump = read_dump(tmp_path / "memory.dump", **SIZES)
    assert all(np.array_equal(dump[:, row], device.row(row)) for row in range(ROWS))


def test_a_closed_row_reads_as_nan(bench):
    commands = np.zeros(2, STREAM)
    commands["cycle"], commands["command"] = [0, 1], [Command.RD, Command.MAC]
    stimuli = {"c0": {"commands": played(commands, np.zeros((2, LANES), np.uint16))}}
    run = bench.run(stimuli=stimuli, beats={"c0": {"columns": 1, "read": 1}}, max_cycles=50)
    assert (run["c0"]["columns"].payloads == 0x7FC07FC0).all() and (run["c0"]["read"].payloads == 0x7FC07FC0).all()


def test_a_row_that_is_not_modelled_ends_the_simulation(bench):
    commands = np.zeros(1, STREAM)
    commands["command"], commands["row"] = Command.ACTA, ROWS
    with pytest.raises(ToolError, match="row 6 of 6 modelled rows"):
        bench.run(stimuli={"c0": {"commands": played(commands, np.zeros((1, LANES), np.uint16))}}, max_cycles=50)


def test_contents_beyond_the_modelled_rows_are_refused():
    device = Device(**SIZES)
    device.row(5)
    with pytest.raises(ValueError, match="row 5 is used and only 4 rows are modelled"):
        contents(device, rows=4)
