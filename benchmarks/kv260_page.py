# SPDX-License-Identifier: Apache-2.0
"""docs/kv260.md from the figures of ``benchmarks.kv260`` and whatever stored results of synthesis, bulk runs, drafts and planes there are."""

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks import published
from benchmarks.kv260 import CONTEXTS, MODELS, PROMPTS
from benchmarks.kv260_synthesis import CLOCK_HZ, LUTS, counted
from benchmarks.markdown import table
from benchmarks.published import Figure
from benchmarks.results import token_runs
from benchmarks.token import CONTEXT, proof
from lutra.fpga_flows.devices import load_device
from lutra.proofs import sources

__all__ = ["page", "preset_of", "tables"]

Row = dict[str, Any]
NAMES = {"bitnet-0.73b": "BitNet 0.73B", "bitnet-2b4t": "BitNet 2B4T"}


def preset_of(result: Row, model: str) -> Row:
    """Figures of the preset itself."""
    return next(row for row in result["curves"]["preset"] if row["model"] == model)


def _at(rows: Iterable[Row], key: str, value: int) -> Row | None:
    return next((row for row in rows if row[key] == value), None)


def _mark(figure: Figure, form: str, sign: str = "") -> str:
    return f"{sign}{figure.value:{form}} ({figure.how}{', relayed' if figure.relayed else ''})"


def _ours(value: float, form: str, how: str = "predicted") -> str:
    return f"**{value:{form}}** ({how})"


def _count(kind: str, used: float) -> str:
    return f"{used:,.1f}" if kind == "bram36" else f"{used:,.0f}"


def _how(found: Row, run: Row | None) -> str:
    """How a token's cycles are known: from the RTL only where this very token ran there, in as many."""
    if run is None or (found["context"], found["cycles"]) != (run["context"], run["token"]["pass_cycles"]):
        return "predicted"
    return "in RTL" if run["sources"] == sources() else "in RTL, an earlier version"


def _versus(result: Row, model: str, runs: Mapping[str, Row]) -> str:
    """Ours beside theirs, one line a figure."""
    ours, designs = preset_of(result, model), [design for design in published.DESIGNS if design.model == model]
    run = runs.get(ours["core"])

    def line(name: str, own: str, cells: Iterable[str]) -> list[str]:
        return [name, own, *cells]

    def cell(figure: Figure | None, form: str) -> str:
        return "—" if figure is None else _mark(figure, form)

    best = _at(ours["decode"], "context", 128)
    assert best is not None
    rows = [
        line(
            "decode, tokens/s (context not given; ours at 128)",
            _ours(best["tokens_per_second"], ".1f", _how(best, run)),
            (cell(d.decode.get(0), ".2f") for d in designs),
        )
    ]
    for context in (1, 1024, 2048, 4096):
        found = _at(ours["decode"], "context", context)
        own = _ours(found["tokens_per_second"], ".1f", _how(found, run)) if found else "—"
        rows.append(line(f"decode at context {context:,}, tokens/s", own, (cell(d.decode.get(context), ".0f") for d in designs)))
    for prompt in PROMPTS:
        found = _at(ours["prefill"], "tokens", prompt)
        own = _ours(found["seconds"], ".3f") if found else "—"
        rows.append(line(f"time to first token of {prompt:,}, s", own, (cell(d.ttft.get(prompt), ".2f") for d in designs)))
    rows.append(line("bits moved per useful weight", _ours(ours["bits_per_weight"], ".3f", "counted"), (cell(d.bits_per_weight, ".3f") for d in designs)))
    for kind, name in LUTS.items():
        own = f"**{_count(kind, ours['resources'][kind])}** (predicted: fitted model)"
        rows.append(line(name, own, (cell(d.resources.get(kind), ",.1f" if kind == "bram36" else ",.0f") for d in designs)))
    rows.append(line("power, W", "— (no measured source)", (cell(d.watts, ".2f") for d in designs)))
    head = [NAMES[model], "lutra, preset `kv260`", *(d.name for d in designs)]
    notes = "\n".join(f"- {d.name}: {d.source}" + (f"; {d.note}." if d.note else ".") for d in designs)
    return f"{table(head, rows)}\n\n{notes}"


