# SPDX-License-Identifier: Apache-2.0
"""ATTEND's two sides of the key/value memory: the writer of new rows (which also fills the query buffer), and the loader of key tiles, or their receiver where
the memory is shared."""

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2

from lutra.hls_models.ternary.attention import ADDRESS_BITS, AttentionConfig
from lutra.rtl.ternary.attention_items import counter, item_layout, kv_rows_layout, kv_write_layout, qkv_layout, row_layout, setup_layout

__all__ = ["KvLoader", "KvReceiver", "KvWriter"]


class KvWriter(wiring.Component):
    """Joins the code beats of a pass into rows: queries go to the query buffer, keys and values to memory.

    Beats come in the order token, group (queries, keys, values), beat, and are counted: the positions that they carry are not looked at. A beat is taken per
    clock; the last one of a row waits while the row before is still on ``kv_write``, which offers a row from the clock after its last beat.

    Members
    -------
    start : ``In(1)``
        One clock; beats are taken from the next one on. ``address`` (of the first key row) and ``tokens`` are valid with it.
    stored : ``Out(1)``
        The last row of the pass leaves in this clock.
    qkv, kv_write : streams
    q_write, q_address, q_row : ``Out``
        A row for the query buffer.
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        item = item_layout(config)
        super().__init__(
            {
                "start": In(1),
                "address": In(ADDRESS_BITS),
                "tokens": In(8),
                "stored": Out(1),
                "qkv": In(stream.Signature(qkv_layout(config))),
                "kv_write": Out(stream.Signature(kv_write_layout(config))),
                "q_write": Out(1),
                "q_address": Out(sum(item[name].shape for name in ("query", "token", "head"))),
                "q_row": Out(row_layout(config)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, item = self.config, item_layout(self.config)
        taking, received = Signal(), Signal()
        beat = Signal(range(config.head_beats))
        head, query, token = (Signal(item[name].shape, name=name) for name in ("head", "query", "token"))
        is_key, is_value = Signal(), Signal()
        token_base, address = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)

        beat_bits = config.code_bits * config.vector_lanes
        codes = Signal(config.code_bits * config.head_dim)
        if config.head_beats > 1:
            earlier = Signal(len(codes) - beat_bits, reset_less=True)  # newest beat on top
            m.d.comb += codes.eq(Cat(earlier, self.qkv.payload.codes))
        else:
            m.d.comb += codes.eq(self.qkv.payload.codes.as_value())
        row_end, head_last = Signal(), Signal()
        m.d.comb += [
            row_end.eq(beat == config.head_beats - 1),
            head_last.eq(head == config.kv_heads - 1),
            self.qkv.ready.eq(taking & ~(row_end & self.kv_write.valid)),
            self.q_row.codes.as_value().eq(codes),
            self.q_address.eq(Cat(query, token, head)),
            self.stored.eq(received & self.kv_write.valid & self.kv_write.ready),
        ]
        if config.kv_format == "int8":
            m.d.comb += self.q_row.scale.eq(self.qkv.payload.scale)
        with m.If(self.kv_write.ready):
            m.d.sync += self.kv_write.valid.eq(0)
        with m.If(self.stored):
            m.d.sync += received.eq(0)
        with m.If(self.qkv.valid & self.qkv.ready):
            m.d.sync += beat.eq(Mux(row_end, 0, beat + 1))
            if config.head_beats > 1:
                m.d.sync += earlier.eq(codes[beat_bits:])
            with m.If(row_end & ~is_key & ~is_value):
                m.d.comb += self.q_write.eq(1)
                m.d.sync += query.eq(query + 1)
                with m.If(query == config.group - 1):
                    m.d.sync += [query.eq(0), head.eq(Mux(head_last, 0, head + 1)), is_key.eq(head_last)]
            with m.Elif(row_end):
                m.d.sync += [
                    self.kv_write.valid.eq(1),
                    self.kv_write.payload.address.eq(address),
                    self.kv_write.payload.row.eq(self.q_row),
                    address.eq(address + 2 * config.context),
                    head.eq(head + 1),
                ]
                with m.If(head_last):
                    m.d.sync += [head.eq(0), is_key.eq(0), is_value.eq(is_key), address.eq(token_base + 1)]
                with m.If(head_last & is_value):
                    m.d.sync += [token.eq(token + 1), token_base.eq(token_base + 2), address.eq(token_base + 2)]
                    with m.If(token == self.tokens - 1):
                        m.d.sync += [taking.eq(0), received.eq(1)]
        with m.If(self.start):
            m.d.sync += [taking.eq(1), token.eq(0), token_base.eq(self.address), address.eq(self.address)]
        return m


class KvLoader(wiring.Component):
    """Requests key tiles and hands their rows to the tile buffers of scores (K) and values (V), each with room for two tiles.

    Prefill: for KV head: for tile, newest first: K, V. Decode: K tiles of the first KV head, oldest first; then V tiles of each head, each followed by the K
    tile of the next head, so that one head's second pass overlaps with the next one's first. Only rows up to the last position of the pass are read; in serial
    passes, which go through all heads for one token after the other as in decode, up to the token's own.

    A tile starts when its buffer has a free half and the last request of the tile before has left: first request one clock later, one per clock. Answers come
    in order, at the earliest in the clock after their request; they are taken at once (``kv_data.ready`` only says that one is awaited).

    Members
    -------
    start, setup : as in :class:`ItemWalker`; the first tile starts two clocks after ``start``
    kv_read, kv_data : streams
    k_write, v_write : ``Out(1)``, with ``slot`` (half of the buffer) and ``index``: ``kv_data.payload`` is to be stored
    k_loaded, v_loaded : ``Out(1)``
        With a tile's last row.
    k_release, v_release : ``In(1)``
        A tile was read for the last time.
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        strobes = {name: Out(1) for name in ("k_write", "v_write", "slot", "k_loaded", "v_loaded")}
        super().__init__(
            {
                "start": In(1),
                "setup": In(setup_layout(config)),
                "kv_read": Out(stream.Signature(ADDRESS_BITS)),
                "kv_data": In(stream.Signature(row_layout(config))),
                "index": Out(max(1, ceil_log2(config.key_tile))),
                "k_release": In(1),
                "v_release": In(1),
            }
            | strobes
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        rows_bits = bits_for(config.key_tile)
        take = Signal()
        valid, is_value, rows, address = self._walk(m, take)

        left = Signal(rows_bits)
        answered = Signal()
        requested = Signal()
        k_free = counter(m, "k_free", 2, up=self.k_release, down=take & ~is_value, init=2)
        v_free = counter(m, "v_free", 2, up=self.v_release, down=take & is_value, init=2)
        awaited = counter(m, "awaited", 4 * config.key_tile, up=requested, down=answered)
        m.d.comb += [
            take.eq(valid & ~self.kv_read.valid & Mux(is_value, v_free != 0, k_free != 0)),
            requested.eq(self.kv_read.valid & self.kv_read.ready),
            self.kv_data.ready.eq(awaited != 0),
            answered.eq(self.kv_data.valid & self.kv_data.ready),
        ]
        with m.If(requested):
            m.d.sync += [self.kv_read.payload.eq(self.kv_read.payload + 2), left.eq(left - 1), self.kv_read.valid.eq(left != 1)]
        with m.If(take):
            m.d.sync += [self.kv_read.valid.eq(1), self.kv_read.payload.eq(address), left.eq(rows)]

        # At most four tiles are under way, because each of them owns half a buffer.
        order = Array(Signal(1 + rows_bits, name=f"tile_{i}") for i in range(4))
        newest, oldest = Signal(2), Signal(2)
        with m.If(take):
            m.d.sync += [order[newest].eq(Cat(is_value, rows)), newest.eq(newest + 1)]
        tile = Signal(1 + rows_bits)
        k_slot, v_slot, last = Signal(), Signal(), Signal()
        m.d.comb += [
            tile.eq(order[oldest]),
            last.eq(self.index == tile[1:] - 1),
            self.slot.eq(Mux(tile[0], v_slot, k_slot)),
            self.k_write.eq(answered & ~tile[0]),
            self.v_write.eq(answered & tile[0]),
            self.k_loaded.eq(self.k_write & last),
            self.v_loaded.eq(self.v_write & last),
        ]
        with m.If(answered):
            m.d.sync += self.index.eq(self.index + 1)
            with m.If(last):
                m.d.sync += [self.index.eq(0), oldest.eq(oldest + 1), k_slot.eq(k_slot ^ ~tile[0]), v_slot.eq(v_slot ^ tile[0])]
        return m

    def _walk(self, m: Module, take: Signal) -> tuple[Signal, Signal, Signal, Signal]:
        """The tile on offer: valid, is_value, rows, address of its first row. A new one two clocks after ``take``."""
        config, setup = self.config, self.setup
        running, valid, is_value, offered = Signal(), Signal(), Signal(), Signal()
        rows = Signal(bits_for(config.key_tile))
        address = Signal(ADDRESS_BITS)
        heads = Signal(range(config.kv_heads + 1))  # KV heads whose K is through
        tile = Signal.like(setup.top_tile)
        lead = Signal(signed(18))
        reach = Signal(8)  # tokens of the pass whose keys are read; serial: up to the one at work
        k_base, v_base = Signal(ADDRESS_BITS), Signal(ADDRESS_BITS)
        rest, end, finished, last, again = Signal(signed(19)), Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            rest.eq(reach - lead),
            finished.eq(heads == config.kv_heads - setup.prefill),
            last.eq(reach == setup.tokens),
            # The tile's other half follows before the next tile.
            again.eq(Mux(setup.prefill, ~offered, offered & ~finished)),
        ]
        with m.If(running & ~valid):
            m.d.sync += [
                valid.eq(1),
                is_value.eq(offered),
                rows.eq(Mux(rest <= config.key_tile, rest, config.key_tile)),
                address.eq(Mux(offered, v_base + 1, k_base) + (tile << bits_for(config.key_tile))),
                end.eq(Mux(setup.prefill, tile == 0, rest <= config.key_tile)),
            ]
        with m.If(take):
            m.d.sync += valid.eq(0)
            with m.If(again):
                m.d.sync += offered.eq(~offered)
            with m.Else():
                # In decode the first head's K comes alone, and so does the last one's V.
                m.d.sync += [
                    offered.eq(~setup.prefill & ((heads != 0) | end)),
                    tile.eq(Mux(setup.prefill, tile - 1, tile + 1)),
                    lead.eq(lead + Mux(setup.prefill, -config.key_tile, config.key_tile)),
                ]
                with m.If(end):
                    m.d.sync += [
                        heads.eq(heads + 1),
                        tile.eq(Mux(setup.prefill, setup.top_tile, 0)),
                        lead.eq(setup.lead),
                        k_base.eq(k_base + 2 * config.context),
                        v_base.eq(Mux(setup.prefill, k_base + 2 * config.context, k_base)),
                        running.eq(~(finished & last)),
                        reach.eq(reach + finished),
                    ]
        with m.If(self.start):
            m.d.sync += [running.eq(1), tile.eq(Mux(setup.prefill, setup.top_tile, 0)), lead.eq(setup.lead), reach.eq(Mux(setup.serial, 1, setup.tokens))]
        with m.If(self.start | (take & ~again & end & finished)):
            m.d.sync += [offered.eq(0), heads.eq(0), k_base.eq(setup.layer_base), v_base.eq(setup.layer_base)]
        return valid, is_value, rows, address


