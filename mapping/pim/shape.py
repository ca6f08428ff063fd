# SPDX-License-Identifier: Apache-2.0
"""Shape of a decoder-only model of the GPT-2/GPT-3 family: all that placement and programs need, without a single weight."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import Field, ValidationError

from lutra.hls_models.config import Config
from lutra.hls_models.errors import ModelError
from lutra.hls_models.shape import read_config

__all__ = ["ACTIVATIONS", "Activation", "GptShape", "TransformerShape", "is_gpt", "validated"]

Activation = Literal["gelu_tanh", "gelu_erf", "relu"]

ACTIVATIONS: dict[str, Activation] = {
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu": "gelu_erf",
    "relu": "relu",
}
"""transformers' names of activation functions, and ours."""

CONFIG_NAMES = {
    "hidden": "n_embd",
    "layers": "n_layer",
    "heads": "n_head",
    "head_dim": "head_dim",
    "ffn": "n_inner",
    "vocabulary": "vocab_size",
    "context": "n_positions",
    "activation": "activation_function",
    "eps": "layer_norm_epsilon",
    "tied": "tie_word_embeddings",
}
"""Our field names and those of a GPT-2 ``config.json``."""


class TransformerShape(Config):
    """Sizes and constants that all families here have: learned positions, layer norms with biases, two matrices in the feed-forward layer."""

    name: str = Field(description="name that reports carry")
    hidden: int = Field(gt=0, le=1 << 16, description="width of the residual stream")
    layers: int = Field(gt=0, le=256, description="transformer layers")
    heads: int = Field(gt=0, le=1024, description="attention heads")
    head_dim: int = Field(gt=0, le=1024, description="width of one head; heads x head_dim need not be hidden")
    ffn: int = Field(gt=0, le=1 << 18, description="width of the feed-forward layer")
    vocabulary: int = Field(gt=0, lt=1 << 20, description="tokens")
    context: int = Field(gt=0, le=1 << 16, description="positions that have an embedding")
    activation: Activation = Field("gelu_tanh", description="gelu_tanh (GPT-2's gelu_new), gelu_erf (exact) or relu")
    eps: float = Field(1e-5, gt=0, lt=1, description="epsilon of the layer norms")

    @property
    def query_columns(self) -> int:
        """Columns of the queries; keys and values have as many."""
        return self.heads * self.head_dim

    @property
    def linear_weights(self) -> int:
        """Weights of all layers' matrices, without embedding and head."""
        return self.layers * self.hidden * (4 * self.query_columns + 2 * self.ffn)


S = TypeVar("S", bound=TransformerShape)


class GptShape(TransformerShape):
    """A decoder-only model with norms before attention and feed-forward layer; ``from_config`` reads Hugging Face's names."""

    family: Literal["gpt"] = "gpt"
    tied: bool = Field(True, description="the head uses the embedding's table")

    @property
    def parameters(self) -> int:
        """Every trained number."""
        biases = 3 * self.query_columns + self.hidden + self.ffn + self.hidden
        tables = self.hidden * (self.vocabulary * (1 if self.tied else 2) + self.context)
        return self.linear_weights + self.layers * (biases + 4 * self.hidden) + tables + 2 * self.hidden

    @classmethod
    def from_yaml(cls, path: Path) -> GptShape:
        """A shape file of lutra's own (field names of this class)."""
        return validated(cls, yaml.safe_load(path.read_text(encoding="utf-8")), path.name, CONFIG_NAMES)

    @classmethod
    def from_config(cls, path: Path) -> GptShape:
        """Shape of a GPT-2 ``config.json``.

        Raises
        ------
        ModelError
            The file is missing or no JSON object, or the shape is not of this family; everything unsupported is listed at once.
        """
        return cls.from_mapping(read_config(path), path)

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any], path: Path) -> GptShape:
        """Shape of an already parsed ``config.json``; ``path`` names it in errors and the model in reports."""
        problems = unsupported(config)
        if problems:
            raise ModelError(f"{path}: unsupported model: {'; '.join(problems)}")
        hidden, heads = config.get("n_embd"), config.get("n_head")
        given = dict(config)
        if given.get("head_dim") is None and isinstance(hidden, int) and isinstance(heads, int) and heads > 0:
            if hidden % heads:
                raise ModelError(f"{path}: head_dim must be given where n_head = {heads} does not divide n_embd = {hidden}")
            given["head_dim"] = hidden // heads
        if given.get("n_inner") is None and isinstance(hidden, int):
            given["n_inner"] = 4 * hidden
        given["activation_function"] = ACTIVATIONS[config.get("activation_function") or "gelu_new"]
        missing = [theirs for ours, theirs in CONFIG_NAMES.items() if cls.model_fields[ours].is_required() and given.get(theirs) is None]
        if missing:
            raise ModelError(f"{path}: missing {', '.join(missing)}")
        values = {ours: given[theirs] for ours, theirs in CONFIG_NAMES.items() if given.get(theirs) is not None}
        return validated(cls, values | {"name": path.resolve().parent.name or "model"}, str(path), CONFIG_NAMES)


def is_gpt(config: Mapping[str, Any]) -> bool:
    """True for a ``config.json`` of the GPT-2/GPT-3 family."""
    architectures = config.get("architectures")
    named = isinstance(architectures, list) and any(isinstance(a, str) and a.startswith("GPT2") for a in architectures)
    return named or config.get("model_type") in ("gpt2", "gpt3")


def unsupported(config: Mapping[str, Any]) -> list[str]:
    """Everything in a ``config.json`` that this family does not have here, one phrase each (field, rule, value)."""
    problems = []
    if not is_gpt(config):
        problems.append(f"model_type must be gpt2, not {config.get('model_type')!r} (architectures {config.get('architectures')!r})")
    activation = config.get("activation_function")
    if activation is not None and activation not in ACTIVATIONS:
        problems.append(f"activation_function must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    wanted = {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False}
    problems += [
        f"{field} must be {str(value).lower()}, not {config[field]!r}"
        for field, value in wanted.items()
        if config.get(field) is not None and config[field] != value
    ]
    if config.get("quantization_config"):
        problems.append("quantization_config must be absent: weights are bf16 here")
    return problems


def validated(cls: type[S], values: Any, where: str, names: Mapping[str, str]) -> S:
    """A shape; ModelError with ``names``, the file's words for our fields, where a value is impossible."""
    try:
        return cls.model_validate(values, strict=True)
    except ValidationError as error:
        phrases = [f"{names.get(str(item['loc'][0]), item['loc'][0])}: {item['msg']}, not {item['input']!r}" for item in error.errors()]
        raise ModelError(f"{where}: {'; '.join(phrases)}") from None
