# SPDX-License-Identifier: Apache-2.0
"""The companion chip: instruction queue, pipeline of V lanes, statistics, scalars, crossbar from and to the channels (docs/architecture.md, 4.5)."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.floats import FP32
from lutra.hls_models.pim.config import LANE_BITS, PimConfig
from lutra.rtl.pim.companion_front import Front
from lutra.rtl.pim.companion_items import instruction_layout
from lutra.rtl.pim.companion_lanes import Lanes
from lutra.rtl.pim.companion_scalars import Scalars
from lutra.rtl.pim.companion_sram import address_bits
from lutra.rtl.pim.companion_statistics import Maxima, Sums
from lutra.rtl.tap import Tap
from lutra.rtl.verilog import enabled

__all__ = ["Companion", "CompanionCore"]


class CompanionCore(wiring.Component):
    """All of the companion chip, in its own clock.

    Members
    -------
    instructions : stream of ``instruction_layout``
    offered, readouts : ``In(C)``, ``In(C x V x 16)``; the queues' read-outs
    taken : ``Out(C)``, the read-out that is taken in this clock
    room : ``In(C)``, the channel has a place for a beat that is issued in this clock
    reserved : ``Out(C)``, places that this clock's issue takes
    sent, beat : ``Out(C)``, channels that the beat (V x 16) is sent to in this clock
    written, address, values : an item that is written to the SRAM in this clock, V x 32 bits (a word: the lowest B values count)
    changed, scalar, value : a scalar that is written in this clock
    index : index register
    """

    def __init__(self, config: PimConfig) -> None:
        self._config = config
        channels, beat = config.channels, LANE_BITS * config.lanes
        super().__init__(
            {
                "instructions": In(stream.Signature(instruction_layout(config))),
                "offered": In(channels),
                "readouts": In(channels * beat),
                "taken": Out(channels),
                "room": In(channels),
                "reserved": Out(channels),
                "sent": Out(channels),
                "beat": Out(beat),
                "written": Out(1),
                "address": Out(address_bits(config)),
                "values": Out(FP32.bits * config.lanes),
                "changed": Out(1),
                "scalar": Out(5),
                "value": Out(FP32.bits),
                "index": Out(32),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        config = self._config
        m.submodules.front = front = Front(config)
        m.submodules.lanes = lanes = Lanes(config)
        m.submodules.maxima = maxima = Maxima(config)
        m.submodules.sums = sums = Sums(config)
        m.submodules.scalars = scalars = Scalars(config)
        wiring.connect(m, wiring.flipped(self.instructions), front.instructions)
        m.d.comb += [
            front.offered.eq(self.offered),
            front.room.eq(self.room),
            self.taken.eq(front.take << front.source),
            self.reserved.eq(front.send),
            lanes.path.eq(front.path),
            lanes.issue.eq(front.issue),
            lanes.item.eq(front.item),
            lanes.address_a.eq(front.address_a),
            lanes.readout.eq(self.readouts.word_select(front.source, LANE_BITS * config.lanes)),
            lanes.scalar_value.eq(scalars.lane_value),
            scalars.lane_address.eq(lanes.scalar),
            scalars.start.eq(front.start),
            scalars.operation.eq(front.path.unit),
            scalars.k.eq(front.path.k),
            scalars.a.eq(front.scalar_a),
            scalars.b.eq(front.scalar_b),
            scalars.d.eq(front.scalar_d),
            scalars.finish.eq(front.finish),
            scalars.old_address.eq(maxima.address),
            maxima.old.eq(scalars.old),
            scalars.write.eq(maxima.write | sums.write),
            scalars.address.eq(Mux(sums.write, sums.address, maxima.address)),
            scalars.write_data.eq(Mux(sums.write, sums.write_data, maxima.write_data)),
            self.sent.eq(Mux(lanes.valid, lanes.leaving.mask, 0)),
            self.beat.eq(lanes.beat),
            self.written.eq(lanes.valid & lanes.leaving.store),
            self.address.eq(lanes.leaving.dst),
            self.values.eq(lanes.values),
            self.changed.eq(scalars.changed),
            self.scalar.eq(scalars.changed_address),
            self.value.eq(scalars.changed_value),
            self.index.eq(maxima.index),
        ]
        for statistic in (maxima, sums):
            m.d.comb += [
                statistic.path.eq(front.path),
                statistic.valid.eq(lanes.valid),
                statistic.item.eq(lanes.leaving),
                statistic.values.eq(lanes.values),
            ]
        return m


class Companion(wiring.Component):
    """The companion chip in the command clock: it acts in even cycles only.

    Members
    -------
    instructions : stream of ``instruction_layout`` (``Work.pack``)
    readouts : ``In(stream of V x 16 bits).array(C)``
    data : ``Out(stream of V x 16 bits).array(C)``
        ``ready`` is not looked at: the room is reserved.
    freed : ``In(1).array(C)``
        A place of the channel's data queue became free; in any cycle. At reset ``data_depth`` are free.
    index : ``Out(32)``
        Index register.
    """

    def __init__(self, config: PimConfig) -> None:
        self._config = config
        beat = stream.Signature(LANE_BITS * config.lanes)
        super().__init__(
            {
                "instructions": In(stream.Signature(instruction_layout(config))),
                "readouts": In(beat).array(config.channels),
                "data": Out(beat).array(config.channels),
                "freed": In(1).array(config.channels),
                "index": Out(32),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        even = Signal(init=1)
        m.d.sync += even.eq(~even)
        core = CompanionCore(self._config)
        m.submodules.core = enabled(core, even)
        m.d.comb += [
            core.instructions.payload.eq(self.instructions.payload),
            core.instructions.valid.eq(self.instructions.valid),
            self.instructions.ready.eq(core.instructions.ready & even),
            core.offered.eq(Cat(one.valid for one in self.readouts)),
            core.readouts.eq(Cat(one.payload for one in self.readouts)),
            self.index.eq(core.index),
        ]
        depth = self._config.companion.data_depth
        for c in range(self._config.channels):
            credit = Signal(range(depth + 1), init=depth, name=f"credit_{c}")
            m.d.sync += credit.eq(credit + self.freed[c] - (core.reserved[c] & even))
            m.d.comb += [
                core.room[c].eq(credit != 0),
                self.readouts[c].ready.eq(core.taken[c] & even),
                self.data[c].valid.eq(core.sent[c] & even),
                self.data[c].payload.eq(core.beat),
            ]
        self._observe(m, "sram", core.written & even, Cat(core.address, core.values))
        self._observe(m, "scalars", core.changed & even, Cat(core.scalar, core.value))
        return m

    def _observe(self, m: Module, name: str, valid: Any, payload: Any) -> None:
        """A boundary that simulations record."""
        tap = Tap(stream.Signature(len(payload)), name)
        m.submodules[f"tap_{name}"] = tap
        m.d.comb += [tap.i.valid.eq(valid), tap.i.payload.eq(payload), tap.o.ready.eq(1)]
