# SPDX-License-Identifier: Apache-2.0
"""Designs taken apart for synthesis: a box has every port of its module, and equal modules are one part, whatever the design."""

from typing import Any

import pytest
from amaranth.hdl import Module, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra.fpga_flows.parts import split
from lutra.rtl.verilog import emit_rtlil

PORTS = {"bit": In(1), "word": In(7), "number": In(signed(9)), "out": Out(signed(11))}
"""Of each kind: a bit, a vector, signed ones."""


class Inner(wiring.Component):
    """A module of such ports."""

    def __init__(self) -> None:
        super().__init__(PORTS)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.d.sync += self.out.eq(self.number + self.word + self.bit)
        return m


class Outer(wiring.Component):
    """One of them, behind ports of the same kinds: a net that nothing outside drives would be no port."""

    def __init__(self) -> None:
        super().__init__(PORTS)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.inner = inner = Inner()
        m.d.comb += [inner.number.eq(self.number), inner.bit.eq(self.bit), inner.word.eq(self.word), self.out.eq(inner.out)]
        return m


@pytest.mark.smoke
def test_a_box_has_every_port() -> None:
    _, parts = split(emit_rtlil(Outer(), "top"))
    inner, outer = sorted(parts.values(), key=lambda part: len(part.children))
    assert inner.stub.count("input") == 5 and inner.stub.count("output") == 1  # clock and reset too
    assert inner.stub.count("signed") == 2
    assert outer.children == {inner.name} and outer.text.count(f"cell \\{inner.name} ") == 1


@pytest.mark.smoke
def test_equal_modules_are_one_part_in_any_design() -> None:
    (_, first), (_, second) = split(emit_rtlil(Outer(), "top")), split(emit_rtlil(Outer(), "other"))
    assert first.keys() == second.keys()
