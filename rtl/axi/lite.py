# SPDX-License-Identifier: Apache-2.0
"""AXI4-Lite in front of a register bus."""

from enum import IntEnum

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra.rtl.axi.ports import AxiLite

__all__ = ["AxiLiteSlave", "Response"]


class Response(IntEnum):
    """Of BRESP and RRESP. ``SLAVE_ERROR``: there is a register, but none that can be read, or written, now; ``DECODE_ERROR``: there is none."""

    OKAY = 0
    SLAVE_ERROR = 2
    DECODE_ERROR = 3


class AxiLiteSlave(wiring.Component):
    """Accesses over AXI4-Lite, one after another, on a bus of 32-bit words.

    Address, data and responses have a register each: the five channels wait for nothing but their own, and writes and reads take turns where both are
    there. A read that is accepted at t has its data at t + 4, an address or data accepted last at t its response at t + 5, where the bus is free; every
    output is a register. A write stores the bytes that its strobes name and keeps the others of what the register reads as; with no strobe it changes
    nothing. Byte addresses within a word name the word. What may not be read has data 0, what may not be written keeps its value.

    Parameters
    ----------
    address_bits : of byte addresses.

    Members
    -------
    axi : ``In(AxiLite)``.
    address : ``Out``, of a word, stays for all of an access. named : ``Out(32)``, the bits that a write's strobes name.
    write : ``Out(1)``, in the clock in which ``write_data`` shall be stored.
    read_data, mapped, readable, writable : ``In``, of ``address`` one clock before.
    """

    def __init__(self, *, address_bits: int) -> None:
        self._address_bits = address_bits
        super().__init__(
            {
                "axi": In(AxiLite(address_bits=address_bits)),
                "address": Out(address_bits - 2),
                "named": Out(32),
                "write": Out(1),
                "write_data": Out(32),
                "read_data": In(32),
                "mapped": In(1),
                "readable": In(1),
                "writable": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        axi = self.axi
        words = {name: Signal(self._address_bits - 2, name=name, reset_less=True) for name in ("write_address", "read_address")}
        data, strobes = Signal(32, reset_less=True), Signal(4, reset_less=True)
        # A channel that is not ready holds what it took.
        no_address, no_data, no_read = Signal(init=1), Signal(init=1), Signal(init=1)
        m.d.comb += [axi.awready.eq(no_address), axi.wready.eq(no_data), axi.arready.eq(no_read)]
        with m.If(axi.awvalid & no_address):
            m.d.sync += [no_address.eq(0), words["write_address"].eq(axi.awaddr[2:])]
        with m.If(axi.wvalid & no_data):
            m.d.sync += [no_data.eq(0), data.eq(axi.wdata), strobes.eq(axi.wstrb)]
        with m.If(axi.arvalid & no_read):
            m.d.sync += [no_read.eq(0), words["read_address"].eq(axi.araddr[2:])]
        with m.If(axi.bready):
            m.d.sync += axi.bvalid.eq(0)
        with m.If(axi.rready):
            m.d.sync += axi.rvalid.eq(0)

        writing, refused = Signal(), Signal(Response)
        m.d.comb += self.named.eq(Cat(strobe.replicate(8) for strobe in strobes))
        m.d.comb += refused.eq(Mux(self.mapped, Response.SLAVE_ERROR, Response.DECODE_ERROR))
        m.d.sync += self.write.eq(0)
        write_waits, read_waits = ~no_address & ~no_data & ~axi.bvalid, ~no_read & ~axi.rvalid
        with m.FSM():
            with m.State("IDLE"):
                with m.If(write_waits & ~(read_waits & writing)):
                    m.d.sync += [self.address.eq(words["write_address"]), writing.eq(1)]
                    m.next = "ADDRESS"
                with m.Elif(read_waits):
                    m.d.sync += [self.address.eq(words["read_address"]), writing.eq(0)]
                    m.next = "ADDRESS"
            with m.State("ADDRESS"):
                m.next = "DATA"
            with m.State("DATA"):
                with m.If(writing):
                    m.d.sync += [self.write_data.eq((data & self.named) | (self.read_data & ~self.named)), self.write.eq(self.writable & (strobes != 0))]
                    m.d.sync += axi.bresp.eq(Mux(self.writable, Response.OKAY, refused))
                    m.next = "WRITE"
                with m.Else():
                    m.d.sync += [no_read.eq(1), axi.rvalid.eq(1), axi.rdata.eq(Mux(self.readable, self.read_data, 0))]
                    m.d.sync += axi.rresp.eq(Mux(self.readable, Response.OKAY, refused))
                    m.next = "IDLE"
            with m.State("WRITE"):
                m.d.sync += [no_address.eq(1), no_data.eq(1), axi.bvalid.eq(1)]
                m.next = "IDLE"
        return m
