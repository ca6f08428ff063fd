# SPDX-License-Identifier: Apache-2.0
"""exp2, sigmoid and SiLU: integer algorithms that rtl/functions.py repeats bit for bit, with bounds that hold for every input of a format.

All three are 2**f, or 1 / (1 + u), on one period by straight lines over ``SEGMENTS`` equal segments (values and slopes in integers, the line of a segment
lowered by half its largest deviation), and exponent arithmetic for the rest; so no input range is left out, however far from zero.

- exp2(x): x in fixed point, |x| < 256, ``ARGUMENT`` places, truncated; 2**x = 2**floor(x) * line(x - floor(x)), rounded to the format.
- sigmoid(x): u = 2**-(|x| * log2(e)), r = 1 / (1 + u); r for x >= 0, u * r below: the relative error stays as small for large negative x.
- silu(x): x * sigmoid(x), rounded once. silu(-inf) is -0, its limit.

Largest errors over all inputs, against float64, in units of the last place: see ``tests/test_functions.py``, which measures them.
"""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutra.hls_models.errors import ConfigError
from lutra.hls_models.floats import E8M11, FP32, FloatFormat

__all__ = [
    "ARGUMENT",
    "EXP2_TABLE",
    "FACTOR",
    "FUNCTION_LATENCY",
    "INTEGER",
    "LOG2E",
    "LOG2E_PLACES",
    "MAX_MANTISSA",
    "PRODUCT",
    "RECIPROCAL",
    "RECIPROCAL_TABLE",
    "SEGMENT_BITS",
    "check_format",
    "exp2",
    "sigmoid",
    "silu",
]

Bits = NDArray[np.uint32]
Ints = NDArray[np.int64]

# Clock cycles from input to output of the components in rtl/functions.py, which take the figures from here.
FUNCTION_LATENCY = {"exp2": 5, "sigmoid": 12, "silu": 12}

MAX_MANTISSA = 12
"""Formats with more stored bits would need finer tables."""

INTEGER = 8
"""Integer bits of a fixed-point argument; beyond, every format has over- or underflown."""
ARGUMENT = 20
"""Places of a fixed-point argument, and of a line's value."""
SEGMENT_BITS = 7
LOG2E_PLACES = 26
LOG2E = round(math.log2(math.e) * 2**LOG2E_PLACES)
FACTOR = 17
"""Places of 2**f where it is multiplied: 18 bits, one operand of a DSP block."""
PRODUCT = 22
"""Places that are kept of significand * 2**f."""
RECIPROCAL = 17
"""Places of 1 / (1 + u)."""


def check_format(F: FloatFormat) -> None:
    """Refuses a format that the tables are too coarse for."""
    if F.mantissa > MAX_MANTISSA:
        raise ConfigError(f"mantissa: functions are exact to {MAX_MANTISSA} stored bits, not {F.mantissa}; the nearest legal value is {MAX_MANTISSA}")


def _lines(function: Callable[[float], float], curvature: Callable[[float], float], lowest: float) -> Ints:
    """(segments, 2) values and rises of a convex function's lines over [0, 1], ``ARGUMENT`` places, values never below ``lowest`` at either end."""
    step = 2.0**-SEGMENT_BITS
    rows = []
    for i in range(1 << SEGMENT_BITS):
        left, right = function(i * step), function((i + 1) * step)
        lowered = min(curvature((i + 0.5) * step) * step**2 / 16, left - lowest, right - lowest)
        # The rise is truncated when it is added, half a place on average.
        rows.append((round((left - lowered) * 2**ARGUMENT + 0.5), round((right - left) * 2**ARGUMENT)))
    return np.array(rows, dtype=np.int64)


EXP2_TABLE = _lines(lambda f: 2.0**f, lambda f: math.log(2) ** 2 * 2.0**f, 1.0)
RECIPROCAL_TABLE = _lines(lambda u: 1 / (1 + u), lambda u: 2 / (1 + u) ** 3, 0.5)
EXP2_TABLE[0, 0] = 1 << ARGUMENT  # exp2(0) is 1


def _line(table: Ints, argument: Ints) -> Ints:
    """Value at ``argument`` (``ARGUMENT`` places, below 1), the rise truncated downwards."""
    rest = ARGUMENT - SEGMENT_BITS
    row = argument >> rest
    return table[row, 0] + ((table[row, 1] * (argument & ((1 << rest) - 1))) >> rest)


