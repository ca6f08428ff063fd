# SPDX-License-Identifier: Apache-2.0
"""Serial line: eight data bits, no parity, one stop bit; the divider that a clock and a baud rate give."""

from functools import cached_property

from pydantic import Field, model_validator

from lutra.hls_models.config import Config

__all__ = ["FRAME_BITS", "TOLERANCE", "UartConfig"]

FRAME_BITS = 10
TOLERANCE = 0.02
"""Of the baud rate: what a receiver with four clocks per bit, whose samples may be off by a quarter of a bit, still reads; with more clocks it reads more."""


class UartConfig(Config):
    """A serial line of a clock domain; a bit takes ``clocks`` clocks.

    The receiver gives a byte ``receive_latency`` clocks after the cycle in which the pin falls for its start bit; the transmitter takes a byte every
    ``byte_clocks`` clocks and pulls its pin down in the clock after it took one.
    """

    clock_hz: float = Field(gt=0, description="clock of transmitter and receiver")
    baud: float = Field(gt=0, description="bits per second")

    @cached_property
    def clocks(self) -> int:
        """Clocks of a bit."""
        return max(1, round(self.clock_hz / self.baud))

    @property
    def byte_clocks(self) -> int:
        """Clocks of a byte on the line: start bit, eight data bits, stop bit."""
        return FRAME_BITS * self.clocks

    @property
    def receive_latency(self) -> int:
        """Two registers of the synchroniser, half the start bit, eight data bits and a stop bit to its middle, the output register."""
        return 2 + self.clocks // 2 + 9 * self.clocks + 1

    @model_validator(mode="after")
    def _reachable(self) -> "UartConfig":
        if self.clock_hz < 4 * self.baud:
            raise ValueError(f"baud must be at most a quarter of the clock of {self.clock_hz:g} Hz, not {self.baud:g}; nearest: {self.clock_hz / 4:g}")
        nearest = self.clock_hz / self.clocks
        if abs(nearest / self.baud - 1) > TOLERANCE:
            raise ValueError(f"baud must be within {100 * TOLERANCE:g} % of {self.clock_hz:g} Hz over a whole number, not {self.baud:g}; nearest: {nearest:g}")
        return self
