# SPDX-License-Identifier: Apache-2.0
"""Bank MAC: golden values against exact rational arithmetic, whole bursts against single MACs, RTL against golden values."""

import math
from fractions import Fraction

import numpy as np
import pytest

from lutra.cosim.benches import pim_mac
from lutra.cosim.benches.floats import pairs
from lutra.cosim.harness import Fault
from lutra.hls_models import floats
from lutra.hls_models.errors import MismatchError
from lutra.hls_models.floats import BF16, FP32
from lutra.hls_models.pim import arithmetic, mac

INF, NAN = FP32.infinity, FP32.nan
FORMS: tuple[mac.Accumulator, ...] = ("fp32", "bf16")


def nearest(x: Fraction, digits: int) -> Fraction:
    """Nearest number of ``digits`` significant bits, ties to even."""
    if x == 0:
        return x
    exponent = math.floor(math.log2(abs(x.numerator)) - math.log2(x.denominator)) if x.denominator != 1 else abs(x.numerator).bit_length() - 1
    while abs(x) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(x) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (exponent - digits + 1)
    return round(x / unit) * unit  # Fraction's round is to even


def pattern(x: Fraction, digits: int, *, negative_zero: bool = False) -> int:
    """fp32 bits of x rounded to ``digits`` bits."""
    y = nearest(x, digits)
    sign = (x < 0 or (x == 0 and negative_zero)) << 31
    if abs(y) < Fraction(2) ** -126:
        return sign
    if abs(y) >= Fraction(2) ** 128:
        return sign | INF
    return sign | int(np.float32(float(abs(y))).view(np.uint32))


def number(bits: int, width: int) -> tuple[str, Fraction, bool]:
    """(kind, value, negative) of a bf16 (16) or fp32 (32) pattern: kind 'nan', 'inf' or 'number'."""
    fraction = width - 9
    negative, exponent, rest = bool(bits >> (width - 1)), bits >> fraction & 255, bits & ((1 << fraction) - 1)
    if exponent == 255:
        return ("nan" if rest else "inf"), Fraction(0), negative
    size = Fraction(0) if exponent == 0 else Fraction((1 << fraction) + rest) * Fraction(2) ** (exponent - 127 - fraction)
    return "number", -size if negative else size, negative


def reference_dot(a: list[int], b: list[int]) -> int:
    """fp32 bits of the sum of one MAC, from the words of the definition."""
    infinities, products = [], []
    for x, y in zip(a, b, strict=True):
        (kind_x, value_x, negative_x), (kind_y, value_y, negative_y) = number(x, 16), number(y, 16)
        if "nan" in (kind_x, kind_y):
            return NAN
        if "inf" in (kind_x, kind_y):
            if (kind_x == "number" and value_x == 0) or (kind_y == "number" and value_y == 0):
                return NAN
            infinities.append(negative_x != negative_y)
        elif value_x * value_y:
            products.append((value_x * value_y, (x >> 7 & 255) + (y >> 7 & 255)))
    if infinities:
        return NAN if len(set(infinities)) == 2 else INF | infinities[0] << 31
    if not products:
        return 0
    # A product of exponent e has a significand of 16 bits, worth 2**(e - 254 - 14) at its lowest; twelve places more are kept at the largest exponent.
    unit = Fraction(2) ** (max(e for _, e in products) - 254 - 14 - 12)
    total = sum(math.trunc(value / unit) for value, _ in products)
    return pattern(total * unit, 24)


def reference_add(a: int, b: int, form: str) -> int:
    """fp32 bits of the accumulator."""
    (kind_a, value_a, negative_a), (kind_b, value_b, negative_b) = number(a, 32), number(b, 32)
    if "nan" in (kind_a, kind_b) or (kind_a == kind_b == "inf" and negative_a != negative_b):
        return NAN
    if "inf" in (kind_a, kind_b):
        return INF | (negative_a if kind_a == "inf" else negative_b) << 31
    total = pattern(value_a + value_b, 24, negative_zero=negative_a and negative_b)
    if form == "fp32" or total & INF == INF:
        return total
    return pattern(number(total, 32)[1], 8, negative_zero=bool(total >> 31))


