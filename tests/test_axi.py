# SPDX-License-Identifier: Apache-2.0
"""AXI4 masters and the memory beside them: RTL against values and predicted cycles, values under skew, protocol violations, errors, the memory's model."""

import gc
import time
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MASTER_SEED
from pydantic import ValidationError

from lutra.cosim.benches import axi
from lutra.cosim.ddr import Ddr, region_setting
from lutra.cosim.harness import Bench, Fault
from lutra.hls_models.errors import MismatchError, ToolError
from lutra.hls_models.ternary import memory
from lutra.hls_models.ternary.kv_layout import KvLayout
from lutra.hls_models.ternary.memory import DELIVER, REQUEST, RESPONSE, WRITE, MemoryConfig, MemoryTiming, Slots, WriterTiming
from lutra.rtl.axi.reader import AxiReader

SETTINGS = axi.settings(MASTER_SEED)
BOARD = MemoryConfig(rate_numerator=127, rate_denominator=160, refresh_period=1950, refresh_window=88)


@pytest.fixture(scope="module")
def bench() -> Bench:
    return axi.bench(SETTINGS)


@pytest.fixture(scope="module")
def rude() -> Bench:
    return axi.rude_bench()


@pytest.mark.parametrize("run", range(2))
def test_rtl_equals_the_model(bench: Bench, seed: int, run: int) -> None:
    assert axi.check(bench, SETTINGS, seed) > 100_000


@pytest.mark.soak
@pytest.mark.parametrize("run", range(20))
def test_rtl_equals_the_model_often(bench: Bench, seed: int, run: int) -> None:
    assert axi.check(bench, SETTINGS, seed) > 100_000


@pytest.mark.parametrize("run", range(2))
def test_values_where_everything_waits_at_random(bench: Bench, seed: int, run: int) -> None:
    assert axi.check_skewed(bench, SETTINGS, seed) > 100_000


@pytest.mark.soak
@pytest.mark.parametrize("run", range(20))
def test_values_where_everything_waits_at_random_often(bench: Bench, seed: int, run: int) -> None:
    assert axi.check_skewed(bench, SETTINGS, seed) > 100_000


