# SPDX-License-Identifier: Apache-2.0
"""DSP48E2 blocks of UltraScale+ in modes that synthesis does not infer; ``rtl/verilog/DSP48E2.v`` models these modes for simulation (AMD UG579)."""

from amaranth.hdl import C, Cat, ClockSignal, Instance, Module, Signal, Value, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

__all__ = ["Accumulator", "PairAdder", "PairDot", "QuadDot"]

PRODUCT = C(0b00_000_01_01, 9)
PRODUCT_AND_CASCADE = C(0b00_001_01_01, 9)


def _dsp(**pins: Value | int | str) -> Instance:
    """A block without resets, every register enabled; parameters by their names, pins as of an ``Instance``; registers are absent unless given."""
    registers = ("AREG", "BREG", "CREG", "DREG", "ADREG", "MREG", "PREG", "ACASCREG", "BCASCREG", "ALUMODEREG", "OPMODEREG", "CARRYINSELREG", "CARRYINREG")
    given = {**dict.fromkeys((*registers, "INMODEREG"), 0), **{name: value for name, value in pins.items() if name[:2] not in ("i_", "o_")}}
    fixed = {name: C(1, 1) for name in ("CEA1", "CEA2", "CEB1", "CEB2", "CEC", "CED", "CEAD", "CEM", "CEP", "CEALUMODE", "CECTRL", "CECARRYIN", "CEINMODE")}
    fixed |= {f"RST{name}": C(0, 1) for name in ("A", "B", "C", "D", "M", "P", "CTRL", "ALUMODE", "ALLCARRYIN", "INMODE")}
    fixed |= {"CLK": ClockSignal(), "CARRYINSEL": C(0, 3), "CARRYIN": C(0, 1)}
    wires = {f"i_{name}": value for name, value in fixed.items()} | {name: value for name, value in pins.items() if name[:2] in ("i_", "o_")}
    return Instance("DSP48E2", **{f"p_{name}": value for name, value in given.items()}, **wires)


def _product(**pins: Value | int | str) -> Instance:
    """A block in whose M register the product of A and B is; the rest as of ``_dsp``."""
    common = {"USE_SIMD": "ONE48", "USE_MULT": "MULTIPLY", "AMULTSEL": "A", "MREG": 1}
    idle = {"i_C": C(0, 48), "i_D": C(0, 27), "i_INMODE": C(0, 5), "i_ALUMODE": C(0, 4)}
    return _dsp(**{**common, **idle, **pins})


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
        m.submodules.dsp = _dsp(
            USE_SIMD="TWO24",
            USE_MULT="NONE",
            PREG=1,
            **dict.fromkeys(("AREG", "BREG", "CREG", "ACASCREG", "BCASCREG"), int(self.held)),
            i_A=b[18:],
            i_B=b[:18],
            i_C=a,
            i_D=C(0, 27),
            i_OPMODE=C(0b00_011_00_11, 9),  # Z = C, X = A:B
            i_ALUMODE=Cat(self.subtract, self.subtract, C(0, 2)),  # Z + X, or Z - X
            i_INMODE=C(0, 5),
            o_P=result,
        )
        for half in range(2):
            m.d.comb += getattr(self, f"y_{half}").eq(result[half * self.HALF :][: self.width + 1].as_signed())
        return m