def _decode(result: Row) -> str:
    head = ["context", *(f"{NAMES[m]}: {text}" for m in MODELS for text in ("tokens/s", "ceiling", "share", "limited by"))]
    rows = []
    for context in CONTEXTS:
        cells = []
        for model in MODELS:
            one = preset_of(result, model)
            found = _at(one["decode"], "context", context)
            star = "*" if context > one["positions"] else ""
            cells += (
                [f"{found['tokens_per_second']:.2f}{star}", f"{found['ceiling']:.2f}", f"{100 * found['fraction']:.2f} %", found["limit"]]
                if found
                else ["—"] * 4
            )
        rows.append([f"{context:,}", *cells])
    return table(head, rows)


def _ttft(result: Row) -> str:
    goals = {64: 0.06, 128: 0.11, 512: 0.65}
    rows = []
    for prompt in PROMPTS:
        cells = []
        for model in MODELS:
            one = preset_of(result, model)
            found = _at(one["prefill"], "tokens", prompt)
            star = "*" if prompt > one["positions"] else ""
            cells += [f"{found['cycles']:,}", f"{found['seconds']:.4f}{star}", found["limit"]] if found else ["—"] * 3
        rows.append([f"{prompt:,}", f"{goals[prompt]:.2f}" if prompt in goals else "—", *cells])
    return table(["prompt", "asked of 0.73B, s", *(f"{NAMES[m]}: {text}" for m in MODELS for text in ("cycles", "s", "limited by"))], rows)


def _bytes(result: Row) -> str:
    rows, context = [], 128
    found = {model: _at(preset_of(result, model)["decode"], "context", context) for model in MODELS}
    kinds = list(dict.fromkeys(kind for row in found.values() if row for kind in row["bytes_by_kind"]))
    for kind in kinds:
        rows.append([kind, *(f"{row['bytes_by_kind'].get(kind, 0) / 1e6:,.3f}" if row else "—" for row in found.values())])
    rows.append(["**together**", *(f"**{row['bytes'] / 1e6:,.3f}**" if row else "—" for row in found.values())])
    rows.append(["least (1.6-bit weights, 8-bit head, 8-bit keys and values)", *(f"{row['least_bytes'] / 1e6:,.3f}" if row else "—" for row in found.values())])
    rows.append(["bits per useful ternary weight", *(f"{preset_of(result, m)['bits_per_weight']:.4f}" for m in MODELS)])
    return table([f"megabytes of a token at context {context}", *(NAMES[m] for m in MODELS)], rows)


def _padding(points: Iterable[Row]) -> str:
    """Why more ports may gain little or lose: what their wider beats add to rows."""
    told, slower = [], []
    first: dict[str, float] = {}
    for point in (one for one in points if "row_bytes" in one):
        name, speed = f"{point['name']}, {NAMES[point['model']]}", point["decode"][-1]["tokens_per_second"]
        if speed < first.setdefault(point["model"], speed):
            slower.append(name)
        longer = [f"{stored} bytes for {useful} of {kind}" for kind, (useful, stored) in point["row_bytes"].items() if stored > useful]
        if longer:
            told.append(f"{name}: rows take {' and '.join(longer)}")
    lose = f" ({'; '.join(slower)}: slower than with the fewest)" if slower else ""
    why = "rows are padded to wider beats, and the padding is read like everything else"
    return f"More ports can gain little or lose{lose}: {why}. {'. '.join(told)}; elsewhere none."


def _curves(result: Row) -> str:
    parts = []
    for curve, points in result["curves"].items():
        if curve == "preset":
            continue
        rows, refused = [], []
        for point in points:
            if "refused" in point:
                rows.append([point["name"], NAMES[point["model"]], *["—"] * 5])
                refused.append(f"{point['name']}, {NAMES[point['model']]}: `{point['refused']}`")
                continue
            decode = [f"{row['tokens_per_second']:.2f} ({100 * row['fraction']:.1f} %)" for row in point["decode"]]
            rows.append(
                [
                    point["name"],
                    NAMES[point["model"]],
                    f"{point['bandwidth'] / 1e9:.2f}",
                    *decode,
                    f"{point['prefill'][0]['seconds']:.4f}",
                    point["prefill"][0]["limit"],
                ]
            )
        head = [curve, "model", "GB/s", "tokens/s at 128 (share of ceiling)", "at 1,024", "time to first token of 128, s", "limited by"]
        notes = "\n\n" + _padding(points) if curve.startswith("ports") else ""
        parts.append(table(head, rows) + notes + ("\n\nNot possible: " + "; ".join(refused) + "." if refused else ""))
    return "\n\n".join(parts)


