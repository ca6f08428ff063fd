# SPDX-License-Identifier: Apache-2.0
"""docs/pim.md from the figures of ``benchmarks.pim``: GPT-3 XL, eight models, channels, pins, energy, and the paper beside it."""

from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.markdown import table
from benchmarks.pim import CHANNELS, CONTEXTS, MODELS, SCALING_CONTEXT, TURNS, VARIANTS, XL

__all__ = ["page", "tables"]

Row = dict[str, Any]
ONE, REFRESHED, STRICT = "1 accumulator", "1 accumulator, refresh 105 ns / 1.667 us", "1 accumulator, no activate in register mode"


def _by(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], Row]:
    return {tuple(row[name] for name in names): row for row in rows}


def _xl(result: Row) -> str:
    found = _by(result["gpt3-xl"], "name", "context")
    rows = []
    for name in [*VARIANTS, TURNS, "1 accumulator, the reading of 24 heads x 128"]:
        one, long = found[name, 1], found[name, 1024]
        rows.append([name, *(f"{row[key]:{form}}" for row in (one, long) for key, form in (("cycles", ",d"), ("over_row_bound", ".3f")))])
    return table(["GPT-3 XL", "cycles, context 1", "over the bound", "cycles, context 1,024", "over the bound"], rows)


def _layer(result: Row) -> str:
    layer, found = result["in_order_layer"], _by(result["gpt3-xl"], "name", "context")
    rows = [
        [f"in order (bias, MACs, read-out), matrices only, {name}", f"{cycles:,d}", f"{cycles / layer['bound_cycles']:.3f}"]
        for name, cycles in layer["cycles"].items()
    ]
    for name, context in ((ONE, 1), (STRICT, 1), (REFRESHED, 1)):
        cycles = found[name, context]["layer_cycles"]
        rows.append([f"ours: {name}, everything of a layer at context {context}", f"{cycles:,d}", f"{cycles / layer['bound_cycles']:.3f}"])
    return table([f"one layer of GPT-3 XL: {layer['rows']} rows, bound {layer['bound_cycles']:,d} cycles", "cycles", "over the bound"], rows)


def _sweep(result: Row, form: Callable[[Row], str]) -> str:
    found = _by(result["sweep"], "context", "model")

    def cell(row: Row) -> str:
        return "refused" if "refused" in row else form(row) + ("*" if row["shape_only"] else "")

    return table(["context", *MODELS], ([f"{context:,d}", *(cell(found[context, model]) for model in MODELS)] for context in CONTEXTS))


def _scaling(result: Row) -> str:
    found = _by(result["scaling"], "model", "channels")

    def cell(row: Row) -> str:
        return f"{row['tokens_per_second']:,.0f} ({row['efficiency']:.2f})" + ("" if row["fits"] else "†")

    return table(
        ["model", *(f"{n} channels" if n > 1 else "1 channel" for n in CHANNELS)], ([model, *(cell(found[model, n]) for n in CHANNELS)] for model in MODELS)
    )


def _pins(result: Row) -> str:
    found = _by(result["sweep"], "model", "context")
    rows = []
    for model in MODELS:
        row = found[model, SCALING_CONTEXT]
        pins = row["pin_bytes"]
        rest = sum(value for name, value in pins.items() if name != "bias")
        rows.append([model, *(f"{pins[name]:,.0f}" for name in ("buffer", "read-out", "read", "write")), f"{rest:,.0f}", f"{pins['bias']:,.0f}"])
    return table(["bytes per channel and token", "buffer", "read-outs", "reads", "key, value writes", "together", "bias writes, apart"], rows)


def _parts(result: Row, key: str, unit: str, scale: float, form: str) -> str:
    found = _by(result["gpt3-xl"], "name", "context")
    columns = [found[ONE, 1], found[ONE, 1024], found[REFRESHED, 1024]]
    names = sorted({name for row in columns for name in row[key]}, key=lambda name: -columns[-1][key].get(name, 0))
    rows = [[name, *(f"{row[key].get(name, 0) * scale:{form}}" for row in columns)] for name in names]
    rows.append(["**together**", *(f"**{sum(row[key].values()) * scale:{form}}**" for row in columns)])
    return table([f"GPT-3 XL, {unit}", "context 1", "context 1,024", "context 1,024, refresh"], rows)


