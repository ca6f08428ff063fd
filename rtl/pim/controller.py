# SPDX-License-Identifier: Apache-2.0
"""Controller of a channel: turns macro-commands into DRAM commands, each in the first cycle that every rule allows (docs/architecture.md, 4.4)."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.pim.config import LANE_BITS, PimConfig
from lutra.hls_models.pim.program import Command, MacroKind
from lutra.hls_models.pim.rules import rules
from lutra.hls_models.pim.timing import Timing
from lutra.rtl.pim.gaps import DELTA, Gaps
from lutra.rtl.pim.macros import COMMAND_BITS, command_layout, macro_layout
from lutra.rtl.streams import Queue

__all__ = ["ADJUST", "MACRO_QUEUE_DEPTH", "Controller"]

MACRO_QUEUE_DEPTH = 4
OWED_BITS = 4
PHASE_BITS = 16

ADJUST = data.StructLayout({"rule": 8, "delta": DELTA, "phase": PHASE_BITS})
"""Simulation only: ``delta`` (signed) is added to the gap of rule ``rule`` (index in ``rules``; 255: none); cycle of the first refresh, at least 3."""


PROLOGUE, ACTIVATE, ACCESS, WRITE_BACK, PRECHARGE = range(5)
"""Where a macro stands. MAC and BUFFER never leave PROLOGUE: what they want when all is in place is their body."""


class Controller(wiring.Component):
    """Issues one command per cycle at most, from registers to a register.

    A macro's first command stands on ``command`` at the earliest 3 cycles after its handshake and 2 after the last command of the macro before.
    MAC rows of 64 columns with read-out take 228 cycles each with ``gddr6-aim``.

    Parameters
    ----------
    config, timing
        Sizes, policies and the times of the rules.
    channel
        Index of the channel: its refreshes are staggered.
    adjustable
        For negative controls in simulation: ``adjust`` loosens or tightens a rule at run time and sets the cycle of the first refresh. Its beat must
        be taken in cycle 0. The channel carries the option through as a port of the same name.

    Members
    -------
    macros : stream of ``macro_layout``, 4 are queued
    command : stream of ``command_layout``, always ready
        ``valid`` for the cycle in which the command is issued.
    data : stream of V x 16 bits
        Data beats; taken in the cycle before their command.
    columns : stream of V x 16 bits
        What MODIFY's RDs returned, in order.
    readout_taken : ``In(1)``
        The companion chip took a read-out in this cycle: its slot can be claimed again.
    data_freed : ``Out(1)``
        A command with a data beat stands on ``command``: its place in the queue is free.
    modifies : ``Out(1)``
        The command belongs to a MODIFY: what its RD returns comes back to ``columns``.
    ended : ``Out(1)``
        Pulse: the program is through.
    """

    def __init__(self, config: PimConfig, timing: Timing, *, channel: int = 0, adjustable: bool = False) -> None:
        self._config, self._timing, self._channel, self._adjustable = config, timing, channel, adjustable
        column = stream.Signature(LANE_BITS * config.lanes)
        members = {
            "macros": In(stream.Signature(macro_layout(config))),
            "command": Out(stream.Signature(command_layout(config), always_ready=True)),
            "data": In(column),
            "columns": In(column),
            "readout_taken": In(1),
            "data_freed": Out(1),
            "modifies": Out(1),
            "ended": Out(1),
        }
        if adjustable:
            members["adjust"] = In(stream.Signature(ADJUST, always_ready=True))
        super().__init__(members)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        config = self._config
        m.submodules.queue = queue = Queue(shape=macro_layout(config), depth=MACRO_QUEUE_DEPTH)
        m.submodules.gaps = gaps = Gaps(banks=config.banks, rules=rules(config, self._timing), adjustable=self._adjustable)
        wiring.connect(m, wiring.flipped(self.macros), queue.input)

        # The macro at work, and where it stands.
        macro = Signal(macro_layout(config), reset_less=True)
        busy, first = Signal(), Signal(reset_less=True)  # first: none of its data beats was taken
        phase = Signal(range(5))
        row, column = Signal.like(macro.row), Signal.like(macro.column)
        bank, entry, count, times = Signal.like(macro.bank), Signal.like(macro.entry), Signal.like(macro.count), Signal.like(macro.times)
        start_row, start_column = Signal.like(macro.row), Signal.like(macro.column)
        loaded, pending, pending_end = Signal.like(macro.load), Signal.like(macro.read), Signal.like(macro.read)
        # The channel.
        some_open, all_open, mode = Signal(), Signal(), Signal()
        open_row = Signal.like(macro.row, reset_less=True)
        slots = Signal(range(config.companion.readout_depth + 1), init=config.companion.readout_depth)

        kind, legal, fire, refresh = Signal(COMMAND_BITS), gaps.legal, Signal(), Signal()
        natural, known = Signal(COMMAND_BITS), Signal()
        is_kind = {k: Signal(name=f"macro_{k.name.lower()}") for k in MacroKind}
        m.d.comb += [one.eq(macro.kind == k) for k, one in is_kind.items()]
        wants, closed_start, switch = Signal(), Signal(), Signal()
        hit = Signal()
        m.d.comb += [
            wants.eq(is_kind[MacroKind.MAC] | (is_kind[MacroKind.BUFFER] & macro.open)),
            closed_start.eq(is_kind[MacroKind.READ] | is_kind[MacroKind.WRITE] | is_kind[MacroKind.SCATTER] | is_kind[MacroKind.MODIFY]),
            hit.eq(all_open & (open_row == row)),
            switch.eq(Mux(wants, ~hit, closed_start)),
        ]

        # What comes next, refreshes apart.
        def want(command: Command) -> list[Any]:
            return [natural.eq(command), known.eq(1)]

        ended = Signal()
        steps: list[tuple[Value, Any]] = [(switch & some_open, want(Command.PREA))]
        activate = (wants & ~hit, want(Command.ACTA))
        readouts = (pending != pending_end, [natural.eq(Mux(mode, Command.RDM, Command.MODE)), known.eq(1)])
        steps += [readouts, activate] if config.activate_in_register_mode else [activate, readouts]
        steps += [
            (loaded != macro.load, [natural.eq(Mux(mode, Command.BIAS, Command.MODE)), known.eq(1)]),
            (mode, want(Command.MODE)),
            (is_kind[MacroKind.MAC], want(Command.MAC)),
            (is_kind[MacroKind.BUFFER], want(Command.GBW)),
            (is_kind[MacroKind.READ] | is_kind[MacroKind.WRITE], want(Command.ACT)),
            (is_kind[MacroKind.SCATTER] | is_kind[MacroKind.MODIFY], want(Command.ACTA)),
            (Const(1), [ended.eq(busy)]),
        ]
        with m.Switch(phase):
            with m.Case(PROLOGUE):
                _first_of(m, steps)
            with m.Case(ACTIVATE):
                m.d.comb += want(Command.ACT)
            with m.Case(ACCESS):
                access = Mux(is_kind[MacroKind.WRITE], Command.WR, Mux(is_kind[MacroKind.SCATTER], Command.WRA, Command.RD))
                m.d.comb += [natural.eq(access), known.eq(1)]
            with m.Case(WRITE_BACK):
                m.d.comb += want(Command.WR)
            with m.Default():
                single = (is_kind[MacroKind.READ] | is_kind[MacroKind.WRITE]) & (macro.bank == macro.last)
                m.d.comb += [natural.eq(Mux(single, Command.PRE, Command.PREA)), known.eq(1)]

        # What it needs beside the rules, and a refresh in its place.
        modify = is_kind[MacroKind.MODIFY]
        takes, wants_data, wants_slot, wants_column = Signal(), Signal(), Signal(), Signal()
        owed = self._owed(m, gaps, fire & (kind == Command.REF))
        writes = (natural == Command.GBW) | (natural == Command.WR) | (natural == Command.WRA)
        first_read = modify & (natural == Command.RD) & (bank == 0)
        m.d.comb += [
            wants_data.eq(writes | first_read),
            takes.eq(writes & (~modify | (bank == macro.last))),
            wants_slot.eq((natural == Command.RDM) | ((natural == Command.RD) & ~modify)),
            wants_column.eq(modify & (natural == Command.WR)),
            refresh.eq(
                owed
                & Mux(
                    busy,
                    known
                    & Mux(
                        (natural == Command.ACT) | (natural == Command.ACTA),
                        ~some_open,
                        wants_data & first & ~self.data.valid,
                    ),
                    ~queue.output.valid,
                )
            ),
            kind.eq(Mux(refresh, Mux(some_open, Command.PREA, Command.REF), natural)),
            gaps.kind.eq(kind),
            gaps.bank.eq(bank),
        ]
        go = busy & known & (~wants_data | self.data.valid) & (~wants_slot | (slots != 0)) & (~wants_column | self.columns.valid)
        m.d.comb += [
            fire.eq((refresh | go) & legal),
            gaps.fire.eq(fire),
            self.data.ready.eq(fire & ~refresh & takes),
            self.columns.ready.eq(fire & ~refresh & wants_column),
        ]
        m.d.sync += [
            slots.eq(slots + self.readout_taken - (fire & ~refresh & wants_slot)),
            self.command.valid.eq(fire),
            self.data_freed.eq(fire & ~refresh & takes),
            self.ended.eq(ended),
        ]
        with m.If(fire):
            issued = self.command.payload
            m.d.sync += [
                self.modifies.eq(modify),
                issued.kind.eq(kind),
                issued.bank.eq(bank),
                issued.row.eq(row),
                issued.column.eq(column),
                issued.entry.eq(entry),
                issued.accumulator.eq(Mux(natural == Command.RDM, pending, Mux(natural == Command.BIAS, loaded, macro.accumulator))),
                issued.element.eq(macro.element),
                issued.data.eq(Mux(modify, self._merged(macro.element, bank), self.data.payload)),
            ]

        # The channel's state.
        with m.If(fire), m.Switch(kind):
            with m.Case(Command.ACT):
                m.d.sync += some_open.eq(1)
            with m.Case(Command.ACTA):
                m.d.sync += [some_open.eq(1), all_open.eq(1), open_row.eq(row)]
            with m.Case(Command.PRE, Command.PREA, Command.WRA):
                m.d.sync += [some_open.eq(0), all_open.eq(0)]
            with m.Case(Command.MODE):
                m.d.sync += mode.eq(~mode)
            with m.Case(Command.RDM):
                m.d.sync += pending.eq(pending + 1)
            with m.Case(Command.BIAS):
                m.d.sync += loaded.eq(loaded + 1)

        # The macro's state.
        done = Signal()  # the last command of its body
        last_count, last_bank = count == 1, bank == macro.last
        next_column = Mux(column == config.columns - 1, 0, column + 1)
        next_row = row + (column == config.columns - 1)
        with m.If(fire & refresh):  # from the prologue on; what was not taken is not lost
            m.d.sync += [phase.eq(PROLOGUE), bank.eq(macro.bank)]
        with m.Elif(fire), m.Switch(natural):
            with m.Case(Command.ACT):
                m.d.sync += [phase.eq(Mux(last_bank, ACCESS, ACTIVATE)), bank.eq(Mux(last_bank, macro.bank, bank + 1))]
            with m.Case(Command.ACTA), m.If(closed_start):
                m.d.sync += phase.eq(ACCESS)
            with m.Case(Command.RD, Command.WR):
                m.d.sync += [count.eq(count - 1), column.eq(next_column)]
                with m.If(last_count):
                    m.d.sync += [count.eq(macro.count), column.eq(start_column), bank.eq(Mux(last_bank, macro.bank, bank + 1))]
                    with m.If(last_bank):
                        m.d.sync += phase.eq(Mux(modify & (phase == ACCESS), WRITE_BACK, PRECHARGE))
            with m.Case(Command.MAC):
                m.d.sync += [count.eq(count - 1), column.eq(next_column), row.eq(next_row), entry.eq(entry + 1)]
                m.d.comb += done.eq(last_count)
            with m.Case(Command.GBW):
                m.d.sync += [count.eq(count - 1), entry.eq(entry + 1)]
                m.d.comb += done.eq(last_count)
            with m.Case(Command.WRA):
                m.d.comb += done.eq(1)
            with m.Case(Command.PRE, Command.PREA):
                m.d.comb += done.eq(phase == PRECHARGE)
        with m.If(self.data.valid & self.data.ready):
            m.d.sync += first.eq(0)
        with m.If(done):
            sum_column = start_column + macro.step_columns
            over = sum_column >= config.columns
            at_column = Mux(over, sum_column - config.columns, sum_column)
            at_row = start_row + macro.step_rows + over
            m.d.sync += [
                phase.eq(PROLOGUE),
                times.eq(times - 1),
                busy.eq(times != 1),
                *(one.eq(at_row) for one in (row, start_row)),
                *(one.eq(at_column) for one in (column, start_column)),
                entry.eq(macro.entry),
                count.eq(macro.count),
                loaded.eq(0),
                pending.eq(0),
                pending_end.eq(macro.read),
            ]
        with m.If(ended):
            m.d.sync += busy.eq(0)
        m.d.comb += queue.output.ready.eq(~busy)
        with m.If(~busy & queue.output.valid):
            fresh = queue.output.payload
            m.d.sync += [busy.eq(1), first.eq(1), macro.eq(fresh), bank.eq(fresh.bank), entry.eq(fresh.entry), count.eq(fresh.count), times.eq(fresh.times)]
            m.d.sync += [loaded.eq(0), row.eq(fresh.row), start_row.eq(fresh.row), column.eq(fresh.column), start_column.eq(fresh.column)]
        return m

    def _merged(self, element: Value, bank: Value) -> Value:
        """The column that MODIFY writes back: the one read, with this bank's value of the data beat."""
        value = self.data.payload.word_select(bank, LANE_BITS)
        lanes = (self.columns.payload.word_select(lane, LANE_BITS) for lane in range(self._config.lanes))
        return Cat(Mux(element == lane, value, old) for lane, old in enumerate(lanes))

    def _owed(self, m: Module, gaps: Gaps, done: Value) -> Value:
        """Whether a refresh is due in the next cycle or before and was not done."""
        interval = self._timing.cycles("tREFI")
        config = self._config
        phase = config.refresh_phase + (self._channel * interval // config.channels if config.stagger else 0)
        owed = Signal(OWED_BITS, init=int(phase < 2 and not self._adjustable))
        first = phase - 2 if phase >= 2 else phase + interval - 2
        until = Signal(range(max(first + 1, interval, 1 << PHASE_BITS if self._adjustable else 0)), init=first)
        tick = until == 0
        if config.refresh:
            m.d.sync += [until.eq(Mux(tick, interval - 1, until - 1)), owed.eq(owed + tick - done)]
        if self._adjustable:
            chosen = Signal(ADJUST)
            with m.If(self.adjust.valid):
                m.d.sync += chosen.eq(self.adjust.payload)
                if config.refresh:  # in cycle 0
                    m.d.sync += [until.eq(self.adjust.payload.phase - 3), owed.eq(0)]
            m.d.comb += [gaps.rule.eq(chosen.rule), gaps.delta.eq(chosen.delta)]
        return owed != 0 if config.refresh else Const(0)


def _first_of(m: Module, steps: list[tuple[Value, Any]]) -> None:
    """Assigns what belongs to the first condition that holds."""
    for index, (condition, statements) in enumerate(steps):
        with m.If(condition) if index == 0 else m.Elif(condition):
            m.d.comb += statements
