# SPDX-License-Identifier: Apache-2.0
"""Runs inside the simulator: starts the clock in compiled code and sleeps until the top says stop. No Python per clock."""

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

__all__ = ["play"]


@cocotb.test()
async def play(dut) -> None:  # type: ignore[no-untyped-def]
    """Players, sinks and recorders are in the top and talk through files: see ``lutra.cosim.harness``."""
    Clock(dut.clk, 2, "step", impl="gpi").start(start_high=False)
    await RisingEdge(dut.stop)
