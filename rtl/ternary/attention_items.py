# SPDX-License-Identifier: Apache-2.0
"""What the stages of ATTEND hand to each other: layouts, strobe delays, credits, and the walk over (KV head, key tile, query row)."""

from typing import Any

from amaranth.hdl import Cat, Module, Mux, Shape, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import bits_for, ceil_log2

from lutra.hls_models.floats import FP16, FP32
from lutra.hls_models.ternary.attention import ADDRESS_BITS, AttentionConfig

__all__ = [
    "TABLE_DEPTH",
    "ItemWalker",
    "counter",
    "deep_memory",
    "delay",
    "item_layout",
    "kv_rows_layout",
    "kv_write_layout",
    "qkv_layout",
    "row_address",
    "row_layout",
    "row_memory",
    "setup_layout",
]

# Items between the softmax (which numbers them) and the output: STORED_ITEMS = 4 whose weights are kept, 2 whose products are, 1 in the output stage.
TABLE_DEPTH = 8


def row_memory(config: AttentionConfig) -> dict[str, str | int]:
    """Attributes of the memories of queries, keys and values: wide and shallow, in a small device's block RAM they would fill an eighth of what they take.

    No row is read in the cycle that writes it, which yosys is told for block RAM (as in ``OneReadRam``).
    """
    return {"ram_style": "distributed"} if config.row_ram == "distributed" else {"ram_style": config.row_ram, "no_rw_check": 1}


def deep_memory(config: AttentionConfig) -> dict[str, str | int]:
    """Attributes of scores and running outputs; on a small device synthesis chooses."""
    return {} if config.row_ram == "distributed" else {"ram_style": config.row_ram}


def row_layout(config: AttentionConfig) -> data.StructLayout:
    """A row of the key/value memory: a head's codes and their scale, or patterns of fp16."""
    if config.kv_format == "fp16":
        return data.StructLayout({"codes": data.ArrayLayout(FP16.bits, config.head_dim)})
    return data.StructLayout({"scale": FP32.bits, "codes": data.ArrayLayout(signed(8), config.head_dim)})


def kv_rows_layout(config: AttentionConfig) -> data.StructLayout:
    """A row as it comes from a shared memory: of values or of keys, the last one of its tile or not."""
    return data.StructLayout(dict(row_layout(config).members) | {"value": 1, "last": 1})


def kv_write_layout(config: AttentionConfig) -> data.StructLayout:
    return data.StructLayout({"address": ADDRESS_BITS, "row": row_layout(config)})


def qkv_layout(config: AttentionConfig) -> data.StructLayout:
    """A beat of codes as the VECTOR unit sends it."""
    codes = data.ArrayLayout(signed(config.code_bits), config.vector_lanes)
    return data.StructLayout({"codes": codes, "scale": 32, "destination": 2, "token": 8, "group": 8, "last": 1, "group_last": 1})


def item_layout(config: AttentionConfig) -> data.StructLayout:
    """A query row of the pass and the keys of one tile that it sees.

    ``query``, ``token``: the row; ``first``, ``last``: the row's first and last item of this KV head, in the order of work; ``tile_end``: last row of the
    tile; ``final``: last item of the instruction.
    """
    fields = {
        "query": max(1, ceil_log2(config.group)),
        "token": max(1, ceil_log2(config.max_tokens)),
        "head": max(1, ceil_log2(config.kv_heads)),
        "keys": bits_for(config.key_tile),
    }
    return data.StructLayout(fields | {"first": 1, "last": 1, "tile_end": 1, "final": 1})


def row_address(item: Any) -> Value:
    """Where a row's maximum, denominator and output lie."""
    return Cat(item.query, item.token)


