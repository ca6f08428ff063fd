# SPDX-License-Identifier: Apache-2.0
"""Bench of rtl/pim/{controller,channel}.py: random macro programs, data offers and back-pressure; every command and handshake against the channel model."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from lutra.cosim.dram.cells import DramCells, contents
from lutra.cosim.dram.checker import Checker, Report
from lutra.cosim.dram.commands import as_stream
from lutra.cosim.dram.device import Device
from lutra.cosim.dram.timing import read_timing
from lutra.cosim.harness import Bench, Recording, Stimulus, compare
from lutra.hls_models.errors import MismatchError
from lutra.hls_models.pim.channel import ChannelModel, ChannelRun, refresh_phase
from lutra.hls_models.pim.config import LANE_BITS, CompanionConfig, PimConfig
from lutra.hls_models.pim.program import Command, Macro, MacroKind
from lutra.hls_models.pim.timing import TIMING_PRESETS, Timing, load_timing
from lutra.hls_models.streams import pack, unpack
from lutra.rtl.pim.channel import Channel
from lutra.rtl.pim.controller import ADJUST, PHASE_BITS
from lutra.rtl.pim.gaps import DELTA, NO_RULE
from lutra.rtl.pim.macros import command_layout, encode, macro_layout

__all__ = [
    "WIDE",
    "BenchChannel",
    "Case",
    "Setting",
    "bench",
    "case",
    "check",
    "commands",
    "compare_commands",
    "configurations",
    "golden_readouts",
    "play",
    "program",
    "violations",
    "wide_bench",
]

FIELDS = {
    Command.ACT: ("bank", "row"),
    Command.ACTA: ("row",),
    Command.PRE: ("bank",),
    Command.RD: ("bank", "column"),
    Command.WR: ("bank", "column"),
    Command.MAC: ("column", "entry", "accumulator"),
    Command.WRA: ("column", "element"),
    Command.GBW: ("entry",),
    Command.RDM: ("accumulator",),
    Command.BIAS: ("accumulator",),
}
"""Operands that a command has; the others are not compared."""
VALUE_ROWS = 8
WITH_DATA = (Command.GBW, Command.WR, Command.WRA)


@dataclass(frozen=True)
class Setting:
    """A design of the bench.

    ``cells``: with MAC units and a DRAM's cells, in files of this name; without, its banks read zeros. ``adjustable``: as of ``Controller``; without, it is
    what a user gets.
    """

    config: PimConfig
    timing: Timing
    channel: int = 0
    cells: str = ""
    adjustable: bool = True


class BenchChannel(wiring.Component):
    """A channel with a DRAM beside it, as far as the setting wants one; all streams of ``Channel`` are its ports."""

    def __init__(self, setting: Setting) -> None:
        config, timing = setting.config, setting.timing
        self._channel = Channel(config, timing, channel=setting.channel, macs=bool(setting.cells), adjustable=setting.adjustable)
        self._cells = None
        if setting.cells:
            latency = timing.cycles("tCL") + timing.cycles("tBL")
            sizes = {"banks": config.banks, "lanes": config.lanes, "rows": config.rows, "columns": config.columns}
            self._cells = DramCells(name=setting.cells, read_latency=latency, **sizes)
        width = LANE_BITS * config.lanes
        members = {
            "macros": In(stream.Signature(macro_layout(config))),
            "data": In(stream.Signature(width)),
            "readout": Out(stream.Signature(width)),
            "command": Out(stream.Signature(command_layout(config), always_ready=True)),
        }
        if setting.adjustable:
            members["adjust"] = In(stream.Signature(ADJUST, always_ready=True))
        self._ports = list(members)
        super().__init__(members)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.channel = channel = self._channel
        for port in self._ports:
            wiring.connect(m, wiring.flipped(getattr(self, port)), getattr(channel, port))
        if self._cells is not None:
            m.submodules.cells = cells = self._cells
            command = channel.command.payload
            m.d.comb += [
                cells.valid.eq(channel.command.valid),
                cells.command.eq(command.kind),
                *(getattr(cells, name).eq(command[name]) for name in ("bank", "row", "column", "element", "data")),
                channel.columns.eq(cells.columns),
                channel.read.eq(cells.read),
            ]
        return m


@cache
def configurations(seed: int, count: int = 9) -> tuple[Setting, ...]:
    """gddr6-aim in full width with and without activates in register mode, then drawn from the seed, 1 to 16 banks, all presets; three with values at last."""
    rng = np.random.default_rng(seed)
    names = ("gddr6-aim", "gddr6-7800", "gddr6-1900")
    found = [Setting(PimConfig(name="full", activate_in_register_mode=early, refresh=early), load_timing("gddr6-aim")) for early in (True, False)]
    while len(found) < count:
        index = len(found)
        banks = (1, 2, 4, 8, 16)[index % 5]
        lanes = int(rng.choice([n for n in (4, 8, 16) if n >= banks]))
        columns = int(rng.choice([1, 3, 8, 16, 37]))
        config = PimConfig(
            name=f"drawn {index}",
            timing=names[index % 3],
            channels=4,
            banks=banks,
            lanes=lanes,
            rows=int(rng.choice([9, 64, 16384])),
            columns=columns,
            accumulators_per_bank=int(rng.choice([1, 2, 4, 8])),
            activate_in_register_mode=bool(index % 2),
            refresh=index != 5,
            refresh_phase=(0, 1, 2, int(rng.integers(4000)))[index // 2 % 4],
            companion=CompanionConfig(readout_depth=int(rng.choice([2, 5, 64])), data_depth=int(columns + rng.integers(1, 9))),
        )
        channel = 0 if config.refresh_phase < 3 else int(rng.integers(4))
        found.append(Setting(config, load_timing(names[index % 3]), channel, adjustable=bool(index % 2)))
    for index, (banks, lanes, accumulators, form) in enumerate(((4, 16, 1, "fp32"), (2, 4, 4, "bf16"), (1, 8, 2, "fp32"))):
        config = PimConfig(
            name=f"values {index}",
            timing=names[index],
            banks=banks,
            lanes=lanes,
            rows=VALUE_ROWS,
            columns=(64, 7, 12)[index],
            accumulators_per_bank=accumulators,
            accumulator=form,
        )
        found.append(Setting(config, load_timing(names[index]), cells=f"cells{index}", adjustable=False))
    return tuple(found)


WIDE = Setting(PimConfig(name="wide", rows=VALUE_ROWS), load_timing("gddr6-aim"), cells="wide", adjustable=False)
"""16 banks of 16 lanes, with values."""


@cache
def bench(seed: int) -> Bench:
    """All configurations of a seed as ``c0``, ``c1`` … in one Verilated top."""
    return _bench(configurations(seed))


@cache
def wide_bench() -> Bench:
    """``WIDE`` as ``c0``."""
    return _bench((WIDE,))


def _bench(settings: tuple[Setting, ...]) -> Bench:
    sizes = [[one.config.model_dump(mode="json"), one.timing.model_dump(mode="json"), one.channel, one.cells, one.adjustable] for one in settings]
    made = Bench("pim controller", description=["pim controller", sizes])
    for index, setting in enumerate(settings):
        made.add(f"c{index}", BenchChannel(setting))
    return made


def program(setting: Setting, rng: np.random.Generator, count: int) -> list[Macro]:
    """``count`` macro-commands of every kind, on few rows, so that rows are hit as well as switched; bursts cross rows, one in four repeats."""
    config = setting.config
    rows, columns, accumulators = min(config.rows, 6), config.columns, config.accumulators_per_bank
    weights = rng.dirichlet(np.ones(len(MacroKind)))
    if not setting.timing.all_bank_write:
        weights[MacroKind.SCATTER] = 0
        weights /= weights.sum()
    found = []
    for _ in range(count):
        kind = MacroKind(int(rng.choice(len(MacroKind), p=weights)))
        times = int(rng.integers(2, 5)) if rng.random() < 0.25 else 1
        size = int(rng.choice([1, 2, int(rng.integers(1, columns + 1)), columns]).clip(1, columns))
        column = int(rng.integers(columns - size + 1)) if kind in (MacroKind.READ, MacroKind.WRITE) else int(rng.integers(columns))
        row = int(rng.integers(rows))
        step = int(rng.choice([0, 1, size, columns, int(rng.integers(2 * columns))]))
        last = row * columns + column + (times - 1) * step + size
        if last > config.rows * columns:
            times, row = 1, 0
        bank = int(rng.integers(config.banks))
        found.append(
            Macro(
                kind,
                row=row,
                column=column,
                entry=int(rng.integers(columns - size + 1)),
                count=size,
                load=int(rng.integers(accumulators + 1)) if rng.random() < 0.7 else 0,
                read=int(rng.integers(accumulators + 1)),
                accumulator=int(rng.integers(accumulators)),
                times=times,
                step=step,
                bank=bank,
                banks=1 if rng.random() < 0.4 else int(rng.integers(1, config.banks - bank + 1)),
                open=bool(rng.integers(2)),
                element=int(rng.integers(config.lanes)),
            )
        )
    return found


def beats_of(config: PimConfig, macros: list[Macro]) -> int:
    """Data beats that a program takes."""
    per = {
        MacroKind.BUFFER: lambda one: one.count,
        MacroKind.WRITE: lambda one: one.banks * one.count,
        MacroKind.SCATTER: lambda one: one.times,
        MacroKind.MODIFY: lambda one: one.times,
    }
    return sum(per[one.kind](one) for one in macros if one.kind in per)


@dataclass
class Case:
    """What one design is given, and what it must do."""

    macros: list[Macro]
    offers: NDArray[np.int64]
    beats: NDArray[np.uint32]
    data_offers: NDArray[np.int64]
    ready: NDArray[np.bool_]
    run: ChannelRun
    memory: Device | None
    """Cells before the run, where the design has some."""
    adjust: tuple[int, int, int]
    """Index of a rule, what is added to its gap (both where the design is adjustable), cycle of the first refresh."""


def case(
    setting: Setting,
    rng: np.random.Generator,
    count: int = 60,
    *,
    macros: list[Macro] | None = None,
    phase: int | None = None,
    rule: int = NO_RULE,
    delta: int = 0,
) -> Case:
    """A random program with random offers of macros and data, back-pressure and refresh phase; the model knows nothing of ``rule`` and ``delta``.

    ``macros``: this program instead, all offered at once, read-outs taken at once. ``phase``: of an adjustable design, cycle of the first refresh.
    """
    config, calm = setting.config, macros is not None
    macros = macros if macros is not None else program(setting, rng, count)
    memory = None
    if setting.cells:
        digits = config.accumulator == "bf16"
        memory = Device(config.banks, config.lanes, config.rows, config.columns, config.accumulators_per_bank, bf16_accumulator=digits)
        for row in range(config.rows):
            memory.row(row)[:] = _values(rng, (config.banks, config.columns, config.lanes))
        macros = [*macros, *(Macro(MacroKind.READ, row=row, count=config.columns, banks=config.banks) for row in range(2))]
    beats = pack((_values(rng, (beats_of(config, macros), config.lanes)), LANE_BITS))
    longest = int(np.clip(20_000 // (config.banks * config.columns), 2, 40))
    # Mostly at once, so that the controller never waits; or late, so that it waits for macros and beats, across refreshes too.
    offers, data_offers = (np.zeros(n, np.int64) if calm else np.cumsum(_late(rng, n, late)) for n, late in ((len(macros) + 1, 300), (len(beats), longest)))
    # Beats and read-outs never wait for eight intervals of refreshes: in the middle of a macro there is none.
    ready = np.ones(1, bool) if calm else np.repeat(rng.random(4000) < rng.choice([0.1, 0.5, 1.0]), int(rng.choice([1, 7])))
    if setting.adjustable:
        chosen = int(rng.integers(3, 2 * setting.timing.cycles("tREFI"))) if phase is None else phase
        config = config.model_copy(update={"refresh_phase": chosen, "stagger": False})
    run = ChannelModel(config, setting.timing, setting.channel, macros, macro_offers=offers).run(data_offers, ready)
    return Case(macros, offers, beats, data_offers, ready, run, memory, (rule, delta, refresh_phase(config, setting.timing, setting.channel)))


def _late(rng: np.random.Generator, count: int, longest: int) -> NDArray[np.int64]:
    """Cycles between offers: none, few or many; of all or of few; some very long."""
    usual = rng.integers(0, rng.choice([1, 2, longest]), count) * (rng.random(count) < rng.choice([0.1, 1.0]))
    return usual * rng.choice([1, 30], count, p=[0.98, 0.02])


def _values(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """bf16 bits: mostly of like size, some of any pattern."""
    usual = rng.integers(0, 2, shape) << 15 | rng.integers(120, 131, shape) << 7 | rng.integers(0, 128, shape)
    return np.where(rng.random(shape) < 0.001, rng.integers(0, 1 << 16, shape), usual).astype(np.uint16)


def play(design: Bench, cases: dict[str, Case], settings: dict[str, Setting], **options: Any) -> dict[str, dict[str, Recording]]:
    """Runs the cases at once."""
    stimuli, ready, beats, files = {}, {}, {}, {}
    for name, one in cases.items():
        stimuli[name] = {
            "macros": Stimulus(encode(settings[name].config, one.macros), one.offers),
            "data": Stimulus(one.beats, one.data_offers),
        }
        if settings[name].adjustable:
            adjust = zip(one.adjust, (8, DELTA, PHASE_BITS), strict=True)
            stimuli[name]["adjust"] = Stimulus(pack(*((np.array([value]), bits) for value, bits in adjust)))
        ready[name] = {"readout": one.ready}
        if one.memory is not None:
            files[f"{settings[name].cells}.cells"] = contents(one.memory, rows=settings[name].config.rows)
        beats[name] = {"command": len(one.run.commands), "readout": len(one.run.readouts_taken)}
    end = max(max(one.run.done, int(one.run.readouts_taken.max(initial=0)), int(one.offers[-1])) for one in cases.values())
    return design.run(stimuli=stimuli, ready=ready, beats=beats, max_cycles=end + 2000, files=files, **options)


def commands(config: PimConfig, recording: Recording) -> NDArray[Any]:
    """A recorded command port as an array with the fields of ``lutra.cosim.dram.commands.STREAM`` and ``data`` (lanes)."""
    layout = command_layout(config)
    names = ("command", "bank", "row", "column", "entry", "accumulator", "element")
    found = np.zeros(len(recording), [("cycle", np.int64), *((name, np.int64) for name in names), ("data", np.uint16, (config.lanes,))])
    found["cycle"] = recording.cycles
    for name in names:
        field = layout[name if name != "command" else "kind"]
        found[name] = unpack(recording.payloads, field.width, offset=field.offset)[:, 0] if field.width else 0
    found["data"] = unpack(recording.payloads, LANE_BITS, lanes=config.lanes, offset=layout["data"].offset)
    return found


def compare_commands(name: str, one: Case, got: NDArray[Any]) -> int:
    """Every command's cycle, kind and operands, and the data of all writes but MODIFY's; returns the number of commands compared.

    After the program has ended, PREA and REF of the idle controller are let pass.
    """
    wanted = one.run.commands
    idle = (got["cycle"] > one.run.done) & np.isin(got["command"], (Command.PREA, Command.REF))
    got = got[~idle]
    for i in range(min(len(wanted), len(got))):
        kind = Command(int(wanted["command"][i]))
        pairs = [(field, int(wanted[field if field != "element" else "entry"][i]), int(got[field][i])) for field in ("cycle", "command", *FIELDS.get(kind, ()))]
        if wrong := [f"{field} {b}, expected {a}" for field, a, b in pairs if a != b]:
            raise MismatchError(f"{name}.command[{i}]: {kind.name} in cycle {wanted['cycle'][i]}: {'; '.join(wrong)}", int(wanted["cycle"][i]), i)
    if len(wanted) != len(got):
        raise MismatchError(f"{name}.command: {len(got)} commands, expected {len(wanted)}")
    takes = np.isin(got["cycle"], one.run.data_taken) & np.isin(got["command"], WITH_DATA)
    modify = _modified(one.macros)
    given = _lanes(one.beats, got["data"].shape[1])
    if not np.array_equal(got["data"][takes][~modify], given[~modify]):
        raise MismatchError(f"{name}.command: data of a write differs")
    return len(wanted)


def _modified(macros: list[Macro]) -> NDArray[np.bool_]:
    """(beats,) whether a beat goes into a MODIFY."""
    flags: list[bool] = []
    for one in macros:
        if one.kind in (MacroKind.SCATTER, MacroKind.MODIFY):
            flags += [one.kind is MacroKind.MODIFY] * one.times
        elif one.kind in (MacroKind.BUFFER, MacroKind.WRITE):
            flags += [False] * (one.count * (one.banks if one.kind is MacroKind.WRITE else 1))
    return np.array(flags, bool)


def golden_readouts(setting: Setting, one: Case) -> NDArray[np.uint32]:
    """Payloads of all read-outs as the DRAM model computes them, a MODIFY being one masked write; changes ``one.memory``."""
    assert one.memory is not None
    modified, given = _modified(one.macros), _lanes(one.beats, setting.config.lanes)
    stream: list[dict[str, int]] = []
    data: list[NDArray[np.uint16]] = []
    kinds = one.run.commands["command"]
    others = np.flatnonzero(kinds != Command.RD)
    for i, command in enumerate(one.run.commands):
        kind = Command(int(command["command"]))
        fields = {name: int(command[name]) for name in ("cycle", "command", "bank", "row", "column", "entry", "accumulator")} | {
            "element": int(command["entry"])
        }
        if kind is Command.RD and kinds[others[np.searchsorted(others, i)]] == Command.WR:
            continue  # of a MODIFY
        if kind is Command.WR and modified[len(data)]:
            if fields["bank"] < setting.config.banks - 1:
                continue
            fields["command"] = Command.WRA
        if fields["command"] in WITH_DATA:
            data.append(given[len(data)])
        stream.append(fields)
    return pack((one.memory.replay(as_stream(stream), np.array(data)).values, LANE_BITS))


def _lanes(beats: NDArray[np.uint32], lanes: int) -> NDArray[np.uint16]:
    return np.ascontiguousarray(beats).view(np.uint16).reshape(len(beats), -1)[:, :lanes]


def check(name: str, setting: Setting, one: Case, recordings: dict[str, Recording]) -> int:
    """Compares commands, acceptances of data, and read-outs, with their values where there are some; returns the number of commands."""
    compare(f"{name}.data", one.beats, one.run.data_accepted, recordings["data"])
    values = golden_readouts(setting, one) if one.memory is not None else None
    compare(f"{name}.readout", values, one.run.readouts_taken, recordings["readout"])
    return compare_commands(name, one, commands(setting.config, recordings["command"]))


def violations(setting: Setting, one: Case, recordings: dict[str, Recording]) -> Report:
    """The DRAM model's own check of every timing rule on what was recorded, up to the end of the program."""
    config = setting.config
    got = commands(config, recordings["command"])
    checker = Checker(
        read_timing(TIMING_PRESETS / f"{setting.timing.name}.yaml"),
        banks=config.banks,
        activate_in_register_mode=config.activate_in_register_mode,
        refresh_phase=one.adjust[2] if config.refresh else None,
        rows=config.rows,
        columns=config.columns,
    )
    return checker.check(got[got["cycle"] <= one.run.done])
