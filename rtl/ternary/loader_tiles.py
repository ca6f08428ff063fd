# SPDX-License-Identifier: Apache-2.0
"""The walk over key and value tiles of a pass, for LOADER (``KvLayout.order``)."""

from math import gcd

from amaranth import Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.kv_layout import KvLayout

__all__ = ["TileWalker"]


class TileWalker(wiring.Component):
    """Prefill: for KV head: for tile, newest first: K, V. Decode: for KV head: for tile, oldest first: V of the head before, K of the head. Serial: as in
    decode, token after token.

    ``start`` in t: states END, SIZE, PLACE, the first tile from t + 4; ``take`` in t: the next one from t + 2 (STEP), of another token from t + 4.

    Members
    -------
    start : ``In(1)``, with base (beat of the layer's first block), tokens, position, serial.
    valid, address, beats, rows, value, last : ``Out``
        The tile on offer; ``last``: of the pass. ``take`` : ``In(1)``.
    """

    def __init__(self, layout: KvLayout) -> None:
        self._layout = layout
        super().__init__(
            {
                "start": In(1),
                "base": In(32),
                "tokens": In(8),
                "position": In(16),
                "serial": In(1),
                "take": In(1),
                "valid": Out(1),
                "address": Out(32),
                "beats": Out(24),
                "rows": Out(16),
                "value": Out(1),
                "last": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        layout = self._layout
        tile_bits, pair, head_beats = layout.key_tile.bit_length() - 1, 2 * layout.block_beats, 2 * layout.block_beats * layout.tiles
        prefill, left = Signal(), Signal(8)  # tokens whose tiles are still to come
        base, newest = Signal(32), Signal(17)
        top, tile = Signal(range(layout.tiles + 1)), Signal(range(layout.tiles + 1))
        last_rows, last_beats = Signal(range(layout.key_tile + 1)), Signal(range(layout.block_beats + 1))
        top_place, place = Signal(32), Signal(32)  # of a tile behind its head's first block
        head, k_head, v_head = Signal(range(layout.kv_heads + 2)), Signal(32), Signal(32)
        # Rows to beats: in lowest terms a power of two divides, since the codes of a tile are whole beats.
        common = gcd(layout.row_bytes, layout.beat_bytes)
        numerator, denominator = layout.row_bytes // common, layout.beat_bytes // common
        is_top, head_end, finished = Signal(), Signal(), Signal()
        m.d.comb += [
            is_top.eq(tile == top),
            head_end.eq(Mux(prefill, tile == 0, is_top)),
            # Decode walks once more after the last head: its V.
            finished.eq(head_end & Mux(prefill, self.value & (head == layout.kv_heads - 1), self.value & (head == layout.kv_heads))),
            self.last.eq(finished & (prefill | (left == 1))),
            self.rows.eq(Mux(is_top, last_rows, layout.key_tile)),
            self.beats.eq(Mux(is_top, last_beats, layout.block_beats)),
        ]

        def offer(value: object) -> list[object]:
            return [self.value.eq(value), self.address.eq(Mux(value, v_head + place + layout.block_beats, k_head + place))]

        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [
                    prefill.eq((self.tokens != 1) & ~self.serial),
                    left.eq(Mux(self.serial, self.tokens, 1)),
                    base.eq(self.base),
                    newest.eq(self.position + Mux(self.serial, 0, self.tokens - 1)),
                ]
                with m.If(self.start):
                    m.next = "END"
            with m.State("END"):
                m.d.sync += [top.eq(newest >> tile_bits), last_rows.eq(newest[:tile_bits] + 1 if tile_bits else 1)]
                m.next = "SIZE"
            with m.State("SIZE"):
                m.d.sync += [
                    top_place.eq(top * pair),
                    last_beats.eq(layout.scale_beats + (last_rows * numerator + (denominator - 1)) // denominator),
                    head.eq(0),
                    k_head.eq(base),
                    v_head.eq(base),
                    tile.eq(Mux(prefill, top, 0)),
                ]
                m.next = "PLACE"
            with m.State("PLACE"):
                m.d.sync += [place.eq(Mux(prefill, top_place, 0)), self.value.eq(0), self.address.eq(k_head + Mux(prefill, top_place, 0))]
                m.next = "TILE"
            with m.State("TILE"):
                m.d.comb += self.valid.eq(1)
                with m.If(self.take):
                    with m.If(self.last):
                        m.next = "IDLE"
                    with m.Elif(finished):
                        m.d.sync += [left.eq(left - 1), newest.eq(newest + 1)]
                        m.next = "END"
                    with m.Else():
                        m.next = "STEP"
                        # A tile's other half comes before the next tile: prefill K, V; decode V (of the head before), K (not after the last head).
                        with m.If(Mux(prefill, self.value, ~self.value | (head == layout.kv_heads))):
                            m.d.sync += [tile.eq(Mux(prefill, tile - 1, tile + 1)), place.eq(Mux(prefill, place - pair, place + pair))]
                            with m.If(head_end):
                                m.d.sync += [
                                    head.eq(head + 1),
                                    k_head.eq(k_head + head_beats),
                                    v_head.eq(Mux(prefill, k_head + head_beats, k_head)),
                                    tile.eq(Mux(prefill, top, 0)),
                                    place.eq(Mux(prefill, top_place, 0)),
                                ]
            with m.State("STEP"):
                # ``value`` still is the half that was taken: after K of prefill comes V; in decode K of the first head comes alone.
                with m.If(prefill):
                    m.d.sync += offer(~self.value)
                with m.Else():
                    m.d.sync += offer((head != 0) & (~self.value | (head == layout.kv_heads)))
                m.next = "TILE"
        return m
