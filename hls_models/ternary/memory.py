# SPDX-License-Identifier: Apache-2.0
"""The memory behind a ternary core that does not hold its model on chip: its parameters, and the clock cycles of its beats (docs/architecture.md, 5.2).

One server moves a wide beat, 16 bytes from each port, in every clock that is a *slot*. Reads are served in the order of their requests; a beat that is
written takes the slot of its clock. All ports advance in lockstep.
"""

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lutra.hls_models.config import Config
from lutra.hls_models.ternary.repetition import Moments

__all__ = ["DELIVER", "PORT_BYTES", "REQUEST", "RESPONSE", "WRITE", "MemoryConfig", "MemoryTiming", "Slots", "WriterTiming"]

Cycles = NDArray[np.int64]

PORT_BYTES = 16
"""Bytes of a port: AXI4 of 128 bits."""

REQUEST = 1
"""From the handshake of a request on the core's ``read`` stream to its address on all ports, where the memory takes it at once."""

DELIVER = 2
"""From a beat on the ports to the handshake of the core's ``data`` stream: the ports' queues, the joined beat."""

WRITE = 2
"""From the handshake of a row on ``AxiWriter.row`` to its first written beat on the port: the row's place (a product, a sum), the address."""

MAX_RATE = 1024
"""Of both numbers of a rate: how finely it can be set."""

RESPONSE = 1
"""From the last written beat's response to ``AxiWriter.idle``: the count of beats without one."""