def test_a_mac_is_what_the_definition_says(rng: np.random.Generator) -> None:
    for lanes in (4, 8, 16):
        a, b = pim_mac.operands(rng, 600, lanes)
        expected = [reference_dot(x.tolist(), y.tolist()) for x, y in zip(a, b, strict=True)]
        np.testing.assert_array_equal(mac.dot(a, b), expected)
        accumulators = rng.permutation(np.array(expected, np.uint32))
        accumulators[::3] = mac.dot(a, b)[::3] ^ (1 << 31) ^ (rng.integers(0, 4, 200) << rng.integers(0, 20, 200)).astype(np.uint32)  # cancelled, or nearly
        for form in FORMS:
            start = accumulators if form == "fp32" else mac.load(mac.read_out(accumulators))
            sums = [reference_add(int(x), y, form) for x, y in zip(start, expected, strict=True)]
            np.testing.assert_array_equal(mac.mac(a, b, start, form), sums)


def bf16(*values: float) -> np.ndarray:
    return floats.from_float64(BF16, values).astype(np.uint16)


ONE = 0x3F80


@pytest.mark.parametrize(
    ("what", "a", "b", "expected"),
    [
        ("nothing", [0] * 4, [ONE] * 4, 0),
        ("negative zeros", [0x8000] * 4, [ONE] * 4, 0),
        ("subnormals are zeros", [0x007F, 0x807F, 0, 0], [0x7F7F] * 4, 0),
        ("cancellation", bf16(3, -3, 0, 0), bf16(5, 5, 0, 0), 0),
        ("cancelled but for a small one", bf16(256, -256, 2.0**-10, 0), bf16(1, 1, 1, 0), 0x3A800000),
        ("out of the field", bf16(256, -256, 2.0**-20, 0), bf16(1, 1, 1, 0), 0),
        ("truncated, not rounded", bf16(1, -156 / 128 * 2.0**-25, 0, 0), bf16(1, 157 / 128, 0, 0), FP32.one),
        ("overflow", bf16(2.0**127, 0, 0, 0), bf16(2, 0, 0, 0), INF),
        ("no overflow inside", bf16(2.0**127, -(2.0**127), 1, 0), bf16(2, 2, 1, 0), 0),
        ("underflow keeps the sign", bf16(-(2.0**-100), 0, 0, 0), bf16(2.0**-100, 0, 0, 0), 0x80000000),
        ("infinity", [0x7F80, 0, ONE, 0], [0xBF80, ONE, ONE, 0], INF | 1 << 31),
        ("infinities against each other", [0x7F80, 0x7F80, 0, 0], [ONE, 0xBF80, 0, 0], NAN),
        ("infinity times zero", [0x7F80, ONE, ONE, ONE], [0x8000, ONE, ONE, ONE], NAN),
        ("infinity times a subnormal", [0x7F80, ONE, ONE, ONE], [0x0001, ONE, ONE, ONE], NAN),
        ("a NaN times zero", [0xFF81, 0, 0, 0], [0, 0, 0, 0], NAN),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_rules(what: str, a: list[int], b: list[int], expected: int) -> None:
    column, buffer = np.asarray(a, np.uint16), np.asarray(b, np.uint16)
    assert reference_dot(column.tolist(), buffer.tolist()) == expected, what
    assert int(mac.dot(column, buffer)) == expected
    assert int(mac.burst(column[None], buffer[None])) == int(mac.mac(column, buffer, 0)) == (0 if expected == 1 << 31 else expected)  # +0 + (-0) is +0


def test_accumulators() -> None:
    np.testing.assert_array_equal(mac.load([0, 0x8000, 0x0001, 0x8001, 0x7F80, 0xFF81, ONE]), [0, 1 << 31, 0, 1 << 31, INF, NAN, FP32.one])
    np.testing.assert_array_equal(mac.read_out([FP32.one, 0x3F808000, 0x3F818000, 0x7F7FFFFF, 0xFFFFFFFF]), [ONE, ONE, 0x3F82, 0x7F80, 0x7FC0])
    one, tiny = bf16(1, 0, 0, 0), bf16(2.0**-9, 0, 0, 0)
    assert mac.mac(one, tiny, FP32.one, "bf16") == FP32.one and mac.mac(one, tiny, FP32.one) == FP32.one | 1 << 14
    assert mac.mac(-one, -one, INF) == INF and mac.mac(bf16(-1, 0, 0, 0), bf16(2, 0, 0, 0), NAN) == NAN


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_bursts_are_macs_in_order(lanes: int, form: mac.Accumulator, rng: np.random.Generator) -> None:
    for kind in range(4):
        outputs, vectors, columns = (int(n) for n in rng.integers(1, 12, 3))
        shapes = (outputs, columns, lanes), (vectors, columns, lanes)
        if kind == 0:
            w, x = (floats.from_float64(BF16, rng.standard_normal(shape)).astype(np.uint16) for shape in shapes)
        elif kind == 1:
            w, x = (floats.from_float64(BF16, rng.standard_normal(shape) * 2.0 ** rng.integers(-70, 70, shape)).astype(np.uint16) for shape in shapes)
        else:
            w, x = (pim_mac.operands(rng, shape[0] * shape[1], lanes)[i].reshape(shape) for i, shape in enumerate(shapes))
        start = floats.from_float64(FP32, rng.standard_normal((vectors, outputs)))
        expected = start
        for column in range(columns):
            expected = mac.mac(w[None, :, column], x[:, None, column], expected, form)
        np.testing.assert_array_equal(mac.gemv(w, x, start, form), expected)
        np.testing.assert_array_equal(mac.gemv(mac.Operand.of(w), mac.Operand.of(x), start, form), expected)
        np.testing.assert_array_equal(mac.burst(w, x[0], start[0], form), expected[0])


def test_the_quick_way_is_exact_at_the_ends_of_its_range(rng: np.random.Generator) -> None:
    """Sums of exponents around those where ``gemv`` turns to ``dot``, with products far below them."""
    count = 4000
    total = rng.choice([150, 154, 155, 156, 157, 158, 170, 369, 370, 371, 372, 380], (count, 1)) - np.where(
        rng.random((count, 16)) < 0.2, 0, rng.integers(0, 40, (count, 16))
    )
    first = np.clip(total // 2 + rng.integers(-20, 21, (count, 16)), 1, 254)
    second = np.clip(total - first, 1, 254)
    a, b = (
        (exponent << 7 | rng.integers(0, 128, (count, 16)) | rng.integers(0, 2, (count, 16)) << 15).astype(np.uint16)[:, None, :]
        for exponent in (first, second)
    )
    got = np.array([mac.gemv(a[i : i + 1], b[i : i + 1])[0, 0] for i in range(0, count, 20)])
    np.testing.assert_array_equal(got, mac.mac(a[::20, 0], b[::20, 0], 0))
    blocks = mac.gemv(a[:200], b[:200])
    np.testing.assert_array_equal(blocks, mac.mac(a[None, :200, 0], b[:200], 0))


def test_bursts_in_blocks(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    w, x = (floats.from_float64(BF16, rng.standard_normal((n, 9, 16))).astype(np.uint16) for n in (37, 11))
    whole = mac.gemv(w, x)
    for block in (1, 16, 50, 128, 1000):
        monkeypatch.setattr(mac, "_BLOCK", block)
        np.testing.assert_array_equal(mac.gemv(w, x), whole)


def test_sums_near_float64(rng: np.random.Generator) -> None:
    """What the definition costs beside exact arithmetic: truncation of small products, then fp32."""
    w, x = (floats.from_float64(BF16, rng.standard_normal((40, 64, 16))).astype(np.uint16) for _ in range(2))
    got = floats.to_float64(FP32, mac.gemv(w, x))
    exact = np.einsum("nkv,tkv->tn", floats.to_float64(BF16, w), floats.to_float64(BF16, x))
    assert np.abs(got - exact).max() < 2e-4 * np.sqrt(1024) / 32


def test_unequal_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"same columns and lanes, not \(3, 4\) and \(2, 4\)"):
        mac.gemv(np.zeros((1, 3, 4)), np.zeros((1, 2, 4)))
    with pytest.raises(ValueError, match="three dimensions"):
        mac.Operand.of(np.zeros((3, 4)))


def test_native_arithmetic_is_the_defined_one(rng: np.random.Generator) -> None:
    a, b = pairs(FP32, FP32, rng, 20_000)
    x, y = arithmetic.values(a), arithmetic.values(b)
    np.testing.assert_array_equal(arithmetic.bits(arithmetic.add(x, y)), floats.add(FP32, a, b))
    np.testing.assert_array_equal(arithmetic.bits(arithmetic.sub(x, y)), floats.sub(FP32, a, b))
    np.testing.assert_array_equal(arithmetic.bits(arithmetic.mul(x, y)), floats.mul(FP32, a, FP32, b, FP32))
    np.testing.assert_array_equal(arithmetic.to_bf16(x), floats.convert(FP32, BF16, a))
    np.testing.assert_array_equal(arithmetic.bits(arithmetic.round_bf16(x)) >> 16, floats.convert(FP32, BF16, a))
    rows = a[: len(a) // 13 * 13].reshape(-1, 13)
    np.testing.assert_array_equal(arithmetic.bits(arithmetic.tree_sum(arithmetic.values(rows))), floats.tree_sum(FP32, rows))
    beats = floats.tree_sum(FP32, np.pad(rows, ((0, 0), (0, 3))).reshape(-1, 4, 4))
    np.testing.assert_array_equal(arithmetic.bits(arithmetic.beat_sum(arithmetic.values(rows), 4)), floats.partial_sum(FP32, beats, arithmetic.PARTIALS))


def test_units_equal_the_golden_model(rng: np.random.Generator) -> None:
    assert pim_mac.check(pim_mac.bench(), pim_mac.configurations(), rng, 3000) == 3000 * len(pim_mac.configurations())


@pytest.mark.soak
@pytest.mark.parametrize("run", range(10))
def test_units_equal_the_golden_model_in_many_operations(rng: np.random.Generator, run: int) -> None:
    assert pim_mac.check(pim_mac.bench(), pim_mac.configurations(), rng, 50_000) == 50_000 * len(pim_mac.configurations())


@pytest.mark.parametrize(("port", "kind"), [("held", "flip"), ("value", "flip"), ("operands", "drop"), ("held", "drop")])
def test_faults_are_caught(rng: np.random.Generator, port: str, kind: str) -> None:
    only = {"v16a16fp32": pim_mac.configurations()["v16a16fp32"]}
    with pytest.raises(MismatchError, match=r"v16a16fp32\.\w+"):
        pim_mac.check(pim_mac.bench(), only, rng, 400, faults=[Fault("v16a16fp32", port, kind, beat=5, bit=6)])


def test_the_interval_is_the_shortest(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """One clock less between MACs on an accumulator and sums go wrong: INTERVAL is no slower than it must be."""
    only = {"v4a1fp32": pim_mac.configurations()["v4a1fp32"]}
    monkeypatch.setattr(mac, "INTERVAL", 1)
    with pytest.raises(MismatchError, match=r"v4a1fp32\.held"):
        pim_mac.check(pim_mac.bench(), only, rng, 400)
