# SPDX-License-Identifier: Apache-2.0
"""What the companion chip must show for a program: every handshake, every write of the SRAM and of the scalars, with its cycle."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutra.cosim.benches.head import Case
from lutra.cosim.harness import Bench, Recording, Stimulus, to_words
from lutra.hls_models.pim.companion import MINUS_INFINITY, Companion, order
from lutra.hls_models.pim.companion_cycles import CompanionTiming
from lutra.hls_models.pim.config import LANE_BITS, PimConfig
from lutra.hls_models.pim.instructions import WORK_FIELDS, Work
from lutra.hls_models.pim.program import Instruction, Receive, Scalar, Statistic, Vector
from lutra.hls_models.streams import pack
from lutra.rtl.pim.companion_sram import address_bits

__all__ = ["case", "play"]

INSIDE = ("sram", "scalars")
"""Boundaries inside, which a run does not wait for."""

Words = NDArray[np.uint32]
Cycles = NDArray[np.int64]
Events = list[tuple[Words, Cycles]]


class _Watched(Companion):
    """Golden values that notes every write, in the companion clocks of the issues that it is told."""

    def __init__(self, config: PimConfig) -> None:
        super().__init__(config)
        self.clocks: Cycles = np.zeros(0, np.int64)
        self.sram_writes: Events = []
        self.scalar_writes: list[tuple[int, int, int]] = []
        self.indices: list[tuple[int, int]] = []

    def _run(self, work: Work, x: Words) -> Words:
        y = super()._run(work, x)
        if work.store:
            padded = np.pad(y, ((0, 0), (0, self.config.lanes - y.shape[1])))
            addresses = self._words(work, work.dst)[:, 0]
            self.sram_writes.append((pack((addresses, address_bits(self.config)), (padded, 32)), 2 * (self.clocks + work.latency)))
        return y

    def _gather(self, work: Work, y: Words, valid: NDArray[np.bool_], element: Cycles, segment: Cycles) -> None:
        before = self.scalars.copy()
        super()._gather(work, y, valid, element, segment)
        last = 2 * int(self.clocks[-1]) + 2 * work.done(self.config.lanes)
        if work.statistic in (Statistic.SUM, Statistic.SUMSQ):
            self.scalar_writes.append((last, work.stat, int(self.scalars[work.stat])))
            return
        candidates, keys = np.where(valid, y, MINUS_INFINITY), np.where(valid, order(y).astype(np.int64), -1)
        begun = set()
        for i, (values, ranks, clock) in enumerate(zip(candidates, keys, self.clocks.tolist(), strict=True)):
            lane, register = int(ranks.argmax()), work.stat + int(segment[i])
            fresh = register not in begun and not work.keep
            begun.add(register)
            if fresh or ranks[lane] > int(order(before[register])):
                before[register] = values[lane]
                cycle = last + 2 * (clock - int(self.clocks[-1]))
                self.scalar_writes.append((cycle, register, int(values[lane])))
                if work.statistic == Statistic.ARGMAX:
                    self.indices.append((cycle + 1, (work.k + int(element[i, lane])) & 0xFFFFFFFF))

    def step(self, instruction: Instruction, clocks: Cycles, readouts: ArrayLike) -> NDArray[np.uint16] | None:
        self.clocks = clocks
        if isinstance(instruction, Scalar):
            self.scalar(instruction)
            work = Work.of(instruction, self.config)
            self.scalar_writes.append((2 * (int(clocks[0]) + work.done(self.config.lanes)), instruction.d, int(self.scalars[instruction.d])))
            return None
        return self.execute(instruction, readouts)


def _readouts(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    """bf16 patterns: ordinary ones, seldom zeros, infinities, NaNs, subnormals or any."""
    values = (rng.normal(size=shape) * rng.choice([0.1, 1.0, 30.0])).astype(np.float32).view(np.uint32) >> np.uint32(16)
    odd = rng.choice(np.array([0, 0x8000, 0x7F80, 0xFF80, 0x7FC0, 1, 0x80, 0x7F7F, int(rng.integers(1 << 16))], np.uint32), shape)
    return np.where(rng.random(shape) < rng.choice([0, 0.003, 0.1]), odd, values).astype(np.uint16)


def _play(config: PimConfig, instructions: list[Instruction], offered: list[int], rng: np.random.Generator) -> tuple[CompanionTiming, list[list[int]]]:
    """Times of a program: arrivals are drawn beforehand and told bit by bit, releases some cycles after their beats were sent."""
    timing = CompanionTiming(config, instructions, offered)
    count = [0] * config.channels
    for one in instructions:
        if isinstance(one, Receive):
            for c in range(one.channel, one.channel + one.channels):
                count[c] += one.groups
    arrivals = [np.cumsum(rng.integers(1, rng.choice([2, 3, 8, 40]), n)).tolist() for n in count]
    slowness = int(rng.choice([3, 12, 60]))
    while not timing.finished:
        timing.advance()
        for c in range(config.channels):
            told, released = timing.readout_times[c], timing.release_times[c]
            told += arrivals[c][len(told) : len(told) + int(rng.integers(1, 9))]
            for sent in timing.send_times[c][len(released) :][: int(rng.integers(1, 9))]:
                released.append(max(sent + int(rng.integers(1, slowness)), released[-1] + 1 if released else 0))
    return timing, arrivals


def play(bench: Bench, cases: dict[str, Case], **options: Any) -> dict[str, dict[str, Recording]]:
    """Runs the cases of the designs at once and returns what was recorded."""
    ends = [int(cycles[-1]) for one in cases.values() for _, cycles in one.expected.values() if len(cycles)]
    return bench.run(
        stimuli={name: one.stimuli for name, one in cases.items()},
        beats={name: {port: len(cycles) for port, (_, cycles) in one.expected.items() if port not in INSIDE} for name, one in cases.items()},
        max_cycles=max(ends) + 1000,
        drain=200,
        **options,
    )


def case(config: PimConfig, instructions: list[Instruction], rng: np.random.Generator) -> Case:
    """A program with random read-outs, arrivals, releases and offers of its instructions."""
    offered = np.cumsum(rng.integers(0, rng.choice([1, 4, 60]), len(instructions)))
    timing, arrivals = _play(config, instructions, offered.tolist(), rng)
    issues: list[list[Cycles]] = [[] for _ in instructions]
    for number, clocks in timing.issues:
        issues[number].append(clocks)

    golden = _Watched(config)
    empty = np.zeros((0, -(-LANE_BITS * config.lanes // 32)), np.uint32)
    readouts, sent = [[empty] for _ in range(config.channels)], [[empty] for _ in range(config.channels)]
    for one, parts in zip(instructions, issues, strict=True):
        given = np.zeros(0, np.uint16)
        if isinstance(one, Receive):
            given = _readouts(rng, (one.groups, one.channels, config.lanes))
            for c in range(one.channels):
                readouts[one.channel + c].append(pack((given[:, c], LANE_BITS)))
            given = given if one.wide else given[:, :, : config.banks]
        beats = golden.step(one, np.concatenate(parts), given)
        if isinstance(one, Vector) and beats is not None and one.mask:
            for c in range(config.channels):
                if one.mask >> c & 1:
                    sent[c].append(pack((beats, LANE_BITS)))

    width = sum(bits for _, bits in WORK_FIELDS) + config.channels
    packed = to_words([Work.of(one, config).pack() for one in instructions], width)
    stimuli = {"instructions": Stimulus(packed, 2 * offered)}
    expected: dict[str, tuple[Words, Cycles]] = {"instructions": (packed, np.array(timing.accepted))}
    for c in range(config.channels):
        taken, released = np.concatenate(readouts[c]), np.array(timing.release_times[c], np.int64)
        flags = np.ones((len(released), 1), np.uint32)
        if len(taken):
            stimuli[f"readout_{c}"] = Stimulus(taken, np.array(arrivals[c]) + 1)
        if len(released):
            stimuli[f"freed_{c}"] = Stimulus(flags, released)
        expected |= {
            f"readout_{c}": (taken, np.array(timing.take_times[c], np.int64)),
            f"data_{c}": (np.concatenate(sent[c]), np.array(timing.send_times[c], np.int64)),
            f"freed_{c}": (flags, released),
        }
    expected["sram"] = (np.concatenate([words for words, _ in golden.sram_writes]), np.concatenate([cycles for _, cycles in golden.sram_writes]))
    writes = np.array(golden.scalar_writes, np.int64).reshape(-1, 3)
    expected["scalars"] = (pack((writes[:, 1], 5), (writes[:, 2], 32)), writes[:, 0])
    changes, value = [], 0
    for cycle, index in golden.indices:
        if index != value:
            changes.append((cycle, index))
        value = index
    indices = np.array(changes, np.int64).reshape(-1, 2)
    expected["index"] = (pack((indices[:, 1], 32)), indices[:, 0])
    return Case(stimuli=stimuli, expected=expected)
