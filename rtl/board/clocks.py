# SPDX-License-Identifier: Apache-2.0
"""Clock and reset of a board's top."""

from amaranth import ClockDomain, ClockSignal, Const, Instance, Module, ResetSignal, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.pll import PllSettings

__all__ = ["Ecp5Pll", "add_clock"]

RESET_CLOCKS = 255
"""Clocks of reset after the clock is there and the button is released; each bounce of it begins them anew."""


class Ecp5Pll(wiring.Component):
    """EHXPLLL: the primary output feeds back, the secondary one is the clock.

    Members
    -------
    input : ``In(1)``. output : ``Out(1)``. locked : ``Out(1)``, of no clock domain.
    """

    def __init__(self, settings: PllSettings) -> None:
        self.settings = settings
        super().__init__({"input": In(1), "output": Out(1), "locked": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        s, feedback = self.settings, Signal()
        m.submodules.pll = Instance(
            "EHXPLLL",
            # Charge pump and filter as the vendor's tool sets them for these frequencies.
            a_ICP_CURRENT="12",
            a_LPF_RESISTOR="8",
            a_MFG_ENABLE_FILTEROPAMP="1",
            a_MFG_GMCREF_SEL="2",
            p_CLKI_DIV=s.reference,
            p_CLKFB_DIV=1,
            p_FEEDBK_PATH="CLKOP",
            p_CLKOP_ENABLE="ENABLED",
            p_CLKOP_DIV=s.primary,
            p_CLKOP_CPHASE=s.primary - 1,
            p_CLKOP_FPHASE=0,
            p_CLKOS_ENABLE="ENABLED",
            p_CLKOS_DIV=s.output,
            p_CLKOS_CPHASE=s.output - 1,
            p_CLKOS_FPHASE=0,
            i_CLKI=self.input,
            i_CLKFB=feedback,
            **{f"i_{name}": Const(0, 1) for name in ("RST", "STDBY", "PHASESEL0", "PHASESEL1", "PLLWAKESYNC", "ENCLKOP", "ENCLKOS")},
            **{f"i_{name}": Const(1, 1) for name in ("PHASEDIR", "PHASESTEP", "PHASELOADREG")},
            o_CLKOP=feedback,
            o_CLKOS=self.output,
            o_LOCK=self.locked,
        )
        return m


def add_clock(m: Module, clock: Signal, locked: Signal, button: Signal) -> Signal:
    """The domain ``sync`` of a module: reset until ``locked`` is 1 and ``button`` is 0 for ``RESET_CLOCKS``. Returns the signal that it runs."""
    m.domains.sync = ClockDomain("sync")
    m.domains.begin = ClockDomain("begin", reset_less=True)
    fine, meeting = Signal(), Signal()
    waited, running = Signal(range(RESET_CLOCKS + 1)), Signal()
    m.d.comb += [ClockSignal("sync").eq(clock), ClockSignal("begin").eq(clock), ResetSignal("sync").eq(~running)]
    m.d.begin += [meeting.eq(locked & ~button), fine.eq(meeting), running.eq(fine & (waited == RESET_CLOCKS))]
    with m.If(~fine):
        m.d.begin += waited.eq(0)
    with m.Elif(waited != RESET_CLOCKS):
        m.d.begin += waited.eq(waited + 1)
    return running
