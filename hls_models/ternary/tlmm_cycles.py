# SPDX-License-Identifier: Apache-2.0
"""Exact cycles of LINEAR, and of LINEAR behind the weight path.

Let build j = 0, 1, … run over (tile, token group, k-block), m[j] be the valid lanes of its group, E the entries, R[j] the rows, t the handshake of the
instruction. Each constant is the register named:

- first entry written B[0] = t + 1 (loading) + m (lane reads) + 2 (memory, operand register) + … = t + m[0] + 3;
  B[j] = max(B[j-1] + E + m[j] - 1, last[j-2] + 1): operands are read ahead from entry E - 3 on; a set is free once its last row x = last[j-2] was taken.
- rows of build j: x = max(offered, x of the row before + 1, B[j] + E), in the last k-block also d + 1 with d the last read of the drain bank before.
- sums are stored at w = x + ``sum_latency`` and, if last, read at w + 1 for the first lane, offered to the gearbox at w + 2 (``Gearbox`` has its recurrence).
- done is offered one cycle after the last sum, the next instruction taken one cycle after done.

Arrays of cycles have shape (…, beats): the leading axes, absent here and there, are passes that do the same at different times.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np

from lutra.hls_models.streams import Ready
from lutra.hls_models.ternary.tlmm import LOAD_AHEAD, TlmmConfig
from lutra.hls_models.ternary.trits import tiles_of
from lutra.hls_models.ternary.weights import LinearInstruction

__all__ = ["NEVER", "Drain", "Lookups", "TlmmCycles", "codes_handshakes", "cycles"]

NEVER = -(1 << 60)
"""Earlier than any cycle."""


class _Pattern(NamedTuple):
    """How one group's rows become beats: the row behind each input, beats before input i, the input that completes beat b, cycles that inputs before i take
    at least."""

    row: np.ndarray
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
    return _Pattern(np.tile(np.arange(rows), lanes), before, completes, np.cumsum(np.maximum(np.diff(before, prepend=-1), 1)) - 1)


class Drain:
    """Gearbox and bank of the drain, group after group."""

    def __init__(self, config: TlmmConfig) -> None:
        self.config = config
        self.taken = self.left = self.read = np.array(NEVER)  # last gearbox input, last beat, last read of the bank

    def traced(self, written: np.ndarray, tile: int, lanes: int, ready: Ready) -> list[int]:
        """Beats of a group whose rows were stored at ``written`` (rows,), into a sink with a ready trace; one step per beat."""
        pattern = _pattern(self.config.columns, self.config.vector_lanes, tile, lanes)
        stored, read, taken, left = written.tolist() * lanes, int(self.read), int(self.taken), int(self.left)
        beats: list[int] = []
        for i, before in enumerate(pattern.before.tolist()):
            read = max(stored[i] + 1, taken)
            taken = max(stored[i] + 2, taken + 1, beats[before - 1] if before else int(self.left))
            while len(beats) < len(pattern.completes) and pattern.completes[len(beats)] == i:
                left = int(ready.next_ready(max(taken + 1, left + 1, 0)))
                beats.append(left)
        self.read, self.taken, self.left = np.array(read), np.array(taken), np.array(left)
        return beats

    def steady(self, written: np.ndarray, tile: int, lanes: int, ready: np.ndarray) -> np.ndarray:
        """As ``traced``, into a sink that is ready from cycle ``ready`` (…) on; vectorised."""
        row, before, completes, offset = _pattern(self.config.columns, self.config.vector_lanes, tile, lanes)
        stored = written[..., row] if lanes > 1 else written
        beat = np.arange(len(completes))
        first = np.maximum(ready, self.left + 1)[..., None]
        # An input is taken when the beats before it have left: one per cycle from ``first`` on, and as many as the input before completed.
        taken = np.maximum(stored + 2, np.where(before > 0, first + (before - 1), self.left[..., None]))
        taken = np.maximum.accumulate(np.maximum(taken, self.taken[..., None] + 1) - offset, axis=-1) + offset
        beats = np.maximum.accumulate(np.maximum(taken[..., completes] + 1, first) - beat, axis=-1) + beat
        self.read = np.maximum(stored[..., -1] + 1, taken[..., -2] if len(row) > 1 else self.taken)
        self.taken, self.left = taken[..., -1], beats[..., -1]
        return beats


@lru_cache(maxsize=1024)
def _responses(entries: int, rows: int, lanes: int, blocks: int) -> np.ndarray:
    """What each cause alone, at cycle 0, makes of the builds of a group: (4 + blocks, blocks + 1) cycles, x of each first row and the last B.

    The causes: B of the build before, last row of the one before that and of that one, the bank's first free cycle, and per build when its rows would start
    for the latest of them to be in time. All is sums and maxima, so that causes together make the latest of what each makes alone.
    """
    alone = np.full((4 + blocks, 4 + blocks), NEVER)
    np.fill_diagonal(alone, 0)
    build, before, row, free, *late = alone
    firsts = []
    for block in range(blocks):
        build = np.maximum(build + entries + lanes + 2 - LOAD_AHEAD, before + 1)
        firsts.append(np.maximum(build + entries, row + 1))
        if block == blocks - 1:
            firsts[-1] = np.maximum(firsts[-1], free)
        before, row = row, np.maximum(firsts[-1], late[block]) + rows - 1
    return np.stack([*firsts, build], axis=-1)


class Lookups:
    """Builds and rows of one instruction taken at ``start``; ``row``: handshake of the last row before it."""

    BLOCKS = 32  # builds computed together

    def __init__(self, config: TlmmConfig, start: np.ndarray, row: np.ndarray) -> None:
        self.config = config
        self.row, self.before = row, np.array(NEVER)  # last rows of the build before and of the one before that
        self.build = start + LOAD_AHEAD + 1 - config.entries  # as if there were one before the first

    def sweep(self, offered: np.ndarray | None, blocks: int, rows: int, lanes: int, bank_free: np.ndarray) -> np.ndarray:
        """Handshakes (…, blocks * rows) of the rows of a group's next builds, offered from ``offered`` on (None: at once).

        ``bank_free``: first cycle of a row of the last build (NEVER where it is not the group's last k-block).
        """
        if blocks > self.BLOCKS:
            split = self.BLOCKS * rows
            first = self.sweep(None if offered is None else offered[..., :split], self.BLOCKS, rows, lanes, np.array(NEVER))
            rest = self.sweep(None if offered is None else offered[..., split:], blocks - self.BLOCKS, rows, lanes, bank_free)
            return np.concatenate([first, rest], axis=-1)
        responses, index = _responses(self.config.entries, rows, lanes, blocks), np.arange(rows)
        causes = np.empty((*self.build.shape, 4), np.int64)
        for cause, cycle in enumerate((self.build, self.before, self.row, bank_free)):
            causes[..., cause] = cycle
        if offered is None:
            found = (causes[..., None] + responses[:4]).max(axis=-2)
            taken = found[..., :-1, None] + index
        else:
            starts = np.maximum.accumulate(offered.reshape(*offered.shape[:-1], blocks, rows) - index, axis=-1)
            found = (np.concatenate([causes, starts[..., -1]], axis=-1)[..., None] + responses).max(axis=-2)
            taken = np.maximum(found[..., :-1, None], starts) + index
        self.build, self.before, self.row = found[..., -1], taken[..., -2, -1] if blocks > 1 else self.row, taken[..., -1, -1]
        return taken.reshape(*taken.shape[:-2], -1)


class TlmmCycles(NamedTuple):
    """Handshake cycles of every port."""

    instr: np.ndarray
    codes: np.ndarray
    rows: np.ndarray
    sums: np.ndarray
    done: np.ndarray


def codes_handshakes(config: TlmmConfig, not_before: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Handshakes of ``codes`` beats; ``last`` marks a token's final beats. The beat after one waits until the gearbox has passed on what it cannot keep."""
    held, spans, lanes, block = 0, np.ones(len(last), np.int64), config.vector_lanes, config.block
    if lanes > block or last.any():
        for i, final in enumerate(np.asarray(last).tolist()):
            level = held + lanes
            spans[i] = -(-level // block) if final else max(1, level // block)
            held = 0 if final else level % block
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
    position, row = 0, np.array(NEVER)
    for instruction, earliest in zip(instructions, instr_not_before, strict=True):
        instr.append(max(int(earliest), done[-1] + 1 if done else 0))
        lookups = Lookups(config, np.array(instr[-1]), row)
        for tile in tiles_of(instruction.columns, instruction.tile_columns):
            count = -(-tile // config.columns)
            for token in range(0, instruction.tokens, config.lanes):
                lanes, total = min(config.lanes, instruction.tokens - token), instruction.k_blocks * count
                rows.append(lookups.sweep(rows_not_before[position : position + total], instruction.k_blocks, count, lanes, drain.read + 1))
                position += total
                sums += drain.traced(rows[-1][-count:] + config.sum_latency, tile, lanes, sums_ready)
        row = lookups.row
        done.append(int(done_ready.next_ready(sums[-1] + 1)))
    codes = codes_handshakes(config, codes_not_before, codes_last)
    arrays = (np.array(instr, np.int64), codes, np.concatenate(rows), np.array(sums, np.int64), np.array(done, np.int64))
    return TlmmCycles(*arrays)
