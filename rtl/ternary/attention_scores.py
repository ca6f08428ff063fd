# SPDX-License-Identifier: Apache-2.0
"""ATTEND's first stage: scores of a query row against the keys of a tile, and the row's running maximum."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2

from lutra.hls_models.floats import FLOAT_LATENCY, FP32
from lutra.hls_models.ternary.attention import AttentionConfig
from lutra.rtl.float_parts import register
from lutra.rtl.floats import FloatMul, IntToFloat, greater
from lutra.rtl.ternary.attention_float import FloatDot, dot_latency
from lutra.rtl.ternary.attention_items import counter, delay, item_layout, row_address, row_layout, row_memory
from lutra.rtl.ternary.dsp import QuadDot
from lutra.rtl.verilog import once

__all__ = ["Scores", "maximum_layout"]


def maximum_layout() -> data.StructLayout:
    """A row's maximum and the one before this item."""
    return data.StructLayout({"maximum": FP32.bits, "older": FP32.bits})


class Scores(wiring.Component):
    """f32(f32(dot) * f32(sq * sk)) of a key per clock; of fp16 rows their dot product, a key per ``key_clocks``.

    An item is taken when its K tile is loaded, the item before is through with its last key, the score queue has room for all its keys and (if it reports a
    maximum) the maximum queue has a place. Taken at t, it reads key j at t + 1 + j * key_clocks; a score leaves ``latency`` clocks after the last step of its
    key, the first of which is its read; nothing stalls it.
    A maximum is reported with an item's last score: in prefill for every item, in decode for a row's last one.

    Members
    -------
    prefill : ``In(1)``
    items : ``In(stream)`` of ``item_layout``
    q_write, q_address, q_row : write port of the query buffer
    k_write, slot, index, row, k_loaded : write port of the tile buffer; ``k_release`` : ``Out(1)``, a tile was read for the last time
    score_valid, score : ``Out``
    score_free, score_freed : ``In``: that many scores have been read
    maximum_valid, maximum : ``Out``; ``maximum_free`` : ``In(1)``, one has been taken
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        if config.kv_format == "fp16":
            self.latency = 1 + dot_latency(config)
        else:
            self.latency = 2 + ceil_log2(config.head_dim) + FLOAT_LATENCY["from_int"] + FLOAT_LATENCY["mul"]
        item = item_layout(config)
        super().__init__(
            {
                "prefill": In(1),
                "items": In(stream.Signature(item)),
                "q_write": In(1),
                "q_address": In(range(config.max_tokens * config.heads)),
                "q_row": In(row_layout(config)),
                "k_write": In(1),
                "slot": In(1),
                "index": In(max(1, ceil_log2(config.key_tile))),
                "row": In(row_layout(config)),
                "k_loaded": In(1),
                "k_release": Out(1),
                "score_valid": Out(1),
                "score": Out(FP32.bits),
                "score_free": In(1),
                "score_freed": In(bits_for(config.key_tile)),
                "maximum_valid": Out(1),
                "maximum": Out(maximum_layout()),
                "maximum_free": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, item = self.config, self.items.payload
        m.submodules.queries = queries = Memory(shape=row_layout(config), depth=config.max_tokens * config.heads, init=[], attrs=row_memory(config))
        m.submodules.keys = keys = Memory(shape=row_layout(config), depth=2 << len(self.index), init=[], attrs=row_memory(config))
        store_query, read_query = queries.write_port(), queries.read_port(domain="comb")
        store_key, read_key = keys.write_port(), keys.read_port(domain="comb")

        take, left = Signal(), Signal(bits_for(config.key_tile))
        index, slot = Signal.like(self.index), Signal()
        query = Signal(row_layout(config), reset_less=True)
        tag_layout = data.StructLayout({"start": 1, "end": 1, "first": 1, "report": 1, "row": len(row_address(item))})
        tag = Signal(tag_layout)
        noted = Signal(tag_layout)  # of the item at work, without ``start`` and ``end``
        start, tile_end, report = Signal(), Signal(), Signal()
        step, key_end = Signal(range(config.key_clocks)), Signal()

        tiles = counter(m, "tiles", 2, up=self.k_loaded, down=self.k_release)
        places = counter(m, "places", config.maximum_depth, up=self.maximum_free, down=take & report, init=config.maximum_depth)
        room = Signal(range(config.score_depth + 1), init=config.score_depth)
        m.d.sync += room.eq(room + Mux(self.score_free, self.score_freed, 0) - Mux(take, item.keys, 0))
        m.d.comb += [
            store_query.addr.eq(self.q_address),
            store_query.data.eq(self.q_row),
            store_query.en.eq(self.q_write),
            store_key.addr.eq(Cat(self.index, self.slot)),
            store_key.data.eq(self.row),
            store_key.en.eq(self.k_write),
            read_query.addr.eq(item.token * config.heads + item.head * config.group + item.query),
            read_key.addr.eq(Cat(index, slot)),
            report.eq(self.prefill | item.last),
            self.items.ready.eq((left == 0) & (tiles != 0) & (room >= item.keys) & (~report | (places != 0))),
            take.eq(self.items.valid & self.items.ready),
            tag.eq(noted),
            tag.start.eq(start),
            tag.end.eq(left == 1),
            key_end.eq((left != 0) & (step == config.key_clocks - 1)),
            self.k_release.eq(key_end & tag.end & tile_end),
        ]
        with m.If(left != 0):
            m.d.sync += step.eq(Mux(key_end, 0, step + 1))
        with m.If(key_end):
            m.d.sync += [left.eq(left - 1), index.eq(index + 1), start.eq(0)]
        if config.kv_format == "fp16":
            self._float_products(m, query.as_value(), read_key.data.as_value(), (left != 0) & (step < config.key_steps), step)
        with m.If(self.k_release):
            m.d.sync += slot.eq(~slot)
        with m.If(take):
            m.d.sync += [
                left.eq(item.keys),
                index.eq(0),
                query.eq(read_query.data),
                tile_end.eq(item.tile_end),
                start.eq(1),
                noted.first.eq(item.first),
                noted.report.eq(report),
                noted.row.eq(row_address(item)),
            ]

        if config.kv_format == "int8":
            self._products(m, query, register(m, read_key.data.as_value(), "key"))
        valid = delay(m, (left != 0) & (step == config.key_steps - 1), "valid", self.latency)
        # The last of its registers are flip-flops, as the row is an address: reset keeps synthesis from taking them into a shift register.
        early = delay(m, register(m, tag.as_value(), "tag", self.latency - 2), "tag_early", 1)
        self._maximum(m, valid, data.View(tag_layout, early), data.View(tag_layout, delay(m, early, "tag_last", 1)))
        return m

    def _products(self, m: Module, query: data.View, key_bits: Signal) -> None:
        """From the registered key row to ``score``: products, a register per level of the tree, conversion, scaling."""
        key = data.View(row_layout(self.config), key_bits)
        if self.config.tree == "dsp" and self.config.head_dim % 4 == 0:  # products and two levels of the tree
            level, depth = self._quads(m, query.codes.as_value(), key.codes.as_value()), 2
        else:
            level, depth = [register(m, query.codes[i] * key.codes[i], f"product_{i}") for i in range(self.config.head_dim)], 0
        while len(level) > 1:
            pairs = [register(m, a + b, f"sum_{depth}_{i}") for i, (a, b) in enumerate(zip(level[0::2], level[1::2], strict=False))]
            odd = [register(m, level[-1], f"sum_{depth}_odd")] if len(level) % 2 else []
            level, depth = pairs + odd, depth + 1
        m.submodules.to_float = to_float = IntToFloat(width=len(level[0]), format=FP32)
        m.submodules.scale = scale = FloatMul(a_format=FP32, b_format=FP32, format=FP32)
        m.submodules.scaled = scaled = FloatMul(a_format=FP32, b_format=FP32, format=FP32)
        waiting = 1 + depth + to_float.latency - scale.latency
        m.d.comb += [
            to_float.a.eq(level[0]),
            scale.a.eq(query.scale),
            scale.b.eq(key.scale),
            scaled.a.eq(to_float.y),
            scaled.b.eq(register(m, scale.y, "scale_late", waiting)),
            self.score.eq(scaled.y),
        ]

    def _quads(self, m: Module, query: Value, key: Value) -> list[Signal]:
        """Sums of four products each."""
        sums: list[Signal] = []
        for i in range(self.config.head_dim // 4):
            quad = QuadDot()
            m.submodules[f"quad_{i}"] = once(quad, "quad_dot")
            m.d.comb += [quad.a.eq(query.word_select(i, 32)), quad.b.eq(key.word_select(i, 32))]
            sums.append(quad.y)
        return sums

    def _float_products(self, m: Module, query: Signal, row: Value, active: Value, step: Signal) -> None:
        """From the key row as it is read (step 0) to ``score``; the query goes round once per key. What loads it must come later than this."""
        config = self.config
        m.submodules.dot = dot = FloatDot(config)
        key = Signal(len(row), reset_less=True)
        bits = len(dot.query.as_value())
        working = delay(m, active, "working", 1)
        m.d.sync += key.eq(Mux(step == 0, row, key >> bits))
        with m.If(working):
            m.d.sync += query.eq(query.rotate_right(bits))
        m.d.comb += [
            dot.query.as_value().eq(query[:bits]),
            dot.key.as_value().eq(key[:bits]),
            dot.valid.eq(working),
            dot.last.eq(delay(m, active & (step == config.key_steps - 1), "last_step", 1)),
            self.score.eq(dot.y),
        ]

    def _maximum(self, m: Module, valid: Signal, early: data.View, tag: data.View) -> None:
        """``early`` is ``tag`` a clock before: a row's maximum is read in that clock, as no item begins in the clock after another one's end."""
        m.submodules.maxima = maxima = Memory(shape=FP32.bits, depth=1 << len(tag.row), init=[], attrs={"ram_style": "distributed"})
        store, read = maxima.write_port(), maxima.read_port(domain="comb")
        running, older, start = (Signal(FP32.bits, name=name, reset_less=True) for name in ("running", "older", "start_maximum"))
        base, top = Signal(FP32.bits), Signal(FP32.bits)
        m.d.sync += start.eq(Mux(early.first, C(FP32.infinity | FP32.sign, FP32.bits), read.data))
        m.d.comb += [
            read.addr.eq(early.row),
            base.eq(Mux(tag.start, start, running)),
            top.eq(Mux(greater(FP32, self.score, base), self.score, base)),
            store.addr.eq(tag.row),
            store.data.eq(top),
            store.en.eq(valid & tag.end),
            self.score_valid.eq(valid),
            self.maximum_valid.eq(valid & tag.end & tag.report),
            self.maximum.maximum.eq(top),
            self.maximum.older.eq(Mux(tag.start, start, older)),
        ]
        with m.If(valid):
            m.d.sync += running.eq(top)
            with m.If(tag.start):
                m.d.sync += older.eq(start)
