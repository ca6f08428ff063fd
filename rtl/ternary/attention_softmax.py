# SPDX-License-Identifier: Apache-2.0
"""ATTEND's second stage: probabilities and weights of an item, and its rescale factor."""

from amaranth.hdl import C, Cat, Module, Mux, Signal
from amaranth.lib import stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2

from lutra.hls_models.floats import FLOAT_LATENCY, FP32
from lutra.hls_models.functions import FUNCTION_LATENCY
from lutra.hls_models.ternary.attention import STORED_ITEMS, AttentionConfig
from lutra.rtl.float_parts import register
from lutra.rtl.floats import FloatAdd, FloatMul, greater
from lutra.rtl.functions import Exp2
from lutra.rtl.ternary.attention_items import counter, deep_memory, delay, item_layout, row_address
from lutra.rtl.ternary.attention_scores import maximum_layout

__all__ = ["Softmax"]


class Softmax(wiring.Component):
    """p_j = exp2(f32(s_j - m)), f = exp2(f32(older m - m)), and for int8 w_j = f32(p_j * sv_j) and the largest w (fp16 has no sv: the weights are p).

    An item is taken when its V tile is loaded, its maximum is known (prefill: an item's own; decode: the row's, kept from the first tile on), the item before
    has read its last score, and both the weight store and the partial sums have one of their ``STORED_ITEMS`` places free. Taken at t, f enters the
    subtractor at t + 1 and score j at t + 2 + j; p follows ``latency`` clocks later and w ``FLOAT_LATENCY["mul"]`` after p. Nothing stalls an item once taken.

    Members
    -------
    prefill : ``In(1)``
    items : ``In(stream)`` of ``item_layout``; ``take`` : ``Out(1)``, an item is taken, ``items.payload`` is to be noted
    score_valid, score : ``In``, into the queue of scores; ``score_free``, ``score_freed`` : ``Out``, that many left it
    maximum_valid, maximum : ``In``, into the queue of maxima; ``maximum_free`` : ``Out(1)``, one left it
    v_loaded : ``In(1)``; v_write, slot, index, scale : write port of the scales of V tiles (int8)
    weights_free, sums_free : ``In(1)``, an item's weights or partial sums are no longer needed
    factor_valid, factor : ``Out``: f of the item (1.0 on a row's first item and in decode)
    p_valid, p, p_end : ``Out``: probabilities; ``p_end`` with an item's last one
    w_valid, w, w_end : ``Out``: weights; ``w_end`` with an item's last one, and then ``w_largest`` is the item's maximum (int8)
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        self.latency = FLOAT_LATENCY["add"] + FUNCTION_LATENCY["exp2"]
        strobes_in: tuple[str, ...] = ("prefill", "score_valid", "maximum_valid", "v_loaded", "weights_free", "sums_free")
        strobes_out: tuple[str, ...] = ("take", "score_free", "maximum_free", "factor_valid", "p_valid", "p_end")
        weights = {}
        if config.kv_format == "int8":
            strobes_in, strobes_out = (*strobes_in, "v_write", "slot"), (*strobes_out, "w_valid", "w_end")
            weights = {"index": In(max(1, ceil_log2(config.key_tile))), "scale": In(FP32.bits), "w": Out(FP32.bits), "w_largest": Out(FP32.bits)}
        super().__init__(
            {
                "items": In(stream.Signature(item_layout(config))),
                "score": In(FP32.bits),
                "score_freed": Out(bits_for(config.key_tile)),
                "maximum": In(maximum_layout()),
                "factor": Out(config.format.bits),
                "p": Out(config.format.bits),
            }
            | weights
            | {name: In(1) for name in strobes_in}
            | {name: Out(1) for name in strobes_out}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, item = self.config, self.items.payload
        left = Signal(bits_for(config.key_tile))
        exponents = self._exponents(m)
        maximum, older, needed = Signal(FP32.bits, reset_less=True), Signal(FP32.bits, reset_less=True), Signal()
        rescale, tile_end, begin = Signal(), Signal(), Signal()

        waiting = self._maxima(m, maximum, older, needed)
        tiles = counter(m, "tiles", 2, up=self.v_loaded, down=(left == 1) & tile_end)
        weights = counter(m, "weights", STORED_ITEMS, up=self.weights_free, down=self.take, init=STORED_ITEMS)
        sums = counter(m, "sums", STORED_ITEMS, up=self.sums_free, down=self.take, init=STORED_ITEMS)
        m.d.comb += [
            needed.eq(self.prefill | item.first),
            self.items.ready.eq((left == 0) & (tiles != 0) & (~needed | (waiting != 0)) & (weights != 0) & (sums != 0)),
            self.take.eq(self.items.valid & self.items.ready),
            self.maximum_free.eq(self.take & needed),
            self.score_free.eq(left == 1),
        ]
        m.d.sync += begin.eq(self.take)
        with m.If(left != 0):
            m.d.sync += left.eq(left - 1)
        with m.If(self.take):
            m.d.sync += [
                left.eq(item.keys),
                self.score_freed.eq(item.keys),
                tile_end.eq(item.tile_end),
                rescale.eq(self.prefill & ~item.first),
            ]

        score = self._scores(m, left != 0)
        key = delay(m, left != 0, "key", 1)
        end = delay(m, left == 1, "key_end", 1)
        last_row = register(m, tile_end, "key_tile_end")
        m.d.comb += [
            exponents.subtract.eq(1),
            exponents.a.eq(Mux(begin, older, score)),
            exponents.b.eq(maximum),
        ]
        one = C(config.format.one, config.format.bits)
        m.d.comb += [
            self.factor_valid.eq(delay(m, begin, "factor_at", self.latency)),
            self.factor.eq(Mux(register(m, rescale, "rescale_late", self.latency), self.p, one)),
            self.p_valid.eq(delay(m, key, "p_at", self.latency)),
            self.p_end.eq(delay(m, end, "end_at", self.latency)),
        ]
        if config.kv_format == "int8":
            self._weights(m, register(m, last_row, "tile_end_late", self.latency))
        return m

    def _exponents(self, m: Module) -> FloatAdd:
        m.submodules.difference = difference = FloatAdd(format=FP32)
        m.submodules.exp2 = exp2 = Exp2(format=self.config.format)
        m.d.comb += [exp2.a.eq(difference.y), self.p.eq(exp2.y)]
        return difference

    def _scores(self, m: Module, read: Signal) -> Signal:
        """The queue of scores; its output follows ``read`` by a clock. Whoever writes has kept count of its room."""
        m.submodules.scores = scores = Memory(shape=FP32.bits, depth=self.config.score_depth, init=[], attrs=deep_memory(self.config))
        store, fetch = scores.write_port(), scores.read_port()
        m.d.comb += [store.data.eq(self.score), store.en.eq(self.score_valid), fetch.en.eq(read)]
        for port in (store, fetch):
            with m.If(port.en):
                m.d.sync += port.addr.eq(Mux(port.addr == self.config.score_depth - 1, 0, port.addr + 1))
        return fetch.data

    def _maxima(self, m: Module, maximum: Signal, older: Signal, needed: Signal) -> Signal:
        """The queue of maxima and, for decode, each row's; returns how many wait."""
        item = self.items.payload
        depth = self.config.maximum_depth
        m.submodules.maxima = maxima = Memory(shape=maximum_layout(), depth=depth, init=[])
        m.submodules.rows = rows = Memory(shape=FP32.bits, depth=1 << len(row_address(item)), init=[])
        store, fetch = maxima.write_port(), maxima.read_port(domain="comb")
        store_row, fetch_row = rows.write_port(), rows.read_port(domain="comb")
        m.d.comb += [
            store.data.eq(self.maximum),
            store.en.eq(self.maximum_valid),
            store_row.addr.eq(row_address(item)),
            store_row.data.eq(fetch.data.maximum),
            store_row.en.eq(self.maximum_free),
            fetch_row.addr.eq(row_address(item)),
        ]
        for port, moves in ((store, self.maximum_valid), (fetch, self.maximum_free)):
            with m.If(moves):
                m.d.sync += port.addr.eq(Mux(port.addr == depth - 1, 0, port.addr + 1))
        with m.If(self.take):
            m.d.sync += [maximum.eq(Mux(needed, fetch.data.maximum, fetch_row.data)), older.eq(fetch.data.older)]
        return counter(m, "waiting", depth, up=self.maximum_valid, down=self.maximum_free)

    def _weights(self, m: Module, tile_end: Signal) -> None:
        m.submodules.scales = scales = Memory(shape=FP32.bits, depth=2 << len(self.index), init=[])
        m.submodules.weight = weight = FloatMul(a_format=self.config.format, b_format=FP32, format=FP32)
        store, fetch = scales.write_port(), scales.read_port(domain="comb")
        index, slot = Signal.like(self.index), Signal()
        largest, base, fresh = Signal(FP32.bits, reset_less=True), Signal(FP32.bits), Signal(init=1)
        m.d.comb += [
            store.addr.eq(Cat(self.index, self.slot)),
            store.data.eq(self.scale),
            store.en.eq(self.v_write),
            fetch.addr.eq(Cat(index, slot)),
            weight.a.eq(self.p),
            weight.b.eq(fetch.data),
            self.w.eq(weight.y),
            self.w_valid.eq(delay(m, self.p_valid, "w_at", weight.latency)),
            self.w_end.eq(delay(m, self.p_end, "w_end_at", weight.latency)),
            base.eq(Mux(fresh, 0, largest)),
            self.w_largest.eq(Mux(greater(FP32, self.w, base), self.w, base)),
        ]
        with m.If(self.p_valid):
            m.d.sync += index.eq(Mux(self.p_end, 0, index + 1))
        with m.If(self.p_end & tile_end):
            m.d.sync += slot.eq(~slot)
        with m.If(self.w_valid):
            m.d.sync += [largest.eq(self.w_largest), fresh.eq(self.w_end)]
