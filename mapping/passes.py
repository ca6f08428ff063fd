# SPDX-License-Identifier: Apache-2.0
"""Passes that bring a graph into the form the core executes. Each has a name and a bound: how far the logits of the same tokens may move."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from lutra.hls_models.errors import MismatchError
from lutra.hls_models.floats import E8M11, FloatFormat, from_float64, to_float64
from lutra.mapping.graph import Attention, Embed, Gate, Graph, Head, Linear, Node, Norm, Rope
from lutra.mapping.model import Matrix, Table
from lutra.mapping.reference import evaluate

__all__ = ["PASSES", "Pass", "apply", "difference", "fold_score_scale", "fuse_gate_up", "fuse_qkv", "narrow_gains", "permute_rope", "quantise_table"]

EXACT = 1e-9  # what reordered float64 sums leave of equality; a wrong row or scale moves logits by far more
ROUNDED = 0.05  # int8 tables and 12-bit gains move single int8 activation codes, which the layers amplify; a wrong row gives about 1


@dataclass(frozen=True)
class Pass:
    """A rewriting and the largest relative root-mean-square change of the logits that it may cause."""

    name: str
    run: Callable[[Graph], Graph]
    bound: float


def fuse_qkv(graph: Graph) -> Graph:
    """One matrix for q, k and v: their rows one below the other, a scale each; one Rope turns the query and key heads."""
    changes: dict[str, tuple[Node, ...]] = {}
    for attention in (node for node in graph.all(Attention) if len(node.inputs) == 3):
        prefix = attention.name.rpartition(".")[0]
        q_rope, k_rope = graph.source(attention, Rope, 0), graph.source(attention, Rope, 1)
        parts = [graph.source(q_rope, Linear), graph.source(k_rope, Linear), graph.source(attention, Linear, 2)]
        linear = Linear(f"{prefix}.qkv", parts[0].inputs, _stacked([p.matrix for p in parts]))
        turn = Rope(f"{prefix}.rope", (linear.name,), q_rope.turned + k_rope.turned, q_rope.head_dim, q_rope.theta, q_rope.interleaved)
        changes |= {node.name: () for node in (*parts, q_rope, k_rope)}
        changes[attention.name] = (linear, turn, replace(attention, inputs=(turn.name,)))
    return graph.replace(changes)


def fuse_gate_up(graph: Graph) -> Graph:
    """One matrix for gate and up, row by row in turn: gate 0, up 0, gate 1, up 1, …"""
    changes: dict[str, tuple[Node, ...]] = {}
    for gate in (node for node in graph.all(Gate) if len(node.inputs) == 2):
        parts = [graph.source(gate, Linear, 0), graph.source(gate, Linear, 1)]
        both = _stacked([p.matrix for p in parts])
        order = np.arange(both.outputs).reshape(2, -1).T.ravel()
        matrix = replace(both, values=both.rows(order), segments=(), interleaved=True)
        linear = Linear(f"{gate.name.rpartition('.')[0]}.gate_up", parts[0].inputs, matrix)
        changes |= {node.name: () for node in parts}
        changes[gate.name] = (linear, replace(gate, inputs=(linear.name,)))
    return graph.replace(changes)


def permute_rope(graph: Graph) -> Graph:
    """Dimensions i and i + head_dim/2 of every query and key head side by side: a beat then holds whole pairs, and dot products do not notice."""
    changes: dict[str, tuple[Node, ...]] = {}
    for rope in (node for node in graph.all(Rope) if not node.interleaved):
        linear = graph.source(rope, Linear)
        within = np.arange(rope.head_dim).reshape(2, -1).T.ravel()
        order = np.arange(linear.matrix.outputs)
        for head in range(rope.turned):
            order[head * rope.head_dim : (head + 1) * rope.head_dim] = head * rope.head_dim + within
        changes[linear.name] = (replace(linear, matrix=replace(linear.matrix, values=linear.matrix.rows(order))),)
        changes[rope.name] = (replace(rope, interleaved=True),)
    return graph.replace(changes)


def fold_score_scale(graph: Graph) -> Graph:
    """log2(e)/sqrt(head_dim) into the scale of the query rows, softmax to base 2: the core then needs exp2 only and no multiplication per score."""
    changes: dict[str, tuple[Node, ...]] = {}
    for attention in (node for node in graph.all(Attention) if node.base == math.e):
        linear = graph.source(graph.source(attention, Rope), Linear)
        factor = attention.score_scale * math.log2(math.e)
        scales = (linear.matrix.scales[0] * factor, *linear.matrix.scales[1:])
        changes[linear.name] = (replace(linear, matrix=replace(linear.matrix, scales=scales)),)
        changes[attention.name] = (replace(attention, score_scale=1.0, base=2.0),)
    return graph.replace(changes)


def quantise_table(graph: Graph) -> Graph:
    """Embedding and head to int8 with an fp32 scale (absmax/127) per row; the head's input becomes int8 as well. A tied table stays one."""
    done: dict[int, Table] = {}
    changes: dict[str, tuple[Node, ...]] = {}
    for node in graph.nodes:
        if isinstance(node, Embed | Head) and (node.table.values is None or node.table.scales is None):
            done.setdefault(id(node.table), _int8(node.table))
            table = done[id(node.table)]
            changes[node.name] = (replace(node, table=table, quantised=True) if isinstance(node, Head) else replace(node, table=table),)
    return graph.replace(changes)


