# SPDX-License-Identifier: Apache-2.0
"""GGUF files, read without trusting them: no length is believed before the file is seen to be that long, and nothing is allocated on a header's word.

Names, sizes and codes of the types are the ``gguf`` package's; its own reader follows every length that a file claims and knows no types but ggml's.
Format: magic, version, counts, key-value pairs, tensors {name, dimensions innermost first, type, offset}, aligned data
(https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import TQ1_0, TQ2_0

from lutra.hls_models.errors import ModelError
from lutra.mapping.tensor import Tensor

__all__ = ["TERNARY", "GgufFile", "read_gguf", "stored_scales", "stored_trits"]

TERNARY = {"TQ1_0": TQ1_0, "TQ2_0": TQ2_0}
"""Decoders of the ternary types: blocks of 256 values, an fp16 scale at the end."""

BITNET_CPP = {36: "I2_S"}
"""Types of bitnet.cpp that ggml does not have; only this number is never anything else."""

SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
STRING, ARRAY = 8, 9
MAX_COUNT = 1 << 16  # pairs or tensors of a file
MAX_ITEMS = 1 << 24  # items of an array: tokens of a vocabulary, merges
MAX_TEXT = 1 << 16  # bytes of a name, or of a value that is kept
MAX_DIMENSIONS = 4  # of ggml


@dataclass(frozen=True)
class Array:
    """An array or a long text of the metadata: only its length is kept."""

    items: int

    def __str__(self) -> str:
        return f"one of {self.items} items"


@dataclass(frozen=True)
class GgufFile:
    """Metadata (numbers, strings, lengths of arrays) and tensors by name; ``dtype`` is the type's name, or its number where it has none."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class _Cursor:
    """Reads forwards and refuses to go past the end."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.at = path, data, 0

    def need(self, count: int, what: str) -> None:
        if count > len(self.data) - self.at:
            raise ModelError(f"{self.path}: {what} must lie within the file's {len(self.data)} bytes, not end at {self.at + count}: truncated or damaged")

    def number(self, form: str, what: str) -> Any:
        self.need(struct.calcsize(form), what)
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return value

    def count(self, what: str, most: int) -> int:
        value: int = self.number("<Q", what)
        if value > most:
            raise ModelError(f"{self.path}: {what} must be at most {most}, not {value}")
        return value

    def skip_text(self, what: str) -> tuple[int, int]:
        """(first byte, end) of a string."""
        size = self.number("<Q", what)
        self.need(size, what)
        self.at += size
        return self.at - size, self.at

    def text(self, what: str) -> str:
        first, end = self.skip_text(what)
        if end - first > MAX_TEXT:
            raise ModelError(f"{self.path}: {what} must have at most {MAX_TEXT} bytes, not {end - first}")
        try:
            return self.data[first:end].decode("utf-8")
        except UnicodeDecodeError:
            raise ModelError(f"{self.path}: {what} must be UTF-8 text") from None

    def value(self, what: str) -> Any:
        kind = self.number("<I", what)
        if kind in SCALARS:
            return self.number(SCALARS[kind], what)
        if kind == STRING:
            size = struct.unpack("<Q", self.data[self.at : self.at + 8].ljust(8, b"\0"))[0]
            if size <= MAX_TEXT:
                return self.text(what)
            first, end = self.skip_text(what)
            return Array(end - first)
        if kind != ARRAY:
            raise ModelError(f"{self.path}: {what}: type must be 0 to 12, not {kind}")
        kind, items = self.number("<I", what), self.count(f"items of {what}", MAX_ITEMS)
        if kind in SCALARS:
            self.need(items * struct.calcsize(SCALARS[kind]), what)
            self.at += items * struct.calcsize(SCALARS[kind])
        elif kind == STRING:
            self.need(8 * items, what)
            for _ in range(items):
                self.skip_text(what)
        else:
            raise ModelError(f"{self.path}: {what}: items must be numbers or strings, not of type {kind}")
        return Array(items)


def read_gguf(path: Path) -> GgufFile:
    """Header of a file; ModelError (file, what, rule, value) where it is damaged or hostile."""
    try:
        with path.open("rb") as file:
            if path.stat().st_size < 24:
                raise ModelError(f"{path}: truncated: {path.stat().st_size} bytes, a GGUF file starts with 24 bytes of magic, version and counts")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(_Cursor(path, data))
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None


def _read(cursor: _Cursor) -> GgufFile:
    path = cursor.path
    if cursor.data[:4] != b"GGUF":
        raise ModelError(f"{path}: must start with 'GGUF', not {cursor.data[:4]!r}: no GGUF file")
    cursor.at = 4
    version = cursor.number("<I", "version")
    if version not in (2, 3):
        swapped = " (big-endian?)" if version & 0xFFFF == 0 else ""
        raise ModelError(f"{path}: GGUF version must be 2 or 3, little-endian, not {version}{swapped}")
    tensors, pairs = cursor.count("number of tensors", MAX_COUNT), cursor.count("number of key-value pairs", MAX_COUNT)
    metadata: dict[str, Any] = {}
    for number in range(pairs):
        key = cursor.text(f"key {number}")
        if key in metadata:
            raise ModelError(f"{path}: metadata names {key[:80]!r} twice")
        metadata[key] = cursor.value(f"metadata {key[:80]!r}")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise ModelError(f"{path}: general.alignment must be a power of two from 8 on, not {alignment}")
    entries: dict[str, tuple[list[int], int, int]] = {}
    for number in range(tensors):
        name = cursor.text(f"name of tensor {number}")
        if name in entries:
            raise ModelError(f"{path}: tensor {name[:80]!r} stands there twice")
        what = f"tensor {name[:80]!r}"
        dimensions = cursor.number("<I", what)
        if dimensions > MAX_DIMENSIONS:
            raise ModelError(f"{path}: {what} must have at most {MAX_DIMENSIONS} dimensions, not {dimensions}")
        sizes = [cursor.number("<Q", what) for _ in range(dimensions)]
        entries[name] = (sizes, cursor.number("<I", what), cursor.number("<Q", what))
    base = -(-cursor.at // alignment) * alignment
    found = [_tensor(path, name, *entry, base, alignment, len(cursor.data)) for name, entry in entries.items()]
    at, before = 0, ""
    for tensor in sorted(found, key=lambda t: (t.start, t.end)):
        if tensor.start < at:
            raise ModelError(f"{path}: tensor {tensor.name!r} overlaps {before!r}")
        at, before = tensor.end, tensor.name
    return GgufFile(path, metadata, {tensor.name: tensor for tensor in found})


def _tensor(path: Path, name: str, sizes: list[int], kind: int, offset: int, base: int, alignment: int, size: int) -> Tensor:
    what, shape = f"{path}: tensor {name[:80]!r}", tuple(reversed(sizes))
    start = base + offset
    if offset % alignment:
        raise ModelError(f"{what}: offset must be a multiple of {alignment}, not {offset}")
    if start > size:
        raise ModelError(f"{what} must start within the file's {size} bytes, not at {start}: truncated or damaged")
    try:
        known = GGMLQuantizationType(kind)
    except ValueError:  # of an unknown size; whoever takes the tensor refuses it
        return Tensor(name, path, BITNET_CPP.get(kind, f"type {kind}"), shape, start, start)
    block, block_bytes = GGML_QUANT_SIZES[known]
    if sizes and sizes[0] % block:
        raise ModelError(f"{what}: rows of {known.name} must be a multiple of {block} values, not {sizes[0]}")
    claimed = math.prod(sizes) // block * block_bytes
    if claimed > size - start:
        raise ModelError(f"{what}: {known.name} {list(shape)} takes {claimed} bytes, and the file has {size - start} left: truncated or damaged")
    return Tensor(name, path, known.name, shape, start, start + claimed)


def stored_scales(blocks: np.ndarray) -> np.ndarray:
    """float32 (blocks,): the scale at the end of each stored block, uint8 (blocks, bytes)."""
    return np.ascontiguousarray(blocks[:, -2:]).view("<f2")[:, 0].astype(np.float32)


def stored_trits(tensor: Tensor, first: int, end: int) -> np.ndarray:
    """int8 values of rows ``first`` to ``end`` of a TQ1_0 or TQ2_0 matrix, without the scale; zero in blocks whose scale is zero."""
    decoder = TERNARY[tensor.dtype]
    blocks = tensor.raw(first, end).reshape(-1, decoder.type_size)
    empty = stored_scales(blocks) == 0
    blocks[:, -2:] = np.ones(1, "<f2").view(np.uint8)  # decoded with a scale of one, the values are the trits, exactly
    values = decoder.dequantize_blocks(blocks).astype(np.int8)
    values[empty] = 0
    return values.reshape(end - first, *tensor.shape[1:])
