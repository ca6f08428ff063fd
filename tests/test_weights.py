# SPDX-License-Identifier: Apache-2.0
"""Weight path: golden values and cycles against the RTL, refusals."""

import numpy as np
import pytest

from lutra.cosim.benches import weights as benches
from lutra.hls_models.errors import ConfigError, MismatchError
from lutra.hls_models.ternary import weights
from lutra.hls_models.ternary.weights import LinearInstruction, WeightPathConfig, read_order


@pytest.fixture(scope="module")
def built():
    configs = benches.configurations(1)
    assert len(configs) == 12
    return benches.bench(configs), configs


def test_values_and_cycles(built, seed):
    assert benches.check(*built, seed) > 1000


@pytest.mark.soak
@pytest.mark.parametrize("run", range(18))
def test_values_and_cycles_often(built, seed, run):
    """12 configurations x 18 runs x 3 instructions."""
    assert benches.check(*built, seed) > 1000


@pytest.mark.soak
@pytest.mark.parametrize("sizes", [2, 3])
def test_other_sizes(sizes, seed):
    configs = benches.configurations(sizes, 22)
    assert benches.check(benches.bench(configs), configs, seed, instructions=4) > 1000


def test_a_wrong_constant_is_caught(built, seed, monkeypatch):
    monkeypatch.setattr(weights, "ARRIVAL_CYCLES", weights.ARRIVAL_CYCLES - 1)
    with pytest.raises(MismatchError, match="expected cycle"):
        benches.check(*built, seed)


def test_a_flipped_trit_is_caught(built, seed, monkeypatch):
    right = WeightPathConfig.indices

    def wrong(self, stored):
        out = right(self, stored)
        out[len(out) // 2, 0] ^= 1
        return out

    monkeypatch.setattr(WeightPathConfig, "indices", wrong)
    with pytest.raises(MismatchError, match=r"rows\[\d+\]: expected 0x"):
        benches.check(*built, seed)


def test_read_order():
    config = WeightPathConfig(group=3, tables=2, columns=4, beat_bytes=5, lanes=2, ring_rows=16)
    order, freed = read_order(config, config.lanes, LinearInstruction(2, 10, 8, 3))
    assert order.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 4, 5]
    assert np.flatnonzero(freed).tolist() == [4, 5, 6, 7, 10, 11]


def test_a_tile_must_fit_the_ring():
    config = WeightPathConfig(group=3, tables=6, columns=10, beat_bytes=36, lanes=2, ring_rows=512)
    config.check_tile(160, 400, 8)
    config.check_tile(384, 400, 2)
    with pytest.raises(ConfigError, match=r"must fit ring_rows = 512 when tokens > 2, 400 takes 880 rows; nearest: 230"):
        config.check_tile(384, 400, 3)
