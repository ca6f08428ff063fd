# SPDX-License-Identifier: Apache-2.0
"""Serial fp32 division and square root, one bit per clock, correctly rounded; golden values: ``div`` and ``sqrt`` of hls_models/floats.py."""

from amaranth.hdl import C, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.hls_models.floats import FLOAT_LATENCY, FP32
from lutra.rtl.float_parts import fields, round_pack, wire

__all__ = ["FloatDivSqrt"]

DIGITS = FP32.mantissa + 3  # hidden one, stored bits, a guard bit and one more because a quotient may start with a zero
FRACTION = DIGITS - 1


class FloatDivSqrt(wiring.Component):
    """a / b, or the square root of a where ``root`` is 1.

    One operation at a time. Operands accepted in cycle t: the result is valid from cycle t + ``latency``, whatever the operands; it waits until it is
    accepted, in cycle u, and operands are ready again from cycle u + 1.

    Both share one subtractor (Ercegovac and Lang, *Digital Arithmetic*, ch. 5 and 6, restoring form): with the remainder w scaled by 2 per step,
    digit j is one if w - trial >= 0, trial = divisor, or 2 * result + 2**-j for a root.

    Members
    -------
    operands : ``In(stream)``, payload ``{a: 32, b: 32, root: 1}``
    result : ``Out(stream)``, payload 32 bits
    """

    def __init__(self) -> None:
        self.latency = FLOAT_LATENCY["divsqrt"]
        payload = data.StructLayout({"a": FP32.bits, "b": FP32.bits, "root": 1})
        super().__init__({"operands": In(stream.Signature(payload)), "result": Out(stream.Signature(FP32.bits))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        root_in = self.operands.payload.root
        a, b = fields(m, FP32, self.operands.payload.a, "a"), fields(m, FP32, self.operands.payload.b, "b")

        # Fixed point with FRACTION places; the remainder stays below 8 (root: at most twice 2 * result + 2**-j), results below 2.
        remainder = Signal(FRACTION + 4, reset_less=True)
        divisor = Signal(FRACTION + 1, reset_less=True)
        result = Signal(FRACTION + 1, reset_less=True)
        digit = Signal(FRACTION + 1, reset_less=True)  # one-hot: 2**-j
        exponent = Signal(signed(FP32.exponent + 2), reset_less=True)
        root, sign, nan, inf, zero = (Signal(reset_less=True, name=name) for name in ("root", "sign", "nan", "inf", "zero"))

        trial = wire(m, Mux(root, Cat(digit, C(0, 1)) | Cat(C(0, 1), result), divisor), "trial")
        left = wire(m, remainder - trial, "left")
        fits = wire(m, left >= 0, "fits")

        small = wire(m, ~result[-1], "small")  # only a quotient can be below one
        significand = wire(m, Cat(remainder.any(), Mux(small, Cat(C(0, 1), result[:-1]), result)), "significand")
        rounded = round_pack(m, FP32, sign=sign, exponent=wire(m, exponent - small, "wide"), significand=significand, zero=zero, inf=inf, nan=nan, name="round")

        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += self.operands.ready.eq(1)
                odd = ~a.exponent[0]  # the bias is odd: an even exponent field is an odd exponent
                m.d.sync += [
                    root.eq(root_in),
                    divisor.eq(Cat(C(0, FRACTION - FP32.mantissa), b.significand)),
                    remainder.eq(Cat(C(0, FRACTION - FP32.mantissa), Mux(root_in & odd, Cat(C(0, 1), a.significand), a.significand))),
                    result.eq(0),
                    digit.eq(1 << FRACTION),
                    exponent.eq(Mux(root_in, (a.exponent + (FP32.bias - odd)) >> 1, a.exponent - b.exponent + FP32.bias)),
                    sign.eq(a.sign ^ (b.sign & ~root_in)),
                    nan.eq(a.nan | Mux(root_in, a.sign & ~a.zero, b.nan | (a.inf & b.inf) | (a.zero & b.zero))),
                    inf.eq(a.inf | (~root_in & b.zero)),
                    zero.eq(a.zero | (~root_in & b.inf)),
                ]
                with m.If(self.operands.valid):
                    m.next = "DIGITS"
            with m.State("DIGITS"):
                m.d.sync += [
                    remainder.eq(Cat(C(0, 1), Mux(fits, left[:-1], remainder))),
                    result.eq(result | Mux(fits, digit, 0)),
                    digit.eq(digit >> 1),
                ]
                with m.If(digit[0]):
                    m.next = "ROUND"
            with m.State("ROUND"):
                m.d.sync += self.result.payload.eq(rounded)
                m.next = "DONE"
            with m.State("DONE"):
                m.d.comb += self.result.valid.eq(1)
                with m.If(self.result.ready):
                    m.next = "IDLE"
        return m
