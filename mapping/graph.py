# SPDX-License-Identifier: Apache-2.0
"""A small typed graph: what a model computes, before and after the passes.

Nodes stand in order of evaluation and name their inputs; every value is a matrix (tokens, columns). ``Graph`` checks names and widths
when it is made, so a pass cannot leave a broken graph behind.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from lutra.hls_models.shape import Activation, ModelShape
from lutra.mapping.model import Matrix, Table, TernaryModel

__all__ = ["Attention", "Embed", "Gate", "Graph", "Head", "Linear", "Node", "Norm", "Residual", "Rope", "build"]

N = TypeVar("N", bound="Node")


@dataclass(frozen=True, eq=False)
class Node(ABC):
    """A value by name, and the names of the values it is made from."""

    name: str
    inputs: tuple[str, ...]

    @abstractmethod
    def width(self, *inputs: int) -> int:
        """Columns of the value, from the columns of the inputs; ValueError where they do not fit."""


def _rule(node: Node, holds: bool, text: str) -> None:
    if not holds:
        raise ValueError(f"{node.name}: {text}")


@dataclass(frozen=True, eq=False)
class Embed(Node):
    """Table rows of the token ids."""

    table: Table

    def width(self, *inputs: int) -> int:
        _rule(self, not inputs, "takes no inputs")
        return self.table.columns


@dataclass(frozen=True, eq=False)
class Norm(Node):
    """x / sqrt(mean(x^2) + eps) * gains; ``gains`` float32 (size,), None where only the shape is known."""

    size: int
    gains: np.ndarray | None
    eps: float

    def width(self, *inputs: int) -> int:
        _rule(self, inputs == (self.size,), f"{self.size} gains for {inputs} columns")
        return self.size


@dataclass(frozen=True, eq=False)
class Linear(Node):
    """Ternary matrix times the input, which is quantised to int8 by its largest magnitude per token."""

    matrix: Matrix

    def width(self, *inputs: int) -> int:
        m = self.matrix
        _rule(self, inputs == (m.inputs,), f"{m.inputs} inputs for {inputs} columns")
        _rule(self, m.interleaved or sum(m.segments) == m.outputs, f"segments {m.segments} must add up to {m.outputs} outputs")
        _rule(self, not isinstance(m.values, np.ndarray) or m.values.shape == (m.outputs, m.inputs), "values must have the matrix's shape")
        return m.outputs


@dataclass(frozen=True, eq=False)
class Rope(Node):
    """Rotary embedding of the first ``turned`` heads; further columns pass. Pairs (i, i + head_dim/2), or ``interleaved`` (2i, 2i+1)."""

    turned: int
    head_dim: int
    theta: float
    interleaved: bool = False

    def width(self, *inputs: int) -> int:
        _rule(self, len(inputs) == 1 and inputs[0] >= self.turned * self.head_dim, f"{self.turned} heads of {self.head_dim} do not fit {inputs} columns")
        return inputs[0]


@dataclass(frozen=True, eq=False)
class Attention(Node):
    """Causal grouped-query attention over (q, k, v), or over one input that holds the three side by side.

    Weights are base ** (score_scale * q.k), normalised.
    """

    heads: int
    kv_heads: int
    head_dim: int
    score_scale: float
    base: float = math.e

    def parts(self) -> tuple[int, int, int]:
        """Columns of q, k and v."""
        return self.heads * self.head_dim, self.kv_heads * self.head_dim, self.kv_heads * self.head_dim

    def width(self, *inputs: int) -> int:
        _rule(self, inputs in (self.parts(), (sum(self.parts()),)), f"q, k, v are {self.parts()} columns, not {inputs}")
        return self.parts()[0]


@dataclass(frozen=True, eq=False)
class Gate(Node):
    """activation(gate) * up, of two inputs, or of one whose columns alternate gate, up."""

    activation: Activation

    def width(self, *inputs: int) -> int:
        _rule(
            self, (len(inputs) == 2 and inputs[0] == inputs[1]) or (len(inputs) == 1 and inputs[0] % 2 == 0), f"gate and up must be equally wide, not {inputs}"
        )
        return inputs[0] if len(inputs) == 2 else inputs[0] // 2


@dataclass(frozen=True, eq=False)
class Residual(Node):
    """Sum of two values."""

    def width(self, *inputs: int) -> int:
        _rule(self, len(inputs) == 2 and inputs[0] == inputs[1], f"both inputs must be equally wide, not {inputs}")
        return inputs[0]


@dataclass(frozen=True, eq=False)
class Head(Node):
    """Logits: input times table row, per token of the vocabulary; ``quantised`` takes the input to int8 first."""

    table: Table
    quantised: bool = False

    def width(self, *inputs: int) -> int:
        _rule(self, inputs == (self.table.columns,), f"table rows of {self.table.columns} for {inputs} columns")
        return self.table.rows


class Graph:
    """Nodes in order of evaluation; the last one is the result.

    Raises
    ------
    ValueError
        A name is used twice or before it is defined, or widths do not fit.
    """

    def __init__(self, shape: ModelShape, nodes: tuple[Node, ...]) -> None:
        self.shape = shape
        self.nodes = nodes
        self.widths: dict[str, int] = {}
        for node in nodes:
            unknown = [name for name in node.inputs if name not in self.widths]
            if unknown or node.name in self.widths:
                raise ValueError(f"{node.name}: " + (f"input {unknown[0]} is not defined before it" if unknown else "defined twice"))
            self.widths[node.name] = node.width(*(self.widths[name] for name in node.inputs))
        self._by_name = {node.name: node for node in nodes}

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    def all(self, kind: type[N]) -> list[N]:
        """Every node of a kind, in order."""
        return [node for node in self.nodes if isinstance(node, kind)]

    def source(self, node: Node, kind: type[N], index: int = 0) -> N:
        """The node behind input ``index``, which must be of ``kind``."""
        found = self[node.inputs[index]]
        if not isinstance(found, kind):
            raise ValueError(f"{node.name}: input {found.name} must be a {kind.__name__}, not a {type(found).__name__}")
        return found

    def replace(self, changes: dict[str, tuple[Node, ...]]) -> Graph:
        """A graph in which each named node gives way to others (none: it goes)."""
        return Graph(self.shape, tuple(new for node in self.nodes for new in changes.get(node.name, (node,))))


def build(model: TernaryModel | ModelShape) -> Graph:
    """The graph of a model as its paper draws it; of a bare shape, one without values (all that scheduling needs)."""
    shape = model if isinstance(model, ModelShape) else model.shape
    weights = None if isinstance(model, ModelShape) else model
    empty = Table(shape.vocabulary, shape.hidden, None)
    embedding, head = (weights.embedding, weights.head) if weights else (empty, empty if shape.tied else Table(shape.vocabulary, shape.hidden, None))
    nodes: list[Node] = [Embed("embed", (), embedding)]

    def norm(name: str, size: int) -> str:
        nodes.append(Norm(name, (nodes[-1].name,), size, weights.gains[name] if weights else None, shape.eps))
        return name

    for layer in range(shape.layers):
        prefix, stream = f"layers.{layer}", nodes[-1].name
        matrices = {
            m.name: weights.matrices[f"{prefix}.{m.name}"] if weights else Matrix(m.outputs, m.inputs, None, (1.0,), (m.outputs,)) for m in shape.linears()
        }

        def linear(short: str, source: str, prefix: str = prefix, matrices: dict[str, Matrix] = matrices) -> str:
            nodes.append(Linear(f"{prefix}.{short}", (source,), matrices[f"{short}_proj"]))
            return nodes[-1].name

        normed = norm(f"{prefix}.input_norm", shape.hidden)
        q, k, v = (linear(short, normed) for short in "qkv")
        nodes.append(Rope(f"{prefix}.q_rope", (q,), shape.heads, shape.head_dim, shape.rope_theta))
        nodes.append(Rope(f"{prefix}.k_rope", (k,), shape.kv_heads, shape.head_dim, shape.rope_theta))
        inputs = (f"{prefix}.q_rope", f"{prefix}.k_rope", v)
        nodes.append(Attention(f"{prefix}.attention", inputs, shape.heads, shape.kv_heads, shape.head_dim, shape.head_dim**-0.5))
        source = norm(f"{prefix}.attention_norm", shape.query_columns) if shape.sub_norms else nodes[-1].name
        nodes.append(Residual(f"{prefix}.attention_residual", (stream, linear("o", source))))
        stream = nodes[-1].name
        normed = norm(f"{prefix}.post_norm", shape.hidden)
        nodes.append(Gate(f"{prefix}.gated", (linear("gate", normed), linear("up", normed)), shape.activation))
        source = norm(f"{prefix}.ffn_norm", shape.ffn) if shape.sub_norms else nodes[-1].name
        nodes.append(Residual(f"{prefix}.ffn_residual", (stream, linear("down", source))))
    nodes.append(Head("head", (norm("norm", shape.hidden),), head))
    return Graph(shape, tuple(nodes))
