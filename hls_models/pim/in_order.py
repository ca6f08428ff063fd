# SPDX-License-Identifier: Apache-2.0
"""Public AiM traces under an in-order policy like the open simulator's (arkhadem/aim_simulator: aim_DRAM_system.cpp, AiM_dram_controller.cpp).

A host engine takes one request of the trace per cycle, in order, and spreads it over channels and columns. What it waits for:

- a request is over when all its parts are in the channels' queues (33 places each), RD_MAC, RD_AF, SYNC and EOC when all channels have answered;
- a channel's queue of AiM parts takes none while plain reads or writes are queued, and the other way round;
- AiM parts are served strictly in order; plain ones (and WR_SBK, RD_SBK): ready ones first, then the oldest; writes in batches; an activated one has
  priority over all; a read that finds a write queued is answered at once.

The change between register and array access is a command that takes the place of the wanted one once that one is ready. Commands follow
``rules.py`` with the trace-only ones, but for those of our rules that the published table does not have. Channels that have had the same requests
share one model. Refresh is ours (that simulator has none): due at k * tREFI, done before the next activate, or when the channel is idle, or when
eight are due.
"""

from collections import deque
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field

from lutra.hls_models.pim.channel_tables import BANKED, KINDS, NEVER, Tables
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.program import Command
from lutra.hls_models.pim.requests import BANKS, TRACE_CHANNELS, Opcode, Request, TraceResult
from lutra.hls_models.pim.rules import BANKS_PER_GROUP, rules
from lutra.hls_models.pim.timing import Timing

__all__ = ["Opcode", "Request", "TraceResult", "run_trace"]

PLACES = 33
"""Requests a queue of a channel holds: that simulator takes one more while at most 32 are there."""
HIGH, LOW = 26, 6
"""Queued writes from which they are preferred to reads (above 0.8 * 32), and up to which they are no longer (below 0.2 * 32)."""
POSTPONED = 8
ACT, ACTA, PRE, PREA, WRA, MODE, REF = (int(Command[name]) for name in ("ACT", "ACTA", "PRE", "PREA", "WRA", "MODE", "REF"))

BLOCKING = frozenset({Opcode.RD_MAC, Opcode.RD_AF, Opcode.SYNC, Opcode.EOC})
REGISTER = frozenset({Opcode.WR_GB, Opcode.WR_BIAS, Opcode.RD_MAC, Opcode.RD_AF})
PLAIN = (Opcode.RD_SBK, Opcode.WR_SBK)
ALL_BANKS = frozenset({int(Command.WRA), int(Command.MAC), int(Command.AF), int(Command.EWMUL)})
"""Need the row open in every bank."""


@dataclass(slots=True, eq=False)
class Part:
    """A request's part for one channel and column."""

    opcode: Opcode
    kind: int
    bank: int
    row: int
    arrival: int
    register: bool
    """needs the register mode"""
    read: bool
    """has an answer"""
    missed: bool = False


Choice = tuple[Part, int, "deque[Part] | list[Part]"]
"""A request, the command that brings it forward, and its queue."""


def run_trace(requests: Sequence[Request], timing: Timing, *, refresh: bool = True) -> TraceResult:
    """The cycles of a trace.

    Parameters
    ----------
    requests : the trace, the last one EOC
    timing : preset
    refresh : the open simulator never refreshes: False compares with it

    Raises
    ------
    ValueError : the trace does not end in EOC
    """
    if not requests or requests[-1].opcode is not Opcode.EOC:
        raise ValueError("a trace must end in EOC")
    return _Host(requests, timing, refresh).run()


