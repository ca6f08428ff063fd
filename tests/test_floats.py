# SPDX-License-Identifier: Apache-2.0
"""Golden floating-point arithmetic against exact rational arithmetic, and every component against the golden one."""

import gc
import math
import warnings
from fractions import Fraction

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from lutra.cosim.benches import floats as benches
from lutra.cosim.benches.floats import E2M1, E4M3
from lutra.cosim.harness import Fault
from lutra.hls_models import floats
from lutra.hls_models.errors import MismatchError
from lutra.hls_models.floats import BF16, E8M11, FLOAT_LATENCY, FP16, FP32, FloatFormat
from lutra.rtl.floats import FloatToInt, IntToFloat

FORMATS = (E8M11, FP32, BF16, FP16, E4M3, E2M1)


def value(F: FloatFormat, bits: int) -> Fraction | float:
    """What a pattern means, from the definition of the layout; infinities and NaN as floats, zeros as Fraction(0)."""
    sign = -1 if bits >> (F.bits - 1) else 1
    exponent, mantissa = (bits >> F.mantissa) & ((1 << F.exponent) - 1), bits & ((1 << F.mantissa) - 1)
    if exponent == (1 << F.exponent) - 1:
        return math.nan if mantissa else sign * math.inf
    if exponent == 0:
        return Fraction(0)
    return sign * Fraction((1 << F.mantissa) + mantissa) * Fraction(2) ** (exponent - F.bias - F.mantissa)


def is_negative(F: FloatFormat, bits: int) -> bool:
    return bool(bits >> (F.bits - 1))


def leading(x: Fraction) -> int:
    """Exponent e of a positive x: 2**e <= x < 2**(e + 1)."""
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if Fraction(2) ** e <= x else e - 1


def rounded(F: FloatFormat, x: Fraction, negative_zero: bool = False) -> int:
    """Round a rational to F: nearest even with unbounded exponent, then flush or overflow."""
    if x == 0:
        return F.sign if negative_zero else 0
    e = leading(abs(x))
    steps = round(abs(x) / Fraction(2) ** (e - F.mantissa))  # Python rounds half to even
    if steps == 1 << (F.mantissa + 1):
        e, steps = e + 1, 1 << F.mantissa
    sign = F.sign if x < 0 else 0
    if e > F.bias:
        return sign | F.infinity
    if e < 1 - F.bias:
        return sign
    return sign | ((e + F.bias) << F.mantissa) | (steps - (1 << F.mantissa))


def special(F: FloatFormat, x: float) -> int:
    return F.nan if math.isnan(x) else F.infinity | (F.sign if x < 0 else 0)


def reference_add(F: FloatFormat, a: int, b: int) -> int:
    x, y = value(F, a), value(F, b)
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return rounded(F, x + y, negative_zero=is_negative(F, a) and is_negative(F, b) and x == 0 == y)
    return special(F, (0.0 if isinstance(x, Fraction) else x) + (0.0 if isinstance(y, Fraction) else y))


def reference_mul(Fa: FloatFormat, a: int, Fb: FloatFormat, b: int, F: FloatFormat) -> int:
    x, y = value(Fa, a), value(Fb, b)
    negative = is_negative(Fa, a) != is_negative(Fb, b)
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return rounded(F, x * y, negative_zero=negative)
    if x == 0 or y == 0 or x != x or y != y:
        return F.nan
    return special(F, -math.inf if negative else math.inf)


def reference_div(F: FloatFormat, a: int, b: int) -> int:
    x, y = value(F, a), value(F, b)
    negative = is_negative(F, a) != is_negative(F, b)
    if x != x or y != y or (x == 0 and y == 0) or (not isinstance(x, Fraction) and not isinstance(y, Fraction)):
        return F.nan
    if not isinstance(y, Fraction):
        return F.sign if negative else 0
    if not isinstance(x, Fraction) or y == 0:
        return special(F, -math.inf if negative else math.inf)
    return rounded(F, x / y, negative_zero=negative)


