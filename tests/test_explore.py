# SPDX-License-Identifier: Apache-2.0
"""The design-space search: its front against brute force, bounds that hold, equal results whatever the workers, and one line for every mistake."""

import itertools
import json
import random
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lutra import api
from lutra.exploration import search
from lutra.exploration.evaluate import Figures, Task, evaluate, kept
from lutra.exploration.fit import Used, check_fit, counter, fit_of, refusal
from lutra.exploration.goals import Goal, bound_of
from lutra.exploration.output import plot, table
from lutra.exploration.search import Exploration, front_of
from lutra.exploration.space import Space
from lutra.exploration.workers import workers
from lutra.fpga_flows.devices import Device, load_device
from lutra.hls_models.errors import ConfigError, LutraError
from lutra.hls_models.load import load_config
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.memory import MemoryConfig
from lutra.mapping.catalogue import open_model

SHAPE = ModelShape(name="small", hidden=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=96, vocabulary=40, context=64, activation="relu2")
SPACE: dict[str, list[Any]] = {
    "tables": [4, 6, 8],
    "columns": [2, 4],
    "lanes": [1, 2],
    "half_tables": [False, True],
    "vector_lanes": [2, 4],
    "key_tile": [16, 32],
}
TOTALS: dict[Any, float] = {"lut": 2000, "bram36": 40}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path / "cache" / "builds"))


@pytest.fixture(scope="module")
def base() -> CoreConfig:
    values = load_config("tiny", CoreConfig).model_dump(mode="json")
    return CoreConfig.model_validate(values | {"name": "base", "allow_stalls": True, "max_tile_columns": 96, "beat_bytes": 16})


def device(space: dict[str, list[Any]] | None = None, **changes: Any) -> Device:
    return Device.model_validate({"name": "board", "part": "none", "family": "xcup", "preset": "tiny", "totals": TOTALS, "space": space or SPACE} | changes)


def count(spec: CoreSpec) -> Used:
    """Resources that grow with the array and the lanes."""
    c = spec.config
    return {"lut": 20 * c.tables * c.columns * c.lanes * (1.0 if c.half_tables else 1.25) + 50 * c.vector_lanes, "bram36": c.key_tile / 4}


def figures(task: Task) -> Figures:
    """A made-up cycle model above the bound: quick, and not monotone."""
    spec = CoreSpec(config=task.config, shape=task.shape)
    bound = bound_of(spec, task.prompt, task.context)
    if task.config.tables == 6 and task.config.columns == 4 and task.config.half_tables:
        return {"refused": "tiles do not fit"}
    slower = 1 + (7 * task.config.tables + 5 * task.config.lanes + task.config.key_tile // 16) % 5 / 4
    cycles = {"decode_cycles": int(slower * bound.decode) + 1, "ttft_cycles": int(slower * bound.ttft) + 1}
    return cycles | {"bytes_per_token": slower * bound.bytes, "ceiling": 1 / slower, "memory_bytes": 1}


def made_up(tasks: Sequence[Task]) -> Iterator[tuple[int, Figures]]:
    """Results in another order than asked for."""
    for place in reversed(range(len(tasks))):
        yield place, figures(tasks[place])


def explored(base: CoreConfig, *, goal: Goal = "decode", budget: int = 1000, seed: int = 1, run: Any = made_up, on: Device | None = None) -> Exploration:
    return search.explore(SHAPE, on or device(), base, goal=goal, prompt=8, context=20, budget=budget, seed=seed, run=run, count=count)


@pytest.mark.smoke
def test_front_of_pairs() -> None:
    pairs = [((3.0, 1.0), "c"), ((1.0, 5.0), "a"), ((2.0, 5.0), "worse"), ((2.0, 2.0), "b"), ((1.0, 6.0), "worse"), ((2.0, 2.0), "twin")]
    assert front_of(pairs) == ["a", "b", "c"]
    assert front_of([]) == []


@pytest.mark.smoke
@pytest.mark.parametrize("goal", ["decode", "ttft", "bytes"])
def test_the_front_is_that_of_all_cores(goal: Goal, base: CoreConfig) -> None:
    result = explored(base, goal=goal)
    assert result.complete and result.bounded > 0 and result.refused > 0 and result.misfits > 0
    space, points = Space(SPACE, base, SHAPE), []
    for point in itertools.product(*SPACE.values()):
        spec = space.spec(point)
        if spec is not None and not fit_of(spec, device(), count).excess:
            exact = figures(Task(spec.config, SHAPE, 8, 20))
            if "refused" not in exact:
                points.append((exact["bytes_per_token"] if goal == "bytes" else exact[f"{goal}_cycles"] / base.clock_hz, device().share(count(spec))[0]))
    brute = {pair for pair in points if not any(other != pair and other[0] <= pair[0] and other[1] <= pair[1] for other in points)}
    assert {found.pair for found in result.front} == brute and len(brute) > 2
    assert [found.value for found in result.front] == sorted(found.value for found in result.front)


@pytest.mark.smoke
def test_a_budget_bounds_the_evaluations(base: CoreConfig) -> None:
    result = explored(base, budget=5)
    assert len(result.evaluated) + result.refused == 5 and not result.complete
    assert json.dumps(result.facts()) == json.dumps(explored(base, budget=5).facts())


@pytest.mark.smoke
def test_a_large_space_is_sampled_by_the_seed(base: CoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "GRID", 10)
    monkeypatch.setattr(search, "SAMPLE", 12)
    results = [explored(base, seed=seed).facts() for seed in (1, 1, 2)]
    assert results[0] == results[1] and not results[0]["complete"]
    # the neighbours of the front lead to it from any sample
    assert [row["sizes"] for row in results[0]["front"]] == [row["sizes"] for row in explored(base).facts()["front"]]


def exact(base: CoreConfig, jobs: int) -> Exploration:
    small = device({"tables": [4, 8], "columns": [2, 4], "lanes": [1, 2]})
    with workers(jobs) as run:
        return explored(base, run=run, on=small)


def test_exact_cycles_on_processes_and_bounds_below_them(base: CoreConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = exact(base, 1)
    for found in here.evaluated:
        spec = CoreSpec(config=found.candidate.config, shape=SHAPE)
        bound = bound_of(spec, 8, 20)
        assert bound.decode <= found.figures["decode_cycles"] and bound.ttft <= found.figures["ttft_cycles"] and bound.bytes <= found.figures["bytes_per_token"]
    assert exact(base, 1).reused == len(here.evaluated) + here.refused
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path / "other" / "builds"))
    there = exact(base, 2)
    assert there.reused == 0 and there.facts() == here.facts()
    assert "<svg" in plot(here) and plot(here) == plot(there) and table(here)