def _fits(result: Row, synthesis: Row | None) -> str:
    device = load_device("kv260")
    rows = []
    for kind, name in LUTS.items():
        total = device.totals[kind]  # type: ignore[index]  # kinds of this device
        cells = [f"{_count(kind, preset_of(result, m)['resources'][kind])} ({100 * preset_of(result, m)['resources'][kind] / total:.1f} %)" for m in MODELS]
        rows.append([name, f"{total:,.0f}", f"{device.limit * total:,.0f}", *cells])
    text = table(["", "KV260", f"{100 * device.limit:.0f} %", *(f"core for {NAMES[m]}, fitted model" for m in MODELS)], rows)
    room = " and ".join(f"{preset_of(result, m)['positions']:,}" for m in MODELS)
    text += f"\n\nFitted here and counted below: cores with room for the models' own positions, {room}. Times beyond (`*`) are of cores with more room."
    return text + (f"\n\n{counted(synthesis)}" if synthesis else "")


def _tellme(result: Row) -> str:
    found = result["tellme"]
    tokens = found["tokens"]
    kinds = list(dict.fromkeys(kind for token in tokens for kind in token["milliseconds"]))
    rows = [[f"{kind}, ms", *(f"{token['milliseconds'].get(kind, 0):.2f}" for token in tokens)] for kind in kinds]
    rows.append(["**tokens/s**", *(f"**{token['tokens_per_second']:.1f}**" for token in tokens)])
    rows.append(["bits per useful weight (theirs: 2.064)", *(f"{token['bits_per_weight']:.3f}" for token in tokens)])
    rows.append(["share of the engine's time in lookups (theirs: 55 %)", *(f"{100 * token['lookup_share']:.1f} %" for token in tokens)])
    head = ["", *(f"{token['ports']} port{'s' if token['ports'] > 1 else ''}, context {token['context']:,}" for token in tokens)]
    facts = "\n".join(f"- {name}: {text}" for name, text in found["facts"].items())
    assumed = "\n".join(f"- {name}: {text}" for name, text in found["assumed"].items())
    return f"{table(head, rows)}\n\nTheirs:\n\n{facts}\n\nAssumed, since no source at hand tells:\n\n{assumed}"


def _backing(core: str, runs: Mapping[str, Row]) -> str:
    return str(proof(runs[core])) if core in runs else "no RTL run of a core of these sizes is stored"


def _proof(result: Row, runs: Mapping[str, Row]) -> str:
    return "\n".join(f"- {NAMES[m]}: {_backing(preset_of(result, m)['core'], runs)}." for m in MODELS)


def _driver(runs: Mapping[str, Row]) -> str:
    """How fast the RTL of a whole core is simulated, from the stored runs."""
    rows = []
    for run in runs.values():
        load = f"{run['load']:.2f}" if "load" in run else "not kept"
        for name, what in (("token", "a token"), ("layer", f"{run['prompt']} tokens, one layer")):
            one = run[name]
            wall, used = one["cycles_per_second"], one["cycles_per_processor_second"]
            core = f"{NAMES.get(run['model'], run['model'])}, `{run['preset']}`: {what}"
            rows.append([core, f"{one['cycles']:,}", f"{one['rtl_seconds']:.1f}", f"{wall:,}", f"{used:,}", f"{100 * wall / used:.0f} %", load, run["date"]])
    head = ["run", "clock cycles", "seconds", "cycles/s", "cycles per processor second", "share of a processor", "load before", "date"]
    machines = sorted({f"{run['machine']['processor']}, {run['machine']['cores']} cores" for run in runs.values()})
    return f"""Clock cycles of the RTL, the fetch of the program included, by wall clock: over the seconds of the simulator's process, start-up and recording
of every boundary included (golden and cycle model and the comparison come on top); and over the processor (user) seconds of this process, which has one thread.
Where it got much less than a whole processor the machine ({"; ".join(machines)}) had other jobs beside it, and the rate by wall clock tells
about them, not about the driver. Load: the system's average over the minute before the run.

{table(head, rows)}"""


def tables(result: Row) -> str:
    """The figures by themselves, for the terminal."""
    return "\n\n".join(
        [*(_versus(result, model, token_runs()) for model in MODELS), _decode(result), _ttft(result), _bytes(result), _curves(result), _tellme(result)]
    )


