# SPDX-License-Identifier: Apache-2.0
"""ATTEND's serial units, one item at a time each: denominators, and the quotients 255 / (largest weight) and 1 / denominator."""

from amaranth.hdl import C, Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2, exact_log2

from lutra.hls_models.floats import FLOAT_LATENCY, FP32
from lutra.hls_models.ternary.attention import STORED_ITEMS, AttentionConfig
from lutra.rtl.float_parts import register
from lutra.rtl.floats import FloatAdd, FloatConvert, FloatDivSqrt, FloatMul
from lutra.rtl.ternary.attention_items import TABLE_DEPTH, counter, delay, item_layout, row_address

__all__ = ["Denominator", "Quotient"]


class Denominator(wiring.Component):
    """l = f32(f32(l * f) + L), where L is the sum of an item's p: element j into partial sum j mod A, then a balanced tree.

    The partial sums of ``STORED_ITEMS`` items are kept: one receives while another is summed. Summing starts in the clock after the last partial sum is
    written or the item before is finished, and takes ``latency`` clocks to the one in which ``valid`` is 1.

    Members
    -------
    p_valid, p, p_end : ``In``
        One element per clock; ``p_end`` with an item's last one, whose sum is written ``FLOAT_LATENCY["convert"] + FLOAT_LATENCY["add"]`` clocks later.
    item, factor : ``In``
        Of the item numbered ``tag`` (``Out``).
    valid, denominator : ``Out``
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        self.latency = config.partials + (exact_log2(config.partials) + 1) * FLOAT_LATENCY["add"]
        super().__init__(
            {
                "p_valid": In(1),
                "p": In(config.format.bits),
                "p_end": In(1),
                "tag": Out(range(TABLE_DEPTH)),
                "item": In(item_layout(config)),
                "factor": In(config.format.bits),
                "valid": Out(1),
                "denominator": Out(FP32.bits),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        A = self.config.partials
        index_bits = ceil_log2(A)
        m.submodules.partials = partials = Memory(shape=FP32.bits, depth=STORED_ITEMS * A, init=[])
        ready = self._accumulate(m, partials, index_bits)
        left, right = partials.read_port(domain="comb"), partials.read_port(domain="comb")

        m.submodules.nodes = nodes = Memory(shape=FP32.bits, depth=A, init=[])
        store, node_left, node_right = nodes.write_port(), nodes.read_port(domain="comb"), nodes.read_port(domain="comb")
        m.submodules.rows = rows = Memory(shape=FP32.bits, depth=1 << len(row_address(self.item)), init=[])
        store_row, fetch_row = rows.write_port(), rows.read_port(domain="comb")
        m.submodules.rescaled = rescaled = FloatMul(a_format=FP32, b_format=self.config.format, format=FP32)
        m.submodules.add = add = FloatAdd(format=FP32)

        levels = exact_log2(A)
        level = Signal(range(levels + 1))  # the last one adds the sum to the rescaled denominator
        pair, pairs = Signal(range(A // 2)), Signal(range(1, A // 2 + 1))
        old, factor = Signal(FP32.bits, reset_less=True), Signal(self.config.format.bits, reset_less=True)
        row, keys, slot = Signal(len(row_address(self.item)), reset_less=True), Signal(bits_for(self.config.key_tile)), Signal(range(STORED_ITEMS))
        issue, take, wait = Signal(), Signal(), Signal(range(add.latency))
        written = delay(m, issue, "written", add.latency)
        m.d.comb += [
            left.addr.eq(Cat(C(0, 1), pair, slot)),
            right.addr.eq(Cat(C(1, 1), pair, slot)),
            node_left.addr.eq(Cat(C(0, 1), pair)),
            node_right.addr.eq(Cat(C(1, 1), pair)),
            rescaled.a.eq(old),
            rescaled.b.eq(factor),
            store.addr.eq(register(m, pair, "pair_late", add.latency)),
            store.data.eq(add.y),
            store.en.eq(written),
            self.valid.eq(written & (level == levels)),
            self.denominator.eq(add.y),
            store_row.addr.eq(row),
            store_row.data.eq(add.y),
            store_row.en.eq(self.valid),
            fetch_row.addr.eq(row_address(self.item)),
        ]
        with m.If(level == 0):
            # Partial sums that no key has reached still hold an older item.
            m.d.comb += [add.a.eq(Mux(left.addr[:index_bits] < keys, left.data, 0)), add.b.eq(Mux(right.addr[:index_bits] < keys, right.data, 0))]
        with m.Elif(level == levels):
            m.d.comb += [add.a.eq(rescaled.y), add.b.eq(node_left.data)]
        with m.Else():
            m.d.comb += [add.a.eq(node_left.data), add.b.eq(node_right.data)]

        waiting = counter(m, "waiting", STORED_ITEMS, up=ready, down=take)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += take.eq(waiting != 0)
                m.d.sync += [
                    level.eq(0),
                    pair.eq(0),
                    pairs.eq(A // 2),
                    row.eq(row_address(self.item)),
                    keys.eq(self.item.keys),
                    old.eq(Mux(self.item.first, 0, fetch_row.data)),
                    factor.eq(self.factor),
                ]
                with m.If(take):
                    m.next = "ISSUE"
            with m.State("ISSUE"):
                m.d.comb += issue.eq(1)
                m.d.sync += [pair.eq(pair + 1), wait.eq(add.latency - 1)]
                with m.If(pair == pairs - 1):
                    m.d.sync += pair.eq(0)
                    m.next = "WAIT"
            with m.State("WAIT"):
                m.d.sync += wait.eq(wait - 1)
                with m.If(wait == 0):
                    m.d.sync += [level.eq(level + 1), pairs.eq(Mux(pairs == 1, 1, pairs >> 1))]
                    m.next = "ISSUE"
                    with m.If(level == levels):
                        m.d.sync += [slot.eq(slot + 1), self.tag.eq(self.tag + 1)]
                        m.next = "IDLE"
        return m

    def _accumulate(self, m: Module, partials: Memory, index_bits: int) -> Signal:
        """Adds p to the partial sums; returns 1 in the clock in which an item's last one is written."""
        m.submodules.widen = widen = FloatConvert(source=self.config.format, target=FP32)
        m.submodules.accumulate = accumulate = FloatAdd(format=FP32)
        store, fetch = partials.write_port(), partials.read_port(domain="comb")
        index, slot, fresh = Signal(index_bits), Signal(range(STORED_ITEMS)), Signal(init=1)  # fresh: among the item's first A
        valid, end = delay(m, self.p_valid, "wide_valid", widen.latency), delay(m, self.p_end, "wide_end", widen.latency)
        m.d.comb += [
            widen.a.eq(self.p),
            fetch.addr.eq(Cat(index, slot)),
            accumulate.a.eq(widen.y),
            accumulate.b.eq(Mux(fresh, 0, fetch.data)),
            store.addr.eq(register(m, fetch.addr, "address_late", accumulate.latency)),
            store.data.eq(accumulate.y),
            store.en.eq(delay(m, valid, "sum_valid", accumulate.latency)),
        ]
        with m.If(valid):
            m.d.sync += index.eq(index + 1)
            with m.If(index == self.config.partials - 1):
                m.d.sync += fresh.eq(0)
        with m.If(end):
            m.d.sync += [index.eq(0), fresh.eq(1), slot.eq(slot + 1)]
        return delay(m, end, "sum_end", accumulate.latency)


