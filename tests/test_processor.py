# SPDX-License-Identifier: Apache-2.0
"""AXI as a processor system meets it: masters at memories and registers behind a master of another house (cocotbext-axi), all in RTL."""

from pathlib import Path

import pytest
from pins_masters import KV
from processor_case import build_masters, build_processor, small_program, write_software

from lutra.cosim import simulator


@pytest.mark.parametrize("run", range(2))
def test_masters_at_other_memories(seed: int, tmp_path: Path, run: int) -> None:
    simulator.run(build_masters(KV), tmp_path, module="pins_masters", plusargs=[f"+seed={seed}"])


def test_a_core_beside_a_processor(seed: int, tmp_path: Path) -> None:
    write_software(tmp_path, small_program())
    simulator.run(build_processor(), tmp_path, module="pins_processor", plusargs=[f"+seed={seed}"])
