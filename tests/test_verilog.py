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
