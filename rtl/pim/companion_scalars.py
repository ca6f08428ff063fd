# SPDX-License-Identifier: Apache-2.0
"""Scalars S of the companion chip, and the unit that computes with them."""

from typing import Any

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lutra.hls_models.floats import FP32
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.instructions import SCALARS
from lutra.hls_models.pim.program import ScalarOperation
from lutra.rtl.pim.functions import ScalarUnit

__all__ = ["Scalars"]


class Scalars(wiring.Component):
    """32 fp32 scalars with asynchronous reads, and SCALAR's unit.

    A SCALAR that starts at t is written in the clock that ``finish`` marks, t + ``OPERATION_LATENCY``; nothing else is under way then.

    Members
    -------
    start, operation, a, b, d, k : the SCALAR
    finish : the pipeline's last clock
    lane_address, lane_value : read port of the lanes
    old_address, old : read port of the maxima
    write, address, write_data : a statistic
    changed, changed_address, changed_value : what is written in this clock
    """

    def __init__(self, config: PimConfig) -> None:
        self._config = config
        super().__init__(
            {
                "start": In(1),
                "operation": In(ScalarOperation),
                "a": In(5),
                "b": In(5),
                "d": In(5),
                "k": In(FP32.bits),
                "finish": In(1),
                "lane_address": In(5),
                "lane_value": Out(FP32.bits),
                "old_address": In(5),
                "old": Out(FP32.bits),
                "write": In(1),
                "address": In(5),
                "write_data": In(FP32.bits),
                "changed": Out(1),
                "changed_address": Out(5),
                "changed_value": Out(FP32.bits),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        m.submodules.memory = memory = Memory(shape=FP32.bits, depth=SCALARS, init=[])
        write = memory.write_port()
        reads = [memory.read_port(domain="comb") for _ in range(4)]
        for read, address in zip(reads, (self.lane_address, self.old_address, self.a, self.b), strict=True):
            m.d.comb += read.addr.eq(address)
        a, b = reads[2].data, reads[3].data

        m.submodules.unit = unit = ScalarUnit(family=self._config.companion.functions)
        copied, copies, running, target = Signal(FP32.bits, reset_less=True), Signal(), Signal(), Signal(5, reset_less=True)
        constant = (self.operation == ScalarOperation.MULK) | (self.operation == ScalarOperation.ADDK)
        m.d.comb += [
            self.lane_value.eq(reads[0].data),
            self.old.eq(reads[1].data),
            unit.start.eq(self.start),
            unit.operation.eq(self.operation),
            unit.a.eq(a),
            unit.b.eq(Mux(constant, self.k, b)),
        ]
        with m.If(self.start):
            m.d.sync += [copied.eq(a), copies.eq(self.operation == ScalarOperation.COPY), target.eq(self.d), running.eq(1)]
        with m.Elif(self.finish):
            m.d.sync += running.eq(0)
        m.d.comb += [
            self.changed.eq(self.write | (running & self.finish)),
            self.changed_address.eq(Mux(running, target, self.address)),
            self.changed_value.eq(Mux(running, Mux(copies, copied, unit.y), self.write_data)),
            write.en.eq(self.changed),
            write.addr.eq(self.changed_address),
            write.data.eq(self.changed_value),
        ]
        return m