@pytest.mark.parametrize("prompt", [8, 9])  # a chunk of 8: the last pass of one token scores the planes
@pytest.mark.parametrize(
    "slots", [{}, {"rate_numerator": 4, "rate_denominator": 5}, {"refresh_period": 195, "refresh_window": 60}, {"rate_numerator": 1, "rate_denominator": 64}]
)
@pytest.mark.parametrize("planes", [0, 16])
def test_bounds_of_a_shared_memory_are_below_the_exact_cycles(planes: int, slots: dict[str, int], prompt: int) -> None:
    values = load_config("kv260-planes", CoreConfig).model_dump()
    values |= {"tables": 8, "vector_lanes": 4, "chunk": 8, "beat_bytes": 16, "head_planes": planes, "allow_stalls": True, "ring_rows": 1024, "device": None}
    values["memory"] |= {"ports": 1, "burst_beats": 16, **slots}
    config, shape = CoreConfig.model_validate(values), SHAPE.model_copy(update={"vocabulary": 3000})
    bound, found = bound_of(CoreSpec(config=config, shape=shape), prompt, 40), evaluate(Task(config, shape, prompt, 40))
    assert bound.decode <= found["decode_cycles"] and bound.ttft <= found["ttft_cycles"] and bound.bytes <= found["bytes_per_token"]
    assert 0.95 * found["bytes_per_token"] < bound.bytes  # mostly the head's, which are known


def test_the_same_through_dask(base: CoreConfig) -> None:
    distributed = pytest.importorskip("distributed")
    here = exact(base, 1)
    task = Task(here.front[0].candidate.config, SHAPE, 8, 20)
    local = distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp", host="127.0.0.1")
    with local as cluster, workers(scheduler=cluster.scheduler_address) as run:
        assert sorted(run([task, task])) == [(0, evaluate(task)), (1, evaluate(task))]


