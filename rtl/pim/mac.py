# SPDX-License-Identifier: Apache-2.0
"""A bank's MAC unit; numbers, golden values and the figures of the pipeline: hls_models/pim/mac.py."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from lutra.hls_models.floats import BF16, FP32
from lutra.hls_models.pim.config import LANE_BITS, PimConfig
from lutra.hls_models.pim.mac import GUARD_BITS, INTERVAL, LATENCY
from lutra.rtl.float_parts import fields, normalise, register, round_pack, wire
from lutra.rtl.floats import FloatAdd

__all__ = ["MacUnit"]

PRODUCT_BITS = 2 * (BF16.mantissa + 1)
FIELD_BITS = PRODUCT_BITS + GUARD_BITS
SUM_STAGES = LATENCY - INTERVAL
"""Stages before the accumulator's adder."""


def _tree(values: Sequence[Value], levels: int, join: Any) -> list[Value]:
    """``levels`` levels of a balanced tree, as far as there are values."""
    found = list(values)
    for _ in range(levels):
        if len(found) > 1:
            found = [join(found[i], found[i + 1]) for i in range(0, len(found), 2)]
    return found


def _to_bf16(m: Module, bits: Value, name: str) -> Value:
    """fp32 rounded to bf16, without a register."""
    a = fields(m, FP32, bits, name)
    exponent = Cat(a.exponent, C(0, 2)).as_signed()
    return round_pack(m, BF16, sign=a.sign, exponent=exponent, significand=a.significand, zero=a.zero, inf=a.inf, nan=a.nan, name=name)


