# SPDX-License-Identifier: Apache-2.0
"""fp32 sums and products as ``lutra.hls_models.floats`` defines them, on native ``float32`` arrays: what large golden runs need to be quick.

``values`` flushes subnormals on the way in, ``bits`` makes every NaN the one NaN on the way out; in between NaNs may carry any payload. ``add``, ``sub`` and
``mul`` take and give arrays without subnormals. Native arithmetic rounds to nearest even too; only where a result is at most the smallest normal
number does it differ: the exact sum of two normal numbers is then exact, and a product is looked at in float64.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutra.hls_models import floats
from lutra.hls_models.floats import BF16, FP32

__all__ = ["PARTIALS", "Floats", "add", "beat_sum", "bf16_values", "bits", "mul", "round_bf16", "sub", "to_bf16", "tree_sum", "values"]

Bits = NDArray[np.uint32]
Floats = NDArray[np.float32]

PARTIALS = 4
"""Partial sums of a statistic: the latency of ``lutra.rtl.floats.FloatAdd``."""

SMALLEST = np.float32(2.0**-126)


def values(patterns: ArrayLike) -> Floats:
    """fp32 bits as float32; subnormals become signed zeros."""
    x = np.asarray(patterns, np.uint32)
    small = (x & np.uint32(FP32.infinity)) == 0
    if small.any():
        x = np.where(small, x & np.uint32(FP32.sign), x)
    return x.view(np.float32)


def bits(x: ArrayLike) -> Bits:
    """float32 as fp32 bits; every NaN is the one NaN."""
    array = np.ascontiguousarray(x, np.float32)
    return np.where(np.isnan(array), np.uint32(FP32.nan), array.view(np.uint32)).reshape(np.shape(x))


def _flush(y: Any) -> Floats:
    with np.errstate(invalid="ignore"):
        small = np.abs(y) < SMALLEST
    if small.any():
        y = np.where(small, np.copysign(np.float32(0), y), y)
    return np.asarray(y, np.float32)


def add(a: ArrayLike, b: ArrayLike) -> Floats:
    """a + b rounded once."""
    with np.errstate(invalid="ignore", over="ignore"):
        return _flush(np.add(a, b, dtype=np.float32))


def sub(a: ArrayLike, b: ArrayLike) -> Floats:
    """a - b rounded once."""
    with np.errstate(invalid="ignore", over="ignore"):
        return _flush(np.subtract(a, b, dtype=np.float32))


def mul(a: ArrayLike, b: ArrayLike) -> Floats:
    """a * b rounded once."""
    with np.errstate(invalid="ignore", over="ignore", under="ignore"):
        y = np.asarray(np.multiply(a, b, dtype=np.float32))
        small = np.abs(y) <= SMALLEST
    if small.any():  # rounded with fewer bits than the definition's unbounded exponent has
        x, z = (np.broadcast_to(np.asarray(one, np.float32), y.shape)[small].astype(np.float64) for one in (a, b))
        y[small] = floats.from_float64(FP32, x * z).view(np.float32)
    return y


def tree_sum(x: ArrayLike) -> Floats:
    """Balanced tree along the last axis, as ``floats.tree_sum``."""
    level = np.asarray(x, np.float32)
    while (n := level.shape[-1]) > 1:
        even = n - n % 2
        sums = add(level[..., 0:even:2], level[..., 1:even:2])
        level = sums if n == even else np.concatenate([sums, level[..., even:]], axis=-1)
    return level[..., 0]


def beat_sum(x: ArrayLike, lanes: int) -> Floats:
    """Sum along the last axis as the companion chip's statistics take it: the lanes of a beat in a balanced tree (missing ones are +0), beat i into partial
    sum i % ``PARTIALS`` (from +0), then these in a tree."""
    array = np.asarray(x, np.float32)
    beats = -(-array.shape[-1] // lanes)
    padded = np.zeros((*array.shape[:-1], beats * lanes), np.float32)
    padded[..., : array.shape[-1]] = array
    trees = tree_sum(padded.reshape(*array.shape[:-1], beats, lanes))
    sums = np.zeros((*array.shape[:-1], PARTIALS), np.float32)
    for start in range(0, beats, PARTIALS):
        chunk = trees[..., start : start + PARTIALS]
        sums[..., : chunk.shape[-1]] = add(sums[..., : chunk.shape[-1]], chunk)
    return tree_sum(sums)


def bf16_values(patterns: ArrayLike) -> Floats:
    """bf16 bits as float32; subnormals become signed zeros."""
    return values(np.asarray(patterns, np.uint32) << np.uint32(16))


def to_bf16(x: ArrayLike) -> NDArray[np.uint16]:
    """float32 rounded to bf16 bits."""
    return floats.convert(FP32, BF16, bits(x)).astype(np.uint16)


def round_bf16(x: ArrayLike) -> Floats:
    """float32 rounded to bf16, as float32."""
    return bf16_values(to_bf16(x))
