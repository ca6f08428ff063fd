# SPDX-License-Identifier: Apache-2.0
"""Reduction trees of the lookup array: a column's table values, added up for every token lane."""

from amaranth.hdl import C, Cat, ClockSignal, Instance, Module, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.ternary.tlmm import TlmmConfig

__all__ = ["ColumnSums", "PairAdder"]


class PairAdder(wiring.Component):
    """Two sums of up to 24 bits in one DSP48E2 (USE_SIMD TWO24): a + b, or both a - b where ``subtract`` is 1, in the register P; latency 1.

    With ``held`` the operands are registered in the block too; ``subtract`` belongs to the operands as they leave these registers.

    Parameters
    ----------
    width : int
        Bits of the operands, at most 23.
    held : bool

    Members
    -------
    a_0, a_1, b_0, b_1 : ``In(signed(width))``; y_0, y_1 : ``Out(signed(width + 1))``
    subtract : ``In(1)``
    """

    HALF = 24

    def __init__(self, *, width: int, held: bool) -> None:
        if width >= self.HALF:
            raise ValueError(f"width must be below {self.HALF}, not {width}")
        self.width, self.held = width, held
        operands = {f"{name}_{half}": In(signed(width)) for name in "ab" for half in range(2)}
        super().__init__({**operands, "subtract": In(1), **{f"y_{half}": Out(signed(width + 1)) for half in range(2)}})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        a, b = (Signal(2 * self.HALF, name=name) for name in "ab")
        for name, operand in (("a", a), ("b", b)):
            halves = [Signal(signed(self.HALF), name=f"{name}{half}_wide") for half in range(2)]
            m.d.comb += [wide.eq(getattr(self, f"{name}_{half}")) for half, wide in enumerate(halves)]
            m.d.comb += operand.eq(Cat(halves))
        result = Signal(2 * self.HALF)
        held = int(self.held)
        m.submodules.dsp = Instance(
            "DSP48E2",
            p_USE_SIMD="TWO24",
            p_USE_MULT="NONE",
            p_AREG=held,
            p_BREG=held,
            p_CREG=held,
            p_ACASCREG=held,
            p_BCASCREG=held,
            p_MREG=0,
            p_ALUMODEREG=0,
            p_OPMODEREG=0,
            p_CARRYINSELREG=0,
            p_CARRYINREG=0,
            p_INMODEREG=0,
            p_ADREG=0,
            p_DREG=0,
            p_PREG=1,
            i_CLK=ClockSignal(),
            i_A=b[18:],
            i_B=b[:18],
            i_C=a,
            i_D=C(0, 27),
            i_OPMODE=C(0b00_011_00_11, 9),  # Z = C, X = A:B
            i_ALUMODE=Cat(self.subtract, self.subtract, C(0, 2)),  # Z + X, or Z - X
            i_INMODE=C(0, 5),
            i_CARRYINSEL=C(0, 3),
            i_CARRYIN=C(0, 1),
            **{f"i_{name}": C(1, 1) for name in ("CEA1", "CEA2", "CEB1", "CEB2", "CEC", "CEP")},
            **{f"i_{name}": C(0, 1) for name in ("CEAD", "CED", "CEM", "CEALUMODE", "CECTRL", "CECARRYIN", "CEINMODE")},
            **{f"i_RST{name}": C(0, 1) for name in ("A", "B", "C", "D", "P", "M", "CTRL", "ALUMODE", "ALLCARRYIN", "INMODE")},
            o_P=result,
        )
        for half in range(2):
            m.d.comb += getattr(self, f"y_{half}").eq(result[half * self.HALF :][: self.width + 1].as_signed())
        return m


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
            alike = [_register(m, signs[2 * i] == signs[2 * i + 1], f"alike_{level}_{i}") for i in range(pairs)]
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
                lanes = self._blocks(m, lanes, alike, level)
            else:
                lanes = [[self._node(values[2 * i], values[2 * i + 1], alike[i]) for i in range(pairs)] for values in lanes]
            lanes = [values + left for values, left in zip(lanes, rest, strict=True)]
            signs, nodes, level = signs[::2], pairs, level + 1
        roots = [values[0] for values in lanes]
        if config.half_tables:
            totals = [_add_or_subtract(C(0, 1), root, ~signs[0]) for root in roots]
            roots = [_register(m, total, f"total{lane}") for lane, total in enumerate(totals)]
        m.d.comb += self.sums.eq(Cat(root.as_signed()[: config.sum_bits] for root in roots))
        return m

    def _node(self, a: Value, b: Value, alike: Value) -> Value:
        return _add_or_subtract(a, b, alike) if self.config.half_tables else a + b

    def _blocks(self, m: Module, lanes: list[list[Value]], alike: list[Signal], level: int) -> list[list[Value]]:
        """The nodes of a level, two lanes to a block; the second half of the last one is idle where M is odd."""
        out: list[list[Value]] = [[] for _ in lanes]
        width = max(len(value) for value in lanes[0])
        for first in range(0, len(lanes), 2):
            for i, add in enumerate(alike):
                m.submodules[f"block{first}_{level}_{i}"] = block = PairAdder(width=width, held=level == 1)
                m.d.comb += block.subtract.eq(~add & self.config.half_tables)
                for half, lane in enumerate(range(first, min(first + 2, len(lanes)))):
                    m.d.comb += [getattr(block, f"a_{half}").eq(lanes[lane][2 * i]), getattr(block, f"b_{half}").eq(lanes[lane][2 * i + 1])]
                    out[lane].append(getattr(block, f"y_{half}"))
        return out


def _add_or_subtract(a: Value, b: Value, add: Value) -> Value:
    """a + b where ``add`` is 1, else a - b: as a - (b ^ add) - add, with an extra lowest bit that borrows.

    A difference, because synthesis keeps its operands in order: ``a`` then reaches the carry chain as it is, and a bit takes one look-up table.
    """
    total = Cat(C(0, 1), a).as_signed() - Cat(add, b.as_unsigned() ^ add.replicate(len(b))).as_signed()
    return total[1:].as_signed()


def _register(m: Module, value: Value, name: str) -> Signal:
    register = Signal(value.shape(), name=name, reset_less=True)
    m.d.sync += register.eq(value)
    return register
