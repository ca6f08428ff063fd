# SPDX-License-Identifier: Apache-2.0
"""The companion chip's pipeline of V lanes: fetch, adder, two multipliers, adder, function, adder, rounding (docs/architecture.md, 4.5)."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.floats import BF16, FLOAT_LATENCY, FP32
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.instructions import FETCH, MIDDLE, ROUND, UNIT_LATENCY, Add, Kind, Scale, Unit
from lutra.rtl.float_parts import register
from lutra.rtl.floats import FloatConvert
from lutra.rtl.pim.companion_items import Line, item_layout, path_layout
from lutra.rtl.pim.companion_sram import CompanionSram, address_bits
from lutra.rtl.pim.functions import Gelu
from lutra.rtl.pim.units import adder, multiplier
from lutra.rtl.verilog import once

__all__ = ["Lanes"]


class Lanes(wiring.Component):
    """The SRAM and what works on its words. An item of clock t leaves at t + ``Work.latency`` and is written in that clock.

    A stage that the path does not use is passed by: values through a multiplexer, and what goes with them (addresses, counts) through another one, two
    clocks ahead, so that the SRAM is read in time for the stage.

    Members
    -------
    path, issue, item, address_a : as of ``Front``
    readout : ``In(V x 16)``, of a RECEIVE's item, in the clock of its issue
    scalar, scalar_value : S[scalar] of the same clock
    valid, leaving, values : item and result (V x 32 fp32, invalid lanes zero) that are written in this clock
    beat : ``Out(V x 16)``, the result rounded to bf16
    """

    def __init__(self, config: PimConfig) -> None:
        self._config = config
        row = FP32.bits * config.lanes
        super().__init__(
            {
                "path": In(path_layout()),
                "issue": In(1),
                "item": In(item_layout(config)),
                "address_a": In(address_bits(config)),
                "readout": In(BF16.bits * config.lanes),
                "scalar": Out(5),
                "scalar_value": In(FP32.bits),
                "valid": Out(1),
                "leaving": Out(item_layout(config)),
                "values": Out(row),
                "beat": Out(BF16.bits * config.lanes),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        config, path = self._config, self.path
        shape = item_layout(config)
        add, mul = FLOAT_LATENCY["add"], FLOAT_LATENCY["mul"]
        adds, scales, computes = path.add != Add.NONE, path.scale != Scale.NONE, path.unit != Unit.NONE
        receives = path.kind == Kind.RECEIVE

        # Two clocks ahead of the values: before the first adder, the multipliers, the second adder, the third one, the rounding.
        lines = [Line(m, self.issue, self.item.as_value(), "item")]
        for used, clocks, name in ((adds, add, "add"), (scales, mul, "scale"), (path.gain, mul, "gain"), (path.offset, add, "offset")):
            lines.append(lines[-1].optional(used, clocks, name))
        function = self._function_line(m, lines[-1].delayed(MIDDLE, "middle"), path.unit)
        early = function.optional(path.residual, add, "residual").delayed(FETCH, "fetch")
        late = early.delayed(ROUND, "round")
        at_add, at_scale, at_gain, at_offset = (data.View(shape, line.payload) for line in lines[:4])
        at_residual = data.View(shape, function.payload)

        m.submodules.sram = sram = CompanionSram(config)
        scalar = register(m, Mux(path.add == Add.SCALAR, at_add.s, at_scale.s), "scalar_number")
        scalar_operand = register(m, self.scalar_value, "scalar_operand")
        m.d.comb += [
            sram.wide.eq(path.wide),
            sram.address_a.eq(self.address_a),
            sram.address_b.eq(Mux(path.residual, at_residual.b, Mux(path.gain, at_gain.b, at_add.b))),
            sram.address_c.eq(at_offset.c),
            sram.write_enable.eq(late.valid & self.leaving.store),
            sram.write_address.eq(self.leaving.dst),
            sram.write_data.eq(self.values),
            self.scalar.eq(scalar),
            self.valid.eq(late.valid),
            self.leaving.eq(late.payload),
        ]
        readout = register(m, self.readout, "readout", FETCH)
        count = data.View(shape, early.payload).count
        for lane in range(config.lanes):
            at = slice(FP32.bits * lane, FP32.bits * (lane + 1))
            a, b, c = sram.a[at], sram.b[at], sram.c[at]
            value: Value = Mux(receives, Cat(Const(0, FP32.bits - BF16.bits), readout.word_select(lane, BF16.bits)), a)
            addend = Mux(path.add == Add.SCALAR, scalar_operand, Mux(receives, a, b))
            value = self._added(m, f"add_{lane}", value, addend, adds, subtract=path.add == Add.SCALAR)
            value = self._multiplied(m, f"scale_{lane}", value, Mux(path.scale == Scale.K, path.k, scalar_operand), scales)
            value = self._multiplied(m, f"gain_{lane}", value, b, path.gain)
            value = self._added(m, f"offset_{lane}", value, c, path.offset)
            value = register(m, value, f"middle_{lane}", MIDDLE)
            value = self._function(m, lane, value, path.unit, computes)
            value = self._added(m, f"residual_{lane}", value, b, path.residual)
            value = self._named(m, f"masked_{lane}", Mux(count > lane, value, 0))
            rounded = FloatConvert(source=FP32, target=BF16)
            m.submodules[f"round_{lane}"] = once(rounded, "fp32_to_bf16")
            exact = register(m, value, f"exact_{lane}", ROUND)
            m.d.comb += [
                rounded.a.eq(value),
                self.beat.word_select(lane, BF16.bits).eq(rounded.y),
                self.values[at].eq(Mux(path.unit == Unit.EXP2, Cat(Const(0, FP32.bits - BF16.bits), rounded.y), exact)),
            ]
        return m

    def _function_line(self, m: Module, line: Line, unit: Value) -> Line:
        """The line behind the function unit."""
        after, late, clocks = line, line, 0
        for latency in sorted({latency for latency in UNIT_LATENCY.values() if latency}):
            takes, reaches = Signal(name=f"takes_{latency}"), Signal(name=f"reaches_{latency}")
            m.d.comb += [
                takes.eq(Cat(unit == kind for kind, its in UNIT_LATENCY.items() if its == latency).any()),
                reaches.eq(Cat(unit == kind for kind, its in UNIT_LATENCY.items() if its >= latency).any()),
            ]
            late = late.gated(reaches).delayed(latency - clocks, f"function_{latency}")
            clocks = latency
            after = after.chosen(takes, late, f"function_{latency}")
        return after

    def _function(self, m: Module, lane: int, value: Value, unit: Value, computes: Value) -> Value:
        gelu = Gelu(family=self._config.companion.functions)
        m.submodules[f"gelu_{lane}"] = once(gelu, f"gelu_{self._config.companion.functions}")
        m.d.comb += [gelu.a.eq(value), gelu.erf.eq(unit == Unit.GELU_ERF), gelu.argument.eq(value), gelu.lent.eq(unit == Unit.EXP2)]
        computed = Mux(unit == Unit.EXP2, gelu.power, Mux(unit == Unit.RELU, Mux(value[-1], 0, value), gelu.y))
        return self._named(m, f"computed_{lane}", Mux(computes, computed, value))

    def _added(self, m: Module, name: str, a: Value, b: Value, used: Value, subtract: Value | int = 0) -> Value:
        unit = adder(m, name)
        m.d.comb += [unit.a.eq(a), unit.b.eq(b), unit.subtract.eq(subtract)]
        return self._named(m, f"{name}_value", Mux(used, unit.y, a))

    def _multiplied(self, m: Module, name: str, a: Value, b: Value, used: Value) -> Value:
        unit = multiplier(m, name)
        m.d.comb += [unit.a.eq(a), unit.b.eq(b)]
        return self._named(m, f"{name}_value", Mux(used, unit.y, a))

    def _named(self, m: Module, name: str, value: Value) -> Signal:
        signal = Signal(FP32.bits, name=name)
        m.d.comb += signal.eq(value)
        return signal
