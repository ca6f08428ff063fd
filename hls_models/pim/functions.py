# SPDX-License-Identifier: Apache-2.0
"""Functions of the companion chip on fp32: every step is one fp32 sum or product, or an integer operation on the bits (architecture.md, 4.5).

``lutra.rtl.pim.functions`` repeats them bit for bit. ``family`` picks the coefficients (coefficients.py).

- exp2(x): n = x rounded to an integer (halves away from zero: half a unit added to the significand, the rest cleared), f = x - n, exact;
  p = ((c3 f + c2) f + c1) f + 1; n is added to p's exponent. 1 at 0; below the smallest normal number 0, above the largest infinity.
- reciprocal(x): r = magic - bits of |x|; twice r = r (k - |x| r); x's sign. Of a zero a signed infinity, from 2**125 on a signed zero.
- rsqrt(x): r = magic - bits of x / 2; twice r = r (k - (x r) r) / 2. Of a zero +inf, of inf +0, below 0 NaN.
- gelu(x) = x / (1 + 2**(x h(x**2))): the tanh form (GPT-2's gelu_new) is h(s) = c0 + c1 s exactly; the erf form has c0 + c1 s + c2 s**2 from a table with
  an interval of s per row. From |x| = 16 on it is x or -0, and -0 where 2**(x h) reaches 2**125.

NaN gives NaN. Errors over all bf16 inputs: tests/test_pim_functions.py measures and bounds them.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutra.hls_models.floats import FLOAT_LATENCY, FP32
from lutra.hls_models.pim import arithmetic
from lutra.hls_models.pim.arithmetic import Floats, add, bits, mul, sub, values
from lutra.hls_models.pim.coefficients import GELU_LIMIT, SEGMENTS, TANH_SEGMENT, Family, coefficients

__all__ = [
    "EXP2_LIMIT",
    "FUNCTION_LATENCY",
    "LARGE_EXPONENT",
    "SCALAR_LATENCY",
    "Form",
    "exp2",
    "gelu",
    "gelu_erf",
    "layer_norm",
    "reciprocal",
    "rsqrt",
    "segment",
    "softmax",
]

Bits = NDArray[np.uint32]
Form = Literal["tanh", "erf"]

EXP2_LIMIT = 8
"""Exponent of |x| from which 2**x has over- or underflown for certain."""
LARGE_EXPONENT = 252
"""Biased exponent from which a reciprocal is zero: its seed would be subnormal."""

_PIECE = 16384

_ADD, _MUL = FLOAT_LATENCY["add"], FLOAT_LATENCY["mul"]
_EXP2 = 1 + _ADD + 3 * (_MUL + _ADD) + 1
_RECIPROCAL = 1 + 2 * (2 * _MUL + _ADD)
_RSQRT = 1 + 2 * (3 * _MUL + _ADD)

# Clocks from input to output of the pipelines in rtl/pim/functions.py: rounding, f, Horner, exponent; s, table, h (Horner), x h, exp2, + 1, seed and
# Newton, times x, special values.
FUNCTION_LATENCY = {"exp2": _EXP2, "gelu": _MUL + 1 + 2 * (_MUL + _ADD) + _MUL + _EXP2 + _ADD + _RECIPROCAL + _MUL + 1}

# Clocks from start to result of the serial unit there: operands or seed, the steps, special values.
SCALAR_LATENCY = {"add": 2 + _ADD, "mul": 2 + _MUL, "reciprocal": _RECIPROCAL + 1, "rsqrt": _RSQRT + 1}


def _raw(x: Floats) -> Bits:
    return np.ascontiguousarray(x).view(np.uint32).reshape(np.shape(x))


def _constant(pattern: int) -> np.float32:
    return np.uint32(pattern).view(np.float32)


def _exp2(x: Floats, family: Family) -> Floats:
    with np.errstate(invalid="ignore"):
        small = np.abs(x) < 2.0**EXP2_LIMIT
    bounded = np.where(small, x, np.float32(0))
    whole = np.trunc(bounded)
    n = whole + np.trunc(2 * (bounded - whole))  # all exact
    f = sub(bounded, n)
    c1, c2, c3 = (_constant(c) for c in coefficients(family).exp2)
    p = add(mul(add(mul(add(mul(c3, f), c2), f), c1), f), np.float32(1))
    magnitude = _raw(p).view(np.int32) + (np.clip(n, -FP32.bias - 1, FP32.bias + 1).astype(np.int32) << FP32.mantissa)
    magnitude = np.where(magnitude < FP32.min_normal, 0, np.where(n > FP32.bias + 1, FP32.infinity, np.minimum(magnitude, FP32.infinity)))
    y = magnitude.astype(np.int32).view(np.float32)
    return np.where(small, y, np.where(np.isnan(x), np.float32(np.nan), np.where(x > 0, np.float32(np.inf), np.float32(0))))


def _newton(d: Floats, family: Family) -> Floats:
    """1/d for d > 0 with an exponent below ``LARGE_EXPONENT``."""
    magic, *steps = coefficients(family).reciprocal
    r = (np.uint32(magic) - _raw(d)).view(np.float32)
    for k in steps:
        r = mul(r, sub(_constant(k), mul(d, r)))
    return r


def _in_pieces(function: Callable[[Floats], Floats], x: ArrayLike) -> Bits:
    """Bits of an element-wise function of fp32 bits, piece by piece: what a cache holds is worked on several times as fast."""
    given = values(x)
    if given.size <= _PIECE:
        return bits(function(given))
    flat = given.reshape(-1)
    return np.concatenate([bits(function(flat[start : start + _PIECE])) for start in range(0, flat.size, _PIECE)]).reshape(given.shape)


def exp2(x: ArrayLike, family: Family = "minimax") -> Bits:
    """2**x."""
    return _in_pieces(lambda given: _exp2(given, family), x)


def reciprocal(x: ArrayLike, family: Family = "minimax") -> Bits:
    """1/x."""
    given = values(x)
    size = np.abs(given)
    exponent = _raw(size) >> np.uint32(FP32.mantissa)
    regular = (exponent > 0) & (exponent < LARGE_EXPONENT)
    r = _newton(np.where(regular, size, np.float32(1)), family)
    r = np.where(regular, r, np.where(exponent == 0, np.float32(np.inf), np.float32(0)))
    return bits(np.where(np.isnan(given), given, np.copysign(r, given)))


def rsqrt(x: ArrayLike, family: Family = "minimax") -> Bits:
    """1/sqrt(x)."""
    given = values(x)
    with np.errstate(invalid="ignore"):
        regular = (given > 0) & np.isfinite(given)
    d = np.where(regular, given, np.float32(1))
    magic, *steps = coefficients(family).rsqrt
    r = (np.uint32(magic) - (_raw(d) >> np.uint32(1))).view(np.float32)
    for k in steps:
        twice = mul(r, sub(_constant(k), mul(mul(d, r), r)))
        r = (_raw(twice) - np.uint32(1 << FP32.mantissa)).view(np.float32)
    special = np.where(given == 0, np.float32(np.inf), np.where(given == np.inf, np.float32(0), np.float32(np.nan)))
    return bits(np.where(regular, r, special))


def segment(square: ArrayLike) -> NDArray[np.int32]:
    """Row of the erf form's table for s >= 0, fp32 bits: 0 below 2, then a row per quarter of an octave."""
    quarter = np.asarray(square, np.uint32).astype(np.int32) >> (FP32.mantissa - 2)
    return np.clip(quarter - ((FP32.bias + 1) << 2) + 1, 0, SEGMENTS - 1)


