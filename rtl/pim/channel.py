# SPDX-License-Identifier: Apache-2.0
"""A channel: controller, global buffer, a MAC unit per bank, and the queues to and from the companion chip (docs/architecture.md, 4.4)."""

from typing import Any

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.errors import ConfigError
from lutra.hls_models.pim.config import LANE_BITS, PimConfig
from lutra.hls_models.pim.mac import INTERVAL, READ_LATENCY
from lutra.hls_models.pim.program import Command
from lutra.hls_models.pim.timing import Timing
from lutra.rtl.pim.buffer import GlobalBuffer
from lutra.rtl.pim.controller import ADJUST, Controller
from lutra.rtl.pim.mac import MacUnit
from lutra.rtl.pim.macros import command_layout, macro_layout
from lutra.rtl.streams import Queue
from lutra.rtl.verilog import once

__all__ = ["Channel"]


class Channel(wiring.Component):
    """Everything of a channel but the cells.

    Parameters
    ----------
    config, timing, channel, adjustable
        As of ``Controller``.
    macs
        False: no buffer and no MAC units; what accumulators return comes from ``values``: for simulations.

    Members
    -------
    macros : stream of ``macro_layout``
    data : stream of V x 16 bits; ``data_depth`` are queued
    readout : stream of V x 16 bits
        RDM: bank b's bf16 value in lane b, zeros above, accepted by the queue max(tCLREG + tBL, 1 + READ_LATENCY) after the command; RD: a column, tCL + tBL
        after. Offered one cycle later.
    command : stream of ``command_layout``, always ready
        To the DRAM.
    columns : ``In(B x V x 16)``
        What the banks read, bank 0 lowest, in the cycle after MAC.
    read : ``In(V x 16)``
        What comes over the pins tCL + tBL after RD.
    data_freed : ``Out(1)``
        The command that took a beat is on ``command``: a place of the data queue is free from this cycle on.
    ended : ``Out(1)``
        Pulse: the program is through.
    values, values_taken : ``In(B x 16)``, ``Out(1)``, without ``macs`` only
        What the next RDM returns; pulse: it is taken.

    Raises
    ------
    ConfigError
        In ``elaborate``: MACs would follow each other faster than a MAC unit's adder allows.
    """

    def __init__(self, config: PimConfig, timing: Timing, *, channel: int = 0, macs: bool = True, adjustable: bool = False) -> None:
        self._config, self._timing, self._channel, self._macs, self._adjustable = config, timing, channel, macs, adjustable
        width = LANE_BITS * config.lanes
        members = {
            "macros": In(stream.Signature(macro_layout(config))),
            "data": In(stream.Signature(width)),
            "readout": Out(stream.Signature(width)),
            "command": Out(stream.Signature(command_layout(config), always_ready=True)),
            "columns": In(width * config.banks),
            "read": In(width),
            "data_freed": Out(1),
            "ended": Out(1),
        }
        if not macs:
            members |= {"values": In(LANE_BITS * config.banks), "values_taken": Out(1)}
        if adjustable:
            members["adjust"] = In(stream.Signature(ADJUST, always_ready=True))
        super().__init__(members)

    def elaborate(self, platform: Any) -> Module:
        config, n = self._config, self._timing.cycles
        if self._macs and n("tCCDL") < INTERVAL:
            raise ConfigError(f"tCCDL must be at least {INTERVAL} clocks, those of a MAC unit's adder, not {n('tCCDL')}; nearest legal value {INTERVAL}")
        m = Module()
        width = LANE_BITS * config.lanes
        m.submodules.controller = controller = Controller(config, self._timing, channel=self._channel, adjustable=self._adjustable)
        m.submodules.data_queue = data = Queue(shape=width, depth=config.companion.data_depth)
        m.submodules.column_queue = columns = Queue(shape=width, depth=config.banks)
        m.submodules.readout_queue = readout = Queue(shape=width, depth=config.companion.readout_depth)
        wiring.connect(m, wiring.flipped(self.macros), controller.macros)
        wiring.connect(m, wiring.flipped(self.data), data.input)
        wiring.connect(m, data.output, controller.data)
        wiring.connect(m, columns.output, controller.columns)
        wiring.connect(m, readout.output, wiring.flipped(self.readout))
        wiring.connect(m, controller.command, wiring.flipped(self.command))
        if self._adjustable:
            wiring.connect(m, wiring.flipped(self.adjust), controller.adjust)
        command = controller.command.payload
        issued = {kind: Signal(name=f"is_{kind.name.lower()}") for kind in (Command.RD, Command.RDM, Command.GBW, Command.MAC, Command.BIAS)}
        m.d.comb += [
            *(one.eq(controller.command.valid & (command.kind == kind)) for kind, one in issued.items()),
            controller.readout_taken.eq(self.readout.valid & self.readout.ready),
            self.data_freed.eq(controller.data_freed),
            self.ended.eq(controller.ended),
        ]

        # Slots were claimed when the commands were issued, so that the queues always have room.
        pins = n("tCL") + n("tBL")
        registers = max(n("tCLREG") + n("tBL"), 1 + READ_LATENCY)
        arrives = _delayed(m, issued[Command.RD] & ~controller.modifies, pins)
        arrives_back = _delayed(m, issued[Command.RD] & controller.modifies, pins)
        read_out = _delayed(m, issued[Command.RDM], registers)
        if self._macs:
            values = self._banks(m, issued, registers - 1 - READ_LATENCY)
        else:
            values = self.values
            m.d.comb += self.values_taken.eq(read_out)
        m.d.comb += [
            columns.input.valid.eq(arrives_back),
            columns.input.payload.eq(self.read),
            readout.input.valid.eq(arrives | read_out),
            readout.input.payload.eq(Value.cast(values)),
        ]
        with m.If(arrives):
            m.d.comb += readout.input.payload.eq(self.read)
        return m

    def _banks(self, m: Module, issued: dict[Command, Signal], late: int) -> Value:
        """Buffer and MAC units; returns the banks' values, ``late`` clocks after the units give them."""
        config = self._config
        m.submodules.buffer = buffer = GlobalBuffer(config)
        command = self.command.payload
        m.d.comb += [
            buffer.write_en.eq(issued[Command.GBW]),
            buffer.write_entry.eq(command.entry),
            buffer.write_data.eq(command.data),
            buffer.read_en.eq(issued[Command.MAC]),
            buffer.read_entry.eq(command.entry),
        ]
        # Operands meet in the cycle after the command: the buffer's entry, and the columns from the DRAM.
        kinds = {kind: Signal(name=f"{kind.name.lower()}_operands") for kind in (Command.MAC, Command.BIAS, Command.RDM)}
        accumulator = Signal.like(command.accumulator, name="accumulator_operand")
        m.d.sync += [*(one.eq(issued[kind]) for kind, one in kinds.items()), accumulator.eq(command.accumulator)]
        values = Signal(LANE_BITS * config.banks)
        for bank in range(config.banks):
            unit = MacUnit(config)
            m.submodules[f"mac_{bank}"] = once(unit, f"mac_{config.lanes}_{config.accumulators_per_bank}_{config.accumulator}")
            m.d.comb += [
                unit.mac.eq(kinds[Command.MAC]),
                unit.load.eq(kinds[Command.BIAS]),
                unit.read.eq(kinds[Command.RDM]),
                unit.accumulator.eq(accumulator),
                unit.column.eq(self.columns.word_select(bank, LANE_BITS * config.lanes)),
                unit.buffer.eq(buffer.read_data),
                values.word_select(bank, LANE_BITS).eq(unit.value),
            ]
        for stage in range(late):
            after = Signal.like(values, name=f"values_{stage}", reset_less=True)
            m.d.sync += after.eq(values)
            values = after
        return values


def _delayed(m: Module, pulse: Value, clocks: int) -> Signal:
    """A pulse ``clocks`` clocks later, at least 1."""
    line = Signal(clocks)
    m.d.sync += line.eq(Cat(pulse, line))
    return line[-1]
