# SPDX-License-Identifier: Apache-2.0
"""Timing helpers against step-by-step loops, packing against Python integers. (Against RTL: test_harness.py.)"""

import numpy as np
import pytest

from lutra.hls_models.streams import Ready, handshakes, pack, queue_times, unpack, words_for


def is_ready(trace: np.ndarray, t: int) -> bool:
    return t >= len(trace) or bool(trace[t])


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("length", [0, 1, 40])
def test_handshakes_equal_a_loop(rng, density, length):
    for _ in range(20):
        trace = rng.random(length) < density
        not_before = rng.integers(0, 60, rng.integers(0, 30))
        start = int(rng.integers(0, 20))
        t, expected = start, []
        for arrival in not_before:
            t = max(t, arrival)
            while not is_ready(trace, t):
                t += 1
            expected.append(t)
            t += 1
        np.testing.assert_array_equal(handshakes(not_before, trace, start), expected)


def test_handshakes_without_a_trace():
    np.testing.assert_array_equal(handshakes([0, 0, 5, 5, 3, 20]), [0, 1, 5, 6, 7, 20])
    np.testing.assert_array_equal(handshakes([0, 0], start=7), [7, 8])
    assert handshakes([]).dtype == np.int64


def test_ready_beyond_its_end():
    ready = Ready([False, True, False, True, False])
    np.testing.assert_array_equal(ready.next_ready(np.arange(7)), [1, 1, 3, 3, 5, 5, 6])
    np.testing.assert_array_equal(ready.position(ready.rank(np.array([1, 3, 5, 9]))), [1, 3, 5, 9])
    assert Ready().next_ready(3) == 3
    assert Ready([False] * 4).next_ready(0) == 4
    with pytest.raises(ValueError, match="one dimension"):
        Ready([[True]])


@pytest.mark.parametrize(("depth", "latency", "release"), [(1, 1, 0), (1, 1, 1), (2, 1, 1), (5, 2, 1), (4, 3, 1)])
def test_queue_times_equal_a_clocked_queue(rng, depth, latency, release):
    for _ in range(10):
        not_before = rng.integers(0, 40, 30)
        trace = rng.random(60) < 0.4
        inputs, outputs = queue_times(not_before, trace, depth=depth, latency=latency, release=release)
        offered_from, freed, got_in, got_out = 0, [], [], []
        for t in range(300):
            valid_out = len(got_out) < len(got_in) and got_in[len(got_out)] + latency <= t
            if valid_out and is_ready(trace, t):
                got_out.append(t)
                freed.append(t + release)
            occupied = len(got_in) - sum(f <= t for f in freed)
            i = len(got_in)
            if i < len(not_before) and max(not_before[i], offered_from) <= t and occupied < depth:
                got_in.append(t)
                offered_from = t + 1
        np.testing.assert_array_equal(inputs, got_in)
        np.testing.assert_array_equal(outputs, got_out)


def test_pack_and_unpack(rng):
    for _ in range(30):
        lanes = int(rng.integers(1, 9))
        width = int(rng.integers(1, 64))
        tail = int(rng.integers(1, 33))
        values = rng.integers(-(1 << width - 1), 1 << width - 1, (7, lanes))
        last = rng.integers(0, 1 << tail, 7)
        packed = pack((values, width), (last, tail))
        assert packed.shape == (7, words_for(width * lanes + tail))
        for row in range(7):
            expected = sum((int(v) & (1 << width) - 1) << i * width for i, v in enumerate(values[row])) | int(last[row]) << lanes * width
            assert int.from_bytes(packed[row].astype("<u4").tobytes(), "little") == expected
        np.testing.assert_array_equal(unpack(packed, width, lanes=lanes, signed=True), values)
        np.testing.assert_array_equal(unpack(packed, tail, offset=lanes * width)[:, 0], last)


def test_pack_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="must fit 4 bits"):
        pack(([16], 4))
    with pytest.raises(ValueError, match="must fit 4 bits"):
        pack(([-9], 4))
    with pytest.raises(ValueError, match="integers"):
        pack(([0.5], 4))
    with pytest.raises(ValueError, match="width"):
        unpack(np.zeros((1, 2), np.uint32), 64)
