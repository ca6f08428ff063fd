# SPDX-License-Identifier: Apache-2.0
"""Designs taken apart for synthesis: a box has every port of its module, and equal modules are one part."""

from typing import Any

import pytest
from amaranth.hdl import Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra.fpga_flows.parts import split
from lutra.rtl.verilog import emit_rtlil


class Inner(wiring.Component):
    """Ports of each kind: a bit, a vector, a signed one."""

    bit: In(1)  # type: ignore[valid-type]
    word: In(7)  # type: ignore[valid-type]
    number: In(signed(9))  # type: ignore[valid-type]
    out: Out(signed(11))  # type: ignore[valid-type]

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.sync += self.out.eq(self.number + self.word + self.bit)
        return m


class Outer(wiring.Component):
    """Two of them."""

    out: Out(signed(12))  # type: ignore[valid-type]

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.a = a = Inner()
        m.submodules.b = b = Inner()
        m.d.comb += [a.number.eq(b.out), b.number.eq(a.out), a.bit.eq(b.out[0]), b.word.eq(a.out[:7]), self.out.eq(a.out)]
        return m


@pytest.mark.smoke
def test_a_box_has_every_port() -> None:
    _, parts = split(emit_rtlil(Outer(), "top"))
    assert len(parts) == 2  # the outer one, and one for both inner ones
    inner = next(part for part in parts.values() if not part.children)
    assert inner.stub.count("input") == 5 and inner.stub.count("output") == 1  # clock and reset too
    assert inner.stub.count("signed") == 2
    outer = next(part for part in parts.values() if part.children)
    assert outer.children == {inner.name} and outer.text.count(f"cell \\{inner.name} ") == 2
