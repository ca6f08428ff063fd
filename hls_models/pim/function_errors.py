# SPDX-License-Identifier: Apache-2.0
"""Errors of the companion chip's functions over every bf16 input, against float64."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutra.hls_models.floats import BF16, FP32, convert, to_float64
from lutra.hls_models.pim import functions
from lutra.hls_models.pim.coefficients import Family

__all__ = ["REFERENCES", "FunctionErrors", "errors", "measure"]

Values = NDArray[np.float64]
Function = Callable[[ArrayLike, Family], NDArray[np.uint32]]

ABSOLUTE_RANGE = 4.0
"""Results up to here count for ``absolute``: beyond, the relative error says more."""


class FunctionErrors(NamedTuple):
    """Largest errors of one function with one set of coefficients."""

    function: str
    family: Family
    inputs: int
    """Inputs whose exact result is a normal number and that are not flushed."""
    relative: float
    """Of the fp32 result."""
    absolute: float
    """Of the fp32 result, where the exact one is at most ``ABSOLUTE_RANGE``."""
    places: float
    """Of the result rounded to bf16, in units of its last place; 0.5 is that rounding alone."""
    flushed: int
    """Inputs that give 0 though the exact result is a normal number."""
    largest_flushed: float


def _tanh_form(x: Values) -> Values:
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _erf_form(x: Values) -> Values:
    return x * np.frompyfunc(lambda one: math.erfc(-one / math.sqrt(2)) / 2, 1, 1)(x).astype(np.float64)


def _root(x: Values) -> Values:
    return 1 / np.sqrt(np.where(x > 0, x, np.nan))


REFERENCES: dict[str, tuple[Function, Callable[[Values], Values]]] = {
    "exp2": (functions.exp2, np.exp2),
    "gelu": (functions.gelu, _tanh_form),
    "gelu_erf": (functions.gelu_erf, _erf_form),
    "reciprocal": (functions.reciprocal, lambda x: 1 / x),
    "rsqrt": (functions.rsqrt, _root),
}
"""Every function with what it should be."""


def errors(name: str, family: Family) -> FunctionErrors:
    """Errors of one function over all finite bf16 inputs."""
    function, reference = REFERENCES[name]
    patterns = np.arange(1 << BF16.bits, dtype=np.uint32)
    patterns = patterns[(patterns & np.uint32(BF16.magnitude)) < BF16.infinity]
    wide = patterns << np.uint32(FP32.bits - BF16.bits)
    x = to_float64(FP32, wide)
    with np.errstate(all="ignore"):
        exact = reference(x)
    got = function(wide, family)
    y, rounded = to_float64(FP32, got), to_float64(BF16, convert(FP32, BF16, got))
    normal = (np.abs(exact) >= 2.0 ** (1 - FP32.bias)) & (np.abs(exact) < 2.0 ** (FP32.bias + 1) * (1 - 2.0**-9))
    flushed = normal & (y == 0)
    used = normal & ~flushed
    error = np.abs(y[used] - exact[used])
    last = np.exp2(np.floor(np.log2(np.abs(exact[used]))) - BF16.mantissa)
    return FunctionErrors(
        function=name,
        family=family,
        inputs=int(used.sum()),
        relative=float((error / np.abs(exact[used])).max()),
        absolute=float(error[np.abs(exact[used]) <= ABSOLUTE_RANGE].max()),
        places=float((np.abs(rounded[used] - exact[used]) / last).max()),
        flushed=int(flushed.sum()),
        largest_flushed=float(np.abs(exact[flushed]).max(initial=0.0)),
    )


def measure() -> Iterator[FunctionErrors]:
    """All functions with both sets of coefficients."""
    for name in REFERENCES:
        for family in get_args(Family):
            yield errors(name, family)
