# SPDX-License-Identifier: Apache-2.0
"""Cores on a shared memory: golden values, passes that verify drafts, every word and handshake of the RTL."""

from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import MASTER_SEED

from lutra.cosim.benches import core
from lutra.cosim.core import CoreBench, Job, Turn
from lutra.cosim.harness import Fault
from lutra.hls_models.errors import ModelError
from lutra.hls_models.ternary import core_units
from lutra.hls_models.ternary.attention_cycles import AttentionTiming, SharedPhase
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.core_cycles import CoreTiming
from lutra.hls_models.ternary.core_units import PassPlan, PassTimes
from lutra.hls_models.ternary.drafts import NgramDrafts
from lutra.hls_models.ternary.executor import Executor
from lutra.hls_models.ternary.isa import LoadTarget, Unit
from lutra.hls_models.ternary.repetition import Snapshot
from lutra.mapping.lower import compile_model
from lutra.mapping.model import TernaryModel
from lutra.mapping.place import CACHE

TOP, SOAK_TOPS = 12, (0, 1, 4, 8, 11, 13)  # of two cores each; both of the first verify two tokens at a time


def cores(number: int, count: int = 2, seed: int = MASTER_SEED) -> list[core.Small]:
    """Cores in front of memories, every second one of which does not move a beat in every clock."""
    rng = np.random.default_rng([seed, number])
    return [core.shared(rng, **(core.pattern(rng) if i % 2 else {})) for i in range(count)]


def two_planes(count: int = 2) -> list[core.Small]:
    """Such cores with a head in two planes."""
    rng = np.random.default_rng([MASTER_SEED, 60])
    return [core.shared(rng, planes=True, **(core.pattern(rng) if i % 2 else {})) for i in range(count)]


@pytest.fixture(scope="module")
def small() -> list[core.Small]:
    """One that verifies two tokens at a time; one with a head in two planes, one with padded rows of keys and values, before memories that rest at times."""
    rng = np.random.default_rng([MASTER_SEED, 60])
    padded = core.shared(rng, layers=1, ports=3, head_dim=64, **core.pattern(rng))
    made = [cores(TOP)[0], core.shared(rng, planes=True, **core.pattern(rng)), padded]
    assert all(one.spec.config.draft_lanes > 1 for one in made[:2]) and made[1].spec.planes
    assert padded.spec.kv_layout.row_bytes > padded.spec.kv_layout.head_dim
    return made


@pytest.fixture(scope="module")
def bench(small: list[core.Small]) -> CoreBench:
    made = core.bench(small)
    made.build()
    return made


def converse(made: CoreBench, small: list[core.Small], rng: np.random.Generator) -> int:
    runs = made.check({f"c{i}": core.conversation(one, rng) for i, one in enumerate(small)})
    for run in runs.values():
        assert run.mismatch is None
        assert run.words_mismatched == 0
        assert run.tokens == run.chosen.tolist()
        assert run.measured == [end - start for start, end in zip(run.starts, run.ends, strict=True)]
    return sum(run.words_compared for run in runs.values())


@pytest.mark.parametrize("case", range(3))
def test_every_word_and_cycle(bench: CoreBench, small: list[core.Small], rng: np.random.Generator, case: int) -> None:
    assert converse(bench, small, rng) > 3_000


@pytest.mark.soak
def test_every_word_and_cycle_of_a_head_in_two_planes(rng: np.random.Generator) -> None:
    many = two_planes()
    made = core.bench(many)
    assert sum(converse(made, many, rng) for _ in range(4)) > 10_000


@pytest.mark.soak
def test_every_word_and_cycle_of_five_and_six_ports(rng: np.random.Generator) -> None:
    """Keys and values as in the full-size models, whose rows are padded there."""
    sizes = np.random.default_rng([MASTER_SEED, 70])
    many = [core.shared(sizes, layers=1, ports=ports, head_dim=head_dim) for ports, head_dim in ((5, 96), (6, 128))]
    assert all(one.spec.kv_layout.row_bytes > one.spec.kv_layout.head_dim for one in many)
    made = core.bench(many)
    assert sum(converse(made, many, rng) for _ in range(3)) > 5_000


