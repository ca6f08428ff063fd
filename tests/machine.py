# SPDX-License-Identifier: Apache-2.0
"""The core's queues and buffers without values or clocks: whether a program can lock it."""

from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.isa import Instruction, LoadMode, LoadTarget, Operation, Semaphore, Source, Unit
from lutra.hls_models.ternary.trits import tiles_of


class StuckError(Exception):
    """The units wait for each other."""


class Machine:
    """The core's queues and buffers, without values or clocks: any order of progress ends, or none does."""

    def __init__(self, core: CoreConfig, shape: ModelShape, instructions: list[Instruction], depth: int) -> None:
        self.core, self.n, self.depth = core, core.chunk, depth
        self.program = deque(i for i in instructions if i.unit is not Unit.END)
        self.queues: dict[Unit, deque[Instruction]] = {unit: deque() for unit in Unit}
        self.room = {
            LoadTarget.WEIGHTS: core.ring_rows,
            LoadTarget.PARAMS: core.params_rows,
            LoadTarget.ROPE: core.rope_rows,
            LoadTarget.EMBED: 1,
            LoadTarget.HEAD: 1,
            LoadTarget.PLANES: 1,
            LoadTarget.KV: 4,
        }
        self.kv_heads, self.tiles = shape.kv_heads, 3
        self.held: Counter[LoadTarget] = Counter()
        self.semaphores = Counter({Semaphore.TOKEN: 1})
        self.values, self.offered = 0, 0  # tiles that ATTEND has ready, tiles of sums that LINEAR offers
        self.stored = 0  # passes whose queries, keys and values ATTEND has
        self.hidden, self.heads = shape.hidden // core.vector_lanes, shape.kv_heads
        self.row_beats = core.row_beats

    def run(self) -> None:
        steps = {Unit.LOADER: self.load, Unit.LINEAR: self.linear, Unit.VECTOR: self.vector, Unit.ATTEND: self.attend, Unit.HEAD: self.head}
        active: dict[Unit, Iterator[bool]] = {}
        while self.program or active or any(self.queues.values()):
            moved = False
            while self.program and len(self.queues[self.program[0].unit]) < self.depth:
                self.queues[self.program[0].unit].append(self.program.popleft())
                moved = True
            for unit, step in steps.items():
                if unit not in active and self.queues[unit]:
                    active[unit] = self.guarded(self.queues[unit].popleft(), step)
                    moved = True
                while unit in active:
                    progress = next(active[unit], None)
                    moved |= progress is not False
                    if progress is None:
                        del active[unit]
                    if progress is not True:
                        break
            if not moved:
                raise StuckError

    def guarded(self, i: Instruction, step: Any) -> Iterator[bool]:
        while any(flag & i.wait and not self.semaphores[flag] for flag in Semaphore):
            yield False
        self.semaphores.subtract(flag for flag in Semaphore if flag & i.wait)
        yield from step(i.fields)
        self.semaphores.update(flag for flag in Semaphore if flag & i.signal)

    def take(self, target: LoadTarget, count: int) -> Iterator[bool]:
        while self.held[target] < count:
            yield False
        self.held[target] -= count
        yield True

    def load(self, f: dict[str, int]) -> Iterator[bool]:
        target, per_beat = LoadTarget(f["target"]), self.core.params_rows_per_beat
        times = {LoadMode.DIRECT: 1, LoadMode.TILES: 2 * self.kv_heads * self.tiles}.get(LoadMode(f["mode"]), self.n)
        for _ in range(times):
            left = f["rows"]
            sizes = {LoadTarget.WEIGHTS: f["beats"] // self.row_beats, LoadTarget.EMBED: 1, LoadTarget.HEAD: 1, LoadTarget.PLANES: 1, LoadTarget.KV: 1}
            for _ in range(sizes.get(target, f["beats"])):
                reserved = per_beat if target in (LoadTarget.PARAMS, LoadTarget.ROPE) else 1
                while self.held[target] + reserved > self.room[target]:
                    yield False
                self.held[target] += min(left, per_beat) if reserved == per_beat and target in (LoadTarget.PARAMS, LoadTarget.ROPE) else 1
                left -= per_beat
                yield True

    def linear(self, f: dict[str, int]) -> Iterator[bool]:
        for tile in tiles_of(f["columns"], f["tile_columns"]):
            rows = f["k_blocks"] * -(-tile // self.core.columns)
            if self.n > self.core.lanes:
                yield from self.take(LoadTarget.WEIGHTS, rows)
            else:
                for _ in range(rows):
                    yield from self.take(LoadTarget.WEIGHTS, 1)
            self.offered += 1
            while self.offered:
                yield False

    def vector(self, f: dict[str, int]) -> Iterator[bool]:
        v, shrink = self.core.vector_lanes, 2 if f["operation"] == Operation.GATE else 1
        yield from self.take(LoadTarget.PARAMS, -(-160 // (24 * v)))
        for tile in tiles_of(f["columns"], f["tile_columns"]):
            if f["norm"]:
                yield from self.take(LoadTarget.PARAMS, tile // shrink // v)
            if f["source"] == Source.EMBED:
                for _ in range(self.n):
                    yield from self.take(LoadTarget.EMBED, 1)
            elif f["source"] == Source.SUMS:
                while not self.offered:
                    yield False
                self.offered -= 1
            else:
                while not self.values:
                    yield False
                self.values -= 1
            yield True
        if f["operation"] == Operation.ROPE:
            yield from self.take(LoadTarget.ROPE, self.n * f["group_columns"] // v)
            self.stored += 1

    def attend(self, f: dict[str, int]) -> Iterator[bool]:
        while not self.stored:
            yield False
        self.stored -= 1
        if self.core.memory:
            self.semaphores[Semaphore.STORED] += 1
        for _ in range(self.heads):
            for _ in range(2 * self.tiles if self.core.memory else 0):
                yield from self.take(LoadTarget.KV, 1)
            self.values += 1
            yield True
            while self.values:
                yield False

    def head(self, f: dict[str, int]) -> Iterator[bool]:
        yield from self.take(LoadTarget.PLANES if f["planes"] else LoadTarget.HEAD, 1)
