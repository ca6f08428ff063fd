# SPDX-License-Identifier: Apache-2.0
"""Requantisation in the VECTOR unit: scales, group by group, ahead of the codes that they belong to."""

from amaranth import Array, Const, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lutra.hls_models.floats import FP16, FP32
from lutra.hls_models.ternary.isa import Destination
from lutra.hls_models.ternary.vector import CODE_127, INVERSE_127, OUTPUT_DEPTH, TINY_EXPONENT, VectorConfig
from lutra.rtl.float_parts import register
from lutra.rtl.floats import FloatConvert, FloatDivSqrt, FloatMul, FloatToInt
from lutra.rtl.streams import Queue
from lutra.rtl.ternary.vector_control import job_layout, wrap
from lutra.rtl.ternary.vector_datapath import buffer_attributes, delay

__all__ = ["Codes", "Dividers", "Scaler", "codes_layout"]

GROUP = data.StructLayout({"inverse": FP32.bits, "scale": FP32.bits})
DIVISION = data.StructLayout({"a": FP32.bits, "b": FP32.bits, "root": 1})


def codes_layout(config: VectorConfig, bits: int | None = None) -> data.StructLayout:
    """A beat of V codes: scale (fp32) and indices of its group, ``last`` of a token's row, ``group_last`` of a group; ``bits`` of a code, if not the port's."""
    lanes = data.ArrayLayout(signed(bits or config.code_bits), config.lanes)
    return data.StructLayout({"codes": lanes, "scale": FP32.bits, "destination": 2, "token": 8, "group": 8, "last": 1, "group_last": 1})