def test_a_head_in_two_planes_chooses_as_the_other_does(rng: np.random.Generator) -> None:
    for one in two_planes(4):
        prompt, model = prompt_of(one, rng), TernaryModel.random(one.spec.shape, 7)
        texts = []
        for segment in (0, one.spec.config.head_planes):
            config = one.spec.config.model_copy(update={"head_planes": segment})
            spec, program = CoreSpec(config=config, shape=one.spec.shape), compile_model(model, config)
            texts.append([done.token for done in Executor(spec, program).generate(prompt, 8) if done.last])
        assert texts[0] == texts[1]


@pytest.mark.soak
@pytest.mark.parametrize("top", SOAK_TOPS)
def test_every_word_and_cycle_of_many_cores(top: int, rng: np.random.Generator) -> None:
    many = cores(top)
    made = core.bench(many)
    assert sum(converse(made, many, rng) for _ in range(20)) > 50_000


FAULTS = {
    **{"bursts": ["flip", "drop", "delay"], "data": ["flip", "drop"], "kv": ["flip", "delay"], "kv_data": ["flip", "drop"], "kv_write": ["flip", "delay"]},
    **{"k_freed": ["flip", "drop"], "v_freed": ["delay"], "values": ["delay"]},
}


@pytest.mark.parametrize(("boundary", "kind"), [(boundary, kind) for boundary, kinds in FAULTS.items() for kind in kinds])
def test_a_disturbed_beat_is_caught(bench: CoreBench, small: list[core.Small], rng: np.random.Generator, boundary: str, kind: str) -> None:
    job = Job(small[0].program, [Turn(prompt_of(small[0], rng)[:2])])
    run = bench.check({"c0": job}, faults=[Fault("c0", boundary, kind, beat=2)])["c0"]
    assert run.mismatch is not None and run.mismatch.startswith(f"{boundary}[2]")
    assert "cycle" in run.mismatch


def test_what_lies_in_memory_matters(bench: CoreBench, small: list[core.Small], rng: np.random.Generator) -> None:
    """Keys and values that were there before a turn which claims to follow another."""
    job = Job(small[0].program, [Turn(prompt_of(small[0], rng)[:2], start=1)])
    cache = small[0].program.region(CACHE)
    assert small[0].program.image is not None
    image = np.array(small[0].program.image).reshape(-1, small[0].program.beat_bytes)
    image[cache.address : cache.address + cache.beats] = 0x3F
    run = bench.check({"c0": replace(job, memory=replace(small[0].program, image=image.reshape(-1)))})["c0"]
    assert run.mismatch is not None and run.mismatch.startswith("data[")


