# SPDX-License-Identifier: Apache-2.0
"""Pipelined exp2, sigmoid and SiLU; algorithm, tables and golden values in hls_models/functions.py.

As in rtl/floats.py: plain ports, a new operand every clock, the result of the operand of cycle t on ``y`` in cycle t + ``latency``, no stall, no reset.
"""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lutra.hls_models import functions
from lutra.hls_models.floats import E8M11, FP32, FloatFormat
from lutra.hls_models.functions import ARGUMENT, FACTOR, FUNCTION_LATENCY, INTEGER, LOG2E, LOG2E_PLACES, PRODUCT, RECIPROCAL, SEGMENT_BITS, check_format
from lutra.rtl.float_parts import fields, register, round_pack, wire

__all__ = ["Exp2", "Sigmoid", "Silu"]

LINE_LATENCY = 2


def _line(m: Module, table: functions.Ints, argument: Value, name: str) -> Value:
    """Value of a table's line at ``argument`` of ``LINE_LATENCY`` cycles ago: a synchronous ROM, a multiplier with its register, an adder without."""
    values, rises = ([int(value) for value in column] for column in table.T)
    value_bits = max(values).bit_length()
    rise_bits = max(max(rises), -min(rises)).bit_length()
    rise_shape = signed(rise_bits + 1) if min(rises) < 0 else unsigned(rise_bits)
    rows = [value | (rise & ((1 << rise_shape.width) - 1)) << value_bits for value, rise in zip(values, rises, strict=True)]
    memory = Memory(shape=unsigned(value_bits + rise_shape.width), depth=len(rows), init=rows)
    m.submodules[name] = memory
    port = memory.read_port()
    rest = ARGUMENT - SEGMENT_BITS
    m.d.comb += port.addr.eq(argument[rest:ARGUMENT])
    value = port.data[:value_bits]
    rise = Signal(rise_shape, name=f"{name}_rise")
    m.d.comb += rise.eq(port.data[value_bits:])
    product = register(m, rise * register(m, argument[:rest], f"{name}_rest"), f"{name}_product")
    return wire(m, register(m, value, f"{name}_value") + (product >> rest), f"{name}_line")[: ARGUMENT + 1]


def _shift_right(m: Module, value: Value, amount: Value, name: str) -> Value:
    """value >> amount, for values of at most 32 bits and any unsigned amount."""
    return wire(m, Mux(amount[5:].any(), 0, value >> amount[:5]), name)


