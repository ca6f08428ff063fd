# SPDX-License-Identifier: Apache-2.0
"""The head in two 4-bit planes: always the int8 head's choice, never more low rows than there are, few where scores differ much."""

import numpy as np
import pytest
from pydantic import ValidationError

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
        ids, scores = HEAD.choose(HEAD.scores(codes, table, factors))
        found = CONFIG.choose(codes, table, factors)
        assert (found.id, found.score) == (ids[0], scores[0])
        assert 1 <= found.rescored.sum() <= vocabulary
        assert found.beats == -(-4 * vocabulary // 16) + (vocabulary + found.rescored.sum()) * 2


def test_planes_make_up_the_codes() -> None:
    codes = np.arange(-128, 128, dtype=np.int64).astype(np.int8)
    high, low = CONFIG.split(codes)
    assert (16 * high.astype(int) + low == codes).all()
    assert (high.min(), high.max(), low.min(), low.max()) == (-8, 7, 0, 15)


def test_a_clear_winner_leaves_few_rows(rng: np.random.Generator) -> None:
    codes = rng.integers(-127, 128, 64).astype(np.int8)
    table = rng.integers(-40, 41, (200, 64)).astype(np.int8)
    table[3] = codes
    found = CONFIG.choose(codes, table, np.full(200, 0x3F800000, np.uint32))
    assert found.id == 3
    assert found.rescored.sum() < 40


def test_refused() -> None:
    with pytest.raises(ValidationError, match="segment must have whole beats of scales \\(16 to a beat\\), not 100; nearest: 112"):
        PlanesConfig(beat_bytes=64, hidden=64, segment=100)
    with pytest.raises(ValueError, match="must not be negative"):
        CONFIG.choose(np.zeros(64, np.int8), np.zeros((1, 64), np.int8), np.array([0xBF800000], np.uint32))
