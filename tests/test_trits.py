# SPDX-License-Identifier: Apache-2.0
"""Trit code, row order and group indices against definitions written out the slow way."""

import numpy as np
import pytest

from lutra.hls_models.ternary import trits
from lutra.hls_models.ternary.trits import RowLayout


def _layouts(count):
    rng = np.random.default_rng(7)
    for _ in range(count):
        layout = RowLayout(group=int(rng.integers(2, 6)), tables=int(rng.integers(1, 7)), columns=int(rng.integers(1, 8)), beat_bytes=int(rng.integers(1, 12)))
        yield layout, int(rng.integers(1, 40)), int(rng.integers(1, 60)), int(rng.integers(1, 30)), rng


def test_byte_code_is_tq1_0():
    for value in range(243):
        digits = [value // 3 ** (4 - i) % 3 for i in range(5)]
        code = trits.encode_bytes(np.array(digits, np.int8) - 1)
        assert code == -(-value * 256 // 243)
        assert np.array_equal(trits.decode_bytes(code) + 1, digits)


def test_pack_order_and_inverse():
    for layout, n, k, tile_columns, rng in _layouts(60):
        weights = rng.integers(-1, 2, (n, k)).astype(np.int8)
        stored = trits.pack_matrix(weights, layout, tile_columns)
        assert stored.dtype == np.uint8
        assert stored.size == layout.row_bytes * trits.matrix_rows(layout, n, k, tile_columns)
        assert layout.row_bytes % layout.beat_bytes == 0
        assert np.array_equal(trits.unpack_matrix(stored, layout, n, k, tile_columns), weights)
        rows = iter(trits.decode_bytes(stored.reshape(-1, layout.row_bytes)))
        for first in range(0, n, tile_columns):  # the order of architecture.md 2.5, written out
            tile = min(tile_columns, n - first)
            for kb in range(layout.blocks(k)):
                for c in range(layout.tile_rows(tile)):
                    row = next(rows)
                    for q in range(layout.columns):
                        for t in range(layout.tables):
                            for g in range(layout.group):
                                column, index = c * layout.columns + q, (kb * layout.tables + t) * layout.group + g
                                expected = weights[first + column, index] if column < tile and index < k else 0
                                assert row[(q * layout.tables + t) * layout.group + g] == expected
                    assert not row[layout.row_trits :].any()
        assert next(rows, None) is None


@pytest.mark.parametrize("group", [2, 3, 4, 5])
def test_group_indices(group):
    every = np.stack(np.meshgrid(*[[-1, 0, 1]] * group, indexing="ij"), -1).reshape(-1, group)
    assert np.array_equal(trits.group_indices(every, False), np.arange(3**group))
    half = trits.group_indices(every, True).astype(int)
    largest = (3**group - 1) // 2
    sign_bit = 1 << largest.bit_length()
    value = np.where(half & sign_bit, -(half & (sign_bit - 1)), half)
    assert np.array_equal(value, np.arange(-largest, largest + 1))


def test_bits_per_weight_and_refusal():
    layout = RowLayout(group=3, tables=6, columns=10, beat_bytes=36)
    assert (layout.row_bytes, layout.row_beats, layout.blocks(160)) == (36, 1, 9)
    assert trits.bits_per_weight(layout, 160, 160, 160) == pytest.approx(8 * 36 * 9 * 16 / 160**2)
    assert trits.bits_per_weight(layout, 1800, 1800, 1800) == 1.6
    with pytest.raises(ValueError, match=r"must be -1, 0 or 1, not 0\.\.2"):
        trits.pack_matrix(np.array([[2, 0]]), layout, 10)
