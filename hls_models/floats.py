# SPDX-License-Identifier: Apache-2.0
"""Floating-point formats as raw bit patterns: exact, vectorised golden arithmetic (docs/architecture.md §2.2).

IEEE layout, round to nearest even, one quiet NaN. Subnormal inputs are zeros of the same sign; a result is rounded as if the exponent had no lower
bound and is then a zero of the same sign if it is below the smallest normal number; overflow is infinity.

Arrays are ``uint32`` bit patterns of any shape, broadcast like numpy's own operators. Every operation is one float64 operation followed by one
rounding. That is the correctly rounded result: products of two significands of at most 24 bits are exact in float64, and for sums, quotients and
roots 53 >= 2 * 24 + 2 bits make the second rounding harmless (Figueroa, "When is double rounding innocuous?", SIGNUM 1995).
"""

from functools import cached_property
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass

__all__ = [
    "BF16",
    "E8M11",
    "FLOAT_LATENCY",
    "FP16",
    "FP32",
    "FloatFormat",
    "add",
    "convert",
    "div",
    "from_float64",
    "from_int",
    "greater",
    "mul",
    "neg",
    "partial_sum",
    "saturate",
    "sqrt",
    "sub",
    "to_float64",
    "to_int",
    "tree_sum",
]

Bits = NDArray[np.uint32]

# Clock cycles from input to output of the components in rtl/floats.py, which take the figures from here. divsqrt: handshake to first valid cycle.
FLOAT_LATENCY = {"add": 4, "mul": 3, "from_int": 3, "to_int": 2, "convert": 1, "divsqrt": 28}


@dataclass(frozen=True)
class FloatFormat:
    """A binary floating-point format: one sign bit, ``exponent`` bits, ``mantissa`` stored bits; at most fp32 in both."""

    exponent: Annotated[int, Field(ge=2, le=8)]
    mantissa: Annotated[int, Field(ge=1, le=23)]

    @cached_property
    def bits(self) -> int:
        """Stored width."""
        return 1 + self.exponent + self.mantissa

    @cached_property
    def bias(self) -> int:
        return (1 << (self.exponent - 1)) - 1

    @cached_property
    def mask(self) -> int:
        """All stored bits."""
        return (1 << self.bits) - 1

    @cached_property
    def sign(self) -> int:
        """The sign bit; also the pattern of -0."""
        return 1 << (self.bits - 1)

    @cached_property
    def magnitude(self) -> int:
        """Every bit but the sign."""
        return self.sign - 1

    @cached_property
    def infinity(self) -> int:
        return ((1 << self.exponent) - 1) << self.mantissa

    @cached_property
    def nan(self) -> int:
        return self.infinity | 1 << (self.mantissa - 1)

    @cached_property
    def min_normal(self) -> int:
        return 1 << self.mantissa

    @cached_property
    def max_finite(self) -> int:
        return self.infinity - 1

    @cached_property
    def one(self) -> int:
        return self.bias << self.mantissa

    def __str__(self) -> str:
        return f"e{self.exponent}m{self.mantissa}"


FP32 = FloatFormat(8, 23)
BF16 = FloatFormat(8, 7)
FP16 = FloatFormat(5, 10)
E8M11 = FloatFormat(8, 11)


def _finish(F: FloatFormat, magnitude: Any, sign: Any, nan: Any) -> Bits:
    """Limit rounded magnitudes (an integer ``exponent, mantissa`` with unbounded exponent) to the format and join them with their signs."""
    limited = np.where(magnitude < F.min_normal, 0, np.minimum(magnitude, F.infinity))
    return np.where(nan, F.nan, limited | sign).astype(np.uint32)


