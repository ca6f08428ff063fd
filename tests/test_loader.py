# SPDX-License-Identifier: Apache-2.0
"""LOADER: RTL against golden values and predicted cycles, the fast timing against the full one, and what the configuration refuses."""

import numpy as np
import pytest
from conftest import MASTER_SEED
from pydantic import ValidationError

from lutra.cosim.benches import loader
from lutra.cosim.benches.head import compare_case, play
from lutra.cosim.harness import Bench, Fault
from lutra.hls_models.errors import MismatchError
from lutra.hls_models.streams import Ready, handshakes
from lutra.hls_models.ternary.isa import LoadMode, LoadTarget
from lutra.hls_models.ternary.loader import Load, LoaderConfig
from lutra.hls_models.ternary.loader_cycles import LoaderStimulus, loader_cycles
from lutra.hls_models.ternary.loader_timing import LoaderTiming

CONFIGS = loader.configurations(MASTER_SEED)
SMALL = {"beat_bytes": 36, "vector_lanes": 4, "hidden": 160, "ring_rows": 48, "params_rows": 40, "rope_rows": 32}


@pytest.fixture(scope="module")
def bench() -> Bench:
    return loader.bench(MASTER_SEED)


def check(bench: Bench, rng: np.random.Generator) -> int:
    cases = {f"l{i}": loader.case(config, rng) for i, config in enumerate(CONFIGS)}
    recordings = play(bench, cases)
    return sum(compare_case(name, one, recordings[name]) for name, one in cases.items())


@pytest.mark.parametrize("run", range(2))
def test_rtl_equals_the_model(bench: Bench, rng: np.random.Generator, run: int) -> None:
    assert check(bench, rng) > 5_000


@pytest.mark.soak
@pytest.mark.parametrize("run", range(20))  # 16 configurations each
def test_rtl_equals_the_model_in_many_cases(bench: Bench, rng: np.random.Generator, run: int) -> None:
    assert check(bench, rng) > 5_000


@pytest.mark.parametrize(("port", "kind"), [("data", "flip"), ("read", "delay"), ("params_freed", "drop")])
def test_faults_are_caught(bench: Bench, rng: np.random.Generator, port: str, kind: str) -> None:
    """``l1`` as in the tiny preset; the freed rows of a ring of 40 are needed again."""
    one = loader.case(CONFIGS[1], rng, 30)
    beats = len(one.expected[port][1])
    with pytest.raises(MismatchError, match=r"l1\."):
        compare_case("l1", one, play(bench, {"l1": one}, faults=[Fault("l1", port, kind, beat=beats // 4)])["l1"])


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
    got: dict[str, list[np.ndarray]] = {name: [] for name in ("instr", "read", *(target.name.lower() for target in LoadTarget))}
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
        ({"beat_byte": 36}, "beat_byte"),
    ],
)
def test_refused_configurations(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        LoaderConfig(**(SMALL | change))


@pytest.mark.parametrize(
    ("load", "message"),
    [
        (Load(LoadTarget.WEIGHTS, LoadMode.DIRECT, 0, 0), "beats must be 1 to"),
        (Load(LoadTarget.HEAD, LoadMode.TOKEN, 0, 1 << 16), "beats must be 1 to"),
        (Load(LoadTarget.PARAMS, LoadMode.DIRECT, 0, 3, rows=10), "10 rows take 4 beats, not 3"),
        (Load(LoadTarget.EMBED, LoadMode.TOKEN, 0, 4), "beats of a table row must be 5, not 4"),
        (Load(LoadTarget.WEIGHTS, LoadMode.DIRECT, 0, 3), "beats of weights must be a multiple of row_beats = 2, not 3"),
    ],
)
def test_refused_loads(load: Load, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LoaderConfig(**SMALL, row_beats=2).check(load)


def test_refused_timing() -> None:
    with pytest.raises(ValueError, match=r"outstanding must be at least latency \+ 2 = 22, not 16; nearest: 22"):
        LoaderTiming(LoaderConfig(**SMALL), 20)
