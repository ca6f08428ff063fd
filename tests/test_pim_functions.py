# SPDX-License-Identifier: Apache-2.0
"""The companion chip's functions: errors over all bf16 inputs, every step an fp32 sum or product, special values, RTL against golden values."""

import math

import numpy as np
import pytest

from lutra.cosim.benches import pim_functions
from lutra.cosim.harness import Fault
from lutra.hls_models import floats
from lutra.hls_models.errors import ConfigError, MismatchError
from lutra.hls_models.floats import FP32
from lutra.hls_models.pim import arithmetic, function_errors, functions
from lutra.hls_models.pim.coefficients import TANH_SEGMENT, Family, coefficients, remez
from lutra.hls_models.pim.companion import partial_sums

FAMILIES: tuple[Family, ...] = ("minimax", "taylor")

# (relative, absolute where the result is at most 4, units of the last place of the result as bf16, inputs that give 0 though they should not quite): measured
# over every bf16 input, rounded up. GELU's erf form is at its worst where it is below 1e-6.
BOUNDS = {
    ("exp2", "minimax"): (1.02e-4, 3.3e-4, 0.515, 0),
    ("exp2", "taylor"): (8.0e-4, 2.3e-3, 0.576, 0),
    ("gelu", "minimax"): (1.03e-4, 1.4e-5, 0.519, 4),
    ("gelu", "taylor"): (7.8e-4, 9.9e-5, 0.629, 4),
    ("gelu_erf", "minimax"): (1.44e-3, 1.6e-5, 0.715, 6),
    ("gelu_erf", "taylor"): (4.8e-3, 9.7e-5, 0.929, 6),
    ("reciprocal", "minimax"): (1.05e-6, 4.0e-6, 0.499, 258),
    ("reciprocal", "taylor"): (6.6e-6, 2.6e-5, 0.499, 258),
    ("rsqrt", "minimax"): (6.8e-7, 2.5e-6, 0.5, 0),
    ("rsqrt", "taylor"): (4.7e-6, 1.8e-5, 0.5, 0),
}


@pytest.mark.smoke
@pytest.mark.parametrize(("name", "family"), BOUNDS)
def test_errors_over_all_inputs(name: str, family: Family) -> None:
    found = function_errors.errors(name, family)
    print(found)
    relative, absolute, places, flushed = BOUNDS[name, family]
    for measured, bound in ((found.relative, relative), (found.absolute, absolute), (found.places, places)):
        assert 0.95 * bound < measured <= bound, found
    assert found.flushed == flushed and found.largest_flushed < 2.0**-122
    assert found.inputs + found.flushed > 32_000


def test_the_table_holds_every_function_twice() -> None:
    assert {(found.function, found.family) for found in function_errors.measure()} == set(BOUNDS)


# The definitions again, a step at a time, on scalars.


def add(a: int, b: int) -> int:
    return int(floats.add(FP32, a, b))


def sub(a: int, b: int) -> int:
    return int(floats.sub(FP32, a, b))


def mul(a: int, b: int) -> int:
    return int(floats.mul(FP32, a, FP32, b, FP32))


def exp2_by_steps(x: int, family: Family) -> int:
    exponent, sign = x >> 23 & 255, x >> 31
    if exponent >= 127 + 8:
        return FP32.nan if x & FP32.magnitude > FP32.infinity else 0 if sign else FP32.infinity
    whole = 0
    if exponent >= 126:
        unit = min(150 - exponent, 23)
        whole = ((x & FP32.magnitude) + (1 << (149 - exponent))) >> unit << unit
    f = sub(x, whole | sign << 31)
    c1, c2, c3 = coefficients(family).exp2
    p = add(mul(add(mul(add(mul(c3, f), c2), f), c1), f), FP32.one)
    n = int(np.uint32(whole).view(np.float32)) * (-1 if sign else 1)
    power = (p >> 23) + n
    return 0 if power <= 0 else FP32.infinity if power >= 255 else power << 23 | p & 0x7FFFFF


