# SPDX-License-Identifier: Apache-2.0
"""docs/ulx3s.md from the figures of ``benchmarks.board``: what the core takes of the board, how fast it is there, where its slowest paths are."""

from statistics import median
from typing import Any

from benchmarks.markdown import table

__all__ = ["page", "tables"]

Row = dict[str, Any]
KINDS = {"lut": "places of look-up tables", "ff": "flip-flops", "bram18": "block RAMs of 18 Kbit", "dsp": "multipliers of 18 x 18"}
LEAST = 300
"""Places of look-up tables below which a block is not listed."""


def _use(result: Row) -> str:
    rows = []
    for kind, name in KINDS.items():
        used, total, predicted = (result[about][kind] for about in ("used", "available", "predicted"))
        off = f"{100 * (predicted / used - 1):+.1f} %" if kind in result["predicted_error"] else "at most, by the RTL"
        rows.append([name, f"{used:,.0f}", f"{total:,.0f}", f"{100 * used / total:.1f} %", f"{predicted:,.0f}", off])
    return table(["", "used", "there are", "share", "predicted", "off"], rows)


def _placed(result: Row) -> str:
    rows = [[kind, f"{used:,d}", f"{total:,d}", f"{100 * used / total:.1f} %"] for kind, (used, total) in result["placed"].items()]
    return table(["nextpnr's count", "used", "there are", "share"], rows)


def _blocks(result: Row) -> str:
    found = sorted(result["blocks"].items(), key=lambda item: -item[1]["lut"])
    rows = [
        [name.removeprefix("top."), *(f"{used.get(kind, 0):,.0f}" for kind in ("lut", "ff", "bram18", "dsp"))] for name, used in found if used["lut"] >= LEAST
    ]
    return table(["block, with what is in it", "places", "flip-flops", "block RAMs", "multipliers"], rows)


def _seeds(result: Row) -> str:
    rows = [
        [f"{one['seed']}", f"{one['fmax_hz'] / 1e6:.2f}", f"{one['logic_ns']:.1f}", f"{one['routing_ns']:.1f}", one["path_block"]] for one in result["seeds"]
    ]
    return table(["seed", "MHz", "logic, ns", "routing, ns", "slowest path in"], rows)


def tables(result: Row) -> str:
    """For a terminal."""
    return "\n\n".join([_use(result), _seeds(result)])


def page(result: Row, date: str, machine: Row) -> str:
    """The page, whole."""
    clocks = sorted(one["fmax_hz"] / 1e6 for one in result["seeds"])
    asked = f"{result['clock_hz'] / 1e6:g} MHz"
    speed = "; ".join(f"{value:,.0f} tokens per second at context {context}" for context, value in result["tokens_per_second"].items())
    outcome = f"The bitstream `{result['bitstream']}` is the fastest placement." if result["bitstream"] else "**No placement reaches the clock: no bitstream.**"
    gates = result["gate_level"]
    tokens = ", ".join(map(str, gates["tokens"]))
    return f"""# The shipped model on a ULX3S

Core `{result["config"]}` with the model `tiny-shakespeare`, its weights, cache and serial link, on an ECP5 LFE5U-85F of speed grade 6, by yosys and nextpnr.
Figures of {date} ({machine["processor"]}, {machine["cores"]} cores).
`python -m benchmarks board` makes this page, `python -m benchmarks board_page` once more from the stored figures.

**{median(clocks):.1f} MHz** in the median of {len(clocks)} placements ({clocks[0]:.1f} … {clocks[-1]:.1f}), {asked} asked.
At {asked}: {speed}, by the cycle model, which the RTL equals.
{outcome}

## What it takes

A carry cell stands on two places of look-up tables, a cell of RAM on four and two more for its address and data. Predicted without synthesis, by the model
that `python -m benchmarks board_fit` fits to two other cores; this one is its held-out one, so that "off" is all that is known of its error.
Multipliers beyond the blocks are adders, counted in the RTL.

{_use(result)}

{_placed(result)}

{_blocks(result)}

## How fast it is

{_seeds(result)}

No power figure: the vendor publishes no energies of cells, and none was measured.

## The netlist, simulated

{gates["cells"]:,d} cells through the pins of the serial line, prompt {gates["prompt"]!r}: tokens {tokens}, those of the golden model and of the RTL,
in {gates["clocks"]:,d} clocks ({gates["build_s"]:.0f} s to build, {gates["run_s"]:.0f} s to run).
"""