def _round(F: FloatFormat, sign: NDArray[np.bool_], exponent: Ints, significand: Ints, places: int) -> Bits:
    """Significands in [1, 2) with ``places`` places and their biased, unbounded exponents to bits of F; -> rtl ``round_pack``."""
    extra = places - F.mantissa
    up = (((significand >> extra) & 1) + (1 << (extra - 1)) - 1 + significand) >> extra
    magnitude = ((exponent - 1) << F.mantissa) + up
    magnitude = np.where(magnitude < F.min_normal, 0, np.minimum(magnitude, F.infinity))
    return (magnitude | np.where(sign, F.sign, 0)).astype(np.uint32)


def _split(F: FloatFormat, bits: ArrayLike) -> tuple[NDArray[np.bool_], Ints, Ints, Ints]:
    """(sign, unbiased exponent, significand with hidden one, magnitude bits); a zero's significand is 0."""
    x = np.asarray(bits, dtype=np.uint32).astype(np.int64)
    magnitude = x & F.magnitude
    significand = np.where(magnitude < F.min_normal, 0, magnitude & (F.min_normal - 1) | F.min_normal)
    return (x & F.sign) != 0, (magnitude >> F.mantissa) - F.bias, significand, magnitude


def exp2(bits: ArrayLike, F: FloatFormat = E8M11) -> Bits:
    """2**x of fp32 bits, as bits of F; exactly 1 at 0, 0 at -inf, inf at inf."""
    check_format(F)
    sign, exponent, significand, magnitude = _split(FP32, bits)
    # Highest exponent that fits: the leading one on the highest integer bit.
    distance = np.minimum(INTEGER - 1 - exponent, 63)
    fixed = (significand << (INTEGER - 1 + ARGUMENT - FP32.mantissa)) >> np.maximum(distance, 0)
    fixed = np.where(distance < 0, (1 << (INTEGER + ARGUMENT)) - 1, fixed)
    fixed = np.where(sign, -fixed, fixed)
    line = _line(EXP2_TABLE, fixed & ((1 << ARGUMENT) - 1))
    y = _round(F, np.zeros_like(sign), (fixed >> ARGUMENT) + F.bias, line, ARGUMENT)
    return np.where(magnitude > FP32.infinity, np.uint32(F.nan), y)


def _logistic(F: FloatFormat, bits: ArrayLike, times_x: bool) -> Bits:
    check_format(F)
    sign, exponent, significand, magnitude = _split(F, bits)
    # |x| * log2(e) < 4 * 2**exponent: with exponent INTEGER - 1 one bit above the integer bits.
    scaled = (significand * LOG2E) >> (F.mantissa + LOG2E_PLACES - (INTEGER - 1 + ARGUMENT))
    distance = np.minimum(INTEGER - 1 - exponent, 63)
    largest = (1 << (INTEGER + ARGUMENT)) - 1
    fixed = np.where((distance < 0) | (magnitude >= F.infinity), largest, np.minimum(scaled >> np.maximum(distance, 0), largest))
    power = (-fixed) >> ARGUMENT
    line = _line(EXP2_TABLE, (-fixed) & ((1 << ARGUMENT) - 1))
    u = np.minimum(line >> np.minimum(-power, 63), (1 << ARGUMENT) - 1)  # 1 itself, of the smallest |x|, is one place too large for the table
    reciprocal = _line(RECIPROCAL_TABLE, u) >> (ARGUMENT - RECIPROCAL)

    factor: Ints = np.where(sign, line >> (ARGUMENT - FACTOR), 1 << FACTOR)
    first: Ints = factor * (significand if times_x else 1 << F.mantissa)
    kept = F.mantissa + FACTOR - PRODUCT
    product = (first >> kept if kept > 0 else first << -kept) * reciprocal
    # 1/2 <= product < 4: bring the leading one to the highest place.
    places = PRODUCT + RECIPROCAL + 1
    shift = 2 - (product >> (places - 1) != 0).astype(np.int64) - (product >> places != 0)
    power = power * sign + (exponent if times_x else 0) + 1 - shift + F.bias
    y = _round(F, sign & times_x, power, product << shift, places)
    if times_x:
        y = np.where(magnitude < F.min_normal, np.where(sign, F.sign, 0), y)
        y = np.where(magnitude == F.infinity, np.where(sign, F.sign, F.infinity), y)
    return np.where(magnitude > F.infinity, F.nan, y).astype(np.uint32)


def sigmoid(F: FloatFormat, bits: ArrayLike) -> Bits:
    """1 / (1 + exp(-x)) of bits of F, as bits of F."""
    return _logistic(F, bits, False)


def silu(F: FloatFormat, bits: ArrayLike) -> Bits:
    """x * sigmoid(x) of bits of F, as bits of F, rounded once."""
    return _logistic(F, bits, True)
