# SPDX-License-Identifier: Apache-2.0
"""Partition of a model over channels and banks (architecture.md, 4.7): what lies where, chosen by cycles, within the capacity.

Weights come first, then the reservations of keys and values, one step of ``RESERVATION`` tokens after the other for all layers: a larger reservation
appends rows and moves nothing.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Generic, TypeVar

from lutra.hls_models.errors import ModelError
from lutra.hls_models.pim.config import LANE_BITS, PimConfig
from lutra.mapping.pim.costs import Costs
from lutra.mapping.pim.heads import HEADS_PER_PASS, HeadLayout, Pass
from lutra.mapping.pim.places import Groups, Piece, Shelf, Striped, batched, pieces, placements
from lutra.mapping.pim.shape import GptShape, TransformerShape
from lutra.mapping.pim.sram import score_budget, score_stride

__all__ = ["RESERVATION", "KeyValue", "LayerPlaces", "Matrix", "Partition", "Placed", "Placer", "Region", "chunk_columns", "partition"]

RESERVATION = 1024
"""Tokens by which the room for keys and values grows."""


@dataclass(frozen=True)
class Matrix:
    """A matrix of ``outputs`` x ``inputs`` in chunks of columns: output j on bank j % B, channel (j // B) % C, group j // (B*C)."""

    name: str
    outputs: int
    inputs: int
    chunks: tuple[Groups, ...]

    @property
    def groups(self) -> int:
        """Groups of outputs: MAC bursts per chunk."""
        return self.chunks[0].groups

    def starts(self) -> list[int]:
        """First beat of every chunk's inputs."""
        found = [0]
        for chunk in self.chunks[:-1]:
            found.append(found[-1] + chunk.columns)
        return found


@dataclass(frozen=True)
class KeyValue:
    """Room of one pass's heads for one step of tokens. Token t (of the step): bank t % B, channel (t // B) % split of its head, group t // (B*split)."""

    keys: Groups
    values: tuple[Groups, ...]
    """Per block of a buffer's tokens: a group of columns per group of dimensions."""


@dataclass(frozen=True)
class LayerPlaces:
    """Matrices and vectors of a layer."""

    joint: Matrix
    output: Matrix
    up: Matrix
    down: Matrix
    query_bias: Striped
    output_bias: Striped
    up_bias: Striped
    down_bias: Striped


@dataclass(frozen=True)
class Region:
    """Rows [``row``, ``row + rows``) of all banks; for reports and checks."""

    name: str
    row: int
    rows: int


@dataclass(frozen=True, eq=False)
class Placed:
    """A model's place, whatever its family.

    Attributes
    ----------
    config
        The configuration; with more rows than a device has where the capacity is ignored and exceeded (``overflow_rows``).
    tokens
        Tokens that there is room for: a multiple of ``reservation``.
    keyvalues
        [step][layer][pass].
    position_groups
        Columns of a position: position p is in bank p % B, group p // B.
    """

    shape: TransformerShape
    config: PimConfig
    costs: Costs
    layout: HeadLayout
    reservation: int
    tokens: int
    positions: int
    embedding: Matrix
    position_groups: Groups
    keyvalues: tuple[tuple[tuple[KeyValue, ...], ...], ...]
    regions: tuple[Region, ...]
    overflow_rows: int

    @property
    def passes(self) -> tuple[Pass, ...]:
        """Heads that work at once."""
        return self.layout.passes

    @property
    def rows(self) -> int:
        """Rows used in every bank."""
        return sum(region.rows for region in self.regions)

    @property
    def block(self) -> int:
        """Tokens whose softmax weights fill a buffer."""
        return min(self.reservation, self.config.columns * self.config.lanes)

    def position_pieces(self, position: int) -> list[Piece]:
        """What every channel reads for a position's embedding."""
        slot, bank = divmod(position, self.config.banks)
        return list(pieces(bank, self.position_groups.position(slot), self.position_groups.columns, self.config.columns))


@dataclass(frozen=True, eq=False)
class Partition(Placed):
    """A GPT model's place."""

    shape: GptShape
    head: Matrix
    layers: tuple[LayerPlaces, ...]
    gain: Striped
    bias: Striped


def partition(shape: GptShape, config: PimConfig, *, tokens: int | None = None, reservation: int = RESERVATION, ignore_capacity: bool = False) -> Partition:
    """Place a model.

    Parameters
    ----------
    tokens
        Keys and values to make room for (rounded up to ``reservation``); the model's positions where not given. More than the positions only for shapes:
        their table is as long as the room.
    ignore_capacity
        Place it in a device of as many rows as it needs.

    Raises
    ------
    ModelError
        The model does not fit, with the bytes that are missing.
    """
    wanted = shape.context if tokens is None else tokens
    if wanted < 1:
        raise ModelError(f"{shape.name}: tokens must be at least 1, not {wanted}")
    unit, buffer = math.lcm(config.lanes, config.banks), config.columns * config.lanes
    if reservation > buffer:
        unit = math.lcm(unit, buffer)
    if reservation < 1 or reservation % unit:
        nearest = max(1, reservation // unit) * unit
        cause = f" (a buffer of {config.columns} columns x {config.lanes} lanes holds {buffer} weights: columns must divide it)" if buffer % 1024 else ""
        raise ModelError(f"{shape.name}: reservation must be a multiple of {unit} tokens, not {reservation}{cause}; nearest legal value {nearest}")
    steps = -(-wanted // reservation)
    values = steps * reservation * shape.layers * 2 * shape.query_columns * LANE_BITS // 8
    if values > config.capacity_bytes and not ignore_capacity:  # refused before it is placed: far too many tokens take far too long
        raise ModelError(
            f"{shape.name}: keys and values of {steps * reservation} tokens alone need {_gib(values)}, "
            f"{config.name} has {_gib(config.capacity_bytes)}: {_gib(values - config.capacity_bytes)} too much"
        )
    return _GptPlacer(shape, config, reservation, steps, max(shape.context, wanted)).partition(ignore_capacity)


def chunk_columns(inputs: int, groups: int, costs: Costs) -> list[int]:
    """Columns of the chunks of a matrix: full buffers and a rest, or equal ones, whichever takes fewer cycles."""
    beats, width = -(-inputs // costs.config.lanes), costs.config.columns
    number = -(-beats // width)
    greedy = [width] * (number - 1) + [beats - width * (number - 1)]
    equal = [beats // number + (i < beats % number) for i in range(number)]
    return min((greedy, equal), key=lambda sizes: sum(placements(size, groups, costs)[0][0] for size in sizes))


P = TypeVar("P", bound=Placed)


class Placer(ABC, Generic[P]):
    """Places a model of any family; ``place``, ``sizes`` and ``score_budget`` are the family's."""

    def __init__(self, shape: TransformerShape, config: PimConfig, reservation: int, steps: int, positions: int) -> None:
        self.shape, self.config, self.reservation, self.steps, self.positions = shape, config, reservation, steps, positions
        self.costs = Costs.of(config)
        self.placements = cache(self._placements)
        self.chunk_columns = cache(self._chunk_columns)
        self.small: set[tuple[int, int]] = set()
        self.layout = HeadLayout(shape, config, self._passes())
        self.regions: list[Region] = []

    def _placements(self, columns: int, groups: int) -> list[tuple[int, Groups]]:
        return placements(columns, groups, self.costs)

    def _chunk_columns(self, inputs: int, groups: int) -> list[int]:
        return chunk_columns(inputs, groups, self.costs)

    def chosen(self, columns: int, groups: int) -> tuple[int, Groups]:
        """The quickest placement, or the smallest of those that had to be made small."""
        ways = self.placements(columns, groups)
        return min(ways, key=lambda way: (way[1].rows, way[0])) if (columns, groups) in self.small else ways[0]

    # heads

    def _passes(self) -> tuple[Pass, ...]:
        """Heads by passes of the fewest cycles in all, scores of two passes in the SRAM where possible."""
        shape, config = self.shape, self.config
        sizes = HeadLayout(shape, config, ())
        divisors = [s for s in range(1, config.channels + 1) if config.channels % s == 0 and self.reservation % (s * config.banks) == 0]
        splits = [s for s in divisors if sizes.words % s == 0 or s == config.channels]
        budget = self.score_budget(HeadLayout(shape, config, (Pass(0, shape.heads, 1),)))
        together = self._together(splits, budget, 2) or self._together(splits, budget, 1) or {splits[-1]: 1}
        cost = {s: self._pass_cycles(s, sizes) for s in together}
        best: list[tuple[int, tuple[int, ...]]] = [(0, ())]
        for heads in range(1, shape.heads + 1):
            options = ((best[max(0, heads - number)], s) for s, number in together.items())
            best.append(min((before[0] + cost[s], (*before[1], s)) for before, s in options))
        made, first = [], 0
        for split in sorted(best[shape.heads][1]):
            heads = min(together[split], shape.heads - first)
            if heads:
                made.append(Pass(first, heads, split))
                first += heads
        return tuple(made)

    def _together(self, splits: Sequence[int], budget: int, passes: int) -> dict[int, int]:
        """Heads of a pass by split, as many as channels, scalars, and the SRAM with the scores of ``passes`` passes allow; splits without room are absent."""
        room = {s: budget // (passes * score_stride(self.positions, s, self.config)) for s in splits}
        return {s: min(self.config.channels // s, HEADS_PER_PASS, heads) for s, heads in room.items() if heads > 0}

    def _pass_cycles(self, split: int, sizes: HeadLayout) -> int:
        """Cycles of a pass at the largest context of one step: scores, weighted values, the buffers before them, the values' writes."""
        context = min(self.reservation, self.positions)
        keys = self.placements(sizes.beats, -(-context // (split * self.config.banks)))[0][0]
        groups = sizes.groups(split)
        width = self.config.columns
        block = min(self.reservation, width * self.config.lanes)
        blocks = -(-context // block)
        columns = -(-min(context, block) // self.config.lanes)
        values = blocks * self.costs.bursts([g * width for g in range(groups)], columns)
        return keys + self.costs.fill(sizes.beats) + values + blocks * self.costs.fill(columns) + self.costs.scatter(groups)

    # regions

    def take(self, name: str, groups: Groups) -> Groups:
        """Placed behind everything else."""
        row = self.regions[-1].row + self.regions[-1].rows if self.regions else 0
        self.regions.append(Region(name, row, groups.rows))
        return groups.at(row)

    def matrix(self, name: str, outputs: int, inputs: int) -> Matrix:
        groups = -(-outputs // (self.config.banks * self.config.channels))
        chunks = tuple(self.take(f"{name} chunk {i}", self.chosen(columns, groups)[1]) for i, columns in enumerate(self.chunk_columns(inputs, groups)))
        return Matrix(name, outputs, inputs, chunks)

    def shelf(self, name: str, together: Sequence[dict[str, int]]) -> dict[str, Striped]:
        """Vectors by name from their sizes; those of one dictionary are read together."""
        row = self.regions[-1].row + self.regions[-1].rows if self.regions else 0
        shelf = Shelf(row, self.config.banks, self.config.columns)
        found: dict[str, Striped] = {}
        for sizes in together:
            found |= dict(zip(sizes, shelf.place(list(sizes.values()), self.config.lanes, self.config.channels), strict=True))
        self.regions.append(Region(name, row, shelf.rows))
        return found

    def keyvalue(self, name: str, part: Pass) -> KeyValue:
        config, layout = self.config, self.layout
        groups = self.reservation // (part.split * config.banks)
        keys = self.take(f"{name} keys", self.chosen(layout.beats, groups)[1])
        block = min(self.reservation, config.columns * config.lanes)
        columns = block // config.lanes
        room = batched(Groups(0, columns, layout.groups(part.split), config.columns // columns, config.columns), self.costs)[1]
        return KeyValue(keys, tuple(self.take(f"{name} values {b}", room) for b in range(self.reservation // block)))

    def positions_table(self) -> Groups:
        """A position's columns are the same on all channels, beat i on channel i % C."""
        columns = -(-self.shape.hidden // (self.config.lanes * self.config.channels))
        width = self.config.columns
        return self.take("positions", Groups(0, columns, -(-self.positions // self.config.banks), width // columns, width))

    @property
    def query_bias(self) -> int:
        """Values of the queries' bias, from the first group of the joint matrix that has queries on."""
        layout, channels = self.layout, self.config.channels
        return layout.outputs - layout.query_offset // channels * channels * self.config.banks

    def layer_sizes(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of the joint matrix, output, up, down."""
        d, ffn = self.shape.hidden, self.shape.ffn
        return [(self.layout.outputs, d), (d, self.shape.heads * self.layout.words * self.config.banks), (ffn, d), (d, ffn)]

    def layer_matrices(self, layer: int) -> tuple[Matrix, Matrix, Matrix, Matrix]:
        """Those of ``layer_sizes``."""
        names = ("joint", "output", "up", "down")
        joint, output, up, down = (self.matrix(f"layers.{layer}.{name}", *size) for name, size in zip(names, self.layer_sizes(), strict=True))
        return joint, output, up, down

    def keyvalues(self) -> tuple[tuple[tuple[KeyValue, ...], ...], ...]:
        """Room for all steps, layers and passes."""
        passes = list(enumerate(self.layout.passes))
        return tuple(
            tuple(tuple(self.keyvalue(f"layers.{i} step {step} pass {j}", part) for j, part in passes) for i in range(self.shape.layers))
            for step in range(self.steps)
        )

    # the family's

    @abstractmethod
    def place(self) -> P:
        """Everything, from row 0 on."""

    @abstractmethod
    def sizes(self) -> list[tuple[int, int]]:
        """(outputs, inputs) of one layer's matrices and of all others: what may be placed small."""

    @abstractmethod
    def score_budget(self, layout: HeadLayout) -> int:
        """Words of the SRAM that are left for scores."""

    def partition(self, ignore_capacity: bool) -> P:
        """By cycles; where that does not fit, with the placements that save most rows per cycle made small, one after the other."""
        made, rows = self.place(), self.config.rows
        for key in self.savings():
            if made.rows <= rows:
                break
            self.small.add(key)
            made = self.place()
        if made.rows <= rows:
            return made
        if ignore_capacity:
            self.small = set()
            made = self.place()
            wider = self.config.model_copy(update={"rows": made.rows})
            return replace(made, config=wider, overflow_rows=made.rows - rows)
        config = self.config
        row_bytes = config.channels * config.banks * config.columns * config.lanes * LANE_BITS // 8
        raise ModelError(
            f"{self.shape.name}: with keys and values of {made.tokens} tokens it needs {made.rows} rows per bank "
            f"({_gib(made.rows * row_bytes)}) however packed, "
            f"{config.name} has {rows} ({_gib(rows * row_bytes)}): {_gib((made.rows - rows) * row_bytes)} too much"
        )

    def savings(self) -> Iterator[tuple[int, int]]:
        """Placements that can be made smaller, those first that lose fewest cycles per row."""
        made: list[tuple[float, tuple[int, int]]] = []
        for columns, groups in {(chunk.columns, chunk.groups) for matrix in self.matrices() for chunk in matrix.chunks}:
            ways = self.placements(columns, groups)
            small = min(ways, key=lambda way: (way[1].rows, way[0]))
            saved = ways[0][1].rows - small[1].rows
            if saved > 0:
                made.append(((small[0] - ways[0][0]) / saved, (columns, groups)))
        yield from (key for _, key in sorted(made))

    def matrices(self) -> list[Matrix]:
        """Those of ``sizes``, placed anywhere."""
        regions, self.regions = self.regions, []
        found = [self.matrix("", n, k) for n, k in self.sizes()]
        self.regions = regions
        return found


class _GptPlacer(Placer[Partition]):
    shape: GptShape

    def place(self) -> Partition:
        shape, d = self.shape, self.shape.hidden
        self.regions = []
        table = self.positions_table()
        together = [{"gain": d, "bias": d}]
        for i in range(shape.layers):
            together += [{f"{i} query": self.query_bias, f"{i} output": d, f"{i} down": d}, {f"{i} up": shape.ffn}]
        vectors = self.shelf("vectors", together)
        head = self.matrix("head", shape.vocabulary, d)
        embedding = head if shape.tied else self.matrix("embedding", shape.vocabulary, d)
        names = ("query", "output", "up", "down")
        layers = tuple(LayerPlaces(*self.layer_matrices(i), *(vectors[f"{i} {name}"] for name in names)) for i in range(shape.layers))
        return Partition(
            shape=shape,
            config=self.config,
            costs=self.costs,
            layout=self.layout,
            reservation=self.reservation,
            tokens=self.steps * self.reservation,
            positions=self.positions,
            embedding=embedding,
            head=head,
            layers=layers,
            position_groups=table,
            gain=vectors["gain"],
            bias=vectors["bias"],
            keyvalues=self.keyvalues(),
            regions=tuple(self.regions),
            overflow_rows=0,
        )

    def sizes(self) -> list[tuple[int, int]]:
        return [*self.layer_sizes(), (self.shape.vocabulary, self.shape.hidden)]

    def score_budget(self, layout: HeadLayout) -> int:
        return score_budget(self.shape, self.config, layout)


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB" if size >= 2**28 else f"{size / 2**20:.1f} MiB"
