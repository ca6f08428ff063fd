# SPDX-License-Identifier: Apache-2.0
"""Energy of a PIM program from command counts and time, by the constants that are published for GDDR6 with MAC units.

Powers in mW per channel and durations in ns are those that simulators of this device family carry (PIM-GPT, arXiv 2310.09385, and its sources). The rules:
active standby 263.75 throughout, since a row is open nearly all the time; an activate 66.3 over tRC = 44.5 ns, per bank; write 553 and read 438 over
1.25 ns, per column of a bank; a MAC of all sixteen banks as three times the read power over 1 ns, so a sixteenth per bank (PIM-GPT's 149 mW of MAC units
are inside that figure and not added again); pins 5.5 pJ per bit; companion chip 305 mW. Refresh commands have no published figure: they are not counted.
"""

from collections.abc import Sequence

from lutra.hls_models.pim.config import LANE_BITS, PimConfig
from lutra.hls_models.pim.program import Command

__all__ = ["SOURCE", "channel_energy", "companion_energy", "pin_bits"]

SOURCE = (
    "published: constants relayed for PIM-GPT (arXiv 2310.09385): activate 66.3 mW x 44.5 ns per bank, read 438 and write 553 mW x 1.25 ns per "
    "column, MAC of sixteen banks 3 x read x 1 ns (MAC units inside), standby 263.75 mW per channel throughout, pins 5.5 pJ/bit, "
    "companion chip 305 mW; refresh not counted (no source)"
)
STANDBY_MW = 263.75
ACTIVATE_J = 66.3e-3 * 44.5e-9
READ_J, WRITE_J = 438e-3 * 1.25e-9, 553e-3 * 1.25e-9
MAC_J = 3 * 438e-3 * 1e-9 / 16
PIN_J_PER_BIT = 5.5e-12
COMPANION_W = 305e-3


def pin_bits(config: PimConfig, counts: Sequence[int]) -> dict[str, int]:
    """Bits over a channel's pins by purpose, from its commands by kind."""
    column = config.lanes * LANE_BITS
    banks = config.banks * LANE_BITS
    return {
        "buffer": counts[Command.GBW] * column,
        "read-out": counts[Command.RDM] * banks,
        "bias": counts[Command.BIAS] * banks,
        "read": counts[Command.RD] * column,
        "write": counts[Command.WR] * column + counts[Command.WRA] * banks,
    }


def channel_energy(config: PimConfig, counts: Sequence[int], seconds: float) -> dict[str, float]:
    """Joules of one channel by part, from its commands by kind over ``seconds``."""
    return {
        "activate": (counts[Command.ACT] + config.banks * counts[Command.ACTA]) * ACTIVATE_J,
        "mac": counts[Command.MAC] * config.banks * MAC_J,
        "read": counts[Command.RD] * READ_J,
        "write": (counts[Command.WR] + config.banks * counts[Command.WRA]) * WRITE_J,
        "pins": sum(pin_bits(config, counts).values()) * PIN_J_PER_BIT,
        "standby": seconds * STANDBY_MW * 1e-3,
    }


def companion_energy(seconds: float) -> float:
    """Joules of the companion chip."""
    return COMPANION_W * seconds
