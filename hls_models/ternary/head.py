# SPDX-License-Identifier: Apache-2.0
"""HEAD: int8 language-model head, greedy choice and the k best scores (docs/architecture.md, 2.9).

Order of scores: as reals, -0 equal to +0, a NaN below everything; equal scores: the lower id first.

Times (handshake cycles unless said):

    codes    taken in any cycle in which no instruction runs; a row overwrites the one before
    instr i  -> rows from i+1, one beat per clock; codes again once the instruction ended
    last table beat r -> token from r + ``latency``: multiply 1 after the beat and code registers, adder tree ceil(log2 B), accumulate 1, IntToFloat,
                FloatMul, candidate register 1, insertion 1; with token lanes one more (their sums are latched) and the number of the last lane:
                one float pipeline serves them in turn
    token t  -> best from t+1, min(k, vocabulary) beats; done from t+1; in a serial pass a token per lane, t being the last
    next instruction (and codes) from max(last best, done) + 1

Token lanes: row t of a pass's codes goes to lane min(t, lanes - 1). A serial pass of m tokens scores lanes 0 … m-1, any other only the last token's.

In two planes (``lutra.hls_models.ternary.planes``; passes of one token, whose codes lanes 1 and 2 keep, too: each works on half of a beat's columns):

    last beat of a row r -> its lower bound (its score) in the candidate register in r + latency + 1, its upper bound a clock later: two more registers (sum of
                            the halves, bound)
    last row of a segment -> scan from v = r + latency + 3, or a clock after the scan before ended: address 1, memory 1, comparison 1; row i is compared in
                            v + 3 + i, and gives away the one found before it; the last one found is given away in v + 3 + rows, where the scan ends
    given away p         -> ``rescore`` from p + 1
    last beat of the last low row r -> token from r + latency + 2
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field, model_validator

from lutra.hls_models import floats
from lutra.hls_models.config import Config
from lutra.hls_models.floats import FLOAT_LATENCY, FP32
from lutra.hls_models.streams import Ready, handshakes
from lutra.hls_models.ternary.planes import Lists, PlanesConfig

__all__ = ["HeadConfig", "HeadInstruction", "HeadStimulus", "HeadTiming", "PlaneScan"]

Cycles = NDArray[np.int64]

TABLE_PART = 4096
"""Rows of a table that are converted to float64 together."""


def _rank(scores: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Keys that order fp32 bits like the reals: -0 and +0 alike, NaN 0. The RTL compares the same keys."""
    magnitude = scores & np.uint32(FP32.magnitude)
    keys = np.where((scores & np.uint32(FP32.sign) != 0) & (magnitude != 0), ~scores, scores | np.uint32(FP32.sign))
    return np.where(magnitude > FP32.infinity, 0, keys).astype(np.uint32)


class HeadInstruction(NamedTuple):
    """What the HEAD reads of its instruction; ``lists``: what it finds out in a table in two planes."""

    vocabulary: int
    row_beats: int
    tokens: int = 1
    serial: int = 0
    lists: Lists | None = None


class HeadStimulus(NamedTuple):
    """What surrounds an instruction: earliest cycles of its codes (all rows before it), of itself and of its table rows, in clocks after what they wait for.

    ``codes`` (beats,) and ``rows`` (beats,) count from the clock after the previous instruction's handshake (from 0 for the first), ``instr`` from the clock
    after the last code's, as FINAL makes sure in the core; without codes (the stored row serves again) like the others.
    """

    codes: Cycles
    instr: int
    rows: Cycles


