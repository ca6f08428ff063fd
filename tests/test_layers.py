# SPDX-License-Identifier: Apache-2.0
"""One layer in the hardware's arithmetic beside float64: narrow versions of what ``python -m benchmarks layers`` measures at full width."""

from dataclasses import replace

import pytest

from benchmarks import layers
from lutra.hls_models.load import load_config
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.program import Program
from lutra.mapping.model import TernaryModel

NARROW = {
    "bitnet-0.73b": ModelShape(name="narrow", hidden=384, layers=1, heads=4, kv_heads=4, head_dim=96, ffn=1024, vocabulary=256, context=256, activation="silu"),
    "bitnet-2b4t": ModelShape(
        name="narrow", hidden=512, layers=1, heads=4, kv_heads=1, head_dim=128, ffn=1408, vocabulary=256, context=256, activation="relu2"
    ),
}
"""Gate, head size and ratios of the full-size models."""
BOUND = 0.036
"""Largest relative error of a token's addition to the residual stream, as ``layers.BOUND``; 0.025 to 0.033 over a dozen seeds of either."""


@pytest.mark.parametrize("model", NARROW)
def test_a_layer_stays_near_float64(model: str) -> None:
    moved = layers.error(NARROW[model], load_config("kv260", CoreConfig), layers.TOKENS, seed=1)
    assert moved.shape == (layers.TOKENS,) and moved.max() < BOUND < layers.BOUND


@pytest.mark.parametrize("name", ["o_proj", "down_proj"])
def test_a_scale_that_is_a_tenth_off_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = layers.compile_model

    def wrong(model: TernaryModel, config: CoreConfig) -> Program:
        matrix = model.matrices[f"layers.0.{name}"]
        other = replace(matrix, scales=tuple(1.1 * scale for scale in matrix.scales))
        return compiled(replace(model, matrices={**model.matrices, f"layers.0.{name}": other}), config)

    monkeypatch.setattr(layers, "compile_model", wrong)
    assert layers.error(NARROW["bitnet-0.73b"], load_config("kv260", CoreConfig), 16, seed=1).max() > BOUND
