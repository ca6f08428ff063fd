# SPDX-License-Identifier: Apache-2.0
"""Bank MAC unit: golden values (architecture.md, 4.2).

One MAC: V bf16 values of a column times V of the buffer; subnormal operands are signed zeros. Products are exact: 16-bit significand, exponent
e = ea + eb, not normalised. E is the largest exponent of the products that are not zero; every magnitude stands in a field of 16 + ``GUARD_BITS`` bits,
is shifted right by E - e and truncated; the sum is exact (33 bits for 16 lanes), +0 where it is zero. It is rounded to fp32 and added to the
accumulator in fp32; ``bf16`` accumulators are then rounded to bf16. NaN, inf - inf and 0 * inf give the one NaN.

``dot`` and ``mac`` are this definition in integers. ``gemv`` gives the same bits (tests hold them together) for whole matrices: products and
shifts in float32, where a product of bf16 values is exact, truncation by conversion to int32; elements whose E is too far from 0 for that, NaNs and
infinities among them, are taken from ``dot``. About 1 ns per MAC and lane on one core.

RTL: ``lutra.rtl.pim.mac``. It takes an operation (MAC, BIAS, RDM) per clock, on the same accumulator every ``INTERVAL`` clocks; what was given in cycle t has
its result in cycle t + ``LATENCY``.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutra.hls_models import floats
from lutra.hls_models.floats import BF16, FP32
from lutra.hls_models.pim import arithmetic

__all__ = ["GUARD_BITS", "INTERVAL", "LATENCY", "READ_LATENCY", "Accumulator", "Operand", "add", "burst", "dot", "gemv", "load", "mac", "read_out"]

Bits = NDArray[np.uint32]
Accumulator = Literal["fp32", "bf16"]

GUARD_BITS = 12
"""Bits below a product's significand that an aligned product keeps."""

LATENCY = 11
"""Clocks of an operation: multiply, largest exponent (2), align, add (2), magnitude, normalise, round; then the accumulator: align and add, normalise and
round. A read-out goes through the same stages, so that it sees every MAC before it."""
INTERVAL = 2
"""Clocks between operations on the same accumulator: the stages of its fp32 adder."""
READ_LATENCY = LATENCY
"""Clocks from a read-out's start to its bf16 value."""

_PLACES = 2 * (BF16.bias + BF16.mantissa) + GUARD_BITS
"""A sum's value is ``sum * 2**(E - _PLACES)``, E the biased exponents' sum."""
_ZERO, _SPECIAL = -4096, 12288
"""Exponents of zeros, and of infinities and NaNs, for ``gemv``: a zero's sum is below 0, a special one's above ``_HIGHEST`` even with a zero."""
_LOWEST, _HIGHEST = 156, 370
"""E for which ``gemv``'s float32 arithmetic is exact: at E >= 156 a product that is subnormal in float32 (e < 128) is shifted out of the field (28 bits);
up to 370 no sum overflows."""
_BLOCK = 32768
"""Elements that are worked on at once: their arrays stay in the second-level cache."""


def dot(columns: ArrayLike, buffer: ArrayLike) -> Bits:
    """Rounded sums (...) as fp32 bits of bf16 operands (..., V), broadcast."""
    a, b = np.broadcast_arrays(np.asarray(columns, np.int64), np.asarray(buffer, np.int64))
    exponent_a, exponent_b = (a >> 7) & 255, (b >> 7) & 255
    fraction_a, fraction_b = a & 127, b & 127
    zero = (exponent_a == 0) | (exponent_b == 0)
    special = (exponent_a == 255) | (exponent_b == 255)
    negative = ((a ^ b) >> 15 & 1).astype(bool)
    nan = (special & (zero | ((exponent_a == 255) & (fraction_a != 0)) | ((exponent_b == 255) & (fraction_b != 0)))).any(-1)
    above, below = (special & ~negative).any(-1), (special & negative).any(-1)

    exponent = np.where(zero, 0, exponent_a + exponent_b)
    largest = exponent.max(-1)
    product = np.where(zero | special, 0, (128 | fraction_a) * (128 | fraction_b))
    aligned = (product << GUARD_BITS) >> np.minimum(largest[..., None] - exponent, 63)
    total = np.where(negative, -aligned, aligned).sum(-1)
    y = floats.from_float64(FP32, np.ldexp(total.astype(np.float64), largest - _PLACES))
    y = np.where(above, FP32.infinity, np.where(below, FP32.infinity | FP32.sign, y))
    return np.where(nan | (above & below), FP32.nan, y).astype(np.uint32)


