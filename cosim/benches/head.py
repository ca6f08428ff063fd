# SPDX-License-Identifier: Apache-2.0
"""Bench of rtl/ternary/head.py: random tables, code rows and stalls against golden values and predicted cycles of every port."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lutra.cosim.harness import Bench, Recording, Stimulus, compare
from lutra.hls_models.streams import pack
from lutra.hls_models.ternary.head import HeadConfig, HeadInstruction, HeadStimulus
from lutra.hls_models.ternary.planes import PlanesConfig

__all__ = ["Case", "case", "compare_case", "configurations", "play", "trace"]

Words = NDArray[np.uint32]


@dataclass
class Case:
    """Stimuli and stall traces of one design, and the golden payloads and predicted handshakes of every port."""

    stimuli: dict[str, Stimulus] = field(default_factory=dict)
    ready: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    expected: dict[str, tuple[Words, NDArray[np.int64]]] = field(default_factory=dict)


def play(bench: Bench, cases: dict[str, Case], **options: Any) -> dict[str, dict[str, Recording]]:
    """Runs the cases of the designs at once and returns what was recorded."""
    ends = [int(cycles[-1]) for one in cases.values() for _, cycles in one.expected.values() if len(cycles)]
    return bench.run(
        stimuli={name: one.stimuli for name, one in cases.items()},
        ready={name: one.ready for name, one in cases.items()},
        beats={name: {port: len(cycles) for port, (_, cycles) in one.expected.items()} for name, one in cases.items()},
        max_cycles=max(ends) + 1000,
        **options,
    )


def compare_case(name: str, one: Case, recordings: dict[str, Recording]) -> int:
    """Compares every port of a design, payloads and cycles; returns the number of words compared."""
    if missing := set(recordings) ^ set(one.expected):
        raise ValueError(f"{name}: ports without expectation or recording: {', '.join(sorted(missing))}")
    return sum(compare(f"{name}.{port}", *one.expected[port], recordings[port]) for port in sorted(recordings))


def configurations(seed: int, count: int = 12) -> list[HeadConfig]:
    """The smallest head, the tiny preset's, the rest drawn from the seed."""
    rng = np.random.default_rng(seed)
    found = [HeadConfig(beat_bytes=6, vector_lanes=2, hidden=2, best=1), HeadConfig(beat_bytes=36, vector_lanes=4, hidden=160)]
    while len(found) < count:
        lanes = int(rng.choice([2, 4, 8]))
        beat = lanes * int(rng.integers(3, 24 // lanes + 1))
        one = HeadConfig(beat_bytes=beat, vector_lanes=lanes, hidden=lanes * int(rng.integers(1, 24)), best=int(rng.integers(1, 7)))
        tree = "dsp" if len(found) % 2 else "lut"
        found.append(one.model_copy(update={"lanes": min(one.row_beats, int(rng.integers(1, 7))), "tree": tree}))
    return [*found, *(_planes(rng, number) for number in range(2))]


def _planes(rng: np.random.Generator, number: int) -> HeadConfig:
    """A head with a table in two planes: beats of a power of two of scales, and rows of two beats at least."""
    lanes = int(rng.choice([2, 4]))
    beat = int(rng.choice([16, 32]))
    hidden = 2 * beat + lanes * int(rng.integers(1, 30))
    planes = PlanesConfig(beat_bytes=beat, hidden=hidden, segment=beat // 4 * int(rng.choice([1, 2, 4])))
    sizes = {"beat_bytes": beat, "vector_lanes": lanes, "hidden": hidden, "best": int(rng.integers(1, 7)), "planes": planes}
    return HeadConfig(**sizes, lanes=3 if number == 0 else min(int(rng.integers(4, 7)), 2 + hidden // beat), tree="dsp" if number % 2 else "lut")


def often(rng: np.random.Generator, length: int = 4000) -> NDArray[np.bool_]:
    """Ready in three cycles of four, or always: lists of rows wait in a queue of two segments."""
    return np.asarray(rng.random(length) < rng.choice([0.75, 1.0]))


def trace(rng: np.random.Generator, length: int = 4000) -> NDArray[np.bool_]:
    """Ready with one of several probabilities, in bursts or not."""
    rate = rng.choice([0.1, 0.5, 0.9, 1.0])
    return np.repeat(rng.random(length) < rate, rng.choice([1, 7]))[:length]


def _gaps(rng: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Non-decreasing earliest cycles from 0 on: without gaps, with single ones, or with long ones."""
    return np.cumsum(rng.integers(0, rng.choice([1, 3, 12]), count)) if count else np.zeros(0, np.int64)


def _scales(rng: np.random.Generator, count: int) -> Words:
    """fp32 bits: ordinary ones, often equal, sometimes zero, negative, infinite, subnormal or NaN."""
    values = rng.choice(rng.uniform(1e-4, 2, 4), count).astype("<f4").view("<u4")
    special = np.array([0, 0x8000_0000, 0xBF00_0000, 0x7F80_0000, 0xFF80_0000, 0x0000_0001, 0x7FC0_0000, 0x7F00_0000, 0x0080_0000], np.uint32)
    return np.where(rng.random(count) < rng.choice([0, 0.2]), rng.choice(special, count), values).astype(np.uint32)


def _factors(rng: np.random.Generator, count: int) -> Words:
    """fp32 bits of scales that are not negative: ordinary ones, often equal, sometimes zero or so large that scores overflow."""
    values = rng.choice(rng.uniform(1e-4, 2, 4), count).astype("<f4").view("<u4")
    special = np.array([0, 0x7F00_0000, 0x0080_0000], np.uint32)
    return np.where(rng.random(count) < rng.choice([0, 0.2]), rng.choice(special, count), values).astype(np.uint32)


def case(config: HeadConfig, rng: np.random.Generator, instructions: int = 3) -> Case:
    """A few instructions with the code rows before each (the first has some; later ones may reuse what is stored)."""
    names = ("instr", "codes", "rows", "token", "best", "rescore")
    todo, stimuli, payloads = [], [], {name: [] for name in names if config.planes or name != "rescore"}  # type: ignore[var-annotated]
    beats = config.hidden // config.vector_lanes
    for number in range(instructions):
        vocabulary = int(rng.choice([1, 2, config.best, int(rng.integers(1, 70))]))
        # A pass of ``count`` tokens; without codes the row stored last serves again (with lanes: that of a pass of as many tokens).
        count = int(rng.integers(1 if number == 0 or config.lanes > 1 else 0, 4 + config.lanes))
        if config.planes and rng.integers(3):
            count = 1
        serial = config.lanes > 1 and count <= config.lanes and bool(rng.integers(2))
        spread = int(rng.choice([2, 128]))  # narrow codes make ties
        if count:
            codes = rng.integers(-spread, spread, (count, config.hidden)).astype(np.int8)
            row_scales = rng.integers(0, 1 << 32, count, dtype=np.uint32)
            if config.planes and not rng.integers(3):
                codes[:] = 0  # every bound is every score: all rows are listed
        table_codes, table_scales = rng.integers(-spread, spread, (vocabulary, config.hidden)).astype(np.int8), _scales(rng, vocabulary)
        in_planes = config.planes is not None and count == 1 and bool(rng.integers(4))
        found, lists = None, None
        if config.planes and in_planes:
            serial, table_scales = False, _factors(rng, vocabulary)
            found = config.planes.choose(codes[0], table_codes, table_scales, config.best)
            lists = found.lists
            chosen = [(found.ids, found.scores)]
            packed = np.concatenate(list(config.planes.pack(iter([(table_codes, table_scales)])))).reshape(-1, config.beat_bytes)
            places, sizes, _ = config.planes.jobs(vocabulary, lists)
            beat_rows = np.concatenate([packed[place : place + size] for place, size in zip(places, sizes, strict=True)])
            payloads["rescore"].append(config.planes.words(lists))
        else:
            table = config.pack_table(table_codes, table_scales.view("<f4"))
            chosen = [config.choose(one) for one in config.scores(codes, *config.unpack_table(table))]
            beat_rows = table.reshape(-1, config.beat_bytes)
        ids, scores = chosen[-1]
        told = slice(None) if serial else slice(-1, None)
        todo.append(HeadInstruction(vocabulary, config.row_beats, max(count, 1), serial, lists))
        stimuli.append(HeadStimulus(_gaps(rng, count * beats), int(rng.integers(0, 20)), _gaps(rng, len(beat_rows))))
        one = np.ones(1, np.int64)
        values = (vocabulary, 20), (config.row_beats, 16), (in_planes, 1), (max(count, 1), 8), (number, 16), (serial, 1)
        payloads["instr"].append(pack(*((one * value, bits) for value, bits in values)))
        if count:
            last = np.tile(np.arange(beats) == beats - 1, count)
            junk = [rng.integers(0, 1 << bits, count * beats) for bits in (2, 8, 8, 1)]
            junk[1] = np.repeat(np.arange(count), beats) if config.lanes > 1 else junk[1]
            parts = (codes.reshape(-1, config.vector_lanes), 8), (np.repeat(row_scales, beats), 32), (junk[0], 2), (junk[1], 8), (junk[2], 8)
            payloads["codes"].append(pack(*parts, (last, 1), (junk[3], 1)))
        payloads["rows"].append(pack((beat_rows, 8)))
        tops = [np.array([one[i][0] for one in chosen[told]]) for i in range(2)]
        payloads["token"].append(pack((tops[0], 20), (tops[1].astype(np.uint32), 32), (row_scales[told], 32)))
        payloads["best"].append(pack((ids, 20), (scores, 32)))
    ready = {name: trace(rng) for name in ("token", "best", "done")} | ({"rescore": often(rng)} if config.planes else {})
    offered, taken = config.cycles(todo, stimuli, ready)
    none = [np.zeros((0, 1), np.uint32)]
    words = {name: np.concatenate(parts or none) for name, parts in payloads.items()} | {"done": np.zeros((instructions, 1), np.uint32)}
    return Case(
        stimuli={name: Stimulus(words[name], cycles) for name, cycles in offered.items()},
        ready=ready,
        expected={name: (words[name], cycles) for name, cycles in taken.items()},
    )
