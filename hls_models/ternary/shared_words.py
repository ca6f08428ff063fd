# SPDX-License-Identifier: Apache-2.0
"""Payload words at the boundaries between a core and its shared memory: bursts, their beats, beats and rows of key and value tiles."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from lutra.hls_models.streams import pack
from lutra.hls_models.ternary.attention import KvCache
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.isa import LoadMode
from lutra.hls_models.ternary.kv_layout import SCALE_BYTES, KvTile
from lutra.hls_models.ternary.loader import Load

__all__ = ["SharedWords"]

Bits = NDArray[np.uint32]
Bytes = NDArray[np.uint8]


def _words(beats: Bytes) -> Bits:
    """Beats of whole words as payloads."""
    return np.ascontiguousarray(beats).view("<u4")


class SharedWords:
    """What leaves and enters a core, given the keys and values of ``cache`` and the rest of the memory's beats.

    Parameters
    ----------
    image : uint8 (beats, B)
    """

    def __init__(self, spec: CoreSpec, image: Bytes, cache: KvCache) -> None:
        self.spec, self.layout, self._image, self._cache = spec, spec.kv_layout, image, cache

    def jobs(self, load: Load, ids: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
        """(first beat, beats) of what a load fetches, one after another; ``ids``: tokens of the pass."""
        if load.mode == LoadMode.TILES:
            yield from ((tile.address, tile.beats) for tile in self.tiles(load))
            return
        places: Iterable[int] = {LoadMode.DIRECT: [0], LoadMode.POSITION: range(load.position, load.position + load.tokens), LoadMode.TOKEN: ids.tolist()}[
            LoadMode(load.mode)
        ]
        for place in places:
            yield load.address + place * load.beats, load.beats

    def requests(self, load: Load, ids: NDArray[np.int64]) -> Bits:
        """``read``: {address, beats} of every burst."""
        pieces = []
        for address, beats in self.jobs(load, ids):
            counts = self.spec.loader.bursts(load.target, address, beats)
            pieces.append((address + np.cumsum(counts) - counts, counts))
        firsts, counts = (np.concatenate([piece[i] for piece in pieces]) for i in range(2))
        return pack((firsts, 32), (counts, 9))

    def data(self, load: Load, ids: NDArray[np.int64]) -> Bits:
        """``data``: every beat."""
        if load.mode == LoadMode.TILES:
            beats = np.concatenate([self.beats(tile) for tile in self.tiles(load)])
        else:
            beats = np.concatenate([self._image[address : address + count] for address, count in self.jobs(load, ids)])
        return _words(beats)

    def tiles(self, load: Load) -> list[KvTile]:
        """Tiles of a layer in the order of work."""
        layer = (load.address - self.layout.base) // self.layout.layer_beats
        return list(self.layout.order(layer, load.tokens, load.position, serial=bool(load.serial)))

    def _rows(self, tile: KvTile) -> tuple[NDArray[np.int8], Bits]:
        """Codes (TL, head_dim) and scales (TL,) of a whole block."""
        block, value = divmod((tile.address - self.layout.base) // self.layout.block_beats, 2)
        own = slice(block * self.layout.key_tile, (block + 1) * self.layout.key_tile)
        codes = self._cache.codes.reshape(-1, 2, self.layout.head_dim)[own, value]
        return codes, self._cache.scales.reshape(-1, 2)[own, value]

    def beats(self, tile: KvTile) -> Bytes:
        """What is read of a block: uint8 (beats, B)."""
        layout = self.layout
        codes, scales = self._rows(tile)
        block = np.zeros(layout.block_beats * layout.beat_bytes, np.uint8)
        block[: SCALE_BYTES * layout.key_tile] = np.ascontiguousarray(scales, "<u4").view(np.uint8)
        block[layout.scale_beats * layout.beat_bytes :] = np.ascontiguousarray(codes).view(np.uint8).reshape(-1)
        return block.reshape(-1, layout.beat_bytes)[: tile.beats]

    def kv(self, load: Load) -> Bits:
        """``kv``: beats with the notes that go with them."""
        tiles = self.tiles(load)
        beats = np.concatenate([self.beats(tile) for tile in tiles])
        index = np.concatenate([np.arange(tile.beats) for tile in tiles])
        counts = [tile.beats for tile in tiles]
        rows, value = (np.repeat([getattr(tile, name) for tile in tiles], counts).astype(np.int64) for name in ("rows", "value"))
        last = np.arange(len(beats)) == len(beats) - 1
        return np.concatenate([_words(beats), pack((index == 0, 1), (rows, 16), (value, 1), (last, 1))], axis=1)

    def kv_data(self, load: Load) -> Bits:
        """``kv_data``: rows with their scales; whether they are values, whether they are the last of their tile."""
        pieces = []
        for tile in self.tiles(load):
            codes, scales = (rows[: tile.rows] for rows in self._rows(tile))
            value, last = np.full(tile.rows, tile.value), np.arange(tile.rows) == tile.rows - 1
            pieces.append(pack((scales, 32), (codes, 8), (value, 1), (last, 1)))
        return np.concatenate(pieces)
