# SPDX-License-Identifier: Apache-2.0
"""One layer of the full-size models in the hardware's arithmetic beside float64: how far the residual stream moves, per token.

The yardstick is BitNet's own forward (int8 activations, float64 everything else) of the same trits, gains and int8 embedding, on the same tokens. Error is
that of what the layer adds to the residual stream: root mean square over the columns, relative to that of the addition itself.
"""

from typing import Any

import numpy as np

from lutra.hls_models.floats import to_float64
from lutra.hls_models.load import load_config
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.executor import Executor, plan_passes
from lutra.mapping.catalogue import open_model
from lutra.mapping.graph import Residual, build
from lutra.mapping.lower import compile_model
from lutra.mapping.model import TernaryModel
from lutra.mapping.passes import apply
from lutra.mapping.reference import evaluate

__all__ = ["BOUND", "MODELS", "error", "measure"]

MODELS = ("bitnet-0.73b", "bitnet-2b4t")
BOUND = 0.04
"""Largest relative error of a token's addition that a layer may have. 8-bit keys and values move attention's output by some 1 %; where that moves an
8-bit activation code (a step is about 2.7 % of the codes' root mean square) the error grows to the root of the product of both, some 1.6 %, once per
matrix behind it."""
TOKENS = 64
VOCABULARY = 256  # the embedding of random tokens; the head takes no part


def error(shape: ModelShape, config: CoreConfig, tokens: int, seed: int) -> np.ndarray:
    """Relative errors (tokens,) of the first layer of ``shape`` with random trits: a prompt, and its last token decoded."""
    one = shape.model_copy(update={"layers": 1, "vocabulary": VOCABULARY})
    model = TernaryModel.random(one, seed)
    ids = np.random.default_rng(seed).integers(VOCABULARY, size=tokens)
    values: dict[str, np.ndarray] = {}
    graph = apply(build(model))
    evaluate(graph, ids, values)
    last = graph.all(Residual)[-1].name
    embedded = values[graph.nodes[0].name]

    spec = CoreSpec(config=config, shape=one)
    core = Executor(spec, compile_model(model, config))
    golden = np.zeros((tokens, one.hidden))
    for position, count, end in [*plan_passes(0, tokens - 1, config.chunk), (tokens - 1, 1, True)]:
        core.run_pass(ids[position : position + count].tolist(), position, end)
        golden[position : position + count] = to_float64(config.format, core.vector.x[:count, : one.hidden])
    added = values[last] - embedded
    moved: np.ndarray = np.sqrt(((golden - values[last]) ** 2).mean(axis=1) / (added**2).mean(axis=1))
    return moved


def measure() -> dict[str, Any]:
    """Median and largest error over the tokens, by model."""
    config = load_config("kv260", CoreConfig)
    found: dict[str, Any] = {"bound": BOUND, "tokens": TOKENS}
    for name in MODELS:
        shape = open_model(name)
        assert isinstance(shape, ModelShape)
        moved = error(shape, config, TOKENS, seed=1)
        found[name] = {"median": float(np.median(moved)), "largest": float(moved.max()), "decoded": float(moved[-1])}
        if found[name]["largest"] > BOUND:
            raise AssertionError(f"{name}: a layer moved by {found[name]['largest']:.4f} of its addition, the bound is {BOUND}")
    return found
