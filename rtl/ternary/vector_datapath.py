# SPDX-License-Identifier: Apache-2.0
"""Datapath of the VECTOR unit: dequantisation, operations and gains; fixed latency, a beat per clock, no stall."""

from amaranth import Array, Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lutra.hls_models.floats import FP32
from lutra.hls_models.ternary.isa import Operation, Source
from lutra.hls_models.ternary.vector import LANE_BITS, VectorConfig
from lutra.hls_models.ternary.vector_cycles import VectorLatencies
from lutra.rtl.float_parts import register
from lutra.rtl.floats import FloatAdd, FloatConvert, FloatMul, IntToFloat
from lutra.rtl.functions import Silu
from lutra.rtl.ternary.vector_control import Cycle, Walker, job_layout

__all__ = ["Dequantise", "Operate", "Results", "buffer_attributes", "delay", "early_layout", "place_layout"]


def delay(m: Module, value: Value, cycles: int, name: str) -> Value:
    """The value ``cycles`` clocks later, 0 after reset: for valid bits (``register`` is for what they qualify)."""
    for _ in range(cycles):
        signal = Signal(value.shape(), name=name)
        m.d.sync += signal.eq(value)
        value = signal
    return value


def buffer_attributes(config: VectorConfig) -> dict[str, str]:
    """Of the memories U and X; without any, synthesis chooses block RAM."""
    return {"ram_style": "ultra"} if config.buffer_ram == "ultra" else {}


