# SPDX-License-Identifier: Apache-2.0
"""Pipelined floating-point components; golden values in hls_models/floats.py, rules of all of them in docs/architecture.md §2.2.

Plain ports, no handshake: a new operand is taken every clock (initiation interval 1), the result of the operands of cycle t stands on ``y`` in cycle
t + ``latency``. Nothing stalls and nothing is reset: whoever uses them delays its own valid by ``latency``.
"""

from amaranth.hdl import C, Cat, Module, Mux, Shape, Signal, Value, ValueLike, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.floats import FLOAT_LATENCY, FloatFormat
from lutra.rtl.float_div import FloatDivSqrt
from lutra.rtl.float_parts import fields, normalise, register, round_pack, shift_right_sticky, wire

__all__ = ["FloatAdd", "FloatConvert", "FloatDivSqrt", "FloatMul", "FloatToInt", "IntToFloat", "greater"]


def greater(F: FloatFormat, a: ValueLike, b: ValueLike) -> Value:
    """Combinational a > b as reals: -0 == +0, never with a NaN."""
    x, y = Value.cast(a), Value.cast(b)
    key_x, key_y = (Mux(v[F.mantissa : -1].any(), v[:-1], 0) for v in (x, y))
    nan = (key_x > F.infinity) | (key_y > F.infinity)
    above = Mux(y[-1], (key_x | key_y).any(), key_x > key_y)
    return ~nan & Mux(x[-1], y[-1] & (key_y > key_x), above)


