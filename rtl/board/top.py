# SPDX-License-Identifier: Apache-2.0
"""Tops of boards: the pins' side of a core with its serial link, or of a single block."""

from typing import Any

from amaranth import Cat, Const, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.pll import PllSettings
from lutra.rtl.board.clocks import Ecp5Pll, add_clock

__all__ = ["BlockPins", "BoardTop"]


class BlockPins(wiring.Component):
    """A block of any ports behind two pins: its inputs are a chain of registers that ``rx`` feeds, its outputs are caught in another one that shifts to ``tx``.

    Nothing of the block can be left out by synthesis then, and every path of it lies between registers. The outputs are caught whenever the last bit of the
    inputs' chain is 1.

    Members
    -------
    rx : ``In(1)``. tx : ``Out(1)``.
    """

    def __init__(self, block: Any) -> None:
        self._block = block
        super().__init__({"rx": In(1), "tx": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.block = block = self._block
        ports = [(member.flow, Value.cast(value)) for _, member, value in block.signature.flatten(block)]
        inputs = Cat(value for flow, value in ports if flow is In and not isinstance(value, Const))
        outputs = Cat(value for flow, value in ports if flow is not In)
        given, caught = Signal(len(inputs) + 1, reset_less=True), Signal(len(outputs), reset_less=True)
        m.d.comb += [inputs.eq(given), self.tx.eq(caught[0])]
        m.d.sync += given.eq(Cat(self.rx, given))
        with m.If(given[-1]):
            m.d.sync += caught.eq(outputs)
        with m.Else():
            m.d.sync += caught.eq(caught[1:])
        return m


class BoardTop(wiring.Component):
    """A system on a board: clock, reset and pins. ``reset``, ``busy`` and ``ready`` are there where the board has such pins.

    Parameters
    ----------
    system : component with ``rx`` and ``tx``, of domain sync; it may have ``busy``.
    pins : roles of the board's pins (``fpga_flows.boards``).
    inverted : those of them that are active when low.
    pll : of the clock; None: the oscillator itself.
    """

    def __init__(self, system: Any, *, pins: list[str], inverted: frozenset[str] = frozenset(), pll: PllSettings | None = None) -> None:
        self._system, self._inverted, self._pll = system, inverted, pll
        directions = {"clk": In(1), "rx": In(1), "reset": In(1)}
        super().__init__({pin: directions.get(pin, Out(1)) for pin in pins})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pins = {name: getattr(self, name) for name in self.signature.members}
        clock, locked, button = Signal(), Signal(init=1), Signal()
        if self._pll is None:
            m.d.comb += [clock.eq(self.clk), locked.eq(1)]
        else:
            m.submodules.pll = pll = Ecp5Pll(self._pll)
            m.d.comb += [pll.input.eq(self.clk), clock.eq(pll.output), locked.eq(pll.locked)]
        if "reset" in pins:
            m.d.comb += button.eq(self.reset ^ ("reset" in self._inverted))
        running = add_clock(m, clock, locked, button)
        m.submodules.system = system = self._system
        m.d.comb += [system.rx.eq(self.rx), self.tx.eq(system.tx)]
        for name, value in (("ready", running), ("busy", getattr(system, "busy", Const(0, 1))), ("high", Const(1, 1))):
            if name in pins:
                m.d.comb += pins[name].eq(value ^ (name in self._inverted))
        return m
