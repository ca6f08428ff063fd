# SPDX-License-Identifier: Apache-2.0
"""LINEAR: golden forms against each other, values and cycles against the RTL alone and behind the weight path, utilisation, refusals."""

import time

import numpy as np
import pytest
from pydantic import ValidationError

from lutra.cosim.benches import linear as linear_benches
from lutra.cosim.benches import tlmm as benches
from lutra.hls_models.errors import ConfigError, MismatchError
from lutra.hls_models.streams import Ready
from lutra.hls_models.ternary import linear
from lutra.hls_models.ternary.linear import LinearTiming, utilisation
from lutra.hls_models.ternary.tlmm import TlmmConfig
from lutra.hls_models.ternary.tlmm_cycles import Drain
from lutra.hls_models.ternary.weights import LinearInstruction, WeightPathConfig

TINY = TlmmConfig(group=3, tables=6, columns=10, lanes=2, vector_lanes=4, max_tokens=8, max_k=384, max_tile_columns=400)
TINY_PATH = WeightPathConfig(group=3, tables=6, columns=10, beat_bytes=36, lanes=2, ring_rows=512)


@pytest.fixture(scope="module")
def built():
    configs = benches.configurations(1)
    assert len(configs) == 12
    return benches.bench(configs), configs


@pytest.fixture(scope="module")
def built_pair():
    configs = linear_benches.configurations(1)
    assert len(configs) == 12
    return linear_benches.bench(configs), configs


def test_golden_forms_are_equal(rng):
    for config in benches.configurations(3, 40).values():
        n, k, columns = int(rng.integers(1, 4)), int(rng.integers(1, config.max_k + 1)), int(rng.integers(1, 40))
        low = -(1 << config.activation_bits - 1)
        codes = rng.integers(low, -low, (n, k))
        codes[:, 0] = low
        weights = rng.integers(-1, 2, (columns, k)).astype(np.int8)
        exact = codes @ weights.T.astype(np.int64)
        assert np.array_equal(config.matmul(codes, weights), exact)
        assert np.array_equal(config.matmul_by_tables(codes, weights, int(rng.integers(1, 45))), exact)
        largest = -low * k
        assert -(1 << config.accumulator_bits - 1) <= -largest and largest < 1 << config.accumulator_bits - 1


def test_values_and_cycles(built, seed):
    assert benches.check(*built, seed) > 1000


def test_values_and_cycles_behind_the_weight_path(built_pair, seed):
    assert linear_benches.check(*built_pair, seed) > 1000


@pytest.mark.soak
@pytest.mark.parametrize("run", range(18))
def test_values_and_cycles_often(built, built_pair, seed, run):
    """12 configurations x 18 runs x 3 instructions, twice."""
    assert benches.check(*built, seed) > 1000
    assert linear_benches.check(*built_pair, seed) > 1000


@pytest.mark.soak
@pytest.mark.parametrize("sizes", [2, 3])
def test_other_sizes(sizes, seed):
    configs = benches.configurations(sizes, 22)
    assert benches.check(benches.bench(configs), configs, seed, instructions=4) > 1000
    pairs = linear_benches.configurations(sizes, 22)
    assert linear_benches.check(linear_benches.bench(pairs), pairs, seed, instructions=4) > 1000


