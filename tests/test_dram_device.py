# SPDX-License-Identifier: Apache-2.0
"""Values of the DRAM model: its MAC numbers against integers and fractions, replayed streams against a bank worked out by hand."""

from fractions import Fraction

import numpy as np
import pytest

from lutra.cosim.dram.arithmetic import accumulate, bf16_bits, bf16_value, dot, round_to
from lutra.cosim.dram.commands import Command, as_stream
from lutra.cosim.dram.device import Device
from lutra.hls_models.pim import mac as golden

INF, NAN = "inf", "nan"
SPECIAL = [0x0000, 0x8000, 0x0001, 0x807F, 0x0080, 0x8080, 0x7F7F, 0xFF7F, 0x7F80, 0xFF80, 0x7FC0, 0xFFFF, 0x3F80, 0xBF80, 0x3F81]


def exact_round(value, bits):
    """A fraction rounded to ``bits`` significant bits, nearest even, limited to fp32's exponents: ``Fraction``, or ±inf as float; zeros keep no sign."""
    if value == 0:
        return Fraction(0)
    size = abs(value)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    unit = Fraction(2) ** (exponent - bits + 1)
    whole, rest = divmod(size, unit)
    whole += rest * 2 > unit or (rest * 2 == unit and whole % 2 == 1)
    size = whole * unit
    if size < Fraction(2) ** -126:
        return Fraction(0)
    return (np.inf if value > 0 else -np.inf) if size >= Fraction(2) ** 128 else size if value > 0 else -size


def exact_dot(a, b):
    """The definition of docs/architecture.md, 4.2, word for word, in Python's integers."""
    products, infinities = [], set()
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        (sx, ex, mx), (sy, ey, my) = ((v >> 15, v >> 7 & 255, v & 127) for v in (x, y))
        if (ex == 255 and mx) or (ey == 255 and my) or (ex == 255 and ey == 0) or (ey == 255 and ex == 0):
            infinities.add(NAN)
        elif ex == 255 or ey == 255:
            infinities.add(sx ^ sy)
        elif ex and ey:
            products.append((sx ^ sy, ex + ey, (mx + 128) * (my + 128)))
    if infinities:
        return np.nan if NAN in infinities or len(infinities) > 1 else (-np.inf if 1 in infinities else np.inf)
    top = max((exponent for _, exponent, _ in products), default=0)
    total = sum((-1) ** sign * ((magnitude << 12) >> (top - exponent)) for sign, exponent, magnitude in products)
    return exact_round(Fraction(total) * Fraction(2) ** (top - 2 * 127 - 14 - 12), 24)


def as_number(x):
    return "nan" if x != x else x if abs(x) == np.inf else Fraction(x)


def operands(rng, count, lanes=16):
    """Random patterns: any, of one size, of cancelling pairs, special."""
    any_bits = rng.integers(0, 1 << 16, (2, count, lanes))
    near = (rng.integers(0, 2, (2, count, lanes)) << 15) | (rng.integers(110, 140, (2, count, lanes)) << 7) | rng.integers(0, 128, (2, count, lanes))
    cancel = near.copy()
    cancel[0, :, 1::2], cancel[1, :, 1::2] = cancel[0, :, ::2] ^ 0x8000, cancel[1, :, ::2]
    special = np.where(rng.random((2, count, lanes)) < 0.1, rng.choice(SPECIAL, (2, count, lanes)), near)
    tiny = (any_bits & 0x807F) | (rng.integers(0, 130, (2, count, lanes)) << 7)
    return np.concatenate([any_bits, near, cancel, special, tiny], axis=1).astype(np.uint16)


def test_sums_of_products_against_integers(rng):
    a, b = operands(rng, 300)
    assert [as_number(x) for x in dot(a, b).tolist()] == [as_number(exact_dot(x, y)) for x, y in zip(a, b, strict=True)]


def test_sums_of_products_against_the_golden_unit(rng):
    a, b = operands(rng, 3000)
    ours = dot(a, b)
    bits = np.where(np.isnan(ours), 0x7FC00000, ours.astype(np.float32).view(np.uint32))
    assert np.array_equal(bits, golden.dot(a, b))


