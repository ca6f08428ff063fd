# SPDX-License-Identifier: Apache-2.0
"""Reduction trees of the lookup array: a column's table values, added up for every token lane."""

from amaranth.hdl import C, Cat, Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.tlmm import TlmmConfig
from lutra.rtl.ternary.dsp import PairAdder

__all__ = ["ColumnSums"]


class ColumnSums(wiring.Component):
    """Sums over T table values for M lanes, registered at the leaves and at every level: latency 1 + ceil(log2 T), and 1 for the sign with half tables.

    Half tables have signs, which all lanes share. A node adds its second operand where both signs are equal and subtracts it where they differ, and hands on
    the first one's sign; the last register holds the sum, or its negative where the sign of the first leaf says so. No value is ever negated by itself.

    With ``tree: dsp`` the levels above the leaves' pairs are DSP blocks, each the nodes of two lanes, which share the signs.

    Parameters
    ----------
    config : TlmmConfig

    Members
    -------
    values : ``In``, T * M * value_bits, position t * M + lane
    signs : ``In(T)``, 0 with full tables
    sums : ``Out``, M * sum_bits
    """

    def __init__(self, *, config: TlmmConfig) -> None:
        self.config = config
        T, M = config.tables, config.lanes
        super().__init__({"values": In(T * M * config.value_bits), "signs": In(T), "sums": Out(M * config.sum_bits)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        config = self.config
        T, M, bits = config.tables, config.lanes, config.value_bits
        lanes = [[self.values[(t * M + lane) * bits : (t * M + lane + 1) * bits].as_signed() for t in range(T)] for lane in range(M)]
        signs = [self.signs[t] for t in range(T)]
        level = nodes = 0
        while True:
            pairs, blocks = len(signs) // 2, config.tree == "dsp" and level > 0
            # Whether the nodes above add or subtract is known with the operands' registers.
            differ = [_register(m, signs[2 * i] != signs[2 * i + 1], f"differ_{level}_{i}") for i in range(pairs)]
            signs = [_register(m, sign, f"sign_{level}_{i}") for i, sign in enumerate(signs)]
            for lane, values in enumerate(lanes):
                for i, value in enumerate(values):
                    # The blocks above level 1 register its sums, and their own.
                    kept = blocks and i < (2 * pairs if level == 1 else nodes)
                    values[i] = value if kept else _register(m, value, f"sum{lane}_{level}_{i}")
            if not pairs:
                break
            rest = [values[2 * pairs :] for values in lanes]
            if blocks:
                lanes = self._blocks(m, lanes, differ, level)
            else:
                lanes = [[self._node(values[2 * i], values[2 * i + 1], differ[i]) for i in range(pairs)] for values in lanes]
            lanes = [values + left for values, left in zip(lanes, rest, strict=True)]
            signs, nodes, level = signs[::2], pairs, level + 1
        roots = [values[0] for values in lanes]
        if config.half_tables:
            totals = [_add_or_subtract(C(0, 1), root, signs[0]) for root in roots]
            roots = [_register(m, total, f"total{lane}") for lane, total in enumerate(totals)]
        m.d.comb += self.sums.eq(Cat(root.as_signed()[: config.sum_bits] for root in roots))
        return m

    def _node(self, a: Value, b: Value, differ: Value) -> Value:
        return _add_or_subtract(a, b, differ) if self.config.half_tables else a + b

    def _blocks(self, m: Module, lanes: list[list[Value]], differ: list[Signal], level: int) -> list[list[Value]]:
        """The nodes of a level, two lanes to a block; the second half of the last one is idle where M is odd."""
        out: list[list[Value]] = [[] for _ in lanes]
        width = max(len(value) for value in lanes[0])
        for first in range(0, len(lanes), 2):
            for i, subtract in enumerate(differ):
                m.submodules[f"block{first}_{level}_{i}"] = block = PairAdder(width=width, held=level == 1)
                m.d.comb += block.subtract.eq(subtract & self.config.half_tables)
                for half, lane in enumerate(range(first, min(first + 2, len(lanes)))):
                    m.d.comb += [getattr(block, f"a_{half}").eq(lanes[lane][2 * i]), getattr(block, f"b_{half}").eq(lanes[lane][2 * i + 1])]
                    out[lane].append(getattr(block, f"y_{half}"))
        return out


def _add_or_subtract(a: Value, b: Value, subtract: Value) -> Value:
    """a - b where ``subtract`` is 1, else a + b: as a - (b ^ add) - add with add = ~subtract, which an extra lowest bit borrows.

    A difference, because synthesis keeps its operands in order: ``a`` then reaches the carry chain as it is, and a bit takes one look-up table, in which the
    inversions vanish.
    """
    add = ~subtract
    total = Cat(C(0, 1), a).as_signed() - Cat(add, b.as_unsigned() ^ add.replicate(len(b))).as_signed()
    return total[1:].as_signed()


def _register(m: Module, value: Value, name: str) -> Signal:
    register = Signal(value.shape(), name=name, reset_less=True)
    m.d.sync += register.eq(value)
    return register
