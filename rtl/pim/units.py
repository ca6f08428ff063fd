# SPDX-License-Identifier: Apache-2.0
"""fp32 units of the companion chip, of which there are hundreds: modules that are written once."""

from amaranth.hdl import Module

from lutra.hls_models.floats import FP32
from lutra.rtl.floats import FloatAdd, FloatMul
from lutra.rtl.verilog import once

__all__ = ["adder", "multiplier"]


def adder(m: Module, name: str) -> FloatAdd:
    """An adder as submodule ``name``."""
    unit = FloatAdd(format=FP32)
    m.submodules[name] = once(unit, "fp32_add")
    return unit


def multiplier(m: Module, name: str) -> FloatMul:
    """A multiplier as submodule ``name``."""
    unit = FloatMul(a_format=FP32, b_format=FP32, format=FP32)
    m.submodules[name] = once(unit, "fp32_mul")
    return unit
