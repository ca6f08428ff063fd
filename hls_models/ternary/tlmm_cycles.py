# SPDX-License-Identifier: Apache-2.0
"""Exact cycles of LINEAR, and of LINEAR behind the weight path.

Let build j = 0, 1, … run over (tile, token group, k-block), m[j] be the valid lanes of its group, E the entries, R[j] the rows, t the handshake of the
instruction. Each constant is the register named:

- first entry written B[0] = t + 1 (loading) + m (lane reads) + 2 (memory, operand register) + … = t + m[0] + 3;
  B[j] = max(B[j-1] + E + m[j] - 1, last[j-2] + 1): operands are read ahead from entry E - 3 on; a set is free once its last row x = last[j-2] was taken.
- rows of build j: x = max(offered, x of the row before + 1, B[j] + E), in the last k-block also d + 1 with d the last read of the drain bank before.
- sums are stored at w = x + ``sum_latency`` and, if last, read at w + 1 for the first lane, offered to the gearbox at w + 2 (``Gearbox`` has its recurrence).
- done is offered one cycle after the last sum, the next instruction taken one cycle after done.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lutra.hls_models.streams import Ready, handshakes
from lutra.hls_models.ternary.tlmm import LOAD_AHEAD, TlmmConfig
from lutra.hls_models.ternary.trits import tiles_of
from lutra.hls_models.ternary.weights import LinearInstruction

__all__ = ["NEVER", "Drain", "Lookups", "TlmmCycles", "codes_handshakes", "cycles"]

NEVER = -(1 << 60)
"""Earlier than any cycle."""


class _Pattern(NamedTuple):
    """How one group's rows become beats: beats before input i, the input that completes beat b, cycles that inputs before i take at least."""

    before: np.ndarray
    completes: np.ndarray
    offset: np.ndarray


