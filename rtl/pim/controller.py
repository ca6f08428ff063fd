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

__all__ = ["ADJUST", "MACRO_QUEUE_DEPTH", "PHASE_BITS", "Controller"]

MACRO_QUEUE_DEPTH = 4
OWED_BITS = 8
PHASE_BITS = 16

ADJUST = data.StructLayout({"rule": 8, "delta": DELTA, "phase": PHASE_BITS})
"""``delta`` (signed) is added to the gap of rule ``rule`` (index in ``rules``; 255: none); cycle of the first refresh, at least 3."""

PROLOGUE, ACTIVATE, ACCESS, WRITE_BACK, PRECHARGE = range(5)
"""Where a macro stands. MAC and BUFFER never leave PROLOGUE: what they want when all is in place is their body."""


class _State:
    """Registers of a controller, and what one cycle decides."""

    def __init__(self, config: PimConfig) -> None:
        # The macro at work, and where it stands.
        self.macro = macro = Signal(macro_layout(config), reset_less=True)
        self.busy = Signal()
        self.first = Signal(reset_less=True)  # none of its data beats was taken
        self.phase = Signal(range(5))
        self.row, self.start_row = Signal.like(macro.row, name="row"), Signal.like(macro.row, name="start_row")
        self.column, self.start_column = Signal.like(macro.column, name="column"), Signal.like(macro.column, name="start_column")
        self.bank, self.entry = Signal.like(macro.bank, name="bank"), Signal.like(macro.entry, name="entry")
        self.count, self.times = Signal.like(macro.count, name="count"), Signal.like(macro.times, name="times")
        self.loaded = Signal.like(macro.load, name="loaded")
        # The channel.
        self.some_open, self.all_open, self.mode = Signal(), Signal(), Signal()
        self.open_row = Signal.like(macro.row, name="open_row", reset_less=True)
        # Read-outs that are pending: the next one, and their end.
        self.pending, self.pending_end = (
            Signal.like(macro.read, name="pending"),
            Signal.like(macro.read, name="pending_end"),
        )  # read-outs: next one, and their end
        self.slots = Signal(range(config.companion.readout_depth + 1), init=config.companion.readout_depth)
        # This cycle: what the macro would do, if anything; or a refresh (or the precharge before it) in its place; or nothing more.
        self.natural, self.known = Signal(COMMAND_BITS), Signal()
        self.refresh, self.fire, self.ended = Signal(), Signal(), Signal()
        self.kind = Signal(COMMAND_BITS)
        self.takes, self.claims, self.merges = Signal(), Signal(), Signal()  # a data beat, a slot, a column read before

    def does(self, *kinds: MacroKind) -> Value:
        """Whether the macro is of one of these kinds."""
        return Cat(self.macro.kind == kind for kind in kinds).any()

    def issues(self, *commands: Command) -> Value:
        """Whether what the macro would do is one of these."""
        return Cat(self.natural == command for command in commands).any()


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
        s = _State(config)
        self._choose(m, s)
        self._decide(m, s, self._owed(m, gaps, s.fire & (s.kind == Command.REF)), gaps.legal, ~queue.output.valid)
        m.d.comb += [gaps.kind.eq(s.kind), gaps.bank.eq(s.bank), gaps.fire.eq(s.fire)]
        self._issue(m, s)
        self._follow_channel(m, s)
        self._follow_macro(m, s)

        m.d.comb += queue.output.ready.eq(~s.busy)
        with m.If(s.ended):
            m.d.sync += s.busy.eq(0)
        with m.If(~s.busy & queue.output.valid):
            fresh = queue.output.payload
            m.d.sync += [
                *(one.eq(1) for one in (s.busy, s.first)),
                *(one.eq(fresh.row) for one in (s.row, s.start_row)),
                *(one.eq(fresh.column) for one in (s.column, s.start_column)),
                *(getattr(s, name).eq(fresh[name]) for name in ("bank", "entry", "count", "times")),
                s.macro.eq(fresh),
                s.loaded.eq(0),
            ]
        return m

    def _choose(self, m: Module, s: _State) -> None:
        """What the macro would do next, whatever holds it back."""
        macro = s.macro
        wants, closed, hit, switch = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            wants.eq(s.does(MacroKind.MAC) | (s.does(MacroKind.BUFFER) & macro.open)),
            closed.eq(s.does(MacroKind.READ, MacroKind.WRITE, MacroKind.SCATTER, MacroKind.MODIFY)),
            hit.eq(s.all_open & (s.open_row == s.row)),
            switch.eq(Mux(wants, ~hit, closed)),
        ]
        activate = (wants & ~hit, Command.ACTA)
        readouts = (s.pending != s.pending_end, Mux(s.mode, Command.RDM, Command.MODE))
        steps: list[tuple[Value, Value | Command]] = [
            (switch & s.some_open, Command.PREA),
            *((readouts, activate) if self._config.activate_in_register_mode else (activate, readouts)),
            (s.loaded != macro.load, Mux(s.mode, Command.BIAS, Command.MODE)),
            (s.mode, Command.MODE),
            (s.does(MacroKind.MAC), Command.MAC),
            (s.does(MacroKind.BUFFER), Command.GBW),
            (s.does(MacroKind.READ, MacroKind.WRITE), Command.ACT),
            (s.does(MacroKind.SCATTER, MacroKind.MODIFY), Command.ACTA),
        ]
        single = s.does(MacroKind.READ, MacroKind.WRITE) & (macro.bank == macro.last)
        later = {
            ACTIVATE: Command.ACT,
            ACCESS: Mux(s.does(MacroKind.WRITE), Command.WR, Mux(s.does(MacroKind.SCATTER), Command.WRA, Command.RD)),
            WRITE_BACK: Command.WR,
            PRECHARGE: Mux(single, Command.PRE, Command.PREA),
        }
        with m.Switch(s.phase):
            with m.Case(PROLOGUE):
                for index, (condition, command) in enumerate(steps):
                    with m.If(condition) if index == 0 else m.Elif(condition):
                        m.d.comb += [s.natural.eq(command), s.known.eq(s.busy)]
                with m.Else():  # END
                    m.d.comb += s.ended.eq(s.busy)
            for phase, command in later.items():
                with m.Case(phase):
                    m.d.comb += [s.natural.eq(command), s.known.eq(s.busy)]

    def _decide(self, m: Module, s: _State, owed: Value, legal: Value, idle: Value) -> None:
        """What is issued next, if anything: the macro's command, if all that it needs is there, or a refresh that may come before."""
        modify = s.does(MacroKind.MODIFY)
        writes = s.issues(Command.GBW, Command.WR, Command.WRA)
        needs_beat = writes | (modify & s.issues(Command.RD) & (s.bank == 0))
        activates = s.issues(Command.ACT, Command.ACTA)
        waits = needs_beat & s.first & ~self.data.valid
        go = s.known & (~needs_beat | self.data.valid) & (~s.claims | (s.slots != 0)) & (~s.merges | self.columns.valid)
        m.d.comb += [
            s.takes.eq(writes & (~modify | (s.bank == s.macro.last))),
            s.claims.eq(s.issues(Command.RDM) | (s.issues(Command.RD) & ~modify)),
            s.merges.eq(modify & s.issues(Command.WR)),
            s.refresh.eq(owed & Mux(s.busy, s.known & Mux(activates, ~s.some_open, waits), idle)),
            s.kind.eq(Mux(s.refresh, Mux(s.some_open, Command.PREA, Command.REF), s.natural)),
            s.fire.eq((s.refresh | go) & legal),
        ]

    def _issue(self, m: Module, s: _State) -> None:
        """The command and all that goes with it."""
        own = s.fire & ~s.refresh
        m.d.comb += [self.data.ready.eq(own & s.takes), self.columns.ready.eq(own & s.merges)]
        m.d.sync += [
            s.slots.eq(s.slots + self.readout_taken - (own & s.claims)),
            self.command.valid.eq(s.fire),
            self.data_freed.eq(own & s.takes),
            self.ended.eq(s.ended),
        ]
        # What MODIFY writes back: the column that it read, with this bank's value of the data beat.
        modify, issued = s.does(MacroKind.MODIFY), self.command.payload
        value = self.data.payload.word_select(s.bank, LANE_BITS)
        lanes = (self.columns.payload.word_select(lane, LANE_BITS) for lane in range(self._config.lanes))
        merged = Cat(Mux(s.macro.element == lane, value, old) for lane, old in enumerate(lanes))
        with m.If(s.fire):
            m.d.sync += [
                *(issued[name].eq(getattr(s, name)) for name in ("kind", "bank", "row", "column", "entry")),
                issued.accumulator.eq(Mux(s.issues(Command.RDM), s.pending, Mux(s.issues(Command.BIAS), s.loaded, s.macro.accumulator))),
                issued.element.eq(s.macro.element),
                issued.data.eq(Mux(modify, merged, self.data.payload)),
                self.modifies.eq(modify),
            ]

    def _follow_channel(self, m: Module, s: _State) -> None:
        """Rows, mode and registers after the command."""
        with m.If(s.fire), m.Switch(s.kind):
            with m.Case(Command.ACT):
                m.d.sync += s.some_open.eq(1)
            with m.Case(Command.ACTA):
                m.d.sync += [s.some_open.eq(1), s.all_open.eq(1), s.open_row.eq(s.row)]
            with m.Case(Command.PRE, Command.PREA, Command.WRA):
                m.d.sync += [s.some_open.eq(0), s.all_open.eq(0)]
            with m.Case(Command.MODE):
                m.d.sync += s.mode.eq(~s.mode)
            with m.Case(Command.RDM):
                m.d.sync += s.pending.eq(s.pending + 1)
            with m.Case(Command.BIAS):
                m.d.sync += s.loaded.eq(s.loaded + 1)

    def _follow_macro(self, m: Module, s: _State) -> None:
        """Where the macro stands after the command."""
        macro, config = s.macro, self._config
        done = Signal()  # the last command of its body
        last_count, last_bank, last_column = s.count == 1, s.bank == macro.last, s.column == config.columns - 1
        next_bank = s.bank.eq(Mux(last_bank, macro.bank, s.bank + 1))
        onwards = [s.count.eq(s.count - 1), s.entry.eq(s.entry + 1), s.column.eq(Mux(last_column, 0, s.column + 1)), s.row.eq(s.row + last_column)]
        with m.If(s.fire & s.refresh):  # from the prologue on
            m.d.sync += [s.phase.eq(PROLOGUE), s.bank.eq(macro.bank)]
        with m.Elif(s.fire), m.Switch(s.natural):
            with m.Case(Command.ACT):
                m.d.sync += [s.phase.eq(Mux(last_bank, ACCESS, ACTIVATE)), next_bank]
            with m.Case(Command.ACTA), m.If(s.does(MacroKind.SCATTER, MacroKind.MODIFY)):
                m.d.sync += s.phase.eq(ACCESS)
            with m.Case(Command.RD, Command.WR):
                m.d.sync += onwards
                with m.If(last_count):
                    m.d.sync += [s.count.eq(macro.count), s.column.eq(s.start_column), s.row.eq(s.start_row), next_bank]
                    with m.If(last_bank):
                        m.d.sync += s.phase.eq(Mux(s.does(MacroKind.MODIFY) & (s.phase == ACCESS), WRITE_BACK, PRECHARGE))
            with m.Case(Command.MAC):
                m.d.sync += onwards
                m.d.comb += done.eq(last_count)
            with m.Case(Command.GBW):  # its row stays
                m.d.sync += onwards[:2]
                m.d.comb += done.eq(last_count)
            with m.Case(Command.WRA):
                m.d.comb += done.eq(1)
            with m.Case(Command.PRE, Command.PREA):
                m.d.comb += done.eq(s.phase == PRECHARGE)
        with m.If(self.data.valid & self.data.ready):
            m.d.sync += s.first.eq(0)
        with m.If(done):
            column = s.start_column + macro.step_columns
            over = column >= config.columns
            m.d.sync += [
                s.phase.eq(PROLOGUE),
                s.busy.eq(s.times != 1),
                s.times.eq(s.times - 1),
                *(one.eq(s.start_row + macro.step_rows + over) for one in (s.row, s.start_row)),
                *(one.eq(Mux(over, column - config.columns, column)) for one in (s.column, s.start_column)),
                s.entry.eq(macro.entry),
                s.count.eq(macro.count),
                s.loaded.eq(0),
                s.pending.eq(0),
                s.pending_end.eq(macro.read),
            ]

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