class Exp2(wiring.Component):
    """2**a. Stages: to fixed point; negate; table; multiply; add and round.

    Parameters
    ----------
    format : :class:`FloatFormat`
        Of the result; at most ``MAX_MANTISSA`` stored bits.

    Members
    -------
    a : ``In(32)``, fp32
    y : ``Out(format.bits)``
    """

    def __init__(self, *, format: FloatFormat = E8M11):
        check_format(format)
        self.format = format
        self.latency = FUNCTION_LATENCY["exp2"]
        super().__init__({"a": In(FP32.bits), "y": Out(format.bits)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        F = self.format
        a = fields(m, FP32, self.a, "a")
        # The significand with its leading one on the highest integer bit, then down to where its exponent says.
        highest = Cat(C(0, INTEGER - 1 + ARGUMENT - FP32.mantissa), a.significand)
        distance = wire(m, (FP32.bias + INTEGER - 1 - a.exponent)[: FP32.exponent + 1], "distance")
        shifted = _shift_right(m, highest, distance[:-1], "shifted")
        magnitude = register(m, Mux(a.zero, 0, shifted | distance[-1].replicate(len(shifted))), "magnitude")
        sign = register(m, a.sign, "sign")
        nan = register(m, a.nan, "nan", 4)
        fixed = register(m, wire(m, Mux(sign, -magnitude, magnitude), "signed_magnitude"), "fixed")
        line = _line(m, functions.EXP2_TABLE, fixed[:ARGUMENT], "table")
        exponent = register(m, wire(m, (fixed >> ARGUMENT) + F.bias, "exponent"), "exponent", LINE_LATENCY)
        no = C(0, 1)
        y = round_pack(m, F, sign=no, exponent=exponent, significand=line, zero=no, inf=no, nan=nan, name="round")
        m.d.comb += self.y.eq(register(m, y, "y_5"))
        return m


class _Logistic(wiring.Component):
    """Sigmoid and SiLU. Stages: |a| * log2(e); to fixed point; negate; table of 2**f, 3 cycles (multiply, add); 1 + u; table of reciprocals,
    3 cycles; product; normalise and round."""

    times_a: bool

    def __init__(self, *, format: FloatFormat = E8M11):
        check_format(format)
        self.format = format
        self.latency = FUNCTION_LATENCY["silu" if self.times_a else "sigmoid"]
        super().__init__({"a": In(format.bits), "y": Out(format.bits)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        F = self.format
        a = fields(m, F, self.a, "a")

        # 1: |a| * log2(e)
        scaled = register(m, a.significand * C(LOG2E), "scaled_1")
        exponent = register(m, a.exponent, "exponent_1")
        zero, inf = register(m, a.zero, "zero_1"), register(m, a.inf, "inf_1")

        # 2: fixed point, saturated
        distance = wire(m, (C(F.bias + INTEGER - 1, signed(F.exponent + 5)) - exponent), "distance")
        aligned = scaled[F.mantissa + LOG2E_PLACES - (INTEGER - 1 + ARGUMENT) :]
        shifted = _shift_right(m, aligned, distance[:-1], "shifted")
        large = (distance < 0) | inf | shifted[INTEGER + ARGUMENT :].any()
        bounded = Mux(zero, 0, shifted[: INTEGER + ARGUMENT] | large.replicate(INTEGER + ARGUMENT))
        fixed = register(m, bounded, "fixed_2")

        # 3: -fixed = fraction - places
        fraction = register(m, (-fixed)[:ARGUMENT], "fraction_3")
        places = register(m, fixed[ARGUMENT:] + fixed[:ARGUMENT].any(), "places_3")

        # 4 … 6: 2**fraction
        line = register(m, _line(m, functions.EXP2_TABLE, fraction, "power"), "power_6")
        places = register(m, places, "places_6", LINE_LATENCY + 1)

        # 7: u, and the factor that stands for exp(a) below zero
        below = register(m, _shift_right(m, line, places, "u")[:ARGUMENT] | (places == 0).replicate(ARGUMENT), "u_7")
        sign = register(m, a.sign, "sign_6", 6)
        factor = wire(m, Mux(sign, line[ARGUMENT - FACTOR :], 1 << FACTOR), "factor")
        significand = register(m, a.significand, "significand_6", 6) if self.times_a else C(F.min_normal)
        first = factor * significand
        kept = F.mantissa + FACTOR - PRODUCT
        first = register(m, first[kept:] if kept > 0 else Cat(C(0, -kept), first), "first_7")
        power = register(m, Mux(sign, -places, 0), "power_7")

        # 8 … 10: the reciprocal
        line = _line(m, functions.RECIPROCAL_TABLE, below, "reciprocal")
        reciprocal = register(m, line[ARGUMENT - RECIPROCAL : ARGUMENT], "reciprocal_10")

        # 11: the product; 12: its leading one is on one of the three highest places
        product = register(m, register(m, first, "first_10", 3) * reciprocal, "product_11")
        second = Mux(product[-2], Cat(C(0, 1), product[:-1]), Cat(C(0, 2), product[:-2]))
        normal = wire(m, Mux(product[-1], product, second), "normal")
        offset = Mux(product[-1], 1, Mux(product[-2], 0, C(-1, signed(2))))
        power = register(m, power, "power_11", 4)
        if self.times_a:
            wide = power + register(m, a.exponent, "exponent_11", 11) + offset
            sign, zero, inf = (register(m, flag, f"{name}_11", n) for flag, name, n in ((sign, "sign", 5), (zero, "zero", 10), (inf, "inf", 10)))
            zero, inf = zero | (inf & sign), inf & ~sign
        else:
            wide = power + F.bias + offset
            sign = zero = inf = C(0, 1)
        nan = register(m, a.nan, "nan_11", 11)
        y = round_pack(m, F, sign=sign, exponent=wire(m, wide, "wide"), significand=normal, zero=zero, inf=inf, nan=nan, name="round")
        m.d.comb += self.y.eq(register(m, y, "y_12"))
        return m


class Sigmoid(_Logistic):
    """1 / (1 + exp(-a)), 12 stages.

    Parameters
    ----------
    format : :class:`FloatFormat`
        Of operand and result; at most ``MAX_MANTISSA`` stored bits.

    Members
    -------
    a : ``In(format.bits)``
    y : ``Out(format.bits)``
    """

    times_a = False


class Silu(_Logistic):
    """a * sigmoid(a), rounded once, 12 stages.

    Parameters
    ----------
    format : :class:`FloatFormat`
        Of operand and result; at most ``MAX_MANTISSA`` stored bits.

    Members
    -------
    a : ``In(format.bits)``
    y : ``Out(format.bits)``
    """

    times_a = True