def test_wrong_models_are_caught(built, built_pair, seed, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(TlmmConfig, "sum_latency", property(lambda self: 3 + self.tree_levels + self.half_tables))
        with pytest.raises(MismatchError, match="expected cycle"):
            benches.check(*built, seed)
    with monkeypatch.context() as patch:
        patch.setattr(TlmmConfig, "matmul", lambda self, codes, weights: codes @ weights.T.astype(np.int64) + 1)
        with pytest.raises(MismatchError, match=r"sums\[\d+\]: expected 0x"):
            benches.check(*built, seed)
    with monkeypatch.context() as patch:
        patch.setattr(linear, "ARRIVAL_CYCLES", linear.ARRIVAL_CYCLES + 1)
        with pytest.raises(MismatchError, match="expected cycle"):
            linear_benches.check(*built_pair, seed)


def test_drain_in_closed_form(rng):
    """Vectorised and step-by-step drain into sinks that become ready once."""
    for _ in range(300):
        columns, vector_lanes, lanes = int(rng.integers(1, 9)), int(rng.choice([1, 2, 4, 8])), int(rng.integers(1, 4))
        config = TlmmConfig(tables=1, columns=columns, lanes=lanes, vector_lanes=vector_lanes, max_tokens=8, max_k=8, max_tile_columns=60, allow_stalls=True)
        steady, traced, clock = Drain(config), Drain(config), 10
        for _ in range(3):
            tile, valid = int(rng.integers(1, 61)), int(rng.integers(1, lanes + 1))
            written = max(clock, steady.read) + 1 + np.cumsum(rng.integers(1, 3, -(-tile // columns)))
            ready = max(steady.left + 1, 0) + int(rng.choice([0, 20, 50]))
            beats = steady.steady(written, tile, valid, ready)
            assert beats.tolist() == traced.traced(written, tile, valid, Ready(np.zeros(ready, bool)))
            assert (steady.read, steady.taken, steady.left) == (traced.read, traced.taken, traced.left)
            clock = int(written[-1])


def test_schedules_are_shifted_only_when_rows_are_in_time(rng):
    """A schedule computed from its start, and the same rows computed step by step, agree whatever the rows' arrival."""
    for _ in range(30):
        instruction = LinearInstruction(int(rng.integers(1, 9)), int(rng.integers(1, 90)) * 4, int(rng.integers(4, 100)) * 4, int(rng.integers(1, 3)))
        rows = instruction.k_blocks * sum(-(-tile // 10) for tile in linear.tiles_of(instruction.columns, instruction.tile_columns))
        start = int(rng.integers(1000, 2000))
        late = rng.choice([-1000, 0, 40])
        arrived = start + late + np.sort(rng.integers(0, 2 * rows, rows))
        quick, slow = LinearTiming(TINY, TINY_PATH), LinearTiming(TINY, TINY_PATH)
        slow._state = slow._state._replace(row=start - 1)
        first = quick.instruction(instruction, start, arrived)
        run = slow.begin(instruction, start)
        run._in_time = lambda *_: False  # type: ignore[method-assign]
        done, position = [], 0
        while not run.finished:
            count = run.rows_wanted
            done.append(run.step(arrived[position : position + count]))
            position += count
        assert all(np.array_equal(first[0][i], np.concatenate([step[i] for step in done])) for i in range(3))
        assert first[1] == run.done


def test_utilisation_of_a_large_array():
    """Issue 2: at least 95 % for K = 1536, N = 4096 and its transpose in prefill, on 6,144 multiply-accumulates per clock."""
    config = TlmmConfig(group=3, tables=32, columns=16, lanes=4, vector_lanes=8, max_tokens=32, max_k=4096, max_tile_columns=512)
    path = WeightPathConfig(group=3, tables=32, columns=16, beat_bytes=64, lanes=4, ring_rows=2048)
    for k, columns in ((1536, 4096), (4096, 1536)):
        instruction = LinearInstruction(path.blocks(k), columns, 512, 32)
        path.check_tile(k, 512, 32)
        config.check_tile(columns, 512, k)
        _, done = LinearTiming(config, path).instruction(instruction, 1000)
        assert utilisation(config, instruction, k, done - 1000) > 0.98


def test_utilisation_formula_in_rtl(built_pair, seed):
    made, configs = built_pair
    predicted, measured = linear_benches.check_utilisation(made, "c0", configs["c0"], LinearInstruction(16, 256, 128, 32), 192, seed)
    assert predicted == measured
    assert measured > 0.98


def test_a_token_of_the_small_model_is_predicted_quickly():
    """All linear layers of four layers, rows in time: well under a millisecond once their schedules are known (best of some tries)."""
    timing = LinearTiming(TINY, TINY_PATH)
    program = [LinearInstruction(9, 224, 224, 1), LinearInstruction(9, 160, 160, 1), LinearInstruction(9, 768, 384, 1), LinearInstruction(22, 160, 160, 1)] * 4
    seconds = []
    start = 1000
    for _ in range(20):
        begin = time.perf_counter()
        for instruction in program:
            start = timing.instruction(instruction, start)[1] + 10
        seconds.append(time.perf_counter() - begin)
    assert min(seconds) < 1e-3


def test_refusals():
    sizes = {"tables": 6, "columns": 10, "lanes": 2, "max_tokens": 8, "max_k": 384}
    with pytest.raises(ValidationError, match=r"max_tile_columns must be at least 141 .* >= 14 entries \+ 1 swap cycles\), not 140"):
        TlmmConfig(**sizes, max_tile_columns=140)
    TlmmConfig(**sizes, max_tile_columns=140, allow_stalls=True)
    TlmmConfig(**sizes, max_tile_columns=141)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        TlmmConfig(**sizes, max_tile_columns=400, colums=3)
    TINY.check_tile(768, 384, 160)
    with pytest.raises(ConfigError, match=r"must have at least 141 .*, 400 leaves one of 100; nearest: 356"):
        TINY.check_tile(500, 400, 160)
    with pytest.raises(ConfigError, match="tile_columns must be 1 to max_tile_columns = 400, not 401"):
        TINY.check_tile(500, 401, 160)
    with pytest.raises(ConfigError, match="k must be 1 to max_k = 384, not 385"):
        TINY.check_tile(500, 400, 385)
    with pytest.raises(ConfigError, match="ring_rows must be at least 40"):
        LinearTiming(TINY, TINY_PATH.model_copy(update={"ring_rows": 39}))
    with pytest.raises(ConfigError, match="must fit ring_rows = 512 when tokens > 2"):
        LinearTiming(TINY, TINY_PATH).instruction(LinearInstruction(22, 400, 400, 3), 0)
