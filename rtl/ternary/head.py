# SPDX-License-Identifier: Apache-2.0
"""HEAD: int8 language-model head, greedy choice and the k best scores."""

from amaranth import Array, C, Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, memory, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.floats import FP32
from lutra.hls_models.ternary.head import HeadConfig
from lutra.hls_models.ternary.isa import Unit
from lutra.rtl.floats import FloatMul, IntToFloat
from lutra.rtl.ternary.dispatch import unit_layout
from lutra.rtl.ternary.dsp import PairDot
from lutra.rtl.ternary.head_planes import PlaneBounds, PlaneWalk, listed_layout, rank, score_of
from lutra.rtl.verilog import once

__all__ = ["Head"]


def _delay(m: Module, name: str, value: Value, clocks: int, *, reset_less: bool = True) -> Value:
    for stage in range(clocks):
        register = Signal(Value.cast(value).shape(), name=f"{name}_{stage}", reset_less=reset_less)
        m.d.sync += register.eq(value)
        value = register
    return value


def _plus_one(a: Value, b: Value, one: Value) -> Value:
    """a + b + one in one carry chain: the bit is added to itself below the operands."""
    if isinstance(one, Const):
        return Value.cast(a) + b
    total = Cat(one, Value.cast(a)).as_signed() + Cat(one, Value.cast(b)).as_signed()
    return total[1:].as_signed()


def _level(m: Module, values: list[Value], name: str) -> list[Value]:
    """Registered sums of pairs; an odd one passes through."""
    pairs = len(values) // 2
    return [_delay(m, f"{name}_{i}", value, 1) for i, value in enumerate([values[2 * i] + values[2 * i + 1] for i in range(pairs)] + values[2 * pairs :])]


