# SPDX-License-Identifier: Apache-2.0
"""Bench of rtl/pim/functions.py (and the short adder of the MAC unit) in one top, against hls_models/pim/functions.py bit for bit and clock for clock."""

from collections.abc import Sequence
from functools import cache
from typing import Any, get_args

import numpy as np
from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from numpy.typing import NDArray

from lutra.cosim.benches.floats import Case, StreamedPipeline, pairs, patterns
from lutra.cosim.harness import Bench, Fault, Stimulus, compare
from lutra.hls_models import floats
from lutra.hls_models.floats import FP32
from lutra.hls_models.pim import functions
from lutra.hls_models.pim.coefficients import Family
from lutra.hls_models.pim.functions import SCALAR_LATENCY
from lutra.hls_models.pim.program import ScalarOperation
from lutra.hls_models.streams import pack
from lutra.rtl.floats import FloatAdd
from lutra.rtl.pim.functions import Exp2, Gelu, ScalarUnit

__all__ = ["arguments", "bench", "check_lanes", "check_scalars", "lanes"]

Bits = NDArray[np.uint32]
FAMILIES: tuple[Family, ...] = get_args(Family)


class _Power(wiring.Component):
    """``Gelu``'s exp2, lent all the time."""

    def __init__(self, family: Family) -> None:
        self._gelu = Gelu(family=family)
        self.latency = functions.FUNCTION_LATENCY["exp2"]
        super().__init__({"a": In(32), "y": Out(32)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.gelu = gelu = self._gelu
        m.d.comb += [gelu.lent.eq(1), gelu.argument.eq(self.a), self.y.eq(gelu.power)]
        return m


class _Gelu(wiring.Component):
    """``Gelu`` without what is lent."""

    def __init__(self, family: Family) -> None:
        self._gelu = Gelu(family=family)
        self.latency = self._gelu.latency
        super().__init__({"a": In(32), "erf": In(1), "y": Out(32)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.gelu = gelu = self._gelu
        m.d.comb += [gelu.a.eq(self.a), gelu.erf.eq(self.erf), self.y.eq(gelu.y)]
        return m


class StreamedScalars(wiring.Component):
    """Streams around the serial unit: the next operands are taken in the clock after a result."""

    def __init__(self, family: Family) -> None:
        self._family: Family = family
        layout = data.StructLayout({"a": 32, "b": 32, "operation": ScalarOperation})
        super().__init__({"operands": In(stream.Signature(layout)), "result": Out(stream.Signature(32, always_ready=True))})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.unit = unit = ScalarUnit(family=self._family)
        taken = self.operands.payload
        left = Signal(range(max(SCALAR_LATENCY.values()) + 1))
        busy = Signal()
        m.d.comb += [
            self.operands.ready.eq(~busy),
            unit.start.eq(self.operands.valid & ~busy),
            *(getattr(unit, name).eq(taken[name]) for name in ("a", "b", "operation")),
            self.result.valid.eq(busy & (left == 0)),
            self.result.payload.eq(unit.y),
        ]
        with m.If(unit.start):
            with m.Switch(taken.operation):
                for operation, name in OPERATIONS.items():
                    with m.Case(operation):
                        m.d.sync += left.eq(SCALAR_LATENCY[name] - 1)
            m.d.sync += busy.eq(1)
        with m.Else():
            m.d.sync += [left.eq(left - 1), busy.eq(busy & (left != 0))]
        return m


OPERATIONS = {
    ScalarOperation.ADD: "add",
    ScalarOperation.MUL: "mul",
    ScalarOperation.MULK: "mul",
    ScalarOperation.ADDK: "add",
    ScalarOperation.RECIPROCAL: "reciprocal",
    ScalarOperation.RSQRT: "rsqrt",
}


@cache
def lanes() -> dict[str, Case]:
    """Every pipeline, by name."""
    found: dict[str, Case] = {"add2": Case(FloatAdd(format=FP32, latency=2), (FP32, FP32, 1), _add_or_subtract)}
    for family in FAMILIES:
        found[f"exp2_{family}"] = Case(Exp2(family=family), (FP32,), lambda a, family=family: functions.exp2(a, family))
        found[f"lent_{family}"] = Case(_Power(family), (FP32,), lambda a, family=family: functions.exp2(a, family))
        found[f"gelu_{family}"] = Case(_Gelu(family), (FP32, 1), lambda a, erf, family=family: _gelu(a, erf, family))
    return found


def _add_or_subtract(a: Bits, b: Bits, subtract: Bits) -> Bits:
    return np.where(subtract, floats.sub(FP32, a, b), floats.add(FP32, a, b))


def _gelu(a: Bits, erf: Bits, family: Family) -> Bits:
    return np.where(erf, functions.gelu_erf(a, family), functions.gelu(a, family))


@cache
def bench() -> Bench:
    """All pipelines and serial units in one top."""
    made = Bench("pim functions")
    for name, case in lanes().items():
        made.add(name, StreamedPipeline(case.component))
    for family in FAMILIES:
        made.add(f"scalars_{family}", StreamedScalars(family))
    made.build()
    return made


def arguments(rng: np.random.Generator, count: int) -> Bits:
    """fp32 operands: edges, raw bits, numbers of every size, halves between integers with their neighbours, and the edges of GELU's intervals."""
    halves = floats.from_float64(FP32, rng.integers(-310, 310, count // 8) / 2).astype(np.int64) + rng.integers(-2, 3, count // 8)
    squares = np.sqrt(2.0 ** rng.integers(0, 9, count // 8) * (1 + rng.integers(0, 4, count // 8) / 4))
    edges = floats.from_float64(FP32, squares).astype(np.int64) + rng.integers(-3, 4, count // 8) + (rng.integers(0, 2, count // 8) << 31)
    spread = floats.from_float64(FP32, np.concatenate([rng.uniform(-160, 160, count // 8), rng.uniform(-17, 17, count // 4)]))
    return np.concatenate([patterns(FP32, rng, count // 4), halves & 0xFFFFFFFF, edges & 0xFFFFFFFF, spread]).astype(np.uint32)


def check_lanes(made: Bench, rng: np.random.Generator, count: int, faults: Sequence[Fault] = ()) -> int:
    """Every pipeline on about ``count`` operands of ``arguments`` (the adder: of pairs); returns the words compared."""
    stimuli, golden, beats = {}, {}, {}
    for name, case in lanes().items():
        operands = list(pairs(FP32, FP32, rng, count // 8)) if name == "add2" else [arguments(rng, count)]
        if case.operands[-1] == 1:
            operands.append(rng.integers(0, 2, len(operands[0])).astype(np.uint32))
        stimuli[name] = {"operands": Stimulus(pack(*zip(operands, case.widths, strict=True)))}
        golden[name], beats[name] = case.golden(*operands), {"result": len(operands[0])}
    recordings = made.run(stimuli=stimuli, beats=beats, max_cycles=20 * count + 200, faults=faults)
    latencies = {name: case.component.latency for name, case in lanes().items()}
    return sum(compare(f"{name}.result", want, np.arange(len(want)) + latencies[name], recordings[name]["result"]) for name, want in golden.items())


def check_scalars(made: Bench, rng: np.random.Generator, count: int, faults: Sequence[Fault] = ()) -> int:
    """The serial units on ``count`` operations each, offered at random times; returns the words compared."""
    stimuli, expected, beats = {}, {}, {}
    for family in FAMILIES:
        operation = rng.choice(list(OPERATIONS), count)
        a, b = (rng.permutation(x)[:count] for x in pairs(FP32, FP32, rng, count))
        a = np.where(rng.random(count) < 0.5, rng.permutation(arguments(rng, 4 * count))[:count], a)
        a = np.where((operation == ScalarOperation.RSQRT) & (rng.random(count) < 0.9), a & np.uint32(FP32.magnitude), a).astype(np.uint32)
        offered = np.cumsum(rng.integers(0, 40, count))
        golden = np.zeros(count, np.uint32)
        for kind, name in OPERATIONS.items():
            here = operation == kind
            if name in ("add", "mul"):
                golden[here] = floats.add(FP32, a[here], b[here]) if name == "add" else floats.mul(FP32, a[here], FP32, b[here], FP32)
            else:
                golden[here] = (functions.reciprocal if name == "reciprocal" else functions.rsqrt)(a[here], family)
        starts: list[int] = []
        ends: list[int] = []
        for time, kind in zip(offered.tolist(), operation.tolist(), strict=True):
            starts.append(max(time, ends[-1] + 1 if ends else 0))
            ends.append(starts[-1] + SCALAR_LATENCY[OPERATIONS[ScalarOperation(kind)]])
        name = f"scalars_{family}"
        stimuli[name] = {"operands": Stimulus(pack((a, 32), (b, 32), (operation, 3)), offered)}
        expected[name], beats[name] = (golden, starts, ends), {"result": count}
    recordings = made.run(stimuli=stimuli, beats=beats, max_cycles=60 * count + 200, faults=faults)
    words = 0
    for name, (golden, starts, ends) in expected.items():
        compare(f"{name}.operands", None, starts, recordings[name]["operands"])
        words += compare(f"{name}.result", golden, ends, recordings[name]["result"])
    return words
