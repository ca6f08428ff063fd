# SPDX-License-Identifier: Apache-2.0
"""The graph, what it means, and the passes that must not change that."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lutra.hls_models.errors import MismatchError, ModelError
from lutra.hls_models.floats import E8M11, from_float64, to_float64
from lutra.hls_models.shape import ModelShape
from lutra.mapping.graph import Attention, Embed, Gate, Graph, Head, Linear, Norm, Rope, build
from lutra.mapping.model import TernaryModel, given, ternarise
from lutra.mapping.passes import PASSES, Pass, apply, difference, fuse_gate_up, fuse_qkv
from lutra.mapping.reference import evaluate

SIZES: dict[str, Any] = {"hidden": 48, "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "ffn": 96, "vocabulary": 65, "context": 64}
VARIANTS: dict[str, dict[str, Any]] = {
    "bitnet": {"activation": "relu2"},
    "llama": {"activation": "silu", "sub_norms": False, "tied": False, "rope_theta": 500000.0},
    "multi-query": {"activation": "relu2", "heads": 6, "kv_heads": 1, "head_dim": 4},
    "multi-head": {"activation": "silu", "heads": 3, "kv_heads": 3, "head_dim": 12, "tied": False},
}


def shape_of(variant: str) -> ModelShape:
    return ModelShape(**{"name": variant, **SIZES, **VARIANTS[variant]})


def naive(model, ids):
    """The forward of the BitNet paper, token by token and head by head, without any of the graph's code."""
    s = model.shape

    def norm(x, gains):
        return x * (np.mean(x * x) + s.eps) ** -0.5 * gains

    def linear(x, m):
        step = 127 / max(np.max(np.abs(x)), 1e-5)
        return np.array([np.dot(np.rint(x * step), row) / step * m.scales[0] for row in m.known().astype(float)])

    def turn(x, position):
        out, half = np.empty_like(x), len(x) // 2
        for i in range(half):
            angle = position * s.rope_theta ** (-2 * i / s.head_dim)
            pair = complex(x[i], x[i + half]) * complex(np.cos(angle), np.sin(angle))
            out[i], out[i + half] = pair.real, pair.imag
        return out

    keys = [[[] for _ in range(s.kv_heads)] for _ in range(s.layers)]
    values = [[[] for _ in range(s.kv_heads)] for _ in range(s.layers)]
    logits = []
    for position, token in enumerate(ids):
        x = model.embedding.known()[token].astype(float)
        for layer in range(s.layers):
            g, m = (lambda name, at=layer: model.gains[f"layers.{at}.{name}"]), (lambda name, at=layer: model.matrices[f"layers.{at}.{name}_proj"])
            h = norm(x, g("input_norm"))
            q, k, v = (linear(h, m(name)).reshape(-1, s.head_dim) for name in "qkv")
            for head in range(s.kv_heads):
                keys[layer][head].append(turn(k[head], position))
                values[layer][head].append(v[head])
            heads = []
            for head in range(s.heads):
                kv = head // s.group
                scores = np.array([np.dot(turn(q[head], position), key) for key in keys[layer][kv]]) / np.sqrt(s.head_dim)
                weights = np.exp(scores - scores.max())
                heads.append(weights @ np.array(values[layer][kv]) / weights.sum())
            a = np.concatenate(heads)
            x = x + linear(norm(a, g("attention_norm")) if s.sub_norms else a, m("o"))
            h = norm(x, g("post_norm"))
            gate, up = linear(h, m("gate")), linear(h, m("up"))
            f = np.maximum(gate, 0) ** 2 * up if s.activation == "relu2" else gate / (1 + np.exp(-gate)) * up
            x = x + linear(norm(f, g("ffn_norm")) if s.sub_norms else f, m("down"))
        logits.append(model.head.known().astype(float) @ norm(x, model.gains["norm"]))
    return np.array(logits)