def prompt_of(one: core.Small, rng: np.random.Generator) -> list[int]:
    return [int(token) for token in rng.integers(0, one.spec.shape.vocabulary, int(rng.integers(2, one.spec.shape.context // 2)))]


@pytest.mark.parametrize("number", [0, 3, 8, 12])
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


@pytest.mark.parametrize("number", [1, 8, 12])
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
        memory = layout.pack(golden.cache.codes.astype(np.int8), golden.cache.scales).reshape(-1, layout.beat_bytes)
        for layer, (beats, rows) in enumerate(zip(done.streams["kv"], done.streams["kv_data"], strict=True)):
            tiles = list(layout.order(layer, done.tokens, done.position))
            wanted = np.concatenate([memory[tile.address - layout.base :][: tile.beats] for tile in tiles])
            np.testing.assert_array_equal(beats[:, : layout.beat_bytes // 4], wanted.view("<u4"))
            assert len(rows) == sum(tile.rows for tile in tiles)
        loads = [i for i in one.program.instructions if i.unit is Unit.LOADER and i.fields["target"] == LoadTarget.KV]
        assert len(loads) == one.spec.shape.layers == len(done.streams["kv"])


def assert_equal(some: list[PassTimes], others: list[PassTimes]) -> None:
    """The same passes, every cycle and every clock of work and stalls."""
    for one, other in zip(some, others, strict=True):
        for name in ("position", "tokens", "last", "serial", "start", "end", "token", "active", "worked", "stalls"):
            assert getattr(one, name) == getattr(other, name), name
        np.testing.assert_array_equal(one.begins, other.begins)
        np.testing.assert_array_equal(one.dones, other.dones)


def test_detail_changes_no_cycle() -> None:
    for one in cores(1, 4):
        plain, detailed = (CoreTiming(one.spec, one.program, detail=detail).run(5, 4) for detail in (False, True))
        assert_equal(plain, detailed)
        assert not plain[0].streams and detailed[0].streams


def test_work_never_exceeds_activity() -> None:
    for one in cores(2, 4):
        for times in CoreTiming(one.spec, one.program).run(7, 3):
            for unit, active in times.active.items():
                worked, stalls = times.worked[unit], times.stalls[unit]
                assert 0 <= worked <= active <= times.cycles
                assert worked + sum(stalls.values()) == active
                assert all(clocks >= 0 for clocks in stalls.values())


def test_every_beat_that_is_asked_for_comes() -> None:
    """Beats of the port are those of the units behind it, in number and, shifted by a register, in time."""
    for one in cores(4, 4):
        streams = CoreTiming(one.spec, one.program, detail=True).run(3, 1)[0].streams
        parts = [streams[name] for name in ("weights", "kv")]
        assert set(np.concatenate(parts) - 1) <= set(streams["data"]) and (np.diff(streams["data"]) > 0).all()


def test_layers_that_repeat_are_worked_out_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cycles are those of going through all layers, most of which need not be gone through where a layer's cache is whole bursts."""
    attended, whole, layers = Counter[bool](), AttentionTiming.phase_shared, 12

    def counted(*args: Any) -> SharedPhase:
        attended[repeats] += 1
        return whole(*args)

    monkeypatch.setattr(AttentionTiming, "phase_shared", counted)
    for number in range(8):
        one = core.shared(np.random.default_rng([MASTER_SEED, 50, number]), layers=layers)
        config, last = one.spec.config, one.spec.shape.context - 1
        plan = [PassPlan(0, config.chunk, False), PassPlan(5, 1, True), PassPlan(last, 1, True), PassPlan(2, config.draft_lanes, True, True)]
        assert config.memory is not None
        attended.clear()
        repeats = True
        some = CoreTiming(one.spec, one.program).passes(plan)
        with monkeypatch.context() as patch:
            patch.setattr(core_units, "repeated_body", lambda *_: ([], 0))
            repeats = False
            others = CoreTiming(one.spec, one.program).passes(plan)
        assert_equal(some, others)
        assert attended[False] == len(plan) * layers
        if one.spec.kv_layout.layer_beats % config.memory.burst_beats == 0:
            assert attended[True] <= attended[False] * 2 // 3


def test_a_state_is_all_that_layers_hand_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison is what makes copies exact: without it layers that differ are taken for equal."""
    monkeypatch.setattr(Snapshot, "__eq__", lambda *_: True)
    wrong = 0
    for number in range(8):
        one = core.shared(np.random.default_rng([MASTER_SEED, 50, number]), layers=12)
        some = CoreTiming(one.spec, one.program).passes([(5, 1, True)])
        with monkeypatch.context() as patch:
            patch.setattr(core_units, "repeated_body", lambda *_: ([], 0))
            wrong += some[0].end != CoreTiming(one.spec, one.program).passes([(5, 1, True)])[0].end
    assert wrong