class MacUnit(wiring.Component):
    """V multipliers, an exact adder tree and the accumulators of one bank.

    Takes one operation per clock; operations on the same accumulator must be ``INTERVAL`` clocks apart (tCCD, and the mode changes between kinds, see to
    it). Stages: multiply; largest exponent (2); align; add (2); magnitude; normalise; round; then the accumulator's loop: align and add; normalise and
    round. The loop is the reason of ``INTERVAL``: the sum is in the adder's output register, from where it goes into the next addition or back to the file
    of accumulators.

    Parameters
    ----------
    config : :class:`PimConfig`
        ``lanes``, ``accumulators_per_bank`` and ``accumulator`` (format) are used.

    Members
    -------
    mac, load, read : ``In(1)``
        At most one of them: multiply and add; load ``bias``; read out.
    accumulator : ``In(n)``
        The one that is meant.
    column, buffer : ``In(V x 16)``
        Operands of ``mac``, bf16.
    bias : ``In(16)``
        bf16.
    held : ``Out(32)``
        What the operation of ``LATENCY`` cycles ago, ``mac`` or ``load``, left in its accumulator: fp32.
    value : ``Out(16)``
        What the ``read`` of ``LATENCY`` cycles ago read, rounded to bf16.
    """

    def __init__(self, config: PimConfig) -> None:
        self._lanes, self._accumulators, self._bf16 = config.lanes, config.accumulators_per_bank, config.accumulator == "bf16"
        width = LANE_BITS * config.lanes
        super().__init__(
            {
                "mac": In(1),
                "load": In(1),
                "read": In(1),
                "accumulator": In(max(1, ceil_log2(config.accumulators_per_bank))),
                "column": In(width),
                "buffer": In(width),
                "bias": In(LANE_BITS),
                "held": Out(FP32.bits),
                "value": Out(LANE_BITS),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        total = self._sum(m)
        load = register(m, self.load, "load", SUM_STAGES)
        valid = register(m, self.mac | self.load, "valid", LATENCY)
        index = register(m, self.accumulator, "index", SUM_STAGES)
        index_out = register(m, index, "index_out", INTERVAL)
        bias = register(m, self.bias, "bias", SUM_STAGES)

        m.submodules.add = add = FloatAdd(format=FP32, latency=INTERVAL)
        if self._bf16:
            rounded = _to_bf16(m, add.y, "narrow")
            held = wire(m, Cat(C(0, FP32.bits - BF16.bits), rounded), "narrowed")
        else:
            held = add.y

        m.submodules.accumulators = accumulators = Memory(shape=FP32.bits, depth=self._accumulators, init=[])
        stored, back = accumulators.read_port(domain="comb"), accumulators.write_port()
        m.d.comb += [stored.addr.eq(index), back.addr.eq(index_out), back.data.eq(held), back.en.eq(valid), self.held.eq(held)]
        now = wire(m, Mux(valid & (index == index_out), held, stored.data), "now")
        # bias + (-0) is the bias, zeros and all.
        m.d.comb += [
            add.a.eq(Mux(load, Cat(C(0, FP32.bits - BF16.bits), bias), now)),
            add.b.eq(Mux(load, C(FP32.sign, FP32.bits), total)),
        ]

        value = _to_bf16(m, register(m, now, "read"), "read")
        m.d.comb += self.value.eq(register(m, value, "value"))
        return m

    def _sum(self, m: Module) -> Signal:
        """The rounded sum of products, ``SUM_STAGES`` cycles later."""
        lanes = range(self._lanes)
        a = [fields(m, BF16, self.column.word_select(lane, LANE_BITS), f"a{lane}") for lane in lanes]
        b = [fields(m, BF16, self.buffer.word_select(lane, LANE_BITS), f"b{lane}") for lane in lanes]
        zeros = [wire(m, x.zero | y.zero, "zero") for x, y in zip(a, b, strict=True)]

        # 1: products; a zero's exponent is below every other.
        products, exponents, signs, up, down, nan = [], [], [], [], [], []
        for x, y, zero in zip(a, b, zeros, strict=True):
            negative, special = wire(m, x.sign ^ y.sign, "negative"), wire(m, x.inf | y.inf, "special")
            products.append(register(m, Mux(zero, 0, x.significand * y.significand), "product", 3))
            exponents.append(register(m, Mux(zero, 0, x.exponent + y.exponent), "exponent"))
            signs.append(register(m, negative, "sign", 3))
            up.append(register(m, special & ~negative, "up"))
            down.append(register(m, special & negative, "down"))
            nan.append(register(m, x.nan | y.nan | (special & zero), "nan"))
        above, below = wire(m, Cat(up).any(), "above"), wire(m, Cat(down).any(), "below")
        invalid = register(m, Cat(nan).any() | (above & below), "invalid", SUM_STAGES - 2)
        infinite = register(m, above | below, "infinite", SUM_STAGES - 2)
        falling = register(m, below, "falling", SUM_STAGES - 2)

        # 2, 3: the largest exponent, two levels of its tree each
        largest = exponents
        for stage in (1, 2):
            joined = _tree(largest, 2, lambda x, y, stage=stage: wire(m, Mux(x > y, x, y), f"larger_{stage}"))
            largest = [register(m, value, f"largest_{stage}") for value in joined]
        top = largest[0]

        # 4: the field, shifted; negative ones are inverted here and corrected by one each in the tree
        aligned = []
        for product, exponent, sign in zip(products, (register(m, e, "exponent", 2) for e in exponents), signs, strict=True):
            distance = wire(m, (top - exponent)[: len(exponent)], "distance")
            bits = FIELD_BITS.bit_length()
            field = wire(m, Cat(C(0, GUARD_BITS), product) >> distance[:bits], "shifted")
            kept = wire(m, Mux(distance[bits:].any(), 0, field), "field")
            aligned.append(register(m, Cat(kept ^ sign.replicate(FIELD_BITS), sign).as_signed(), "aligned"))
        count = register(m, reduce(lambda x, y: x + y, signs), "negatives", 2)

        # 5, 6: the exact sum
        half = [register(m, value, "part") for value in _tree(aligned, 2, lambda x, y: wire(m, x + y, "pair"))]
        (rest,) = _tree(half, 2, lambda x, y: wire(m, x + y, "pair"))
        width = FIELD_BITS + ceil_log2(self._lanes)  # of the magnitude
        total = register(m, (rest + count)[: width + 1].as_signed(), "total")

        # 7 to 9: to fp32
        magnitude = register(m, Mux(total[-1], -total, total)[:width], "magnitude")
        sign = register(m, total[-1], "total_sign", 2)
        shifted, places = normalise(m, magnitude, "normal")
        shifted = register(m, shifted, "normalised")
        # The field's lowest bit is worth 2**(E - 2 (bias + mantissa) - guard bits).
        offset = width - 1 - 2 * (BF16.bias + BF16.mantissa) - GUARD_BITS + FP32.bias
        top = register(m, top, "top", 4)
        exponent = register(m, wire(m, top + C(offset, signed(10)) - places, "exponent_7"), "exponent_8")
        zero = ~shifted[-1]
        infinity_sign = Mux(infinite, falling, sign & ~zero)
        y = round_pack(m, FP32, sign=infinity_sign, exponent=exponent, significand=shifted, zero=zero, inf=infinite, nan=invalid, name="sum_round")
        return register(m, y, "sum")
