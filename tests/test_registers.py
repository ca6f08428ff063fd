# SPDX-License-Identifier: Apache-2.0
"""Registers of a core as a host program uses them: identity, tokens, best logits, counters, several turns, abort."""

import numpy as np
import pytest
from numpy.typing import NDArray

from lutra.cosim.benches import core
from lutra.cosim.core import HostedSystem, hex_image
from lutra.cosim.harness import Bench, Recording, Stimulus
from lutra.hls_models.ternary.core_cycles import CoreTiming
from lutra.hls_models.ternary.executor import Executor
from lutra.hls_models.ternary.registers import IDENTITY, REGISTERS, VERSION, Register
from lutra.rtl.ternary.system import OnChipSystem

PROMPT = [1, 2, 3]
COUNT = 4


@pytest.fixture(scope="module")
def small() -> core.Small:
    return core.small(np.random.default_rng(92))


@pytest.fixture(scope="module")
def bench(small: core.Small) -> Bench:
    made = Bench("registers")
    made.add("c0", HostedSystem(OnChipSystem(small.spec, beats=small.program.beats, file="c0.hex")))
    made.build()
    return made


def write(register: Register, value: int, *, urgent: bool = False) -> int:
    return register | value << 6 | int(urgent) << 39


def read(register: Register, *, urgent: bool = False) -> int:
    return register | 1 << 38 | int(urgent) << 39


def start(prompt: list[int], count: int, position: int = 0) -> list[int]:
    words = [write(Register.TOKEN_INDEX, position), *(write(Register.TOKEN, token) for token in prompt), write(Register.START_POSITION, position)]
    return [*words, write(Register.PROMPT_LENGTH, len(prompt)), write(Register.MAX_NEW, count), write(Register.CONTROL, 1)]


def play(bench: Bench, small: core.Small, accesses: list[int], runs: int, not_before: NDArray[np.int64] | None = None) -> dict[str, Recording]:
    words = np.array(accesses, np.uint64)
    reads = sum(word >> 38 & 1 for word in accesses)
    return bench.run(
        stimuli={"c0": {"host": Stimulus(words, not_before)}},
        beats={"c0": {"finished": runs, "read": reads}},
        files={"c0.hex": hex_image(small.program)},
        max_cycles=400_000,
    )["c0"]


def test_what_a_host_reads(bench: Bench, small: core.Small) -> None:
    best = min(small.spec.config.best, small.spec.shape.vocabulary)
    ranks = [word for rank in range(best) for word in (write(Register.BEST_INDEX, rank), read(Register.BEST_ID), read(Register.BEST_SCORE))]
    tokens = [word for i in range(len(PROMPT) + COUNT) for word in (write(Register.TOKEN_INDEX, i), read(Register.TOKEN))]
    single = [
        Register.IDENTITY,
        Register.VERSION,
        Register.CONFIG_HASH_LOW,
        Register.CONFIG_HASH_HIGH,
        Register.STATUS,
        Register.GENERATED,
        Register.PASSES,
        Register.CYCLES,
        Register.ACTIVATION_SCALE,
    ]
    got = play(bench, small, [*start(PROMPT, COUNT), *map(read, single), *ranks, *tokens], 1)["read"].payloads[:, 0].tolist()
    passes = list(Executor(small.spec, small.program).generate(PROMPT, COUNT))
    model = CoreTiming(small.spec, small.program)
    model.run(len(PROMPT), COUNT)
    spec, last = small.spec, passes[-1]
    assert last.best is not None and last.activation_scale is not None
    # busy, and with it the counter, begins in the clock after the start pulse
    expected = [IDENTITY, VERSION, spec.hash & 0xFFFFFFFF, spec.hash >> 32, 0b10, COUNT, len(passes), model.now - 1, int(last.activation_scale[0])]
    assert got[: len(single)] == expected
    assert got[len(single) : len(single) + 2 * best] == [int(value) for pair in zip(*last.best, strict=True) for value in pair]
    assert got[-len(PROMPT) - COUNT :] == PROMPT + [done.token for done in passes if done.last]


def test_a_second_turn_keeps_the_cache(bench: Bench, small: core.Small) -> None:
    golden = Executor(small.spec, small.program)
    expected = [done.token for done in golden.generate(PROMPT, 2) if done.last]
    expected += [done.token for done in golden.generate([4], 2, start=len(PROMPT)) if done.last]
    got = play(bench, small, start(PROMPT, 2) + start([4], 2, len(PROMPT)), 2)
    assert got["token"].payloads[:, 0].tolist() == expected


def test_choices_of_a_pass_that_verifies(bench: Bench, small: core.Small) -> None:
    """They are what decoding chooses; the text keeps what the host wrote, and the run counts no token of its own."""
    golden, lanes, at = Executor(small.spec, small.program), small.spec.config.draft_lanes, len(PROMPT)
    assert lanes > 1
    first = next(done.token for done in golden.generate(PROMPT, 1) if done.last)
    assert first is not None
    ids = [first, *(5 + lane for lane in range(lanes - 1))]
    choices = golden.verify(ids, at).choices
    accesses = [*start(PROMPT, 1), write(Register.TOKEN_INDEX, at), *(write(Register.TOKEN, token) for token in ids)]
    accesses += [write(Register.START_POSITION, at), write(Register.PROMPT_LENGTH, lanes), write(Register.CONTROL, 4)]
    for lane in range(lanes):
        accesses += [write(Register.CHOICE_INDEX, lane), read(Register.CHOICE), write(Register.TOKEN_INDEX, at + lane), read(Register.TOKEN)]
    accesses += [read(Register.GENERATED), read(Register.PASSES)]
    got = play(bench, small, accesses, 2)
    assert got["read"].payloads[:, 0].tolist() == [word for pair in zip(choices, ids, strict=True) for word in pair] + [0, 1]
    assert got["token"].payloads[:, 0].tolist() == [first, *choices]


def test_abort_ends_the_run_at_the_end_of_the_pass(bench: Bench, small: core.Small) -> None:
    model = CoreTiming(small.spec, small.program)
    accesses = start(PROMPT, COUNT)
    passes = model.run(len(PROMPT), COUNT, at=len(accesses))
    second = next(i for i, done in enumerate(passes) if done.last) + 1
    not_before = np.zeros(len(accesses) + 2, np.int64)
    not_before[-2:] = passes[second].start + 10
    got = play(bench, small, [*accesses, write(Register.CONTROL, 2, urgent=True), read(Register.STATUS, urgent=True)], 1, not_before)
    assert got["read"].payloads[0, 0] == 0b11
    assert len(got["token"]) == 2
    assert got["finished"].cycles.tolist() == [passes[second].end + 1]


def test_a_start_while_busy_is_ignored(bench: Bench, small: core.Small) -> None:
    accesses = [*start(PROMPT, 2), write(Register.CONTROL, 1, urgent=True)]
    not_before = np.zeros(len(accesses), np.int64)
    not_before[-1] = 200
    assert len(play(bench, small, accesses, 1, not_before)["token"]) == 2


def test_the_map_is_whole() -> None:
    assert set(REGISTERS) == set(Register)
