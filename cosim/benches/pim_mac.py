# SPDX-License-Identifier: Apache-2.0
"""Bench of rtl/pim/mac.py: units of several sizes in one top, operations as close as legal, against hls_models/pim/mac.py bit for bit."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from lutra.cosim.harness import Bench, Fault, Stimulus, compare
from lutra.hls_models import floats
from lutra.hls_models.floats import BF16
from lutra.hls_models.pim import mac
from lutra.hls_models.pim.config import LANE_BITS, PimConfig
from lutra.hls_models.streams import pack
from lutra.rtl.pim.mac import MacUnit

__all__ = ["MAC", "READ", "StreamedMac", "bench", "check", "configurations", "operands", "program"]

MAC, LOAD, READ = 1, 2, 4
"""Operations, as bits of the stream's field."""


class StreamedMac(wiring.Component):
    """Streams around a unit: operations every clock, ``held`` after MAC and LOAD, ``value`` after READ, all ``LATENCY`` cycles later."""

    def __init__(self, config: PimConfig) -> None:
        self.unit = MacUnit(config)
        width = LANE_BITS * config.lanes
        layout = data.StructLayout({"column": width, "buffer": width, "bias": LANE_BITS, "accumulator": len(self.unit.accumulator), "operation": 3})
        super().__init__(
            {
                "operands": In(stream.Signature(layout, always_ready=True)),
                "held": Out(stream.Signature(32, always_ready=True)),
                "value": Out(stream.Signature(LANE_BITS, always_ready=True)),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unit = unit = self.unit
        taken = self.operands.payload
        operation = Signal(3)
        m.d.comb += operation.eq(taken.operation & self.operands.valid.replicate(3))
        for name in ("column", "buffer", "bias", "accumulator"):
            m.d.comb += getattr(unit, name).eq(taken[name])
        m.d.comb += Cat(unit.mac, unit.load, unit.read).eq(operation)
        held, value = Signal(mac.LATENCY), Signal(mac.LATENCY)
        m.d.sync += [held.eq(Cat(unit.mac | unit.load, held)), value.eq(Cat(unit.read, value))]
        m.d.comb += [
            self.held.valid.eq(held[-1]),
            self.held.payload.eq(unit.held),
            self.value.valid.eq(value[-1]),
            self.value.payload.eq(unit.value),
        ]
        return m


@dataclass(frozen=True)
class Operations:
    """Operations of one unit in order; ``cycles``: when each is given."""

    column: NDArray[np.uint16]
    """(n, V)"""
    buffer: NDArray[np.uint16]
    bias: NDArray[np.uint16]
    accumulator: NDArray[np.int64]
    operation: NDArray[np.int64]
    cycles: NDArray[np.int64]


def configurations() -> dict[str, PimConfig]:
    """All lanes, formats and some counts of accumulators, by name."""
    return {
        f"v{lanes}a{count}{form}": PimConfig(name="mac", banks=1, lanes=lanes, accumulators_per_bank=count, accumulator=form)
        for (lanes, count), form in product(((4, 1), (8, 4), (16, 1), (16, 16)), ("fp32", "bf16"))
    }


@cache
def bench() -> Bench:
    """All configurations in one top."""
    made = Bench("pim mac")
    for name, config in configurations().items():
        made.add(name, StreamedMac(config))
    made.build()
    return made


def operands(rng: np.random.Generator, count: int, lanes: int) -> tuple[NDArray[np.uint16], NDArray[np.uint16]]:
    """bf16 columns and buffers (count, V) of all kinds in turn: ordinary numbers, wide exponents, cancelling pairs, shifts around the field's width, raw bits,
    infinities and zeros, exponents at both ends."""
    shape = (count, lanes)
    a, b = (floats.from_float64(BF16, rng.standard_normal(shape)) for _ in range(2))
    wide = [floats.from_float64(BF16, rng.standard_normal(shape) * np.exp2(rng.integers(-20, 20, shape))) for _ in range(2)]
    raw = [rng.integers(0, 1 << 16, shape).astype(np.uint32) for _ in range(2)]
    finite = [np.where((x & 0x7F80) == 0x7F80, x ^ 0x4000, x) for x in raw]
    cancel_a, cancel_b = finite[0].copy(), finite[1].copy()
    cancel_a[:, 1::2], cancel_b[:, 1::2] = cancel_a[:, ::2] ^ 0x8000, cancel_b[:, ::2]
    cancel_b[:, 1] ^= rng.integers(0, 2, count).astype(np.uint32)
    shift = (100 + np.where(rng.random(shape) < 0.3, 0, -rng.integers(9, 32, shape))) << 7
    shifts_a = (shift | rng.integers(0, 128, shape) | rng.integers(0, 2, shape) << 15).astype(np.uint32)
    few = [rng.choice(np.array([0, 0x8000, 0x0001, 0x807F, 0x3F80, 0xBF80, 0x7F80, 0xFF80, 0x7FC0, 0xFF81], np.uint32), shape) for _ in range(2)]
    ends = [
        (rng.choice([1, 2, 64, 127, 190, 253, 254], shape) << 7 | rng.choice([0, 1, 127], shape) | rng.integers(0, 2, shape) << 15).astype(np.uint32)
        for _ in range(2)
    ]
    sparse = np.where(rng.random(shape) < 0.2, b, 0)
    kinds = [(a, b), tuple(wide), (cancel_a, cancel_b), (shifts_a, b), tuple(raw), tuple(few), tuple(ends), (a, sparse), tuple(finite)]
    kind = rng.choice(len(kinds), count, p=[0.3, 0.15, 0.1, 0.1, 0.05, 0.03, 0.1, 0.07, 0.1])
    picked = [np.stack([one[i] for one in kinds])[kind, np.arange(count)].astype(np.uint16) for i in range(2)]
    return picked[0], picked[1]


def program(config: PimConfig, rng: np.random.Generator, count: int) -> Operations:
    """Random operations, each as soon as its accumulator allows, or some cycles later."""
    column, buffer = operands(rng, count, config.lanes)
    accumulator = np.repeat(rng.integers(0, config.accumulators_per_bank, count), rng.integers(1, 6, count))[:count]
    operation = rng.choice([MAC, LOAD, READ], count, p=[0.8, 0.12, 0.08])
    cycles, free = np.zeros(count, np.int64), np.zeros(config.accumulators_per_bank, np.int64)
    last = -1
    waits = np.where(rng.random(count) < 0.1, rng.integers(0, 20, count), 0)
    for i, one in enumerate(accumulator):
        last = max(last + 1, int(free[one])) + int(waits[i])
        cycles[i], free[one] = last, last + mac.INTERVAL
    return Operations(column, buffer, operands(rng, count, 4)[0][:, 0], accumulator, operation, cycles)


def golden(config: PimConfig, todo: Operations) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """(held after every MAC and LOAD, values of every READ) in order."""
    sums = mac.dot(todo.column, todo.buffer)
    loads = mac.load(todo.bias)
    registers = np.zeros(config.accumulators_per_bank, np.uint32)
    held, read = [], []
    for i, (one, operation) in enumerate(zip(todo.accumulator, todo.operation, strict=True)):
        if operation == READ:
            read.append(registers[one])
            continue
        registers[one] = loads[i] if operation == LOAD else mac.add(registers[one], sums[i], config.accumulator)
        held.append(registers[one])
    return np.array(held, np.uint32), mac.read_out(np.array(read, np.uint32))


def check(made: Bench, configs: dict[str, PimConfig], rng: np.random.Generator, count: int, faults: Sequence[Fault] = ()) -> int:
    """Every configuration through ``count`` operations; returns the words compared."""
    todo = {name: program(config, rng, count) for name, config in configs.items()}
    stimuli, beats = {}, {}
    for name, one in todo.items():
        bits = max(1, (configs[name].accumulators_per_bank - 1).bit_length())
        fields = ((one.column, 16), (one.buffer, 16), (one.bias, 16), (one.accumulator, bits), (one.operation, 3))
        stimuli[name] = {"operands": Stimulus(pack(*fields), one.cycles)}
        reads = int((one.operation == READ).sum())
        beats[name] = {"held": count - reads, "value": reads}
    longest = max(int(one.cycles[-1]) for one in todo.values())
    recordings = made.run(stimuli=stimuli, beats=beats, max_cycles=longest + 100, faults=faults)
    words = 0
    for name, one in todo.items():
        held, value = golden(configs[name], one)
        reads = one.operation == READ
        compare(f"{name}.operands", None, one.cycles, recordings[name]["operands"])
        words += compare(f"{name}.held", held, one.cycles[~reads] + mac.LATENCY, recordings[name]["held"])
        words += compare(f"{name}.value", value.astype(np.uint32), one.cycles[reads] + mac.LATENCY, recordings[name]["value"])
    return words
