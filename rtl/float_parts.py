# SPDX-License-Identifier: Apache-2.0
"""Combinational parts that the floating-point components share: fields, shifts with sticky bits, normalisation, rounding."""

from typing import NamedTuple

from amaranth.hdl import C, Cat, Module, Mux, Shape, Signal, Value

from lutra.hls_models.floats import FloatFormat

__all__ = ["Fields", "fields", "normalise", "register", "round_pack", "shift_right_sticky", "wire"]


class Fields(NamedTuple):
    """What a bit pattern says. ``significand`` has the hidden one even where ``zero`` holds (zeros and subnormals)."""

    sign: Value
    exponent: Value
    significand: Value
    zero: Value
    inf: Value
    nan: Value


def wire(m: Module, value: Value, name: str) -> Signal:
    """Name an intermediate value, so that Verilog computes it once however often it is used."""
    signal = Signal(value.shape(), name=name)
    m.d.comb += signal.eq(value)
    return signal


def register(m: Module, value: Value, name: str, cycles: int = 1) -> Signal:
    """The value ``cycles`` clock cycles later; not reset, because pipelines carry no state."""
    for _ in range(cycles):
        signal = Signal(Shape.cast(value.shape()), name=name, reset_less=True)
        m.d.sync += signal.eq(value)
        value = signal
    return value


def fields(m: Module, F: FloatFormat, bits: Value, name: str) -> Fields:
    """Split a pattern of F."""
    mantissa, exponent = bits[: F.mantissa], bits[F.mantissa : -1]
    top = wire(m, exponent.all(), f"{name}_top")
    fraction = wire(m, mantissa.any(), f"{name}_fraction")
    return Fields(bits[-1], exponent, Cat(mantissa, C(1, 1)), ~exponent.any(), top & ~fraction, top & fraction)


def shift_right_sticky(m: Module, value: Value, amount: Value, name: str) -> Value:
    """value >> amount (any unsigned amount); the lowest bit of the result is also set if a one was shifted out."""
    width = len(value)
    levels = min(len(amount), (width - 1).bit_length())
    for level in range(levels):
        step = 1 << level
        lost = value[: step + 1].any()
        value = wire(m, Mux(amount[level], Cat(lost, value[step + 1 :]), value)[:width], f"{name}_{step}")
    if len(amount) > levels:
        value = wire(m, Mux(amount[levels:].any(), Cat(value.any(), C(0, width - 1)), value), f"{name}_far")
    return value


def normalise(m: Module, value: Value, name: str) -> tuple[Value, Value]:
    """Shift left until the top bit is one; returns (shifted, number of places). A zero stays without top bit, its number says nothing.

    Groups of four bits say at once whether they are empty and where their first one is: six levels of logic where a search by halves takes ten.
    """
    width = len(value)
    value = wire(m, Cat(C(0, -width % 4), value), f"{name}_padded")
    count = len(value) // 4
    groups = [value[len(value) - 4 * (i + 1) :][:4] for i in range(count)]  # top one first
    filled = wire(m, Cat(group.any() for group in groups), f"{name}_filled")
    leading = [wire(m, Cat(~(g[3] | (~g[2] & g[1])), ~(g[3] | g[2])), f"{name}_leading{i}") for i, g in enumerate(groups)]
    index = Signal(range(max(2, count)), name=f"{name}_group")
    fine = Signal(2, name=f"{name}_fine")
    with m.If(filled[0]):
        m.d.comb += [index.eq(0), fine.eq(leading[0])]
    for i in range(1, count):
        with m.Elif(filled[i]):
            m.d.comb += [index.eq(i), fine.eq(leading[i])]
    coarse = wire(m, (value << Cat(C(0, 2), index))[: len(value)], f"{name}_coarse")
    shifted = wire(m, (coarse << fine)[len(value) - width : len(value)], f"{name}_shifted")
    return shifted, Cat(fine, index)


def round_pack(m: Module, F: FloatFormat, *, sign: Value, exponent: Value, significand: Value, zero: Value, inf: Value, nan: Value, name: str) -> Value:
    """Round ``significand`` (top bit one, lowest bit may be sticky) to nearest even and join the fields.

    ``exponent`` is biased, signed and unbounded. ``nan`` goes before ``inf``, that before ``zero``; otherwise overflow is infinity and what is below
    the smallest normal number after rounding is zero.
    """
    extra = len(significand) - 1 - F.mantissa
    if extra > 0:
        kept = significand[extra:-1]
        up = significand[extra - 1] & (significand[: extra - 1].any() | significand[extra])
    else:
        kept, up = Cat(C(0, -extra), significand[:-1]), C(0, 1)
    # One addition: the carry out of the mantissa, which is then zero, belongs to the exponent.
    packed = wire(m, Cat(kept, exponent).as_signed() + up, f"{name}_packed")
    rounded = wire(m, packed >> F.mantissa, f"{name}_exponent")
    under = zero | (rounded <= 0)
    over = rounded >= (1 << F.exponent) - 1
    infinity, nothing = C(F.infinity, F.bits - 1), C(0, F.bits - 1)
    magnitude = Mux(inf, infinity, Mux(under, nothing, Mux(over, infinity, packed[: F.bits - 1])))
    return Mux(nan, C(F.nan, F.bits), Cat(magnitude, sign))
