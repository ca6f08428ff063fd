# SPDX-License-Identifier: Apache-2.0
"""What a GPT model means: a float64 forward, the yardstick of the programs' meaning and of accuracy figures."""

from __future__ import annotations

import math

import numpy as np

from lutra.hls_models.errors import ModelError
from lutra.mapping.pim.model import GptModel, Norm

__all__ = ["activation", "evaluate", "norm"]

Array = np.ndarray


def evaluate(model: GptModel, ids: Array) -> Array:
    """Logits, float64 (tokens, vocabulary), of token ids (tokens,) from position 0."""
    shape, ids = model.shape, np.asarray(ids)
    if ids.ndim != 1 or not 0 < len(ids) <= shape.context:
        raise ModelError(f"ids must be 1 to {shape.context} tokens (the positions), not shape {ids.shape}")
    if ids.min() < 0 or ids.max() >= shape.vocabulary:
        raise ModelError(f"ids must be 0 to {shape.vocabulary - 1}, not {ids.min()} to {ids.max()}")
    tokens = len(ids)
    x = model.embedding[ids].astype(np.float64) + model.positions[:tokens]
    for layer in model.layers:
        n = norm(x, layer.attention_norm, shape.eps)
        pairs = ((layer.query, layer.query_bias), (layer.key, layer.key_bias), (layer.value, layer.value_bias))
        q, k, v = ((n @ weight.T + bias).reshape(tokens, shape.heads, shape.head_dim) for weight, bias in pairs)
        scores = np.einsum("thd,shd->hts", q, k) / math.sqrt(shape.head_dim)
        scores = np.where(np.tri(tokens, dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        heads = np.einsum("hts,shd->thd", weights, v).reshape(tokens, -1)
        x = x + heads @ layer.output.T + layer.output_bias
        h = activation(norm(x, layer.ffn_norm, shape.eps) @ layer.up.T + layer.up_bias, shape.activation)
        x = x + h @ layer.down.T + layer.down_bias
    return norm(x, model.norm, shape.eps) @ model.head.astype(np.float64).T


def norm(x: Array, by: Norm, eps: float) -> Array:
    """Layer norm of (..., hidden)."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps) * by.gain + by.bias


def activation(x: Array, name: str) -> Array:
    """One of ``shape.Activation``, element by element."""
    if name == "relu":
        return np.maximum(x, 0)
    if name == "gelu_erf":
        return 0.5 * x * (1 + np.vectorize(math.erf, otypes=[x.dtype])(x / math.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