def test_signs_of_zeros():
    zero, one, small = np.uint16(0), np.uint16(0x3F80), np.uint16(0x8080)
    assert not np.signbit(dot(np.array([0x8000] * 16, np.uint16), np.array([one] * 16)))  # nothing but -0: +0
    assert not np.signbit(dot(np.array([one, one ^ 0x8000] + [zero] * 14, np.uint16), np.array([one] * 16)))  # cancelled: +0
    underflow = dot(np.array([small] + [zero] * 15, np.uint16), np.array([0x0080] * 16, np.uint16))
    assert underflow == 0 and np.signbit(underflow)  # rounded to zero: its sign stays


def test_rounding_against_fractions(rng):
    value = np.ldexp(rng.standard_normal(4000), rng.integers(-160, 140, 4000))
    value[:500] = np.ldexp(np.rint(value[:500] * 2**9) + 0.5, -9)  # ties
    for digits in (8, 24):
        assert [as_number(x) for x in round_to(digits, value).tolist()] == [exact_round(Fraction(x), digits) for x in value.tolist()]
    edge = np.ldexp(
        [1 - 2.0**-25, 1 - 2.0**-24, 1 - 2.0**-26], -126
    )  # as if exponents had no lower bound: a half rounds to even, up; the second one stays below
    assert round_to(24, edge).tolist() == [2.0**-126, 0.0, 2.0**-126]
    assert round_to(24, [2.0**128 * (1 - 2.0**-25)]).tolist() == [np.inf]


def test_bf16_patterns_there_and_back():
    bits = np.arange(1 << 16, dtype=np.uint16)
    expected = np.where((bits & 0x7F80) == 0, bits & 0x8000, np.where((bits & 0x7FFF) > 0x7F80, 0x7FC0, bits))
    assert np.array_equal(bf16_bits(bf16_value(bits)), expected)


@pytest.mark.parametrize("digits", [24, 8])
def test_accumulation_against_fractions(rng, digits):
    start = bf16_value(rng.integers(0, 1 << 15, 8).astype(np.uint16) & 0xBFFF)
    terms = round_to(24, np.ldexp(rng.standard_normal((40, 8)), rng.integers(-30, 30, (40, 8))))
    totals = [Fraction(x) for x in start.tolist()]
    for term in terms.tolist():
        totals = [exact_round(exact_round(total + Fraction(x), 24), digits) for total, x in zip(totals, term, strict=True)]
    assert [Fraction(x) for x in accumulate(start, terms, digits=digits).tolist()] == totals


def test_accumulation_through_specials():
    """Where fp32's own adder would keep a subnormal, and past infinities."""
    start = np.array([2.0**-126 * 1.5, -(2.0**-126) * 1.5, 0.0, np.inf, 2.0**127])
    terms = np.array([[-(2.0**-126), 2.0**-126, 1.0, 1.0, 2.0**127], [2.0**-126, 2.0**-126, np.inf, -np.inf, -1.0]])
    total = accumulate(start, terms)
    assert total[:2].tolist() == [2.0**-126, 2.0**-126] and total[2] == np.inf and np.isnan(total[3]) and total[4] == np.inf
    assert np.array_equal(bf16_bits(total[2:]), [0x7F80, 0x7FC0, 0x7F80])


def device(**options):
    return Device(banks=4, lanes=8, rows=32, columns=16, **options)


