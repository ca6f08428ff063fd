# SPDX-License-Identifier: Apache-2.0
"""Checks a channel's command stream against every timing rule and the state that each command needs.

    report = Checker(read_timing(path), banks=16).check(commands)
    for violation in report.violations: print(violation)

Whole streams are checked rule by rule in numpy (a million commands in some seconds). Slack is the number of cycles by which a command came later than
it had to; negative in a violation. Checks of state have no slack of their own: theirs is 0 where they hold, -1 where they do not.
"""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .commands import ACTIVATES, ALL_BANK, ARRAY, REGISTER, Command, Stream, as_stream
from .rules import BUS_READS, BUS_WRITES, GROUP_BANKS, REFRESHES_BEHIND, Rule, Scope, rules
from .timing import Timing

__all__ = ["Checker", "Coverage", "Report", "Violation"]

Indices = NDArray[np.int64]
NONE = -1
KINDS = len(Command)


@dataclass(frozen=True)
class Violation:
    """One rule broken: ``bank`` is -1 where no single bank is meant; ``index`` is the command's place in the stream."""

    rule: str
    bank: int
    cycle: int
    slack: int
    index: int
    command: str
    cause: str

    def __str__(self) -> str:
        bank = "all banks" if self.bank < 0 else f"bank {self.bank}"
        return f"cycle {self.cycle}: {self.command} (command {self.index}, {bank}) breaks {self.rule} by {-self.slack}: {self.cause}"


@dataclass
class Coverage:
    """How often a rule was checked, the least slack met, and how often it was met with none."""

    checks: int = 0
    slack: int | None = None
    tight: int = 0

    def add(self, slacks: Indices) -> None:
        if len(slacks):
            least = int(slacks.min())
            self.slack = least if self.slack is None else min(self.slack, least)
            self.checks += len(slacks)
            self.tight += int((slacks == 0).sum())

    def merge(self, other: "Coverage") -> None:
        self.checks += other.checks
        self.tight += other.tight
        known = [slack for slack in (self.slack, other.slack) if slack is not None]
        self.slack = min(known) if known else None


@dataclass
class Report:
    """Violations in order of their cycles (at most ``Checker.limit`` of a rule), how many there were of each rule, coverage of each rule."""

    commands: int = 0
    violations: list[Violation] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    coverage: dict[str, Coverage] = field(default_factory=dict)

    def merge(self, other: "Report") -> None:
        """Adds another stream's report."""
        self.commands += other.commands
        self.violations += other.violations
        for name, count in other.counts.items():
            self.counts[name] = self.counts.get(name, 0) + count
        for name, coverage in other.coverage.items():
            self.coverage.setdefault(name, Coverage()).merge(coverage)

    def table(self) -> list[dict[str, int | str | None]]:
        """One row per rule: name, checks, least slack, times at slack 0, violations."""
        return [
            {"rule": name, "checks": c.checks, "least_slack": c.slack, "at_slack_0": c.tight, "violations": self.counts.get(name, 0)}
            for name, c in self.coverage.items()
        ]


class _View:
    """A stream with what several checks need of it."""

    def __init__(self, stream: Stream, banks: int) -> None:
        self.stream = stream
        self.banks = banks
        self.cycle: Indices = stream["cycle"]
        self.kind = stream["command"]
        self.size = len(stream)
        self.all_bank = np.isin(self.kind, list(ALL_BANK))
        self.bank = np.where(self.all_bank, 0, stream["bank"]).astype(np.int64)
        order = np.argsort(self.kind, kind="stable")
        ends = np.searchsorted(self.kind[order], np.arange(KINDS + 1))
        self._places = [order[ends[kind] : ends[kind + 1]] for kind in range(KINDS)]

    def places(self, kinds: frozenset[Command]) -> Indices:
        """Indices of the commands of some kinds, in order."""
        found = [self._places[kind] for kind in kinds if len(self._places[kind])]
        return np.sort(np.concatenate(found)) if len(found) > 1 else found[0] if found else np.zeros(0, np.int64)