class PairDot(wiring.Component):
    """a_0 * x_0 + a_1 * x_1 and b_0 * x_0 + b_1 * x_1 of signed bytes in two DSP48E2; latency 2.

    A factor holds b above a, SPACE bits apart, and so does the sum: ``y`` = sum of b * 2**SPACE + sum of a, whose lower part borrows from the upper one where
    it is negative (AMD WP486).

    Members
    -------
    x_0, x_1, a_0, a_1, b_0, b_1 : ``In(signed(8))``
    y : ``Out(signed(SPACE + 17))``
    """

    SPACE = 18

    def __init__(self) -> None:
        pins = {f"{name}_{i}": In(signed(8)) for name in "xab" for i in range(2)}
        super().__init__({**pins, "y": Out(signed(self.SPACE + 17))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        cascade, result = Signal(48), Signal(48)
        for i in range(2):
            x, low = Signal(signed(18), name=f"x{i}_wide"), Signal(signed(27), name=f"low{i}")
            high = Signal(signed(30), name=f"high{i}")
            m.d.comb += [x.eq(getattr(self, f"x_{i}")), low.eq(getattr(self, f"a_{i}")), high.eq(getattr(self, f"b_{i}") << self.SPACE)]
            m.submodules[f"dsp{i}"] = _product(
                AMULTSEL="AD",
                PREG=i,
                i_A=high,
                i_B=x,
                i_D=low,
                i_INMODE=C(0b00100, 5),  # A + D
                i_OPMODE=PRODUCT_AND_CASCADE if i else PRODUCT,
                **({"i_PCIN": cascade, "o_P": result} if i else {"o_PCOUT": cascade}),
            )
        m.d.comb += self.y.eq(result[: len(self.y)].as_signed())
        return m


class QuadDot(wiring.Component):
    """a_0 * b_0 + … + a_3 * b_3 of signed bytes in a cascade of four DSP48E2; latency 3: the second pair's operands wait a clock in their blocks, where the
    first pair's sum then meets them.

    Members
    -------
    a, b : ``In``, four bytes, lowest first
    y : ``Out(signed(18))``
    """

    def __init__(self) -> None:
        super().__init__({"a": In(32), "b": In(32), "y": Out(signed(18))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        cascades, result = [Signal(48, name=f"cascade{i}") for i in range(3)], Signal(48)
        for i in range(4):
            operands = {}
            for name, port in (("A", Signal(signed(30), name=f"a{i}_wide")), ("B", Signal(signed(18), name=f"b{i}_wide"))):
                m.d.comb += port.eq(getattr(self, name.lower()).word_select(i, 8).as_signed())
                operands[f"i_{name}"] = port
            m.submodules[f"dsp{i}"] = _product(
                **dict.fromkeys(("AREG", "BREG", "ACASCREG", "BCASCREG"), int(i > 1)),
                PREG=i % 2,
                i_OPMODE=PRODUCT_AND_CASCADE if i else PRODUCT,
                **operands,
                **({"i_PCIN": cascades[i - 1]} if i else {}),
                **({"o_PCOUT": cascades[i]} if i < 3 else {"o_P": result}),
            )
        m.d.comb += self.y.eq(result[:18].as_signed())
        return m


class Accumulator(wiring.Component):
    """Sum of products a * b in one DSP48E2: a product is in a register a clock after its factors, and added where ``enable`` is 1 in that clock, to
    what was added before where ``more`` is. ``y`` follows a clock later and stays.

    Parameters
    ----------
    width : int
        Bits of the sum, at most 48.

    Members
    -------
    a : ``In(8)``, unsigned; b : ``In(signed(8))``; enable, more : ``In(1)``
    y : ``Out(signed(width))``
    """

    def __init__(self, *, width: int) -> None:
        if width > 48:
            raise ValueError(f"width must be at most 48, not {width}; nearest: 48")
        super().__init__({"a": In(8), "b": In(signed(8)), "enable": In(1), "more": In(1), "y": Out(signed(width))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        b, result = Signal(signed(18)), Signal(48)
        m.submodules.dsp = _product(
            PREG=1,
            i_A=Cat(self.a, C(0, 22)),
            i_B=b,
            i_CEP=self.enable,
            i_OPMODE=Cat(C(0b0101, 4), C(0, 1), self.more, C(0, 3)),  # the product, and P
            o_P=result,
        )
        m.d.comb += [b.eq(self.b), self.y.eq(result[: len(self.y)].as_signed())]
        return m
