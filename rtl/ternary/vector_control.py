# SPDX-License-Identifier: Apache-2.0
"""Control of the VECTOR unit: walks over beats, rings of rows, and the steps of an instruction up to its last source beat."""

from amaranth import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.isa import Operation, Source, Unit
from lutra.hls_models.ternary.vector import HEADER_BITS, LANE_BITS, VectorConfig
from lutra.rtl.ternary.dispatch import unit_layout

__all__ = ["Control", "Cursor", "Cycle", "Ring", "Walker", "job_layout", "wrap"]


def job_layout(config: VectorConfig) -> data.StructLayout:
    """Fields of the instruction under way, in registers; ``results`` columns leave the operation, ``result_tile`` per tile."""
    width = range(2 * config.max_columns + 1)
    return data.StructLayout(
        {
            "source": 2,
            "operation": 2,
            "norm": 1,
            "write_x": 1,
            "destination": 2,
            "columns": width,
            "tile_columns": 20,
            "results": width,
            "result_tile": 20,
            "group_columns": width,
            "rope_columns": 20,
            "segment1": 20,
            "segment2": 20,
            "tokens": 8,
            "header": data.StructLayout({"weight_scale": data.ArrayLayout(32, 3), "reciprocal": 32, "eps": 32}),
        }
    )


def wrap(m: Module, value: Value, depth: int, name: str) -> Signal:
    """``value`` modulo ``depth``, for values below 2 * depth."""
    total = Signal(range(2 * depth), name=f"{name}_total")
    out = Signal(range(depth), name=name)
    m.d.comb += [total.eq(value), out.eq(Mux(total >= depth, total - depth, total))]
    return out