class KvReceiver(wiring.Component):
    """Hands the rows that come from a shared memory to the tile buffers of scores (K) and values (V), each with room for two tiles.

    Who sends them asks for a tile only when its buffer has a free half, counted from ``k_release`` and ``v_release``: a row is taken when it comes, and the
    halves take turns.

    Members
    -------
    kv_data : ``In(stream)`` of ``kv_rows_layout``, always ready
    k_write, v_write, slot, index, k_loaded, v_loaded : as of :class:`KvLoader`
    """

    def __init__(self, config: AttentionConfig) -> None:
        strobes = {name: Out(1) for name in ("k_write", "v_write", "slot", "k_loaded", "v_loaded")}
        super().__init__({"kv_data": In(stream.Signature(kv_rows_layout(config))), "index": Out(max(1, ceil_log2(config.key_tile)))} | strobes)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        row = self.kv_data.payload
        k_slot, v_slot = Signal(), Signal()
        m.d.comb += [
            self.kv_data.ready.eq(1),
            self.k_write.eq(self.kv_data.valid & ~row.value),
            self.v_write.eq(self.kv_data.valid & row.value),
            self.slot.eq(Mux(row.value, v_slot, k_slot)),
            self.k_loaded.eq(self.k_write & row.last),
            self.v_loaded.eq(self.v_write & row.last),
        ]
        with m.If(self.kv_data.valid):
            m.d.sync += [self.index.eq(Mux(row.last, 0, self.index + 1)), k_slot.eq(k_slot ^ self.k_loaded), v_slot.eq(v_slot ^ self.v_loaded)]
        return m
