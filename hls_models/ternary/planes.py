# SPDX-License-Identifier: Apache-2.0
"""The head's int8 table in two 4-bit planes: the high plane is read whole, the low plane only of rows that may still hold the best score.

A code is 16 * high + low, high in -8 … 7, low in 0 … 15. With the codes q of a token, P = 15 * (sum of its positive codes) and N = 15 * (sum of its negative
ones, a negative number), the dot product of a row lies between 16 * d + N and 16 * d + P, d being that of its high plane. Rounding to fp32 and multiplying by a
scale that is not negative keep order: f32(f32(16 d + N) * scale) <= score <= f32(f32(16 d + P) * scale), score being the int8 head's. So whatever is left out
is certified not to be the choice, which is the int8 head's, bit for bit.

Rows come in segments. The largest lower bound or score so far decides at the end of a segment which of its rows are read again (upper bound >= it); a list is
never empty: without a candidate the segment's first row stands in it. Order of reading: high plane of segment 0, of 1, low rows of 0, high plane of 2, low rows
of 1 and so on. However poor the bounds are, a row's low plane is read once at most: the worst case, which needs no other fallback, moves as many bytes as the
int8 table.

In memory a segment is its high plane, then its low rows. The high plane has a beat of fp32 scales before every ``block`` rows. Byte i of beat b of a row of
either plane holds column 2bB + i in its lower four bits and column (2b + 1)B + i in its upper ones.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from lutra.hls_models import floats
from lutra.hls_models.config import Config
from lutra.hls_models.floats import FP32, to_float64
from lutra.hls_models.streams import pack

__all__ = ["Lists", "PlaneChoice", "PlanesConfig"]

Bits = NDArray[np.uint32]
Bytes = NDArray[np.uint8]
Lists = Sequence[NDArray[np.int64]]
"""Per segment the rows (counted in the segment, ascending) whose low plane is read."""

TABLE_PART = 4096
"""Rows of a table that are converted to float64 together, about."""


class PlaneChoice(NamedTuple):
    """Choice of a token: ids of the k best among the rows scored again, best first, the fp32 bits of their scores, those rows of each segment, beats read."""

    ids: NDArray[np.int64]
    scores: Bits
    lists: Lists
    beats: int


class PlanesConfig(Config):
    """Sizes of a table in two planes, its golden values."""

    beat_bytes: int = Field(ge=4, multiple_of=4, description="memory port width in bytes (B)")
    hidden: int = Field(ge=2, multiple_of=2, description="codes of a row")
    segment: int = Field(default=128, ge=1, le=1 << 10, description="rows of a segment, a power of two")

    @model_validator(mode="after")
    def _consistent(self) -> "PlanesConfig":
        if self.segment & (self.segment - 1):
            raise ValueError(f"segment must be a power of two, not {self.segment}; nearest: {1 << self.segment.bit_length() - 1}")
        if self.segment % self.block:
            raise ValueError(f"segment must have whole beats of scales ({self.block} to a beat), not {self.segment}; nearest: {self._nearest}")
        return self

    @property
    def _nearest(self) -> int | str:
        return "none: beats of scales must hold a power of two of them" if self.block & (self.block - 1) else self.block

    @property
    def block(self) -> int:
        """Rows whose scales a beat holds."""
        return self.beat_bytes // 4

    @property
    def row_beats(self) -> int:
        """Beats of a row of either plane."""
        return -(-self.hidden // (2 * self.beat_bytes))

    def high_beats(self, rows: int) -> int:
        """Beats of scales and high plane of ``rows`` rows."""
        return -(-rows // self.block) + rows * self.row_beats

    @property
    def stride(self) -> int:
        """Beats from a segment to the next one."""
        return self.high_beats(self.segment) + self.segment * self.row_beats

    def segments(self, vocabulary: int) -> list[int]:
        """Rows of each segment."""
        whole, rest = divmod(vocabulary, self.segment)
        return [self.segment] * whole + [rest] * (rest > 0)

    def beats(self, vocabulary: int) -> int:
        """Beats of a table in memory."""
        rows = self.segments(vocabulary)
        return (len(rows) - 1) * self.stride + self.high_beats(rows[-1]) + rows[-1] * self.row_beats

    def jobs(self, vocabulary: int, lists: Lists) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """What is read in one piece, in order: first beats (jobs,) in the table, beats (jobs,), and the list that each piece stands in, -1 for a high plane."""
        places: list[int] = []
        sizes: list[int] = []
        lows: list[int] = []
        rows = self.segments(vocabulary)
        for segment in range(len(rows) + 1):
            if segment < len(rows):
                places.append(segment * self.stride)
                sizes.append(self.high_beats(rows[segment]))
                lows.append(-1)
            if segment:
                low = (segment - 1) * self.stride + self.high_beats(rows[segment - 1])
                places += [low + int(row) * self.row_beats for row in lists[segment - 1]]
                sizes += [self.row_beats] * len(lists[segment - 1])
                lows += [segment - 1] * len(lists[segment - 1])
        return np.array(places), np.array(sizes), np.array(lows)

    def assumed(self, vocabulary: int, share: float) -> Lists:
        """Lists of ``share`` of all rows, evenly spread: for cycles where values are not known; 1 is the worst case."""
        counts = [max(1, round(share * rows)) for rows in self.segments(vocabulary)]
        return [np.arange(count) * rows // count for count, rows in zip(counts, self.segments(vocabulary), strict=True)]

    # Values

    def split(self, codes: NDArray[np.int8]) -> tuple[NDArray[np.int8], NDArray[np.uint8]]:
        """High (int8, -8 … 7) and low (uint8, 0 … 15) planes of int8 codes."""
        return codes >> 4, (codes & 15).astype(np.uint8)

    def _nibbles(self, plane: NDArray[np.uint8]) -> Bytes:
        """Rows (rows, hidden) of four bits as whole beats (rows, row_beats * B)."""
        padded = np.zeros((len(plane), self.row_beats * 2 * self.beat_bytes), np.uint8)
        padded[:, : self.hidden] = plane & 15
        halves = padded.reshape(len(plane), self.row_beats, 2, self.beat_bytes)
        return (halves[:, :, 0] | halves[:, :, 1] << np.uint8(4)).reshape(len(plane), -1).astype(np.uint8, copy=False)

    def pack(self, parts: Iterator[tuple[NDArray[np.int8], Bits]]) -> Iterator[Bytes]:
        """The table in memory, segment by segment, of its rows in parts of any size: codes (rows, hidden) and scales (rows,), fp32 bits."""
        codes, scales = np.zeros((0, self.hidden), np.int8), np.zeros(0, np.uint32)
        for more, their in parts:
            codes, scales = np.concatenate([codes, more]), np.concatenate([scales, their])
            while len(codes) >= self.segment:
                yield self._segment(codes[: self.segment], scales[: self.segment])
                codes, scales = codes[self.segment :], scales[self.segment :]
        if len(codes):
            yield self._segment(codes, scales)

    def _segment(self, codes: NDArray[np.int8], scales: Bits) -> Bytes:
        high, low = self.split(codes)
        rows, pieces = self._nibbles(high.view(np.uint8)), []
        for first in range(0, len(codes), self.block):
            beat = np.zeros(self.block, "<u4")
            beat[: len(scales[first : first + self.block])] = scales[first : first + self.block]
            pieces += [beat.view(np.uint8), rows[first : first + self.block].reshape(-1)]
        return np.concatenate([*pieces, self._nibbles(low).reshape(-1)])

    def unpack(self, beats: Bytes, vocabulary: int) -> tuple[NDArray[np.int8], Bits]:
        """Codes (vocabulary, hidden) and scales (vocabulary,), fp32 bits, of a table's beats (beats, B): inverse of ``pack``."""
        codes, scales, first = np.zeros((vocabulary, self.hidden), np.int8), np.zeros(vocabulary, np.uint32), 0
        for segment, rows in enumerate(self.segments(vocabulary)):
            high = beats[segment * self.stride :][: self.high_beats(rows)]
            low = beats[segment * self.stride + self.high_beats(rows) :][: rows * self.row_beats]
            is_scales = np.arange(len(high)) % (1 + self.block * self.row_beats) == 0
            scales[first : first + rows] = np.ascontiguousarray(high[is_scales]).view("<u4").reshape(-1)[:rows]
            codes[first : first + rows] = (self._four(high[~is_scales], rows) << 4 | self._four(low, rows)).view(np.int8)
            first += rows
        return codes, scales

    def _four(self, beats: Bytes, rows: int) -> Bytes:
        """Inverse of ``_nibbles``."""
        halves = np.stack([beats & 15, beats >> 4], axis=1)
        return np.ascontiguousarray(halves.reshape(rows, -1)[:, : self.hidden])

    def words(self, lists: Lists) -> Bits:
        """Payloads of the lists' rows on their way to the loader."""
        last = np.concatenate([np.arange(len(one)) == len(one) - 1 for one in lists])
        return pack((np.concatenate(lists), max(1, (self.segment - 1).bit_length())), (last, 1))

    def choose(self, codes: ArrayLike, table: NDArray[np.int8], scales: Bits, best: int = 1) -> PlaneChoice:
        """The choice for ``codes`` (hidden,) int8 among the rows of ``table`` (vocabulary, hidden) int8 with fp32 ``scales`` (vocabulary,), none negative.

        Raises
        ------
        ValueError : a scale is negative or no number.
        """
        if not (to_float64(FP32, scales) >= 0).all():
            raise ValueError("scales of a table in two planes must not be negative")
        q = np.asarray(codes, np.float64)
        above, below = 15.0 * q[q > 0].sum(), 15.0 * q[q < 0].sum()
        bound, lists, first = -np.inf, [], 0
        exact = np.zeros(0)  # of the list before, which is read behind this segment
        kept: list[NDArray[np.float64]] = []
        ids: list[NDArray[np.int64]] = []
        ready: list[tuple[NDArray[np.float64], ...]] = []
        for rows in self.segments(len(table)):
            if not ready:
                part = slice(first, first + -(-TABLE_PART // self.segment) * self.segment)
                ready = self._scores(q, table[part], scales[part], below, above)
            lower, upper, score = ready.pop(0)
            bound = max(bound, lower.max())
            found = np.flatnonzero(upper >= bound)
            found = found if len(found) else np.zeros(1, np.int64)
            bound = max(bound, exact.max(initial=-np.inf))
            exact = score[found]
            lists.append(found)
            ids.append(first + found)
            kept.append(exact)
            first += rows
        scores = np.concatenate(kept)
        order = np.argsort(-scores, kind="stable")[:best]
        beats = sum(self.high_beats(rows) for rows in self.segments(len(table))) + sum(len(one) for one in lists) * self.row_beats
        return PlaneChoice(np.concatenate(ids)[order], floats.from_float64(FP32, scores[order]), lists, beats)

    def _scores(self, q: NDArray[np.float64], table: NDArray[np.int8], scales: Bits, below: float, above: float) -> list[tuple[NDArray[np.float64], ...]]:
        """Lower bounds, upper bounds and scores of each segment of a part."""
        base, exact = 16.0 * ((table >> 4).astype(np.float64) @ q), table.astype(np.float64) @ q
        three = [to_float64(FP32, floats.mul(FP32, floats.from_float64(FP32, sums), FP32, scales, FP32)) for sums in (base + below, base + above, exact)]
        cuts = range(self.segment, len(table), self.segment)
        return list(zip(*(np.split(one, cuts) for one in three), strict=True))
