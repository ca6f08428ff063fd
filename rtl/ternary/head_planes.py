# SPDX-License-Identifier: Apache-2.0
"""HEAD with its table in two planes: where a beat belongs, bounds of the scores, rows that have to be scored again."""

from amaranth import Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.floats import FLOAT_LATENCY, FP32
from lutra.hls_models.ternary.head import HeadConfig
from lutra.hls_models.ternary.planes import PlanesConfig
from lutra.rtl.streams import Queue
from lutra.rtl.ternary.ram import OneReadRam

__all__ = ["PlaneBounds", "PlaneWalk", "listed_layout", "rank", "score_of"]

ROW = data.StructLayout({"id": 20, "low": 1, "ends": 1, "last": 1})
"""A row that was read: ``low``: of the low plane; ``ends``: it ends its segment's high plane; ``last``: no row follows it."""


def rank(score: Value) -> Value:
    """Unsigned key that orders fp32 bits like the reals: -0 and +0 alike, NaN lowest (as in the golden model)."""
    magnitude = score[: FP32.bits - 1]
    return Mux(magnitude > FP32.infinity, 0, Mux(score[-1] & magnitude.any(), ~score, score | FP32.sign)[: FP32.bits])


def score_of(key: Value, minus: Value) -> Value:
    """fp32 bits of a key; ``minus``: its zero is -0. All NaNs are one."""
    ordinary = Mux(minus, FP32.sign, Mux(key[-1], key ^ FP32.sign, ~key))[: FP32.bits]
    return Mux(key == 0, FP32.nan, ordinary)


def listed_layout(planes: PlanesConfig) -> data.StructLayout:
    """A row, counted in its segment, whose low plane is to be read; ``last``: of its segment."""
    return data.StructLayout({"index": _index_bits(planes), "last": 1})


def _index_bits(planes: PlanesConfig) -> int:
    return max(1, (planes.segment - 1).bit_length())


