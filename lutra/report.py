# SPDX-License-Identifier: Apache-2.0
"""Reports from report.json: terminal tables, one self-contained HTML page, CSV; two or more runs side by side."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lutra.hls_models.errors import LutraError
from lutra.runs import write_whole
from lutra.schema import Report

__all__ = ["FORMATS", "Row", "csv_text", "flatten", "html", "labels", "rows", "terminal", "write_reports"]

Named = tuple[str, Report]
TEMPLATES = Path(__file__).parent / "templates"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _short(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.4g} %"


def _scaled(unit: str, base: int = 1000) -> Callable[[float], str]:
    """A formatter that chooses a prefix: 16000000000 → 16 GB/s, with base 1024 4294967296 → 4 GiB."""

    def show(value: float) -> str:
        for power, prefix in ((4, "T"), (3, "G"), (2, "M"), (1, "k")):
            if abs(value) >= base**power:
                return f"{value / base**power:.4g} {prefix if base == 1000 else prefix.upper() + 'i'}{unit}"
        return f"{value:.4g} {unit}"

    return show


def _seconds(value: float) -> str:
    return _below(value, "s")


def _joules(value: float) -> str:
    return _below(value, "J")


def _below(value: float, unit: str) -> str:
    """Chooses a prefix for figures that are mostly below 1: 0.0158 → 15.8 m."""
    for size, prefix in ((1, ""), (1e-3, "m"), (1e-6, "µ")):
        if value >= size:
            return f"{value / size:.4g} {prefix}{unit}"
    return f"{value * 1e9:.4g} n{unit}"


@dataclass(frozen=True)
class Line:
    """A figure that reports show: its place in report.json, its name for readers, how it is written, and whether runs compare by ratio."""

    section: str
    place: str
    name: str
    show: Callable[[Any], str] = str
    compare: bool = False


LINES = (
    Line("Run", "model.name", "model"),
    Line("Run", "model.parameters", "parameters", _scaled("")),
    Line("Run", "config.name", "configuration"),
    Line("Run", "config.hash", "configuration hash", lambda text: text[:12]),
    Line("Run", "target", "target"),
    Line("Run", "clock_hz", "clock", _scaled("Hz")),
    Line("Run", "seed", "seed"),
    Line("Prefill", "prefill.tokens", "prompt tokens", _whole),
    Line("Prefill", "prefill.cycles", "cycles to the first token", _whole, True),
    Line("Prefill", "prefill.seconds", "time to the first token", _seconds, True),
    Line("Prefill", "prefill.limit", "limited by"),
    Line("Decode", "decode.tokens", "tokens", _whole),
    Line("Decode", "decode.context", "context of the last", _whole),
    Line("Decode", "decode.cycles_per_token", "cycles per token", _short, True),
    Line("Decode", "decode.tokens_per_second", "tokens per second", _short, True),
    Line("Decode", "decode.tokens_per_pass", "tokens per verified pass", _short, True),
    Line("Decode", "decode.limit", "limited by"),
    Line("Decode", "decode.rescored_rows", "rows of the head scored again", _whole),
    Line("Attention", "attention.group", "query heads per KV head", _whole),
    Line("Attention", "attention.clocks", "clocks per key and value", _short, True),
    Line("Attention", "attention.memory_clocks", "of the memory", _short, True),
    Line("Attention", "attention.taken_clocks", "as they came", _short, True),
    Line("Attention", "attention.keeps_pace", "keeps pace with the memory", lambda keeps: "yes" if keeps else "NO: slower as the context grows"),
    Line("Proof", "backing", "RTL runs of this configuration"),
    Line("Proof", "rtl.words_compared", "words compared", _whole),
    Line("Proof", "rtl.words_mismatched", "words mismatched", _whole),
    Line("Proof", "rtl.cycles_predicted", "cycles predicted", _whole),
    Line("Proof", "rtl.cycles_measured", "cycles measured", _whole),
    Line("Memory", "memory.bytes_per_token", "bytes per token", _scaled("B"), True),
    Line("Memory", "memory.least_bytes_per_token", "least bytes per token", _scaled("B"), True),
    Line("Memory", "memory.bandwidth_bytes_per_second", "bandwidth", _scaled("B/s"), True),
    Line("Memory", "memory.ceiling_tokens_per_second", "ceiling, tokens per second", _short, True),
    Line("Memory", "memory.fraction_of_ceiling", "share of the ceiling", _percent),
    Line("Memory", "memory.fraction_of_row_bound", "share of the row bound", _percent),
    Line("Memory", "memory.image_bytes", "memory image", _scaled("B", 1024)),
    Line("Memory", "memory.bits_per_weight", "bits per useful weight", _short),
    Line("DRAM", "dram.row_hit_rate", "row hits", _percent),
    Line("DRAM", "dram.row_switches", "rows opened per channel", _whole, True),
    Line("DRAM", "dram.idle_banks", "idle banks", _percent),
    Line("DRAM", "dram.capacity_bytes", "capacity", _scaled("B", 1024)),
    Line("DRAM", "dram.used_bytes", "used, room for keys and values included", _scaled("B", 1024)),
    Line("DRAM", "dram.fits", "fits", lambda fits: "yes" if fits else "NO: capacity ignored"),
    Line("Resources", "resources.device", "device"),
    Line("Resources", "resources.fits", "fits", lambda fits: "yes" if fits else "NO"),
    Line("Resources", "resources.share", "largest share", _percent),
    Line("Resources", "resources.largest", "of"),
    Line("Resources", "resources.lut", "LUT", _whole, True),
    Line("Resources", "resources.lutram", "of them RAM", _whole, True),
    Line("Resources", "resources.ff", "flip-flops", _whole, True),
    Line("Resources", "resources.bram", "block RAM", _short, True),
    Line("Resources", "resources.uram", "UltraRAM", _whole, True),
    Line("Resources", "resources.dsp", "DSP", _whole, True),
    Line("Resources", "resources.source", "counted by"),
    Line("Energy", "energy.joules_per_token", "per token", _joules, True),
    Line("Energy", "energy.source", "source"),
)


@dataclass(frozen=True)
class Row:
    """One line of a table: a text per run ("" where the figure was not computed), the ratios to the first run, and where it comes from."""

    section: str
    name: str
    texts: tuple[str, ...]
    ratios: tuple[str, ...]
    sources: tuple[str, ...]


def flatten(value: Any, place: str = "") -> dict[str, Any]:
    """Leaves of plain JSON by dotted place; the items of a list are named by their ``name``, or counted."""
    if isinstance(value, dict):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list):
        names = [item.get("name") if isinstance(item, dict) else None for item in value]
        usable = all(names) and len(set(names)) == len(names)
        items = [(str(names[i]) if usable else str(i), inner) for i, inner in enumerate(value)]
    else:
        return {place: value}
    return {leaf: found for key, inner in items for leaf, found in flatten(inner, f"{place}.{key}" if place else key).items()}


def labels(paths: Sequence[Path]) -> list[str]:
    """Short, different names of run folders: the folder's name, with parents where two are alike."""
    parts = [path.resolve().parts for path in paths]
    for depth in range(1, max((len(p) for p in parts), default=1) + 1):
        names = ["/".join(p[-depth:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({number})" for number, path in enumerate(paths, 1)]


def rows(runs: Sequence[Named]) -> list[Row]:
    """The tables of a report: only figures that at least one run has."""
    facts = [flatten(report.facts()) for _, report in runs]
    found = []
    for line in LINES:
        values = [fact.get(line.place) for fact in facts]
        if any(value is not None for value in values):
            first = values[0]
            ratios = tuple(f"{value / first:.3g}x" if line.compare and value is not None and first and value != first else "" for value in values)
            sources = tuple(_source(report, line.place) for _, report in runs)
            found.append(Row(line.section, line.name, tuple("" if value is None else line.show(value) for value in values), ratios, sources))
    parts = {
        "Time per token": ("dram.nanoseconds", lambda value: _seconds(value * 1e-9)),
        "Pins": ("dram.pin_bytes", _scaled("B")),
        "Bytes per token": ("memory.bytes_by_kind", _scaled("B")),
    }
    for section, (place, show) in {**parts, "Energy": ("energy.parts", _joules)}.items():
        found += _parts(runs, facts, section, place, show)
    return found + _accuracy(runs) + _lists(runs)


def _parts(runs: Sequence[Named], facts: Sequence[dict[str, Any]], section: str, place: str, show: Callable[[Any], str]) -> list[Row]:
    """A line per part of a figure that is a table by name, largest first."""
    names = dict.fromkeys(name for fact in facts for name in sorted(fact, key=lambda name: -fact[name] if name.startswith(f"{place}.") else 0))
    every = tuple("" for _ in runs)
    return [
        Row(section, name.removeprefix(f"{place}."), tuple(show(fact[name]) if name in fact else "" for fact in facts), every, every)
        for name in names
        if name.startswith(f"{place}.")
    ]


def _lists(runs: Sequence[Named]) -> list[Row]:
    """Contexts, numbers of channels and assumptions, a line each."""
    found: dict[tuple[str, str], dict[int, str]] = {}
    for number, (_, report) in enumerate(runs):
        for point in report.sweep or ():
            text = f"{_short(point.tokens_per_second)} tok/s, {_joules(point.joules_per_token)}, {_percent(point.fraction_of_row_bound)} of the row bound"
            found.setdefault(("By context", f"context {point.context:,}"), {})[number] = text
        for step in report.scaling or ():
            mark = "" if step.fits else " (does not fit)"
            text = f"{_short(step.tokens_per_second)} tok/s, efficiency {_percent(step.efficiency)}{mark}"
            found.setdefault(("By channels", f"{step.channels} channels"), {})[number] = text
        for one in report.assumptions or ():
            found.setdefault(("Assumptions", f"without {one.name}: cycles per token"), {})[number] = _whole(one.cycles_per_token_without or 0)
    every = range(len(runs))
    none = tuple("" for _ in every)
    return [Row(section, name, tuple(texts.get(i, "") for i in every), none, none) for (section, name), texts in found.items()]


def _accuracy(runs: Sequence[Named]) -> list[Row]:
    """One row per metric and reference."""
    values: dict[str, dict[int, float]] = {}
    for number, (_, report) in enumerate(runs):
        if report.accuracy:
            for item in (report.accuracy, *report.accuracy.items):
                values.setdefault(f"{item.metric}, against {item.reference}", {})[number] = item.value
    every = range(len(runs))
    return [
        Row("Accuracy", name, tuple(_short(by_run[i]) if i in by_run else "" for i in every), tuple("" for _ in every), tuple("" for _ in every))
        for name, by_run in values.items()
    ]


def _source(report: Report, place: str) -> str:
    """Provenance of the nearest field above ``place`` that has one."""
    while place:
        if place in report.provenance:
            return report.provenance[place]
        place = place.rpartition(".")[0]
    return ""


def verdict(report: Report) -> tuple[str, str]:
    """("proven" | "failed" | "model", sentence) on what of a report the RTL has confirmed."""
    rtl = report.rtl
    if rtl is None or not rtl.simulated or rtl.words_compared is None:
        return "model", "Computed by the cycle model; the RTL did not run for this report."
    words = f"{rtl.words_mismatched or 0:,} of {rtl.words_compared:,} words differ"
    if rtl.cycles_predicted is None or rtl.cycles_measured is None:
        return ("model" if not rtl.words_mismatched else "failed"), f"{words}; cycles were not compared."
    off = rtl.cycles_measured - rtl.cycles_predicted
    cycles = f"{rtl.cycles_measured:,} cycles measured, {'as predicted' if not off else f'{off:+,} against the prediction'}"
    first = f" First difference: {rtl.mismatch}." if rtl.mismatch else ""
    return ("proven" if rtl.proven else "failed"), f"{words}; {cycles}.{first}"


def terminal(runs: Sequence[Named]) -> Any:
    """A rich renderable: figures, then units and layers of a single run."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = []
    table = Table(box=None, padding=(0, 2), show_header=len(runs) > 1, header_style="bold")
    table.add_column("")
    for label, _ in runs:
        table.add_column(Text(label), justify="right", overflow="fold")
    section = ""
    for row in rows(runs):
        if row.section != section:
            table.add_row(Text(row.section, style="bold cyan"), end_section=False)
            section = row.section
        cells = [Text.assemble(text or ("-", "dim"), (f"  {ratio}" if ratio else "", "dim")) for text, ratio in zip(row.texts, row.ratios, strict=True)]
        table.add_row(Text(f"  {row.name}"), *cells)
    parts.append(table)
    for label, report in runs:
        if report.units:
            units = Table(title=Text(f"units: {label}" if len(runs) > 1 else "units"), title_justify="left", title_style="bold cyan", box=None, padding=(0, 2))
            for head in ("unit", "busy cycles", "utilisation", "stalls by reason"):
                units.add_column(head, justify="right" if head in ("busy cycles", "utilisation") else "left", header_style="dim")
            for unit in report.units:
                stalls = ", ".join(f"{reason} {_whole(cycles)}" for reason, cycles in unit.stall_cycles.items() if cycles)
                units.add_row(Text(unit.name), _whole(unit.busy_cycles), _percent(unit.utilisation), Text(stalls or "none"))
            parts.append(units)
    if len(runs) == 1 and runs[0][1].layers:
        layers = Table(title="layers", title_justify="left", title_style="bold cyan", box=None, padding=(0, 2))
        for head in ("layer", "cycles", "bytes"):
            layers.add_column(head, justify="left" if head == "layer" else "right", header_style="dim")
        for layer in runs[0][1].layers:
            layers.add_row(Text(layer.name), _whole(layer.cycles), "" if layer.bytes is None else _whole(layer.bytes))
        parts.append(layers)
    for label, report in runs:
        kind, sentence = verdict(report)
        style = {"proven": "bold green", "failed": "bold red", "model": "yellow"}[kind]
        parts.append(Text(f"{label + ': ' if len(runs) > 1 else ''}{sentence}", style=style))
    return Group(*parts)


def csv_text(runs: Sequence[Named]) -> str:
    """Every figure of every run: one line per figure (dotted place), one column per run; absent figures are empty."""
    facts = [flatten(report.facts()) for _, report in runs]
    places = list(dict.fromkeys(place for fact in facts for place in fact))
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["figure", *(label for label, _ in runs)])
    writer.writerows([place, *(fact.get(place, "") for fact in facts)] for place in places)
    return buffer.getvalue()


def html(runs: Sequence[Named]) -> str:
    """One page that needs nothing else: styles, charts and figures inside."""
    import jinja2

    from lutra.charts import charts

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"whole": _whole, "percent": _percent, "short": _short, "seconds": _seconds, "joules": _joules}
    sections: dict[str, list[Row]] = {}
    for row in rows(runs):
        sections.setdefault(row.section, []).append(row)
    return environment.get_template("report.html").render(runs=runs, sections=sections, charts=charts(runs), verdicts=[verdict(report) for _, report in runs])


FORMATS: dict[str, Callable[[Sequence[Named]], str]] = {"html": html, "csv": csv_text}


def write_reports(runs: Sequence[Named], folder: Path, formats: Sequence[str]) -> list[Path]:
    """Writes ``report.FORMAT`` for each format into ``folder``; returns the files."""
    written = []
    for name in formats:
        if name not in FORMATS:
            raise LutraError(f"format {name}: must be one of {', '.join(FORMATS)}")
        path = folder / f"report.{name}"
        text = FORMATS[name](runs)
        write_whole(path, partial(Path.write_text, data=text, encoding="utf-8"))
        written.append(path)
    return written
