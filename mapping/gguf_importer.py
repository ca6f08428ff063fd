# SPDX-License-Identifier: Apache-2.0
"""GGUF files of the BitNet/Llama family to a ``TernaryModel``: matrices in TQ1_0, TQ2_0 or floats, everything else in floats.

Architectures differ in what no key says: "llama" files hold the rows of queries and keys as interleaved rotary pairs (llama.cpp's converter permutes
them), the others as halves; "bitnet" (1bitLLM) gates with SiLU, "bitnet-b1.58" (Microsoft's 2B4T) with relu2.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lutra.hls_models.errors import ModelError
from lutra.hls_models.shape import Activation, LinearShape, ModelShape
from lutra.mapping.checks import Checks
from lutra.mapping.gguf_file import TERNARY, Array, GgufFile, read_gguf, stored_scales, stored_trits
from lutra.mapping.model import Matrix, TernaryModel
from lutra.mapping.tensor import FLOATS, Tensor, Update, row_ranges

__all__ = ["load", "read_shape", "stop_token"]


@dataclass(frozen=True)
class Architecture:
    """What ``general.architecture`` implies."""

    activation: Activation
    sub_norms: bool
    permuted: bool


ARCHITECTURES = {
    "llama": Architecture("silu", sub_norms=False, permuted=True),
    "bitnet": Architecture("silu", sub_norms=True, permuted=False),
    "bitnet-b1.58": Architecture("relu2", sub_norms=True, permuted=False),
}

KEYS = {
    "hidden": "embedding_length",
    "layers": "block_count",
    "heads": "attention.head_count",
    "kv_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "ffn": "feed_forward_length",
    "vocabulary": "vocab_size",
    "context": "context_length",
    "rope_theta": "rope.freq_base",
    "eps": "attention.layer_norm_rms_epsilon",
}
"""Our field names and the keys behind the architecture's name."""

LINEARS = {f"{name}_proj": f"attn_{name}" for name in "qkv"} | {"o_proj": "attn_output"} | {f"{name}_proj": f"ffn_{name}" for name in ("gate", "up", "down")}
NORMS = {"input_norm": "attn_norm", "attention_norm": "attn_sub_norm", "post_norm": "ffn_norm", "ffn_norm": "ffn_sub_norm"}
NOTHING = re.compile(r"(?!)")
SUPPORTED = (
    "supported are TQ1_0 and TQ2_0 for matrices and F32, F16 and BF16 for everything; nearest: a file made with convert_hf_to_gguf.py --outtype tq1_0 "
    "(llama.cpp), or the checkpoint's folder with config.json and model.safetensors"
)


def load(path: Path, update: Update | None = None) -> TernaryModel:
    """The model of a file: every scale and code looked at, no matrix kept; ``update`` is called with the bytes looked at so far, and all.

    Raises
    ------
    ModelError
        The file is damaged or hostile, or the model is not of this family; whatever is unsupported is listed at once, by name.
    """
    file = read_gguf(path)
    return _Importer(file, _shape(file), update).model()


def read_shape(path: Path) -> ModelShape:
    """Shape of a file, from its header alone; the types of its tensors must be supported too."""
    return _shape(read_gguf(path))


def stop_token(path: Path) -> int | None:
    """The token that ends a text, where the file names one."""
    stop = read_gguf(path).metadata.get("tokenizer.ggml.eos_token_id")
    return stop if isinstance(stop, int) and not isinstance(stop, bool) and stop >= 0 else None


def _shape(file: GgufFile) -> ModelShape:
    name, m = file.metadata.get("general.architecture"), file.metadata
    if name not in ARCHITECTURES:
        raise ModelError(f"{file.path}: general.architecture must be {', '.join(ARCHITECTURES)}, not {name!r}")
    _check_types(file)
    values: dict[str, Any] = {ours: m[f"{name}.{key}"] for ours, key in KEYS.items() if f"{name}.{key}" in m}
    table = file.tensors.get("token_embd.weight")
    if table is not None and table.shape:
        values.setdefault("vocabulary", table.shape[0])
    heads, hidden = values.get("heads"), values.get("hidden")
    if "head_dim" not in values and isinstance(heads, int) and isinstance(hidden, int) and heads > 0 and hidden % heads == 0:
        values["head_dim"] = hidden // heads
    values.setdefault("kv_heads", heads)
    problems = [f"missing {name}.{KEYS[field]}" for field in KEYS if field != "rope_theta" and values.get(field) is None]
    problems += [f"{name}.{KEYS[field]} must be one number, not {value}" for field, value in values.items() if isinstance(value, Array)]
    problems += _unsupported(name, m, values.get("head_dim"))
    if "rope_freqs.weight" in file.tensors:
        problems.append("rope_freqs.weight: scaled rotary frequencies are not supported")
    if problems:
        raise ModelError(f"{file.path}: unsupported model: {'; '.join(problems)}")
    for field in ("eps", "rope_theta"):  # stored as float32: the decimal number that was meant
        if isinstance(values.get(field), float):
            values[field] = float(str(np.float32(values[field])))
    about = ARCHITECTURES[name]
    values |= {"name": file.path.stem, "activation": about.activation, "sub_norms": about.sub_norms, "tied": "output.weight" not in file.tensors}
    return ModelShape.from_values(values, str(file.path), {ours: f"{name}.{key}" for ours, key in KEYS.items()})


