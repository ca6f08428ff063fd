# SPDX-License-Identifier: Apache-2.0
"""What a pass of a core has to do with a shared memory: new rows of keys and values on their way in, tiles on their way out (docs/architecture.md, 5.3)."""

from collections import deque

import numpy as np
from numpy.typing import NDArray

from lutra.hls_models.ternary.attention_cycles import RowStore
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.kv_layout import KvTile
from lutra.hls_models.ternary.loader import Load
from lutra.hls_models.ternary.loader_shared import SharedLoaderTiming
from lutra.hls_models.ternary.memory import WRITE, MemoryTiming, WriterTiming
from lutra.hls_models.ternary.repetition import Moments

__all__ = ["ID_LATENCY", "SharedPass"]

Cycles = NDArray[np.int64]

ID_LATENCY = 1  # token memory: request to id


class _Rows:
    """AxiWriter as ATTEND meets it, a row at a time."""

    def __init__(self, writer: WriterTiming) -> None:
        self._writer = writer

    def row(self, offered: int) -> int:
        return int(self._writer.rows(np.array([offered]))[0][0])

    def idle(self) -> int:
        return self._writer.idle


class SharedPass:
    """Memory, loader and writer of one pass, cycles counted from its SETUP; that is cycle ``origin`` from reset.

    ``tile`` is where ATTEND's tiles come from; ``rows``: cycles of ``kv_data`` in pieces (only in detail).
    """

    def __init__(self, spec: CoreSpec, origin: int, *, detail: bool) -> None:
        memory = spec.config.memory
        assert memory is not None  # a caller's slip
        self._config, self._layout, self._detail = spec.attention, spec.kv_layout, detail
        self._timing = MemoryTiming(memory, origin)
        self._writer = WriterTiming(self._timing, spec.kv_layout.row_writes)
        self.loader = SharedLoaderTiming(spec.loader, self._timing, ID_LATENCY, detail=detail)
        self._tiles: deque[KvTile] = deque()
        self.rows: list[Cycles] = []

    def store(self, codes: Cycles) -> Cycles | None:
        """Handshakes (rows,) of new rows, if ATTEND takes the code beats of a pass in the cycles ``codes`` and no row makes a beat wait; None otherwise: then
        ``sink`` tells when they are taken."""
        ends = codes[self._config.head_beats - 1 :: self._config.head_beats]
        rows = ends.reshape(-1, self._config.heads + 2 * self._config.kv_heads)[:, self._config.heads :].reshape(-1) + 1
        free = self._free(rows)
        if (free[:-1] > rows[1:]).any() or (self._config.head_beats == 1 and (np.diff(ends) < 2).any()):
            return None
        return self._writer.rows(rows)[0]

    def _free(self, taken: Cycles) -> Cycles:
        """First cycles in which the writer takes the next row after those of ``taken``."""
        slots, origin = self._timing.slots, self._timing.origin
        free: Cycles = slots.at(slots.before(taken + WRITE + origin) + self._layout.row_writes - 1) - origin + 1
        return free

    def sink(self) -> RowStore:
        """ATTEND's way from code beats to rows, beat by beat."""
        return RowStore(self._config, 0, _Rows(self._writer))

    @property
    def stored(self) -> int:
        """The pulse of ``stored``, once all rows of a pass are with the writer."""
        return self._writer.idle

    def visit(self, moments: Moments) -> None:
        """Between two layers' keys and values."""
        assert not self._tiles  # a caller's slip
        for part in (self._timing, self._writer, self.loader):
            part.visit(moments)

    def begin(self, load: Load) -> None:
        """The next tiles are those of ``load``."""
        self._tiles.extend(self.loader.config.tiles(load))

    def tile(self, value: bool, freed: int) -> int:
        """Cycle of the next tile's last row on ``kv_data``; ``freed``: release of the half buffer that it takes."""
        tile = self._tiles.popleft()
        assert tile.value == value  # both walk in the same order
        rows = self._layout.row_cycles(self.loader.tile(freed), tile.rows)
        if self._detail:
            self.rows.append(rows)
        return int(rows[-1])