def reference_sqrt(F: FloatFormat, a: int) -> int:
    x = value(F, a)
    if x == 0:
        return a & F.sign
    if not isinstance(x, Fraction) or x < 0:
        return F.infinity if x == math.inf else F.nan
    scale = 2 * (F.mantissa + 4) - leading(x) // 2 * 2
    scaled = x * Fraction(2) ** scale
    root = math.isqrt(scaled.numerator // scaled.denominator)
    exact = root * root == scaled
    return rounded(F, (Fraction(2 * root) + (0 if exact else 1)) / 2 * Fraction(2) ** (-scale // 2))


def table(F: FloatFormat, function, *operands: np.ndarray) -> np.ndarray:
    return np.array([function(*(int(x) for x in row)) for row in zip(*operands, strict=True)], np.uint32)


def sample(F: FloatFormat, rng: np.random.Generator, count: int = 3000) -> tuple[np.ndarray, np.ndarray]:
    a, b = benches.pairs(F, F, rng, 2000)
    picked = rng.choice(len(a), count, replace=False)
    return a[picked], b[picked]


@pytest.mark.smoke
@pytest.mark.parametrize("F", FORMATS, ids=str)
def test_golden_operations_equal_exact_arithmetic(F, rng):
    a, b = sample(F, rng)
    np.testing.assert_array_equal(floats.add(F, a, b), table(F, lambda x, y: reference_add(F, x, y), a, b))
    np.testing.assert_array_equal(floats.sub(F, a, b), table(F, lambda x, y: reference_add(F, x, y ^ F.sign), a, b))
    np.testing.assert_array_equal(floats.mul(F, a, F, b, F), table(F, lambda x, y: reference_mul(F, x, F, y, F), a, b))
    np.testing.assert_array_equal(floats.div(F, a, b), table(F, lambda x, y: reference_div(F, x, y), a, b))
    np.testing.assert_array_equal(floats.sqrt(F, a), table(F, lambda x: reference_sqrt(F, x), a))
    np.testing.assert_array_equal(floats.greater(F, a, b), [value(F, int(x)) > value(F, int(y)) for x, y in zip(a, b, strict=True)])


def test_golden_operations_of_the_tiny_format_on_all_pairs():
    grid = np.arange(1 << E4M3.bits, dtype=np.uint32)
    a, b = (x.ravel() for x in np.meshgrid(grid, grid))
    np.testing.assert_array_equal(floats.add(E4M3, a, b), table(E4M3, lambda x, y: reference_add(E4M3, x, y), a, b))
    np.testing.assert_array_equal(floats.mul(E4M3, a, E4M3, b, E4M3), table(E4M3, lambda x, y: reference_mul(E4M3, x, E4M3, y, E4M3), a, b))


@pytest.mark.parametrize("formats", [(FP32, E8M11, FP32), (FP32, FP32, E8M11), (FP16, BF16, E8M11), (FP32, FP16, E4M3)], ids=lambda f: "-".join(map(str, f)))
def test_golden_products_across_formats_round_once(formats, rng):
    Fa, Fb, F = formats
    a, b = (x[-3000:] for x in benches.pairs(Fa, Fb, rng, 2000))
    np.testing.assert_array_equal(floats.mul(Fa, a, Fb, b, F), table(F, lambda x, y: reference_mul(Fa, x, Fb, y, F), a, b))


def test_fp32_equals_the_processor_where_results_are_normal(rng):
    a, b = benches.pairs(FP32, FP32, rng, 50_000)
    x, y = (floats.convert(FP32, FP32, bits).view(np.float32) for bits in (a, b))
    with np.errstate(all="ignore"):
        natives = [
            (x + y, floats.add(FP32, a, b)),
            (x - y, floats.sub(FP32, a, b)),
            (x * y, floats.mul(FP32, a, FP32, b, FP32)),
            (x / y, floats.div(FP32, a, b)),
        ]
        natives.append((np.sqrt(x), floats.sqrt(FP32, a)))
    for native, ours in natives:
        normal = np.abs(native) >= 2 * np.finfo(np.float32).tiny
        assert normal.sum() > len(a) // 4
        np.testing.assert_array_equal(native.view(np.uint32)[normal], ours[normal])
        assert ((ours == FP32.nan) == np.isnan(native)).all()


@pytest.mark.parametrize("source", FORMATS, ids=str)
@pytest.mark.parametrize("target", FORMATS, ids=str)
def test_conversions(source, target, rng):
    a = benches.patterns(source, rng, 600)

    def reference(bits: int) -> int:
        x = value(source, bits)
        return rounded(target, x, is_negative(source, bits)) if isinstance(x, Fraction) else special(target, x)

    expected = table(target, reference, a)
    np.testing.assert_array_equal(floats.convert(source, target, a), expected)
    np.testing.assert_array_equal(floats.from_float64(target, floats.to_float64(source, a)), expected)
    if source == target:
        np.testing.assert_array_equal(floats.neg(source, a), np.where(expected == source.nan, expected, expected ^ source.sign))


@pytest.mark.parametrize("F", FORMATS, ids=str)
def test_integers(F, rng):
    ints = np.concatenate([rng.integers(-(2**31), 2**31, 500) >> rng.integers(0, 31, 500), np.arange(-40, 40), [2**31 - 1, -(2**31)]])
    np.testing.assert_array_equal(floats.from_int(F, ints), [rounded(F, Fraction(int(x))) for x in ints])
    bits = np.concatenate([benches.patterns(F, rng, 1000), floats.from_float64(F, np.arange(-300, 300) / 2)])

    def reference(x: int) -> int:
        exact = value(F, x)
        if isinstance(exact, Fraction):
            return max(-127, min(100, round(exact)))
        return 0 if math.isnan(exact) else 100 if exact > 0 else -127

    np.testing.assert_array_equal(floats.to_int(F, bits, -127, 100), [reference(int(x)) for x in bits])


ONE, TWO, INF, NAN, NEG = FP32.one, 0x40000000, FP32.infinity, FP32.nan, FP32.sign
SMALLEST, SUBNORMAL, LARGEST = FP32.min_normal, FP32.min_normal - 1, FP32.max_finite
UP = 0x3F800001  # the number after 1


@pytest.mark.parametrize(
    ("what", "got", "expected"),
    [
        ("x - x is +0", lambda: floats.sub(FP32, ONE, ONE), 0),
        ("-0 + -0", lambda: floats.add(FP32, NEG, NEG), NEG),
        ("-0 + +0", lambda: floats.add(FP32, NEG, 0), 0),
        ("inf - inf", lambda: floats.sub(FP32, INF, INF), NAN),
        ("subnormal operands are zero", lambda: floats.add(FP32, SUBNORMAL, SUBNORMAL), 0),
        ("and keep their sign", lambda: floats.add(FP32, NEG | SUBNORMAL, NEG | SUBNORMAL), NEG),
        ("subnormal difference", lambda: floats.sub(FP32, SMALLEST, SMALLEST + 1), NEG),
        ("overflow", lambda: floats.add(FP32, LARGEST, LARGEST), INF),
        ("0 * inf", lambda: floats.mul(FP32, 0, FP32, INF, FP32), NAN),
        ("a signalling NaN with its sign", lambda: floats.mul(FP32, 0xFF800001, FP32, ONE, FP32), NAN),
        ("x / 0", lambda: floats.div(FP32, NEG | ONE, 0), NEG | INF),
        ("0 / 0", lambda: floats.div(FP32, 0, NEG), NAN),
        ("1 / inf", lambda: floats.div(FP32, ONE, NEG | INF), NEG),
        ("root of -0", lambda: floats.sqrt(FP32, NEG), NEG),
        ("root of -1", lambda: floats.sqrt(FP32, NEG | ONE), NAN),
        # (1 - 2^-24) * 2^-126 and less: rounded as if the exponent had no lower bound, only then flushed.
        ("up to the smallest", lambda: floats.from_float64(FP32, 2.0**-126 * (1 - 2.0**-25)), SMALLEST),
        ("just not up to it", lambda: floats.from_float64(FP32, 2.0**-126 * (1 - 2.0**-25 - 2.0**-40)), 0),
        ("product up to the smallest", lambda: floats.mul(FP32, SMALLEST | 1, FP32, ONE - 1, E8M11), E8M11.min_normal),
        ("product below", lambda: floats.mul(FP32, SMALLEST, FP32, ONE - 1, FP32), 0),
        ("conversion up to infinity", lambda: floats.convert(FP32, E8M11, LARGEST), E8M11.infinity),
        ("fp16 overflow at 65520", lambda: floats.from_float64(FP16, 65520.0), FP16.infinity),
        ("fp16 largest", lambda: floats.from_float64(FP16, np.nextafter(65520.0, 0)), FP16.max_finite),
        ("tie to even, down", lambda: floats.from_float64(FP32, 1 + 2.0**-24), ONE),
        ("tie to even, up", lambda: floats.from_float64(FP32, 1 + 3 * 2.0**-24), UP + 1),
        ("2 is 2", lambda: floats.from_int(FP32, 2), TWO),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_rules(what, got, expected):
    assert int(got()) == expected, what


def test_sums_follow_their_trees(rng):
    for n in (1, 2, 3, 5, 8, 13):
        x = floats.from_float64(E8M11, rng.standard_normal((4, n)))
        for row, total in zip(x, floats.tree_sum(E8M11, x), strict=True):
            level = list(row)
            while len(level) > 1:
                level = [floats.add(E8M11, *level[i : i + 2]) if i + 1 < len(level) else level[i] for i in range(0, len(level), 2)]
            assert total == level[0]
        np.testing.assert_array_equal(floats.tree_sum(E8M11, x.T, axis=0), floats.tree_sum(E8M11, x))
        for partials in (1, 3, 4):
            sums = np.zeros((4, partials), np.uint32)
            for i in range(n):
                sums[:, i % partials] = floats.add(E8M11, sums[:, i % partials], x[:, i])
            np.testing.assert_array_equal(floats.partial_sum(E8M11, x, partials), floats.tree_sum(E8M11, sums))
            np.testing.assert_array_equal(floats.partial_sum(E8M11, x.T, partials, axis=0), floats.tree_sum(E8M11, sums))
    assert floats.tree_sum(FP32, [NEG]) == NEG and floats.partial_sum(FP32, [NEG], 2) == 0  # a partial sum starts from +0


def test_shapes_and_types():
    assert floats.add(FP32, 0, np.zeros((2, 3), np.uint32)).shape == (2, 3)
    assert floats.add(FP32, ONE, ONE).shape == () and floats.add(FP16, 0, 0).dtype == np.uint32
    assert floats.to_float64(E8M11, E8M11.one) == 1.0 and floats.to_float64(FP16, FP16.one) == 1.0
    assert floats.from_float64(E8M11, []).shape == (0,)


def test_formats_are_checked():
    assert (FP32.bits, FP32.bias, FP32.mask, str(E8M11)) == (32, 127, 0xFFFFFFFF, "e8m11")
    assert TypeAdapter(FloatFormat).validate_python({"exponent": 8, "mantissa": 11}) == E8M11
    for exponent, mantissa, message in ((9, 11, "exponent"), (1, 11, "exponent"), (8, 24, "mantissa"), (8, 0, "mantissa")):
        with pytest.raises(ValidationError, match=message):
            FloatFormat(exponent=exponent, mantissa=mantissa)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a refused component is never elaborated, which Amaranth remarks on
        with pytest.raises(ValueError, match="low <= 0 < high, not 1 and 5"):
            FloatToInt(format=FP32, low=1, high=5)
        with pytest.raises(ValueError, match="2 or more, not 1"):
            IntToFloat(width=1, format=FP32)
        gc.collect()


def test_components_equal_the_golden_model(rng):
    bench, cases = benches.built()
    assert benches.check(bench, cases, rng, count=2500, exhaustive=17) > 800_000


def test_divider_equals_the_golden_model(rng):
    bench, _ = benches.built()
    assert benches.check_divsqrt(bench, rng, 2000) == 2000


def test_a_wrong_bit_a_lost_and_a_late_result_are_caught(rng):
    bench, cases = benches.built()
    only = {"add_e8m11": cases["add_e8m11"]}
    message = r"add_e8m11.result\[100\]: expected 0x\w+, got 0x\w+; cycle 104"
    for kind, expected in (("flip", message), ("drop", "add_e8m11.result 799 of 800")):
        with pytest.raises(MismatchError, match=expected):
            benches.check(bench, only, rng, count=100, exhaustive=0, faults=[Fault("add_e8m11", "result", kind, beat=100)])
    for kind in ("flip", "delay"):
        with pytest.raises(MismatchError, match=r"divsqrt.result\[7\]: expected 0x\w+, got 0x\w+; cycle \d+, expected cycle \d+"):
            benches.check_divsqrt(bench, rng, 20, faults=[Fault("divsqrt", "result", kind, beat=7, cycles=200)])


def test_latencies_are_those_of_the_shared_table():
    _, cases = benches.built()
    found = {name.split("_e")[0]: case.component.latency for name, case in cases.items() if name.startswith(("add", "mul", "convert"))}
    assert found == {name: FLOAT_LATENCY[name] for name in ("add", "mul", "convert")}


@pytest.mark.soak
def test_components_on_every_operand_of_twenty_bits_and_many_more(rng):
    bench, cases = benches.built()
    assert benches.check(bench, cases, rng, count=2500, exhaustive=20) > 9_000_000
    for _ in range(10):
        assert benches.check(bench, cases, rng, count=25_000, exhaustive=17) > 5_000_000
    assert benches.check_divsqrt(bench, rng, 50_000) == 50_000