@pytest.mark.parametrize("variant", VARIANTS)
def test_graph_means_the_paper(variant: str, seed: int) -> None:
    model = TernaryModel.random(shape_of(variant), seed)
    ids = np.random.default_rng(seed).integers(0, 65, 12)
    np.testing.assert_allclose(evaluate(build(model), ids), naive(model, ids), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_pass_keeps_its_bound(variant: str, seed: int) -> None:
    graph = build(TernaryModel.random(shape_of(variant), seed))
    ids = np.random.default_rng(seed).integers(0, 65, 24)
    for step in PASSES:
        after = step.run(graph)
        assert difference(graph, after, ids) <= step.bound, step.name
        graph = after
    assert not [node for node in graph.all(Attention) if len(node.inputs) != 1 or node.base != 2 or node.score_scale != 1]
    assert all(node.interleaved for node in graph.all(Rope)) and all(len(node.inputs) == 1 for node in graph.all(Gate))
    assert len(graph.all(Linear)) == 4 * graph.shape.layers
    again = apply(graph, check=ids)
    assert difference(graph, again, ids) == 0, "passes must have nothing left to do"


def test_fused_rows_and_scales(seed: int) -> None:
    model = TernaryModel.random(shape_of("bitnet"), seed)
    graph = apply(build(model))
    rows = np.arange(8).reshape(2, 4).T.ravel()  # i beside i + 4
    qkv = graph["layers.1.qkv"]
    assert isinstance(qkv, Linear)
    m = {name: model.matrices[f"layers.1.{name}_proj"] for name in ("q", "k", "v", "gate", "up")}
    parts = [m["q"].known().reshape(4, 8, -1)[:, rows], m["k"].known().reshape(2, 8, -1)[:, rows], m["v"].known().reshape(2, 8, -1)]
    np.testing.assert_array_equal(qkv.matrix.known(), np.concatenate(parts).reshape(64, -1))
    assert qkv.matrix.scales == pytest.approx((m["q"].scales[0] * np.log2(np.e) / np.sqrt(8), m["k"].scales[0], m["v"].scales[0]), rel=1e-12)
    both = graph["layers.1.gate_up"]
    assert isinstance(both, Linear)
    np.testing.assert_array_equal(both.matrix.known()[0::2], m["gate"].known())
    np.testing.assert_array_equal(both.matrix.known()[1::2], m["up"].known())


def test_table_and_gains_are_rounded_right(seed: int) -> None:
    model = TernaryModel.random(shape_of("bitnet"), seed)
    graph = apply(build(model))
    embed, head = graph.all(Embed)[0], graph.all(Head)[0]
    assert embed.table is head.table and head.quantised and embed.table.known().dtype == np.int8
    assert (np.abs(embed.table.dequantised() - model.embedding.known()) <= given(embed.table.scales)[:, None] * 0.5001).all()
    for node in graph.all(Norm):
        gains = given(node.gains)
        np.testing.assert_array_equal(gains, to_float64(E8M11, from_float64(E8M11, gains)))
        np.testing.assert_allclose(gains, model.gains[node.name], rtol=2**-12)


def test_untied_tables_stay_two(seed: int) -> None:
    graph = apply(build(TernaryModel.random(shape_of("llama"), seed)))
    assert graph.all(Embed)[0].table is not graph.all(Head)[0].table


def swapped_rows(graph: Graph) -> Graph:
    node = graph.all(Linear)[3]
    order = np.arange(node.matrix.outputs)
    order[[0, 1]] = 1, 0
    return graph.replace({node.name: (replace(node, matrix=replace(node.matrix, values=node.matrix.known()[order])),)})


def forgot_the_scale(graph: Graph) -> Graph:
    return graph.replace({n.name: (replace(n, score_scale=1.0),) for n in graph.all(Attention)})


@pytest.mark.parametrize("wrong", [swapped_rows, forgot_the_scale])
def test_a_wrong_pass_is_caught(wrong: Callable[[Graph], Graph], seed: int) -> None:
    graph = build(TernaryModel.random(shape_of("bitnet"), seed))
    ids = np.random.default_rng(seed).integers(0, 65, 24)
    with pytest.raises(MismatchError, match=rf"pass {wrong.__name__} changed the logits by .* allowed are 1e-09"):
        apply(graph, (Pass(wrong.__name__, wrong, 1e-9),), check=ids)


def test_order_of_the_fusions_does_not_matter(seed: int) -> None:
    graph = build(TernaryModel.random(shape_of("llama"), seed))
    ids = np.random.default_rng(seed).integers(0, 65, 16)
    np.testing.assert_array_equal(evaluate(fuse_qkv(fuse_gate_up(graph)), ids), evaluate(fuse_gate_up(fuse_qkv(graph)), ids))


def test_a_broken_graph_is_refused(seed: int) -> None:
    graph = build(TernaryModel.random(shape_of("bitnet"), seed))
    norm, linear = graph.all(Norm)[0], graph.all(Linear)[0]
    with pytest.raises(ValueError, match="embed is not defined before it"):
        graph.replace({"embed": ()})
    with pytest.raises(ValueError, match="defined twice"):
        graph.replace({norm.name: (norm, norm)})
    with pytest.raises(ValueError, match=r"47 gains for \(48,\) columns"):
        graph.replace({norm.name: (replace(norm, size=47),)})
    with pytest.raises(ValueError, match="values must have the matrix's shape"):
        graph.replace({linear.name: (replace(linear, matrix=replace(linear.matrix, values=linear.matrix.known()[1:])),)})


def test_evaluation_needs_weights_and_legal_ids(seed: int) -> None:
    shape = shape_of("bitnet")
    with pytest.raises(ModelError, match="only the shape of this model is known"):
        evaluate(build(shape), np.array([1]))
    graph = build(TernaryModel.random(shape, seed))
    with pytest.raises(ModelError, match="ids must be 1 to 64 tokens"):
        evaluate(graph, np.zeros(65, int))
    with pytest.raises(ModelError, match="ids must be 0 to 64, not 0 to 65"):
        evaluate(graph, np.array([0, 65]))


def test_absmean() -> None:
    matrix = ternarise(np.array([[1.0, -0.2, 0.6], [-3.0, 0.0, 0.6]], np.float32))
    assert matrix.scales == pytest.approx((0.9,))
    np.testing.assert_array_equal(matrix.known(), [[1, 0, 1], [-1, 0, 1]])
    assert ternarise(np.zeros((2, 2), np.float32)).scales == pytest.approx((1e-5,))