def narrow_gains(graph: Graph, format: FloatFormat = E8M11) -> Graph:
    """Gains of the norms rounded to the core's element-wise format."""
    nodes = [node for node in graph.all(Norm) if node.gains is not None]
    return graph.replace({n.name: (replace(n, gains=to_float64(format, from_float64(format, np.asarray(n.gains, np.float64)))),) for n in nodes})


PASSES = (
    Pass("fuse_qkv", fuse_qkv, EXACT),
    Pass("fuse_gate_up", fuse_gate_up, EXACT),
    Pass("permute_rope", permute_rope, EXACT),
    Pass("fold_score_scale", fold_score_scale, EXACT),
    Pass("quantise_table", quantise_table, ROUNDED),
    Pass("narrow_gains", narrow_gains, ROUNDED),
)


def difference(before: Graph, after: Graph, ids: np.ndarray) -> float:
    """Root-mean-square change of the logits of ``ids``, relative to their root mean square before."""
    a, b = evaluate(before, ids), evaluate(after, ids)
    return float(np.sqrt(((a - b) ** 2).mean() / (a**2).mean()))


def apply(graph: Graph, passes: tuple[Pass, ...] = PASSES, check: np.ndarray | None = None) -> Graph:
    """The graph after all ``passes``, in order; with token ids to ``check`` on, each pass must keep its bound.

    Raises
    ------
    MismatchError
        A pass changed the logits by more than its bound.
    """
    for step in passes:
        after = step.run(graph)
        if check is not None and not (moved := difference(graph, after, check)) <= step.bound:
            raise MismatchError(f"pass {step.name} changed the logits by {moved:.3g} (relative RMS), allowed are {step.bound:g}")
        graph = after
    return graph


def _stacked(matrices: list[Matrix]) -> Matrix:
    known = all(m.values is not None for m in matrices)
    return Matrix(
        outputs=sum(m.outputs for m in matrices),
        inputs=matrices[0].inputs,
        values=(lambda: np.concatenate([m.known() for m in matrices])) if known else None,
        scales=tuple(s for m in matrices for s in m.scales),
        segments=tuple(s for m in matrices for s in m.segments),
    )


def _int8(table: Table) -> Table:
    """Only the peaks are worked out here; codes are made when they are read."""
    if table.values is None:
        return replace(table, scales=None)
    peak = np.concatenate([np.abs(part).max(axis=1).astype(np.float64) for _, part in table.parts()])
    factor = np.divide(127, peak, out=np.zeros_like(peak), where=peak > 0)[:, None]

    def codes(first: int, end: int) -> np.ndarray:
        return np.rint(table.part(first, end) * factor[first:end]).astype(np.int8)

    return replace(table, values=codes, scales=(peak / 127).astype(np.float32))