def page(result: Row, date: str, machine: Row, others: Mapping[str, Row], runs: Mapping[str, Row]) -> str:
    """The whole page in Markdown; ``others``: further stored results by benchmark; ``runs``: those of tokens on the RTL by core (``sizes_hash``)."""
    sizes = preset_of(result, MODELS[0])["sizes"]
    memory = sizes["memory"]
    return f"""<!-- SPDX-License-Identifier: Apache-2.0 -->
<!-- Written by `python -m benchmarks kv260`: change benchmarks/kv260_page.py, not this file. -->
# BitNet 0.73B and 2B4T on a KV260: at the speed of its memory

Preset `kv260`: {sizes["tables"]} tables x {sizes["columns"]} columns x {sizes["lanes"]} token lanes, G = {sizes["group"]},
{sizes["vector_lanes"]} vector lanes, {memory["ports"]} AXI4 ports of 128 bits, {sizes["clock_hz"] / 1e6:.0f} MHz, 16.0 GB/s, which was proven on the board;
no refresh is visible at the ports (it is inside that figure). *in RTL*: this very token ran on the RTL of this core, every word and every cycle as predicted;
*predicted*: by the cycle model that [those runs](#what-backs-the-figures) back ([architecture.md](architecture.md), part 5), not run itself; *counted*: in the
program. Nothing of ours was measured on a board: the clock is a claim until a routed design backs it. *measured*: on a board, by the authors; *relayed*: seen
in a third party's text only; —: nobody says.

Written by `python -m benchmarks kv260` on {date}, in {result["seconds"]:.0f} s on {result["cores"]} cores of {machine["processor"]}, Python
{machine["python"]}. All figures: [results/kv260-{date}.json](results/kv260-{date}.json). Times do not depend on weights: all are from shapes.

## Against the published numbers

{_versus(result, "bitnet-0.73b", runs)}

{_versus(result, "bitnet-2b4t", runs)}

{published.ELSEWHERE}

## Decode against the ceiling

Ceiling: bandwidth over the least bytes of a token: ternary weights at 1.6 bits, the 8-bit head, 8-bit keys and values of the context read and of one token
written (scales, padding, gains, rotary rows and the embedding are ours to bear). A context of n attends n rows, the present token included. `*`: beyond the
model's own positions, so a shape only. Drafted verification and the two-plane head are not counted here.

{_decode(result)}

![Tokens per second against context](results/kv260-decode.svg)

## Time to the first token

From the start pulse to the first token, the head included.

{_ttft(result)}

## Bytes

{_bytes(result)}

## Curves

{_curves(result)}

{_extra(result, others, runs)}## What it takes of the device

{_fits(result, others.get("resources"))}

## What backs the figures

On the RTL of the preset's cores, with room for the model's own positions, random weights and, at context {CONTEXT}, a random cache; all other contexts and
prompts are the cycle model's alone. A run is of RTL and models as they were: where either has changed since, its line says so.

{_proof(result, runs)}

### Speed of the simulation

{_driver(runs)}

## TeLLMe v2's serial schedule on our cycle models

Where the factor comes from: the same model on an engine and a schedule like theirs, built from our units' cycle models (`benchmarks/tellme.py`), beside the 25
tokens/s that they measured.

{_tellme(result)}
"""


def _drafts(result: Row, found: Row) -> str:
    """What the drafts' acceptance on the shipped model would give at full size."""
    head = ["tokens in a pass (newest and drafts)", "tokens a pass yields: mean (worst to best text)"]
    serial = result.get("serial", {})
    head += [f"{NAMES[m]} at {int(context):,}: pass, ms; tokens/s" for m in serial for context in serial[m]]
    rows = []
    for lanes, mean in found["tokens_per_pass"].items():
        row = [lanes, f"{mean:.3f} ({found['worst_text'][lanes]:.2f} to {found['best_text'][lanes]:.2f})"]
        for points in serial.values():
            for cycles in points.values():
                own = cycles.get(lanes)
                row.append(f"{1e3 * own / CLOCK_HZ:.2f}; {mean * CLOCK_HZ / own:.1f}" if own else "—")
        rows.append(row)
    return f"""Drafts from n-grams of up to {found["longest_ngram"]} tokens of the prompt and the text so far, verified by the token lanes that decode
leaves idle; the text is greedy decoding's, bit for bit. Measured over {found["tokens"]:,} tokens that the golden model of `{found["model"]}` wrote greedily
behind {found["texts"]} pieces of {found["prompt"]} held-out characters. At full size the cycles of a pass are the model's (*predicted*); that its text
would be as repetitive is an assumption.

{table(head, rows)}

{_shipped(found)}"""