def _gelu(given: Floats, family: Family, form: Form) -> Floats:
    with np.errstate(invalid="ignore"):
        small = np.abs(given) < GELU_LIMIT
    a = np.where(small, given, np.float32(0))
    s = mul(a, a)
    rows = coefficients(family).gelu.view(np.float32)[segment(_raw(s)) if form == "erf" else np.int32(TANH_SEGMENT)]
    h = add(mul(add(mul(rows[..., 2], s), rows[..., 1]), s), rows[..., 0])
    power = _exp2(mul(a, h), family)
    divided = power < 2.0 ** (LARGE_EXPONENT - FP32.bias)
    r = _newton(add(np.where(divided, power, np.float32(0)), np.float32(1)), family)
    y = np.where(divided, mul(a, r), np.copysign(np.float32(0), a))
    large = np.where(given > 0, given, np.where(np.isnan(given), given, np.float32(-0.0)))
    return np.where(small, y, large)


def gelu(x: ArrayLike, family: Family = "minimax") -> Bits:
    """GELU by the tanh form."""
    return _in_pieces(lambda given: _gelu(given, family, "tanh"), x)


def gelu_erf(x: ArrayLike, family: Family = "minimax") -> Bits:
    """GELU by the normal distribution."""
    return _in_pieces(lambda given: _gelu(given, family, "erf"), x)


def softmax(scores: ArrayLike, k: int, lanes: int, family: Family = "minimax") -> tuple[Bits, Bits]:
    """What MAX, EXP with its sum, and RECIPROCAL give for scores (..., n), fp32 bits.

    Parameters
    ----------
    k
        fp32 bits that the scores are multiplied by: log2(e), times what scales them.
    lanes
        Elements of a beat, for the order of the sum.

    Returns
    -------
    Weights (..., n), bf16 values as fp32 bits, and the reciprocal of their sum (...). The softmax is their product.
    """
    x = values(scores)
    weights = arithmetic.round_bf16(values(exp2(bits(mul(sub(x, x.max(-1, keepdims=True)), _constant(k))), family)))
    return bits(weights), reciprocal(bits(arithmetic.beat_sum(weights, lanes)), family)


def layer_norm(x: ArrayLike, epsilon: float, lanes: int, family: Family = "minimax") -> Bits:
    """(x - mean) / sqrt(variance + epsilon) of rows (..., n), by SUM, CENTER with its sum of squares, RSQRT and SCALE; ``lanes`` as in ``softmax``."""
    rows = values(x)
    share = np.float32(1 / rows.shape[-1])
    centred = sub(rows, mul(arithmetic.beat_sum(rows, lanes), share)[..., None])
    variance = mul(arithmetic.beat_sum(mul(centred, centred), lanes), share)
    return bits(mul(centred, values(rsqrt(bits(add(variance, np.float32(epsilon))), family))[..., None]))
