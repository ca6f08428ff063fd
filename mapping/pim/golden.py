# SPDX-License-Identifier: Apache-2.0
"""Golden logits of whole windows of text at once: bit for bit those of the programs token by token, some hundred times as fast.

The banks' sums, their chunks, the companion chip's functions and the order of its sums are those of ``hls_models.pim``; only where values lie is left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from lutra.hls_models.errors import ModelError
from lutra.hls_models.pim import arithmetic, functions, mac
from lutra.hls_models.pim.arithmetic import Floats, add, mul, sub
from lutra.mapping.pim.model import Folded, GptModel, to_bf16
from lutra.mapping.pim.partition import Matrix, Partition
from lutra.mapping.pim.weights import spread, stacked

__all__ = ["Golden"]

Bits16 = NDArray[np.uint16]


class Golden:
    """A model as the PIM system computes it.

    Parameters
    ----------
    model
        The checkpoint.
    partition
        Where it lies: chunks and the order of sums follow from it.
    exact
        Functions (``exp2``, ``gelu``, ``reciprocal``, ``rsqrt``) that are rounded from float64 instead of approximated: what each costs.
    """

    def __init__(self, model: GptModel, partition: Partition, *, exact: frozenset[str] = frozenset()) -> None:
        self.model, self.p, self.shape, self.config = model, partition, model.shape, partition.config
        self.exact, self.family = exact, partition.config.companion.functions
        folded = Folded.of(model)
        layout, banks = partition.layout, self.config.banks
        self.rows = np.array(layout.rows())
        self.biased = layout.query_offset // self.config.channels * self.config.channels * banks
        self.layers = []
        for i, places in enumerate(partition.layers):
            joint, bias = stacked(partition, folded, i)
            matrices = (
                self._operands(places.joint, joint),
                self._operands(places.output, spread(folded.output[i], self.shape.heads, layout.words * banks)),
                self._operands(places.up, folded.up[i]),
                self._operands(places.down, folded.down[i]),
            )
            vectors = tuple(_values(x) for x in (bias, folded.output_bias[i], folded.up_bias[i], folded.down_bias[i]))
            self.layers.append((matrices, vectors))
        self.gain, self.bias = _values(model.norm.gain), _values(model.norm.bias)
        self.head = self._operands(partition.head, model.head)
        self.embedding, self.positions = _values(model.embedding), _values(model.positions)

    def logits(self, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        """(tokens, vocabulary) of token ids (tokens,) from position 0."""
        shape = self.shape
        if ids.ndim != 1 or not 0 < len(ids) <= min(shape.context, self.p.tokens):
            raise ModelError(f"ids must be 1 to {min(shape.context, self.p.tokens)} tokens (the positions), not shape {ids.shape}")
        if ids.min() < 0 or ids.max() >= shape.vocabulary:
            raise ModelError(f"ids must be 0 to {shape.vocabulary - 1}, not {ids.min()} to {ids.max()}")
        x = add(self.positions[: len(ids)], self.embedding[ids])
        total = arithmetic.beat_sum(x, self.config.lanes)
        for (joint, output, up, down), (query_bias, output_bias, up_bias, down_bias) in self.layers:
            centred, scale = self._norm(x, total)
            y = mul(self._product(joint, centred), scale)
            y[:, self.biased :] = add(y[:, self.biased :], query_bias[self.biased :])
            x = add(add(self._product(output, self._attention(y)), output_bias), x)
            total = arithmetic.beat_sum(x, self.config.banks)
            centred, scale = self._norm(x, total)
            h = self._activation(add(mul(self._product(up, centred), scale), up_bias))
            x = add(add(self._product(down, h), down_bias), x)
            total = arithmetic.beat_sum(x, self.config.banks)
        centred, scale = self._norm(x, total)
        return self._product(self.head, add(mul(mul(centred, scale), self.gain), self.bias))

    def losses(self, ids: NDArray[np.integer], window: int | None = None) -> NDArray[np.float64]:
        """Nats of every next token (len(ids) - 1,), windows of ``window`` (the positions) one behind the other."""
        size, found = window or min(self.shape.context, self.p.tokens), []
        for start in range(0, len(ids) - 1, size):
            part = ids[start : start + size + 1]
            logits = self.logits(part[:-1]).astype(np.float64)
            logits -= logits.max(-1, keepdims=True)
            found.append(np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(part) - 1), part[1:]])
        return np.concatenate(found)

    def _operands(self, matrix: Matrix, values: NDArray[np.floating]) -> list[mac.Operand]:
        lanes = self.config.lanes
        bits = np.zeros((matrix.outputs, sum(chunk.columns for chunk in matrix.chunks) * lanes), np.uint16)
        bits[:, : values.shape[1]] = to_bf16(values)
        split = [
            bits[:, start * lanes : (start + chunk.columns) * lanes].reshape(matrix.outputs, -1, lanes)
            for start, chunk in zip(matrix.starts(), matrix.chunks, strict=True)
        ]
        return [mac.Operand.of(part) for part in split]

    def _product(self, chunks: list[mac.Operand], x: Floats) -> Floats:
        """Read-outs of the chunks, added in their order."""
        lanes, at = self.config.lanes, 0
        sent = np.zeros((len(x), sum(chunk.patterns.shape[1] for chunk in chunks) * lanes), np.uint16)
        sent[:, : x.shape[1]] = arithmetic.to_bf16(x)
        y = np.zeros((len(x), len(chunks[0].patterns)), np.float32)
        for chunk in chunks:
            width = chunk.patterns.shape[1]
            part = self._burst(chunk, sent[:, at * lanes : (at + width) * lanes].reshape(len(x), width, lanes))
            y = add(part, y)
            at += width
        return y

    def _burst(self, rows: mac.Operand | Bits16, buffers: Bits16) -> Floats:
        return arithmetic.bf16_values(mac.read_out(mac.gemv(rows, buffers, 0, self.config.accumulator)))

    def _norm(self, x: Floats, total: Floats) -> tuple[Floats, Floats]:
        """x - mean, and 1/deviation (tokens, 1)."""
        share = np.float32(1 / self.shape.hidden)
        centred = sub(x, mul(total, share)[:, None])
        variance = add(mul(arithmetic.beat_sum(mul(centred, centred), self.config.lanes), share), np.float32(self.shape.eps))
        return centred, self._function("rsqrt", functions.rsqrt, lambda v: 1 / np.sqrt(v), variance)[:, None]

    def _attention(self, joint: Floats) -> Floats:
        """Weighted values of all heads, side by side in whole words."""
        shape, layout, config = self.shape, self.p.layout, self.config
        tokens, lanes = len(joint), config.lanes
        size, total, width = shape.head_dim, shape.query_columns, layout.words * config.banks
        sources = np.zeros((tokens, 3 * total), np.uint16)
        known = self.rows >= 0
        sources[:, self.rows[known]] = arithmetic.to_bf16(joint)[:, known]
        result = np.zeros((tokens, shape.heads * width), np.float32)
        k = np.float32(math.log2(math.e) / math.sqrt(size))
        past = np.tri(tokens, dtype=bool)
        for head in range(shape.heads):
            value, key, query = (sources[:, i * total + head * size : i * total + (head + 1) * size] for i in range(3))
            scores = self._burst(_columns(key, lanes), _columns(query, lanes))
            most = np.where(past, scores, -np.inf).max(-1, keepdims=True)
            power = self._function("exp2", functions.exp2, np.exp2, mul(sub(np.where(past, scores, most), most), k))
            weights = np.where(past, arithmetic.round_bf16(power), np.float32(0))
            inverse = self._function("reciprocal", functions.reciprocal, lambda v: 1 / v, arithmetic.beat_sum(weights, lanes))
            y = np.zeros((tokens, size), np.float32)
            for start in range(0, tokens, self.p.block):
                part = slice(start, start + self.p.block)
                y = add(self._burst(_columns(value[part].T, lanes), _columns(arithmetic.to_bf16(weights[:, part]), lanes)), y)
            result[:, head * width : head * width + size] = mul(y, inverse[:, None])
        return result

    def _activation(self, x: Floats) -> Floats:
        match self.shape.activation:
            case "relu":
                return np.where(np.signbit(x), np.float32(0), x)
            case "gelu_erf":
                erf = np.vectorize(math.erf)
                return self._function("gelu", functions.gelu_erf, lambda v: 0.5 * v * (1 + erf(v / math.sqrt(2))), x)
        return self._function("gelu", functions.gelu, lambda v: 0.5 * v * (1 + np.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))), x)

    def _function(self, name: str, ours: Callable[..., NDArray[np.uint32]], true: Callable[[NDArray[np.float64]], NDArray[np.float64]], x: Floats) -> Floats:
        if name in self.exact:
            return true(x.astype(np.float64)).astype(np.float32)
        return arithmetic.values(ours(arithmetic.bits(x), self.family))


def _values(x: NDArray[np.floating]) -> Floats:
    return arithmetic.bf16_values(to_bf16(x))


def _columns(rows: Bits16, lanes: int) -> Bits16:
    """(n, values) as (n, columns, lanes), padded with zeros."""
    columns = -(-rows.shape[1] // lanes)
    padded = np.zeros((len(rows), columns * lanes), np.uint16)
    padded[:, : rows.shape[1]] = rows
    return padded.reshape(len(rows), columns, lanes)
