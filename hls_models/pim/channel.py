# SPDX-License-Identifier: Apache-2.0
"""The per-command reference path of a channel: macro-commands in, the cycle of every DRAM command out (architecture.md, 4.4).

``ChannelModel`` steps every command through the rule list of ``rules.py``. It knows no clock: a command's cycle is the largest of what the rules,
its data and its space allow. Times that come from outside (when a data beat was accepted by the queue, when the companion chip took a read-out) may
be appended while it runs: ``advance`` goes as far as they are known.
"""

from collections.abc import Generator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutra.hls_models.pim.channel_tables import BANKED, BEFORE, COMMANDS, DATA, FLOOR, KINDS, NEVER, SPACE, ChannelRun, Tables, refresh_phase
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.mac import READ_LATENCY
from lutra.hls_models.pim.program import Command, Macro, MacroKind
from lutra.hls_models.pim.rules import BANKS_PER_GROUP, rules
from lutra.hls_models.pim.timing import Timing
from lutra.hls_models.streams import Ready

__all__ = ["BEFORE", "COMMANDS", "DATA", "FLOOR", "SPACE", "ChannelModel", "ChannelRun", "refresh_phase"]

DECODE_CYCLES = 2
"""Last command of a macro to the first of the next: one cycle to decode it."""
ACCEPT_CYCLES = 3
"""A macro's acceptance to its first command: queue, decode, output register."""
BEAT_CYCLES = 2
"""A beat's acceptance, or a slot's release, to the command that uses it: queue, output register."""
MODIFY_CYCLES = 2
"""Read data at the pins to the write of the same bank: merge register, output register."""
ACT, ACTA, PRE, PREA, RD, WR, MAC, WRA = (int(kind) for kind in list(Command)[:8])
GBW, RDM, BIAS, MODE, REF = (int(kind) for kind in list(Command)[8:13])

Steps = Generator[None, None, None]


