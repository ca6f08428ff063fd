# SPDX-License-Identifier: Apache-2.0
"""Choice of the column tile of a linear layer: what fits the buffers, never makes lookups wait for table builds, and wastes the fewest rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

from lutra.hls_models.errors import ConfigError
from lutra.hls_models.ternary.memory import MemoryConfig
from lutra.hls_models.ternary.tlmm import TlmmConfig
from lutra.hls_models.ternary.trits import tiles_of

__all__ = ["Core", "Tiling", "build_rows", "choose"]


class Core(Protocol):
    """What the mapping reads of a ``CoreConfig``."""

    @property
    def group(self) -> int: ...
    @property
    def tables(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def lanes(self) -> int: ...
    @property
    def vector_lanes(self) -> int: ...
    @property
    def half_tables(self) -> bool: ...
    @property
    def allow_stalls(self) -> bool: ...
    @property
    def ring_rows(self) -> int: ...
    @property
    def max_tile_columns(self) -> int: ...
    @property
    def chunk(self) -> int: ...
    @property
    def beat_bytes(self) -> int: ...
    @property
    def head_planes(self) -> int: ...
    @property
    def params_rows(self) -> int: ...
    @property
    def rope_rows(self) -> int: ...
    @property
    def program_words(self) -> int: ...
    @property
    def row_beats(self) -> int: ...
    @property
    def params_rows_per_beat(self) -> int: ...
    @property
    def key_tile(self) -> int: ...
    @property
    def memory(self) -> MemoryConfig | None: ...
    @property
    def prefetch_beats(self) -> int: ...


@dataclass(frozen=True)
class Tiling:
    """Tiles of a matrix: ``tile_columns`` each, the last one the rest; a row is one lookup clock."""

    columns: int
    tile_columns: int
    k_blocks: int
    lookup_columns: int

    @property
    def tiles(self) -> int:
        return -(-self.columns // self.tile_columns)

    def rows(self, tile: int) -> int:
        """Weight rows of tile ``tile``."""
        width = min(self.tile_columns, self.columns - tile * self.tile_columns)
        return self.k_blocks * -(-width // self.lookup_columns)


def build_rows(core: Core) -> int:
    """Lookups per k-block that hide the build of the next tables (architecture.md, 2.6)."""
    same = {name: getattr(core, name) for name in ("group", "tables", "columns", "lanes", "half_tables", "max_tile_columns")}
    sizes = TlmmConfig.model_validate(same | {"max_tokens": 1, "max_k": 1, "allow_stalls": True})
    return sizes.entries + sizes.swap_cycles


def spare_rows(core: Core) -> int:
    """Rows that the burst with a tile's last beat may begin behind it: they need their room, too (``LoaderConfig.tile_rows``)."""
    return -(-(core.memory.burst_beats - 1) // core.row_beats) if core.memory else 0


def choose(core: Core, name: str, columns: int, inputs: int, unit: int, widest: int) -> Tiling:
    """The best tiling of ``columns`` x ``inputs`` in tiles that are multiples of ``unit`` and at most ``widest`` columns.

    Best: the fewest lookup clocks, stalls included; a tile of which two do not fit the ring counts double, since loading and lookups then
    alternate; among equals the fewest tiles.

    Raises
    ------
    ConfigError
        Nothing fits; the message names the field, its value and the nearest one that would do.
    """
    k_blocks = -(-inputs // (core.tables * core.group))
    # a ring without repeated reading is a plain queue: a tile of any size passes it
    ring = core.ring_rows - spare_rows(core) if core.chunk > core.lanes else None
    best = _best(columns, k_blocks, unit, min(core.max_tile_columns, widest), core.columns, build_rows(core), ring, core.allow_stalls)
    if best is None:
        raise ConfigError(_reason(core, name, columns, k_blocks, unit, ring))
    return Tiling(columns, best, k_blocks, core.columns)


@cache
def _best(columns: int, k_blocks: int, unit: int, widest: int, lookup: int, need: int, ring: int | None, stalls: bool) -> int | None:
    found: tuple[int, int, int] | None = None
    for tile in range(unit, min(widest, columns) + 1, unit):
        full, rest = divmod(columns, tile)
        rows = -(-tile // lookup)
        last = -(-rest // lookup) if rest else rows
        if (ring is not None and rows * k_blocks > ring) or (min(rows, last) < need and not stalls):
            continue
        clocks = full * max(rows, need) + (max(last, need) if rest else 0)
        alternating = ring is not None and 2 * rows * k_blocks > ring
        rank = (clocks * (2 if alternating else 1), full + bool(rest), tile)
        found = min(found, rank) if found else rank
    return found[2] if found else None


def _reason(core: Core, name: str, columns: int, k_blocks: int, unit: int, ring: int | None) -> str:
    need, widest = build_rows(core), core.max_tile_columns
    smallest, spare = -(-unit // core.columns) * k_blocks, spare_rows(core)
    if ring is not None and smallest > ring:
        what = f"the smallest tile ({unit} columns, {k_blocks} k-blocks)" + (f" and {spare} rows of the next one's first burst" if spare else "")
        return f"{name}: ring_rows must hold {what}, not {core.ring_rows}; nearest: {smallest + spare}"
    if unit > widest:
        return f"{name}: max_tile_columns must be at least {unit} (whole heads and beats), not {widest}; nearest: {unit}"
    if -(-columns // core.columns) < need:
        legal = -(-columns // (need - 1)) - 1
        return (
            f"{name}: columns must leave {need} lookups per table build ({columns} matrix columns), not {core.columns}; nearest: {legal}, or allow_stalls: true"
        )
    # the whole matrix as one tile is free of stalls here, so there is a smallest tile that is
    tile = next(t for t in range(unit, columns + 1, unit) if all(-(-part // core.columns) >= need for part in tiles_of(columns, t)))
    rows = -(-tile // core.columns) * k_blocks + spare
    return (
        f"{name}: lookups wait for table builds in tiles below {need} rows per k-block ({k_blocks} k-blocks, {core.columns} columns a row), unavoidable "
        f"with max_tile_columns {widest} and ring_rows {core.ring_rows}; nearest: {max(tile, widest)} and {max(rows, core.ring_rows)}, or allow_stalls: true"
    )
