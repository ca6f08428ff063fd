# SPDX-License-Identifier: Apache-2.0
"""Sentence encoders of the BERT family: shape, checkpoint, and what they mean.

Every token attends to every token of its sentence; norms stand behind attention and feed-forward layer (post-layer-norm); the embedding of a sentence is
the mean of its tokens' last hidden vectors, of length one (Sentence-BERT, arXiv 1908.10084). Only the first of BERT's segments is used, as in every
sentence encoder; its pooler is not.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from lutra.hls_models.errors import ModelError
from lutra.hls_models.shape import read_config
from lutra.mapping.pim.importer import Importer
from lutra.mapping.pim.model import Layer, Norm
from lutra.mapping.pim.reference import activation, norm
from lutra.mapping.pim.shape import ACTIVATIONS, TransformerShape, validated

__all__ = ["EncoderModel", "EncoderShape", "embed", "load"]

Array = np.ndarray

CONFIG_NAMES = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "vocabulary": "vocab_size",
    "context": "max_position_embeddings",
    "activation": "hidden_act",
    "eps": "layer_norm_eps",
    "types": "type_vocab_size",
}
"""Our field names and those of a BERT ``config.json``."""

PREFIX = "bert."
UNUSED = re.compile(r"embeddings\.position_ids|pooler\..*")


class EncoderShape(TransformerShape):
    """An encoder with norms behind attention and feed-forward layer."""

    family: Literal["bert"] = "bert"
    types: int = Field(2, gt=0, le=16, description="segments that have an embedding")

    @property
    def parameters(self) -> int:
        """Every trained number that a sentence's embedding needs (one segment, no pooler)."""
        biases = 3 * self.query_columns + 2 * self.hidden + self.ffn
        return self.linear_weights + self.layers * (biases + 4 * self.hidden) + self.hidden * (self.vocabulary + self.context + 1 + 2)

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any], path: Path) -> EncoderShape:
        """Shape of a parsed ``config.json``; ``path`` names it in errors and the model in reports.

        Raises
        ------
        ModelError
            The shape is not of this family; everything unsupported is listed at once.
        """
        given = {"hidden_act": "gelu", "layer_norm_eps": 1e-12, "type_vocab_size": 2, **config}
        wanted = {"model_type": "bert", "position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
        problems = [f"{name} must be {value}, not {given[name]!r}" for name, value in wanted.items() if name in given and given[name] != value]
        if "model_type" not in given:
            problems.append("model_type must be bert, not absent")
        if given["hidden_act"] not in ACTIVATIONS:
            problems.append(f"hidden_act must be one of {', '.join(ACTIVATIONS)}, not {given['hidden_act']!r}")
        problems += [f"{name} must be given" for name in CONFIG_NAMES.values() if given.get(name) is None]
        hidden, heads = given.get("hidden_size"), given.get("num_attention_heads")
        if isinstance(hidden, int) and isinstance(heads, int) and (heads < 1 or hidden % heads):
            problems.append(f"num_attention_heads must divide hidden_size = {hidden}, not {heads}")
        if problems:
            raise ModelError(f"{path}: unsupported model: {'; '.join(problems)}")
        values = {ours: given[theirs] for ours, theirs in CONFIG_NAMES.items()}
        values["activation"] = ACTIVATIONS[given["hidden_act"]]
        if isinstance(hidden, int) and isinstance(heads, int):
            values["head_dim"] = hidden // heads
        return validated(cls, values | {"name": path.resolve().parent.name or "model"}, str(path), CONFIG_NAMES)


@dataclass(frozen=True, eq=False)
class EncoderModel:
    """Everything of a checkpoint, float32.

    Parameters
    ----------
    shape
        Sizes; all arrays are of them.
    embedding, positions
        (vocabulary, hidden), (context, hidden); ``positions`` with the first segment's embedding added.
    norm
        Behind the embedding.
    layers
        ``attention_norm`` stands behind attention, ``ffn_norm`` behind the feed-forward layer.
    limit
        Tokens of a sentence, special ones included; longer ones are cut.
    folder
        Where its tokenizer is; None for a model made in memory.
    """

    shape: EncoderShape
    embedding: Array
    positions: Array
    norm: Norm
    layers: tuple[Layer, ...]
    limit: int
    folder: Path | None = field(default=None)

    @classmethod
    def random(cls, shape: EncoderShape, seed: int, limit: int | None = None) -> EncoderModel:
        """Untrained weights with biases and gains that matter; for tests."""
        rng = np.random.default_rng(seed)
        d, q, f = shape.hidden, shape.query_columns, shape.ffn

        def linear(n: int, k: int) -> tuple[Array, Array]:
            return (rng.standard_normal((n, k)) / k**0.5).astype(np.float32), vector(n)

        def vector(n: int) -> Array:
            return (rng.standard_normal(n) * 0.2).astype(np.float32)

        def gains() -> Norm:
            return Norm(rng.uniform(0.5, 1.5, d).astype(np.float32), vector(d))

        layers = tuple(
            Layer(gains(), *linear(q, d), *linear(q, d), *linear(q, d), *linear(d, q), gains(), *linear(f, d), *linear(d, f)) for _ in range(shape.layers)
        )
        embedding = rng.standard_normal((shape.vocabulary, d)).astype(np.float32)
        positions = (rng.standard_normal((shape.context, d)) * 0.3).astype(np.float32)
        return cls(shape, embedding, positions, gains(), layers, limit or shape.context)


def load(folder: Path) -> EncoderModel:
    """The encoder of a sentence-transformers folder: ``config.json``, safetensors, and where they exist ``1_Pooling`` (mean only) and the token limit.

    Raises
    ------
    ModelError
        Files are missing, damaged or hostile, or the model is not of this family; missing, unknown and misshapen tensors are listed at once, by name.
    """
    shape = EncoderShape.from_mapping(read_config(folder / "config.json"), folder / "config.json")
    pooling, sentence = folder / "1_Pooling" / "config.json", folder / "sentence_bert_config.json"
    if pooling.exists():
        modes = [name for name, value in read_config(pooling).items() if name.startswith("pooling_mode") and value is True]
        if modes != ["pooling_mode_mean_tokens"]:
            raise ModelError(f"{pooling}: pooling must be pooling_mode_mean_tokens alone, not {', '.join(modes) or 'none'}")
    limit = read_config(sentence).get("max_seq_length") if sentence.exists() else None
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ModelError(f"{sentence}: max_seq_length must be a number of tokens, not {limit!r}")
    return _EncoderImporter(folder, shape).model(min(limit or shape.context, shape.context))


class _EncoderImporter(Importer):
    def __init__(self, folder: Path, shape: EncoderShape) -> None:
        super().__init__(folder, shape, PREFIX)
        self.shape = shape

    def model(self, limit: int) -> EncoderModel:
        shape, d = self.shape, self.shape.hidden
        embedding = self.take("embeddings.word_embeddings.weight", (shape.vocabulary, d))
        positions = self.take("embeddings.position_embeddings.weight", (shape.context, d))
        segments = self.take("embeddings.token_type_embeddings.weight", (shape.types, d))
        behind = self.norm("embeddings.LayerNorm.")
        layers = tuple(self.layer(f"encoder.layer.{i}.") for i in range(shape.layers))
        self.finish(UNUSED)
        return EncoderModel(shape, embedding, positions + segments[0], behind, layers, limit, self.folder)

    def layer(self, prefix: str) -> Layer:
        d, q, f = self.shape.hidden, self.shape.query_columns, self.shape.ffn
        return Layer(
            self.norm(f"{prefix}attention.output.LayerNorm."),
            *self.linear(f"{prefix}attention.self.query.", d, q),
            *self.linear(f"{prefix}attention.self.key.", d, q),
            *self.linear(f"{prefix}attention.self.value.", d, q),
            *self.linear(f"{prefix}attention.output.dense.", q, d),
            self.norm(f"{prefix}output.LayerNorm."),
            *self.linear(f"{prefix}intermediate.dense.", d, f),
            *self.linear(f"{prefix}output.dense.", f, d),
        )

    def linear(self, prefix: str, inputs: int, outputs: int) -> tuple[Array, Array]:
        """(outputs, inputs) and (outputs,) of a Linear."""
        return self.take(f"{prefix}weight", (outputs, inputs)), self.take(f"{prefix}bias", (outputs,))


def embed(model: EncoderModel, ids: Array, dtype: type[np.float32] | type[np.float64] = np.float64) -> Array:
    """Embedding (hidden,) of a sentence's token ids (tokens,), worked out in ``dtype``: the yardstick."""
    shape, ids = model.shape, np.asarray(ids)
    checked(shape, ids, shape.context)
    tokens, d = len(ids), shape.heads * shape.head_dim
    x = norm(model.embedding[ids].astype(dtype) + model.positions[:tokens].astype(dtype), _norm(model.norm, dtype), shape.eps)
    for one in model.layers:
        values: dict[str, Any] = {name: _norm(value, dtype) if isinstance(value, Norm) else value.astype(dtype) for name, value in vars(one).items()}
        layer = Layer(**values)
        pairs = ((layer.query, layer.query_bias), (layer.key, layer.key_bias), (layer.value, layer.value_bias))
        q, k, v = ((x @ weight.T + bias).reshape(tokens, shape.heads, shape.head_dim) for weight, bias in pairs)
        scores = np.einsum("thd,shd->hts", q, k) / dtype(math.sqrt(shape.head_dim))
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        heads = np.einsum("hts,shd->thd", weights, v).reshape(tokens, d)
        x = norm(x + heads @ layer.output.T + layer.output_bias, layer.attention_norm, shape.eps)
        h = activation(x @ layer.up.T + layer.up_bias, shape.activation)
        x = norm(x + h @ layer.down.T + layer.down_bias, layer.ffn_norm, shape.eps)
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def checked(shape: EncoderShape, ids: Array, tokens: int) -> None:
    """ModelError where ``ids`` are no sentence of at most ``tokens`` tokens."""
    if ids.ndim != 1 or not 0 < len(ids) <= tokens:
        raise ModelError(f"{shape.name}: ids must be 1 to {tokens} tokens, not shape {ids.shape}")
    if ids.min() < 0 or ids.max() >= shape.vocabulary:
        raise ModelError(f"{shape.name}: ids must be 0 to {shape.vocabulary - 1}, not {ids.min()} to {ids.max()}")


def _norm(one: Norm, dtype: type[np.floating[Any]]) -> Norm:
    return Norm(one.gain.astype(dtype), one.bias.astype(dtype))
