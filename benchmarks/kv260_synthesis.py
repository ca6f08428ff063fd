# SPDX-License-Identifier: Apache-2.0
"""The part of docs/kv260.md on cores as open synthesis counts them: resources and slowest paths of every block, what they say of the clock."""

from typing import Any

from benchmarks.markdown import table
from lutra.fpga_flows.devices import load_device
from lutra.fpga_flows.families import FAMILIES

__all__ = ["CLOCK_HZ", "LUTS", "counted"]

Row = dict[str, Any]
CLOCK_HZ = 250e6
LUTS = {"lut": "LUT", "lutram": "of them LUT-RAM", "ff": "flip-flops", "bram36": "BRAM36", "uram": "URAM", "dsp": "DSP"}


def counted(synthesis: Row) -> str:
    """Whole cores by open synthesis, block by block, with their slowest paths; the error of the fitted model."""
    device, parts = load_device("kv260"), []
    for name, core in synthesis["cores"].items():
        rows = []
        for block, found in core["blocks"].items():
            path, through, clock = found["path"], found["dsp_path"], found["clock_mhz"]
            rows.append(
                [
                    block,
                    *_cells(found["synthesis"]),
                    _steps(path),
                    f"{path['nanoseconds']:.2f}",
                    f"{through['nanoseconds']:.2f}" if through else "—",
                    f"{clock['pessimistic']} / {clock['likely']} / {clock['optimistic']}",
                ]
            )
        slow = core["slowest_clock_mhz"]
        rows.append(["**sum**", *_cells(core["synthesis"]), "", "", "", f"**{slow['pessimistic']} / {slow['likely']} / {slow['optimistic']}**"])
        shares = [f"{100 * core['shares'][kind]:.1f} %" for kind in LUTS]
        rows.append([f"share of the KV260 (limit {100 * device.limit:.0f} %: {'fits' if core['fits'] else 'does not fit'})", *shares, "", "", "", ""])
        head = ["block", *LUTS.values(), "slowest path: LUT levels", "ns", "through a DSP, ns", "MHz: pessimistic / likely / optimistic"]
        parts.append(f"**{name}**\n\n{table(head, rows)}")
    lut, every = synthesis["errors"]["all"]["lut"], synthesis["errors"]["all"]
    others = ", ".join(f"{LUTS[kind]} {100 * one['mean']:.1f} % ({100 * one['max']:.1f} %)" for kind, one in every.items() if kind != "lut")
    return f"""Counted block by block by open synthesis for xcup (yosys {synthesis["yosys"]}, hierarchy kept; {synthesis["date"]},
`python -m benchmarks resources`). The fitted model over {lut["blocks"]} blocks that took no part in its fit: LUT {100 * lut["mean"]:.1f} % off on average,
{100 * lut["max"]:.1f} % at most; {others}. Clocks are {synthesis["clock_rule"]}.

{_clocks(synthesis)}

{chr(10).join(part + chr(10) for part in parts)}"""


def _steps(path: Row) -> str:
    """What a path goes through."""
    inside = f"; DSP: {', '.join(path['inside'])}" if path["inside"] else ""
    return f"{path['levels']} + {path['carries']} carry cells{inside}"


def _clocks(synthesis: Row) -> str:
    """What the slowest paths say about the clock, and what they cannot."""
    blocks = [(block, found) for core in synthesis["cores"].values() for block, found in core["blocks"].items()]
    block, slow = max(blocks, key=lambda one: one[1]["path"]["nanoseconds"])
    inside, dsp = max(((name, found["dsp_path"]) for name, found in blocks if found["dsp_path"]), key=lambda one: one[1]["nanoseconds"])
    mhz = slow["clock_mhz"]
    short = list(dict.fromkeys(name for name, found in blocks if 1e6 * found["clock_mhz"]["pessimistic"] < CLOCK_HZ))
    took, allowed = slow["path"]["nanoseconds"], 1e9 / CLOCK_HZ
    return f"""The slowest path of all ({block}, {took:.2f} ns of the {allowed:.2f} that {CLOCK_HZ / 1e6:.0f} MHz allow) supports {mhz["likely"]} MHz by this
rule, {mhz["pessimistic"]} if it is as wrong as it allows for: routing may be {100 * (allowed / took - 1):.0f} % worse than the rule. If it is as wrong as that,
{", ".join(short)} need one more register in their slowest paths, and a clock cycle more there in RTL and cycle model.

The slowest path through a DSP block takes {dsp["nanoseconds"]:.2f} ns ({inside}: {_steps(dsp)}): registers of a product stand
outside its block, since yosys takes them into DSP blocks for series 7 only (an FP32 product for xc7 has AREG, BREG, PREG and a cascade). A vendor's tool
moves them into the blocks: by the same figures an FP32 product then takes {_cascade():.2f} ns, from AREG through the adders of two blocks to PREG."""


def _cascade() -> float:
    """Nanoseconds of a product over two DSP blocks with their own registers, one behind the other."""
    timing = FAMILIES["xcup"].timing
    return timing.dsp + sum(map(timing.nanoseconds, ("multiplier", "adder", "cascade", "adder")))


def _cells(counts: Row) -> list[str]:
    return [f"{counts[kind]:,.1f}".removesuffix(".0") for kind in LUTS]
