# SPDX-License-Identifier: Apache-2.0
"""A core with its memories behind a serial line: what a board's pins see."""

from amaranth import Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.uart import UartConfig
from lutra.rtl.link.bridge import Bridge
from lutra.rtl.link.frames import Deframer, Enframer
from lutra.rtl.link.uart import UartReceiver, UartTransmitter
from lutra.rtl.ternary.system import OnChipSystem
from lutra.rtl.verilog import restarted

__all__ = ["PATIENCE_BYTES", "LinkedSystem", "SerialLink"]

PATIENCE_BYTES = 2048
"""Bytes' time without a byte after which a packet is given up: at 1 Mbaud 20 ms, more than an adapter on USB waits within a packet."""


class SerialLink(wiring.Component):
    """Everything between the two pins and the register bus.

    Parameters
    ----------
    uart : clocks of a bit. context, vocabulary : of the core's model.

    Members
    -------
    rx : ``In(1)``, tx : ``Out(1)``
    bus, busy, token, core_reset : of the ``Bridge``.
    """

    def __init__(self, uart: UartConfig, *, context: int, vocabulary: int) -> None:
        self._uart = uart
        self._bridge = Bridge(context=context, vocabulary=vocabulary)
        members = self._bridge.signature.members
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1)} | {name: members[name] for name in ("bus", "busy", "token", "core_reset")})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.receiver = receiver = UartReceiver(self._uart)
        m.submodules.transmitter = transmitter = UartTransmitter(self._uart)
        m.submodules.deframer = deframer = Deframer(patience=PATIENCE_BYTES * self._uart.byte_clocks)
        m.submodules.enframer = enframer = Enframer()
        m.submodules.bridge = bridge = self._bridge
        m.d.comb += [receiver.pin.eq(self.rx), self.tx.eq(transmitter.pin)]
        wiring.connect(m, receiver.output, deframer.input)
        wiring.connect(m, deframer.request, bridge.request)
        wiring.connect(m, deframer.fault, bridge.fault)
        m.d.comb += [deframer.address.eq(bridge.address), bridge.byte.eq(deframer.byte)]
        wiring.connect(m, bridge.output, enframer.input)
        wiring.connect(m, enframer.output, transmitter.input)
        wiring.connect(m, bridge.bus, wiring.flipped(self.bus))
        wiring.connect(m, wiring.flipped(self.token), bridge.token)
        m.d.comb += [bridge.busy.eq(self.busy), self.core_reset.eq(bridge.core_reset)]
        return m


class LinkedSystem(wiring.Component):
    """A core on chip and its serial link.

    Members
    -------
    rx : ``In(1)``, tx : ``Out(1)``, high when idle. ``busy`` : ``Out(1)``, a run is under way.
    """

    def __init__(self, system: OnChipSystem, uart: UartConfig) -> None:
        self._system, self._uart = system, uart
        super().__init__({"rx": In(1, init=1), "tx": Out(1, init=1), "busy": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        shape, system = self._system.spec.shape, self._system
        m.submodules.link = link = SerialLink(self._uart, context=shape.context, vocabulary=shape.vocabulary)
        m.submodules.system = restarted(system, link.core_reset)
        wiring.connect(m, link.bus, system.bus)
        m.d.comb += [
            link.rx.eq(self.rx),
            self.tx.eq(link.tx),
            link.busy.eq(system.busy),
            self.busy.eq(system.busy),
            link.token.valid.eq(system.token.valid),
            link.token.payload.eq(system.token.payload),
        ]
        return m
