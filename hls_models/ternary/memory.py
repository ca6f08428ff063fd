# SPDX-License-Identifier: Apache-2.0
"""The memory behind a ternary core that does not hold its model on chip: its parameters, and the clock cycles of its beats (docs/architecture.md, 5.2).

One server moves a wide beat, 16 bytes from each port, in every clock that is a *slot*. Reads are served in the order of their requests; a beat that is
written takes the slot of its clock. All ports advance in lockstep.
"""

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from lutra.hls_models.config import Config

__all__ = ["DELIVER", "PORT_BYTES", "REQUEST", "MemoryConfig", "MemoryTiming"]

Cycles = NDArray[np.int64]

PORT_BYTES = 16
"""Bytes of a port: AXI4 of 128 bits."""

REQUEST = 1
"""From the handshake of a request on the core's ``read`` stream to its address on all ports, where the memory takes it at once."""

DELIVER = 2
"""From a beat on the ports to the handshake of the core's ``data`` stream: the ports' queues, the joined beat."""


class MemoryConfig(Config):
    """A shared memory and the ports to it."""

    ports: int = Field(4, ge=1, le=8, description="AXI4 read ports of 128 bits, data striped over them; there is one write port")
    burst_beats: int = Field(64, ge=1, le=256, description="beats per burst at most; a burst does not cross a multiple of it, so of 4 KB per port")
    outstanding: int = Field(8, ge=1, le=64, description="bursts whose data are on their way, at most")
    latency: int = Field(64, ge=2, le=1023, description="clocks from a burst's address to its first beat at the earliest")
    write_latency: int = Field(32, ge=1, le=1023, description="clocks from a written beat to its response")
    rate_numerator: int = Field(1, ge=1, le=1024, description="of the share of clocks that move a beat")
    rate_denominator: int = Field(1, ge=1, le=1024, description="of the share of clocks that move a beat")
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


class MemoryTiming:
    """Serves bursts in order; cycles count from reset (or from any cycle, where the memory is ``uniform``)."""

    def __init__(self, config: MemoryConfig, origin: int = 0) -> None:
        self.config, self.origin = config, origin
        self._next = 0  # first cycle in which the next beat can be read
        self._written: list[int] = []

    def write(self, cycles: Cycles) -> Cycles:
        """Handshakes (n,) of written beats offered no earlier than ``cycles``, in order and each after the one before; they take their slots."""
        out: list[int] = []
        for offered in cycles.tolist():
            cycle = max(offered, self._written[-1] + 1 if self._written else 0)
            while not self.config.is_slot(cycle + self.origin):
                cycle += 1
            self._written.append(cycle)
            out.append(cycle)
        return np.array(out, np.int64)

    def read(self, requested: int, beats: int) -> Cycles:
        """Cycles (beats,) of the core's ``data`` handshakes for a burst whose request was taken in ``requested``; bursts are given in order.

        Writes that take slots up to these cycles must be known.
        """
        first = max(requested + REQUEST + self.config.latency, self._next)
        alone = self.config.uniform and not (self._written and self._written[-1] >= first)
        cycles = np.arange(first, first + beats) if alone else self._slots(first, beats)
        self._next = int(cycles[-1]) + 1
        return cycles + DELIVER

    def _slots(self, first: int, beats: int) -> Cycles:
        """The first ``beats`` slots from ``first`` on that no written beat takes."""
        length, share = beats, self.config.share
        while True:
            cycles = np.arange(first, first + int(length / share) + 4)
            absolute = cycles + self.origin
            free = absolute * self.config.rate_numerator % self.config.rate_denominator < self.config.rate_numerator
            if self.config.refresh_period:
                free &= absolute % self.config.refresh_period >= self.config.refresh_window
            low = bisect_left(self._written, first)
            taken = np.array(self._written[low : bisect_left(self._written, int(cycles[-1]) + 1)], np.int64)
            free[taken - first] = False
            if free.sum() >= beats:
                return cycles[free][:beats]
            length = 2 * length + len(taken) + self.config.refresh_window
