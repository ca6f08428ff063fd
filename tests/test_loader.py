# SPDX-License-Identifier: Apache-2.0
"""LOADER: RTL against golden values and predicted cycles, the fast timing against the full one, and what the configuration refuses."""

from typing import Any

import numpy as np
import pytest
from conftest import MASTER_SEED
from pydantic import ValidationError

from lutra.cosim.benches import loader
from lutra.cosim.benches.head import Case, compare_case, play
from lutra.cosim.harness import Bench, Fault
from lutra.hls_models.errors import ConfigError, MismatchError
from lutra.hls_models.load import load_config
from lutra.hls_models.shape import ModelShape
from lutra.hls_models.streams import Ready, handshakes
from lutra.hls_models.ternary.config import CoreConfig
from lutra.hls_models.ternary.core import CoreSpec
from lutra.hls_models.ternary.isa import LoadMode, LoadTarget, Unit, When
from lutra.hls_models.ternary.kv_layout import KvLayout
from lutra.hls_models.ternary.loader import ROUND_TRIP, Load, LoaderConfig
from lutra.hls_models.ternary.loader_cycles import LoaderStimulus, loader_cycles
from lutra.hls_models.ternary.loader_shared import SharedLoaderTiming
from lutra.hls_models.ternary.loader_timing import LoaderTiming
from lutra.hls_models.ternary.memory import DELIVER, REQUEST, MemoryConfig, MemoryTiming
from lutra.mapping.catalogue import open_model
from lutra.mapping.lower import compile_model
from lutra.mapping.tiles import choose

CONFIGS = loader.configurations(MASTER_SEED)
KV = KvLayout(beat_bytes=16, layers=1, kv_heads=1, head_dim=16, context=8, key_tile=4)
SMALL = {"beat_bytes": 36, "vector_lanes": 4, "hidden": 160, "ring_rows": 48, "params_rows": 40, "rope_rows": 32}


@pytest.fixture(scope="module")
def bench() -> Bench:
    return loader.bench(MASTER_SEED)


SHARED = {f"l{i}": config for i, config in enumerate(CONFIGS) if config.kv is not None}
MEMORIES = {
    "uniform": MemoryConfig(latency=20),
    "slow": MemoryConfig(latency=70, rate_numerator=3, rate_denominator=4),
    "refreshed": MemoryConfig(latency=9, refresh_period=200, refresh_window=31),
}


def check(bench: Bench, rng: np.random.Generator, cases: dict[str, Case] | None = None) -> int:
    cases = cases or {f"l{i}": loader.case(config, rng) for i, config in enumerate(CONFIGS)}
    recordings = play(bench, cases)
    return sum(compare_case(name, one, recordings[name]) for name, one in cases.items())


@pytest.mark.parametrize("run", range(2))
def test_rtl_equals_the_model(bench: Bench, rng: np.random.Generator, run: int) -> None:
    assert check(bench, rng) > 5_000


@pytest.mark.parametrize("memory", MEMORIES)
def test_rtl_equals_the_model_at_the_pace_of_a_memory(bench: Bench, rng: np.random.Generator, memory: str) -> None:
    cases = {}
    for name, config in SHARED.items():
        timing = MemoryTiming(MEMORIES[memory].model_copy(update={"outstanding": config.outstanding}))
        timing.write(np.cumsum(rng.integers(1, 30, 100)))
        cases[name] = loader.case(config, rng, memory=timing)
    assert check(bench, rng, cases) > 5_000


@pytest.mark.soak
@pytest.mark.parametrize("run", range(20))  # 16 configurations each
def test_rtl_equals_the_model_in_many_cases(bench: Bench, rng: np.random.Generator, run: int) -> None:
    assert check(bench, rng) > 5_000


