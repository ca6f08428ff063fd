# SPDX-License-Identifier: Apache-2.0
"""Memories whose contents come from hex files, never from the text of the design."""

from typing import Any

from amaranth.hdl import ClockSignal, Elaboratable, Instance, Module
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

__all__ = ["HexRam", "HexRom"]


def _check(width: int, depth: int) -> None:
    for name, value in (("width", width), ("depth", depth)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a positive integer, not {value!r}")


class HexRom(wiring.Component):
    """Read-only memory; latency 1, one word per clock.

    Parameters
    ----------
    width
        Bits of a word.
    depth
        Words.
    file
        Name of the hex file (one word per line, ``$readmemh``), resolved by the simulator or synthesis in its working directory; "" for zeros.

    Members
    -------
    read_addr : In(ceil_log2(depth))
    read_en : In(1)
        ``read_data`` keeps its value in the cycle after one without.
    read_data : Out(width)
        Word of the address one cycle before. Undefined until the first read.
    """

    def __init__(self, *, width: int, depth: int, file: str = "") -> None:
        _check(width, depth)
        self.width, self.depth, self.file = width, depth, file
        super().__init__({"read_addr": In(max(1, ceil_log2(depth))), "read_en": In(1, init=1), "read_data": Out(width)})

    def elaborate(self, platform: Any) -> Elaboratable:
        m = Module()
        m.submodules.rom = Instance(
            "lutra_rom",
            p_FILE=self.file,
            p_WIDTH=self.width,
            p_DEPTH=self.depth,
            p_ADDRESS=len(self.read_addr),
            i_clk=ClockSignal(),
            i_read_en=self.read_en,
            i_read_addr=self.read_addr,
            o_read_data=self.read_data,
        )
        return m


class HexRam(wiring.Component):
    """HexRom with a write port. A read of the address that is written in the same cycle returns the old word; other parameters and ports as in ``HexRom``.

    Members
    -------
    write_addr : In(ceil_log2(depth))
    write_en : In(1)
    write_data : In(width)
        Written at the end of the cycle.
    """

    def __init__(self, *, width: int, depth: int, file: str = "") -> None:
        _check(width, depth)
        self.width, self.depth, self.file = width, depth, file
        bits = max(1, ceil_log2(depth))
        read = {"read_addr": In(bits), "read_en": In(1, init=1), "read_data": Out(width)}
        super().__init__({**read, "write_addr": In(bits), "write_en": In(1), "write_data": In(width)})

    def elaborate(self, platform: Any) -> Elaboratable:
        m = Module()
        m.submodules.ram = Instance(
            "lutra_ram",
            p_FILE=self.file,
            p_WIDTH=self.width,
            p_DEPTH=self.depth,
            p_ADDRESS=len(self.read_addr),
            i_clk=ClockSignal(),
            i_read_en=self.read_en,
            i_read_addr=self.read_addr,
            o_read_data=self.read_data,
            i_write_en=self.write_en,
            i_write_addr=self.write_addr,
            i_write_data=self.write_data,
        )
        return m
