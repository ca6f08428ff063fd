# SPDX-License-Identifier: Apache-2.0
"""Safetensors files, read without trusting them: nothing is allocated on a header's word, nothing executed, every claim checked against the file.

Format: u64 little-endian header length, JSON header {name: {dtype, shape, data_offsets}}, data without holes
(https://github.com/huggingface/safetensors).
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lutra.hls_models.errors import ModelError
from lutra.mapping.tensor import DTYPES, Tensor

__all__ = ["Checkpoint", "read_header", "weight_files", "write"]

MAX_HEADER_BYTES = 100_000_000  # the limit of the reference implementation
MAX_DIMENSIONS = 8


def read_header(path: Path) -> dict[str, Tensor]:
    """Tensors of one file by name; ModelError (file, tensor, rule, value) where the file is damaged or hostile."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(8)
            length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
            if length < 0:
                raise ModelError(f"{path}: truncated: {size} bytes, a safetensors file starts with 8 bytes of header length")
            if length > MAX_HEADER_BYTES or length > size - 8:
                raise ModelError(
                    f"{path}: header length must be at most {min(MAX_HEADER_BYTES, size - 8)} bytes, not {length}: truncated or no safetensors file"
                )
            text = file.read(length)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from None
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except _DuplicateKeyError as error:
        raise ModelError(f"{path}: header names {error.args[0]!r} twice") from None
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path}: header is no JSON text ({str(error)[:80]})") from None
    if not isinstance(header, dict):
        raise ModelError(f"{path}: header must be a JSON object, not {type(header).__name__}")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelError(f"{path}: __metadata__ must map names to strings")
    tensors = [_tensor(path, name, entry, 8 + length, size) for name, entry in header.items()]
    _check_layout(path, tensors, 8 + length, size)
    return {tensor.name: tensor for tensor in tensors}


class _DuplicateKeyError(ValueError):
    pass


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in pairs:
        if key in out:
            raise _DuplicateKeyError(key)
        out[key] = value
    return out


def _count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _tensor(path: Path, name: str, entry: object, base: int, size: int) -> Tensor:
    def refuse(rule: str, value: object) -> ModelError:
        return ModelError(f"{path}: tensor {name!r}: {rule}, not {str(value)[:80]}")

    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refuse("must have dtype, shape and data_offsets", sorted(entry) if isinstance(entry, dict) else entry)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise refuse(f"dtype must be one of {', '.join(DTYPES)}", dtype)
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(map(_count, shape)):
        raise refuse(f"shape must be at most {MAX_DIMENSIONS} whole numbers", shape)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_count, offsets)) or not offsets[0] <= offsets[1] <= size - base:
        raise refuse(f"data_offsets must be [begin, end] within the file's {size - base} bytes of data", offsets)
    claimed = math.prod(shape) * DTYPES[dtype].itemsize
    if claimed != offsets[1] - offsets[0]:
        raise refuse(f"data_offsets must span the {claimed} bytes of {dtype} {shape}", offsets[1] - offsets[0])
    return Tensor(name, path, dtype, tuple(shape), base + offsets[0], base + offsets[1])


def _check_layout(path: Path, tensors: list[Tensor], base: int, size: int) -> None:
    at, previous = base, "the header"
    for tensor in sorted(tensors, key=lambda t: (t.start, t.end)):
        if tensor.start != at:
            what = "overlaps" if tensor.start < at else f"leaves a hole of {tensor.start - at} bytes after"
            raise ModelError(f"{path}: tensor {tensor.name!r}: {what} {previous}")
        at, previous = tensor.end, repr(tensor.name)
    if at != size:
        raise ModelError(f"{path}: {size - at} bytes after the last tensor belong to none")


class Checkpoint:
    """Tensors of a model folder by name: ``model.safetensors``, or the shards that ``model.safetensors.index.json`` names."""

    def __init__(self, folder: Path) -> None:
        index = folder / "model.safetensors.index.json"
        self.path = index if index.exists() else folder / "model.safetensors"
        if not self.path.exists():
            raise ModelError(f"{self.path}: no such file; a model folder needs config.json and model.safetensors")
        self.tensors: dict[str, Tensor] = _sharded(index) if self.path == index else read_header(self.path)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder that are there, its index first, whether or not they are any good."""
    index = folder / "model.safetensors.index.json"
    return [index, *sorted(folder.glob("model-*.safetensors"))] if index.is_file() else [path for path in [folder / "model.safetensors"] if path.is_file()]


def _sharded(index: Path) -> dict[str, Tensor]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=_unique)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{index}: no JSON text with each tensor once ({str(error)[:80]})") from None
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise ModelError(f"{index}: weight_map must map tensors to files")
    files = sorted(set(places.values()))
    outside = [file for file in files if Path(file).name != file or not file.endswith(".safetensors")]
    if outside:
        raise ModelError(f"{index}: weight_map must name .safetensors files of this folder, not {', '.join(map(repr, outside))}")
    found = {name: tensor for file in files for name, tensor in read_header(index.parent / file).items() if places.get(name) == file}
    missing = [f"{name} in {file}" for name, file in places.items() if name not in found]
    if missing:
        raise ModelError(f"{index}: weight_map names tensors that are not there: {', '.join(missing)}")
    return found


def write(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Store arrays (float32, float16, uint8, int8) in the order given; the file appears whole or not at all."""
    names = {dtype: name for name, dtype in DTYPES.items() if name != "BF16"}
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, array in tensors.items():
        header[name] = {"dtype": names[array.dtype], "shape": list(array.shape), "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in tensors.values():
            file.write(np.ascontiguousarray(array).tobytes())
    os.replace(partial, path)
