# SPDX-License-Identifier: Apache-2.0
"""Statistics of the companion chip: sums, sums of squares and maxima of the items that leave the pipeline (docs/architecture.md, 4.5)."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.floats import FLOAT_LATENCY, FP32
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.instructions import PARTIALS
from lutra.hls_models.pim.program import Statistic
from lutra.rtl.float_parts import register, wire
from lutra.rtl.pim.companion_items import Line, item_layout, path_layout
from lutra.rtl.pim.units import adder, multiplier

__all__ = ["Maxima", "Sums"]

INDEX = 32
MINUS_INFINITY = FP32.sign | FP32.infinity


def order(m: Module, bits: Value, name: str) -> Signal:
    """Key by which patterns compare, as ``hls_models.pim.companion.order``."""
    magnitude = bits[:-1]
    key = Mux(bits[-1], ~bits, Cat(magnitude, Const(1, 1)))
    key = Mux(magnitude < FP32.min_normal, FP32.sign, key)
    return wire(m, Mux(magnitude > FP32.infinity, 0xFFFFFFFF, key)[: FP32.bits], name)


class Maxima(wiring.Component):
    """MAX and ARGMAX: a registered tree over the lanes, then one comparison with S[stat] per clock.

    An item at t is in S[stat] from t + log2(V) + 1 on.

    Members
    -------
    path, valid, item, values : the item that leaves the pipeline; V x 32
    address, old : S that is compared with, in the same clock
    write, write_data : to S[address]
    index : of the largest element so far
    """

    def __init__(self, config: PimConfig) -> None:
        self._config = config
        row = 32 * config.lanes
        members = {"path": In(path_layout()), "valid": In(1), "item": In(item_layout(config)), "values": In(row)}
        super().__init__({**members, "address": Out(5), "old": In(32), "write": Out(1), "write_data": Out(32), "index": Out(INDEX)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        lanes = self._config.lanes
        levels = lanes.bit_length() - 1
        wanted = (self.path.statistic == Statistic.MAX) | (self.path.statistic == Statistic.ARGMAX)
        candidate = data.StructLayout({"value": FP32.bits, "key": FP32.bits, "valid": 1, "lane": levels})
        level: list[data.View] = []
        for lane in range(lanes):
            one = Signal(candidate, name=f"candidate_{lane}")
            value = self.values.word_select(lane, FP32.bits)
            valid = self.item.count > lane
            m.d.comb += [
                one.value.eq(Mux(valid, value, MINUS_INFINITY)),
                one.key.eq(Mux(valid, order(m, value, f"key_{lane}"), 0)),
                one.valid.eq(valid),
                one.lane.eq(lane),
            ]
            level.append(one)
        for depth in range(levels):
            level = [self._larger(m, level[i], level[i + 1], f"largest_{depth}_{i // 2}") for i in range(0, len(level), 2)]
        best = level[0]
        line = Line(m, self.valid & wanted, self.item.as_value(), "maximum").delayed(levels, "tree")
        item = data.View(item_layout(self._config), line.payload)

        position = Signal(INDEX)  # of the item's first element
        element = wire(m, Mux(item.first, self.path.k, position), "element")
        replaces = item.first & ~self.path.keep
        larger = best.valid & (best.key > order(m, self.old, "old_key"))
        m.d.comb += [
            self.address.eq(item.stat),
            self.write.eq(line.valid & (replaces | larger)),
            self.write_data.eq(best.value),
        ]
        with m.If(line.valid):
            m.d.sync += position.eq(element + Mux(self.path.wide, lanes, self._config.banks))
        with m.If(self.write & (self.path.statistic == Statistic.ARGMAX)):
            m.d.sync += self.index.eq(element + best.lane)
        return m

    def _larger(self, m: Module, a: data.View, b: data.View, name: str) -> data.View:
        """Of two, the lower lane's where they are equal."""
        chosen = Mux(Cat(b.key, b.valid) > Cat(a.key, a.valid), b.as_value(), a.as_value())
        return data.View(a.shape(), register(m, chosen, name))


class Sums(wiring.Component):
    """SUM and SUMSQ: squares, a tree over the lanes, ``PARTIALS`` partial sums in one adder, and their sum.

    Members
    -------
    path, valid, item, values : the item that leaves the pipeline; V x 32, invalid lanes zero
    write, address, write_data : to S[address]
    """

    def __init__(self, config: PimConfig) -> None:
        self._config = config
        members = {"path": In(path_layout()), "valid": In(1), "item": In(item_layout(config)), "values": In(32 * config.lanes)}
        super().__init__({**members, "write": Out(1), "address": Out(5), "write_data": Out(32)})

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        squared = self.path.statistic == Statistic.SUMSQ
        wanted = squared | (self.path.statistic == Statistic.SUM)
        level: list[Value] = []
        latency = 0
        for lane in range(self._config.lanes):
            square = multiplier(m, f"square_{lane}")
            latency = square.latency
            value = self.values.word_select(lane, FP32.bits)
            m.d.comb += [square.a.eq(value), square.b.eq(value)]
            level.append(wire(m, Mux(squared, square.y, value), f"value_{lane}"))
        line = Line(m, self.valid & wanted, Cat(self.item.stat, self.item.first, self.item.last), "sum").optional(squared, latency, "square")
        depth = 0
        while len(level) > 1:
            level = [self._sum(m, f"tree_{depth}_{i}", level[i], level[i + 1]) for i in range(0, len(level), 2)]
            line = line.delayed(FLOAT_LATENCY["add"], f"tree_{depth}")
            depth += 1

        # Item i is added to partial sum i % PARTIALS; the sum before it is just through the adder, or in its register.
        partial = adder(m, "partial")
        number, young = Signal(range(PARTIALS)), Signal()
        sums = [Signal(FP32.bits, name=f"partial_{i}", reset_less=True) for i in range(PARTIALS)]
        first = line.payload[5]
        mine = wire(m, Mux(first, 0, number), "mine")
        fresh = wire(m, first | young, "fresh")
        added = Line(m, line.valid, Cat(line.payload, mine), "added").delayed(partial.latency, "adder")
        number_added = added.payload[7:]
        held = Signal(FP32.bits)
        with m.Switch(mine):
            for i in range(PARTIALS):
                with m.Case(i):
                    m.d.comb += held.eq(sums[i])
        with m.If(added.valid & (number_added == mine)):
            m.d.comb += held.eq(partial.y)
        m.d.comb += [partial.a.eq(level[0]), partial.b.eq(Mux(fresh, 0, held))]
        with m.If(line.valid):
            m.d.sync += [number.eq(mine + 1), young.eq(fresh & (mine != PARTIALS - 1))]
        with m.If(added.valid):
            for i in range(PARTIALS):
                with m.If(number_added == i):
                    m.d.sync += sums[i].eq(partial.y)
                with m.Elif(added.payload[5]):
                    m.d.sync += sums[i].eq(0)

        last = Line(m, added.valid & added.payload[6], added.payload[:5], "final").delayed(1, "register")
        pairs = [self._sum(m, f"pair_{i}", sums[2 * i], sums[2 * i + 1]) for i in range(PARTIALS // 2)]
        total = self._sum(m, "total", *pairs)
        final = last.delayed(2 * partial.latency, "total")
        m.d.comb += [self.write.eq(final.valid), self.address.eq(final.payload), self.write_data.eq(total)]
        return m

    def _sum(self, m: Module, name: str, a: Value, b: Value) -> Value:
        unit = adder(m, name)
        m.d.comb += [unit.a.eq(a), unit.b.eq(b)]
        return unit.y
