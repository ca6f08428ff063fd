# SPDX-License-Identifier: Apache-2.0
"""Queue and Gearbox against their documented values and cycles, under random stalls."""

import gc
import warnings

import numpy as np
import pytest
from amaranth.sim import Simulator

from lutra.rtl.streams import Gearbox, Queue


def _play(component, beats, not_before, ready, expected, limit=3000):
    """Inputs as payload dictionaries or integers; returns (input cycles, output cycles, output payload values)."""
    sent, received, values = [], [], []

    async def bench(ctx):
        clock, position = 0, 0
        while len(received) < expected and clock < limit:
            offer = position < len(beats) and clock >= not_before[position]
            ctx.set(component.input.valid, int(offer))
            if offer:
                ctx.set(component.input.payload, beats[position])
            accept = bool(ready[clock]) if clock < len(ready) else True
            ctx.set(component.output.ready, int(accept))
            if offer and ctx.get(component.input.ready):
                sent.append(clock)
                position += 1
            if accept and ctx.get(component.output.valid):
                received.append(clock)
                values.append(ctx.get(component.output.payload))
            await ctx.tick()
            clock += 1

    simulator = Simulator(component)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        simulator.run()
    return sent, received, values


def _next_ready(ready, cycle):
    while cycle < len(ready) and not ready[cycle]:
        cycle += 1
    return cycle


@pytest.mark.parametrize("depth", [1, 2, 3, 8])
@pytest.mark.parametrize("rate", [0.3, 1.0])
def test_queue(depth, rate):
    rng = np.random.default_rng(depth)
    count = 60
    not_before = np.cumsum(rng.integers(0, 3, count)) - 1
    ready = rng.random(400) < rate
    beats = rng.integers(0, 256, count).tolist()
    taken, left = [], []
    for i in range(count):
        cycle = max(not_before[i], taken[-1] + 1 if taken else 0, left[i - depth] + 1 if i >= depth else 0)
        taken.append(cycle)
        left.append(_next_ready(ready, max(cycle + 1, left[-1] + 1 if left else 0)))
    assert _play(Queue(shape=8, depth=depth), beats, not_before, ready, count) == (taken, left, beats)


@pytest.mark.parametrize("inputs,outputs", [(1, 1), (1, 5), (5, 1), (4, 18), (10, 4), (4, 4), (3, 7), (15, 8)])
@pytest.mark.parametrize("rate", [0.4, 1.0])
def test_gearbox(inputs, outputs, rate):
    rng = np.random.default_rng(inputs * 100 + outputs)
    beats, total, ends = [], [], []
    expected: list[list[int]] = []
    item = 0
    for _ in range(6):
        length = int(rng.integers(1, 12))
        items = []
        for i in range(length):
            count = int(rng.integers(1, inputs + 1)) if i == length - 1 else inputs
            fresh = rng.integers(1, 64, inputs).tolist()
            beats.append({"items": fresh, "count": count, "last": int(i == length - 1)})
            items += fresh[:count]
            item += count
            if i == length - 1:
                item = -(-item // outputs) * outputs
                ends.append(item // outputs - 1)
            total.append(item)
        items += [0] * (-len(items) % outputs)
        expected += [items[i : i + outputs] for i in range(0, len(items), outputs)]
    not_before = np.cumsum(rng.integers(0, 2 if rate == 1 else 4, len(beats)))
    ready = rng.random(1000) < rate
    taken, left = [], []
    for i in range(len(beats)):  # the recurrence of the docstring
        before = total[i - 1] // outputs if i else 0
        taken.append(max(not_before[i], taken[-1] + 1 if taken else 0, left[before - 1] if before else 0))
        while len(left) < total[i] // outputs:
            left.append(_next_ready(ready, max(taken[-1] + 1, left[-1] + 1 if left else 0)))
    sent, received, values = _play(Gearbox(shape=6, inputs=inputs, outputs=outputs), beats, not_before, ready, len(expected))
    assert sent == taken
    assert received == left
    assert [list(value["items"]) for value in values] == expected
    assert [i for i, value in enumerate(values) if value["last"]] == ends


def test_sizes_are_checked():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a refused component is never elaborated, which Amaranth remarks on
        with pytest.raises(ValueError, match="depth must be at least 1, not 0"):
            Queue(shape=8, depth=0)
        with pytest.raises(ValueError, match="must be at least 1, not 0 and 3"):
            Gearbox(shape=8, inputs=0, outputs=3)
        gc.collect()
