# SPDX-License-Identifier: Apache-2.0
"""A core and the shared memory in front of which it works, for simulations."""

from pathlib import Path

import numpy as np
from amaranth import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.cosim.ddr import Ddr, region_pages
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.program import Program
from lutra.rtl.ternary.registers import RegisterPort
from lutra.rtl.ternary.shared_system import SharedSystem

__all__ = ["Board", "memory_file"]


class Board(wiring.Component):
    """A ``SharedSystem`` with a memory.

    Parameters
    ----------
    spec : the core. name : of the memory's files (``lutra.cosim.ddr.Ddr``).

    Members
    -------
    bus : ``In(RegisterPort())``. ``busy`` : ``Out(1)``. ``token`` : ``Out(stream)`` of chosen ids, valid for one clock.
    """

    def __init__(self, spec: CoreSpec, name: str) -> None:
        self._spec, self._name = spec, name
        super().__init__({"bus": In(RegisterPort()), "busy": Out(1), "token": Out(stream.Signature(20))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        memory = self._spec.config.memory
        assert memory is not None  # SharedSystem refuses it
        m.submodules.system = system = SharedSystem(self._spec)
        m.submodules.ddr = ddr = Ddr(memory, name=self._name)
        wiring.connect(m, wiring.flipped(self.bus), system.bus)
        wiring.connect(m, system.token, wiring.flipped(self.token))
        for port, own in zip(system.read, ddr.read, strict=True):
            wiring.connect(m, port, own)
        wiring.connect(m, system.write, ddr.write)
        m.d.comb += [self.busy.eq(system.busy), *(base.eq(page) for base, page in zip(system.base, region_pages(memory), strict=True))]
        return m


def memory_file(program: Program) -> bytes | Path:
    """The contents of a program's ``name.memory``: the file that its image is mapped from, or its bytes."""
    assert program.image is not None
    if isinstance(program.image, np.memmap) and program.image.filename:
        return Path(program.image.filename)
    return program.image.tobytes()
