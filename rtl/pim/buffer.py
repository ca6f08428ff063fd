# SPDX-License-Identifier: Apache-2.0
"""A channel's global buffer: the vector that its banks multiply by."""

from typing import Any

from amaranth.hdl import Module
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from lutra.hls_models.pim.config import LANE_BITS, PimConfig

__all__ = ["GlobalBuffer"]


class GlobalBuffer(wiring.Component):
    """``columns`` entries of V bf16 values in one RAM; written by GBW, read by MAC.

    Members
    -------
    write_en, write_entry, write_data
        Written at the end of the cycle.
    read_en, read_entry
        Entry that ``read_data`` shows one cycle later, and until the next read. What is written in the same cycle is not seen: one command per cycle.
    """

    def __init__(self, config: PimConfig) -> None:
        self._width, self._depth = LANE_BITS * config.lanes, config.columns
        entry = max(1, ceil_log2(config.columns))
        super().__init__(
            {
                "write_en": In(1),
                "write_entry": In(entry),
                "write_data": In(self._width),
                "read_en": In(1),
                "read_entry": In(entry),
                "read_data": Out(self._width),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.memory = memory = Memory(shape=self._width, depth=self._depth, init=[])
        write, read = memory.write_port(), memory.read_port()
        m.d.comb += [
            write.en.eq(self.write_en),
            write.addr.eq(self.write_entry),
            write.data.eq(self.write_data),
            read.en.eq(self.read_en),
            read.addr.eq(self.read_entry),
            self.read_data.eq(read.data),
        ]
        return m