class _Host:
    """The engine that spreads requests over channels."""

    def __init__(self, requests: Sequence[Request], timing: Timing, refresh: bool) -> None:
        self.requests, self.timing = requests, timing
        listed = rules(PimConfig(name="trace", channels=TRACE_CHANNELS), timing, traces=True)
        tables = Tables.of(tuple(rule for rule in listed if not rule.ours or rule.before == (Command.REF,)))
        self.channels = [_Channel(tables, timing, refresh)]
        self.channels[0].members = (1 << TRACE_CHANNELS) - 1

    def run(self) -> TraceResult:
        """Cycle by cycle where something happens; others are skipped."""
        now, index, stalled = 0, 0, 0
        while True:
            waiting = any(channel.waiting for channel in self.channels)
            for channel in self.channels:
                channel.admit(now)
            if not stalled and (waiting or index <= now):  # the trace is read at one request per cycle
                request = self.requests[index]
                if not waiting:
                    stalled = self._spread(request, now)
                if not stalled and not any(channel.waiting for channel in self.channels):
                    index += 1
            for channel in self.channels:
                if channel.wake <= now + 1:
                    stalled -= channel.tick(now + 1) * channel.members.bit_count()
                    if channel.answered:
                        channel.answered = False
                        if not stalled:
                            if self.requests[index].opcode is Opcode.EOC:
                                return self._result(now + 1)
                            index += 1
            now = self._next(now, index, stalled)

    def _next(self, now: int, index: int, stalled: int) -> int:
        """The next cycle in which something can happen."""
        if any(channel.waiting and channel.admits() for channel in self.channels):
            return now + 1
        if not stalled and not any(channel.waiting for channel in self.channels):
            return max(now + 1, index)
        return max(now + 1, min(channel.wake for channel in self.channels) - 1)

    def _spread(self, request: Request, now: int) -> int:
        """Gives a request's parts to its channels; returns how many answers to wait for."""
        if not request.channels or request.opcode in (Opcode.EWADD, Opcode.HOST):
            return 0
        for channel in list(self.channels):
            common = channel.members & request.channels
            if common and common != channel.members:  # from here on they differ
                other = channel.clone()
                other.members = channel.members & ~common
                channel.members = common
                self.channels.append(other)
        for channel in self.channels:
            if channel.members & request.channels:
                channel.waiting.extend([request] * request.count)
                channel.admit(now)
        return request.channels.bit_count() * request.count if request.opcode in BLOCKING else 0

    def _result(self, cycles: int) -> TraceResult:
        totals = [sum(channel.counts[kind] * channel.members.bit_count() for channel in self.channels) for kind in range(KINDS)]
        accesses, hits = (sum(getattr(channel, name) * channel.members.bit_count() for channel in self.channels) for name in ("accesses", "hits"))
        used = sum(channel.members.bit_count() for channel in self.channels if any(channel.counts[:REF]) or any(channel.counts[REF + 1 :]))
        named = {Command(kind).name: number for kind, number in enumerate(totals) if number}
        return TraceResult(cycles, named, accesses, hits, used, self.timing.clock_ns)


