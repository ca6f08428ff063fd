# SPDX-License-Identifier: Apache-2.0
"""ATTEND: stores the keys and values of a pass, then attends (docs/architecture.md §2.8); golden values and cycles in hls_models/ternary/attention*.py."""

from amaranth.hdl import C, Cat, Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out
from amaranth.utils import exact_log2

from lutra.hls_models.ternary.attention import ADDRESS_BITS, AttentionConfig
from lutra.rtl.ternary.attention_cache import KvLoader, KvReceiver, KvWriter
from lutra.rtl.ternary.attention_denominator import Denominator
from lutra.rtl.ternary.attention_float import FloatProducts
from lutra.rtl.ternary.attention_items import TABLE_DEPTH, ItemWalker, item_layout, kv_rows_layout, kv_write_layout, qkv_layout, row_layout, setup_layout
from lutra.rtl.ternary.attention_output import Output, Products
from lutra.rtl.ternary.attention_scores import Scores
from lutra.rtl.ternary.attention_softmax import Softmax

__all__ = ["Attention"]


class Attention(wiring.Component):
    """One instruction at a time: first the rows of all tokens are stored, then the stages run over items (a query row, a key tile), several at once:

        KvLoader ─K─► Scores ─scores, maxima─► Softmax ─┬─weights─► Products ─P──► Output ─► values
                 ─V───────────────────────────► (scales)└──p──► Denominator ─l───►

    With ``kv_format`` fp16 the rows hold floats without scale, p itself is the weight, and scores and products are sums of attention_float.py.

    Taken at t, an instruction takes code beats from t + 3; the first tile is requested four clocks after the last row has left on ``kv_write``. Steady state:
    an item takes ``key_clocks`` per key that its row sees and one more, at least the divider's ``FLOAT_LATENCY["divsqrt"] + 1``. ``values`` may stall: a
    row's last item waits for room, behind it everything. ``done`` follows the last beat of values by a clock, the next instruction is taken a clock after it.

    With ``shared`` there is no loader: the rows come by themselves (KvReceiver), a tile for every beat of ``k_freed`` or ``v_freed`` and two of each to begin
    with, and none of the pass before ``stored``.

    Members
    -------
    instr : ``In(stream)``, {layer, tokens: at least 1, position, serial: tokens attend one after the other, each as if it were decoded}
    qkv : ``In(stream)``, code beats of the pass: for token: query heads, K heads, V heads; only ``codes`` and (last beat of a head) ``scale`` are looked at
    kv_write, kv_read, kv_data : rows of the key/value memory; requests are answered in order and never wait for ``kv_data.ready``
    values : ``Out(stream)``, for KV head: for token: for query head of the group: its dimensions, V per beat; serial: for token: for query head
    done : ``Out(stream)``, payload 1

    With ``shared``, instead of kv_read and kv_data:

    kv_data : ``In(stream)`` of ``kv_rows_layout``, always ready
    k_freed, v_freed : ``Out(stream)``, payload 1, never wait for ``ready``: half a buffer of keys (values) is free from the next clock on
    idle : ``In(1)``, all rows that were given to ``kv_write`` are in memory; 0 from the clock after a row's handshake
    stored : ``Out(1)``, for a clock: so are all rows of the pass; the items start a clock later
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        values = data.StructLayout({"values": data.ArrayLayout(config.format.bits, config.vector_lanes)})
        memory = {"kv_read": Out(stream.Signature(ADDRESS_BITS)), "kv_data": In(stream.Signature(row_layout(config)))}
        if config.shared:
            freed = Out(stream.Signature(1))
            memory = {"kv_data": In(stream.Signature(kv_rows_layout(config))), "k_freed": freed, "v_freed": freed, "idle": In(1), "stored": Out(1)}
        super().__init__(
            {
                "instr": In(stream.Signature(data.StructLayout({"layer": 8, "tokens": 8, "position": 16, "serial": 1}))),
                "qkv": In(stream.Signature(qkv_layout(config))),
                "kv_write": Out(stream.Signature(kv_write_layout(config))),
                **memory,
                "values": Out(stream.Signature(values)),
                "done": Out(stream.Signature(1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        m.submodules.writer = writer = KvWriter(config)
        m.submodules.loader = loader = KvReceiver(config) if config.shared else KvLoader(config)
        m.submodules.score_items = score_items = ItemWalker(config)
        m.submodules.softmax_items = softmax_items = ItemWalker(config)
        m.submodules.scores = scores = Scores(config)
        m.submodules.softmax = softmax = Softmax(config)
        m.submodules.denominator = denominator = Denominator(config)
        integer = config.kv_format == "int8"
        m.submodules.products = products = Products(config) if integer else FloatProducts(config)
        m.submodules.output = output = Output(config)

        setup, start = Signal(setup_layout(config)), Signal()
        self._control(m, setup, start, writer, output)
        for unit in (score_items, softmax_items, *([] if config.shared else [loader])):
            m.d.comb += [unit.start.eq(start), unit.setup.eq(setup)]
        wiring.connect(m, score_items.item, scores.items)
        wiring.connect(m, softmax_items.item, softmax.items)
        for port, own in (("qkv", self.qkv), ("kv_data", self.kv_data)):
            wiring.connect(m, getattr(writer if port == "qkv" else loader, port), wiring.flipped(own))
        wiring.connect(m, writer.kv_write, wiring.flipped(self.kv_write))
        wiring.connect(m, output.values, wiring.flipped(self.values))

        row = self.kv_data.payload
        m.d.comb += [scores.row[name].eq(row[name]) for name in row_layout(config).members]
        m.d.comb += products.codes.eq(row.codes)
        m.d.comb += [scores.prefill.eq(setup.prefill), softmax.prefill.eq(setup.prefill)]
        links: list[tuple[wiring.Component, wiring.Component, str]] = [
            *((writer, scores, name) for name in ("q_write", "q_address", "q_row")),
            *((loader, scores, name) for name in ("k_write", "slot", "index", "k_loaded")),
            (loader, softmax, "v_loaded"),
            *((loader, products, name) for name in ("v_write", "slot", "index")),
            *((scores, softmax, name) for name in ("score_valid", "score", "maximum_valid", "maximum")),
            *((softmax, scores, name) for name in ("score_free", "score_freed", "maximum_free")),
            *((softmax, denominator, name) for name in ("p_valid", "p", "p_end")),
            (products, softmax, "weights_free"),
            (output, products, "products_free"),
        ]
        if config.shared:
            for freed, release in ((self.k_freed, scores.k_release), (self.v_freed, products.v_release)):
                m.d.comb += [freed.valid.eq(release), freed.payload.eq(1)]
        else:
            wiring.connect(m, loader.kv_read, wiring.flipped(self.kv_read))
            links += [(scores, loader, "k_release"), (products, loader, "v_release")]
        if integer:
            links += [(loader, softmax, name) for name in ("v_write", "slot", "index")]
            links += [(softmax, products, name) for name in ("w_valid", "w", "w_end", "w_largest")]
            m.d.comb += [softmax.scale.eq(row.scale), output.scale.eq(products.scale)]
        else:
            m.d.comb += [getattr(products, f"w{name}").eq(getattr(softmax, f"p{name}")) for name in ("_valid", "", "_end")]
        m.d.comb += [getattr(sink, name).eq(getattr(source, name)) for source, sink, name in links]
        m.d.comb += [
            softmax.sums_free.eq(denominator.valid),
            output.products_valid.eq(products.valid),
            output.products.eq(products.products),
            output.denominator_valid.eq(denominator.valid),
            output.denominator.eq(denominator.denominator),
        ]
        self._tables(m, softmax, denominator, products, output)
        return m

    def _control(self, m: Module, setup: data.View, start: Signal, writer: KvWriter, output: Output) -> None:
        config, instr = self.config, self.instr.payload
        layer, position = Signal(8), Signal(16)
        newest = Signal(17)
        tile_bits = exact_log2(config.key_tile)
        begin = Signal()
        m.d.comb += [writer.start.eq(begin), writer.tokens.eq(setup.tokens), writer.address.eq(setup.layer_base + (position << 1))]
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.instr.ready.eq(1)
                m.d.sync += [layer.eq(instr.layer), setup.tokens.eq(instr.tokens), setup.serial.eq(instr.serial), position.eq(instr.position)]
                with m.If(self.instr.valid):
                    m.next = "BASE"
            with m.State("BASE"):
                m.d.sync += [
                    setup.prefill.eq((setup.tokens != 1) & ~setup.serial),
                    setup.layer_base.eq(layer * (2 * config.kv_heads * config.context)),
                    newest.eq(position + setup.tokens - 1),
                ]
                m.next = "BEGIN"
            with m.State("BEGIN"):
                m.d.comb += begin.eq(1)
                m.d.sync += [
                    setup.top_tile.eq(newest >> tile_bits),
                    setup.lead.eq(Mux(setup.prefill, Cat(C(0, tile_bits), newest[tile_bits:]), 0) - position),
                ]
                m.next = "STORE"
            with m.State("STORE"), m.If(writer.stored):
                m.next = "RESPONSE" if config.shared else "START"
            if config.shared:
                with m.State("RESPONSE"):
                    m.d.comb += self.stored.eq(self.idle)
                    with m.If(self.idle):
                        m.next = "START"
            with m.State("START"):
                m.d.comb += start.eq(1)
                m.next = "ATTEND"
            with m.State("ATTEND"), m.If(self.values.valid & self.values.ready & output.final):
                m.next = "DONE"
            with m.State("DONE"):
                m.d.comb += [self.done.valid.eq(1), self.done.payload.eq(1)]
                with m.If(self.done.ready):
                    m.next = "IDLE"

    def _tables(self, m: Module, softmax: Softmax, denominator: Denominator, products: Products | FloatProducts, output: Output) -> None:
        """What the softmax notes of an item, for the stages behind it, which all take items in the same order."""
        m.submodules.items = items = Memory(shape=item_layout(self.config), depth=TABLE_DEPTH, init=[])
        m.submodules.factors = factors = Memory(shape=self.config.format.bits, depth=TABLE_DEPTH, init=[])
        tables = ((items, softmax.take, softmax.items.payload, "item"), (factors, softmax.factor_valid, softmax.factor, "factor"))
        for memory, noted, value, name in tables:
            store = memory.write_port()
            m.d.comb += [store.en.eq(noted), store.data.eq(value)]
            with m.If(noted):
                m.d.sync += store.addr.eq(store.addr + 1)
            for stage in (denominator, products, output):
                if hasattr(stage, name):
                    fetch = memory.read_port(domain="comb")
                    m.d.comb += [fetch.addr.eq(stage.tag), getattr(stage, name).eq(fetch.data)]
