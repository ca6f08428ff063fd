# SPDX-License-Identifier: Apache-2.0
"""Resources of a core on an ECP5 without synthesis: RAM by formula, logic as so many places for a look-up table of the model for xcup (``resources``).

How many, and the flip-flops, by block, and what stands beside the core (ports of memories, link, board, less the registers that multipliers take) are fitted
to whole cores (``python -m benchmarks board_fit``); they stand in ``ecp5.json`` with the error over a core that took no part in the fit.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lutra.hls_models.ternary.block_memories import MEMORIES
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.resources import block_configs, block_resources
from lutra.hls_models.ternary.sizing import block_ram, total

__all__ = ["DATA", "FITTED", "RAM_PLACES", "block_predictions", "board_resources", "features", "stored"]

DATA = Path(__file__).parent / "ecp5.json"
FITTED = ("logic", "ff")
"""Kinds with a ratio: places of look-up tables that are no RAM, and flip-flops."""
RAM_PLACES = 6
"""Places of look-up tables that a TRELLIS_DPR16X4 takes: four, and two behind its address and data."""


@cache
def stored() -> dict[str, Any]:
    """The fit: {date, yosys, errors: {kind: share}, blocks: {block: {kind: ratio}}, beside: {kind: count}}."""
    found: dict[str, Any] = json.loads(DATA.read_text())
    return found


def features(spec: CoreSpec) -> dict[str, dict[str, float]]:
    """By block: look-up tables and flip-flops of the model for xcup, and what is known exactly: places and blocks of RAM."""
    out = {}
    for block, config in block_configs(spec).items():
        model = block_resources(block, config)
        rams = total({str(i): memory for i, memory in enumerate(MEMORIES[block](config, "ecp5"))})
        out[block] = {
            "logic": model.lut - model.lutram,
            "ff": model.ff,
            "ram": RAM_PLACES * rams.get("TRELLIS_DPR16X4", 0),
            "bram18": rams.get("DP16KD", 0),
        }
    return out


def block_predictions(spec: CoreSpec, family: str, fit: Mapping[str, Any] | None = None) -> dict[str, dict[str, float]]:
    """Places of look-up tables, flip-flops and, on an ECP5, RAM by block. The tables of an iCE40, for which nothing is fitted, have four inputs too.

    Parameters
    ----------
    fit : what ``stored`` returns, or another
    """
    out = {}
    for block, one in features(spec).items():
        ratios = (stored() if fit is None else fit)["blocks"][block]
        out[block] = {"lut": ratios["logic"] * one["logic"], "ff": ratios["ff"] * one["ff"]}
        if family == "ecp5":
            out[block] = {"lut": out[block]["lut"] + one["ram"], "ff": out[block]["ff"], "bram18": one["bram18"]}
    return out


def board_resources(spec: CoreSpec, beats: int, fit: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Places of look-up tables, flip-flops and block RAMs of a whole core with its memories and link; its multipliers in blocks, all of them.

    Parameters
    ----------
    beats : of the program
    fit : as for ``block_predictions``
    """
    beside = (stored() if fit is None else fit)["beside"]
    blocks = block_predictions(spec, "ecp5", fit).values()
    program, cache = block_ram("ecp5", 8 * spec.config.beat_bytes, beats), block_ram("ecp5", spec.attention.row_bits, spec.attention.rows)
    return {
        "lut": beside["logic"] + sum(one["lut"] for one in blocks),
        "ff": beside["ff"] + sum(one["ff"] for one in blocks),
        "bram18": program["DP16KD"] + cache["DP16KD"] + sum(one["bram18"] for one in blocks),
    }