@pytest.mark.parametrize("name", ["REQUEST", "DELIVER", "WRITE", "RESPONSE"])
def test_a_wrong_constant_is_caught(bench: Bench, seed: int, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(memory, name, getattr(memory, name) + 1)
    with pytest.raises(MismatchError, match="expected cycle"):
        axi.check(bench, SETTINGS, seed)


@pytest.mark.parametrize(("port", "kind"), [("request", "flip"), ("data", "drop"), ("row", "flip"), ("request", "delay")])
def test_faults_are_caught(bench: Bench, seed: int, port: str, kind: str) -> None:
    with pytest.raises(MismatchError, match=r"c1\."):
        axi.check(bench, SETTINGS, seed, faults=[Fault("c1", port, kind, beat=5, bit=2)])


def test_a_wrong_byte_in_the_memory_is_caught(bench: Bench, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = KvLayout.writes
    monkeypatch.setattr(KvLayout, "writes", lambda layout, row: [write._replace(strobe=write.strobe & 0xFFEF) for write in right(layout, row)])
    with pytest.raises(MismatchError, match=r"c0\.memory: beat \d+, byte \d+: expected"):
        axi.check_skewed(bench, SETTINGS, seed)


def test_errors_stay(bench: Bench) -> None:
    """The file ends before the last beats: reads beyond have ones and an error, and so has a written row; both are told once and stay."""
    rng = np.random.default_rng(1)
    setting = SETTINGS["c1"]
    one = axi.case(setting, rng)
    beats = int(one.work.address.max())
    read = np.repeat(one.work.address + one.work.beats > beats, one.work.beats)
    recordings = bench.run(
        stimuli={"c1": one.stimuli},
        beats={"c1": {"data": len(read), "error": 2}},
        files={f"{name}.memory": one.work.memory[: beats if name == "c1" else 1].tobytes() for name in SETTINGS},
        max_cycles=10_000,
    )["c1"]
    ones = (recordings["data"].payloads == 0xFFFFFFFF).all(axis=1)
    assert ones.any() and not ones.all()
    assert set(recordings["error"].payloads[:, 0].tolist()) in ({1, 3}, {2, 3})
    first = int(recordings["data"].cycles[ones][0]) - DELIVER + 1
    assert recordings["error"].cycles[[int(payload) & 1 for payload in recordings["error"].payloads[:, 0]].index(1)] == first
    assert any(recordings["b"].payloads == 3)


def test_an_image_is_mapped_and_stays_as_it_is(bench: Bench, seed: int, tmp_path: Path) -> None:
    one = axi.case(SETTINGS["c1"], np.random.default_rng(seed))
    image = tmp_path / "image"
    image.write_bytes(one.work.memory.tobytes())
    files: dict[str, bytes | Path] = {f"{name}.memory": one.work.memory[:1].tobytes() for name in SETTINGS}
    files |= {"c1.memory": image, "c1.region": region_setting(3, len(one.work.memory) - 3)}
    bench.run(stimuli={"c1": one.stimuli}, beats={"c1": {"b": len(one.expected["b"][1])}}, files=files, max_cycles=10_000, keep=tmp_path / "run")
    assert image.read_bytes() == one.work.memory.tobytes()
    left = np.fromfile(tmp_path / "run" / "c1.dump", np.uint8).reshape(-1, one.work.memory.shape[1])
    assert left.shape == one.work.memory[3:].shape
    changed = np.flatnonzero((left != one.work.memory[3:]).any(axis=1)) + 3
    assert set(changed) <= {write[0] for write in one.work.written(SETTINGS["c1"].kv)} and len(changed) > 20


AR: dict[str, int] = {"arvalid": 1}
W: dict[str, int] = {"awvalid": 1, "wvalid": 1, "wstrb": 1}


@pytest.mark.parametrize(
    ("clocks", "message"),
    [
        ([AR | {"araddr": 0xFF0, "arlen": 1}], "crosses 4 KB: ff0, 2 beats"),
        ([AR | {"araddr": 8}], "must be INCR, of 16 bytes, and aligned"),
        ([AR | {"arsize": 3}], "must be INCR, of 16 bytes, and aligned"),
        ([AR | {"arburst": 0}], "must be INCR, of 16 bytes, and aligned"),
        ([AR | {"araddr": 0x10000}], "does not lie in the region of read port 0"),
        ([AR, AR | {"araddr": 16}, AR], "address on read port 0 changed before it was taken"),
        ([AR, AR | {"araddr": 16}, {}], "address on read port 0 changed before it was taken"),
        ([W | {"awlen": 1}], "must be one INCR beat"),
        ([W | {"wlast": 0}], "a write must be one beat"),
        ([W | {"awaddr": 0x20000}], "lies in no region"),
        ([{"awvalid": 1}, {"awvalid": 1, "awaddr": 16}], "address of a write changed before"),
        ([{"wvalid": 1, "wdata": 5}, {"wvalid": 1}], "data of a write changed before"),
        ([{"wvalid": 1}, {}], "data of a write changed before"),
    ],
)
def test_a_broken_protocol_ends_the_simulation(rude: Bench, clocks: list[dict[str, int]], message: str) -> None:
    with pytest.raises(ToolError, match=message):
        axi.play_pins(rude, clocks)


def test_manners_do_not(rude: Bench) -> None:
    axi.play_pins(rude, [AR | {"araddr": 0xFE0, "arlen": 1}, W | {"awaddr": 0x10000}])


def test_a_missing_memory_ends_the_simulation(rude: Bench) -> None:
    with pytest.raises(ToolError, match=r"rude\.memory cannot be mapped"):
        axi.play_pins(rude, [], memory=False)


def drawn(rng: np.random.Generator) -> MemoryConfig:
    """Any pattern of slots, with and without refresh and rate."""
    denominator = 1 if rng.random() < 0.3 else int(rng.integers(1, 200))
    period = 0 if rng.random() < 0.3 else int(rng.integers(1, 300))
    return MemoryConfig(
        latency=int(rng.integers(2, 20)),
        write_latency=int(rng.integers(1, 20)),
        rate_numerator=int(rng.integers(1, denominator + 1)),
        rate_denominator=denominator,
        refresh_period=period,
        refresh_window=int(rng.integers(0, period // 2 + 1)),
    )


def test_slots(rng: np.random.Generator) -> None:
    for _ in range(100):
        config = drawn(rng)
        clocks = np.array([config.is_slot(clock) for clock in range(2000)])
        slots = Slots(config)
        assert (slots.before(np.arange(2001)) == np.concatenate([[0], np.cumsum(clocks)])).all()
        assert (slots.at(np.arange(clocks.sum())) == np.flatnonzero(clocks)).all()
        assert int(slots.before(1234)) == clocks[:1234].sum() and int(slots.at(5)) == np.flatnonzero(clocks)[5]


def stepped(config: MemoryConfig, origin: int, written: list[int], bursts: list[tuple[int, int]]) -> tuple[list[int], list[int]]:
    """Clock by clock: cycles of written beats, offered from ``written`` on, and of the ``data`` of bursts (requested, beats)."""
    writes, reads = deque(written), deque(cycle + REQUEST + config.latency for cycle, beats in bursts for _ in range(beats))
    taken: list[int] = []
    arrived: list[int] = []
    cycle = 0
    while writes or reads:
        if config.is_slot(cycle + origin):
            if writes and writes[0] <= cycle:
                writes.popleft()
                taken.append(cycle)
            elif reads and reads[0] <= cycle:
                reads.popleft()
                arrived.append(cycle + DELIVER)
        cycle += 1
    return taken, arrived


@pytest.mark.parametrize("run", range(40))
def test_memory_model(rng: np.random.Generator, run: int) -> None:
    """Against a clock by clock one, with bursts one by one and many at once; in two parts, of which the second is written behind the first one's reads."""
    config, origin = drawn(rng), int(rng.choice([0, 1000]))
    timing, many = MemoryTiming(config, origin), MemoryTiming(config, origin)
    written: list[int] = []
    bursts: list[tuple[int, int]] = []
    arrived: list[int] = []
    ends: list[int] = []
    taken: list[int] = []
    for _ in range(2):
        start = max([0, *arrived, *taken])
        offered = start + np.sort(rng.integers(0, 300, rng.choice([0, 60])))
        requested = start + np.sort(rng.integers(0, 400, 12))
        beats = rng.integers(1, 40, 12)
        written += offered.tolist()
        bursts += list(zip(requested.tolist(), beats.tolist(), strict=True))
        taken += timing.write(offered).tolist()
        assert many.write(offered).tolist() == taken[len(taken) - len(offered) :]
        for one in bursts[-12:]:
            arrived += timing.read(*one).tolist()
            ends.append(arrived[-1])
        half = int(rng.integers(13))
        assert [*many.read_many(requested[:half], beats[:half]), *many.read_many(requested[half:], beats[half:])] == ends[-12:]
    assert (taken, arrived) == stepped(config, origin, written, bursts)
    again = MemoryTiming(config, origin)
    again.write(np.array(written, np.int64))
    requested, beats = np.array(bursts).T
    assert again.read_many(requested, beats, every=True).tolist() == arrived
    assert again.read_many(requested[:0], beats[:0]).tolist() == [] and again.write(requested[:0]).tolist() == []


def test_a_caller_may_work_out_quiet_reads() -> None:
    timing, other = MemoryTiming(MemoryConfig(latency=10)), MemoryTiming(MemoryConfig(latency=10))
    assert not MemoryTiming(BOARD).quiet(0)
    for one in (timing, other):
        one.write(np.array([30]))
    assert timing.quiet(20) and not timing.quiet(19)  # addresses at 21 and 20, first beats at 31 and 30
    cycles = timing.read(20, 5)
    other.served(int(cycles[-1]))
    assert other.quiet(0) and (other.read(0, 3) == timing.read(0, 3)).all()


@pytest.mark.parametrize("run", range(20))
def test_writer_model(rng: np.random.Generator, run: int) -> None:
    config, count = drawn(rng), int(rng.integers(2, 9))
    memory = MemoryTiming(config, 5)
    writer = WriterTiming(memory, count)
    assert writer.idle == 0
    free = 0
    for _ in range(3):
        offered = free + np.sort(rng.integers(0, 200, rng.integers(1, 20)))
        rows, written = writer.rows(offered)
        for one, row, beats in zip(offered.tolist(), rows.tolist(), written.tolist(), strict=True):
            assert row == max(one, free)
            cycle = row + WRITE
            for beat in beats:
                while not config.is_slot(cycle + 5):
                    cycle += 1
                assert beat == cycle
                cycle += 1
            free = cycle
        assert writer.idle == cycle - 1 + config.write_latency + RESPONSE
    # The beats took their slots: a burst of the past goes around those that are left.
    assert set(memory.read(0, 300) - DELIVER).isdisjoint(written.ravel())


def test_a_token_is_fast() -> None:
    """2.9 million beats in bursts of 64, between them what a token writes."""
    count = 2_900_000 // 64
    requested, beats = np.arange(count) * 64, np.full(count, 64)
    timing = MemoryTiming(BOARD)
    start = time.process_time()
    for layer in np.array_split(np.arange(count), 24):
        WriterTiming(timing, 9).rows(int(timing.read_many(requested[layer], beats[layer])[-1]) + np.arange(20) * 16)
    assert time.process_time() - start < 0.1


@pytest.fixture
def refused() -> Iterator[None]:
    """A refused component is never elaborated, which Amaranth remarks on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
        gc.collect()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": 100}, "base must be a multiple of 4096, not 100; nearest: 0"),
        ({"region_bits": 11}, "must be whole pages"),
        ({"region_bits": 40}, r"4 regions of 2\^40 bytes from 0x0 must be whole pages and end within 2\^40"),
    ],
)
def test_memory_refuses(refused: None, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Ddr(MemoryConfig(), name="m", **changes)


def test_masters_refuse(refused: None) -> None:
    with pytest.raises(ValueError, match="ports must be 1 to 8, not 9"):
        AxiReader(ports=9)
    with pytest.raises(ValueError, match="queue_beats must be at least 1, not 0"):
        AxiReader(ports=4, queue_beats=0)
    with pytest.raises(ValidationError, match="key_tile must be a power of two, not 24; nearest: 16"):
        KvLayout(beat_bytes=16, layers=1, kv_heads=1, head_dim=16, context=48, key_tile=24)
