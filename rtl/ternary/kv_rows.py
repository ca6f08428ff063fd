# SPDX-License-Identifier: Apache-2.0
"""Beats of key and value tiles, as they lie in a shared memory, to rows with their scales."""

from math import gcd
from typing import Any

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.kv_layout import SCALE_BYTES, KvLayout

__all__ = ["KvRows", "kv_data_layout", "kv_layout"]


def kv_layout(beat_bytes: int) -> data.StructLayout:
    """A beat of a tile: ``first`` of it, ``rows`` rows in it, of values or keys, ``last`` of it."""
    return data.StructLayout({"beat": 8 * beat_bytes, "first": 1, "rows": 16, "value": 1, "last": 1})


def kv_data_layout(head_dim: int) -> data.StructLayout:
    """A row of a tile, of values or keys; ``last`` of the tile."""
    return data.StructLayout({"scale": 8 * SCALE_BYTES, "codes": data.ArrayLayout(signed(8), head_dim), "value": 1, "last": 1})


class KvRows(wiring.Component):
    """Keeps a tile's scales, joins its code beats to rows; a row leaves ``KV_ROWS`` clocks after the beat with which it is complete, whatever the beats' pace.

    Never waits: ``kv`` is always ready and ``kv_data.ready`` is not looked at (the room of a tile is reserved before it is read). Golden rows and cycles:
    ``KvLayout.tile_rows``, ``KvLayout.row_cycles``.

    Parameters
    ----------
    layout : sizes; a beat holds no more than a row.

    Members
    -------
    kv : ``In(stream)`` of ``kv_layout``, always ready; a tile's ``KvLayout.tile_beats(rows)`` beats follow each other.
    kv_data : ``Out(stream)`` of ``kv_data_layout``: the rows of each tile, in order.
    """

    def __init__(self, layout: KvLayout) -> None:
        self.layout = layout
        super().__init__(
            {
                "kv": In(stream.Signature(kv_layout(layout.beat_bytes))),
                "kv_data": Out(stream.Signature(kv_data_layout(layout.head_dim))),
            }
        )

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        layout, tile = self.layout, self.kv.payload
        scale_bits = 8 * SCALE_BYTES
        beat_scales = layout.beat_bytes // SCALE_BYTES
        # In steps: the largest units of which beats and rows are both made.
        step_bytes = gcd(layout.beat_bytes, layout.row_bytes)
        beat_steps, row_steps = layout.beat_bytes // step_bytes, layout.row_bytes // step_bytes

        m.submodules.scales = scales = Memory(shape=8 * layout.beat_bytes, depth=layout.scale_beats, init=[], attrs={"ram_style": "distributed"})
        store, fetch = scales.write_port(), scales.read_port(domain="comb")
        number = Signal(range(layout.scale_beats + 1))  # of the beat in its tile, as far as the codes
        word = Signal(range(beat_scales))
        held = Signal(range(row_steps))  # steps of a row that is not complete
        place, is_code, complete = Signal.like(number), Signal(), Signal()
        total = Signal(range(row_steps + beat_steps))
        m.d.comb += [
            self.kv.ready.eq(1),
            place.eq(Mux(tile.first, 0, number)),
            is_code.eq(self.kv.valid & (place == layout.scale_beats)),
            store.en.eq(self.kv.valid & (place != layout.scale_beats)),
            store.addr.eq(place),
            store.data.eq(tile.beat),
            total.eq(held + beat_steps),
            complete.eq(is_code & (total >= row_steps)),
        ]
        with m.If(store.en):
            m.d.sync += [number.eq(place + 1), word.eq(0), held.eq(0), fetch.addr.eq(0)]
        with m.If(is_code):
            m.d.sync += held.eq(total)
        with m.If(complete):
            m.d.sync += [held.eq(total - row_steps), word.eq(word + 1)]
            with m.If(word == beat_scales - 1):
                m.d.sync += [word.eq(0), fetch.addr.eq(fetch.addr + 1)]

        # The newest steps before this beat, as many as a row may still need; the row ends where `held` says.
        steps = Cat(tile.beat)
        if row_steps > 1:
            earlier = Signal(8 * step_bytes * (row_steps - 1), reset_less=True)  # newest on top
            steps = Cat(earlier, tile.beat)
            with m.If(is_code):
                m.d.sync += earlier.eq(steps[len(tile.beat) :])
        row = Signal(8 * layout.head_dim)
        with m.Switch(held):
            for end in range(1, beat_steps + 1):  # steps of this beat that belong to the row
                with m.Case(row_steps - end) if end < beat_steps else m.Default():
                    m.d.comb += row.eq(steps[8 * step_bytes * (end - 1) :][: len(row)])
        codes, scale = Signal(len(row), reset_less=True), Signal(scale_bits, reset_less=True)
        value, last = Signal(reset_less=True), Signal(reset_less=True)
        out = self.kv_data.payload
        m.d.comb += [out.codes.as_value().eq(codes), out.scale.eq(scale), out.value.eq(value), out.last.eq(last)]
        m.d.sync += self.kv_data.valid.eq(complete)
        with m.If(complete):
            m.d.sync += [codes.eq(row), scale.eq(fetch.data.word_select(word, scale_bits)), value.eq(tile.value), last.eq(tile.last)]
        return m
