# SPDX-License-Identifier: Apache-2.0
"""FPGA resources of a ternary core without synthesis: RAM by formula (``sizing``), logic by a model fitted to synthesised blocks.

Per block and kind of cell a sum of features, each a count that the block's structure gives (adder bits, lanes, register bits), times a coefficient that was
fitted over synthesised configurations (``python -m benchmarks resources``). Coefficients, their date, the version of yosys, and the error over configurations
that took no part in the fit stand in ``resources.json``. A look-up table that is used as RAM or shift register counts in ``lut`` and in ``lutram``; two small
functions that a vendor's tool would pack into one look-up table count as two.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from lutra.hls_models.ternary.block_features import FEATURES, Features
from lutra.hls_models.ternary.block_memories import MEMORIES
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.sizing import LUTS, Primitives

__all__ = ["DATA", "KINDS", "Resources", "block_configs", "block_resources", "coefficients", "counted", "resources", "stated_error"]

DATA = Path(__file__).parent / "resources.json"
KINDS = ("lut", "lutram", "ff", "bram36", "uram", "dsp")
FITTED = ("logic", "shift", "ff", "dsp")
"""Kinds with coefficients: look-up tables as logic, look-up tables as RAM beyond ``MEMORIES`` (shift registers, queues), flip-flops, DSP blocks."""


@dataclass(frozen=True)
class Resources:
    """Resources of a core or block; ``parts``: of its blocks."""

    lut: float = 0
    lutram: float = 0
    ff: float = 0
    bram36: float = 0
    uram: float = 0
    dsp: float = 0
    parts: Mapping[str, "Resources"] = field(default_factory=dict)

    def __add__(self, other: "Resources") -> "Resources":
        return Resources(*(getattr(self, kind) + getattr(other, kind) for kind in KINDS))

    def shares(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Share of a device's totals by kind."""
        return {kind: getattr(self, kind) / totals[kind] for kind in KINDS if totals.get(kind)}


@cache
def coefficients() -> dict[str, Any]:
    """The stored fit: {date, yosys, errors, blocks: {block: {kind: {feature: coefficient}}}}."""
    found: dict[str, Any] = json.loads(DATA.read_text())
    return found


def stated_error() -> str:
    """How far the model was off over synthesised blocks that took no part in its fit, in words."""
    every = coefficients()["errors"]["all"]
    off = ", ".join(f"{kind} {100 * every[kind]['mean']:.1f} % ({100 * every[kind]['max']:.1f} %)" for kind in KINDS if kind in every)
    return f"resources by a model fitted to synthesis; off over {every['lut']['blocks']} blocks that took no part in the fit, mean (largest): {off}"


def counted(primitives: Primitives) -> Resources:
    """Resources of RAM primitives."""
    lutram = sum(LUTS[name] * count for name, count in primitives.items() if name in LUTS)
    return Resources(
        lut=lutram,
        lutram=lutram,
        bram36=primitives.get("RAMB36E2", 0) + primitives.get("RAMB18E2", 0) / 2,
        uram=primitives.get("URAM288", 0),
    )


def block_configs(spec: CoreSpec) -> dict[str, Any]:
    """Configuration of every block that a core has, of those that ``FEATURES`` knows."""
    shared = {"memory": spec} if spec.config.memory else {}
    return {
        "linear": spec.tlmm,
        "weights": spec.weights,
        "vector": spec.vector,
        "attention": spec.attention,
        "head": spec.head,
        "loader": spec.loader,
        "control": spec,
        **shared,
    }


def block_resources(block: str, config: Any, fit: Mapping[str, Mapping[str, float]] | None = None) -> Resources:
    """Resources of one block, by its stored coefficients or others."""
    features: Features = FEATURES[block](config)
    fit = coefficients()["blocks"][block] if fit is None else fit
    logic, shift, ff, dsp = (sum(value * fit.get(kind, {}).get(name, 0.0) for name, value in features.items()) for kind in FITTED)
    rams = Resources()
    for memory in MEMORIES[block](config, "xcup"):
        rams += counted(memory)
    return Resources(lut=rams.lut + logic + shift, lutram=rams.lutram + shift, ff=ff, bram36=rams.bram36, uram=rams.uram, dsp=dsp)


def resources(spec: CoreSpec) -> Resources:
    """Resources of a whole core on the family xcup, with those of its blocks; some hundred microseconds."""
    parts = {block: block_resources(block, config) for block, config in block_configs(spec).items()}
    total = Resources()
    for part in parts.values():
        total += part
    return replace(total, parts=parts)
