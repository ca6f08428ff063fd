# SPDX-License-Identifier: Apache-2.0
"""ATTEND's last stages: weights times values of an item in integers (of fp16 rows: attention_float.py), and the row's running output."""

from typing import Any

import numpy as np
from amaranth.hdl import Cat, Module, Mux, Shape, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2

from lutra.hls_models.floats import FLOAT_LATENCY, FP32
from lutra.hls_models.ternary.attention import STORED_ITEMS, TINY, AttentionConfig
from lutra.rtl.float_parts import register
from lutra.rtl.floats import FloatAdd, FloatConvert, FloatMul, FloatToInt, IntToFloat
from lutra.rtl.streams import Queue
from lutra.rtl.ternary.attention_denominator import Quotient
from lutra.rtl.ternary.attention_items import TABLE_DEPTH, counter, deep_memory, delay, item_layout, row_address, row_memory
from lutra.rtl.ternary.dsp import Accumulator
from lutra.rtl.verilog import once

__all__ = ["Output", "Products", "product_bits"]


def _bits(x: float) -> int:
    return int(np.float32(x).view(np.uint32))


def product_bits(config: AttentionConfig) -> int:
    """Width of P: unsigned 8 bits times signed 8 bits, summed over a tile."""
    return 16 + ceil_log2(config.key_tile)


