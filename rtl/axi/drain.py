# SPDX-License-Identifier: Apache-2.0
"""Ways between AXI4 masters and their ports that can be closed: a master may be reset once nothing that it asked for is on its way."""

from amaranth.hdl import Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra.rtl.axi.ports import ADDRESS_BITS, AxiRead, AxiWrite

__all__ = ["ReadDrain", "WriteDrain"]

OPEN_BITS = 12
"""Of the count of bursts on their way."""


def _members(side: type[AxiRead] | type[AxiWrite], address_bits: int) -> dict[str, wiring.Member]:
    signature = side(address_bits=address_bits)
    return {"master": In(signature), "port": Out(signature), "stop": In(1), "quiet": Out(1)}


def _close(m: Module, stop: Value, waiting: Value) -> Signal:
    """1 from a clock with ``stop`` on in which nothing that is offered still waits, until ``stop`` is 0."""
    closed = Signal(init=1)
    with m.If(~stop):
        m.d.sync += closed.eq(0)
    with m.Elif(~waiting):
        m.d.sync += closed.eq(1)
    return closed


def _count(m: Module, more: Value, less: Value) -> Signal:
    count = Signal(OPEN_BITS)
    m.d.sync += count.eq(count + more - less)
    return count


class ReadDrain(wiring.Component):
    """Wires while ``stop`` is 0. Then an address that is offered is still offered until it is taken, no other one is, and data that come are dropped.

    Members
    -------
    master : ``In(AxiRead)``. port : ``Out(AxiRead)``.
    stop : ``In(1)``, 0 only after the master was reset while ``quiet``. quiet : ``Out(1)``, the way is closed and every burst has its data.
    """

    def __init__(self, *, address_bits: int = ADDRESS_BITS) -> None:
        super().__init__(_members(AxiRead, address_bits))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        master, port = self.master, self.port
        closed = _close(m, self.stop, port.arvalid & ~port.arready)
        on_their_way = _count(m, port.arvalid & port.arready, port.rvalid & port.rready & port.rlast)
        m.d.comb += [getattr(port, f"ar{name}").eq(getattr(master, f"ar{name}")) for name in ("addr", "len", "size", "burst", "id", "cache", "prot")]
        m.d.comb += [getattr(master, f"r{name}").eq(getattr(port, f"r{name}")) for name in ("data", "resp", "last", "id")]
        m.d.comb += [
            port.arvalid.eq(master.arvalid & ~closed),
            master.arready.eq(port.arready & ~closed),
            master.rvalid.eq(port.rvalid & ~closed),
            port.rready.eq(master.rready | closed),
            self.quiet.eq(closed & (on_their_way == 0)),
        ]
        return m


class WriteDrain(wiring.Component):
    """As ``ReadDrain``, for single beats whose address and data are offered together.

    Members
    -------
    master : ``In(AxiWrite)``. port : ``Out(AxiWrite)``. stop, quiet : as there.
    """

    def __init__(self, *, address_bits: int = ADDRESS_BITS) -> None:
        super().__init__(_members(AxiWrite, address_bits))

    def elaborate(self, platform: object) -> Module:
        m = Module()
        master, port = self.master, self.port
        closed = _close(m, self.stop, (port.awvalid & ~port.awready) | (port.wvalid & ~port.wready))
        on_their_way = _count(m, port.awvalid & port.awready, port.bvalid & port.bready)
        m.d.comb += [getattr(port, f"aw{name}").eq(getattr(master, f"aw{name}")) for name in ("addr", "len", "size", "burst", "id", "cache", "prot")]
        m.d.comb += [getattr(port, f"w{name}").eq(getattr(master, f"w{name}")) for name in ("data", "strb", "last")]
        m.d.comb += [getattr(master, f"b{name}").eq(getattr(port, f"b{name}")) for name in ("resp", "id")]
        m.d.comb += [
            port.awvalid.eq(master.awvalid & ~closed),
            master.awready.eq(port.awready & ~closed),
            port.wvalid.eq(master.wvalid & ~closed),
            master.wready.eq(port.wready & ~closed),
            master.bvalid.eq(port.bvalid & ~closed),
            port.bready.eq(master.bready | closed),
            self.quiet.eq(closed & (on_their_way == 0)),
        ]
        return m
