# SPDX-License-Identifier: Apache-2.0
"""Bench of rtl/axi and of the memory beside it: random bursts and rows, every handshake of client and ports against ``MemoryTiming``, or, with ports and
channels that wait at random, every value."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from lutra.cosim.ddr import Ddr, region_pages, region_setting, skew_setting
from lutra.cosim.harness import Bench, Fault, Stimulus, compare
from lutra.hls_models.errors import MismatchError
from lutra.hls_models.streams import pack
from lutra.hls_models.ternary.kv_layout import KvLayout
from lutra.hls_models.ternary.memory import DELIVER, PORT_BYTES, REQUEST, MemoryConfig, MemoryTiming, WriterTiming
from lutra.rtl.axi.ports import ADDRESS_BITS, PORT_BITS
from lutra.rtl.axi.reader import AxiReader
from lutra.rtl.axi.writer import AxiWriter

__all__ = ["BASE", "REGION_BITS", "Setting", "bench", "case", "check", "check_skewed", "play_pins", "rude_bench", "settings"]

BASE = 0x4_0000_3000
REGION_BITS = 24


class Setting(NamedTuple):
    """A memory, and the keys and values in it."""

    memory: MemoryConfig
    kv: KvLayout
    queue_beats: int = 32


class _System(wiring.Component):
    """Reader, writer and memory; what passes on the ports is to be seen as streams: ``ar`` and ``r`` of all read ports in the same clock, ``w``, ``b``."""

    def __init__(self, name: str, setting: Setting) -> None:
        self._name, self._setting = name, setting
        self._reader = AxiReader(ports=setting.memory.ports, queue_beats=setting.queue_beats)
        self._writer = AxiWriter(setting.kv)
        ports = setting.memory.ports
        self._seen = {
            "ar": ports * (ADDRESS_BITS + 8),
            "r": ports * (PORT_BITS + 1),
            "w": ADDRESS_BITS + PORT_BITS + PORT_BYTES,
            "b": 2,
            "idle": 1,
            "error": 2,
        }
        seen = {name: Out(stream.Signature(width, always_ready=True)) for name, width in self._seen.items()}
        members = self._reader.signature.members
        super().__init__({"request": members["request"], "data": members["data"], "row": self._writer.signature.members["row"]} | seen)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._setting.memory
        m.submodules.reader = reader = self._reader
        m.submodules.writer = writer = self._writer
        m.submodules.ddr = ddr = Ddr(config, name=self._name, base=BASE, region_bits=REGION_BITS)
        for own, part in ((self.request, reader.request), (self.data, reader.data), (self.row, writer.row)):
            wiring.connect(m, wiring.flipped(own), part)
        for axi, port in zip(reader.axi, ddr.read, strict=True):
            wiring.connect(m, axi, port)
        wiring.connect(m, writer.axi, ddr.write)
        for part in (reader, writer):
            m.d.comb += [part.base[port].eq(page) for port, page in enumerate(region_pages(config, base=BASE, region_bits=REGION_BITS))]
        was_idle, errors = Signal(init=1), Cat(reader.error, writer.error)
        were_errors = Signal(2)
        m.d.sync += [was_idle.eq(writer.idle), were_errors.eq(errors)]
        w = writer.axi
        events = {
            "ar": (Cat(axi.arvalid & axi.arready for axi in reader.axi).all(), Cat(Cat(axi.araddr, axi.arlen) for axi in reader.axi)),
            "r": (Cat(axi.rvalid & axi.rready for axi in reader.axi).all(), Cat(Cat(axi.rdata, axi.rlast) for axi in reader.axi)),
            "w": (w.awvalid & w.awready & w.wvalid & w.wready, Cat(w.awaddr, w.wdata, w.wstrb)),
            "b": (w.bvalid & w.bready, w.bresp),
            "idle": (writer.idle != was_idle, writer.idle),
            "error": (errors != were_errors, errors),
        }
        for name, (valid, payload) in events.items():
            m.d.comb += [getattr(self, name).valid.eq(valid), getattr(self, name).payload.eq(payload)]
        return m


def settings(seed: int, count: int = 10) -> dict[str, Setting]:
    """The smallest memory, two of the KV260's kind, then random ones."""
    rng = np.random.default_rng(seed)
    board = {"rate_numerator": 127, "rate_denominator": 160, "refresh_period": 1950, "refresh_window": 88}
    memories = [
        MemoryConfig(ports=1, burst_beats=1, outstanding=1, latency=2, write_latency=1),
        MemoryConfig(ports=4, **board),
        MemoryConfig(ports=6, burst_beats=32, outstanding=3, latency=40, write_latency=20, refresh_period=1950, refresh_window=88),
    ]
    while len(memories) < count:
        denominator, period = int(rng.integers(1, 200)), int(rng.integers(2, 400))
        memories.append(
            MemoryConfig(
                ports=int(rng.choice([1, 2, 3, 4, 5, 6, 8])),
                burst_beats=1 << int(rng.integers(0, 9)),
                outstanding=int(rng.integers(1, 9)),
                latency=int(rng.integers(2, 100)),
                write_latency=int(rng.integers(1, 60)),
                rate_numerator=int(rng.integers(1, denominator + 1)),
                rate_denominator=denominator,
                refresh_period=period,
                refresh_window=int(rng.integers(0, period // 2 + 1)),
            )
        )
    return {f"c{i}": Setting(memory, _layout(memory.ports, rng), int(rng.integers(2, 40))) for i, memory in enumerate(memories)}


def _layout(ports: int, rng: np.random.Generator) -> KvLayout:
    units = int(rng.integers(ports, 12))
    tile = int(rng.choice([8, 16, 32]))
    return KvLayout(
        beat_bytes=ports * PORT_BYTES,
        layers=2,
        kv_heads=int(rng.integers(1, 4)),
        head_dim=units * PORT_BYTES,
        context=tile * int(rng.integers(1, 4)),
        key_tile=tile,
        base=int(rng.integers(300, 500)),
    )


def bench(chosen: dict[str, Setting]) -> Bench:
    made = Bench("axi")
    for name, setting in chosen.items():
        made.add(name, _System(name, setting))
    return made


class _Work(NamedTuple):
    """What a client does: bursts, rows, and the memory (beats, B) before."""

    address: NDArray[np.int64]
    beats: NDArray[np.int64]
    number: NDArray[np.int64]
    codes: NDArray[np.int8]
    scales: NDArray[np.uint32]
    memory: NDArray[np.uint8]

    def stimuli(self, asked: NDArray[np.int64], offered: NDArray[np.int64]) -> dict[str, Stimulus]:
        row = pack((self.number, 24), (self.scales, 32), (self.codes, 8))
        return {"request": Stimulus(pack((self.address, 32), (self.beats, 9)), asked), "row": Stimulus(row, offered)}

    def written(self, kv: KvLayout) -> list[tuple[int, int, int, NDArray[np.uint8]]]:
        """(beat, port, strobe, 16 bytes) of all written beats, in order."""
        found = []
        for number, codes, scale in zip(self.number.tolist(), self.codes, self.scales, strict=True):
            for write in kv.writes(number):
                one = np.tile(np.array([scale], "<u4").view(np.uint8), 4)
                data = one if write.unit is None else codes.view(np.uint8)[write.unit * PORT_BYTES :][:PORT_BYTES]
                found.append((write.beat, write.lane, write.strobe, data))
        return found


def _apply(memory: NDArray[np.uint8], beat: int, port: int, strobe: int, data: NDArray[np.uint8]) -> None:
    mask = np.array([strobe >> i & 1 for i in range(PORT_BYTES)], bool)
    memory[beat, port * PORT_BYTES : (port + 1) * PORT_BYTES][mask] = data[mask]


def _work(setting: Setting, rng: np.random.Generator, bursts: int, rows: int, *, below: int | None = None) -> _Work:
    """Random bursts, those of a long load among them, from all beats or those below ``below``; random rows."""
    config, kv = setting.memory, setting.kv
    size = kv.base + kv.beats
    address: list[int] = []
    beats: list[int] = []
    while len(address) < bursts:
        at, left = int(rng.integers(below or size)), int(rng.choice([1, 5, config.burst_beats, 3 * config.burst_beats]))
        while left and at < (below or size) and len(address) < bursts:
            count = min(left, (below or size) - at, config.burst_beats - at % config.burst_beats)
            address.append(at)
            beats.append(count)
            at, left = at + count, left - count
    return _Work(
        address=np.array(address),
        beats=np.array(beats),
        number=rng.integers(0, 2 * kv.layers * kv.kv_heads * kv.context, rows),
        codes=rng.integers(-128, 128, (rows, kv.head_dim)).astype(np.int8),
        scales=rng.integers(0, 1 << 32, rows).astype(np.uint32),
        memory=rng.integers(0, 256, (size, kv.beat_bytes), dtype=np.uint8),
    )


def _gaps(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Earliest cycles: close together, or with pauses."""
    return np.cumsum(
        rng.integers(0, rng.choice([1, 3, 40]), count) * (rng.random(count) < rng.choice([0.1, 1])) + rng.choice([0, 0, 200], count, p=[0.6, 0.3, 0.1])
    )


class Case(NamedTuple):
    """One design's run: stimuli, memory, and (payloads, cycles) per port."""

    work: _Work
    stimuli: dict[str, Stimulus]
    expected: dict[str, tuple[Any, Any]]


def case(setting: Setting, rng: np.random.Generator, bursts: int = 60, rows: int = 40) -> Case:
    """Reads and writes at the same time; the client has ``outstanding`` bursts on their way at most."""
    config, kv = setting.memory, setting.kv
    work = _work(setting, rng, bursts if config.burst_beats < 64 else bursts // 2, rows)
    offered = _gaps(rng, rows)
    memory = MemoryTiming(config)
    writer, served, idle = WriterTiming(memory, kv.row_writes), [], []
    for cycle in offered:
        served.append(writer.rows(np.array([cycle])))
        idle.append(writer.idle)
    taken, written = (np.concatenate(part) for part in zip(*served, strict=True))
    asked: list[int] = []
    ends: list[int] = []
    arrived = []
    for i, (cycle, beats) in enumerate(zip(_gaps(rng, len(work.address)).tolist(), work.beats.tolist(), strict=True)):
        after = [cycle, *(one + 1 for one in asked[-1:]), *(one + 1 for one in ends[-config.outstanding :][:1] if i >= config.outstanding)]
        asked.append(max(after))
        arrived.append(memory.read(asked[-1], beats))
        ends.append(int(arrived[-1][-1]))
    requests, data = np.array(asked), np.concatenate(arrived)
    stimuli = work.stimuli(requests, offered)
    writes = work.written(kv)
    return Case(
        work,
        stimuli,
        {
            "request": (stimuli["request"].payloads, requests),
            "row": (stimuli["row"].payloads, taken),
            "data": (words := _read(work, data - DELIVER, writes, written.ravel()), data),
            "ar": (_addresses(work, config), requests + REQUEST),
            "r": (_port_beats(work, config, words), data - DELIVER),
            "w": (_port_writes(writes), written.ravel()),
            "b": (np.zeros((written.size, 1), np.uint32), written.ravel() + config.write_latency),
            "idle": _idle(taken.tolist(), idle),
            "error": (np.zeros((0, 1), np.uint32), np.zeros(0, np.int64)),
        },
    )


def _read(work: _Work, cycles: NDArray[np.int64], writes: list[Any], written: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Payloads of ``data``: a beat that moves in a clock has what was written in clocks before it."""
    memory, done = work.memory.copy(), 0
    beats = np.concatenate([np.arange(at, at + count) for at, count in zip(work.address.tolist(), work.beats.tolist(), strict=True)])
    out = np.empty((len(beats), memory.shape[1]), np.uint8)
    for i, (beat, cycle) in enumerate(zip(beats.tolist(), cycles.tolist(), strict=True)):
        while done < len(writes) and written[done] < cycle:
            _apply(memory, *writes[done])
            done += 1
        out[i] = memory[beat]
    return pack((out, 8))


def _region(config: MemoryConfig, port: int) -> int:
    return BASE + (port << REGION_BITS)


def _addresses(work: _Work, config: MemoryConfig) -> NDArray[np.uint32]:
    fields = [((work.address * PORT_BYTES + _region(config, port), ADDRESS_BITS), (work.beats - 1, 8)) for port in range(config.ports)]
    return pack(*(field for port in fields for field in port))


def _port_beats(work: _Work, config: MemoryConfig, words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    last = np.zeros(len(words), np.int64)
    last[np.cumsum(work.beats) - 1] = 1
    parts = words.view(np.uint8).reshape(len(words), config.ports, PORT_BYTES)
    return pack(*(field for port in range(config.ports) for field in ((parts[:, port], 8), (last, 1))))


def _port_writes(writes: list[Any]) -> NDArray[np.uint32]:
    beats, ports, strobes = (np.array([write[i] for write in writes]) for i in range(3))
    return pack((BASE + (ports << REGION_BITS) + beats * PORT_BYTES, ADDRESS_BITS), (np.stack([write[3] for write in writes]), 8), (strobes, PORT_BYTES))


def _idle(taken: list[int], idle: list[int]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Changes of ``idle``, of rows' handshakes and the cycles from which it is 1 unless another row was taken before."""
    values: list[int] = []
    cycles: list[int] = []
    for row, free, following in zip(taken, idle, [*taken[1:], idle[-1]], strict=True):
        if not values or values[-1]:
            values.append(0)
            cycles.append(row + 1)
        if following >= free:
            values.append(1)
            cycles.append(free)
    return np.array(values, np.uint32)[:, None], np.array(cycles, np.int64)


def check(made: Bench, chosen: dict[str, Setting], seed: int, faults: Sequence[Fault] = ()) -> int:
    """Every handshake, exactly; returns the words compared."""
    rng = np.random.default_rng(seed)
    cases = {name: case(setting, rng) for name, setting in chosen.items()}
    last = max(int(cycles.max(initial=0)) for one in cases.values() for _, cycles in one.expected.values())
    recordings = made.run(
        stimuli={name: one.stimuli for name, one in cases.items()},
        beats={name: {port: len(cycles) for port, (_, cycles) in one.expected.items()} for name, one in cases.items()},
        files={f"{name}.memory": one.work.memory.tobytes() for name, one in cases.items()},
        faults=faults,
        max_cycles=last + 200,
    )
    return sum(
        compare(f"{name}.{port}", payloads, cycles, recordings[name][port]) for name, one in cases.items() for port, (payloads, cycles) in one.expected.items()
    )


def check_skewed(made: Bench, chosen: dict[str, Setting], seed: int, bursts: int = 60, rows: int = 40) -> int:
    """Every channel of every port waits at random, and so do client and its ``data``: values and their order, and the memory at the end."""
    rng = np.random.default_rng(seed)
    works = {name: _work(setting, rng, bursts, rows, below=setting.kv.base) for name, setting in chosen.items()}
    stimuli = {name: work.stimuli(_gaps(rng, len(work.address)), _gaps(rng, rows)) for name, work in works.items()}
    counts = {name: {"request": len(work.address), "row": rows, "data": int(work.beats.sum())} for name, work in works.items()}
    files: dict[str, bytes] = {}
    for name, work in works.items():
        files |= {
            f"{name}.memory": work.memory.tobytes(),
            f"{name}.skew": skew_setting(int(rng.integers(1 << 62))),
            f"{name}.region": region_setting(0, len(work.memory)),
        }
    with tempfile.TemporaryDirectory(prefix="lutra-axi-") as folder:
        recordings = made.run(
            stimuli=stimuli,
            ready={name: {"data": rng.random(20_000) < rng.choice([0.3, 0.9, 1.0])} for name in works},
            beats=counts,
            files=files,
            max_cycles=400_000,
            drain=8000,  # the last rows
            keep=Path(folder),
        )
        left = {name: np.fromfile(Path(folder) / f"{name}.dump", np.uint8).reshape(work.memory.shape) for name, work in works.items()}
    compared = 0
    for name, work in works.items():
        together, idle = recordings[name]["r"], recordings[name]["idle"].payloads
        if (chosen[name].memory.ports > 1 and len(together) > counts[name]["data"] // 2) or not len(idle) or not idle[-1]:
            raise MismatchError(f"{name}: {len(together)} of {counts[name]['data']} beats came on all ports at once; the writer's last idle: {idle[-1:]}")
        data = _read(work, np.zeros(counts[name]["data"], np.int64), [], np.zeros(0, np.int64))
        for port, payloads in {"request": stimuli[name]["request"].payloads, "row": stimuli[name]["row"].payloads, "data": data}.items():
            compared += compare(f"{name}.{port}", payloads, None, recordings[name][port])
        after = work.memory.copy()
        for write in work.written(chosen[name].kv):
            _apply(after, *write)
        if wrong := np.argwhere(after != left[name]).tolist():
            beat, byte = wrong[0]
            raise MismatchError(
                f"{name}.memory: beat {beat}, byte {byte}: expected {after[beat, byte]}, got {left[name][beat, byte]} ({len(wrong)} bytes differ)"
            )
        compared += after.size // 4
    return compared


PINS = {
    "arvalid": 1,
    "araddr": 20,
    "arlen": 8,
    "arsize": 3,
    "arburst": 2,
    "awvalid": 1,
    "awaddr": 20,
    "awlen": 8,
    "wvalid": 1,
    "wdata": 32,
    "wstrb": 16,
    "wlast": 1,
}
"""Of a client without manners."""


class _Pins(wiring.Component):
    """A memory of two ports of 64 KB whose client's pins are played, clock by clock."""

    def __init__(self) -> None:
        super().__init__({"pins": In(stream.Signature(data.StructLayout(PINS), always_ready=True))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ddr = ddr = Ddr(MemoryConfig(ports=2, outstanding=1), name="rude", region_bits=16)
        read, write, pins = ddr.read[0], ddr.write, self.pins.payload
        for name in PINS:
            m.d.comb += getattr(read if name.startswith("ar") else write, name).eq(pins[name])
        m.d.comb += [
            read.arvalid.eq(self.pins.valid & pins.arvalid),
            write.awvalid.eq(self.pins.valid & pins.awvalid),
            write.wvalid.eq(self.pins.valid & pins.wvalid),
        ]
        m.d.comb += [ddr.read[1].arvalid.eq(0), write.awsize.eq(4), write.awburst.eq(1), write.bready.eq(1)]
        return m


def rude_bench() -> Bench:
    """For ``play_pins``."""
    made = Bench("rude")
    made.add("rude", _Pins())
    return made


def play_pins(made: Bench, clocks: list[dict[str, int]], *, memory: bool = True) -> None:
    """Plays pins (absent ones: those of a right burst or write, not valid)."""
    usual = dict.fromkeys(PINS, 0) | {"arsize": 4, "arburst": 1, "wlast": 1}
    table = [usual | clock for clock in clocks]
    words = pack(*((np.array([clock[name] for clock in table], np.int64), width) for name, width in PINS.items()))
    made.run(stimuli={"rude": {"pins": Stimulus(words)}}, files={"rude.memory": bytes(4096)} if memory else {}, max_cycles=1000)
