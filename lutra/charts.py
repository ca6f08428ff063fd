# SPDX-License-Identifier: Apache-2.0
"""Charts of reports as inline SVG: equal reports give equal bytes, text stays text."""

import io
import re
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lutra.schema import Report

__all__ = ["charts"]

INK, MUTED, GRID = "#24303a", "#66737d", "#e3e7ea"
BUSY, IDLE = "#1f7a74", "#e9edef"
STALLS = ("#c9822b", "#6f8f4e", "#8a7a9b", "#d7c7a0", "#a65a3a", "#4f7cac", "#e0b15a", "#b58fa5", "#7d7d6b")
RUNS = ("#1f7a74", "#c9822b", "#5a6fa8", "#a65a3a", "#6f8f4e", "#8a7a9b")
STYLE: Any = {
    "svg.hashsalt": "lutra",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9,
}
WIDTH = 8.6  # inches of 72 units: the page's text column
Named = tuple[str, Report]


def charts(runs: Sequence[Named]) -> dict[str, str]:
    """SVG text by chart: ``units``, ``layers``, ``decode``, ``sweep``, ``scaling``, ``roofline``; a chart without figures is absent.

    Parameters
    ----------
    runs : (label, report) in the order of display
    """
    drawn = {}
    with rc_context(STYLE):
        for name, draw in {"units": _units, "layers": _layers, "decode": _decode, "sweep": _sweep, "scaling": _scaling, "roofline": _roofline}.items():
            figure = draw(runs)
            if figure is not None:
                drawn[name] = _svg(figure, name)
    return drawn


def _units(runs: Sequence[Named]) -> Figure | None:
    """Per unit one bar per run: busy, stalls by reason, and the rest of the clock cycles idle."""
    rows = [(label, report, unit) for label, report in runs for unit in report.units or ()]
    if not rows:
        return None
    names = list(dict.fromkeys(unit.name for _, _, unit in rows))
    rows.sort(key=lambda row: names.index(row[2].name))  # stable: runs stay in order within a unit
    reasons = sorted({reason for _, _, unit in rows for reason, cycles in unit.stall_cycles.items() if cycles})
    figure, axes = _axes(0.36 * len(rows) + 0.95 + 0.2 * (len(reasons) // 4))
    seen = set()
    for y, (label, _, unit) in enumerate(rows):
        total = unit.busy_cycles / unit.utilisation if unit.utilisation else max(sum(unit.stall_cycles.values()), 1)
        left = 0.0
        parts: list[tuple[str, float, str]] = [("busy", unit.busy_cycles, BUSY)]
        parts += [(r, unit.stall_cycles.get(r, 0), STALLS[i % len(STALLS)]) for i, r in enumerate(reasons)]
        parts.append(("idle", max(total - sum(cycles for _, cycles, _ in parts), 0), IDLE))
        for part, cycles, colour in parts:
            share = 100 * cycles / total
            if share > 0:
                axes.barh(y, share, left=left, height=0.62, color=colour, label=None if part in seen else part)
                seen.add(part)
            left += share
        text = f"{100 * unit.utilisation:.1f} %" + (f"  {label}" if len(runs) > 1 else "")
        axes.text(101, y, text, va="center", fontsize=9, color=MUTED)
    axes.set_yticks(range(len(rows)), [unit.name for _, _, unit in rows])
    axes.set_xlim(0, 100)
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    axes.set_xlabel("share of all clock cycles, %")
    _legend(axes, {"busy": 0, "idle": 99} | {reason: 1 for reason in reasons})
    return figure


def _layers(runs: Sequence[Named]) -> Figure | None:
    """Cycles per layer, grouped by run."""
    shown = [(label, report) for label, report in runs if report.layers]
    if not shown:
        return None
    names = list(dict.fromkeys(layer.name for _, report in shown for layer in report.layers or ()))
    bar = 0.72 / len(shown)
    figure, axes = _axes(min(0.27 * len(names) * max(1, 0.7 * len(shown)) + 0.9, 9.0))
    for index, (label, report) in enumerate(shown):
        cycles = {layer.name: layer.cycles for layer in report.layers or ()}
        places = [names.index(name) + (index - (len(shown) - 1) / 2) * bar for name in cycles]
        axes.barh(places, list(cycles.values()), height=bar * 0.92, color=RUNS[index % len(RUNS)], label=label)
    axes.set_yticks(range(len(names)), names, fontsize=9.5 if len(names) <= 32 else 6)
    axes.grid(axis="y", visible=False)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("clock cycles")
    axes.xaxis.set_major_formatter(FuncFormatter(_count))
    if len(shown) > 1:
        _legend(axes, {})
    return figure


def _decode(runs: Sequence[Named]) -> Figure | None:
    """Cycles of every decoded token against the KV rows that it attends."""
    shown = [(label, report.decode) for label, report in runs if report.decode and report.decode.per_token and len(report.decode.per_token) > 1]
    if not shown:
        return None
    figure, axes = _axes(2.7)
    for index, (label, decode) in enumerate(shown):
        first = decode.context - decode.tokens + 1
        points = decode.per_token or []
        colour = RUNS[index % len(RUNS)]
        axes.plot(range(first, decode.context + 1), points, color=colour, linewidth=1.6, marker="o", markersize=2.6, label=label)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("context: KV rows attended")
    axes.set_ylabel("clock cycles per token")
    axes.yaxis.set_major_formatter(FuncFormatter(_count))
    if len(shown) > 1:
        _legend(axes, {})
    return figure


def _sweep(runs: Sequence[Named]) -> Figure | None:
    """Latency of a token against its context."""
    shown = [(label, report.sweep, report.clock_hz) for label, report in runs if report.sweep and len(report.sweep) > 1]
    if not shown:
        return None
    figure, axes = _axes(2.9)
    highest = 0.0
    for index, (label, points, clock) in enumerate(shown):
        times = {point.context: 1e3 * point.cycles_per_token / clock for point in points}
        axes.plot(*zip(*sorted(times.items()), strict=True), color=RUNS[index % len(RUNS)], linewidth=1.6, marker="o", markersize=3.5, label=label)
        highest = max(highest, *times.values())
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(_count))
    axes.set_ylim(0, 1.08 * highest)
    axes.set_xlabel("context: KV rows attended")
    axes.set_ylabel("latency of a token, ms")
    if len(shown) > 1:
        _legend(axes, {})
    return figure


def _scaling(runs: Sequence[Named]) -> Figure | None:
    """Tokens per second against channels, with the line of perfect scaling."""
    shown = [(label, report.scaling) for label, report in runs if report.scaling and len(report.scaling) > 1]
    if not shown:
        return None
    figure, axes = _axes(2.9)
    for index, (label, points) in enumerate(shown):
        colour, first = RUNS[index % len(RUNS)], points[0]
        counts = [point.channels for point in points]
        perfect = [first.tokens_per_second * n / first.channels for n in counts]
        axes.plot(counts, perfect, color=MUTED, linewidth=1.0, linestyle="--", label="perfect" if not index else None)
        axes.plot(counts, [point.tokens_per_second for point in points], color=colour, linewidth=1.6, marker="o", markersize=3.5, label=label)
        for point in points:
            if not point.fits:
                axes.annotate("does not fit", (point.channels, point.tokens_per_second), xytext=(5, -11), textcoords="offset points", fontsize=8.5, color=MUTED)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(_count))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("channels")
    axes.set_ylabel("tokens per second")
    _legend(axes, {})
    return figure


