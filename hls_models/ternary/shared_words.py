# SPDX-License-Identifier: Apache-2.0
"""Payload words at the boundaries between a core and its shared memory: bursts, their beats, beats and rows of key and value tiles."""

import numpy as np
from numpy.typing import NDArray

from lutra.hls_models.streams import pack
from lutra.hls_models.ternary.attention import KvCache
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.isa import LoadMode
from lutra.hls_models.ternary.kv_layout import SCALE_BYTES, KvTile
from lutra.hls_models.ternary.loader import Load
from lutra.hls_models.ternary.planes import Lists

__all__ = ["SharedWords"]

Bits = NDArray[np.uint32]
Bytes = NDArray[np.uint8]


class SharedWords:
    """What leaves and enters a core, given the keys and values of ``cache`` and the rest of the memory's beats.

    Parameters
    ----------
    image : uint8 (beats, B)
    """

    def __init__(self, spec: CoreSpec, image: Bytes, cache: KvCache) -> None:
        self.loader, self.layout, self._image, self._cache = spec.loader, spec.kv_layout, image, cache

    def _jobs(self, load: Load, ids: NDArray[np.int64], lists: Lists | None) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self.loader.jobs(load, ids) if lists is None else self.loader.plane_jobs(load, lists)[:2]

    def bursts(self, load: Load, ids: NDArray[np.int64], lists: Lists | None = None) -> Bits:
        """``bursts``: {address, beats} of every burst of a load; ``ids``: tokens of the pass, ``lists``: of a table in two planes."""
        first, beats = self._jobs(load, ids, lists)
        bursts = self.loader.bursts(load.target, first, beats)
        # Jobs are whole bursts: a burst's place among all beats of its job is that of the beats before it.
        before = np.cumsum(bursts) - bursts
        starts = np.cumsum(beats) - beats
        job = np.searchsorted(starts, before, side="right") - 1
        return pack((first[job] + before - starts[job], 32), (bursts, 9))

    def data(self, load: Load, ids: NDArray[np.int64], lists: Lists | None = None) -> Bits:
        """``data``: every beat."""
        if load.mode == LoadMode.TILES:
            return _words(np.concatenate([self.beats(tile) for tile in self.loader.tiles(load)]))
        first, beats = self._jobs(load, ids, lists)
        return _words(np.concatenate([self._image[address : address + count] for address, count in zip(first.tolist(), beats.tolist(), strict=True)]))

    def beats(self, tile: KvTile) -> Bytes:
        """What is read of a block: uint8 (beats, B)."""
        layout = self.layout
        block, value = divmod((tile.address - layout.base) // layout.block_beats, 2)
        own = slice(block * layout.key_tile, (block + 1) * layout.key_tile)
        scales, codes = self._cache.scales.reshape(-1, 2)[own, value], self._cache.codes.reshape(-1, 2, layout.head_dim)[own, value]
        out = np.zeros(layout.block_beats * layout.beat_bytes, np.uint8)
        out[: SCALE_BYTES * layout.key_tile] = np.ascontiguousarray(scales, "<u4").view(np.uint8)
        rows = out[layout.scale_beats * layout.beat_bytes :].reshape(layout.key_tile, layout.row_bytes)  # a view
        rows[:, : layout.head_dim] = np.ascontiguousarray(codes).view(np.uint8)
        return out.reshape(-1, layout.beat_bytes)[: tile.beats]

    def kv(self, load: Load) -> Bits:
        """``kv``: beats with the notes that go with them."""
        tiles = self.loader.tiles(load)
        beats = np.concatenate([self.beats(tile) for tile in tiles])
        counts = [tile.beats for tile in tiles]
        first, last = np.zeros(len(beats), bool), np.zeros(len(beats), bool)
        ends = np.cumsum(counts)
        first[ends - counts], last[ends - 1] = True, True
        rows, value = (np.repeat(np.array([getattr(tile, name) for tile in tiles], np.int64), counts) for name in ("rows", "value"))
        return np.concatenate([_words(beats), pack((first, 1), (rows, 16), (value, 1), (last, 1))], axis=1)

    def kv_data(self, load: Load) -> Bits:
        """``kv_data``: rows with their scales; whether they are values, whether they are the last of their tile."""
        pieces = []
        for tile in self.loader.tiles(load):
            codes, scales = self.layout.tile_rows(self.beats(tile), tile.rows)
            value, last = np.full(tile.rows, tile.value), np.arange(tile.rows) == tile.rows - 1
            pieces.append(pack((scales, 32), (codes, 8), (value, 1), (last, 1)))
        return np.concatenate(pieces)


def _words(beats: Bytes) -> Bits:
    """Beats of whole words as payloads."""
    return np.ascontiguousarray(beats).view("<u4")
