# SPDX-License-Identifier: Apache-2.0
"""RAM primitives that the weight path and LINEAR take, by formula; a test holds them against what yosys instantiates.

| memory | bits of a row | rows | ports | kind |
|---|---|---|---|---|
| weight ring | T * Q * index bits | ring_rows | 1 write, 1 read | block RAM (or UltraRAM) |
| activations | T * G * activation bits | max_tokens * max_blocks | 1 write, 1 read | block RAM (or UltraRAM) |
| table t (T of them) | M * value bits | 2 sets of a power of two | 1 write, Q reads | LUT-RAM |
| running sums | M * Q * accumulator bits | ceil(max_tile_columns / Q) | read and written at one address | LUT-RAM |
| drain bank | as running sums | as running sums | 1 write, 1 read | LUT-RAM or block RAM |

A memory of w bits x d rows in primitives of a bits x b rows takes, with n = ceil(d / b) banks, n * floor(w / a) whole primitives; what is left of the width
is packed in write lanes of 9 bits, n * ceil((w mod a) / 9) of them, a / 9 to a primitive. Of the aspects the cheapest is taken. A LUT-RAM primitive that serves
p read ports is copied ceil(reads / p) times.
"""

from typing import Literal

from lutra.hls_models.errors import ConfigError
from lutra.hls_models.ternary.tlmm import TlmmConfig
from lutra.hls_models.ternary.weights import WeightPathConfig

__all__ = ["LUTS", "Family", "Primitives", "block_ram", "linear_memories", "lookup_memories", "lut_ram", "styled_ram", "total", "ultra_ram"]

Family = Literal["ecp5", "xcup"]
Primitives = dict[str, int]

ECP5_BLOCK = ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384))
XCUP_BLOCK = ((72, 512), (36, 1024), (18, 2048), (9, 4096), (4, 8192), (2, 16384), (1, 32768))
XCUP_HALF_BLOCK = ((36, 512), *((width, rows) for width, rows in ECP5_BLOCK[1:]))
# Half a block costs a trifle more than half (yosys: 129 against 257): whole blocks where the halves pair up.
XCUP_COSTS = {"RAMB36E2": 257, "RAMB18E2": 129}

LUTS = {"RAM32M16": 8, "RAM64M8": 8, "RAM64X1S": 1, "RAM128X1S": 2, "RAM256X1S": 4, "RAM512X1S": 8, "TRELLIS_DPR16X4": 4}
"""Look-up tables that a LUT-RAM primitive occupies."""


LANE_BITS = 9

XCUP_LUT_RAM = (("RAM32M16", 32, 14), ("RAM64M8", 64, 7))
XCUP_UPDATE_RAM = (("RAM32M16", 32, 16), ("RAM64X1S", 64, 8), ("RAM128X1S", 128, 4), ("RAM256X1S", 256, 2), ("RAM512X1S", 512, 1))
"""Name, rows and bits of eight look-up tables; the X1S are counted bit by bit."""


def _cover(width: int, depth: int, aspects: tuple[tuple[int, int], ...]) -> int:
    def count(bits: int, rows: int) -> int:
        banks, left = -(-depth // rows), width % bits
        return banks * (width // bits) + -(-banks * -(-left // LANE_BITS) // max(1, bits // LANE_BITS))

    return min(count(bits, rows) for bits, rows in aspects)


def _lut_shape(depth: int, shapes: tuple[tuple[str, int, int], ...]) -> tuple[str, int, int]:
    """(name, banks, bits) of the least cost per bit, the deepest where equal: 16 per primitive and 1/2 for each multiplexer between banks, as yosys counts."""

    def cost(shape: tuple[str, int, int]) -> float:
        banks = -(-depth // shape[1])
        return 16 * banks / shape[2] + (banks - 1) / 2

    name, rows, bits = min(reversed(shapes), key=cost)
    return name, -(-depth // rows), bits


def block_ram(family: Family, width: int, depth: int) -> Primitives:
    """Block RAMs of a memory with one write and one read port."""
    if family == "ecp5":
        return {"DP16KD": _cover(width, depth, ECP5_BLOCK)}
    options = {"RAMB36E2": _cover(width, depth, XCUP_BLOCK), "RAMB18E2": _cover(width, depth, XCUP_HALF_BLOCK)}
    best = min(options, key=lambda name: options[name] * XCUP_COSTS[name])
    return {best: options[best]}


def ultra_ram(family: Family, width: int, depth: int) -> Primitives:
    """UltraRAMs of 72 x 4,096; ConfigError on a family without."""
    if family != "xcup":
        raise ConfigError(f"device_ram: ultra needs a device with UltraRAM (xcup), not {family}; nearest: block")
    return {"URAM288": _cover(width, depth, ((72, 4096),))}


def lut_ram(family: Family, width: int, depth: int, reads: int = 1) -> Primitives:
    """LUT-RAM of a memory with a write port and ``reads`` asynchronous read ports."""
    if family == "ecp5":
        return {"TRELLIS_DPR16X4": -(-depth // 16) * -(-width // 4) * reads}
    name, banks, bits = _lut_shape(depth, XCUP_LUT_RAM)
    if reads % 7 == 0:  # seven ports of one primitive: the same bits, fewer left over
        return {name: banks * -(-width // (bits // 7)) * (reads // 7)}
    return {name: banks * -(-width // bits) * reads}


def update_ram(family: Family, width: int, depth: int) -> Primitives:
    """LUT-RAM of a memory that is read and written at one address."""
    if family == "ecp5":
        return lut_ram(family, width, depth)
    name, banks, bits = _lut_shape(depth, XCUP_UPDATE_RAM)
    return {name: banks * (width if name.endswith("X1S") else -(-width // bits))}


def total(parts: dict[str, Primitives]) -> Primitives:
    """Sum over parts."""
    out: Primitives = {}
    for part in parts.values():
        for name, count in part.items():
            out[name] = out.get(name, 0) + count
    return out


def styled_ram(family: Family, style: str, width: int, depth: int) -> Primitives:
    """A memory with one write and one read port, in "block", "ultra" or "distributed" RAM."""
    if style == "distributed":
        return lut_ram(family, width, depth)
    return (ultra_ram if style == "ultra" else block_ram)(family, width, depth)


def lookup_memories(family: Family, config: TlmmConfig) -> dict[str, Primitives]:
    """Primitives of each memory of LINEAR."""
    sums = config.lanes * config.columns * config.accumulator_bits
    table = lut_ram(family, config.lanes * config.value_bits, 2 << config.entry_bits, config.columns)
    return {
        "activations": styled_ram(family, config.activation_ram, config.block * config.activation_bits, config.max_tokens * config.max_blocks),
        "tables": {name: count * config.tables for name, count in table.items()},
        "running": update_ram(family, sums, config.tile_rows),
        "drain": styled_ram(family, config.drain_ram, sums, config.tile_rows),
    }


def linear_memories(family: Family, config: TlmmConfig, weights: WeightPathConfig) -> dict[str, Primitives]:
    """Primitives of each memory of weight path and LINEAR."""
    return {"ring": styled_ram(family, weights.ring_ram, weights.row_bits, weights.ring_rows), **lookup_memories(family, config)}
