# SPDX-License-Identifier: Apache-2.0
"""Serial receiver and transmitter."""

from amaranth import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.uart import FRAME_BITS, UartConfig

__all__ = ["RECEIVED", "UartReceiver", "UartTransmitter"]

RECEIVED = data.StructLayout({"byte": 8, "good": 1})
"""A byte of the line; ``good``: with its stop bit."""


class UartReceiver(wiring.Component):
    """Bytes from a serial line, ``config.receive_latency`` clocks after the pin fell.

    A start bit that is over before its middle is noise and is ignored; after a byte without stop bit the line must be high before the next one.

    Members
    -------
    pin : ``In(1)``, not of this clock domain; high when idle.
    output : ``Out(stream)`` of ``RECEIVED``; valid for one clock, never waits.
    """

    def __init__(self, config: UartConfig) -> None:
        self.config = config
        super().__init__({"pin": In(1, init=1), "output": Out(stream.Signature(RECEIVED, always_ready=True))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        clocks = self.config.clocks
        meeting, level = Signal(init=1), Signal(init=1)
        timer, left = Signal(range(clocks)), Signal(range(FRAME_BITS + 1))
        shift = Signal(8, reset_less=True)
        m.d.sync += [meeting.eq(self.pin), level.eq(meeting), self.output.valid.eq(0), timer.eq(timer - 1)]
        with m.FSM():
            with m.State("IDLE"), m.If(~level):
                m.d.sync += [timer.eq(clocks // 2 - 1), left.eq(FRAME_BITS)]
                m.next = "BIT"
            with m.State("BIT"), m.If(timer == 0):
                m.d.sync += [timer.eq(clocks - 1), left.eq(left - 1), shift.eq(Cat(shift[1:], level))]
                with m.If((left == FRAME_BITS) & level):
                    m.next = "IDLE"
                with m.If(left == 1):
                    m.d.sync += [
                        self.output.valid.eq(1),
                        self.output.payload.byte.eq(shift),
                        self.output.payload.good.eq(level),
                        shift.eq(shift),
                    ]
                    m.next = "IDLE"
                    with m.If(~level):
                        m.next = "RELEASE"
            with m.State("RELEASE"), m.If(level):
                m.next = "IDLE"
        return m


class UartTransmitter(wiring.Component):
    """Bytes to a serial line, one in ``config.byte_clocks`` clocks.

    Members
    -------
    input : ``In(stream)`` of bytes.
    pin : ``Out(1)``, falls in the clock after a byte was taken.
    """

    def __init__(self, config: UartConfig) -> None:
        self.config = config
        super().__init__({"input": In(stream.Signature(8)), "pin": Out(1, init=1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        clocks = self.config.clocks
        timer, left = Signal(range(clocks)), Signal(range(FRAME_BITS + 1))
        rest = Signal(FRAME_BITS - 1, reset_less=True)
        last = Signal()
        m.d.comb += [last.eq((left == 1) & (timer == 0)), self.input.ready.eq((left == 0) | last)]
        with m.If(self.input.valid & self.input.ready):
            m.d.sync += [self.pin.eq(0), rest.eq(Cat(self.input.payload, 1)), left.eq(FRAME_BITS), timer.eq(clocks - 1)]
        with m.Elif(left != 0):
            m.d.sync += timer.eq(timer - 1)
            with m.If(timer == 0):
                m.d.sync += [timer.eq(clocks - 1), left.eq(left - 1), Cat(self.pin, rest).eq(Cat(rest, 1))]
        return m
