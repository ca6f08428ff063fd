# SPDX-License-Identifier: Apache-2.0
"""The companion chip's functions from adders and multipliers; definitions, golden values and latencies: hls_models/pim/functions.py.

``Exp2`` and ``Gelu`` are lanes as in rtl/floats.py: plain ports, an operand every clock, the result ``latency`` clocks later, no stall, no reset.
``ScalarUnit`` is serial: one adder and one multiplier do a SCALAR instruction after the other.

Adders and multipliers of a lane: ``Exp2`` 4 and 3; ``Gelu`` 9 and 12, its own exp2 included, for both forms. ``Gelu``'s exp2 can be lent.
"""

from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lutra.hls_models.floats import FLOAT_LATENCY, FP32
from lutra.hls_models.pim.coefficients import GELU_LIMIT, SEGMENTS, TANH_SEGMENT, Family, coefficients
from lutra.hls_models.pim.functions import EXP2_LIMIT, FUNCTION_LATENCY, LARGE_EXPONENT, SCALAR_LATENCY
from lutra.hls_models.pim.program import ScalarOperation
from lutra.rtl.float_parts import register, wire
from lutra.rtl.pim.units import adder, multiplier

__all__ = ["DelayLine", "Exp2", "Gelu", "ScalarUnit"]

SHORT = 8
"""Delays up to here are registers, longer ones a RAM."""
ADD, MUL = FLOAT_LATENCY["add"], FLOAT_LATENCY["mul"]


