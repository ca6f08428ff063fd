# SPDX-License-Identifier: Apache-2.0
"""Bench of rtl/floats.py and rtl/functions.py: every component and format in one top, held against hls_models bit for bit and cycle for cycle."""

from collections.abc import Callable, Sequence
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
from lutra.hls_models import floats, functions
from lutra.hls_models.floats import BF16, E8M11, FP16, FP32, FloatFormat
from lutra.rtl import floats as rtl_floats
from lutra.rtl import functions as rtl_functions

__all__ = ["E2M1", "E4M3", "E8M12", "Case", "StreamedPipeline", "bench", "built", "check", "check_divsqrt", "configurations", "pairs", "patterns"]

Bits = NDArray[np.uint32]

E4M3 = FloatFormat(4, 3)
"""Small enough for all pairs of operands."""

E8M12 = FloatFormat(8, functions.MAX_MANTISSA)
E2M1 = FloatFormat(2, 1)
"""The smallest format there is."""
FORMATS = (E8M11, FP32, BF16, FP16, E4M3, E2M1)


class Greater(wiring.Component):
    """The expression ``greater`` behind one register."""

    def __init__(self, *, format: FloatFormat):
        self.format = format
        self.latency = 1
        super().__init__({"a": In(format.bits), "b": In(format.bits), "y": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.sync += self.y.eq(rtl_floats.greater(self.format, self.a, self.b))
        return m


class StreamedPipeline(wiring.Component):
    """Streams around a component with plain ports ``… -> y``: operands every cycle, results ``latency`` cycles later, never refused."""

    def __init__(self, component: Any):
        self.component = component
        members = component.signature.members
        self.inputs = [name for name, member in members.items() if member.flow == wiring.In]
        operands = data.StructLayout({name: len(getattr(component, name)) for name in self.inputs})
        super().__init__(
            {
                "operands": In(stream.Signature(operands, always_ready=True)),
                "result": Out(stream.Signature(len(component.y), always_ready=True)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.component = component = self.component
        m.d.comb += [getattr(component, name).eq(self.operands.payload[name]) for name in self.inputs]
        valid = Signal(component.latency)
        m.d.sync += valid.eq(Cat(self.operands.valid, valid)[: component.latency])
        m.d.comb += [self.result.valid.eq(valid[-1]), self.result.payload.eq(component.y)]
        return m


@dataclass(frozen=True)
class Case:
    """A component, its operands (a format, or the width of an integer) and what it should give, as bits, for arrays of operand bits."""

    component: Any
    operands: tuple[FloatFormat | int, ...]
    golden: Callable[..., Any]

    @property
    def widths(self) -> list[int]:
        return [operand if isinstance(operand, int) else operand.bits for operand in self.operands]


def _add(F: FloatFormat) -> Case:
    def golden(a: Bits, b: Bits, subtract: Bits) -> Bits:
        return np.where(subtract, floats.sub(F, a, b), floats.add(F, a, b))

    return Case(rtl_floats.FloatAdd(format=F), (F, F, 1), golden)


def _mul(Fa: FloatFormat, Fb: FloatFormat, F: FloatFormat) -> Case:
    return Case(rtl_floats.FloatMul(a_format=Fa, b_format=Fb, format=F), (Fa, Fb), lambda a, b: floats.mul(Fa, a, Fb, b, F))


def _from_int(width: int, F: FloatFormat) -> Case:
    def golden(a: Bits) -> Bits:
        return floats.from_int(F, (a.astype(np.int64) ^ (1 << (width - 1))) - (1 << (width - 1)))

    return Case(rtl_floats.IntToFloat(width=width, format=F), (width,), golden)


def _to_int(F: FloatFormat, low: int, high: int) -> Case:
    component = rtl_floats.FloatToInt(format=F, low=low, high=high)
    return Case(component, (F,), lambda a: floats.to_int(F, a, low, high) & ((1 << len(component.y)) - 1))


def _convert(source: FloatFormat, target: FloatFormat) -> Case:
    return Case(rtl_floats.FloatConvert(source=source, target=target), (source,), lambda a: floats.convert(source, target, a))


def _saturate(source: FloatFormat, target: FloatFormat) -> Case:
    component = rtl_floats.FloatConvert(source=source, target=target, saturate=True)
    return Case(component, (source,), lambda a: floats.saturate(target, floats.convert(source, target, a)))


def configurations() -> dict[str, Case]:
    """Every pipelined component in the formats that matter, by name."""
    found: dict[str, Case] = {}
    for F in FORMATS:
        found[f"add_{F}"] = _add(F)
        found[f"mul_{F}"] = _mul(F, F, F)
        found[f"greater_{F}"] = Case(Greater(format=F), (F, F), lambda a, b, F=F: floats.greater(F, a, b))
    for Fa, Fb, F in ((FP32, E8M11, FP32), (E8M11, E8M11, FP32), (FP32, FP32, E8M11), (E8M11, FP32, E8M11), (FP16, BF16, E8M11), (FP32, FP16, E4M3)):
        found[f"mul_{Fa}_{Fb}_{F}"] = _mul(Fa, Fb, F)
    for width, F in ((2, FP32), (8, E8M11), (24, FP32), (32, FP32), (32, E8M11), (20, FP16), (9, E4M3)):
        found[f"from_int_{width}_{F}"] = _from_int(width, F)
    for F, low, high in (
        (FP32, -127, 127),
        (FP32, 0, 255),
        (E8M11, -127, 127),
        (E8M11, -8, 7),
        (FP16, -100_000, 100_000),
        (E4M3, 0, 1),
        (FP32, -(2**30), 2**30 - 1),
    ):
        found[f"to_int_{F}_{-low}_{high}"] = _to_int(F, low, high)
    for source, target in ((FP32, E8M11), (E8M11, FP32), (FP32, BF16), (FP32, FP16), (FP16, FP32), (FP32, E4M3), (E8M11, FP16), (FP16, E8M11), (E8M11, E8M11)):
        found[f"convert_{source}_{target}"] = _convert(source, target)
    for source, target in ((E8M11, FP16), (FP16, FP16), (FP32, E4M3)):
        found[f"saturate_{source}_{target}"] = _saturate(source, target)
    for F in (E8M11, FP16, E8M12):
        found[f"exp2_{F}"] = Case(rtl_functions.Exp2(format=F), (FP32,), lambda a, F=F: functions.exp2(a, F))
    for F in (E8M11, FP16, E8M12, E4M3, E2M1):
        found[f"silu_{F}"] = Case(rtl_functions.Silu(format=F), (F,), lambda a, F=F: functions.silu(F, a))
    for F in (E8M11, BF16, E2M1):
        found[f"sigmoid_{F}"] = Case(rtl_functions.Sigmoid(format=F), (F,), lambda a, F=F: functions.sigmoid(F, a))
    return found


def patterns(F: FloatFormat | int, rng: np.random.Generator, count: int) -> Bits:
    """Edge cases of an operand, then random patterns, then random values near 1 (``count`` of both together)."""
    if isinstance(F, int):
        top = 1 << (F - 1)
        edges = sorted({value % (2 * top) for value in (0, 1, -1, top, top - 1, top + 1, top // 2, 3 * top // 2)})
        shift = rng.integers(0, F, count)
        values = rng.integers(0, 2 * top, count).astype(np.uint32) >> shift.astype(np.uint32)
        return np.concatenate([edges, values, -values[: count // 2].astype(np.int64) % (2 * top)]).astype(np.uint32)
    fractions = {0, 1, 2, F.min_normal - 1, F.min_normal - 2, F.min_normal >> 1, (F.min_normal >> 1) | 1}
    exponents = {0, 1, 2, F.bias - 1, F.bias, F.bias + 1, F.bias + F.mantissa, (1 << F.exponent) - 3, (1 << F.exponent) - 2, (1 << F.exponent) - 1}
    edges = [s | e << F.mantissa | f for s, e, f in product((0, F.sign), sorted(exponents), sorted(fractions))]
    random = rng.integers(0, F.mask + 1, count // 2).astype(np.uint32)
    near = floats.from_float64(F, rng.standard_normal(count - count // 2) * np.exp2(rng.integers(-12, 13, count - count // 2)))
    return np.concatenate([np.array(edges, np.uint32), random, near])


def pairs(Fa: FloatFormat, Fb: FloatFormat, rng: np.random.Generator, count: int) -> tuple[Bits, Bits]:
    """Operand pairs: edges by edges, random ones, near-cancellation and ties of a sum, products and quotients around overflow and underflow."""
    edges_a, edges_b = patterns(Fa, rng, 0), patterns(Fb, rng, 0)
    a, b = (grid.ravel() for grid in np.meshgrid(edges_a, edges_b))
    if len(a) > 4 * count:
        picked = rng.choice(len(a), 4 * count, replace=False)
        a, b = a[picked], b[picked]
    random_a, random_b = patterns(Fa, rng, count)[-count:], patterns(Fb, rng, count)[-count:]
    finite = rng.integers(0, Fa.infinity, count).astype(np.uint32)
    # Same magnitude up to a few last places, or an operand some powers of two smaller with few bits set: cancellation, ties, sticky bits.
    close_a = finite | (rng.integers(0, 2, count) << (Fa.bits - 1)).astype(np.uint32)
    close_b = floats.convert(Fa, Fb, close_a).astype(np.int64) + rng.integers(-3, 4, count)
    gap = rng.integers(0, Fb.mantissa + 4, count) << Fb.mantissa
    tail = (1 << rng.integers(0, Fb.mantissa + 1, count)) * rng.integers(0, 2, count)
    sparse_b = (np.maximum((close_b & Fb.magnitude) - gap, 0) & ~(Fb.min_normal - 1)) | (tail & (Fb.min_normal - 1))
    # Exponents that add up to about the largest or smallest one.
    target = rng.choice([1 - Fa.bias, Fa.bias + 1], count) + rng.integers(-2, 3, count)
    exponent_b = np.clip(target - (finite >> Fa.mantissa).astype(np.int64) + Fa.bias + Fb.bias, 1, (1 << Fb.exponent) - 2)
    limit_b = exponent_b << Fb.mantissa | rng.choice([0, 1, Fb.min_normal - 1, Fb.min_normal >> 1], count)
    flips = (rng.integers(0, 2, (3, count)) << (Fb.bits - 1)).astype(np.int64)
    groups_b = [b, random_b, (close_b & Fb.mask) ^ flips[0], sparse_b ^ flips[1], limit_b ^ flips[2]]
    return np.concatenate([a, random_a, close_a, close_a, finite]).astype(np.uint32), np.concatenate(groups_b).astype(np.uint32)


def _stimulate(case: Case, rng: np.random.Generator, count: int, exhaustive: int) -> list[Bits]:
    widths = case.widths
    if sum(widths) <= exhaustive:
        index = np.arange(1 << sum(widths), dtype=np.uint32)
        return [(index >> np.uint32(sum(widths[:i]))) & np.uint32((1 << width) - 1) for i, width in enumerate(widths)]
    if len(case.operands) == 1:
        return [patterns(case.operands[0], rng, 5 * count)]
    Fa, Fb = case.operands[:2]
    assert isinstance(Fa, FloatFormat) and isinstance(Fb, FloatFormat)
    operands = list(pairs(Fa, Fb, rng, count))
    return operands + [rng.integers(0, 1 << width, len(operands[0])).astype(np.uint32) for width in widths[2:]]


def bench(cases: dict[str, Case]) -> Bench:
    """One top with every case and the serial divider."""
    made = Bench("floats")
    for name, case in cases.items():
        made.add(name, StreamedPipeline(case.component))
    made.add("divsqrt", rtl_floats.FloatDivSqrt())
    return made


@cache
def built() -> tuple[Bench, dict[str, Case]]:
    """The bench with all configurations, built once per process, and its cases."""
    cases = configurations()
    made = bench(cases)
    made.build()
    return made, cases


def _pack(operands: list[Bits], widths: list[int]) -> NDArray[np.uint64]:
    words = np.zeros(len(operands[0]), np.uint64)
    for i, operand in enumerate(operands):
        words |= operand.astype(np.uint64) << np.uint64(sum(widths[:i]))
    return words


def _payloads(operands: list[Bits], widths: list[int]) -> Any:
    if sum(widths) <= 64:
        return _pack(operands, widths)
    low = _pack(operands[:2], widths[:2])
    return np.stack([low & np.uint64(0xFFFFFFFF), low >> np.uint64(32), operands[2]], axis=1).astype(np.uint32)


def check(made: Bench, cases: dict[str, Case], rng: np.random.Generator, count: int, exhaustive: int, faults: Sequence[Fault] = ()) -> int:
    """All pipelines on about 5 * ``count`` operands each, on all that there are where these have at most ``exhaustive`` bits; returns the words compared."""
    everything = {name: (case, _stimulate(case, rng, count, exhaustive)) for name, case in cases.items()}
    stimuli = {name: {"operands": Stimulus(_payloads(operands, case.widths))} for name, (case, operands) in everything.items()}
    lengths = {name: len(operands[0]) for name, (_, operands) in everything.items()}
    beats = {name: {"result": n} for name, n in lengths.items()}
    recordings = made.run(stimuli=stimuli, beats=beats, max_cycles=max(lengths.values()) + 100, faults=faults)
    words = 0
    for name, (case, operands) in everything.items():
        start = np.arange(lengths[name])
        compare(f"{name}.operands", None, start, recordings[name]["operands"])
        words += compare(f"{name}.result", case.golden(*operands), start + case.component.latency, recordings[name]["result"])
    return words


def check_divsqrt(made: Bench, rng: np.random.Generator, count: int, faults: Sequence[Fault] = ()) -> int:
    """The serial divider on ``count`` operations with idle cycles and back-pressure; returns the words compared."""
    a, b = pairs(FP32, FP32, rng, 4 * count)
    picked = rng.choice(len(a), count, replace=False)
    a, b, root = a[picked], b[picked], rng.integers(0, 2, count).astype(np.uint32)
    a = np.where((root == 1) & (rng.random(count) < 0.9), a & np.uint32(FP32.magnitude), a)
    latency = floats.FLOAT_LATENCY["divsqrt"]
    not_before = np.cumsum(rng.integers(0, 2 * latency, count))
    ready = rng.random(40 * count) < 0.3
    accepting = np.append(np.flatnonzero(ready), np.arange(len(ready), 100 * count))
    starts: list[int] = []
    ends: list[int] = []
    for earliest in not_before:
        starts.append(max(int(earliest), ends[-1] + 1 if ends else 0))
        ends.append(int(accepting[np.searchsorted(accepting, starts[-1] + latency)]))
    recordings = made.run(
        stimuli={"divsqrt": {"operands": Stimulus(_payloads([a, b, root], [32, 32, 1]), not_before)}},
        ready={"divsqrt": {"result": ready}},
        beats={"divsqrt": {"result": count}},
        max_cycles=100 * count,
        faults=faults,
    )["divsqrt"]
    golden = np.where(root, floats.sqrt(FP32, a), floats.div(FP32, a, b))
    words = compare("divsqrt.result", golden, ends, recordings["result"])
    compare("divsqrt.operands", None, starts, recordings["operands"])
    return words
