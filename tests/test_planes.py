# SPDX-License-Identifier: Apache-2.0
"""The head in two 4-bit planes: always the int8 head's choice, never more low rows than there are, few where scores differ much."""

from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from lutra.hls_models.load import load_config
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.head import HeadConfig
from lutra.hls_models.ternary.planes import PlanesConfig

CONFIG = PlanesConfig(beat_bytes=16, hidden=64, segment=16)
HEAD = HeadConfig(beat_bytes=16, vector_lanes=4, hidden=64)


def scales(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.choice(np.array([0, 0.25, 1, 1, 1.5], "<f4"), count).view("<u4").astype(np.uint32)


@pytest.mark.parametrize("spread", [1, 8, 128])  # narrow codes make ties and useless bounds
@pytest.mark.parametrize("vocabulary", [1, 15, 16, 200])
def test_the_choice_is_the_int8_heads(rng: np.random.Generator, spread: int, vocabulary: int) -> None:
    for _ in range(10):
        table = rng.integers(-spread, spread, (vocabulary, 64)).astype(np.int8)
        codes, factors = rng.integers(-spread, spread, 64).astype(np.int8), scales(rng, vocabulary)
        every = HEAD.scores(codes, table, factors)
        ids, scores = HEAD.choose(every)
        found = CONFIG.choose(codes, table, factors, best=4)
        assert (found.ids[0], found.scores[0]) == (ids[0], scores[0])
        rescored = sum(len(one) for one in found.lists)
        assert all(len(one) for one in found.lists) and rescored <= vocabulary
        assert found.beats == -(-4 * vocabulary // 16) + (vocabulary + rescored) * 2
        assert len(found.ids) == min(4, rescored) and (every[found.ids] == found.scores).all()


@pytest.mark.parametrize("vocabulary", [1, 16, 37])
def test_what_lies_in_memory(rng: np.random.Generator, vocabulary: int) -> None:
    """Jobs read every high beat once and the listed low rows; nibbles stand where the multipliers want them."""
    table, factors = rng.integers(-128, 128, (vocabulary, 64)).astype(np.int8), scales(rng, vocabulary)
    parts = ((table[first : first + 5], factors[first : first + 5]) for first in range(0, vocabulary, 5))
    image = np.concatenate(list(CONFIG.pack(parts))).reshape(-1, 16)
    assert len(image) == CONFIG.beats(vocabulary)
    lists = CONFIG.assumed(vocabulary, 0.5)
    places, sizes, lows = CONFIG.jobs(vocabulary, lists)
    assert sizes[lows < 0].sum() == CONFIG.high_beats(vocabulary) and (sizes[lows >= 0] == 2).all()
    assert lows.tolist()[:2] == ([-1, -1] if vocabulary > 16 else [-1, 0])
    for segment, rows in enumerate(lists):
        for place, row in zip(places[lows == segment], rows, strict=True):
            beats = image[place : place + 2]
            low = np.concatenate([beats & 15, beats >> 4], axis=1).reshape(-1)
            np.testing.assert_array_equal(low, table[16 * segment + row] & 15)
    first = image[1:3]
    np.testing.assert_array_equal(image[0].view("<u4")[: min(4, vocabulary)], factors[:4])
    np.testing.assert_array_equal(np.concatenate([first & 15, first >> 4], axis=1).reshape(-1), (table[0] >> 4) & 15)


def test_planes_make_up_the_codes() -> None:
    codes = np.arange(-128, 128, dtype=np.int64).astype(np.int8)
    high, low = CONFIG.split(codes)
    assert (16 * high.astype(int) + low == codes).all()
    assert (high.min(), high.max(), low.min(), low.max()) == (-8, 7, 0, 15)


def test_a_row_whose_upper_bound_is_the_bound_is_scored() -> None:
    """Rows 0 and 1 have the same score, row 0 by all of its low plane and row 1 by none of it: the choice is row 0, as the 8-bit head's."""
    codes, table = np.zeros(64, np.int8), np.zeros((16, 64), np.int8)
    codes[0], table[0, 0], table[1, 0] = 1, 15, 112
    factors = np.zeros(16, "<f4")
    factors[:2] = 112, 15
    found = CONFIG.choose(codes, table, factors.view("<u4"), best=2)
    assert found.ids.tolist() == [0, 1] and found.scores[0] == found.scores[1]
    assert HEAD.choose(HEAD.scores(codes, table, factors.view("<u4")))[0][0] == 0


def test_a_clear_winner_leaves_few_rows(rng: np.random.Generator) -> None:
    codes = rng.integers(-127, 128, 64).astype(np.int8)
    table = rng.integers(-40, 41, (200, 64)).astype(np.int8)
    table[3] = codes
    found = CONFIG.choose(codes, table, np.full(200, 0x3F800000, np.uint32))
    assert found.ids[0] == 3
    assert sum(len(one) for one in found.lists) < 40


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_planes": 100}, "head_planes must be a power of two of at least 16 rows .*, not 100; nearest: 128"),
        ({"head_planes": 8}, "head_planes must be a power of two of at least 16 rows .*, not 8; nearest: 16"),
        ({"draft_lanes": 2}, "draft_lanes must be at least 3 with head_planes .*, not 2; nearest: 3"),
        ({"memory": None}, "head_planes must be 0 without a shared memory .*; nearest: 0"),
    ],
)
def test_configurations_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CoreConfig.model_validate(load_config("kv260-planes", CoreConfig).model_dump() | changes)


def test_refused() -> None:
    with pytest.raises(ValidationError, match="segment must be a power of two, not 100; nearest: 64"):
        PlanesConfig(beat_bytes=64, hidden=64, segment=100)
    with pytest.raises(ValidationError, match="segment must have whole beats of scales \\(16 to a beat\\), not 8; nearest: 16"):
        PlanesConfig(beat_bytes=64, hidden=64, segment=8)
    with pytest.raises(ValueError, match="must not be negative"):
        CONFIG.choose(np.zeros(64, np.int8), np.zeros((1, 64), np.int8), np.array([0xBF800000], np.uint32))