@dataclass
class _Channel:
    """Queues and rows of channels that have had the same requests so far."""

    tables: Tables
    timing: Timing
    refresh: bool
    members: int = 0
    waiting: deque[Request] = field(default_factory=deque)
    """parts that found no place yet"""
    aim: deque[Part] = field(default_factory=deque)
    reads: list[Part] = field(default_factory=list)
    writes: list[Part] = field(default_factory=list)
    active: list[Part] = field(default_factory=list)
    answers: deque[tuple[int, Opcode]] = field(default_factory=deque)
    """reads under way: (cycle, opcode)"""
    written: int = -1
    """cycle in which the last write under way is over"""
    writing: bool = False
    register: bool = False
    rows: list[int] = field(default_factory=lambda: [-1] * BANKS)
    common: int | None = -1
    """the row of all banks; None: they differ"""
    last: list[int] = field(default_factory=lambda: [NEVER] * KINDS)
    last_group: list[list[int]] = field(default_factory=lambda: [[NEVER] * KINDS for _ in range(BANKS // BANKS_PER_GROUP)])
    last_bank: list[list[int]] = field(default_factory=lambda: [[NEVER] * KINDS for _ in range(BANKS)])
    activates: list[int] = field(default_factory=lambda: [NEVER] * 4)
    counts: list[int] = field(default_factory=lambda: [0] * KINDS)
    accesses: int = 0
    hits: int = 0
    wake: int = 0
    answered: bool = False
    due: int = 0

    def __post_init__(self) -> None:
        n = self.timing.cycles
        self.interval = n("tREFI")
        self.due = self.interval if self.refresh else 1 << 60
        self.latency = [1] * KINDS
        for kind, cycles in (
            (Command.RD, n("tCL") + n("tBL")),
            (Command.WR, n("tCWL") + n("tBL")),
            (Command.GBW, n("tCWLGB") + n("tBL")),
            (Command.BIAS, n("tCWLREG") + n("tBL")),
            (Command.RDM, n("tCLREG") + n("tBL")),
            (Command.RDAF, n("tCLREG") + n("tBL")),
            (Command.WRA, n("tCWL") + n("tBL") + n("tRP")),
        ):
            self.latency[kind] = cycles

    def clone(self) -> "_Channel":
        """The same state, to go its own way."""
        other = copy(self)
        for name in ("waiting", "aim", "reads", "writes", "active"):
            parts = [copy(part) if isinstance(part, Part) else part for part in getattr(self, name)]
            setattr(other, name, type(getattr(self, name))(parts))
        other.answers = deque(self.answers)
        other.rows, other.last, other.activates, other.counts = list(self.rows), list(self.last), list(self.activates), list(self.counts)
        other.last_group, other.last_bank = [list(times) for times in self.last_group], [list(times) for times in self.last_bank]
        return other

    # ---- queues ----

    def admits(self) -> bool:
        """The next waiting part would find a place."""
        if self.waiting[0].opcode is Opcode.RD_SBK:
            return not self.aim and (bool(self.writes) or len(self.reads) < PLACES)
        if self.waiting[0].opcode is Opcode.WR_SBK:
            return not self.aim and len(self.writes) < PLACES
        return not self.reads and not self.writes and len(self.aim) < PLACES

    def admit(self, now: int) -> None:
        """Takes waiting parts as long as there is room."""
        while self.waiting and self.admits():
            request = self.waiting.popleft()
            opcode = request.opcode
            kind = int(opcode.value) if isinstance(opcode.value, Command) else -1
            part = Part(opcode, kind, request.bank, request.row, now, opcode in REGISTER, opcode in BLOCKING or opcode is Opcode.RD_SBK)
            if opcode is Opcode.RD_SBK:
                if self.writes:
                    self.answers.append((now + 1, opcode))
                else:
                    self.reads.append(part)
            elif opcode is Opcode.WR_SBK:
                self.writes.append(part)
            else:
                self.aim.append(part)
            self.wake = now + 1

    # ---- one cycle ----

    def tick(self, clock: int) -> int:
        """One cycle: an answer, a command; returns the answers that the host waits for (0 or 1)."""
        done = self._answer(clock)
        self.wake = self.due if self.due > clock else 1 << 60
        changed = self._command(clock)
        if self.answers:
            ready, opcode = self.answers[0]
            barrier = opcode in (Opcode.EOC, Opcode.SYNC)
            self.wake = min(self.wake, max(clock + 1, ready, self.written + 1 if barrier else 0))
        if changed:
            self.wake = clock + 1
        return done

    def _answer(self, clock: int) -> int:
        if not self.answers:
            return 0
        ready, opcode = self.answers[0]
        if ready > clock or (opcode in (Opcode.EOC, Opcode.SYNC) and self.written >= clock):
            return 0
        self.answers.popleft()
        self.answered = opcode in BLOCKING
        return int(self.answered)

    def _command(self, clock: int) -> bool:
        """Issues the command that is next, if its time has come; else ``wake`` says when to look again."""
        if self.due <= clock and self._refreshing(clock):
            return self._maintain(clock)
        found = self._activated(clock) if self.active else None
        if found is None and self.aim:
            part = self.aim[0]
            if part.opcode in (Opcode.EOC, Opcode.SYNC):
                self.answers.append((clock, part.opcode))
                self.aim.popleft()
                return True
            kind = self._wanted(part)
            ready = self._earliest(kind, part.bank)
            if ready > clock:
                self.wake = min(self.wake, ready)
            elif self._held(kind, part.bank):
                self.wake = clock + 1
            else:
                found = (part, kind, self.aim)
        elif found is None:
            found = self._plain(clock)
        if found is None:
            return False
        self._serve(*found, clock)
        return True

    def _activated(self, clock: int) -> Choice | None:
        """The oldest ready one of the requests that have activated their row."""
        best: Choice | None = None
        for part in self.active:
            kind = self._wanted(part)
            ready = self._earliest(kind, part.bank)
            if ready > clock:
                self.wake = min(self.wake, ready)
            elif best is None or part.arrival < best[0].arrival:
                best = part, kind, self.active
        return best

    def _plain(self, clock: int) -> Choice | None:
        """Reads and writes: the oldest ready one, unless it would close the row of an activated request."""
        if not self.writing:
            self.writing = len(self.writes) >= HIGH or not self.reads
        elif len(self.writes) <= LOW and self.reads:
            self.writing = False
        looked: dict[tuple[int, int], tuple[int, int]] = {}
        queue = self.writes if self.writing else self.reads
        for part in queue:
            place = (part.bank, part.row)
            if place not in looked:
                kind = self._wanted(part)
                looked[place] = kind, self._earliest(kind, part.bank)
            kind, ready = looked[place]
            if ready <= clock:
                if self._held(kind, part.bank):
                    self.wake = clock + 1
                    return None
                return part, kind, queue
            self.wake = min(self.wake, ready)
        return None

    def _held(self, kind: int, bank: int) -> bool:
        """It would close the row that an activated request waits for."""
        return kind == PRE and any(part.bank == bank for part in self.active)

    def _serve(self, part: Part, kind: int, queue: deque[Part] | list[Part], clock: int) -> None:
        if part.register != self.register:
            kind = MODE
            self.register = not self.register
        self._issue(kind, clock, part.bank, part.row)
        if kind == part.kind:
            queue.remove(part)
            over = clock + self.latency[kind]
            if part.read:
                self.answers.append((over, part.opcode))
            elif over > self.written:
                self.written = over
            if not part.register:
                self.accesses += 1
                self.hits += not part.missed
        elif kind in (ACT, ACTA):
            part.missed = True
            if part.opcode in PLAIN:  # from now on it comes before all others
                queue.remove(part)
                self.active.append(part)

    # ---- rows and rules ----

    def _wanted(self, part: Part) -> int:
        """The command that brings a request forward."""
        if part.kind in ALL_BANKS:
            if self.common == part.row:
                return part.kind
            if self.common is None:
                return PREA if any(row not in (-1, part.row) for row in self.rows) else ACTA
            return PREA if self.common >= 0 else ACTA
        if part.bank < 0:
            return part.kind
        row = self.rows[part.bank]
        return part.kind if row == part.row else PRE if row >= 0 else ACT

    def _earliest(self, kind: int, bank: int) -> int:
        t, last = 0, self.last
        for before, cycles in self.tables.channel[kind]:
            if last[before] + cycles > t:
                t = last[before] + cycles
        if BANKED[kind]:
            for last, table in ((self.last_group[bank // BANKS_PER_GROUP], self.tables.group), (self.last_bank[bank], self.tables.bank)):
                for before, cycles in table[kind]:
                    if last[before] + cycles > t:
                        t = last[before] + cycles
        if self.tables.window[kind]:
            t = max(t, self.activates[0] + self.tables.window[kind])
        return t

    def _issue(self, kind: int, clock: int, bank: int, row: int) -> None:
        self.last[kind] = clock
        self.counts[kind] += 1
        if BANKED[kind]:
            self.last_group[bank // BANKS_PER_GROUP][kind] = self.last_bank[bank][kind] = clock
        if kind in self.tables.counted:
            self.activates = [*self.activates[1:], clock]
        if kind in (ACT, PRE):
            self.rows[bank] = row if kind == ACT else -1
            self.common = row if kind == ACT else -1
            if self.rows.count(self.common) < BANKS:
                self.common = None
        elif kind in (ACTA, PREA, WRA):
            self.common = row if kind == ACTA else -1
            self.rows = [self.common] * BANKS

    # ---- refresh ----

    def _refreshing(self, clock: int) -> bool:
        """A refresh that is due may be done now: before an activate, when idle, or when it can wait no longer."""
        if clock - self.due >= POSTPONED * self.interval:
            return True
        queues = (self.active, self.aim, self.reads, self.writes)
        parts = [queue[0] for queue in queues if queue]
        return all(part.opcode in (Opcode.EOC, Opcode.SYNC) or self._wanted(part) in (ACT, ACTA) for part in parts)

    def _maintain(self, clock: int) -> bool:
        kind = PREA if any(row >= 0 for row in self.rows) else REF
        ready = self._earliest(kind, 0)
        if ready > clock:
            self.wake = ready
            return False
        self._issue(kind, clock, 0, -1)
        if kind == REF:
            self.due += self.interval
        return True
