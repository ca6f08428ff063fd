# SPDX-License-Identifier: Apache-2.0
"""Clock cycles of ATTEND: every handshake of every port, exactly (docs/architecture.md §2.8, §2.10).

Time is not in the data: an instruction's schedule follows from its tokens and position and from when the ports move. All stages take items (a query row and
a key tile) in the same order, so each stage is one recurrence over items. An event of clock t is seen by whoever waits for it at t + 1 (all waiting is for
registered counters); the rest are the pipelines' lengths:

    stage        taken no earlier than one clock after                                 ends
    tile         the last request before, a free half of its buffer                    with its last row
    scores       last key of the item before, tile, room for scores, room for maximum  keys later, its maximum ``score`` clocks after that
    softmax      last score of the item before, tile, maximum, a place for w, for p    as many clocks later; w follows by ``weight``, sums by SUMS
    quotients    operand, result before                                                divsqrt later (int8 only)
    denominator  sums, the one before                                                  partials + (levels + 1) * add later
    products     quotient or weights, last one of the item before, place for P         keys later, P by ``product``
    output       P, 1 / denominator, last write of the item before, room for values    head_beats + ``update`` later

Scores and products spend ``key_clocks`` on a key, the softmax one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutra.hls_models.floats import FLOAT_LATENCY
from lutra.hls_models.functions import FUNCTION_LATENCY
from lutra.hls_models.streams import Ready
from lutra.hls_models.ternary.attention import STORED_ITEMS, AttentionConfig

__all__ = ["AttentionPhase", "AttentionTimes", "AttentionTiming", "Schedule", "attention_cycles"]

Cycles = NDArray[np.int64]

SETUP = 3  # states BASE and BEGIN between an instruction's handshake and the first code beat
START = 1  # state START follows the handshake of the pass's last row
WALK = 2  # from START to the first tile or item on offer: its position, then its size, in registers
QUEUE = 1  # the queue of values
MUL, ADD, DIVSQRT = FLOAT_LATENCY["mul"], FLOAT_LATENCY["add"], FLOAT_LATENCY["divsqrt"]
EXP2 = ADD + FUNCTION_LATENCY["exp2"]  # subtraction and exp2
SUMS = 1 + EXP2 + FLOAT_LATENCY["convert"] + ADD  # from an item's last score's read (synchronous) to its last partial sum


class AttentionLatencies:
    """What depends on the number format.

    ``score``: from the last clock of an item's last key in the scores stage to its maximum; ``weight``: from its last score's read to its last weight;
    ``product``: from the last clock of its last key in the products stage to P, ``release``: … to the strobe that frees the tile of V; ``update``: from a
    beat of P to the written output, ``value``: … to the queue of values.
    """

    def __init__(self, config: AttentionConfig) -> None:
        if config.kv_format == "int8":
            # Key and product registers, a register per level of the tree, conversion, scale.
            self.score = 2 + (config.head_dim - 1).bit_length() + FLOAT_LATENCY["from_int"] + MUL
            self.weight = 1 + EXP2 + MUL
            code = MUL + FLOAT_LATENCY["to_int"]  # from a weight's read to its code; the row of V is read one clock before that
            self.product, self.release = code + 1, code - 1
            self.update = FLOAT_LATENCY["from_int"] + MUL + ADD
        else:
            spare = config.key_clocks - config.key_steps  # clocks of a key after its last step
            levels = (config.key_lanes - 1).bit_length() + (config.key_steps - 1).bit_length()
            self.score = 1 + MUL + levels * ADD - spare  # key register, product, an adder per level of both trees
            self.weight = 1 + EXP2  # p itself
            self.product, self.release = 1 + MUL + ADD - spare, 0  # weight and row register, product, sum
            self.update = 1 + MUL + ADD  # the output's read
        self.value = self.update + MUL + FLOAT_LATENCY["convert"]


class Memory(Protocol):
    """The key/value memory as the loader meets it."""

    def load(self, first: int, rows: int) -> tuple[int, int]:
        """Rows requested from cycle ``first`` on: handshake of the last request, and of the last answer."""


class Sink(Protocol):
    def take(self, first: int, beats: int) -> list[int]:
        """Handshakes of beats that enter the queue of values in successive cycles from ``first``."""


class FixedMemory:
    """Takes a request in every clock and answers ``latency`` clocks later; keeps the runs of rows."""

    def __init__(self, latency: int) -> None:
        self.latency = latency
        self.runs: list[tuple[int, int]] = []

    def load(self, first: int, rows: int) -> tuple[int, int]:
        self.runs.append((first, rows))
        last = first + rows - 1
        return last, last + self.latency

    @property
    def requests(self) -> Cycles:
        return np.concatenate([np.arange(first, first + rows) for first, rows in self.runs])


class TracedMemory:
    """Requests meet a ready trace, answers come from a source with ``not_before`` (indexed over all instructions)."""

    def __init__(self, ready: Ready, not_before: Cycles) -> None:
        self.ready, self.not_before = ready, not_before.tolist()
        self.requests: list[int] = []
        self.answers: list[int] = []

    def load(self, first: int, rows: int) -> tuple[int, int]:
        for _ in range(rows):
            request = int(self.ready.next_ready(first))
            answer = max(self.not_before[len(self.answers)], request + 1, self.answers[-1] + 1 if self.answers else 0)
            self.requests.append(request)
            self.answers.append(answer)
            first = request + 1
        return request, answer


class ReadySink:
    """Moves a beat in every clock from ``start`` on."""

    def __init__(self, start: int = 0) -> None:
        self.free = start

    def take(self, first: int, beats: int) -> list[int]:
        begin = max(first + QUEUE, self.free)
        self.free = begin + beats
        return list(range(begin, self.free))


class TracedSink:
    def __init__(self, ready: Ready) -> None:
        self.ready, self.free = ready, 0

    def take(self, first: int, beats: int) -> list[int]:
        out = []
        for i in range(beats):
            out.append(int(self.ready.next_ready(max(first + i + QUEUE, self.free))))
            self.free = out[-1] + 1
        return out


class Row(NamedTuple):
    """An item: keys that a query row sees of a tile; whether it is the row's first or last one in order of work, and the tile's last one."""

    keys: int
    first: bool
    last: bool
    tile_end: bool


class Tile(NamedTuple):
    """``load`` rows come from memory."""

    load: int
    rows: list[Row]


class Schedule:
    """The attending phase of one instruction whose START is in cycle ``start``.

    ``values``: handshakes; ``items``: clocks in which the softmax takes items (for timelines).
    """

    def __init__(self, config: AttentionConfig, tokens: int, position: int, start: int, memory: Memory, sink: Sink) -> None:
        self.config, self.memory, self.sink = config, memory, sink
        self.prefill = tokens != 1
        self.latencies = AttentionLatencies(config)
        self.key_clocks, self.beats, self.score_depth, self.maximum_depth = config.key_clocks, config.head_beats, config.score_depth, config.maximum_depth
        self.divides = config.kv_format == "int8"  # 255 by the largest weight
        self.denominator = config.partials + config.partials.bit_length() * ADD
        ready = start + WALK
        self.next_tile = ready
        self.loaded: tuple[list[int], list[int]] = ([], [])
        self.released: tuple[list[int], list[int]] = ([], [])
        # Scores: next take, keys so far, and when its items' maxima were known.
        self.next_score, self.scored = ready, 0
        self.maxima: list[int] = []
        # Softmax and what follows it, per item.
        self.next_softmax = ready
        self.popped: list[int] = []
        self.items: list[int] = []
        self.freed: list[tuple[int, int]] = []  # scores read so far, and when that was so
        self.oldest_freed = 0
        self.weights_end, self.sums_end, self.outputs = [0] * STORED_ITEMS, [0] * STORED_ITEMS, [0] * 2
        self.quotient = self.inverse = self.summed = self.next_product = self.next_output = 0
        self.values: list[int] = []
        self._run(_tiles(config, tokens, position))

    def _run(self, tiles: Sequence[Tile]) -> None:
        heads = self.config.kv_heads
        for head in range(heads + (not self.prefill)):
            for tile in tiles:
                if self.prefill:
                    self._load(0, tile.load)
                    self._load(1, tile.load)
                    for row in tile.rows:  # by turns, because room for the scores of one row may come from another of the same tile
                        self._score(row)
                        self._attend(row)
                    continue
                if head:
                    self._load(1, tile.load)
                    for row in tile.rows:
                        self._attend(row)
                if head < heads:
                    self._load(0, tile.load)
                    for row in tile.rows:
                        self._score(row)

    def _load(self, value: int, rows: int) -> None:
        loaded, released = self.loaded[value], self.released[value]
        take = self.next_tile
        if len(loaded) >= 2:
            take = max(take, released[len(loaded) - 2] + 1)
        last, end = self.memory.load(take + 1, rows)
        self.next_tile = last + 1
        loaded.append(end)

    def _score(self, row: Row) -> None:
        keys, clocks, places = row.keys, row.keys * self.key_clocks, self.maximum_depth
        take = max(self.next_score, self.loaded[0][-1] + 1)
        self.scored += keys
        if self.scored > self.score_depth:
            while self.freed[self.oldest_freed][0] < self.scored - self.score_depth:
                self.oldest_freed += 1
            take = max(take, self.freed[self.oldest_freed][1] + 1)
        if self.prefill or row.last:
            if len(self.maxima) >= places:
                take = max(take, self.popped[len(self.maxima) - places] + 1)
            self.maxima.append(take + clocks + self.latencies.score)
        self.next_score = take + clocks + 1
        if row.tile_end:
            self.released[0].append(take + clocks)

    def _attend(self, row: Row) -> None:
        keys, beats, latencies = row.keys, self.beats, self.latencies
        take = max(self.next_softmax, self.loaded[1][-1] + 1, self.weights_end[-STORED_ITEMS] + 1, self.sums_end[-STORED_ITEMS] + 1)
        if self.prefill or row.first:
            take = max(take, self.maxima[len(self.popped)] + 1)
            self.popped.append(take)
        self.items.append(take)
        end = take + keys
        self.next_softmax = end + 1
        self.freed.append(((self.freed[-1][0] if self.freed else 0) + keys, end))

        self.quotient = max(end + latencies.weight, self.quotient) + 1 + DIVSQRT if self.divides else end + latencies.weight
        self.summed = max(end + SUMS, self.summed) + 1 + self.denominator
        self.inverse = max(self.summed, self.inverse) + 1 + DIVSQRT
        self.sums_end.append(self.summed)

        end = max(self.quotient + 1, self.next_product, self.outputs[-2] + 1) + keys * self.key_clocks
        self.next_product = end + 1
        self.weights_end.append(end)
        if row.tile_end:
            self.released[1].append(end + latencies.release)

        output = max(end + latencies.product + 1, self.inverse + 1, self.next_output)
        if row.last:
            # Two heads' values fit the queue: the beat that makes room for this one's last is two heads back.
            if len(self.values) >= 2 * beats:
                output = max(output, self.values[len(self.values) - beats - 1] + 1)
            self.values += self.sink.take(output + 1 + latencies.value, beats)
        self.outputs.append(output)
        self.next_output = output + beats + latencies.update + 1


def _tiles(config: AttentionConfig, tokens: int, position: int) -> list[Tile]:
    """Tiles in order of work."""
    TL, end = config.key_tile, position + tokens
    tiles = []
    for base in range(0, end, TL):
        spans = [position + token + 1 - base for token in range(tokens) if position + token >= base for _ in range(config.group)]
        rows = []
        for i, span in enumerate(spans):
            newest, oldest = span <= TL, base == 0
            first, last = (newest, oldest) if tokens != 1 else (oldest, newest)
            rows.append(Row(min(span, TL), first, last, i == len(spans) - 1))
        tiles.append(Tile(min(TL, end - base), rows))
    return tiles if tokens == 1 else tiles[::-1]


@dataclass(frozen=True)
class AttentionTimes:
    """Handshakes of one instruction; ``done`` is the clock from which it is offered, ``ready`` the one after which the next instruction could be taken
    if ``done`` meets a ready sink."""

    instr: int
    qkv: Cycles
    kv_write: Cycles
    kv_read: Cycles
    kv_data: Cycles
    values: Cycles
    items: Cycles

    @property
    def done(self) -> int:
        return int(self.values[-1]) + 1


class AttentionPhase(NamedTuple):
    """The attending phase of an instruction, counted from its START: handshakes of values and of kv_read, clocks in which the softmax takes items."""

    values: Cycles
    kv_read: Cycles
    items: Cycles


class AttentionTiming:
    """Incremental form for a core: memory answers every request after a fixed latency and takes every row, the sink of values never stalls once it is ready.

    The attending phase does not change when it is shifted in time: it is computed once per (tokens, position) and reused.
    """

    def __init__(self, config: AttentionConfig, *, latency: int = 2) -> None:
        self.config, self.latency = config, latency
        self._known: dict[tuple[int, int], AttentionPhase] = {}

    def instruction(self, tokens: int, position: int, instr: int, qkv: ArrayLike, values_ready: int = 0) -> AttentionTimes:
        """One instruction.

        Parameters
        ----------
        instr
            Cycle of its handshake: after the one of ``done`` before.
        qkv
            (beats,) cycles from which the code beats are offered, each also after the one before.
        values_ready
            Cycle from which the sink of values is always ready.
        """
        qkv_times, kv_write, start = self.store(np.asarray(qkv, np.int64), np.asarray(instr))
        values, kv_read, items = (times + start for times in self.phase(tokens, position, values_ready - int(start)))
        return AttentionTimes(instr, qkv_times, kv_write, kv_read, kv_read + self.latency, values, items)

    def phase(self, tokens: int, position: int, values_ready: int) -> AttentionPhase:
        """The attending phase; ``values_ready`` counts from START, too."""
        known = self._known.get((tokens, position))
        if known is None:
            known = self._known[tokens, position] = self._attend(tokens, position, 0)
        return known if known.values[0] >= values_ready else self._attend(tokens, position, values_ready)

    def _attend(self, tokens: int, position: int, values_ready: int) -> AttentionPhase:
        memory = FixedMemory(self.latency)
        schedule = Schedule(self.config, tokens, position, 0, memory, ReadySink(values_ready))
        return AttentionPhase(np.array(schedule.values, np.int64), memory.requests, np.array(schedule.items, np.int64))

    def store(self, not_before: Cycles, instr: Cycles) -> tuple[Cycles, Cycles, Cycles]:
        """The phase before: handshakes of the code beats (…, beats) and of the rows that they make, cycle of START (…); leading axes are passes."""
        start = instr + SETUP
        if self.config.head_beats == 1:  # a row a beat: each K or V row holds its successor up
            passes = zip(not_before.reshape(-1, not_before.shape[-1]).tolist(), np.ravel(start).tolist(), strict=True)
            both = [_store(self.config, beats, first, Ready()) for beats, first in passes]
            taken, written = (np.reshape([one[i] for one in both], (*not_before.shape[:-1], -1)) for i in range(2))
        else:
            index = np.arange(not_before.shape[-1])
            taken = np.maximum.accumulate(np.maximum(not_before, start[..., None]) - index, axis=-1) + index
            ends = taken[..., self.config.head_beats - 1 :: self.config.head_beats]
            rows = ends.reshape(*ends.shape[:-1], -1, self.config.heads + 2 * self.config.kv_heads)[..., self.config.heads :]
            written = rows.reshape(*ends.shape[:-1], -1) + 1
        return taken, written, written[..., -1] + START


def _store(config: AttentionConfig, not_before: Sequence[int], start: int, ready: Ready, written: int = -1) -> tuple[Cycles, Cycles]:
    """Handshakes of the code beats of a pass and of the rows they make, the last row before having left at ``written``."""
    beats, groups = config.head_beats, config.heads + 2 * config.kv_heads
    taken: list[int] = []
    rows: list[int] = []
    free = start
    for i, offered in enumerate(not_before):
        group, beat = divmod(i % (groups * beats), beats)
        take = max(offered, free)
        if beat == beats - 1:
            take = max(take, written + 1)
            if group >= config.heads:
                written = int(ready.next_ready(take + 1))
                rows.append(written)
        taken.append(take)
        free = take + 1
    return np.array(taken, np.int64), np.array(rows, np.int64)


def attention_cycles(
    config: AttentionConfig,
    instructions: Sequence[tuple[int, int]],
    not_before: Mapping[str, ArrayLike],
    ready: Mapping[str, ArrayLike | None],
) -> dict[str, Cycles]:
    """Handshakes of all ports for a sequence of (tokens, position), from reset.

    Parameters
    ----------
    not_before
        Per input (instr, qkv, kv_data) the cycles before which its beats are not offered, over the whole sequence.
    ready
        Per output (kv_write, kv_read, values, done) a trace, True past its end; absent or None: always.
    """
    traces = {name: Ready(ready.get(name)) for name in ("kv_write", "kv_read", "values", "done")}
    instr_from, qkv_from = np.asarray(not_before["instr"], np.int64), np.asarray(not_before["qkv"], np.int64)
    memory = TracedMemory(traces["kv_read"], np.asarray(not_before["kv_data"], np.int64))
    sink = TracedSink(traces["values"])
    times: dict[str, list[int]] = {name: [] for name in ("instr", "qkv", "kv_write", "values", "done")}
    pass_beats = (config.heads + 2 * config.kv_heads) * config.head_beats
    offset = 0
    for i, (tokens, position) in enumerate(instructions):
        instr = max(int(instr_from[i]), times["done"][-1] + 1 if times["done"] else 0)
        end = offset + tokens * pass_beats
        # A source offers a beat no earlier than a clock after the one before was taken: that lies before this instruction's first clock.
        qkv, rows = _store(config, qkv_from[offset:end].tolist(), instr + SETUP, traces["kv_write"])
        offset = end
        schedule = Schedule(config, tokens, position, int(rows[-1]) + START, memory, sink)
        times["instr"].append(instr)
        times["qkv"] += qkv.tolist()
        times["kv_write"] += rows.tolist()
        times["values"] += schedule.values
        times["done"].append(int(traces["done"].next_ready(schedule.values[-1] + 1)))
    return {name: np.array(cycles, np.int64) for name, cycles in (times | {"kv_read": memory.requests, "kv_data": memory.answers}).items()}
