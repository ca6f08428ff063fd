# SPDX-License-Identifier: Apache-2.0
"""The bytes of a token: what ceilings count, and what a program moves."""

import pytest
from test_cli import timing

from lutra import engine
from lutra.figures import PassSize, report_of
from lutra.hls_models.load import load_config
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.mapping.catalogue import open_model
from lutra.traffic import Traffic


def traffic(model: str, config: str = "kv260") -> Traffic:
    shape, sizes = open_model(model), load_config(config, CoreConfig)
    assert isinstance(shape, ModelShape)
    return Traffic(CoreSpec(config=sizes, shape=shape), engine.compile_program(shape, sizes))


@pytest.mark.smoke
def test_ceilings_are_the_published_sums() -> None:
    """Megabytes of docs/kv260.md's definition: 135.9 of weights, 185.1 with the head, 260.5 with keys and values of 1,024 tokens."""
    small, large = traffic("bitnet-0.73b"), traffic("bitnet-2b4t")
    written = 2 * 24 * 1536
    assert small.ideal(0) - written == pytest.approx(185.1e6, rel=1e-3)
    assert small.ideal(1024) - written == pytest.approx(260.5e6, rel=1e-3)
    assert large.ideal(0) == pytest.approx(745.1e6, rel=1e-3)


@pytest.mark.smoke
@pytest.mark.parametrize("model", ["bitnet-0.73b", "bitnet-2b4t"])
def test_a_program_moves_little_more_than_the_least(model: str) -> None:
    found = traffic(model)
    for context in (1, 128, 1024):
        size = PassSize(context - 1, 1, True, True)
        kinds = found.by_kind(size)
        assert found.total(size) == sum(kinds.values()) and found.ideal(context) < found.total(size) < 1.04 * found.ideal(context)
        s = found.spec.shape
        rows = 2 * s.layers * s.kv_columns * context
        assert rows <= kinds["keys and values read"] <= rows + 2 * s.layers * s.kv_heads * (context // 64 + 1) * (4 * 64 + 64)
        assert kinds["keys and values written"] == 2 * s.layers * s.kv_heads * (s.head_dim + 16)
    # a prompt reads the weights once
    prompt = PassSize(0, found.spec.config.chunk, False, False)
    assert found.by_kind(prompt)["weights"] == kinds["weights"] and "head" not in found.by_kind(prompt)


@pytest.mark.parametrize("model", ["bitnet-0.73b", "bitnet-2b4t"])
def test_bits_moved_per_useful_weight(model: str) -> None:
    """At most 1.65 (TeLLMe: 2.064; five trits to a byte: 1.6), in a report and in the loads of a pass."""
    found = traffic(model)
    report = report_of(found.spec, found.program, timing(found.spec, found.program, prompt=1, contexts=[2]))
    weights = found.spec.shape.ternary_weights
    assert report.memory is not None and report.memory.bits_per_weight is not None and 1.6 <= report.memory.bits_per_weight <= 1.65
    moved = found.by_kind(PassSize(1, 1, True, True))["weights"]
    assert 8 * moved / weights == report.memory.bits_per_weight
