# SPDX-License-Identifier: Apache-2.0
"""The benchmark of full-size models: its random models and caches on a small core, its proof in words; one layer of each model on the RTL (opt-in)."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import token
from lutra import proofs
from lutra.cosim.benches import core
from lutra.cosim.core import CoreBench, Job, Turn
from lutra.hls_models.ternary.executor import Executor

SMALL = core.shared(np.random.default_rng(5))


@pytest.fixture(scope="module")
def bench() -> CoreBench:
    bench = CoreBench({"core": (SMALL.spec, 0)}, plain=True)
    bench.build(optimization="-O0")
    return bench


def test_a_token_behind_a_filled_cache(bench: CoreBench, tmp_path: Path) -> None:
    spec, rows = SMALL.spec, SMALL.spec.shape.context - 3
    program = token.compiled(spec, spec.shape, tmp_path / "image", rows=rows)
    found = token.run(bench, program, Turn([1], 2, start=rows))
    assert found.words_compared > 0 and found.words_mismatched == 0 and len(found.tokens) == 2
    # The same cache made by the golden model's own store gives the same choice; an empty one does not give the same values.
    golden = Executor(spec, program)
    assert golden.cache.codes[:, :, :rows].any() and not golden.cache.codes[:, :, rows:].any()
    filled, empty = golden.run_pass([1], rows, True, record=True), Executor(spec, token.compiled(spec, spec.shape, tmp_path / "none"))
    assert filled.token == found.tokens[0]
    assert not np.array_equal(filled.streams["values"][0], empty.run_pass([1], rows, True, record=True).streams["values"][0])


def test_one_layer_runs_on_the_core_of_all(bench: CoreBench, tmp_path: Path) -> None:
    """A program of fewer layers and tokens, on the same build."""
    shape = token.one_layer(SMALL.spec.shape)
    assert shape.layers == 1
    program = token.compiled(SMALL.spec, shape, tmp_path / "image")
    found = token.run(bench, program, Turn([1, 2, 3], 1))
    assert found.words_mismatched == 0


def test_a_wrong_image_is_no_proof(bench: CoreBench, tmp_path: Path) -> None:
    spec = SMALL.spec
    program = token.compiled(spec, spec.shape, tmp_path / "image", rows=4)
    region = program.region("cache")
    assert program.image is not None
    other = np.array(program.image)
    other[(region.address + spec.kv_layout.scale_beats) * program.beat_bytes] ^= 1
    found = bench.check({"core": Job(program, [Turn([1], 1, start=4)], memory=replace(program, image=other))}, hashed=True)["core"]
    assert found.mismatch is not None and found.words_mismatched


def test_the_proof_in_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = {"layers": 24, "pass_cycles": 1234567, "words_compared": 5000, "words_mismatched": 0}
    text = token.proof({"context": 128, "prompt": 64, "token": run, "layer": run | {"layers": 1}})
    assert text.startswith("a whole token at context 128 (24 layers and head): 1,234,567 cycles as predicted, 5,000 words, 0 differ; 64 prompt tokens")
    monkeypatch.setattr(proofs, "PROOFS", tmp_path / "proofs.json")
    spec = token.full_size("bitnet-0.73b")
    try:
        proofs.write({proofs.sizes_hash(spec): text})
        assert proofs.backing(spec) == text
        assert proofs.backing(token.full_size("bitnet-2b4t")) is None
    finally:
        proofs._proofs.cache_clear()


@pytest.mark.soak
def test_one_layer_of_each_full_size_model(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    """A prompt through one layer of the whole model's core, then a token; within ten minutes on two cores, compilers included."""
    begin = time.perf_counter()
    for model in ("bitnet-0.73b", "bitnet-2b4t"):
        spec = token.full_size(model)
        bench = CoreBench({"core": (spec, 0)}, plain=True)
        bench.build()
        shape = token.one_layer(spec.shape)
        program = token.compiled(spec, shape, tmp_path / model)
        found = token.run(bench, program, Turn(np.random.default_rng(1).integers(shape.vocabulary, size=token.PROMPT).tolist(), 2))
        assert found.words_mismatched == 0
        for name in ("words_compared", "seconds", "measured"):
            record_property(f"{model} {name}", getattr(found, name))
    assert time.perf_counter() - begin < 600