def _shipped(found: Row) -> str:
    """Tokens per second that the drafts give the shipped model itself, by core."""
    lanes = list(dict.fromkeys(name for core in found["cores"] for name in core["drafted"]))
    rows = []
    for core in found["cores"]:
        speed = core["memory_bytes_per_second"]
        where = f"through one port, {speed / 1e9:.1f} GB/s" if speed else "on chip"
        drafted = [core["drafted"].get(name) for name in lanes]
        shown = [f"{each:,.0f} ({each / core['greedy']:.2f}x)" if each else "—" for each in drafted]
        rows.append([f"`{core['name']}`", f"{core['clock_hz'] / 1e6:.0f} MHz", where, f"{core['greedy']:,.0f}", *shown])
    head = ["core", "clock", "weights", "greedy, tokens/s", *(f"{name} tokens in a pass" for name in lanes)]
    return f"""The same texts at the speed of the shipped model itself, every pass by its tokens and its place (cycle model; prompts and the host's own
time between two passes left out). It is a small model: a token's attention, which drafts do not share, takes about as long as its weights, so that drafts
pay little where weights are on chip, more where they come from a memory, and most at full size and short contexts, where a pass is nearly all weights.

{table(head, rows)}"""


def _planes(result: Row, found: Row, runs: Mapping[str, Row]) -> str:
    """What the head in two planes moves and gains at full size."""
    told = f"measured with the shipped model, a vocabulary of {found['vocabulary']}: at full size an illustration"
    names = {found["rescored_share"]: f"{100 * found['rescored_share']:.1f} % ({told})", 0.0: "one of each 128 (bound)", 1.0: "all (worst case)"}
    points = {(one["model"], point["context"], point["share"]): point for one in result["planes"] for point in one["points"]}
    contexts, shares = (sorted({key[place] for key in points}) for place in (1, 2))

    def speed(point: Row) -> str:
        return f"{point['tokens_per_second']:.2f} ({100 * point['fraction']:.1f} %)"

    rows = []
    for share in shares:
        row = [names.get(share, f"{100 * share:.0f} %")]
        for model in MODELS:
            row.append(f"{points[model, contexts[0], share]['bytes'] / 1e6:,.1f}")
            row += [speed(points[model, context, share]) for context in contexts]
        rows.append(row)
    row = ["one 8-bit table (preset `kv260`)"]
    for model in MODELS:
        decode = [_at(preset_of(result, model)["decode"], "context", context) for context in contexts]
        known = [one for one in decode if one]
        row += [f"{known[0]['bytes'] / 1e6:,.1f}", *map(speed, known)]
    rows.append(row)
    head = ["rows scored again"]
    head += [f"{NAMES[m]}: {text}" for m in MODELS for text in ("MB a token", *(f"tokens/s at {context:,} (share)" for context in contexts))]
    backed = " ".join(f"{NAMES[one['model']]}: {_backing(one['core'], runs)}." for one in result["planes"])
    kinds = ", ".join(f"{NAMES[one['model']]} {one['resources']['lut']:,.0f} LUT, {one['resources']['bram36']:.1f} BRAM36" for one in result["planes"])
    least = 100 * min(point["fraction"] for point in points.values())
    fits = "fit" if all(one["fits"] for one in result["planes"]) else "do not fit"
    return f"""The high plane of the table is read whole, the low plane only of rows that may still hold the best score; LOADER and HEAD do it in hardware.
Preset `kv260-planes`: {kinds} by the fitted model, which {fits}. Every choice is certified to be the int8 head's.
On {found["positions"]:,} held-out characters of `{found["model"]}` (a vocabulary of {found["vocabulary"]}) {found["same_choices"]:,} choices are the int8
head's, {100 * found["rescored_share"]:.1f} % of the rows are scored again and {100 * found["bytes_share"]:.1f} % of the two planes' bytes are read.
The share is of such a token's own ceiling: bandwidth over its least bytes, the high plane and the low rows scored again in place of the 8-bit head; it is
{least:.1f} % at least.
At full size *predicted* by the cycle model; how many rows a trained model of that size would score again is not known, and in the worst case no more bytes
are read than of the 8-bit table. On the RTL: {backed}

{table(head, rows)}"""


def _extra(result: Row, others: Mapping[str, Row], runs: Mapping[str, Row]) -> str:
    """Sections of further stored results."""
    parts = ""
    if "drafts" in others:
        parts += f"## Past the ceiling: drafted tokens\n\n{_drafts(result, others['drafts'])}\n\n"
    if "planes" in others:
        parts += f"## Past the ceiling: the head in two planes\n\n{_planes(result, others['planes'], runs)}\n\n"
    return parts
