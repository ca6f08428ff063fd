# SPDX-License-Identifier: Apache-2.0
"""Statistics of the VECTOR unit: the largest magnitude of every group, and the mean square of every row."""

from amaranth import Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from lutra.hls_models.floats import FP32
from lutra.hls_models.ternary.vector import VectorConfig
from lutra.rtl.float_parts import register
from lutra.rtl.floats import FloatAdd, FloatMul
from lutra.rtl.ternary.vector_datapath import delay, place_layout

__all__ = ["Maxima", "MeanSquares"]


class Maxima(wiring.Component):
    """Largest magnitude pattern of u per token and group.

    A beat of u at t is in the memory from t + ``latencies.maximum``; the one that ends the instruction raises ``measured`` a clock before that.

    Members
    -------
    u_valid, u, place : of a beat of u
    row : address of the read port while no beats come; ``a``, pattern of F without its sign, one clock later
    """

    def __init__(self, config: VectorConfig) -> None:
        self._config = config
        F = config.format
        super().__init__(
            {
                "u_valid": In(1),
                "u": In(data.ArrayLayout(F.bits, config.lanes)),
                "place": In(place_layout(config)),
                "measured": Out(1),
                "row": In(range(config.max_tokens * config.max_groups)),
                "a": Out(F.bits - 1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, F = self._config, self._config.format
        level: list[Value] = [self.u[lane][: F.bits - 1] for lane in range(config.lanes)]
        for depth in range(config.levels):
            pairs = [Mux(a > b, a, b) for a, b in zip(level[0::2], level[1::2], strict=False)]
            level = [register(m, value, f"largest_{depth}_{i}") for i, value in enumerate(pairs + level[2 * len(pairs) :])]
        place_type = self.place.shape()
        early = data.View(place_type, register(m, self.place.as_value(), "place_early", config.levels - 1))
        early_valid = delay(m, self.u_valid, config.levels - 1, "early_valid")
        place = data.View(place_type, register(m, early.as_value(), "place_late"))
        valid = delay(m, early_valid, 1, "late_valid")

        m.submodules.maxima = maxima = Memory(shape=F.bits - 1, depth=config.max_tokens * config.max_groups, init=[])
        write = maxima.write_port()
        read = maxima.read_port(transparent_for=(write,))  # the next beat mostly belongs to the same group
        before = Mux(place.group_first, 0, read.data)
        m.d.comb += [
            read.addr.eq(Mux(early_valid, early.group_row, self.row)),
            self.a.eq(read.data),
            write.en.eq(valid),
            write.addr.eq(place.group_row),
            write.data.eq(Mux(level[0] > before, level[0], before)),
            self.measured.eq(valid & place.end),
        ]
        return m


class MeanSquares(wiring.Component):
    """sum z^2 * reciprocal + eps of every row, in fp32.

    One adder sums the beats' squares into partial sums, which lie in two banks (even and odd), then the partial sums level by level, in place, and adds
    eps. The first result stands ``latencies.summed + 1 + latencies.reduce`` clocks after the last beat of z, the next ``1 + latencies.reduce`` after the
    handshake of the one before.

    Members
    -------
    z_valid, z, place : of a beat of z
    enable : rows are wanted; last_beat, tokens, reciprocal, eps : stable from the last beat of z on
    variance : ``Out(stream)``, a row each, in order
    """

    def __init__(self, config: VectorConfig) -> None:
        self._config = config
        super().__init__(
            {
                "z_valid": In(1),
                "z": In(data.ArrayLayout(config.format.bits, config.lanes)),
                "place": In(place_layout(config)),
                "enable": In(1),
                "tokens": In(8),
                "last_beat": In(range(config.max_columns // config.lanes)),
                "reciprocal": In(FP32.bits),
                "eps": In(FP32.bits),
                "variance": Out(stream.Signature(FP32.bits)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config, F = self._config, self._config.format
        squares: list[Value] = []
        for lane in range(config.lanes):
            m.submodules[f"square_{lane}"] = square = FloatMul(a_format=F, b_format=F, format=FP32)
            m.d.comb += [square.a.eq(self.z[lane]), square.b.eq(self.z[lane])]
            squares.append(square.y)
        cycles = square.latency
        for depth in range(config.levels):
            following: list[Value] = []
            for i in range(0, len(squares) - 1, 2):
                m.submodules[f"tree_{depth}_{i}"] = tree = FloatAdd(format=FP32)
                m.d.comb += [tree.a.eq(squares[i]), tree.b.eq(squares[i + 1])]
                following.append(tree.y)
            if len(squares) % 2:
                following.append(register(m, squares[-1], f"passes_{depth}", tree.latency))
            squares, cycles = following, cycles + tree.latency

        m.submodules.adder = adder = FloatAdd(format=FP32)
        m.submodules.mean = mean = FloatMul(a_format=FP32, b_format=FP32, format=FP32)
        row_bits = (config.partials // 2 - 1).bit_length()
        rows = config.max_tokens << row_bits
        banks = [Memory(shape=FP32.bits, depth=rows, init=[]) for _ in range(2)]
        m.submodules.even, m.submodules.odd = banks
        writes, reads = [bank.write_port() for bank in banks], [bank.read_port() for bank in banks]

        # Beats: read a clock before the sum arrives, write when the adder is through.
        place_type = self.place.shape()
        early = data.View(place_type, register(m, self.place.as_value(), "place_early", cycles - 1))
        place = data.View(place_type, register(m, early.as_value(), "place"))
        written = data.View(place_type, register(m, place.as_value(), "place_written", adder.latency))
        write_valid = delay(m, self.z_valid, cycles + adder.latency, "write_valid")

        # Levels: pairs (2i, 2i + 1) are row i of both banks; their sum takes place i of the next level.
        reading, final = Signal(), Signal()
        token = Signal(range(config.max_tokens))
        index, last_index = Signal(row_bits), Signal(row_bits)
        issued = delay(m, reading, 1, "issued")
        summed = delay(m, issued, adder.latency, "summed")
        place_of_sum = register(m, index, "place_of_sum", 1 + adder.latency)
        level_ends = delay(m, reading & (index == last_index), 1 + adder.latency, "level_ends")
        add_eps = delay(m, level_ends & final, mean.latency, "add_eps")
        complete = delay(m, add_eps, adder.latency, "complete")
        first_level = last_index == config.partials // 2 - 1
        beyond = [first_level & (Cat(Const(odd, 1), index) > self.last_beat) for odd in range(2)]
        untouched = register(m, beyond[0], "untouched")
        # The second operand comes from either bank; from which is known a clock before, so that a look-up table chooses.
        wanted = ~early.partial_first
        chosen = [
            register(m, ~reading & wanted & ~early.partial[0], "even_second"),
            register(m, Mux(reading, ~beyond[1], wanted & early.partial[0]), "odd_second"),
        ]
        stored = [read.data & one.replicate(FP32.bits) for read, one in zip(reads, chosen, strict=True)]
        m.d.comb += [
            mean.a.eq(adder.y),
            mean.b.eq(self.reciprocal),
            adder.a.eq(Mux(add_eps, mean.y, Mux(issued, Mux(untouched, 0, reads[0].data), squares[0]))),
            adder.b.eq(Mux(add_eps, self.eps, stored[0] | stored[1])),
        ]
        for odd in range(2):
            m.d.comb += [
                reads[odd].addr.eq(Mux(reading, Cat(index, token), Cat(early.partial[1:], early.token))),
                writes[odd].data.eq(adder.y),
                writes[odd].addr.eq(Mux(summed, Cat(place_of_sum[1:], Const(0, 1), token), Cat(written.partial[1:], written.token))),
                writes[odd].en.eq(Mux(summed, place_of_sum[0] == odd, write_valid & (written.partial[0] == odd))),
            ]

        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += [token.eq(0), index.eq(0), last_index.eq(config.partials // 2 - 1), final.eq(0)]
                with m.If(write_valid & written.end & self.enable):
                    m.next = "READ"
            with m.State("READ"):
                m.d.comb += reading.eq(1)
                m.d.sync += index.eq(index + 1)
                with m.If(index == last_index):
                    m.next = "WAIT"
            with m.State("WAIT"):
                m.d.sync += index.eq(0)
                with m.If(level_ends & ~final):
                    m.d.sync += [last_index.eq(last_index >> 1), final.eq(last_index == 1)]
                    m.next = "READ"
                with m.If(complete):
                    m.d.sync += self.variance.payload.eq(adder.y)
                    m.next = "HOLD"
            with m.State("HOLD"):
                m.d.comb += self.variance.valid.eq(1)
                m.d.sync += [last_index.eq(config.partials // 2 - 1), final.eq(0)]
                with m.If(self.variance.ready):
                    m.d.sync += token.eq(token + 1)
                    m.next = "READ"
                    with m.If(token == self.tokens - 1):
                        m.next = "IDLE"
        return m