class _Dot(wiring.Component):
    """B multiply-accumulates per clock and token lane: codes (the code memories' outputs) times a table beat, summed over the beats of a row.

    Lanes 2 and 3 take ``other``, if there is one. Takes operands in every clock in which ``valid`` is 1; ``latency`` from operands to ``dots``: multiply, tree
    levels, accumulate. ``first`` starts a sum.
    """

    def __init__(self, config: HeadConfig) -> None:
        self._config = config
        self.latency = 2 + config.tree_levels
        beat = data.ArrayLayout(signed(8), config.beat_bytes)
        dots = data.ArrayLayout(signed(config.dot_bits), config.lanes)
        rows = {"row": In(beat)} | ({"other": In(beat)} if config.planes else {})
        super().__init__({"codes": In(data.ArrayLayout(beat, config.lanes)), **rows, "valid": In(1), "first": In(1), "dots": Out(dots)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        levels = self._config.tree_levels
        first, valid = (_delay(m, name, value, 1 + levels) for name, value in (("first", self.first), ("valid", self.valid)))
        lanes = list(range(self._config.lanes))
        while lanes:
            if self._config.tree == "dsp" and len(lanes) > 1:
                mine, lanes = lanes[:2], lanes[2:]
                sums = self._pair(m, *mine)
            else:
                mine, lanes = lanes[:1], lanes[1:]
                sums = [self._lane(m, mine[0])]
            with m.If(valid):
                for lane, (total, one) in zip(mine, sums, strict=True):
                    m.d.sync += self.dots[lane].eq(_plus_one(Mux(first, 0, self.dots[lane]), total, one))
        return m

    def _operand(self, lane: int) -> data.View:
        return self.other if self._config.planes and lane in (2, 3) else self.row

    def _lane(self, m: Module, lane: int) -> tuple[Value, Value]:
        """A lane's sum over a beat, and 0 to add to it."""
        prefix = f"lane_{lane}_" if self._config.lanes > 1 else ""
        level: list[Value] = []
        for i in range(self._config.beat_bytes):
            product = Signal(signed(16), name=f"{prefix}product_{i}", reset_less=True)
            m.d.sync += product.eq(self.codes[lane][i] * self._operand(lane)[i])
            level.append(product)
        for depth in range(self._config.tree_levels):
            sums: list[Value] = []
            for i in range(0, len(level), 2):
                pair = level[i : i + 2]
                total = Signal(signed(17 + depth), name=f"{prefix}sum_{depth}_{i // 2}", reset_less=True)
                m.d.sync += total.eq(pair[0] + pair[1] if len(pair) == 2 else pair[0])
                sums.append(total)
            level = sums
        return level[0], C(0, 1)

    def _pair(self, m: Module, a: int, b: int) -> list[tuple[Value, Value]]:
        """The sums of two lanes, and a bit to add to each.

        Products and the tree's first level are in DSP blocks, two products each; the second level adds both lanes' sums as they are packed there. Where the
        lower one is negative the upper one lacks 1: every adder above takes in one such bit and hands on another, the last goes to the accumulator.
        """
        packed: list[Value] = []
        for i in range(0, self._config.beat_bytes, 2):
            dot = PairDot()
            m.submodules[f"dot_{a}_{i // 2}"] = once(dot, "pair_dot")
            for k in range(2):
                m.d.comb += [
                    getattr(dot, f"x_{k}").eq(self._operand(a)[i + k]),
                    getattr(dot, f"a_{k}").eq(self.codes[a][i + k]),
                    getattr(dot, f"b_{k}").eq(self.codes[b][i + k]),
                ]
            packed.append(dot.y)
        if len(packed) > 1:
            packed = _level(m, packed, f"lane_{a}_packed")
        space = PairDot.SPACE
        lower: list[Value] = [value[:space].as_signed() for value in packed]
        upper: list[Value] = [value[space:].as_signed() for value in packed]
        ones: list[Value] = [value[space - 1] for value in packed]
        depth = 2
        while len(lower) > 1:
            pairs = len(ones) // 2
            upper = [_plus_one(upper[2 * i], upper[2 * i + 1], ones[2 * i]) for i in range(pairs)] + upper[2 * pairs :]
            ones = [_delay(m, f"lane_{b}_one_{depth}_{i}", one, 1) for i, one in enumerate(ones[1::2] + ones[2 * pairs :])]
            upper = [_delay(m, f"lane_{b}_sum_{depth}_{i}", value, 1) for i, value in enumerate(upper)]
            lower = _level(m, lower, f"lane_{a}_sum_{depth}")
            depth += 1
        return [(lower[0], C(0, 1)), (upper[0], ones[0])]


class _Best(wiring.Component):
    """Sorted list of the k best (id, score); empty entries have ``valid`` 0 and stand at the end.

    ``insert`` puts a candidate before every worse entry and behind its equals in one clock; ``shift`` removes the first entry. Not both at once.
    """

    def __init__(self, config: HeadConfig) -> None:
        self._depth = config.best
        self.entry = data.StructLayout({"id": 20, "key": 32, "minus": 1})
        super().__init__({"insert": In(1), "candidate": In(self.entry), "shift": In(1), "first": Out(self.entry), "valid": Out(1), "more": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        k = self._depth
        entries = [Signal(self.entry, name=f"entry_{i}", reset_less=True) for i in range(k)]
        valid = Signal(k)
        wins = Signal(k)
        m.d.comb += wins.eq(Cat(~valid[i] | (self.candidate.key > entry.key) for i, entry in enumerate(entries)))
        with m.If(self.insert):
            m.d.sync += valid.eq(Cat(1, valid)[:k])
            for i, entry in enumerate(entries):
                with m.If(wins[i]):
                    m.d.sync += entry.eq(Mux(wins[i - 1], entries[i - 1].as_value(), self.candidate.as_value()) if i else self.candidate)
        with m.Elif(self.shift):
            m.d.sync += valid.eq(valid >> 1)
            m.d.sync += [entries[i].eq(entries[i + 1]) for i in range(k - 1)]
        m.d.comb += [self.first.eq(entries[0]), self.valid.eq(valid[0]), self.more.eq(valid[1] if k > 1 else 0)]
        return m


class Head(wiring.Component):
    """Scores every row of the table against the last row of codes, or, in a serial pass, all rows of the pass: one beat of B multiply-accumulates per clock
    and lane.

    Times in ``lutra.hls_models.ternary.head``. ``rows`` is taken in every clock of an instruction until its last beat; ``codes`` while none runs. The
    instruction must be offered after the last code of its pass was taken (semaphore FINAL).

    Where ``planes`` is 1 the table is in two planes, the pass has one token, and only its choice is certain to be the best of all: ``best`` is of the rows that
    were scored. Lanes 1 and 2 keep the codes of the first token of any pass for it, without the scale's units before them.

    Parameters
    ----------
    config : sizes.

    Members
    -------
    instr : ``In(stream)`` of vocabulary, row_beats, planes, tokens, position, serial; with one lane the last three do not matter. vocabulary >= 1; a serial
        pass has at most ``lanes`` tokens.
    codes : ``In(stream)`` of the vector unit's code beats; row t is kept in lane min(t, lanes - 1), which it overwrites; only codes, scale, token and ``last``
        are looked at.
    rows : ``In(stream)`` of table beats.
    token : ``Out(stream)`` of id, score and activation_scale, one per instruction, or one per token of a serial pass, in order.
    best : ``Out(stream)`` of id, score: min(k, vocabulary) of the last token, best first; a slow sink delays only the next instruction.
    done : ``Out(stream)``, one beat (0) per instruction, offered once ``token`` is taken.
    rescore : ``Out(stream)`` of {index, last}, with a table in two planes: rows of a segment whose low plane is to be read, in order; those of two wait.
    """

    def __init__(self, config: HeadConfig) -> None:
        self._config = config
        code = data.StructLayout(
            {
                "codes": data.ArrayLayout(signed(8), config.vector_lanes),
                "scale": 32,
                "destination": 2,
                "token": 8,
                "group": 8,
                "last": 1,
                "group_last": 1,
            }
        )
        super().__init__(
            {
                "instr": In(stream.Signature(unit_layout(Unit.HEAD))),
                "codes": In(stream.Signature(code)),
                "rows": In(stream.Signature(8 * config.beat_bytes)),
                "token": Out(stream.Signature(data.StructLayout({"id": 20, "score": 32, "activation_scale": 32}))),
                "best": Out(stream.Signature(data.StructLayout({"id": 20, "score": 32}))),
                "done": Out(stream.Signature(1)),
                **({"rescore": Out(stream.Signature(listed_layout(config.planes)))} if config.planes else {}),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self._config
        m.submodules.products = dot = _Dot(config)
        m.submodules.to_float = to_float = IntToFloat(width=config.dot_bits, format=FP32)
        m.submodules.scaled = scaled = FloatMul(a_format=FP32, b_format=FP32, format=FP32)
        m.submodules.best_list = best = _Best(config)
        idle = Signal()
        fetches, activation_scales = self._codes(m, idle)

        # A table beat and the codes that it meets reach the multipliers together, one clock after the handshake.
        rows_left, beat, last_beat = Signal(20, reset_less=True), Signal(16, reset_less=True), Signal(16, reset_less=True)
        taken, row_end, instruction_end = Signal(), Signal(), Signal()
        row, scale = Signal(8 * config.beat_bytes, reset_less=True), Signal(32, reset_less=True)
        arrived, first, ended, final = Signal(), Signal(reset_less=True), Signal(), Signal(reset_less=True)
        planes, addresses = Signal(), [beat] * config.lanes
        m.d.comb += [
            taken.eq(self.rows.valid & self.rows.ready),
            row_end.eq(beat == last_beat),
            instruction_end.eq(rows_left == 1),
            *([] if config.planes else [dot.row.eq(row)]),
            dot.valid.eq(arrived),
            dot.first.eq(first),
            scaled.a.eq(to_float.y),
        ]
        m.d.sync += [row.eq(self.rows.payload), arrived.eq(taken), first.eq(beat == 0), ended.eq(taken & row_end & ~planes), final.eq(instruction_end)]
        with m.If(taken & ~planes):  # without a table in two planes that is 0
            m.d.sync += beat.eq(Mux(row_end, 0, beat + 1))
            with m.If(beat == 0):
                m.d.sync += scale.eq(self.rows.payload[:32])
            with m.If(row_end):
                m.d.sync += rows_left.eq(rows_left - 1)
        if config.planes:
            walk, bounds = self._planes(m, dot, idle, planes, beat == 0)
            m.d.comb += [walk.taken.eq(taken & planes), bounds.key.eq(best.candidate.key)]
            with m.If(planes):
                m.d.sync += [arrived.eq(taken & ~walk.scales), first.eq(walk.beat == 0)]
            scales = Signal(8 * config.beat_bytes, reset_less=True)
            with m.If(walk.taken & walk.scales):
                m.d.sync += scales.eq(self.rows.payload)
            with m.If(walk.taken & (walk.beat == 0)):
                m.d.sync += scale.eq(scales.word_select(walk.place, 32))
            for number, half in ((1, 0), (2, 1)):
                addresses[number] = Mux(planes, Cat(C(half, 1), walk.beat), beat)
        for lane, (fetch, address) in enumerate(zip(fetches, addresses, strict=True)):
            m.d.comb += [fetch.addr.eq(address), dot.codes[lane].eq(fetch.data)]

        # Scores come in order of their ids, those of a row lane by lane: ``insert`` goes with lane 0, ``last_score`` with the last of all.
        lane_bits = range(max(2, config.lanes))
        last_lane, lane, serial = Signal(lane_bits), Signal(lane_bits), Signal()
        clocks = dot.latency + to_float.latency + scaled.latency + 1
        if config.lanes == 1:
            m.d.comb += [to_float.a.eq(dot.dots[0]), scaled.b.eq(_delay(m, "scale", scale, dot.latency + to_float.latency))]
        else:
            clocks += 1
            complete, row_scale = _delay(m, "complete", ended, dot.latency, reset_less=False), _delay(m, "scale", scale, dot.latency)
            held = Signal(32, reset_less=True)
            with m.If(complete):  # it serves all lanes
                m.d.sync += held.eq(row_scale)
            number, factor = self._turns(m, dot, complete), held
            if config.planes:
                m.d.comb += bounds.scale.eq(row_scale)
                number, factor = Mux(planes, bounds.number, number), Mux(planes, bounds.factor, factor)
            m.d.comb += [to_float.a.eq(number), scaled.b.eq(_delay(m, "factor", factor, to_float.latency))]
        insert = _delay(m, "insert", ended, clocks, reset_less=False)
        last_row = _delay(m, "last", final, clocks)
        candidate, key, minus = Signal(20, reset_less=True), Signal(32, reset_less=True), Signal(reset_less=True)
        m.d.sync += [key.eq(rank(scaled.y)), minus.eq(scaled.y == FP32.sign)]
        m.d.comb += [best.candidate.id.eq(candidate), best.candidate.key.eq(key), best.candidate.minus.eq(minus)]

        top, last_score = Signal(best.entry), Signal()
        if config.lanes == 1:
            m.d.comb += [best.insert.eq(insert), last_score.eq(insert & last_row), top.eq(best.first)]
            row_through = insert
        else:
            scored, ends = [insert], [last_row]
            for i in range(1, config.lanes):
                scored.append(_delay(m, f"scored_{i}", scored[-1], 1, reset_less=False))
                ends.append(_delay(m, f"end_{i}", ends[-1], 1))
            row_through = scored[-1]
            tops = [Signal(best.entry, name=f"top_{i}", reset_less=True) for i in range(config.lanes)]
            for i, entry in enumerate(tops):
                with m.If(scored[i] & ((candidate == 0) | (key > entry.key))):
                    m.d.sync += entry.eq(best.candidate)
            here, end = (Cat(bits).bit_select(last_lane, 1) for bits in (scored, ends))
            m.d.comb += [best.insert.eq(here), last_score.eq(here & end), top.eq(Array(tops)[lane])]
            if config.planes:
                with m.If(planes):
                    m.d.comb += [best.insert.eq(bounds.insert), last_score.eq(bounds.insert & bounds.last), top.eq(best.first)]
                    m.d.comb += best.candidate.id.eq(bounds.id)
        with m.If(row_through):
            m.d.sync += candidate.eq(candidate + 1)

        m.d.comb += [
            self.token.payload.id.eq(top.id),
            self.token.payload.score.eq(score_of(top.key, top.minus)),
            self.token.payload.activation_scale.eq(Array(activation_scales)[lane] if config.lanes > 1 else activation_scales[0]),
            self.best.payload.id.eq(best.first.id),
            self.best.payload.score.eq(score_of(best.first.key, best.first.minus)),
        ]
        with m.If(self.done.ready):
            m.d.sync += self.done.valid.eq(0)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [idle.eq(1), self.instr.ready.eq(1)]
                m.d.sync += [rows_left.eq(self.instr.payload.vocabulary), last_beat.eq(self.instr.payload.row_beats - 1), beat.eq(0), candidate.eq(0)]
                if config.lanes > 1:
                    tokens = self.instr.payload.tokens
                    last = Mux(tokens > config.lanes, config.lanes - 1, tokens - 1)
                    m.d.sync += [last_lane.eq(last), serial.eq(self.instr.payload.serial), lane.eq(Mux(self.instr.payload.serial, 0, last))]
                if config.planes:
                    m.d.sync += planes.eq(self.instr.payload.planes)
                with m.If(self.instr.valid):
                    m.next = "ROWS"
            with m.State("ROWS"):
                m.d.comb += self.rows.ready.eq(1)
                through = taken & ~planes & row_end & instruction_end
                with m.If(through | (walk.row_end & walk.row.last) if config.planes else through):
                    m.next = "DRAIN"
            with m.State("DRAIN"), m.If(last_score):
                m.next = "TOKEN"
            with m.State("TOKEN"):
                m.d.comb += self.token.valid.eq(1)
                with m.If(self.token.ready):
                    with m.If(~serial | (lane == last_lane)):
                        m.d.sync += self.done.valid.eq(1)
                        m.next = "BEST"
                    with m.Else():
                        m.d.sync += lane.eq(lane + 1)
            with m.State("BEST"):
                m.d.comb += [self.best.valid.eq(best.valid), best.shift.eq(best.valid & self.best.ready)]
                with m.If((~best.valid | (best.shift & ~best.more)) & (~self.done.valid | self.done.ready)):
                    m.next = "IDLE"
        return m

    def _planes(self, m: Module, dot: _Dot, idle: Value, planes: Value, row_begins: Value) -> tuple[PlaneWalk, PlaneBounds]:
        """What a table in two planes needs beside the multipliers, and their operands: halves of a beat's bytes, or bytes, but for a row's scale."""
        config, instr = self._config, self.instr
        assert config.planes
        m.submodules.walk, m.submodules.bounds = walk, bounds = PlaneWalk(config.planes), PlaneBounds(config)
        wiring.connect(m, bounds.listed, walk.listed)
        wiring.connect(m, bounds.rescore, wiring.flipped(self.rescore))
        start = instr.valid & idle
        m.d.comb += [
            walk.start.eq(start),
            walk.vocabulary.eq(instr.payload.vocabulary),
            bounds.start.eq(start),
            bounds.codes.eq(self.codes.payload.codes),
            bounds.codes_valid.eq(self.codes.valid & idle),
            bounds.codes_last.eq(self.codes.payload.last),
            bounds.valid.eq(_delay(m, "row_end", walk.row_end, dot.latency, reset_less=False)),
            bounds.row.eq(_delay(m, "row_told", walk.row.as_value(), dot.latency)),
            bounds.halves[0].eq(dot.dots[1]),
            bounds.halves[1].eq(dot.dots[2]),
        ]
        no_scale = Const((1 << config.beat_bytes) - (1 << config.scale_units * config.vector_lanes), config.beat_bytes)
        rows = [Signal(8 * config.beat_bytes, name=name, reset_less=True) for name in ("operand", "other_operand")]
        for half, register in enumerate(rows):
            for i in range(config.beat_bytes):
                byte = self.rows.payload[8 * i : 8 * i + 8]
                four = byte[4 * half : 4 * half + 4]
                sign = (four[3] & ~walk.low).replicate(4)
                whole = byte & ~(row_begins & ~no_scale[i]).replicate(8)
                m.d.sync += register[8 * i : 8 * i + 8].eq(Mux(planes, Cat(four, sign), whole))
        m.d.comb += [dot.row.eq(rows[0]), dot.other.eq(rows[1])]
        return walk, bounds

    def _codes(self, m: Module, idle: Signal) -> tuple[list[memory.ReadPort], list[Signal]]:
        """Code memories of the lanes, and the activation scales of what they hold. Codes stand as in a table row: behind the scale's units, which stay zero
        like the padding at the end."""
        config, payload = self._config, self.codes.payload
        units = config.beat_bytes // config.vector_lanes
        taken, fetches, scales = self.codes.valid & idle, [], []
        unit, place = self._place(m, "", config.scale_units, taken)
        if config.planes:
            plane_unit, plane_place = self._place(m, "plane_", 0, taken)
        for lane in range(config.lanes):
            suffix = f"_{lane}" if config.lanes > 1 else ""
            mine = (payload.token >= lane if lane == config.lanes - 1 else payload.token == lane) if config.lanes > 1 else 1
            where, which = place, unit
            if config.planes and lane in (1, 2):  # the first token's, where another may come later
                early = payload.token == 0
                mine, where, which = mine | early, Mux(early, plane_place, place), Mux(early, plane_unit, unit)
            codes = m.submodules[f"code_store{suffix}"] = memory.Memory(shape=8 * config.beat_bytes, depth=config.store_beats, init=[])
            store = codes.write_port(granularity=8 * config.vector_lanes)
            scale = Signal(32, name=f"activation_scale{suffix}", reset_less=True)
            m.d.comb += [
                store.addr.eq(where),
                store.data.eq(payload.codes.as_value().replicate(units)),
                store.en.eq(Mux(taken & mine, 1 << which, 0)),
            ]
            with m.If(taken & mine):
                m.d.sync += scale.eq(payload.scale)
            fetches.append(codes.read_port())
            scales.append(scale)
        m.d.comb += self.codes.ready.eq(idle)
        return fetches, scales

    def _place(self, m: Module, name: str, first: int, taken: Value) -> tuple[Signal, Signal]:
        """Unit of the beat and beat of the store for the next codes of a row that begins at unit ``first``."""
        units = self._config.beat_bytes // self._config.vector_lanes
        unit, place = Signal(range(units), init=first, name=f"{name}unit"), Signal(range(self._config.store_beats), name=f"{name}place")
        with m.If(taken):
            with m.If(self.codes.payload.last):
                m.d.sync += [unit.eq(first), place.eq(0)]
            with m.Elif(unit == units - 1):
                m.d.sync += [unit.eq(0), place.eq(place + 1)]
            with m.Else():
                m.d.sync += unit.eq(unit + 1)
        return unit, place

    def _turns(self, m: Module, dot: _Dot, complete: Value) -> Value:
        """The lanes' sums of a row, one per clock from the clock after ``complete``; a row has at least as many beats as there are lanes."""
        held = [Signal(signed(self._config.dot_bits), name=f"sum_held_{i}", reset_less=True) for i in range(self._config.lanes)]
        for i, register in enumerate(held):
            behind = held[i + 1] if i + 1 < len(held) else register
            m.d.sync += register.eq(Mux(complete, dot.dots[i], behind))
        return held[0]
