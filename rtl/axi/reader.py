# SPDX-License-Identifier: Apache-2.0
"""Reads of wide beats from a memory behind several AXI4 ports."""

from typing import Any

from amaranth.hdl import Cat, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.rtl.axi.ports import ADDRESS_BITS, PAGE_BITS, PORT_BITS, SIZE, AxiRead, base_layout
from lutra.rtl.streams import Queue

__all__ = ["AxiReader"]

REQUEST = data.StructLayout({"address": 32, "beats": 9})


class AxiReader(wiring.Component):
    """Bursts of wide beats from P ports, each of which holds 16 bytes of every beat; ``data`` in the order of the requests.

    A request taken at t is an address on all ports at t + 1, and a port keeps it until it is accepted there. Data of the ports wait for each other: a beat of
    which the last part comes at c is offered from c + 2 on. Any skew between the ports and any back-pressure on either side is right; nothing on one
    side depends on the other in the same clock. How many bursts are on their way is the client's business, and the memory's where it stops taking addresses.

    Parameters
    ----------
    ports : P, 1 to 8.
    queue_beats : beats that a port's queue holds, in LUT-RAM: by so many it may be ahead of the slowest one; at least 2 for a beat per clock.
    address_bits : of the ports' byte addresses.

    Members
    -------
    base : ``In``, P pages of 4 KB: where each port's region starts. Beat b is at byte 16 * b of it.
    request : ``In(stream)`` of {address 32 (in beats), beats 9}: 1 to 256 beats that lie within 256 beats from a multiple of 256 (so within 4 KB per port).
    data : ``Out(stream)`` of 128 * P bits, port 0's lowest.
    axi : P times ``Out(AxiRead)``.
    error : ``Out(1)``, stays 1 from the clock after a beat whose RRESP is an error.
    """

    def __init__(self, *, ports: int, queue_beats: int = 32, address_bits: int = ADDRESS_BITS) -> None:
        if not 1 <= ports <= 8:
            raise ValueError(f"ports must be 1 to 8, not {ports}")
        if queue_beats < 1:
            raise ValueError(f"queue_beats must be at least 1, not {queue_beats}")
        self.ports, self.queue_beats, self.address_bits = ports, queue_beats, address_bits
        super().__init__(
            {
                "base": In(base_layout(ports, address_bits)),
                "request": In(stream.Signature(REQUEST)),
                "data": Out(stream.Signature(PORT_BITS * ports)),
                "axi": Out(AxiRead(address_bits=address_bits)).array(ports),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        burst = data.StructLayout({"address": self.address_bits - SIZE, "len": 8})
        bursts, beats, wrong = [], [], []
        for port, axi in enumerate(self.axi):
            # Two places: one is offered, the other takes the next burst, so that a burst passes in every clock without a path from arready to request.ready.
            m.submodules[f"bursts_{port}"] = waiting = Queue(shape=burst, depth=2)
            m.submodules[f"beats_{port}"] = arrived = Queue(shape=PORT_BITS, depth=self.queue_beats)
            page = self.request.payload.address[PAGE_BITS - SIZE :] + self.base[port]
            m.d.comb += [
                waiting.input.payload.address.eq(Cat(self.request.payload.address[: PAGE_BITS - SIZE], page)),
                waiting.input.payload.len.eq(self.request.payload.beats - 1),
                axi.arvalid.eq(waiting.output.valid),
                axi.araddr[SIZE:].eq(waiting.output.payload.address),
                axi.arlen.eq(waiting.output.payload.len),
                waiting.output.ready.eq(axi.arready),
                arrived.input.valid.eq(axi.rvalid),
                arrived.input.payload.eq(axi.rdata),
                axi.rready.eq(arrived.input.ready),
            ]
            bursts.append(waiting)
            beats.append(arrived)
            wrong.append(axi.rvalid & axi.rready & axi.rresp[1])
        m.d.comb += self.request.ready.eq(Cat(waiting.input.ready for waiting in bursts).all())
        m.d.comb += [waiting.input.valid.eq(self.request.valid & self.request.ready) for waiting in bursts]
        with m.If(Cat(wrong).any()):
            m.d.sync += self.error.eq(1)

        load = Cat(arrived.output.valid for arrived in beats).all() & (~self.data.valid | self.data.ready)
        m.d.comb += [arrived.output.ready.eq(load) for arrived in beats]
        with m.If(self.data.ready):
            m.d.sync += self.data.valid.eq(0)
        joined = Signal(PORT_BITS * self.ports, reset_less=True)
        m.d.comb += self.data.payload.eq(joined)
        with m.If(load):
            m.d.sync += [self.data.valid.eq(1), joined.eq(Cat(arrived.output.payload for arrived in beats))]
        return m
