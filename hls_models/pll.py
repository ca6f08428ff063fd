# SPDX-License-Identifier: Apache-2.0
"""Dividers of an ECP5 PLL for a wanted clock (limits: Lattice FPGA-DS-02012, table of sysCLOCK PLL timing)."""

from math import isfinite
from typing import NamedTuple

from lutra.hls_models.errors import ConfigError

__all__ = ["PllSettings", "pll_settings"]

DETECTOR_HZ = (10e6, 400e6)
OSCILLATOR_HZ = (400e6, 800e6)
DIVIDERS = range(1, 129)


class PllSettings(NamedTuple):
    """input / reference is compared with oscillator / primary; the wanted clock is oscillator / output."""

    input_hz: float
    reference: int
    primary: int
    output: int

    @property
    def oscillator_hz(self) -> float:
        return self.input_hz / self.reference * self.primary

    @property
    def output_hz(self) -> float:
        return self.oscillator_hz / self.output


def pll_settings(input_hz: float, output_hz: float, tolerance: float = 0.01) -> PllSettings:
    """The settings whose clock is nearest to ``output_hz``, with the oscillator in the middle of its range where several are.

    Raises
    ------
    ConfigError : none within ``tolerance``
    """
    if not (isfinite(output_hz) and output_hz >= 1):
        raise ConfigError(f"clock must be a number of Hz, 3.125 to 400 MHz, not {output_hz:g}")
    middle = sum(OSCILLATOR_HZ) / 2
    found: list[PllSettings] = []
    for reference in DIVIDERS:
        detector = input_hz / reference
        if not DETECTOR_HZ[0] <= detector <= DETECTOR_HZ[1]:
            continue
        for primary in DIVIDERS:
            oscillator = detector * primary
            if OSCILLATOR_HZ[0] <= oscillator <= OSCILLATOR_HZ[1]:
                below = int(oscillator / output_hz)
                found += [PllSettings(input_hz, reference, primary, min(max(output, DIVIDERS[0]), DIVIDERS[-1])) for output in (below, below + 1)]
    best = min(found, key=lambda one: (round(abs(one.output_hz / output_hz - 1), 9), abs(one.oscillator_hz - middle)), default=None)
    if best is None or abs(best.output_hz / output_hz - 1) > tolerance:
        nearest = f"; nearest: {best.output_hz:g}" if best else ""
        raise ConfigError(f"clock of {output_hz:g} Hz must be one that a PLL makes from {input_hz:g} Hz, 3.125 to 400 MHz{nearest}")
    return best
