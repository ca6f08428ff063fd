# SPDX-License-Identifier: Apache-2.0
"""What a bank's MAC unit computes, in float64 and integers (docs/architecture.md, 4.2).

Accumulators are float64 arrays that hold fp32 values exactly; a NaN stands for the one NaN pattern. bf16 travels as ``uint16`` patterns.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["BF16_DIGITS", "FIELD_GUARD_BITS", "FP32_DIGITS", "accumulate", "bf16_bits", "bf16_value", "dot", "round_to"]

Floats = NDArray[np.float64]

BF16_DIGITS, FP32_DIGITS = 8, 24
FIELD_GUARD_BITS = 12
TINY, HUGE = 2.0**-126, 2.0**128
NAN_BITS = 0x7FC0


def round_to(digits: int, x: ArrayLike) -> Floats:
    """Nearest value of ``digits`` significant bits, ties to even, with fp32's exponents: below the smallest normal a signed zero, overflow an infinity."""
    value = np.asarray(x, np.float64)
    fraction, exponent = np.frexp(value)
    nearest = np.ldexp(np.rint(np.ldexp(fraction, digits)), exponent - digits)
    size = np.abs(nearest)
    nearest = np.where(size < TINY, np.copysign(0.0, value), nearest)
    return np.asarray(np.where(size >= HUGE, np.copysign(np.inf, value), nearest))


def bf16_value(bits: ArrayLike) -> Floats:
    """Values of bf16 patterns; subnormals are signed zeros."""
    x = np.asarray(bits, np.uint16)
    flushed = np.where((x & 0x7F80) == 0, x & 0x8000, x).astype(np.uint32) << np.uint32(16)
    with np.errstate(invalid="ignore"):
        return flushed.view(np.float32).astype(np.float64)


def bf16_bits(x: ArrayLike) -> NDArray[np.uint16]:
    """Patterns of values rounded to bf16."""
    value = round_to(BF16_DIGITS, np.atleast_1d(np.asarray(x, np.float64)))
    bits = (value.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(value), np.uint16(NAN_BITS), bits).reshape(np.shape(x))


def dot(a: NDArray[np.uint16], b: NDArray[np.uint16]) -> Floats:
    """Sum over the last axis of the products of bf16 patterns, rounded to fp32; shapes broadcast, (…, lanes) → (…).

    Each product is exact; its magnitude is put in a field of 16 + 12 bits, shifted right to the largest exponent of the non-zero products and truncated;
    the fields are added exactly. +0 if nothing is left.
    """
    a, b = np.broadcast_arrays(a, b)
    ea, eb = ((a >> 7) & 0xFF).astype(np.int64), ((b >> 7) & 0xFF).astype(np.int64)
    ma, mb = (a & 0x7F).astype(np.int64), (b & 0x7F).astype(np.int64)
    negative = ((a ^ b) >> 15).astype(bool)
    product = np.where(ea == 0, 0, ma + 128) * np.where(eb == 0, 0, mb + 128)
    exponent = np.where(product == 0, 0, ea + eb)
    top = exponent.max(axis=-1, keepdims=True)
    field = (product << FIELD_GUARD_BITS) >> np.minimum(top - exponent, 63)
    total = np.where(negative, -field, field).sum(axis=-1)
    # 254: both biases. 14: bits of a product behind its point.
    result = round_to(FP32_DIGITS, np.ldexp(total.astype(np.float64), top[..., 0] - (254 + 14 + FIELD_GUARD_BITS)))
    special = (ea == 255) | (eb == 255)
    if special.any():
        not_a_number = ((ea == 255) & (ma != 0)) | ((eb == 255) & (mb != 0)) | ((ea == 255) & (eb == 0)) | ((eb == 255) & (ea == 0))
        up, down = (special & ~negative & ~not_a_number).any(axis=-1), (special & negative & ~not_a_number).any(axis=-1)
        result = np.where(up, np.inf, np.where(down, -np.inf, result))
        result = np.where(not_a_number.any(axis=-1) | (up & down), np.nan, result)
    return result


def accumulate(start: Floats, terms: Floats, *, digits: int = FP32_DIGITS) -> Floats:
    """Adds ``terms`` (count, banks) one after the other to ``start`` (banks,), each sum rounded to fp32, then to ``digits`` bits if that is fewer."""
    with np.errstate(invalid="ignore", over="ignore"):
        if digits == FP32_DIGITS:
            running = np.add.accumulate(np.concatenate([start[None], terms]).astype(np.float32), axis=0, dtype=np.float32)
            size = np.abs(running)
            if np.isfinite(size).all() and not ((size < TINY) & (size != 0)).any():  # no sum needs more than fp32's own rounding
                return running[-1].astype(np.float64)
        total = start
        for term in terms:
            # Twice 24 bits and two fit float64: its own rounding of the sum of two fp32 values does no harm.
            total = round_to(FP32_DIGITS, total + term)
            if digits != FP32_DIGITS:
                total = round_to(digits, total)
        return total