def _roofline(runs: Sequence[Named]) -> Figure | None:
    """Reached multiply-accumulates per cycle under the roof of memory and compute."""
    shown = [(label, report.roofline) for label, report in runs if report.roofline and report.roofline.points]
    if not shown:
        return None
    figure, axes = _axes(3.0)
    intensities = [point.operations_per_byte for _, roof in shown for point in roof.points if point.operations_per_byte > 0]
    low, high = min(intensities, default=1) / 3, max(intensities, default=1) * 3
    for index, (label, roof) in enumerate(shown):
        colour = RUNS[index % len(RUNS)]
        ridge = roof.peak_operations_per_cycle / roof.peak_bytes_per_cycle
        xs = sorted({low, min(max(ridge, low), high * 2), high * 2})
        axes.plot(xs, [min(roof.peak_operations_per_cycle, x * roof.peak_bytes_per_cycle) for x in xs], color=colour, linewidth=1.6, label=label)
        for point in roof.points:
            axes.plot([point.operations_per_byte], [point.operations_per_cycle], "o", color=colour, markersize=5)
            axes.annotate(
                point.name, (point.operations_per_byte, point.operations_per_cycle), xytext=(6, -10), textcoords="offset points", fontsize=8.5, color=INK
            )
    axes.set_xscale("log")
    axes.set_yscale("log")
    reached = [point.operations_per_cycle for _, roof in shown for point in roof.points if point.operations_per_cycle > 0]
    axes.set_ylim(bottom=min(reached, default=1) / 3, top=2 * max(roof.peak_operations_per_cycle for _, roof in shown))
    axes.set_xlabel("multiply-accumulates per byte moved")
    axes.set_ylabel("multiply-accumulates per cycle")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_count))
        axis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
    if len(shown) > 1:
        _legend(axes, {})
    return figure


def _axes(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    return figure, figure.add_subplot()


def _legend(axes: Axes, order: dict[str, int]) -> None:
    """Above the axes, at most four entries side by side where there are many, by ``order``, then as drawn."""
    handles, labels = axes.get_legend_handles_labels()
    places = sorted(range(len(labels)), key=lambda i: (order.get(labels[i], 0), i))
    axes.legend(
        [handles[i] for i in places],
        [labels[i] for i in places],
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=8 if len(places) <= 5 else 4,
        handlelength=1,
        handleheight=1,
        borderaxespad=0.3,
    )


def _count(value: float, _: object = None) -> str:
    """1200000 → 1.2M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{suffix}"
    return f"{value:.4g}"


def _svg(figure: Figure, name: str) -> str:
    """SVG for inlining: scales with the page, no machine's fonts, ids that do not meet another chart's."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="\1" role="img" class="chart" aria-label="{name}">',
        text,
        count=1,
    )
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*|(font: [\d.]+px) [^;\"]*", lambda found: f"{found[1]} inherit" if found[1] else "font-family: inherit", text)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    return re.sub(r'(url\(#|href="#)', rf"\1{name}-", text)