class Walker(wiring.Component):
    """Position in the order "for tile: for token: for beat", advanced by ``step``; ``load`` (before the first step) sets it to the start.

    Members
    -------
    columns, tile_columns, tokens : ``In``
        Stable from ``load`` to the last step.
    token, beat, column : ``Out``
        Of the present beat; beat and column count along the whole row.
    token_end, tile_end, end : ``Out(1)``
        The present beat is the last of its token in the tile, of the tile, of all.
    last_token : ``Out(1)``
        The present token is the last.
    tile_length : ``Out``
        Columns of the present tile.
    """

    def __init__(self, *, lanes: int, max_columns: int, max_tokens: int) -> None:
        self._lanes = lanes
        width = range(max_columns + 1)
        super().__init__(
            {
                "load": In(1),
                "step": In(1),
                "columns": In(width),
                "tile_columns": In(20),
                "tokens": In(8),
                "token": Out(range(max_tokens)),
                "beat": Out(range(max_columns // lanes)),
                "column": Out(width),
                "token_end": Out(1),
                "tile_end": Out(1),
                "end": Out(1),
                "last_token": Out(1),
                "tile_length": Out(width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes, width = self._lanes, self.columns.shape()
        left, remaining = Signal(width), Signal(width)  # columns of this token in this tile from the present beat on; columns after this tile
        tile_beat, tile_column = Signal.like(self.beat), Signal(width)
        tokens_left = Signal(8)
        before = Signal(width)  # columns that are left when a tile starts
        length = Signal(width)
        # The ends are known with their beat: from what the counters are about to be.
        single, last_tile = Signal(), Signal()  # a token has one beat in this tile; no columns after this tile
        short, one_beat = Signal(), Signal()  # of the tile that starts: it is not a whole one; a token has one beat in it
        m.d.comb += [
            short.eq(before < self.tile_columns),
            one_beat.eq(Mux(short, before == lanes, self.tile_columns == lanes)),
            self.tile_end.eq(self.token_end & self.last_token),
            self.end.eq(self.tile_end & last_tile),
            before.eq(Mux(self.load, self.columns, remaining)),
            length.eq(Mux(short, before, self.tile_columns)),
        ]
        with m.If(self.load):
            m.d.sync += [self.token.eq(0), self.beat.eq(0), self.column.eq(0), tile_beat.eq(0), tile_column.eq(0)]
        with m.Elif(self.step):
            m.d.sync += [left.eq(left - lanes), self.token_end.eq(left == 2 * lanes), self.beat.eq(self.beat + 1), self.column.eq(self.column + lanes)]
            with m.If(self.tile_end):
                m.d.sync += [self.token.eq(0), tile_beat.eq(self.beat + 1), tile_column.eq(self.column + lanes)]
            with m.Elif(self.token_end):
                m.d.sync += [
                    self.token.eq(self.token + 1),
                    tokens_left.eq(tokens_left - 1),
                    self.last_token.eq(tokens_left == 2),
                    left.eq(self.tile_length),
                    self.token_end.eq(single),
                    self.beat.eq(tile_beat),
                    self.column.eq(tile_column),
                ]
        with m.If(self.load | (self.step & self.tile_end)):
            m.d.sync += [
                tokens_left.eq(self.tokens),
                self.last_token.eq(self.tokens == 1),
                self.tile_length.eq(length),
                left.eq(length),
                single.eq(one_beat),
                self.token_end.eq(one_beat),
                remaining.eq(before - length),
                last_tile.eq(before <= self.tile_columns),
            ]
        return m


class Cycle(wiring.Component):
    """Counts periods of ``period`` columns along every token's row of a ``Walker`` walk, across tiles.

    Members
    -------
    index, position : ``Out``
        Period, and beat in the period, of the present beat.
    """

    def __init__(self, *, lanes: int, max_columns: int, periods: int) -> None:
        self._lanes = lanes
        width = range(max_columns + 1)
        super().__init__(
            {
                "load": In(1),
                "step": In(1),
                "token_end": In(1),
                "tile_end": In(1),
                "period": In(width),
                "index": Out(range(periods)),
                "position": Out(range(max(1, max_columns // lanes))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes = self._lanes
        state = data.StructLayout({"index": self.index.shape(), "position": self.position.shape(), "left": self.period.shape()})
        present, after, start = Signal(state), Signal(state), Signal(state)
        m.d.comb += [self.index.eq(present.index), self.position.eq(present.position)]
        with m.If(present.left == lanes):
            m.d.comb += [after.index.eq(present.index + 1), after.position.eq(0), after.left.eq(self.period)]
        with m.Else():
            m.d.comb += [after.index.eq(present.index), after.position.eq(present.position + 1), after.left.eq(present.left - lanes)]
        with m.If(self.load):
            first = Cat(Const(0, present.index.shape().width + present.position.shape().width), self.period)
            m.d.sync += [present.as_value().eq(first), start.as_value().eq(first)]
        with m.Elif(self.step):
            m.d.sync += present.eq(after)
            with m.If(self.tile_end):
                m.d.sync += start.eq(after)
            with m.Elif(self.token_end):
                m.d.sync += present.eq(start)
        return m


class Ring(wiring.Component):
    """Rows that a loader runs ahead with: a memory with counters, read at any address.

    Latency: a row accepted at t counts in ``available`` and may be read from t + 1. ``rows`` is ready while the memory has room.

    Members
    -------
    rows : ``In(stream)``; freed : ``Out(stream)``, one beat for every row given up.
    available : ``Out``
        Columns (V per row) that arrived and were not claimed.
    claim : ``In``, columns; free : ``In``, rows. Effective in the next cycle.
    address, data : read port; data one clock after the address.
    """

    def __init__(self, *, lanes: int, depth: int) -> None:
        self._lanes, self._depth = lanes, depth
        columns = range(lanes * depth + 1)
        super().__init__(
            {
                "rows": In(stream.Signature(LANE_BITS * lanes)),
                "freed": Out(stream.Signature(1)),
                "available": Out(columns),
                "claim": In(columns),
                "free": In(range(depth + 1)),
                "address": In(range(depth)),
                "data": Out(LANE_BITS * lanes),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.memory = memory = Memory(shape=LANE_BITS * self._lanes, depth=self._depth, init=[])
        write, read = memory.write_port(), memory.read_port()
        used, owed = Signal(range(self._depth + 1)), Signal(range(self._depth + 1))
        arrived = Signal()
        m.d.comb += [
            self.rows.ready.eq(used != self._depth),
            arrived.eq(self.rows.valid & self.rows.ready),
            write.en.eq(arrived),
            write.data.eq(self.rows.payload),
            read.addr.eq(self.address),
            self.data.eq(read.data),
            self.freed.valid.eq(owed != 0),
            self.freed.payload.eq(1),
        ]
        m.d.sync += [
            used.eq(used + arrived - self.free),
            self.available.eq(self.available + Mux(arrived, self._lanes, 0) - self.claim),
            owed.eq(owed + self.free - (self.freed.valid & self.freed.ready)),
        ]
        with m.If(arrived):
            m.d.sync += write.addr.eq(wrap(m, write.addr + 1, self._depth, "next_write"))
        return m


class Cursor(wiring.Component):
    """Address of the next row of a ring: ``step`` goes to the next, ``rewind`` back to the row after the last ``mark``, which goes with a step."""

    def __init__(self, *, depth: int) -> None:
        self._depth = depth
        super().__init__({"step": In(1), "rewind": In(1), "mark": In(1), "row": Out(range(depth))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        start = Signal.like(self.row)
        after = wrap(m, self.row + 1, self._depth, "after")
        with m.If(self.rewind):
            m.d.sync += self.row.eq(start)
        with m.Elif(self.step):
            m.d.sync += self.row.eq(after)
            with m.If(self.mark):
                m.d.sync += start.eq(after)
        return m


class Control(wiring.Component):
    """Steps of an instruction: IDLE, HEADER and HEADER_DATA per header row, then per tile TILE (wait for its rows) and OPEN (its beats); DRAIN until
    ``done`` has been accepted, SETTLE until the scaler is idle.

    The selected source is ready in OPEN and only there: one beat per clock, one clock (TILE) between tiles whose gains are present.

    Members
    -------
    job : instruction and header, in registers.
    load : high before the first step of an instruction: all walks start over.
    step : a source beat is accepted; ``token`` … ``rope_row`` belong to it.
    header_pop : a header row is read in this cycle; ``header_data`` holds it in the next.
    params_available, params_claim, rope_available, rope_claim, rope_free, rope_row : see ``Ring``.
    finished : the last result beat of the instruction is in the U buffer. accepted : the last code has left. settled : the scaler is idle.
    """

    def __init__(self, config: VectorConfig) -> None:
        self._config = config
        v = config.lanes
        super().__init__(
            {
                "instr": In(stream.Signature(unit_layout(Unit.VECTOR))),
                "done": Out(stream.Signature(1)),
                "valid": In(data.StructLayout({"sums": 1, "values": 1, "embed": 1})),
                "ready": Out(data.StructLayout({"sums": 1, "values": 1, "embed": 1})),
                "job": Out(job_layout(config)),
                "load": Out(1),
                "step": Out(1),
                "token": Out(range(config.max_tokens)),
                "segment": Out(2),
                "turn": Out(1),
                "x_row": Out(range(config.max_tokens * (config.hidden // v))),
                "rope_row": Out(range(config.rope_rows)),
                "header_pop": Out(1),
                "header_data": In(LANE_BITS * v),
                "params_available": In(range(v * config.params_rows + 1)),
                "params_claim": Out(range(v * config.params_rows + 1)),
                "rope_available": In(range(v * config.rope_rows + 1)),
                "rope_claim": Out(range(v * config.rope_rows + 1)),
                "rope_free": Out(range(config.rope_rows + 1)),
                "finished": In(1),
                "accepted": In(1),
                "settled": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, v, job = self._config, self._config.lanes, self.job
        walk_parameters = {"lanes": v, "max_columns": 2 * config.max_columns}
        m.submodules.walker = walker = Walker(**walk_parameters, max_tokens=config.max_tokens)
        m.submodules.turns = turns = Cycle(**walk_parameters, periods=2 * config.max_columns // config.head_dim + 1)
        first = Signal()  # no tile was opened yet
        header_row = Signal(range(config.header_rows))
        rope_columns = Signal(range(v * config.rope_rows + 1), reset_less=True)
        gains = Signal(walker.columns.shape())
        rope = Signal()
        m.d.comb += [
            walker.load.eq(self.load),
            walker.step.eq(self.step),
            walker.columns.eq(job.columns),
            walker.tile_columns.eq(job.tile_columns),
            walker.tokens.eq(job.tokens),
            turns.load.eq(self.load),
            turns.step.eq(self.step),
            turns.token_end.eq(walker.token_end),
            turns.tile_end.eq(walker.tile_end),
            turns.period.eq(config.head_dim),
            rope.eq(job.operation == Operation.ROPE),
            gains.eq(Mux(job.norm, Mux(job.operation == Operation.GATE, walker.tile_length >> 1, walker.tile_length), 0)),
        ]
        m.d.sync += rope_columns.eq(job.tokens * config.head_dim)
        self._places(m, walker, turns, rope)
        step = Array([self.valid.sums, self.valid.values, self.valid.embed, Const(0)])[job.source]
        complete = Signal()

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.instr.ready.eq(1)
                m.d.sync += [first.eq(1), header_row.eq(0)]
                with m.If(self.instr.valid):
                    self._latch(m)
                    m.next = "HEADER"
            with m.State("HEADER"):
                m.d.comb += self.load.eq(1)
                with m.If(self.params_available != 0):
                    m.d.comb += [self.header_pop.eq(1), self.params_claim.eq(v)]
                    m.next = "HEADER_DATA"
            with m.State("HEADER_DATA"):
                row = LANE_BITS * v
                flat = job.header.as_value()
                for index in range(config.header_rows):
                    with m.If(header_row == index):
                        high = min(HEADER_BITS, (index + 1) * row)
                        m.d.sync += flat[index * row : high].eq(self.header_data[: high - index * row])
                m.d.sync += header_row.eq(header_row + 1)
                m.next = "HEADER"
                with m.If(header_row == config.header_rows - 1):
                    m.next = "TILE"
            with m.State("TILE"), m.If((self.params_available >= gains) & (~(first & rope) | (self.rope_available >= rope_columns))):
                m.d.comb += [self.params_claim.eq(gains), self.rope_claim.eq(Mux(first & rope, rope_columns, 0))]
                m.d.sync += first.eq(0)
                m.next = "OPEN"
            with m.State("OPEN"):
                m.d.comb += [
                    self.ready.sums.eq(job.source == Source.SUMS),
                    self.ready.values.eq(job.source == Source.VALUES),
                    self.ready.embed.eq(job.source == Source.EMBED),
                    self.step.eq(step),
                ]
                with m.If(step & walker.end):
                    m.next = "DRAIN"
                with m.Elif(step & walker.tile_end):
                    m.next = "TILE"
            with m.State("DRAIN"):
                with m.If(self.accepted):
                    m.d.sync += complete.eq(1)
                m.d.comb += [self.done.valid.eq(complete), self.done.payload.eq(1)]
                with m.If(complete & self.done.ready):
                    m.d.sync += complete.eq(0)
                    m.next = "SETTLE"
            with m.State("SETTLE"), m.If(self.settled):
                m.next = "IDLE"
        return m

    def _places(self, m: Module, walker: Walker, turns: Cycle, rope: Signal) -> None:
        """Rows of X and of the rope ring that belong to the present beat, and its segment."""
        config, v, job = self._config, self._config.lanes, self.job
        rope_rows = config.head_dim // v
        x_base = Signal(range(config.max_tokens * (config.hidden // v) + 1))
        turn_base = Signal(range(config.max_tokens * rope_rows + 1))
        rope_start, rope_next = Signal(range(config.rope_rows)), Signal(range(config.rope_rows))
        rope_block = Signal(range(config.rope_rows + 1), reset_less=True)  # rows of the instruction
        with m.If(self.load | (self.step & walker.tile_end)):
            m.d.sync += [x_base.eq(0), turn_base.eq(0)]
        with m.Elif(self.step & walker.token_end):
            m.d.sync += [x_base.eq(x_base + config.hidden // v), turn_base.eq(turn_base + rope_rows)]
        m.d.comb += [
            self.token.eq(walker.token),
            self.segment.eq((walker.column >= job.segment1) + (walker.column >= job.segment2)),
            self.turn.eq(rope & (walker.column < job.rope_columns)),
            self.x_row.eq(x_base + walker.beat),
            self.rope_row.eq(wrap(m, rope_start + turn_base + turns.position, config.rope_rows, "turn_row")),
            self.rope_free.eq(Mux(self.finished & rope, rope_block, 0)),
        ]
        # Worked out ahead: an instruction takes many clocks from its first to its last.
        m.d.sync += [rope_block.eq(job.tokens * rope_rows), rope_next.eq(wrap(m, rope_start + rope_block, config.rope_rows, "next_start"))]
        with m.If(self.finished & rope):
            m.d.sync += rope_start.eq(rope_next)

    def _latch(self, m: Module) -> None:
        word, job = self.instr.payload, self.job
        gated = word.operation == Operation.GATE
        names = ("source", "operation", "norm", "write_x", "destination", "columns", "tile_columns", "group_columns", "rope_columns", "segment1", "segment2")
        m.d.sync += [getattr(job, name).eq(getattr(word, name)) for name in (*names, "tokens")]
        m.d.sync += [
            job.results.eq(Mux(gated, word.columns >> 1, word.columns)),
            job.result_tile.eq(Mux(gated, word.tile_columns >> 1, word.tile_columns)),
        ]
