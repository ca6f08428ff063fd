# SPDX-License-Identifier: Apache-2.0
"""Streams in numpy: exact handshake cycles (docs/architecture.md, part 2.3) and the packing of payloads into words.

All cycles are int64 and counted from 0. The recurrence ``h[i] = max(a[i], h[i-1] + 1)`` is linear over (max, +), so that a whole port is one
``np.maximum.accumulate``; a stall trace is removed by counting in ready cycles instead of cycles.
"""

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Ready", "handshakes", "pack", "queue_times", "unpack", "words_for"]

Cycles = NDArray[np.int64]


class Ready:
    """A sink's ready trace: cycle t is ready iff ``trace[t]``, and always past the end (``Ready()``: always).

    ``rank`` and ``position`` translate between cycles and ordinals of ready cycles; both take scalars or arrays of any shape.
    """

    def __init__(self, trace: ArrayLike | None = None) -> None:
        bits = np.zeros(0, bool) if trace is None else np.asarray(trace, bool)
        if bits.ndim != 1:
            raise ValueError(f"trace must have one dimension, not {bits.ndim}")
        self.trace = bits
        self._positions: Cycles = np.flatnonzero(bits).astype(np.int64)
        self._ranks: Cycles = np.concatenate([[0], np.cumsum(bits)]).astype(np.int64)

    def rank(self, cycle: ArrayLike) -> Any:
        """Number of ready cycles before ``cycle``: the ordinal of the first ready cycle from it on."""
        t = np.asarray(cycle, np.int64)
        length = len(self.trace)
        return self._ranks[np.minimum(t, length)] + np.maximum(t - length, 0)

    def position(self, rank: ArrayLike) -> Any:
        """Cycle of the ready cycle with ordinal ``rank``."""
        r = np.asarray(rank, np.int64)
        count = len(self._positions)
        late = len(self.trace) + r - count
        return late if not count else np.where(r < count, self._positions[np.minimum(r, count - 1)], late)

    def next_ready(self, cycle: ArrayLike) -> Any:
        """First ready cycle >= ``cycle``."""
        return self.position(self.rank(cycle))


def _as_ready(ready: Ready | ArrayLike | None) -> Ready:
    return ready if isinstance(ready, Ready) else Ready(ready)


def handshakes(not_before: ArrayLike, ready: Ready | ArrayLike | None = None, start: int = 0) -> Cycles:
    """Handshake cycles (n,) of beats offered from ``max(not_before[i], handshake[i-1] + 1, start)`` on to a sink with the given ready trace.

    Exact where the sink's readiness does not depend on the beats; O(n), no Python per beat.
    """
    trace = _as_ready(ready)
    earliest: Cycles = np.maximum(np.asarray(not_before, np.int64), start)
    index = np.arange(len(earliest), dtype=np.int64)
    ranks = np.maximum.accumulate(trace.rank(earliest) - index) + index if len(earliest) else earliest
    return np.asarray(trace.position(ranks), np.int64)


def queue_times(not_before: ArrayLike, ready: Ready | ArrayLike | None = None, *, depth: int, latency: int, release: int = 1) -> tuple[Cycles, Cycles]:
    """Handshake cycles (input, output), each (n,), of a queue between a source and a sink with a ready trace.

    Parameters
    ----------
    depth
        Beats that it holds.
    latency
        Cycles from a beat's input handshake until it can be offered at the output, >= 1.
    release
        Cycles from a beat's output handshake until its place can be written again: 1 where ``ready`` comes from a register, 0 where the output's ready
        passes to the input's (a register stage: depth 1, latency 1, release 0).
    """
    arrivals = np.asarray(not_before, np.int64).tolist()
    trace = _as_ready(ready)
    length = len(trace.trace)
    following = trace.next_ready(np.arange(length)).tolist()
    inputs: list[int] = []
    outputs: list[int] = []
    # Fullness feeds the output's stalls back into the input: one step per beat.
    for i, arrival in enumerate(arrivals):
        written = max(arrival, inputs[-1] + 1 if i else 0)
        if i >= depth:
            written = max(written, outputs[i - depth] + release)
        offered = max(written + latency, outputs[-1] + 1 if i else 0)
        inputs.append(written)
        outputs.append(following[offered] if offered < length else offered)
    return np.array(inputs, np.int64), np.array(outputs, np.int64)


def words_for(width: int) -> int:
    """32-bit words of a payload of ``width`` bits: at least one."""
    return max(1, -(-width // 32))


def pack(*fields: tuple[ArrayLike, int]) -> NDArray[np.uint32]:
    """Payloads (n, words) uint32, lowest word first, from fields (values, width) laid side by side, first field lowest.

    Values are (n,) or (n, lanes), lane 0 lowest, integers of up to 64 bits; negative ones become two's complement of ``width`` bits. What does not fit is a
    ValueError.
    """
    columns: list[tuple[NDArray[np.uint64], int]] = []
    for values, width in fields:
        array = np.asarray(values)
        if array.dtype.kind not in "iub":
            raise ValueError(f"fields must be integers, not {array.dtype}")
        if array.size and not (-(1 << max(width - 1, 0)) <= int(array.min()) and int(array.max()) < 1 << width):
            raise ValueError(f"values {array.min()} to {array.max()} must fit {width} bits")
        lanes = array.reshape(len(array), -1) if array.size else array.reshape(len(array), array.shape[1] if array.ndim > 1 else 1)
        mask = np.uint64((1 << min(width, 64)) - 1)
        # Lane by lane in memory, as they are worked on: a row of a weight ring has hundreds.
        bits = np.ascontiguousarray(lanes.T).astype(np.uint64 if array.dtype.kind == "u" else np.int64).view(np.uint64)
        bits &= mask
        columns += [(lane, width) for lane in bits]
    total = sum(width for _, width in columns)
    count = len(columns[0][0]) if columns else 0
    out = np.zeros((-(-max(total, 1) // 64), count), np.uint64)
    offset = 0
    for column, width in columns:
        word, shift = divmod(offset, 64)
        if width:
            out[word] |= column << np.uint64(shift)
        if shift and shift + min(width, 64) > 64:
            out[word + 1] |= column >> np.uint64(64 - shift)
        offset += width
    return np.ascontiguousarray(np.ascontiguousarray(out.T).view("<u4")[:, : words_for(total)])


def unpack(payloads: ArrayLike, width: int, *, lanes: int = 1, offset: int = 0, signed: bool = False) -> NDArray[np.int64]:
    """``lanes`` fields of ``width`` bits (up to 63, or 64 with ``signed``) from bit ``offset`` of payloads (n, words): (n, lanes) int64."""
    if not isinstance(width, Integral) or not 1 <= width <= 63 + signed:
        raise ValueError(f"width must be 1 to {63 + signed}, not {width}")
    words = np.asarray(payloads, np.uint64)
    out = np.zeros((len(words), lanes), np.uint64)
    for lane in range(lanes):
        done = 0
        while done < width:
            word, shift = divmod(offset + lane * width + done, 32)
            take = min(32 - shift, width - done)
            out[:, lane] |= ((words[:, word] >> np.uint64(shift)) & np.uint64((1 << take) - 1)) << np.uint64(done)
            done += take
    values = out.view(np.int64)
    if signed:
        spare = np.int64(64 - width)
        values = (values << spare) >> spare
    return values