def test_a_scheduler_that_is_lost_is_one_line(base: CoreConfig) -> None:
    distributed = pytest.importorskip("distributed")
    local = distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, protocol="tcp", host="127.0.0.1")
    small, lost = device({"tables": [4, 8], "columns": [2, 4], "lanes": [1, 2]}), r"scheduler tcp://[\d.:]+: was lost .*; what was counted is kept: "
    with local as cluster, workers(scheduler=cluster.scheduler_address) as run:

        def until_lost(tasks: Sequence[Task]) -> Iterator[tuple[int, Figures]]:
            results = run(tasks)
            if len(tasks) > 1:
                yield next(results)
                cluster.close()
            yield from results

        for _ in range(2):  # in the middle of a round, and asked once more behind its loss
            with pytest.raises(LutraError, match=lost) as caught:
                explored(base, run=until_lost, on=small)
            assert "\n" not in str(caught.value)
    again = exact(base, 1)
    assert 1 <= again.reused < len(again.evaluated) + again.refused  # what was counted before is kept

    from lutra.exploration.workers import _lost

    for error, text in (
        (distributed.KilledWorker("evaluate", None, 3), "its workers died one after another at the same core"),
        (TimeoutError(), r"was lost during the search \(TimeoutError\)"),
    ):
        with pytest.raises(LutraError, match=f"scheduler tcp://host:1: {text}"), _lost("tcp://host:1"):
            raise error


def test_an_interrupt_keeps_what_was_evaluated(base: CoreConfig) -> None:
    def interrupted(tasks: Sequence[Task]) -> Iterator[tuple[int, Figures]]:
        yield 0, figures(tasks[0])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        explored(base, run=interrupted)
    assert explored(base).reused == 1


@pytest.mark.smoke
def test_a_damaged_result_is_a_miss(base: CoreConfig, tmp_path: Path) -> None:
    first = explored(base)
    for path in (tmp_path / "cache" / "explore").rglob("*.json"):
        path.write_text("{")
    assert kept(Task(first.front[0].candidate.config, SHAPE, 8, 20)) is None
    assert explored(base).reused == 0