@pytest.mark.parametrize("bf16_accumulator", [False, True])
def test_a_gemv_against_integers(rng, bf16_accumulator):
    """Two rows, two accumulators, a new buffer between: every read-out worked out bank by bank."""
    dram = device(accumulators=2, bf16_accumulator=bf16_accumulator)
    weights = ((rng.integers(0, 2, (4, 2, 16, 8)) << 15) | rng.integers(0x3E00, 0x4100, (4, 2, 16, 8))).astype(np.uint16)
    vectors = rng.integers(0x3E00, 0x4100, (16, 8)).astype(np.uint16)
    for bank in range(4):
        for row in range(2):
            dram.load(bank, row + 5, 0, weights[bank, row])
    commands = [{"command": Command.GBW, "entry": i} for i in range(8)]
    commands += [{"command": kind} for kind in (Command.MODE,)]
    commands += [{"command": Command.BIAS, "accumulator": i} for i in range(2)] + [{"command": Command.MODE}]
    for row in range(2):
        commands += [{"command": Command.ACTA, "row": row + 5}]
        commands += [{"command": Command.MAC, "column": c, "entry": c % 8, "accumulator": c % 2} for c in range(12)]
        commands += [{"command": Command.PREA}] + [{"command": Command.GBW, "entry": i} for i in range(8)]
    commands += [{"command": Command.MODE}] + [{"command": Command.RDM, "accumulator": i} for i in (1, 0)]
    data = np.concatenate([vectors, vectors[:8]])
    got = dram.replay(as_stream({"cycle": i, **command} for i, command in enumerate(commands)), data)
    sums = {}
    for bank in range(4):
        for row in range(2):
            for column in range(12):
                term = exact_dot(weights[bank, row, column], vectors[8 * row + column % 8])
                total = exact_round(sums.get((bank, column % 2), Fraction(0)) + term, 24)
                sums[bank, column % 2] = exact_round(total, 8) if bf16_accumulator else total
    for values, accumulator in zip(got.values, (1, 0), strict=True):
        assert [Fraction(x) for x in bf16_value(values[:4]).tolist()] == [exact_round(sums[bank, accumulator], 8) for bank in range(4)]
        assert not values[4:].any()
    assert got.commands.tolist() == [len(commands) - 2, len(commands) - 1]


def test_writes_reads_and_what_stays(rng):
    dram = device()
    beats = rng.integers(0, 1 << 16, (3, 8)).astype(np.uint16)
    script = [
        {"command": Command.ACT, "bank": 1, "row": 9},
        {"command": Command.WR, "bank": 1, "column": 3},
        {"command": Command.WR, "bank": 1, "column": 4},
        {"command": Command.PRE, "bank": 1},
        {"command": Command.ACTA, "row": 9},
        {"command": Command.WRA, "column": 3, "element": 6},
        {"command": Command.ACT, "bank": 1, "row": 9},
        {"command": Command.RD, "bank": 1, "column": 3},
        {"command": Command.RD, "bank": 1, "column": 5},
    ]
    commands = as_stream({"cycle": i, **command} for i, command in enumerate(script))
    first = dram.replay(commands[:5], beats[:2])
    second = dram.replay(commands[5:], beats[2:])  # a stream in two pieces
    expected = beats[0].copy()
    expected[6] = beats[2][1]
    assert len(first.values) == 0
    assert np.array_equal(second.values, [expected, np.zeros(8)])
    assert dram.row(9)[3, 3].tolist() == [0] * 6 + [beats[2][3], 0] and dram.touched() == [9]


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ([{"command": Command.RD}], "cycle 0: RD needs a row open"),
        ([{"command": Command.ACT, "bank": 2}, {"command": Command.MAC}], "cycle 1: MAC needs one row of all banks open"),
        ([{"command": Command.ACTA, "row": 0}, {"command": Command.WRA}, {"command": Command.MAC}], "cycle 2: MAC needs one row"),
        ([{"command": Command.ACTA, "row": 32}, {"command": Command.MAC}], "row must be 0 to 31, not 32"),
        ([{"command": Command.EWMUL}], "EWMUL has timing here, but no values"),
    ],
)
def test_streams_without_values_are_refused(script, message):
    commands = as_stream({"cycle": i, **command} for i, command in enumerate(script))
    beats = np.zeros((sum(command["command"] == Command.WRA for command in script), 8), np.uint16)
    with pytest.raises(ValueError, match=message):
        device().replay(commands, beats)


def test_data_must_match_the_writes():
    with pytest.raises(ValueError, match="a stream with 1 writes needs as many beats of data, not 2"):
        device().replay(as_stream([{"cycle": 0, "command": Command.GBW}]), np.zeros((2, 8), np.uint16))
    with pytest.raises(ValueError, match="columns must end at 15, not 16"):
        device().load(0, 0, 15, np.zeros((2, 8)))
