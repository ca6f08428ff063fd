# SPDX-License-Identifier: Apache-2.0
"""The resource model of whole cores on an ECP5: ratios fitted to cores beside that of the board, the error over that one."""

import json
from collections.abc import Mapping
from datetime import date
from typing import Any

from benchmarks.board import BOARD, CONFIG
from lutra import fpga
from lutra.fpga_flows.flow import Synthesis
from lutra.fpga_flows.yosys import version
from lutra.hls_models.load import load_config
from lutra.hls_models.ternary import ecp5
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.program import Program
from lutra.mapping.catalogue import open_model
from lutra.mapping.lower import compile_model
from lutra.mapping.model import TernaryModel

__all__ = ["measure"]

MODEL = "tiny-shakespeare"
FIT: tuple[dict[str, Any], ...] = (
    {"columns": 10, "beat_bytes": 36, "vector_lanes": 4, "params_rows": 128, "rope_rows": 128},
    {"columns": 4, "tables": 9, "lanes": 2, "beat_bytes": 24, "chunk": 8, "key_tile": 32},
)
"""Changes to the board's core that make the others."""
PARTS: Mapping[str, tuple[str, ...]] = {
    "linear": ("linear",),
    "weights": ("weights",),
    "vector": ("vector",),
    "attention": ("attend",),
    "head": ("head",),
    "loader": ("loader",),
    "control": ("sequencer", "dispatch", "registers", "router"),
}
"""Modules of a core by the model's blocks."""
CORE = "top.system.system.core"


def _spec(**changes: Any) -> tuple[CoreSpec, Program]:
    model = open_model(MODEL)
    assert isinstance(model, TernaryModel)
    config = CoreConfig.model_validate({**load_config(CONFIG, CoreConfig).model_dump(), **changes})
    program = compile_model(model, config)
    return CoreSpec(config=config, shape=model.shape), program


def _counted(found: Synthesis, spec: CoreSpec) -> dict[str, dict[str, float]]:
    """What ratios have to explain, by block, and what stands beside the core."""
    known = ecp5.features(spec)
    out = {}
    for block, names in PARTS.items():
        used = [found.blocks[f"{CORE}.{name}"] for name in names if f"{CORE}.{name}" in found.blocks]
        spilled = sum(places for module, places in found.multipliers[1].items() if module.split(".")[4] in names)
        out[block] = {"logic": sum(one["lut"] for one in used) - known[block]["ram"] - spilled, "ff": sum(one.get("ff", 0) for one in used)}
    inside = found.blocks[CORE]
    out["beside"] = {"logic": found.used["lut"] - inside["lut"], "ff": found.used["ff"] - inside["ff"]}
    return out


def measure() -> dict[str, Any]:
    """Synthesises, minutes for each core; products beyond the blocks are no matter of the fit, their places are known."""
    cases = []
    for changes in FIT:
        spec, program = _spec(**changes)
        cases.append((ecp5.features(spec), _counted(fpga.synthesis(spec, program, BOARD), spec)))
    blocks = {
        block: {kind: round(sum(count[block][kind] for _, count in cases) / sum(known[block][kind] for known, _ in cases), 4) for kind in ecp5.FITTED}
        for block in PARTS
    }
    beside = {kind: round(sum(count["beside"][kind] for _, count in cases) / len(cases)) for kind in ecp5.FITTED}
    spec, program = _spec()
    found, predicted = fpga.synthesis(spec, program, BOARD), ecp5.board_resources(spec, program.beats, {"blocks": blocks, "beside": beside})
    used = found.used
    predicted["lut"] += sum(found.multipliers[1].values())
    errors = {kind: round(value / used[kind] - 1, 4) for kind, value in predicted.items()}
    about = {"date": date.today().isoformat(), "yosys": version(), "errors": errors, "blocks": blocks, "beside": beside}
    ecp5.DATA.write_text(json.dumps(about, indent=1) + "\n")
    ecp5.stored.cache_clear()
    counts = {kind: {"used": round(used[kind]), "predicted": round(value)} for kind, value in predicted.items()}
    return {**about, "held_out": CONFIG, "counts": counts}