def tables(result: Row) -> str:
    """The figures by themselves, for the terminal."""
    return "\n\n".join(
        [
            _xl(result),
            _layer(result),
            "tokens per second\n" + _sweep(result, lambda row: f"{row['tokens_per_second']:,.0f}"),
            "millijoules per token\n" + _sweep(result, lambda row: f"{1e3 * row['joules_per_token']:.2f}"),
            "row hits, %\n" + _sweep(result, lambda row: f"{100 * row['row_hit_rate']:.2f}"),
            "share of the row bound\n" + _sweep(result, lambda row: f"{row['fraction_of_row_bound']:.3f}"),
            f"tokens per second at context {SCALING_CONTEXT:,d} by channels (efficiency), † larger than the device\n" + _scaling(result),
            _pins(result),
        ]
    )


def _refusals(result: Row) -> str:
    refused = sorted((row for row in result["sweep"] if "refused" in row), key=lambda row: (row["model"], row["context"]))
    return "\n".join(f"- context {row['context']:,d}: `{row['refused']}`" for row in refused)


def _paper(result: Row) -> str:
    xl, sweep = _by(result["gpt3-xl"], "name", "context"), _by(result["sweep"], "model", "context")
    long, turns = xl[REFRESHED, 1024], xl[TURNS, 1024]
    speeds = [sweep[model, 1024]["tokens_per_second"] for model in MODELS]
    joules = [1e3 * sweep[model, 1024]["joules_per_token"] for model in MODELS]
    hits = [100 * sweep[model, 1024]["row_hit_rate"] for model in MODELS]
    seconds = long["cycles"] * 0.5e-9
    mac_watts = long["energy"]["mac"] / seconds / 8
    chip = long["energy"]["companion chip"] / long["joules_per_token"]
    gain = turns["cycles"] / xl[ONE, 1024]["cycles"] - 1
    lost = 1 - 2 * 64 / long["row_cycles"]
    parameters = sweep[XL, 1024]["parameters"]
    unseen, same = "*not comparable (unseen)*", "*comparable*"
    rows = [
        [
            "8 channels x 16 banks, 16 bf16 multipliers per bank at 1 GHz, a 2 KB buffer per channel",
            same,
            "the same, 4.096 TB/s inside",
            "`pim-gpt` is this system; reports give their share of these 4.096 TB/s.",
        ],
        [
            "row hits about 98 %",
            "*comparable under the assumption* that a column access counts as a hit if it opened no row",
            f"{min(hits):.2f} to {max(hits):.2f} % at context 1,024",
            f"Mostly geometry: a row is 64 accesses, 63/64 = 98.4 %. It hides the cost: a switch is {100 * lost:.0f} % of a row's {long['row_cycles']} cycles.",
        ],
        [
            "eight models, the largest with 1.4 billion parameters",
            "*comparable under the assumption* of GPT-3 XL as 16 heads x 128",
            f"GPT-3 XL: {parameters / 1e9:.3f} billion with the tied head",
            "The GPT-3 table prints 24 heads of 128: `gpt3-xl-24` is that reading, its cycles stand in the first table.",
        ],
        [
            "companion chip: 305 mW",
            "*comparable under the assumption* that it draws them all the time",
            f"{1e3 * long['energy']['companion chip']:.2f} mJ of a token's {1e3 * long['joules_per_token']:.1f} mJ ({100 * chip:.1f} %)",
            "Taken over as a constant; our companion chip has not been placed in a 28 nm process.",
        ],
        ["companion chip: 0.64 mm² in 28 nm", unseen, "none", "We have no 28 nm library, and what the area contains is not published."],
        [
            "MAC units: 149 mW per channel",
            "*comparable under the assumption* that an all-bank MAC takes three times a read's power, its units included",
            f"{1e3 * mac_watts:.0f} mW per channel for MACs and their column reads, mean over a token",
            "The 149 mW are inside three times 438 mW and are not added to them.",
        ],
        [
            "instructions of companion chip and channels one after the other",
            same,
            f"in turn {turns['cycles']:,d} cycles, overlapped {xl[ONE, 1024]['cycles']:,d}: {100 * gain:.1f} % more (context 1,024, no refresh)",
            "Only sends and receipts whose operands allow it overlap; `lower(..., overlap=False)` is the paper's way.",
        ],
        [
            "Taylor series, Newton's reciprocal, fast inverse square root; no accuracy given",
            "*comparable under the assumption* of our numbers of terms",
            "`companion.functions: taylor` and `minimax` at the same cost",
            "The paper's numbers of terms are not public; errors over all bf16 inputs: [architecture.md](architecture.md), 4.5.",
        ],
        [
            "output j on bank j mod 128, rows filled by concatenated heads, K row-major, V column-major",
            same,
            "the same rule; packing, chunks and heads' channels chosen by cycles",
            "Filling every row loses where each output is read out by itself (768 columns of the small models).",
        ],
        [
            "41 to 137 times a T4, 631 to 1,074 times a Xeon Gold 6154 in speed",
            unseen,
            f"{min(speeds):,.0f} to {max(speeds):,.0f} tokens/s at context 1,024",
            "Latencies behind the ratios and the baselines' software are not at hand: we give times, and no ratio to another machine.",
        ],
        [
            "123 to 383 and 320 to 602 times in energy (version 2; version 1: 339 to 1,085 and 890 to 1,632)",
            unseen,
            f"{min(joules):.1f} to {max(joules):.1f} mJ per token at context 1,024",
            "As above; the versions differ by a factor of 2.7, so what they count matters: ours is listed part by part.",
        ],
        [
            "timing constraints and refresh of the paper's simulator",
            unseen,
            "`gddr6-aim`, refresh 105 ns every 1.667 us",
            "All constants carry their source in the preset; without refresh stands beside.",
        ],
    ]
    return "\n".join(["| PIM-GPT (arXiv 2310.09385) | label | here | why |", "|---|---|---|---|", *("| " + " | ".join(row) + " |" for row in rows)])


