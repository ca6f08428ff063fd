# SPDX-License-Identifier: Apache-2.0
"""Verilog of a core and its blocks: every block is emitted, and a whole core's text is the same in any folder and under any hash seed."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lutra import engine
from lutra.cosim.benches import core
from lutra.rtl.verilog_text import plain

EMIT = """
import hashlib
import numpy as np
from lutra import engine
from lutra.cosim.benches import core
print(hashlib.sha256(engine.verilog(core.small(np.random.default_rng(3)).spec, "core").encode()).hexdigest())
"""


@pytest.mark.parametrize("block", sorted(set(engine.BLOCKS) - {"core"}))
def test_every_block_is_emitted(block: str) -> None:
    text = engine.verilog(core.small(np.random.default_rng(3)).spec, block)
    assert f"module lutra_{block}(" in text


def test_a_core_is_the_same_everywhere(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent.parent
    found = set()
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(root)}
        done = subprocess.run([sys.executable, "-W", "ignore", "-c", EMIT], cwd=folder, env=environment, capture_output=True, text=True, check=True)
        found.add(done.stdout.strip())
    assert len(found) == 1 and len(found.pop()) == hashlib.sha256().digest_size * 2


WRITTEN = """module table(clk, y, a);
  wire \\$1 ;
  wire \\$2 ;
  wire [1:0] \\$3 ;
  wire [4:0] \\$4 ;
  input [2:0] a;
  wire [2:0] a;
  input clk;
  wire clk;
  output [1:0] y;
  wire [1:0] y;
  assign \\$1  = 8'hb4 >> a;
  assign \\$2  = 6'h2e >> a;
  assign \\$4  = 5'h1b >> a;
  assign y = \\$3 ;
  assign \\$3 [1] = \\$2 ;
  assign \\$3 [0] = \\$1 ;
endmodule
"""


def test_bits_chosen_from_constants_are_one_table() -> None:
    text = plain(WRITTEN)
    assert [f"3'd{i}: \\$table0 = 2'h{(0xB4 >> i & 1) | (0x2E >> i & 1) << 1:x};" in text for i in range(8)] == [True] * 8
    assert "assign \\$1  = \\$table0 [0];" in text and "assign \\$2  = \\$table0 [1];" in text
    assert "assign \\$4  = 5'h1b >> a;" in text  # five bits wide: no choice of one
    assert text.count(">>") == 1 and text.endswith("endmodule\n") and text.count("endmodule") == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{ x[7], x[7], x[7:0] }", "{ {2{x[7]}}, x[7:0] }"),
        ("{ \\a.b [3], \\a.b [3], \\a.b [3] }", "{ {3{\\a.b [3]}} }"),
        ("{ \\$1 , \\$1 , s, s }", "{ {2{\\$1 }}, {2{s}} }"),
        ("{ x[17], x[7], x[7:0], x[7:0] }", "{ x[17], x[7], {2{x[7:0]}} }"),
        ("{ xs, s, t, s }", "{ xs, s, t, s }"),
        ("f(a, b, b1)", "f(a, b, b1)"),
    ],
)
def test_repeated_items_are_replications(before: str, after: str) -> None:
    assert plain(f"  assign y = {before};\n") == f"  assign y = {after};\n"
