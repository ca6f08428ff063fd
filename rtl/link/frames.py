# SPDX-License-Identifier: Apache-2.0
"""Packets of the link (``hls_models.link``): the receiving side, which checks them, and the sending side, which puts flags, escapes and CRC around them."""

from amaranth import Module, Mux, Signal, Value
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.link import CRC_GOOD, CRC_POLYNOMIAL, CRC_START, ESCAPE, FLAG, FLIP, FRAMING_BYTES, HEADER_BYTES, MAX_PAYLOAD, Fault
from lutra.rtl.link.uart import RECEIVED

__all__ = ["HEADER", "OCTET", "Deframer", "Enframer"]

HEADER = data.StructLayout({"length": 8, "type": 8, "sequence": 8})
OCTET = data.StructLayout({"byte": 8, "last": 1})
"""A byte of a packet to be sent, from its length to the end of its payload."""


def _crc(register: Value, byte: Value) -> Value:
    """The register after one more byte."""
    value = register ^ byte
    for _ in range(8):
        value = (value >> 1) ^ Mux(value[0], CRC_POLYNOMIAL, 0)
    return value


class Deframer(wiring.Component):
    """Packets from the bytes of a line.

    A good packet is offered in the clock after its closing flag; while it waits, its payload can be read, and bytes that come then are lost, which is an
    OVERRUN once it has been taken. Faults are offered in the clock after the byte that shows them; those that come while one waits are not counted.

    Parameters
    ----------
    patience : clocks without a byte after which a packet that has begun is given up (TIMEOUT).

    Members
    -------
    input : ``In(stream)`` of ``RECEIVED``, always ready.
    request : ``Out(stream)`` of ``HEADER``.
    address : ``In``, byte of the payload; ``byte`` : ``Out(8)``, in the same clock.
    fault : ``Out(stream)`` of ``Fault``.
    """

    def __init__(self, *, patience: int) -> None:
        if patience < 1:
            raise ValueError(f"patience must be at least 1 clock, not {patience}")
        self._patience = patience
        super().__init__(
            {
                "input": In(stream.Signature(RECEIVED, always_ready=True)),
                "request": Out(stream.Signature(HEADER)),
                "address": In(range(MAX_PAYLOAD + 1)),
                "byte": Out(8),
                "fault": Out(stream.Signature(4)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.payload = payload = memory.Memory(shape=8, depth=MAX_PAYLOAD + 2, init=[])  # a CRC may follow
        store, fetch = payload.write_port(), payload.read_port(domain="comb")
        count, escaped, hunting, overrun = Signal(range(MAX_PAYLOAD + FRAMING_BYTES + 1)), Signal(), Signal(init=1), Signal()
        register = Signal(16)
        waited = Signal(range(self._patience + 1))
        header, byte = self.request.payload, Signal(8)
        within, valid, found, fault = Signal(), Signal(), Signal(), Signal(4)
        m.d.comb += [
            fetch.addr.eq(self.address),
            self.byte.eq(fetch.data),
            within.eq((count != 0) | escaped),
            byte.eq(Mux(escaped, self.input.payload.byte ^ FLIP, self.input.payload.byte)),
            store.data.eq(byte),
            store.addr.eq(count - HEADER_BYTES),
            valid.eq(self.input.valid & self.input.payload.good),
        ]

        def restart(hunt: int) -> list[object]:
            return [hunting.eq(hunt), count.eq(0), escaped.eq(0), register.eq(CRC_START)]

        def fail(code: Fault) -> list[object]:
            return [found.eq(1), fault.eq(code)]

        m.d.sync += waited.eq(Mux(self.input.valid | ~within, 0, waited + 1))
        with m.If(self.request.valid):
            with m.If(self.input.valid & ~(valid & (self.input.payload.byte == FLAG))):
                m.d.sync += overrun.eq(1)
            with m.If(self.request.ready):
                m.d.sync += self.request.valid.eq(0)
        with m.Elif(overrun):
            m.d.comb += fail(Fault.OVERRUN)
            m.d.sync += [overrun.eq(0), *restart(hunt=1)]
        with m.Elif(self.input.valid & ~self.input.payload.good):
            m.d.sync += restart(hunt=1)
            with m.If(~hunting):
                m.d.comb += fail(Fault.LINE)
        with m.Elif(valid & (self.input.payload.byte == FLAG)):
            m.d.sync += restart(hunt=0)
            with m.If(within):
                with m.If(escaped | (count < FRAMING_BYTES) | (count != header.length + FRAMING_BYTES)):
                    m.d.comb += fail(Fault.LENGTH)
                with m.Elif(register != CRC_GOOD):
                    m.d.comb += fail(Fault.CRC)
                with m.Else():
                    m.d.sync += self.request.valid.eq(1)
        with m.Elif(valid & ~hunting):
            with m.If((self.input.payload.byte == ESCAPE) & ~escaped):
                m.d.sync += escaped.eq(1)
            with m.Elif(count == MAX_PAYLOAD + FRAMING_BYTES):
                m.d.comb += fail(Fault.LENGTH)
                m.d.sync += restart(hunt=1)
            with m.Else():
                m.d.sync += [escaped.eq(0), count.eq(count + 1), register.eq(_crc(register, byte))]
                m.d.comb += store.en.eq(count >= HEADER_BYTES)
                for place, name in enumerate(("length", "type", "sequence")):
                    with m.If(count == place):
                        m.d.sync += header[name].eq(byte)
        with m.Elif(waited == self._patience):
            m.d.comb += fail(Fault.TIMEOUT)
            m.d.sync += restart(hunt=1)

        with m.If(self.fault.valid & self.fault.ready):
            m.d.sync += self.fault.valid.eq(0)
        with m.If(found & ~self.fault.valid):
            m.d.sync += [self.fault.valid.eq(1), self.fault.payload.eq(fault)]
        return m


class Enframer(wiring.Component):
    """Bytes of packets to the bytes of a line, one per clock; a packet follows the one before without a gap.

    Members
    -------
    input : ``In(stream)`` of ``OCTET``. ``output`` : ``Out(stream)`` of bytes.
    """

    def __init__(self) -> None:
        super().__init__({"input": In(stream.Signature(OCTET)), "output": Out(stream.Signature(8))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        register, escaped = Signal(16, init=CRC_START), Signal()
        content, special, passed = Signal(8), Signal(), Signal()
        crc = ~register
        m.d.comb += [special.eq((content == FLAG) | (content == ESCAPE)), passed.eq(0)]

        def send(byte: Value) -> None:
            """One byte of content: two on the line where it is a special one; ``passed`` with the last of them."""
            m.d.comb += [content.eq(byte), self.output.payload.eq(Mux(escaped, content ^ FLIP, Mux(special, ESCAPE, content)))]
            with m.If(self.output.valid & self.output.ready):
                m.d.sync += escaped.eq(special & ~escaped)
                m.d.comb += passed.eq(~special | escaped)

        with m.FSM():
            with m.State("IDLE"), m.If(self.input.valid):
                m.d.comb += [self.output.valid.eq(1), self.output.payload.eq(FLAG)]
                m.d.sync += register.eq(CRC_START)
                with m.If(self.output.ready):
                    m.next = "CONTENT"
            with m.State("CONTENT"):
                m.d.comb += [self.output.valid.eq(self.input.valid), self.input.ready.eq(passed)]
                send(self.input.payload.byte)
                with m.If(passed):
                    m.d.sync += register.eq(_crc(register, content))
                    with m.If(self.input.payload.last):
                        m.next = "CRC_LOW"
            for place, (state, then) in enumerate((("CRC_LOW", "CRC_HIGH"), ("CRC_HIGH", "CLOSE"))):
                with m.State(state):
                    m.d.comb += self.output.valid.eq(1)
                    send(crc[8 * place : 8 * place + 8])
                    with m.If(passed):
                        m.next = then
            with m.State("CLOSE"):
                m.d.comb += [self.output.valid.eq(1), self.output.payload.eq(FLAG)]
                with m.If(self.output.ready):
                    m.next = "IDLE"
        return m