def _accumulate(accumulator: arithmetic.Floats, sums: arithmetic.Floats, form: Accumulator) -> arithmetic.Floats:
    total = arithmetic.add(accumulator, sums)
    return total if form == "fp32" else arithmetic.round_bf16(total)


def add(accumulator: ArrayLike, sums: ArrayLike, form: Accumulator = "fp32") -> Bits:
    """Accumulators (...) after ``sums`` (...) are added, fp32 bits all."""
    return arithmetic.bits(_accumulate(arithmetic.values(accumulator), arithmetic.values(sums), form))


def mac(columns: ArrayLike, buffer: ArrayLike, accumulator: ArrayLike, form: Accumulator = "fp32") -> Bits:
    """Accumulators (...), fp32 bits, after one MAC of bf16 operands (..., V)."""
    return add(accumulator, dot(columns, buffer), form)


def load(bias: ArrayLike) -> Bits:
    """Accumulators after BIAS with bf16 bits."""
    return floats.convert(BF16, FP32, bias)


def read_out(accumulator: ArrayLike) -> NDArray[np.uint16]:
    """bf16 bits that RDM gives for accumulators."""
    return floats.convert(FP32, BF16, accumulator).astype(np.uint16)


@dataclass(frozen=True)
class Operand:
    """bf16 vectors prepared for ``gemv``: worth keeping for a matrix that is used many times (6 bytes per value)."""

    patterns: NDArray[np.uint16]
    """(vectors, columns, V)"""
    significands: NDArray[np.float32]
    """Values (columns, V, vectors), 0 where not finite."""
    exponents: NDArray[np.int16]
    """Biased exponents (columns, V, vectors)."""

    @classmethod
    def of(cls, patterns: ArrayLike) -> "Operand":
        """Of bf16 bits (vectors, columns, V)."""
        given = np.asarray(patterns, np.uint16)
        if given.ndim != 3:
            raise ValueError(f"patterns must have three dimensions (vectors, columns, V), not {given.ndim}")
        vectors, columns, lanes = given.shape
        significands, exponents = np.empty((columns, lanes, vectors), np.float32), np.empty((columns, lanes, vectors), np.int16)
        step = max(64, _BLOCK // max(1, columns * lanes))
        for start in range(0, vectors, step):  # transposed in pieces that a cache holds
            x = np.ascontiguousarray(given[start : start + step].transpose(1, 2, 0))
            field = x & np.uint16(BF16.infinity)
            exponent = (field >> np.uint16(BF16.mantissa)).astype(np.int16)
            zero, special = field == 0, field == BF16.infinity
            wide = x.astype(np.uint32) << np.uint32(16)
            wide[zero | special] = 0
            exponent[zero] = _ZERO
            exponent[special] = _SPECIAL
            significands[:, :, start : start + step] = wide.view(np.float32)
            exponents[:, :, start : start + step] = exponent
        return cls(given, significands, exponents)


def _sums(weights: Operand, inputs: Operand, columns: slice, tokens: slice, outputs: slice) -> arithmetic.Floats:
    """``dot`` of a block: (columns, tokens, outputs)."""
    we, wv = weights.exponents[columns, :, None, outputs], weights.significands[columns, :, None, outputs]
    xe, xv = inputs.exponents[columns, :, tokens, None], inputs.significands[columns, :, tokens, None]
    count, lanes, shape = we.shape[0], we.shape[1], (we.shape[0], xe.shape[2], we.shape[3])
    largest = we[:, 0] + xe[:, 0]
    exponent = np.empty(shape, np.int16)
    for lane in range(1, lanes):
        np.add(we[:, lane], xe[:, lane], out=exponent)
        np.maximum(largest, exponent, out=largest)
    wrong = ((largest < _LOWEST) & (largest >= 0)) | (largest > _HIGHEST)
    bounded = np.clip(largest, _LOWEST, _HIGHEST).astype(np.int32)
    shift = ((FP32.bias + _PLACES - bounded) << FP32.mantissa).view(np.float32)

    product, aligned = np.empty(shape, np.float32), np.empty(shape, np.int32)
    total = np.zeros(shape, np.float64)
    for first in range(0, lanes, 8):  # eight magnitudes below 2**28 fit int32
        part = np.zeros(shape, np.int32)
        for lane in range(first, min(first + 8, lanes)):
            np.multiply(wv[:, lane], xv[:, lane], out=product)
            np.multiply(product, shift, out=product)
            np.copyto(aligned, product, casting="unsafe")
            np.add(part, aligned, out=part)
        total += part
    y = total.astype(np.float32)
    y *= ((bounded + (FP32.bias - _PLACES)) << FP32.mantissa).view(np.float32)
    if wrong.any():
        c, t, n = np.nonzero(wrong)
        c_all = np.arange(columns.start, columns.start + count)[c]
        exact = dot(weights.patterns[n + outputs.start, c_all], inputs.patterns[t + tokens.start, c_all])
        y[c, t, n] = arithmetic.values(exact)
    return y


def gemv(weights: Operand | ArrayLike, inputs: Operand | ArrayLike, accumulators: ArrayLike = 0, form: Accumulator = "fp32") -> Bits:
    """Every input vector through a burst of MACs, column after column, with every row of weights.

    Parameters
    ----------
    weights
        (outputs, columns, V) bf16 bits.
    inputs
        (vectors, columns, V) bf16 bits: what the buffer holds.
    accumulators
        fp32 bits before, broadcast to (vectors, outputs).

    Returns
    -------
    (vectors, outputs) fp32 bits
    """
    w = weights if isinstance(weights, Operand) else Operand.of(weights)
    x = inputs if isinstance(inputs, Operand) else Operand.of(inputs)
    if w.patterns.shape[1:] != x.patterns.shape[1:]:
        raise ValueError(f"weights and inputs must have the same columns and lanes, not {w.patterns.shape[1:]} and {x.patterns.shape[1:]}")
    outputs, vectors, columns = len(w.patterns), len(x.patterns), w.patterns.shape[1]
    held = np.array(np.broadcast_to(arithmetic.values(accumulators), (vectors, outputs)))
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        for n in range(0, outputs, _BLOCK):
            wide = slice(n, min(n + _BLOCK, outputs))
            rows = max(1, _BLOCK // (wide.stop - n))
            for t in range(0, vectors, rows):
                high = slice(t, min(t + rows, vectors))
                deep = max(1, _BLOCK // ((wide.stop - n) * (high.stop - t)))
                part = held[high, wide]
                for c in range(0, columns, deep):
                    for one in _sums(w, x, slice(c, min(c + deep, columns)), high, wide):
                        part = _accumulate(part, one, form)
                held[high, wide] = part
    return arithmetic.bits(held)


def burst(cells: ArrayLike, buffer: ArrayLike, accumulators: ArrayLike = 0, form: Accumulator = "fp32") -> Bits:
    """Accumulators (...) after a burst: bf16 columns ``cells`` (..., columns, V) of any number of banks times the ``buffer``'s entries (columns, V)."""
    held = np.asarray(cells, np.uint16)
    before = np.broadcast_to(np.asarray(accumulators, np.uint32), held.shape[:-2]).reshape(1, -1)
    return gemv(held.reshape(-1, *held.shape[-2:]), np.asarray(buffer, np.uint16)[None], before, form).reshape(held.shape[:-2])