def setup_layout(config: AttentionConfig) -> data.StructLayout:
    """What an instruction fixes, in registers: ``lead`` belongs to the tile with which the walk over tiles starts (position of its first key, less the
    position of the pass), ``top_tile`` is the tile of the pass's last position, from which prefill comes down."""
    top_tile = max(1, ceil_log2(-(-config.context // config.key_tile)))
    return data.StructLayout({"prefill": 1, "serial": 1, "tokens": 8, "layer_base": ADDRESS_BITS, "top_tile": top_tile, "lead": signed(18)})


def delay(m: Module, value: Value, name: str, cycles: int) -> Value:
    """A strobe ``cycles`` clocks later; unlike a pipeline's data, reset."""
    for _ in range(cycles):
        signal = Signal(Shape.cast(value.shape()), name=name)
        m.d.sync += signal.eq(value)
        value = signal
    return value


def counter(m: Module, name: str, limit: int, *, up: Value, down: Value, init: int = 0) -> Signal:
    """Things that wait (from 0) or places that are free (from ``limit``): registered, so that an event counts from the next clock on."""
    count = Signal(range(limit + 1), name=name, init=init)
    m.d.sync += count.eq(count + up - down)
    return count


class ItemWalker(wiring.Component):
    """Items of an instruction, for KV head: for key tile: for query row that sees a key of it; in serial passes so for each token, whose rows are alone then.

    Tiles run from the newest to the oldest in prefill and from the oldest to the newest otherwise. The first item is offered two clocks after ``start``, each
    other one two clocks after the one before was taken: no later than a stage that spends a clock on the item and one on each key can take it.

    Members
    -------
    start : ``In(1)``
        One clock; ``setup`` is stable from then on.
    setup : ``In(setup_layout)``
    item : ``Out(stream)`` of ``item_layout``
    """

    def __init__(self, config: AttentionConfig) -> None:
        self.config = config
        super().__init__({"start": In(1), "setup": In(setup_layout(config)), "item": Out(stream.Signature(item_layout(config)))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, setup, item = self.config, self.setup, self.item.payload
        running = Signal()
        query, token, head = (Signal.like(item[name], name=name) for name in ("query", "token", "head"))
        tile = Signal.like(setup.top_tile)
        lead = Signal(signed(18))
        tile_last = Signal()  # of the item on offer: no tile comes after its own

        span = Signal(signed(19))  # keys from the tile's first one to the row's own position
        newest, oldest, row_last, token_last, end = Signal(), Signal(), Signal(), Signal(), Signal()
        turn = Signal()  # after the item on offer it is the next token's turn
        m.d.comb += [
            span.eq(token - lead + 1),
            newest.eq(span <= config.key_tile),
            oldest.eq(tile == 0),
            token_last.eq(token == setup.tokens - 1),
            row_last.eq((query == config.group - 1) & (setup.serial | token_last)),
            end.eq(Mux(setup.prefill, oldest, newest)),
            turn.eq(tile_last & (item.head == config.kv_heads - 1)),
        ]
        with m.If(running & ~self.item.valid):
            m.d.sync += [
                self.item.valid.eq(1),
                item.query.eq(query),
                item.token.eq(token),
                item.head.eq(head),
                item.keys.eq(Mux(newest, span[: len(item.keys)], config.key_tile)),
                item.first.eq(Mux(setup.prefill, newest, oldest)),
                item.last.eq(Mux(setup.prefill, oldest, newest)),
                item.tile_end.eq(row_last),
                item.final.eq(row_last & end & (head == config.kv_heads - 1) & token_last),
                tile_last.eq(end),
            ]

        start_lead, next_lead = Signal(signed(18)), Signal(signed(18))
        m.d.comb += [
            start_lead.eq(setup.lead),
            next_lead.eq(Mux(tile_last | self.start, start_lead, lead + Mux(setup.prefill, -config.key_tile, config.key_tile))),
        ]
        with m.If(self.start | (self.item.valid & self.item.ready & item.tile_end)):
            m.d.sync += [
                query.eq(0),
                lead.eq(next_lead),
                token.eq(Mux(setup.prefill, Mux(next_lead < 0, 0, next_lead), Mux(self.start, 0, token + turn))),
                tile.eq(Mux(tile_last | self.start, Mux(setup.prefill, setup.top_tile, 0), Mux(setup.prefill, tile - 1, tile + 1))),
            ]
        with m.If(self.item.valid & self.item.ready):
            m.d.sync += self.item.valid.eq(0)
            with m.If(item.tile_end):
                m.d.sync += head.eq(Mux(turn, 0, head + tile_last))
                with m.If(item.final):
                    m.d.sync += running.eq(0)
            with m.Elif(query == config.group - 1):
                m.d.sync += [query.eq(0), token.eq(token + 1)]
            with m.Else():
                m.d.sync += query.eq(query + 1)
        with m.If(self.start):
            m.d.sync += [running.eq(1), head.eq(0)]
        return m
