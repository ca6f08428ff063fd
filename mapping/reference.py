# SPDX-License-Identifier: Apache-2.0
"""What a graph means: a float64 forward with BitNet's activation quantisation, the yardstick of the passes and of accuracy figures."""

from __future__ import annotations

import numpy as np

from lutra.hls_models.errors import ModelError
from lutra.mapping.graph import Attention, Embed, Gate, Graph, Head, Linear, Norm, Residual, Rope
from lutra.mapping.model import given

__all__ = ["evaluate"]

Array = np.ndarray


def evaluate(graph: Graph, ids: Array, values: dict[str, Array] | None = None) -> Array:
    """Logits, float64 (tokens, vocabulary), of token ids (tokens,) from position 0; ``values`` receives every node's value by name."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or not 0 < len(ids) <= graph.shape.context:
        raise ModelError(f"ids must be 1 to {graph.shape.context} tokens (the context), not shape {ids.shape}")
    if ids.min() < 0 or ids.max() >= graph.shape.vocabulary:
        raise ModelError(f"ids must be 0 to {graph.shape.vocabulary - 1}, not {ids.min()} to {ids.max()}")
    known: dict[str, Array] = {} if values is None else values
    result = np.zeros(0)
    for node in graph.nodes:
        x = [known[name] for name in node.inputs]
        match node:
            case Embed():
                result = node.table.dequantised()[ids]
            case Norm():
                result = x[0] / np.sqrt((x[0] ** 2).mean(-1, keepdims=True) + node.eps) * given(node.gains)
            case Linear():
                result = _quantised_product(x[0], node.matrix.known().astype(np.float64), node.matrix.row_scales())
            case Rope():
                result = _turn(node, x[0])
            case Attention():
                result = _attend(node, x)
            case Gate():
                gate, up = x if len(x) == 2 else (x[0][:, ::2], x[0][:, 1::2])
                result = (np.maximum(gate, 0) ** 2 if node.activation == "relu2" else gate * _sigmoid(gate)) * up
            case Residual():
                result = x[0] + x[1]
            case Head(table=table, quantised=True):
                result = _quantised_product(x[0], table.known().astype(np.float64), given(table.scales).astype(np.float64))
            case Head(table=table):
                result = x[0] @ table.dequantised().T
            case _:
                raise TypeError(f"{node.name}: no meaning for a {type(node).__name__}")
        known[node.name] = result
    return result


def _quantised_product(x: Array, weights: Array, scales: Array) -> Array:
    """BitLinear: int8 codes by 127/absmax per token, an exact integer product (below 2^53), both scales."""
    factor = 127 / np.maximum(np.abs(x).max(-1, keepdims=True), 1e-5)
    codes = np.clip(np.rint(x * factor), -128, 127)
    return (codes @ weights.T) / factor * scales


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1 + np.tanh(0.5 * x))


def _turn(node: Rope, x: Array) -> Array:
    tokens, columns, half = len(x), node.turned * node.head_dim, node.head_dim // 2
    angle = np.outer(np.arange(tokens), node.theta ** (-np.arange(half) / half))[:, None, :]
    heads = x[:, :columns].reshape(tokens, node.turned, *((half, 2) if node.interleaved else (2, half)))
    a, b = np.moveaxis(heads, -1 if node.interleaved else -2, 0)
    turned = np.stack((a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)), -1 if node.interleaved else -2)
    return np.concatenate((turned.reshape(tokens, columns), x[:, columns:]), -1)


def _attend(node: Attention, x: list[Array]) -> Array:
    tokens, (queries, keys, _) = len(x[0]), node.parts()
    q, k, v = x if len(x) == 3 else np.split(x[0], (queries, queries + keys), axis=1)
    q = q.reshape(tokens, node.kv_heads, -1, node.head_dim)
    k, v = (part.reshape(tokens, node.kv_heads, node.head_dim) for part in (k, v))
    scores = np.einsum("tgrd,sgd->grts", q, k) * (node.score_scale * np.log(node.base))
    scores = np.where(np.tri(tokens, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("grts,sgd->tgrd", weights, v).reshape(tokens, queries)
