# SPDX-License-Identifier: Apache-2.0
"""Shape of a decoder-only model of the BitNet/Llama family: all that sizes, cycles and placement need, without a single weight."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from lutra.hls_models.config import Config
from lutra.hls_models.errors import ModelError

__all__ = ["LinearShape", "ModelShape", "read_config"]

Activation = Literal["relu2", "silu"]


CONFIG_NAMES = {
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "ffn": "intermediate_size",
    "vocabulary": "vocab_size",
    "context": "max_position_embeddings",
    "activation": "hidden_act",
    "rope_theta": "rope_theta",
    "eps": "rms_norm_eps",
    "tied": "tie_word_embeddings",
}
"""Our field names and Hugging Face's."""


class LinearShape(Config):
    """One ternary matrix: ``outputs`` rows of ``inputs`` trits."""

    name: str
    outputs: int
    inputs: int


class ModelShape(Config):
    """Sizes and constants of a model; field names follow the paper, ``from_config`` reads Hugging Face's."""

    name: str = Field(description="name that reports carry")
    hidden: int = Field(gt=0, le=1 << 16, description="width of the residual stream")
    layers: int = Field(gt=0, le=256, description="transformer layers")
    heads: int = Field(gt=0, le=1024, description="query heads")
    kv_heads: int = Field(gt=0, le=1024, description="key and value heads, a divisor of heads")
    head_dim: int = Field(gt=0, le=1024, multiple_of=2, description="columns of one head")
    ffn: int = Field(gt=0, le=1 << 18, description="width of the gated feed-forward layer")
    vocabulary: int = Field(gt=0, lt=1 << 20, description="tokens")
    context: int = Field(gt=0, le=1 << 16, description="largest position + 1")
    activation: Activation = Field(description="gate: relu2 = max(x, 0)^2, silu = x * sigmoid(x)")
    rope_theta: float = Field(default=10000.0, gt=0, allow_inf_nan=False, description="base of the rotary embedding")
    eps: float = Field(default=1e-5, gt=0, lt=1, description="epsilon of the root mean square")
    sub_norms: bool = Field(default=True, description="norms before the o and down projections (BitNet b1.58 2B4T and 1bitLLM)")
    tied: bool = Field(default=True, description="the head uses the embedding's table")

    @model_validator(mode="after")
    def _consistent(self) -> ModelShape:
        if self.heads % self.kv_heads:
            below = max(k for k in range(1, self.kv_heads) if self.heads % k == 0)
            raise ValueError(f"kv_heads must divide heads = {self.heads}, not {self.kv_heads}; nearest: {below}")
        return self

    @property
    def group(self) -> int:
        """Query heads that share one key/value head."""
        return self.heads // self.kv_heads

    @property
    def query_columns(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_columns(self) -> int:
        """Columns of the keys (the values have as many)."""
        return self.kv_heads * self.head_dim

    def linears(self) -> tuple[LinearShape, ...]:
        """The ternary matrices of one layer, in order of use."""
        q, kv = self.query_columns, self.kv_columns
        sizes = {
            "q_proj": (q, self.hidden),
            "k_proj": (kv, self.hidden),
            "v_proj": (kv, self.hidden),
            "o_proj": (self.hidden, q),
            "gate_proj": (self.ffn, self.hidden),
            "up_proj": (self.ffn, self.hidden),
            "down_proj": (self.hidden, self.ffn),
        }
        return tuple(LinearShape(name=name, outputs=n, inputs=k) for name, (n, k) in sizes.items())

    def norms(self) -> dict[str, int]:
        """Length of the gains of one layer's norms, in order of use."""
        sub = self.sub_norms
        sizes = {"input_norm": self.hidden, "attention_norm": self.query_columns if sub else 0, "post_norm": self.hidden, "ffn_norm": self.ffn if sub else 0}
        return {name: size for name, size in sizes.items() if size}

    @property
    def most_lanes(self) -> int:
        """The most vector lanes that a core for the model can have."""
        return max((n for n in (2, 4, 8, 16) if math.gcd(self.hidden, self.head_dim, self.ffn) % n == 0), default=2)

    def lane_fault(self, lanes: int) -> str | None:
        """Why ``lanes`` vector lanes cannot take the model, in a phrase; None where they can."""
        sizes = {"hidden": self.hidden, "head_dim": self.head_dim, "ffn": self.ffn}
        for name, columns in sizes.items():
            if columns % lanes:
                return f"vector_lanes must divide the model's {name} = {columns}, not {lanes}; nearest: {self.most_lanes}"
        return None

    @property
    def ternary_weights(self) -> int:
        return self.layers * sum(m.outputs * m.inputs for m in self.linears())

    @property
    def parameters(self) -> int:
        """Every trained number: ternary weights, gains, embedding and, untied, head."""
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return self.ternary_weights + self.layers * sum(self.norms().values()) + self.hidden + tables

    @classmethod
    def from_yaml(cls, path: Path) -> ModelShape:
        """A shape file of lutra's own (field names of this class)."""
        return _validated(cls, yaml.safe_load(path.read_text(encoding="utf-8")), path.name)

    @classmethod
    def from_values(cls, values: Mapping[str, Any], where: str, names: Mapping[str, str]) -> ModelShape:
        """Shape of field values; ``names``: what the fields are called in ``where``, for messages. ModelError lists all that is wrong."""
        return _validated(cls, values, where, names)

    @classmethod
    def from_config(cls, path: Path) -> ModelShape:
        """Shape of a Hugging Face ``config.json``.

        Raises
        ------
        ModelError
            The file is missing or no JSON object, or the shape is not of this family; everything unsupported is listed at once.
        """
        return cls.from_mapping(read_config(path), path)

    @classmethod
    def from_mapping(cls, config: Mapping[str, Any], path: Path) -> ModelShape:
        """Shape of an already parsed ``config.json``; ``path`` names it in errors and the model in reports."""
        problems = unsupported(config)
        if problems:
            raise ModelError(f"{path}: unsupported model: {'; '.join(problems)}")
        heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
        head_dim = config.get("head_dim")
        if head_dim is None and heads is not None and hidden is not None:
            head_dim = 2  # where it follows from values that are none, those alone are told
            if isinstance(heads, int) and isinstance(hidden, int) and heads > 0:
                if hidden % heads:
                    raise ModelError(f"{path}: head_dim must be given where num_attention_heads = {heads} does not divide hidden_size = {hidden}")
                head_dim = hidden // heads or head_dim
        rope = config.get("rope_parameters") or {}
        absent = {"head_dim": head_dim, "num_key_value_heads": heads, "tie_word_embeddings": False}
        given = {**config, **{name: value for name, value in absent.items() if config.get(name) is None}}
        missing = [theirs for ours, theirs in CONFIG_NAMES.items() if cls.model_fields[ours].is_required() and given.get(theirs) is None]
        if missing:
            raise ModelError(f"{path}: missing {', '.join(missing)}")
        values = {ours: given[theirs] for ours, theirs in CONFIG_NAMES.items() if given.get(theirs) is not None}
        values |= {"name": path.resolve().parent.name or "model", "sub_norms": is_bitnet(config)}
        if "rope_theta" in rope:
            values["rope_theta"] = rope["rope_theta"]
        return _validated(cls, values, str(path), CONFIG_NAMES)


def read_config(path: Path) -> dict[str, Any]:
    """A ``config.json`` as a dictionary; ModelError where it is missing or something else."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file; a model folder needs config.json and model.safetensors") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ModelError(f"{path}: not a JSON text file ({error})") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path}: must hold a JSON object, not {type(config).__name__}")
    return config


def is_bitnet(config: Mapping[str, Any]) -> bool:
    """True for the architectures with norms before the o and down projections (microsoft's and 1bitLLM's spelling)."""
    architectures = config.get("architectures")
    return isinstance(architectures, list) and any(isinstance(a, str) and a.lower() == "bitnetforcausallm" for a in architectures)


def unsupported(config: Mapping[str, Any]) -> list[str]:
    """Everything in a ``config.json`` that this family does not have, one phrase each (field, rule, value)."""
    problems = []
    architectures = config.get("architectures")
    if not is_bitnet(config) and not (isinstance(architectures, list) and "LlamaForCausalLM" in architectures):
        problems.append(f"architectures must be ['BitNetForCausalLM'] or ['LlamaForCausalLM'], not {architectures!r} (model_type {config.get('model_type')!r})")
    if config.get("hidden_act") not in ("relu2", "silu", None):
        problems.append(f"hidden_act must be relu2 or silu, not {config['hidden_act']!r}")
    problems += [f"{field} must be false, not {config[field]!r}" for field in ("attention_bias", "mlp_bias") if config.get(field)]
    rope = config.get("rope_parameters")
    if rope is not None and not isinstance(rope, Mapping):
        problems.append(f"rope_parameters must be an object, not {rope!r}")
        rope = {}
    for field, scaling in (("rope_scaling", config.get("rope_scaling")), ("rope_parameters", rope)):
        if scaling:
            kind = scaling.get("rope_type", scaling.get("type", "default")) if isinstance(scaling, Mapping) else scaling
            if kind != "default":
                problems.append(f"{field}.rope_type must be default, not {kind!r}")
    if config.get("partial_rotary_factor", 1.0) != 1.0:
        problems.append(f"partial_rotary_factor must be 1.0, not {config['partial_rotary_factor']!r}")
    if config.get("sliding_window"):
        problems.append(f"sliding_window must be null, not {config['sliding_window']!r}")
    if config.get("pretraining_model_parallel", 1) != 1:
        problems.append(f"pretraining_model_parallel must be 1 (one scale per matrix), not {config['pretraining_model_parallel']!r}")
    quantisation = config.get("quantization_config")
    if quantisation:
        if not isinstance(quantisation, Mapping):
            return [*problems, f"quantization_config must be an object, not {quantisation!r}"]
        rules = {"quant_method": ("bitnet",), "linear_class": ("bitlinear", "autobitlinear", None), "quantization_mode": ("offline", "online", None)}
        for field, legal in rules.items():
            value = quantisation.get(field)
            if value not in legal:
                problems.append(f"quantization_config.{field} must be {' or '.join(str(x) for x in legal if x)}, not {value!r}")
        if quantisation.get("use_rms_norm"):
            problems.append(f"quantization_config.use_rms_norm must be false (no norm inside the linear layers), not {quantisation['use_rms_norm']!r}")
    return problems


def _validated(cls: type[ModelShape], values: Any, where: str, names: Mapping[str, str] | None = None) -> ModelShape:
    try:
        return cls.model_validate(values, strict=True)
    except ValidationError as error:
        phrases = []
        for item in error.errors():
            place = ".".join((names or {}).get(str(part), str(part)) for part in item["loc"])
            phrases.append(f"{place}: {item['msg']}, not {repr(item['input'])[:80]}" if place else item["msg"].removeprefix("Value error, "))
        raise ModelError(f"{where}: {'; '.join(phrases)}") from None
