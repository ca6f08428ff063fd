# SPDX-License-Identifier: Apache-2.0
"""Coefficients of the companion chip's functions, as fp32 bits; what they are for: functions.py of this folder.

Two sets of the same cost. ``taylor`` is what PIM-GPT describes in words (arXiv 2310.09385: Taylor series, Newton-Raphson, the fast inverse square root): the
series about the middle of each interval and the textbook's Newton steps; how many terms PIM-GPT takes is not public: ours. ``minimax`` is the best fit: Remez
exchange on the weighted error, and Newton steps whose constants centre the error.

Newton's constants. With 1 + e the relative error of a guess for 1/d, one step r(k - d r) leaves (1 + e)(k - 1 - e) - 1: with k = 2 that is -e**2, one
sided; k = 2 + c with c = e**2 / (2 - e), e the largest error, halves it. The seed ``magic - bits`` with 0x7EF311C3 is off by ±0.05051. In the same
way 1/sqrt(d) by r(k - d r**2)/2: k = 3 + c with c = 1.5 e**2; the seed ``magic - bits / 2`` with 0x5F375A86 (C. Lomont, "Fast inverse square root",
2003) is off by ±0.0344. Second steps start from half of e**2, or of 1.5 e**2.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from lutra.hls_models.errors import ConfigError
from lutra.hls_models.floats import FP32, from_float64

__all__ = ["GELU_LIMIT", "SEGMENTS", "TANH_SEGMENT", "Coefficients", "Family", "coefficients"]

Family = Literal["minimax", "taylor"]
Curve = Callable[[float], float]

EXP2_DEGREE = 3
"""bf16 results keep 8 bits: degree 3 is off by 0.03 (minimax) or 0.2 (taylor) of a last place, degree 2 by half of one."""

SEGMENTS = 29
"""Intervals of s = x**2 for GELU's erf form: below 2, then four per octave up to ``GELU_LIMIT``**2 = 256."""
TANH_SEGMENT = 31
"""Row of the tanh form, the same for every s."""
GELU_LIMIT = 16.0
"""|x| from which GELU is x or -0: the logistic function's argument is beyond the exponents of fp32."""


@dataclass(frozen=True)
class Coefficients:
    """fp32 bits."""

    exp2: tuple[int, ...]
    """c1, c2, c3 of 2**f = 1 + c1 f + c2 f**2 + c3 f**3 for |f| <= 1/2."""
    gelu: NDArray[np.uint32]
    """(32, 3) c0, c1, c2 of h(s) = c0 + c1 s + c2 s**2, GELU(x) = x / (1 + 2**(x h(x**2)))."""
    reciprocal: tuple[int, int, int]
    """Seed's minuend, k of the first step, k of the second."""
    rsqrt: tuple[int, int, int]
    """Seed's minuend, k of the first step, k of the second."""


def _bits(values: Sequence[float]) -> tuple[int, ...]:
    return tuple(int(value) for value in from_float64(FP32, values))


def remez(curve: Curve, weight: Curve, low: float, high: float, degree: int, points: int = 1025) -> list[float]:
    """Coefficients c0, c1 … that make the largest weight * |polynomial - curve| on low … high smallest (exchange on a Chebyshev grid)."""
    grid = (low + high) / 2 - np.cos(np.linspace(0, math.pi, points)) * (high - low) / 2
    weights = np.array([weight(x) for x in grid])
    powers = grid[:, None] ** np.arange(degree + 1) * weights[:, None]
    goal = np.array([curve(x) for x in grid]) * weights
    count = degree + 2
    chosen = np.linspace(0, points - 1, count).round().astype(int)
    for _ in range(50):
        system = np.concatenate([powers[chosen], (-1.0) ** np.arange(count)[:, None]], axis=1)
        found = np.linalg.solve(system, goal[chosen])[:-1]
        error = powers @ found - goal
        runs = np.split(np.arange(points), np.flatnonzero(np.diff(np.sign(error))) + 1)
        peaks = [int(run[np.argmax(np.abs(error[run]))]) for run in runs]
        while len(peaks) > count:
            peaks.pop(0 if abs(error[peaks[0]]) < abs(error[peaks[-1]]) else -1)
        if len(peaks) < count or peaks == list(chosen):
            break
        chosen = np.array(peaks)
    return [float(c) for c in found]


