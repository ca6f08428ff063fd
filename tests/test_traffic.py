# SPDX-License-Identifier: Apache-2.0
"""The bytes of a token: what ceilings count, and what a program moves."""

import json
from pathlib import Path

import pytest
from test_cli import timing

from lutra import api, engine, progress
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


def decoded(context: int, rescored: int = 0) -> PassSize:
    return PassSize(context - 1, 1, True, True, rescored)


@pytest.mark.smoke
def test_ceilings_are_the_published_sums() -> None:
    """Megabytes of docs/kv260.md's definition: 135.9 of weights, 185.1 with the head, 260.5 with keys and values of 1,024 tokens."""
    small, large = traffic("bitnet-0.73b"), traffic("bitnet-2b4t")
    written = 2 * 24 * 1536
    assert small.ideal(decoded(0)) - written == pytest.approx(185.1e6, rel=1e-3)
    assert small.ideal(decoded(1024)) - written == pytest.approx(260.5e6, rel=1e-3)
    assert large.ideal(decoded(0)) == pytest.approx(745.1e6, rel=1e-3)


@pytest.mark.smoke
@pytest.mark.parametrize("model", ["bitnet-0.73b", "bitnet-2b4t"])
def test_a_program_moves_little_more_than_the_least(model: str) -> None:
    found = traffic(model)
    for context in (1, 128, 1024):
        size = decoded(context)
        kinds = found.by_kind(size)
        assert found.total(size) == sum(kinds.values()) and found.ideal(size) < found.total(size) < 1.04 * found.ideal(size)
        s = found.spec.shape
        rows = 2 * s.layers * s.kv_columns * context
        assert rows <= kinds["keys and values read"] <= rows + 2 * s.layers * s.kv_heads * (context // 64 + 1) * (4 * 64 + 64)
        assert kinds["keys and values written"] == 2 * s.layers * s.kv_heads * (s.head_dim + 16)
    # a prompt reads the weights once
    prompt = PassSize(0, found.spec.config.chunk, False, False)
    assert found.by_kind(prompt)["weights"] == kinds["weights"] and "head" not in found.by_kind(prompt)


def test_the_ceiling_of_a_head_in_two_planes() -> None:
    """The high plane and the low rows that are scored again: with all of them the 8-bit head's, which a token that scores few again would exceed."""
    whole, found = traffic("bitnet-0.73b"), traffic("bitnet-0.73b", "kv260-planes")
    rows, hidden = found.spec.shape.vocabulary, found.spec.shape.hidden
    assert found.ideal(decoded(128, rows)) == whole.ideal(decoded(128))
    assert whole.ideal(decoded(128)) - found.ideal(decoded(128, 3000)) == (rows - 3000) * hidden / 2
    for again in (3000, rows):
        size = decoded(128, again)
        assert found.ideal(size) < found.total(size) < 1.04 * found.ideal(size)


def test_an_estimate_of_rows_scored_again() -> None:
    few, worst = (api.estimate("bitnet-0.73b", "kv260-planes", prompt=1, context=128, rescored=share) for share in (0.1, None))
    assert few.decode and few.memory and worst.decode and worst.memory
    assert few.decode.rescored_rows == pytest.approx(3200, rel=0.02) and worst.decode.rescored_rows == 32002
    assert worst.decode.tokens_per_second < few.decode.tokens_per_second
    for one in (few, worst):
        assert one.memory and one.memory.fraction_of_ceiling and 0.94 <= one.memory.fraction_of_ceiling < 1


@pytest.mark.parametrize("model", ["bitnet-0.73b", "bitnet-2b4t"])
def test_bits_moved_per_useful_weight(model: str) -> None:
    """At most 1.65 (TeLLMe: 2.064; five trits to a byte: 1.6), in a report and in the loads of a pass."""
    found = traffic(model)
    report = report_of(found.spec, found.program, timing(found.spec, found.program, prompt=1, contexts=[2]))
    weights = found.spec.shape.ternary_weights
    assert report.memory is not None and report.memory.bits_per_weight is not None and 1.6 <= report.memory.bits_per_weight <= 1.65
    moved = found.by_kind(PassSize(1, 1, True, True))["weights"]
    assert 8 * moved / weights == report.memory.bits_per_weight


@pytest.mark.parametrize(("head_dim", "keeps"), [(64, {1, 2}), (128, {1, 2, 4})])
@pytest.mark.parametrize("group", [1, 2, 4, 8])
def test_which_groups_keep_pace_with_the_memory(group: int, head_dim: int, keeps: set[int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Four ports of 16 bytes bring a key and a value in head_dim / 32 clocks, and their scales; attention takes a clock for each query head."""
    sizes = load_config("kv260", CoreConfig)
    heads = {"num_attention_heads": 16, "num_key_value_heads": 16 // group, "head_dim": head_dim, "max_position_embeddings": 2048}
    sizes_of = {"hidden_size": 1536, "num_hidden_layers": 2, "intermediate_size": 4096, "vocab_size": 256, "hidden_act": "silu"}
    path = tmp_path / "grouped" / "config.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"architectures": ["BitNetForCausalLM"], **sizes_of, **heads}))
    shape = ModelShape.from_config(path)
    spec, program = CoreSpec(config=sizes, shape=shape), engine.compile_program(shape, sizes)
    times = engine.timing(spec, program, prompt=1, contexts=[1024, 2048])
    last = report_of(spec, program, engine.timing(spec, program, prompt=1, contexts=[2048]))
    found = last.attention
    assert found and found.group == group and found.clocks == group * 65 / 64 and found.memory_clocks == head_dim / 32 + 1 / 8
    assert found.keeps_pace == (group in keeps) and last.provenance["attention"] == "model"
    # what a further position costs, of the exact cycles of two passes: never less than either, and what the loads took
    further = int(times.lengths[-1] - times.lengths[-2]) / 1024 / 2 / shape.kv_heads
    assert further >= found.memory_clocks and found.taken_clocks == pytest.approx(further, rel=0.05)
    if not found.keeps_pace:
        assert further == pytest.approx(found.clocks * (shape.kv_heads + 1) / shape.kv_heads, rel=0.01)

    progress.quiet(False)
    try:
        api.estimate(path, sizes, prompt=1, context=64)
    finally:
        progress.quiet()
    said = [line for line in capsys.readouterr().err.splitlines() if "attention" in line]
    line = (
        f"warning: config kv260 for grouped: attention takes {found.clocks:.4g} clocks for a key and a value of a group of {group} query heads, the memory "
        f"{found.memory_clocks:.4g}, so that it idles the more, the longer the context; groups up to {max(keeps)} keep pace"
    )
    assert said == ([] if found.keeps_pace else [line])