def _latest(before: Indices, after: Indices) -> Indices:
    """Per index of ``after`` the largest index of ``before`` below it, or -1."""
    if not len(before):
        return np.full(len(after), NONE)
    place = np.searchsorted(before, after) - 1
    return np.where(place >= 0, before[np.maximum(place, 0)], NONE)


def _latest_of(before: Indices, before_unit: Indices, after: Indices, after_unit: Indices, span: int) -> Indices:
    """As ``_latest``, but of the same unit (bank or group)."""
    if not len(before):
        return np.full(len(after), NONE)
    key = before_unit * span + before
    order = np.argsort(key, kind="stable")
    place = np.searchsorted(key[order], after_unit * span + after) - 1
    found = before[order[np.maximum(place, 0)]]
    return np.where((place >= 0) & (before_unit[order[np.maximum(place, 0)]] == after_unit), found, NONE)


class Checker:
    """Rules of one channel.

    Parameters
    ----------
    timing
        Raw figures (``timing.read_timing``).
    banks
        Of the channel; four are a group.
    activate_in_register_mode
        Whether ACT, ACTA, PRE, PREA and REF are legal in register mode.
    refresh_phase
        Cycle in which this channel's first refresh is due; None: not checked for refreshes that are late.
    rows, columns
        Sizes to check addresses against.
    limit
        Violations kept of each rule; all are counted.
    """

    def __init__(
        self,
        timing: Timing,
        *,
        banks: int = 16,
        activate_in_register_mode: bool = True,
        refresh_phase: int | None = None,
        rows: int = 1 << 30,
        columns: int = 1 << 30,
        limit: int = 100,
    ) -> None:
        self.timing = timing
        self.banks = banks
        self.rules = rules(timing)
        self.activate_in_register_mode = activate_in_register_mode
        self.refresh_phase = refresh_phase
        self.rows, self.columns = rows, columns
        self.limit = limit

    def check(self, commands: Stream, *, end: int | None = None) -> Report:
        """Report on a stream that begins with all banks closed and register mode off.

        ``end``: cycle up to which refreshes must have come (default: the last command's).
        """
        view = _View(as_stream(commands), self.banks)
        report = Report(commands=view.size)
        for rule in self.rules:
            report.coverage.setdefault(rule.name, Coverage())
        if view.size and self._addresses(view, report):
            self._one_per_cycle(view, report)
            for rule in self.rules:
                self._rule(view, report, rule)
            self._window(view, report)
            self._bus(view, report)
            self._rows(view, report)
            self._mode(view, report)
        if self.refresh_phase is not None:
            self._refreshes(view, report, end)
        report.violations.sort(key=lambda violation: (violation.cycle, violation.rule))
        return report

    def _note(self, view: _View, report: Report, rule: str, after: Indices, slack: Indices, cause: "str | Indices", unit: Indices | None = None) -> None:
        """Enters slacks of the commands ``after`` under a rule. ``cause``: indices of the commands that bind them, or a text; ``unit``: banks to name."""
        report.coverage.setdefault(rule, Coverage()).add(slack)
        bad = np.flatnonzero(slack < 0)
        if not len(bad):
            return
        report.counts[rule] = report.counts.get(rule, 0) + len(bad)
        for i in bad[: self.limit].tolist():
            index = int(after[i])
            bank = NONE if view.all_bank[index] else int(view.bank[index])
            if isinstance(cause, str):
                text = cause
            else:
                source = int(cause[i])
                if bank < 0 and not view.all_bank[source]:
                    bank = int(view.bank[source])
                text = f"{Command(view.kind[source]).name} in cycle {view.cycle[source]}"
            if unit is not None:
                bank = int(unit[i])
            report.violations.append(Violation(rule, bank, int(view.cycle[index]), int(slack[i]), index, Command(view.kind[index]).name, text))

    def _addresses(self, view: _View, report: Report) -> bool:
        """Bank, row and column exist, and so does the command; else the other checks have nothing to work on."""
        limits = (
            (view.places(ACTIVATES), "row", self.rows),
            (view.places(ARRAY), "column", self.columns),
            (np.flatnonzero(~view.all_bank), "bank", self.banks),
        )
        for places, name, limit in limits:
            value = view.stream[name][places]
            self._note(view, report, "address", places, np.where((value >= 0) & (value < limit), 0, -1), f"no such {name}")
        if not self.timing.all_bank_write:
            places = view.places(frozenset({Command.WRA}))
            self._note(view, report, "all-bank write", places, np.full(len(places), -1), "this device has none")
        return "address" not in report.counts

    def _one_per_cycle(self, view: _View, report: Report) -> None:
        after = np.arange(1, view.size)
        self._note(view, report, "one command per cycle", after, np.diff(view.cycle) - 1, after - 1)

    def _rule(self, view: _View, report: Report, rule: Rule) -> None:
        before, after = view.places(rule.before), view.places(rule.after)
        if not len(before) or not len(after):
            return
        if rule.scope is Scope.CHANNEL:
            source = _latest(before, after)
        else:
            divisor = GROUP_BANKS if rule.scope is Scope.GROUP else 1
            wide_before, wide_after = view.all_bank[before], view.all_bank[after]
            # What concerns all banks meets every unit; what concerns one meets its own.
            source = _latest(before[wide_before], after)
            narrow = before[~wide_before]
            own = _latest_of(narrow, view.bank[narrow] // divisor, after, view.bank[after] // divisor, view.size)
            source = np.maximum(source, np.where(wide_after, _latest(narrow, after), own))
        bound = source != NONE
        after, source = after[bound], source[bound]
        self._note(view, report, rule.name, after, view.cycle[after] - view.cycle[source] - rule.cycles, source)

    def _window(self, view: _View, report: Report) -> None:
        """tFAW, where the device has it: five activates of single banks never fall into one window; ACTA counts unless the timing exempts it."""
        if not self.timing.four_activate_window:
            return
        kinds = frozenset({Command.ACT} if self.timing.all_bank_exempt else {Command.ACT, Command.ACTA})
        places = view.places(kinds)
        self._note(view, report, "tFAW", places[4:], view.cycle[places[4:]] - view.cycle[places[:-4]] - self.timing.cycles("tFAW"), places[:-4])

    def _bus(self, view: _View, report: Report) -> None:
        """Data of two commands are never on the pins at once."""
        parts = []
        for kinds, key in (*BUS_READS.items(), *BUS_WRITES.items()):
            places = view.places(frozenset({kinds}))
            parts.append((places, view.cycle[places] + self.timing.cycles(key)))
        places, start = np.concatenate([p for p, _ in parts]), np.concatenate([s for _, s in parts])
        order = np.argsort(start, kind="stable")
        places, start = places[order], start[order]
        slack = np.diff(start) - self.timing.cycles("tBL")
        later, earlier = np.maximum(places[1:], places[:-1]), np.minimum(places[1:], places[:-1])
        self._note(view, report, "data bus", later, slack, earlier)

    def _rows(self, view: _View, report: Report) -> None:
        """Row open and right for every access, closed for every activate, all closed for a refresh."""
        events = view.places(ACTIVATES | {Command.PRE, Command.PREA, Command.WRA})
        kind, row = view.kind[events], view.stream["row"][events]
        # state[e, bank]: the open row before event e, NONE where closed.
        latest = np.zeros((len(events) + 1, self.banks), np.int32)
        touched = view.all_bank[events][:, None] | (view.bank[events][:, None] == np.arange(self.banks))
        latest[1:] = np.where(touched, np.arange(1, len(events) + 1, dtype=np.int32)[:, None], 0)
        np.maximum.accumulate(latest, axis=0, out=latest)
        open_row = np.concatenate([[NONE], np.where(np.isin(kind, list(ACTIVATES)), row, NONE)])
        state = open_row[latest]
        same = (state == state[:, :1]).all(axis=1)
        epoch = np.searchsorted(events, np.arange(view.size))

        def hold(name: str, after: Indices, fine: NDArray[np.bool_], cause: str) -> None:
            self._note(view, report, name, after, np.where(fine, 0, -1), cause)

        wide = view.places(ARRAY & ALL_BANK)
        first = state[epoch[wide], 0]
        hold("row open", wide, same[epoch[wide]] & (first != NONE), "not all banks have one row open")
        single = view.places(ARRAY - ALL_BANK)
        own = state[epoch[single], view.bank[single]]
        hold("row open", single, own != NONE, "the bank has no open row")
        access, opened = np.concatenate([wide, single]), np.concatenate([first, own])
        meant = view.stream["row"][access]
        known = (meant != NONE) & (opened != NONE)
        hold("row right", access[known], (meant == opened)[known], "another row is open")
        acts = view.places(frozenset({Command.ACT}))
        hold("bank closed", acts, state[epoch[acts], view.bank[acts]] == NONE, "a row is open")
        everything = view.places(frozenset({Command.ACTA, Command.REF}))
        closed = (state[epoch[everything]] == NONE).all(axis=1)
        self._note(view, report, "bank closed", everything, np.where(closed, 0, -1), "a row is open", unit=(state[epoch[everything]] != NONE).argmax(axis=1))

    def _mode(self, view: _View, report: Report) -> None:
        """MODE toggles register mode, which starts off."""
        register = np.searchsorted(view.places(frozenset({Command.MODE})), np.arange(view.size)) % 2 == 1
        inside, outside = view.places(REGISTER), view.places(ARRAY | {Command.GBW})
        self._note(view, report, "register mode", inside, np.where(register[inside], 0, -1), "register mode is off")
        self._note(view, report, "register mode", outside, np.where(register[outside], -1, 0), "register mode is on")
        if not self.activate_in_register_mode:
            rows = view.places(frozenset({Command.ACT, Command.ACTA, Command.PRE, Command.PREA, Command.REF}))
            self._note(view, report, "register mode", rows, np.where(register[rows], -1, 0), "register mode is on, where rows stay as they are")

    def _refreshes(self, view: _View, report: Report, end: int | None) -> None:
        """Refresh k, due at phase + k * tREFI, comes before nine are missing, and never more than eight ahead."""
        places = view.places(frozenset({Command.REF}))
        cycles = view.cycle[places]
        order = np.arange(len(places), dtype=np.int64)
        behind = self._due(order + REFRESHES_BEHIND) - cycles
        ahead = (cycles - self._due(order - REFRESHES_BEHIND))[REFRESHES_BEHIND:]
        self._note(view, report, "refreshes behind", places, behind, "more than 8 refreshes behind those due")
        self._note(view, report, "refreshes ahead", places[REFRESHES_BEHIND:], ahead, "more than 8 refreshes ahead of those due")
        last = end if end is not None else int(view.cycle[-1]) if view.size else 0
        limit = int(self._due(np.array([len(places) + REFRESHES_BEHIND]))[0])
        if limit < last:
            report.counts["refreshes behind"] = report.counts.get("refreshes behind", 0) + 1
            report.violations.append(Violation("refreshes behind", NONE, last, limit - last, view.size, "end", "more than 8 refreshes behind those due"))

    def _due(self, k: Indices) -> Indices:
        """Cycles in which refreshes ``k`` are due: whole cycles of k * tREFI in exact nanoseconds, so that nothing drifts."""
        interval = self.timing.ns["tREFI"] / self.timing.clock
        return (self.refresh_phase or 0) + k * interval.numerator // interval.denominator