class Quotient(wiring.Component):
    """numerator / operand by the serial divider, in order; operands wait in a store of ``TABLE_DEPTH``.

    An operand is taken in the clock after ``push`` or after the result before; its result comes ``FLOAT_LATENCY["divsqrt"]`` clocks later.

    Parameters
    ----------
    numerator
        fp32 bits.

    Members
    -------
    push, operand : ``In``
    valid : ``Out(1)``, one clock, with ``result`` and the operand it belongs to, ``divisor``: stable since the clock after the operand was taken
    """

    def __init__(self, *, numerator: int) -> None:
        self.numerator = numerator
        super().__init__({"push": In(1), "operand": In(FP32.bits), "valid": Out(1), "result": Out(FP32.bits), "divisor": Out(FP32.bits)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.operands = operands = Memory(shape=FP32.bits, depth=TABLE_DEPTH, init=[])
        m.submodules.divider = divider = FloatDivSqrt()
        store, fetch = operands.write_port(), operands.read_port(domain="comb")
        take = Signal()
        waiting = counter(m, "waiting", TABLE_DEPTH, up=self.push, down=take)
        m.d.comb += [
            store.data.eq(self.operand),
            store.en.eq(self.push),
            divider.operands.valid.eq(waiting != 0),
            divider.operands.payload.a.eq(self.numerator),
            divider.operands.payload.b.eq(fetch.data),
            take.eq(divider.operands.valid & divider.operands.ready),
            divider.result.ready.eq(1),
            self.valid.eq(divider.result.valid),
            self.result.eq(divider.result.payload),
        ]
        with m.If(self.push):
            m.d.sync += store.addr.eq(store.addr + 1)
        with m.If(take):
            m.d.sync += [fetch.addr.eq(fetch.addr + 1), self.divisor.eq(fetch.data)]
        return m