class HeadConfig(Config):
    """Sizes of the head, with its golden values and cycles."""

    beat_bytes: int = Field(ge=6, le=512, description="memory port width in bytes (B): multiply-accumulates per clock")
    vector_lanes: int = Field(ge=2, le=64, description="codes per beat of the vector unit (V)")
    hidden: int = Field(ge=2, le=1 << 16, description="codes of a row")
    best: int = Field(default=8, ge=1, le=64, description="scores kept, best first (k)")
    lanes: int = Field(default=1, ge=1, le=16, description="tokens of a serial pass that share a table beat")
    tree: Literal["lut", "dsp"] = Field(default="lut", description="dsp: products of two lanes, and their first sums, share DSP48E2 blocks")
    planes: PlanesConfig | None = Field(default=None, description="the table in two planes, for passes of one token")

    @property
    def store_beats(self) -> int:
        """Beats of codes that a lane keeps."""
        return max(self.row_beats, 2 * self.planes.row_beats if self.planes else 0)

    @property
    def scale_units(self) -> int:
        """Units of V bytes that the fp32 scale of a table row takes (its upper bytes are zero)."""
        return -(-4 // self.vector_lanes)

    @property
    def row_beats(self) -> int:
        """Beats of one table row: the scale's units, then the codes, padded with zeros."""
        return -(-(self.scale_units * self.vector_lanes + self.hidden) // self.beat_bytes)

    @property
    def tree_levels(self) -> int:
        """Registered levels of the adder tree."""
        return (self.beat_bytes - 1).bit_length()

    @property
    def dot_bits(self) -> int:
        """Width of the accumulator: any sum of ``hidden`` products of two signed bytes."""
        return (self.hidden << 14).bit_length() + 1

    @property
    def latency(self) -> int:
        """Clocks from the handshake of the last table beat to the first cycle of ``token``: one for each register on the way."""
        beat, product, accumulator, candidate, insertion = 1, 1, 1, 1, 1
        return beat + product + self.tree_levels + accumulator + FLOAT_LATENCY["from_int"] + FLOAT_LATENCY["mul"] + candidate + insertion

    def last_lane(self, tokens: int) -> int:
        """Lane of a pass's last token."""
        return min(tokens, self.lanes) - 1

    def extra(self, tokens: int) -> int:
        """Clocks beyond ``latency`` that the last score takes."""
        return 0 if self.lanes == 1 else 1 + self.last_lane(tokens)

    @model_validator(mode="after")
    def _consistent(self) -> "HeadConfig":
        v, b = self.vector_lanes, self.beat_bytes
        if b % v:
            raise ValueError(f"beat_bytes must be a multiple of vector_lanes = {v}, not {b}; nearest: {-(-b // v) * v}")
        if b < 3 * v:
            raise ValueError(f"beat_bytes must be at least 3 * vector_lanes = {3 * v}, not {b}")
        if self.hidden % v:
            raise ValueError(f"hidden must be a multiple of vector_lanes = {v}, not {self.hidden}; nearest: {-(-self.hidden // v) * v}")
        if self.lanes > self.row_beats:
            raise ValueError(f"lanes of the head must be at most the {self.row_beats} beats of a table row, not {self.lanes}; nearest: {self.row_beats}")
        if self.planes:
            if self.lanes < 3:
                raise ValueError(f"lanes of a head with a table in two planes must be at least 3 (two share a beat), not {self.lanes}; nearest: 3")
            if (self.planes.beat_bytes, self.planes.hidden) != (b, self.hidden):
                raise ValueError(f"planes must have rows of {self.hidden} codes in beats of {b} bytes, not of {self.planes.hidden} in {self.planes.beat_bytes}")
            if self.planes.row_beats < 2:
                raise ValueError(f"hidden must be more than {2 * b}, the columns of a beat of a plane, not {self.hidden}; nearest: {2 * b + v}")
        return self

    # Values

    def pack_table(self, codes: ArrayLike, scales: ArrayLike) -> NDArray[np.uint8]:
        """Table (vocabulary, row_beats * B) uint8 of int8 codes (vocabulary, hidden) and fp32 values (vocabulary,); embedding and head share it."""
        rows = np.asarray(codes, np.int8)
        out = np.zeros((len(rows), self.row_beats * self.beat_bytes), np.uint8)
        out[:, :4] = np.ascontiguousarray(scales, "<f4").view(np.uint8).reshape(-1, 4)
        skip = self.scale_units * self.vector_lanes
        out[:, skip : skip + self.hidden] = rows.view(np.uint8)
        return out

    def unpack_table(self, table: NDArray[np.uint8]) -> tuple[NDArray[np.int8], NDArray[np.uint32]]:
        """Codes (vocabulary, hidden) and scales (vocabulary,), fp32 bits, of a table."""
        skip = self.scale_units * self.vector_lanes
        return table[:, skip : skip + self.hidden].view(np.int8), np.ascontiguousarray(table[:, :4]).view("<u4")[:, 0]

    def scores(self, codes: ArrayLike, table_codes: ArrayLike, scales: ArrayLike) -> NDArray[np.uint32]:
        """fp32 bits (…, vocabulary) of int8 codes (…, hidden): f32(f32(dot) * scale); ``scales`` (vocabulary,) are fp32 bits."""
        # Products of bytes sum exactly in float64, whatever the order, and float64 products are the fast ones; a large table goes in parts.
        rows, table = np.asarray(codes, np.float64), np.asarray(table_codes)
        dot = np.concatenate([rows @ table[first : first + TABLE_PART].T.astype(np.float64) for first in range(0, len(table), TABLE_PART)], axis=-1)
        return floats.mul(FP32, floats.from_float64(FP32, dot), FP32, np.asarray(scales, np.uint32), FP32)

    def choose(self, scores: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """The min(k, vocabulary) best of scores (vocabulary,): ids and scores, best first; the first is the greedy choice."""
        ids = np.argsort(~_rank(scores), kind="stable")[: self.best]
        return ids, scores[ids]

    # Cycles

    def cycles(
        self, instructions: Sequence[HeadInstruction], stimuli: Sequence[HeadStimulus], ready: Mapping[str, NDArray[np.bool_]] | None = None
    ) -> tuple[dict[str, Cycles], dict[str, Cycles]]:
        """(offered, handshakes): earliest cycles of every input beat and handshakes of every port; ``ready`` traces belong to token, best and done."""
        traces = {name: Ready((ready or {}).get(name)) for name in ("token", "best", "done", "rescore")}
        offered: dict[str, list[Cycles]] = {name: [] for name in ("instr", "codes", "rows")}
        taken: dict[str, list[Cycles]] = {name: [] for name in ("instr", "codes", "rows", "token", "best", "done", "rescore")}
        free, start = 0, -1
        for instruction, stimulus in zip(instructions, stimuli, strict=True):
            offers = {"codes": stimulus.codes + start + 1, "rows": stimulus.rows + start + 1}
            codes = handshakes(offers["codes"], start=free)
            offers["instr"] = np.array([stimulus.instr + (int(codes[-1]) if len(codes) else start) + 1])
            start = max(free, int(offers["instr"][0]))
            lists, known = instruction.lists, instruction.vocabulary
            if lists is None:
                rows = handshakes(offers["rows"], start=start + 1)
                scored = int(rows[-1]) + self.latency + self.extra(instruction.tokens)
            else:
                offers["rows"], rows, given = self._planes(instruction.vocabulary, lists, offers["rows"], start)
                scored, known = int(rows[-1]) + self.latency + 2, sum(len(one) for one in lists)
                rescore = handshakes(given + 1, traces["rescore"], start=(int(taken["rescore"][-1][-1]) + 1) if taken["rescore"] else 0)
                taken["rescore"].append(rescore)
            serial = instruction.serial and lists is None
            tokens = handshakes(np.full(instruction.tokens if serial else 1, scored), traces["token"])
            token = int(tokens[-1])
            best = handshakes(np.full(min(self.best, known), token + 1), traces["best"])
            done = int(traces["done"].next_ready(token + 1))
            free = max(int(best[-1]), done) + 1
            for name, cycles in offers.items():
                offered[name].append(cycles)
            for name, value in {"instr": start, "codes": codes, "rows": rows, "token": tokens, "best": best, "done": done}.items():
                taken[name].append(np.atleast_1d(np.asarray(value, np.int64)))
        if not self.planes:
            del taken["rescore"]
        none = np.zeros(0, np.int64)
        offered_all, taken_all = ({name: np.concatenate([none, *parts]) for name, parts in ports.items()} for ports in (offered, taken))
        return offered_all, taken_all

    def _planes(self, vocabulary: int, lists: Lists, offers: Cycles, start: int) -> tuple[Cycles, Cycles, Cycles]:
        """(offers, handshakes) of the beats of a table in two planes, low rows not before their list is there, and when each list's rows were given away."""
        assert self.planes
        _, sizes, lows = self.planes.jobs(vocabulary, lists)
        scan, rows, end, first = PlaneScan(self), self.planes.segments(vocabulary), start, 0
        given: list[Cycles] = []
        taken: list[Cycles] = []
        offers = offers.copy()
        for size, low in zip(sizes.tolist(), lows.tolist(), strict=True):
            part = slice(first, first + size)
            if low >= 0:  # (a loader behind a queue is later by far)
                offers[part] = np.maximum(offers[part], given[low][-1] + 2)
            taken.append(handshakes(offers[part], start=end + 1))
            end, first = int(taken[-1][-1]), first + size
            if low < 0:
                given.append(scan.given(end, rows[len(given)], lists[len(given)]))
        return np.maximum.accumulate(offers), np.concatenate(taken), np.concatenate(given)


class PlaneScan:
    """When rows that have to be scored again are given away, segment after segment.

    Parameters
    ----------
    config
        The head.
    """

    def __init__(self, config: HeadConfig) -> None:
        self._latency, self._ended = config.latency, -1

    def given(self, last: int, rows: int, found: Cycles) -> Cycles:
        """Clocks (found,) of the rows ``found`` of a segment of ``rows`` rows, whose high plane's last beat was taken at ``last``."""
        begin = max(last + self._latency + 3, self._ended + 1)
        self._ended = begin + 3 + rows
        return np.append(begin + 3 + found[1:], self._ended)


class HeadTiming:
    """Cycles of a head whose outputs are always taken (the core's), one instruction at a time; all cycles are scalars or arrays (passes,).

    Parameters
    ----------
    config
        The head.
    """

    def __init__(self, config: HeadConfig) -> None:
        self.config = config
        self.free: Cycles = np.array(0)
        """First cycle in which the next instruction (or a code beat) can be taken."""

    def start(self, not_before: ArrayLike) -> Cycles:
        """Handshake of an instruction offered from ``not_before`` on; its table rows are taken from one later, one per clock."""
        return np.maximum(np.asarray(not_before, np.int64), self.free)

    def finish_planes(self, known: int, last_row: ArrayLike) -> tuple[Cycles, Cycles]:
        """As ``finish``, of a table in two planes, ``known`` rows of which were scored."""
        token = np.asarray(last_row, np.int64) + self.config.latency + 2
        self.free = token + 1 + min(self.config.best, known)
        return token, token + 1

    def finish(self, vocabulary: int, last_row: ArrayLike, tokens: int = 1, *, serial: bool = False) -> tuple[Cycles, Cycles]:
        """(last token, done) handshakes of the instruction whose last table beat was taken at ``last_row``; tokens of a serial pass come clock by clock."""
        first = np.asarray(last_row, np.int64) + self.config.latency + self.config.extra(tokens)
        token = first + tokens - 1 if serial else first
        self.free = token + 1 + min(self.config.best, vocabulary)
        return token, token + 1