@lru_cache(maxsize=4096)
def _pattern(columns: int, vector_lanes: int, tile: int, lanes: int) -> _Pattern:
    rows, padded = -(-tile // columns), -(-tile // vector_lanes) * vector_lanes
    items = np.minimum(np.arange(1, rows + 1) * columns, tile)
    items[-1] = padded
    total = (np.arange(lanes)[:, None] * padded + items).reshape(-1)
    before = np.concatenate([[0], total[:-1]]) // vector_lanes
    completes = np.searchsorted(total, np.arange(1, total[-1] // vector_lanes + 1) * vector_lanes)
    return _Pattern(before, completes, np.cumsum(np.maximum(np.diff(before, prepend=-1), 1)) - 1)


class Drain:
    """Gearbox and bank of the drain, group after group."""

    def __init__(self, config: TlmmConfig) -> None:
        self.config = config
        self.taken = self.left = self.read = NEVER  # last gearbox input, last beat, last read of the bank

    def traced(self, written: np.ndarray, tile: int, lanes: int, ready: Ready) -> list[int]:
        """Beats of a group whose rows were stored at ``written``, into a sink with a ready trace; one step per beat."""
        pattern = _pattern(self.config.columns, self.config.vector_lanes, tile, lanes)
        stored, first = written.tolist() * lanes, self.left
        beats: list[int] = []
        for i, before in enumerate(pattern.before.tolist()):
            self.read = max(stored[i] + 1, self.taken)
            self.taken = max(stored[i] + 2, self.taken + 1, beats[before - 1] if before else first)
            while len(beats) < len(pattern.completes) and pattern.completes[len(beats)] == i:
                self.left = int(ready.next_ready(max(self.taken + 1, self.left + 1, 0)))
                beats.append(self.left)
        return beats

    def steady(self, written: np.ndarray, tile: int, lanes: int, ready: int) -> np.ndarray:
        """As ``traced``, into a sink that is ready from cycle ``ready`` on; vectorised."""
        before, completes, offset = _pattern(self.config.columns, self.config.vector_lanes, tile, lanes)
        stored = np.tile(written, lanes) if lanes > 1 else written
        beat = np.arange(len(completes))
        first = max(ready, self.left + 1)
        # An input is taken when the beats before it have left: one per cycle from ``first`` on, and as many as the input before completed.
        taken = np.maximum(stored + 2, np.where(before > 0, first + before - 1, self.left))
        taken = np.maximum.accumulate(np.maximum(taken, self.taken + 1) - offset) + offset
        beats = np.maximum.accumulate(np.maximum(taken[completes] + 1, first) - beat) + beat
        self.read = max(int(stored[-1]) + 1, int(taken[-2]) if len(taken) > 1 else self.taken)
        self.taken, self.left = int(taken[-1]), int(beats[-1])
        return beats


class Lookups:
    """Builds and rows of one instruction, build after build."""

    def __init__(self, config: TlmmConfig, start: int, row: int) -> None:
        self.config, self.start = config, start
        self.row = row  # handshake of the last row
        self.build = NEVER
        self.last = [NEVER, NEVER]  # last rows of the two builds before

    def sweep(self, offered: np.ndarray | None, rows: int, lanes: int, bank_free: int) -> np.ndarray:
        """Handshakes of the next build's rows, offered from ``offered`` on (None: at once); ``bank_free``: first cycle of a row of the last k-block."""
        entries = self.config.entries
        if self.build == NEVER:
            self.build = self.start + lanes + 3
        else:
            self.build = max(self.build + entries + lanes + 2 - LOAD_AHEAD, self.last[0] + 1)
        first = max(self.build + entries, bank_free, self.row + 1)
        index = np.arange(first, first + rows)
        if offered is not None and (offered > index).any():
            index = handshakes(offered, start=first)
        self.row = int(index[-1])
        self.last = [self.last[1], self.row]
        return index


class TlmmCycles(NamedTuple):
    """Handshake cycles of every port."""

    instr: np.ndarray
    codes: np.ndarray
    rows: np.ndarray
    sums: np.ndarray
    done: np.ndarray


def codes_handshakes(config: TlmmConfig, not_before: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Handshakes of ``codes`` beats; ``last`` marks a token's final beats. The beat after one waits until the gearbox has passed on what it cannot keep."""
    held, spans = 0, np.ones(len(last), np.int64)
    if config.vector_lanes > config.block or last.any():
        for i, final in enumerate(np.asarray(last).tolist()):
            level = held + config.vector_lanes
            spans[i] = -(-level // config.block) if final else max(1, level // config.block)
            held = 0 if final else level % config.block
    offset = np.cumsum(spans) - spans
    return np.maximum.accumulate(np.asarray(not_before, np.int64) - offset) + offset if len(offset) else offset


def cycles(
    config: TlmmConfig,
    instructions: list[LinearInstruction],
    instr_not_before: np.ndarray,
    codes_not_before: np.ndarray,
    codes_last: np.ndarray,
    rows_not_before: np.ndarray,
    sums_ready: Ready,
    done_ready: Ready,
) -> TlmmCycles:
    """Exact handshakes of every port for earliest cycles of the inputs and ready traces of the outputs."""
    drain = Drain(config)
    instr: list[int] = []
    rows: list[np.ndarray] = []
    sums: list[int] = []
    done: list[int] = []
    position, row = 0, NEVER
    for instruction, earliest in zip(instructions, instr_not_before, strict=True):
        instr.append(max(int(earliest), done[-1] + 1 if done else 0))
        lookups = Lookups(config, instr[-1], row)
        for tile in tiles_of(instruction.columns, instruction.tile_columns):
            count = -(-tile // config.columns)
            for token in range(0, instruction.tokens, config.lanes):
                lanes = min(config.lanes, instruction.tokens - token)
                for kb in range(instruction.k_blocks):
                    last = kb == instruction.k_blocks - 1
                    rows.append(lookups.sweep(rows_not_before[position : position + count], count, lanes, drain.read + 1 if last else NEVER))
                    position += count
                sums += drain.traced(rows[-1] + config.sum_latency, tile, lanes, sums_ready)
        row = lookups.row
        done.append(int(done_ready.next_ready(sums[-1] + 1)))
    codes = codes_handshakes(config, codes_not_before, codes_last)
    arrays = (np.array(instr, np.int64), codes, np.concatenate(rows), np.array(sums, np.int64), np.array(done, np.int64))
    return TlmmCycles(*arrays)