def _clearing(found: Row, token: int) -> str:
    tokens, each = found["tokens"], found["cycles_per_token"]
    return f"""**Not in any token's figures**: before the first of every {tokens:,d} tokens the room of their values is zeroed in all layers (`clear` of
`mapping/pim/lower.py`), over the pins and bank by bank. For GPT-3 XL these are {found["cycles"]:,d} command cycles per step of {tokens:,d} tokens, refresh on,
or {each:,.0f} per token: {100 * each / token:.2f} % of a token at context 1,024. It can be done while the channels would idle, but is charged apart, as a
program of its own; its energy is not in the figures below either."""


def _against(found: dict[tuple[Any, ...], Row], context: int) -> str:
    return f"{found['16 accumulators', context]['cycles']:,d} instead of {found['8 accumulators', context]['cycles']:,d} cycles"


def page(result: Row, date: str, machine: Row) -> str:
    """The whole page in Markdown."""
    found = _by(result["gpt3-xl"], "name", "context")
    one, strict, long = found[ONE, 1], found[STRICT, 1], found[ONE, 1024]
    quick = found[REFRESHED, 1024]
    rows, unit = int(one["bound_rows"]), one["row_cycles"]
    over, late = one["cycles"] / (rows * unit), one["cycles_without_buffer_write_in_array_mode"]
    return f"""<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Written by `python -m benchmarks pim`: change benchmarks/pim_page.py, not this file. -->
# PIM-GPT on GDDR6-AiM: what a token takes

Cycles of the model that the RTL is held against at every command ([architecture.md](architecture.md), part 4): a command clock of 0.5 ns, eight
channels of sixteen banks, timing `gddr6-aim`, refresh on where nothing else is said. A *context* of n means that n rows of keys and values are
attended, the present token included. Times do not depend on weights: all figures are from shapes.

Written by `python -m benchmarks pim` on {date}, in {result["seconds"]:.0f} s of wall-clock time ({result["cpu_seconds"]:.0f} s of CPU time) on
{result["cores"]} cores of {machine["processor"]}, Python {machine["python"]}. All figures: [results/pim-{date}.json](results/pim-{date}.json). The model
takes {quick["cpu_seconds"]:.2f} s of CPU time for a token of GPT-3 XL at context 1,024 with refresh, placement and program included.

## GPT-3 XL against its row bound

24 layers and the tied head, 16 heads x 128, everything included: buffers, read-outs, key and value writes, attention, norms, softmax, embedding,
argmax. The bound is the number of all-bank rows that hold the matrices ({rows:,d}) and, as the share of rows that they fill, the keys and values, times
{unit} cycles: a row of 64 MACs with its switch (tRCDMAC 56 + 63 x tCCDL 2 + tRTP 12 + tRP 32). Without refresh, with one accumulator per bank:
**{over:.3f}** times {rows:,d} rows at context 1, **{long["over_row_bound"]:.3f}** times the bound at context 1,024.

{_xl(result)}

*Assumption* `activate_in_register_mode`: rows are activated and banks precharged while a channel is in register mode, which the published table does not
forbid. Without it context 1 takes {strict["cycles"]:,d} cycles instead of {one["cycles"]:,d}.
*Assumption* `buffer_write_in_array_mode`: the global buffer is written in array mode, the open simulator does it in register mode. Without it context 1
takes at most {late:,d} cycles ({late / (rows * unit):.3f}): the change back to array mode stands behind every buffer, and nothing hides it.

More accumulators gain where outputs share a row (keys), and nothing where each fills one: batched read-outs spare mode changes, but those hid behind row
switches. 16 accumulators are even slightly slower than 8: {_against(found, 1)} at context 1, {_against(found, 1024)}
at context 1,024. Batches do not taper: the last of a chunk is as large as the others, its read-outs stand behind the chunk's last row with little to hide
them, and the companion chip waits for all of them. With 16 a chunk of 16 groups (output, down) is read out in one such flush, with 8 half of it comes on
the way. The cycles by which the mapping chooses batches leave the last flush out.

Plain GDDR6 has slower columns and a row bound of its own, against which it stands here; its MAC timings are ours.

{_layer(result)}

The naive order is what the open AiM simulator does with the same requests, to the cycle.

Where the time goes: what the next command of a channel waited for last, mean over the channels. The mode change hides the precharge of the row before
it: most of what stands there would otherwise be row switch.

{_parts(result, "nanoseconds", "nanoseconds", 1, ",.0f")}

{_clearing(result["clearing"], quick["cycles"])}

## Eight models, contexts of 1 to 8,192

Refresh on. `*`: more positions than the model has, so a shape only. Room for keys and values in steps of 1,024 tokens; what does not fit is refused:

{_refusals(result)}

Tokens per second:

{_sweep(result, lambda row: f"{row['tokens_per_second']:,.0f}")}

Millijoules per token:

{_sweep(result, lambda row: f"{1e3 * row['joules_per_token']:.2f}")}

Row hits, % of column accesses:

{_sweep(result, lambda row: f"{100 * row['row_hit_rate']:.2f}")}

Share of the row bound (bound over cycles, refresh and everything in the cycles):

{_sweep(result, lambda row: f"{row['fraction_of_row_bound']:.3f}")}

![Latency against context](results/pim-latency.svg)

Small models lose most: a row of 768 columns of a matrix is 48 MACs, fewer than 64 for every row switch and read-out. Longer contexts lose because a key of
64 or 128 values is 4 or 8 MACs between two read-outs with their mode changes. At 8,192 tokens the scores of several heads no longer fit the companion
chip's 128 KiB: a pass is one head on all channels, more than the values of a head of 64 fill.

## Channels

Tokens per second at context {SCALING_CONTEXT:,d}; in brackets the speed-up over the number of channels, against the smallest number that holds the model.
†: the model is larger than so many channels, the capacity is ignored. The companion chip stays as it is: its clock, which serves all channels' read-outs,
and its SRAM, which limits the heads of a pass, are what many channels wait for.

{_scaling(result)}

![Tokens per second against channels](results/pim-scaling.svg)

## Pins and energy

Context {SCALING_CONTEXT:,d}, refresh on. Biases here only clear accumulators, which the published commands do by a write over the pins; they stand apart.

{_pins(result)}

{_parts(result, "energy", "millijoules per token", 1e3, ".3f")}

Constants: an activate 66.3 mW x 44.5 ns per bank, a column read 438 mW and written 553 mW x 1.25 ns, a MAC of all banks three times the read power for
1 ns (the MAC units' 149 mW inside), active standby 263.75 mW per channel throughout, pins 5.5 pJ per bit, companion chip 305 mW; figures relayed for
PIM-GPT and simulators of its family. A refresh has no published figure and counts as standby only.

## Beside the paper

{_paper(result)}
"""