def newton(d: int, family: Family) -> int:
    magic, *steps = coefficients(family).reciprocal
    r = magic - d
    for k in steps:
        r = mul(r, sub(k, mul(d, r)))
    return r


def rsqrt_by_steps(d: int, family: Family) -> int:
    magic, *steps = coefficients(family).rsqrt
    r = magic - (d >> 1)
    for k in steps:
        r = mul(r, sub(k, mul(mul(d, r), r))) - (1 << 23)
    return r


def gelu_by_steps(x: int, family: Family, erf: bool) -> int:
    size, sign = x & FP32.magnitude, x & FP32.sign
    if size >= 0x41800000:
        return FP32.nan if size > FP32.infinity else sign if sign else x
    if size < FP32.min_normal:
        x = sign
    s = mul(x, x)
    value = float(np.uint32(s).view(np.float32))
    row = TANH_SEGMENT if not erf else 0 if value < 2 else 4 * (math.frexp(value)[1] - 2) + int(8 * math.frexp(value)[0]) - 3
    c0, c1, c2 = (int(c) for c in coefficients(family).gelu[row])
    power = exp2_by_steps(mul(x, add(mul(add(mul(c2, s), c1), s), c0)), family)
    return sign if power >= 252 << 23 else mul(x, newton(add(power, FP32.one), family))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_step_is_a_sum_or_a_product(family: Family, rng: np.random.Generator) -> None:
    x = pim_functions.arguments(rng, 800)
    np.testing.assert_array_equal(functions.exp2(x, family), [exp2_by_steps(int(one), family) for one in x])
    np.testing.assert_array_equal(functions.gelu(x, family), [gelu_by_steps(int(one), family, False) for one in x])
    np.testing.assert_array_equal(functions.gelu_erf(x, family), [gelu_by_steps(int(one), family, True) for one in x])
    d = x[((x & FP32.magnitude) >= FP32.min_normal) & ((x & FP32.magnitude) < 252 << 23)]
    magnitudes, signs = d & np.uint32(FP32.magnitude), d & np.uint32(FP32.sign)
    np.testing.assert_array_equal(functions.reciprocal(d, family), [newton(int(one), family) | int(sign) for one, sign in zip(magnitudes, signs, strict=True)])
    np.testing.assert_array_equal(functions.rsqrt(magnitudes, family), [rsqrt_by_steps(int(one), family) for one in magnitudes])


@pytest.mark.parametrize("family", FAMILIES)
def test_special_values(family: Family) -> None:
    inf, nan, minus, one = FP32.infinity, FP32.nan, FP32.sign, FP32.one
    inputs = [0, minus, 1, minus | 1, inf, minus | inf, 0x7F800001, 0xFFFFFFFF]
    np.testing.assert_array_equal(functions.exp2(inputs, family), [one, one, one, one, inf, 0, nan, nan])
    for gelu in (functions.gelu, functions.gelu_erf):
        np.testing.assert_array_equal(gelu(inputs, family), [0, minus, 0, minus, inf, minus, nan, nan])
        np.testing.assert_array_equal(gelu([0x41800000, 0xC1800000, 0x7F7FFFFF, 0xFF7FFFFF], family), [0x41800000, minus, 0x7F7FFFFF, minus])
    np.testing.assert_array_equal(functions.reciprocal(inputs, family), [inf, minus | inf, inf, minus | inf, 0, minus, nan, nan])
    np.testing.assert_array_equal(functions.reciprocal([252 << 23, minus | 252 << 23], family), [0, minus])
    np.testing.assert_array_equal(functions.rsqrt(inputs, family), [inf, inf, inf, inf, 0, nan, nan, nan])
    assert int(functions.rsqrt(minus | one, family)) == nan


def test_exp2_of_integers_is_exact() -> None:
    n = np.arange(-126, 128)
    np.testing.assert_array_equal(functions.exp2(floats.from_int(FP32, n)), (n + 127).astype(np.uint32) << 23)
    np.testing.assert_array_equal(functions.exp2(floats.from_int(FP32, [-127, -300, 128, 300])), [0, 0, FP32.infinity, FP32.infinity])


