# SPDX-License-Identifier: Apache-2.0
"""Cells of the DRAM model under Verilator against its Python form: random streams of commands, contents from a file, dump at the end."""

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.cosim.dram.cells import DramCells, contents, read_dump
from lutra.cosim.dram.commands import STREAM, Command
from lutra.cosim.dram.device import Device
from lutra.cosim.harness import Bench, Stimulus
from lutra.hls_models.errors import ToolError
from lutra.hls_models.streams import pack, unpack

BANKS, LANES, ROWS, COLUMNS = 4, 16, 6, 8
SIZES = {"banks": BANKS, "lanes": LANES, "rows": ROWS, "columns": COLUMNS}


class CellsBench(wiring.Component):
    """A stream of commands in, the columns of each read out."""

    def __init__(self):
        self.cells = DramCells(name="memory", address_rows=8, **SIZES)
        ports = {name: len(getattr(self.cells, name)) for name in ("command", "bank", "row", "column", "element", "data")}
        super().__init__(
            {
                "commands": In(stream.Signature(data.StructLayout(ports), always_ready=True)),
                "columns": Out(stream.Signature(16 * LANES * BANKS, always_ready=True)),
            }
        )

    def elaborate(self, platform):
        m = Module()
        m.submodules.cells = cells = self.cells
        m.d.comb += [getattr(cells, name).eq(self.commands.payload[name]) for name in ("command", "bank", "row", "column", "element", "data")]
        m.d.comb += [cells.valid.eq(self.commands.valid), self.columns.payload.eq(cells.columns)]
        m.d.sync += self.columns.valid.eq(self.commands.valid & ((cells.command == Command.RD) | (cells.command == Command.MAC)))
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
    reads = np.flatnonzero(commands["command"] == Command.RD)
    columns = np.flatnonzero(np.isin(commands["command"], [Command.RD, Command.MAC]))
    run = bench.run(
        stimuli={"c0": {"commands": played(commands, beats)}},
        beats={"c0": {"columns": len(columns)}},
        files=files,
        max_cycles=len(commands) + 100,
        keep=tmp_path,
    )
    got = unpack(run["c0"]["columns"].payloads, 16, lanes=BANKS * LANES).reshape(-1, BANKS, LANES)
    written = np.isin(commands["command"], [Command.WR, Command.WRA])
    expected = device.replay(commands, beats[written])
    assert np.array_equal(run["c0"]["columns"].cycles, columns + 1)
    assert np.array_equal(got[np.isin(columns, reads), commands["bank"][reads]], expected.values)
    dump = read_dump(tmp_path / "memory.dump", **SIZES)
    assert all(np.array_equal(dump[:, row], device.row(row)) for row in range(ROWS))


def test_a_closed_row_reads_as_nan(bench):
    commands = np.zeros(1, STREAM)
    commands["command"] = Command.RD
    run = bench.run(stimuli={"c0": {"commands": played(commands, np.zeros((1, LANES), np.uint16))}}, beats={"c0": {"columns": 1}}, max_cycles=50)
    assert (unpack(run["c0"]["columns"].payloads, 16, lanes=BANKS * LANES) == 0x7FC0).all()


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
