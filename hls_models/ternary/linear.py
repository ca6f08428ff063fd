# SPDX-License-Identifier: Apache-2.0
"""Exact cycles of the weight path and LINEAR together, as the core connects them; utilisation of the lookup array.

The recurrences are those of ``weights`` and ``tlmm_cycles``; here the ``rows`` stream between the two is resolved: a row whose last beat is taken at h is
offered from max(h + ``ARRIVAL_CYCLES``, weight path's instruction + 1) + 1 on, one cycle after its read. An instruction whose rows always arrive in time
has a schedule that depends on its start only: it is computed once and shifted.
"""

from typing import NamedTuple

import numpy as np

from lutra.hls_models.errors import ConfigError
from lutra.hls_models.ternary.tlmm import TlmmConfig
from lutra.hls_models.ternary.tlmm_cycles import NEVER, Drain, Lookups
from lutra.hls_models.ternary.trits import tiles_of
from lutra.hls_models.ternary.weights import ARRIVAL_CYCLES, LinearInstruction, WeightPathConfig

__all__ = ["LinearCycles", "LinearRun", "LinearTiming", "utilisation"]

EMPTY = np.zeros(0, np.int64)


class LinearCycles(NamedTuple):
    """What a step adds: int64 cycles."""

    rows: np.ndarray
    """Handshakes of the ``rows`` stream, in the order of the reads."""
    freed: np.ndarray
    """Pulses of ``freed``, one per row of the matrix."""
    sums: np.ndarray
    """Handshakes of the ``sums`` beats."""

    def shifted(self, cycles: int) -> "LinearCycles":
        return LinearCycles(self.rows + cycles, self.freed + cycles, self.sums + cycles)


class _State(NamedTuple):
    """What outlives an instruction: last row, drain."""

    row: int
    taken: int
    left: int
    read: int