def early_layout(config: VectorConfig) -> data.StructLayout:
    """What belongs to a beat of y and is known a clock before it."""
    x_rows = range(config.max_tokens * (config.hidden // config.lanes))
    return data.StructLayout({"x_row": x_rows, "rope_row": range(config.rope_rows), "turn": 1})


def place_layout(config: VectorConfig) -> data.StructLayout:
    """Where a result beat goes: rows of the memories, and whether it is the first of its group, of its partial sum, the last of the instruction."""
    n, v = config.max_tokens, config.lanes
    return data.StructLayout(
        {
            "u_row": range(n * (config.max_columns // v)),
            "group_row": range(n * config.max_groups),
            "group_first": 1,
            "partial": range(config.partials),
            "partial_first": 1,
            "token": range(n),
            "end": 1,
        }
    )


class Dequantise(wiring.Component):
    """y from sums, values or embedding codes.

    A beat stepped at t: y at t + ``latencies.sums`` (sums and embed) or ``latencies.values``; ``early`` and ``early_valid`` one clock before.

    Members
    -------
    step, token, segment, place : the beat accepted in this cycle
    sums, values, codes, row_scale : its payload, by source
    scale_write : ``{enable, token, value}``, what later sums of the token are multiplied by
    """

    def __init__(self, config: VectorConfig) -> None:
        self._config = config
        v = config.lanes
        super().__init__(
            {
                "job": In(job_layout(config)),
                "step": In(1),
                "token": In(range(config.max_tokens)),
                "segment": In(2),
                "place": In(early_layout(config)),
                "sums": In(data.ArrayLayout(signed(config.accumulator_bits), v)),
                "values": In(data.ArrayLayout(config.format.bits, v)),
                "codes": In(data.ArrayLayout(signed(8), v)),
                "row_scale": In(FP32.bits),
                "scale_write": In(data.StructLayout({"enable": 1, "token": range(config.max_tokens), "value": FP32.bits})),
                "early_valid": Out(1),
                "early": Out(early_layout(config)),
                "y": Out(data.ArrayLayout(config.format.bits, v)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, job, F = self._config, self.job, self._config.format
        latencies = VectorLatencies(config)
        is_embed, is_values = job.source == Source.EMBED, job.source == Source.VALUES

        m.submodules.scale = scale = Memory(shape=FP32.bits, depth=config.max_tokens, init=[])
        write, read = scale.write_port(), scale.read_port()
        m.d.comb += [
            read.addr.eq(self.token),
            write.en.eq(self.scale_write.enable),
            write.addr.eq(self.scale_write.token),
            write.data.eq(self.scale_write.value),
        ]

        stepped = delay(m, self.step & ~is_values, 1, "stepped")
        segment = register(m, self.segment, "segment_1")
        row_scale = register(m, self.row_scale, "row_scale_1")
        place = register(m, self.place.as_value(), "place_1")
        values = register(m, self.values.as_value(), "values_1")

        # The two factors of a beat: lanes of a gate's pairs have their own weight scale, otherwise both are the segment's.
        scales = [job.header.weight_scale[i] for i in range(3)]
        factors = []
        for parity in range(2):
            m.submodules[f"factor_{parity}"] = factor = FloatMul(a_format=FP32, b_format=FP32, format=FP32)
            by_segment = Array([*scales, scales[2]])[segment]
            weight_scale = Mux(is_embed, FP32.one, Mux(job.operation == Operation.GATE, scales[parity], by_segment))
            m.d.comb += [factor.a.eq(Mux(is_embed, row_scale, read.data)), factor.b.eq(weight_scale)]
            factors.append(factor)
        width = max(8, config.accumulator_bits)
        for lane in range(config.lanes):
            integer = Signal(signed(width), name=f"integer_{lane}", reset_less=True)
            m.d.sync += integer.eq(Mux(is_embed, self.codes[lane], self.sums[lane]))
            m.submodules[f"float_{lane}"] = to_float = IntToFloat(width=width, format=FP32)
            m.submodules[f"product_{lane}"] = product = FloatMul(a_format=FP32, b_format=FP32, format=FP32)
            m.submodules[f"convert_{lane}"] = convert = FloatConvert(source=FP32, target=F)
            factor = factors[lane % 2]
            late = latencies.factor
            m.d.comb += [
                to_float.a.eq(integer),
                product.a.eq(register(m, to_float.y, f"float_{lane}", late - to_float.latency)),
                product.b.eq(register(m, factor.y, f"factor_{lane}", late - factor.latency)),
                convert.a.eq(product.y),
            ]
            m.d.sync += self.y[lane].eq(Mux(is_values, values[lane * F.bits : (lane + 1) * F.bits], convert.y))

        wait = latencies.sums - latencies.values
        taken = delay(m, self.step & is_values, 1, "taken")
        m.d.comb += [
            self.early_valid.eq(taken | delay(m, stepped, wait, "stepped_wait")),
            self.early.as_value().eq(Mux(is_values, place, register(m, place, "place_wait", wait))),
        ]
        return m


class Operate(wiring.Component):
    """z from y: copy, rope, residual through one path of multipliers and adders; gate through its own.

    A beat of y at t: z at t + ``latencies.operate``, gates (two beats of y) ``latencies.gate`` after the second.

    Copied beats take the same path: times one, minus +0 (plus -0 in odd lanes), which changes no value.

    Members
    -------
    early_valid, early, y : from ``Dequantise``
    rope_row : ``Out``, address of the rope ring; ``rope_data`` one clock later
    x_write : ``{enable, row}``, with z
    z_valid, z : ``Out``
    """

    def __init__(self, config: VectorConfig) -> None:
        self._config = config
        v, F = config.lanes, config.format
        super().__init__(
            {
                "job": In(job_layout(config)),
                "early_valid": In(1),
                "early": In(early_layout(config)),
                "y": In(data.ArrayLayout(F.bits, v)),
                "rope_row": Out(range(config.rope_rows)),
                "rope_data": In(LANE_BITS * v),
                "x_write": In(data.StructLayout({"enable": 1, "row": range(config.max_tokens * (config.hidden // v))})),
                "z_valid": Out(1),
                "z": Out(data.ArrayLayout(F.bits, v)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, job, F = self._config, self.job, self._config.format
        is_gate, is_residual = job.operation == Operation.GATE, job.operation == Operation.RESIDUAL

        m.submodules.x = memory = Memory(
            shape=F.bits * config.lanes, depth=config.max_tokens * (config.hidden // config.lanes), init=[], attrs=buffer_attributes(config)
        )
        write, read = memory.write_port(), memory.read_port()
        m.d.comb += [write.en.eq(self.x_write.enable), write.addr.eq(self.x_write.row), write.data.eq(self.z.as_value()), self.rope_row.eq(self.early.rope_row)]

        turn = register(m, self.early.turn, "turn")
        straight = []
        for pair in range(config.lanes // 2):
            a, b = self.y[2 * pair], self.y[2 * pair + 1]
            row = self.rope_data[2 * LANE_BITS * pair : 2 * LANE_BITS * (pair + 1)]
            c, s = Mux(turn, row[: F.bits], F.one), row[LANE_BITS : LANE_BITS + F.bits]
            for odd, (main, other) in enumerate([(a, b), (b, a)]):
                lane = 2 * pair + odd
                m.submodules[f"main_{lane}"] = first = FloatMul(a_format=F, b_format=F, format=F)
                m.submodules[f"cross_{lane}"] = second = FloatMul(a_format=F, b_format=F, format=F)
                m.submodules[f"add_{lane}"] = add = FloatAdd(format=F)
                turned = register(m, turn, f"turned_{lane}", first.latency)
                nothing = F.sign if odd else 0
                x = read.data[lane * F.bits : (lane + 1) * F.bits]
                m.d.comb += [
                    first.a.eq(main),
                    first.b.eq(c),
                    second.a.eq(other),
                    second.b.eq(s),
                    add.a.eq(first.y),
                    add.b.eq(Mux(is_residual, x, Mux(turned, second.y, nothing))),
                    add.subtract.eq(0 if odd else ~is_residual),
                ]
                straight.append(add.y)
        # X is read so that its data meet the products.
        x_late = register(m, self.early.x_row, "x_row", first.latency)
        m.d.comb += read.addr.eq(x_late)

        valid = delay(m, self.early_valid, 1, "y_valid")
        through = delay(m, valid & ~is_gate, first.latency + add.latency, "straight_valid")
        halves, half_latency = self._gates(m)
        gated = delay(m, valid & is_gate, half_latency, "half_valid")
        second_half = Signal()
        kept = register_when(m, gated, Cat(halves), "first_half")
        with m.If(gated):
            m.d.sync += second_half.eq(~second_half)
        m.d.sync += [
            self.z_valid.eq(through | (gated & second_half)),
            self.z.as_value().eq(Mux(is_gate, Cat(kept, *halves), Cat(straight))),
        ]
        return m

    def _gates(self, m: Module) -> tuple[list[Value], int]:
        """One product per pair of lanes, and their latency from y."""
        config, F = self._config, self._config.format
        out, latency = [], 0
        for pair in range(config.lanes // 2):
            g, up = self.y[2 * pair], self.y[2 * pair + 1]
            if config.activation == "silu":
                left = Silu(format=F)
                m.d.comb += left.a.eq(g)
            else:
                left = FloatMul(a_format=F, b_format=F, format=F)
                r = Mux(g[-1], 0, g)
                m.d.comb += [left.a.eq(r), left.b.eq(r)]
            right = FloatMul(a_format=F, b_format=F, format=F)
            m.submodules[f"activation_{pair}"], m.submodules[f"gate_{pair}"] = left, right
            m.d.comb += [right.a.eq(left.y), right.b.eq(register(m, up, f"up_{pair}", left.latency))]
            out.append(right.y)
            latency = left.latency + right.latency
        return out, latency


def register_when(m: Module, enable: Value, value: Value, name: str) -> Signal:
    """The value of the last cycle with ``enable``."""
    signal = Signal(value.shape(), name=name, reset_less=True)
    with m.If(enable):
        m.d.sync += signal.eq(value)
    return signal


class Results(wiring.Component):
    """u from z, and where each result beat goes.

    A beat of z at t: ``place`` at t, u at t + ``latencies.gain``.

    Members
    -------
    z_valid, z : from ``Operate``. gains : row at the ring's cursor, one clock after it.
    gain_step, gain_rewind, gain_mark, gain_free : cursor of the params ring, see ``Cursor``.
    x_write : to ``Operate``. u : ``Out``.
    last_group, last_beat : ``Out``, of a row, from the clock after its last beat.
    """

    def __init__(self, config: VectorConfig) -> None:
        self._config = config
        v, F = config.lanes, config.format
        super().__init__(
            {
                "job": In(job_layout(config)),
                "load": In(1),
                "z_valid": In(1),
                "z": In(data.ArrayLayout(F.bits, v)),
                "gains": In(LANE_BITS * v),
                "gain_step": Out(1),
                "gain_rewind": Out(1),
                "gain_mark": Out(1),
                "gain_free": Out(1),
                "x_write": Out(data.StructLayout({"enable": 1, "row": range(config.max_tokens * (config.hidden // v))})),
                "place": Out(place_layout(config)),
                "last_group": Out(range(config.max_groups)),
                "last_beat": Out(range(config.max_columns // v)),
                "u": Out(data.ArrayLayout(F.bits, v)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, job, F, v = self._config, self.job, self._config.format, self._config.lanes
        m.submodules.walker = walker = Walker(lanes=v, max_columns=config.max_columns, max_tokens=config.max_tokens)
        m.submodules.groups = groups = Cycle(lanes=v, max_columns=config.max_columns, periods=config.max_groups)
        step, place = self.z_valid, self.place
        m.d.comb += [
            walker.load.eq(self.load),
            walker.step.eq(step),
            walker.columns.eq(job.results),
            walker.tile_columns.eq(job.result_tile),
            walker.tokens.eq(job.tokens),
            groups.load.eq(self.load),
            groups.step.eq(step),
            groups.token_end.eq(walker.token_end),
            groups.tile_end.eq(walker.tile_end),
            groups.period.eq(job.group_columns),
        ]
        bases = {}
        for name, stride in (("u", config.max_columns // v), ("x", config.hidden // v), ("group", config.max_groups)):
            bases[name] = base = Signal(range(config.max_tokens * stride + 1), name=f"{name}_base")
            with m.If(self.load | (step & walker.tile_end)):
                m.d.sync += base.eq(0)
            with m.Elif(step & walker.token_end):
                m.d.sync += base.eq(base + stride)
        m.d.comb += [
            place.u_row.eq(bases["u"] + walker.beat),
            place.group_row.eq(bases["group"] + groups.index),
            place.group_first.eq(groups.position == 0),
            place.partial.eq(walker.beat),
            place.partial_first.eq((walker.beat >> (config.partials - 1).bit_length()) == 0),
            place.token.eq(walker.token),
            place.end.eq(walker.end),
            self.x_write.enable.eq(step & (job.write_x | (job.operation == Operation.RESIDUAL))),
            self.x_write.row.eq(bases["x"] + walker.beat),
            self.gain_step.eq(step & job.norm & (~walker.token_end | walker.tile_end)),
            self.gain_rewind.eq(step & job.norm & walker.token_end & ~walker.tile_end),
            self.gain_mark.eq(step & job.norm & walker.tile_end),
            self.gain_free.eq(step & job.norm & walker.last_token),
        ]
        with m.If(step & walker.end):
            m.d.sync += [self.last_group.eq(groups.index), self.last_beat.eq(walker.beat)]

        z = register(m, self.z.as_value(), "z_1")
        for lane in range(v):
            m.submodules[f"gain_{lane}"] = gain = FloatMul(a_format=F, b_format=F, format=F)
            m.d.comb += [
                gain.a.eq(z[lane * F.bits : (lane + 1) * F.bits]),
                gain.b.eq(Mux(job.norm, self.gains[lane * LANE_BITS : lane * LANE_BITS + F.bits], F.one)),
                self.u[lane].eq(gain.y),
            ]
        return m
