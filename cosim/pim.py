# SPDX-License-Identifier: Apache-2.0
"""Whole programs on the RTL of a PIM system, with the DRAM's cells beside it: every command, every beat between channels and companion chip, every cell.

Held against each other: the RTL; the golden executor (values) and the system model (cycles); the DRAM device model, which checks every timing rule and
works out every read-out by itself.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from amaranth.hdl import Module, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from lutra.cosim.benches.pim_controller import commands
from lutra.cosim.dram.cells import DramCells, contents, read_dump
from lutra.cosim.dram.checker import Checker
from lutra.cosim.dram.checker import Report as TimingReport
from lutra.cosim.dram.device import Device
from lutra.cosim.dram.timing import read_timing
from lutra.cosim.harness import Bench, Fault, Recording, Stimulus, compare
from lutra.hls_models.errors import MismatchError
from lutra.hls_models.pim.channel import refresh_phase
from lutra.hls_models.pim.config import LANE_BITS, PimConfig
from lutra.hls_models.pim.executor import Execution, Executor
from lutra.hls_models.pim.instructions import Work
from lutra.hls_models.pim.program import Command, Program
from lutra.hls_models.pim.system import SystemModel, SystemRun
from lutra.hls_models.pim.timing import Timing, timing_file
from lutra.hls_models.streams import pack
from lutra.rtl.pim.companion_items import instruction_layout
from lutra.rtl.pim.controller import ADJUST, PHASE_BITS
from lutra.rtl.pim.gaps import DELTA, NO_RULE
from lutra.rtl.pim.macros import command_layout, encode, macro_layout
from lutra.rtl.pim.system import PimSystem

__all__ = ["PimBench", "PimRun", "SystemPorts"]

OPERANDS = {
    Command.ACT: ("bank", "row"),
    Command.ACTA: ("row",),
    Command.PRE: ("bank",),
    Command.RD: ("bank", "column"),
    Command.WR: ("bank", "column"),
    Command.MAC: ("column", "entry", "accumulator"),
    Command.WRA: ("column",),
    Command.GBW: ("entry",),
    Command.RDM: ("accumulator",),
    Command.BIAS: ("accumulator",),
}
"""Operands that a command has; the others may have any value."""
EARLIEST_PHASE = 3
"""First cycle for which a run can set the first refresh of a simulated controller."""
LEAST_ROWS = 64
"""Rows of a simulated bank at least."""


class SystemPorts(wiring.Component):
    """A system and its cells; macro-commands, instructions, commands and the index register's changes are ports.

    ``files``: prefix of the cells' files, ``{files}{channel}.cells`` and ``.dump``. Without ``macs`` what accumulators return is a port, too.
    """

    def __init__(self, config: PimConfig, timing: Timing, *, rows: int, files: str, macs: bool = True) -> None:
        self._config, self._timing, self._rows, self._files, self._macs = config, timing, rows, files, macs
        members: dict[str, Any] = {"instructions": In(stream.Signature(instruction_layout(config)))}
        for c in range(config.channels):
            members[f"macros_{c}"] = In(stream.Signature(macro_layout(config)))
            members[f"adjust_{c}"] = In(stream.Signature(ADJUST, always_ready=True))
            if not macs:
                members[f"values_{c}"] = In(stream.Signature(LANE_BITS * config.banks))
            members[f"command_{c}"] = Out(stream.Signature(command_layout(config), always_ready=True))
        super().__init__(members | {"index": Out(stream.Signature(32, always_ready=True))})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        config = self._config
        m.submodules.system = system = PimSystem(config, self._timing, adjustable=True, macs=self._macs)
        wiring.connect(m, wiring.flipped(self.instructions), system.instructions)
        latency = self._timing.cycles("tCL") + self._timing.cycles("tBL")
        for c in range(config.channels):
            cells = DramCells(
                name=f"{self._files}{c}",
                banks=config.banks,
                lanes=config.lanes,
                rows=self._rows,
                columns=config.columns,
                address_rows=config.rows,
                read_latency=latency,
            )
            m.submodules[f"cells_{c}"] = cells
            wiring.connect(m, wiring.flipped(getattr(self, f"macros_{c}")), system.macros[c])
            wiring.connect(m, wiring.flipped(getattr(self, f"adjust_{c}")), system.adjust[c])
            wiring.connect(m, system.command[c], wiring.flipped(getattr(self, f"command_{c}")))
            if not self._macs:
                values = getattr(self, f"values_{c}")
                m.d.comb += [system.values[c].eq(values.payload), values.ready.eq(system.values_taken[c])]
            command = system.command[c].payload
            m.d.comb += [
                cells.valid.eq(system.command[c].valid),
                cells.command.eq(command.kind),
                *(getattr(cells, name).eq(command[name]) for name in ("bank", "row", "column", "element", "data")),
                system.columns[c].eq(cells.columns),
                system.read[c].eq(cells.read),
            ]
        before = Signal(32)
        m.d.sync += before.eq(system.index)
        m.d.comb += [self.index.valid.eq(before != system.index), self.index.payload.eq(system.index)]
        return m


@dataclass(frozen=True)
class PimRun:
    """A program on the RTL, equal to all models."""

    execution: Execution
    """golden values"""
    system: SystemRun
    """the predicted cycles, which the RTL's are"""
    index: int
    """the RTL's index register at the end: the token it chose"""
    words: int
    """values compared: beats, read-outs (also with the device model's), cells that were written (all others are compared too)"""
    commands: int
    """commands whose cycle and operands were compared, and whose timing was checked"""
    cycles: int
    """measured: the RTL's last command, or the last beat between channels and companion chip"""
    predicted: int
    """the same of the model; the results of the last beat are written some clocks later (``system.cycles``)"""
    checked: tuple[TimingReport, ...]
    """per channel, what the DRAM device model says of the commands' timing"""


