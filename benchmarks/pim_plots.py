# SPDX-License-Identifier: Apache-2.0
"""Plots of ``benchmarks.pim``: latency against context, tokens per second against channels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks.pim import CHANNELS, CONTEXTS, MODELS

__all__ = ["draw"]

INK, MUTED, GRID = "#24303a", "#66737d", "#e3e7ea"
FAMILIES = {"gpt2": ("#f0b970", "#dd9437", "#b0651f", "#743d12"), "gpt3": ("#8fc9c4", "#4ba59f", "#1f7a74", "#0f4a46")}
STYLE: Any = {
    "svg.hashsalt": "lutra",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
}


def draw(result: dict[str, Any], folder: Path) -> None:
    """``pim-latency.svg`` and ``pim-scaling.svg`` in ``folder``."""
    with rc_context(STYLE):
        _latency(result["sweep"]).savefig(folder / "pim-latency.svg", metadata={"Date": None})
        _scaling(result["scaling"]).savefig(folder / "pim-scaling.svg", metadata={"Date": None})


def _latency(points: Sequence[dict[str, Any]]) -> Figure:
    figure, axes = _axes(CONTEXTS, "context: rows of keys and values attended", "latency of a token, ms")
    for model in MODELS:
        its = sorted((p for p in points if p["model"] == model and "refused" not in p), key=lambda p: p["context"])
        own = [p for p in its if not p["shape_only"]]
        contexts, latencies = [p["context"] for p in its], [1e3 / p["tokens_per_second"] for p in its]
        axes.plot(contexts, latencies, "--", color=_colour(model), linewidth=1)
        axes.plot(contexts[: len(own)], latencies[: len(own)], "-o", color=_colour(model), linewidth=1.6, markersize=3, label=model)
    axes.set_ylim(bottom=0)
    axes.legend(loc="upper left", ncols=2, title="dashed: beyond the model's positions", title_fontsize=8.5, alignment="left")
    return figure


def _scaling(points: Sequence[dict[str, Any]]) -> Figure:
    figure, axes = _axes(CHANNELS, "channels of 512 MiB", "tokens per second, context 1,024")
    for model in MODELS:
        its = sorted((p for p in points if p["model"] == model), key=lambda p: p["channels"])
        held = [p for p in its if p["fits"]]
        perfect = [held[0]["tokens_per_second"] * n / held[0]["channels"] for n in CHANNELS]
        axes.plot(CHANNELS, perfect, ":", color=_colour(model), linewidth=0.8)
        axes.plot([p["channels"] for p in held], [p["tokens_per_second"] for p in held], "-o", color=_colour(model), linewidth=1.6, markersize=3.5, label=model)
        small = [p for p in its if not p["fits"]]
        axes.plot([p["channels"] for p in small], [p["tokens_per_second"] for p in small], "x", color=_colour(model), markersize=5)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.legend(loc="upper left", ncols=2, title="dotted: perfect scaling; x: larger than the device", title_fontsize=8.5, alignment="left")
    return figure


def _axes(ticks: Sequence[int], x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.0, 4.2), layout="constrained", facecolor="white")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [f"{tick:,d}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return figure, axes


def _colour(model: str) -> str:
    family, size = model.split("-")
    return FAMILIES[family][("small", "medium", "large", "xl").index(size)]
