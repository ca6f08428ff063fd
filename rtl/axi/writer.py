# SPDX-License-Identifier: Apache-2.0
"""Writes of new rows of keys and values into a shared memory, through one AXI4 port."""

from typing import Any

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from lutra.hls_models.ternary.attention import ADDRESS_BITS as ROW_ADDRESS_BITS
from lutra.hls_models.ternary.kv_layout import SCALE_BYTES, KvLayout
from lutra.hls_models.ternary.memory import PORT_BYTES
from lutra.rtl.axi.ports import ADDRESS_BITS, PAGE_BITS, PORT_BITS, SIZE, AxiWrite, base_layout

__all__ = ["AxiWriter"]

BEAT_BITS = 32
PENDING_BITS = 12
"""Of the count of beats without a response: twice as many as the slowest memory leaves open."""


def row_layout(head_dim: int) -> data.StructLayout:
    """A row and its number, as ATTEND stores it."""
    return data.StructLayout(
        {"address": ROW_ADDRESS_BITS, "row": data.StructLayout({"scale": 8 * SCALE_BYTES, "codes": data.ArrayLayout(signed(8), head_dim)})}
    )


class AxiWriter(wiring.Component):
    """A row of codes becomes 16-byte writes to the regions of the read ports, upwards, and one of 4 bytes for its scale (``KvLayout.writes``).

    A row taken at t is on the port from t + ``WRITE`` on: a beat per clock, address and data together, each pair leaves when both were accepted. The next row
    is taken from the clock after the last pair on. Times in ``hls_models.ternary.memory.WriterTiming``.

    Parameters
    ----------
    layout : where rows lie.
    address_bits : of the port's byte addresses.

    Members
    -------
    base : ``In``, a page of 4 KB per read port: where its region starts.
    row : ``In(stream)`` of {address: row number (``AttentionConfig.address``), row {scale fp32, codes head_dim x 8}}.
    axi : ``Out(AxiWrite)``, single beats.
    idle : ``Out(1)``, no row is held and every beat has its response; 0 from the clock after a row was taken.
    error : ``Out(1)``, stays 1 from the clock after a response that is an error.
    """

    def __init__(self, layout: KvLayout, *, address_bits: int = ADDRESS_BITS) -> None:
        self.layout, self.address_bits = layout, address_bits
        self.ports = layout.beat_bytes // PORT_BYTES
        super().__init__(
            {
                "base": In(base_layout(self.ports, address_bits)),
                "row": In(stream.Signature(row_layout(layout.head_dim))),
                "axi": Out(AxiWrite(address_bits=address_bits)),
                "idle": Out(1),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        layout, axi = self.layout, self.axi
        units = layout.head_dim // PORT_BYTES
        taken, placing, active = Signal(), Signal(), Signal()
        sent, move, last = Signal(), Signal(), Signal()
        pending = Signal(PENDING_BITS)
        m.d.comb += [
            # A row starts only where the count of beats without a response has room for all of its own.
            self.row.ready.eq(~active & ~pending[-1]),
            taken.eq(self.row.valid & self.row.ready),
            sent.eq((axi.awvalid | axi.wvalid) & (~axi.awvalid | axi.awready) & (~axi.wvalid | axi.wready)),
            move.eq(placing | (sent & ~last)),
            axi.bready.eq(1),
            self.idle.eq(~active & (pending == 0)),
        ]
        m.d.sync += [placing.eq(taken), pending.eq(pending + sent - axi.bvalid)]
        with m.If(axi.bvalid & axi.bresp[1]):
            m.d.sync += self.error.eq(1)
        with m.If(taken):
            m.d.sync += active.eq(1)
        with m.Elif(sent & last):
            m.d.sync += active.eq(0)
        with m.If(axi.awready):
            m.d.sync += axi.awvalid.eq(0)
        with m.If(axi.wready):
            m.d.sync += axi.wvalid.eq(0)

        unit = Signal(range(units + 1))  # that goes on the port next; `units`: the scale
        final = unit == units
        beat, lane, strobe = self._place(m, taken, move, final)
        address, write_strobe = Signal(self.address_bits - SIZE, reset_less=True), Signal(PORT_BYTES, reset_less=True)
        m.d.comb += [axi.awaddr[SIZE:].eq(address), axi.wstrb.eq(write_strobe)]
        with m.If(taken):
            m.d.sync += unit.eq(0)
        with m.If(move):
            page = PAGE_BITS - SIZE
            m.d.sync += [
                axi.awvalid.eq(1),
                axi.wvalid.eq(1),
                address.eq(Cat(beat[:page], beat[page:] + self.base[lane])),
                write_strobe.eq(Mux(final, strobe, (1 << PORT_BYTES) - 1)),
                last.eq(final),
                unit.eq(unit + 1),
            ]

        # The row moves down past the port; its scale follows from above, in every word of the beat, of which the strobe takes one.
        held, scale = Signal(8 * layout.head_dim, reset_less=True), Signal(8 * SCALE_BYTES, reset_less=True)
        m.d.comb += axi.wdata.eq(held[:PORT_BITS])
        with m.If(taken):
            m.d.sync += [held.eq(self.row.payload.row.codes.as_value()), scale.eq(self.row.payload.row.scale)]
        with m.Elif(sent):
            m.d.sync += held.eq(Cat(held[PORT_BITS:], scale.replicate(PORT_BYTES // SCALE_BYTES)))
        return m

    def _place(self, m: Module, taken: Signal, move: Signal, final: Value) -> tuple[Value, Value, Value]:
        """Beat and port of the unit that goes on the port next, and the strobe of a scale.

        Unit u of row j of a block is number j * units + u among the block's codes. Ports are an odd number times a power of two; the odd one divides the units
        of a row, padding included: it is counted, the power of two is bits of ``step``.
        """
        layout = self.layout
        units = layout.row_bytes // PORT_BYTES
        odd = self.ports // (self.ports & -self.ports)
        bits = ceil_log2(self.ports // odd)
        row_bits = ceil_log2(layout.key_tile)
        number = self.row.payload.address
        at, block = number[1 : 1 + row_bits], Cat(number[0], number[1 + row_bits :])
        first_step = layout.scale_beats << bits
        start = Signal(BEAT_BITS, reset_less=True)
        step = Signal(range(first_step + layout.key_tile * units // odd + 1), reset_less=True)
        count = Signal(range(odd), reset_less=True)
        # Scales are few: where theirs lie is a table, four to a unit.
        scales = max(1, layout.key_tile * SCALE_BYTES // PORT_BYTES)
        scale_beat, scale_lane = Signal(range(layout.scale_beats), reset_less=True), Signal(range(self.ports), reset_less=True)
        word = Signal(ceil_log2(PORT_BYTES // SCALE_BYTES), reset_less=True)
        with m.If(taken):
            m.d.sync += [
                start.eq(block * layout.block_beats + layout.base),
                step.eq(at * (units // odd) + first_step),
                count.eq(0),
                word.eq(at),
                *(table.eq(_look_up(values, at[len(word) :])) for table, values in zip((scale_beat, scale_lane), _split(scales, self.ports), strict=True)),
            ]
        with m.If(move):
            m.d.sync += count.eq(count + 1)
            with m.If(count == odd - 1):
                m.d.sync += [count.eq(0), step.eq(step + 1)]
        beat = start + Mux(final, scale_beat, step >> bits)
        lane = Mux(final, scale_lane, step[:bits] * odd + count)
        return beat[:BEAT_BITS], lane, Const((1 << SCALE_BYTES) - 1, PORT_BYTES) << (word * SCALE_BYTES)


def _split(scales: int, ports: int) -> tuple[list[int], list[int]]:
    """Beats and ports of the 16-byte units of a block's scales."""
    return [unit // ports for unit in range(scales)], [unit % ports for unit in range(scales)]


def _look_up(values: list[int], index: Value) -> Value:
    """``values`` at ``index``."""
    if len(index) == 0:
        return Const(values[0])
    columns = range(max(1, max(values).bit_length()))
    return Cat(Const(sum((value >> bit & 1) << i for i, value in enumerate(values)), len(values)).bit_select(index, 1) for bit in columns)
