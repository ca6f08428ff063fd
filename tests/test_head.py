# SPDX-License-Identifier: Apache-2.0
"""HEAD: RTL against golden values and predicted cycles, order of the best, and what the configuration refuses."""

import numpy as np
import pytest
from conftest import MASTER_SEED
from pydantic import ValidationError

from lutra.cosim.benches import head, loader
from lutra.cosim.benches.head import compare_case, play
from lutra.cosim.harness import Bench, Fault
from lutra.hls_models.errors import MismatchError
from lutra.hls_models.ternary.head import HeadConfig, HeadInstruction, HeadStimulus, HeadTiming
from lutra.hls_models.ternary.loader import LoaderConfig

CONFIGS = head.configurations(MASTER_SEED)
TINY = {"beat_bytes": 36, "vector_lanes": 4, "hidden": 160}


@pytest.fixture(scope="module")
def bench() -> Bench:
    return loader.bench(MASTER_SEED)


def check(bench: Bench, rng: np.random.Generator) -> int:
    cases = {f"h{i}": head.case(config, rng) for i, config in enumerate(CONFIGS)}
    recordings = play(bench, cases)
    return sum(compare_case(name, one, recordings[name]) for name, one in cases.items())


@pytest.mark.parametrize("run", range(2))
def test_rtl_equals_the_model(bench: Bench, rng: np.random.Generator, run: int) -> None:
    assert check(bench, rng) > 2_000


@pytest.mark.soak
@pytest.mark.parametrize("run", range(20))  # 12 configurations each
def test_rtl_equals_the_model_in_many_cases(bench: Bench, rng: np.random.Generator, run: int) -> None:
    assert check(bench, rng) > 2_000


@pytest.mark.parametrize(("port", "kind"), [("rows", "flip"), ("codes", "drop"), ("instr", "delay")])
def test_faults_are_caught(bench: Bench, rng: np.random.Generator, port: str, kind: str) -> None:
    """The last code of the row and the first table beat (its lowest bit: of the scale) matter to every score."""
    one = head.case(CONFIGS[1], rng, 1)
    beat = len(one.expected["codes"][1]) - 1 if port == "codes" else 0
    with pytest.raises(MismatchError, match=r"h1\b|h1\."):
        compare_case("h1", one, play(bench, {"h1": one}, faults=[Fault("h1", port, kind, beat=beat)])["h1"])


def test_a_wrong_golden_word_is_named(bench: Bench, rng: np.random.Generator) -> None:
    one = head.case(CONFIGS[1], rng)
    recordings = play(bench, {"h1": one})["h1"]
    one.expected["token"][0][1, 2] ^= 1
    with pytest.raises(MismatchError, match=r"h1\.token\[1\]: expected 0x"):
        compare_case("h1", one, recordings)


def test_order_of_the_best() -> None:
    values = np.array([-0.0, 0.0, np.nan, 1.0, np.inf, 1.0, -np.inf, -1.0], "<f4").view("<u4")
    ids, scores = HeadConfig(**TINY).choose(values)
    assert ids.tolist() == [4, 3, 5, 0, 1, 7, 6, 2]
    assert scores[3] == 0x8000_0000
    ids, _ = HeadConfig(**TINY, best=2).choose(values)
    assert ids.tolist() == [4, 3]


def test_scores(rng: np.random.Generator) -> None:
    """Exact integer dots times fp32 scales, as float64 and one rounding give them."""
    config = HeadConfig(**TINY)
    table, scales = rng.integers(-128, 128, (65, 160)).astype(np.int8), rng.uniform(0, 1, 65).astype("<f4")
    codes = rng.integers(-127, 128, 160).astype(np.int8)
    unpacked = config.unpack_table(config.pack_table(table, scales))
    np.testing.assert_array_equal(unpacked[0], table)
    dots = table.astype(np.int64) @ codes.astype(np.int64)
    np.testing.assert_array_equal(config.scores(codes, *unpacked).view("<f4"), (dots.astype("<f4").astype(float) * scales).astype("<f4"))


def test_table_is_the_embedding_too(rng: np.random.Generator) -> None:
    config = LoaderConfig(**TINY, ring_rows=48, params_rows=40, rope_rows=32)
    assert config.table_beats == HeadConfig(**TINY).row_beats == 5


def test_timing_of_always_taken_outputs(rng: np.random.Generator) -> None:
    config = HeadConfig(**TINY)
    timing = HeadTiming(config)
    todo = [HeadInstruction(int(v), config.row_beats) for v in rng.integers(1, 70, 5)]
    none = np.zeros(0, np.int64)
    stimuli = [HeadStimulus(none, 0, np.cumsum(rng.integers(0, 3, one.vocabulary * one.row_beats))) for one in todo]
    _, taken = config.cycles(todo, stimuli)
    last_row = np.cumsum([one.vocabulary * one.row_beats for one in todo]) - 1
    offered = 0
    for i, one in enumerate(todo):
        start = int(timing.start(offered))
        assert start == taken["instr"][i]
        assert timing.finish(one.vocabulary, int(taken["rows"][last_row[i]])) == (taken["token"][i], taken["done"][i])
        offered = start + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beat_bytes": 38}, "beat_bytes must be a multiple of vector_lanes = 4, not 38; nearest: 40"),
        ({"beat_bytes": 8}, r"beat_bytes must be at least 3 \* vector_lanes = 12, not 8"),
        ({"hidden": 162}, "hidden must be a multiple of vector_lanes = 4, not 162; nearest: 164"),
        ({"best": 0}, "best"),
    ],
)
def test_refused_configurations(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        HeadConfig(**(TINY | change))
