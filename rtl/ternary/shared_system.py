# SPDX-License-Identifier: Apache-2.0
"""The core in front of a shared memory: the instance for a board whose memory holds the model."""

from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.core import CoreSpec
from lutra.rtl.axi.ports import ADDRESS_BITS, AxiRead, AxiWrite, base_layout
from lutra.rtl.axi.reader import AxiReader
from lutra.rtl.axi.writer import AxiWriter
from lutra.rtl.ternary.core import Core
from lutra.rtl.ternary.registers import RegisterPort

__all__ = ["SharedSystem"]


class SharedSystem(wiring.Component):
    """Core and its AXI4 masters.

    Parameters
    ----------
    spec : a core with ``memory``. address_bits : of the ports' byte addresses.

    Members
    -------
    bus : ``In(RegisterPort())``. ``busy`` : ``Out(1)``. ``token`` : ``Out(stream)`` of chosen ids, valid for one clock.
    base : ``In``, a page of 4 KB per read port: where its region of the memory starts; stable from reset on.
    read : P times ``Out(AxiRead)``, 16 bytes of every beat each. write : ``Out(AxiWrite)``, new rows of keys and values.
    error : ``Out(1)``, stays 1 from the clock after a response that is an error.
    """

    def __init__(self, spec: CoreSpec, *, address_bits: int = ADDRESS_BITS) -> None:
        if spec.config.memory is None:
            raise ValueError(f"config {spec.config.name} must have a shared memory")
        self.spec, self.ports, self._address_bits = spec, spec.config.memory.ports, address_bits
        super().__init__(
            {
                "bus": In(RegisterPort()),
                "busy": Out(1),
                "token": Out(stream.Signature(20)),
                "base": In(base_layout(self.ports, address_bits)),
                "read": Out(AxiRead(address_bits=address_bits)).array(self.ports),
                "write": Out(AxiWrite(address_bits=address_bits)),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.core = core = Core(self.spec)
        m.submodules.reader = reader = AxiReader(ports=self.ports, address_bits=self._address_bits)
        m.submodules.writer = writer = AxiWriter(self.spec.kv_layout, address_bits=self._address_bits)
        wiring.connect(m, wiring.flipped(self.bus), core.bus)
        wiring.connect(m, core.token, wiring.flipped(self.token))
        wiring.connect(m, core.read, reader.request)
        wiring.connect(m, reader.data, core.data)
        wiring.connect(m, core.kv_write, writer.row)
        for port, own in zip(reader.axi, self.read, strict=True):
            wiring.connect(m, port, wiring.flipped(own))
        wiring.connect(m, writer.axi, wiring.flipped(self.write))
        m.d.comb += [
            self.busy.eq(core.busy),
            reader.base.eq(self.base),
            writer.base.eq(self.base),
            core.writer_idle.eq(writer.idle),
            self.error.eq(reader.error | writer.error),
        ]
        return m
