# SPDX-License-Identifier: Apache-2.0
"""A checkpoint free of file formats: ternary matrices with scales, gains and tables under canonical names.

Matrices and tables are large: their values may be arrays or functions that make them, anew at every call, so that one at a time is in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from lutra.hls_models.errors import ModelError
from lutra.hls_models.shape import ModelShape
from lutra.mapping.tensor import row_ranges

__all__ = ["Matrix", "Table", "TernaryModel", "absmean", "given", "ternarise", "to_trits"]

T = TypeVar("T")


def given(values: T | None) -> T:
    """The values; ModelError where only the shape is known."""
    if values is None:
        raise ModelError("only the shape of this model is known; give a folder with weights")
    return values


@dataclass(frozen=True, eq=False)
class Matrix:
    """A ternary matrix of (outputs, inputs): ``values`` int8 in {-1, 0, 1}, an array or what makes it, or None where only the shape is known.

    Rows have scales (the dequantisation multiplier): either by ranges, ``segments`` rows each, or, ``interleaved``, row j has
    ``scales[j % len(scales)]``.
    """

    outputs: int
    inputs: int
    values: np.ndarray | Callable[[], np.ndarray] | None
    scales: tuple[float, ...]
    segments: tuple[int, ...]
    interleaved: bool = False

    def known(self) -> np.ndarray:
        """The values; ModelError where only the shape is known, ValueError where they have another."""
        found = self.values if isinstance(self.values, np.ndarray) else given(self.values)()
        if found.shape != (self.outputs, self.inputs):
            raise ValueError(f"values must have the matrix's shape {(self.outputs, self.inputs)}, not {found.shape}")
        return found

    def row_scales(self) -> np.ndarray:
        """float64 (outputs,): the multiplier of each row."""
        if self.interleaved:
            return np.tile(self.scales, self.outputs // len(self.scales))
        return np.repeat(self.scales, self.segments)

    def rows(self, order: np.ndarray) -> Callable[[], np.ndarray] | None:
        """The values with rows taken in ``order``."""
        return None if self.values is None else lambda: self.known()[order]


@dataclass(frozen=True, eq=False)
class Table:
    """One row per token of (rows, columns): float32, or int8 with a float32 scale per row.

    ``values``: an array, or what makes rows ``first`` to ``end`` of it, or None where only the shape is known.
    """

    rows: int
    columns: int
    values: np.ndarray | Callable[[int, int], np.ndarray] | None
    scales: np.ndarray | None = None

    def part(self, first: int, end: int) -> np.ndarray:
        """Rows ``first`` to ``end``; ModelError where only the shape is known."""
        return self.values[first:end] if isinstance(self.values, np.ndarray) else given(self.values)(first, end)

    def parts(self) -> Iterator[tuple[int, np.ndarray]]:
        """(first row, rows), a few megabytes at a time."""
        return ((first, self.part(first, end)) for first, end in row_ranges(self.rows, self.columns))

    def known(self) -> np.ndarray:
        """All rows; ModelError where only the shape is known."""
        return self.part(0, self.rows)

    def dequantised(self) -> np.ndarray:
        """float64 (rows, columns)."""
        values = self.known().astype(np.float64)
        return values if self.scales is None else values * self.scales.astype(np.float64)[:, None]


@dataclass(frozen=True, eq=False)
class TernaryModel:
    """Everything of a checkpoint.

    Parameters
    ----------
    shape
        Sizes; ``matrices`` and ``gains`` have exactly what it names.
    matrices
        "layers.N.q_proj", k, v, o, gate, up, down.
    gains
        "layers.N.input_norm", attention_norm, post_norm, ffn_norm; "norm". float32.
    embedding, head
        The same object where the shape is tied.
    folder
        Where it came from, and where its tokenizer is; None for a model made in memory.
    """

    shape: ModelShape
    matrices: dict[str, Matrix]
    gains: dict[str, np.ndarray]
    embedding: Table
    head: Table
    folder: Path | None = field(default=None)

    @classmethod
    def random(cls, shape: ModelShape, seed: int) -> TernaryModel:
        """Untrained weights with the spread that a trained model has; for tests and benches."""
        rng = np.random.default_rng(seed)
        matrices = {}
        for layer in range(shape.layers):
            for linear in shape.linears():
                weights = rng.standard_normal((linear.outputs, linear.inputs), np.float32) * np.float32(0.8 / linear.inputs**0.5)
                matrices[f"layers.{layer}.{linear.name}"] = ternarise(weights)
        sizes = {f"layers.{i}.{name}": size for i in range(shape.layers) for name, size in shape.norms().items()} | {"norm": shape.hidden}
        gains = {name: rng.uniform(0.5, 1.5, size).astype(np.float32) for name, size in sizes.items()}
        tables = [
            Table(shape.vocabulary, shape.hidden, rng.standard_normal((shape.vocabulary, shape.hidden), np.float32)) for _ in range(1 if shape.tied else 2)
        ]
        return cls(shape, matrices, gains, tables[0], tables[-1])


def absmean(parts: Iterable[np.ndarray], count: int) -> float:
    """Scale of ``count`` float weights that come in parts: max(mean|w|, 1e-5), as float32 (arXiv 2402.17764, eq. 2)."""
    total = sum(float(np.abs(part).sum(dtype=np.float64)) for part in parts)
    return float(np.float32(max(total / count, 1e-5)))


def to_trits(weights: np.ndarray, scale: float) -> np.ndarray:
    """clip(round(w/scale), -1, 1) as int8 (arXiv 2402.17764, eq. 1 and 3)."""
    return np.clip(np.rint(weights / np.float32(scale)), -1, 1).astype(np.int8)


def ternarise(weights: np.ndarray) -> Matrix:
    """Absmean ternarisation of a float matrix (outputs, inputs), which must hold a value."""
    n, k = weights.shape
    scale = absmean((weights[first:end] for first, end in row_ranges(n, k)), weights.size)
    return Matrix(n, k, to_trits(weights, scale), (scale,), (n,))
