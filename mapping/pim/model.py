# SPDX-License-Identifier: Apache-2.0
"""A GPT checkpoint in memory, free of file formats, and its form for the PIM target: bf16 matrices with what can be folded folded."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from lutra.hls_models import floats
from lutra.hls_models.floats import BF16
from lutra.mapping.pim.shape import GptShape

__all__ = ["Folded", "GptModel", "Layer", "Norm", "to_bf16"]

Array = np.ndarray


def to_bf16(values: Array) -> Array:
    """bf16 bits uint16 of real values, rounded once."""
    return floats.from_float64(BF16, np.asarray(values, np.float64)).astype(np.uint16)


@dataclass(frozen=True, eq=False)
class Norm:
    """Gain and bias of a layer norm, float32 (hidden,)."""

    gain: Array
    bias: Array


@dataclass(frozen=True, eq=False)
class Layer:
    """One decoder layer: float32 matrices (outputs, inputs) and biases (outputs,)."""

    attention_norm: Norm
    query: Array
    query_bias: Array
    key: Array
    key_bias: Array
    value: Array
    value_bias: Array
    output: Array
    output_bias: Array
    ffn_norm: Norm
    up: Array
    up_bias: Array
    down: Array
    down_bias: Array


@dataclass(frozen=True, eq=False)
class GptModel:
    """Everything of a checkpoint, float32.

    Parameters
    ----------
    shape
        Sizes; all arrays are of them.
    embedding, positions
        (vocabulary, hidden), (context, hidden).
    layers, norm
        Decoder layers, and the norm before the head.
    head
        (vocabulary, hidden); the same object as ``embedding`` where the shape is tied.
    folder
        Where it came from, and where its tokenizer is; None for a model made in memory.
    """

    shape: GptShape
    embedding: Array
    positions: Array
    layers: tuple[Layer, ...]
    norm: Norm
    head: Array
    folder: Path | None = field(default=None)

    @classmethod
    def random(cls, shape: GptShape, seed: int, spread: float = 1.0) -> GptModel:
        """Untrained weights with biases and gains that matter; for tests and benches. ``spread``: factor on the matrices' scale."""
        rng = np.random.default_rng(seed)
        d, q, f = shape.hidden, shape.query_columns, shape.ffn

        def matrix(n: int, k: int) -> Array:
            return (rng.standard_normal((n, k)) * (spread / k**0.5)).astype(np.float32)

        def vector(n: int) -> Array:
            return (rng.standard_normal(n) * 0.2).astype(np.float32)

        def norm() -> Norm:
            return Norm(rng.uniform(0.5, 1.5, d).astype(np.float32), vector(d))

        layers = tuple(
            Layer(
                norm(),
                *(matrix(q, d), vector(q)),
                *(matrix(q, d), vector(q)),
                *(matrix(q, d), vector(q)),
                *(matrix(d, q), vector(d)),
                norm(),
                *(matrix(f, d), vector(f)),
                *(matrix(d, f), vector(d)),
            )
            for _ in range(shape.layers)
        )
        tables = [rng.standard_normal((shape.vocabulary, d)).astype(np.float32) for _ in range(1 if shape.tied else 2)]
        positions = (rng.standard_normal((shape.context, d)) * 0.3).astype(np.float32)
        return cls(shape, tables[0], positions, layers, norm(), tables[-1])


@dataclass(frozen=True, eq=False)
class Folded:
    """What the banks hold, real values before rounding: gains and biases of the norms inside the matrices that follow them.

    A constant added to all keys does not change a softmax, so that the keys' bias vanishes; weights that sum to one carry the values' bias through, so
    that it is folded into the output's. The head keeps its norm: tied, its matrix is the embedding.

    Parameters
    ----------
    value, key, query, output, up, down
        Per layer, float64 (outputs, inputs).
    query_bias, output_bias, up_bias, down_bias
        Per layer, float64 (outputs,).
    """

    value: tuple[Array, ...]
    key: tuple[Array, ...]
    query: tuple[Array, ...]
    query_bias: tuple[Array, ...]
    output: tuple[Array, ...]
    output_bias: tuple[Array, ...]
    up: tuple[Array, ...]
    up_bias: tuple[Array, ...]
    down: tuple[Array, ...]
    down_bias: tuple[Array, ...]

    @classmethod
    def of(cls, model: GptModel) -> Folded:
        """Of a checkpoint."""
        columns: dict[str, list[Array]] = {name: [] for name in cls.__dataclass_fields__}
        for layer in model.layers:
            first, second = layer.attention_norm, layer.ffn_norm
            wide = {name: getattr(layer, name).astype(np.float64) for name in ("value", "key", "query", "output", "up", "down")}
            for name in ("value", "key", "query"):
                columns[name].append(wide[name] * first.gain)
            columns["query_bias"].append(layer.query_bias + wide["query"] @ first.bias)
            value_bias = layer.value_bias + wide["value"] @ first.bias
            columns["output"].append(wide["output"])
            columns["output_bias"].append(layer.output_bias + wide["output"] @ value_bias)
            columns["up"].append(wide["up"] * second.gain)
            columns["up_bias"].append(layer.up_bias + wide["up"] @ second.bias)
            columns["down"].append(wide["down"])
            columns["down_bias"].append(layer.down_bias.astype(np.float64))
        return cls(*(tuple(values) for values in columns.values()))
