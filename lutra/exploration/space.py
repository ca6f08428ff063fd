# SPDX-License-Identifier: Apache-2.0
"""The sizes that a search varies: a grid of values per size, from the device's file, and the configuration that a point of it stands for."""

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pydantic import ValidationError

from lutra.hls_models.errors import ConfigError
from lutra.hls_models.load import nearest
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.memory import MemoryConfig

__all__ = ["Choice", "Point", "Space"]

Choice = bool | int | str
Point = tuple[Any, ...]
"""A value of every size (``Choice``), in the order of the space's names."""

DERIVED = {
    "lane_groups": "chunk / lanes: groups of lanes in a prefill pass",
    "tile_rows": "max_tile_columns / columns: depth of the accumulators",
    "ports": "read ports of the memory",
    "burst_beats": "beats per burst",
}
"""Sizes of a space that are no fields of ``CoreConfig``."""


@dataclass(frozen=True)
class Space:
    """Values of each size, and what does not vary: the configuration ``base`` and the shape."""

    sizes: Mapping[str, Sequence[Choice]]
    base: CoreConfig
    shape: ModelShape
    peak: float | None = None
    """Bytes per second that the device's memory moves at most."""

    def __post_init__(self) -> None:
        legal = [*CoreConfig.model_fields, *DERIVED]
        for name in self.sizes:
            if name not in legal:
                near = nearest(name, legal)
                raise ConfigError(f"space: {name} is no size of a core{f'; nearest: {near}' if near else ''}")
            if name in MemoryConfig.model_fields and self.base.memory is None:
                raise ConfigError(f"space: {name} needs a configuration with a shared memory, {self.base.name} has none")

    @cached_property
    def names(self) -> tuple[str, ...]:
        return tuple(self.sizes)

    @property
    def count(self) -> int:
        """Points of the grid, impossible ones included."""
        return math.prod(len(values) for values in self.sizes.values())

    @cached_property
    def start(self) -> Point:
        """The base configuration's own point, whether or not its values are on the grid."""
        b = self.base
        derived = {"lane_groups": -(-b.chunk // b.lanes), "tile_rows": -(-b.max_tile_columns // b.columns)}
        memory = b.memory.model_dump() if b.memory else {}
        return tuple({**b.model_dump(), **derived, **memory}[name] for name in self.names)

    def points(self) -> Iterator[Point]:
        """The whole grid."""
        return itertools.product(*self.sizes.values())

    def sample(self, count: int, generator: random.Random) -> Iterator[Point]:
        """``count`` points at random, some perhaps twice."""
        for _ in range(count):
            yield tuple(generator.choice(values) for values in self.sizes.values())

    def neighbours(self, point: Point) -> Iterator[Point]:
        """Every point that differs in one size."""
        for place, values in enumerate(self.sizes.values()):
            for value in values:
                if value != point[place]:
                    yield (*point[:place], value, *point[place + 1 :])

    def distance(self, point: Point) -> tuple[int, int]:
        """How far a point is from the base: steps on the grid, and sizes that differ."""
        steps = 0
        for values, a, b in zip(self.sizes.values(), point, self.start, strict=True):
            steps += sum(min(a, b) < value <= max(a, b) for value in values) if a != b else 0
        return steps, sum(a != b for a, b in zip(point, self.start, strict=True))

    def changes(self, point: Point) -> dict[str, Choice]:
        """What differs from the base."""
        return {name: a for name, a, b in zip(self.names, point, self.start, strict=True) if a != b}

    def config(self, point: Point) -> CoreConfig | None:
        """The point's configuration; None where its sizes contradict each other. What is not varied grows with what is: bytes of parameters stay."""
        if point == self.start:
            return self.base
        chosen = dict(zip(self.names, point, strict=True))
        values = self.base.model_dump() | {name: value for name, value in chosen.items() if name not in DERIVED}
        lanes, v = values["lanes"], values["vector_lanes"]
        values["draft_lanes"] = min(self.base.draft_lanes, lanes)
        values["chunk"] = lanes * chosen.get("lane_groups", -(-self.base.chunk // self.base.lanes))
        rows = chosen.get("tile_rows", -(-self.base.max_tile_columns // self.base.columns))
        values["max_tile_columns"] = rows * values["columns"] // v * v
        values["params_rows"] = self.base.params_rows * self.base.vector_lanes // v
        values["rope_rows"] = max(8, 1 << (values["chunk"] * self.shape.head_dim // v - 1).bit_length())
        values["name"] = f"{self.base.name}-{'-'.join(str(int(value) if isinstance(value, bool) else value) for value in point)}"
        try:
            if self.base.memory is not None:
                memory = self._memory(self.base.memory, chosen, values["clock_hz"])
                values |= {"memory": memory.model_dump(), "beat_bytes": memory.beat_bytes}
            return CoreConfig.model_validate(values)
        except ValidationError:
            return None

    def _memory(self, own: MemoryConfig, chosen: Mapping[str, Choice], clock_hz: float) -> MemoryConfig:
        """The base's with the chosen ports and bursts. Beats move in the base's share of clocks, or in fewer where the peak is less; a share that is what the
        peak leaves the base's own ports says nothing of others, for which the peak alone counts."""
        values = own.model_dump() | {name: chosen[name] for name in ("ports", "burst_beats") if name in chosen}
        if self.peak is None:
            return MemoryConfig.model_validate(values)
        every = {"rate_numerator": 1, "rate_denominator": 1}
        if own.model_copy(update=every).at_most(self.peak, self.base.clock_hz) == own:
            values |= every
        return MemoryConfig.model_validate(values).at_most(self.peak, clock_hz)

    def spec(self, point: Point) -> CoreSpec | None:
        """The point's core; None where there is none."""
        config = self.config(point)
        if config is None:
            return None
        try:
            return CoreSpec(config=config, shape=self.shape)
        except ValidationError:
            return None