class _Walk:
    """Steps of an instruction: chunks of k-blocks of a tile that the ring can hold."""

    def __init__(self, config: TlmmConfig, ring_rows: int, instruction: LinearInstruction) -> None:
        self.instruction = instruction
        self.groups = -(-instruction.tokens // config.lanes)
        self.steps: list[tuple[int, int, int, int]] = []  # tile, its rows per k-block, first k-block, k-blocks
        self.tiles = tiles_of(instruction.columns, instruction.tile_columns)
        for tile, columns in enumerate(self.tiles):
            rows = -(-columns // config.columns)
            chunk = min(instruction.k_blocks, ring_rows // rows)
            if chunk < instruction.k_blocks and self.groups > 1:
                size = f"{columns} columns take {rows * instruction.k_blocks} rows"
                raise ConfigError(f"tile_columns: a tile must fit ring_rows = {ring_rows} when tokens > {config.lanes}, {size}")
            self.steps += [(tile, rows, kb, min(chunk, instruction.k_blocks - kb)) for kb in range(0, instruction.k_blocks, chunk)]


class _Exact:
    """Steps computed by the recurrences."""

    def __init__(self, config: TlmmConfig, walk: _Walk, start: int, weights_start: int, state: _State) -> None:
        self.config, self.walk = config, walk
        self.drain = Drain(config)
        self.drain.taken, self.drain.left, self.drain.read = state.taken, state.left, state.read
        self.lookups = Lookups(config, start, state.row)
        self.earliest = weights_start + 1  # first read: the weight path's walk is active

    def step(self, index: int, offered: np.ndarray, ready: int) -> LinearCycles:
        config, instruction = self.config, self.walk.instruction
        tile, rows, first, count = self.walk.steps[index]
        before = self.lookups.row
        complete = first + count == instruction.k_blocks
        handed, sums = [], []
        for group in range(self.walk.groups if complete else 1):
            lanes = min(config.lanes, instruction.tokens - group * config.lanes)
            for kb in range(first, first + count):
                last = kb == instruction.k_blocks - 1
                part = offered[(kb - first) * rows : (kb - first + 1) * rows] if group == 0 else None
                handed.append(self.lookups.sweep(part, rows, lanes, self.drain.read + 1 if last else NEVER))
                if last:
                    sums.append(self.drain.steady(handed[-1] + config.sum_latency, self.walk.tiles[tile], lanes, ready))
        taken = np.concatenate(handed)
        # Given back one cycle after the last read: a row is read once it is there and the row before has left the ring's output.
        once = self.walk.groups == 1
        freed = np.maximum(offered, np.concatenate([[before], taken[:-1]]) + 1) if once else taken[-count * rows - 1 : -1] + 1
        return LinearCycles(taken, freed, np.concatenate(sums) if sums else EMPTY)

    @property
    def state(self) -> _State:
        return _State(self.lookups.row, self.drain.taken, self.drain.left, self.drain.read)


class LinearRun:
    """One instruction in steps; call ``step`` until ``finished``.

    A step wants ``rows_wanted`` further rows of the matrix, never more than the ring holds, so that their arrival depends on no ``freed`` pulse but those of
    earlier steps; ``tile`` is the number of the tile whose beats it may yield.
    """

    def __init__(self, timing: "LinearTiming", instruction: LinearInstruction, start: int, weights_start: int) -> None:
        self._timing, self._start, self._weights_start = timing, start, weights_start
        self._walk, self._ideal, self._ideal_state = timing._schedule(instruction, weights_start - start)
        self._index = 0
        self._past: list[tuple[np.ndarray, int]] = []
        self._exact: _Exact | None = None
        self._before = timing._state
        self.finished = False
        self.done = 0
        """When ``finished``: first cycle in which ``done`` is offered, one after the last sum; LINEAR takes an instruction again one after its handshake."""
        self.lateness = 0
        """When ``finished``: cycles by which rows or the sink of the sums delayed it."""
        self.weights_free = 0
        """When ``finished``: first cycle in which the weight path takes its next instruction."""

    @property
    def rows_wanted(self) -> int:
        _, rows, _, count = self._walk.steps[self._index]
        return rows * count

    @property
    def tile(self) -> int:
        return self._walk.steps[self._index][0]

    def step(self, arrived: np.ndarray, ready: int = NEVER) -> LinearCycles:
        """``arrived`` (rows_wanted,): handshakes of these rows' last beats; ``ready``: cycle from which ``sums`` is accepted without a stall in this tile."""
        offered = np.maximum(np.asarray(arrived, np.int64) + ARRIVAL_CYCLES, self._weights_start + 1) + 1
        result = None
        if self._exact is None:
            ideal = self._ideal[self._index].shifted(self._start)
            if self._in_time(ideal, offered, ready):
                result = ideal
                self._past.append((offered, ready))
            else:
                self._exact = _Exact(self._timing.config, self._walk, self._start, self._weights_start, self._before)
                for index, inputs in enumerate(self._past):
                    self._exact.step(index, *inputs)
        if result is None:
            assert self._exact is not None
            result = self._exact.step(self._index, offered, ready)
        self._index += 1
        self.finished = self._index == len(self._walk.steps)
        if self.finished:
            self.done = int(result.sums[-1]) + 1
            self.lateness = int(result.sums[-1]) - self._start - int(self._ideal[-1].sums[-1])
            self.weights_free = int(result.freed[-1])  # the pulse of the last read and the idle walk are registers of the same edge
            self._timing._state = _State(*(value + self._start for value in self._ideal_state)) if self._exact is None else self._exact.state
        return result

    def _in_time(self, ideal: LinearCycles, offered: np.ndarray, ready: int) -> bool:
        if len(ideal.sums) and ready > ideal.sums[0]:
            return False
        if self._walk.groups > 1:
            return bool((offered <= ideal.rows[: len(offered)]).all())
        return bool((offered <= ideal.freed).all()) and (self._index > 0 or self._before.row < ideal.freed[0])


class LinearTiming:
    """Exact cycles of WeightPath and Tlmm together, instruction after instruction.

    Assumes what holds in the core: an instruction's codes are there, ``sums`` goes to a sink that is ready from a known cycle on for a tile and does not stall
    within it, ``done`` is accepted at once. An instruction starts when LINEAR takes it, after the ``done`` of the one before.
    """

    def __init__(self, config: TlmmConfig, weights: WeightPathConfig) -> None:
        if weights.ring_rows < config.tile_rows:
            raise ConfigError(
                f"ring_rows must be at least {config.tile_rows}, the rows of a tile of {config.max_tile_columns} columns, not {weights.ring_rows}"
            )
        self.config, self.weights = config, weights
        self._state = _State(NEVER, NEVER, NEVER, NEVER)
        self._schedules: dict[tuple[LinearInstruction, int], tuple[_Walk, list[LinearCycles], _State]] = {}

    def _schedule(self, instruction: LinearInstruction, lead: int) -> tuple[_Walk, list[LinearCycles], _State]:
        """Steps from cycle 0 with all rows and sinks in time; ``lead``: start of the weight path."""
        key = instruction, lead
        if key not in self._schedules:
            walk = _Walk(self.config, self.weights.ring_rows, instruction)
            exact = _Exact(self.config, walk, 0, lead, _State(NEVER, NEVER, NEVER, NEVER))
            steps = [exact.step(i, np.full(rows * count, lead + 2), NEVER) for i, (_, rows, _, count) in enumerate(walk.steps)]
            self._schedules[key] = walk, steps, exact.state
        return self._schedules[key]

    def begin(self, instruction: LinearInstruction, start: int, weights_start: int | None = None) -> LinearRun:
        """An instruction that LINEAR takes in cycle ``start`` and the weight path in ``weights_start`` (the same where absent)."""
        return LinearRun(self, instruction, start, start if weights_start is None else weights_start)

    def instruction(
        self, instruction: LinearInstruction, start: int, arrived: np.ndarray | None = None, ready: np.ndarray | int = NEVER, weights_start: int | None = None
    ) -> tuple[LinearCycles, int]:
        """(cycles, done) of a whole instruction; ``arrived`` per row of the matrix (None: in time), ``ready`` for all tiles or per tile."""
        run = self.begin(instruction, start, weights_start)
        steps, first = [], 0
        while not run.finished:
            count, tile = run.rows_wanted, run.tile
            given = np.full(count, NEVER) if arrived is None else arrived[first : first + count]
            steps.append(run.step(given, int(ready if np.ndim(ready) == 0 else np.asarray(ready)[tile])))
            first += count
        return LinearCycles(*(np.concatenate([step[i] for step in steps]) for i in range(3))), run.done


def utilisation(config: TlmmConfig, instruction: LinearInstruction, k: int, cycles: int) -> float:
    """Useful multiply-accumulates over what the array could do in ``cycles``: N * K * n / (T * G * Q * M * cycles); padding and idle lanes do not count."""
    useful = instruction.columns * k * instruction.tokens
    return useful / (config.block * config.columns * config.lanes * cycles)