class Products(wiring.Component):
    """P_d = sum of c_j * v_jd with c_j = rint(f32(w_j * f32(255 / largest w))), a key per clock.

    An item is taken when its quotient is known, the item before has read its last weight, and one of the two places for P is free. Taken at t, weight j is read
    at t + 1 + j, and P is complete ``latency`` clocks after the last weight was read. Nothing stalls an item once taken.

    Members
    -------
    tag : ``Out``; ``item`` : ``In``, the item with this number
    w_valid, w, w_end, w_largest : ``In``, weights of an item, its maximum with the last one
    weights_free : ``Out(1)``, an item's weights were read
    v_write, slot, index, codes : write port of the V tiles; ``v_release`` : ``Out(1)``, a tile was read for the last time
    valid : ``Out(1)``; products, scale : ``Out``, an item's P and the scale of its codes, in the clock after ``valid``, and for as long as no item is taken
    products_free : ``In(1)``
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        self.latency = FLOAT_LATENCY["mul"] + FLOAT_LATENCY["to_int"] + 1
        strobes_in = ("w_valid", "w_end", "v_write", "slot", "products_free")
        super().__init__(
            {
                "tag": Out(range(TABLE_DEPTH)),
                "item": In(item_layout(config)),
                "w": In(FP32.bits),
                "w_largest": In(FP32.bits),
                "index": In(max(1, ceil_log2(config.key_tile))),
                "codes": In(data.ArrayLayout(signed(8), config.head_dim)),
                "weights_free": Out(1),
                "v_release": Out(1),
                "valid": Out(1),
                "products": Out(data.ArrayLayout(signed(product_bits(config)), config.head_dim)),
                "scale": Out(FP32.bits),
            }
            | {name: In(1) for name in strobes_in}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, item = self.config, self.item
        m.submodules.weights = weights = Memory(shape=FP32.bits, depth=STORED_ITEMS << len(self.index), init=[])
        store, fetch = weights.write_port(), weights.read_port(domain="comb")
        m.submodules.code = code = FloatMul(a_format=FP32, b_format=FP32, format=FP32)
        m.submodules.to_int = to_int = FloatToInt(format=FP32, low=0, high=255)
        known, inverse_next, scale_next = self._quotients(m)

        take, left = Signal(), Signal(bits_for(config.key_tile))
        index, slot = Signal.like(self.index), Signal(range(STORED_ITEMS))
        store_index, store_slot = Signal.like(self.index), Signal(range(STORED_ITEMS))
        inverse, scale = Signal(FP32.bits, reset_less=True), Signal(FP32.bits, reset_less=True)
        start, end, tile_end = Signal(), Signal(), Signal()
        places = counter(m, "places", 2, up=self.products_free, down=take, init=2)
        waiting = counter(m, "waiting", TABLE_DEPTH, up=known, down=take)
        m.d.comb += [
            store.addr.eq(Cat(store_index, store_slot)),
            store.data.eq(self.w),
            store.en.eq(self.w_valid),
            fetch.addr.eq(Cat(index, slot)),
            code.a.eq(fetch.data),
            code.b.eq(inverse),
            to_int.a.eq(code.y),
            take.eq((left == 0) & (waiting != 0) & (places != 0)),
            end.eq(left == 1),
            self.weights_free.eq(end),
        ]
        with m.If(self.w_valid):
            m.d.sync += [store_index.eq(Mux(self.w_end, 0, store_index + 1)), store_slot.eq(store_slot + self.w_end)]
        with m.If(left != 0):
            m.d.sync += [left.eq(left - 1), index.eq(index + 1), slot.eq(slot + end), start.eq(0)]
        with m.If(take):
            m.d.sync += [
                left.eq(item.keys),
                index.eq(0),
                start.eq(1),
                tile_end.eq(item.tile_end),
                inverse.eq(inverse_next),
                scale.eq(scale_next),
                self.tag.eq(self.tag + 1),
            ]

        read_at = code.latency + to_int.latency - 1  # clocks from a weight's read to that of its value row, which is then registered
        tags = [(left != 0, "valid"), (start, "start"), (end, "end"), (tile_end, "tile_end")]
        valid, start, end, tile_end = (delay(m, signal, f"{name}_at", read_at) for signal, name in tags)
        row = self._values(m, valid, end, tile_end)
        self._sums(m, to_int.y, row, *(delay(m, signal, name, 2) for signal, name in ((valid, "valid_sum"), (start, "start_sum"), (end, "end_sum"))))
        m.d.comb += self.scale.eq(register(m, scale, "scale_late", self.latency))
        return m

    def _quotients(self, m: Module) -> tuple[Signal, Signal, Signal]:
        """Known (strobe), then f32(255 / largest) and f32(largest * f32(1 / 255)) of the item numbered ``tag``."""
        m.submodules.quotient = quotient = Quotient(numerator=_bits(255))
        m.submodules.scale_of = scale_of = FloatMul(a_format=FP32, b_format=FP32, format=FP32)
        layout = data.StructLayout({"inverse": FP32.bits, "scale": FP32.bits})
        m.submodules.quotients = quotients = Memory(shape=layout, depth=TABLE_DEPTH, init=[])
        store, fetch = quotients.write_port(), quotients.read_port(domain="comb")
        nothing = Signal()
        m.d.comb += [
            quotient.push.eq(self.w_valid & self.w_end),
            quotient.operand.eq(self.w_largest),
            scale_of.a.eq(quotient.divisor),
            scale_of.b.eq(_bits(1 / 255)),
            nothing.eq(quotient.divisor < _bits(TINY)),  # neither negative nor NaN
            store.en.eq(quotient.valid),
            store.data.inverse.eq(Mux(nothing, 0, quotient.result)),
            store.data.scale.eq(Mux(nothing, 0, scale_of.y)),
            fetch.addr.eq(self.tag),
        ]
        with m.If(store.en):
            m.d.sync += store.addr.eq(store.addr + 1)
        return quotient.valid, fetch.data.inverse, fetch.data.scale

    def _values(self, m: Module, valid: Any, end: Any, tile_end: Any) -> data.View:
        """The registered row of V that belongs to the key whose code appears next."""
        codes = data.ArrayLayout(signed(8), self.config.head_dim)
        m.submodules.values = values = Memory(shape=codes, depth=2 << len(self.index), init=[], attrs=row_memory(self.config))
        store, fetch = values.write_port(), values.read_port(domain="comb")
        index, slot = Signal.like(self.index), Signal()
        m.d.comb += [
            store.addr.eq(Cat(self.index, self.slot)),
            store.data.eq(self.codes),
            store.en.eq(self.v_write),
            fetch.addr.eq(Cat(index, slot)),
            self.v_release.eq(end & tile_end),
        ]
        with m.If(valid):
            m.d.sync += index.eq(Mux(end, 0, index + 1))
        with m.If(self.v_release):
            m.d.sync += slot.eq(~slot)
        return data.View(codes, register(m, fetch.data.as_value(), "value"))

    def _sums(self, m: Module, code: Signal, row: data.View, valid: Any, start: Any, end: Any) -> None:
        width = product_bits(self.config)
        more = Signal()
        m.d.comb += more.eq(~start)
        for i in range(self.config.head_dim):
            if self.config.tree == "dsp":
                total = Accumulator(width=width)
                m.submodules[f"total_{i}"] = once(total, f"accumulator_{width}")
                m.d.comb += [total.a.eq(code[:8]), total.b.eq(row[i]), total.enable.eq(valid), total.more.eq(more), self.products[i].eq(total.y)]
            else:
                product = register(m, code[:8] * row[i], f"product_{i}")
                with m.If(valid):
                    m.d.sync += self.products[i].eq(Mux(more, self.products[i], 0) + product)
        m.d.comb += self.valid.eq(end)


class Output(wiring.Component):
    """o_d = f32(f32(o_d * f) + f32(f32(P_d) * scale)), V dimensions per clock; with a row's last item, F(f32(o_d * f32(1 / l))) leaves.

    Of fp16 rows P_d is fp32 and has no scale.

    An item is taken when its P and 1 / l are known, the item before has written its last o, and (a row's last item) the queue of values has room for a head.
    Taken at t, beat b of P is read at t + 1 + b, o is written ``update`` clocks later, and its value enters the queue ``latency`` clocks later.

    Members
    -------
    tag : ``Out``; ``item``, ``factor`` : ``In``, of the item with this number
    products_valid, products, scale : ``In``, as of :class:`Products`; ``products_free`` : ``Out(1)``
    denominator_valid, denominator : ``In``
    values : ``Out(stream)`` of {values}; ``final`` : ``Out(1)``, with the last beat of an instruction
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        self._floating = config.kv_format == "fp16"
        # From a beat of P to the factors of the sum's terms: P's conversion, or the read of the old output.
        self._factors = 1 if self._floating else FLOAT_LATENCY["from_int"]
        self.update = self._factors + FLOAT_LATENCY["mul"] + FLOAT_LATENCY["add"]
        product = FP32.bits if self._floating else signed(product_bits(config))
        self.latency = self.update + FLOAT_LATENCY["mul"] + FLOAT_LATENCY["convert"]
        values = data.StructLayout({"values": data.ArrayLayout(config.format.bits, config.vector_lanes)})
        super().__init__(
            {
                "tag": Out(range(TABLE_DEPTH)),
                "item": In(item_layout(config)),
                "factor": In(config.format.bits),
                "products_valid": In(1),
                "products": In(data.ArrayLayout(product, config.head_dim)),
                "products_free": Out(1),
                "denominator_valid": In(1),
                "denominator": In(FP32.bits),
                "values": Out(stream.Signature(values)),
                "final": Out(1),
            }
            | ({} if self._floating else {"scale": In(FP32.bits)})
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, item = self.config, self.item
        beats = config.head_beats
        m.submodules.inverse = inverse = Quotient(numerator=FP32.one)
        m.submodules.inverses = inverses = Memory(shape=FP32.bits, depth=TABLE_DEPTH, init=[])
        store_inverse, fetch_inverse = inverses.write_port(), inverses.read_port(domain="comb")
        # Of two items that wait, the newer one stays where its P was made: there is no place in which a third one could begin.
        fresh = Cat(self.products.as_value(), *([] if self._floating else [self.scale]))
        older = Signal(len(fresh), reset_less=True)
        fresh_waits, older_waits, shift = Signal(), Signal(), Signal()

        take, moved = Signal(), Signal()
        busy = Signal(range(beats + self.update + 1))
        left = Signal(range(beats + 1))
        first, last, final = Signal(), Signal(), Signal()
        row = Signal(len(row_address(item)), reset_less=True)
        scale, inverse_l = Signal(FP32.bits, reset_less=True), Signal(FP32.bits, reset_less=True)
        factor = Signal(config.format.bits, reset_less=True)
        products = Signal(len(self.products.as_value()), reset_less=True)
        known = counter(m, "known", TABLE_DEPTH, up=inverse.valid, down=take)
        waiting = counter(m, "waiting", 2, up=self.products_valid, down=take)
        room = Signal(range(2 * beats + 1), init=2 * beats)
        m.d.sync += room.eq(room + moved - Mux(take & item.last, beats, 0))
        m.d.comb += [
            inverse.push.eq(self.denominator_valid),
            inverse.operand.eq(self.denominator),
            store_inverse.data.eq(inverse.result),
            store_inverse.en.eq(inverse.valid),
            fetch_inverse.addr.eq(self.tag),
            shift.eq(fresh_waits & (take == older_waits)),
            take.eq((busy == 0) & (known != 0) & (waiting != 0) & (~item.last | (room >= beats))),
            self.products_free.eq(take),
        ]
        m.d.sync += [
            fresh_waits.eq(self.products_valid | (fresh_waits & ~take & older_waits)),
            older_waits.eq(shift | (older_waits & ~take)),
        ]
        with m.If(shift):
            m.d.sync += older.eq(fresh)
        with m.If(inverse.valid):
            m.d.sync += store_inverse.addr.eq(store_inverse.addr + 1)
        with m.If(busy != 0):
            m.d.sync += busy.eq(busy - 1)
        lanes = data.ArrayLayout(self.products.shape().elem_shape, config.vector_lanes)
        step = Shape.cast(lanes).width
        with m.If(left != 0):
            m.d.sync += [left.eq(left - 1), products.eq(products[step:])]
        taken = Mux(older_waits, older, fresh)
        with m.If(take):
            m.d.sync += [
                busy.eq(beats + self.update),
                left.eq(beats),
                products.eq(taken[: len(products)]),
                first.eq(item.first),
                last.eq(item.last),
                final.eq(item.final),
                row.eq(row_address(item)),
                inverse_l.eq(fetch_inverse.data),
                factor.eq(self.factor),
                self.tag.eq(self.tag + 1),
            ]

        if not self._floating:
            with m.If(take):
                m.d.sync += scale.eq(taken[len(products) :])

        old, write = self._outputs(m, row, left != 0)
        beat = data.View(lanes, products[:step])
        olds = [Mux(first, 0, old[i]) for i in range(config.vector_lanes)]
        results = [self._lane(m, f"lane_{i}", beat[i], scale, olds[i], factor, inverse_l) for i in range(config.vector_lanes)]
        m.d.comb += write.eq(Cat(new for new, _ in results))
        end = delay(m, (left != 0) & last, "value_at", self.latency)
        last_beat = delay(m, (left == 1) & final, "final_at", self.latency)
        m.submodules.queue = queue = Queue(shape=len(results) * config.format.bits + 1, depth=2 * beats)
        m.d.comb += [
            queue.input.valid.eq(end),
            queue.input.payload.eq(Cat((value for _, value in results), last_beat)),
            self.values.valid.eq(queue.output.valid),
            queue.output.ready.eq(self.values.ready),
            Cat(self.values.payload.values.as_value(), self.final).eq(queue.output.payload),
            moved.eq(self.values.valid & self.values.ready),
        ]
        return m

    def _outputs(self, m: Module, row: Signal, active: Any) -> tuple[data.View, Signal]:
        """Running outputs: what a beat finds, where its multiplier takes it, and what it leaves."""
        beats = self.config.head_beats
        layout = data.ArrayLayout(FP32.bits, self.config.vector_lanes)
        places = max(1, ceil_log2(beats))
        m.submodules.outputs = outputs = Memory(shape=layout, depth=1 << (places + len(row)), init=[], attrs=deep_memory(self.config))
        store, fetch = outputs.write_port(), outputs.read_port()
        # The multiplier by f stands beside the one by the scale, which the conversion of P precedes: the read takes that conversion's last clock.
        reading = delay(m, active, "reading", self._factors - 1)
        writing = delay(m, active, "writing", self.update)
        for port, moves, name in ((fetch, reading, "read_beat"), (store, writing, "write_beat")):
            beat = Signal(places, name=name)
            m.d.comb += [port.addr.eq(Cat(beat, row)), port.en.eq(moves)]
            with m.If(moves):
                m.d.sync += beat.eq(Mux(beat == beats - 1, 0, beat + 1))
        write = Signal(len(store.data.as_value()))
        m.d.comb += store.data.eq(write)
        return fetch.data, write

    def _lane(self, m: Module, name: str, product: Any, scale: Signal, old: Any, factor: Signal, inverse: Signal) -> tuple[Signal, Signal]:
        """One dimension: the new output after ``update`` clocks, the value after ``latency``."""
        config = self.config
        m.submodules[f"{name}_rescaled"] = rescaled = FloatMul(a_format=FP32, b_format=config.format, format=FP32)
        m.submodules[f"{name}_add"] = add = FloatAdd(format=FP32)
        m.submodules[f"{name}_divided"] = divided = FloatMul(a_format=FP32, b_format=FP32, format=FP32)
        m.submodules[f"{name}_value"] = value = FloatConvert(source=FP32, target=config.format)
        if self._floating:
            term = register(m, product, f"{name}_product_late", self._factors + FLOAT_LATENCY["mul"])
        else:
            m.submodules[f"{name}_to_float"] = to_float = IntToFloat(width=product_bits(config), format=FP32)
            m.submodules[f"{name}_term"] = scaled = FloatMul(a_format=FP32, b_format=FP32, format=FP32)
            m.d.comb += [to_float.a.eq(product), scaled.a.eq(to_float.y), scaled.b.eq(scale)]
            term = scaled.y
        m.d.comb += [
            rescaled.a.eq(old),
            rescaled.b.eq(factor),
            add.a.eq(rescaled.y),
            add.b.eq(term),
            divided.a.eq(add.y),
            divided.b.eq(inverse),
            value.a.eq(divided.y),
        ]
        return add.y, value.y