class FloatAdd(wiring.Component):
    """a + b, or a - b where ``subtract`` is 1, rounded once.

    Stages: compare and swap; align and add; normalise; round. With latency 2 they are two: up to the sum, and behind it, for loops whose next sum waits.

    Parameters
    ----------
    format : :class:`FloatFormat`
        Of both operands and of the result.
    latency : int
        ``FLOAT_LATENCY["add"]``, or 2.

    Members
    -------
    a, b : ``In(format.bits)``
    subtract : ``In(1)``
    y : ``Out(format.bits)``
    """

    def __init__(self, *, format: FloatFormat, latency: int = FLOAT_LATENCY["add"]):
        if latency not in (2, FLOAT_LATENCY["add"]):
            raise ValueError(f"Latency must be 2 or {FLOAT_LATENCY['add']}, not {latency}")
        self.format, self.latency = format, latency
        super().__init__({"a": In(format.bits), "b": In(format.bits), "subtract": In(1), "y": Out(format.bits)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        F = self.format
        between = int(self.latency > 2)  # cycles of the first and the third stage
        a, b = fields(m, F, self.a, "a"), fields(m, F, self.b, "b")
        sign_b = wire(m, b.sign ^ self.subtract, "sign_b")
        # A zero, subnormals included, adds nothing; as it is written it compares below every other number, and of two zeros either may be the larger.
        significand_a = wire(m, Mux(a.zero, 0, a.significand), "significand_a")
        significand_b = wire(m, Mux(b.zero, 0, b.significand), "significand_b")
        swap = wire(m, self.b[:-1] > self.a[:-1], "swap")
        distance = Mux(swap, b.exponent - a.exponent, a.exponent - b.exponent)[: F.exponent]

        exponent = register(m, Mux(swap, b.exponent, a.exponent), "exponent_1", between)
        large = register(m, Mux(swap, significand_b, significand_a), "large_1", between)
        small = register(m, Mux(swap, significand_a, significand_b), "small_1", between)
        distance = register(m, distance, "distance_1", between)
        differ = register(m, a.sign ^ sign_b, "differ_1", between)
        sign = register(m, Mux(swap, sign_b, a.sign), "sign_1", self.latency - 1)
        sign_zero = register(m, a.sign & sign_b, "sign_zero_1", self.latency - 1)
        nan = register(m, a.nan | b.nan | (a.inf & b.inf & (a.sign ^ sign_b)), "nan_1", self.latency - 1)
        inf = register(m, a.inf | b.inf, "inf_1", self.latency - 1)

        # Guard, round and sticky bit below the smaller operand are enough for one correct rounding.
        aligned = shift_right_sticky(m, Cat(C(0, 3), small), distance, "aligned")
        total = wire(m, Cat(C(0, 3), large) + (aligned ^ differ.replicate(len(aligned))) + differ, "total")
        # A difference of magnitudes is never negative: its carry is always set and says nothing.
        total = register(m, Cat(total[: F.mantissa + 4], total[F.mantissa + 4] & ~differ), "total_2")
        exponent = register(m, exponent, "exponent_2")

        shifted, places = normalise(m, total, "normal")
        shifted = register(m, shifted, "shifted_3", between)
        wide = Signal(signed(F.exponent + 2))
        m.d.comb += wide.eq(exponent + 1 - places)
        wide = register(m, wide, "exponent_3", between)

        zero = ~shifted[-1]
        y = round_pack(m, F, sign=Mux(zero, sign_zero, sign), exponent=wide, significand=shifted, zero=zero, inf=inf, nan=nan, name="round")
        m.d.comb += self.y.eq(register(m, y, "y_4"))
        return m


class FloatMul(wiring.Component):
    """The exact product a * b, rounded once. The middle register holds the bare product of the significands: a DSP block's own.

    Stages: unpack; multiply; normalise and round.

    Parameters
    ----------
    a_format, b_format, format : :class:`FloatFormat`
        Of the operands and of the result.

    Members
    -------
    a : ``In(a_format.bits)``
    b : ``In(b_format.bits)``
    y : ``Out(format.bits)``
    """

    def __init__(self, *, a_format: FloatFormat, b_format: FloatFormat, format: FloatFormat):
        self.a_format, self.b_format, self.format = a_format, b_format, format
        self.latency = FLOAT_LATENCY["mul"]
        super().__init__({"a": In(a_format.bits), "b": In(b_format.bits), "y": Out(format.bits)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        F = self.format
        a, b = fields(m, self.a_format, self.a, "a"), fields(m, self.b_format, self.b, "b")
        significand_a = register(m, a.significand, "significand_a")
        significand_b = register(m, b.significand, "significand_b")
        product = register(m, significand_a * significand_b, "product")
        exponent = register(m, a.exponent + b.exponent, "exponent", 2)
        sign = register(m, a.sign ^ b.sign, "sign", 2)
        nan = register(m, a.nan | b.nan | (a.inf & b.zero) | (a.zero & b.inf), "nan", 2)
        inf = register(m, a.inf | b.inf, "inf", 2)
        zero = register(m, a.zero | b.zero, "zero", 2)

        top = product[-1]  # 1 <= product < 4
        rebias = F.bias - self.a_format.bias - self.b_format.bias
        wide = wire(m, exponent + C(rebias, Shape.cast(range(min(rebias, -1), max(rebias, 1) + 1))) + top, "wide")
        shifted = wire(m, Mux(top, product, Cat(C(0, 1), product[:-1])), "shifted")
        y = round_pack(m, F, sign=sign, exponent=wide, significand=shifted, zero=zero, inf=inf, nan=nan, name="round")
        m.d.comb += self.y.eq(register(m, y, "y_3"))
        return m


class FloatConvert(wiring.Component):
    """One rounding from one format to another, in one stage.

    Parameters
    ----------
    source, target : :class:`FloatFormat`
    saturate : bool
        The largest finite number instead of an infinity.

    Members
    -------
    a : ``In(source.bits)``
    y : ``Out(target.bits)``
    """

    def __init__(self, *, source: FloatFormat, target: FloatFormat, saturate: bool = False):
        self.source, self.target, self.saturate = source, target, saturate
        self.latency = FLOAT_LATENCY["convert"]
        super().__init__({"a": In(source.bits), "y": Out(target.bits)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a = fields(m, self.source, self.a, "a")
        rebias = self.target.bias - self.source.bias
        wide = wire(m, a.exponent + C(rebias, signed(10)), "wide")
        F = self.target
        y = round_pack(m, F, sign=a.sign, exponent=wide, significand=a.significand, zero=a.zero, inf=a.inf, nan=a.nan, name="round")
        if self.saturate:
            y = wire(m, y, "rounded")
            y = Mux(y[:-1] == F.infinity, Cat(C(F.max_finite, F.bits - 1), y[-1]), y)
        m.d.comb += self.y.eq(register(m, y, "y_1"))
        return m


class IntToFloat(wiring.Component):
    """A signed integer rounded to a format; 0 is +0. Stages: magnitude; normalise; round.

    Parameters
    ----------
    width : int
        Bits of the integer, its sign included.
    format : :class:`FloatFormat`

    Members
    -------
    a : ``In(signed(width))``
    y : ``Out(format.bits)``
    """

    def __init__(self, *, width: int, format: FloatFormat):
        if width < 2:
            raise ValueError(f"Width of an integer must be 2 or more, not {width}")
        self.width, self.format = width, format
        self.latency = FLOAT_LATENCY["from_int"]
        super().__init__({"a": In(signed(width)), "y": Out(format.bits)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        F = self.format
        magnitude = register(m, Mux(self.a < 0, -self.a, self.a)[: self.width], "magnitude")
        sign = register(m, self.a[-1], "sign", 2)
        shifted, places = normalise(m, magnitude, "normal")
        shifted = register(m, shifted, "shifted")
        wide = register(m, wire(m, F.bias + self.width - 1 - places, "wide"), "exponent")
        no, zero = C(0, 1), ~shifted[-1]
        y = round_pack(m, F, sign=sign & ~zero, exponent=wide, significand=shifted, zero=zero, inf=no, nan=no, name="round")
        m.d.comb += self.y.eq(register(m, y, "y_3"))
        return m


class FloatToInt(wiring.Component):
    """The nearest integer (half to even), clamped; NaN gives 0. Stages: shift; round and clamp.

    Parameters
    ----------
    format : :class:`FloatFormat`
    low, high : int
        Limits of the result, low <= 0 < high.

    Members
    -------
    a : ``In(format.bits)``
    y : ``Out(signed(n))``, the narrowest n that holds low … high
    """

    def __init__(self, *, format: FloatFormat, low: int, high: int):
        if not low <= 0 < high:
            raise ValueError(f"Limits must be low <= 0 < high, not {low} and {high}")
        self.format, self.low, self.high = format, low, high
        self.latency = FLOAT_LATENCY["to_int"]
        super().__init__({"a": In(format.bits), "y": Out(signed(1 + max(high, ~low).bit_length()))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        F = self.format
        a = fields(m, F, self.a, "a")
        integer = max(self.high, -self.low).bit_length()  # bits of the largest magnitude
        width = max(integer + 2, F.mantissa + 1)
        top = F.bias + integer - 1  # exponent of a significand whose leading one is the integer's highest bit
        distance = wire(m, C(top, signed(F.exponent + integer.bit_length() + 2)) - a.exponent, "distance")
        large = register(m, a.inf | (distance < 0) & ~a.nan, "large")
        aligned = Cat(C(0, width - F.mantissa - 1), a.significand)
        nothing = a.zero | a.nan
        shifted = register(m, Mux(nothing, 0, shift_right_sticky(m, aligned, distance[:-1], "aligned")), "shifted")
        sign = register(m, a.sign, "sign")

        half = width - integer - 1
        up = shifted[half] & (shifted[:half].any() | shifted[half + 1])
        rounded = wire(m, shifted[half + 1 :] + up, "rounded")
        above = large | (rounded > self.high)
        below = large | (rounded > -self.low)
        limits = Mux(sign, C(self.low, self.y.shape()), C(self.high, self.y.shape()))
        result = Mux(Mux(sign, below, above), limits, Mux(sign, -rounded, rounded))
        y = Signal(self.y.shape())
        m.d.comb += y.eq(result)
        m.d.comb += self.y.eq(register(m, y, "y_2"))
        return m
