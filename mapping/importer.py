# SPDX-License-Identifier: Apache-2.0
"""Hugging Face style folders of the BitNet/Llama family to a ``TernaryModel``.

``weight_scale`` means two things, told apart by ``quantization_config.linear_class`` (transformers, integrations/bitnet.py): "autobitlinear" stores
the multiplier mean|W|, "bitlinear" (the default) its reciprocal.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lutra.hls_models.shape import LinearShape, ModelShape, is_bitnet, read_config
from lutra.mapping.checks import Checks
from lutra.mapping.model import Matrix, Table, TernaryModel
from lutra.mapping.safetensors_file import Checkpoint
from lutra.mapping.tensor import FLOATS, Tensor, Update

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

UNUSED = re.compile(r".*rotary_emb\.inv_freq")
"""Buffers that old checkpoints carry."""


def pack_rows(values: np.ndarray) -> np.ndarray:
    """Trits int8 (outputs, inputs) to transformers' layout uint8 (ceil(outputs/4), inputs): byte r holds rows r, r+R, r+2R, r+3R, lowest bits first."""
    rows = -(-len(values) // 4)
    codes = np.zeros((4 * rows, values.shape[1]), np.uint8)
    codes[: len(values)] = values + 1
    a, b, c, d = codes.reshape(4, rows, -1)
    return a | b << 2 | c << 4 | d << 6


def unpack_rows(packed: np.ndarray, outputs: int) -> np.ndarray:
    """Inverse of ``pack_rows``: int8 (outputs, inputs), 2 where a code is none of the three."""
    codes = np.concatenate([packed >> shift & 3 for shift in (0, 2, 4, 6)]).view(np.int8)[:outputs]
    codes -= 1
    return codes


def load(folder: Path, update: Update | None = None) -> TernaryModel:
    """The model of a folder: every value looked at, none kept but the gains; ``update`` is called with the bytes looked at so far, and all.

    Raises
    ------
    ModelError
        Files are missing, damaged or hostile, or the model is not of this family; whatever is unsupported is listed at once, by name.
    """
    config = read_config(folder / "config.json")
    shape = ModelShape.from_mapping(config, folder / "config.json")
    return _Importer(folder, config, shape, update).model()


class _Importer(Checks):
    def __init__(self, folder: Path, config: Mapping[str, Any], shape: ModelShape, update: Update | None) -> None:
        checkpoint = Checkpoint(folder)
        super().__init__(checkpoint.path, checkpoint.tensors, update, declaration="config.json must declare a BitNet (quantization_config or architectures)")
        self.folder, self.shape = folder, shape
        quantisation = config.get("quantization_config") or {}
        self.reciprocal = quantisation.get("linear_class", "bitlinear") != "autobitlinear"
        self.online = quantisation.get("quantization_mode") == "online"
        self.declared = bool(quantisation) or is_bitnet(config) or "weight_bits" in config

    def model(self) -> TernaryModel:
        shape = self.shape
        embedding = self.table("model.embed_tokens.weight", shape.vocabulary, shape.hidden)
        head = self.tied_head(embedding) if shape.tied else self.table("lm_head.weight", shape.vocabulary, shape.hidden)
        matrices: dict[str, Matrix] = {}
        gains: dict[str, np.ndarray] = {}
        for layer in self.layers("model.layers", shape.layers, "num_hidden_layers in config.json"):
            for linear in shape.linears():
                matrices[f"layers.{layer}.{linear.name}"] = self.matrix(f"model.layers.{layer}.{PLACES[linear.name]}", linear)
            for name, size in shape.norms().items():
                gains[f"layers.{layer}.{name}"] = self.floats([f"model.layers.{layer}.{n}.weight" for n in NORM_NAMES[name]], (size,))
        gains["norm"] = self.floats(["model.norm.weight"], (shape.hidden,))
        self.finish(UNUSED)
        return TernaryModel(shape, matrices, gains, embedding, head, self.folder)

    def tied_head(self, embedding: Table) -> Table:
        """The embedding; a stored head must equal it."""
        if "lm_head.weight" in self.tensors:
            head = self.table("lm_head.weight", embedding.rows, embedding.columns)
            both = head.values is not None and embedding.values is not None
            if both and not all(np.array_equal(a, b) for (_, a), (_, b) in zip(head.parts(), embedding.parts(), strict=True)):
                self.problems.append("lm_head.weight must equal model.embed_tokens.weight where tie_word_embeddings is true")
        return embedding

    def matrix(self, name: str, linear: LinearShape) -> Matrix:
        n, k = linear.outputs, linear.inputs
        weight, scale = f"{name}.weight", f"{name}.weight_scale"
        packed = weight in self.tensors and self.tensors[weight].dtype == "U8"
        tensor = self.take([weight], [(-(-n // 4), k) if packed else (n, k)])
        if packed:
            return Matrix(n, k, self.packed(tensor, n), (self.multiplier(scale),), (n,))
        if tensor is None:
            self.used.add(scale)
        elif tensor.dtype not in FLOATS:
            self.problems.append(f"{weight} must be U8 (packed) or {', '.join(FLOATS)}, not {tensor.dtype}")
        else:
            return self.floats_to_trits(tensor, self.declared)
        return Matrix(n, k, None, (1.0,), (n,))

    def packed(self, tensor: Tensor | None, outputs: int) -> Callable[[], np.ndarray] | None:
        """What unpacks a matrix, whose codes are looked at here."""
        if tensor is None:
            return None
        if self.online:
            self.problems.append(f"{tensor.name} must be {', '.join(FLOATS)} where quantization_config.quantization_mode is online, not U8")
        values = unpack_rows(tensor.raw().reshape(tensor.shape), outputs)
        self.looked_at(tensor)
        if (values == 2).any():
            at = np.argwhere(values == 2)[0].tolist()
            self.problems.append(f"{tensor.name} must hold the codes 0, 1 and 2, not 3 at row {at[0]}, column {at[1]}")
        return lambda: unpack_rows(tensor.raw().reshape(tensor.shape), outputs)

    def multiplier(self, scale: str) -> float:
        """What the stored scale of a packed matrix stands for."""
        before = len(self.problems)
        factor = float(self.floats([scale], (1,), ()).reshape(-1)[0])
        if len(self.problems) > before:
            return 1.0
        if not factor > 0:
            self.problems.append(f"{scale} must be above zero, not {factor:g}")
            return 1.0
        multiplier = 1 / factor if self.reciprocal else factor
        if not SMALLEST <= multiplier <= LARGEST:
            self.problems.append(f"{scale} must stand for a multiplier of {SMALLEST:.3g} to {LARGEST:.3g} (normal fp32), not {multiplier:.3g}")
            return 1.0
        return multiplier
