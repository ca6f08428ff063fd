# SPDX-License-Identifier: Apache-2.0
"""Cores on a shared memory: golden values, passes that verify drafts, every word and handshake of the RTL."""

import numpy as np
import pytest
from conftest import MASTER_SEED

from lutra.cosim.benches import core
from lutra.hls_models.errors import ModelError
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.drafts import NgramDrafts
from lutra.hls_models.ternary.executor import Executor
from lutra.hls_models.ternary.isa import LoadTarget, Unit
from lutra.mapping.lower import compile_model
from lutra.mapping.model import TernaryModel


def cores(number: int, count: int = 2, seed: int = MASTER_SEED) -> list[core.Small]:
    rng = np.random.default_rng([seed, number])
    return [core.shared(rng) for _ in range(count)]


def prompt_of(one: core.Small, rng: np.random.Generator) -> list[int]:
    return [int(token) for token in rng.integers(0, one.spec.shape.vocabulary, int(rng.integers(2, one.spec.shape.context // 2)))]


@pytest.mark.parametrize("number", range(4))
def test_a_serial_pass_chooses_as_decoding_does(rng: np.random.Generator, number: int) -> None:
    for one in cores(number):
        lanes, context = one.spec.config.draft_lanes, one.spec.shape.context
        prompt = prompt_of(one, rng)
        golden, again = Executor(one.spec, one.program), Executor(one.spec, one.program)
        text = [done.token for done in golden.generate(prompt, context) if done.last]
        list(again.generate(prompt, 1))
        ids = [token for token in text if token is not None][:lanes]
        position = len(prompt)
        ids = ids[: context - position]
        done = again.verify(ids, position, record=True)
        assert done.choices[: len(text) - 1] == text[1 : len(ids) + 1]
        np.testing.assert_array_equal(again.cache.codes[:, :, : position + len(ids)], golden.cache.codes[:, :, : position + len(ids)])
        assert len(done.streams["token"][0]) == len(ids)


@pytest.mark.parametrize("number", range(3))
def test_drafts_do_not_change_the_text(rng: np.random.Generator, number: int) -> None:
    for one in cores(number):
        prompt, count = prompt_of(one, rng), one.spec.shape.context // 2
        greedy = [done.token for done in Executor(one.spec, one.program).generate(prompt, count) if done.last]
        passes = list(Executor(one.spec, one.program).speculate(prompt, count, NgramDrafts(3, 1)))
        drafted = [token for done in passes for token in done.accepted]
        assert drafted == greedy


def test_where_the_memory_is_does_not_matter(rng: np.random.Generator) -> None:
    """The same model with its cache on chip: the same text."""
    for one in cores(5, 3):
        prompt = prompt_of(one, rng)
        config = one.spec.config.model_copy(update={"memory": None})
        model = TernaryModel.random(one.spec.shape, 7)
        texts = []
        for sizes in (config, one.spec.config):
            spec, program = CoreSpec(config=sizes, shape=one.spec.shape), compile_model(model, sizes)
            texts.append([done.token for done in Executor(spec, program).generate(prompt, 8) if done.last])
        assert texts[0] == texts[1]


def test_what_a_serial_pass_takes(rng: np.random.Generator) -> None:
    one = cores(0)[0]
    with pytest.raises(ModelError, match=f"a serial pass takes at most draft_lanes = {one.spec.config.draft_lanes} tokens"):
        Executor(one.spec, one.program).verify([0] * (one.spec.config.draft_lanes + 1), 0)


def test_tiles_are_what_the_cache_holds(rng: np.random.Generator) -> None:
    """Beats of ``kv`` are those of the whole cache, packed; rows of ``kv_data`` those that the pass sees."""
    for one in cores(3, 3):
        golden, layout = Executor(one.spec, one.program), one.spec.kv_layout
        done = list(golden.generate(prompt_of(one, rng), 2, record=True))[-1]
        memory = layout.pack(golden.cache.codes, golden.cache.scales).reshape(-1, layout.beat_bytes)
        for layer, (beats, rows) in enumerate(zip(done.streams["kv"], done.streams["kv_data"], strict=True)):
            tiles = list(layout.order(layer, done.tokens, done.position))
            wanted = np.concatenate([memory[tile.address - layout.base :][: tile.beats] for tile in tiles])
            np.testing.assert_array_equal(beats[:, : layout.beat_bytes // 4], wanted.view("<u4"))
            assert len(rows) == sum(tile.rows for tile in tiles)
        loads = [i for i in one.program.instructions if i.unit is Unit.LOADER and i.fields["target"] == LoadTarget.KV]
        assert len(loads) == one.spec.shape.layers == len(done.streams["kv"])