def _unsupported(name: str, metadata: Any, head_dim: Any) -> list[str]:
    """Everything in the metadata that this family does not have, one phrase each."""

    def value(key: str, default: Any = None) -> Any:
        return metadata.get(f"{name}.{key}", default)

    problems = []
    for key in ("attention.value_length", "rope.dimension_count"):
        if value(key, head_dim) != head_dim:
            problems.append(f"{name}.{key} must be {name}.{KEYS['head_dim']} = {head_dim}, not {value(key)}")
    if value("rope.scaling.type", "none") != "none" and value("rope.scaling.factor", 1.0) != 1.0:  # "linear" by 1 is none
        problems.append(f"{name}.rope.scaling.type must be none, not {value('rope.scaling.type')!r} by {value('rope.scaling.factor')}")
    problems += [f"{name}.{key} must be 0, not {value(key)}" for key in ("expert_count", "attention.sliding_window") if value(key)]
    if metadata.get("split.count", 1) not in (0, 1):
        problems.append(f"split.count must be 1, not {metadata['split.count']}; nearest: one file, made with llama-gguf-split --merge")
    return problems


def _check_types(file: GgufFile) -> None:
    """ModelError where a tensor has a type that is not read: one line, whatever their number."""
    others = [tensor for tensor in file.tensors.values() if tensor.dtype not in FLOATS and tensor.dtype not in TERNARY]
    if others:
        kinds = Counter(tensor.dtype for tensor in others)
        counted = ", ".join(f"{count} of {kind}" for kind, count in kinds.most_common())
        first = f"{others[0].name} is {others[0].dtype}" + (" (bitnet.cpp's own type)" if others[0].dtype == "I2_S" else "")
        raise ModelError(f"{file.path}: {first}; tensors of unsupported types: {counted}; {SUPPORTED}")


class _Importer(Checks):
    def __init__(self, file: GgufFile, shape: ModelShape, update: Update | None) -> None:
        super().__init__(file.path, file.tensors, update, declaration="general.architecture must be bitnet or bitnet-b1.58")
        self.shape, self.architecture = shape, ARCHITECTURES[file.metadata["general.architecture"]]

    def model(self) -> TernaryModel:
        shape = self.shape
        embedding = self.table("token_embd.weight", shape.vocabulary, shape.hidden)
        head = embedding if shape.tied else self.table("output.weight", shape.vocabulary, shape.hidden)
        matrices: dict[str, Matrix] = {}
        gains: dict[str, np.ndarray] = {}
        for layer in self.layers("blk", shape.layers, "block_count"):
            for linear in shape.linears():
                matrices[f"layers.{layer}.{linear.name}"] = self.matrix(f"blk.{layer}.{LINEARS[linear.name]}", linear)
            for name, size in shape.norms().items():
                gains[f"layers.{layer}.{name}"] = self.floats([f"blk.{layer}.{NORMS[name]}.weight"], (size,))
        gains["norm"] = self.floats(["output_norm.weight"], (shape.hidden,))
        self.finish(NOTHING)
        return TernaryModel(shape, matrices, gains, embedding, head, self.path.parent)

    def matrix(self, name: str, linear: LinearShape) -> Matrix:
        n, k = linear.outputs, linear.inputs
        tensor = self.take([f"{name}.weight"], [(n, k)])
        if tensor is None:
            found = Matrix(n, k, None, (1.0,), (n,))
        elif tensor.dtype in FLOATS:
            found = self.floats_to_trits(tensor, self.architecture.sub_norms)
        else:
            found = self.stored(tensor)
        if f"{name}.scale" in self.tensors:  # a factor beside the matrix, where the blocks' fp16 would lose it
            factor = float(self.floats([f"{name}.scale"], (1,)).reshape(-1)[0])
            if not factor > 0:
                self.problems.append(f"{name}.scale must be above zero, not {factor:g}")
            found = replace(found, scales=tuple(scale * factor for scale in found.scales))
        if self.architecture.permuted and linear.name in ("q_proj", "k_proj"):
            pairs = np.arange(n).reshape(-1, self.shape.head_dim // 2, 2)
            found = replace(found, values=found.rows(pairs.swapaxes(1, 2).ravel()))
        return found

    def stored(self, tensor: Tensor) -> Matrix:
        """A matrix of a ternary type, which must have one scale."""
        n, k = tensor.shape
        scales: set[float] = set()
        for first, end in row_ranges(n, k):
            blocks = tensor.raw(first, end).reshape(-1, TERNARY[tensor.dtype].type_size)
            scales.update(np.unique(stored_scales(blocks)).tolist())
            if tensor.dtype == "TQ2_0" and (blocks[:, :-2] & blocks[:, :-2] >> 1 & 0x55).any():
                row, column = np.argwhere(stored_trits(tensor, first, end) == 2)[0].tolist()
                self.problems.append(f"{tensor.name} must hold the codes 0, 1 and 2, not 3 at row {first + row}, column {column}")
                break
            self.looked_at(tensor, (end - first) / n)
        scales.discard(0.0)  # blocks of zeros
        if not all(0 < scale < np.inf for scale in scales):
            self.problems.append(f"{tensor.name} must have finite scales above zero, not {next(s for s in scales if not 0 < s < np.inf):g}")
        elif len(scales) > 1:
            span = f"{min(scales):.4g} to {max(scales):.4g}"
            self.problems.append(f"{tensor.name} must have one scale, not {len(scales)} ({span}): its weights were not ternary before {tensor.dtype}")
        else:
            return Matrix(n, k, lambda: _values(tensor), (scales.pop() if scales else 1e-5,), (n,))
        return Matrix(n, k, None, (1.0,), (n,))


def _values(tensor: Tensor) -> np.ndarray:
    """int8 (outputs, inputs) of a matrix of a ternary type."""
    values = np.empty(tensor.shape, np.int8)
    for first, end in row_ranges(*tensor.shape):
        values[first:end] = stored_trits(tensor, first, end)
    return values