class DelayLine(wiring.Component):
    """``y`` is the ``a`` of ``cycles`` clocks before, in a RAM that is written round and round.

    Parameters
    ----------
    width, cycles : int
        ``cycles`` at least 3.
    """

    def __init__(self, *, width: int, cycles: int) -> None:
        self._cycles = cycles
        super().__init__({"a": In(width), "y": Out(width)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        depth = self._cycles - 1  # the read port's register is the last place
        m.submodules.memory = memory = Memory(shape=len(self.a), depth=depth, init=[])
        read, write = memory.read_port(), memory.write_port()
        place = Signal(range(depth))
        m.d.sync += place.eq(Mux(place == depth - 1, 0, place + 1))
        m.d.comb += [read.addr.eq(place), write.addr.eq(place), write.en.eq(1), write.data.eq(self.a), self.y.eq(read.data)]
        return m


class _Pipeline:
    """Names and delays for one lane: what follows what."""

    def __init__(self, m: Module) -> None:
        self.m = m

    def late(self, value: Value, name: str, cycles: int) -> Value:
        """``value`` of ``cycles`` clocks before."""
        if cycles <= SHORT:
            return register(self.m, value, name, cycles)
        self.m.submodules[f"{name}_delay"] = line = DelayLine(width=len(value), cycles=cycles)
        self.m.d.comb += line.a.eq(value)
        return line.y

    def add(self, name: str, a: Value, b: Value, subtract: int = 0) -> Value:
        unit = adder(self.m, name)
        self.m.d.comb += [unit.a.eq(a), unit.b.eq(b), unit.subtract.eq(subtract)]
        return unit.y

    def mul(self, name: str, a: Value, b: Value) -> Value:
        unit = multiplier(self.m, name)
        self.m.d.comb += [unit.a.eq(a), unit.b.eq(b)]
        return unit.y


def _constant(pattern: int) -> Value:
    return C(int(pattern), FP32.bits)


class Exp2(wiring.Component):
    """2**a. Stages: nearest integer; fraction; polynomial (Horner); exponent. 4 adders, 3 multipliers.

    Parameters
    ----------
    family : str
        Of the coefficients.

    Members
    -------
    a : ``In(32)``
    y : ``Out(32)``
    """

    def __init__(self, *, family: Family = "minimax") -> None:
        self._coefficients = coefficients(family).exp2
        self.latency = FUNCTION_LATENCY["exp2"]
        super().__init__({"a": In(FP32.bits), "y": Out(FP32.bits)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        lane = _Pipeline(m)
        exponent, sign = self.a[FP32.mantissa : -1], self.a[-1]
        half = FP32.bias - 1  # exponent of 1/2, the smallest that is not rounded to 0
        rounds = wire(m, exponent >= half, "rounds")
        large = wire(m, exponent >= FP32.bias + EXP2_LIMIT, "large")
        nan = wire(m, exponent.all() & self.a[: FP32.mantissa].any(), "nan")
        places = wire(m, (exponent - half)[:4], "places")  # integer bits of the number

        # Half a unit is added to the bits, whatever it carries into the exponent; then what is below a unit is cleared.
        units = [places == FP32.mantissa - bit for bit in range(FP32.mantissa - EXP2_LIMIT, FP32.mantissa + 1)]
        raised = wire(m, self.a[:-1] + Cat(C(0, FP32.mantissa - EXP2_LIMIT), *units), "raised")
        kept = [places >= FP32.mantissa + 1 - bit for bit in range(FP32.mantissa - EXP2_LIMIT, FP32.mantissa)]
        cleared = Cat(C(0, FP32.mantissa - EXP2_LIMIT), raised[FP32.mantissa - EXP2_LIMIT : FP32.mantissa] & Cat(kept), raised[FP32.mantissa :])
        whole = register(m, Mux(rounds & ~large, Cat(cleared[: FP32.bits - 1], sign), 0), "whole")

        top = Cat(self.a[FP32.mantissa - EXP2_LIMIT : FP32.mantissa], C(1, 1), C(0, EXP2_LIMIT))
        doubled = wire(m, (top << places)[EXP2_LIMIT : 2 * EXP2_LIMIT + 2], "doubled")
        size = wire(m, Mux(large, (1 << EXP2_LIMIT) + FP32.bias, Mux(rounds, (doubled + 1) >> 1, 0)), "size")
        n = register(m, wire(m, Mux(sign, -size, size), "n"), "n")

        f = lane.add("fraction", register(m, Mux(large & ~nan, 0, self.a), "a"), whole, subtract=1)
        c1, c2, c3 = (_constant(c) for c in self._coefficients)
        p = lane.mul("product_3", c3, f)
        for number, coefficient in ((2, c2), (1, c1)):
            p = lane.add(f"sum_{number}", p, coefficient)
            f = lane.late(f, f"f_{number}", MUL + ADD)
            p = lane.mul(f"product_{number}", p, f)
        p = lane.add("sum_0", p, C(FP32.one, FP32.bits))

        n = lane.late(n, "n_last", self.latency - 2)
        power = wire(m, p[FP32.mantissa : -1] + n.as_signed(), "power")
        infinite = power >= (1 << FP32.exponent) - 1
        magnitude = Mux(power <= 0, 0, Mux(infinite, FP32.infinity, Cat(p[: FP32.mantissa], power[: FP32.exponent])))
        m.d.comb += self.y.eq(register(m, Mux(p[FP32.mantissa : -1].all(), FP32.nan, magnitude), "y"))
        return m


class Gelu(wiring.Component):
    """GELU of a in either form. Stages: square; table; h; product; exp2; sum; Newton; product; special values. 9 adders, 12 multipliers.

    Parameters
    ----------
    family : str
        Of the coefficients.

    Members
    -------
    a : ``In(32)``
    erf : ``In(1)``
        The erf form, else the tanh form.
    y : ``Out(32)``
    lent : ``In(1)``
        The exp2 inside takes ``argument`` in this clock; whoever lends it knows that no operand of ``a`` reaches it then (``EXP2_START`` clocks after).
    argument : ``In(32)``
    power : ``Out(32)``
        Its result, ``FUNCTION_LATENCY["exp2"]`` clocks later.
    """

    EXP2_START = MUL + 1 + 2 * (MUL + ADD) + MUL

    def __init__(self, *, family: Family = "minimax") -> None:
        self._family = family
        self.latency = FUNCTION_LATENCY["gelu"]
        super().__init__({"a": In(FP32.bits), "erf": In(1), "y": Out(FP32.bits), "lent": In(1), "argument": In(FP32.bits), "power": Out(FP32.bits)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        lane = _Pipeline(m)
        numbers = coefficients(self._family)
        square = lane.mul("square", self.a, self.a)

        rows = [sum(int(c) << (i * FP32.bits) for i, c in enumerate(row)) for row in numbers.gelu]
        m.submodules.table = table = Memory(shape=3 * FP32.bits, depth=len(rows), init=rows)
        port = table.read_port()
        first = (FP32.bias + 1) << 2  # quarters of an octave below 2
        quarter = wire(m, square[FP32.mantissa - 2 : -1] - (first - 1), "quarter")
        row = wire(m, Mux(quarter < 0, 0, Mux(quarter >= SEGMENTS, SEGMENTS - 1, quarter[:5])), "row")
        m.d.comb += port.addr.eq(Mux(register(m, self.erf, "erf", MUL), row, TANH_SEGMENT))
        c0, c1, c2 = (port.data.word_select(i, FP32.bits) for i in range(3))

        s = register(m, square, "s")
        h = lane.add("h_1", lane.mul("h_2", c2, s), lane.late(c1, "c1", MUL))
        h = lane.add("h_0", lane.mul("h_s", h, lane.late(s, "s_late", MUL + ADD)), lane.late(c0, "c0", 2 * MUL + ADD))
        early = lane.late(self.a, "a_early", self.EXP2_START - MUL)
        q = lane.mul("q", early, h)

        m.submodules.exp2 = exp2 = Exp2(family=self._family)
        m.d.comb += [exp2.a.eq(Mux(self.lent, self.argument, q)), self.power.eq(exp2.y)]
        divided = wire(m, exp2.y[FP32.mantissa : -1] < LARGE_EXPONENT, "divided")
        d = lane.add("denominator", Mux(divided, exp2.y, 0), C(FP32.one, FP32.bits))

        magic, *steps = numbers.reciprocal
        r = register(m, wire(m, (C(magic, FP32.bits) - d)[: FP32.bits], "seed"), "seed")
        d = register(m, d, "d")
        for number, k in enumerate(steps):
            factor = lane.add(f"newton_{number}", _constant(k), lane.mul(f"guess_{number}", d, r), subtract=1)
            r = lane.mul(f"better_{number}", lane.late(r, f"r_{number}", MUL + ADD), factor)
            d = lane.late(d, f"d_{number}", 2 * MUL + ADD) if number + 1 < len(steps) else d
        before = self.latency - 1 - MUL
        a = lane.late(early, "a_late", before - (self.EXP2_START - MUL))
        product = lane.mul("product", a, r)

        a = lane.late(a, "a_last", MUL)
        exponent, sign = a[FP32.mantissa : -1], a[-1]
        large = wire(m, exponent >= FP32.bias + int(GELU_LIMIT).bit_length() - 1, "large")
        nan = exponent.all() & a[: FP32.mantissa].any()
        vanishes = ~lane.late(divided, "divided_late", before + MUL - self.EXP2_START - FUNCTION_LATENCY["exp2"])
        nothing = Cat(C(0, FP32.bits - 1), sign)
        y = Mux(nan, C(FP32.nan, FP32.bits), Mux(large, Mux(sign, nothing, a), Mux(vanishes, nothing, product)))
        m.d.comb += self.y.eq(register(m, y, "y_last"))
        return m


class ScalarUnit(wiring.Component):
    """ADD, MUL, RECIPROCAL and RSQRT of fp32 scalars, one at a time, on one adder and one multiplier.

    Parameters
    ----------
    family : str
        Of the constants.

    Members
    -------
    start : ``In(1)``
        Takes ``operation``, ``a`` and ``b``; not before the result of the one before.
    operation : ``In(ScalarOperation)``
        MULK and ADDK are MUL and ADD; COPY gives nothing.
    a, b : ``In(32)``
    y : ``Out(32)``
        The result, from ``SCALAR_LATENCY`` clocks after ``start`` until the next one's.
    """

    def __init__(self, *, family: Family = "minimax") -> None:
        self._family = family
        super().__init__({"start": In(1), "operation": In(ScalarOperation), "a": In(FP32.bits), "b": In(FP32.bits), "y": Out(FP32.bits)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        add = adder(m, "adder")
        mul = multiplier(m, "multiplier")
        numbers = coefficients(self._family)
        reciprocal = self.operation == ScalarOperation.RECIPROCAL
        x, other, r = (Signal(FP32.bits, name=name, reset_less=True) for name in ("x", "other", "r"))
        clock = Signal(range(max(SCALAR_LATENCY.values())))
        """Clocks since ``start``; 0: nothing to do."""
        adds, multiplies, divides, roots = (Signal(name=name) for name in ("adds", "multiplies", "divides", "roots"))

        with m.If(self.start):
            seed = Mux(reciprocal, numbers.reciprocal[0] - self.a[:-1], numbers.rsqrt[0] - self.a[1:-1])
            m.d.sync += [
                x.eq(self.a),
                other.eq(self.b),
                r.eq(seed),
                clock.eq(self.operation != ScalarOperation.COPY),
                adds.eq((self.operation == ScalarOperation.ADD) | (self.operation == ScalarOperation.ADDK)),
                multiplies.eq((self.operation == ScalarOperation.MUL) | (self.operation == ScalarOperation.MULK)),
                divides.eq(reciprocal),
                roots.eq(self.operation == ScalarOperation.RSQRT),
            ]
        with m.Elif(clock != 0):
            m.d.sync += clock.eq(clock + 1)

        # Steps: x r; for roots (x r) r; k - that; r times that.
        size = Cat(x[:-1], C(0, 1))
        halved = Cat(mul.y[: FP32.mantissa], mul.y[FP32.mantissa : -1] - 1)[: FP32.bits - 1]
        better = wire(m, Mux(roots, Cat(halved, C(0, 1)), mul.y), "better")
        m.d.comb += [
            mul.a.eq(Mux(multiplies, x, r)),
            mul.b.eq(Mux(multiplies, other, add.y)),
            add.a.eq(x),
            add.b.eq(other),
            add.subtract.eq(~adds),
        ]
        with m.If(~adds):
            m.d.comb += add.b.eq(mul.y)
        for flag, products, (_, *steps) in ((divides, 1, numbers.reciprocal), (roots, 2, numbers.rsqrt)):
            length = (products + 1) * MUL + ADD
            with m.If(flag):
                for number, k in enumerate(steps):
                    begin = 1 + number * length
                    guess = r if number == 0 else better
                    with m.If(clock == begin):
                        m.d.comb += [mul.a.eq(size), mul.b.eq(guess)]
                        m.d.sync += r.eq(guess)
                    if products == 2:
                        with m.If(clock == begin + MUL):
                            m.d.comb += [mul.a.eq(mul.y), mul.b.eq(r)]
                    with m.If(clock == begin + products * MUL):
                        m.d.comb += add.a.eq(_constant(k))

        self._finish(m, clock, x, adds, multiplies, divides, roots, add.y, better)
        return m

    def _finish(
        self, m: Module, clock: Signal, x: Signal, adds: Signal, multiplies: Signal, divides: Signal, roots: Signal, total: Value, product: Value
    ) -> None:
        """The result's register, with what the steps do not give."""
        exponent, sign = x[FP32.mantissa : -1], x[-1]
        zero, nan = ~exponent.any(), exponent.all() & x[: FP32.mantissa].any()
        y = Signal(FP32.bits, reset_less=True)
        quotient = Mux(zero, FP32.infinity, Mux(exponent >= LARGE_EXPONENT, 0, product[:-1]))
        root = Mux(zero, FP32.infinity, Mux(sign, FP32.nan, Mux(exponent.all(), 0, product)))
        for flag, name, result in (
            (adds, "add", total),
            (multiplies, "mul", product),
            (divides, "reciprocal", Mux(nan, FP32.nan, Cat(quotient[: FP32.bits - 1], sign))),
            (roots, "rsqrt", Mux(nan, FP32.nan, root)),
        ):
            with m.If(flag & (clock == SCALAR_LATENCY[name] - 1)):
                m.d.sync += y.eq(result)
                with m.If(~self.start):
                    m.d.sync += clock.eq(0)
        m.d.comb += self.y.eq(y)
