# SPDX-License-Identifier: Apache-2.0
"""Plot of ``benchmarks.kv260``: tokens per second against context, with the ceiling and what others measured."""

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from benchmarks import published
from benchmarks.kv260 import CONTEXTS, MODELS
from benchmarks.kv260_page import NAMES, preset_of
from benchmarks.pim_plots import STYLE

__all__ = ["draw"]

COLOURS = {"bitnet-0.73b": "#1f7a74", "bitnet-2b4t": "#dd9437"}
TICKS = tuple(context for context in CONTEXTS if context & (context - 1) == 0)


def draw(result: dict[str, Any], folder: Path) -> None:
    """``kv260-decode.svg`` in ``folder``."""
    with rc_context(STYLE):
        figure = Figure(figsize=(8.0, 4.2), layout="constrained", facecolor="white")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        for model in MODELS:
            decode = preset_of(result, model)["decode"]
            contexts = [row["context"] for row in decode]
            axes.plot(contexts, [row["ceiling"] for row in decode], ":", color=COLOURS[model], linewidth=1)
            axes.plot(contexts, [row["tokens_per_second"] for row in decode], "-o", color=COLOURS[model], linewidth=1.6, markersize=3.5, label=NAMES[model])
            for design in (one for one in published.DESIGNS if one.model == model and 0 in one.decode):
                axes.axhline(design.decode[0].value, color=COLOURS[model], linewidth=0.8, linestyle="--")
                axes.annotate(design.name, (1, design.decode[0].value), xytext=(2, 2), textcoords="offset points", fontsize=7.5, color=COLOURS[model])
        axes.set_xscale("log", base=2)
        axes.set_xticks(TICKS, [f"{tick:,d}" for tick in TICKS])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.set_ylim(bottom=0)
        axes.set_xlabel("context: rows of keys and values attended")
        axes.set_ylabel("tokens per second (predicted)")
        axes.legend(loc="upper right", title="dotted: ceiling at 16.0 GB/s; dashed: measured by others", title_fontsize=8.5, alignment="left")
        figure.savefig(folder / "kv260-decode.svg", metadata={"Date": None})