class MemoryConfig(Config):
    """A shared memory and the ports to it."""

    ports: int = Field(4, ge=1, le=8, description="AXI4 read ports of 128 bits, data striped over them; there is one write port")
    burst_beats: int = Field(64, ge=1, le=256, description="beats per burst at most; a burst does not cross a multiple of it, so of 4 KB per port")
    outstanding: int = Field(8, ge=1, le=64, description="bursts whose data are on their way, at most")
    latency: int = Field(64, ge=2, le=1023, description="clocks from a burst's address to its first beat at the earliest")
    write_latency: int = Field(32, ge=1, le=1023, description="clocks from a written beat to its response")
    rate_numerator: int = Field(1, ge=1, le=MAX_RATE, description="of the share of clocks that move a beat")
    rate_denominator: int = Field(1, ge=1, le=MAX_RATE, description="of the share of clocks that move a beat")
    refresh_period: int = Field(0, ge=0, le=1 << 20, description="clocks from one refresh to the next; 0: none is visible at the ports")
    refresh_window: int = Field(0, ge=0, le=1 << 20, description="clocks of a refresh, the first ones of a period, in which nothing moves")

    @property
    def beat_bytes(self) -> int:
        """Bytes of a wide beat: one from each port."""
        return self.ports * PORT_BYTES

    @property
    def share(self) -> float:
        """Share of clocks in which a beat can move."""
        share = self.rate_numerator / self.rate_denominator
        return share * (1 - self.refresh_window / self.refresh_period) if self.refresh_period else share

    @property
    def uniform(self) -> bool:
        """Every clock is a slot, so that cycles do not depend on when a pass starts."""
        return self.rate_numerator == self.rate_denominator and not self.refresh_window

    def bandwidth(self, clock_hz: float) -> float:
        """Bytes per second."""
        return clock_hz * self.beat_bytes * self.share

    def least_cycles(self, beats: int) -> int:
        """No ``beats`` beats move in fewer clocks, whichever slot they begin with; of rate and refresh the one that holds them back more counts alone."""
        by_rate = (beats - 1) * self.rate_denominator // self.rate_numerator + 1
        if not self.refresh_window:
            return by_rate
        return max(by_rate, -(-beats * self.refresh_period // (self.refresh_period - self.refresh_window)) - self.refresh_window)

    def at_most(self, bytes_per_second: float, clock_hz: float) -> "MemoryConfig":
        """Itself, or where that moves more the same ports at the next lower rate that does not."""
        asked = round(self.bandwidth(clock_hz))
        if asked <= bytes_per_second:
            return self
        rate = Fraction(self.rate_numerator, self.rate_denominator) * Fraction(bytes_per_second) / asked
        near = rate.limit_denominator(MAX_RATE)
        if near > rate or not near:
            near = Fraction(max(1, int(rate * MAX_RATE)), MAX_RATE)
        return self.model_copy(update={"rate_numerator": near.numerator, "rate_denominator": near.denominator})

    def is_slot(self, cycle: int) -> bool:
        """Whether a beat can move in clock ``cycle``, counted from reset."""
        if self.refresh_period and cycle % self.refresh_period < self.refresh_window:
            return False
        return cycle * self.rate_numerator % self.rate_denominator < self.rate_numerator

    @model_validator(mode="after")
    def _consistent(self) -> "MemoryConfig":
        if self.burst_beats & (self.burst_beats - 1):
            raise ValueError(f"burst_beats must be a power of two, not {self.burst_beats}; nearest: {1 << self.burst_beats.bit_length() - 1}")
        if self.rate_numerator > self.rate_denominator:
            raise ValueError(f"rate_numerator must be at most rate_denominator = {self.rate_denominator}, not {self.rate_numerator}")
        if self.refresh_window and self.refresh_window >= self.refresh_period:
            raise ValueError(f"refresh_window must be below refresh_period = {self.refresh_period}, not {self.refresh_window}")
        return self


class Slots:
    """The clocks of a memory in which a beat can move, by closed forms; clocks and slots are counted from reset, in scalars or arrays of any shape."""

    def __init__(self, config: MemoryConfig) -> None:
        self._config = config
        self._every = config.uniform
        self._starts: Cycles = np.zeros(1, np.int64)  # slots before each refresh period

    def _rate(self, cycle: Any) -> Any:
        """Clocks before ``cycle`` that the rate alone lets pass: those in which floor(t * numerator / denominator) grows, and 0."""
        return (cycle - 1) * self._config.rate_numerator // self._config.rate_denominator + 1

    def _rate_at(self, index: Any) -> Any:
        """The clock with ordinal ``index`` among them."""
        return -(-index * self._config.rate_denominator // self._config.rate_numerator)

    def _grow(self, periods: int) -> None:
        """Knows the first ``periods`` refresh periods, at least."""
        if periods >= len(self._starts):
            first = np.arange(2 * periods + 1, dtype=np.int64) * self._config.refresh_period
            lasting = self._rate(first[1:]) - self._rate(first[:-1] + self._config.refresh_window)
            self._starts = np.concatenate([[0], np.cumsum(lasting)])

    def before(self, cycle: Any) -> Any:
        """Number of slots before ``cycle``: the ordinal of the first one from it on."""
        if self._every:
            return cycle
        if not self._config.refresh_window:
            return self._rate(cycle)
        period = cycle // self._config.refresh_period
        self._grow(int(np.max(period, initial=0)) + 1)
        open_ = period * self._config.refresh_period + self._config.refresh_window
        return self._starts[period] + self._rate(np.maximum(cycle, open_)) - self._rate(open_)

    def at(self, slot: Any) -> Any:
        """The clock of a slot."""
        if self._every:
            return slot
        if not self._config.refresh_window:
            return self._rate_at(slot)
        last = int(np.max(slot, initial=0))
        while self._starts[-1] <= last:
            self._grow(2 * len(self._starts))
        period = np.searchsorted(self._starts, slot, "right") - 1
        open_ = period * self._config.refresh_period + self._config.refresh_window
        return self._rate_at(slot - self._starts[period] + self._rate(open_))


class MemoryTiming:
    """Serves bursts in order; cycles count from reset (or from any cycle, where the memory is ``uniform``): ``origin`` is the one that is called 0.

    What is written must be known before the reads that it may delay.
    """

    def __init__(self, config: MemoryConfig, origin: int = 0) -> None:
        self.config, self.origin = config, origin
        self.slots = Slots(config)
        self._next = 0  # first cycle in which the next beat can be read
        self._written = -1  # last cycle in which one was written
        self._taken: Cycles = np.zeros(0, np.int64)  # slots of the written beats from _next on

    def write(self, cycles: Cycles) -> Cycles:
        """Handshakes (n,) of written beats offered no earlier than ``cycles``, in order and each after the one before; they take their slots."""
        if not len(cycles):
            return np.zeros(0, np.int64)
        index = np.arange(len(cycles))
        slots = self.slots.before(np.maximum(cycles, self._written + 1) + self.origin)
        slots = np.maximum.accumulate(slots - index) + index
        self._taken = np.concatenate([self._taken, slots])
        out: Cycles = self.slots.at(slots) - self.origin
        self._written = int(out[-1])
        return out

    def quiet(self, requested: int) -> bool:
        """Whether nothing delays reads that are requested from ``requested`` on but reads: their beats move clock by clock, and a caller may work them out and
        tell the last one with ``served``."""
        return self.config.uniform and self._written < max(requested + REQUEST + self.config.latency, self._next)

    def served(self, last: int) -> None:
        """A caller of ``quiet`` had the ``data`` handshake ``last``."""
        self._next = last - DELIVER + 1

    def read(self, requested: int, beats: int) -> Cycles:
        """Cycles (beats,) of the core's ``data`` handshakes for a burst whose request was taken in ``requested``; bursts are given in order."""
        first = max(requested + REQUEST + self.config.latency, self._next)
        if self.config.uniform and not (len(self._taken) and self._taken[-1] >= first + self.origin):
            cycles = np.arange(first, first + beats)
            self._next = first + beats
            return cycles + DELIVER
        start = self._free(self.slots.before(first + self.origin))
        return self._serve(start + np.arange(beats))

    def read_many(self, requested: Cycles, beats: Cycles, *, every: bool = False) -> Cycles:
        """Cycles (n,) in which the last beats of bursts arrive, as ``read`` gives them one by one; ``every``: those of all beats, one after the other."""
        requested, beats = np.asarray(requested, np.int64), np.asarray(beats, np.int64)
        if not len(requested):
            return np.zeros(0, np.int64)
        first = np.maximum(requested + (REQUEST + self.config.latency), self._next)
        ends = np.cumsum(beats)
        # Among the slots that no written beat takes, a burst starts at its first one or behind the burst before.
        shift = np.maximum.accumulate(self._free(self.slots.before(first + self.origin)) - (ends - beats))
        return self._serve(np.repeat(shift, beats) + np.arange(ends[-1]) if every else shift + ends - 1)

    def visit(self, moments: Moments) -> None:
        """Of a uniform memory, whose slots are its clocks."""
        self._taken = self._taken[np.searchsorted(self._taken, self._next + self.origin) :]
        self._next, self._written = moments.at(self._next), moments.at(self._written)
        self._taken = moments.at(self._taken - self.origin) + self.origin

    def _free(self, slot: Any) -> Any:
        """Number of slots before ``slot`` that no beat still known is written in."""
        return slot - np.searchsorted(self._taken, slot) if len(self._taken) else slot

    def _serve(self, free: Cycles) -> Cycles:
        """``data`` cycles of the slots with these ordinals among the free ones; they are past then."""
        slots = free
        if len(self._taken):
            slots = free + np.searchsorted(self._taken - np.arange(len(self._taken)), free, "right")
            self._taken = self._taken[np.searchsorted(self._taken, slots[-1]) :]
        cycles = self.slots.at(slots) - self.origin
        self._next = int(cycles[-1]) + 1
        return np.asarray(cycles + DELIVER, np.int64)


class WriterTiming:
    """``AxiWriter``: a row at a time, of ``row_writes`` beats (``KvLayout.row_writes``)."""

    def __init__(self, memory: MemoryTiming, row_writes: int) -> None:
        self._memory, self._row_writes = memory, row_writes
        self._free = 0  # first cycle in which a row can be taken
        self.idle = 0
        """First cycle in which ``idle`` is 1, if no further row comes; it is 0 from the cycle after a row's handshake on."""

    def visit(self, moments: Moments) -> None:
        self._free, self.idle = moments.at(self._free), moments.at(self.idle)

    def rows(self, offered: Cycles) -> tuple[Cycles, Cycles]:
        """Handshakes (n,) of rows offered no earlier than ``offered``, and of their written beats (n, row_writes); these take their slots."""
        origin, slots, count = self._memory.origin, self._memory.slots, self._row_writes
        taken: list[int] = []
        for cycle in np.asarray(offered).tolist():
            taken.append(max(cycle, self._free))
            first = slots.before(taken[-1] + WRITE + origin)
            self._free = int(slots.at(first + count - 1)) - origin + 1
        handshakes = np.array(taken, np.int64)
        written = self._memory.write(np.repeat(handshakes + WRITE, count))
        if len(handshakes):
            self.idle = int(written[-1]) + self._memory.config.write_latency + RESPONSE
        return handshakes, written.reshape(-1, count)