class PlaneWalk(wiring.Component):
    """Goes through a table beat by beat, in the order of ``lutra.hls_models.ternary.planes``.

    Members
    -------
    start : ``In(1)``, with ``vocabulary``: the next beat is a table's first.
    taken : ``In(1)``: a beat is taken.
    listed : ``In(stream)`` of low rows, valid whenever a beat of one is taken; left with the row's last beat, a clock later.
    scales, beat, place, low : what the present beat is: scales, or that beat of a row, its row in the block, of the low plane.
    row_end, row : ``Out``: the beat that is taken ends this row.
    """

    def __init__(self, planes: PlanesConfig) -> None:
        self._planes = planes
        super().__init__(
            {
                "start": In(1),
                "vocabulary": In(20),
                "taken": In(1),
                "listed": In(stream.Signature(listed_layout(planes))),
                "scales": Out(1),
                "beat": Out(range(planes.row_beats)),
                "place": Out(range(planes.block)),
                "low": Out(1),
                "row_end": Out(1),
                "row": Out(ROW),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        planes = self._planes
        left, high, base = Signal(20, reset_less=True), Signal(20, reset_less=True), Signal(20, reset_less=True)  # rows; ids of high row, of a list's first
        scales_next, first, final, used = Signal(), Signal(), Signal(), Signal()
        index_bits = _index_bits(planes)
        one_left, list_end = left == 1, self.listed.payload.last
        m.d.comb += [
            self.scales.eq(scales_next & ~self.low),
            self.row_end.eq(self.taken & ~self.scales & (self.beat == planes.row_beats - 1)),
            self.row.id.eq(Mux(self.low, base + self.listed.payload.index, high)),
            self.row.low.eq(self.low),
            self.row.ends.eq(~self.low & (one_left | (high[:index_bits] == planes.segment - 1 if planes.segment > 1 else 1))),
            self.row.last.eq(self.low & list_end & final),
            self.listed.ready.eq(used),
        ]
        m.d.sync += used.eq(self.row_end & self.low)  # a clock later: the next row ends after two at the earliest
        with m.If(self.taken & ~self.scales):
            m.d.sync += self.beat.eq(Mux(self.row_end, 0, self.beat + 1))
        with m.If(self.taken & self.scales):
            m.d.sync += scales_next.eq(0)
        with m.If(self.row_end & ~self.low):
            block_end = (self.place == planes.block - 1) | self.row.ends
            m.d.sync += [left.eq(left - 1), high.eq(high + 1), self.place.eq(Mux(block_end, 0, self.place + 1))]
            with m.If(block_end):
                m.d.sync += scales_next.eq(1)
            with m.If(self.row.ends):  # the list of the segment before follows; behind the first segment only if it is all
                m.d.sync += [first.eq(0), self.low.eq(~first | one_left), final.eq(first & one_left)]
        with m.If(self.row_end & self.low & list_end):
            m.d.sync += [base.eq(base + planes.segment), self.low.eq(left == 0), final.eq(left == 0)]
        with m.If(self.start):
            m.d.sync += [left.eq(self.vocabulary), high.eq(0), base.eq(0), scales_next.eq(1), first.eq(1), final.eq(0), self.low.eq(0)]
            m.d.sync += [self.beat.eq(0), self.place.eq(0)]
        return m


class _Sum(wiring.Component):
    """15 times the sum of a row's positive codes, and 15 times that of the magnitudes of its negative ones; four clocks behind the row's last beat."""

    def __init__(self, lanes: int, width: int) -> None:
        self._width = width
        codes = data.ArrayLayout(signed(8), lanes)
        super().__init__({"codes": In(codes), "valid": In(1), "last": In(1), "above": Out(width), "below": Out(width)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        valid, first, fresh = Signal(), Signal(init=1), Signal(reset_less=True)
        with m.If(self.valid):
            m.d.sync += [first.eq(self.last), fresh.eq(first)]
        m.d.sync += valid.eq(self.valid)
        sums = []
        for name, codes in (("all", list(self.codes)), ("positive", [Mux(code < 0, 0, code)[:7] for code in self.codes])):
            while len(codes) > 1:
                codes = [a + b for a, b in zip(codes[::2], codes[1::2], strict=False)] + codes[len(codes) // 2 * 2 :]
            beat = Signal.like(codes[0], name=f"{name}_beat", reset_less=True)
            total = Signal(signed(self._width - 2), name=f"{name}_sum", reset_less=True)
            m.d.sync += beat.eq(codes[0])
            with m.If(valid):
                m.d.sync += total.eq(Mux(fresh, 0, total) + beat)
            sums.append(total)
        every, positive = sums
        negative = Signal(self._width - 3, reset_less=True)
        m.d.sync += [negative.eq(positive - every), self.above.eq((positive << 4) - positive), self.below.eq((negative << 4) - negative)]
        return m


class PlaneBounds(wiring.Component):
    """From the two halves of a row's dot product to its bounds or its score, on to the rows that are scored again.

    Members
    -------
    codes, codes_valid, codes_last : ``In``: codes of the token as HEAD takes them.
    start : ``In(1)``: a table begins.
    valid, row : ``In``: a row's halves come in the next clock. halves, scale : ``In``, of that row (low rows: the scale is the one kept here).
    number, factor : ``Out``: to be converted and multiplied, ``key`` is the product's rank, a clock after the multiplier has it.
    insert, id, last : ``Out(…)``: ``key`` is that of row ``id``, perhaps the last one.
    rescore, listed : ``Out(stream)`` of low rows to read, for the loader, and of the same for ``PlaneWalk``.
    """

    def __init__(self, config: HeadConfig) -> None:
        assert config.planes
        self._config, self._planes = config, config.planes
        self._half = (config.hidden * 15 * 128).bit_length() + 1
        codes, row = data.ArrayLayout(signed(8), config.vector_lanes), listed_layout(config.planes)
        halves = data.ArrayLayout(signed(config.dot_bits), 2)
        super().__init__(
            {
                "codes": In(codes),
                "codes_valid": In(1),
                "codes_last": In(1),
                "start": In(1),
                "valid": In(1),
                "row": In(ROW),
                "halves": In(halves),
                "scale": In(32),
                "number": Out(signed(config.dot_bits)),
                "factor": Out(32),
                "key": In(32),
                "insert": Out(1),
                "id": Out(20),
                "last": Out(1),
                "rescore": Out(stream.Signature(row)),
                "listed": Out(stream.Signature(row)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, planes = self._config, self._planes
        m.submodules.sums = sums = _Sum(config.vector_lanes, (config.hidden * 15 * 128).bit_length())
        m.d.comb += [sums.codes.eq(self.codes), sums.valid.eq(self.codes_valid), sums.last.eq(self.codes_last)]
        kept_layout = data.StructLayout({"dot": signed(self._half), "scale": 32})
        depth = 2 * planes.segment  # a list is read while the next segment comes in
        m.submodules.kept = kept = OneReadRam(width=kept_layout.size, depth=depth, style="block")

        # The row stands in rows[0] with its halves, and then follows them.
        rows, valid = [Signal(ROW, name=f"row_{i}", reset_less=True) for i in range(4)], Signal(4)
        m.d.sync += [rows[0].eq(self.row), *(after.eq(before) for after, before in zip(rows[1:], rows[:-1], strict=True))]
        m.d.sync += valid.eq(valid << 1 | self.valid)
        index = [row.id[: depth.bit_length() - 1] for row in (self.row, *rows)]
        before = data.View(kept_layout, kept.data)
        total, dot, scale = Signal(signed(self._half), reset_less=True), Signal(signed(self._half), reset_less=True), Signal(32, reset_less=True)
        lower, upper, second = (Signal(signed(config.dot_bits), name=name, reset_less=True) for name in ("lower", "upper", "second"))
        factors = [Signal(32, name=f"factor_{i}", reset_less=True) for i in range(2)]
        m.d.sync += [
            total.eq(self.halves[0] + self.halves[1]),
            dot.eq(before.dot),
            scale.eq(Mux(rows[0].low, before.scale, self.scale)),
            lower.eq(Mux(rows[1].low, (dot << 4) + total, (total << 4) - sums.below)),
            upper.eq((total << 4) + sums.above),
            second.eq(upper),
            factors[0].eq(scale),
            factors[1].eq(factors[0]),
        ]
        m.d.comb += [
            kept.address.eq(index[0]),
            kept.enable.eq(1),
            kept.write_address.eq(index[2]),
            kept.write_enable.eq(valid[1] & ~rows[1].low),
            kept.write_data.eq(_joined(m, kept_layout, dot=total, scale=scale)),
            self.number.eq(Mux(valid[2], lower, second)),  # rows have two beats and more
            self.factor.eq(Mux(valid[2], factors[0], factors[1])),
        ]

        clocks = FLOAT_LATENCY["from_int"] + FLOAT_LATENCY["mul"] + 1
        row, here = rows[2], valid[2]
        for i in range(clocks):
            row_later, here_later = Signal(ROW, name=f"scored_row_{i}", reset_less=True), Signal(name=f"scored_{i}")
            m.d.sync += [row_later.eq(row), here_later.eq(here)]
            row, here = row_later, here_later
        self._scored(m, row, here)
        return m

    def _scored(self, m: Module, row: data.View, here: Value) -> None:
        """``key`` is a lower bound or an exact score where ``here`` is 1, an upper bound in the clock after a lower one."""
        planes, key = self._planes, self.key
        bound, upper, ends = Signal(32, reset_less=True), Signal(), Signal(reset_less=True)
        index = Signal(_index_bits(planes), reset_less=True)
        m.submodules.uppers = uppers = OneReadRam(width=32, depth=planes.segment, style="block")
        m.d.comb += [
            self.insert.eq(here & row.low),
            self.id.eq(row.id),
            self.last.eq(row.last),
            uppers.write_address.eq(index),
            uppers.write_enable.eq(upper),
            uppers.write_data.eq(key),
        ]
        m.d.sync += [upper.eq(here & ~row.low), ends.eq(row.ends), index.eq(row.id[: len(index)])]
        with m.If(self.start):
            m.d.sync += bound.eq(0)
        with m.Elif(here & (key > bound)):
            m.d.sync += bound.eq(key)

        # The scan of a segment may have to wait for that of the one before.
        waiting, waiting_bound, waiting_end = Signal(), Signal(32, reset_less=True), Signal.like(index)
        busy, reading, address, limit, end = Signal(), Signal(), Signal.like(index), Signal(32, reset_less=True), Signal.like(index)
        with m.If(waiting & ~busy):
            m.d.sync += [waiting.eq(0), busy.eq(1), reading.eq(1), address.eq(0), limit.eq(waiting_bound), end.eq(waiting_end)]
        with m.If(upper & ends):
            m.d.sync += [waiting.eq(1), waiting_bound.eq(bound), waiting_end.eq(index)]
        with m.If(reading):
            m.d.sync += [address.eq(address + 1), reading.eq(address != end)]
        m.d.comb += [uppers.address.eq(address), uppers.enable.eq(1)]
        read, at, ended = Signal(), Signal.like(index), Signal(reset_less=True)
        hit, hit_at, finish, done = Signal(), Signal.like(index), Signal(), Signal()
        m.d.sync += [read.eq(reading), at.eq(address), ended.eq(address == end)]
        m.d.sync += [hit.eq(read & (uppers.data >= limit)), hit_at.eq(at), finish.eq(read & ended), done.eq(finish)]
        found, any_found = Signal.like(index), Signal()
        with m.If(done):
            m.d.sync += [busy.eq(0), found.eq(0), any_found.eq(0)]
        with m.Elif(hit):
            m.d.sync += [found.eq(hit_at), any_found.eq(1)]
        for name, port in (("rescore", self.rescore), ("listed", self.listed)):
            queue = m.submodules[f"{name}_queue"] = Queue(shape=listed_layout(planes), depth=2 * planes.segment)
            m.d.comb += [
                queue.input.valid.eq(done | (hit & any_found)),
                queue.input.payload.index.eq(found),
                queue.input.payload.last.eq(done),
            ]
            wiring.connect(m, queue.output, wiring.flipped(port))


def _joined(m: Module, layout: data.StructLayout, **fields: Value) -> Value:
    whole = Signal(layout)
    m.d.comb += [getattr(whole, name).eq(value) for name, value in fields.items()]
    return whole.as_value()
