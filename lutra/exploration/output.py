# SPDX-License-Identifier: Apache-2.0
"""What a search shows: the Pareto front as a table for the terminal and as a plot."""

import io
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from rich.console import Group
from rich.table import Table
from rich.text import Text

from lutra.charts import BUSY, MUTED, STALLS, STYLE, WIDTH
from lutra.exploration.search import Exploration, Found
from lutra.exploration.space import Choice
from lutra.hls_models.ternary.resources import stated_error

__all__ = ["SHORT", "TABLE_WIDTH", "plot", "table"]

TABLE_WIDTH = 120
"""Columns of text that a table needs."""

SHORT = {
    "tables": "T",
    "columns": "Q",
    "lanes": "M",
    "half_tables": "half",
    "vector_lanes": "V",
    "lane_groups": "groups",
    "tile_rows": "tile",
    "ring_rows": "ring",
    "key_tile": "keys",
    "burst_beats": "burst",
}
"""Sizes under a table's narrow heads."""
AXES = {
    "decode": ("tokens per second at context {context:,}", "decode_tokens_per_second", 1.0),
    "ttft": ("seconds to the first token of {prompt:,}", "ttft_seconds", 1.0),
    "bytes": ("megabytes moved per token at context {context:,}", "bytes_per_token", 1e-6),
}


def table(result: Exploration) -> Group:
    """The front, best first; the configuration that the search started from below it where it was counted and is not on the front. Sizes that are the same
    in all rows stand in one line below."""
    start = [found for found in result.evaluated if found.candidate.point == result.space.start and found not in result.front]
    lines = [*((" ", found) for found in result.front), *(("start", found) for found in start)]
    varied = [place for place in range(len(result.space.names)) if len({found.candidate.point[place] for _, found in lines}) > 1]
    kinds = [kind for kind in result.device.totals if any(found.candidate.fit.used.get(kind) for _, found in lines)]
    shown = Table(box=None, padding=(0, 1))
    for head in ("", "tokens/s", "ceiling", "TTFT s", "MB/token"):
        shown.add_column(head, justify="right", no_wrap=True)
    for place in varied:
        shown.add_column(SHORT.get(result.space.names[place], result.space.names[place]), justify="right", style="cyan", no_wrap=True)
    for kind in kinds:
        shown.add_column(f"{kind} %", justify="right", no_wrap=True)
    for mark, found in lines:
        row = result.row(found)
        shares = {kind: f"{100 * row['resources'].get(kind, 0) / result.device.totals[kind]:.0f}" for kind in kinds}
        shown.add_row(
            mark,
            f"{row['decode_tokens_per_second']:,.2f}",
            f"{100 * row['fraction_of_ceiling']:.1f} %",
            f"{row['ttft_seconds']:.4f}",
            f"{row['bytes_per_token'] / 1e6:,.2f}",
            *(_text(found.candidate.point[place]) for place in varied),
            *(f"[bold]{share}[/]" if kind == row["largest"] else share for kind, share in shares.items()),
        )
    same = ", ".join(f"{name} {_text(lines[0][1].candidate.point[place])}" for place, name in enumerate(result.space.names) if place not in varied)
    notes = [f"in all rows: {same}"] if same else []
    memory, widest = result.device.memory, max(found.bandwidth or 0 for _, found in lines)
    if memory and widest > memory.proven_bytes_per_second:
        peak, proven = memory.peak_bytes_per_second / 1e9, memory.proven_bytes_per_second / 1e9
        notes.append(f"memory: up to {widest / 1e9:.4g} of {peak:g} GB/s at its pins; proven are {proven:g} ({memory.proven_by})")
    return Group(Text(_title(result), style="bold"), shown, Text("\n".join([*notes, _summary(result), stated_error()]), style="dim"))


def _text(value: Choice) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _title(result: Exploration) -> str:
    space, device = result.space, result.device
    title = f"{space.shape.name} on {device.name} from {space.base.name}: least {AXES[result.goal][0].format(prompt=result.prompt, context=result.context)}"
    if result.goal == "decode":
        title = title.replace("least", "most")
    return f"{title}, limit {100 * device.limit:.0f} % of the device"


def _summary(result: Exploration) -> str:
    parts = [f"{len(result.evaluated):,} of {result.space.count:,} cores counted exactly" + (f" ({result.reused:,} before)" if result.reused else "")]
    for number, text in (
        (result.bounded, "cannot be better by their bounds"),
        (result.misfits, "do not fit"),
        (result.impossible, "contradict themselves"),
        (result.refused, "refused by the mapping"),
    ):
        if number:
            parts.append(f"{number:,} {text}")
    ended = "the front of the whole grid" if result.complete else f"seed {result.seed}, budget {result.budget:,}"
    return "; ".join(parts) + f"; {ended}"


def plot(result: Exploration) -> str:
    """SVG: every evaluated core by its goal and its largest share of the device, the front as a line."""
    label, key, scale = AXES[result.goal]

    def place(found: Found) -> tuple[float, float]:
        row: dict[str, Any] = result.row(found)
        return 100 * row["share"], row[key] * scale

    front, others = list(result.front), [found for found in result.evaluated if found not in result.front]
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, 4.6), layout="constrained", facecolor="white")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        if others:
            axes.plot(*zip(*map(place, others), strict=True), "o", color=MUTED, markersize=3, alpha=0.6, label="counted")
        points = sorted(map(place, front))
        axes.plot(*zip(*points, strict=True), "-o", color=BUSY, linewidth=1.6, markersize=5, label="Pareto front")
        for found in front:
            x, y = place(found)
            c = found.candidate.config
            axes.annotate(f"{c.tables}x{c.columns}x{c.lanes}", (x, y), xytext=(4, -10), textcoords="offset points", fontsize=7.5)
        start = [found for found in result.evaluated if found.candidate.point == result.space.start]
        if start:
            axes.plot(*zip(*map(place, start), strict=True), "D", color=STALLS[0], markersize=6, label=result.space.base.name)
        axes.axvline(100 * result.device.limit, color=STALLS[4], linewidth=1, linestyle=":")
        axes.set_xlabel(f"largest share of a total of {result.device.name}, % (dotted: limit); labels: tables x columns x lanes")
        axes.set_ylabel(label.format(prompt=result.prompt, context=result.context))
        axes.legend(loc="best")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    return buffer.getvalue()
