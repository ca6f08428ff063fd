# SPDX-License-Identifier: Apache-2.0
"""Accumulators of a tile: sums over k-blocks in LUT-RAM, finished rows in a bank that drains as a stream of beats of V columns."""

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.tlmm import TlmmConfig
from lutra.rtl.streams import Gearbox
from lutra.rtl.ternary.ram import OneReadRam
from lutra.rtl.ternary.rows import COLUMN_BITS

__all__ = ["Accumulators"]


class Accumulators(wiring.Component):
    """Adds lookup sums per tile row, lane and column; rows of the last k-block go to the drain bank instead of back.

    A row is read, added and written within one cycle (asynchronous read), so that a row may follow itself in the next cycle. The drain follows the writes:
    a bank row written at w is read from w + 1 on, offered to the gearbox from the cycle after, and a beat leaves one cycle later at the earliest. A row of
    the bank is read once per valid lane; the lookups of the next group may enter their last k-block when ``draining`` has fallen.

    Parameters
    ----------
    config : TlmmConfig

    Members
    -------
    valid, first_row, first_block, last_block : In(1), of the sums in this cycle
    addends : Q * M sums of ``sum_bits``, position q * M + lane
    begin, tile, last_lane : a group's first row of the last k-block was accepted; columns of its tile; its last valid lane
    draining : from the cycle after ``begin`` until the cycle after the bank's last read
    sums : stream of {values: V x signed}
    ended : the beat that leaves in this cycle is the last of all rows that were begun
    """

    def __init__(self, *, config: TlmmConfig):
        self.config = config
        layout = data.StructLayout({"values": data.ArrayLayout(signed(config.accumulator_bits), config.vector_lanes)})
        super().__init__(
            {
                **{name: In(1) for name in ("valid", "first_row", "first_block", "last_block", "begin")},
                "addends": In(config.columns * config.lanes * config.sum_bits),
                "tile": In(COLUMN_BITS),
                "last_lane": In(range(max(2, config.lanes))),
                "draining": Out(1),
                "sums": Out(stream.Signature(layout)),
                "ended": Out(1),
            }
        )

    def elaborate(self, platform):
        m = Module()
        config = self.config
        Q, M, wide = config.columns, config.lanes, config.accumulator_bits
        m.submodules.running = running = Memory(shape=M * Q * wide, depth=config.tile_rows, init=[], attrs={"ram_style": "distributed"})
        m.submodules.bank = bank = OneReadRam(width=M * Q * wide, depth=config.tile_rows, style=config.drain_ram)
        before, after = running.read_port(domain="comb"), running.write_port()

        row, index = Signal(range(config.tile_rows + 1)), Signal(range(config.tile_rows + 1))
        m.d.comb += index.eq(Mux(self.first_row, 0, row))
        with m.If(self.valid):
            m.d.sync += row.eq(index + 1)
        totals = Signal(M * Q * wide)
        for q in range(Q):
            for lane in range(M):
                part = slice((lane * Q + q) * wide, (lane * Q + q + 1) * wide)
                addend = self.addends[(q * M + lane) * config.sum_bits : (q * M + lane + 1) * config.sum_bits].as_signed()
                m.d.comb += totals[part].eq(Mux(self.first_block, 0, before.data[part]).as_signed() + addend)
        m.d.comb += [
            before.addr.eq(index),
            after.addr.eq(index),
            after.data.eq(totals),
            after.en.eq(self.valid & ~self.last_block),
            bank.write_address.eq(index),
            bank.write_data.eq(totals),
            bank.write_enable.eq(self.valid & self.last_block),
        ]
        self._drain(m, bank)
        return m

    def _drain(self, m: Module, bank: OneReadRam) -> None:
        config = self.config
        Q, M, wide = config.columns, config.lanes, config.accumulator_bits
        m.submodules.gearbox = gearbox = Gearbox(shape=wide, inputs=Q, outputs=config.vector_lanes)
        written = Signal(range(config.tile_rows + 1))
        row = Signal(range(config.tile_rows + 1))
        tile, left = Signal(COLUMN_BITS), Signal(COLUMN_BITS)
        lane, last_lane = Signal(range(max(2, M))), Signal(range(max(2, M)))
        issue, last_row, held = Signal(), Signal(), Signal()
        held_lane = Signal(range(max(2, M)))
        push = gearbox.input
        m.d.comb += [
            issue.eq(self.draining & (row < written) & (~held | push.ready)),
            last_row.eq(left <= Q),
            bank.address.eq(row),
            bank.enable.eq(issue),
        ]
        with m.If(issue | push.ready):
            m.d.sync += held.eq(issue)
        with m.If(issue):
            m.d.sync += [row.eq(row + 1), left.eq(left - Q)]
            m.d.sync += [held_lane.eq(lane), push.payload.count.eq(Mux(last_row, left, Q)), push.payload.last.eq(last_row)]
            with m.If(last_row):
                m.d.sync += [row.eq(0), left.eq(tile), lane.eq(lane + 1), self.draining.eq(lane != last_lane)]
        with m.If(self.begin):
            m.d.sync += [tile.eq(self.tile), left.eq(self.tile), lane.eq(0), last_lane.eq(self.last_lane), row.eq(0), written.eq(0), self.draining.eq(1)]
        with m.Elif(bank.write_enable):
            m.d.sync += written.eq(written + 1)
        with m.Switch(held_lane):
            for i in range(M):
                with m.Case(i):
                    m.d.comb += push.payload.items.as_value().eq(bank.data[i * Q * wide : (i + 1) * Q * wide])
        m.d.comb += [
            push.valid.eq(held),
            self.sums.valid.eq(gearbox.output.valid),
            gearbox.output.ready.eq(self.sums.ready),
            Cat(self.sums.payload.values[i] for i in range(config.vector_lanes)).eq(gearbox.output.payload.items.as_value()),
            self.ended.eq(self.sums.valid & self.sums.ready & gearbox.output.payload.last & ~self.draining & ~held),
        ]
