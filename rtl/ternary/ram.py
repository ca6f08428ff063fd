# SPDX-License-Identifier: Apache-2.0
"""A memory with one write and one read port that synthesis maps to RAM blocks without logic around it."""

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

__all__ = ["OneReadRam"]


class OneReadRam(wiring.Component):
    """Simple dual-port memory, read latency 1; ``data`` keeps its value while ``enable`` is 0.

    A row must not be read in the cycle that writes it: block RAMs of two ports leave that word undefined (the simulation reads the old one). yosys is told
    so by ``no_rw_check``, which it honours where it merges an output register itself; hence the asynchronous port and the register here.

    Parameters
    ----------
    width, depth : int
        Bits and rows.
    style : str
        "block", "ultra" or "distributed".
    """

    def __init__(self, *, width: int, depth: int, style: str):
        self.width, self.depth, self.style = width, depth, style
        bits = max(1, ceil_log2(depth))
        read = {"address": In(bits), "enable": In(1), "data": Out(width)}
        super().__init__({**read, "write_address": In(bits), "write_enable": In(1), "write_data": In(width)})

    def elaborate(self, platform):
        m = Module()
        attributes = {"ram_style": self.style, "no_rw_check": 1}
        m.submodules.memory = memory = Memory(shape=self.width, depth=self.depth, init=[], attrs=attributes)
        write, read = memory.write_port(), memory.read_port(domain="comb")
        held = Signal(self.width, reset_less=True)
        m.d.comb += [
            write.addr.eq(self.write_address),
            write.data.eq(self.write_data),
            write.en.eq(self.write_enable),
            read.addr.eq(self.address),
            self.data.eq(held),
        ]
        with m.If(self.enable):
            m.d.sync += held.eq(read.data)
        return m