@pytest.mark.smoke
def test_mistakes_are_one_line(base: CoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lutra.exploration.workers.CONNECT_SECONDS", 0.5)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    pytest.importorskip("distributed")
    cases: list[tuple[str, Any]] = [
        (rf"scheduler {address}: cannot be reached within", lambda: api.explore("bitnet-0.73b", scheduler=address)),
        *(
            (rf"scheduler must be tcp://HOST:PORT .*, not '{wrong}'; nearest: ", lambda wrong=wrong: api.explore("bitnet-0.73b", scheduler=wrong))
            for wrong in ("nonsense", "nonsense://x", "tcp://localhost", "tcp://127.0.0.1:abc", "")
        ),
        (r"goal must be one of decode, ttft, bytes or energy, not 'decoding'; nearest: decode", lambda: api.explore("bitnet-0.73b", goal="decoding")),
        (r"device kv206: no such file and no shipped device of that name; nearest: kv260", lambda: api.explore("bitnet-0.73b", "kv206")),
        (
            r"device ulx3s-85f: must be of family xcup, .*, not ecp5; nearest: kv260 \(lutra fpga holds .* against ulx3s-85f\)",
            lambda: api.explore("tiny-shakespeare", "ulx3s-85f"),
        ),
        (r"context must be 1 to 2048 tokens", lambda: api.explore("bitnet-0.73b", context=5000)),
        (r"limit must be a share above 0 and at most 1, not 2", lambda: api.explore("bitnet-0.73b", limit=2)),
        (r"budget must be at least 1, not 0", lambda: api.explore("bitnet-0.73b", budget=0)),
        (r"space: tabels is no size of a core; nearest: tables", lambda: explored(base, on=device({"tabels": [1]}))),
        (r"space: ports needs a configuration with a shared memory, base has none", lambda: explored(base, on=device({"ports": [4]}))),
        (
            r"small does not fit board: of \d+ cores the nearest \(tables 4, .*\) exceeds lut .* too many",
            lambda: explored(base, on=device(totals={"lut": 200})),
        ),
        (r"small does not fit board: bytes of memory .* too many; no sizes of the core help", lambda: explored(base, on=device(memory=SMALL))),
        (
            r"tiny-shakespeare on kv260: none of [\d,]+ cores of its space is possible; config kv260 for tiny-shakespeare: ports must be at most "
            r"head_dim / 16 = 2 \(a beat holds at most one row\), not 4$",
            lambda: api.explore("tiny-shakespeare", "kv260", jobs=1),
        ),
        (r"small on board: none of \d+ cores of its space is possible", lambda: explored(base.model_copy(update={"params_rows": 8}), on=device({"best": [8]}))),
    ]
    for text, call in cases:
        with pytest.raises(LutraError, match=text) as caught:
            call()
        assert "\n" not in str(caught.value)


SMALL = {"bytes": 1000, "peak_bytes_per_second": 1, "proven_bytes_per_second": 1, "proven_by": "nobody"}


@pytest.mark.smoke
def test_a_core_that_does_not_fit_is_told_the_nearest_that_does(base: CoreConfig) -> None:
    spec, board = CoreSpec(config=base, shape=SHAPE), device(totals={"lut": 2000})
    text = refusal(spec, board, fit_of(spec, board, count), count)
    assert text.startswith("config base for small does not fit board: lut 2,600 of 1,700 (85 % of 2,000), 900 too many; nearest that fits: ")
    assert "tables 4" in text or "columns 4" in text
    assert "nothing near it fits" in refusal(spec, device(totals={"lut": 100}), fit_of(spec, device(totals={"lut": 100}), count), count)


@pytest.mark.smoke
def test_beats_take_their_least_cycles_or_more() -> None:
    generator = random.Random(4)
    for _ in range(200):
        denominator, period = generator.randint(1, 9), generator.choice([0, generator.randint(2, 40)])
        rates = {"rate_numerator": generator.randint(1, denominator), "rate_denominator": denominator}
        config = MemoryConfig(**rates, refresh_period=period, refresh_window=generator.randrange(period) if period else 0)
        beats, slots = generator.randint(1, 60), [cycle for cycle in range(4000) if config.is_slot(cycle)]
        least = min((last - first + 1 for first, last in zip(slots, slots[beats - 1 :], strict=False)), default=None)
        assert least is None or config.least_cycles(beats) <= least
        assert config.refresh_window or config.least_cycles(beats) == least


def kv260(**memory: int) -> CoreConfig:
    values = load_config("kv260", CoreConfig).model_dump()
    values["memory"] |= memory
    return CoreConfig.model_validate(values | {"beat_bytes": 16 * values["memory"]["ports"]})


@pytest.mark.smoke
@pytest.mark.parametrize(("ports", "rate", "asked"), [(4, (1, 1), 16.0e9), (5, (24, 25), 20.0e9), (6, (4, 5), 24.0e9)])
def test_ports_move_what_the_memory_can(ports: int, rate: tuple[int, int], asked: float) -> None:
    board, shape = load_device("kv260"), open_model("bitnet-0.73b")
    assert board.peak == 19.2e9 and isinstance(shape, ModelShape)
    space = Space({"ports": [4, 5, 6], "key_tile": [32, 64]}, kv260(), shape, board.peak)
    held = space.config((ports, 32))
    assert held and held.memory and (held.memory.rate_numerator, held.memory.rate_denominator) == rate
    assert held.memory.bandwidth(held.clock_hz) == min(asked, board.peak)
    # from a core that is at the peak itself, others are not held at its share of clocks
    there = Space(space.sizes, kv260(ports=6, rate_numerator=4, rate_denominator=5), shape, board.peak).config((ports, 32))
    assert there and there.memory == held.memory

    taken = check_fit(CoreSpec(config=kv260(ports=ports), shape=shape))
    assert taken
    fit, line = taken
    assert [one.used for one in fit.excess if one.kind == "bytes per second of memory"] == [asked] * (asked > board.peak)
    if line:
        assert f"bytes per second of memory {asked:,.0f} of 19,200,000,000 (all there are)" in line
        assert f"nearest that fits: {'tables 28, ' if ports == 6 else ''}rate_numerator {rate[0]}, rate_denominator {rate[1]} (" in line
    assert not any(one.kind == "bytes per second of memory" for one in fit_of(CoreSpec(config=held, shape=shape), board, counter(board)).excess)


@pytest.mark.smoke
def test_a_rate_that_is_held_is_the_next_lower_one() -> None:
    generator = random.Random(3)
    for _ in range(300):
        clock, period = generator.randrange(1, 400) * 1e6, generator.choice([0, 1950])
        base = MemoryConfig(ports=generator.randint(1, 8), rate_numerator=7, rate_denominator=8, refresh_period=period, refresh_window=88 if period else 0)
        limit = generator.uniform(0.05, 1.5) * base.bandwidth(clock)
        held = base.at_most(limit, clock)
        assert held.bandwidth(clock) <= limit + 1 and held.at_most(limit, clock) == held
        if limit >= base.bandwidth(clock):
            assert held is base
        else:
            assert held.bandwidth(clock) > limit - base.bandwidth(clock) / base.share / 1024


@pytest.mark.smoke
def test_shipped_devices() -> None:
    kv260 = load_device("kv260")
    assert kv260.totals == {"lut": 117_120, "lutram": 57_600, "ff": 234_240, "bram36": 144, "uram": 64, "dsp": 1248}
    assert kv260.memory and kv260.memory.proven_bytes_per_second == 16.0e9
    base = load_config(kv260.preset, CoreConfig)
    assert base.device == "kv260" and base.memory and base.memory.bandwidth(base.clock_hz) == kv260.memory.proven_bytes_per_second
    with pytest.raises(ConfigError):
        counter(load_device("ulx3s-85f"))
