# SPDX-License-Identifier: Apache-2.0
"""A channel in closed form: the cycles of ``ChannelModel`` without stepping every command (architecture.md, 4.4).

Two facts make it exact, and the property tests hold it against the per-command path:

- **Runs.** Of n MACs (GBWs) in a row the first meets every rule. For the others only the rule from its own kind is left, since no other command lies
  between: MAC k stands at first + k * gap, GBW k at max(GBW k-1 + gap, its beat).
- **Repetitions.** What a command may do depends on the times of earlier ones relative to now, and on those only as far back as the longest rule that
  starts from them (the *state*). If a repetition of a MAC macro begins and ends in the same state, without a refresh and without waiting for a slot,
  the next one is the same, one period later: proven once per state, then multiplied, up to the next refresh or the next slot that is not free.
  A repetition is as many bursts as bring the column back to where it was: ``columns / gcd(step, columns)``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutra.hls_models.pim.channel import ACTA, BEAT_CYCLES, BEFORE, COMMANDS, DATA, FLOOR, GBW, MAC, REF, SPACE, ChannelModel, Steps
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.program import Command, Macro
from lutra.hls_models.pim.timing import Timing

__all__ = ["BurstChannel"]

FIELDS = COMMANDS.names or ()
UNKNOWN = object()


@dataclass(frozen=True, slots=True)
class Repetition:
    """A proven repetition; cycles are relative to ``start``, that of the command before it."""

    start: int
    row: int
    period: int
    activate: int | None
    """the last activate that a refresh could come before"""
    readouts: tuple[int, ...]
    """its RDMs"""
    counts: tuple[tuple[int, int], ...]
    spent: tuple[tuple[int, int], ...]
    log: tuple[int, int]
    """its part of the log"""


class BurstChannel(ChannelModel):
    """A channel with the cycles of ``ChannelModel``, in closed form; the same parameters, methods and attributes.

    Attributes
    ----------
    repetitions : how many were jumped over
    """

    def __init__(
        self,
        config: PimConfig,
        timing: Timing,
        index: int = 0,
        macros: Sequence[Macro] = (),
        *,
        macro_offers: ArrayLike | None = None,
        record: bool = False,
    ) -> None:
        super().__init__(config, timing, index, macros, macro_offers=macro_offers, record=record)
        self._reach = [0] * len(Command)  # the longest rule that starts from a kind
        for entries in self._tables.channel:
            for before, cycles in entries:
                self._reach[before] = max(self._reach[before], cycles)
        self._window_reach = max(self._tables.window)
        self._gap = [max([1, *(cycles for before, cycles in self._tables.channel[kind] if before == kind)]) for kind in range(len(Command))]
        self._proven: dict[tuple[int, ...], Repetition | None] = {}  # None: ends in another state
        self._runs: dict[int, tuple[int, int]] = {}  # entry of the log -> (number, gap)
        self._repeats: list[tuple[int, ...]] = []  # (place in the log, first, last, times, cycle, period, row, rows)
        self._checked: int | None = None
        self.repetitions = 0

    # ---- runs ----

    def _burst(self, number: int, row: int, column: int, entry: int, accumulator: int) -> None:
        self._issue(MAC, self._earliest(MAC), 0, row, column, entry, accumulator)
        if number > 1:
            gap = self._gap[MAC]
            self._because = MAC if gap > 1 else FLOOR
            if self.record:
                self._runs[len(self._log) // len(FIELDS) - 1] = (number, gap)
            self._count(MAC, number - 1, self._now + (number - 1) * gap)
            self._last[MAC] = self._now

    def _fill(self, entry: int, count: int) -> Steps:
        yield from self._write(GBW, entry=entry)
        gap, taken, times, t = self._gap[GBW], self.data_taken, self.data_times, self._now
        late = 0  # cycles that the data cost
        for k in range(1, count):
            index = len(taken)
            while index >= len(times):
                self.waiting = "data"
                yield
            there = times[index] + BEAT_CYCLES
            if there > t + gap:
                late += there - t
                t = there
            else:
                t += gap
            taken.append(t)
            if self.record:
                self._log += (t, GBW, 0, 0, 0, entry + k, 0)
        if count > 1:
            self.spent[GBW * BEFORE + DATA] += late
            self.spent[GBW * BEFORE + (GBW if gap > 1 else FLOOR)] -= late
            self._because = GBW if gap > 1 else FLOOR
            self._count(GBW, count - 1, t)
            self._last[GBW] = t

    # ---- repetitions ----

    def _activate(self, kind: int, row: int, bank: int = 0) -> None:
        super()._activate(kind, row, bank)
        self._checked = self._now

    def _key(self, macro: Macro, done: int) -> tuple[int, ...]:
        """What the cycles of the next bursts of a macro depend on; times of earlier commands relative to now, as far back as a rule reaches."""
        now, window = self._now, self._window_reach
        row, column = self._position(macro, done)
        opened = self._open_row - row if self._open_row >= 0 else -1 << 30
        past = [max(last - now, -reach) for last, reach in zip(self._last, self._reach, strict=True)]
        if window:
            past += [max(last - now, -window) for last in self._activates]
        names = (macro.entry, macro.accumulator) if self.record else ()
        return (column, opened, self._pending, self._floor - now, macro.count, macro.load, macro.read, macro.step, *names, *past)

    def _mac(self, macro: Macro) -> Steps:
        bursts = self.config.columns // gcd(macro.step, self.config.columns)
        done = 0
        while done < macro.times:
            if macro.times - done <= bursts:
                yield from self._mac_once(macro, done)
                done += 1
                continue
            key = self._key(macro, done)
            found = self._proven.get(key, UNKNOWN)
            if isinstance(found, Repetition) and (jumped := self._jump(found, macro, done, (macro.times - done) // bursts)):
                done += jumped * bursts
                continue
            if found is UNKNOWN:
                yield from self._prove(macro, done, bursts, key)
            else:
                for i in range(done, done + bursts):
                    yield from self._mac_once(macro, i)
            done += bursts

    def _prove(self, macro: Macro, done: int, bursts: int, key: tuple[int, ...]) -> Steps:
        """Steps one repetition; kept if it ends as it began."""
        start, readouts, counts, spent, first = self._now, len(self.readout_times), list(self.counts), list(self.spent), len(self._log)
        self._checked = None
        for i in range(done, done + bursts):
            yield from self._mac_once(macro, i)
        took = _differences(self.spent, spent)
        if self.counts[REF] > counts[REF] or any(place % BEFORE == SPACE for place, _ in took):
            return  # nothing is known: it was disturbed
        self._proven[key] = None
        if key == self._key(macro, done + bursts):
            self._proven[key] = Repetition(
                start=start,
                row=self._position(macro, done)[0],
                period=self._now - start,
                activate=None if self._checked is None else self._checked - start,
                readouts=tuple(t - self._readout_cycles - start for t in self.readout_times[readouts:]),
                counts=_differences(self.counts, counts),
                spent=took,
                log=(first, len(self._log)),
            )

    def _jump(self, found: Repetition, macro: Macro, done: int, times: int) -> int:
        """Does up to ``times`` repetitions at once; returns how many: none of them is refreshed or waits for a slot."""
        period, now = found.period, self._now
        if found.activate is not None:
            times = min(times, (self._due - 1 - now - found.activate) // period + 1)
        times = self._free_slots(found, times)
        if times <= 0:
            return 0
        first = [now + t + self._readout_cycles for t in found.readouts]
        self.readout_times += [t + j * period for j in range(times) for t in first]
        self._claimed += times * len(first)
        for kind, number in found.counts:
            self.counts[kind] += number * times
        for place, cycles in found.spent:
            self.spent[place] += cycles * times
        self.repetitions += times
        shift = times * period
        self._last = [last + shift for last in self._last]  # those outside of it lie beyond every rule's reach before and after
        self._activates = [last + shift for last in self._activates]
        self._now += shift
        self._floor += shift
        row = self._position(macro, done)[0]
        rows = macro.step * self.config.columns // gcd(macro.step, self.config.columns) // self.config.columns
        self._open_row += times * rows
        if self.record:
            self._repeats.append((len(self._log), *found.log, times, now - found.start, period, row - found.row, rows))
        return times

    def _free_slots(self, found: Repetition, times: int) -> int:
        """How many repetitions find every slot free when they need it, as far as is known."""
        releases, readouts = self.release_times, found.readouts
        index, start = self._claimed - self._depth, self._now
        for done in range(times):
            for t in readouts:
                if index >= 0 and (index >= len(releases) or releases[index] + BEAT_CYCLES > start + t):
                    return done
                index += 1
            start += found.period
        return times

    # ---- the log, written out ----

    def commands(self) -> NDArray[np.void]:
        """(commands,) of dtype ``COMMANDS``: every command, runs and repetitions written out (``record`` only)."""
        plain = super().commands()
        width = len(FIELDS)
        number, gap = np.ones(len(plain), np.int64), np.ones(len(plain), np.int64)
        for entry, run in self._runs.items():
            number[entry], gap[entry] = run
        parts, begin = [np.arange(0)], 0
        cycles, rows = [np.arange(0)], [np.arange(0)]
        for at, first, last, times, cycle, period, row, step in [*self._repeats, (len(plain) * width, 0, 0, 0, 0, 0, 0, 0)]:
            parts += [np.arange(begin, at // width), np.tile(np.arange(first // width, last // width), times)]
            length, repetition = at // width - begin, np.repeat(np.arange(times), (last - first) // width)
            cycles += [np.zeros(length, np.int64), cycle + repetition * period]
            rows += [np.zeros(length, np.int64), row + repetition * step]
            begin = at // width
        order = np.concatenate(parts)
        within = np.concatenate([np.arange(0), *(np.arange(n) for n in number[order])])
        found = np.repeat(plain[order], number[order])
        found["cycle"] += np.repeat(np.concatenate(cycles), number[order]) + within * np.repeat(gap[order], number[order])
        moves = np.isin(found["command"], (ACTA, MAC))
        found["row"] += np.where(moves, np.repeat(np.concatenate(rows), number[order]), 0).astype(np.int32)
        for name in ("column", "entry"):
            found[name] += within.astype(np.int16)
        return found


def _differences(after: list[int], before: list[int]) -> tuple[tuple[int, int], ...]:
    return tuple((place, a - b) for place, (a, b) in enumerate(zip(after, before, strict=True)) if a != b)