def to_float64(F: FloatFormat, bits: ArrayLike) -> NDArray[np.float64]:
    """Exact values; subnormal patterns are signed zeros, every NaN pattern is a NaN."""
    x = np.asarray(bits, dtype=np.uint32)
    magnitude = x & np.uint32(F.magnitude)
    if F.exponent == 8:  # a prefix of fp32: the layout needs no arithmetic
        prefix = np.where(magnitude < F.min_normal, x & np.uint32(F.sign), x) << np.uint32(23 - F.mantissa)
        with np.errstate(invalid="ignore"):
            return np.asarray(prefix, dtype=np.uint32).view(np.float32).astype(np.float64)
    special = magnitude >= F.infinity
    rebias = np.where(special, 2047 - (1 << F.exponent) + 1, 1023 - F.bias).astype(np.uint64) << np.uint64(52)
    wide = (magnitude.astype(np.uint64) << np.uint64(52 - F.mantissa)) + rebias
    wide = np.where(magnitude < F.min_normal, np.uint64(0), wide) | np.where(magnitude > F.infinity, np.uint64(1 << 51), np.uint64(0))  # quiet
    sign = (x & np.uint32(F.sign)).astype(np.uint64) << np.uint64(64 - F.bits)
    return np.asarray(wide | sign, dtype=np.uint64).view(np.float64)


def from_float64(F: FloatFormat, x: ArrayLike) -> Bits:
    """Round float64 values to F: nearest even, subnormal results to signed zero, overflow to infinity, one NaN."""
    value = np.atleast_1d(np.asarray(x, dtype=np.float64))
    raw = value.view(np.int64)
    shift = 52 - F.mantissa
    rounded = raw >> shift  # sign and magnitude: the carry of a rounding runs into the exponent and never reaches the sign, NaNs apart
    rounded &= 1
    rounded += (1 << (shift - 1)) - 1
    rounded += raw
    if F.exponent == 8:  # what is left fits fp32, of which the format is a prefix
        rounded &= -(1 << shift)
        with np.errstate(over="ignore", invalid="ignore"):
            bits = rounded.view(np.float64).astype(np.float32).view(np.uint32)
        bits >>= np.uint32(23 - F.mantissa)
        small = np.abs(value) < 2.0**-126 * (1 - 2.0 ** -(F.mantissa + 2))
        if small.any():
            bits = np.where(small, bits & np.uint32(F.sign), bits)
        nan = np.isnan(value)
        if nan.any():
            bits[nan] = F.nan
    else:
        magnitude = ((rounded & ((1 << 63) - 1)) >> shift) - ((1023 - F.bias) << F.mantissa)
        bits = _finish(F, magnitude, np.where(raw < 0, F.sign, 0), np.isnan(value))
    return bits.reshape(np.shape(x))


def saturate(F: FloatFormat, bits: ArrayLike) -> Bits:
    """The largest finite number of the same sign instead of an infinity."""
    x = np.asarray(bits, dtype=np.uint32)
    return np.where((x & np.uint32(F.magnitude)) == F.infinity, x - np.uint32(1), x).astype(np.uint32)


def convert(Fin: FloatFormat, Fout: FloatFormat, bits: ArrayLike) -> Bits:
    """Round from one format to another; ``Fin == Fout`` flushes subnormals and unifies NaNs."""
    if Fin.exponent != Fout.exponent or Fin.mantissa < Fout.mantissa:
        return from_float64(Fout, to_float64(Fin, bits))
    x = np.asarray(bits, dtype=np.uint32)
    shift = Fin.mantissa - Fout.mantissa
    magnitude = x & np.uint32(Fin.magnitude)
    rounded = magnitude
    if shift:  # no pattern is above 2**31, so the addition cannot wrap
        rounded = (magnitude + (((magnitude >> np.uint32(shift)) & np.uint32(1)) + np.uint32((1 << (shift - 1)) - 1))) >> np.uint32(shift)
    rounded = np.where(magnitude < Fin.min_normal, np.uint32(0), rounded)
    sign = (x >> np.uint32(shift)) & np.uint32(Fout.sign)
    return _finish(Fout, rounded, sign, magnitude > Fin.infinity)


