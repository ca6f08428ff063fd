# SPDX-License-Identifier: Apache-2.0
"""Hugging Face style folders of the BitNet/Llama family to a ``TernaryModel``.

``weight_scale`` means two things, told apart by ``quantization_config.linear_class`` (transformers, integrations/bitnet.py): "autobitlinear" stores
the multiplier mean|W|, "bitlinear" (the default) its reciprocal.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lutra.hls_models.errors import ModelError
from lutra.hls_models.shape import LinearShape, ModelShape, is_bitnet, read_config
from lutra.mapping.model import Matrix, Table, TernaryModel, ternarise
from lutra.mapping.safetensors_file import FLOATS, Checkpoint, Tensor

__all__ = ["load", "pack_rows", "unpack_rows"]

SMALLEST, LARGEST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)

PLACES = {name: f"self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")} | {
    name: f"mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")
}

# the second spelling is 1bitLLM's
NORM_NAMES = {
    "input_norm": ("input_layernorm",),
    "post_norm": ("post_attention_layernorm",),
    "attention_norm": ("self_attn.attn_sub_norm", "self_attn.inner_attn_ln"),
    "ffn_norm": ("mlp.ffn_sub_norm", "mlp.ffn_layernorm"),
}


def pack_rows(values: np.ndarray) -> np.ndarray:
    """Trits int8 (outputs, inputs) to transformers' layout uint8 (ceil(outputs/4), inputs): byte r holds rows r, r+R, r+2R, r+3R, lowest bits first."""
    rows = -(-len(values) // 4)
    codes = np.zeros((4 * rows, values.shape[1]), np.uint8)
    codes[: len(values)] = values + 1
    a, b, c, d = codes.reshape(4, rows, -1)
    return a | b << 2 | c << 4 | d << 6


def unpack_rows(packed: np.ndarray, outputs: int) -> np.ndarray:
    """Inverse of ``pack_rows``: int8 (outputs, inputs), 2 where a code is none of the three."""
    codes = np.concatenate([packed >> shift & 3 for shift in (0, 2, 4, 6)])
    return codes[:outputs].astype(np.int8) - 1


def load(folder: Path) -> TernaryModel:
    """The model of a folder.

    Raises
    ------
    ModelError
        Files are missing, damaged or hostile, or the model is not of this family; whatever is unsupported is listed at once, by name.
    """
    config = read_config(folder / "config.json")
    shape = ModelShape.from_mapping(config, folder / "config.json")
    return _Importer(folder, config, shape).model()


class _Importer:
    """Takes tensors by name and collects problems instead of stopping at the first."""

    def __init__(self, folder: Path, config: Mapping[str, Any], shape: ModelShape) -> None:
        checkpoint = Checkpoint(folder)
        self.folder, self.shape, self.path = folder, shape, checkpoint.path
        self.tensors = checkpoint.tensors
        self.used: set[str] = set()
        self.problems: list[str] = []
        quantisation = config.get("quantization_config") or {}
        self.reciprocal = quantisation.get("linear_class", "bitlinear") != "autobitlinear"
        self.declared = bool(quantisation) or is_bitnet(config) or "weight_bits" in config

    def model(self) -> TernaryModel:
        shape = self.shape
        embedding = self.table("model.embed_tokens.weight")
        head = self.tied_head(embedding) if shape.tied else self.table("lm_head.weight")
        matrices: dict[str, Matrix] = {}
        gains: dict[str, np.ndarray] = {}
        for layer in range(shape.layers):
            for linear in shape.linears():
                matrices[f"layers.{layer}.{linear.name}"] = self.matrix(f"model.layers.{layer}.{PLACES[linear.name]}", linear)
            for name, size in shape.norms().items():
                gains[f"layers.{layer}.{name}"] = self.floats([f"model.layers.{layer}.{n}.weight" for n in NORM_NAMES[name]], (size,))
        gains["norm"] = self.floats(["model.norm.weight"], (shape.hidden,))
        unknown = [name for name in self.tensors if name not in self.used and not name.endswith("rotary_emb.inv_freq")]
        self.problems += [f"unknown tensor {name}" for name in unknown]
        if self.problems:
            raise ModelError(f"{self.path}: unsupported checkpoint: {'; '.join(self.problems)}")
        return TernaryModel(shape, matrices, gains, embedding, head, self.folder)

    def take(self, names: list[str], shapes: list[tuple[int, ...]]) -> Tensor | None:
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

    def read(self, tensor: Tensor) -> np.ndarray:
        """Its values; zeros where they are unusable, which is noted."""
        try:
            return tensor.read()
        except ModelError as error:
            self.problems.append(str(error).removeprefix(f"{tensor.path}: "))
            return np.zeros(tensor.shape, np.float32)

    def floats(self, names: list[str], *shapes: tuple[int, ...]) -> np.ndarray:
        tensor = self.take(names, list(shapes))
        if tensor is not None and tensor.dtype not in FLOATS:
            self.problems.append(f"{tensor.name} must be {', '.join(FLOATS)}, not {tensor.dtype}")
            tensor = None
        # a shape is believed only where a tensor of that size is in the file
        return np.zeros(1, np.float32) if tensor is None else self.read(tensor)

    def table(self, name: str) -> Table:
        rows, columns = self.shape.vocabulary, self.shape.hidden
        return Table(rows, columns, self.floats([name], (rows, columns)))

    def tied_head(self, embedding: Table) -> Table:
        """The embedding; a stored head must equal it."""
        if "lm_head.weight" in self.tensors:
            head = self.table("lm_head.weight")
            if not np.array_equal(head.known(), embedding.known()):
                self.problems.append("lm_head.weight must equal model.embed_tokens.weight where tie_word_embeddings is true")
        return embedding

    def matrix(self, name: str, linear: LinearShape) -> Matrix:
        n, k = linear.outputs, linear.inputs
        nothing = Matrix(n, k, None, (1.0,), (n,))
        weight, scale = f"{name}.weight", f"{name}.weight_scale"
        packed = weight in self.tensors and self.tensors[weight].dtype == "U8"
        tensor = self.take([weight], [(-(-n // 4), k) if packed else (n, k)])
        if packed:
            stored = self.floats([scale], (1,), ())
            values = unpack_rows(tensor.read(), n) if tensor else np.zeros((1, 1), np.int8)
            if (values == 2).any():
                at = np.argwhere(values == 2)[0].tolist()
                self.problems.append(f"{weight} must hold the codes 0, 1 and 2, not 3 at row {at[0]}, column {at[1]}")
            factor = float(stored.reshape(-1)[0])
            if scale in self.tensors and not factor > 0:
                self.problems.append(f"{scale} must be above zero, not {factor:g}")
                return nothing
            multiplier = 1 / factor if self.reciprocal and factor else factor
            if multiplier and not SMALLEST <= multiplier <= LARGEST:
                self.problems.append(f"{scale} must stand for a multiplier of {SMALLEST:.3g} to {LARGEST:.3g} (normal fp32), not {multiplier:.3g}")
                return nothing
            return Matrix(n, k, values, (multiplier,), (n,))
        if tensor is None:
            self.used.add(scale)
            return nothing
        if tensor.dtype not in FLOATS:
            self.problems.append(f"{weight} must be U8 (packed) or {', '.join(FLOATS)}, not {tensor.dtype}")
            return nothing
        return self.plain(weight, self.read(tensor))

    def plain(self, name: str, weights: np.ndarray) -> Matrix:
        """Float weights: {-g, 0, g} as they are, anything else by absmean if the configuration declares a BitNet."""
        magnitude = np.abs(weights)
        peak = magnitude.max()
        if peak > 0 and ((magnitude == 0) | (magnitude == peak)).all():
            n, k = weights.shape
            return Matrix(n, k, np.sign(weights).astype(np.int8), (float(peak),), (n,))
        if not self.declared:
            self.problems.append(f"{name} must be ternary, or config.json must declare a BitNet (quantization_config or architectures)")
        return ternarise(weights)