class PimBench:
    """One system as a simulator, for any number of programs.

    Parameters
    ----------
    config, timing
        Sizes and timing preset; refreshes of ``config.refresh_phase`` may be given anew for each run.
    rows
        Rows of a bank that programs use. Simulated are a power of two from 64 on, so that many sizes share a build.
    macs
        False: controllers and companion chip are RTL and the banks are modelled: accumulators return the golden values, for large systems.
    """

    def __init__(self, config: PimConfig, timing: Timing, *, rows: int, macs: bool = True) -> None:
        self.config, self.timing, self.macs = config, timing, macs
        self._raw_timing = read_timing(timing_file(config.timing))
        self.rows = rows = min(config.rows, max(LEAST_ROWS, 1 << (rows - 1).bit_length()))
        description = ["pim system", config.model_dump(mode="json"), timing.model_dump(mode="json"), rows, macs]
        self.bench = Bench(f"{config.name} system", description=description)
        self.bench.add("system", SystemPorts(config, timing, rows=rows, files="cells", macs=macs))

    def build(self) -> None:
        """Verilates, or takes the build from the cache."""
        self.bench.build()

    def run(
        self, program: Program, cells: NDArray[np.uint16], *, phase: int | None = None, faults: tuple[Fault, ...] = (), folder: Path | None = None
    ) -> PimRun:
        """Runs a program on contents (channels, banks, positions, V) of the first rows, which hold the RTL's afterwards.

        Parameters
        ----------
        phase
            Cycle of the first refresh of channel 0, else the configuration's; 3 where it is less.
        faults
            Beats to disturb, for negative controls.

        Raises
        ------
        MismatchError : the first difference: stream, index, cycle; or a timing rule broken, with bank, cycle and slack
        """
        first_due = max(self.config.refresh_phase if phase is None else phase, EARLIEST_PHASE)
        config = self.config.model_copy(update={"refresh_phase": first_due})
        given = cells.shape[2]
        if given > self.rows * config.columns:
            raise ValueError(f"cells must be at most {self.rows} rows, not {given // config.columns}")
        start = np.zeros((*cells.shape[:2], self.rows * config.columns, config.lanes), np.uint16)
        start[:, :, :given] = cells
        golden = start.copy()
        execution = Executor(config, golden).run(program)
        model = SystemModel(config, self.timing, program, record=True)
        times = model.run()
        devices = [self._device(start[c]) for c in range(config.channels)]
        stimuli = {"instructions": Stimulus(self._instructions(program))}
        files: dict[str, str | bytes] = {}
        expected: dict[str, int] = {}
        for c, macros in enumerate(program.macros):
            first = refresh_phase(config, self.timing, c)
            stimuli[f"macros_{c}"] = Stimulus(encode(config, macros))
            stimuli[f"adjust_{c}"] = Stimulus(pack(*((np.array([value]), bits) for value, bits in ((NO_RULE, 8), (0, DELTA), (first, PHASE_BITS)))))
            if not self.macs:
                kinds = times.channels[c].commands()
                kinds = kinds[np.isin(kinds["command"], (Command.RD, Command.RDM)) & ~_modify_reads(kinds)]["command"]
                values = [beat for beat, kind in zip(execution.readouts[c], kinds, strict=True) if kind == Command.RDM]
                stimuli[f"values_{c}"] = Stimulus(pack((np.array(values, np.uint16).reshape(-1, config.banks), LANE_BITS)))
                expected[f"values_{c}"] = len(values)
            files[f"cells{c}.cells"] = contents(devices[c], rows=self.rows)
            files[f"cells{c}.dump"] = b""
            expected[f"command_{c}"] = len(times.channels[c].commands())
        with tempfile.TemporaryDirectory(prefix="lutra-pim-") as temporary:
            keep = folder or Path(temporary)
            options: dict[str, Any] = {"faults": faults, "files": files, "keep": keep, "drain": 2 * 64 + times.cycles // 100}
            try:
                found = self.bench.run(stimuli={"system": stimuli}, beats={"system": expected}, max_cycles=2 * times.cycles + 20000, **options)["system"]
            except MismatchError as error:  # it stands still: the reason is the first beat that differs, if any
                recordings = getattr(error, "recordings", None)
                if recordings:
                    self._compare(recordings["system"], execution, times)
                raise
            left = np.array([self._dump(keep / f"cells{c}.dump") for c in range(config.channels)])
        words = self._compare(found, execution, times)
        reports = []
        issued = [self._own(found, c, times) for c in range(config.channels)]
        for c, got in enumerate(issued):
            reports.append(self._check(c, config, got))
            words += self._replay(c, devices[c], got, execution.readouts[c])
            writes = [int((got["command"] == kind).sum()) for kind in (Command.WR, Command.WRA)]
            words += writes[0] * config.lanes + writes[1] * config.banks
        if not np.array_equal(left, golden):
            c, bank, position, lane = (int(i[0]) for i in np.nonzero(left != golden))
            row, column = divmod(position, config.columns)
            a, b = int(golden[c, bank, position, lane]), int(left[c, bank, position, lane])
            raise MismatchError(f"cells: channel {c}, bank {bank}, row {row}, column {column}, value {lane}: {b:#06x}, expected {a:#06x}")
        cells[:] = left[:, :, :given]
        seen = found["index"].payloads
        index = int(seen[-1, 0]) if len(seen) else 0
        if index != execution.index:
            raise MismatchError(f"index register: {index}, expected {execution.index}")
        last = [int(found[f"{name}_{c}"].cycles[-1]) for c in range(config.channels) for name in ("data", "readout") if len(found[f"{name}_{c}"])]
        last += [int(got[-1]["cycle"]) for got in issued if len(got)]
        ends = [channel.done or 0 for channel in times.channels]
        ends += [cycles[-1] for cycles in (*times.companion.send_times, *times.companion.take_times) if cycles]
        return PimRun(execution, times, index, words, sum(map(len, issued)), max(last), max(ends), tuple(reports))

    def _own(self, found: dict[str, Recording], c: int, times: SystemRun) -> NDArray[Any]:
        """Commands of the program; the idle controller behind it goes on with refreshes."""
        got = commands(self.config, found[f"command_{c}"])
        return got[got["cycle"] <= (times.channels[c].done or 0)]

    def _instructions(self, program: Program) -> NDArray[np.uint32]:
        packed = [Work.of(instruction, self.config).pack() for instruction in program.instructions]
        width = instruction_layout(self.config).size
        words = -(-width // 32)
        return np.array([[value >> (32 * w) & 0xFFFFFFFF for w in range(words)] for value in packed], np.uint32)

    def _device(self, cells: NDArray[np.uint16]) -> Device:
        config = self.config
        found = Device(config.banks, config.lanes, self.rows, config.columns, config.accumulators_per_bank, bf16_accumulator=config.accumulator == "bf16")
        rows = cells.reshape(config.banks, -1, config.columns, config.lanes)
        for row in np.flatnonzero(rows.any(axis=(0, 2, 3))):
            found.row(int(row))[:] = rows[:, row]
        return found

    def _dump(self, path: Path) -> NDArray[np.uint16]:
        config = self.config
        return read_dump(path, banks=config.banks, lanes=config.lanes, rows=self.rows, columns=config.columns).reshape(config.banks, -1, config.lanes)

    def _compare(self, found: dict[str, Recording], execution: Execution, times: SystemRun) -> int:
        """Values and cycles of all beats between channels and companion chip, and all commands; raises the first difference in time."""
        words, differences = 0, []
        for c in range(self.config.channels):
            for name, beats, cycles in (
                ("data", execution.beats[c], times.companion.send_times[c]),
                ("readout", execution.readouts[c], times.companion.take_times[c]),
            ):
                values = np.zeros((len(beats), self.config.lanes), np.uint16)
                for i, beat in enumerate(beats):
                    values[i, : len(beat)] = beat
                words += values.size
                try:
                    compare(f"{name}_{c}", pack((values, LANE_BITS)), np.array(cycles, np.int64), found[f"{name}_{c}"])
                except MismatchError as error:
                    differences.append(error)
            try:
                self._commands(f"command_{c}", times.channels[c].commands(), self._own(found, c, times))
            except MismatchError as error:
                differences.append(error)
        if differences:
            raise min(differences, key=lambda error: error.cycle or 0)
        return words

    def _commands(self, name: str, wanted: NDArray[Any], got: NDArray[Any]) -> None:
        """Cycle, kind and operands of every command."""
        n = min(len(wanted), len(got))
        wrong = (wanted["cycle"][:n] != got["cycle"][:n]) | (wanted["command"][:n] != got["command"][:n])
        for kind, fields in OPERANDS.items():
            of_kind = wanted["command"][:n] == kind
            for field in fields:
                wrong |= of_kind & (wanted[field][:n] != got[field][:n])
        if wrong.any() or len(wanted) != len(got):
            i = int(np.argmax(wrong)) if wrong.any() else n
            texts = [
                "none"
                if i >= len(table)
                else f"{Command(int(table[i]['command'])).name} in cycle {table[i]['cycle']} (bank {table[i]['bank']}, row {table[i]['row']})"
                for table in (got, wanted)
            ]
            cycles = [int(table[i]["cycle"]) for table in (got, wanted) if i < len(table)]
            raise MismatchError(f"{name}[{i}]: {texts[0]}, expected {texts[1]}", min(cycles), i)

    def _check(self, c: int, config: PimConfig, got: NDArray[Any]) -> TimingReport:
        checker = Checker(
            self._raw_timing,
            banks=config.banks,
            activate_in_register_mode=config.activate_in_register_mode,
            refresh_phase=refresh_phase(config, self.timing, c) if config.refresh else None,
            rows=config.rows,
            columns=config.columns,
        )
        report = checker.check(got)
        if report.violations:
            raise MismatchError(f"channel {c}: {report.violations[0]} ({len(report.violations)} violations)")
        return report

    def _replay(self, c: int, device: Device, got: NDArray[Any], readouts: list[NDArray[np.uint16]]) -> int:
        """The device model's own values of all read-outs."""
        writes = np.isin(got["command"], (Command.GBW, Command.WR, Command.WRA))
        values = device.replay(got, got["data"][writes]).values
        modified = _modify_reads(got)
        values = values[~modified[np.isin(got["command"], (Command.RD, Command.RDM))]]
        for i, (mine, theirs) in enumerate(zip(readouts, values, strict=True)):
            if not np.array_equal(mine, theirs[: len(mine)]):
                raise MismatchError(f"channel {c}: read-out {i} is {mine.tolist()}, the DRAM device model's {theirs[: len(mine)].tolist()}")
        return len(readouts) * self.config.banks


def _modify_reads(got: NDArray[Any]) -> NDArray[np.bool_]:
    """RDs of a MODIFY: those whose next other command is WR."""
    kinds = got["command"]
    others = np.flatnonzero(kinds != Command.RD)
    found = np.zeros(len(kinds), bool)
    for i in np.flatnonzero(kinds == Command.RD):
        at = np.searchsorted(others, i)
        found[i] = at < len(others) and kinds[others[at]] == Command.WR
    return found
