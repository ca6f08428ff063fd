# SPDX-License-Identifier: Apache-2.0
"""The instructions of a pass, in program order, and the memory blocks that they read.

Loads are bundled with what consumes them: parameters, then rotary rows, then weights, then the consumers' own instructions. LOADER works in
order, so whatever a unit needs to take a weight's result is loaded before the weight: no order of arrival can lock the core. Where the gains of
an instruction do not fit VECTOR's buffer at once they are loaded tile by tile in front of the weights of those tiles; the first load of each
kind then precedes the consumers' instructions and the further ones follow them. In a shared memory keys and values are a load, too: what has to be
fetched while they are written and attended stands before it (docs/architecture.md, 5).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import lcm
from pathlib import Path
from typing import TypeVar

import numpy as np

from lutra.hls_models.errors import ConfigError
from lutra.hls_models.floats import E8M11, FloatFormat, from_float64
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.isa import Destination, LoadMode, LoadTarget, Operation, Semaphore, Source, Unit, When
from lutra.hls_models.ternary.kv_layout import KvLayout
from lutra.hls_models.ternary.planes import PlanesConfig
from lutra.hls_models.ternary.program import Program
from lutra.hls_models.ternary.trits import RowLayout, pack_tiles
from lutra.mapping import blocks
from lutra.mapping.graph import Attention, Embed, Gate, Graph, Head, Linear, Node, Norm, Residual, Rope
from lutra.mapping.model import Table
from lutra.mapping.place import CACHE, FREE, Block, Layout, Step
from lutra.mapping.tensor import Update
from lutra.mapping.tiles import Core, Tiling, choose

__all__ = ["schedule"]

N = TypeVar("N", bound=Node)


@dataclass(frozen=True)
class Elementwise:
    """One VECTOR instruction and what its parameters hold. ``whens``: its twins, which differ in pass condition and signal only."""

    label: str
    source: Source
    operation: Operation
    columns: int
    tile_columns: int
    norm: Norm | None
    destination: Destination
    group_columns: int
    scales: tuple[float, ...] = ()
    segments: tuple[int, int] | None = None
    rope_columns: int = 0
    write_x: bool = False
    whens: tuple[tuple[When, Semaphore], ...] = ((When.ALWAYS, Semaphore.CODES),)

    @property
    def shrink(self) -> int:
        """Source columns per result column."""
        return 2 if self.operation is Operation.GATE else 1

    def fields(self) -> dict[str, int]:
        return {
            "source": self.source,
            "operation": self.operation,
            "norm": self.norm is not None,
            "write_x": self.write_x,
            "destination": self.destination,
            "columns": self.columns,
            "tile_columns": self.tile_columns,
            "group_columns": self.group_columns,
            "rope_columns": self.rope_columns,
            "segment1": self.segments[0] if self.segments else self.columns,
            "segment2": self.segments[1] if self.segments else self.columns,
        }


def schedule(graph: Graph, core: Core, format: FloatFormat = E8M11, image: Path | None = None, update: Update | None = None) -> Program:
    """The program of a graph that went through every pass; with ``image`` its memory image is written to that file and mapped.

    ``update`` is called with the bytes of the image made so far, and all.

    Raises
    ------
    ConfigError
        The core cannot hold the model; the message names field, rule, value and nearest legal value.
    ValueError
        The graph is not in the form that the passes leave.
    """
    _check(graph, core)
    return _Schedule(graph, core, format).program(image, update)


def _check(graph: Graph, core: Core) -> None:
    shape, v = graph.shape, core.vector_lanes
    if fault := shape.lane_fault(v):
        raise ConfigError(fault)
    turned = core.chunk * shape.head_dim // v
    if core.rope_rows < turned:
        raise ConfigError(f"rope_rows must hold chunk x head_dim / vector_lanes = {turned} rows, not {core.rope_rows}; nearest: {turned}")
    # the embedding and attention's values come in whole rows, so all their gains are held at once
    whole = max(shape.hidden, shape.group * shape.head_dim if shape.sub_norms else 0) // v
    least = _held(core, blocks.header_rows(core) + whole)
    if core.params_rows < least:
        raise ConfigError(f"params_rows must hold the header and {whole} rows of gains, not {core.params_rows}; nearest: {least}")


def _held(core: Core, rows: int) -> int:
    """Rows of buffer that a load of ``rows`` rows reserves: whole beats."""
    return -(-rows // core.params_rows_per_beat) * core.params_rows_per_beat


def _cache(shape: ModelShape, core: Core) -> KvLayout | None:
    """Keys and values in a shared memory."""
    if core.memory is None:
        return None
    sizes = {"beat_bytes": core.beat_bytes, "key_tile": core.key_tile, "program_words": core.program_words, "burst_beats": core.memory.burst_beats}
    return KvLayout.behind_program(shape, **sizes)


class _Schedule:
    """Walks the nodes once and emits steps and blocks."""

    def __init__(self, graph: Graph, core: Core, format: FloatFormat) -> None:
        self.shape, self.core, self.format = graph.shape, core, format
        self.cache = _cache(graph.shape, core)
        align = core.memory.burst_beats if core.memory else 1
        self.layout = Layout(graph.shape, core.beat_bytes, core.program_words, align=align, cache=self.cache)
        self.rows = RowLayout(group=core.group, tables=core.tables, columns=core.columns, beat_bytes=core.beat_bytes)
        self.known = all(node.table.values is not None for node in graph.all(Embed))
        self.nodes: Iterator[Node] = iter(graph.nodes)
        self.ahead: Node | None = next(self.nodes)
        self.blocks: list[Block] = []

    def take(self, kind: type[N]) -> N:
        """The next node, which must be of ``kind``."""
        node = self.ahead
        if not isinstance(node, kind):
            raise ValueError(f"expected a {kind.__name__}, not {node.name if node else 'the end'}: run every pass before scheduling")
        self.ahead = next(self.nodes, None)
        return node

    def norm(self) -> Norm | None:
        """The next node if it is a norm: BitNet's sub-norms are optional."""
        return self.take(Norm) if isinstance(self.ahead, Norm) else None

    def program(self, image: Path | None, update: Update | None) -> Program:
        embed = self.take(Embed)
        self.embedding(embed)
        layer = 0
        while isinstance(self.ahead, Linear):
            self.attention(layer)
            self.feed_forward(layer)
            layer += 1
        self.head(self.take(Head))
        self.emit(Unit.END, "end", {})
        for block in self.blocks:
            self.layout.block(block)
        return self.layout.program(image, update)

    def emit(self, unit: Unit, label: str, fields: dict[str, int], when: When = When.ALWAYS, wait: Semaphore = FREE, signal: Semaphore = FREE) -> None:
        self.layout.step(Step(unit, label, fields, when, wait, signal))

    def load(self, target: LoadTarget, block: str, beats: int, *, mode: LoadMode = LoadMode.DIRECT, rows: int = 0, offset: int = 0, **events: int) -> None:
        fields = {"target": target, "mode": mode, "beats": beats, "rows": rows}
        step = Step(Unit.LOADER, f"load {block}", fields, When(events.get("when", 0)), Semaphore(events.get("wait", 0)), block=block, offset=offset)
        self.layout.step(step)

    def embedding(self, embed: Embed) -> None:
        beats = self.table(embed.table)
        norm = self.take(Norm)
        hidden = self.shape.hidden
        work = Elementwise("embed", Source.EMBED, Operation.COPY, hidden, hidden, norm, Destination.LINEAR, hidden, write_x=True)
        self.params(work, 0, 1)
        self.load(LoadTarget.EMBED, "table", beats, mode=LoadMode.TOKEN, wait=Semaphore.TOKEN)
        self.vector(work)

    def attention(self, layer: int) -> None:
        shape, hd = self.shape, self.shape.head_dim
        qkv, rope, attention = self.take(Linear), self.take(Rope), self.take(Attention)
        if not (rope.interleaved and attention.base == 2 and len(attention.inputs) == 1):
            raise ValueError(f"{attention.name}: run every pass before scheduling")
        turned, tiling = rope.turned * hd, self.tiles(qkv, hd, gains=False)
        bounds = (shape.query_columns, shape.query_columns + shape.kv_columns)
        work = Elementwise(
            rope.name, Source.SUMS, Operation.ROPE, tiling.columns, tiling.tile_columns, None, Destination.ATTEND, hd, qkv.matrix.scales, bounds, turned
        )
        self.linear(qkv, tiling, replace(work, whens=((When.ALWAYS, FREE),)), rope)
        self.emit(Unit.ATTEND, attention.name, {"layer": layer})
        q, norm = shape.query_columns, self.norm()
        label = norm.name if norm else f"layers.{layer}.attention_values"
        # ATTEND emits key/value head by head: a tile is the columns of one
        values = Elementwise(label, Source.VALUES, Operation.COPY, q, shape.group * hd, norm, Destination.LINEAR, q)
        if self.cache is None:
            self.values(values)
            self.residual(self.take(Linear))
        else:
            self.params(values, 0, q // values.tile_columns)
            self.residual(self.take(Linear), lambda: self.tiles_and_values(layer, values))

    def tiles_and_values(self, layer: int, values: Elementwise) -> None:
        """What stands between the first weights of the projection and the rest: keys and values of the layer, and their consumer."""
        assert self.cache is not None
        self.load(LoadTarget.KV, CACHE, 0, mode=LoadMode.TILES, offset=layer * self.cache.layer_beats, wait=Semaphore.STORED)
        self.vector(values)

    def values(self, work: Elementwise) -> None:
        tiles = work.columns // work.tile_columns
        groups = self.groups(work, tiles)
        for number, (first, end) in enumerate(groups):
            if number == 1:
                self.vector(work)
            self.params(work, first, end, last=end == tiles)
        if len(groups) == 1:
            self.vector(work)

    def feed_forward(self, layer: int) -> None:
        both, gate = self.take(Linear), self.take(Gate)
        if len(gate.inputs) != 1:
            raise ValueError(f"{gate.name}: run every pass before scheduling")
        norm, tiling = self.norm(), self.tiles(both, 2 * self.core.vector_lanes)
        width = both.matrix.outputs
        work = Elementwise(gate.name, Source.SUMS, Operation.GATE, width, tiling.tile_columns, norm, Destination.LINEAR, width // 2, both.matrix.scales)
        self.linear(both, tiling, work)
        self.residual(self.take(Linear))

    def residual(self, linear: Linear, between: Callable[[], None] | None = None) -> None:
        """A projection onto the residual stream and the norm of what reads it next; after the last layer that is the head, in the last pass.

        ``between``: stands behind the parameters and the first ``prefetch_beats`` of the weights."""
        add, norm = self.take(Residual), self.take(Norm)
        tiling, hidden = self.tiles(linear, self.core.vector_lanes), self.shape.hidden
        work = Elementwise(add.name, Source.SUMS, Operation.RESIDUAL, hidden, tiling.tile_columns, norm, Destination.LINEAR, hidden, linear.matrix.scales)
        if isinstance(self.ahead, Head):
            work = replace(work, destination=Destination.HEAD, whens=((When.LAST, Semaphore.FINAL), (When.NOT_LAST, FREE)))
        self.linear(linear, tiling, work, between=between)

    def head(self, head: Head) -> None:
        beats = self.table(head.table, "table" if self.shape.tied else "head")
        rows, when = self.shape.vocabulary, When.LAST_MANY if self.core.head_planes else When.LAST
        fields = {"vocabulary": rows, "row_beats": beats, "planes": 0}
        self.load(LoadTarget.HEAD, "table" if self.shape.tied else "head", rows * beats, when=when)
        self.emit(Unit.HEAD, "head", fields, when, Semaphore.FINAL, Semaphore.TOKEN)
        if self.core.head_planes:
            planes = PlanesConfig(beat_bytes=self.core.beat_bytes, hidden=self.shape.hidden, segment=self.core.head_planes)
            bits = rows * (8 * self.shape.hidden + 32)
            data = (lambda: blocks.planes(planes, head.table)) if self.known else None
            self.layout.block(Block("planes", planes.beats(rows), bits, data))
            self.load(LoadTarget.PLANES, "planes", planes.high_beats(rows), when=When.LAST_ONE)
            self.emit(Unit.HEAD, "head", fields | {"row_beats": planes.row_beats, "planes": 1}, When.LAST_ONE, Semaphore.FINAL, Semaphore.TOKEN)

    def tiles(self, linear: Linear, unit: int, gains: bool = True) -> Tiling:
        m, v = linear.matrix, self.core.vector_lanes
        widest = m.outputs
        if gains:
            room = self.core.params_rows // self.core.params_rows_per_beat * self.core.params_rows_per_beat - blocks.header_rows(self.core)
            widest = room * (2 * v if m.interleaved else v)
        return choose(self.core, linear.name, m.outputs, m.inputs, unit, widest)

    def linear(self, linear: Linear, tiling: Tiling, work: Elementwise, rope: Rope | None = None, between: Callable[[], None] | None = None) -> None:
        """Loads, LINEAR and VECTOR of one matrix."""
        m, name = linear.matrix, f"{linear.name}.weights"
        row_beats = self.rows.row_beats
        tile = tiling.tile_columns
        total = sum(tiling.rows(t) for t in range(tiling.tiles))
        data = None if m.values is None else lambda: pack_tiles(m.known(), self.rows, tile)
        groups = self.groups(work, tiling.tiles)
        for number, (first, end) in enumerate(groups):
            if number == 1:
                self.consume(linear, tiling, work)
            self.params(work, first, end, last=end == tiling.tiles)
            if rope and not number:
                self.rope(rope)
            if not number:
                self.blocks.append(Block(name, total * row_beats, m.outputs * m.inputs * 8 // 5, data))
            before, here = (sum(tiling.rows(t) for t in part) * row_beats for part in (range(first), range(first, end)))
            if between is not None and not number:
                ahead = self.prefetched(here)
                if ahead:
                    self.load(LoadTarget.WEIGHTS, name, ahead)
                between()
                before, here = before + ahead, here - ahead
            self.load(LoadTarget.WEIGHTS, name, here, offset=before)
        if len(groups) == 1:
            self.consume(linear, tiling, work)

    def prefetched(self, beats: int) -> int:
        """Beats of weights that are loaded before a layer's keys and values: whole rows, if possible whole bursts, so that the rest begins with one."""
        row, memory = self.rows.row_beats, self.core.memory
        whole = lcm(row, memory.burst_beats) if memory else row
        ahead = min(self.core.prefetch_beats // row, self.core.ring_rows // 2, beats // row - 1) * row
        return ahead - ahead % (whole if ahead >= whole else row)

    def consume(self, linear: Linear, tiling: Tiling, work: Elementwise) -> None:
        fields = {"k_blocks": tiling.k_blocks, "columns": tiling.columns, "tile_columns": tiling.tile_columns}
        self.emit(Unit.LINEAR, linear.name, fields, wait=Semaphore.CODES)
        self.vector(work)

    def vector(self, work: Elementwise) -> None:
        for when, signal in work.whens:
            self.emit(Unit.VECTOR, work.label, work.fields(), when, signal=signal)

    def groups(self, work: Elementwise, tiles: int) -> list[tuple[int, int]]:
        """Ranges of tiles whose gains VECTOR's buffer holds together, the header before the first."""
        if work.norm is None:
            return [(0, tiles)]
        per_tile = work.tile_columns // work.shrink // self.core.vector_lanes
        out, first = [], 0
        while first < tiles:
            header = 0 if first else blocks.header_rows(self.core)
            fits = max(n for n in range(1, tiles - first + 1) if n == 1 or _held(self.core, header + n * per_tile) <= self.core.params_rows)
            out.append((first, first + fits))
            first += fits
        return out

    def params(self, work: Elementwise, first: int, end: int, last: bool = True) -> None:
        """Load header (before tile 0) and the gains of tiles first … end-1, once for each twin."""
        core, norm, width = self.core, work.norm, work.columns // work.shrink
        step = work.tile_columns // work.shrink
        gains = np.zeros(0, np.uint32)
        count = 0
        if norm:
            low, high = first * step, min(end * step, width)
            count = high - low
            if norm.gains is not None:
                gains = from_float64(self.format, np.asarray(norm.gains[low:high], np.float64))
        header = None
        if not first:
            scales = (*work.scales, 0.0, 0.0, 0.0)[:3]
            header = (*scales, 1 / width if norm else 0.0, self.shape.eps)
        rows = (blocks.header_rows(core) if header else 0) + count // core.vector_lanes
        beats = -(-rows // core.params_rows_per_beat)
        name = f"{work.label}.params" + ("" if not first and last else f".{first}")
        bits = (blocks.HEADER_BITS if header else 0) + count * self.format.bits
        self.blocks.append(Block(name, beats, bits, (lambda: [blocks.params(core, gains, header)]) if self.known else None))
        for when, _ in work.whens:
            self.load(LoadTarget.PARAMS, name, beats, rows=rows, when=when)

    def table(self, table: Table, name: str = "table") -> int:
        """Place a table; beats of its rows."""
        beats = blocks.table_row_beats(self.core, table.columns)
        bits = table.rows * (8 * table.columns + 32)
        self.layout.block(Block(name, table.rows * beats, bits, (lambda: blocks.table(self.core, table)) if self.known else None))
        return beats

    def rope(self, rope: Rope) -> None:
        """Load the rotary rows of the pass; one table serves every layer."""
        core, shape = self.core, self.shape
        beats = blocks.rope_row_beats(core, rope.head_dim)
        bits = shape.context * rope.head_dim * self.format.bits
        data = (lambda: [blocks.rope_table(core, self.format, shape.context, rope.head_dim, rope.theta)]) if self.known else None
        self.layout.block(Block("rope", shape.context * beats, bits, data))
        self.load(LoadTarget.ROPE, "rope", beats, mode=LoadMode.POSITION, rows=rope.head_dim // core.vector_lanes)
