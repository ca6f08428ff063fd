# SPDX-License-Identifier: Apache-2.0
"""The core with all of its memory on chip: the instance for a device that holds the whole model."""

from amaranth import Module, ShapeLike, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.core import CoreSpec
from lutra.rtl.float_parts import register
from lutra.rtl.memory import HexRam, HexRom
from lutra.rtl.ternary.attention_items import delay
from lutra.rtl.ternary.core import Core
from lutra.rtl.ternary.loader_issue import REQUEST
from lutra.rtl.ternary.registers import RegisterPort

__all__ = ["OnChipPort", "OnChipSystem"]


class OnChipPort(wiring.Component):
    """Read adapter: a request in cycle t is answered in t + latency (the RAM, then output registers, one at least); never waits, one per clock.

    ``request`` is an address, or LOADER's {address, beats} of one beat.
    """

    def __init__(self, *, width: int, request: ShapeLike, ram: wiring.Component, latency: int = 2) -> None:
        self._ram, self._late = ram, latency - 2
        super().__init__({"read": In(stream.Signature(request)), "data": Out(stream.Signature(width))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.ram = ram = self._ram
        fetched, request = Signal(), self.read.payload
        address = request.address if isinstance(request, data.View) else request
        m.d.comb += [self.read.ready.eq(1), ram.read_addr.eq(address), ram.read_en.eq(self.read.valid)]
        m.d.sync += [
            fetched.eq(self.read.valid),
            self.data.valid.eq(delay(m, fetched, "fetched_late", self._late)),
            self.data.payload.eq(register(m, ram.read_data, "word_late", self._late)),
        ]
        return m


class OnChipSystem(wiring.Component):
    """Core, program-and-weights memory and key/value memory.

    Parameters
    ----------
    spec : the core. ``beats`` : depth of the read-only memory. ``file`` : its hex file, read by simulators and synthesis.

    Members
    -------
    bus : ``In(RegisterPort())``. ``busy`` : ``Out(1)``. ``token`` : ``Out(stream)`` of chosen ids, valid for one clock.
    """

    def __init__(self, spec: CoreSpec, *, beats: int, file: str) -> None:
        self.spec, self._beats, self._file = spec, beats, file
        super().__init__({"bus": In(RegisterPort()), "busy": Out(1), "token": Out(stream.Signature(20))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, attention = self.spec.config, self.spec.attention
        m.submodules.core = core = Core(self.spec)
        rom = HexRom(width=8 * config.beat_bytes, depth=self._beats, file=self._file)
        m.submodules.memory = program = OnChipPort(width=8 * config.beat_bytes, request=REQUEST, ram=rom, latency=config.memory_latency)
        ram = HexRam(width=attention.row_bits, depth=attention.rows)
        m.submodules.cache = cache = OnChipPort(width=attention.row_bits, request=24, ram=ram)
        wiring.connect(m, wiring.flipped(self.bus), core.bus)
        m.d.comb += self.busy.eq(core.busy)
        wiring.connect(m, core.read, program.read)
        wiring.connect(m, program.data, core.data)
        wiring.connect(m, core.kv_read, cache.read)
        wiring.connect(m, cache.data, core.kv_data)
        m.d.comb += [
            core.kv_write.ready.eq(1),
            ram.write_en.eq(core.kv_write.valid),
            ram.write_addr.eq(core.kv_write.payload.address),
            ram.write_data.eq(core.kv_write.payload.row),
        ]
        wiring.connect(m, core.token, wiring.flipped(self.token))
        return m
