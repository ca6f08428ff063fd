# SPDX-License-Identifier: Apache-2.0
"""Exact cycles of the weight path and LINEAR together, as the core connects them; utilisation of the lookup array.

The recurrences are those of ``weights`` and ``tlmm_cycles``; here the ``rows`` stream between the two is resolved: a row whose last beat is taken at h is
offered from max(h + ``ARRIVAL_CYCLES``, weight path's instruction + 1) + 1 on, one cycle after its read. An instruction whose rows always arrive in time
has a schedule that depends on its start only: it is computed once and shifted.

Arrays of cycles have shape (…, n), single cycles (…): the leading axes, where there are any, are passes that make the same instructions at different times.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lutra.hls_models.errors import ConfigError
from lutra.hls_models.ternary.repetition import Moments
from lutra.hls_models.ternary.tlmm import TlmmConfig
from lutra.hls_models.ternary.tlmm_cycles import NEVER, Drain, Lookups
from lutra.hls_models.ternary.trits import tiles_of
from lutra.hls_models.ternary.weights import ARRIVAL_CYCLES, LinearInstruction, WeightPathConfig

__all__ = ["LinearCycles", "LinearRun", "LinearTiming", "utilisation"]


class LinearCycles(NamedTuple):
    """What a step adds: int64 cycles (…, n)."""

    rows: np.ndarray
    """Handshakes of the ``rows`` stream, in the order of the reads."""
    freed: np.ndarray
    """Pulses of ``freed``, one per row of the matrix."""
    sums: np.ndarray
    """Handshakes of the ``sums`` beats."""

    def shifted(self, cycles: np.ndarray) -> "LinearCycles":
        by = np.asarray(cycles)[..., None]
        return LinearCycles(self.rows + by, self.freed + by, self.sums + by)


class _State(NamedTuple):
    """What outlives an instruction: last row, drain."""

    row: np.ndarray
    taken: np.ndarray
    left: np.ndarray
    read: np.ndarray


REST = _State(*[np.array(NEVER)] * 4)


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

    def __init__(self, config: TlmmConfig, walk: _Walk, start: np.ndarray, state: _State) -> None:
        self.config, self.walk = config, walk
        self.drain = Drain(config)
        self.drain.taken, self.drain.left, self.drain.read = state.taken, state.left, state.read
        self.lookups = Lookups(config, start, state.row)

    def step(self, index: int, offered: np.ndarray, ready: np.ndarray) -> LinearCycles:
        config, instruction = self.config, self.walk.instruction
        tile, rows, first, count = self.walk.steps[index]
        before = self.lookups.row
        complete = first + count == instruction.k_blocks
        handed, sums = [], []
        for group in range(self.walk.groups if complete else 1):
            lanes = min(config.lanes, instruction.tokens - group * config.lanes)
            bank_free = self.drain.read + 1 if complete else REST.read
            handed.append(self.lookups.sweep(offered if group == 0 else None, count, rows, lanes, bank_free))
            if complete:
                sums.append(self.drain.steady(handed[-1][..., -rows:] + config.sum_latency, self.walk.tiles[tile], lanes, ready))
        taken = np.concatenate(handed, axis=-1)
        # Given back one cycle after the last read: a row is read once it is there and the row before has left the ring's output.
        if self.walk.groups == 1:
            taken_before = np.concatenate([np.broadcast_to(before, taken.shape[:-1])[..., None], taken[..., :-1]], axis=-1)
            return LinearCycles(taken, np.maximum(offered, taken_before + 1), np.concatenate(sums, axis=-1) if sums else taken[..., :0])
        return LinearCycles(taken, taken[..., -count * rows - 1 : -1] + 1, np.concatenate(sums, axis=-1))

    @property
    def state(self) -> _State:
        return _State(self.lookups.row, self.drain.taken, self.drain.left, self.drain.read)


class LinearRun:
    """One instruction in steps; call ``step`` until ``finished``.

    A step wants ``rows_wanted`` further rows of the matrix, never more than the ring holds, so that their arrival depends on no ``freed`` pulse but those of
    earlier steps; ``tile`` is the number of the tile whose beats it may yield.
    """

    def __init__(self, timing: "LinearTiming", instruction: LinearInstruction, start: np.ndarray, lead: int) -> None:
        self._timing, self._start, self._lead = timing, np.asarray(start, np.int64), lead
        self._walk, self._ideal, self._ideal_state = timing._schedule(instruction, lead)
        self._index = 0
        self._past: list[tuple[np.ndarray, np.ndarray]] = []
        self._exact: _Exact | None = None
        self._before = timing._state
        self.finished = False
        self.done = self._start
        """When ``finished``: first cycle in which ``done`` is offered, one after the last sum; LINEAR takes an instruction again one after its handshake."""
        self.lateness = self._start
        """When ``finished``: cycles by which rows or the sink of the sums delayed it."""
        self.weights_free = self._start
        """When ``finished``: first cycle in which the weight path takes its next instruction."""

    @property
    def rows_wanted(self) -> int:
        _, rows, _, count = self._walk.steps[self._index]
        return rows * count

    @property
    def tile(self) -> int:
        return self._walk.steps[self._index][0]

    def step(self, arrived: np.ndarray, ready: ArrayLike = NEVER) -> LinearCycles:
        """``arrived`` (…, rows_wanted): handshakes of these rows' last beats; ``ready`` (…): cycle from which ``sums`` is accepted without a stall in this
        tile."""
        arrived, ready = np.asarray(arrived, np.int64), np.asarray(ready, np.int64)
        if self._exact is None and not self._in_time(self._ideal[self._index], arrived, ready):
            self._exact = _Exact(self._timing.config, self._walk, self._start, self._before)
            for index, (rows, sink) in enumerate(self._past):
                self._exact.step(index, self._offered(rows), sink)
        if self._exact is None:
            self._past.append((arrived, ready))
            result = self._ideal[self._index].shifted(self._start)
        else:
            result = self._exact.step(self._index, self._offered(arrived), ready)
        self._index += 1
        self.finished = self._index == len(self._walk.steps)
        if self.finished:
            self.done = result.sums[..., -1] + 1
            self.lateness = result.sums[..., -1] - self._start - self._ideal[-1].sums[-1]
            self.weights_free = result.freed[..., -1]  # the pulse of the last read and the idle walk are registers of the same edge
            self._timing._state = _State(*(value + self._start for value in self._ideal_state)) if self._exact is None else self._exact.state
        return result

    def _offered(self, arrived: np.ndarray) -> np.ndarray:
        """The first read finds the weight path's walk active."""
        return np.maximum(arrived + ARRIVAL_CYCLES, (self._start + self._lead + 1)[..., None]) + 1

    def _in_time(self, ideal: LinearCycles, arrived: np.ndarray, ready: np.ndarray) -> bool:
        if len(ideal.sums) and (ready - self._start > ideal.sums[0]).any():
            return False
        if self._index == 0 and not (self._before.row - self._start < ideal.freed[0]).all():
            return False
        needed = ideal.freed if self._walk.groups == 1 else ideal.rows[: arrived.shape[-1]]
        return bool((arrived - self._start[..., None] <= needed - (ARRIVAL_CYCLES + 1)).all())


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
        self.rest()
        self._schedules: dict[tuple[LinearInstruction, int], tuple[_Walk, list[LinearCycles], _State]] = {}

    def rest(self) -> None:
        """What was before is long past: the next instruction may have other leading axes."""
        self._state = REST

    def visit(self, moments: Moments) -> None:
        """Between two instructions."""
        self._state = _State(*(moments.at(value) for value in self._state))

    def _schedule(self, instruction: LinearInstruction, lead: int) -> tuple[_Walk, list[LinearCycles], _State]:
        """Steps from cycle 0 with all rows and sinks in time; ``lead``: start of the weight path."""
        key = instruction, lead
        if key not in self._schedules:
            walk = _Walk(self.config, self.weights.ring_rows, instruction)
            exact = _Exact(self.config, walk, np.array(0), REST)
            steps = [exact.step(i, np.full(rows * count, lead + 2), REST.left) for i, (_, rows, _, count) in enumerate(walk.steps)]
            self._schedules[key] = walk, steps, exact.state
        return self._schedules[key]

    def begin(self, instruction: LinearInstruction, start: ArrayLike, lead: int = 0) -> LinearRun:
        """An instruction that LINEAR takes in cycle ``start`` (…) and the weight path ``lead`` cycles later (or, where negative, earlier)."""
        return LinearRun(self, instruction, np.asarray(start, np.int64), lead)

    def instruction(
        self, instruction: LinearInstruction, start: int, arrived: np.ndarray | None = None, ready: np.ndarray | int = NEVER
    ) -> tuple[LinearCycles, int]:
        """(cycles, done) of a whole instruction; ``arrived`` per row of the matrix (None: in time), ``ready`` for all tiles or per tile."""
        run = self.begin(instruction, start)
        steps, first = [], 0
        while not run.finished:
            count, tile = run.rows_wanted, run.tile
            given = np.full(count, NEVER) if arrived is None else arrived[first : first + count]
            steps.append(run.step(given, int(ready if np.ndim(ready) == 0 else np.asarray(ready)[tile])))
            first += count
        return LinearCycles(*(np.concatenate([step[i] for step in steps]) for i in range(3))), int(run.done)


def utilisation(config: TlmmConfig, instruction: LinearInstruction, k: int, cycles: int) -> float:
    """Useful multiply-accumulates over what the array could do in ``cycles``: N * K * n / (T * G * Q * M * cycles); padding and idle lanes do not count."""
    useful = instruction.columns * k * instruction.tokens
    return useful / (config.block * config.columns * config.lanes * cycles)