class Dividers(wiring.Component):
    """Several serial dividers taking turns: as one ``FloatDivSqrt``, but with ``count`` operations on their way; results in order.

    Members
    -------
    operands, result : streams as of ``FloatDivSqrt``
    turn_in, turn_out : ``Out``, the divider that takes the next operands, and the one that gives the next result
    """

    def __init__(self, *, count: int) -> None:
        self._count = count
        super().__init__(
            {
                "operands": In(stream.Signature(DIVISION)),
                "result": Out(stream.Signature(FP32.bits)),
                "turn_in": Out(range(count)),
                "turn_out": Out(range(count)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        for index in range(self._count):
            m.submodules[f"divider_{index}"] = divider = FloatDivSqrt()
            m.d.comb += divider.operands.payload.eq(self.operands.payload)
            with m.If(self.turn_in == index):
                m.d.comb += [divider.operands.valid.eq(self.operands.valid), self.operands.ready.eq(divider.operands.ready)]
            with m.If(self.turn_out == index):
                m.d.comb += [
                    self.result.valid.eq(divider.result.valid),
                    self.result.payload.eq(divider.result.payload),
                    divider.result.ready.eq(self.result.ready),
                ]
        for turn, port in ((self.turn_in, self.operands), (self.turn_out, self.result)):
            with m.If(port.valid & port.ready):
                m.d.sync += turn.eq(wrap(m, turn + 1, self._count, "next_turn"))
        return m


class Scaler(wiring.Component):
    """127/a and the scale of every group; with norm also the scale of every row.

    LOAD (a is read and converted) and DIVIDE per group, as fast as the dividers take them; their results leave on ``group`` in order. COLLECT waits for
    the last. With norm the rows follow: ROOT, ROOT_RESULT, QUOTIENT, QUOTIENT_RESULT, SCALE (the product by 1/127), PUSH. For HEAD, INVERSE and these
    steps come before each group is handed on, so that its codes carry the complete scale.

    Members
    -------
    start : pulse; all groups' a can be read from the next cycle on. idle : ``Out(1)``.
    a_row, a : read port of the maxima
    variance : ``In(stream)``, mean square + eps per row
    group : ``Out(stream)``, per token and group
    scale_write : ``{enable, token, value}``
    """

    def __init__(self, config: VectorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "job": In(job_layout(config)),
                "last_group": In(range(config.max_groups)),
                "start": In(1),
                "idle": Out(1),
                "a_row": Out(range(config.max_tokens * config.max_groups)),
                "a": In(config.format.bits - 1),
                "variance": In(stream.Signature(FP32.bits)),
                "group": Out(stream.Signature(GROUP)),
                "scale_write": Out(data.StructLayout({"enable": 1, "token": range(config.max_tokens), "value": FP32.bits})),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, job = self._config, self.job
        m.submodules.wide = wide = FloatConvert(source=config.format, target=FP32)
        m.submodules.dividers = dividers = Dividers(count=config.dividers)
        m.submodules.per_127 = product = FloatMul(a_format=FP32, b_format=FP32, format=FP32)
        operands, result = dividers.operands, dividers.result

        # Two walks over token and group: of the operands, and of the groups that left.
        asked, given = Signal(self._place()), Signal(self._place())
        base = Signal(range(config.max_tokens * config.max_groups))
        taken = Signal(FP32.bits, reset_less=True)  # the last quotient or root
        inverse = Signal(FP32.bits, reset_less=True)
        from_quotient = Signal()
        wait = Signal(range(max(1 + wide.latency, product.latency)))
        zero = wide.y[FP32.mantissa : -1] < TINY_EXPONENT
        kept = job.destination != Destination.ATTEND
        complete_first = job.norm & (job.destination == Destination.HEAD)
        value = Mux(zero, 0, product.y)

        # Per divider, the scale that belongs to its result; it is there long before the quotient.
        scale = Array(Signal(FP32.bits, name=f"scale_{i}", reset_less=True) for i in range(config.dividers))
        nothing = Array(Signal(name=f"nothing_{i}", reset_less=True) for i in range(config.dividers))
        divide, collect, push = Signal(), Signal(), Signal()
        asked_turn = register(m, dividers.turn_in, "asked_turn", product.latency)
        asked_zero = register(m, zero, "asked_zero", product.latency)
        with m.If(delay(m, divide & operands.ready, product.latency, "asked_late")):
            m.d.sync += [scale[asked_turn].eq(Mux(asked_zero, 0, product.y)), nothing[asked_turn].eq(asked_zero)]

        m.d.comb += [
            self.a_row.eq(base + asked.group),
            wide.a.eq(self.a),
            product.a.eq(Mux(from_quotient, taken, wide.y)),
            product.b.eq(INVERSE_127),
            self.group.valid.eq((collect & result.valid) | push),
            self.group.payload.scale.eq(Mux(push, value, scale[dividers.turn_out])),
            self.group.payload.inverse.eq(Mux(push, Mux(zero, 0, inverse), Mux(nothing[dividers.turn_out], 0, result.payload))),
        ]
        leaves = self.group.valid & self.group.ready
        given_last = leaves & (given.group == self.last_group) & (given.tokens_left == 1)
        with m.If(leaves):
            self._advance(m, given)
            m.d.comb += [
                self.scale_write.enable.eq(kept & (complete_first | ~job.norm)),
                self.scale_write.token.eq(given.token),
                self.scale_write.value.eq(self.group.payload.scale),
            ]

        def start_over() -> None:
            m.d.sync += [base.eq(0), asked.token.eq(0), asked.tokens_left.eq(job.tokens)]

        def next_group() -> None:
            m.d.sync += [wait.eq(0), from_quotient.eq(0)]
            self._advance(m, asked)
            with m.If(asked.group == self.last_group):
                m.d.sync += base.eq(base + config.max_groups)
            m.next = "LOAD"

        asked_last = (asked.group == self.last_group) & (asked.tokens_left == 1)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.idle.eq(1)
                m.d.sync += [wait.eq(0), from_quotient.eq(0), asked.group.eq(0), given.group.eq(0), given.token.eq(0), given.tokens_left.eq(job.tokens)]
                start_over()
                with m.If(self.start):
                    m.next = "LOAD"
            with m.State("LOAD"):
                m.d.comb += collect.eq(~complete_first)
                m.d.sync += wait.eq(wait + 1)
                with m.If(wait == wide.latency):
                    m.next = "DIVIDE"
            with m.State("DIVIDE"):
                m.d.comb += [
                    collect.eq(~complete_first),
                    divide.eq(1),
                    operands.valid.eq(1),
                    operands.payload.eq(Const({"a": CODE_127, "b": 0, "root": 0}, DIVISION)),
                ]
                m.d.comb += operands.payload.b.eq(wide.y)
                with m.If(operands.ready):
                    with m.If(complete_first):
                        m.next = "INVERSE"
                    with m.Elif(asked_last):
                        m.next = "COLLECT"
                    with m.Else():
                        next_group()
            with m.State("COLLECT"):
                m.d.comb += collect.eq(1)
                with m.If(given_last):
                    start_over()
                    m.next = "IDLE"
                    with m.If(job.norm):
                        m.next = "ROOT"
            with m.State("INVERSE"):
                m.d.sync += inverse.eq(result.payload)
                with m.If(result.valid):
                    m.next = "ROOT"
            with m.State("ROOT"):
                m.d.comb += [
                    operands.valid.eq(self.variance.valid),
                    operands.payload.eq(Const({"a": 0, "b": 0, "root": 1}, DIVISION)),
                    operands.payload.a.eq(self.variance.payload),
                    self.variance.ready.eq(operands.ready),
                ]
                with m.If(self.variance.valid & operands.ready):
                    m.next = "ROOT_RESULT"
            with m.State("ROOT_RESULT"):
                m.d.sync += taken.eq(result.payload)
                with m.If(result.valid):
                    m.next = "QUOTIENT"
            with m.State("QUOTIENT"):
                m.d.comb += [operands.valid.eq(1), operands.payload.a.eq(wide.y), operands.payload.b.eq(taken)]
                with m.If(operands.ready):
                    m.next = "QUOTIENT_RESULT"
            with m.State("QUOTIENT_RESULT"):
                m.d.sync += [taken.eq(result.payload), from_quotient.eq(1), wait.eq(0)]
                with m.If(result.valid):
                    m.next = "SCALE"
            with m.State("SCALE"):
                m.d.sync += wait.eq(wait + 1)
                with m.If(wait == product.latency - 1):
                    m.next = "PUSH"
            with m.State("PUSH"):
                m.d.comb += push.eq(complete_first)
                with m.If(complete_first & self.group.ready):
                    next_group()
                    with m.If(asked_last):
                        m.next = "IDLE"
                with m.Elif(~complete_first):
                    m.d.comb += [self.scale_write.enable.eq(kept), self.scale_write.token.eq(asked.token), self.scale_write.value.eq(value)]
                    m.d.sync += [
                        from_quotient.eq(0),
                        base.eq(base + config.max_groups),
                        asked.token.eq(asked.token + 1),
                        asked.tokens_left.eq(asked.tokens_left - 1),
                    ]
                    m.next = "ROOT"
                    with m.If(asked.tokens_left == 1):
                        m.next = "IDLE"
        m.d.comb += result.ready.eq(~collect | self.group.ready)
        return m

    def _place(self) -> data.StructLayout:
        return data.StructLayout({"token": range(self._config.max_tokens), "group": range(self._config.max_groups), "tokens_left": 8})

    def _advance(self, m: Module, place: data.View) -> None:
        m.d.sync += place.group.eq(place.group + 1)
        with m.If(place.group == self.last_group):
            m.d.sync += [place.group.eq(0), place.token.eq(place.token + 1), place.tokens_left.eq(place.tokens_left - 1)]


class Codes(wiring.Component):
    """The U buffer, and its codes: for token, for group, for beat, one beat per clock while ``codes`` has room.

    A group accepted in cycle p: its first beat is read from p + 1; a beat read at t is offered from t + ``latencies.code``. The output queue has
    OUTPUT_DEPTH places; a beat is read only when one is free, so nothing in between can stall.

    Members
    -------
    u_write : ``{enable, row}``, u : beats to store
    start : pulse, before the first group
    group : ``In(stream)`` from ``Scaler``
    codes : ``Out(stream)``; accepted : pulse when the last one leaves
    """

    def __init__(self, config: VectorConfig) -> None:
        self._config = config
        rows = range(config.max_tokens * (config.max_columns // config.lanes))
        super().__init__(
            {
                "job": In(job_layout(config)),
                "u_write": In(data.StructLayout({"enable": 1, "row": rows})),
                "u": In(data.ArrayLayout(config.format.bits, config.lanes)),
                "start": In(1),
                "group": In(stream.Signature(GROUP)),
                "codes": Out(stream.Signature(codes_layout(config))),
                "accepted": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, job, F, v = self._config, self.job, self._config.format, self._config.lanes
        stride = config.max_columns // v
        m.submodules.u = memory = Memory(shape=F.bits * v, depth=config.max_tokens * stride, init=[], attrs=buffer_attributes(config))
        write, read = memory.write_port(), memory.read_port()
        m.d.comb += [write.en.eq(self.u_write.enable), write.addr.eq(self.u_write.row), write.data.eq(self.u.as_value())]

        present, held = Signal(GROUP, reset_less=True), Signal()
        credit = Signal(range(OUTPUT_DEPTH + 1), init=OUTPUT_DEPTH)
        issue, group_end, row_end, leaves = Signal(), Signal(), Signal(), Signal()
        group_left, row_left = Signal.like(job.group_columns), Signal.like(job.results)
        tokens_left = Signal(8)
        token, group = Signal(8), Signal(8)
        row, base = Signal(range(config.max_tokens * stride)), Signal(range(config.max_tokens * stride))
        m.d.comb += [
            issue.eq(held & (credit != 0)),
            group_end.eq(group_left == v),
            row_end.eq(row_left == v),
            self.group.ready.eq(~held | (issue & group_end)),
            read.addr.eq(row),
        ]
        m.d.sync += credit.eq(credit - issue + leaves)
        with m.If(self.group.ready):
            m.d.sync += [held.eq(self.group.valid), present.eq(self.group.payload)]
        with m.If(self.start):
            m.d.sync += [
                group_left.eq(job.group_columns),
                row_left.eq(job.results),
                tokens_left.eq(job.tokens),
                token.eq(0),
                group.eq(0),
                row.eq(0),
                base.eq(0),
            ]
        with m.If(issue):
            m.d.sync += [row.eq(row + 1), group_left.eq(group_left - v), row_left.eq(row_left - v)]
            with m.If(group_end):
                m.d.sync += [group_left.eq(job.group_columns), group.eq(group + 1)]
            with m.If(row_end):
                m.d.sync += [
                    row_left.eq(job.results),
                    group.eq(0),
                    token.eq(token + 1),
                    tokens_left.eq(tokens_left - 1),
                    row.eq(base + stride),
                    base.eq(base + stride),
                ]

        inverse = register(m, present.inverse, "inverse")
        lanes = []
        for lane in range(v):
            m.submodules[f"product_{lane}"] = product = FloatMul(a_format=F, b_format=FP32, format=FP32)
            m.submodules[f"round_{lane}"] = integer = FloatToInt(format=FP32, low=-127, high=127)
            m.d.comb += [product.a.eq(read.data[lane * F.bits : (lane + 1) * F.bits]), product.b.eq(inverse), integer.a.eq(product.y)]
            code, cycles = integer.y, 1 + product.latency + integer.latency
            if config.kv_format == "fp16":
                m.submodules[f"half_{lane}"] = half = FloatConvert(source=F, target=FP16, saturate=True)
                m.d.comb += half.a.eq(product.a)
                half_late = register(m, half.y, f"half_late_{lane}", cycles - 1 - half.latency)
                code = Mux(job.destination == Destination.ATTEND, half_late.as_signed(), code)
            lanes.append(code)

        entry = data.StructLayout({"beat": codes_layout(config), "end": 1})
        m.submodules.queue = queue = Queue(shape=entry, depth=OUTPUT_DEPTH)
        tags = data.StructLayout({"scale": FP32.bits, "token": 8, "group": 8, "last": 1, "group_last": 1, "end": 1})
        tag = Signal(tags)
        m.d.comb += [
            tag.scale.eq(present.scale),
            tag.token.eq(token),
            tag.group.eq(group),
            tag.last.eq(row_end),
            tag.group_last.eq(group_end),
            tag.end.eq(row_end & (tokens_left == 1)),
        ]
        late = data.View(tags, register(m, tag.as_value(), "tag", cycles))
        beat = queue.input.payload.beat
        m.d.comb += [
            queue.input.valid.eq(delay(m, issue, cycles, "issued")),
            *(beat.codes[lane].eq(value) for lane, value in enumerate(lanes)),
            *(getattr(beat, name).eq(getattr(late, name)) for name in ("scale", "token", "group", "last", "group_last")),
            beat.destination.eq(job.destination),
            queue.input.payload.end.eq(late.end),
            self.codes.valid.eq(queue.output.valid),
            self.codes.payload.eq(queue.output.payload.beat),
            queue.output.ready.eq(self.codes.ready),
            leaves.eq(queue.output.valid & queue.output.ready),
            self.accepted.eq(leaves & queue.output.payload.end),
        ]
        return m
