# SPDX-License-Identifier: Apache-2.0
"""ATTEND on 16-bit floats: dot products of queries and keys, and weights times values, ``key_lanes`` elements per clock."""

from amaranth.hdl import C, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2

from lutra.hls_models.floats import FLOAT_LATENCY, FP16, FP32
from lutra.hls_models.ternary.attention import STORED_ITEMS, AttentionConfig
from lutra.rtl.float_parts import register
from lutra.rtl.floats import FloatAdd, FloatMul
from lutra.rtl.ternary.attention_items import TABLE_DEPTH, counter, delay, item_layout, row_memory

__all__ = ["FloatDot", "FloatProducts", "StepTree", "dot_latency"]


def dot_latency(config: AttentionConfig) -> int:
    """Clocks from a row's last elements to their dot product: product, an adder per level of the tree over the lanes, and of the one over the steps."""
    return FLOAT_LATENCY["mul"] + (ceil_log2(config.key_lanes) + ceil_log2(config.key_steps)) * FLOAT_LATENCY["add"]


class StepTree(wiring.Component):
    """Sum of fp32 values that come one after the other, ``last`` with the last: a balanced tree over time, one adder per level.

    A level adds every second value to the one before; the odd last one gets -0, which changes nothing. The sum stands on ``y`` ``latency`` clocks after the
    last value, whenever the others came; the next sum's values may follow at once.

    Parameters
    ----------
    steps : values of a sum, at most

    Members
    -------
    valid, last, x : ``In``
    y : ``Out(32)``
    """

    def __init__(self, *, steps: int) -> None:
        self._levels = ceil_log2(steps)
        self.latency = self._levels * FLOAT_LATENCY["add"]
        super().__init__({"valid": In(1), "last": In(1), "x": In(FP32.bits), "y": Out(FP32.bits)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        valid, last, x = self.valid, self.last, self.x
        for level in range(self._levels):
            m.submodules[f"add_{level}"] = add = FloatAdd(format=FP32)
            waits, held = Signal(name=f"waits_{level}"), Signal(FP32.bits, name=f"held_{level}", reset_less=True)
            m.d.comb += [add.a.eq(Mux(waits, held, C(FP32.sign, FP32.bits))), add.b.eq(x)]
            with m.If(valid):
                m.d.sync += [waits.eq(~waits & ~last), held.eq(x)]
            valid, last = (delay(m, strobe, f"{name}_{level}", add.latency) for strobe, name in ((valid & (waits | last), "valid"), (last, "last")))
            x = add.y
        m.d.comb += self.y.eq(x)
        return m


class FloatDot(wiring.Component):
    """Dot product of two rows of fp16 that come ``key_lanes`` elements per clock: exact products, a balanced tree over the lanes, one over the steps, in fp32.

    Members
    -------
    valid, last : ``In(1)``, elements stand on ``query`` and ``key``; the row's last ones
    y : ``Out(32)``, ``dot_latency`` clocks after the last elements
    """

    def __init__(self, config: AttentionConfig) -> None:
        self._steps = config.key_steps
        self._latency = dot_latency(config)
        lanes = data.ArrayLayout(FP16.bits, config.key_lanes)
        super().__init__({"valid": In(1), "last": In(1), "query": In(lanes), "key": In(lanes), "y": Out(FP32.bits)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        level = []
        for i, (a, b) in enumerate(zip(self.query, self.key, strict=True)):
            m.submodules[f"product_{i}"] = product = FloatMul(a_format=FP16, b_format=FP16, format=FP32)
            m.d.comb += [product.a.eq(a), product.b.eq(b)]
            level.append(product.y)
        depth = 0
        while len(level) > 1:
            odd = [register(m, level[-1], f"odd_{depth}", FLOAT_LATENCY["add"])] if len(level) % 2 else []
            pairs = []
            for i, (a, b) in enumerate(zip(level[0::2], level[1::2], strict=False)):
                m.submodules[f"sum_{depth}_{i}"] = add = FloatAdd(format=FP32)
                m.d.comb += [add.a.eq(a), add.b.eq(b)]
                pairs.append(add.y)
            level, depth = pairs + odd, depth + 1
        m.submodules.steps = steps = StepTree(steps=self._steps)
        lanes_latency = self._latency - steps.latency
        m.d.comb += [
            steps.valid.eq(delay(m, self.valid, "valid_late", lanes_latency)),
            steps.last.eq(delay(m, self.last, "last_late", lanes_latency)),
            steps.x.eq(level[0]),
            self.y.eq(steps.y),
        ]
        return m


class FloatProducts(wiring.Component):
    """P_d = sum over an item's keys, in their order from +0, of f32(p_j * v_jd); fp32 sums go round an adder, a key per ``key_clocks``.

    An item is taken when its last weight is stored, the item before is through with its last key, and one of the two places for P is free. Taken at t, p_j and
    its row of values are read at t + 1 + j * key_clocks, and P stands ``latency`` clocks after the item's last one. Nothing stalls an item once taken.

    Members
    -------
    tag : ``Out``; ``item`` : ``In``, the item with this number
    w_valid, w, w_end : ``In``, weights of an item
    weights_free : ``Out(1)``, an item's weights were read
    v_write, slot, index, codes : write port of the V tiles; ``v_release`` : ``Out(1)``, a tile was read for the last time
    valid : ``Out(1)``; products : ``Out``, an item's P, from the clock after ``valid``
    products_free : ``In(1)``
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        self.latency = 1 + FLOAT_LATENCY["mul"] + FLOAT_LATENCY["add"] + config.key_steps - config.key_clocks
        strobes_in = ("w_valid", "w_end", "v_write", "slot", "products_free")
        super().__init__(
            {
                "tag": Out(range(TABLE_DEPTH)),
                "item": In(item_layout(config)),
                "w": In(config.format.bits),
                "index": In(max(1, ceil_log2(config.key_tile))),
                "codes": In(data.ArrayLayout(FP16.bits, config.head_dim)),
                "weights_free": Out(1),
                "v_release": Out(1),
                "valid": Out(1),
                "products": Out(data.ArrayLayout(FP32.bits, config.head_dim)),
            }
            | {name: In(1) for name in strobes_in}
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, item = self.config, self.item
        m.submodules.weights = weights = Memory(shape=config.format.bits, depth=STORED_ITEMS << len(self.index), init=[])
        m.submodules.values = values = Memory(shape=FP16.bits * config.head_dim, depth=2 << len(self.index), init=[], attrs=row_memory(self.config))
        store, fetch = weights.write_port(), weights.read_port(domain="comb")
        store_values, fetch_values = values.write_port(), values.read_port(domain="comb")

        take, left, step = Signal(), Signal(bits_for(config.key_tile)), Signal(range(config.key_clocks))
        index, place, half = Signal.like(self.index), Signal(range(STORED_ITEMS)), Signal()
        store_index, store_place = Signal.like(self.index), Signal(range(STORED_ITEMS))
        first, tile_end, key_end, end, active = Signal(), Signal(), Signal(), Signal(), Signal()
        places = counter(m, "places", 2, up=self.products_free, down=take, init=2)
        waiting = counter(m, "waiting", STORED_ITEMS, up=self.w_valid & self.w_end, down=take)
        m.d.comb += [
            store.addr.eq(store_index | store_place << len(store_index)),
            store.data.eq(self.w),
            store.en.eq(self.w_valid),
            fetch.addr.eq(index | place << len(index)),
            store_values.addr.eq(self.index | self.slot << len(index)),
            store_values.data.eq(self.codes.as_value()),
            store_values.en.eq(self.v_write),
            fetch_values.addr.eq(index | half << len(index)),
            take.eq((left == 0) & (waiting != 0) & (places != 0)),
            key_end.eq((left != 0) & (step == config.key_clocks - 1)),
            end.eq(key_end & (left == 1)),
            active.eq((left != 0) & (step < config.key_steps)),
            self.weights_free.eq(end),
            self.v_release.eq(end & tile_end),
        ]
        with m.If(self.w_valid):
            m.d.sync += [store_index.eq(Mux(self.w_end, 0, store_index + 1)), store_place.eq(store_place + self.w_end)]
        with m.If(left != 0):
            m.d.sync += step.eq(Mux(key_end, 0, step + 1))
        with m.If(key_end):
            m.d.sync += [left.eq(left - 1), index.eq(index + 1), place.eq(place + end), half.eq(half ^ self.v_release), first.eq(0)]
        with m.If(take):
            m.d.sync += [left.eq(item.keys), index.eq(0), first.eq(1), tile_end.eq(item.tile_end), self.tag.eq(self.tag + 1)]

        weight, row = Signal(config.format.bits, reset_less=True), Signal(FP16.bits * config.head_dim, reset_less=True)
        m.d.sync += row.eq(Mux(step == 0, fetch_values.data, row >> FP16.bits * config.key_lanes))
        with m.If(step == 0):
            m.d.sync += weight.eq(fetch.data)
        self._sums(m, weight, row, first, active & (left == 1), active & (left == 1) & (step == config.key_steps - 1))
        return m

    def _sums(self, m: Module, weight: Signal, row: Signal, first: Signal, last: Signal, final: Signal) -> None:
        """The lanes; ``first``, ``last``: steps of an item's first and last key, ``final``: the last step; a clock before ``row`` has the elements."""
        config = self.config
        to_sum = 1 + FLOAT_LATENCY["mul"]
        fresh = register(m, first, "fresh", to_sum)
        sums = []
        for i in range(config.key_lanes):
            m.submodules[f"product_{i}"] = product = FloatMul(a_format=config.format, b_format=FP16, format=FP32)
            m.submodules[f"sum_{i}"] = add = FloatAdd(format=FP32)
            older = register(m, add.y, f"older_{i}", config.key_clocks - add.latency)
            m.d.comb += [
                product.a.eq(weight),
                product.b.eq(row.word_select(i, FP16.bits)),
                add.a.eq(Mux(fresh, 0, older)),
                add.b.eq(product.y),
            ]
            sums.append(add.y)
        # The last key's sums come step by step: newest on top.
        latest = Signal(FP32.bits * config.key_lanes)
        m.d.comb += [latest.word_select(i, FP32.bits).eq(value) for i, value in enumerate(sums)]
        whole = Signal(len(self.products.as_value()))
        if config.key_steps > 1:
            earlier = Signal(len(whole) - len(latest), reset_less=True)
            with m.If(delay(m, last, "last_sum", to_sum + FLOAT_LATENCY["add"])):
                m.d.sync += earlier.eq(whole[len(latest) :])
            m.d.comb += whole.eq(earlier | latest << len(earlier))
        else:
            m.d.comb += whole.eq(latest)
        m.d.comb += self.valid.eq(delay(m, final, "final_sum", to_sum + FLOAT_LATENCY["add"]))
        with m.If(self.valid):
            m.d.sync += self.products.as_value().eq(whole)
