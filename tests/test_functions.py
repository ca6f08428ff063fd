# SPDX-License-Identifier: Apache-2.0
"""exp2, sigmoid and SiLU: errors over all inputs, special values. That the components equal them: tests/test_floats.py, in the same top."""

import gc
import warnings

import numpy as np
import pytest

from lutra.cosim.benches.floats import E2M1, E4M3, E8M12
from lutra.hls_models import floats, functions
from lutra.hls_models.errors import ConfigError
from lutra.hls_models.floats import BF16, E8M11, FP16, FP32, FloatFormat
from lutra.rtl.functions import Exp2, Sigmoid, Silu


def ulps(F: FloatFormat, got: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Errors in units of the last place of the exact result; results that are not normal numbers of F give 0 if they are flushed as they should be."""
    smallest, largest = 2.0 ** (1 - F.bias), floats.to_float64(F, F.max_finite)
    values = floats.to_float64(F, got)
    size = np.abs(reference)
    _, exponent = np.frexp(size)
    last = np.exp2(np.maximum(exponent - 1.0, 1 - F.bias) - F.mantissa)
    with np.errstate(invalid="ignore"):
        error = np.abs(values - reference) / last
    near = 2.0**-F.mantissa  # so close to a limit of the format either side of it is right
    flushed = (size < smallest) & ((values == 0) | ((np.abs(values) == smallest) & (size >= smallest * (1 - near))))
    overflown = (size > largest) & (np.isinf(values) | ((np.abs(values) == largest) & (size <= largest * (1 + near))))
    return np.where(flushed | overflown, 0.0, error)


def logistic(x: np.ndarray) -> np.ndarray:
    """float64 reference, exact to a few units of 2**-52 on either side."""
    small = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, small) / (1.0 + small)


def finite_inputs(F: FloatFormat) -> np.ndarray:
    bits = np.arange(1 << F.bits, dtype=np.uint32)
    return bits[(bits & F.magnitude) < F.infinity]


# Measured maxima over every input, rounded up; half a unit is the final rounding alone. The contract for e8m11 is 1.
BOUNDS = {E8M11: (0.554, 0.564), BF16: (0.501, 0.502), FP16: (0.525, 0.532), E8M12: (0.631, 0.643), E4M3: (0.501, 0.501), E2M1: (0.501, 0.501)}


@pytest.mark.smoke
@pytest.mark.parametrize("F", BOUNDS, ids=str)
def test_silu_and_sigmoid_on_every_input(F):
    bits = finite_inputs(F)
    x = floats.to_float64(F, bits)
    silu_bound, sigmoid_bound = BOUNDS[F]
    assert silu_bound <= 1 and sigmoid_bound <= 1
    silu = functions.silu(F, bits)
    errors = ulps(F, silu, x * logistic(x))
    assert errors.max() <= silu_bound, f"silu is {errors.max():.4f} units off at {x[errors.argmax()]}"
    assert ((silu & F.sign) == (bits & F.sign)).all()
    errors = ulps(F, functions.sigmoid(F, bits), logistic(x))
    assert errors.max() <= sigmoid_bound, f"sigmoid is {errors.max():.4f} units off at {x[errors.argmax()]}"


def test_silu_has_no_hole_far_below_zero():
    x = np.array([-20.0, -50.0, -80.0, -91.5])
    got = floats.to_float64(E8M11, functions.silu(E8M11, floats.from_float64(E8M11, x)))
    assert (got < 0).all() and np.allclose(got, x * np.exp(x), rtol=2.0**-11, atol=0)


@pytest.mark.parametrize(("F", "bound"), [(E8M11, 0.511), (BF16, 0.501), (FP16, 0.506), (E8M12, 0.522)], ids=str)
def test_exp2_on_every_fraction_and_the_whole_range(F, bound, rng):
    fractions = np.arange(1 << functions.ARGUMENT) / 2.0**functions.ARGUMENT
    spread = rng.uniform(-152, 130, 500_000)
    tiny = np.exp2(rng.uniform(-149, 0, 50_000)) * rng.choice([-1, 1], 50_000)
    x = floats.from_float64(FP32, np.concatenate([fractions, -fractions, spread, tiny]))
    value = floats.to_float64(FP32, x)
    errors = ulps(F, functions.exp2(x, F), np.exp2(value))
    assert errors.max() <= bound, f"{errors.max():.4f} units off at {value[errors.argmax()]}"


def test_exp2_is_exact_on_integers_and_never_rises_above_one_for_negative_arguments():
    n = np.arange(-126, 128)
    np.testing.assert_array_equal(functions.exp2(floats.from_int(FP32, n)), (n + 127).astype(np.uint32) << 11)
    falling = functions.exp2(floats.from_float64(FP32, -np.arange(1 << 18) / 2.0**15))
    assert falling[0] == E8M11.one and (np.diff(falling.astype(np.int64)) <= 0).all()


def test_special_values():
    def bits(*values: float) -> np.ndarray:
        return floats.from_float64(FP32, values)

    inf, nan = np.inf, np.nan
    got = functions.exp2(bits(0.0, -0.0, -inf, inf, nan, -127, 128, -1e30, 1e30))
    one, infinity = E8M11.one, E8M11.infinity
    np.testing.assert_array_equal(got, [one, one, 0, infinity, E8M11.nan, 0, infinity, 0, infinity])
    # fp32 subnormals are zeros, and every NaN pattern is a NaN
    np.testing.assert_array_equal(functions.exp2([1, 0x80000001, 0x7F800001, 0xFFC00000]), [one, one, E8M11.nan, E8M11.nan])
    for F in (E8M11, FP16, E4M3):
        x = floats.from_float64(F, [0.0, -0.0, -inf, inf, nan])
        np.testing.assert_array_equal(functions.silu(F, x), [0, F.sign, F.sign, F.infinity, F.nan])
        half = F.one - F.min_normal
        np.testing.assert_array_equal(functions.sigmoid(F, x), [half, half, 0, F.one, F.nan])


def test_shapes():
    assert functions.exp2(np.zeros((2, 3), np.uint32)).shape == (2, 3)
    assert functions.silu(E8M11, 0).shape == () and functions.silu(E8M11, [0]).dtype == functions.exp2([0]).dtype == np.uint32


@pytest.mark.parametrize("make", [lambda F: functions.exp2([0], F), lambda F: functions.silu(F, [0]), lambda F: functions.sigmoid(F, [0])])
def test_formats_beyond_the_tables_are_refused(make):
    with pytest.raises(ConfigError, match=r"mantissa: .* 12 stored bits, not 13; the nearest legal value is 12"):
        make(FloatFormat(8, 13))


def test_components_refuse_them_too():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a refused component is never elaborated, which Amaranth remarks on
        for component in (Exp2, Sigmoid, Silu):
            with pytest.raises(ConfigError, match="not 23"):
                component(format=FP32)
        gc.collect()
