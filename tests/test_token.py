# SPDX-License-Identifier: Apache-2.0
"""The benchmark of full-size models: its random models and caches on a small core, its proofs and what they are of; one layer of each model on the RTL
(opt-in)."""

import ast
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import kv260, results, token
from benchmarks.results import token_runs
from lutra import proofs
from lutra.cosim.benches import core
from lutra.cosim.core import CoreBench, Job, Turn
from lutra.hls_models.ternary.executor import Executor

SMALL = core.shared(np.random.default_rng(57))


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


def result(core: str, **changes: Any) -> dict[str, Any]:
    """A stored one, as ``token.measure`` makes it."""
    run = {"layers": 24, "pass_cycles": 1234567, "words_compared": 5000, "words_mismatched": 0}
    about = {"model": "bitnet-0.73b", "preset": "kv260", "core": core, "sources": proofs.sources(), "context": 128, "prompt": 64}
    return {**about, "token": run, "layer": run | {"layers": 1}, **changes}


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Proofs go to a folder of their own."""
    monkeypatch.setattr(proofs, "PROOFS", tmp_path / "proofs.json")
    proofs._proofs.cache_clear()
    yield
    proofs._proofs.cache_clear()


def test_the_proof_in_words(kept: None) -> None:
    spec = token.full_size("bitnet-0.73b")
    one = token.proof(result(proofs.sizes_hash(spec)))
    assert one.text.startswith("a whole token at context 128 (24 layers and head): 1,234,567 cycles as predicted, 5,000 words, 0 differ; 64 prompt tokens")
    proofs.write([one])
    assert proofs.backing(spec) == one.text
    assert proofs.backing(token.full_size("bitnet-2b4t")) is None


def test_a_proof_of_an_earlier_version_says_so(kept: None) -> None:
    spec = token.full_size("bitnet-0.73b", "kv260-planes")
    proofs.write([token.proof(result(proofs.sizes_hash(spec), preset="kv260-planes", sources="0123456789abcdef"))])
    found = proofs.backing(spec)
    assert found and found.endswith("(proved an earlier version of RTL or models; renewed by `python -m benchmarks token bitnet-0.73b kv260-planes`)")


def test_what_a_proof_is_of() -> None:
    """RTL and models of a core and nothing else; a change of what they do, not of what they say."""
    found = proofs.modules()
    assert {"lutra.rtl.ternary.tlmm", "lutra.rtl.axi.reader", "lutra.hls_models.ternary.core_passes", "lutra.hls_models.floats"} <= set(found)
    foreign = ("lutra.rtl.pim", "lutra.rtl.board", "lutra.mapping", "lutra.fpga_flows", "lutra.cosim", "lutra.hls_models.ternary.resources")
    assert not [name for name in found if name.startswith(foreign)]
    name = "lutra.rtl.ternary.shared_system"
    one, text = {name: found[name]}, ast.unparse(found[name])

    def changed(old: str, new: str) -> str:
        assert old in text
        return proofs.digest({name: ast.parse(text.replace(old, new, 1))}, {})

    same = proofs.digest(one, {})
    assert changed('"""', '"""Other words. ') == changed("class ", "# why\n\nclass ") == same
    other = changed("reader.error | writer.error", "reader.error & writer.error")
    assert same not in (other, proofs.digest(one, {"lutra_ram": "module"}), proofs.digest(one | {"lutra.more": ast.parse("")}, {}))


def test_stored_proofs_are_those_of_the_stored_runs() -> None:
    runs = token_runs()
    assert set(runs) == {proofs.sizes_hash(token.full_size(model, preset)) for model in kv260.MODELS for preset in (kv260.PRESET, kv260.PLANES)}
    assert [proofs.backing_of(core) for core in runs] == [str(token.proof(run)) for run in runs.values()]


def test_the_command_renews_a_proof(kept: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """``python -m benchmarks token MODEL [PRESET]`` keeps its result under one name, and makes proof and page anew."""
    folder = tmp_path / "docs" / "results"
    shutil.copytree(benchmarks.RESULTS, folder)
    for module in (benchmarks, results):
        monkeypatch.setattr(module, "RESULTS", folder)
    core = proofs.sizes_hash(token.full_size("bitnet-0.73b"))
    stored = token_runs()[core]
    renewed = stored | {"sources": proofs.sources(), "token": stored["token"] | {"words_compared": 99887766}}
    monkeypatch.setitem(benchmarks.ON_MODEL, "token", lambda model, preset=token.PRESET: renewed)
    assert benchmarks.main(["token", "bitnet-0.73b", "kv260"]) == 0
    assert list(folder.glob(f"token-bitnet-0.73b-{date.today()}.json")) and "99887766" in capsys.readouterr().out
    assert "99,887,766 words" in str(proofs.backing_of(core)) and "99,887,766 words" in (tmp_path / "docs" / "kv260.md").read_text(encoding="utf-8")


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