def _exp2(family: Family) -> tuple[int, ...]:
    """The leading 1 is kept, so that 2**0 is exact: fitted is (2**f - 1) / f with the error's weight f / 2**f."""
    ln2 = math.log(2)
    if family == "taylor":
        return _bits([ln2**k / math.factorial(k) for k in range(1, EXP2_DEGREE + 1)])
    curve = lambda f: math.expm1(f * ln2) / f if f else ln2  # noqa: E731
    return _bits(remez(curve, lambda f: abs(f) * 2.0**-f + 1e-12, -0.5, 0.5, EXP2_DEGREE - 1))


def _logit(x: float) -> tuple[float, float, float]:
    """log2((1 - P) / P) of the normal distribution's P(x), x > 0, with two derivatives."""
    density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    above, below = math.erfc(x / math.sqrt(2)) / 2, math.erfc(-x / math.sqrt(2)) / 2
    a, b = density / above, density / below
    value = math.log(above / below) if x > 0.1 else -2 * math.atanh(math.erf(x / math.sqrt(2)))
    return value / math.log(2), -(a + b) / math.log(2), -(a * (a - x) - b * (b + x)) / math.log(2)


def _h(s: float) -> float:
    return _logit(math.sqrt(s))[0] / math.sqrt(s) if s else -2 * math.sqrt(2 / math.pi) / math.log(2)


def _taylor_h(s: float) -> tuple[float, float, float]:
    """The series of h about s, in powers of s itself."""
    x = math.sqrt(s)
    value, first, second = _logit(x)
    by_x = (x * first - value) / x**2
    by_xx = second / x - 2 * first / x**2 + 2 * value / x**3
    rise, bend = by_x / (2 * x), (by_xx / (4 * x**2) - by_x / (4 * x**3)) / 2
    return value / x - rise * s + bend * s * s, rise - 2 * bend * s, bend


def _gelu(family: Family) -> NDArray[np.uint32]:
    edges = [0.0] + [2.0**octave * (1 + quarter / 4) for octave in range(1, 8) for quarter in range(4)] + [GELU_LIMIT**2]
    table = np.zeros((TANH_SEGMENT + 1, 3), np.uint32)
    for row, (low, high) in enumerate(pairwise(edges)):
        # What counts is the error of x h: the weight is x.
        table[row] = _bits(_taylor_h((low + high) / 2) if family == "taylor" else remez(_h, lambda s: math.sqrt(s) + 1e-9, low, high, 2, 257))
    scale = -2 * math.sqrt(2 / math.pi) / math.log(2)
    table[TANH_SEGMENT] = _bits([scale, 0.044715 * scale, 0.0])
    return table


@cache
def coefficients(family: Family) -> Coefficients:
    """The set of that name."""
    if family not in get_args(Family):
        raise ConfigError(f"functions must be one of {', '.join(get_args(Family))}, not {family!r}")
    if family == "taylor":
        two, three = _bits([2.0, 3.0])
        return Coefficients(_exp2(family), _gelu(family), (0x7EF311C3, two, two), (0x5F3759DF, three, three))
    seed = 0.05051
    first = seed**2 / (2 - seed)
    reciprocal = _bits([2 + first, 2 + first**2 / 2])
    seed = 0.03436
    first = 1.5 * seed**2 / 2
    rsqrt = _bits([3 + 2 * first, 3 + 1.5 * first**2])
    return Coefficients(_exp2(family), _gelu(family), (0x7EF311C3, reciprocal[0], reciprocal[1]), (0x5F375A86, rsqrt[0], rsqrt[1]))