def test_shapes_and_pieces(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    x = pim_functions.arguments(rng, 2000)[:1200].reshape(30, 40)
    whole = functions.gelu(x), functions.exp2(x)
    monkeypatch.setattr(functions, "_PIECE", 7)
    np.testing.assert_array_equal(functions.gelu(x), whole[0])
    np.testing.assert_array_equal(functions.exp2(x), whole[1])
    for function in (functions.exp2, functions.gelu, functions.gelu_erf, functions.reciprocal, functions.rsqrt):
        assert function(FP32.one).shape == () and function([FP32.one]).dtype == np.uint32


# Coefficients


def test_taylor_coefficients_are_the_series() -> None:
    ln2 = math.log(2)
    np.testing.assert_array_equal(coefficients("taylor").exp2, floats.from_float64(FP32, [ln2, ln2**2 / 2, ln2**3 / 6]))
    middle, step = 5.5, 1e-2  # of the interval 5 … 6: value and differences of h there
    values = [-math.log2(math.erfc(-(s**0.5) / 2**0.5) / math.erfc(s**0.5 / 2**0.5)) / s**0.5 for s in (middle - step, middle, middle + step)]
    series = floats.to_float64(FP32, coefficients("taylor").gelu[int(functions.segment(floats.from_float64(FP32, middle)))])[::-1]
    np.testing.assert_allclose(np.polyval(series, middle), values[1], rtol=1e-6)
    np.testing.assert_allclose(np.polyval(np.polyder(series), middle), (values[2] - values[0]) / (2 * step), rtol=1e-4)
    np.testing.assert_allclose(2 * series[0], (values[2] + values[0] - 2 * values[1]) / step**2, rtol=1e-3)


def test_best_fits_alternate() -> None:
    """A polynomial of degree n is the best exactly if its error takes its largest size n + 2 times with changing signs (Chebyshev)."""
    found = remez(math.exp, lambda x: 1 + x, 0.0, 1.0, 3)
    x = np.linspace(0, 1, 20_001)
    error = (np.polyval(found[::-1], x) - np.exp(x)) * (1 + x)
    largest = np.abs(error).max()
    signs = np.sign(error[np.abs(error) > 0.999 * largest])
    assert np.count_nonzero(np.diff(signs)) + 1 == 5


def test_newton_constants_are_the_best() -> None:
    """Moving a constant of the last step by 1.5e-6 makes the largest error worse; so does a seed off by a thousandth."""
    x = floats.from_float64(FP32, 2.0 ** np.linspace(0, 2, 50_001))
    value = floats.to_float64(FP32, x)
    numbers = coefficients("minimax")

    def largest(kind: str, constants: tuple[int, int, int]) -> float:
        magic, *steps = constants
        k = floats.to_float64(FP32, steps)
        if kind == "reciprocal":
            r = floats.to_float64(FP32, np.uint32(magic) - x)
            for one in k:
                r = r * (one - value * r)
            return float(np.abs(r * value - 1).max())
        r = floats.to_float64(FP32, np.uint32(magic) - (x >> np.uint32(1)))
        for one in k:
            r = r * (one - value * r * r) / 2
        return float(np.abs(r * np.sqrt(value) - 1).max())

    for kind, constants in (("reciprocal", numbers.reciprocal), ("rsqrt", numbers.rsqrt)):
        best = largest(kind, constants)
        assert best < 1e-6
        for other in (
            (constants[0], constants[1], constants[2] + 6),
            (constants[0], constants[1], constants[2] - 6),
            (constants[0] + 8192, *constants[1:]),
            (constants[0] - 8192, *constants[1:]),
        ):
            assert largest(kind, other) > best


def test_unknown_coefficients_are_refused() -> None:
    with pytest.raises(ConfigError, match="functions must be one of minimax, taylor, not 'cordic'"):
        coefficients("cordic")  # type: ignore[arg-type]


# What the companion chip composes of them


def _rows(rng: np.random.Generator) -> dict[str, np.ndarray]:
    n = 100
    return {
        "normal": rng.standard_normal((200, n)) * 3,
        "wide": rng.standard_normal((200, n)) * 40,
        "equal": np.full((3, n), -7.25),
        "one far above": np.where(np.arange(n) == 17, 300.0, rng.standard_normal((20, n))),
        "falling by halves": -np.arange(n) / 2.0 + np.zeros((2, 1)),
        "large and close": 1e4 + rng.standard_normal((50, n)),
        "tiny": rng.standard_normal((50, n)) * 1e-20,
        "one value": rng.standard_normal((20, 1)),
    }


# Rounding the weights to bf16 costs up to half a place of a weight below 1/2, 2**-10, whatever the coefficients; these show in the weights' sum.
@pytest.mark.parametrize(("family", "bound"), [("minimax", 1.2e-6), ("taylor", 7.5e-6)])
def test_softmax(family: Family, bound: float, rng: np.random.Generator) -> None:
    k = int(floats.from_float64(FP32, math.log2(math.e)))
    for what, rows in _rows(rng).items():
        scores = floats.from_float64(FP32, rows)
        weights, inverse = functions.softmax(scores, k, 16, family)
        got = floats.to_float64(FP32, weights) * floats.to_float64(FP32, inverse)[:, None]
        exact = floats.to_float64(FP32, scores)
        exact = np.exp(exact - exact.max(-1, keepdims=True))
        exact /= exact.sum(-1, keepdims=True)
        assert np.abs(got - exact).max() <= 2.0**-10, what
        assert np.abs(got.sum(-1) - 1).max() <= bound, what
        assert (weights & 0xFFFF == 0).all()


@pytest.mark.parametrize(("family", "bound"), [("minimax", 5e-6), ("taylor", 2.2e-5)])
def test_layer_norm(family: Family, bound: float, rng: np.random.Generator) -> None:
    for what, rows in _rows(rng).items():
        x = floats.from_float64(FP32, rows)
        exact = floats.to_float64(FP32, x)
        exact = (exact - exact.mean(-1, keepdims=True)) / np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
        got = floats.to_float64(FP32, functions.layer_norm(x, 1e-5, 16, family))
        # Behind a large mean, fp32 keeps fewer bits of the differences: 1e4 leaves 13.
        allowed = 2e-3 if what == "large and close" else bound
        assert np.abs(got - exact).max() <= allowed, (what, np.abs(got - exact).max())


# RTL


def test_lanes_equal_the_golden_model(rng: np.random.Generator) -> None:
    assert pim_functions.check_lanes(pim_functions.bench(), rng, 20_000) > 120_000


def test_serial_units_equal_the_golden_model(rng: np.random.Generator) -> None:
    assert pim_functions.check_scalars(pim_functions.bench(), rng, 2000) == 4000


@pytest.mark.parametrize("port", ["exp2_taylor", "gelu_minimax", "scalars_minimax"])
def test_faults_are_caught(rng: np.random.Generator, port: str) -> None:
    made, fault = pim_functions.bench(), Fault(port, "result", "flip", beat=37)
    with pytest.raises(MismatchError, match=rf"{port}\.result\[37\]"):
        if port.startswith("scalars"):
            pim_functions.check_scalars(made, rng, 100, faults=[fault])
        else:
            pim_functions.check_lanes(made, rng, 400, faults=[fault])


@pytest.mark.soak
@pytest.mark.parametrize("run", range(4))
def test_lanes_equal_the_golden_model_on_many_operands(rng: np.random.Generator, run: int) -> None:
    assert pim_functions.check_lanes(pim_functions.bench(), rng, 1_000_000) > 5_500_000
    assert pim_functions.check_scalars(pim_functions.bench(), rng, 20_000) == 40_000


def test_statistics_have_one_order(rng: np.random.Generator) -> None:
    x = arithmetic.values(floats.from_float64(FP32, rng.standard_normal(16 * 11)))
    assert arithmetic.beat_sum(x, 16) == partial_sums(arithmetic.tree_sum(x.reshape(-1, 16)))
