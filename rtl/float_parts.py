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
    """value >> amount (any unsigned amount); the lowest bit of the result is also set if a one was shifted out.

    The longest shift comes first, and what every shift loses is collected beside the shifter, where it does not wait for the next one.
    """
    width = len(value)
    levels = min(len(amount), (width - 1).bit_length())
    lost = []
    if len(amount) > levels:
        far = wire(m, amount[levels:].any(), f"{name}_far")
        lost.append(far & value.any())
        value = value & ~far.replicate(width)
    for level in reversed(range(levels)):
        step = 1 << level
        lost.append(wire(m, amount[level] & value[:step].any(), f"{name}_lost_{step}"))
        value = wire(m, Mux(amount[level], value[step:], value)[:width], f"{name}_{step}")
    return Cat(value[0] | Cat(lost).any(), value[1:])


def normalise(m: Module, value: Value, name: str) -> tuple[Value, Value]:
    """Shift left until the top bit is one; returns (shifted, number of places). A zero stays without top bit, its number says nothing.

    Groups of four bits say at once whether they are empty and where their first one is: six levels of logic where a search by halves takes ten.
    """
    width = len(value)
    value = wire(m, Cat(C(0, -width % 4), value), f"{name}_padded")
    count = len(value) // 4
    groups = [value[len(value) - 4 * (i + 1) :][:4] for i in range(count)]  # top one first
    filled = [wire(m, group.any(), f"{name}_filled{i}") for i, group in enumerate(groups)]
    first = [filled[i] & ~Cat(filled[:i]).any() for i in range(count - 1)]  # without any, the last group
    none = ~Cat(filled[:-1]).any()
    index = Cat(
        Cat(*(one for i, one in enumerate(first) if i >> bit & 1), none & (count - 1 >> bit & 1)).any() for bit in range(max(1, (count - 1).bit_length()))
    )
    index = wire(m, index, f"{name}_group")
    places = [Cat(~(g[3] | (~g[2] & g[1])), ~(g[3] | g[2])) for g in groups]
    fine = wire(m, _choose(index, places), f"{name}_fine")
    coarse = wire(m, (value << Cat(C(0, 2), index))[: len(value)], f"{name}_coarse")
    shifted = wire(m, (coarse << fine)[len(value) - width : len(value)], f"{name}_shifted")
    return shifted, Cat(fine, index)


def _choose(index: Value, values: list[Value]) -> Value:
    """values[index] as a balanced tree, whose depth synthesis keeps; the last one where there are fewer."""
    for bit in index:
        values = [Mux(bit, values[i + 1], values[i]) if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)]
    return values[0]


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
    under = wire(m, rounded <= 0, f"{name}_under")
    over = wire(m, ~rounded[-1] & (rounded >= (1 << F.exponent) - 1), f"{name}_over")
    # What is known without the sum, and then the sum's say, clears or sets bits: one level of logic behind the two comparisons.
    special, nothing = nan | inf, zero & ~nan & ~inf
    top = special | (over & ~nothing & ~under)
    bottom = nothing | (under & ~special)
    fraction = packed[: F.mantissa] & ~(top | bottom).replicate(F.mantissa) | Mux(nan, F.nan & ((1 << F.mantissa) - 1), 0)
    biased = (rounded[: F.exponent] | top.replicate(F.exponent)) & ~bottom.replicate(F.exponent)
    return Cat(fraction[: F.mantissa], biased, sign & ~nan)