class ChannelModel:
    """One channel, command by command.

    Parameters
    ----------
    config, timing : sizes and preset
    index : which channel of the system (staggers the refresh)
    macros : its program
    macro_offers : cycle from which macro i (and, as one more, the end of the program) is offered; None: always
    record : keep every command for ``commands()``

    Attributes
    ----------
    data_times, release_times : appended from outside: acceptance of data beats by the queue; handshakes of read-outs towards the companion chip
    data_taken, readout_times : cycles of the commands that took beats; acceptance of read-outs by their queue (offered one cycle later)
    counts : commands issued by kind
    spent : cycles before commands by (kind, what the command waited for), index kind * BEFORE + reason; their sum is the cycle of the last command
    waiting : whose time ``advance`` stopped for: that of the next data beat, or of the next read-out to be taken
    behind : the most refreshes that were due and not done when one was issued
    done : cycle of the last command once the program has ended, else None
    """

    def __init__(
        self,
        config: PimConfig,
        timing: Timing,
        index: int = 0,
        macros: Sequence[Macro] = (),
        *,
        macro_offers: ArrayLike | None = None,
        record: bool = True,
    ) -> None:
        self.config, self.timing, self.macros = config, timing, macros
        self.record = record
        self.data_times: list[int] = []
        self.release_times: list[int] = []
        self.data_taken: list[int] = []
        self.readout_times: list[int] = []
        self.counts = [0] * KINDS
        self.spent = [0] * (KINDS * BEFORE)
        self.done: int | None = None
        self.behind = 0
        self.waiting: Literal["data", "readout"] | None = None
        self._offers = None if macro_offers is None else [int(cycle) for cycle in np.asarray(macro_offers)]
        self._log: list[int] = []
        self._tables = Tables.of(rules(config, timing))
        self._last = [NEVER] * KINDS
        self._last_group = [[NEVER] * KINDS for _ in range(-(-config.banks // BANKS_PER_GROUP))]
        self._last_bank = [[NEVER] * KINDS for _ in range(config.banks)]
        self._activates = [NEVER] * 4
        self._now = 0
        self._floor = 1  # the earliest cycle of the next command by its turn
        self._open_row = -1
        self._open = self._mode = False
        self._pending = self._claimed = 0
        self._interval = timing.cycles("tREFI")
        self._due = refresh_phase(config, timing, index) if config.refresh else 1 << 60
        self._read_cycles = timing.cycles("tCL") + timing.cycles("tBL")
        self._readout_cycles = max(timing.cycles("tCLREG") + timing.cycles("tBL"), 1 + READ_LATENCY)
        self._depth = config.companion.readout_depth
        self._steps = self._program()

    def advance(self) -> bool:
        """Runs until a time is needed that is not known yet; True when the program has ended."""
        if self.done is None:
            next(self._steps, None)
        return self.done is not None

    @property
    def now(self) -> int:
        """Cycle of the last command issued."""
        return self._now

    def commands(self) -> NDArray[np.void]:
        """(commands,) of dtype ``COMMANDS``: every command issued so far (``record`` only)."""
        names = COMMANDS.names or ()
        table = np.array(self._log, np.int64).reshape(-1, len(names))
        found = np.zeros(len(table), COMMANDS)
        for position, name in enumerate(names):
            found[name] = table[:, position]
        return found

    # ---- rules ----

    def _earliest(self, kind: int, bank: int = 0) -> int:
        """First cycle that its turn and every rule allow; ``_because`` is what it waits for."""
        t, because, last = self._floor, FLOOR, self._last
        for before, cycles in self._tables.channel[kind]:
            if last[before] + cycles > t:
                t, because = last[before] + cycles, before
        if BANKED[kind]:
            last = self._last_group[bank // BANKS_PER_GROUP]
            for before, cycles in self._tables.group[kind]:
                if last[before] + cycles > t:
                    t, because = last[before] + cycles, before
            last = self._last_bank[bank]
            for before, cycles in self._tables.bank[kind]:
                if last[before] + cycles > t:
                    t, because = last[before] + cycles, before
        if self._tables.window[kind] and self._activates[0] + self._tables.window[kind] > t:
            t, because = self._activates[0] + self._tables.window[kind], ACT
        self._because = because
        return t

    def _issue(self, kind: int, t: int, bank: int = 0, row: int = 0, column: int = 0, entry: int = 0, accumulator: int = 0) -> None:
        """The command stands in cycle ``t``."""
        self._last[kind] = t
        if BANKED[kind]:
            self._last_group[bank // BANKS_PER_GROUP][kind] = self._last_bank[bank][kind] = t
        if kind in self._tables.counted:
            self._activates = [*self._activates[1:], t]
        self._count(kind, 1, t)
        if self.record:
            self._log += (t, kind, bank, row, column, entry, accumulator)

    def _count(self, kind: int, number: int, t: int) -> None:
        self.counts[kind] += number
        self.spent[kind * BEFORE + self._because] += t - self._now
        self._now = t
        self._floor = t + 1

    def _plain(self, kind: int, bank: int = 0, accumulator: int = 0) -> None:
        """A command that waits for rules only."""
        self._issue(kind, self._earliest(kind, bank), bank, accumulator=accumulator)

    def _after(self, t: int, other: int, because: int) -> int:
        """The later of two cycles, with the reason."""
        if other > t:
            self._because = because
            return other
        return t

    # ---- rows and refresh ----

    def _refresh(self, t: int) -> None:
        self.behind = max(self.behind, (t - self._due) // self._interval + 1)
        self._issue(REF, t)
        self._due += self._interval

    def _precharge(self, t: int) -> None:
        self._issue(PREA, t)
        self._open, self._open_row = False, -1

    def _activate(self, kind: int, row: int, bank: int = 0) -> None:
        """An activate with all banks closed: refreshes that are due come first."""
        while self._due <= (t := self._earliest(kind, bank)):
            self._refresh(self._after(self._earliest(REF), self._due, FLOOR))
        self._issue(kind, t, bank, row)
        self._open = True
        self._open_row = row if kind == ACTA else -1

    def _maintain(self, until: int) -> bool:
        """While nothing else can be done before cycle ``until``: the next PREA or REF of a refresh that is due by then; False: none."""
        if self._due >= until:
            return False
        t = self._after(self._earliest(PREA if self._open else REF), self._due, DATA)
        if t >= until:
            return False
        if self._open:
            self._precharge(t)
        else:
            self._refresh(t)
        return True

    def _prologue(self, row: int, closed: bool, load: int) -> Steps:
        """Brings row (-1: none wanted), mode, accumulators and read-outs to where the body of a macro needs them."""
        switch = closed or (row >= 0 and row != self._open_row)
        early = self.config.activate_in_register_mode
        if switch and self._open:
            self._precharge(self._earliest(PREA))
        if switch and row >= 0 and not early:
            self._activate(ACTA, row)
        if self._pending:
            self._toggle(True)
            for accumulator in range(self._pending):
                yield from self._slot()
                t = self._after(self._earliest(RDM), self._free, SPACE)
                self._issue(RDM, t, accumulator=accumulator)
                self.readout_times.append(t + self._readout_cycles)
            self._pending = 0
        if switch and row >= 0 and early:
            self._activate(ACTA, row)
        for accumulator in range(load):
            self._toggle(True)
            self._plain(BIAS, accumulator=accumulator)
        self._toggle(False)

    def _toggle(self, mode: bool) -> None:
        if self._mode != mode:
            self._plain(MODE)
            self._mode = mode

    # ---- queues ----

    def _slot(self) -> Steps:
        """Claims a slot of the read-out queue; ``_free``: first cycle in which it may be used."""
        index = self._claimed - self._depth
        while index >= len(self.release_times):
            self.waiting = "readout"
            yield
        self._free = self.release_times[index] + BEAT_CYCLES if index >= 0 else 0
        self._claimed += 1

    def _beat(self) -> Steps:
        """Waits until the acceptance of the next data beat is known; ``_there``: first cycle in which it may be used."""
        index = len(self.data_taken)
        while index >= len(self.data_times):
            self.waiting = "data"
            yield
        self._there = self.data_times[index] + BEAT_CYCLES

    def _write(self, kind: int, bank: int = 0, column: int = 0, entry: int = 0) -> Steps:
        """A command that takes the next data beat."""
        yield from self._beat()
        t = self._after(self._earliest(kind, bank), self._there, DATA)
        self._issue(kind, t, bank, column=column, entry=entry)
        self.data_taken.append(t)

    # ---- macro-commands ----

    def _program(self) -> Steps:
        accepted = -1
        bodies = {
            MacroKind.MAC: self._mac,
            MacroKind.BUFFER: self._buffer,
            MacroKind.READ: self._read,
            MacroKind.WRITE: self._write_rows,
            MacroKind.SCATTER: self._scatter,
            MacroKind.MODIFY: self._modify,
        }
        for index, macro in enumerate(self.macros):
            accepted = self._accept(index, accepted)
            yield from bodies[macro.kind](macro)
        self._accept(len(self.macros), accepted)
        yield from self._prologue(-1, False, 0)
        self.done = self._now

    def _accept(self, index: int, previous: int) -> int:
        """The cycle in which a macro is accepted; refreshes while none is there."""
        offers = self._offers
        accepted = max(previous + 1, offers[index] if offers is not None and index < len(offers) else 0)
        while self._maintain(accepted + 2):
            pass
        self._floor = max(self._now + DECODE_CYCLES, accepted + ACCEPT_CYCLES)
        return accepted

    def _mac(self, macro: Macro) -> Steps:
        for i in range(macro.times):
            yield from self._mac_once(macro, i)

    def _position(self, macro: Macro, i: int) -> tuple[int, int]:
        """Row and column of repetition ``i``."""
        return divmod(macro.row * self.config.columns + macro.column + i * macro.step, self.config.columns)

    def _mac_once(self, macro: Macro, i: int) -> Steps:
        columns = self.config.columns
        row, column = self._position(macro, i)
        entry, left = macro.entry, macro.count
        yield from self._prologue(row, False, macro.load)
        while left:
            if column == columns:
                row, column = row + 1, 0
                self._precharge(self._earliest(PREA))
                self._activate(ACTA, row)
            number = min(left, columns - column)
            self._burst(number, row, column, entry, macro.accumulator)
            column, entry, left = column + number, entry + number, left - number
        self._pending = macro.read

    def _burst(self, number: int, row: int, column: int, entry: int, accumulator: int) -> None:
        """MACs of one row, each through every rule."""
        for k in range(number):
            self._issue(MAC, self._earliest(MAC), 0, row, column + k, entry + k, accumulator)

    def _buffer(self, macro: Macro) -> Steps:
        load, restart = macro.load, True
        while restart:
            yield from self._prologue(macro.row if macro.open else -1, False, load)
            load = 0
            yield from self._beat()
            restart = self._maintain(self._there)
        yield from self._fill(macro.entry, macro.count)

    def _fill(self, entry: int, count: int) -> Steps:
        """GBWs, one data beat each."""
        for k in range(count):
            yield from self._write(GBW, entry=entry + k)

    def _rows(self, macro: Macro) -> None:
        """Activates of READ and WRITE; refreshes come before the first only."""
        self._activate(ACT, macro.row, macro.bank)
        for bank in range(macro.bank + 1, macro.bank + macro.banks):
            self._issue(ACT, self._earliest(ACT, bank), bank, macro.row)

    def _close(self, macro: Macro) -> None:
        if macro.banks == 1:
            self._plain(PRE, macro.bank)
            self._open = False
        else:
            self._precharge(self._earliest(PREA))

    def _read(self, macro: Macro) -> Steps:
        yield from self._prologue(-1, True, 0)
        self._rows(macro)
        for bank in range(macro.bank, macro.bank + macro.banks):
            for column in range(macro.column, macro.column + macro.count):
                yield from self._slot()
                t = self._after(self._earliest(RD, bank), self._free, SPACE)
                self._issue(RD, t, bank, column=column)
                self.readout_times.append(t + self._read_cycles)
        self._close(macro)

    def _write_rows(self, macro: Macro) -> Steps:
        restart = True
        while restart:
            yield from self._prologue(-1, True, 0)
            self._rows(macro)
            yield from self._beat()
            restart = self._maintain(self._there)
        for bank in range(macro.bank, macro.bank + macro.banks):
            for column in range(macro.column, macro.column + macro.count):
                yield from self._write(WR, bank, column)
        self._close(macro)

    def _scatter(self, macro: Macro) -> Steps:
        for i in range(macro.times):
            row, column = self._position(macro, i)
            yield from self._open_for_data(row, i == 0)
            yield from self._write(WRA, column=column, entry=macro.element)
            self._open, self._open_row = False, -1

    def _open_for_data(self, row: int, first: bool) -> Steps:
        restart = True
        while restart:
            yield from self._prologue(-1, True, 0)
            self._activate(ACTA, row)
            yield from self._beat()
            restart = first and self._maintain(self._there)

    def _modify(self, macro: Macro) -> Steps:
        banks = range(self.config.banks)
        for i in range(macro.times):
            row, column = self._position(macro, i)
            yield from self._open_for_data(row, i == 0)
            reads = []
            for bank in banks:
                t = self._earliest(RD, bank)
                t = t if bank else self._after(t, self._there, DATA)
                self._issue(RD, t, bank, column=column)
                reads.append(t + self._read_cycles + MODIFY_CYCLES)
            for bank in banks:
                t = self._after(self._earliest(WR, bank), reads[bank], RD)
                self._issue(WR, t, bank, column=column, entry=macro.element)
            self.data_taken.append(t)
            self._precharge(self._earliest(PREA))

    # ---- a whole run with given sources and sinks ----

    def run(self, data_offers: ArrayLike | None = None, readout_ready: Ready | ArrayLike | None = None) -> ChannelRun:
        """The whole program with a data source and a read-out sink.

        Parameters
        ----------
        data_offers : cycle from which beat i is offered (int64, beats); None: always
        readout_ready : the sink's ready trace (bool, cycles), true past its end

        Raises
        ------
        ValueError : the program takes more beats than ``data_offers`` has
        """
        offers = None if data_offers is None else [int(cycle) for cycle in np.asarray(data_offers)]
        ready = readout_ready if isinstance(readout_ready, Ready) else Ready(readout_ready)
        ended = False
        while not ended:
            ended = self.advance()
            self._take_readouts(ready)
            self._offer_data(offers)
            if not ended and self.waiting == "data" and len(self.data_times) == len(self.data_taken):
                raise ValueError(f"data_offers must have more than {len(self.data_times)} beats: the program takes them all and more")
        accepted, taken, queued, released = (np.array(t, np.int64) for t in (self.data_times, self.data_taken, self.readout_times, self.release_times))
        return ChannelRun(self.commands(), accepted if offers is not None else accepted[: len(taken)], taken, queued, released, self._now)

    def _take_readouts(self, ready: Ready) -> None:
        previous = self.release_times[-1] if self.release_times else -1
        always = not len(ready.trace)
        for queued in self.readout_times[len(self.release_times) :]:
            previous = max(queued, previous) + 1
            if not always:
                previous = int(ready.next_ready(previous))
            self.release_times.append(previous)

    def _offer_data(self, offers: list[int] | None) -> None:
        """Accepts the beats whose places are known: beat i needs that of beat i - depth."""
        times, taken, depth = self.data_times, self.data_taken, self.config.companion.data_depth
        previous = times[-1] if times else -1
        for index in range(len(times), len(taken) + depth if offers is None else min(len(offers), len(taken) + depth)):
            previous = max(previous + 1, taken[index - depth] if index >= depth else 0, offers[index] if offers is not None else 0)
            times.append(previous)
