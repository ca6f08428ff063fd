# SPDX-License-Identifier: Apache-2.0
"""What checkpoints of every format have in common: tensors taken by name, every value looked at once, all problems in one line.

Nothing large is kept: matrices and tables of the model read their tensor again when their values are wanted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from lutra.hls_models.errors import ModelError
from lutra.mapping.model import Matrix, Table, absmean, to_trits
from lutra.mapping.tensor import FLOATS, Tensor, Update, row_ranges

__all__ = ["Checks", "summary"]

SHOWN = 20
"""Problems that a message lists; the rest is counted."""

LAYER = re.compile(r"\b(layers|blk)\.(\d+)\.")


def summary(problems: Sequence[str]) -> str:
    """Problems as one line: what several layers have in common once, with their range."""
    found: dict[str, tuple[str, list[str]]] = {}
    for problem in problems:
        layers = {number for _, number in LAYER.findall(problem)}
        one = len(layers) == 1
        found.setdefault(LAYER.sub(r"\1.", problem) if one else problem, (problem, []))[1].extend(layers if one else ())
    texts = [LAYER.sub(rf"\g<1>.{_ranges(layers)}.", text) if layers else text for text, layers in found.values()]
    return "; ".join(texts[:SHOWN]) + (f"; and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "")


def _ranges(numbers: Sequence[str]) -> str:
    """0-3,5 of 0, 1, 2, 3, 5."""
    parts: list[list[int]] = []
    for number in sorted(set(map(int, numbers))):
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


class Checks:
    """Takes the tensors of a checkpoint by name and collects problems instead of stopping at the first.

    Parameters
    ----------
    path
        What messages name: the file, or the index of several.
    tensors
        By name.
    update
        Called with the bytes looked at so far, and all.
    declaration
        What would declare that floats are to be ternarised.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Tensor], update: Update | None, *, declaration: str) -> None:
        self.path, self.tensors, self.declaration = path, tensors, declaration
        self.used: set[str] = set()
        self.problems: list[str] = []
        self._update, self._done, self._all = update, 0, sum(tensor.bytes for tensor in tensors.values())

    def finish(self, ignored: re.Pattern[str]) -> None:
        """ModelError with all problems; tensors that nobody took must match ``ignored``."""
        self.problems += [f"unknown tensor {name}" for name in self.tensors if name not in self.used and not ignored.fullmatch(name)]
        if self.problems:
            raise ModelError(f"{self.path}: unsupported checkpoint: {summary(self.problems)}")

    def take(self, names: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> Tensor | None:
        """The tensor under the first name present, if it has one of ``shapes``."""
        tensor = next((self.tensors[name] for name in names if name in self.tensors), None)
        if tensor is None:
            self.problems.append(f"missing tensor {' or '.join(names)}")
            return None
        self.used.add(tensor.name)
        if tensor.shape not in shapes:
            self.problems.append(f"{tensor.name} must have shape {' or '.join(str(list(s)) for s in shapes)}, not {list(tensor.shape)}")
            return None
        return tensor

    def looked_at(self, tensor: Tensor, part: float = 1) -> None:
        """Counts a share of a tensor's bytes as done."""
        self._done += round(part * tensor.bytes)
        if self._update:
            self._update(min(self._done, self._all), self._all)

    def floating(self, tensor: Tensor | None) -> Tensor | None:
        """The tensor, if it holds floats."""
        if tensor is not None and tensor.dtype not in FLOATS:
            self.problems.append(f"{tensor.name} must be {', '.join(FLOATS)}, not {tensor.dtype}")
            return None
        return tensor

    def floats(self, names: Sequence[str], *shapes: tuple[int, ...]) -> np.ndarray:
        """float32 values of a small tensor; a zero where they are unusable, which is noted."""
        tensor = self.floating(self.take(names, shapes))
        if tensor is not None:
            self.looked_at(tensor)
            try:
                return tensor.read()
            except ModelError as error:
                self.note(tensor, error)
        return np.zeros(1, np.float32)

    def note(self, tensor: Tensor, error: ModelError) -> None:
        """A problem that reading ``tensor`` found."""
        self.problems.append(str(error).removeprefix(f"{tensor.path}: "))

    def table(self, name: str, rows: int, columns: int) -> Table:
        """A table of floats, every value looked at."""
        tensor = self.floating(self.take([name], [(rows, columns)]))
        if tensor is None:
            return Table(rows, columns, None)
        try:
            for _ in self.parts(tensor):
                pass
        except ModelError as error:
            self.note(tensor, error)
        return Table(rows, columns, tensor.read)

    def parts(self, tensor: Tensor) -> Iterator[np.ndarray]:
        """The rows of a matrix, some at a time, counted as they are read."""
        rows, columns = tensor.shape
        for first, end in row_ranges(rows, columns):
            yield tensor.read(first, end)
            self.looked_at(tensor, (end - first) / rows)

    def layers(self, prefix: str, layers: int, field: str) -> range:
        """Layers to take: those that both the configuration and the checkpoint have. Other numbers of layers are one problem, not one per tensor."""
        found = {int(match[1]) for name in self.tensors if (match := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))}
        if not found or found == set(range(layers)) or found != set(range(len(found))):
            return range(layers)
        self.problems.append(f"{field} must be {len(found)}, the layers of the checkpoint, not {layers}")
        self.used.update(name for name in self.tensors if name.startswith(tuple(f"{prefix}.{layer}." for layer in found if layer >= layers)))
        return range(min(layers, len(found)))

    def floats_to_trits(self, tensor: Tensor, master: bool) -> Matrix:
        """A matrix of floats: {-g, 0, g} as they are, anything else by absmean where ``master`` weights are expected."""
        n, k = tensor.shape
        peaks: set[float] = set()
        ternary = True

        def magnitudes() -> Iterator[np.ndarray]:
            nonlocal ternary
            for part in self.parts(tensor):
                magnitude = np.abs(part)
                peak = float(magnitude.max())
                peaks.update({peak} - {0.0})
                ternary = ternary and len(peaks) < 2 and bool(((magnitude == 0) | (magnitude == peak)).all())
                yield magnitude

        try:
            scale = absmean(magnitudes(), n * k)
        except ModelError as error:
            self.note(tensor, error)
            return Matrix(n, k, None, (1.0,), (n,))
        if ternary and peaks:
            return Matrix(n, k, lambda: _in_parts(tensor, np.sign), (peaks.pop(),), (n,))
        if not ternary and not master:
            self.problems.append(f"{tensor.name} must be ternary, or {self.declaration}")
        return Matrix(n, k, lambda: _in_parts(tensor, lambda part: to_trits(part, scale)), (scale,), (n,))


def _in_parts(tensor: Tensor, trits: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """int8 (outputs, inputs) of a matrix of floats, with a part of these in memory."""
    values = np.empty(tensor.shape, np.int8)
    for first, end in row_ranges(*tensor.shape):
        values[first:end] = trits(tensor.read(first, end))
    return values
