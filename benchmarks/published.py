# SPDX-License-Identifier: Apache-2.0
"""Published figures of others on the same board, each with its source and how it came about; what nobody gives is absent."""

from dataclasses import dataclass, field

__all__ = ["DESIGNS", "Design", "Figure"]


@dataclass(frozen=True)
class Figure:
    """A figure: ``how``: "measured" on a board or "predicted"; ``relayed``: seen in a third party's text, not in the authors' own."""

    value: float
    how: str = "measured"
    relayed: bool = False


@dataclass(frozen=True)
class Design:
    """A published design. ``decode``: tokens per second by context (0: not said at which), ``ttft``: seconds by prompt."""

    name: str
    model: str
    source: str
    decode: dict[int, Figure] = field(default_factory=dict)
    ttft: dict[int, Figure] = field(default_factory=dict)
    resources: dict[str, Figure] = field(default_factory=dict)
    watts: Figure | None = None
    bits_per_weight: Figure | None = None
    note: str = ""


def _relayed(value: float) -> Figure:
    return Figure(value, relayed=True)


DESIGNS = (
    Design(
        name="TeLLMe v2",
        model="bitnet-0.73b",
        source="arXiv 2510.15926",
        decode={0: Figure(25.0)},
        ttft={64: Figure(0.45), 128: Figure(0.96)},
        resources={"lut": _relayed(98_303), "ff": _relayed(136_721), "dsp": _relayed(610), "bram36": _relayed(98.5), "uram": _relayed(60)},
        watts=Figure(5.0),
        bits_per_weight=Figure(2.064, "computed from the released code"),
        note="under 5 W; 250 MHz; the head on the ARM cores",
    ),
    Design(
        name="PD-Swap",
        model="bitnet-0.73b",
        source="arXiv 2512.11550",
        decode={0: Figure(27.0), 2048: _relayed(10.0)},
        note="more than 10 tokens/s at context 2,048",
    ),
    Design(
        name="bitnet-kv260",
        model="bitnet-2b4t",
        source="github.com/MerlijnW70/bitnet-kv260 (Apache-2.0)",
        decode={0: Figure(16.78)},
        resources={"lut": Figure(42_271), "ff": Figure(53_342), "dsp": Figure(0), "bram36": Figure(95), "uram": Figure(40)},
        watts=Figure(6.21),
        bits_per_weight=Figure(1.6, "computed: five trits to a byte"),
        note="28.8 tokens/s of prompt; 12.7 GB/s on the body, 16.0 GB/s on the head",
    ),
    Design(name="bitnet.cpp", model="bitnet-2b4t", source="README of bitnet-kv260", decode={0: Figure(2.77)}, note="on the board's own four Cortex-A53"),
)
"""Designs on the KV260."""

ELSEWHERE = "Not on this board: TerEffic on an Alveo U280, 727 tokens/s for a 2.7B model from HBM at 46 W; Hummingbird reaches 93-94 % of a DDR's bandwidth."
