# SPDX-License-Identifier: Apache-2.0
"""The head's int8 table in two 4-bit planes: the high plane is read whole, the low plane only of rows that may still hold the best score.

A code is 16 * high + low, high in -8 … 7, low in 0 … 15. With the codes q of a token, P = 15 * (sum of its positive codes) and N = 15 * (sum of its negative
ones, a negative number), the dot product of a row lies between 16 * d + N and 16 * d + P, d being that of its high plane. Rounding to fp32 and multiplying by a
scale that is not negative keep order: f32(f32(16 d + N) * scale) <= score <= f32(f32(16 d + P) * scale), score being the int8 head's. So whatever is left out
is certified not to be the choice, which is the int8 head's, bit for bit.

Rows come in segments. L, the largest lower bound or score so far, decides at the end of a segment which of its rows are read again (upper bound >= L);
their low planes are read behind the high plane of the next segment. However poor the bounds are, a row's low plane is read once at most: the worst case, which
needs no other fallback, moves as many bytes as the int8 table.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from lutra.hls_models import floats
from lutra.hls_models.config import Config
from lutra.hls_models.floats import FP32, to_float64

__all__ = ["PlaneChoice", "PlanesConfig"]

Bits = NDArray[np.uint32]


class PlaneChoice(NamedTuple):
    """Choice of a token: its id, fp32 bits of its score, rows of each segment that were scored again, beats read in all."""

    id: int
    score: int
    rescored: NDArray[np.int64]
    beats: int


class PlanesConfig(Config):
    """Sizes of the table: a segment's scales (fp32, no gaps), its rows of the high plane; elsewhere the low plane's rows. Rows are whole beats."""

    beat_bytes: int = Field(ge=4, multiple_of=4, description="memory port width in bytes (B)")
    hidden: int = Field(ge=2, multiple_of=2, description="codes of a row")
    segment: int = Field(default=512, ge=1, le=1 << 14, description="rows of a segment")

    @model_validator(mode="after")
    def _consistent(self) -> "PlanesConfig":
        if self.segment * 4 % self.beat_bytes:
            nearest = -(-self.segment * 4 // self.beat_bytes) * self.beat_bytes // 4
            raise ValueError(f"segment must have whole beats of scales ({self.beat_bytes // 4} to a beat), not {self.segment}; nearest: {nearest}")
        return self

    @property
    def row_beats(self) -> int:
        """Beats of a row of either plane."""
        return -(-self.hidden // (2 * self.beat_bytes))

    def high_beats(self, vocabulary: int) -> int:
        """Beats of scales and high plane."""
        return -(-4 * vocabulary // self.beat_bytes) + vocabulary * self.row_beats

    def split(self, codes: NDArray[np.int8]) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
        """High (int8, -8 … 7) and low (uint8, 0 … 15) planes of int8 codes."""
        return codes >> 4, (codes & 15).astype(np.uint8)

    def choose(self, codes: ArrayLike, table: NDArray[np.int8], scales: Bits) -> PlaneChoice:
        """The choice for ``codes`` (hidden,) int8 among the rows of ``table`` (vocabulary, hidden) int8 with fp32 ``scales`` (vocabulary,), none negative.

        Raises
        ------
        ValueError : a scale is negative or no number.
        """
        if not (to_float64(FP32, scales) >= 0).all():
            raise ValueError("scales of a table in two planes must not be negative")
        q = np.asarray(codes, np.float64)
        high, _ = self.split(table)
        base = 16.0 * (high.astype(np.float64) @ q)
        above, below = 15.0 * q[q > 0].sum(), 15.0 * q[q < 0].sum()
        lower, upper, exact = (self._score(sums, scales) for sums in (base + below, base + above, table.astype(np.float64) @ q))
        bound, best, place, rescored = -np.inf, -np.inf, 0, []
        waiting: NDArray[np.int64] = np.zeros(0, np.int64)
        for first in [*range(0, len(table), self.segment), None]:
            rows = np.zeros(0, np.int64) if first is None else np.arange(first, min(first + self.segment, len(table)))
            bound = max(bound, lower[rows].max(initial=-np.inf))
            candidates = rows[upper[rows] >= bound]
            for row in waiting:  # the segment before: in order, so that ties go to the lowest id
                if exact[row] > best:
                    best, place = exact[row], int(row)
            bound = max(bound, best)
            if first is not None:
                rescored.append(len(candidates))
            waiting = candidates
        counts = np.array(rescored, np.int64)
        return PlaneChoice(place, int(self._bits(exact[place : place + 1])[0]), counts, self.high_beats(len(table)) + int(counts.sum()) * self.row_beats)

    def _score(self, sums: NDArray[np.float64], scales: Bits) -> NDArray[np.float64]:
        return to_float64(FP32, floats.mul(FP32, floats.from_float64(FP32, sums), FP32, scales, FP32))

    def _bits(self, scores: NDArray[np.float64]) -> Bits:
        return floats.from_float64(FP32, scores)