@pytest.mark.parametrize(
    ("name", "port", "kind"),
    [
        ("l1", "data", "flip"),
        ("l1", "read", "delay"),
        ("l1", "params_freed", "drop"),
        ("l9", "data", "drop"),
        ("l9", "k_freed", "drop"),
        ("l9", "v_freed", "delay"),
    ],
)
def test_faults_are_caught(bench: Bench, rng: np.random.Generator, name: str, port: str, kind: str) -> None:
    """``l1`` as in the tiny preset, where the freed rows of a ring of 40 are needed again; ``l9`` has bursts of four."""
    one = loader.case(CONFIGS[int(name[1:])], rng, 30)
    beats = len(one.expected[port][1])
    with pytest.raises(MismatchError, match=rf"{name}\."):
        compare_case(name, one, play(bench, {name: one}, faults=[Fault(name, port, kind, beat=beats // 4, cycles=40)])[name])


def test_a_wrong_golden_word_is_named(bench: Bench, rng: np.random.Generator) -> None:
    one = loader.case(CONFIGS[1], rng, 30)
    recordings = play(bench, {"l1": one})["l1"]
    one.expected["embed"][0][3, 0] ^= 1
    with pytest.raises(MismatchError, match=r"l1\.embed\[3\]: expected 0x"):
        compare_case("l1", one, recordings)


@pytest.mark.parametrize("config", [one for one in CONFIGS[1:] if one.kv is None], ids=lambda config: f"B{config.beat_bytes}")
def test_fast_timing_equals_the_full_one(config: LoaderConfig, rng: np.random.Generator) -> None:
    """Without stalls but at the two ports where the core has some; rings shorter than their loads."""
    latency, hold = int(rng.integers(1, 9)), {target: int(rng.integers(0, 40)) for target in (LoadTarget.WEIGHTS, LoadTarget.PARAMS, LoadTarget.ROPE)}
    config = config.model_copy(update={"outstanding": latency + 2})
    todo = loader.loads(config, rng, 40)
    ready = {name: rng.random(3000) < 0.5 for name in ("embed", "head")}
    offers = np.cumsum(rng.integers(0, 40, len(todo)))
    freed = {target.name.lower(): np.array([clocks]) for target, clocks in hold.items()}
    expected = loader_cycles(config, todo, LoaderStimulus(instr=offers, data=np.array([latency - 1]), id=np.array([2]), freed=freed, ready=ready))

    timing = LoaderTiming(config, latency, id_latency=3)
    got: dict[str, list[np.ndarray]] = {name: [] for name in ("instr", "read", *(target.name.lower() for target in LoadTarget if target != LoadTarget.PLANES))}
    last = dict.fromkeys(LoadTarget, -1)
    for load, offer in zip(todo, offers, strict=True):
        name = load.target.name.lower()
        got["instr"].append(timing.start(load, offer)[None])
        if load.target in hold:
            while timing.remaining:
                requests, delivered = timing.advance()
                frees = handshakes(delivered + 1 + hold[load.target], start=last[load.target] + 1)
                timing.free(load.target, frees)
                last[load.target] = int(frees[-1])
                beats = np.arange(config.row_beats if load.target == LoadTarget.WEIGHTS else 1)
                got["read"].append((requests[:, None] + 1 + beats).reshape(-1))
                got[name].append((delivered[:, None] - beats[::-1]).reshape(-1))
        else:

            def accept(offered: np.ndarray, load: Load = load, name: str = name) -> np.ndarray:
                taken = handshakes(offered, Ready(ready[name]), start=last[load.target] + 1)
                last[load.target] = int(taken[-1])
                return taken

            requests, delivered = timing.deliver(accept)
            got["read"].append(requests + 1)
            got[name].append(delivered)
    for name, parts in got.items():
        np.testing.assert_array_equal(np.concatenate([*parts, np.zeros(0, np.int64)]), expected[name], err_msg=name)
    np.testing.assert_array_equal(timing.done, expected["done"])


@pytest.mark.parametrize("written", [0, 200])
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("config", SHARED.values(), ids=lambda config: f"{config.burst_beats}-beats")
def test_shared_timing_equals_the_full_one(config: LoaderConfig, memory: str, written: int, rng: np.random.Generator) -> None:
    """Bursts of a memory, undisturbed or between written beats; stalls at the two ports where the core has some."""
    one, other = (MemoryTiming(MEMORIES[memory].model_copy(update={"outstanding": config.outstanding}), origin=123) for _ in range(2))
    writes = np.cumsum(rng.integers(1, rng.choice([2, 30]), written))
    np.testing.assert_array_equal(one.write(writes), other.write(writes))
    hold = {name: int(rng.integers(0, 40)) for name in ("weights", "params", "rope", "k", "v")}
    todo = [load for load in loader.loads(config, rng, 40) if load.mode != LoadMode.TOKEN or load.target == LoadTarget.EMBED]
    ready = {name: rng.random(3000) < 0.5 for name in ("embed", "head")}
    offers = np.cumsum(rng.integers(0, 100, len(todo)))
    freed = {name: np.array([clocks]) for name, clocks in hold.items()}
    lists = [loader.ids(config, load, rng) if load.target == LoadTarget.PLANES else None for load in todo]
    wait = int(rng.integers(30))
    stimulus = LoaderStimulus(instr=offers, id=np.array([2]), freed=freed, ready=ready, memory=one.read, rescore=np.array([wait]))
    expected = loader_cycles(config, todo, stimulus, lists)

    timing, last = SharedLoaderTiming(config, other, id_latency=3), dict.fromkeys((*hold, "embed", "head"), -1)
    got: dict[str, list[np.ndarray]] = {name: [] for name in ("instr", "params", "rope", "embed", "head")}
    halves: dict[str, list[int]] = {"k": [-1, -1], "v": [-1, -1]}
    rows: list[np.ndarray] = []

    def accept(offered: np.ndarray) -> np.ndarray:
        taken = handshakes(offered[0], Ready(ready[name]), start=last[name] + 1)
        last[name] = int(taken[-1])
        return taken[None]

    for load, offer, listed in zip(todo, offers, lists, strict=True):
        name = "head" if load.target == LoadTarget.PLANES else load.target.name.lower()
        got["instr"].append(timing.start(load, offer, listed))
        if load.target == LoadTarget.KV:
            for one_tile in config.tiles(load):
                half = "v" if one_tile.value else "k"
                end = int(timing.tile(halves[half].pop(0))[-1])
                last[half] = max(end + 1 + hold[half], last[half] + 1)
                halves[half].append(last[half])
        elif load.target == LoadTarget.PLANES:
            assert listed is not None
            counts = [len(one) for one in listed]
            moved = timing.planes(accept, lambda segment, end, counts=counts: np.full(counts[segment], end + 1 + wait))  # type: ignore[misc]
            got[name].append(moved.taken[0])
        elif load.target in (LoadTarget.EMBED, LoadTarget.HEAD):
            got[name].append(timing.deliver(accept).taken[0])
        else:
            while timing.remaining:
                taken = timing.advance().taken[0]
                frees = handshakes(taken + 1 + hold[name], start=last[name] + 1)
                timing.free(load.target, frees[None])
                last[name] = int(frees[-1])
                (rows if load.target == LoadTarget.WEIGHTS else got[name]).append(taken)
    for name, parts in (got | timing.streams).items():
        np.testing.assert_array_equal(np.concatenate([*parts, np.zeros(0, np.int64)]), expected[name], err_msg=name)
    np.testing.assert_array_equal(np.concatenate([*rows, np.zeros(0, np.int64)]), expected["weights"][config.row_beats - 1 :: config.row_beats])
    np.testing.assert_array_equal(np.concatenate(timing.done), expected["done"])


@pytest.mark.parametrize("depth", [2, 3, 8])
@pytest.mark.parametrize("latency", range(1, 9))
def test_loads_longer_than_their_queue(depth: int, latency: int) -> None:
    """Rows that leave without a gap and rows that wait for memory: the queue's other beats last as long as the round trip, a clock less, or a clock more."""
    config = LoaderConfig(**SMALL | {"params_rows": 400}, rows_beats=depth, outstanding=latency + 2)
    todo = [Load(LoadTarget.PARAMS, LoadMode.DIRECT, 0, beats, rows=rows) for beats, rows in ((40, 118), (2, 4), (30, 90))]
    offers = np.zeros(len(todo), np.int64)
    expected = loader_cycles(config, todo, LoaderStimulus(instr=offers, data=np.array([latency - 1])))
    timing, requests, rows = LoaderTiming(config, latency), [], []
    for load in todo:
        timing.start(load, 0)
        asked, delivered = timing.advance()
        assert not timing.remaining
        requests.append(asked + 1)
        rows.append(delivered)
    np.testing.assert_array_equal(np.concatenate(requests), expected["read"])
    np.testing.assert_array_equal(np.concatenate(rows), expected["params"])
    np.testing.assert_array_equal(timing.done, expected["done"])


@pytest.mark.parametrize("depth", [2, 5, 6, 9])
def test_stream_equals_deliver(rng: np.random.Generator, depth: int) -> None:
    """Queues shorter and longer than the round trip of 5, loads shorter and longer than the queue."""
    config = LoaderConfig(**SMALL, head_beats=depth)
    one, other, brief = LoaderTiming(config, 3), LoaderTiming(config, 3), LoaderTiming(config, 3, detail=False)
    last = opened = -1

    def accept(offered: np.ndarray) -> np.ndarray:
        nonlocal last
        taken = handshakes(offered, start=max(opened, last + 1))
        last = int(taken[-1])
        return taken

    for _ in range(30):
        load, offer = Load(LoadTarget.HEAD, LoadMode.DIRECT, 0, int(rng.integers(1, 30))), last + int(rng.integers(-20, 20))
        assert one.start(load, offer) == other.start(load, offer) == brief.start(load, offer)
        opened = max(offer + int(rng.integers(0, 40)), last + 1)
        for fast, slow, end in zip(one.stream(opened), other.deliver(accept), brief.stream(opened), strict=True):
            np.testing.assert_array_equal(fast, slow)
            np.testing.assert_array_equal(fast[-depth:], end[-depth:])
        assert one.done == other.done == brief.done


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("config", SHARED.values(), ids=lambda config: f"{config.burst_beats}-beats")
def test_shared_stream_equals_deliver(config: LoaderConfig, memory: str, rng: np.random.Generator) -> None:
    sizes = MEMORIES[memory].model_copy(update={"outstanding": config.outstanding})
    one, other, brief = (SharedLoaderTiming(config, MemoryTiming(sizes), detail=detail) for detail in (True, True, False))
    last = opened = -1

    def accept(offered: np.ndarray) -> np.ndarray:
        nonlocal last
        taken = handshakes(offered[0], start=max(opened, last + 1))
        last = int(taken[-1])
        return taken[None]

    for _ in range(30):
        load = Load(LoadTarget.HEAD, LoadMode.DIRECT, int(rng.integers(1 << 20)), int(rng.integers(1, 10 * config.head_beats)))
        offer = last + int(rng.integers(-20, 20))
        assert one.start(load, offer) == other.start(load, offer) == brief.start(load, offer)
        opened = max(offer + int(rng.integers(0, 200)), last + 1)
        fast, slow, end = one.stream(opened), other.deliver(accept), brief.stream(opened)
        for i in range(2):
            np.testing.assert_array_equal(fast[i], slow[i])
        np.testing.assert_array_equal(fast.taken[:, -end.taken.shape[1] :], end.taken)
        assert one.done == other.done == brief.done
    for name in ("read", "data"):
        np.testing.assert_array_equal(np.concatenate(one.streams[name]), np.concatenate(other.streams[name]))


def test_a_full_flight_keeps_the_memory_busy() -> None:
    """A queue of four bursts covers a round trip of three: from the first beat of a head to its last none is missing."""
    config = LoaderConfig(**SMALL | {"beat_bytes": 48}, head_beats=4 * 16, burst_beats=16, outstanding=8)
    # The place of a burst's last beat is taken when the others of three bursts behind it have left.
    covered = 3 * 16 + 1 - REQUEST - DELIVER - ROUND_TRIP
    for latency, gaps in ((covered, False), (covered + 1, True)):
        timing = SharedLoaderTiming(config, MemoryTiming(MemoryConfig(latency=latency)))
        timing.start(Load(LoadTarget.HEAD, LoadMode.DIRECT, 0, 1000), 0)
        taken = timing.stream(0).taken[0]
        assert (taken[-1] - taken[0] > 999) == gaps


@pytest.mark.parametrize("position", [0, 127, 1023])
def test_a_token_of_a_large_model_keeps_the_memory_busy(position: int) -> None:
    """All loads of a decoded token of the 0.73B shape on the preset kv260, with consumers that take everything at once."""
    core = load_config("kv260", CoreConfig)
    shape = open_model("bitnet-0.73b")
    assert isinstance(shape, ModelShape)
    spec, program = CoreSpec(config=core, shape=shape), compile_model(shape, core)
    config, memory = spec.loader, core.memory
    assert memory and (config.burst_beats, config.outstanding, config.kv) == (memory.burst_beats, memory.outstanding, spec.kv_layout)
    assert config.rows_beats == config.head_beats == 2 * memory.burst_beats and config.largest_burst(LoadTarget.EMBED) == 1
    timing, beats = SharedLoaderTiming(config, MemoryTiming(memory), detail=False), 0
    for f in (one.fields for one in program.instructions if one.unit is Unit.LOADER and one.when is not When.NOT_LAST):
        load = Load(LoadTarget(f["target"]), LoadMode(f["mode"]), f["address"], f["beats"], f["rows"], position=position)
        timing.start(load, 0)
        beats += timing.remaining
        while timing.remaining:
            if load.target == LoadTarget.KV:
                timing.tile(-1)
            elif load.target in (LoadTarget.EMBED, LoadTarget.HEAD):
                timing.stream(0)
            else:
                timing.free(load.target, timing.advance().taken + 3)
    assert beats < timing.done[-1] < 1.005 * beats


def test_direct_loads_follow_without_a_gap() -> None:
    config = LoaderConfig(**SMALL)
    loads = [Load(LoadTarget.HEAD, LoadMode.DIRECT, 100 * i, 4) for i in range(5)]
    times = loader_cycles(config, loads, LoaderStimulus(instr=np.zeros(5, np.int64)))
    np.testing.assert_array_equal(times["read"], 3 + np.arange(20))
    np.testing.assert_array_equal(times["head"], 5 + np.arange(20))
    assert times["done"][0] == times["head"][3] + 2


def test_rows_survive_packing(rng: np.random.Generator) -> None:
    config = LoaderConfig(**SMALL)
    rows = rng.integers(0, 1 << 24, (10, 4), dtype=np.uint32)
    beats = config.pack_rows(rows)
    assert beats.shape == (4, 36)
    np.testing.assert_array_equal(config.rows(Load(LoadTarget.PARAMS, LoadMode.DIRECT, 0, 4, rows=10), beats), rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beat_bytes": 38}, "beat_bytes must be a multiple of vector_lanes = 4, not 38; nearest: 40"),
        ({"beat_bytes": 8}, "beat_bytes must hold one row of vector_lanes x 24 bits, so at least 12, not 8"),
        ({"hidden": 162}, "hidden must be a multiple of vector_lanes = 4, not 162; nearest: 164"),
        ({"vector_lanes": 3}, "vector_lanes must be even .*, not 3; nearest: 4"),
        ({"params_rows": 2}, "params_rows must hold one beat of 3 rows, not 2; nearest: 3"),
        ({"rope_rows": 1}, "rope_rows must hold one beat of 3 rows, not 1; nearest: 3"),
        ({"burst_beats": 12}, "burst_beats must be a power of two, not 12; nearest: 8"),
        ({"burst_beats": 64}, "ring_rows must hold a row that has begun and a burst of 64 beats, 64 rows, not 48; nearest: 64"),
        ({"burst_beats": 32, "rows_beats": 64}, "params_rows must hold one burst of 16 beats of 48 rows, not 40; nearest: 48"),
        ({"kv": KV}, "kv must have beats of beat_bytes = 36 bytes, not 16"),
        ({"beat_byte": 36}, "beat_byte"),
    ],
)
def test_refused_configurations(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LoaderConfig(**(SMALL | change))


def test_tiles_leave_room_for_the_burst_behind_them() -> None:
    """Else the last beat of a tile that is read again and again waits for a row behind it, which waits for the tile's last reading."""
    memory = MemoryConfig(ports=1, burst_beats=16)
    sizes = {"name": "x", "clock_hz": 1e8, "tables": 2, "columns": 4, "chunk": 8, "max_tile_columns": 400, "params_rows": 400, "rope_rows": 64}
    core = CoreConfig(**sizes, ring_rows=64, beat_bytes=16, memory=memory, allow_stalls=True)
    loader = LoaderConfig(**SMALL | {"beat_bytes": 16, "ring_rows": 64}, burst_beats=16)
    assert loader.tile_rows == 64 - 15
    on_chip = core.model_copy(update={"memory": None})
    assert [choose(on_chip, "x", 400, 6 * blocks, 4, 400).rows(0) for blocks in (49, 50, 64)] == [49, 50, 64]
    assert choose(core, "x", 400, 6 * 49, 4, 400).rows(0) == 49
    with pytest.raises(ConfigError, match=r"smallest tile \(4 columns, 50 k-blocks\) and 15 rows of the next one's first burst, not 64; nearest: 65"):
        choose(core, "x", 400, 6 * 50, 4, 400)


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (Load(LoadTarget.WEIGHTS, LoadMode.DIRECT, 0, 0), "beats must be 1 to"),
        (Load(LoadTarget.HEAD, LoadMode.TOKEN, 0, 1 << 16), "beats must be 1 to"),
        (Load(LoadTarget.PARAMS, LoadMode.DIRECT, 0, 3, rows=10), "10 rows take 4 beats, not 3"),
        (Load(LoadTarget.EMBED, LoadMode.TOKEN, 0, 4), "beats of a table row must be 5, not 4"),
        (Load(LoadTarget.WEIGHTS, LoadMode.DIRECT, 0, 3), "beats of weights must be a multiple of row_beats = 2, not 3"),
        (Load(LoadTarget.KV, LoadMode.DIRECT, 0, 3), "mode must be TILES for keys and values and for nothing else, not DIRECT for KV"),
        (Load(LoadTarget.KV, LoadMode.TILES, 0, 0), r"keys and values must have a layout \(kv\)"),
    ],
)
def test_refused_loads(load: Load, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoaderConfig(**SMALL, row_beats=2).check(load)


def test_positions_beyond_the_context_are_refused() -> None:
    with pytest.raises(ValueError, match="positions must lie within the context of 8, not at 6 to 8"):
        LoaderConfig(**SMALL | {"beat_bytes": 16}, kv=KV).check(Load(LoadTarget.KV, LoadMode.TILES, 0, 0, tokens=3, position=6))


def test_refused_timing() -> None:
    with pytest.raises(ValueError, match=r"outstanding must be at least latency \+ 2 = 22, not 16; nearest: 22"):
        LoaderTiming(LoaderConfig(**SMALL), 20)
    with pytest.raises(ValueError, match="outstanding must be at most the memory's 8, not 16"):
        SharedLoaderTiming(LoaderConfig(**SMALL), MemoryTiming(MemoryConfig()))
    with pytest.raises(ValueError, match=r"target must be EMBED in mode TOKEN, .*, not HEAD"):
        SharedLoaderTiming(LoaderConfig(**SMALL, outstanding=8), MemoryTiming(MemoryConfig())).start(Load(LoadTarget.HEAD, LoadMode.TOKEN, 0, 1), 0)