def neg(F: FloatFormat, a: ArrayLike) -> Bits:
    """-a: the sign flips (the NaN stays, subnormals are flushed)."""
    return convert(F, F, np.asarray(a, dtype=np.uint32) ^ np.uint32(F.sign))


def add(F: FloatFormat, a: ArrayLike, b: ArrayLike) -> Bits:
    """a + b rounded once. x - x is +0, (-0) + (-0) is -0, inf - inf is NaN."""
    with np.errstate(invalid="ignore"):
        return from_float64(F, to_float64(F, a) + to_float64(F, b))


def sub(F: FloatFormat, a: ArrayLike, b: ArrayLike) -> Bits:
    """a - b rounded once."""
    with np.errstate(invalid="ignore"):
        return from_float64(F, to_float64(F, a) - to_float64(F, b))


def mul(Fa: FloatFormat, a: ArrayLike, Fb: FloatFormat, b: ArrayLike, Fout: FloatFormat) -> Bits:
    """The exact product rounded once to Fout; 0 * inf is NaN."""
    with np.errstate(invalid="ignore"):
        return from_float64(Fout, to_float64(Fa, a) * to_float64(Fb, b))


def div(F: FloatFormat, a: ArrayLike, b: ArrayLike) -> Bits:
    """a / b rounded once; x / 0 is a signed infinity, 0 / 0 and inf / inf are NaN."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return from_float64(F, to_float64(F, a) / to_float64(F, b))


def sqrt(F: FloatFormat, a: ArrayLike) -> Bits:
    """Square root rounded once; of -0 it is -0, of anything below NaN."""
    with np.errstate(invalid="ignore"):
        return from_float64(F, np.sqrt(to_float64(F, a)))


def from_int(F: FloatFormat, ints: ArrayLike) -> Bits:
    """Round integers of at most 53 bits to F; 0 is +0."""
    return from_float64(F, np.asarray(ints, dtype=np.int64).astype(np.float64))


def to_int(F: FloatFormat, bits: ArrayLike, low: int, high: int) -> NDArray[np.int64]:
    """Nearest integers (half to even), clamped to low … high (low <= 0 <= high); NaN gives 0."""
    value = to_float64(F, bits)
    return np.where(np.isnan(value), 0.0, np.clip(np.rint(value), low, high)).astype(np.int64)


def greater(F: FloatFormat, a: ArrayLike, b: ArrayLike) -> NDArray[np.bool_]:
    """a > b as reals: -0 == +0, NaN is never greater and nothing is greater than NaN."""
    return np.asarray(to_float64(F, a) > to_float64(F, b))


def tree_sum(F: FloatFormat, bits: ArrayLike, axis: int = -1) -> Bits:
    """Balanced tree along ``axis``: ((x0 + x1) + (x2 + x3)) …; the odd element of a level passes through. The axis must not be empty."""
    level = np.moveaxis(np.asarray(bits, dtype=np.uint32), axis, -1)
    while (n := level.shape[-1]) > 1:
        even = n - n % 2
        sums = add(F, level[..., 0:even:2], level[..., 1:even:2])
        level = np.concatenate([sums, level[..., even:]], axis=-1)
    return level[..., 0]


def partial_sum(F: FloatFormat, bits: ArrayLike, partials: int, axis: int = -1) -> Bits:
    """Element i along ``axis`` is added to partial sum i % partials (all start from +0), in order; then ``tree_sum`` over all partial sums.

    This is what one adder of latency ``partials`` does with an element per clock.
    """
    x = np.moveaxis(np.asarray(bits, dtype=np.uint32), axis, -1)
    sums = np.zeros((*x.shape[:-1], partials), dtype=np.uint32)
    for start in range(0, x.shape[-1], partials):
        chunk = x[..., start : start + partials]
        sums[..., : chunk.shape[-1]] = add(F, sums[..., : chunk.shape[-1]], chunk)
    return tree_sum(F, sums)
