# SPDX-License-Identifier: Apache-2.0
"""Hugging Face style folders of the GPT-2/GPT-3 family to a ``GptModel``; and back, for tests and for models trained here.

transformers' Conv1D stores (inputs, outputs): y = x @ W + b, so matrices are transposed; ``c_attn`` holds queries, keys and values side by side. Files
with and without the prefix ``transformer.`` exist; mask buffers (``attn.bias``, ``attn.masked_bias``) carry nothing (models.md of transformers, GPT-2).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from lutra.hls_models.errors import ModelError
from lutra.hls_models.shape import read_config
from lutra.mapping.pim.model import GptModel, Layer, Norm
from lutra.mapping.pim.shape import ACTIVATIONS, CONFIG_NAMES, GptShape, TransformerShape
from lutra.mapping.safetensors_file import Checkpoint, write
from lutra.mapping.tensor import FLOATS

__all__ = ["Importer", "load", "save"]

PREFIX = "transformer."
BUFFER = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")


def load(folder: Path) -> GptModel:
    """The model of a folder with ``config.json`` and safetensors of float32, bf16 or f16.

    Raises
    ------
    ModelError
        Files are missing, damaged or hostile, or the model is not of this family; missing, unknown and misshapen tensors are listed at once, by name.
    """
    shape = GptShape.from_mapping(read_config(folder / "config.json"), folder / "config.json")
    return _GptImporter(folder, shape).model()


class Importer:
    """Takes a checkpoint's tensors by name and collects problems instead of stopping at the first.

    Parameters
    ----------
    folder
        Where the safetensors are.
    shape
        Sizes of the model.
    prefix
        What names may begin with, all alike.
    """

    def __init__(self, folder: Path, shape: TransformerShape, prefix: str) -> None:
        checkpoint = Checkpoint(folder)
        self.folder, self.hidden, self.path = folder, shape.hidden, checkpoint.path
        self.tensors = {name.removeprefix(prefix): tensor for name, tensor in checkpoint.tensors.items()}
        self.problems: list[str] = []
        if len(self.tensors) < len(checkpoint.tensors):
            both = [name for name in checkpoint.tensors if prefix + name in checkpoint.tensors]
            self.problems.append(f"tensors must stand there once, not with and without {prefix!r}: {', '.join(both)}")
        self.used: set[str] = set()

    def norm(self, prefix: str) -> Norm:
        """Gain and bias."""
        return Norm(self.take(f"{prefix}weight", (self.hidden,)), self.take(f"{prefix}bias", (self.hidden,)))

    def take(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """float32 values; a stand-in of the right number of dimensions where they are unusable, which is noted."""
        nothing = np.zeros((1,) * len(shape), np.float32)
        tensor = self.tensors.get(name)
        if tensor is None:
            self.problems.append(f"missing tensor {name}")
            return nothing
        self.used.add(name)
        if tensor.shape != shape:
            self.problems.append(f"{name} must have shape {list(shape)}, not {list(tensor.shape)}")
            return nothing
        if tensor.dtype not in FLOATS:
            self.problems.append(f"{name} must be {', '.join(FLOATS)}, not {tensor.dtype}")
            return nothing
        try:
            return tensor.read()
        except ModelError as error:
            self.problems.append(str(error).removeprefix(f"{tensor.path}: "))
            return nothing

    def finish(self, unused: re.Pattern[str]) -> None:
        """ModelError with all problems; tensors that nobody took must match ``unused``."""
        self.problems += [f"unknown tensor {name}" for name in self.tensors if name not in self.used and not unused.fullmatch(name)]
        if self.problems:
            raise ModelError(f"{self.path}: unsupported checkpoint: {'; '.join(self.problems)}")


class _GptImporter(Importer):
    def __init__(self, folder: Path, shape: GptShape) -> None:
        super().__init__(folder, shape, PREFIX)
        self.shape = shape

    def model(self) -> GptModel:
        shape = self.shape
        d = shape.hidden
        embedding = self.take("wte.weight", (shape.vocabulary, d))
        positions = self.take("wpe.weight", (shape.context, d))
        layers = tuple(self.layer(f"h.{i}.") for i in range(shape.layers))
        norm = self.norm("ln_f.")
        head = embedding
        if not shape.tied or "lm_head.weight" in self.tensors:
            head = self.take("lm_head.weight", (shape.vocabulary, d))
            if shape.tied:
                if head.shape == embedding.shape and not np.array_equal(head, embedding):
                    self.problems.append("lm_head.weight must equal wte.weight where tie_word_embeddings is true")
                head = embedding
        self.finish(BUFFER)
        return GptModel(shape, embedding, positions, layers, norm, head, self.folder)

    def layer(self, prefix: str) -> Layer:
        d, q, f = self.shape.hidden, self.shape.query_columns, self.shape.ffn
        qkv, qkv_bias = self.linear(f"{prefix}attn.c_attn.", d, 3 * q)
        parts = [(qkv[i * q : (i + 1) * q], qkv_bias[i * q : (i + 1) * q]) for i in range(3)]
        return Layer(
            self.norm(f"{prefix}ln_1."),
            *parts[0],
            *parts[1],
            *parts[2],
            *self.linear(f"{prefix}attn.c_proj.", q, d),
            self.norm(f"{prefix}ln_2."),
            *self.linear(f"{prefix}mlp.c_fc.", d, f),
            *self.linear(f"{prefix}mlp.c_proj.", f, d),
        )

    def linear(self, prefix: str, inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
        """(outputs, inputs) and (outputs,) of a Conv1D."""
        return self.take(f"{prefix}weight", (inputs, outputs)).T, self.take(f"{prefix}bias", (outputs,))


def save(model: GptModel, folder: Path, *, dtype: type[np.float32] | type[np.float16] = np.float32, prefix: str = PREFIX) -> None:
    """Write ``config.json`` and ``model.safetensors`` as transformers does for GPT-2 (``prefix`` "" : as the files of the hub)."""
    shape = model.shape
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    values = {theirs: getattr(shape, ours) for ours, theirs in CONFIG_NAMES.items()}
    values["activation_function"] = names[shape.activation]
    if shape.head_dim * shape.heads == shape.hidden:
        del values["head_dim"]
    folder.mkdir(parents=True, exist_ok=True)
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", **values}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {f"{prefix}wte.weight": model.embedding, f"{prefix}wpe.weight": model.positions}
    for i, layer in enumerate(model.layers):
        joined = (np.concatenate([layer.query, layer.key, layer.value]), np.concatenate([layer.query_bias, layer.key_bias, layer.value_bias]))
        linears = {
            "attn.c_attn": joined,
            "attn.c_proj": (layer.output, layer.output_bias),
            "mlp.c_fc": (layer.up, layer.up_bias),
            "mlp.c_proj": (layer.down, layer.down_bias),
        }
        for name, norm in (("ln_1", layer.attention_norm), ("ln_2", layer.ffn_norm)):
            tensors |= {f"{prefix}h.{i}.{name}.weight": norm.gain, f"{prefix}h.{i}.{name}.bias": norm.bias}
        for name, (weight, bias) in linears.items():
            tensors |= {f"{prefix}h.{i}.{name}.weight": weight.T, f"{prefix}h.{i}.{name}.bias": bias}
    tensors |= {f"{prefix}ln_f.weight": model.norm.gain, f"{prefix}ln_f.bias": model.norm.bias}
    if not shape.tied:
        tensors["lm_head.weight"] = model.head
    write(folder / "model.safetensors", {name: np.ascontiguousarray(values, dtype) for name, values in tensors.items()}, {"format": "pt"})
