# SPDX-License-Identifier: Apache-2.0
"""Whole cores: every word and every handshake of conversations on the RTL, and faults that must not go unseen."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import pytest
from conftest import MASTER_SEED

from lutra.cosim.benches import core
from lutra.cosim.core import CoreBench
from lutra.cosim.harness import Fault
from lutra.hls_models.errors import ModelError
from lutra.hls_models.ternary import core_units, executor
from lutra.hls_models.ternary.config import KvFormat
from lutra.hls_models.ternary.core_cycles import CoreTiming
from lutra.hls_models.ternary.core_units import PassTimes
from lutra.hls_models.ternary.executor import Executor
from lutra.hls_models.ternary.isa import LoadTarget, Unit
from lutra.hls_models.ternary.linear import LinearCycles, LinearRun
from lutra.hls_models.ternary.loader_timing import LoaderTiming
from lutra.hls_models.ternary.program import Program
from lutra.hls_models.ternary.trits import RowLayout, decode_bytes, encode_bytes
from lutra.hls_models.ternary.vector_cycles import VectorTiming

SOAK_TOPS = 6  # of two cores each


def cores(number: int, seed: int = MASTER_SEED) -> list[core.Small]:
    """Two cores, the first with an int8 cache, the second with one of 16-bit floats."""
    rng = np.random.default_rng([seed, number])
    return [core.small(rng, kv_format) for kv_format in get_args(KvFormat)]


@pytest.fixture(scope="module")
def small() -> list[core.Small]:
    return cores(0)


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
@pytest.mark.parametrize("top", range(SOAK_TOPS))
def test_every_word_and_cycle_of_many_cores(top: int, rng: np.random.Generator) -> None:
    many = cores(top + 1)
    made = core.bench(many)
    assert sum(converse(made, many, rng) for _ in range(20)) > 50_000


def weights_of(program: Program) -> tuple[int, int]:
    """(first beat, beats) of the first weights in memory."""
    region = next(region for region in program.regions if region.name.endswith(".weights"))
    return region.address, region.beats


def with_image(program: Program, change: Callable[[np.ndarray], None]) -> Program:
    assert program.image is not None
    image = np.array(program.image).reshape(-1, program.beat_bytes)
    change(image)
    return replace(program, image=image.reshape(-1))


def flip_trit(program: Program) -> Program:
    first, _ = weights_of(program)

    def change(image: np.ndarray) -> None:
        trits = decode_bytes(image[first, :1])
        trits[0] = -1 if trits[0] == 1 else trits[0] + 1
        image[first, :1] = encode_bytes(trits)

    return with_image(program, change)


def swap_tiles(one: core.Small) -> Program:
    """Exchanges two whole tiles of the first matrix that has two of equal size."""
    config, program = one.spec.config, one.program
    index, linear = next(
        (n, i.fields) for n, i in enumerate(program.instructions) if i.unit is Unit.LINEAR and i.fields["columns"] >= 2 * i.fields["tile_columns"]
    )
    loads = [i.fields for i in program.instructions[:index] if i.unit is Unit.LOADER and i.fields["target"] == LoadTarget.WEIGHTS]
    beats = linear["k_blocks"] * -(-linear["tile_columns"] // config.columns) * config.row_beats
    first = loads[-1]["address"] + np.arange(beats)
    both, crossed = np.concatenate([first, first + beats]), np.concatenate([first + beats, first])
    return with_image(program, lambda image: image.__setitem__(both, image[crossed]))


def test_a_wrong_trit_is_caught(bench: CoreBench, small: list[core.Small], rng: np.random.Generator) -> None:
    job = core.conversation(small[0], rng)
    run = bench.check({"c0": replace(job, memory=flip_trit(job.program))})["c0"]
    assert run.mismatch is not None and run.mismatch.startswith("weights[0]: expected 0x")
    assert "cycle" in run.mismatch and "layers.0.qkv.weights[0] in pass 0 (position 0)" in run.mismatch


def test_swapped_tiles_are_caught(rng: np.random.Generator, bench: CoreBench, small: list[core.Small]) -> None:
    name, one = next((f"c{i}", one) for i, one in enumerate(small) if any(_tiled(one)))
    job = core.conversation(one, rng)
    run = bench.check({name: replace(job, memory=swap_tiles(one))})[name]
    assert run.mismatch is not None and run.mismatch.startswith("weights[")
    assert "cycle" in run.mismatch and ".weights[0] in pass 0 (position 0)" in run.mismatch


def _tiled(one: core.Small) -> list[bool]:
    return [i.unit is Unit.LINEAR and i.fields["columns"] >= 2 * i.fields["tile_columns"] for i in one.program.instructions]


def test_a_wrong_golden_word_is_caught(bench: CoreBench, small: list[core.Small], rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    right = executor.attend

    def wrong(*args: object) -> np.ndarray:
        values = right(*args).copy()  # type: ignore[arg-type]
        values[0, 1] ^= 1
        return values

    monkeypatch.setattr(executor, "attend", wrong)
    run = bench.check({"c0": core.conversation(small[0], rng)})["c0"]
    assert run.words_mismatched
    assert run.mismatch is not None and run.mismatch.startswith("values[0]: expected 0x")


@pytest.mark.parametrize("kind", ["flip", "drop", "delay"])
@pytest.mark.parametrize("boundary", ["sums", "codes", "rows", "params"])
def test_a_disturbed_beat_is_caught(bench: CoreBench, small: list[core.Small], rng: np.random.Generator, boundary: str, kind: str) -> None:
    run = bench.check({"c0": core.conversation(small[0], rng)}, faults=[Fault("c0", boundary, kind, beat=3)])["c0"]
    assert run.mismatch is not None and run.mismatch.startswith(f"{boundary}[3]")
    assert "cycle" in run.mismatch


def test_prompts_that_do_not_fit_are_refused(small: list[core.Small]) -> None:
    one = small[0]
    golden = Executor(one.spec, one.program)
    with pytest.raises(ModelError, match=f"must fit the context of {one.spec.shape.context} tokens"):
        next(golden.generate([0] * (one.spec.shape.context + 1), 1))
    with pytest.raises(ModelError, match="prompt ids must be in 0"):
        next(golden.generate([one.spec.shape.vocabulary], 1))
    with pytest.raises(ModelError, match="at least one token"):
        next(golden.generate([], 1))


def assert_equal(some: list[PassTimes], others: list[PassTimes]) -> None:
    """The same passes, every cycle and every clock of work and stalls."""
    for one, other in zip(some, others, strict=True):
        for name in ("position", "tokens", "last", "start", "end", "token", "active", "worked", "stalls"):
            assert getattr(one, name) == getattr(other, name), name
        np.testing.assert_array_equal(one.begins, other.begins)
        np.testing.assert_array_equal(one.dones, other.dones)


def test_detail_changes_no_cycle(small: list[core.Small]) -> None:
    one = small[0]
    plain, detailed = (CoreTiming(one.spec, one.program, detail=detail).run(5, 4) for detail in (False, True))
    assert_equal(plain, detailed)
    assert not plain[0].streams and detailed[0].streams


def alone(one: core.Small, rng: np.random.Generator) -> None:
    """Passes in any order, together and each by itself."""
    shape, chunk = one.spec.shape, one.spec.config.chunk
    plan = []
    for _ in range(20):
        tokens = int(rng.integers(1, min(chunk, 3) + 1))
        plan.append((int(rng.integers(0, shape.context - tokens + 1)), tokens, bool(rng.integers(2))))
    together = CoreTiming(one.spec, one.program, detail=True)
    by_itself = CoreTiming(one.spec, one.program, detail=True)
    some, others = together.passes(plan), [by_itself.passes([single])[0] for single in plan]
    assert_equal(some, others)
    for a, b in zip(some, others, strict=True):
        assert a.streams.keys() == b.streams.keys()
        for name, cycles in a.streams.items():
            np.testing.assert_array_equal(cycles, b.streams[name], err_msg=name)


@pytest.mark.parametrize("number", range(3))
def test_passes_together_are_passes_alone(rng: np.random.Generator, number: int) -> None:
    for one in cores(number):
        alone(one, rng)


def test_passes_together_are_passes_alone_where_tiles_wait(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """LINEAR has the sums of a tile before VECTOR takes them, two clocks after the last ones of the tile before: in few cores, of which this is one."""
    step, ends, waited = LinearRun.step, dict[LinearRun, tuple[int, np.ndarray]](), 0

    def watched(run: LinearRun, arrived: np.ndarray, ready: np.ndarray) -> LinearCycles:
        nonlocal waited
        tile, before = run.tile, ends.get(run)
        result = step(run, arrived, ready)
        if result.sums.shape[-1]:
            if before is not None and before[0] != tile:
                waited += int(((result.sums[:, 0] == before[1] + 2) & (ready == before[1] + 2)).sum())
            ends[run] = tile, result.sums[:, -1]
        return result

    monkeypatch.setattr(LinearRun, "step", watched)
    alone(cores(19, seed=1)[0], rng)
    assert waited > 0


@pytest.mark.soak
def test_passes_together_are_passes_alone_in_many_cores(rng: np.random.Generator) -> None:
    for number in range(100):
        for one in cores(number):
            alone(one, rng)


def test_batches_of_any_size(small: list[core.Small], monkeypatch: pytest.MonkeyPatch) -> None:
    one = small[0]
    whole = CoreTiming(one.spec, one.program).run(7, 5)
    monkeypatch.setattr(core_units, "PASSES", 2)
    assert_equal(whole, CoreTiming(one.spec, one.program).run(7, 5))


def test_more_passes_take_no_more_steps(small: list[core.Small], monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's speed: units are evaluated once for all passes that are alike, not once for each."""
    one, steps = small[0], Counter[str]()

    def counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any, **keywords: Any) -> Any:
            steps[name] += 1
            return call(*args, **keywords)

        return counted

    for unit, name in ((LoaderTiming, "advance"), (LinearRun, "step"), (VectorTiming, "instruction"), (VectorTiming, "requantise")):
        monkeypatch.setattr(unit, name, counting(name, getattr(unit, name)))
    found = []
    for passes in (1, one.spec.shape.context - 1):
        steps.clear()
        CoreTiming(one.spec, one.program).passes([(position, 1, True) for position in range(passes)])
        found.append(dict(steps))
    assert found[0] == found[1] and all(found[0].values())


def test_work_never_exceeds_activity(small: list[core.Small]) -> None:
    for one in small:
        for times in CoreTiming(one.spec, one.program).run(7, 3):
            for unit, active in times.active.items():
                worked, stalls = times.worked[unit], times.stalls[unit]
                assert 0 < worked <= active <= times.cycles or (unit is Unit.HEAD and not times.last)
                assert worked + sum(stalls.values()) == active
                assert all(clocks >= 0 for clocks in stalls.values())


def test_layout_is_the_programs(small: list[core.Small]) -> None:
    one = small[0]
    config = one.spec.config
    layout = RowLayout(group=config.group, tables=config.tables, columns=config.columns, beat_bytes=config.beat_bytes)
    assert layout.row_beats == config.row_beats
