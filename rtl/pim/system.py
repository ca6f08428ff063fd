# SPDX-License-Identifier: Apache-2.0
"""A whole PIM system without its cells: channels and the companion chip they share (docs/architecture.md, 4.6)."""

from typing import Any

from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.pim.config import LANE_BITS, PimConfig
from lutra.hls_models.pim.timing import Timing
from lutra.rtl.pim.channel import Channel
from lutra.rtl.pim.companion import Companion
from lutra.rtl.pim.companion_items import instruction_layout
from lutra.rtl.pim.controller import ADJUST
from lutra.rtl.pim.macros import command_layout, macro_layout
from lutra.rtl.tap import connect

__all__ = ["PimSystem"]


class PimSystem(wiring.Component):
    """C channels and a companion chip. Programs come in as streams; all runs in the command clock, the companion chip in every second cycle of it.

    The queues between channels and companion chip are boundaries that simulations record: ``data_0`` …, ``readout_0`` ….

    Parameters
    ----------
    config, timing
        Sizes and timing preset.
    adjustable, macs
        As of ``Channel``: for simulations only.

    Members
    -------
    macros : ``In(stream of macro_layout).array(C)``
    instructions : stream of ``instruction_layout``
    command : ``Out(stream of command_layout, always ready).array(C)``, to the DRAM
    columns : ``In(B x V x 16).array(C)``, what the banks read, in the cycle after MAC
    read : ``In(V x 16).array(C)``, what comes over the pins tCL + tBL after RD
    index : ``Out(32)``, the companion chip's index register
    ended : ``Out(1).array(C)``, pulse: a channel's program is through
    values, values_taken : without ``macs`` only, ``In(B x 16).array(C)``, ``Out(1).array(C)``
    """

    def __init__(self, config: PimConfig, timing: Timing, *, adjustable: bool = False, macs: bool = True) -> None:
        self._config, self._timing, self._adjustable, self._macs = config, timing, adjustable, macs
        n, width = config.channels, LANE_BITS * config.lanes
        members: dict[str, Any] = {
            "macros": In(stream.Signature(macro_layout(config))).array(n),
            "instructions": In(stream.Signature(instruction_layout(config))),
            "command": Out(stream.Signature(command_layout(config), always_ready=True)).array(n),
            "columns": In(width * config.banks).array(n),
            "read": In(width).array(n),
            "index": Out(32),
            "ended": Out(1).array(n),
        }
        if not macs:
            members |= {"values": In(LANE_BITS * config.banks).array(n), "values_taken": Out(1).array(n)}
        if adjustable:
            members["adjust"] = In(stream.Signature(ADJUST, always_ready=True)).array(n)
        super().__init__(members)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.companion = companion = Companion(self._config)
        wiring.connect(m, wiring.flipped(self.instructions), companion.instructions)
        m.d.comb += self.index.eq(companion.index)
        for c in range(self._config.channels):
            channel = Channel(self._config, self._timing, channel=c, macs=self._macs, adjustable=self._adjustable)
            m.submodules[f"channel_{c}"] = channel
            wiring.connect(m, wiring.flipped(self.macros[c]), channel.macros)
            wiring.connect(m, channel.command, wiring.flipped(self.command[c]))
            connect(m, f"data_{c}", companion.data[c], channel.data)
            connect(m, f"readout_{c}", channel.readout, companion.readouts[c])
            if self._adjustable:
                wiring.connect(m, wiring.flipped(self.adjust[c]), channel.adjust)
            if not self._macs:
                m.d.comb += [channel.values.eq(self.values[c]), self.values_taken[c].eq(channel.values_taken)]
            m.d.comb += [
                channel.columns.eq(self.columns[c]),
                channel.read.eq(self.read[c]),
                companion.freed[c].eq(channel.data_freed),
                self.ended[c].eq(channel.ended),
            ]
        return m
