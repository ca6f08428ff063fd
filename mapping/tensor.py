# SPDX-License-Identifier: Apache-2.0
"""A tensor of a checkpoint: where it lies in a file, read row by row when it is wanted, so that a model need not fit the memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lutra.hls_models.errors import ModelError

__all__ = ["DTYPES", "FLOATS", "Tensor", "Update", "row_ranges"]

Update = Callable[[int, int], None]
"""Called with what is done and all there is."""

DTYPES: dict[str, np.dtype[Any]] = {
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
    "I64": np.dtype("<i8"),
}
FLOATS = ("BF16", "F16", "F32")
PART_VALUES = 1 << 20
"""Values read at once where a tensor is read in parts: some megabytes, whatever its size."""


def row_ranges(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """(first, end) of parts of a (rows, columns) tensor of about ``PART_VALUES`` values each."""
    step = max(1, PART_VALUES // max(1, columns))
    return ((first, min(first + step, rows)) for first in range(0, rows, step))


@dataclass(frozen=True)
class Tensor:
    """Where a tensor lies: bytes ``start`` to ``end`` of ``path``, from the beginning of the file; row-major, ``shape`` values."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def bytes(self) -> int:
        return self.end - self.start

    def raw(self, first: int = 0, end: int | None = None) -> np.ndarray:
        """uint8: the stored bytes of rows ``first`` to ``end`` of the first axis (all by default)."""
        if not self.shape:
            return np.fromfile(self.path, np.uint8, self.bytes, offset=self.start)
        row_bytes = self.bytes // max(1, self.shape[0])
        end = self.shape[0] if end is None else end
        return np.fromfile(self.path, np.uint8, (end - first) * row_bytes, offset=self.start + first * row_bytes)

    def read(self, first: int = 0, end: int | None = None) -> np.ndarray:
        """The values of rows ``first`` to ``end`` (all by default): whole numbers as they are stored, floats as float32.

        Raises
        ------
        ModelError
            A value is not finite; the message names its index.
        """
        rows = () if not self.shape else ((self.shape[0] if end is None else end) - first,)
        raw = self.raw(first, end).view(DTYPES[self.dtype]).reshape((*rows, *self.shape[1:]))
        if self.dtype not in FLOATS:
            return raw
        values = (raw.astype(np.uint32) << 16).view(np.float32) if self.dtype == "BF16" else raw.astype(np.float32, copy=False)
        finite = np.isfinite(values)
        if not finite.all():
            at = tuple(int(i) for i in np.argwhere(~finite)[0])
            index = [at[0] + first, *at[1:]] if at else []
            raise ModelError(f"{self.path}: tensor {self.name!r}: every value must be finite, not {values[at]} at index {index}")
        return values
