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
from lutra.rtl.verilog import once

__all__ = ["Head"]


def _delay(m: Module, name: str, value: Value, clocks: int, *, reset_less: bool = True) -> Value:
    for stage in range(clocks):
        register = Signal(Value.cast(value).shape(), name=f"{name}_{stage}", reset_less=reset_less)
        m.d.sync += register.eq(value)
        value = register
    return value


def _rank(score: Value) -> Value:
    """Unsigned key that orders fp32 bits like the reals: -0 and +0 alike, NaN lowest (as in the golden model)."""
    magnitude = score[: FP32.bits - 1]
    return Mux(magnitude > FP32.infinity, 0, Mux(score[-1] & magnitude.any(), ~score, score | FP32.sign)[: FP32.bits])


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

    Takes operands in every clock in which ``valid`` is 1; ``latency`` from operands to ``dots``: multiply, tree levels, accumulate. ``first`` starts a sum.
    """

    def __init__(self, config: HeadConfig) -> None:
        self._config = config
        self.latency = 2 + config.tree_levels
        beat = data.ArrayLayout(signed(8), config.beat_bytes)
        dots = data.ArrayLayout(signed(config.dot_bits), config.lanes)
        super().__init__({"codes": In(data.ArrayLayout(beat, config.lanes)), "row": In(beat), "valid": In(1), "first": In(1), "dots": Out(dots)})

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

    def _lane(self, m: Module, lane: int) -> tuple[Value, Value]:
        """A lane's sum over a beat, and 0 to add to it."""
        prefix = f"lane_{lane}_" if self._config.lanes > 1 else ""
        level: list[Value] = []
        for i in range(self._config.beat_bytes):
            product = Signal(signed(16), name=f"{prefix}product_{i}", reset_less=True)
            m.d.sync += product.eq(self.codes[lane][i] * self.row[i])
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
                    getattr(dot, f"x_{k}").eq(self.row[i + k]),
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
        self.entry = data.StructLayout({"id": 20, "score": 32})
        super().__init__({"insert": In(1), "candidate": In(self.entry), "shift": In(1), "first": Out(self.entry), "valid": Out(1), "more": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        k = self._depth
        entries = [Signal(self.entry, name=f"entry_{i}", reset_less=True) for i in range(k)]
        valid = Signal(k)
        rank = _rank(self.candidate.score)
        wins = Signal(k)
        m.d.comb += wins.eq(Cat(~valid[i] | (rank > _rank(entry.score)) for i, entry in enumerate(entries)))
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

    Parameters
    ----------
    config : sizes.

    Members
    -------
    instr : ``In(stream)`` of vocabulary, row_beats, tokens, position, serial; with one lane the last three do not matter. vocabulary >= 1; a serial pass has
        at most ``lanes`` tokens.
    codes : ``In(stream)`` of the vector unit's code beats; row t is kept in lane min(t, lanes - 1), which it overwrites; only codes, scale, token and ``last``
        are looked at.
    rows : ``In(stream)`` of table beats.
    token : ``Out(stream)`` of id, score and activation_scale, one per instruction, or one per token of a serial pass, in order.
    best : ``Out(stream)`` of id, score: min(k, vocabulary) of the last token, best first; a slow sink delays only the next instruction.
    done : ``Out(stream)``, one beat (0) per instruction, offered once ``token`` is taken.
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
        m.d.comb += [
            taken.eq(self.rows.valid & self.rows.ready),
            row_end.eq(beat == last_beat),
            instruction_end.eq(rows_left == 1),
            dot.row.eq(row),
            dot.valid.eq(arrived),
            dot.first.eq(first),
            scaled.a.eq(to_float.y),
        ]
        for lane, fetch in enumerate(fetches):
            m.d.comb += [fetch.addr.eq(beat), dot.codes[lane].eq(fetch.data)]
        m.d.sync += [row.eq(self.rows.payload), arrived.eq(taken), first.eq(beat == 0), ended.eq(taken & row_end), final.eq(instruction_end)]
        with m.If(taken):
            m.d.sync += beat.eq(Mux(row_end, 0, beat + 1))
            with m.If(beat == 0):
                m.d.sync += scale.eq(self.rows.payload[:32])
            with m.If(row_end):
                m.d.sync += rows_left.eq(rows_left - 1)

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
            m.d.comb += [to_float.a.eq(self._turns(m, dot, complete)), scaled.b.eq(_delay(m, "held", held, to_float.latency))]
        insert = _delay(m, "insert", ended, clocks, reset_less=False)
        last_row = _delay(m, "last", final, clocks)
        candidate, score = Signal(20, reset_less=True), Signal(32, reset_less=True)
        m.d.sync += score.eq(scaled.y)
        m.d.comb += [best.candidate.id.eq(candidate), best.candidate.score.eq(score)]

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
            rank = _rank(score)
            for i, entry in enumerate(tops):
                with m.If(scored[i] & ((candidate == 0) | (rank > _rank(entry.score)))):
                    m.d.sync += entry.eq(best.candidate)
            here, end = (Cat(bits).bit_select(last_lane, 1) for bits in (scored, ends))
            m.d.comb += [best.insert.eq(here), last_score.eq(here & end), top.eq(Array(tops)[lane])]
        with m.If(row_through):
            m.d.sync += candidate.eq(candidate + 1)

        m.d.comb += [
            self.token.payload.id.eq(top.id),
            self.token.payload.score.eq(top.score),
            self.token.payload.activation_scale.eq(Array(activation_scales)[lane] if config.lanes > 1 else activation_scales[0]),
            self.best.payload.eq(best.first),
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
                with m.If(self.instr.valid):
                    m.next = "ROWS"
            with m.State("ROWS"):
                m.d.comb += self.rows.ready.eq(1)
                with m.If(taken & row_end & instruction_end):
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

    def _codes(self, m: Module, idle: Signal) -> tuple[list[memory.ReadPort], list[Signal]]:
        """Code memories of the lanes, and the activation scales of what they hold. Codes stand as in a table row: behind the scale's units, which stay zero
        like the padding at the end."""
        config, payload = self._config, self.codes.payload
        units = config.beat_bytes // config.vector_lanes
        unit, place = Signal(range(units), init=config.scale_units), Signal(range(config.row_beats))
        taken, fetches, scales = self.codes.valid & idle, [], []
        for lane in range(config.lanes):
            suffix = f"_{lane}" if config.lanes > 1 else ""
            mine = (payload.token >= lane if lane == config.lanes - 1 else payload.token == lane) if config.lanes > 1 else 1
            codes = m.submodules[f"code_store{suffix}"] = memory.Memory(shape=8 * config.beat_bytes, depth=config.row_beats, init=[])
            store = codes.write_port(granularity=8 * config.vector_lanes)
            scale = Signal(32, name=f"activation_scale{suffix}", reset_less=True)
            m.d.comb += [
                store.addr.eq(place),
                store.data.eq(payload.codes.as_value().replicate(units)),
                store.en.eq(Mux(taken & mine, 1 << unit, 0)),
            ]
            with m.If(taken & mine):
                m.d.sync += scale.eq(payload.scale)
            fetches.append(codes.read_port())
            scales.append(scale)
        m.d.comb += self.codes.ready.eq(idle)
        with m.If(taken):
            with m.If(payload.last):
                m.d.sync += [unit.eq(config.scale_units), place.eq(0)]
            with m.Elif(unit == units - 1):
                m.d.sync += [unit.eq(0), place.eq(place + 1)]
            with m.Else():
                m.d.sync += unit.eq(unit + 1)
        return fetches, scales

    def _turns(self, m: Module, dot: _Dot, complete: Value) -> Value:
        """The lanes' sums of a row, one per clock from the clock after ``complete``; a row has at least as many beats as there are lanes."""
        held = [Signal(signed(self._config.dot_bits), name=f"sum_held_{i}", reset_less=True) for i in range(self._config.lanes)]
        for i, register in enumerate(held):
            behind = held[i + 1] if i + 1 < len(held) else register
            m.d.sync += register.eq(Mux(complete, dot.dots[i], behind))
        return held[0]
